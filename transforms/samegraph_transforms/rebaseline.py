"""A new version of a package that differs in its baseline only: statistics of later rows in place of the training rows'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path

from .baseline import BASELINE, BASELINE_BEFORE, Baseline, Variable
from .baseline_build import BaselineBuilder, pixel_values
from .draft import BaselineRows
from .errors import AuthoringError, PackageError
from .package import Package, PackageWriter, list_versions, version_path, write_baseline
from .runtime import PackageRuntime

#: Rows a new baseline has at least, unless fewer are asked for: bins of fewer say little about what comes later.
LEAST_ROWS = 1000


def rebaseline(
    package: Package,
    chunks: Iterable[Sequence[object]],
    *,
    repository: Path | str,
    version: int | None = None,
    least_rows: int = LEAST_ROWS,
    describe: Callable[[], BaselineRows],
    progress: Callable[[int], None] | None = None,
) -> Package:
    """Write a package whose baseline is made from other rows; graphs, golden samples and everything else are copied byte for byte.

    The baseline that was there is kept beside the new one, and the new one names the package it replaces. What a field's baseline was
    told about it stays: importance, whether it is looked at, whether its values are kept as digests, and which values of a string training
    knew, so that `unseen` keeps its meaning.

    Args:
        package: The package, proven and read with its digests.
        chunks: Instances, a few at a time; run through the package.
        repository: The model repository the new version goes to.
        version: Its number; None is one more than the highest there.
        least_rows: Fewest rows.
        describe: Returns what the new baseline says about its rows, once all were taken; `rows` and the options in it are not looked at.
        progress: Called with rows done.

    Raises:
        AuthoringError: There are too few rows, or one is refused.
        PackageError: The package was never proven, so there is nothing to hold on to.
        PackageExists: Another package already has this version.
        ExecutionError: A graph does not load or run.
    """
    if not package.proven:
        raise PackageError(f"{package} is a bare model; pack it first, with samples from its training code")
    name = package.manifest.name
    number = version if version is not None else 1 + max(list_versions(repository, name), default=0)
    old = package.baseline()
    given = _given(old)
    done = 0
    with closing(PackageRuntime.load(package)) as runtime:
        builder = BaselineBuilder(package.manifest, given, pixel_values(package), runtime.tokenizers)
        for chunk in chunks:
            builder.run(runtime, chunk, done)
            done += len(chunk)
            if progress is not None:
                progress(done)
    if done < least_rows:
        raise AuthoringError(f"{package}: {done:,} rows are too few for a baseline; it takes {least_rows:,} (or ask for fewer)")
    words = describe()
    made = builder.finish().model_copy(
        update={
            "made_from": words.made_from,
            "sampled_from": words.sampled_from,
            "sampled_to": words.sampled_to,
            "replaces": f"{package} {package.digest}",
        }
    )
    with PackageWriter(version_path(repository, name, number)) as writer:
        for file in sorted(package.manifest.files):
            if file not in (BASELINE, BASELINE_BEFORE):
                writer.add(file, package.read_file(file))
        if old is not None:
            writer.add(BASELINE_BEFORE, package.read_file(BASELINE))
        manifest = write_baseline(made, package.manifest.model_copy(update={"version": number}), writer)
        return writer.commit(manifest)


def _given(old: Baseline | None) -> BaselineRows:
    """Return what a baseline was told about its fields and outputs."""
    if old is None:
        return BaselineRows(rows=())
    known = {field.name: _values(v) for field in old.fields if field.kind == "string" for v in field.variables if _lists(v)}
    known |= {output.name: _values(v) for output in old.outputs for v in output.variables if _lists(v)}
    return BaselineRows(
        rows=(),
        off=[field.name for field in old.fields if field.monitored == "off"],
        hashed=[field.name for field in old.fields if field.monitored == "hashed"],
        importance={field.name: field.importance for field in old.fields},
        known=known,
        positive={o.name: o.expected.positive for o in old.outputs if o.expected is not None and o.expected.positive is not None},
    )


def _lists(variable: Variable) -> bool:
    return variable.kind == "categorical" and not variable.hashed


def _values(variable: Variable) -> list[str]:
    return [*variable.categories, *variable.rare]

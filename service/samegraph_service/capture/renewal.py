"""Captured rows → a new version of a package with a baseline made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from samegraph_transforms.draft import BaselineRows
from samegraph_transforms.errors import AuthoringError, InputError
from samegraph_transforms.package import Package
from samegraph_transforms.rebaseline import rebaseline
from samegraph_transforms.signature import Signature

from .reader import Batch, Capture, CaptureError, CaptureFile, Choice, check_whole
from .tap import place_of


def renew(
    capture: Capture,
    package: Package,
    *,
    repository: Path,
    version: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    min_rows: int,
    max_rows: int,
    any_version: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Package:
    """Write a new version of a package whose baseline is captured rows (see `rebaseline`).

    Args:
        capture: Where they lie.
        package: The package.
        repository: The model repository the new version goes to.
        version: Its number; None is one more than the highest there.
        since: Rows answered at this time or later.
        until: Rows answered before this time.
        min_rows: Fewest rows.
        max_rows: Most rows, about; of more a sample is taken, by request.
        any_version: Whether rows that other versions answered count, as far as the package takes them.
        progress: Called with rows done and rows in all, about.

    Raises:
        CaptureError: There are no rows of this package, or a field was not captured.
        AuthoringError: There are too few.
        PackageExists: Another package already has this version.
    """
    choice = Choice(model=package.manifest.name, since=since, until=until)
    files = _files(capture, package, choice, any_version=any_version)
    total = sum(file.facts.rows for file in files)
    if total < min_rows:
        raise AuthoringError(f"{package}: {total:,} captured rows are too few for a baseline; it takes {min_rows:,} (--min-rows)")
    rows = _Rows(capture, package, choice, files, min(1.0, max_rows / total))
    expected = min(total, max_rows)

    def words() -> BaselineRows:
        versions = ", ".join(sorted({f"{f.facts.model}/{f.facts.version}" for f in files}))
        left_out = f" ({rows.left_out:,} more rows were left out)" if rows.left_out else ""
        return BaselineRows(
            rows=(),
            made_from=f"captured requests to {versions}{left_out}",
            sampled_from=None if rows.first is None else rows.first.isoformat(timespec="seconds"),
            sampled_to=None if rows.last is None else rows.last.isoformat(timespec="seconds"),
        )

    return rebaseline(
        package,
        rows.chunks(),
        repository=repository,
        version=version,
        least_rows=min_rows,
        describe=words,
        progress=None if progress is None else lambda done: progress(done, expected),
    )


def _files(capture: Capture, package: Package, choice: Choice, *, any_version: bool) -> list[CaptureFile]:
    """Return the files whose rows count."""
    files = capture.files(choice)
    mine = [f for f in files if (f.facts.version, f.facts.digest) == (package.manifest.version, package.digest)]
    if not any_version and not mine:
        others = sorted({f"{f.facts.model}/{f.facts.version} ({f.facts.digest[:12]})" for f in files})
        there = f"; it has rows of {', '.join(others)}, which --any-version would take" if others else ""
        raise CaptureError(f"{capture.url} holds no rows that {package} ({package.digest[:12]}) answered{there}")
    found = files if any_version else mine
    for file in found:
        check_whole(file.facts)
    return found


class _Rows:
    """Captured instances, a few at a time.

    Attributes:
        first: When the first was answered.
        last: When the last was answered.
        left_out: Rows whose image is gone, or that the package does not take.
    """

    def __init__(self, capture: Capture, package: Package, choice: Choice, files: list[CaptureFile], ratio: float) -> None:
        self._capture, self._choice, self._files = capture, choice, files
        self._signature = Signature(package.manifest)
        self._fields = {f.name for f in package.manifest.fields}
        self._below = ratio * 2**32
        self.first: datetime | None = None
        self.last: datetime | None = None
        self.left_out = 0

    def chunks(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self._capture.batches(self._choice, self._files):
            yield list(self._taken(batch))

    def _taken(self, batch: Batch) -> Iterator[dict[str, Any]]:
        for i, instance in enumerate(self._capture.instances(batch)):
            # Not the id alone: by it these requests were chosen to be captured.
            if place_of(f"baseline {batch.meta['request_id'][i]} {batch.meta['instance'][i]}") >= self._below:
                continue
            if instance is None:
                self.left_out += 1
                continue
            instance = {name: value for name, value in instance.items() if name in self._fields}
            try:
                self._signature.check_row(instance)
            except InputError:  # only what another version took
                self.left_out += 1
                continue
            moment = batch.meta["time"][i]
            self.first = moment if self.first is None else min(self.first, moment)
            self.last = moment if self.last is None else max(self.last, moment)
            yield instance

"""Put a proven package and its held-out requests into a repository, where an older build may already be."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from samegraph_transforms.draft import GoldenSample, PackageDraft
from samegraph_transforms.errors import PackageError
from samegraph_transforms.golden import write_samples
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package, read_package


def publish(
    draft: PackageDraft,
    golden: Sequence[GoldenSample],
    held_out: Sequence[GoldenSample],
    repository: Path,
    *,
    replace: bool,
    progress: Callable[[str], None] | None = None,
) -> Package:
    """Prove and write a package, and its held-out requests to `.heldout/<name>/<version>` beside it.

    Args:
        draft: Graphs and facts.
        golden: Samples that prove it and travel in it.
        held_out: Further requests with the training code's answers.
        repository: The model repository.
        replace: Whether another package under this name and version makes way. It does so only once the new one is proven; when
            both are the same, nothing is touched, so that a server which has loaded it sees no change.
        progress: Gets a line of text now and then.

    Returns:
        The package as it now lies in the repository.

    Raises:
        NotExact: The package does not answer like the training code. What was there before is still there.
        PackageExists: Another package has this name and version, and `replace` is not set.
    """
    target = repository / draft.name / str(draft.version)
    if replace and target.exists():
        package = _replace(target, draft, golden, repository, progress)
    else:
        package = pack(draft, golden, repository, progress=progress)
    _write_held_out(held_out, repository / ".heldout" / draft.name / str(draft.version))
    return package


def _replace(
    target: Path, draft: PackageDraft, golden: Sequence[GoldenSample], repository: Path, progress: Callable[[str], None] | None
) -> Package:
    # A name that starts with a dot is no model, so that a server which watches the repository does not look inside.
    with tempfile.TemporaryDirectory(dir=repository, prefix=".building-") as scratch:
        built = pack(draft, golden, scratch, progress=progress)
        if _digest(target) != built.digest:
            target.rename(Path(scratch) / "older")
            built.path.rename(target)
    return read_package(target)


def _digest(directory: Path) -> str | None:
    """Return the digest of the package in `directory`, or None when it is not one, or not whole."""
    try:
        return read_package(directory).digest
    except PackageError:
        return None


def _write_held_out(samples: Sequence[GoldenSample], directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".writing-") as scratch:
        written = Path(scratch) / "samples"
        write_samples(written, samples)
        shutil.rmtree(directory, ignore_errors=True)
        written.rename(directory)

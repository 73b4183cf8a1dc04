"""Know whether an example's packages were built from what lies here now, without importing anything heavy.

Beside an example's held-out requests stands `built.json`: a digest of everything its packages are made from, and the digest of each
package's manifest. While both still match there is nothing to do, and `models/build.py` ends after a few milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

MODELS = Path(__file__).resolve().parent
LIBRARY = MODELS.parent / "transforms" / "samegraph_transforms"
#: Parts of the library that only read and show packages; a change in them changes no package.
_READERS = {
    "bare.py", "baseline_svg.py", "baseline_view.py", "cli.py", "golden_export.py", "inspection.py", "inspection_html.py", "predicting.py",
    "verify.py",
}  # fmt: skip
#: Libraries whose version can change a graph, a decoded pixel or a trained weight.
_LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "pandas", "pillow", "scikit-learn", "scipy", "skl2onnx", "tokenizers")


def inputs_digest(example: str) -> str:
    """Return the SHA-256 over everything the packages of `models/<example>` are made from: sources, committed data, libraries."""
    whole = hashlib.sha256(f"python {platform.python_version()} {platform.machine()}\n".encode())
    for name in _LIBRARIES:
        whole.update(f"{name} {_version(name)}\n".encode())
    for path in _inputs(example):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{path.relative_to(MODELS.parent).as_posix()} {content}\n".encode())
    return whole.hexdigest()


def is_current(repository: Path, example: str) -> bool:
    """Whether the packages of `example` in `repository` are those that `mark_current` recorded, built from the inputs as they are now."""
    try:
        stamp = json.loads(_stamp(repository, example).read_text())
        packages = {version: _manifest_digest(repository, example, version) for version in stamp["packages"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    held_out = all((repository / ".heldout" / example / version / "requests.jsonl").is_file() for version in packages)
    return bool(packages) and held_out and stamp == {"inputs": inputs_digest(example), "packages": packages}


def mark_current(repository: Path, example: str) -> None:
    """Record that every package of `example` now in `repository` was built from the inputs as they are now."""
    packages = {version: _manifest_digest(repository, example, version) for version in built_versions(repository, example)}
    stamp = _stamp(repository, example)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps({"inputs": inputs_digest(example), "packages": packages}, indent=1, sort_keys=True) + "\n")


def built_versions(repository: Path, example: str) -> list[str]:
    """Return the versions of `example` that have a manifest, in order."""
    found = [path.parent.name for path in (repository / example).glob("*/manifest.json")]
    return sorted((name for name in found if name.isdecimal()), key=int)


def _inputs(example: str) -> Iterator[Path]:
    yield from sorted(MODELS.glob("_*.py"))
    yield from sorted(p for p in LIBRARY.glob("*.py") if p.name not in _READERS)
    # The versions themselves lie in the same directory when the default repository is built.
    yield from sorted(p for p in _files(MODELS / example) if p.suffix in (".py", ".npz", ".csv", ".json"))


def _files(directory: Path) -> Iterable[Path]:
    for path in directory.iterdir():
        if path.is_dir() and not path.name.isdecimal() and not path.name.startswith((".", "_")):
            yield from _files(path)
        elif path.is_file():
            yield path


def _stamp(repository: Path, example: str) -> Path:
    return repository / ".heldout" / example / "built.json"


def _manifest_digest(repository: Path, example: str, version: str) -> str:
    return hashlib.sha256((repository / example / version / "manifest.json").read_bytes()).hexdigest()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"

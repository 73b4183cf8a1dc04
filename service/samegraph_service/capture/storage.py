"""Where capture files lie: a local directory, or any URL that fsspec knows. A file is there whole or not at all.

MODEL/VERSION/20261121T154324.123456Z-<replica>-<number>.parquet
images/<first two digits>/<SHA-256>
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

#: Leftovers of a writer that was killed are removed once they are this old, in seconds.
ABANDONED_AFTER_S = 3600.0
PARTIAL = ".partial"
IMAGES = "images"
#: Protocols whose files appear when they are whole; elsewhere a file is written under another name and moved.
_WHOLE_PUTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory"})


@dataclass(frozen=True, slots=True)
class Stored:
    """A file as it lies there.

    Attributes:
        name: Path below the root, with `/`.
        bytes: Its size.
        modified_s: When it was last changed, in seconds since the epoch; 0 where the storage does not tell.
    """

    name: str
    bytes: int
    modified_s: float


class Storage(Protocol):
    """Files below one root. Errors are `OSError`, or what the file system raises."""

    local: bool

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Put a whole file there, replacing one of the same name."""

    def exists(self, name: str) -> bool:
        """Whether the file is there; a local one counts as used now."""

    def read(self, name: str) -> bytes:
        """Return a file's content; FileNotFoundError when it is not there."""

    def open(self, name: str) -> BinaryIO:
        """Open a file to read parts of it."""

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone already is fine."""

    def files(self) -> Iterator[Stored]:
        """Yield every whole file, in no order."""


def image_name(digest: str) -> str:
    """Return where the image or byte string with this SHA-256 lies."""
    return f"{IMAGES}/{digest[:2]}/{digest}"


def open_storage(url: str) -> Storage:
    """Return what lies at a directory or URL.

    Raises:
        OSError, ValueError, ImportError: The URL's file system is unknown or cannot be used; says why.
    """
    scheme, found, rest = url.partition("://")
    if not found:
        return LocalStorage(Path(url))
    if scheme in ("file", "local"):
        return LocalStorage(Path(rest))
    return RemoteStorage(url)


class LocalStorage:
    """A directory. Only its owner can read what is captured.

    Args:
        root: The directory; made by the first write.
    """

    local = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write beside the place, flush to the disk, and rename."""
        target = self.root / name
        self._make(target.parent)
        partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(target)
        except BaseException:  # whatever it was, half a file is not left behind
            partial.unlink(missing_ok=True)
            raise

    def _make(self, directory: Path) -> None:
        if not directory.is_dir():
            missing = [directory, *directory.parents]
            for parent in reversed(missing[: next((i for i, d in enumerate(missing) if d.is_dir()), len(missing))]):
                parent.mkdir(mode=0o700, exist_ok=True)

    def exists(self, name: str) -> bool:
        """Whether it is there; its time becomes now, so that what is in use is not the oldest."""
        try:
            os.utime(self.root / name)
        except OSError:
            return False
        return True

    def read(self, name: str) -> bytes:
        """Return the content."""
        return (self.root / name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        """Open for reading."""
        return (self.root / name).open("rb")

    def delete(self, name: str) -> None:
        """Delete the file."""
        (self.root / name).unlink(missing_ok=True)

    def files(self) -> Iterator[Stored]:
        """Yield whole files; leftovers of a killed writer are removed when they are old."""
        for directory, _, names in os.walk(self.root):
            for name in names:
                path = Path(directory, name)
                try:
                    facts = path.stat()
                    if name.endswith(PARTIAL):
                        if time.time() - facts.st_mtime > ABANDONED_AFTER_S:
                            path.unlink(missing_ok=True)
                        continue
                except OSError:  # another replica was quicker
                    continue
                yield Stored(path.relative_to(self.root).as_posix(), facts.st_size, facts.st_mtime)


class RemoteStorage:
    """What fsspec finds at a URL.

    Args:
        url: With its protocol.
    """

    local = False

    def __init__(self, url: str) -> None:
        import fsspec

        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        self._whole_puts = bool(protocols & _WHOLE_PUTS)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Put the file, or write it under another name and move it where a put could be seen half done."""
        path = self._path(name)
        if self._whole_puts:
            self._fs.pipe_file(path, bytes(data))
            return
        folder, _, last = path.rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        partial = f"{folder}/.{last}.{os.getpid()}{PARTIAL}"
        self._fs.pipe_file(partial, bytes(data))
        self._fs.mv(partial, path)

    def exists(self, name: str) -> bool:
        """Whether it is there."""
        return bool(self._fs.exists(self._path(name)))

    def read(self, name: str) -> bytes:
        """Return the content."""
        return bytes(self._fs.cat_file(self._path(name)))

    def open(self, name: str) -> BinaryIO:
        """Open for reading."""
        return cast(BinaryIO, self._fs.open(self._path(name), "rb"))

    def delete(self, name: str) -> None:
        """Delete the file."""
        try:
            self._fs.rm_file(self._path(name))
        except FileNotFoundError:
            pass

    def files(self) -> Iterator[Stored]:
        """Yield whole files."""
        self._fs.invalidate_cache()
        found: dict[str, Any] = self._fs.find(self._root, detail=True)
        for path, facts in found.items():
            name = path[len(self._root) :].lstrip("/")
            if not name.endswith(PARTIAL):
                yield Stored(name, int(facts.get("size") or 0), 0.0)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

"""Safe names and paths: nothing in a package or repository may point outside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import DigestMismatch, PackageError, UnsafePath
from .manifest import is_safe_name

MAX_PATH_LENGTH = 512


def check_relative(path: str, *, what: str = "path") -> str:
    """Return `path` when it is a plain POSIX path that stays below its base.

    Args:
        path: A path such as `golden/blobs/ab12`, with forward slashes.
        what: What the path is for; error messages say it.

    Raises:
        UnsafePath: The path is empty, absolute, not normal (`.`, `..`, `//`), or holds a backslash, a colon or a control character.
    """
    reason = _why_unsafe(path)
    if reason:
        raise UnsafePath(f"{what} {path!r} {reason}; use a plain relative path with forward slashes that stays inside the package")
    return path


def _why_unsafe(path: str) -> str | None:
    if not path:
        return "is empty"
    if len(path) > MAX_PATH_LENGTH:
        return f"is longer than {MAX_PATH_LENGTH} characters"
    if any(ord(c) < 32 or ord(c) == 127 for c in path):
        return "holds a control character"
    if "\\" in path or ":" in path:
        return "holds a backslash or a colon"
    if path.startswith("/"):
        return "is absolute"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "holds an empty, `.` or `..` part"
    return None


def check_name(name: str) -> str:
    """Return `name` when it can be a model's directory and URL segment; otherwise raise UnsafePath."""
    if not is_safe_name(name):
        raise UnsafePath(
            f"model name {name!r} cannot be used: a name has 1 to 128 letters, digits, `_`, `-` or `.`, and no dot at either end"
        )
    return name


def is_version_name(name: str) -> bool:
    """Whether a directory name is a version number: decimal, positive, without leading zeros."""
    return name.isascii() and name.isdigit() and not name.startswith("0") and len(name) <= 10 and int(name) < 2**31


def walk_files(directory: Path) -> Iterator[str]:
    """Yield every file below `directory` as a relative POSIX path, sorted.

    Raises:
        UnsafePath: Something below it is a symbolic link, or neither a file nor a directory.
    """
    for entry in sorted(os.scandir(directory), key=lambda e: e.name):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISREG(mode):
            yield entry.name
        elif stat.S_ISDIR(mode):
            for below in walk_files(Path(entry.path)):
                yield f"{entry.name}/{below}"
        else:
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a directory"
            raise UnsafePath(f"{entry.path} is {kind}; a model package holds plain files only, so copy the file in its place")


def open_plain(path: Path) -> int:
    """Open `path` for reading and return the descriptor; never follows a link in its last part, never opens a device.

    Raises:
        UnsafePath: It is a symbolic link or not a regular file.
        DigestMismatch: There is no such file.
        PackageError: The system refuses to open it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise DigestMismatch(f"{path} is missing; copy the whole package again") from error
    except OSError as error:
        if path.is_symlink():
            raise UnsafePath(f"{path} is a symbolic link; a model package holds plain files only") from error
        raise PackageError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafePath(f"{path} is not a regular file; a model package holds plain files only")
    return descriptor


def leaves(root: Path, path: Path) -> bool:
    """Whether `path`, with every link followed, lies outside `root`."""
    return not path.resolve().is_relative_to(root.resolve())

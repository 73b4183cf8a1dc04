"""The journal of a burst: an append-only file of JSON lines that lets a killed process go on where it was.

The first line names the burst: an id and what was asked for. Every item's idempotency key follows from that id and the item's index, so a
process that comes back sends unfinished items under the same keys, and the server joins them to the first attempt. Then one line per item
sent (`i` and a fingerprint of its raw input, so that other items are noticed) and one per item answered (`i` and its prediction).

Lines are written whole, one system call each: a killed process (SIGKILL included) loses none. What a power failure may
cost is `fsync`'s business.
Only answers are final; an item that failed is sent again by the next run.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from .errors import JournalBusy, JournalFull, JournalMismatch

Fsync = Literal["always", "interval", "never"]
_INTERVAL_S = 1.0
_FORMAT = 1


@dataclass(frozen=True)
class JournalFile:
    """Where a burst's journal is, and how it is kept.

    Attributes:
        path: The file; made when it is missing.
        fsync: When lines reach the disk. `always`: each at once. `interval`: once a second and at the end. `never`: when the system likes.
        max_bytes: It never grows beyond this.
    """

    path: Path
    fsync: Fsync = "interval"
    max_bytes: int = 1 << 30

    @classmethod
    def of(cls, place: JournalFile | Path | str) -> JournalFile:
        """Return a place as given, or a path with the usual choices."""
        return place if isinstance(place, JournalFile) else cls(Path(place))

    def open(self, request: Mapping[str, object], clock: Callable[[], float]) -> Journal:
        """Open the journal of a burst that asks for this.

        Raises:
            JournalError: It cannot be used.
        """
        return Journal(self.path, request, clock, self.fsync, self.max_bytes)


class Journal:
    """An open journal; one process has it at a time.

    Args:
        path: The file; made when it is missing.
        request: What is asked for (model, version, …); a journal of something else is refused.
        clock: Monotonic seconds.
        fsync: `always`: after every line. `interval`: at most once a second, and at the end. `never`: left to the system.
        max_bytes: The file never grows beyond this.

    Attributes:
        burst: Id of the burst.
        answers: Item index → what was answered in earlier runs.

    Raises:
        JournalBusy: Another process has it open.
        JournalMismatch: It belongs to another burst, or is no journal.
    """

    def __init__(
        self,
        path: Path,
        request: Mapping[str, object],
        clock: Callable[[], float],
        fsync: Fsync = "interval",
        max_bytes: int = 1 << 30,
    ) -> None:
        if fsync not in ("always", "interval", "never"):
            raise ValueError(f"fsync must be always, interval or never, got {fsync!r}")
        self._path, self._clock, self._fsync, self._max_bytes = path, clock, fsync, max_bytes
        self.answers: dict[int, dict[str, Any]] = {}
        self._fingerprints: dict[int, str] = {}
        self._synced_at = clock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._lock()
            self.burst = self._read(dict(request))
        except BaseException:  # whatever ends this, the lock on the file must not outlive it
            os.close(self._file)
            raise

    def key(self, index: int) -> str:
        """Return the idempotency key of an item: the same in every run."""
        return f"{self.burst}-{index}"

    def sending(self, index: int, fingerprint: str) -> None:
        """Note that an item is about to be sent.

        Raises:
            JournalMismatch: Another item was sent under this index before: its key would stand for two things.
            JournalFull: The journal has no room.
        """
        known = self._fingerprints.get(index)
        if known is None:
            self._fingerprints[index] = fingerprint
            self._write({"i": index, "sent": fingerprint})
        elif known != fingerprint:
            raise JournalMismatch(
                f"item {index} is not the one that {self._path} says was sent: give the same items in the same order, or another journal"
            )

    def answered(self, index: int, answer: Mapping[str, object]) -> None:
        """Note an item's answer; from now on no run sends it again.

        Raises:
            JournalFull: The journal has no room.
        """
        self._fingerprints.pop(index, None)
        self._write({"i": index, "answer": answer})

    def close(self) -> None:
        """Write what is outstanding to the disk and let go of the file."""
        if self._file >= 0:
            if self._fsync != "never":
                os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        import fcntl  # not on Windows, where everything but the journal works

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalBusy(f"{self._path} is in use by another process") from error

    def _read(self, request: dict[str, object]) -> str:
        """Return the burst's id; cuts off a line that was torn by a crash."""
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        lines = content[:whole].splitlines()
        if not lines:
            burst = uuid.uuid4().hex
            self._size = 0
            self._write({"journal": _FORMAT, "burst": burst, "request": request})
            os.fsync(self._file)
            return burst
        self._size = whole
        first = self._line(lines[0])
        if first.get("journal") != _FORMAT or not isinstance(first.get("burst"), str):
            raise JournalMismatch(f"{self._path} is no journal of this version of samegraph-client; give another file")
        if first.get("request") != json.loads(json.dumps(request)):
            raise JournalMismatch(f"{self._path} belongs to another burst ({first.get('request')}, not {request}); give another file")
        for line in lines[1:]:
            self._take(self._line(line))
        return str(first["burst"])

    def _take(self, entry: dict[str, Any]) -> None:
        if "answer" in entry:
            self.answers[entry["i"]] = entry["answer"]
            self._fingerprints.pop(entry["i"], None)
        else:
            self._fingerprints[entry["i"]] = entry["sent"]

    def _line(self, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not ("journal" in entry or ("i" in entry and ("sent" in entry or "answer" in entry))):
            raise JournalMismatch(f"{self._path} holds a line that is no entry of a journal: {line[:80]!r}")
        return entry

    def _write(self, entry: Mapping[str, object]) -> None:
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        if self._size + len(line) > self._max_bytes:
            raise JournalFull(f"{self._path} would grow beyond {self._max_bytes} bytes; raise max_bytes, or split the burst")
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, self._size)
            raise JournalFull(f"{self._path} cannot grow: {written} of {len(line)} bytes were written")
        self._size += written
        if self._fsync == "always" or (self._fsync == "interval" and self._clock() >= self._synced_at + _INTERVAL_S):
            os.fsync(self._file)
            self._synced_at = self._clock()

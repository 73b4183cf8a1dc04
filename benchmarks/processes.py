"""A server as the processes it consists of: what they cost together, and how they are ended together.

Servers start workers, and some start daemons that leave their process group. A process belongs to a server when it descends from its first
one, carries the server's mark in its environment (so does everything started from it, even after its parent has gone), or did so when it
was last seen (some programs overwrite their environment with a title).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: The environment variable that holds a server's mark.
MARK = "BENCHMARKED_SERVER"  # not SAMEGRAPH_: the server refuses settings it does not know
#: How long processes get to end after SIGTERM, and to be gone after SIGKILL.
TERMINATE_S, KILL_S = 10.0, 10.0


class ProcessesLeft(RuntimeError):
    """Raised when processes of a server cannot be ended."""


class Processes:
    """The living processes of one server.

    Args:
        pid: Of its first process.
        mark: The value of `MARK` it was started with; empty when it has none.
    """

    def __init__(self, pid: int, mark: str = "") -> None:
        self._pid = pid
        self._mark = f"{MARK}={mark}".encode() if mark else b""
        self._seen: dict[int, str] = {}

    def living(self) -> list[int]:
        """Return the ids of those that live; ended ones that nobody has waited for do not count."""
        return [pid for pid in self._family() if (stat := _stat(pid)) and stat[0] not in "ZX"]

    def cpu_s(self) -> float:
        """Return the CPU seconds they have used, user and system, and those of their ended children."""
        return sum(sum(int(word) for word in stat[11:15]) for pid in self._family() if (stat := _stat(pid))) / TICKS_PER_S

    def pss_bytes(self) -> int:
        """Return their memory: of a page that several processes share, each has its share, so that the sum counts it once."""
        return sum(_pss_bytes(pid) for pid in self.living())

    def end(self) -> None:
        """Ask the first process to end, then the others, then kill what is left.

        Raises:
            ProcessesLeft: Something survived even that.
        """
        for pids in ([self._pid], self.living()):
            _signal(pids, signal.SIGTERM)
            self._wait(pids, TERMINATE_S)
        _signal(self.living(), signal.SIGKILL)
        left = self._wait(self.living(), KILL_S)
        if left:
            raise ProcessesLeft(f"processes {left} cannot be ended")

    def _family(self) -> list[int]:
        """Return the ids of all of them, those included that have ended and that nobody has waited for."""
        roots = [self._pid, *(pid for pid, began in self._seen.items() if _began(pid) == began), *self._marked()]
        found = list(dict.fromkeys(roots))
        for pid in found:  # grows while it is walked
            found.extend(child for child in _children(pid) if child not in found)
        self._seen = {pid: began for pid in found if (began := _began(pid))}
        return list(self._seen)

    def _wait(self, pids: list[int], seconds: float) -> list[int]:
        """Wait until these have ended, or the time is up; return those that live."""
        deadline = time.monotonic() + seconds
        while (left := [pid for pid in self.living() if pid in pids]) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def _marked(self) -> Iterator[int]:
        if not self._mark:
            return
        for process in Path("/proc").iterdir():  # no glob: a process that ends meanwhile would end it too
            if not process.name.isdecimal():
                continue
            try:
                if self._mark in (process / "environ").read_bytes().split(b"\0"):
                    yield int(process.name)
            except OSError:
                continue  # ended, or somebody else's


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the state on, or nothing when there is no such process any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _began(pid: int) -> str:
    """Return when a process began, so that an id that was given away again is not taken for it; empty when it is gone."""
    stat = _stat(pid)
    return stat[19] if stat else ""


def _children(pid: int) -> Iterator[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return
    for thread in threads:
        try:
            yield from (int(child) for child in (thread / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue

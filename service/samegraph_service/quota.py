"""What this process may use of the machine: CPUs and memory, by its affinity and its control groups, not by what the host has.

A limit may stand on any group above the process's own, and each holds. With a namespace of its own a container sees its group as the
root of the hierarchy; without one, or under systemd, /proc/self/cgroup says where in it the process is. Groups it cannot see do not
limit it as far as it can know.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("sys/fs/cgroup")


def cpu_quota(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use at once: the smaller of its affinity and its groups' quotas.

    A part of a CPU counts as one, so that none of the quota is left unused; when all threads are busy at once the kernel then pauses them
    for the rest of a period (100 ms). A number of run slots below that avoids the pauses and leaves the part.

    Args:
        root: Where /proc and /sys are.

    Returns:
        At least 1.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [*_unified_quotas(root), *_controller_quotas(root)]
    return max(1, math.ceil(min([usable, *quotas])))


def memory_limit(root: Path = Path("/")) -> int:
    """Return the bytes of memory this process may use: the smallest of its groups' limits and the machine's memory."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for directory in _groups(root, ""):
        limits += _numbers(directory / "memory.max", 1)
    for directory in _groups(root, "memory"):
        limits += _numbers(directory / "memory.limit_in_bytes", 1)
    return min(limits)


def _unified_quotas(root: Path) -> Iterator[float]:
    """Yield the quotas of control groups of version 2: `max 100000` or `150000 100000`."""
    for directory in _groups(root, ""):
        numbers = _numbers(directory / "cpu.max", 2)
        if len(numbers) == 2 and numbers[1] > 0:
            yield numbers[0] / numbers[1]


def _controller_quotas(root: Path) -> Iterator[float]:
    """Yield the quotas of control groups of version 1, where -1 is none."""
    for directory in _groups(root, "cpu"):
        quota, period = _numbers(directory / "cpu.cfs_quota_us", 1), _numbers(directory / "cpu.cfs_period_us", 1)
        if quota and period and quota[0] > 0 and period[0] > 0:
            yield quota[0] / period[0]


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of the groups this process is in, from its own up to the root of the hierarchy.

    Args:
        root: Where /proc and /sys are.
        controller: A controller of version 1; empty for version 2.
    """
    mounted, inside = [controller] if controller else ["", "unified"], PurePosixPath()
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(",") if controller else number == "0":
            mounted = [*mounted, controllers]  # version 1 mounts some together: cpu,cpuacct
            inside = PurePosixPath(path.lstrip("/"))
    if ".." in inside.parts:  # a group outside of what this namespace shows
        inside = PurePosixPath()
    for mount in dict.fromkeys(mounted):
        for place in (inside, *inside.parents):
            yield root / _GROUPS / mount / place


def _numbers(file: Path, wanted: int) -> list[int]:
    """Return the first `wanted` whole numbers of a file, or [] when it is not there or says that there is no limit."""
    try:
        return [int(word) for word in _text(file).split()[:wanted]]
    except ValueError:
        return []  # `max`


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""

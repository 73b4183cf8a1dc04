"""What a figure was measured on, and how much CPU a server spent."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: Distributions whose version can move a figure.
PACKAGES = (
    "samegraph",
    "samegraph-transforms",
    "onnxruntime-gpu",
    "onnxruntime",
    "numpy",
    "pillow",
    "msgspec",
    "uvicorn",
    "uvloop",
    "httptools",
    "fastapi",
)


def cores() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def machine_class() -> str:
    """Return a short name for machines like this one, for file names; it does not identify the machine."""
    return f"{platform.machine()}-{cores()}cpu"


def describe() -> dict[str, object]:
    """Return the facts a reader needs to judge a figure: processor, memory, system, versions, revision."""
    return {
        "class": machine_class(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "revision": _revision(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str:
    """Return the commit, with a plus when tracked files differ from it."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False).stdout.strip()
    return (commit or "unknown") + ("+" if changed else "")


@dataclass(frozen=True)
class Times:
    """CPU time used on the machine, in seconds.

    Attributes:
        total: All CPUs, all states, since boot.
        idle: Of it idle, waiting for a disk included.
        interrupts: Of it the kernel's answer to devices; on loopback that is our own traffic.
        stolen: Of it given to other guests by the hypervisor.
        ours: Used by this process, its descendants, and those of them that have ended.
    """

    total: float
    idle: float
    interrupts: float
    stolen: float
    ours: float

    @classmethod
    def now(cls) -> Times:
        """Read the counters."""
        fields = [int(word) / TICKS_PER_S for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = process_cpu_s(os.getpid()) + ended.ru_utime + ended.ru_stime
        return cls(total=sum(fields), idle=fields[3] + fields[4], interrupts=fields[5] + fields[6], stolen=fields[7], ours=ours)

    def stolen_ratio_since(self, before: Times) -> float:
        """Return the share of CPU time the hypervisor took away between two readings."""
        return (self.stolen - before.stolen) / max(self.total - before.total, 1e-9)

    def others_ratio_since(self, before: Times) -> float:
        """Return the share of CPU time that programs which are not part of the measurement used between two readings."""
        elapsed = max(self.total - before.total, 1e-9)
        not_programs = (self.idle + self.interrupts + self.stolen) - (before.idle + before.interrupts + before.stolen)
        busy = elapsed - not_programs
        return max(0.0, (busy - (self.ours - before.ours)) / elapsed)


def process_cpu_s(pid: int) -> float:
    """Return the CPU seconds a process and its living descendants have used, user and system."""
    total = 0.0
    for process in _tree(pid):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended between listing and reading
        total += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return total


def _tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for process in found:
        try:
            threads = list(Path(f"/proc/{process}/task").iterdir())  # no glob: a thread that ends meanwhile would end it too
        except (FileNotFoundError, ProcessLookupError):
            continue
        for thread in threads:
            try:
                found.extend(int(child) for child in (thread / "children").read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found

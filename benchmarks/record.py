"""What was measured, as it is kept: one file per machine class and day, each workload with its own date and conditions."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from benchmarks.limit import Measured, Way
from benchmarks.load import Burst, Load, OpenLoad

FORMAT: Final = 2

Role = Literal["ours", "variant", "peer", "floor"]


@dataclass(frozen=True)
class Plain:
    """One way of plain Python in one round, measured before and after the server it stands beside."""

    way: Way
    before: Measured
    after: Measured

    def mean(self, name: str) -> float:
        """Return the mean of a figure."""
        return float(statistics.mean((getattr(self.before, name), getattr(self.after, name))))


@dataclass(frozen=True)
class Turn:
    """One contender in one round.

    Attributes:
        ready_s: Seconds from start to ready.
        loading_s: Of them what it says it spent on loading and proving packages; None where it does not say.
        ready_mib: Resident memory when its answers had been checked and no load had begun.
        loads: Clients → what was measured.
        burst: What was measured of a burst.
    """

    ready_s: float
    loading_s: float | None
    ready_mib: float
    loads: dict[int, Load] = field(default_factory=dict)
    burst: Burst | None = None


@dataclass(frozen=True)
class Round:
    """One round of one workload: the limit and every contender that took part, one after another.

    Attributes:
        plain: Every candidate for the limit, and the code that serving uses where that is not one.
        turns: Contender → what was measured.
        stolen_ratio: Share of CPU time the hypervisor gave to others meanwhile.
        others_ratio: Share of CPU time that other programs on the machine used meanwhile.
    """

    plain: list[Plain]
    turns: dict[str, Turn]
    stolen_ratio: float
    others_ratio: float


@dataclass(frozen=True)
class Contender:
    """Who took part.

    Attributes:
        role: `ours` is what targets are about; a `variant` is ours with other settings; `floor` answers a constant.
        command: How it was started; empty when it was not.
        note: What a reader should know: versions, or why it could not be measured.
        does_less: Of a variant: whether it leaves out what the usual settings do.
    """

    role: Role
    command: str = ""
    note: str = ""
    does_less: bool = False


@dataclass
class Result:
    """Everything measured for one workload.

    Attributes:
        title: What was sent, in words.
        measured_on: Date, UTC.
        command: What was run.
        machine: See `machine.describe`.
        seconds: Length of a measurement under load.
        limiting: Pipelines the limit is taken from.
        burst: Frames sent at once; 0 for a closed loop.
        contenders: By name, in the order of the page.
        rounds: Those that count, in the order measured.
        repeated: How many more were set aside because other programs used the CPU.
        plain_mib: Resident memory of a bare process that runs the same model in ONNX Runtime.
        offered: Contender → what was measured at rising rates of open arrivals.
    """

    title: str
    measured_on: str
    command: str
    machine: dict[str, Any]
    seconds: float
    limiting: list[str]
    burst: int = 0
    contenders: dict[str, Contender] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    repeated: int = 0
    plain_mib: float | None = None
    offered: dict[str, list[OpenLoad]] = field(default_factory=dict)


@dataclass
class Record:
    """One file of results.

    Attributes:
        machine_class: Kind of machine; results of another kind never share a file.
        workloads: Name → result.
        format: Of the file.
    """

    machine_class: str
    workloads: dict[str, Result] = field(default_factory=dict)
    format: int = FORMAT


class NotARecord(ValueError):
    """Raised when a file is not a record of this format, or one of another machine class."""


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        NotARecord: It is something else, or was written in another format.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError) as error:
        raise NotARecord(f"{path} is not a result that can be read: {error}") from error
    if found.format != FORMAT:
        raise NotARecord(f"{path} has format {found.format}; this is format {FORMAT}")
    return found


def write(record: Record, path: Path) -> None:
    """Write a record in one step, so that what was there stays whole when this is interrupted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".writing")
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    scratch.replace(path)


def merged(older: Record, newer: Record) -> Record:
    """Return the older record with the newer one's workloads in the place of its own; each keeps its date and conditions.

    Raises:
        NotARecord: They are of different machine classes.
    """
    if older.machine_class != newer.machine_class:
        raise NotARecord(f"a result of {newer.machine_class} cannot be merged into one of {older.machine_class}")
    return Record(older.machine_class, {**older.workloads, **newer.workloads})

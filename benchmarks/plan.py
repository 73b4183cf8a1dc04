"""How long a run takes, before it begins and while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.contenders import clients_of, groups, role, takes_burst, takes_offered, takes_part
from benchmarks.workloads import EXAMPLES, RESNET50, Workload

#: About how long servers take to start and end on two cores, in seconds; only for the estimate.
STARTS_S = {"samegraph": 4.0, "floor": 0.5, "mosec": 2.0, "mosec-1": 2.0, "mosec-32": 2.0, "fastapi": 2.5, "litserve": 4.0, "bentoml": 7.0}
STARTS_S |= {"kserve": 10.0, "ray": 18.0}
OTHER_START_S = 4.0
#: Checking the answers, and a burst with what leads to it.
CHECK_S, BURST_S = 2.0, 4.0
#: Length of a measurement of open arrivals at one rate.
OFFERED_S = 2.5
#: Starting the limit's processes and trying its ways.
PREPARE_S = 20.0


@dataclass(frozen=True)
class Pace:
    """How long and how often is measured.

    Attributes:
        rounds: Rounds of ours, its variants and the limit.
        peer_rounds: Those of them in which everybody else takes part too, the first ones; one where no promise is about peers.
        example_rounds: Rounds of the example packages, which only ours can serve.
        patience: Most rounds of each kind to repeat because other programs used the CPU.
        seconds: Length of a measurement of ours.
        peer_seconds: Of anybody else.
        row_rounds: Rounds of workloads of rows, at most: no promise about them rests on a difference of a few percent.
        slice_s: Of one way of the limit, before and after ours.
    """

    rounds: int = 9
    peer_rounds: int = 3
    example_rounds: int = 3
    row_rounds: int = 6
    patience: int = 2
    seconds: int = 4
    peer_seconds: int = 3
    slice_s: float = 1.0

    def rounds_of(self, group: Sequence[Workload]) -> tuple[int, int]:
        """Return how many rounds of a group everybody takes part in, and how many only ours."""
        if group[0].home == EXAMPLES:
            return 0, self.example_rounds
        rounds = self.rounds if group[0].is_image else min(self.rounds, self.row_rounds)
        peers = min(self.peer_rounds, rounds, 1 if group[0].name == RESNET50.name else rounds)
        return peers, rounds - peers

    def seconds_of(self, name: str, workload: Workload) -> int:
        """Return the length of a contender's measurements with a workload; peers answer enough rows in a second less."""
        if role(name) in ("ours", "variant"):
            return self.seconds
        return self.peer_seconds if workload.is_image else max(self.peer_seconds - 1, 1)

    def slice_of(self, workload: Workload) -> float:
        """Return the length of a measurement of the limit: rows are so many that half will do."""
        return self.slice_s if workload.is_image else self.slice_s / 2


QUICK = Pace(rounds=1, peer_rounds=1, example_rounds=1, patience=0, seconds=1, peer_seconds=1, slice_s=0.5)


def turn_s(name: str, group: Sequence[Workload], pace: Pace) -> float:
    """Return about how long one contender's turn in one round takes."""
    loads = sum(len(clients_of(name, workload)) * (pace.seconds_of(name, workload) + 0.5) for workload in group)
    bursts = sum(BURST_S for workload in group if takes_burst(name, workload))
    return STARTS_S.get(name, OTHER_START_S) + CHECK_S + loads + bursts if loads or bursts else 0.0


def slices_s(group: Sequence[Workload], pace: Pace) -> float:
    """Return about how long the limit takes in one round: before and after ours, three or four ways of each workload."""
    return sum(
        2 * (4 if workload.is_image else len(workload.clients) + 1) * pace.slice_of(workload) for workload in group if workload.clients
    )


def group_s(group: Sequence[Workload], names: Sequence[str], pace: Pace) -> float:
    """Return about how long a group of workloads takes."""
    with_peers, alone = pace.rounds_of(group)
    own = [name for name in names if role(name) in ("ours", "variant")]
    everybody, ours = (sum(turn_s(name, group, pace) for name in chosen) for chosen in (names, own))
    return PREPARE_S + with_peers * everybody + alone * ours + (with_peers + alone) * slices_s(group, pace)


def total_s(workloads: Sequence[Workload], names: Sequence[str], pace: Pace, *, offered: bool = False) -> float:
    """Return about how long a whole run takes, rounds that must be repeated left out.

    Args:
        workloads: What is measured.
        names: Who may take part.
        pace: How long and how often.
        offered: Whether open arrivals are measured too.
    """
    opened = sum(offered_s(names, workload) for workload in workloads) if offered else 0.0
    return opened + sum(
        group_s(group, [name for name in names if any(takes_part(name, workload) for workload in group)], pace)
        for group in groups(workloads)
    )


def offered_s(names: Sequence[str], workload: Workload) -> float:
    """Return about how long open arrivals take for one workload; eight rates, and what is around each."""
    return sum(STARTS_S.get(name, OTHER_START_S) + CHECK_S + 8 * (OFFERED_S + 0.5) for name in names if takes_offered(name, workload))


class Progress:
    """What is done of what was planned, and how long the rest will take at the pace so far.

    Args:
        planned_s: The estimate for everything.
        clock: Seconds, monotonic.
    """

    def __init__(self, planned_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._planned_s = planned_s
        self._done_s = 0.0
        self._clock = clock
        self._began = clock()

    def done(self, planned_s: float) -> None:
        """Count a step that was planned to take so long."""
        self._done_s = min(self._done_s + planned_s, self._planned_s)

    def left_s(self) -> float:
        """Return about how many seconds are left."""
        elapsed = self._clock() - self._began
        left = self._planned_s - self._done_s
        # The first steps say little about the pace, so the plan counts for a minute of experience.
        return left * (elapsed + 60) / (self._done_s + 60)

    def __str__(self) -> str:
        elapsed = self._clock() - self._began
        return f"[{elapsed / 60:.0f} min gone, about {self.left_s() / 60:.0f} to go]"

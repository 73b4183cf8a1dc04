"""What the project promises about speed, and what a run says about each promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import analysis
from benchmarks.analysis import OURS
from benchmarks.ratios import Interval, Verdict, verdict
from benchmarks.record import Record, Result


@dataclass(frozen=True)
class Target:
    """One promise.

    Attributes:
        workload: Name of the workload it is about.
        what: The figure, in words.
        measure: How it is taken from the workload's result; None when it was not measured.
        at_most: The bound, or
        at_least: the bound, in the other direction.
        unit: Of the figure; empty for a ratio.
    """

    workload: str
    what: str
    measure: Callable[[Result], Interval | None]
    at_most: float | None = None
    at_least: float | None = None
    unit: str = ""

    @property
    def bound(self) -> str:
        """The bound, as it is written."""
        unit = f" {self.unit}" if self.unit else ""
        return f"≤ {self.at_most:g}{unit}" if self.at_most is not None else f"≥ {self.at_least:g}{unit}"


@dataclass(frozen=True)
class Outcome:
    """A promise and what was measured."""

    target: Target
    measured: Interval | None
    verdict: Verdict


def outcomes(record: Record) -> list[Outcome]:
    """Hold every promise against a record, in the order of `TARGETS`; variants come last, one promise for each."""
    found = []
    for target in [*TARGETS, *_overheads(record)]:
        result = record.workloads.get(target.workload)
        measured = target.measure(result) if result is not None else None
        found.append(Outcome(target, measured, verdict(measured, at_most=target.at_most, at_least=target.at_least)))
    return found


def _rate(clients: int) -> Callable[[Result], Interval | None]:
    return lambda result: analysis.of_best_peer(result, OURS, clients, "per_s")


def _cpu_of_limit(clients: int) -> Callable[[Result], Interval | None]:
    return lambda result: analysis.of_limit(result, OURS, clients, "cpu_ms")


def _tail(clients: int) -> Callable[[Result], Interval | None]:
    return lambda result: analysis.tail(result, OURS, clients)


_WITHIN = "p99 / p50 at 32 clients"
_MEMORY = "resident memory over a bare ONNX Runtime process"
_START = "start to ready, without loading and proving packages"

#: Ours with stand-ins for what later work adds to every answer (standins.py): held to the same bound, not to the usual settings.
STANDINS = f"{OURS}, with stand-ins"

TARGETS: tuple[Target, ...] = (
    *(
        Target("trees", f"requests/s over the best peer's, {clients} client{'s' if clients > 1 else ''}", _rate(clients), at_least=2)
        for clients in (1, 16, 64)
    ),
    Target("trees", "p99 over the best peer's, 64 clients", lambda r: analysis.of_best_peer(r, OURS, 64, "p99_ms"), at_most=0.5),
    Target("trees", "CPU per request, 64 clients", lambda r: analysis.figure(r, OURS, 64, "cpu_ms"), at_most=0.028, unit="ms"),
    Target(
        "trees",
        "the same with stand-ins for what is still to be added to every answer",
        lambda r: analysis.figure(r, STANDINS, 64, "cpu_ms"),
        at_most=0.028,
        unit="ms",
    ),
    Target("rows1000", "requests/s over the limit's, 1 client", lambda r: analysis.of_limit(r, OURS, 1, "per_s"), at_least=0.8),
    Target("mobilenet", "CPU per image over the limit's, 32 clients", _cpu_of_limit(32), at_most=1.05),
    Target("mobilenet", "images/s over the best peer's, 32 clients", _rate(32), at_least=1),
    Target("mobilenet", _WITHIN, _tail(32), at_most=1.3),
    Target(
        "mobilenet",
        "median latency beyond the limit's single image, 1 client",
        lambda r: analysis.over_limit(r, OURS, 1, "p50_ms"),
        at_most=1,
        unit="ms",
    ),
    Target("resnet50", "CPU per image over the limit's, 32 clients", _cpu_of_limit(32), at_most=1.03),
    Target("resnet50", _WITHIN, _tail(32), at_most=1.3),
    Target("burst", "seconds over the limit's for 300 frames", lambda r: analysis.burst_of_limit(r, OURS), at_most=1.1),
    Target("burst", "frames refused, failed or answered wrongly", lambda r: analysis.burst_mishaps(r, OURS), at_most=0),
    Target(
        "mobilenet",
        "(a wish) plain pipeline's CPU over the same work in samegraph's code",
        lambda r: analysis.gain_in_process(r, 32),
        at_least=1.1,
    ),
    *(
        Target(name, _START, lambda r: analysis.loading_apart(r, OURS), at_most=1.5, unit="s")
        for name in ("trees", "mobilenet", "resnet50")
    ),
    *(
        Target(name, _MEMORY, lambda r: analysis.memory_over_plain(r, OURS), at_most=80, unit="MiB")
        for name in ("trees", "mobilenet", "resnet50")
    ),
)

#: What drift, metrics and logging may cost together or apart, in CPU per request.
OVERHEAD = 1.03


def _overheads(record: Record) -> list[Target]:
    """Return a promise for each variant that was measured."""
    found = []
    for name, result in record.workloads.items():
        for variant in analysis.variants(result):
            if variant == STANDINS:
                continue
            clients = max((clients for turn in analysis.turns(result, variant) for clients in turn.loads), default=0)
            pair = f"usual settings over *{variant}*" if result.contenders[variant].does_less else f"*{variant}* over usual settings"
            found.append(Target(name, f"CPU per request: {pair}, {clients} clients", _overhead(variant, clients), at_most=OVERHEAD))
    return found


def _overhead(variant: str, clients: int) -> Callable[[Result], Interval | None]:
    return lambda result: analysis.overhead(result, variant, clients, "cpu_ms")

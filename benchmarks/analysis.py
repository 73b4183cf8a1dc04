"""From rounds to figures: every ratio is taken within a round, because the machine's speed drifts between them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from benchmarks.limit import Way, may_limit
from benchmarks.load import Burst, Load
from benchmarks.machine import cores
from benchmarks.ratios import Interval, median_interval
from benchmarks.record import Plain, Result, Round, Turn

#: The contender the targets are about.
OURS = "samegraph"


def limit_way(result: Result, in_flight: int, figure: str) -> Way | None:
    """Return the way of plain Python that is the limit in a figure: over all rounds, so that no round picks its own luck.

    Args:
        result: The workload.
        in_flight: Requests it may work on at once.
        figure: `per_s` (the most), `cpu_ms` or `p50_ms` (the least).
    """
    best = max if figure == "per_s" else min
    found = [way for way in _ways(result) if way.pipeline in result.limiting and may_limit(way, in_flight)]
    return best(found, key=lambda way: statistics.median(_of_way(result, way, figure)), default=None)


def limit(result: Result, in_flight: int, figure: str) -> Interval | None:
    """Return the limit's figure over the rounds, or None when nothing was measured."""
    way = limit_way(result, in_flight, figure)
    return None if way is None else median_interval(_of_way(result, way, figure))


def figure(result: Result, contender: str, clients: int, name: str) -> Interval | None:
    """Return a contender's figure over the rounds it took part in.

    Args:
        result: The workload.
        contender: Its name.
        clients: How many.
        name: An attribute of `Load`.
    """
    return _interval(float(getattr(load, name)) for _, load in _loads(result, contender, clients))


def tail(result: Result, contender: str, clients: int) -> Interval | None:
    """Return p99 over p50."""
    return _interval(load.p99_ms / load.p50_ms for _, load in _loads(result, contender, clients))


def of_limit(result: Result, contender: str, clients: int, name: str) -> Interval | None:
    """Return a contender's figure as a share of the limit's: `per_s` or `cpu_ms`."""
    return _beside_limit(result, contender, clients, name, lambda own, limit: own / limit)


def over_limit(result: Result, contender: str, clients: int, name: str) -> Interval | None:
    """Return how much more than the limit's a contender's figure is."""
    return _beside_limit(result, contender, clients, name, lambda own, limit: own - limit)


def of_best_peer(result: Result, contender: str, clients: int, name: str) -> Interval | None:
    """Return a contender's figure as a share of the best peer's in the same round (`per_s`: the most; others: the least)."""
    return _interval(_shares_of_best_peer(result, contender, clients, name))


def best_peer(result: Result, clients: int, name: str) -> str | None:
    """Return the peer that was best in a figure by its median, or None when no peer was measured."""
    medians = {peer: found.median for peer in peers(result) if (found := figure(result, peer, clients, name)) is not None}
    best = max if name == "per_s" else min
    return best(medians, key=lambda peer: medians[peer], default=None)


def overhead(result: Result, variant: str, clients: int, name: str) -> Interval | None:
    """Return what a setting costs, in the same round: the figure with it as a multiple of the figure without it.

    Args:
        result: The workload.
        variant: Ours with the setting, or without it where the usual settings have it.
        clients: How many.
        name: An attribute of `Load`.
    """
    usual = {id(one): float(getattr(load, name)) for one, load in _loads(result, OURS, clients)}
    other = {id(one): float(getattr(load, name)) for one, load in _loads(result, variant, clients)}
    more, less = (usual, other) if result.contenders[variant].does_less else (other, usual)
    return _interval(more[one] / less[one] for one in usual if one in other)


def gain_in_process(result: Result, in_flight: int) -> Interval | None:
    """Return the CPU that plain Python spends on a request as a multiple of what the code that serving uses spends in the same process."""
    way = limit_way(result, in_flight, "cpu_ms")
    own = next((own for own in _ways(result) if own.pipeline == "package" and "package" not in result.limiting), None)
    if way is None or own is None:
        return None
    return median_interval(plain / ours for plain, ours in zip(_of_way(result, way, "cpu_ms"), _of_way(result, own, "cpu_ms"), strict=True))


def burst_figure(result: Result, contender: str, name: str) -> Interval | None:
    """Return a contender's figure of the burst over the rounds it took part in: an attribute of `Burst`."""
    return _interval(float(getattr(burst, name)) for _, burst in _bursts(result, contender))


def burst_mishaps(result: Result, contender: str) -> Interval | None:
    """Return how many frames of a burst were refused at first, failed, or answered wrongly."""
    return _interval(float(burst.refused + burst.failed + burst.wrong) for _, burst in _bursts(result, contender))


def burst_of_limit(result: Result, contender: str) -> Interval | None:
    """Return the seconds a burst took as a share of what the limit would need.

    The limit needs frames / its rate, and the load generator's own CPU time spread over the cores, because the two share the machine.
    """
    way = limit_way(result, result.burst, "per_s")
    if way is None:
        return None
    return _interval(
        burst.makespan_s / (result.burst / _plain(one, way).mean("per_s") + burst.own_cpu_s / cores())
        for one, burst in _bursts(result, contender)
    )


def loading_apart(result: Result, contender: str) -> Interval | None:
    """Return the seconds from start to ready that a contender did not spend on loading and proving packages."""
    return _interval(turn.ready_s - turn.loading_s for turn in turns(result, contender) if turn.loading_s is not None)


def ready_s(result: Result, contender: str) -> Interval | None:
    """Return the seconds from start to ready."""
    return _interval(turn.ready_s for turn in turns(result, contender))


def resident_mib(result: Result, contender: str) -> Interval | None:
    """Return the most resident memory a contender had after any of its loads."""
    return _interval(max([turn.ready_mib, *_memory(turn)]) for turn in turns(result, contender))


def memory_over_plain(result: Result, contender: str) -> Interval | None:
    """Return how much more that is than what a bare process with the same model in ONNX Runtime has, in MiB."""
    plain = result.plain_mib
    if plain is None:
        return None
    return _interval(max([turn.ready_mib, *_memory(turn)]) - plain for turn in turns(result, contender))


def peers(result: Result) -> list[str]:
    """Return the names of the peers, measured or not."""
    return [name for name, contender in result.contenders.items() if contender.role == "peer"]


def variants(result: Result) -> list[str]:
    """Return the names of the variants of ours."""
    return [name for name, contender in result.contenders.items() if contender.role == "variant"]


def turns(result: Result, contender: str) -> list[Turn]:
    """Return what a contender did, in the rounds it took part in."""
    return [one.turns[contender] for one in result.rounds if contender in one.turns]


def failed(result: Result, contender: str) -> int:
    """Return how many requests a contender failed or answered wrongly, all rounds and loads together."""
    loads = sum(load.failed + load.wrong for turn in turns(result, contender) for load in turn.loads.values())
    return loads + sum(burst.failed + burst.wrong for _, burst in _bursts(result, contender))


def _memory(turn: Turn) -> list[float]:
    return [load.resident_mib for load in turn.loads.values()]


def _ways(result: Result) -> list[Way]:
    """Return the ways that every round measured."""
    return [one.way for one in result.rounds[0].plain] if result.rounds else []


def _plain(one: Round, way: Way) -> Plain:
    return next(plain for plain in one.plain if plain.way == way)


def _of_way(result: Result, way: Way, name: str) -> list[float]:
    return [_plain(one, way).mean(name) for one in result.rounds]


def _loads(result: Result, contender: str, clients: int) -> Iterator[tuple[Round, Load]]:
    for one in result.rounds:
        turn = one.turns.get(contender)
        if turn is not None and clients in turn.loads:
            yield one, turn.loads[clients]


def _bursts(result: Result, contender: str) -> Iterator[tuple[Round, Burst]]:
    for one in result.rounds:
        turn = one.turns.get(contender)
        if turn is not None and turn.burst is not None:
            yield one, turn.burst


def _beside_limit(result: Result, contender: str, clients: int, name: str, compare: Callable[[float, float], float]) -> Interval | None:
    way = limit_way(result, clients, name)
    if way is None:
        return None
    return _interval(compare(getattr(load, name), _plain(one, way).mean(name)) for one, load in _loads(result, contender, clients))


def _shares_of_best_peer(result: Result, contender: str, clients: int, name: str) -> Iterator[float]:
    best = max if name == "per_s" else min
    for one, load in _loads(result, contender, clients):
        theirs = [
            getattr(one.turns[peer].loads[clients], name)
            for peer in peers(result)
            if peer in one.turns and clients in one.turns[peer].loads
        ]
        if theirs:
            yield getattr(load, name) / best(theirs)


def _interval(values: Iterator[float]) -> Interval | None:
    found = list(values)
    return median_interval(found) if found else None

"""The page: every promise with what was measured beside it, then every workload with everybody who took part."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import get_args

from benchmarks import analysis
from benchmarks.analysis import OURS
from benchmarks.ratios import CONFIDENCE, Interval, Verdict
from benchmarks.record import Record, Result
from benchmarks.targets import Outcome, outcomes

#: Above this share of CPU time used by other programs a round is measured again, and the page says when that did not help.
NOISY = 0.1


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return median, smallest and largest, to four significant digits."""
    found = list(values)
    return {name: float(f"{value:.4g}") for name, value in (("median", statistics.median(found)), ("min", min(found)), ("max", max(found)))}


HEADER = """\
# Benchmark on {machine_class}

{conditions}
Each round starts everybody anew, one after another, in an order that changes; ours take part in every round, everybody else in some. A
figure is the median of its rounds; in brackets its {confidence:.0%} bootstrap interval. Ratios are taken within a round. Load comes from
`benchmarks/sender.c`, one thread on the same machine, whose cores it shares with the server. Every answer was checked against the plain
pipeline's before measuring, and a sample of them meanwhile.
"""

READING = """\
## How to read it

- *Limit*: the same request bodies decoded, preprocessed and run by ONNX Runtime in plain Python without HTTP (`benchmarks/plain.py`), by
  threads and by processes on all cores (one thread where there is one client), each with its best batch size. Its row names the fastest
  way; its CPU is that of the way that spends least, over all rounds. It is measured before and after ours in every round. It parses no
  HTTP, writes no answer and shares its cores with no load generator. For the example packages, which have no plain model, it is the
  package's own graphs with the better of serving's and the training code's item stage.
- *Verdicts*: "met" and "missed" when the whole interval is on one side of the target, "at the median" when only the median is.
- *CPU ms* counts the server's processes only, per answered request. On a shared machine it is the steadiest figure.
- *Memory* counts a page that several processes share once. It is the most after any load; the bare process of the promise imports NumPy
  and ONNX Runtime, loads the same model and runs it once on each core.
- *Best peer* is, in each round, the peer that was best in that one figure: another one may be best in the next.
- Differences below 15 % between servers are noise unless their intervals lie apart. An interval of three rounds is their range.
- The networks' weights are drawn, not learnt: speed depends on the architecture only, and answers are compared all the same.
- It cannot show: other machines, a GPU, a network, or runs longer than some seconds.
"""


def page(record: Record) -> str:
    """Return the record as a Markdown page."""
    conditions = "\n".join(_conditions(record))
    parts = [
        HEADER.format(machine_class=record.machine_class, conditions=conditions, confidence=CONFIDENCE),
        _promises(outcomes(record)),
        *(_section(name, result) for name, result in record.workloads.items()),
        READING,
    ]
    return "\n".join(parts)


def _conditions(record: Record) -> Iterator[str]:
    """Yield a line for each set of conditions, with the workloads measured under them."""
    together: dict[str, list[str]] = {}
    for name, result in record.workloads.items():
        machine = result.machine
        versions = ", ".join(f"{package} {version}" for package, version in machine["packages"].items())
        said = (
            f"measured on {result.measured_on} by `{result.command}` at revision {machine['revision']} on {machine['cpu']}, "
            f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}; {versions}."
        )
        together.setdefault(said, []).append(name)
    for said, names in together.items():
        what = "Everything" if len(together) == 1 else ", ".join(f"`{name}`" for name in names)
        yield f"- {what}: {said}"


def _promises(found: Sequence[Outcome]) -> str:
    lines = ["## Promises", "", _row(("workload", "figure", "promised", "measured", "verdict")), _row(["---", "---", "--:", "--:", "---"])]
    for outcome in found:
        target = outcome.target
        measured = "" if outcome.measured is None else _with_interval(outcome.measured, target.unit)
        word = outcome.verdict if outcome.verdict in ("met", "not measured") else f"**{outcome.verdict}**"
        lines.append(_row((target.workload, target.what, target.bound, measured, word)))
    counts = Counter(outcome.verdict for outcome in found)
    lines += ["", f"{', '.join(f'{counts[word]} {word}' for word in get_args(Verdict) if counts[word])}.", ""]
    return "\n".join(lines)


#: Result, contender, clients → a figure or what is shown.
_Measure = Callable[[Result, str, int], Interval | None]
_Show = Callable[[Result, str, int], str]


def _figure(name: str) -> _Measure:
    return lambda result, contender, clients: analysis.figure(result, contender, clients, name)


def _of_limit(name: str) -> _Measure:
    return lambda result, contender, clients: analysis.of_limit(result, contender, clients, name)


def _of_best_peer(name: str) -> _Measure:
    return lambda result, contender, clients: analysis.of_best_peer(result, contender, clients, name)


def _always(measure: Callable[[Result, str], Interval | None]) -> _Measure:
    """Return a figure of a contender that is the same for every number of clients."""
    return lambda result, contender, _: measure(result, contender)


def _shown(measure: _Measure, show: Callable[[Interval], str]) -> _Show:
    def cell(result: Result, contender: str, clients: int) -> str:
        found = measure(result, contender, clients)
        return "" if found is None else show(found)

    return cell


def _failures(result: Result, contender: str, clients: int) -> str:
    loads = [turn.loads[clients] for turn in analysis.turns(result, contender) if clients in turn.loads]
    return str(sum(load.failed + load.wrong for load in loads))


def _ratio(found: Interval) -> str:
    return f"{found.median:.2f}"


def _median(found: Interval) -> str:
    return _digits(found.median)


def _with_interval(found: Interval, unit: str = "") -> str:
    shown = _digits(found.median)
    if (found.low, found.high) != (found.median, found.median):
        shown += f" [{_digits(found.low)}, {_digits(found.high)}]"
    return f"{shown} {unit}" if unit else shown


_COLUMNS: dict[str, _Show] = {
    "requests/s": _shown(_figure("per_s"), _with_interval),
    "of the limit's": _shown(_of_limit("per_s"), _ratio),
    "of the best peer's": _shown(_of_best_peer("per_s"), _ratio),
    "p50 ms": _shown(_figure("p50_ms"), _median),
    "p99 ms": _shown(_figure("p99_ms"), _median),
    "p99 / p50": _shown(analysis.tail, _ratio),
    "CPU ms": _shown(_figure("cpu_ms"), _median),
    "of the limit's CPU": _shown(_of_limit("cpu_ms"), _with_interval),
    "MiB": _shown(_always(analysis.resident_mib), lambda found: f"{found.median:.0f}"),
    "ready s": _shown(_always(analysis.ready_s), lambda found: f"{found.median:.1f}"),
    "rounds": _shown(_figure("per_s"), lambda found: str(found.n)),
    "failed": _failures,
}


def _section(name: str, result: Result) -> str:
    lines = [f"## `{name}`: {result.title}", ""]
    lines += _burst_table(result) if result.burst else _load_table(result)
    lines += ["", *_absent(result), *_starts(result), *_quietness(result)]
    return "\n".join(lines) + "\n"


def _load_table(result: Result) -> list[str]:
    lines = [_row(("clients", "", *_COLUMNS)), _row(["--:", "---", *["--:"] * len(_COLUMNS)])]
    numbers = sorted({clients for one in result.rounds for turn in one.turns.values() for clients in turn.loads})
    for clients in numbers:
        lines.append(_limit_row(result, clients))
        for contender in result.contenders:
            if any(clients in turn.loads for turn in analysis.turns(result, contender)):
                name = f"**{contender}**" if contender == OURS else contender
                lines.append(_row((str(clients), name, *(show(result, contender, clients) for show in _COLUMNS.values()))))
    own = analysis.gain_in_process(result, max(numbers, default=1))
    if own is not None:
        lines += [
            "",
            f"Plain Python spends {_with_interval(own)} times the CPU that samegraph's own code spends on the same work in one process.",
        ]
    return lines


def _limit_row(result: Result, clients: int) -> str:
    way = analysis.limit_way(result, clients, "per_s")
    cells = {
        "requests/s": analysis.limit(result, clients, "per_s"),
        "p50 ms": analysis.limit(result, clients, "p50_ms") if clients == 1 else None,
        "CPU ms": analysis.limit(result, clients, "cpu_ms"),
    }
    shown = {
        title: "" if found is None else _with_interval(found) if title == "requests/s" else _digits(found.median)
        for title, found in cells.items()
    }
    return _row((str(clients), f"*limit: {way}*", *(shown.get(title, "") for title in _COLUMNS)))


def _burst_table(result: Result) -> list[str]:
    titles = ("", "seconds", "of the limit's", "p50 ms", "CPU ms", "refused at first", "failed", "rounds")
    lines = [_row(titles), _row(["---", *["--:"] * (len(titles) - 1)])]
    limit = analysis.limit(result, result.burst, "per_s")
    if limit is not None:
        way = analysis.limit_way(result, result.burst, "per_s")
        cpu = analysis.limit(result, result.burst, "cpu_ms")
        seconds = f"{result.burst / limit.median:.2f}"
        lines.append(_row((f"*limit: {way}*", seconds, "", "", "" if cpu is None else _digits(cpu.median), "", "", str(limit.n))))
    for contender in result.contenders:
        taken = analysis.burst_figure(result, contender, "makespan_s")
        share, p50, cpu = (
            analysis.burst_of_limit(result, contender),
            analysis.burst_figure(result, contender, "p50_ms"),
            analysis.burst_figure(result, contender, "cpu_ms"),
        )
        refused = analysis.burst_figure(result, contender, "refused")
        if taken is None or share is None or p50 is None or cpu is None or refused is None:
            continue
        name = f"**{contender}**" if contender == OURS else contender
        figures = (_with_interval(taken), _with_interval(share), _digits(p50.median), _digits(cpu.median), f"{refused.median:.0f}")
        lines.append(_row((name, *figures, str(analysis.failed(result, contender)), str(taken.n))))
    lines += [
        "",
        "*Of the limit's*: what the limit needs for so many frames, and the load generator's own CPU time spread over the cores, make 1.",
    ]
    return lines


def _absent(result: Result) -> list[str]:
    notes = [
        f"- {name}: {contender.note}."
        for name, contender in result.contenders.items()
        if contender.note and not analysis.turns(result, name)
    ]
    return ["Not measured:", "", *notes, ""] if notes else []


def _starts(result: Result) -> list[str]:
    lines = []
    for name, contender in result.contenders.items():
        if contender.command and analysis.turns(result, name):
            about = f" ({contender.note})" if contender.note else ""
            lines.append(f"- {name}{about}: `{contender.command}`")
    return ["Started as:", "", *lines, ""] if lines else []


def _quietness(result: Result) -> list[str]:
    if not result.rounds:
        return []
    others, stolen = ([getattr(one, name) for one in result.rounds] for name in ("others_ratio", "stolen_ratio"))
    said = (
        f"Rounds: {len(result.rounds)}. Other programs used {statistics.median(others):.1%} of the CPU time (at most {max(others):.1%}) "
        f"and the hypervisor gave away {statistics.median(stolen):.1%} (at most {max(stolen):.1%}). "
        f"Set aside because others used more: {result.repeated}."
    )
    lines = [said]
    if statistics.median(others) > NOISY:
        lines += ["", "**Not a calm machine: other programs competed for the CPU. Measure again before quoting these figures.**"]
    return lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _digits(value: float) -> str:
    """Return a number with three significant digits, large ones whole."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value else "0"

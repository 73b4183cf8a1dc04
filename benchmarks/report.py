"""From rounds to medians, spreads and ratios, and from those to a page and a record."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.limit import Measured, Way
from benchmarks.load import Load
from benchmarks.workloads import Workload


@dataclass(frozen=True)
class Plain:
    """One way of plain Python in one round, measured before and after the servers."""

    way: Way
    before: Measured
    after: Measured

    def mean(self, name: str) -> float:
        """Return the mean of a figure."""
        return float(statistics.mean((getattr(self.before, name), getattr(self.after, name))))


@dataclass(frozen=True)
class Round:
    """One round of one workload: the limit and every server, measured one after another.

    Attributes:
        plain: Every candidate for the limit.
        loads: Server name → clients → what was measured.
        stolen_ratio: Share of CPU time the hypervisor gave to others meanwhile.
        others_ratio: Share of CPU time that other programs on the machine used meanwhile.
    """

    plain: list[Plain]
    loads: dict[str, dict[int, Load]]
    stolen_ratio: float
    others_ratio: float

    def limit(self, clients: int) -> Plain:
        """Return the fastest way of this round that so many clients can keep busy."""
        return max((one for one in self.plain if one.way.in_flight <= clients), key=lambda one: one.mean("per_s"))


@dataclass
class Result:
    """Everything measured for one workload.

    Attributes:
        workload: What was sent.
        rounds: Those that count, in the order measured.
        repeated: How many more were set aside because other programs used the CPU.
    """

    workload: Workload
    rounds: list[Round] = field(default_factory=list)
    repeated: int = 0


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return median, smallest and largest, to four significant digits."""
    found = list(values)
    return {name: float(f"{value:.4g}") for name, value in (("median", statistics.median(found)), ("min", min(found)), ("max", max(found)))}


def summary(result: Result) -> dict[str, Any]:
    """Return the figures of one workload: per number of clients the limit, then each server."""
    rounds = result.rounds
    limits = {str(clients): _limit([r.limit(clients) for r in rounds]) for clients in result.workload.clients}
    servers = {name: {str(clients): _figures(rounds, name, clients) for clients in result.workload.clients} for name in rounds[0].loads}
    return {
        "title": result.workload.title,
        "limit": limits,
        "servers": servers,
        "repeated": result.repeated,
        "stolen_ratio": spread(r.stolen_ratio for r in rounds),
        "others_ratio": spread(r.others_ratio for r in rounds),
    }


def _limit(fastest: Sequence[Plain]) -> dict[str, Any]:
    """Return the limit's figures, and the way that was fastest most often."""
    way = Counter(str(one.way) for one in fastest).most_common(1)[0][0]
    return {"way": way, **{name: spread(one.mean(name) for one in fastest) for name in ("per_s", "cpu_ms", "p50_ms")}}


def _figures(rounds: Sequence[Round], server: str, clients: int) -> dict[str, Any]:
    """Return a server's figures; ratios are taken within each round, because the machine's speed drifts between them."""
    loads = [r.loads[server][clients] for r in rounds]
    figures: dict[str, Any] = {name: spread(getattr(load, name) for load in loads) for name in ("per_s", "p50_ms", "p99_ms", "cpu_ms")}
    figures["of_limit"] = spread(r.loads[server][clients].per_s / r.limit(clients).mean("per_s") for r in rounds)
    figures["cpu_over_limit_ms"] = spread(r.loads[server][clients].cpu_ms - r.limit(clients).mean("cpu_ms") for r in rounds)
    figures["resident_mib"] = round(max(load.resident_mib for load in loads))
    figures["failed"] = sum(load.failed for load in loads)
    return figures


HEADER = """\
# Benchmark of {date} on {machine[class]}

Command: `{command}` at revision {machine[revision]}.
Machine: {machine[cpu]}, {machine[cores]} cores, {machine[memory_gib]} GiB, {machine[system]}; Python {machine[python]}.
Versions: {versions}; {machine[wrk]}.
Each figure is the median of {rounds} interleaved rounds of {seconds:g} s (smallest to largest in brackets). Load: wrk, one thread, closed
loop, on the same machine, whose cores it shares with the server. Every answer was checked against plain Python's before measuring.
"""

READING = """\
## How to read it

- *Limit*: the same request bodies decoded, preprocessed and run by ONNX Runtime from the same package in plain Python without HTTP, by one
  thread, by threads and by processes, each with its best batch size, and no more instances in flight than there are clients. Each round
  measures them before and after the servers and takes the fastest. `package` is the code serving uses; `pillow` is the training code's
  Pillow and NumPy steps before the same graphs. It parses no HTTP, writes no answer and shares its cores with no load generator, so 1 is
  out of reach where those cost something.
- *Of the limit* is taken within each round: ratios hold where absolute figures drift with the machine. Differences below 15 % are noise.
- *p50 of a limit* is the median time of one execution: that of a whole batch.
- *CPU ms/request* counts the server's processes only; *over the limit* is what the server costs beyond the model's own work (negative where
  its batches are larger than the limit's).
- It cannot show: other machines, a GPU, a network, open arrivals, or runs longer than {seconds:g} s.
"""

#: Above this share of CPU time used by other programs the page says that it should not be quoted.
NOISY = 0.1

COLUMNS = ("", "clients", "requests/s", "of the limit", "p50 ms", "p99 ms", "CPU ms/request", "over the limit", "resident MiB", "failed")


def page(record: dict[str, Any]) -> str:
    """Return the record as a Markdown page."""
    versions = ", ".join(f"{name} {version}" for name, version in record["machine"]["packages"].items())
    started = [f"`{name}` is `{one['command']}`, ready after {one['ready_s']:.1f} s." for name, one in record["servers"].items()]
    sections = [_section(workload) for workload in record["workloads"].values()]
    return "\n".join([HEADER.format(**record, versions=versions) + "\n".join(started) + "\n", *sections, READING.format(**record)])


def _section(workload: dict[str, Any]) -> str:
    lines = [f"## {workload['title']}", "", _row(COLUMNS), _row(["---", *["--:"] * (len(COLUMNS) - 1)])]
    for clients, found in workload["limit"].items():
        figures = [_rate(found["per_s"]), "1", _ms(found["p50_ms"]), "", _ms(found["cpu_ms"])]
        lines.append(_row([f"*limit: {found['way']}*", clients, *figures, "", "", ""]))
    for server, by_clients in workload["servers"].items():
        lines += [_server_row(server, clients, figures) for clients, figures in by_clients.items()]
    stolen, others = workload["stolen_ratio"], workload["others_ratio"]
    lines += [
        "",
        f"Other programs used {others['median']:.1%} of the CPU time meanwhile (at most {others['max']:.1%}) and the hypervisor gave away",
    ]
    lines += [
        f"{stolen['median']:.1%} (at most {stolen['max']:.1%}). Rounds set aside because others used more: {workload['repeated']}.",
        "",
    ]
    if others["median"] > NOISY:
        lines += ["**Not a calm machine: other programs competed for the CPU. Measure again before quoting these figures.**", ""]
    return "\n".join(lines)


def _server_row(server: str, clients: str, figures: dict[str, Any]) -> str:
    of = figures["of_limit"]
    ratio = f"**{of['median']:.2f}** ({of['min']:.2f}–{of['max']:.2f})"
    times = [_ms(figures[name]) for name in ("p50_ms", "p99_ms", "cpu_ms", "cpu_over_limit_ms")]
    return _row([server, clients, _rate(figures["per_s"]), ratio, *times, str(figures["resident_mib"]), str(figures["failed"])])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rate(value: dict[str, float]) -> str:
    return f"{_digits(value['median'])} ({_digits(value['min'])}–{_digits(value['max'])})"


def _ms(value: dict[str, float]) -> str:
    return f"{value['median']:.3g}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def write(record: dict[str, Any], results: Sequence[Result], directory: Path) -> tuple[Path, Path]:
    """Write the record (every round included) and the page; return both paths."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = directory / f"{record['date']}-{record['machine']['class']}"
    rounds = {result.workload.name: [asdict(r) for r in result.rounds] for result in results}
    data, text = stem.with_suffix(".json"), stem.with_suffix(".md")
    data.write_text(json.dumps({**record, "measured": rounds}, indent=1, ensure_ascii=False) + "\n")
    text.write_text(page(record))
    return data, text

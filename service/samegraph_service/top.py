"""`samegraph top`: what a server, or several replicas of it, is doing now, from nothing but its `/metrics`.

    Page      one scrape: sample values by name and labels, and when it was taken
    Sight     what two scrapes of the same replica say about the time between them
    Screen    the sights of all replicas added up, as it is drawn

Counters are compared with the scrape before, so every rate is over the last interval; a counter that is smaller than before belongs to a
process that was started again, and counts from zero.
"""

from __future__ import annotations

import itertools
import math
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from prometheus_client.parser import text_string_to_metric_families
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Labels: TypeAlias = tuple[tuple[str, str], ...]
Values: TypeAlias = dict[str, dict[Labels, float]]

#: Largest page that is read: three times what the series caps leave room for.
MAX_PAGE_BYTES: Final = 16 << 20
#: Rates remembered for the small curve beside a version.
REMEMBERED: Final = 30
#: Share of hints that hold on a server whose callers obey.
HONEST: Final = 0.9
_BARS: Final = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Page:
    """One scrape of one replica.

    Attributes:
        at: When, in seconds of a clock that only goes forward.
        values: Sample name → labels → value.
    """

    at: float
    values: Values

    @classmethod
    def read(cls, text: str, at: float) -> Page:
        """Parse a page in Prometheus' text format.

        Raises:
            ValueError: It is not one.
        """
        values: Values = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return cls(at, values)

    def gauge(self, name: str, **labels: str) -> float | None:
        """Return the value of one series, or None."""
        return self.values.get(name, {}).get(tuple(sorted(labels.items())))


@dataclass
class VersionSight:
    """One version over an interval, summed over replicas.

    Attributes:
        states: State → replicas in which the version is in it.
        seconds: Length of the interval.
        requests: Answered requests by class of status (`2xx` …).
        instances: Answered instances.
        queue_rows: Instances that wait now.
        executions: Executions, and the instances in them.
        backlog: Instances in executions that left others waiting, and those that were wanted.
        buckets: Upper bound → requests that took at most so long.
    """

    model: str
    version: str
    states: dict[str, int] = field(default_factory=dict)
    requests: dict[str, float] = field(default_factory=dict)
    instances: float = 0.0
    queue_rows: float = 0.0
    executions: float = 0.0
    executed_rows: float = 0.0
    backlog: float = 0.0
    backlog_wanted: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict)

    def quantile(self, q: float) -> float | None:
        """Return a latency in seconds, interpolated within its bucket as Prometheus does, or None without requests."""
        bounds = sorted(self.buckets)
        total = self.buckets[bounds[-1]] if bounds else 0.0
        if not total:
            return None
        rank, below, low = q * total, 0.0, 0.0
        for bound in bounds:
            upto = self.buckets[bound]
            if upto >= rank:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * ((rank - below) / (upto - below) if upto > below else 1.0)
            below, low = upto, bound
        return low

    @property
    def mean_batch(self) -> float | None:
        """Instances in an execution, or None without any."""
        return self.executed_rows / self.executions if self.executions else None

    @property
    def fill(self) -> float | None:
        """How full executions were that left others waiting, or None without any."""
        return self.backlog / self.backlog_wanted if self.backlog_wanted else None


@dataclass(frozen=True)
class HintSight:
    """Refused callers over an interval, summed over replicas; all rates a second.

    Attributes:
        waiting: Tickets held now.
        returns: Result of coming back (`hit`, `miss`, `early`) → rate.
        hit_ratio: Share of those who came when they were told that got in; None when nobody came.
        mean_error: Seconds between the promise and the place that came free, either way; None when none did.
        tickets: What happened to tickets (`issued`, `expired`, `none`) → rate.
    """

    waiting: float
    returns: dict[str, float]
    hit_ratio: float | None
    mean_error: float | None
    tickets: dict[str, float]


@dataclass
class Replica:
    """One server's address with its last two pages.

    Attributes:
        url: Its address.
        problem: Why there is no page, in a sentence; empty when there is.
    """

    url: str
    before: Page | None = None
    now: Page | None = None
    problem: str = ""

    def take(self, page: Page) -> None:
        """Take a new page."""
        self.before, self.now, self.problem = self.now, page, ""

    def lost(self, problem: str) -> None:
        """Note that no page could be had; the next one counts from anew."""
        self.before, self.now, self.problem = None, None, problem

    @property
    def seconds(self) -> float:
        """Length of the interval between the two pages; 0 with only one."""
        return 0.0 if self.before is None or self.now is None else self.now.at - self.before.at

    def increases(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Yield labels and increase over the interval of every series of a counter."""
        if self.now is None or self.before is None:
            return
        earlier = self.before.values.get(name, {})
        for labels, value in self.now.values.get(name, {}).items():
            start = earlier.get(labels, 0.0)
            yield dict(labels), value - start if value >= start else value

    def gauges(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Yield labels and value of every series of a gauge."""
        if self.now is not None:
            for labels, value in self.now.values.get(name, {}).items():
                yield dict(labels), value

    def total(self, name: str) -> float:
        """Return the increase of all series of a counter together."""
        return sum(increase for _, increase in self.increases(name))

    def value(self, name: str) -> float | None:
        """Return the value of a gauge without labels, or None."""
        return None if self.now is None else self.now.gauge(name)


class Screen:
    """All replicas together, interval after interval.

    Args:
        urls: Their addresses.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.replicas = [Replica(url) for url in urls]
        self._curves: dict[tuple[str, str], deque[float]] = {}

    # --- figures ------------------------------------------------------------------------------------------------------

    def versions(self) -> list[VersionSight]:
        """Return every version that any replica knows, by name and number."""
        found: dict[tuple[str, str], VersionSight] = {}

        def at(labels: Mapping[str, str]) -> VersionSight:
            key = labels.get("model", ""), labels.get("version", "")
            return found.setdefault(key, VersionSight(*key))

        for replica in self.replicas:
            for labels, _ in replica.gauges("samegraph_model_state"):
                states = at(labels).states
                states[labels["state"]] = states.get(labels["state"], 0) + 1
            for labels, value in replica.gauges("samegraph_queue_rows"):
                at(labels).queue_rows += value
            for labels, value in replica.increases("samegraph_requests_total"):
                if labels["version"]:
                    requests = at(labels).requests
                    kind = f"{labels['status'][:1]}xx"
                    requests[kind] = requests.get(kind, 0.0) + value
            for name, attribute in _COUNTERS:
                for labels, value in replica.increases(name):
                    sight = at(labels)
                    setattr(sight, attribute, getattr(sight, attribute) + value)
            for labels, value in replica.increases("samegraph_request_duration_seconds_bucket"):
                buckets, bound = at(labels).buckets, float(labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + value
        return [found[key] for key in sorted(found, key=lambda key: (key[0], int(key[1]) if key[1].isdecimal() else 0))]

    def failures(self) -> dict[str, dict[str, float]]:
        """Return model → class of status → failed requests a second: they are counted without a version."""
        failed: dict[str, dict[str, float]] = {}
        for replica in self.replicas:
            for labels, value in replica.increases("samegraph_requests_total"):
                if value and not labels["version"]:
                    rates, kind = failed.setdefault(labels["model"], {}), f"{labels['status'][:1]}xx"
                    rates[kind] = rates.get(kind, 0.0) + value / replica.seconds
        return dict(sorted(failed.items()))

    def rate(self, increase: Callable[[Replica], float]) -> float:
        """Return something a second over all replicas."""
        return sum(increase(replica) / replica.seconds for replica in self.replicas if replica.seconds > 0)

    @property
    def seconds(self) -> float:
        """The longest interval of any replica."""
        return max((replica.seconds for replica in self.replicas), default=0.0)

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Return label value → a second, of a counter over all replicas."""
        rates: dict[str, float] = {}
        for replica in self.replicas:
            for labels, value in replica.increases(name):
                if replica.seconds > 0:
                    rates[labels[label]] = rates.get(labels[label], 0.0) + value / replica.seconds
        return rates

    def hints(self) -> HintSight:
        """Return what became of hints and tickets over the interval."""
        returns = self.by_label("samegraph_hint_returns_total", "result")
        hit, miss = returns.get("hit", 0.0), returns.get("miss", 0.0)
        errors = sum(replica.total("samegraph_hint_error_seconds_sum") for replica in self.replicas)
        count = sum(replica.total("samegraph_hint_error_seconds_count") for replica in self.replicas)
        return HintSight(
            waiting=sum(replica.value("samegraph_tickets_waiting") or 0.0 for replica in self.replicas),
            returns=returns,
            hit_ratio=hit / (hit + miss) if hit + miss else None,
            mean_error=errors / count if count else None,
            tickets=self.by_label("samegraph_tickets_total", "event"),
        )

    def dropped(self) -> dict[str, float]:
        """Return what was accepted and never answered, a second: passed deadlines and callers who left."""
        return {
            "expired": self.rate(lambda r: r.total("samegraph_expired_requests_total")),
            "callers left": self.rate(lambda r: r.total("samegraph_cancelled_requests_total")),
        }

    def document(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        hints = self.hints()
        return {
            "interval_seconds": round(self.seconds, 3),
            "replicas": [_replica_document(replica) for replica in self.replicas],
            "requests_per_second": self.rate(lambda r: r.total("samegraph_requests_total")),
            "refused_per_second": self.by_label("samegraph_refused_total", "reason"),
            "failed_per_second": self.failures(),
            "errors_per_second": self.by_label("samegraph_errors_total", "code"),
            "hints": {"returns_per_second": hints.returns, "hit_ratio": hints.hit_ratio, "mean_error_seconds": hints.mean_error},
            "tickets": {"waiting": hints.waiting, "per_second": hints.tickets},
            "replayed_per_second": self.by_label("samegraph_replayed_requests_total", "how"),
            "dropped_per_second": self.dropped(),
            "versions": [_version_document(sight, self.seconds) for sight in self.versions()],
        }

    # --- drawing ------------------------------------------------------------------------------------------------------

    def draw(self, width: int = 140) -> RenderableType:
        """Return the screen for a terminal of so many columns; call once an interval, since it also moves the curves on."""
        versions = self.versions()
        for sight in versions:
            curve = self._curves.setdefault((sight.model, sight.version), deque(maxlen=REMEMBERED))
            curve.append(sum(sight.requests.values()) / self.seconds if self.seconds else 0.0)
        parts: list[RenderableType] = [self._replicas(width), self._summary(), Text(), self._versions(versions, width)]
        parts.extend(self._line())
        for title, rates, style in (
            ("refused", self.by_label("samegraph_refused_total", "reason"), "yellow"),
            ("dropped", self.dropped(), "yellow"),
            ("replayed", self.by_label("samegraph_replayed_requests_total", "how"), ""),
            ("errors", self.by_label("samegraph_errors_total", "code"), "yellow"),
        ):
            busy = {name: rate for name, rate in sorted(rates.items(), key=lambda item: -item[1]) if rate > 0}
            if busy:
                parts.append(_titled(title, [f"{name} {_number(rate)}/s" for name, rate in busy.items()], style))
        return Group(*parts)

    def _line(self) -> Iterator[RenderableType]:
        """Yield how those fare who were refused and told when to come, if there are any."""
        hints = self.hints()
        back = sum(hints.returns.values())
        words = [f"{_number(hints.waiting)} waiting"] if hints.waiting or back else []
        if back:
            words.append(f"{_number(back)}/s came back")
        if hints.hit_ratio is not None:
            words.append(f"{hints.hit_ratio:.0%} got in when told")
        if hints.returns.get("early"):
            words.append(f"{_number(hints.returns['early'])}/s too early")
        if hints.mean_error is not None:
            words.append(f"off by {_seconds(hints.mean_error)}")
        for event, text in (("expired", "never came"), ("none", "without a ticket")):
            if hints.tickets.get(event):
                words.append(f"{_number(hints.tickets[event])}/s {text}")
        if words:
            yield _titled("tickets", words, "red" if hints.hit_ratio is not None and hints.hit_ratio < HONEST else "")

    def _replicas(self, width: int) -> RenderableType:
        headings = ("replica", "state", "requests", "slots", "drain", "instances", "cpu", "memory", "bytes", "up")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=True, header_style="dim")
        rows: list[tuple[RenderableType, ...]] = []
        for replica in self.replicas:
            if replica.now is None:
                rows.append((replica.url, Text(replica.problem or "waiting", "red" if replica.problem else "dim")))
                continue
            cpu = replica.total("process_cpu_seconds_total") / replica.seconds if replica.seconds else None
            cells: tuple[RenderableType, ...] = (
                replica.url,
                _state(replica),
                _of(replica, "samegraph_in_flight_requests"),
                f"{_number(replica.value('samegraph_run_slots_busy'))}/{_number(replica.value('samegraph_run_slots'))}",
                _seconds(replica.value("samegraph_predicted_drain_seconds")),
                _of(replica, "samegraph_in_flight_rows"),
                "–" if cpu is None else f"{cpu:.0%}",
                _bytes(replica.value("process_resident_memory_bytes")),
                _of(replica, "samegraph_in_flight_bytes", _bytes),
                _age(replica.value("process_start_time_seconds")),
            )
            rows.append(cells)
        _fill(table, headings, rows, width, 2)
        return table

    def _summary(self) -> RenderableType:
        refused = sum(self.by_label("samegraph_refused_total", "reason").values())
        words = [
            f"{_number(self.rate(lambda r: r.total('samegraph_requests_total')))} requests/s",
            f"{_number(self.rate(lambda r: r.total('samegraph_instances_total')))} instances/s",
            f"{_number(refused)} refused/s",
        ]
        return Text("  ·  ".join(words), "bold")

    def _versions(self, versions: Iterable[VersionSight], width: int) -> RenderableType:
        headings = ("model", "state", "requests/s", "p99", "queue", "5xx/s", "batch", "p50", "inst/s", "4xx/s", "fill", "lately")
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, expand=False)
        rows: list[tuple[RenderableType, ...]] = []
        seconds = self.seconds
        for sight in versions:
            rates = {kind: count / seconds if seconds else 0.0 for kind, count in sight.requests.items()}
            failing = rates.get("5xx", 0.0)
            cells: tuple[RenderableType, ...] = (
                f"{sight.model}/{sight.version}",
                _states(sight, len(self.replicas)),
                _number(sum(rates.values())),
                _seconds(sight.quantile(0.99)),
                _number(sight.queue_rows),
                Text(_number(failing), "red" if failing else ""),
                "–" if sight.mean_batch is None else f"{sight.mean_batch:.1f}",
                _seconds(sight.quantile(0.5)),
                _number(sight.instances / seconds if seconds else 0.0),
                _number(rates.get("4xx", 0.0)),
                "–" if sight.fill is None else f"{sight.fill:.0%}",
                Text(_curve(self._curves.get((sight.model, sight.version), ())), "cyan"),
            )
            rows.append(cells)
        for model, failed in self.failures().items():
            bad = failed.get("5xx", 0.0)
            red = Text(_number(bad), "red" if bad else "")
            rows.append(
                (
                    model,
                    Text("failed", "yellow"),
                    _number(sum(failed.values())),
                    *["–"] * 2,
                    red,
                    *["–"] * 3,
                    _number(failed.get("4xx", 0.0)),
                    "–",
                    "",
                )
            )
        _fill(table, headings, rows, width - 2, 3)
        return table


#: Counter → attribute of `VersionSight` it adds to.
_COUNTERS: Final = (
    ("samegraph_instances_total", "instances"),
    ("samegraph_batch_size_count", "executions"),
    ("samegraph_batch_size_sum", "executed_rows"),
    ("samegraph_backlog_rows_total", "backlog"),
    ("samegraph_backlog_wanted_rows_total", "backlog_wanted"),
)


def scrape(replica: Replica, clock: Callable[[], float] = time.monotonic, timeout_s: float = 5.0) -> None:
    """Fetch a replica's page; what goes wrong becomes its problem."""
    address = replica.url if "://" in replica.url else f"http://{replica.url}"
    try:
        if not address.startswith(("http://", "https://")):
            raise ValueError("only http and https addresses can be read")
        with urllib.request.urlopen(f"{address.rstrip('/')}/metrics", timeout=timeout_s) as response:  # noqa: S310 - checked above
            text = response.read(MAX_PAGE_BYTES + 1)
        if len(text) > MAX_PAGE_BYTES:
            raise ValueError(f"its page is larger than {MAX_PAGE_BYTES >> 20} MiB")
        page = Page.read(text.decode("utf-8"), clock())
        if "samegraph_ready" not in page.values:
            raise ValueError("no samegraph server answers there")
        replica.take(page)
    except urllib.error.HTTPError as error:
        replica.lost(f"/metrics answered {error.code}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        replica.lost(str(getattr(reason, "strerror", None) or reason))


def _replica_document(replica: Replica) -> dict[str, Any]:
    names = {
        "ready": "samegraph_ready",
        "degraded": "samegraph_degraded",
        "in_flight_requests": "samegraph_in_flight_requests",
        "in_flight_rows": "samegraph_in_flight_rows",
        "in_flight_bytes": "samegraph_in_flight_bytes",
        "run_slots_busy": "samegraph_run_slots_busy",
        "run_slots": "samegraph_run_slots",
        "predicted_drain_seconds": "samegraph_predicted_drain_seconds",
        "resident_memory_bytes": "process_resident_memory_bytes",
    }
    return {"url": replica.url, "problem": replica.problem or None, **{key: replica.value(name) for key, name in names.items()}}


def _version_document(sight: VersionSight, seconds: float) -> dict[str, Any]:
    def rate(count: float) -> float:
        return count / seconds if seconds else 0.0

    return {
        "model": sight.model,
        "version": sight.version,
        "states": sight.states,
        "requests_per_second": {kind: rate(count) for kind, count in sorted(sight.requests.items())},
        "instances_per_second": rate(sight.instances),
        "queue_rows": sight.queue_rows,
        "mean_batch": sight.mean_batch,
        "backlog_fill": sight.fill,
        "p50_seconds": sight.quantile(0.5),
        "p99_seconds": sight.quantile(0.99),
    }


# --- words ------------------------------------------------------------------------------------------------------------


def _titled(title: str, words: Iterable[str], style: str) -> RenderableType:
    """Return words after a title; what does not fit into the terminal's width goes on below them, never below the title."""
    table = Table.grid(padding=(0, 1), pad_edge=False)
    table.add_column(no_wrap=True, width=8, style="dim")
    table.add_column()
    table.add_row(title, Text("  ".join(words), style))
    return table


def _state(replica: Replica) -> Text:
    if not replica.value("samegraph_ready"):
        return Text("not ready", "red")
    degraded = replica.value("samegraph_degraded") or 0
    return Text(f"ready, {degraded:g} to look at", "yellow") if degraded else Text("ready", "green")


def _states(sight: VersionSight, replicas: int) -> Text:
    if set(sight.states) == {"ready"}:
        there = sight.states["ready"]
        return Text("ready" if there == replicas else f"ready on {there} of {replicas}", "green" if there == replicas else "yellow")
    return Text(", ".join(f"{state} {count}" if replicas > 1 else state for state, count in sorted(sight.states.items())), "red")


def _of(replica: Replica, name: str, words: Callable[[float | None], str] | None = None) -> Text:
    words = words or _number
    value, limit = replica.value(name), replica.value(f"{name}_limit")
    full = value is not None and limit is not None and limit > 0 and value > 0.8 * limit
    return Text(f"{words(value)}/{words(limit)}", "red" if full else "")


def _age(start: float | None) -> str:
    if not start:
        return "–"
    minutes = int(max(0.0, time.time() - start)) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"{days}d{hours}h" if days else f"{hours}h{minutes % 60:02}m" if hours else f"{minutes}m"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) < 10 and value != int(value):
        return f"{value:.1f}" if abs(value) >= 0.1 else "<0.1"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{value:.0f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _seconds(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if value < 0.001:
        return f"{value * 1e6:.0f} µs" if value else "0"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def _fill(table: Table, headings: Sequence[str], rows: Sequence[tuple[RenderableType, ...]], width: int, gap: int) -> None:
    """Put into a table the columns for which there is room, at least two, the most important of which come first."""
    widths = [max(len(heading), *(len(str(row[i])) for row in rows if i < len(row)), 0) + gap for i, heading in enumerate(headings)]
    shown = max(2, sum(total <= width + gap for total in itertools.accumulate(widths)))
    for heading in headings[:shown]:
        table.add_column(heading, no_wrap=True, justify="left" if heading in _WORDS else "right")
    for row in rows:
        table.add_row(*row[:shown])


#: Headings of columns that hold words.
_WORDS: Final = ("replica", "state", "model", "lately")


def _curve(rates: Iterable[float]) -> str:
    rates = list(rates)
    top = max(rates, default=0.0)
    return "".join(_BARS[min(7, int(8 * rate / top))] if top else _BARS[0] for rate in rates)

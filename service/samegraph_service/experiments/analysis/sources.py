"""Where evidence is read from: metrics pages of replicas, or a Prometheus server that scrapes them.

A counter of a replica starts at 0 when its process does, so what a revision counted is the sum, over every process there was, of the value
it had last.
From pages that is what the processes of this moment have. From Prometheus it is, for each series, its largest value; where a process
started anew under the same address, that of each process is added.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from samegraph_transforms.errors import SamegraphError

from samegraph_service.errors import NoEvidence

from .evidence import COUNTERS, GAUGES, PREFIX, Evidence, Sample, experiments_in, gather

TIMEOUT_S = 30.0
#: Most bytes of one answer.
MAX_BYTES = 256 << 20
#: Most samples asked for at once.
MAX_SAMPLES = 400_000
#: Most series of one process whose falls are read one by one.
MAX_FALLEN = 32
#: Labels the service writes; all others were added by the scrape and tell processes apart.
OWN_LABELS = frozenset({"model", "experiment", "revision", "arm", "bucket", "metric", "served", "reason", "le"})
Labels = tuple[tuple[str, str], ...]
#: How far back a Prometheus server is asked, unless said otherwise; longer than experiments last.
LOOKBACK_S = 30 * 86400.0
#: Points of a history.
STEPS = 120


class SourceError(SamegraphError):
    """Raised when evidence cannot be read; says where from and why."""


# --- metrics pages --------------------------------------------------------------------------------------------------------


def page_samples(text: str) -> Iterator[Sample]:
    """Yield the experiments' lines of a metrics page.

    Raises:
        SourceError: It is no such page.
    """
    kept = "\n".join(line for line in text.splitlines() if line.startswith((PREFIX, f"# TYPE {PREFIX}")))
    try:
        for family in text_string_to_metric_families(kept + "\n"):
            for one in family.samples:
                yield Sample(one.name, one.labels, one.value)
    except ValueError as error:
        raise SourceError(f"this is no metrics page: {error}") from error


def from_pages(pages: Sequence[str], model: str, experiment: str, source: str = "metrics pages") -> Evidence:
    """Add up the metrics pages of several replicas.

    Raises:
        NoEvidence: None of them tells of the experiment.
        SourceError: One of them is no metrics page.
    """
    return gather((s for page in pages for s in page_samples(page)), model, experiment, source)


def fetch_pages(urls: Sequence[str]) -> list[str]:
    """Read `/metrics` of each replica; an address without a path gets it.

    Raises:
        SourceError: One of them does not answer: a report without a replica would be wrong.
    """
    return [_get(page_url(url)).decode("utf-8", "replace") for url in urls]


def page_url(url: str) -> str:
    """Return the address of a replica's metrics page."""
    parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
    return urllib.parse.urlunsplit(parts._replace(path=parts.path if parts.path.strip("/") else "/metrics"))


def _get(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise SourceError(f"{url!r} is no address; give one such as http://127.0.0.1:9090")
    request = urllib.request.Request(url, body, dict(headers or {}))  # noqa: S310 - the scheme is checked above
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            data: bytes = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise SourceError(f"{url} answered {error.code}: {_reason(error)}") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"nothing can be read from {url} ({error})") from error
    if len(data) > MAX_BYTES:
        raise SourceError(f"{url} answers with more than {MAX_BYTES >> 20} MB; ask about a shorter time (--since)")
    return data


def _reason(error: urllib.error.HTTPError) -> str:
    text = error.read(10_000).decode("utf-8", "replace")
    try:
        return str(json.loads(text).get("error", text))
    except (ValueError, AttributeError):
        return text[:300]


# --- Prometheus -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What was known at one moment.

    Attributes:
        time: In seconds since the epoch.
        evidence: What had been counted by then.
    """

    time: float
    evidence: Evidence


class PrometheusSource:
    """Reads evidence with Prometheus' HTTP API.

    Args:
        url: The server, for example http://127.0.0.1:9090; a path in it is a prefix.
        lookback_s: How far back counters are followed. A revision that is older keeps what its processes count themselves.
        headers: Sent with each request, for example Authorization.
        selector: Further label matchers, such as `job="samegraph",namespace="prod"`.
    """

    def __init__(self, url: str, *, lookback_s: float = LOOKBACK_S, headers: Mapping[str, str] | None = None, selector: str = "") -> None:
        self._url = (url if "//" in url else f"http://{url}").rstrip("/")
        self._lookback_s = lookback_s
        self._headers = dict(headers or {})
        self._selector = f",{selector}" if selector else ""

    def experiments(self, at: float | None = None) -> list[tuple[str, str]]:
        """Return every (model, experiment) that was scraped within the lookback, sorted.

        Raises:
            SourceError: The server does not answer.
        """
        found = self._vector(f"count by (model, experiment) (last_over_time({PREFIX}info{self._matchers()}[{self._range()}]))", at)
        return experiments_in(Sample(f"{PREFIX}info", s.labels, s.value) for s in found)

    def evidence(self, model: str, experiment: str, at: float | None = None) -> Evidence:
        """Return what all replicas counted, those that are gone and those that started anew included.

        What a process counted after its last scrape and before it ended was never seen by anybody and is missing.

        Args:
            model: The model's name.
            experiment: The experiment's name.
            at: The moment asked about, in seconds since the epoch; None is now.

        Raises:
            NoEvidence: The server has scraped nothing of this experiment.
            SourceError: The server does not answer.
        """
        chosen, at = self._matchers(model, experiment), self._now() if at is None else at
        restarts = self._restarts(chosen, at)
        samples = [s for name in COUNTERS for s in self._totals(f"{PREFIX}{name}", chosen, restarts, at)]
        for name in GAUGES:
            # A gauge stands for now: a replica that is gone has nothing withdrawn, but what a revision was stays true.
            range_ = "" if name == "withdrawn" else f"[{self._range()}]"
            expression = f"{PREFIX}{name}{chosen}{range_}"
            found = self._vector(f"last_over_time({expression})" if range_ else expression, at)
            samples += [Sample(f"{PREFIX}{name}", s.labels, s.value) for s in found]
        return gather(self._info_of_now(samples, chosen, at), model, experiment, f"Prometheus at {_without_user(self._url)}")

    def raw_evidence(self, model: str, experiment: str, at: float | None = None) -> Evidence:
        """Return the plain sum of what replicas export at this moment: those that are gone, and what was counted before a restart, lack.

        Raises:
            NoEvidence: Nothing of this experiment is exported now.
            SourceError: The server does not answer.
        """
        chosen = self._matchers(model, experiment)
        samples = [
            Sample(f"{PREFIX}{n}", s.labels, s.value) for n in (*COUNTERS, *GAUGES) for s in self._vector(f"{PREFIX}{n}{chosen}", at)
        ]
        return gather(samples, model, experiment, f"Prometheus at {_without_user(self._url)}, as exported now")

    def history(self, model: str, experiment: str, start: float, end: float, steps: int = STEPS) -> list[Look]:
        """Return what was known at evenly spaced moments, oldest first; moments before the first scrape are left out.

        Counters are read at those moments only: what a process counted between the last of them and its end is missing from the points
        (and from them alone).

        Raises:
            SourceError: The server does not answer.
        """
        chosen = self._matchers(model, experiment)
        names = [n for n in COUNTERS if not n.startswith("duration_seconds")]
        series = int(sum(s.value for s in self._vector(f'count({{__name__=~"{PREFIX}({"|".join(names)})",{chosen[1:-1]}}})', end)))
        steps = max(2, min(steps, MAX_SAMPLES // max(series, 1)))
        start, step = round(start, 3), max(math.floor(1000 * (end - start) / (steps - 1)), 1) / 1000  # Prometheus knows milliseconds only
        restarts = self._restarts(chosen, end)
        totals: list[list[Sample]] = [[] for _ in range(steps)]
        for name in names:
            for labels, values in self._matrix_range(f"{PREFIX}{name}{chosen}", start, end, step):
                # In whole milliseconds, as Prometheus counts: a hair above a step, a new process would count there and again at the next.
                anew = [round(1000 * (t - start)) / round(1000 * step) for t in restarts.get(_target(labels), ())]
                for i, total in enumerate(_accumulated(values, start, step, steps, anew)):
                    if total is not None:
                        totals[i].append(Sample(f"{PREFIX}{name}", labels, total))
        gauges = [
            Sample(f"{PREFIX}{name}", s.labels, s.value)
            for name in ("info", "arm_weight", "metric_info")
            for s in self._vector(f"last_over_time({PREFIX}{name}{chosen}[{self._range()}])", end)
        ]
        gauges = self._info_of_now(gauges, chosen, end)
        return [Look(start + i * step, gather([*gauges, *found], model, experiment)) for i, found in enumerate(totals) if found]

    def first_seen(self, model: str, experiment: str, end: float, revision: str | None = None) -> float | None:
        """Return about when the experiment, or a revision of it, was first scraped, in seconds since the epoch; None when it never was.

        Raises:
            SourceError: The server does not answer.
        """
        expression = f"count({PREFIX}info{self._matchers(model, experiment, revision)})"
        start, step, first = end - self._lookback_s, self._lookback_s / 1000, None
        while step >= 0.01:  # each round looks a hundred times closer
            found = [t for _, values in self._matrix_range(expression, start, end, step) for t, _ in values]
            if not found:
                break
            first = min(found)
            start, end, step = first - step, first, step / 100
        return first

    def rates(self, model: str, experiment: str, revision: str, at: float | None = None, window_s: float = 3600.0) -> dict[str, float]:
        """Return metric → outcomes a second in all arms over the last `window_s`.

        Raises:
            SourceError: The server does not answer.
        """
        chosen = self._matchers(model, experiment, revision)
        found = self._vector(f"sum by (metric) (rate({PREFIX}feedback_total{chosen}[{math.ceil(window_s * 1000)}ms]))", at)
        return {s.labels["metric"]: s.value for s in found if s.value > 0}

    def selected(self, name: str, model: str, experiment: str, revision: str | None = None) -> str:
        """Return the expression of a family's series of one experiment."""
        return name + self._matchers(model, experiment, revision)

    def with_matchers(self, name: str, matchers: str) -> str:
        """Return the expression of a family with these matchers and those that always apply."""
        return f"{name}{{{matchers}{self._selector}}}"

    def value(self, expression: str, at: float | None = None) -> float | None:
        """Return the one value of an expression; None when it has none.

        Raises:
            SourceError: The server does not answer, or refuses the expression.
        """
        found = [s.value for s in self._vector(expression, at) if not math.isnan(s.value)]
        return max(found) if found else None

    def vector(self, expression: str, at: float | None = None) -> list[Sample]:
        """Return the series of an expression; their names are empty.

        Raises:
            SourceError: The server does not answer, or refuses the expression.
        """
        return self._vector(expression, at)

    # --- how ---

    def _matchers(self, model: str | None = None, experiment: str | None = None, revision: str | None = None) -> str:
        named = [("model", model), ("experiment", experiment), ("revision", revision)]
        return (
            "{"
            + ",".join(f"{k}={_quoted(v)}" for k, v in named if v is not None)
            + self._selector.removeprefix("," * (model is None))
            + "}"
        )

    def _range(self, seconds: float | None = None) -> str:
        return f"{math.ceil((seconds or self._lookback_s) * 1000)}ms"

    def _info_of_now(self, samples: Sequence[Sample], chosen: str, at: float | None) -> list[Sample]:
        """Return the samples with only that revision current that replicas call so now, the newest of several."""
        newest = self._vector(f'max by (revision) (timestamp({PREFIX}info{chosen[:-1]},current=~"1|true"}} == 1))', at)
        now = {s.labels["revision"] for s in newest}
        if not now:  # the last state that was scraped, then
            return list(samples)
        return [
            s._replace(value=0.0) if s.name == f"{PREFIX}info" and (s.labels["revision"] not in now or _is_past(s)) else s for s in samples
        ]

    def _totals(self, name: str, chosen: str, restarts: Mapping[Labels, Sequence[float]], at: float) -> Iterator[Sample]:
        """Yield what each series counted in all: its largest value, or where its process started anew, that of each process."""
        for one in self._vector(f"max_over_time({name}{chosen}[{self._range()}])", at):
            if _target(one.labels) not in restarts:
                yield Sample(name, one.labels, one.value)
        for target, times in restarts.items():
            within = chosen[:-1] + "".join(f",{k}={_quoted(v)}" for k, v in target) + "}"
            for begin, end in itertools.pairwise([at - self._lookback_s, *times, at + 0.001]):
                length = end - begin
                for one in self._vector(f"max_over_time({name}{within}[{self._range(length)}])", end - 0.001):
                    if _target(one.labels) == target:
                        yield Sample(name, one.labels, one.value)

    def _restarts(self, chosen: str, at: float) -> dict[Labels, list[float]]:
        """Return target → the moments of the first scrapes after its process was another one, for targets that have any.

        All series of a process begin anew together, but one that is small or fast may have passed its old value by the next scrape. So the
        moments are taken from those that fell, and hold for all.
        """
        fallen: dict[Labels, list[str]] = {}
        for name in (f"{PREFIX}{family}" for family in ("duration_seconds_count", "served_total", "unassigned_total", "exposures_total")):
            for one in self._vector(f"resets({name}{chosen}[{self._range()}]) > 0", at):
                written = ",".join(f"{k}={_quoted(v)}" for k, v in one.labels.items())
                fallen.setdefault(_target(one.labels), []).append(f"{name}{{{written}}}")
        return {target: sorted({t for one in series[:MAX_FALLEN] for t in self._falls(one, at)}) for target, series in fallen.items()}

    def _falls(self, series: str, at: float) -> Iterator[float]:
        """Yield the moments at which one series is lower than before, read in stretches that are small enough."""
        n = self.value(f"count_over_time({series}[{self._range()}])", at) or 0.0
        stretches = math.ceil(n / MAX_SAMPLES) or 1
        length = self._lookback_s / stretches
        seen: dict[float, float] = {}
        for i in range(stretches):
            for _, values in self._matrix(f"{series}[{self._range(length + 1)}]", at - self._lookback_s + (i + 1) * length):
                seen.update(values)
        for before, after in itertools.pairwise(sorted(seen)):
            if seen[after] < seen[before]:
                yield after

    def _now(self) -> float:
        return float(self._api("query", query="time()")["result"][1])

    def _vector(self, expression: str, at: float | None) -> list[Sample]:
        data = self._api("query", query=expression, **({} if at is None else {"time": f"{at:.3f}"}))
        if data["resultType"] == "scalar":
            return [Sample("", {}, float(data["result"][1]))]
        return [Sample(one["metric"].get("__name__", ""), _plain(one["metric"]), float(one["value"][1])) for one in data["result"]]

    def _matrix(self, expression: str, at: float) -> Iterator[tuple[dict[str, str], list[tuple[float, float]]]]:
        for one in self._api("query", query=expression, time=f"{at:.3f}")["result"]:
            yield _plain(one["metric"]), [(float(t), float(v)) for t, v in one["values"]]

    def _matrix_range(
        self, expression: str, start: float, end: float, step: float
    ) -> Iterator[tuple[dict[str, str], list[tuple[float, float]]]]:
        data = self._api("query_range", query=expression, start=f"{start:.3f}", end=f"{end:.3f}", step=f"{step:.3f}")
        for one in data["result"]:
            yield _plain(one["metric"]), [(float(t), float(v)) for t, v in one["values"]]

    def _api(self, what: str, **parameters: str) -> dict[str, Any]:
        body = urllib.parse.urlencode(parameters).encode()
        text = _get(f"{self._url}/api/v1/{what}", body, {"content-type": "application/x-www-form-urlencoded", **self._headers})
        try:
            data: dict[str, Any] = json.loads(text)["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{_without_user(self._url)} does not answer as Prometheus does; is it one?") from error
        return data


def _is_past(sample: Sample) -> bool:
    return sample.labels.get("current", "1") in ("0", "false")


def _accumulated(
    values: Sequence[tuple[float, float]], start: float, step: float, steps: int, anew: Sequence[float]
) -> Iterator[float | None]:
    """Yield what a series had counted in all at each step; None before its first value.

    Args:
        values: Time and value at the steps that have one.
        start: Time of the first step.
        step: Seconds between two.
        steps: How many there are.
        anew: When its process was another one, in steps.
    """
    at = {round((t - start) / step): v for t, v in values if round((t - start) / step) < steps}
    finished: float = 0.0
    last: float | None = None
    seen = -1
    for i in range(steps):
        if i in at:
            if last is not None and (at[i] < last or any(seen < t <= i for t in anew)):
                finished += last
            last, seen = at[i], i
        yield None if last is None else finished + last


def _plain(labels: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in labels.items() if k != "__name__"}


def _target(labels: Mapping[str, str]) -> Labels:
    """Return the labels that say which process a series is of."""
    return tuple(sorted((k, v) for k, v in labels.items() if k not in OWN_LABELS))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _without_user(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def evidence_of(source: PrometheusSource | Sequence[str], model: str, experiment: str) -> Evidence:
    """Return what a Prometheus server or a list of replicas knows of an experiment.

    Raises:
        NoEvidence: Nothing.
        SourceError: It cannot be read.
    """
    if isinstance(source, PrometheusSource):
        return source.evidence(model, experiment)
    return from_pages(fetch_pages(source), model, experiment, f"{len(source)} replica{'s' * (len(source) != 1)}")


__all__ = [
    "Evidence", "Look", "NoEvidence", "PrometheusSource", "Sample", "SourceError", "evidence_of", "fetch_pages", "from_pages",
    "page_samples", "page_url",
]  # fmt: skip

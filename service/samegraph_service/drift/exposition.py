"""Drift in Prometheus' text formats, written from prepared lines.

The client library takes 8 µs a sample, which for 5,000 samples is 40 ms of the event loop. Here the part of a line before its value is
written once, when its version is loaded, and what a window says once a minute, so that a scrape formats only counts: 1 ms. Names and
labels are those of docs/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .counting import Slot, Totals
from .distributions import normal_quantile
from .monitor import DriftMonitor
from .statistics import STATES, AlarmRule, Comparison, bonferroni
from .tap import DROP_REASONS
from .version import Readings, VersionDrift


@dataclass(frozen=True)
class Family:
    """A metric.

    Attributes:
        name: Without `_total`.
        type: `counter` or `gauge`.
        help: A sentence.
    """

    name: str
    type: str
    help: str

    @property
    def sample(self) -> str:
        """The name of its samples."""
        return f"{self.name}_total" if self.type == "counter" else self.name

    def head(self, openmetrics: bool) -> str:
        """Return the lines before its samples; the two formats name a counter differently there."""
        name = self.name if openmetrics else self.sample
        return f"# HELP {name} {self.help}\n# TYPE {name} {self.type}\n"


ROWS = Family("samegraph_input_rows", "counter", "Rows whose inputs and answers were counted for drift.")
INPUT_BINS = Family("samegraph_input_bin_rows", "counter", "Rows by the bin a quantity of their inputs fell into.")
OUTPUT_BINS = Family("samegraph_output_bin_rows", "counter", "Rows by the bin a quantity of their answers fell into.")
VALUES = Family("samegraph_input_value_count", "counter", "Finite numbers among the values of a quantity.")
OFFSETS = Family("samegraph_input_value_offset", "counter", "Sum of distances from the baseline's mean, in two parts that rise.")
SQUARES = Family("samegraph_input_value_offset_squared", "counter", "Sum of squared distances from the baseline's mean.")
EXPECTED = Family("samegraph_output_expected", "counter", "Rows answered right and wrong by what the class probabilities say.")
ERRORS = Family("samegraph_input_errors", "counter", "Requests and instances that broke the signature, by the field at fault.")
DROPPED = Family("samegraph_drift_dropped_rows", "counter", "Answered rows that were not counted.")
WAITING = Family("samegraph_drift_waiting_rows", "gauge", "Answered rows that wait to be counted.")
INPUT_BASELINE = Family("samegraph_baseline_bin_rows", "gauge", "Rows of the baseline by bin; the same on every replica.")
OUTPUT_BASELINE = Family("samegraph_baseline_output_bin_rows", "gauge", "Answers to the rows of the baseline by bin.")
SAMPLED = Family("samegraph_drift_sampled_ratio", "gauge", "Counted rows as a share of the answered ones, in the last minute.")
Z = Family("samegraph_drift_level_z", "gauge", "Normal quantile of the level that each quantity of the version is tested at.")
LEAST_PSI = Family("samegraph_drift_least_psi", "gauge", "PSI that is tolerated: an alarm says that the true one is larger.")
MIN_ROWS = Family("samegraph_drift_min_rows", "gauge", "Rows of a window below which nothing is said.")
SERIES = Family("samegraph_drift_series", "gauge", "Series that are exported, and those that the cap leaves out.")
STATE = Family("samegraph_drift_state", "gauge", "One for what a window says.")
#: What is said of a window, and the attribute of `Comparison` that says it.
_STATISTICS: dict[Family, str] = {
    Family("samegraph_drift_psi", "gauge", "Population stability index of a window against the baseline, in nats."): "psi",
    Family("samegraph_drift_psi_critical", "gauge", "PSI above which a window has drifted."): "psi_critical",
    Family("samegraph_drift_p_value", "gauge", "Chance of so large a change when nothing has changed."): "p_value",
    Family(
        "samegraph_drift_js_divergence_bits", "gauge", "Jensen-Shannon divergence of a window from the baseline, in bits."
    ): "js_divergence_bits",
    Family("samegraph_drift_linf", "gauge", "Largest change of any bin's share."): "linf",
    Family("samegraph_drift_ks", "gauge", "Kolmogorov-Smirnov statistic over the baseline's edges; numbers only."): "ks",
    Family("samegraph_drift_w1_std", "gauge", "Earth mover's distance in training standard deviations; numbers only."): "w1_std",
    Family("samegraph_drift_sample_rows", "gauge", "Rows in a window."): "rows",
}
_ORDERED = frozenset({"ks", "w1_std"})

#: Errors a field of each kind can have; these series are there from the start.
_USUAL_ERRORS = ("missing_field", "wrong_type")
_ERRORS_BY_KIND: dict[str, tuple[str, ...]] = {
    "number": ("out_of_range",),
    "integer": ("out_of_range",),
    "string": ("not_allowed",),
    "image": ("undecodable", "unsupported_format"),
    "bytes": ("undecodable",),
    "tensor": ("wrong_shape",),
}


def label_value(text: str) -> str:
    """Return a label's value as the text formats want it between its quotes."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def labels(**values: str) -> str:
    """Return labels in braces."""
    return "{" + ",".join(f'{name}="{label_value(value)}"' for name, value in values.items()) + "}"


class _Lines:
    """Prepared beginnings of lines, and where their values lie in a vector."""

    def __init__(self) -> None:
        self._starts: list[str] = []
        self._places: list[int] = []
        self._index: np.ndarray | None = None

    def add(self, start: str, place: int) -> None:
        self._starts.append(start)
        self._places.append(place)

    def write(self, vector: np.ndarray) -> str:
        if not self._starts:
            return ""
        if self._index is None:
            self._index = np.array(self._places, dtype=np.intp)
        return "".join(map("%s %s\n".__mod__, zip(self._starts, vector[self._index].tolist(), strict=True)))


class _Page:
    """One version's prepared lines, of the variables that the cap lets through."""

    def __init__(self, version: VersionDrift, slots: Sequence[tuple[int, Slot]], windows: Sequence[str], rule: AlarmRule) -> None:
        self.version = version
        self._own = {"model": version.model, "version": str(version.version)}
        self._slots = slots
        self._windows = windows
        self._integers: dict[Family, _Lines] = {ROWS: _Lines(), INPUT_BINS: _Lines(), OUTPUT_BINS: _Lines()}
        self._floats: dict[Family, _Lines] = {OFFSETS: _Lines(), SQUARES: _Lines(), EXPECTED: _Lines()}
        self._constant: dict[Family, str] = {INPUT_BASELINE: "", OUTPUT_BASELINE: ""}
        z = normal_quantile(1 - bonferroni(rule.alpha, len(version.slots)))
        for family, value in ((Z, z), (LEAST_PSI, rule.least_psi), (MIN_ROWS, rule.min_rows)):
            self._constant[family] = f"{family.sample}{labels(**self._own)} {value!r}\n"
        self._numbers: list[tuple[str, Slot]] = []
        self._integers[ROWS].add(ROWS.sample + labels(**self._own), 0)
        self._looked_at: list[tuple[str, int, str, bool]] = []  # window, place of the variable, labels but for their end, has an order
        self._usual_errors = dict.fromkeys(usual_errors(version), 0)
        self._said: dict[Family, tuple[Readings | None, str]] = {}

    def prepare(self) -> Iterator[None]:
        """Write the beginnings of all lines, a variable at a time."""
        for _, slot in self._slots:
            self._prepare_bins(slot)
            if slot.side == "input" and slot.moments is not None:
                self._prepare_moments(slot.variable.name, slot, slot.moments)
            yield
        for window in self._windows:
            for i, slot in self._slots:
                own = labels(**self._own, side=slot.side, field=slot.variable.name, window=window)
                self._looked_at.append((window, i, own[:-1], slot.variable.kind == "numeric"))
            yield
        for expected in self.version.counter.layout.expected:
            for i, cell in enumerate(expected.cells):
                start = EXPECTED.sample + labels(**self._own, output=expected.output.name, cell=cell)
                self._floats[EXPECTED].add(start, expected.start + i)

    def _prepare_bins(self, slot: Slot) -> None:
        variable, inputs = slot.variable, slot.side == "input"
        family, baseline = (INPUT_BINS, INPUT_BASELINE) if inputs else (OUTPUT_BINS, OUTPUT_BASELINE)
        told = []
        for i, (label, rows) in enumerate(zip(variable.labels, variable.counts, strict=True)):
            own = labels(**self._own, **{"field" if inputs else "output": variable.name}, bin=label)
            self._integers[family].add(family.sample + own, slot.start + i)
            told.append(f"{baseline.sample}{own} {rows}\n")
        self._constant[baseline] += "".join(told)

    def _prepare_moments(self, name: str, slot: Slot, start: int) -> None:
        own = labels(**self._own, field=name)
        self._numbers.append((VALUES.sample + own, slot))
        for i, side in enumerate(("above", "below")):
            self._floats[OFFSETS].add(OFFSETS.sample + labels(**self._own, field=name, side=side), start + i)
        self._floats[SQUARES].add(SQUARES.sample + own, start + 2)

    def write(self, family: Family, totals: Totals) -> str:
        """Return a family's lines."""
        if family in self._integers:
            return self._integers[family].write(totals.integers)
        if family in self._floats:
            return self._floats[family].write(totals.floats)
        if family in self._constant:
            return self._constant[family]
        own = {VALUES: self._values, ERRORS: self._errors, DROPPED: self._dropped, WAITING: self._waiting, SAMPLED: self._sampled}.get(
            family
        )
        return self._window_lines(family) if own is None else own(totals)

    def _values(self, totals: Totals) -> str:
        return "".join([f"{start} {slot.finite(totals)}\n" for start, slot in self._numbers])

    def _errors(self, _: Totals) -> str:
        counts = self._usual_errors | self.version.tap.errors
        return "".join([f"{ERRORS.sample}{labels(**self._own, field=name, kind=kind)} {n}\n" for (name, kind), n in counts.items()])

    def _dropped(self, _: Totals) -> str:
        dropped = self.version.tap.dropped
        return "".join([f"{DROPPED.sample}{labels(**self._own, reason=reason)} {dropped[reason]}\n" for reason in DROP_REASONS])

    def _waiting(self, _: Totals) -> str:
        return f"{WAITING.sample}{labels(**self._own)} {self.version.tap.waiting()[0]}\n"

    def _sampled(self, _: Totals) -> str:
        readings = self.version.readings
        return f"{SAMPLED.sample}{labels(**self._own)} {1.0 if readings is None else readings.sampled_ratio!r}\n"

    def _window_lines(self, family: Family) -> str:
        """Return a family's lines about windows, which are written anew only after a new look."""
        readings = self.version.readings
        known = self._said.get(family)
        if known is None or known[0] is not readings:
            write = self._state_lines if family is STATE else self._statistic_lines
            known = self._said[family] = (readings, "".join(write(family, readings)))
        return known[1]

    def _statistic_lines(self, family: Family, readings: Readings | None) -> list[str]:
        name, start = _STATISTICS[family], family.sample
        every = name not in _ORDERED
        found = [(own, _said_of(readings, window, i)) for window, i, own, ordered in self._looked_at if every or ordered]
        return [f"{start}{own}}} {_number(getattr(said, name))}\n" for own, said in found]

    def _state_lines(self, family: Family, readings: Readings | None) -> list[str]:
        start = family.sample
        found = [(own, _said_of(readings, window, i).state) for window, i, own, _ in self._looked_at]
        return [f'{start}{own},state="{state}"}} {int(said == state)}\n' for own, said in found for state in STATES]


_NOTHING = Comparison(0, 0)


def _said_of(readings: Readings | None, window: str, i: int) -> Comparison:
    return _NOTHING if readings is None else readings.windows[window].comparisons[i]


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else repr(value)


def usual_errors(version: VersionDrift) -> list[tuple[str, str]]:
    """Return (field, error code) of the errors whose series are there from the start."""
    return [(f.name, kind) for f in version.manifest.fields for kind in (*_USUAL_ERRORS, *_ERRORS_BY_KIND.get(f.kind, ()))]


def series_of(slot: Slot, windows: int) -> int:
    """Return how many series a variable has."""
    numeric = slot.variable.kind == "numeric"
    gauges = len(_STATISTICS) - (0 if numeric else len(_ORDERED)) + len(STATES)
    return 2 * len(slot.variable.labels) + windows * gauges + (4 if numeric and slot.side == "input" else 0)


def fixed_series(version: VersionDrift) -> int:
    """Return how many series a version has besides those of its variables."""
    cells = sum(len(expected.cells) for expected in version.counter.layout.expected)
    return 6 + len(DROP_REASONS) + cells + len(usual_errors(version))


_FAMILIES = (
    ROWS, INPUT_BINS, OUTPUT_BINS, VALUES, OFFSETS, SQUARES, EXPECTED, ERRORS, DROPPED, WAITING, SAMPLED, INPUT_BASELINE, OUTPUT_BASELINE,
    Z, LEAST_PSI, MIN_ROWS, *_STATISTICS, STATE,
)  # fmt: skip


class DriftExposition:
    """Writes drift for a scrape. For the event loop's thread.

    Args:
        monitor: What is watched.
        max_series: Most series; beyond it the least important variables of all versions are left out.
    """

    def __init__(self, monitor: DriftMonitor, max_series: int) -> None:
        self._monitor = monitor
        self._max_series = max_series
        self._chosen_of: tuple[VersionDrift, ...] = ()
        self._chosen: dict[VersionDrift, list[int]] = {}
        self._pages_of: tuple[VersionDrift, ...] = ()
        self._pages: list[_Page] = []
        self._series = {"exported": 0, "capped": 0}

    def is_exported(self, version: VersionDrift, slot: int) -> bool:
        """Whether the cap lets the series of a version's variable number `slot` through."""
        self._choose()
        return slot in self._chosen.get(version, ())

    def write(self, *, openmetrics: bool) -> Iterator[str]:
        """Yield the text in pieces, for the event loop to turn in between."""
        versions = self._choose()
        if self._pages_of != versions:
            yield from self._prepare(versions)
        pages = [(page, page.version.totals) for page in self._pages]  # of one moment, so that bins sum to rows
        for family in _FAMILIES:
            text = "".join([page.write(family, totals) for page, totals in pages])
            if text:
                yield family.head(openmetrics) + text
        yield SERIES.head(openmetrics) + "".join([f"{SERIES.sample}{labels(kind=kind)} {n}\n" for kind, n in self._series.items()])

    def _prepare(self, versions: tuple[VersionDrift, ...]) -> Iterator[str]:
        """Prepare the lines of all versions; yields nothing but turns."""
        options = self._monitor.options
        windows = [size.label for size in options.windows]
        pages = []
        for version in versions:
            page = _Page(version, [(i, version.slots[i]) for i in self._chosen[version]], windows, options.rule)
            for _ in page.prepare():
                yield ""
            pages.append(page)
        self._pages, self._pages_of = pages, versions

    def _choose(self) -> tuple[VersionDrift, ...]:
        """Choose the variables that are exported, when versions have come or gone; return the versions."""
        versions = self._monitor.versions
        if versions == self._chosen_of:
            return versions
        slots = [(slot, version, i) for version in versions for i, slot in enumerate(version.slots)]
        slots.sort(key=lambda one: -one[0].importance)  # stable: equally important ones stay in the order they came
        exported, capped = sum(map(fixed_series, versions)), 0
        chosen: dict[VersionDrift, list[int]] = {version: [] for version in versions}
        for slot, version, i in slots:
            series = series_of(slot, len(self._monitor.options.windows))
            if not capped and exported + series <= self._max_series:
                chosen[version].append(i)
                exported += series
            else:
                capped += series  # of this one and all after it: no smaller but less important one takes its place
        self._series = {"exported": exported, "capped": capped}
        self._chosen = {version: sorted(places) for version, places in chosen.items()}
        self._chosen_of = versions
        return versions

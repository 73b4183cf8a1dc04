"""Throughput and tail latency against offered load, as one SVG without a library.

Both axes are logarithmic, because servers differ by orders of magnitude. The card is white in itself, so it reads the same on dark pages;
lines differ in marker and dash as well as colour, so it reads without colours too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.load import OpenLoad
from benchmarks.record import Record, Result

WIDTH = 1000
PANEL_WIDTH, PANEL_HEIGHT = 390, 250
LEFT, TOP, ACROSS, DOWN = 78, 84, 490, 346
#: (colour, dash, marker) of the first, second, … line; told apart by people who see red and green alike.
LINES = (("#0072b2", "", "circle"), ("#d55e00", "7 4", "square"), ("#4b7a10", "2 4", "triangle"), ("#7a3e9d", "10 3 2 3", "diamond"))
STYLE = """
      .title { font-size: 15px; font-weight: 650; fill: #24303c; }
      .axis { font-size: 12px; fill: #35424f; }
      .tick { font-size: 11px; fill: #5c6976; }
      .grid { stroke: #e3e7eb; stroke-width: 1; }
      .frame { fill: none; stroke: #9aa5b1; stroke-width: 1; }
      .same { stroke: #9aa5b1; stroke-width: 1; stroke-dasharray: 3 3; }
      .key { font-size: 13px; fill: #24303c; }
"""


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis.

    Attributes:
        low: Value at its start, a power of ten times 1, 2 or 5.
        high: Value at its end.
        length: In pixels.
    """

    low: float
    high: float
    length: float

    @classmethod
    def around(cls, values: Iterable[float], length: float) -> Axis:
        """Return the axis that just holds these values, all above zero."""
        found = list(values)
        low, high = _round_down(min(found)), _round_up(max(found))
        return cls(low, high if high > low else low * 10, length)

    def at(self, value: float) -> float:
        """Return where a value lies, in pixels from the start; values outside lie at the ends."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.length * min(max(share, 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Return round values along it: 1, 2 and 5 times each power of ten, or the powers alone where that were too many."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(powers) <= 4 else (1,)
        found = [step * 10.0**power for power in powers for step in steps]
        return [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]


def offered(record: Record) -> str:
    """Return the picture of every workload that was loaded with open arrivals, or nothing when there is none.

    Args:
        record: What was measured.
    """
    drawn = [result for result in record.workloads.values() if any(result.offered.values())]
    if not drawn:
        return ""
    names = list(dict.fromkeys(name for result in drawn for name in result.offered))
    height = TOP + DOWN * len(drawn) - 10
    parts = [_key(names)]
    for row, result in enumerate(drawn):
        y = TOP + row * DOWN
        parts.append(f'<text class="title" x="{LEFT}" y="{y - 14}">{escape(result.title)}</text>')
        parts.append(_panel(LEFT, y, result, names, "answered per second", lambda one: one.per_s, diagonal=True))
        parts.append(_panel(LEFT + ACROSS, y, result, names, "99th percentile of latency, ms", lambda one: one.p99_ms))
    described = "; ".join(result.title for result in drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        "aria-labelledby=\"title desc\" font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">\n"
        '<title id="title">Throughput and tail latency against offered load</title>\n'
        f'<desc id="desc">{escape(f"Open arrivals at rising rates to {_listed(names)}: {described}.")}</desc>\n'
        f"<defs><style>{STYLE}</style></defs>\n"
        f'<rect width="{WIDTH}" height="{height}" rx="12" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(
    x: float, y: float, result: Result, names: Sequence[str], what: str, value: Callable[[OpenLoad], float], *, diagonal: bool = False
) -> str:
    points = {name: [one for one in result.offered.get(name, []) if value(one) > 0] for name in names}
    across = Axis.around((one.offered_per_s for line in points.values() for one in line), PANEL_WIDTH)
    up = Axis.around((value(one) for line in points.values() for one in line), PANEL_HEIGHT)
    bottom = y + PANEL_HEIGHT
    parts = [f'<rect class="frame" x="{x}" y="{y}" width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}"/>']
    for tick in across.ticks():
        place = x + across.at(tick)
        parts.append(f'<line class="grid" x1="{place:.1f}" y1="{y}" x2="{place:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">{_number(tick)}</text>')
    for tick in up.ticks():
        place = bottom - up.at(tick)
        parts.append(f'<line class="grid" x1="{x}" y1="{place:.1f}" x2="{x + PANEL_WIDTH}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick" x="{x - 6}" y="{place + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    if diagonal:
        ends = [max(across.low, up.low), min(across.high, up.high)]
        (x1, y1), (x2, y2) = ((x + across.at(end), bottom - up.at(end)) for end in ends)
        parts.append(f'<line class="same" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    parts.append(f'<text class="axis" x="{x + PANEL_WIDTH / 2}" y="{bottom + 36}" text-anchor="middle">offered requests per second</text>')
    parts.append(
        f'<text class="axis" transform="translate({x - 52} {y + PANEL_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{what}</text>'
    )
    for number, name in enumerate(names):
        places = [(x + across.at(one.offered_per_s), bottom - up.at(value(one))) for one in points[name]]
        parts.append(_line(number, places))
    return "\n".join(parts)


def _line(number: int, places: Sequence[tuple[float, float]]) -> str:
    colour, dash, marker = LINES[number % len(LINES)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    drawn = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>' if places else ""
    return drawn + "".join(_marker(marker, x, y, colour) for x, y in places)


def _marker(kind: str, x: float, y: float, colour: str) -> str:
    match kind:
        case "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{colour}"/>'
        case "square":
            return f'<rect x="{x - 3.3:.1f}" y="{y - 3.3:.1f}" width="6.6" height="6.6" fill="{colour}"/>'
        case "triangle":
            return f'<path d="M{x:.1f} {y - 4.4:.1f} l4.2 7.6 h-8.4 Z" fill="{colour}"/>'
    return f'<path d="M{x:.1f} {y - 4.8:.1f} l4.8 4.8 l-4.8 4.8 l-4.8 -4.8 Z" fill="{colour}"/>'


def _key(names: Sequence[str]) -> str:
    parts = []
    x = float(LEFT)
    for number, name in enumerate(names):
        parts.append(_line(number, [(x, 32), (x + 34, 32)]))
        parts.append(f'<text class="key" x="{x + 44}" y="36.5">{escape(name)}</text>')
        x += 70 + 8.5 * len(name)
    parts.append(f'<line class="same" x1="{x}" y1="32" x2="{x + 34}" y2="32"/>')
    parts.append(f'<text class="key" x="{x + 44}" y="36.5">everything offered is answered</text>')
    return "\n".join(parts)


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max(step * power for step in (1, 2, 5) if step * power <= value * 1.000001)


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return min(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999999)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

"""A confidence sequence over time as inline SVG; whoever includes it brings `STYLE` and the page's colours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 460, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 10, 26
#: Early intervals are wider by far than what one wants to see; the axis shows this many times the last one.
_WIDEST = 5.0

#: Colours are variables of the page: `--bar` the estimate, `--band` the interval, `--line`, `--quiet`, `--text`.
STYLE = """
svg.sequence { display: block; width: 100%; height: auto; max-width: 640px; margin: 6px 0; }
svg.sequence .band { fill: var(--band); } svg.sequence .edge { fill: none; stroke: var(--bar); stroke-width: 1; opacity: .55; }
svg.sequence .estimate { fill: none; stroke: var(--bar); stroke-width: 2; } svg.sequence .dot { fill: var(--bar); }
svg.sequence .grid { stroke: var(--line); } svg.sequence .zero { stroke: var(--text); stroke-dasharray: 4 3; }
svg.sequence .decided { stroke: var(--good); stroke-width: 1.5; } svg.sequence .hit { fill: transparent; }
svg.sequence text { fill: var(--quiet); font: 12px system-ui, sans-serif; } svg.sequence text.mark { fill: var(--good); }
@media (max-width: 520px) { svg.sequence text { font-size: 16px; } }
"""


class Point(NamedTuple):
    """The sequence at one look; `time` in seconds since the epoch, inf when unknown."""

    time: float
    estimate: float
    low: float
    high: float


def sequence_plot(points: Sequence[Point], label: str) -> str:
    """Return the picture: the interval as a band, the estimate as a line, zero dashed, and where zero was first left out.

    Args:
        points: The looks, oldest first, at least one; intervals that are not finite are left out.
        label: What is shown, for those who cannot see it.
    """
    points = [p for p in points if math.isfinite(p.low) and math.isfinite(p.high)]
    if not points:
        return ""
    bottom, top = _range(points)
    xs = _places(points)

    def y(value: float) -> float:
        inside = min(max(value, bottom - (top - bottom)), top + (top - bottom))
        return _TOP + (top - inside) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    drawn = [f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT - _TOP - _BOTTOM}" fill="none"/>']
    for tick in _ticks(bottom, top):
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_figure(tick)}</text>')
    name = f"clip{abs(hash((label, len(points), points[-1]))) % 10**9}"
    drawn.append(f'<clipPath id="{name}"><rect x="0" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT - _TOP - _BOTTOM}"/></clipPath>')
    drawn.append(f'<g clip-path="url(#{name})">{"".join(_curves(points, xs, y))}</g>')
    drawn.append(f'<line class="zero" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    drawn += _decided(points, xs)
    drawn += _times(points, xs)
    return f'<svg class="sequence" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>'


def _range(points: Sequence[Point]) -> tuple[float, float]:
    last = points[-1]
    half = max((last.high - last.low) / 2, abs(last.estimate) * 1e-3, 1e-9)
    low = max(min(0.0, *(p.low for p in points)), last.estimate - _WIDEST * half)
    high = min(max(0.0, *(p.high for p in points)), last.estimate + _WIDEST * half)
    low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _places(points: Sequence[Point]) -> list[float]:
    if len(points) == 1 or not all(math.isfinite(p.time) for p in points):
        n = max(len(points) - 1, 1)
        shares = [0.5] if len(points) == 1 else [i / n for i in range(len(points))]
    else:
        start, whole = points[0].time, points[-1].time - points[0].time or 1.0
        shares = [(p.time - start) / whole for p in points]
    return [_LEFT + s * (_WIDTH - _LEFT - _RIGHT) for s in shares]


def _curves(points: Sequence[Point], xs: Sequence[float], y: object) -> Iterator[str]:
    assert callable(y)
    if len(points) == 1:
        [p], [x] = points, xs
        yield f'<rect class="band" x="{x - 14:.1f}" y="{y(p.high):.1f}" width="28" height="{y(p.low) - y(p.high):.1f}"/>'
        yield f'<circle class="dot" cx="{x:.1f}" cy="{y(p.estimate):.1f}" r="4"/>'
        return
    upper = [f"{x:.1f},{y(p.high):.1f}" for x, p in zip(xs, points, strict=True)]
    lower = [f"{x:.1f},{y(p.low):.1f}" for x, p in zip(xs, points, strict=True)]
    yield f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>'
    yield f'<polyline class="edge" points="{" ".join(upper)}"/><polyline class="edge" points="{" ".join(lower)}"/>'
    middle = " ".join(f"{x:.1f},{y(p.estimate):.1f}" for x, p in zip(xs, points, strict=True))
    yield f'<polyline class="estimate" points="{middle}"/><circle class="dot" cx="{xs[-1]:.1f}" cy="{y(points[-1].estimate):.1f}" r="3.5"/>'
    width = (xs[-1] - xs[0]) / len(xs)
    for x, p in zip(xs, points, strict=True):
        title = f"{_moment(p.time)}: {_figure(p.estimate)} ({_figure(p.low)} to {_figure(p.high)})"
        yield f'<rect class="hit" x="{x - width / 2:.1f}" y="0" width="{width:.1f}" height="{_HEIGHT}"><title>{title}</title></rect>'


def _decided(points: Sequence[Point], xs: Sequence[float]) -> Iterator[str]:
    """Yield the mark where the interval left zero out for good, as far as is known."""
    after = len(points)
    while after and (points[after - 1].low > 0 or points[after - 1].high < 0):
        after -= 1
    if len(points) < 2 or after == len(points):
        return
    x = xs[after]
    side, dx = ("end", -5) if x > _WIDTH / 2 else ("start", 5)
    yield f'<line class="decided" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
    yield f'<text class="mark" x="{x + dx:.1f}" y="{_TOP + 12}" text-anchor="{side}">decided</text>'


def _times(points: Sequence[Point], xs: Sequence[float]) -> Iterator[str]:
    if not all(math.isfinite(p.time) for p in points):
        return
    whole = points[-1].time - points[0].time
    form = "%H:%M:%S" if whole < 600 else "%H:%M" if whole < 86400 else "%d %b"
    for i, side in ((0, "start"), (len(points) - 1, "end")) if len(points) > 1 else ((0, "middle"),):
        text = datetime.fromtimestamp(points[i].time, UTC).strftime(form if len(points) > 1 else "%H:%M")
        yield f'<text x="{xs[i]:.1f}" y="{_HEIGHT - 8}" text-anchor="{side}">{text}{" UTC" if i else ""}</text>'


def _moment(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%d %b %H:%M:%S UTC") if math.isfinite(time) else "now"


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 5)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _figure(value: float) -> str:
    text = f"{0.0 if abs(value) < 1e-12 else value:.3g}"
    return text.replace("-", "−", 1) if value < 0 else text

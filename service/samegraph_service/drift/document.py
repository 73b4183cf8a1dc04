"""Drift of one version as a JSON document: for people, for `samegraph drift`, and for whoever adds replicas up without Prometheus."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .counting import Slot, Totals
from .monitor import DriftMonitor
from .statistics import Comparison, bonferroni
from .version import VersionDrift
from .window_sizes import WindowSize
from .windows import MINUTE_S, slices

#: Most parts a window is cut into for its trend.
TREND_PARTS = 24


def drift_document(
    version: VersionDrift, monitor: DriftMonitor, now: float, is_exported: Callable[[VersionDrift, int], bool], trend: str | None = None
) -> dict[str, Any]:
    """Return everything that is known about a version's drift on this replica.

    Args:
        version: The version.
        monitor: Watches it.
        now: Seconds on the monitor's clock.
        is_exported: Whether a variable's series are in the metrics.
        trend: A window's label: its counts are given in parts too, oldest first.
    """
    rule, totals, readings = monitor.options.rule, version.totals, version.readings
    document = {
        "model": version.model,
        "version": str(version.version),
        "digest": version.digest,
        "baseline": {
            "rows": version.baseline.rows,
            "made_from": version.baseline.made_from,
            "sampled_from": version.baseline.sampled_from,
            "sampled_to": version.baseline.sampled_to,
        },
        "rule": {
            "least_psi": rule.least_psi,
            "alpha": rule.alpha,
            "alpha_each": bonferroni(rule.alpha, len(version.slots)),
            "min_rows": rule.min_rows,
        },
        "windows": {size.label: size.minutes for size in monitor.options.windows},
        "rows": totals.rows,
        "dropped_rows": dict(version.tap.dropped),
        "sampled_ratio": 1.0 if readings is None else readings.sampled_ratio,
        "looked_seconds_ago": None if readings is None else round(max(0.0, now - readings.at), 3),
        "errors": [{"field": name, "kind": kind, "count": n} for (name, kind), n in sorted(version.tap.errors.items())],
        "variables": [_variable(version, i, slot, totals, is_exported(version, i)) for i, slot in enumerate(version.slots)],
        "expected": [_expected(version, place, totals) for place in range(len(version.counter.layout.expected))],
    }
    size = next((size for size in monitor.options.windows if size.label == trend), None)
    if size is not None:
        document["trend"] = _trend(version, size)
    return document


def _trend(version: VersionDrift, size: WindowSize) -> dict[str, Any]:
    """Return a window's counts in parts: per part one list per variable, in their order; null for a part without rows."""
    readings = version.readings
    if readings is None:
        return {"window": size.label, "part_minutes": 1, "parts": []}
    length, parts = slices(readings.minutes, math.floor(readings.at / MINUTE_S), size, TREND_PARTS)
    counts = [[part[slot.start : slot.stop].tolist() for slot in version.slots] if len(part) else None for part in parts]
    return {"window": size.label, "part_minutes": length, "parts": counts}


def _variable(version: VersionDrift, i: int, slot: Slot, totals: Totals, exported: bool) -> dict[str, Any]:
    variable, readings = slot.variable, version.readings
    windows = {} if readings is None else readings.windows
    return {
        "name": variable.name,
        "side": slot.side,
        "of": slot.owner,
        "kind": variable.kind,
        "description": variable.description,
        "unit": variable.unit,
        "importance": None if math.isinf(slot.importance) else slot.importance,
        "exported": exported,
        "bins": list(variable.labels),
        "holds": [variable.describe(label) for label in variable.labels],
        "baseline": {"counts": list(variable.counts), "mean": variable.mean, "std": variable.std},
        "total": _counts(slot, totals),
        "windows": {label: {**_counts(slot, w.counts), **_comparison(slot, w.comparisons[i])} for label, w in windows.items()},
    }


def _counts(slot: Slot, totals: Totals) -> dict[str, Any]:
    mean, std = slot.mean_and_std(totals)
    return {"counts": slot.counts(totals).tolist(), "mean": mean, "std": std}


def _comparison(slot: Slot, found: Comparison) -> dict[str, Any]:
    return {
        "state": found.state,
        "rows": found.rows,
        "psi": _finite(found.psi),
        "psi_critical": _finite(found.psi_critical),
        "psi_detectable": _finite(found.psi_detectable),
        "p_value": _finite(found.p_value),
        "js_divergence_bits": _finite(found.js_divergence_bits),
        "linf": _finite(found.linf),
        "linf_bin": None if found.linf_bin is None else slot.variable.labels[found.linf_bin],
        "ks": _finite(found.ks),
        "w1_std": _finite(found.w1_std),
    }


def _expected(version: VersionDrift, place: int, totals: Totals) -> dict[str, Any]:
    slot = version.counter.layout.expected[place]
    of = version.baseline.outputs[slot.place].expected
    assert of is not None
    sums = totals.floats[slot.start : slot.start + len(slot.cells)].tolist()
    cells = dict(zip(slot.cells, sums, strict=True))
    rows = cells["correct"] + cells["wrong"]
    return {
        "output": slot.output.name,
        "positive": slot.positive,
        "baseline": {"cells": dict(of.cells), "accuracy": _finite(of.accuracy), "measured_accuracy": of.measured_accuracy},
        "total": {"cells": cells, "accuracy": cells["correct"] / rows if rows else None},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

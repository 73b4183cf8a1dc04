"""On real rows in random order, in which nothing drifts, alarms are no more frequent than the level that is stated.

By default 204 fields and 40 windows. DRIFT_WINDOWS=500 looks at as many; docs/drift.md says what that gave.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from planted import SEED, flights
from samegraph_service.drift.statistics import AlarmRule, Comparison, bonferroni, compare
from samegraph_service.drift.version import scale_of
from samegraph_transforms.baseline import Variable
from samegraph_transforms.baseline_bins import Binner, categorical_variable, numeric_variable

WINDOWS = int(os.environ.get("DRIFT_WINDOWS", "40"))
BASELINE_ROWS = 5_000
#: Rows of a window, in turn.
SIZES = (200, 500, 1_000)


@dataclass(frozen=True)
class Field:
    """A field of one part of the flights: its baseline, and the bins of the other rows."""

    variable: Variable
    bins: np.ndarray


def fields_of(rows: list[dict[str, Any]]) -> list[Field]:
    """Return every field of some flights: bins of a baseline from the first rows, and where all others fall."""
    found = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        make = categorical_variable if isinstance(values[0], str) else numeric_variable
        variable = make(name, values[:BASELINE_ROWS])
        found.append(Field(variable, Binner(variable).bin(values[BASELINE_ROWS:])))
    return found


@pytest.fixture(scope="module")
def parts() -> list[list[Field]]:
    """The flights of three airports in four seasons, 17 fields each."""
    everything = flights()
    return [
        fields_of([flight for flight in everything if flight["origin"] == origin and (flight["month"] - 1) // 3 == season])
        for origin in ("EWR", "JFK", "LGA")
        for season in range(4)
    ]


@pytest.fixture(scope="module")
def looks(parts: list[list[Field]]) -> list[list[Comparison]]:
    """What each window says about each field, under the rule as it is by default, its level shared by all fields."""
    tests = sum(map(len, parts))
    rng = np.random.default_rng(SEED)
    found = []
    for number in range(WINDOWS):
        said = []
        for fields in parts:
            chosen = rng.permutation(len(fields[0].bins))[: SIZES[number % len(SIZES)]]  # rows of one window, for all its fields
            for field in fields:
                window = np.bincount(field.bins[chosen], minlength=len(field.variable.labels))
                said.append(compare(field.variable.counts, window, AlarmRule(), tests=tests, scale=scale_of(field.variable)))
        found.append(said)
    return found


def test_there_are_two_hundred_fields(looks: list[list[Comparison]]) -> None:
    """Of every kind: numbers with many zeros, few values, nulls, categories of three and of a hundred values."""
    assert {len(said) for said in looks} == {204}


def test_false_alarms_keep_to_the_stated_level(looks: list[list[Comparison]]) -> None:
    """A look with any false word (shifted or drifted) has at most the chance alpha, whatever the number of fields."""
    alarmed = sum(any(found.state != "quiet" for found in said) for said in looks)
    print(f"{alarmed} of {len(looks)} looks at {len(looks[0])} fields raised any word; {AlarmRule().alpha:g} is the stated level")
    assert alarmed <= most_by_chance(len(looks), AlarmRule().alpha)


@pytest.mark.parametrize("level", [0.05, 0.01, 0.001])
def test_p_values_are_honest_at_every_level(looks: list[list[Comparison]], level: float) -> None:
    """Of all comparisons no more than `level` have a p value below it, beyond what looks that share rows explain."""
    values = np.array([found.p_value for said in looks for found in said])
    share = float((values < level).mean())
    print(f"p below {level:g}: {share:.5f} of {values.size:,}")
    assert share <= 1.25 * level + 3 * np.sqrt(level / values.size)


def test_no_true_drift_is_ever_called_one(looks: list[list[Comparison]]) -> None:
    """PSI stays below its critical value by far: that line asks for more than chance."""
    assert max(found.psi / found.psi_critical for said in looks for found in said) < 1
    assert bonferroni(0.001, 204) == pytest.approx(0.001 / 204)


def most_by_chance(n: int, p: float) -> int:
    """Return the count that n tries of chance p exceed once in a thousand times."""
    log_terms = np.array(
        [np.sum(np.log((n - np.arange(k)) / (np.arange(k) + 1))) + k * np.log(p) + (n - k) * np.log1p(-p) for k in range(n + 1)]
    )
    return int(np.searchsorted(np.cumsum(np.exp(log_terms)), 0.999))

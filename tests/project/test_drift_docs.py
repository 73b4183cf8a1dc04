"""The figures in docs/drift.md are those the code gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from samegraph_service.drift.statistics import (
    AlarmRule,
    Scale,
    compare,
    effective_rows,
    population_stability_index,
    psi_critical,
    rows_to_detect,
)

PAGE = (Path(__file__).parents[2] / "docs" / "drift.md").read_text(encoding="utf-8")
BASELINE, WINDOW = [100, 200, 400, 200, 100], [50, 150, 350, 250, 200]


def cells(first: str) -> list[str]:
    """Return the other cells of the table row that begins with `first`."""
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_the_worked_example_is_right() -> None:
    """Each statistic of the example is the one the code computes."""
    found = compare(BASELINE, WINDOW, AlarmRule(min_rows=1), scale=Scale(range(5), [1.0] * 5, 1.2**0.5))
    assert cells("**PSI**, population stability index, nats")[-1] == f"{found.psi:.10f}"
    assert cells("**JS divergence**, bits")[-1] == f"{found.js_divergence_bits:.10f}"
    assert cells("**L∞**")[-1] == f"{found.linf:g}, bin `{found.linf_bin:02d}`"
    assert cells("**KS**")[-1] == f"{found.ks:.2f}"
    assert cells("**W1**, standard deviations")[-1] == f"{found.w1_std:.10f}"
    assert f"crit = {found.psi_critical:.6f}" in PAGE.replace("\n", " ")
    assert f"p = {found.p_value:.1e}" in PAGE
    assert f"The example is `{found.state}`" in PAGE
    assert f"it is {population_stability_index([500, 300, 200], [5, 3, 0]):.2f} here" in PAGE


def test_the_critical_values_are_right() -> None:
    """The row of critical values belongs to the row of window sizes."""
    rows = [int(cell.replace(",", "")) for cell in cells("rows")]
    assert len(rows) == 7
    assert cells("crit") == [f"{psi_critical(10, effective_rows(n, 10_000)):.4f}" for n in rows]


@pytest.mark.parametrize("m", [1_000, 10_000, 100_000])
def test_the_table_of_rows_is_right(m: int) -> None:
    """How many rows each drift needs, against each size of baseline."""
    drifts = [float(cell) for cell in cells("true PSI")]
    found = [rows_to_detect(psi, 16, m, alpha=0.001 / 20) for psi in drifts]
    assert cells(f"baseline of {m:,} rows") == ["never" if n is None else f"{n:,}" for n in found]


def test_the_settings_it_names_have_the_defaults_it_gives() -> None:
    """A default in brackets behind a setting's name is the setting's."""
    from samegraph_service.settings import DriftSettings

    defaults = DriftSettings()
    given = re.findall(r"`SAMEGRAPH_DRIFT__(LEAST_PSI|ALPHA|MIN_ROWS|MAX_SERIES)`[,\s]*\(?([0-9.,]*[0-9])", PAGE)
    assert {name for name, _ in given} == {"LEAST_PSI", "ALPHA", "MIN_ROWS", "MAX_SERIES"}
    for name, value in given:
        assert float(value.replace(",", "")) == getattr(defaults, name.lower())

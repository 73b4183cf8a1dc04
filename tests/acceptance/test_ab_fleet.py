"""The small form of `ab_fleet.py`: the same checks on two replicas and a few thousand requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from acceptance.ab_fleet import Options, run, table


@pytest.mark.slow
def test_an_experiment_from_start_to_verdict_and_a_harmful_version_withdrawn(tmp_path: Path) -> None:
    """Assignment, feedback, the report from Prometheus, and the guard, on real processes; every line of the table is ok."""
    page = tmp_path / "report.html"
    options = Options(requests=2400, harm_requests=6000, units=700, replicas=2, workers=4, lift=0.2, seed=2, directory=tmp_path, html=page)
    outcome = run(options)
    assert outcome.ok, table(outcome)
    assert outcome.report is not None
    assert outcome.report.state == "better"
    assert "Treatment is better for clicked by between" in page.read_text(encoding="utf-8")

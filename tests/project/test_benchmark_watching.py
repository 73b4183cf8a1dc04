"""The benchmark of watching: what is compared, and whether a flood's rows add up."""

from __future__ import annotations

import json

from benchmarks.watching import FLOOD_ROWS, NOTHING, Watched, flood_body, measure_flood, page
from benchmarks.workloads import FLIGHTS

FIGURES = Watched(
    started_on="2026-11-21",
    machine={"cpu": "a processor", "cores": 2, "python": "3.11", "revision": "abc"},
    cpu_ms={"rows": {NOTHING: [0.030] * 9, "drift": [0.0306] * 9, "access log": [0.033] * 9}},
    per_s={"rows": {NOTHING: [30_000.0] * 9, "drift": [29_500.0] * 9, "access log": [28_000.0] * 9}},
    flood={"rows_per_s": 60_000.0, "answered": 100_000.0, "counted": 60_000.0, "sampled": 39_000.0, "overflow": 500.0, "failed": 0.0},
)


def test_the_page_judges_every_way_of_watching() -> None:
    """Ratio, interval and verdict stand in one row; rows that are missing are told, not hidden."""
    text = page(FIGURES)
    assert "| drift | 0.0306 | 1.020 (1.020 to 1.020, n = 9) | 29,500 | 0.983 (0.983 to 0.983) | ≤ 1.03 of the CPU | met |" in text
    assert "| access log | 0.0330 | 1.100 (1.100 to 1.100, n = 9) | 28,000 | 0.933 (0.933 to 0.933) | ≤ 1.03 of the CPU | missed |" in text
    assert "Rows that are none of it: 500." in text


def test_a_flood_is_counted_or_told_to_be_left_out() -> None:
    """Half a second of large bodies to a real server: every answered row is counted or counted as left out."""
    figures = Watched()
    measure_flood(figures, 0.5)
    flood = figures.flood
    assert flood["answered"] >= FLOOD_ROWS
    assert flood["answered"] == flood["counted"] + flood["sampled"] + flood["overflow"]
    assert flood["failed"] == flood["waiting"] == 0
    assert flood["counted"] > 0


def test_a_body_of_the_flood_is_many_rows() -> None:
    """It is made of the rows that are sent one by one elsewhere, each as often as the others."""
    singles = FLIGHTS.bodies()
    found = json.loads(flood_body(singles, rows=2 * len(singles)))["instances"]
    assert found == 2 * [json.loads(body)["instances"][0] for body in singles]

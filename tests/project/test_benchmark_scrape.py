"""The benchmark of scrapes: how large one is at the cap, and what its page says."""

from __future__ import annotations

from benchmarks.operation import serving
from benchmarks.scrape import WINDOWS, ScrapeFigures, page, read_series


def test_a_scrape_is_as_large_as_the_cap_lets_it_be() -> None:
    """With four windows the examples have more series than are let through: the cap bites, and a scrape is as large as it gets."""
    figures = ScrapeFigures()
    with serving("--no-access-log", DRIFT__WINDOWS=WINDOWS) as server:
        read_series(figures, server)
    assert figures.series["capped"] > 0
    assert 4_900 < figures.series["exported"] <= 5_000
    assert figures.series["all"] > figures.series["exported"]


def test_the_page_judges_the_ratio() -> None:
    """Figure, interval, bound and verdict stand in one row, and the conditions above it."""
    figures = ScrapeFigures(
        started_on="2026-11-21",
        machine={"cpu": "a processor", "cores": 2, "python": "3.11", "revision": "abc"},
        series={"all": 5_800, "exported": 4_989, "capped": 1_340},
        bytes=580_000,
        rate_per_s=5_000.0,
        p99_ms=[(1.0, 1.02)] * 9,
        p50_ms=[(0.5, 0.5)] * 9,
    )
    text = page(figures)
    assert "| p99, ms | 1.00 | 1.02 | 1.020 (1.020 to 1.020, n = 9) | ≤ 1.1 | met |" in text
    assert "4,989 are exported and 1,340 left out" in text
    assert "a processor, 2 cores" in text

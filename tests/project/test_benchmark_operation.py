"""The benchmark of operation: what it starts, what it compares with, and what its page says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from samegraph_transforms.package import read_package

from benchmarks.operation import Figures, Reloads, Serving, bare_mib, measure_scrapes, page, promises, serving
from benchmarks.servers import SERVERS, Running

FIGURES = Figures(
    started_on="2026-11-21",
    machine={"cpu": "a processor", "cores": 2, "python": "3.11", "revision": "abc"},
    start_s=[{"imports": 0.6, "setup": 0.1, "loading": 1.5, "ready": 2.2, "load: golden": 1.2}] * 3,
    memory_mib={"bare": 110.0, "ready": 160.0},
    idle_cpu_ratio=0.001,
    capacity_per_s=30_000.0,
    p99_ms={"one reload": [(1.0, 1.02)] * 9, "within a reload": [(1.0, 1.5)] * 9},
    reload_s=[1.9, 2.0],
    scrape={"cpu_ms": 1.4, "bytes": 70_000.0, "series": 740.0},
)


def test_every_promise_is_judged() -> None:
    """Bound, figure and verdict stand in one row; a promise that is missed is called that."""
    rows = {promise.what: promise.row() for promise in promises(FIGURES)}
    assert rows["start, beside loading and proving"][1:] == ("≤ 1.50 s", "0.70 s (0.70 s to 0.70 s, n = 3)", "met")
    assert rows["p99 of `flights`: one reload of `imagenet`, against none"][3] == "met"
    assert rows["p99 of `flights`: within a reload of `imagenet`, against none"][3] == "missed"
    heavy = replace(FIGURES, memory_mib={"bare": 100.0, "ready": 200.0})
    assert next(p.row()[3] for p in promises(heavy) if "memory" in p.what) == "missed at the median"


def test_the_page_has_every_figure() -> None:
    """Tables are whole, and say on what they were measured."""
    text = page(FIGURES)
    for words in (
        "a processor, 2 cores",
        "| load: golden | 1.200 |",
        "| within a reload | 1.00 | 1.50 | 9 |",
        "1.4 ms of CPU for 740 series",
    ):
        assert words in text
    tables = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert min(tables) >= 3


def test_a_staged_version_is_a_whole_package(tmp_path: Path) -> None:
    """What the server is given to load is proven like any other, under the next number."""
    (tmp_path / "models" / "penguins").mkdir(parents=True)
    running = Running(SERVERS["samegraph"], 0, 0, 0.0, [])
    reloads = Reloads(Serving(running, tmp_path / "models", tmp_path / "log"), "penguins")
    reloads.stage()
    staged = read_package(tmp_path / "staged")
    assert (staged.manifest.name, staged.manifest.version, staged.proven) == ("penguins", 101, True)


def test_the_benchmark_starts_reloads_and_scrapes_a_real_server(tmp_path: Path) -> None:
    """One short look at everything but the load: the server answers, takes a new version, and tells of its start."""
    with serving("--no-access-log") as found:
        bare = bare_mib(tmp_path)
        assert 40 < bare < found.resident_mib()
        figures = Figures()
        measure_scrapes(figures, found, times=3)
        assert figures.scrape["series"] > 500
        reloads = Reloads(found, "penguins")
        reloads.stage()
        reloads.happen()
        versions = json.loads(found.ask("GET", "/v1/models/penguins"))["model_version_status"]
        assert {v["version"]: v["state"] for v in versions} == {"1": "AVAILABLE", "101": "AVAILABLE"}
        assert len(reloads.seconds) == 1
        assert found.started()["ready"] is True

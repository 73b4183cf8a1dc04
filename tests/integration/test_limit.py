"""The benchmark's plain Python does the same work as serving, on the real example packages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.limit import Way, WorkerDied, limit
from benchmarks.machine import cores
from benchmarks.workloads import FLIGHTS, IMAGENET, Plain, Workload


@pytest.fixture(params=[FLIGHTS, IMAGENET], ids=["rows", "images"])
def workload(request: pytest.FixtureRequest) -> Workload:
    """Each kind of request."""
    chosen: Workload = request.param
    return chosen


def test_every_pipeline_gives_the_same_answers(workload: Workload, examples: Path) -> None:
    """The training code's own steps and the package's item stage end in the same outputs."""
    plain = Plain(workload, examples)
    bodies = workload.bodies(examples)[:2]
    reference = plain.pipelines["package"](bodies)
    assert len(reference[0]) == 2
    for pipeline in plain.pipelines.values():
        for expected, got in zip(reference, pipeline(bodies), strict=True):
            np.testing.assert_array_equal(expected, got)


def test_bodies_hold_one_instance_each(workload: Workload, examples: Path) -> None:
    """What is sent is one row or one photo, and not the same one every time."""
    bodies = workload.bodies(examples)
    plain = Plain(workload, examples)
    assert len(set(bodies)) == len(bodies) > 1
    assert all(len(plain.answers(body)) == 1 for body in bodies)


def test_limit_is_measured_by_threads_and_processes(examples: Path) -> None:
    """Both layouts do work, and CPU time is counted for it."""
    with limit([FLIGHTS], examples) as plain:
        for way in (Way("package", 1, 2, 8), Way("package", min(2, cores()), 1, 8)):
            measured = plain.measure(FLIGHTS, way, 0.2)
            assert measured.per_s > 100
            assert 0 < measured.cpu_ms < 10
            assert measured.p50_ms > 0


def test_worker_that_cannot_load_is_reported(examples: Path) -> None:
    """A worker that dies ends the measurement instead of hanging it."""
    with pytest.raises(WorkerDied), limit([replace(FLIGHTS, version=99)], examples):
        pytest.fail("it never loads")

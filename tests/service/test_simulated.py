"""Simulated execution times: the model's own answers, no sooner than declared, for models of every kind."""

from __future__ import annotations

from pathlib import Path

import package_builders as build
import pytest
import ragged_models as ragged
from live_server import live_server
from samegraph_service.simulated import Pace, Paced, paced_cost
from samegraph_transforms.pack import pack
from samegraph_transforms.runtime import PackageRuntime


def test_answers_are_the_models_own_and_the_rest_of_the_time_is_waited(tmp_path: Path) -> None:
    """Thirty-two rows in 200 ms, whatever the machine takes for them."""
    runtime = PackageRuntime.load(pack(build.draft(), build.samples(), tmp_path))
    waited: list[float] = []
    paced = Paced(runtime, Pace(0.1, 0.1 / 32), waited.append)
    feeds = paced.collate([(1.5, "moss"), (2.0, "fern")])
    assert [a.tolist() for a in paced.run(feeds)] == [a.tolist() for a in runtime.run(feeds)]
    assert 0 < waited[0] <= 0.1 + 0.2 / 32


@pytest.mark.parametrize("shaped", [False, True])
def test_the_cost_is_known_before_the_first_request(shaped: bool) -> None:
    """As after a warm-up, and for rows of any shape."""
    cost = paced_cost(Pace(0.1, 0.1 / 32), 32, shaped=shaped)
    assert cost.predict_s(32) == pytest.approx(0.2)
    assert cost.predict_s(1) == pytest.approx(0.1 + 0.1 / 32)


def test_models_whose_rows_differ_in_shape_can_be_paced_too(tmp_path: Path) -> None:
    """They answer, and their queues can be read."""
    samples = ragged.samples()
    pack(ragged.draft(), samples, tmp_path)
    with live_server(tmp_path, execution={"simulated_batch_s": 0.02}) as server:
        assert server.get("/metrics").status == 200
        name = next(iter(server.service.repository.routes.models))
        assert server.predict(name, samples[0].body).status == 200
        assert server.metric("samegraph_degraded") >= 1

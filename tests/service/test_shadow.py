"""Shadows: copies run behind everything else, never fail or count for a caller, and their difference is measured."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import odd_packages as odd
import package_builders as build
import pytest
from fakes import Doubler, FakeLoop, ManualPool, Recorder
from live_server import LiveServer, live_server
from prometheus_client.parser import text_string_to_metric_families
from samegraph_service.batching import BatchPolicy, Entry, Work
from samegraph_service.cost import CostModel
from samegraph_service.device import Device, Lane
from samegraph_service.experiments.assignment import draw, fraction
from samegraph_service.experiments.routing_file import FILE_NAME
from samegraph_service.experiments.shadow import DIFFERENCE_BUCKETS, REASONS, Shadows, Tally, _differences, _flips
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.pack import pack

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"
GOOD = {"instances": [{"size": 1.5, "kind": "moss"}, {"size": -2.25, "kind": "oak"}]}


def done(work: Work) -> None:
    """Take a finished work."""


class TwoLanes:
    """A device of `slots` slots with a caller's lane and a background lane on models that double numbers."""

    def __init__(self, slots: int = 1, per_row_s: float = 0.001) -> None:
        self.loop, self.pool = FakeLoop(), ManualPool()
        self.device = Device(self.loop, slots, 0.0, self.pool)
        self.callers = self._lane("callers", per_row_s)
        self.shadow = self._lane("shadow", per_row_s)
        self.shadow.background, self.shadow.background_s = True, 0.005
        self.device.add(self.callers)
        self.device.add(self.shadow)

    @staticmethod
    def _lane(name: str, per_row_s: float) -> Lane:
        cost = CostModel()
        for n in (1, 2, 4):
            cost.observe(n, n * per_row_s)
        return Lane(name, Doubler(), BatchPolicy(32, 0.0), cost, Recorder())

    def put(self, lane: Lane, *values: float) -> None:
        work = Work(len(values), 1e9, False, {}, done)
        entry = Entry(work, 0, [(value,) for value in values])
        work.entries.append(entry)
        self.device.put(lane, entry)

    def ran(self, lane: Lane) -> list[list[float]]:
        assert isinstance(lane.runner, Doubler)
        return lane.runner.batches

    def turn(self) -> None:
        """Let the loop run, then one execution, then the loop."""
        self.loop.run()
        if self.pool.jobs:
            self.pool.run_one()
        self.loop.run()


class TestLane:
    def test_it_starts_only_when_no_caller_waits(self) -> None:
        """Whatever came first, callers' rows run first, all of them."""
        two = TwoLanes()
        two.put(two.shadow, 9.0)
        two.put(two.callers, *(float(i) for i in range(40)))
        while sum(len(batch) for batch in two.ran(two.callers)) < 40:
            assert two.ran(two.shadow) == []
            two.turn()
        two.turn()
        assert two.ran(two.shadow) == [[9.0]]

    def test_an_execution_keeps_to_the_predicted_bound(self) -> None:
        """A caller that comes while it runs waits 5 ms at most, as predicted."""
        two = TwoLanes(per_row_s=0.001)
        two.put(two.shadow, *(float(i) for i in range(16)))
        two.turn()
        assert [len(batch) for batch in two.ran(two.shadow)] == [4]
        two.put(two.callers, 1.0)
        two.turn()
        assert len(two.ran(two.callers)) == 1  # before the rest of the shadow's

    def test_it_takes_one_slot_at_most(self) -> None:
        """The other slots stay free for callers."""
        two = TwoLanes(slots=3)
        two.put(two.shadow, *(float(i) for i in range(32)))
        two.loop.run()
        assert two.device.busy_slots == 1

    def test_it_promises_no_caller_anything(self) -> None:
        """What callers are told to wait does not depend on shadows, and a drain has nothing to answer there."""
        two = TwoLanes()
        two.put(two.shadow, *(float(i) for i in range(32)))
        assert two.device.pending_s() == 0
        assert two.device.works() == []


def two_versions(root: Path, routing: str = "models: {plants: {default: 1, shadows: [{version: 2, share: 1}]}}\n") -> Path:
    """Write plants in version 1 and, as version 2, the same with other weights; version 2 is the shadow of all traffic."""
    pack(build.draft(version=1), build.samples(), root)
    stages = build.draft().stages
    other = [stages[0], DraftStage("model", build.classifier(-build.WEIGHTS)), stages[2]]
    pack(build.draft(version=2, stages=other), build.samples(-build.WEIGHTS), root)
    (root / FILE_NAME).write_text(routing)
    return root


def tally(server: LiveServer) -> Tally:
    """Return what was counted beside version 1."""
    found: Tally = server.service.shadows.tallies["plants", 1, 2]
    return found


def settle(server: LiveServer) -> None:
    """Wait until no copy waits or runs."""
    shadows = server.service.shadows
    deadline = time.monotonic() + 20
    while server.run(lambda: shadows.waiting + shadows.running):
        assert time.monotonic() < deadline
        server.run(lambda: None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(two_versions(tmp_path_factory.mktemp("models")), shadow={"max_batch_s": 1}) as live:
        yield live


class TestServer:
    def test_the_difference_is_what_the_two_versions_differ_by(self, server: LiveServer) -> None:
        """Flips of the label and the largest difference of the probabilities, instance by instance, computed here from the weights."""
        rows = [*build.ROWS, {"size": 0, "kind": "moss"}]
        assert server.predict("plants", {"instances": rows}).headers["samegraph-model-version"] == "1"
        settle(server)
        one, two = build.reference(rows), build.reference(rows, -build.WEIGHTS)
        found = tally(server)
        assert (found.compared, found.rows) == (1, len(rows))
        assert found.flips == {"label": int((one["label"] != two["label"]).sum())}
        assert 0 < found.flips["label"] < len(rows)
        apart = np.abs(one["probability"] - two["probability"]).max(axis=1)
        histogram = found.differences["probability"]
        assert histogram.total == pytest.approx(float(apart.sum()), rel=1e-5)
        counts = np.bincount(np.searchsorted(DIFFERENCE_BUCKETS, apart), minlength=len(DIFFERENCE_BUCKETS) + 1)
        assert histogram.counts == counts.tolist()

    def test_copies_are_nobodys_traffic(self, server: LiveServer) -> None:
        """Requests, instances and executions of the shadow version are those that callers asked for: none."""
        for _ in range(5):
            assert server.predict("plants", GOOD).status == 200
        settle(server)
        assert tally(server).compared >= 5
        assert server.metric("samegraph_instances_total", model="plants", version="2") == 0
        assert server.metric("samegraph_requests_total", model="plants", version="2") == 0
        assert server.metric("samegraph_batch_size_count", model="plants", version="2") == 0

    def test_a_request_to_the_shadow_itself_is_not_copied(self, server: LiveServer) -> None:
        """There is nothing to compare it with."""
        before = server.metric("samegraph_shadow_requests_total")
        assert server.predict("plants", GOOD, "/versions/2").headers["samegraph-model-version"] == "2"
        settle(server)
        assert server.metric("samegraph_shadow_requests_total") == before

    def test_the_documented_metrics_are_the_exported_ones(self, server: LiveServer) -> None:
        """Names, types and labels of docs/metrics.md."""
        server.predict("plants", GOOD)
        settle(server)
        documented = {}
        for line in METRICS.read_text(encoding="utf-8").splitlines():
            if line.startswith("| `samegraph_shadow_"):
                name, kind, labels, *_ = [cell.strip() for cell in line.split("|")[1:]]
                documented[name.strip("`")] = (kind, frozenset(re.findall(r"`(\w+)`", labels)))
        exported = {}
        for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
            if family.name.startswith("samegraph_shadow_"):
                name = f"{family.name}_total" if family.type == "counter" else family.name
                exported[name] = (family.type, frozenset(label for sample in family.samples for label in sample.labels) - {"le"})
        assert documented == exported

    def test_the_sample_is_chosen_by_the_request_id(self, tmp_path: Path) -> None:
        """The same ids on every replica: a tenth of them."""
        routing = "models: {plants: {default: 1, shadows: [{version: 2, share: 0.1}]}}\n"
        ids = [f"r{i}" for i in range(120)]
        chosen = [name for name in ids if fraction(draw(b"shadow", name.encode())) < 0.1]
        with live_server(two_versions(tmp_path, routing), shadow={"max_batch_s": 1}) as own:
            for name in ids:
                own.predict("plants", GOOD, **{"x-request-id": name})
            settle(own)
            assert 0 < len(chosen) == tally(own).compared


class TestImages:
    def test_images_go_through_the_shadows_own_item_stage(self, tmp_path: Path) -> None:
        """The same package as shadow differs in nothing, of a raw body and of the parts of a multipart request."""
        odd.pack_tint(tmp_path, 1)
        odd.pack_tint(tmp_path, 2)
        (tmp_path / FILE_NAME).write_text("models: {tint: {default: 1, shadows: [{version: 2, share: 1}]}}\n")
        files = [odd.image_file(seed) for seed in range(3)]
        with live_server(tmp_path, shadow={"max_batch_s": 1}) as own:
            reply = own.request("POST", "/v1/models/tint:predict", files[0], {"content-type": "image/png"})
            assert reply.headers["samegraph-model-version"] == "1"
            parts = b"".join(b"--x\r\ncontent-type: image/png\r\n\r\n%b\r\n" % file for file in files) + b"--x--\r\n"
            assert own.request("POST", "/v1/models/tint:predict", parts, {"content-type": "multipart/form-data; boundary=x"}).status == 200
            settle(own)
            found = own.service.shadows.tallies["tint", 1, 2]
            assert (found.compared, found.rows, found.failed) == (2, 4, 0)
            assert [histogram.counts[0] for histogram in found.differences.values()] == [4] * len(found.differences)
            assert own.metric("samegraph_stage_duration_seconds_count", model="tint", version="2", stage="item") == 0

    def test_a_request_that_failed_or_was_answered_in_part_is_not_copied(self, tmp_path: Path) -> None:
        """There is no whole answer to compare with."""
        odd.pack_tint(tmp_path, 1)
        odd.pack_tint(tmp_path, 2)
        (tmp_path / FILE_NAME).write_text("models: {tint: {default: 1, shadows: [{version: 2, share: 1}]}}\n")
        with live_server(tmp_path, shadow={"max_batch_s": 1}) as own:
            assert own.request("POST", "/v1/models/tint:predict", b"no image", {"content-type": "image/png"}).status == 400
            parts = b"--x\r\n\r\nno image\r\n--x\r\n\r\n%b\r\n--x--\r\n" % odd.image_file(1)
            reply = own.request("POST", "/v1/models/tint:predict", parts, {"content-type": "multipart/form-data; boundary=x"})
            assert (reply.status, reply.headers["samegraph-failed-instances"]) == (200, "1")
            settle(own)
            assert own.service.shadows.tallies == {}


class TestShedding:
    """No copy that is not run goes uncounted, and no caller notices."""

    @pytest.mark.parametrize(
        ("limits", "reason"),
        [({"max_batch_s": 1e-9}, "too_slow"), ({"max_queued_bytes": 1024, "max_batch_s": 1}, "queue_full")],
        ids=["too_slow", "queue_full"],
    )
    def test_what_would_cost_too_much_is_shed(self, tmp_path: Path, limits: dict[str, float], reason: str) -> None:
        """A row that takes longer than the bound, and a body larger than the line."""
        with live_server(two_versions(tmp_path), shadow=limits) as own:
            document = {"instances": GOOD["instances"] * 20}
            assert own.predict("plants", document).status == 200
            settle(own)
            assert tally(own).shed == dict.fromkeys(REASONS, 0) | {reason: 1}
            assert own.metric("samegraph_shadow_shed_total", reason=reason) == 1

    def test_a_shadow_with_other_fields_gets_what_it_knows_or_nothing(self, tmp_path: Path) -> None:
        """Its fields are filled by name; where a value breaks its rules the copy is shed."""
        two_versions(tmp_path)
        fields = [build.draft().fields[0].model_copy(update={"maximum": 2}), build.draft().fields[1]]
        pack(build.draft(version=3, fields=fields), [build.sample("small", build.ROWS[:2])], tmp_path)
        (tmp_path / FILE_NAME).write_text("models: {plants: {default: 1, shadows: [{version: 3, share: 1}]}}\n")
        with live_server(tmp_path, shadow={"max_batch_s": 1}) as own:
            own.predict("plants", {"instances": [build.ROWS[0]]})
            own.predict("plants", {"instances": [build.ROWS[4]]})  # size 7 is over the maximum of version 3
            settle(own)
            found = own.service.shadows.tallies["plants", 1, 3]
            assert (found.compared, found.shed["incompatible"], found.flips) == (1, 1, {"label": 0})

    def test_the_line_is_bounded_and_what_does_not_fit_is_shed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of forty copies in one turn of the loop one is run, three wait and the others are dropped."""
        offered: list[tuple[Any, Any]] = []
        offer = Shadows.offer
        monkeypatch.setattr(Shadows, "offer", lambda _, call, answer: offered.append((call, answer)))
        with live_server(two_versions(tmp_path), shadow={"max_batch_s": 1, "max_queued_requests": 3}) as own:
            own.predict("plants", GOOD)
            own.run(lambda: [offer(own.service.shadows, *offered[0]) for _ in range(40)])
            settle(own)
            assert (tally(own).compared, tally(own).shed["queue_full"]) == (4, 36)

    def test_a_copy_that_waited_too_long_is_shed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of five copies in one turn of the loop those that are still in line when the first is done are too old to matter."""
        offered: list[tuple[Any, Any]] = []
        offer = Shadows.offer
        monkeypatch.setattr(Shadows, "offer", lambda _, call, answer: offered.append((call, answer)))
        with live_server(two_versions(tmp_path), shadow={"max_batch_s": 1, "late_s": 1e-9}) as own:
            own.predict("plants", GOOD)
            own.run(lambda: [offer(own.service.shadows, *offered[0]) for _ in range(5)])
            settle(own)
            found = tally(own)
            assert found.compared + found.shed["late"] == 5
            assert found.shed == dict.fromkeys(REASONS, 0) | {"late": found.shed["late"]}
            assert found.shed["late"] >= 4
            assert own.metric("samegraph_shadow_shed_total", reason="late") == found.shed["late"]

    def test_copies_of_a_version_that_no_route_names_any_more_are_shed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What waits when the version goes is counted, and the line's bytes are given back."""
        offered: list[tuple[Any, Any]] = []
        offer = Shadows.offer
        monkeypatch.setattr(Shadows, "offer", lambda _, call, answer: offered.append((call, answer)))
        with live_server(two_versions(tmp_path), shadow={"max_batch_s": 1}) as own:
            own.predict("plants", GOOD)
            shadows = own.service.shadows

            def fill_and_retire() -> int:
                for _ in range(5):
                    offer(shadows, *offered[0])
                waiting = int(shadows.waiting)
                shadows.retire(own.service.repository.routes.models["plants"].shadows[0].served)
                assert shadows.waiting == 0
                return waiting

            waiting = own.run(fill_and_retire)
            assert waiting == 4
            assert tally(own).shed["retired"] == waiting
            assert own.metric("samegraph_shadow_shed_total", reason="retired") == waiting

    def test_a_server_that_stops_runs_no_copies(self, tmp_path: Path) -> None:
        """After the drain began callers are answered still, and nothing is done beside that."""
        with live_server(two_versions(tmp_path), shadow={"max_batch_s": 1}) as own:
            own.run(own.service.shadows.stop)
            assert own.predict("plants", GOOD).status == 200
            assert (tally(own).compared, tally(own).shed["stopping"]) == (0, 1)


class TestDifferences:
    def test_of_numbers(self) -> None:
        """The largest of each row; equal is 0, also for NaN and infinities, and what cannot be compared is infinite."""
        inf, nan = np.inf, np.nan
        mine = np.array([[1.0, 2.0], [nan, inf], [nan, 1.0], [inf, 1.0]], dtype=np.float32)
        other = np.array([[1.5, 1.0], [nan, inf], [1.0, 1.0], [-inf, 1.0]], dtype=np.float32)
        assert _differences(mine, other) == [1.0, 0.0, inf, inf]
        assert _differences(mine, other[:, :1]) == [inf] * 4
        assert _differences(np.zeros((2, 0)), np.zeros((2, 0))) == [0.0, 0.0]

    def test_of_labels(self) -> None:
        """The first of each row: of a list of labels, the likeliest."""
        mine = np.array([["a", "b"], ["a", "b"]], dtype=object)
        assert _flips(mine, np.array([["a", "c"], ["b", "a"]], dtype=object)) == 1
        assert _flips(np.array([1, 2, 3]), np.array([1, 0, 3])) == 1

"""Rows of different lengths on the device: lines by shape, the oldest first, each row its own answer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ragged_models as models
from fakes import FakeLoop, ManualPool, Recorder
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import LiveServer, live_server
from samegraph_service.batching import BatchPolicy, Entry, Work, joined
from samegraph_service.cost import CostModel, ShapedCost, cost_model
from samegraph_service.device import Device, Lane
from samegraph_service.errors import CallerGone
from samegraph_transforms.errors import InputError
from samegraph_transforms.pack import pack
from samegraph_transforms.ragged import ShapePlan
from samegraph_transforms.runtime import PackageRuntime


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    pack(models.draft(), models.samples(), root)
    pack(models.draft(name="tokens", tokens=True), models.samples(name="tokens", tokens=True), root)
    return root


@pytest.fixture(scope="module")
def runtime(repository: Path) -> PackageRuntime:
    from samegraph_transforms.package import read_package

    return PackageRuntime.load(read_package(repository / "sentences" / "1"))


class Watched:
    """A real runtime that writes down the lengths of every batch and what they were padded to."""

    def __init__(self, runtime: PackageRuntime) -> None:
        assert runtime.shapes is not None
        self.shapes: ShapePlan = runtime.shapes
        self.batches: list[tuple[int, list[int]]] = []
        self._runtime = runtime

    def collate(self, items: Sequence[Any]) -> dict[str, np.ndarray]:
        feeds = self._runtime.collate(items)
        self.batches.append((feeds["ids"].shape[1], [len(item[0]) for item in items]))
        return feeds

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self._runtime.run(feeds)


class Bench:
    """One lane of the sentence classifier on a loop and threads that move when told."""

    def __init__(self, runtime: PackageRuntime, *, slots: int = 1, max_batch_size: int = 8) -> None:
        self.loop = FakeLoop()
        self.pool = ManualPool()
        self.device = Device(self.loop, slots, 0.0, self.pool)
        self.runner = Watched(runtime)
        self.seen = Recorder()
        self.cost = cost_model((), self.runner.shapes.elements)
        self.lane = Lane("sentences/1", self.runner, BatchPolicy(max_batch_size), self.cost, self.seen)
        self.device.add(self.lane)

    def send(self, *sentences: Sequence[int], partial: bool = False) -> Work:
        work = Work(len(sentences), 1e9, partial, {}, lambda work: self.device.unwatch(self.lane, work))
        self.device.watch(self.lane, work)
        entry = Entry(work, 0, [(np.asarray(ids, dtype=np.int64),) for ids in sentences], 10 * len(sentences))
        work.entries.append(entry)
        self.device.put(self.lane, entry)
        return work

    def run(self) -> None:
        self.loop.run()
        while self.pool.jobs:
            self.pool.run_one()
            self.loop.run()


def of(*lengths: int) -> list[list[int]]:
    return [models.sentence(n, seed) for seed, n in enumerate(lengths)]


def check(work: Work, sentences: Sequence[Sequence[int]]) -> None:
    answers = joined(work.in_order())[0]
    assert len(answers) == len(sentences)
    for ids, answer in zip(sentences, answers, strict=True):
        np.testing.assert_allclose(answer, models.scores(ids), rtol=1e-4, atol=1e-5)


# --- batches -----------------------------------------------------------------------------------------------------------


def test_rows_of_one_bucket_share_an_execution_and_the_bucket_that_waited_longest_goes_first(runtime: PackageRuntime) -> None:
    """Six callers with six lengths take three executions, in the order their first rows came."""
    bench = Bench(runtime)
    sentences = of(3, 9, 4, 2, 16, 5)
    works = [bench.send(ids) for ids in sentences]
    bench.run()
    assert bench.runner.batches == [(4, [3, 4, 2]), (16, [9, 16]), (8, [5])]
    for work, ids in zip(works, sentences, strict=True):
        check(work, [ids])


def test_a_rare_length_does_not_wait_for_company(runtime: PackageRuntime) -> None:
    """However many rows of another length come after it, a row is in the next execution when it is the oldest."""
    bench = Bench(runtime, max_batch_size=2)
    bench.send(*of(3))
    bench.loop.run()  # the slot is taken
    rare = bench.send(*of(16))
    for _ in range(10):
        bench.send(*of(4))
    bench.pool.run_one()
    bench.loop.run()
    bench.pool.run_one()
    bench.loop.run()
    assert rare.finished
    assert bench.runner.batches[:2] == [(4, [3]), (16, [16])]


def test_idle_slots_take_different_lengths(runtime: PackageRuntime) -> None:
    """Two slots run two lengths at once instead of each half of one."""
    bench = Bench(runtime, slots=2)
    for length in (4, 4, 8, 8):
        bench.send(*of(length))
    bench.run()
    assert bench.runner.batches == [(4, [4, 4]), (8, [8, 8])]


def test_one_request_may_hold_every_length(runtime: PackageRuntime) -> None:
    """Its rows run with those of their own length and come back in order."""
    bench = Bench(runtime)
    sentences = of(3, 9, 4, 4, 1, 16, 3)
    work = bench.send(*sentences)
    bench.run()
    assert bench.runner.batches == [(4, [3, 4, 4, 3]), (16, [9, 16]), (1, [1])]
    check(work, sentences)


def test_a_row_that_is_too_long_fails_alone(runtime: PackageRuntime) -> None:
    """With `partial` its neighbours are answered; without it the request fails and nothing of it is run."""
    bench = Bench(runtime)
    partial = bench.send(*of(3, 17, 9), partial=True)
    strict = bench.send(*of(3, 17, 9))
    assert strict.finished
    bench.run()
    assert isinstance(strict.failure, InputError)
    assert (strict.failure.instance, strict.failure.field) == (1, "ids")
    assert list(partial.errors) == [1]
    assert [part.start for part in partial.in_order()] == [0, 2]
    assert bench.runner.batches == [(4, [3]), (16, [9])]
    assert (bench.lane.queue.rows, bench.lane.queue.bytes) == (0, 0)


def test_a_caller_who_leaves_is_gone_from_every_line(runtime: PackageRuntime) -> None:
    """Rows of one work wait in several lines; all of them stop counting at once."""
    bench = Bench(runtime)
    gone, kept = bench.send(*of(3, 9, 5)), bench.send(*of(9))
    gone.fail(CallerGone("gone"))
    assert (bench.lane.queue.rows, bench.lane.queue.bytes) == (1, 10)
    bench.run()
    assert bench.runner.batches == [(16, [9])]
    check(kept, of(9))


def test_what_a_value_makes_numpy_raise_is_the_rows_own_failure(runtime: PackageRuntime) -> None:
    """A row without a shape cannot take the loop with it."""
    bench = Bench(runtime)
    work = Work(2, 1e9, True, {}, lambda _: None)
    entry = Entry(work, 0, [(None,), (np.asarray(models.sentence(4)),)])
    bench.device.put(bench.lane, entry)
    bench.run()
    assert list(work.errors) == [0]
    assert [part.start for part in work.in_order()] == [1]


Plan = list[tuple[list[int], bool]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 18), min_size=1, max_size=5), st.booleans()), max_size=12),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_every_row_gets_its_own_answer_whatever_came_with_it(runtime: PackageRuntime, plan: Plan, slots: int, size: int) -> None:
    """Property: over any requests, lengths, cancellations, slots and sizes: right answers, right refusals, nothing left behind."""
    bench = Bench(runtime, slots=slots, max_batch_size=size)
    works = []
    for number, (lengths, cancel) in enumerate(plan):
        sentences = [models.sentence(max(1, n), number) for n in lengths]
        work = bench.send(*sentences, partial=True)
        works.append((work, sentences))
        if cancel:
            work.fail(CallerGone("gone"))
        if number % 3 == 0:
            bench.loop.run()
    bench.run()
    for work, sentences in works:
        assert work.finished
        if work.failure is None:
            assert set(work.errors) == {i for i, ids in enumerate(sentences) if len(ids) > 16}
            if len(work.errors) < len(sentences):
                check(work, [ids for ids in sentences if len(ids) <= 16])
    assert (bench.lane.queue.rows, bench.lane.queue.bytes, bench.device.busy_slots) == (0, 0, 0)
    assert all(len(lengths) <= size for _, lengths in bench.runner.batches)
    assert all(max(lengths) <= padded for padded, lengths in bench.runner.batches)


def test_padding_is_counted_in_elements(runtime: PackageRuntime) -> None:
    """Three and four tokens in a bucket of four: eight elements, one of them padding."""
    bench = Bench(runtime)
    bench.send(*of(3))
    bench.send(*of(4))
    bench.run()
    assert bench.seen.elements == [(8, 1)]


def test_fill_counts_what_differing_lengths_cost_but_only_under_a_backlog(runtime: PackageRuntime) -> None:
    """One of each length is no backlog; when a whole batch waits, an execution that could not be filled from its own line shows as such."""
    bench = Bench(runtime, max_batch_size=4)
    bench.send(*of(4, 8, 16))
    bench.run()
    assert bench.seen.backlog == []
    bench = Bench(runtime, max_batch_size=4)
    bench.send(*of(16, 4, 4, 4, 4, 4))
    bench.run()
    assert bench.runner.batches == [(16, [16]), (4, [4] * 4), (4, [4])]
    assert bench.seen.backlog == [(1, 4), (4, 4)]


# --- time --------------------------------------------------------------------------------------------------------------


def test_each_length_has_its_own_cost_and_an_unseen_one_is_estimated_by_its_size() -> None:
    """A long row does not make short ones look slow; elements bridge what was never measured."""
    cost = ShapedCost(lambda shape: shape, CostModel)
    for n in (1, 2, 4, 8):
        cost.observe_shape(16, n, 0.001 + 16e-4 * n)
        cost.observe_shape(256, n, 0.001 + 256e-4 * n)
    assert cost.of(16).predict_s(4) == pytest.approx(0.001 + 16e-4 * 4)
    assert cost.of(256).predict_s(4) == pytest.approx(0.001 + 256e-4 * 4)
    assert cost.of(64).predict_s(4) == pytest.approx(0.001 + 64e-4 * 4, rel=0.05)
    assert not ShapedCost(lambda shape: shape).of(3).known


def test_only_so_many_lengths_are_kept_apart() -> None:
    """A caller who sends every length there is does not make the server remember them all; the busy ones stay."""
    cost = ShapedCost(lambda shape: shape)
    for shape in range(1, 1000):
        cost.observe_shape(5, 1, 5.0)
        cost.observe_shape(shape, 1, shape)
    assert len(cost._by_shape) == 128
    assert cost.of(5).predict_s(1) == pytest.approx(5.0)


def test_the_prediction_of_what_waits_knows_the_lengths(runtime: PackageRuntime) -> None:
    """A refused caller's hint is right whichever lengths are before him."""
    bench = Bench(runtime)
    cost = bench.cost
    assert isinstance(cost, ShapedCost)
    for length, seconds in ((4, 0.1), (16, 0.4)):
        for n in (1, 8):
            cost.observe_shape(((length,),), n, seconds * n)
    bench.send(*of(4, 4, 16))
    assert bench.device.pending_s() == pytest.approx(0.1 * 2 + 0.4)


# --- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["direct", "asgi"])
def server(request: pytest.FixtureRequest, repository: Path) -> Iterator[LiveServer]:
    with live_server(repository, server={"http": request.param}, execution={"run_slots": 2, "inline_below_s": 0}) as live:
        yield live


def test_every_bucket_is_warm_before_the_version_is_ready(server: LiveServer) -> None:
    """The first caller of any length meets a shape that ran before, and a known cost."""
    lane = server.service.predictor.route("sentences").lane
    assert isinstance(lane.cost, ShapedCost)
    assert {((4,),), ((8,),), ((16,),)} <= set(lane.cost._by_shape)


def test_concurrent_callers_of_all_lengths_each_get_their_own_answer(server: LiveServer) -> None:
    """Sixteen callers, both models, requests of one to four sentences: every score is its own sentence's, and some shared executions."""

    def caller(number: int) -> None:
        chance = random.Random(number)
        for round_ in range(6):
            sentences = [models.sentence(chance.randint(1, 16), number * 100 + round_ * 10 + i) for i in range(chance.randint(1, 4))]
            reply = server.predict("sentences", {"instances": sentences})
            assert reply.status == 200, reply.body
            for ids, prediction in zip(sentences, reply.json()["predictions"], strict=True):
                np.testing.assert_allclose(prediction, models.scores(ids), rtol=1e-4, atol=1e-5)
            ids = sentences[0]
            (prediction,) = server.predict("tokens", {"instances": [{"ids": ids}]}).json()["predictions"]
            np.testing.assert_allclose(prediction["each"], models.each(ids), rtol=1e-4, atol=1e-5)

    before = server.metric("samegraph_batch_size_count", model="sentences")
    rows = server.metric("samegraph_batch_size_sum", model="sentences")
    with ThreadPoolExecutor(16) as callers:
        list(callers.map(caller, range(16)))
    executions = server.metric("samegraph_batch_size_count", model="sentences") - before
    assert executions < server.metric("samegraph_batch_size_sum", model="sentences") - rows
    padding, elements = (server.metric(f"samegraph_{what}_elements_total", model="sentences") for what in ("padding", "input"))
    assert 0 < padding < elements / 2


def test_too_long_an_instance_is_refused_by_field_place_and_limit(server: LiveServer) -> None:
    """The caller learns which instance, which field, and what goes."""
    body = {"instances": [{"ids": models.sentence(3)}, {"ids": models.sentence(40)}]}
    reply = server.predict("sentences", body)
    error = reply.json()
    assert (reply.status, error["code"], error["field"], error["instance"], error["retryable"]) == (400, "wrong_shape", "ids", 1, False)
    assert "has length 40; this model takes at most 16" in error["error"]
    partial = server.predict("sentences", body, "?on_error=partial")
    answer = partial.json()
    assert (partial.status, answer["predictions"][1], answer["errors"][0]["code"]) == (200, None, "wrong_shape")
    np.testing.assert_allclose(answer["predictions"][0], models.scores(models.sentence(3)), rtol=1e-4, atol=1e-5)


def test_v2_tensors_of_any_length_are_served(server: LiveServer) -> None:
    """The Open Inference Protocol carries a length as the second dimension of its tensor."""
    ids = [models.sentence(7), models.sentence(7, 1)]
    body = {"inputs": [{"name": "ids", "datatype": "INT64", "shape": [2, 7], "data": ids}]}
    reply = server.request("POST", "/v2/models/sentences/infer", json.dumps(body), {"content-type": "application/json"})
    assert reply.status == 200, reply.body
    (output,) = reply.json()["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), [models.scores(i) for i in ids], rtol=1e-4, atol=1e-5)

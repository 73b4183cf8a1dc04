"""Deadlines and callers who leave while the device is busy: nothing waits in vain, nothing stays behind, nobody else pays."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import odd_packages as odd
import package_builders as build
import pytest
from live_server import LiveServer, Reply, live_server
from raw_http import PATIENCE_S, Wire, request
from samegraph_transforms.pack import pack

ROW = {"size": 1.5, "kind": "moss"}
BODY = json.dumps({"instances": [ROW]}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    repository = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), repository)
    odd.pack_tint(repository)
    with live_server(repository, execution={"run_slots": 1, "inline_below_s": 0}) as live:
        yield live


@contextlib.contextmanager
def busy_device(server: LiveServer) -> Iterator[Future[Reply]]:
    """Keep the one run slot busy until the block ends; gives the answer of the request that occupies it."""
    over = threading.Event()
    server.service.device._pool.submit(over.wait, PATIENCE_S)
    with ThreadPoolExecutor(1) as caller:
        first = caller.submit(server.predict, "plants", BODY)
        until(server, lambda: server.service.device.busy_slots == 1)
        try:
            yield first
        finally:
            over.set()
            first.result()


def until(server: LiveServer, condition: object) -> None:
    """Wait for turns of the server's loop until something is so."""
    for _ in range(20_000):
        if server.run(condition):
            return
    raise AssertionError("it did not come to pass")


def load(server: LiveServer) -> tuple[int, int, int]:
    now = server.run(lambda: server.service.gate.load)
    return now.requests, now.rows, now.bytes


def is_right(reply: Reply) -> bool:
    return reply.status == 200 and reply.json()["predictions"][0]["label"] == build.reference([ROW])["label"][0]


@pytest.mark.parametrize("header", ["x-request-timeout-seconds", "x-deadline-ms"])
@pytest.mark.parametrize(
    "value", ["0", "-1", "-0.0", "nan", "inf", "-inf", "1e999", "", " ", "1 2", "0x10", "1_000", "ten", "1,5", "²", "1;2"]
)
def test_a_deadline_that_is_no_positive_number_is_refused(server: LiveServer, header: str, value: str) -> None:
    """A deadline that is not understood must not be forgotten: the caller relies on it."""
    reply = server.predict("plants", BODY, **{header: value.encode("latin-1", "replace").decode("latin-1")})
    assert (reply.status, reply.json()["code"], reply.json()["retryable"]) == (400, "bad_deadline", False)


@pytest.mark.parametrize("value", ["1e-300", "0.000000001"])
def test_a_deadline_no_execution_could_meet_is_refused_for_good(server: LiveServer, value: str) -> None:
    """Trying again would be in vain, and the answer says so."""
    reply = server.predict("plants", BODY, **{"x-deadline-ms": value})
    assert (reply.status, reply.json()["code"], reply.json()["retryable"]) == (400, "deadline_too_short", False)


@pytest.mark.parametrize("value", ["1e308", "9" * 300, "300000", "+5e3", "5000.", " 5000 "])
def test_a_long_deadline_is_the_servers_own(server: LiveServer, value: str) -> None:
    """However long a caller would wait."""
    assert is_right(server.predict("plants", BODY, **{"x-deadline-ms": value}))


def test_a_slow_moment_does_not_refuse_short_deadlines_for_ever(server: LiveServer) -> None:
    """What the executions before took may be an accident; if all later callers were refused by it, nothing would ever put it right."""
    lane = server.service.repository.routes.resolve("plants")[1].lane
    known = dict(vars(lane.cost))
    for _ in range(50):
        server.run(lane.cost.observe, 1, 5.0)
    assert is_right(server.predict("plants", BODY, **{"x-request-timeout-seconds": "4"}))
    server.run(vars(lane.cost).update, known)


def test_a_deadline_that_passes_in_the_queue_is_answered_while_the_device_is_still_busy(server: LiveServer) -> None:
    """Nobody waits longer than he said, nothing is computed for him, and those with more time get their answers."""
    image = odd.image_file(1)
    before = server.metric("samegraph_expired_requests_total"), server.metric("samegraph_instances_total")
    with ThreadPoolExecutor(24) as callers, busy_device(server) as first:
        short = [callers.submit(server.predict, "plants", BODY, **{"x-deadline-ms": str(50 + 5 * i)}) for i in range(8)]
        headers = {"content-type": "image/png", "x-deadline-ms": "60"}
        short += [callers.submit(server.request, "POST", "/v1/models/tint:predict", image, headers) for _ in range(4)]
        long = [callers.submit(server.predict, "plants", BODY, **{"x-deadline-ms": "20000"}) for _ in range(4)]
        for late in short:
            reply = late.result()
            assert (reply.status, reply.json()["code"], reply.json()["retryable"]) == (504, "deadline_exceeded", True)
        assert not first.done()
        until(server, lambda: server.service.gate.load.requests == 5)
    assert is_right(first.result())
    assert all(is_right(f.result()) for f in long)
    assert server.metric("samegraph_expired_requests_total") == before[0] + 12
    assert server.metric("samegraph_instances_total") == before[1] + 5
    assert load(server) == (0, 0, 0)


def test_callers_who_leave_the_queue_leave_nothing_behind(server: LiveServer) -> None:
    """Two hundred of them, rows and images: their places are free at once, the memory too, and their neighbours are answered."""
    image = odd.image_file(2)
    plants, tint = request(body=BODY), request("/v1/models/tint:predict", image, content_type="image/png")
    before = server.metric("samegraph_cancelled_requests_total")
    with ThreadPoolExecutor(4) as callers, busy_device(server) as first, contextlib.ExitStack() as leaving:
        for i in range(200):
            leaving.enter_context(Wire(server.port)).send(tint if i % 4 else plants)
        staying = [callers.submit(server.predict, "plants", BODY) for _ in range(4)]
        until(server, lambda: server.service.gate.load.requests == 205)
        leaving.close()
        until(server, lambda: server.service.gate.load.requests == 5)
        lanes = [served.lane for routes in server.service.repository.routes.models.values() for served in routes.ready.values()]
        assert sum(lane.queue.rows for lane in lanes) == 4
        assert not first.done()
        waiting: list[Any] = server.run(lambda: [cast(Any, job).args[0] for lane in lanes for job in lane.items])
        assert len(waiting) == 150
        assert not any(work.rows for work in waiting), "images are kept for callers who left"
        entries = server.run(lambda: [entry for lane in lanes for entry in cast(Any, lane.queue)._entries])
        assert sum(len(entry.items) for entry in entries) == 4, "rows are kept for callers who left"
    assert is_right(first.result())
    assert all(is_right(f.result()) for f in staying)
    assert server.metric("samegraph_cancelled_requests_total") == before + 200
    assert load(server) == (0, 0, 0)

"""Under load over real HTTP: refusals before the body, honest hints, repeated requests, callers in turn; both ways in."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import package_builders as build
import pytest
from live_server import LiveServer, Reply, live_server
from raw_http import PATIENCE_S, Wire, request
from samegraph_transforms.manifest import Batching
from samegraph_transforms.pack import pack

ROW = {"size": 1.5, "kind": "moss"}
BODY = json.dumps({"instances": [ROW]}).encode()
OTHER = json.dumps({"instances": [{"size": 2.5, "kind": "fern"}]}).encode()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), models)
    return models


@pytest.fixture(scope="module", params=["direct", "asgi"])
def server(repository: Path, request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    """A server with four places, in which nothing runs while a test holds its only run slot."""
    limits = {"max_requests": 4, "default_deadline_s": 60}
    admission = {"caller_header": "x-tenant", "replay_s": 60, "replay_bytes": 10_000}
    execution = {"run_slots": 1, "inline_below_s": 0}
    with live_server(repository, server={"http": request.param}, limits=limits, admission=admission, execution=execution) as live:
        yield live


class Held:
    """The run slot, held; requests that are sent meanwhile wait."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self._over = threading.Event()
        self._callers = ThreadPoolExecutor(16)

    def __enter__(self) -> Self:
        device = self.server.service.device
        forget_tickets(self.server)
        self.server.run(self._take, device)
        return self

    def _take(self, device: Any) -> None:
        device._idle -= 1
        device._pool.submit(self._wait, device)

    def _wait(self, device: Any) -> None:
        self._over.wait(PATIENCE_S)
        self.server.loop.call_soon_threadsafe(self._give_back, device)

    @staticmethod
    def _give_back(device: Any) -> None:
        device._idle += 1
        device.wake()

    def send(self, body: bytes = BODY, path: str = "", **headers: str) -> Future[Reply]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._callers.submit(self.server.predict, "plants", body, path, **named)

    def until_waiting(self, requests: int) -> None:
        until(lambda: self.server.service.gate.load.requests == requests)

    def let_go(self) -> None:
        self._over.set()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._callers.shutdown(wait=True)


def forget_tickets(server: LiveServer) -> None:
    """Void those of the test before: who holds one is a caller the others leave room for."""
    server.run(server.service.gate.tickets.sweep, math.inf)


def until(condition: Any) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.002)


def is_right(reply: Reply) -> bool:
    return reply.status == 200 and reply.json()["predictions"][0]["label"] == build.reference([ROW])["label"][0]


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_answers_advertise_the_limit_and_refusals_say_when_and_why(server: LiveServer) -> None:
    """429 with whole seconds, milliseconds, and everything a client needs to come back at its own moment."""
    alone = server.predict("plants", BODY, **{"x-tenant": "a"})
    assert alone.headers["ratelimit-policy"] == '"inflight";q=4;qu="concurrent-requests"'
    assert alone.headers["ratelimit"] == '"inflight";r=4;t=0'
    before = server.metric("samegraph_refused_total", reason="requests")
    with Held(server) as held:
        waiting = [held.send(x_tenant="a") for _ in range(4)]
        held.until_waiting(4)
        refusals = [server.predict("plants", BODY, **{"x-tenant": "a", "idempotency-key": f"k{i}"}) for i in range(3)]
        again = server.predict("plants", BODY, **{"x-tenant": "a", "idempotency-key": "k1"})
        held.let_go()
        assert all(is_right(f.result()) for f in waiting)
    for position, refusal in enumerate(refusals):
        document = refusal.json()
        assert (refusal.status, document["code"], document["retryable"], document["spread"]) == (429, "overloaded", True, True)
        assert (document["ticket_position"], document["queue_depth"]) == (position, 4)
        assert document["service_rate_per_s"] > 0
        assert int(refusal.headers["retry-after-ms"]) == document["retry_after_ms"] > 0
        assert int(refusal.headers["retry-after"]) == math.ceil(document["retry_after_ms"] / 1000)
        assert refusal.headers["ratelimit"].startswith('"inflight";r=0;t=')
    assert again.json()["ticket_position"] == 1
    assert server.metric("samegraph_refused_total", reason="requests") == before + 4
    until(lambda: server.metric("samegraph_tickets_waiting") == 3)
    assert is_right(server.predict("plants", BODY, **{"x-tenant": "a", "idempotency-key": "k0"}))
    assert server.metric("samegraph_tickets_waiting") == 2


def test_a_full_server_takes_nothing_of_a_large_upload(server: LiveServer) -> None:
    """A caller who waits for `100 Continue` keeps his 20 MB."""
    with Held(server) as held, Wire(server.port) as wire:
        waiting = [held.send(x_tenant="b") for _ in range(4)]
        held.until_waiting(4)
        wire.send(request(body=None, expect="100-continue", content_length="20000000"))
        reply = wire.reply()
        assert (reply.status, reply.json()["code"]) == (429, "overloaded")
        assert "retry-after" in reply.headers
        assert wire.is_closed()
        held.let_go()
        assert all(is_right(f.result()) for f in waiting)


def test_half_a_body_gives_way(server: LiveServer) -> None:
    """Four uploads that stall keep four places only as long as nobody else wants them."""
    forget_tickets(server)
    wires = [Wire(server.port) for _ in range(4)]
    try:
        for wire in wires:
            wire.send(request(body=None, content_length="100") + b"{")
        until(lambda: server.service.gate.load.requests == 4)
        until(lambda: is_right(server.predict("plants", BODY, **{"x-tenant": "c", "idempotency-key": "impatient"})))
        wires[0].send(BODY.ljust(100)[1:])
        assert wires[0].reply().status == 200
    finally:
        for wire in wires:
            wire.__exit__(None, None, None)
    until(lambda: server.service.gate.lapsed == 0)
    assert server.service.gate.load.requests == 0


def test_a_deadline_that_cannot_be_met_is_refused_with_a_hint(server: LiveServer) -> None:
    """There is a place, but in vain: 429 `deadline_unreachable`, and nothing waits for it."""
    lane = server.service.repository.routes.resolve("plants")[1].lane
    known = dict(vars(lane.cost))
    with Held(server) as held:
        waiting = [held.send(x_tenant="d") for _ in range(2)]
        held.until_waiting(2)
        server.run(vars(lane.cost).update, {"per_row_s": 0.0, "fixed_s": 3.0})
        refusal = server.predict("plants", BODY, **{"x-tenant": "d", "x-deadline-ms": "2000"})
        server.run(vars(lane.cost).update, known)
        held.let_go()
        assert all(is_right(f.result()) for f in waiting)
    assert (refusal.status, refusal.json()["code"]) == (429, "deadline_unreachable")
    assert int(refusal.headers["retry-after-ms"]) >= 1000


@pytest.mark.parametrize(
    ("header", "value"),
    [("samegraph-priority", "urgent"), ("idempotency-key", ""), ("idempotency-key", "x" * 256), ("idempotency-key", "é")],
)
def test_headers_that_cannot_be_understood_are_refused_by_name(server: LiveServer, header: str, value: str) -> None:
    """A priority or key that is not understood must not be forgotten."""
    reply = server.predict("plants", BODY, **{header: value.encode().decode("latin-1")})
    assert (reply.status, reply.json()["code"]) == (400, "bad_header")
    assert header in reply.json()["error"]


# --- repeated requests --------------------------------------------------------------------------------------------------


def counts(server: LiveServer) -> tuple[float, float]:
    return server.metric("samegraph_requests_total", status="200"), server.metric("samegraph_instances_total")


def test_a_repeated_key_joins_the_computation_and_then_gets_the_stored_answer(server: LiveServer) -> None:
    """One computation, counted once, whoever asks again under its key."""
    before = counts(server)
    with Held(server) as held:
        first = held.send(x_tenant="e", idempotency_key="one", x_request_id="first")
        held.until_waiting(1)
        second = held.send(x_tenant="e", idempotency_key='"one"', x_request_id="second")
        until(lambda: server.service.front.repeats.joined == 1 or second.done())
        held.let_go()
        one, two = first.result(), second.result()
    three = server.predict("plants", BODY, **{"x-tenant": "e", "idempotency-key": "one", "x-request-id": "third"})
    assert is_right(one)
    assert one.body == two.body == three.body, "the stored body is that of the one computation, its prediction id too"
    assert [reply.headers.get("samegraph-replayed") for reply in (one, two, three)] == [None, "joined", "stored"]
    assert [reply.headers["x-request-id"] for reply in (one, two, three)] == ["first", "second", "third"]
    assert len({reply.headers["samegraph-prediction-id"] for reply in (one, two, three)}) == 1
    assert counts(server) == (before[0] + 1, before[1] + 1)
    assert server.service.gate.load.requests == 0
    server.service.front.repeats.joined = 0


def test_a_key_stands_for_one_request_of_one_caller(server: LiveServer) -> None:
    """Another body is refused; another caller's key of the same name is another key."""
    assert is_right(server.predict("plants", BODY, **{"x-tenant": "f", "idempotency-key": "two"}))
    reused = server.predict("plants", OTHER, **{"x-tenant": "f", "idempotency-key": "two"})
    assert (reused.status, reused.json()["code"], reused.json()["retryable"]) == (400, "key_reused", False)
    elsewhere = server.predict("plants", BODY, "/versions/1", **{"x-tenant": "f", "idempotency-key": "two"})
    assert elsewhere.json()["code"] == "key_reused"
    other = server.predict("plants", OTHER, **{"x-tenant": "g", "idempotency-key": "two"})
    assert other.status == 200
    assert "samegraph-replayed" not in other.headers


def test_a_failure_is_not_stored(server: LiveServer) -> None:
    """What failed may be tried again under its key."""
    with Held(server) as held:
        late = held.send(x_tenant="h", idempotency_key="three", x_deadline_ms="50")
        assert late.result().json()["code"] == "deadline_exceeded"
    assert is_right(server.predict("plants", BODY, **{"x-tenant": "h", "idempotency-key": "three"}))


def test_who_joins_keeps_the_computation_going_when_the_first_one_leaves(server: LiveServer) -> None:
    """A lost connection costs no work."""
    ran = server.metric("samegraph_instances_total")
    head: dict[str, Any] = {"x_tenant": "i", "idempotency_key": "four"}
    with Held(server) as held:
        with Wire(server.port) as wire:
            wire.send(request(body=BODY, **head))
            held.until_waiting(1)
            second = held.send(**head)
            until(lambda: server.service.front.repeats.joined == 1)
        until(lambda: server.metric("samegraph_cancelled_requests_total") >= 1)
        held.let_go()
        assert is_right(second.result())
    assert server.metric("samegraph_instances_total") == ran + 1
    server.service.front.repeats.joined = 0


def left(server: LiveServer, how: str) -> float:
    return server.metric("samegraph_abandoned_requests_total", how=how)


def test_what_everybody_has_left_goes_on_and_is_found_again(server: LiveServer) -> None:
    """Both callers of a key hang up; who comes back while it runs joins it, who comes later gets the stored answer."""
    ran, kept = server.metric("samegraph_instances_total"), left(server, "kept")
    head: dict[str, Any] = {"x_tenant": "i", "idempotency_key": "five"}
    with Held(server) as held:
        with Wire(server.port) as first, Wire(server.port) as follower:
            first.send(request(body=BODY, **head))
            held.until_waiting(1)
            follower.send(request(body=BODY, **head))
            until(lambda: server.service.front.repeats.joined == 1)
        until(lambda: server.metric("samegraph_abandoned_running_requests") == 1)
        again = held.send(**head)
        until(lambda: server.metric("samegraph_abandoned_running_requests") == 0)
        held.let_go()
        assert is_right(again.result())
    assert again.result().headers["samegraph-replayed"] == "joined"
    head["idempotency_key"] = "seven"
    with Held(server) as held:
        with Wire(server.port) as wire:
            wire.send(request(body=BODY, **head))
            held.until_waiting(1)
        until(lambda: server.metric("samegraph_abandoned_running_requests") == 1)
        held.let_go()
    until(lambda: server.metric("samegraph_abandoned_running_requests") == 0)
    later = server.predict("plants", BODY, **{"x-tenant": "i", "idempotency-key": "seven"})
    assert (is_right(later), later.headers["samegraph-replayed"]) == (True, "stored")
    assert server.metric("samegraph_instances_total") == ran + 2
    assert left(server, "kept") == kept + 2
    server.service.front.repeats.joined = 0


def test_without_a_key_who_has_left_never_runs(server: LiveServer) -> None:
    """Nobody could ask for it again."""
    ran, kept = server.metric("samegraph_instances_total"), left(server, "kept")
    with Held(server) as held:
        with Wire(server.port) as wire:
            wire.send(request(body=BODY, x_tenant="i"))
            held.until_waiting(1)
        until(lambda: server.service.gate.load.requests == 0)
        held.let_go()
    assert (server.metric("samegraph_instances_total"), left(server, "kept")) == (ran, kept)


def test_what_was_left_does_not_outlive_its_deadline(server: LiveServer) -> None:
    """It leaves its queue then, and its place with it."""
    ran = server.metric("samegraph_instances_total")
    head: dict[str, Any] = {"x_tenant": "i", "idempotency_key": "eight", "x_deadline_ms": "2000"}
    with Held(server) as held:
        with Wire(server.port) as wire:
            wire.send(request(body=BODY, **head))
            held.until_waiting(1)
        until(lambda: server.service.gate.load.requests == 0)
        held.let_go()
    assert server.metric("samegraph_abandoned_running_requests") == 0
    assert server.metric("samegraph_instances_total") == ran


@pytest.mark.parametrize("most", [0, 1])
def test_only_so_many_go_on_without_callers(repository: Path, most: int) -> None:
    """Two are left; as many go on as may, the other is dropped unrun."""
    execution = {"run_slots": 1, "inline_below_s": 0}
    with live_server(repository, admission={"max_abandoned": most}, execution=execution) as server, Held(server) as held:
        with Wire(server.port) as one, Wire(server.port) as two:
            for number, wire in enumerate((one, two), 1):
                wire.send(request(body=BODY, idempotency_key=f"key {number}"))
                held.until_waiting(number)
        until(lambda: left(server, "dropped") == 2 - most)
        until(lambda: server.service.gate.load.requests == most)
        assert (left(server, "kept"), server.metric("samegraph_abandoned_running_requests")) == (most, most)
        held.let_go()
        until(lambda: server.service.gate.load.requests == 0)
        assert server.metric("samegraph_instances_total") == most


def test_each_who_joined_is_bound_by_his_own_deadline(server: LiveServer) -> None:
    """The short one is told 504 in time, the long one gets the answer, whichever came first."""
    for short_first in (True, False):
        key = f"six {short_first}"
        deadlines = ("80", "20000") if short_first else ("20000", "80")
        with Held(server) as held:
            first = held.send(x_tenant="j", idempotency_key=key, x_deadline_ms=deadlines[0])
            held.until_waiting(1)
            second = held.send(x_tenant="j", idempotency_key=key, x_deadline_ms=deadlines[1])
            short, long = (first, second) if short_first else (second, first)
            assert short.result().json()["code"] == "deadline_exceeded"
            assert not long.done()
            held.let_go()
            assert is_right(long.result())


def test_stored_answers_are_bounded_in_bytes(server: LiveServer) -> None:
    """The oldest are forgotten first."""
    for i in range(60):
        assert is_right(server.predict("plants", BODY, **{"x-tenant": "k", "idempotency-key": f"many {i}"}))
    assert 0 < server.metric("samegraph_stored_answers_bytes") <= 10_000
    newest = server.predict("plants", BODY, **{"x-tenant": "k", "idempotency-key": "many 59"})
    oldest = server.predict("plants", BODY, **{"x-tenant": "k", "idempotency-key": "many 0"})
    assert newest.headers["samegraph-replayed"] == "stored"
    assert "samegraph-replayed" not in oldest.headers


# --- callers and classes ------------------------------------------------------------------------------------------------


def test_while_others_wait_a_caller_has_half_the_places(server: LiveServer) -> None:
    """Alone he may take all four; beside another two, and he is told so."""
    with Held(server) as held:
        waiting = [held.send(x_tenant="l") for _ in range(3)]
        held.until_waiting(3)
        waiting.append(held.send(x_tenant="m"))
        held.until_waiting(4)
        waiting[3].cancel()
        refusal = server.predict("plants", BODY, **{"x-tenant": "l"})
        assert refusal.status == 429
        assert refusal.headers["ratelimit-policy"].startswith('"inflight";q=2;')
        held.let_go()
        assert all(is_right(f.result()) for f in waiting)


def test_v2_says_priority_and_timeout_in_its_parameters(server: LiveServer) -> None:
    """Microseconds, and classes by number."""

    def infer(**parameters: int) -> Reply:
        inputs = [
            {"name": "size", "datatype": "FP64", "shape": [1], "data": [1.5]},
            {"name": "kind", "datatype": "BYTES", "shape": [1], "data": ["moss"]},
        ]
        return server.request("POST", "/v2/models/plants/infer", json.dumps({"inputs": inputs, "parameters": parameters}))

    assert infer(priority=1, timeout=20_000_000).status == 200
    assert infer(priority=0).status == 200
    with Held(server):
        assert infer(priority=7, timeout=50_000).status == 504


# --- hints over the wire ------------------------------------------------------------------------------------------------


def test_three_hundred_callers_who_obey_over_http(repository: Path) -> None:
    """A burst over real connections: every caller is answered, nine of ten at the moment they were told, and the promises hold.

    Few long batches: what a busy machine adds to each, which no promise can know, is little beside the slack of a quarter of one.
    """
    limits = {"max_requests": 142, "default_deadline_s": 60}  # two batches of 64, and what is kept for interactive requests
    execution = {"run_slots": 1, "simulated_batch_s": 0.4, "simulated_row_s": 0.2 / 64}
    wide = repository.parent / "wide"
    pack(build.draft(batching=Batching(max_batch_size=64)), build.samples(), wide)
    with live_server(wide, limits=limits, execution=execution, admission={"max_hint_s": 3600}) as server:
        assert asyncio.run(burst(server.port, 300)) == [200] * 300
        hits, misses = (server.metric("samegraph_hint_returns_total", result=result) for result in ("hit", "miss"))
        assert hits + misses >= 150
        assert hits / (hits + misses) >= 0.9, (hits, misses)
        close = sum(server.metric("samegraph_hint_error_seconds_bucket", side=side, le="0.5") for side in ("early", "late"))
        assert close >= 0.95 * server.metric("samegraph_hint_error_seconds_count")
        assert server.metric("samegraph_tickets_waiting") == 0
        assert "simulated" in server.get("/readyz").body.decode()
        simulated = server.get("/v1/models/plants/metadata").json()["execution"]["simulated_s"]
        assert simulated == {"batch": 0.4, "row": 0.2 / 64}


async def burst(port: int, jobs: int) -> list[int]:
    """Send so many requests at once, each coming back when it is told to."""

    async def job(number: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            writer.write(request(body=BODY, idempotency_key=f"frame {number}"))
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
            fields = dict(line.split(": ", 1) for line in head[1:] if line)
            await reader.readexactly(int(fields["content-length"]))
            if " 429 " not in head[0]:
                writer.close()
                return int(head[0].split()[1])
            await asyncio.sleep(int(fields["retry-after-ms"]) / 1000)

    return list(await asyncio.gather(*(job(i) for i in range(jobs))))

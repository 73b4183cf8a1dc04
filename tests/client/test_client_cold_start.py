"""A burst that comes before its server: both faces over real sockets, a port that refuses until somebody listens; time is fake."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_time import FakeTime
from samegraph_client import (
    AddressInvalid,
    AsyncClient,
    Client,
    ConnectionFailed,
    Outcome,
    Report,
    RetryPolicy,
    Unreachable,
)
from samegraph_client.dispatch import Answer, Request
from samegraph_client.transport import AsyncHttpxTransport, HttpxTransport
from scripted_server import predicted, scripted_server

N = 30


class Door:
    """Counts refused connections, and has somebody open the port after so many.

    Args:
        opens_after: How many; 0 for never.
        listen: Opens it.
    """

    def __init__(self, opens_after: int = 0, listen: Callable[[], None] = lambda: None) -> None:
        self.refused = 0
        self._opens_after, self._listen = opens_after, listen
        self._lock = threading.Lock()

    def refuse(self) -> None:
        with self._lock:
            self.refused += 1
            if self.refused == self._opens_after:
                self._listen()


class Knocking(HttpxTransport):
    """The client's own transport, watched."""

    def __init__(self, door: Door) -> None:
        super().__init__()
        self._door = door

    def send(self, request: Request, timeout_s: float | None) -> Answer:
        """As the base's."""
        try:
            return super().send(request, timeout_s)
        except Unreachable:
            self._door.refuse()
            raise


class AsyncKnocking(AsyncHttpxTransport):
    """The client's own transport for asyncio, watched."""

    def __init__(self, door: Door) -> None:
        super().__init__()
        self._door = door

    async def send(self, request: Request, timeout_s: float | None) -> Answer:
        """As the base's."""
        try:
            return await super().send(request, timeout_s)
        except Unreachable:
            self._door.refuse()
            raise


#: Sends a burst through one of the faces: (url, door, time, policy, journal).
Face = Callable[..., tuple[list[Outcome], Report]]


def blocking(
    url: str, door: Door, time: FakeTime, policy: RetryPolicy | None = None, journal: Path | None = None
) -> tuple[list[Outcome], Report]:
    """Send a burst through `Client`."""
    with Client(url, policy=policy, transport=Knocking(door), clock=time, sleep=time.sleep) as client:
        results = client.predict_many("m", ({"x": i} for i in range(N)), item_deadline_s=None, journal=journal)
        return list(results), results.report


def awaiting(
    url: str, door: Door, time: FakeTime, policy: RetryPolicy | None = None, journal: Path | None = None
) -> tuple[list[Outcome], Report]:
    """Send a burst through `AsyncClient`."""

    async def send() -> tuple[list[Outcome], Report]:
        async with AsyncClient(url, policy=policy, transport=AsyncKnocking(door), clock=time, sleep=time.asleep) as client:
            results = client.predict_many("m", ({"x": i} for i in range(N)), item_deadline_s=None, journal=journal)
            return [outcome async for outcome in results], results.report

    return asyncio.run(send())


@pytest.fixture(params=[blocking, awaiting], ids=["sync", "async"])
def burst(request: pytest.FixtureRequest) -> Face:
    """Each test runs on both faces."""
    face: Face = request.param
    return face


@pytest.fixture
def time() -> FakeTime:
    """A clock that moves only by sleeping."""
    return FakeTime()


def test_port_that_opens_late_costs_no_item(burst: Face, time: FakeTime) -> None:
    """Fifteen refused connections, then somebody listens: every item is sent once, answered once, and in order."""
    with scripted_server(predicted(1), listening=False) as server:
        door = Door(15, server.listen)
        outcomes, report = burst(server.url, door, time)
    assert [(outcome.index, outcome.value) for outcome in outcomes] == [(index, 1) for index in range(N)]
    assert Counter(str(request.json) for request in server.received) == Counter(str({"instances": [{"x": i}]}) for i in range(N))
    assert len({request.headers["idempotency-key"] for request in server.received}) == N
    assert door.refused == 15
    assert N < report.attempts <= N + 8  # the first window's connections were refused; nobody else's was tried
    assert (report.answered, report.failed, report.unreachable_waits) == (N, 0, 1)
    assert report.readiness_probes >= 15 - 8
    assert 0 < report.unreachable_s <= report.makespan_s


def test_nobody_is_waited_for_without_end(burst: Face, time: FakeTime, tmp_path: Path) -> None:
    """Two minutes, unless told otherwise; every item has its error, and a journal takes them all up again later."""
    with scripted_server(predicted(1), listening=False) as server:
        door = Door()
        outcomes, report = burst(server.url, door, time, journal=tmp_path / "journal")
        assert 120 <= time.now - 1000 <= 122
        assert door.refused <= 200
        assert [outcome.index for outcome in outcomes] == list(range(N))
        for outcome in outcomes:
            assert isinstance(outcome.error, Unreachable)
            assert outcome.error.waited_s == pytest.approx(120, abs=2)
            assert server.url in str(outcome.error)
        assert (report.answered, report.failed, report.errors) == (0, N, {"Unreachable": N})
        assert report.unreachable_s == pytest.approx(120, abs=2)
        server.listen()
        _, again = burst(server.url, door, time, journal=tmp_path / "journal")
        assert (again.answered, again.failed, again.unreachable_waits) == (N, 0, 0)


def test_patience_is_the_policys(burst: Face, time: FakeTime) -> None:
    """Five seconds when it says so."""
    with scripted_server(predicted(1), listening=False) as server:
        outcomes, _ = burst(server.url, Door(), time, RetryPolicy(wait_for_ready_s=5.0))
    assert not any(outcome.ok for outcome in outcomes)
    assert 5 <= time.now - 1000 <= 6


def test_what_no_waiting_can_mend_fails_soon(burst: Face, time: FakeTime) -> None:
    """Somebody who does not speak TLS is there already, and what is no address never will be."""
    with scripted_server(predicted(1)) as server:
        outcomes, report = burst(server.url.replace("http", "https"), Door(), time)
    assert all(isinstance(outcome.error, ConnectionFailed) and not isinstance(outcome.error, Unreachable) for outcome in outcomes)
    assert report.unreachable_waits == 0
    outcomes, report = burst("host-without-scheme", Door(), time)
    assert all(isinstance(outcome.error, AddressInvalid) for outcome in outcomes)
    assert report.attempts == N


def test_single_call_says_soon_what_is_wrong(time: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where nobody listens, and a name that nobody has, are told within seconds: a person waits for it."""
    with (
        scripted_server(predicted(1), listening=False) as server,
        Client(server.url, clock=time, sleep=time.sleep) as client,
        pytest.raises(Unreachable, match=f"no connection to {server.url}/v1/models/m:predict: .*refused") as caught,
    ):
        client.predict("m", {"x": 1})
    assert (caught.value.attempts, caught.value.waited_s) == (5, None)

    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with (
        Client("http://modles.example", clock=time, sleep=time.sleep) as client,
        pytest.raises(Unreachable, match=r"modles\.example.*the name of its host is not known"),
    ):
        client.predict("m", {"x": 1})
    assert time.now - 1000 <= 15


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_patience_that_is_none_is_refused(value: float) -> None:
    """A sentence names the field."""
    with pytest.raises(ValueError, match="wait_for_ready_s must be > 0"):
        RetryPolicy(wait_for_ready_s=value)

"""Many items through one gate, on both faces, against a real HTTP server; time is fake where a server asks to wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest
from fake_time import FakeTime
from samegraph_client import AsyncClient, Client, DeadlineExceeded, Gate, InputRejected, Outcome, RawInputInvalid, Report
from samegraph_client import many as many_module
from samegraph_client.many import READ_AHEAD
from scripted_server import Received, Reply, predicted, refused, scripted_server

Many = Callable[..., tuple[list[Outcome], Report]]


def blocking(url: str, items: object, time: FakeTime | None = None, **options: object) -> tuple[list[Outcome], Report]:
    """Send many through `Client`."""
    faked = {"clock": time, "sleep": time.sleep} if time else {}
    with Client(url, **faked) as client:  # type: ignore[arg-type]
        results = client.predict_many("m", items, **options)  # type: ignore[arg-type]
        return list(results), results.report


def awaiting(url: str, items: object, time: FakeTime | None = None, **options: object) -> tuple[list[Outcome], Report]:
    """Send many through `AsyncClient`."""

    async def call() -> tuple[list[Outcome], Report]:
        faked = {"clock": time, "sleep": time.asleep} if time else {}
        async with AsyncClient(url, **faked) as client:  # type: ignore[arg-type]
            results = client.predict_many("m", items, **options)  # type: ignore[arg-type]
            return [outcome async for outcome in results], results.report

    return asyncio.run(call())


@pytest.fixture(params=[blocking, awaiting], ids=["sync", "async"])
def many(request: pytest.FixtureRequest) -> Many:
    """Each test runs on both faces."""
    face: Many = request.param
    return face


@dataclass
class Counted:
    """Items that know how far they have been read."""

    n: int
    read: int = 0
    most_ahead: int = 0
    handed_out: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[object]:
        for index in range(self.n):
            self.read += 1
            self.most_ahead = max(self.most_ahead, self.read - len(self.handed_out))
            yield {"x": index}


def test_every_item_has_one_outcome_in_order(many: Many) -> None:
    """Refusals and lost connections in between cost attempts, never an item, and the order stays."""
    script = [predicted(0), Reply(drop=True), refused(429, headers={"retry-after-ms": "20"}), predicted(0)]
    with scripted_server(*script) as server:
        outcomes, report = many(server.url, ({"x": n} for n in range(60)))
    assert [outcome.index for outcome in outcomes] == list(range(60))
    assert all(outcome.ok for outcome in outcomes)
    assert (report.items, report.answered, report.failed) == (60, 60, 0)
    assert report.attempts == len(server.received) == 62
    assert report.refusals == 1
    keys = [request.headers["idempotency-key"] for request in server.received]
    assert len(set(keys)) == 60


def test_outcomes_as_they_complete_are_the_same_ones(many: Many) -> None:
    """Without order each outcome still comes once."""
    with scripted_server(Reply(drop=True), predicted(0)) as server:
        outcomes, _ = many(server.url, [{"x": n} for n in range(40)], ordered=False)
    assert sorted(outcome.index for outcome in outcomes) == list(range(40))


def test_a_bad_item_is_its_own_outcome(many: Many) -> None:
    """What the server rejects, or what cannot be sent at all, costs no other item."""

    def answer(body: bytes) -> Reply:
        return refused(400, "x is odd", code="bad", retryable=False) if b'"bad"' in body else predicted(1)

    with scripted_server(predicted(0)) as server:
        server.next_reply = lambda request: (server.received.append(request), answer(request.body))[1]  # type: ignore[method-assign, func-returns-value]
        outcomes, report = many(server.url, [{"x": 1}, {"x": "bad"}, {"x": object()}, {"x": 4}])
    assert [type(outcome.error) for outcome in outcomes] == [type(None), InputRejected, RawInputInvalid, type(None)]
    assert report.errors == {"InputRejected": 1, "RawInputInvalid": 1}
    assert len(server.received) == 3
    with pytest.raises(InputRejected, match="x is odd"):
        _ = outcomes[1].value


def test_items_are_read_lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is read than the window, and the outcomes that wait for an earlier one are bounded too: here the first item is late."""
    monkeypatch.setattr(many_module, "MOST_HELD", 64)
    items = Counted(400)
    late = threading.Event()
    with scripted_server(predicted(0)) as server, Client(server.url, gate=Gate(start=4, most=16)) as client:
        plain = server.next_reply

        def next_reply(request: Received) -> Reply:
            reply = plain(request)
            if b'"x":0}' in request.body:
                late.wait(30)
            elif len(server.received) > 60:
                late.set()
            return reply

        server.next_reply = next_reply  # type: ignore[method-assign]
        for outcome in client.predict_many("m", items):
            items.handed_out.append(outcome.index)
    assert items.handed_out == list(range(400))
    assert 60 <= items.most_ahead <= 64 + 16 + READ_AHEAD


def test_no_items_are_no_outcomes(many: Many) -> None:
    """An empty burst is over at once."""
    outcomes, report = many("http://127.0.0.1:9", [])
    assert (outcomes, report.items, report.attempts_per_item, report.makespan_ratio) == ([], 0, None, None)


def test_items_that_break_give_their_outcomes_first(many: Many) -> None:
    """What reading the items raises comes after the outcomes of those that were read."""

    def items() -> Iterator[object]:
        yield {"x": 1}
        raise OSError("the disk went away")

    seen: list[Report] = []
    with scripted_server(predicted(0)) as server, pytest.raises(OSError, match="the disk went away"):
        many(server.url, items(), progress=seen.append)
    assert seen[-1].answered == 1


def test_async_items_do_not_hold_up_outcomes() -> None:
    """The outcome of the first item comes while the second is still awaited."""

    async def play(url: str) -> list[int]:
        let_go = asyncio.Event()

        async def items() -> AsyncIterator[object]:
            yield {"x": 0}
            await let_go.wait()
            yield {"x": 1}

        seen = []
        async with AsyncClient(url) as client:
            async for outcome in client.predict_many("m", items()):
                seen.append(outcome.index)
                let_go.set()
        return seen

    with scripted_server(predicted(0)) as server:
        assert asyncio.run(play(server.url)) == [0, 1]


def test_deadline_of_the_burst_ends_every_item(many: Many) -> None:
    """Items that cannot be answered in time are failed outcomes, not missing ones."""
    time = FakeTime()
    with scripted_server(predicted(0), refused(headers={"retry-after": "3600"})) as server:
        outcomes, report = many(server.url, [{"x": n} for n in range(30)], time, deadline_s=100.0, item_deadline_s=None)
    assert [outcome.index for outcome in outcomes] == list(range(30))
    assert report.answered == 1
    assert all(isinstance(outcome.error, DeadlineExceeded) for outcome in outcomes if not outcome.ok)
    assert len(server.received) <= 12


def test_closing_early_cancels_the_rest() -> None:
    """Leaving in the middle sends nothing more, and the client goes on to work."""
    with scripted_server(predicted(0)) as server, Client(server.url) as client:
        with client.predict_many("m", ({"x": n} for n in range(10_000))) as results:
            assert next(results).index == 0
        assert list(results) == []
        assert client.predict("m", {"x": 1}).value == 0
        assert len(server.received) < 100


def test_progress_counts_every_outcome(many: Many) -> None:
    """Progress is told after each outcome, the last time with everything."""
    seen: list[int] = []
    with scripted_server(predicted(0)) as server:
        many(server.url, [{"x": n} for n in range(12)], progress=lambda report: seen.append(report.answered))
    assert seen == list(range(1, 13))

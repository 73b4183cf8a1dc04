"""The client asks a real server how much it takes at once, while its first requests run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import package_builders as build
import pytest
from live_server import LiveServer, live_server
from samegraph_client import AsyncClient, Client
from samegraph_client.dispatch import Event
from samegraph_transforms.pack import pack

ITEMS = [build.ROWS[0]] * 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    """Twenty slots of one row, a second each, for callers that are told apart by a header."""
    pack(build.draft(), build.samples(), tmp_path)
    execution = {"run_slots": 20, "simulated_batch_s": 1.0, "max_batch_size": 1}
    with live_server(tmp_path, execution=execution, limits={"max_requests": 40}, admission={"caller_header": "x-tenant"}) as running:
        yield running


@pytest.mark.parametrize("face", ["sync", "async"])
def test_all_slots_are_at_work_before_the_first_answer(server: LiveServer, face: str) -> None:
    """Though the gate starts with eight, and an answer takes a second."""
    events: list[Event] = []

    async def awaited() -> list[bool]:
        async with AsyncClient(server.url, hooks=[events.append]) as client:
            return [outcome.ok async for outcome in client.predict_many("plants", ITEMS)]

    if face == "sync":
        with Client(server.url, hooks=[events.append]) as client:
            answered = [outcome.ok for outcome in client.predict_many("plants", ITEMS)]
    else:
        answered = asyncio.run(awaited())
    assert answered == [True] * 20
    assert [event.kind for event in events[:20]] == ["sent"] * 20
    assert len([event for event in events if event.kind == "sent"]) == 20


def test_who_asks_is_told_his_own_limit(server: LiveServer) -> None:
    """Nine tenths of the places while he is alone; half of them while somebody else is at work."""
    alone = server.request("GET", "/v2/health/ready", headers={"x-tenant": "a"}).headers
    assert (alone["ratelimit-policy"], alone["ratelimit"]) == ('"inflight";q=36;qu="concurrent-requests"', '"inflight";r=36;t=0')
    with Client(server.url, headers={"x-tenant": "b"}) as client:
        results = client.predict_many("plants", ITEMS * 2)
        next(results)
        shared = server.request("GET", "/v2/health/ready", headers={"x-tenant": "a"}).headers
        assert all(outcome.ok for outcome in results)
    assert shared["ratelimit-policy"].startswith('"inflight";q=20;')

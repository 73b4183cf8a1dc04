"""The gate as numbers, and the fields it follows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samegraph_client.gate import Gate
from samegraph_client.hints import Advertised, advertised


@pytest.mark.parametrize(
    ("policy", "limit", "expected"),
    [
        ('"inflight";q=24;qu="concurrent-requests"', '"inflight";r=3;t=1', Advertised(24, 3)),
        ('"other";q=100;w=60, "places";q=8;qu="concurrent-requests"', '"other";r=1;t=9, "places";r=0;t=1', Advertised(8, 0)),
        (None, '"inflight";r=5', Advertised(None, 5)),
        ('"default";q=100;w=60', '"default";r=50;t=30', None),
        ('"inflight";q=24;qu="concurrent-requests"', None, None),
        ('"inflight";q=24', '"inflight";r=-1', None),
        ("garbage;;;", "100, 50", None),
        ('"inflight";q=0;qu="concurrent-requests"', '"inflight";r=0', Advertised(1, 0)),
    ],
)
def test_only_limits_on_requests_in_flight_are_read(policy: str | None, limit: str | None, expected: Advertised | None) -> None:
    """A quota per minute is not a window."""
    headers = {name: value for name, value in {"ratelimit-policy": policy, "ratelimit": limit}.items() if value is not None}
    assert advertised(headers) == expected


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_header_is_read_without_failing(policy: str, limit: str) -> None:
    """A broken field is no limit, never an exception."""
    said = advertised({"ratelimit-policy": policy, "ratelimit": limit})
    assert said is None or (said.remaining >= 0 and (said.quota is None or said.quota >= 1))


def flown(gate: Gate, n: int) -> Gate:
    """Put so many requests in flight."""
    for _ in range(n):
        gate.sent()
    return gate


def test_window_follows_the_server() -> None:
    """In flight plus what is free, at most the quota; and never so little that an answer's own place is lost."""
    gate = flown(Gate(start=8), 8)
    gate.landed()
    gate.accepted(Advertised(24, 16), 0.0)
    assert gate.limit == 23
    gate.accepted(Advertised(24, 20), 0.0)
    assert gate.limit == 24
    gate.accepted(Advertised(24, 0), 0.0)
    assert gate.limit == 8
    gate.accepted(Advertised(4, 0), 0.0)
    assert gate.limit == 4
    assert gate.follows_server


def test_window_is_learned_from_a_server_that_says_nothing() -> None:
    """One more per answer, a cut per round with a refusal, then one more per round."""
    gate = flown(Gate(start=8), 8)
    for _ in range(8):
        gate.landed()
        gate.accepted(None, 0.0)
        gate.sent()
        gate.sent()
    assert gate.limit == 16
    for _ in range(4):  # all of one round
        gate.landed()
        gate.refused(None, 0.0, 1.0, 2.0)
    assert (gate.limit, gate.cuts, gate.pauses) == (11, 1, 1)
    assert gate.paused_until == 3.0
    gate.landed()
    gate.refused(None, 2.0, 3.0, 1.0)
    assert (gate.limit, gate.cuts) == (7, 2)


def test_unused_window_does_not_grow() -> None:
    """A caller that sends one at a time learns nothing about sixty."""
    gate = Gate(start=8)
    for _ in range(100):
        gate.sent()
        gate.landed()
        gate.accepted(None, 0.0)
    assert gate.limit == 8


def test_free_places_end_a_pause() -> None:
    """A server that refused and then says it has room for us is believed; an answer to something older says nothing."""
    gate = flown(Gate(start=8), 3)
    gate.landed()
    gate.refused(Advertised(24, 0), 0.0, 10.0, 30.0)
    gate.accepted(Advertised(24, 5), 5.0)
    assert not gate.is_open(11.0)
    gate.accepted(Advertised(24, 5), 10.5)
    assert gate.is_open(11.0)


def test_window_is_what_is_answered_in_time() -> None:
    """Refused for want of time, not of places: what was accepted fits; an answer makes room at once, and in time for more."""
    gate = flown(Gate(start=100), 100)
    for _ in range(60):
        gate.landed()
        gate.refused(Advertised(3000, 2900), 0.0, 1.0, 30.0, late=True)
    assert (gate.limit, gate.pauses) == (40, 1)
    assert not gate.is_open(1.0)
    gate.landed()
    gate.accepted(Advertised(3000, 2900), 0.0)
    assert gate.limit == 40
    assert gate.is_open(1.0)
    gate.sent()
    for _ in range(20):
        gate.landed()
        gate.accepted(Advertised(3000, 2900), 1.0)
        gate.sent()
    assert gate.limit == 41
    gate.landed()
    gate.accepted(Advertised(3000, 0), 1.0)
    assert gate.limit == 40  # the server's own figure is the narrower one now


@pytest.mark.parametrize(("start", "most"), [(0, 8), (9, 8)])
def test_impossible_gates_are_refused(start: int, most: int) -> None:
    """A gate lets at least one request through."""
    with pytest.raises(ValueError, match="at least 1"):
        Gate(start, most)

"""A request that comes in pieces behind another one on the same connection is read to its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import package_builders as build
import pytest
from live_server import LiveServer, live_server
from raw_http import Wire, request
from samegraph_transforms.pack import pack

BODY = json.dumps({"instances": [{"size": 1.5, "kind": "moss"}]}).encode()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveServer]:
    pack(build.draft(), build.samples(), tmp_path)
    with live_server(tmp_path, execution={"inline_below_s": 0}) as server:  # so that no answer is there before the next head
        yield server


@pytest.mark.parametrize("half", [0, len(BODY) // 2], ids=["no body yet", "half a body"])
def test_the_rest_of_a_body_is_read_once_its_turn_has_come(live: LiveServer, half: int) -> None:
    """Reading pauses at the head of a request that has to wait; it goes on when the request in front is answered."""
    whole = request(body=BODY)
    split = len(whole) - len(BODY) + half
    with Wire(live.port) as wire:
        wire.send(whole + whole[:split])
        assert wire.reply().status == 200
        wire.send(whole[split:])
        assert wire.reply().status == 200


def test_many_requests_in_pieces_of_any_size_are_all_answered(live: LiveServer) -> None:
    """Whatever borders the pieces have, no request waits for bytes that nobody reads."""
    stream = request(body=BODY) * 300
    size = 1733  # no multiple of a request
    with Wire(live.port) as wire:
        for start in range(0, len(stream), size):
            wire.send(stream[start : start + size])
        assert [wire.reply().status for _ in range(300)] == [200] * 300

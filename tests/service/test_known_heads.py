"""A head that was parsed before is not parsed again: the answer must be the one the parser would have led to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import package_builders as build
import pytest
from live_server import LiveServer, live_server
from raw_http import Wire
from samegraph_service.api import protocol
from samegraph_transforms.pack import pack

PATH = "/v1/models/plants:predict"


def body(size: float) -> bytes:
    return json.dumps({"instances": [{"size": size, "kind": "moss"}]}).encode()


def request(content: bytes, *headers: str, path: str = PATH) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


def head_of(message: bytes) -> bytes:
    return message[: message.find(b"\r\n\r\n") + 4]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), path)
    return path


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[LiveServer]:
    with live_server(repository, limits={"max_body_bytes": 100_000}) as live:
        yield live


def test_the_same_head_with_another_body_gets_that_bodys_answer(server: LiveServer) -> None:
    """What is remembered is the head; the body is read every time."""
    sizes = [1.25, 7.75, 0.25, 7.75]
    expected = [server.predict("plants", {"instances": [{"size": size, "kind": "moss"}]}).json()["predictions"] for size in sizes]
    assert expected[0] != expected[1]
    with Wire(server.port) as wire:
        answers = []
        for size in sizes:
            wire.send(request(body(size)))
            answers.append(wire.reply())
    assert head_of(request(body(1.25))) in protocol._KNOWN_HEADS
    assert [a.json()["predictions"] for a in answers] == expected
    assert len({a.headers["x-request-id"] for a in answers}) == len(sizes)


def test_a_known_request_in_any_two_pieces_is_answered_the_same(server: LiveServer) -> None:
    """Packets end where they like: a piece of a known head is left to the parser."""
    message = request(body(1.5))
    with Wire(server.port) as wire:
        wire.send(message)
        first = wire.reply().json()["predictions"]
        for place in range(1, len(message)):
            wire.send(message[:place], message[place:])
            assert wire.reply().json()["predictions"] == first, place
            wire.send(message)
            assert wire.reply().json()["predictions"] == first, place


def test_known_requests_may_be_pipelined_among_others(server: LiveServer) -> None:
    """Order and boundaries hold, whoever reads the head."""
    known, broken, other = request(body(1.5)), request(b"{"), b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    with Wire(server.port) as wire:
        wire.send(known)
        assert wire.reply().status == 200
        wire.send(known + broken + known + other + known)
        assert [wire.reply().status for _ in range(5)] == [200, 400, 200, 200, 200]
        wire.send(known)
        assert wire.reply().status == 200


def test_refusals_of_a_known_head_come_every_time(server: LiveServer) -> None:
    """A head that leads to an error leads to it again."""
    unknown, large = request(body(1.5), path="/v1/models/none:predict"), request(b" " * 100_001)
    with Wire(server.port) as wire:
        for _ in range(3):
            wire.send(unknown)
            assert wire.reply().status == 404
    for _ in range(3):
        with Wire(server.port) as wire:
            wire.send(large)
            assert wire.reply().status == 413


def test_a_deadline_in_a_known_head_holds(server: LiveServer) -> None:
    """What follows from a head alone is remembered with it, faults included."""
    bad, tiny = (request(body(1.5), f"x-request-timeout-seconds: {value}") for value in ("soon", "1e-9"))
    with Wire(server.port) as wire:
        for message, code in [(bad, "bad_deadline"), (tiny, "deadline_too_short")] * 2:
            wire.send(message)
            assert wire.reply().json()["code"] == code


@pytest.mark.parametrize("header", ["x-request-id: a-1", "traceparent: 00-1-2-01", "idempotency-key: k", "connection: close"])
def test_heads_that_do_not_come_again_are_not_remembered(server: LiveServer, header: str) -> None:
    """A head with an id of its own would only push others out."""
    message = request(body(1.5), header)
    with Wire(server.port) as wire:
        wire.send(message)
        assert wire.reply().status == 200
    assert head_of(message) not in protocol._KNOWN_HEADS


def test_the_memory_of_heads_is_bounded(server: LiveServer) -> None:
    """In number and in the size of each; a caller who sends ever new heads fills nothing."""
    with Wire(server.port) as wire:
        for number in range(protocol.MAX_KNOWN_HEADS + 50):
            wire.send(request(body(1.5), f"x-tag: {number}"))
            assert wire.reply().status == 200
        assert 0 < len(protocol._KNOWN_HEADS) <= protocol.MAX_KNOWN_HEADS
        long = request(body(1.5), "x-tag: " + "x" * protocol.MAX_KNOWN_HEAD_BYTES)
        wire.send(long)
        assert wire.reply().status == 200
    assert head_of(long) not in protocol._KNOWN_HEADS


def test_a_known_head_follows_the_routes(tmp_path: Path) -> None:
    """After a new version is loaded, the same bytes are answered by it."""
    pack(build.draft(), build.samples(), tmp_path)
    with live_server(tmp_path, repository={"keep_versions": 1}) as live, Wire(live.port) as wire:
        versions = []
        for version in (1, 2):
            if version == 2:
                pack(build.draft(version=2), build.samples(), tmp_path)
                live.await_(live.service.repository.sync())
            wire.send(request(body(1.5)))
            wire.reply()
            wire.send(request(body(1.5)))
            versions.append(wire.reply().headers["samegraph-model-version"])
    assert versions == ["1", "2"]

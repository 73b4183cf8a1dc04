"""The access log covers every route, with what each knows, and costs none of them an answer."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import package_builders as build
import pytest
from raw_http import Wire, request
from samegraph_service.api.access import AccessLogged
from samegraph_service.logs import MAX_PATH, AccessLog, LogOutput, json_line
from samegraph_transforms.pack import pack
from server_process import ServerProcess
from starlette.types import Message, Receive, Scope, Send

ASGI = Callable[[Scope, Receive, Send], Any]


@pytest.fixture(params=["direct", "asgi"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    pack(build.draft(), build.samples(), tmp_path)
    server = ServerProcess(tmp_path, SERVER__HTTP=request.param)
    yield server
    server.close()


def test_every_route_has_a_line_with_status_and_code(server: ServerProcess) -> None:
    """Health, metrics, pages, metadata, admin, what nothing answers, and predictions; over both ways in."""
    paths = ["/livez", "/readyz", "/metrics", "/", "/docs", "/v1/models/plants/metadata", "/v1/models/unheard", "/nothing?secret=1"]
    for path in paths:
        server.get(path)
    body = json.dumps({"instances": [{"size": 1.0, "kind": "fern"}]}).encode()
    with Wire(int(server.url.rpartition(":")[2])) as wire:
        wire.send(request("/admin/reload", b"{}"))
        assert wire.reply().status == 401
        wire.send(request(body=body))
        assert wire.reply().status == 200
    assert server.terminate() == 0
    lines = [json.loads(line) for line in server.lines if '"event":"request"' in line]
    assert [(line["method"], line["path"], line["status"], line.get("code")) for line in lines] == [
        *(("GET", path, 200, None) for path in paths[:6]),
        ("GET", "/v1/models/unheard", 404, "unknown_model"),
        ("GET", "/nothing", 404, "no_such_route"),
        ("POST", "/admin/reload", 401, "unauthorized"),
        ("POST", "/v1/models/plants:predict", 200, None),
    ]
    assert all(line["client"] == "127.0.0.1" and line["duration_s"] > 0 for line in lines)
    assert [line["request_bytes"] for line in lines[-2:]] == [2, len(body)]
    assert all(line["response_bytes"] > 0 for line in lines)
    assert all("request_id" in line for line in lines[-4:])  # errors and predictions have one


def noted(app: ASGI, scope: Scope) -> tuple[dict[str, Any], list[Message]]:
    """Run one request through the application and return its line and what was sent."""
    stream = io.StringIO()
    log = AccessLog(LogOutput(stream, json_line, linger_s=0.0))
    log.start()
    ticks = iter([10.0, 10.25])
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    with contextlib.suppress(ZeroDivisionError):
        asyncio.run(AccessLogged(app, log, lambda: next(ticks))(scope, receive, send))
    assert log.stop()
    (line,) = [json.loads(text) for text in stream.getvalue().splitlines()]
    return line, sent


def scope(**changes: Any) -> Scope:
    """Return the scope of a plain request."""
    return {"type": "http", "method": "GET", "path": "/x", "headers": [], "client": ("10.0.0.1", 5), **changes}


async def in_pieces(_: Scope, receive: Receive, send: Send) -> None:
    """Answer in three pieces."""
    await send({"type": "http.response.start", "status": 206, "headers": [(b"x-request-id", b"abc")]})
    for piece in (b"a", b"bc", b""):
        await send({"type": "http.response.body", "body": piece, "more_body": bool(piece)})


async def falls_over(_: Scope, receive: Receive, send: Send) -> None:
    """Raise before anything was answered."""
    raise ZeroDivisionError


def test_an_answer_in_pieces_is_one_line_with_its_size() -> None:
    """Bytes add up, the id is the answer's, and what was sent is untouched."""
    line, sent = noted(in_pieces, scope(headers=[(b"content-length", b"12")]))
    assert (line["status"], line["response_bytes"], line["request_bytes"], line["request_id"]) == (206, 3, 12, "abc")
    assert line["duration_s"] == 0.25
    assert len(sent) == 4


def test_an_application_that_falls_over_is_noted_as_500() -> None:
    """The server answers 500 for it, so that is what the log says."""
    line, _ = noted(falls_over, scope())
    assert (line["status"], line["level"]) == (500, "error")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"path": "/" + "x" * 5000}, {"path": "/" + "x" * (MAX_PATH - 1)}, id="endless path"),
        pytest.param({"headers": [(b"content-length", b"\xb2")]}, {"request_bytes": None}, id="no number"),
        pytest.param({"headers": [(b"content-length", b"9" * 5000)]}, {"request_bytes": None}, id="endless number"),
        pytest.param({"client": None}, {"client": None}, id="unix socket"),
    ],
)
def test_what_a_caller_makes_up_stays_within_bounds(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    """Odd heads cost neither the line nor the request."""
    line, _ = noted(in_pieces, scope(**changes))
    assert {name: line.get(name) for name in expected} == expected

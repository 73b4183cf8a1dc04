"""What hostile traffic may cost in memory, log and metrics: no more after two thousand requests than after two hundred."""

from __future__ import annotations

import http.client
import json
import logging
import random
from collections.abc import Iterator

import odd_packages as odd
import package_builders as build
import pytest
from live_server import LiveServer, live_server
from raw_http import PATIENCE_S
from samegraph_transforms.pack import pack

MEGABYTE = 1_000_000
REQUESTS = 2_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    repository = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), repository)
    odd.pack_tint(repository)
    odd.pack_lists(repository)
    with live_server(repository, limits={"max_body_bytes": MEGABYTE + 1000}) as live:
        yield live


def padded(text: bytes) -> bytes:
    """Return text with blanks that make it a megabyte."""
    return text + b" " * (MEGABYTE - len(text))


NOISE = random.Random(3).randbytes(MEGABYTE)
PART = b"--edge\r\n\r\n" + NOISE[:100_000] + b"\r\n"
BAD = [
    ("POST", "/v1/models/nope:predict", NOISE, "application/json", 404),
    ("POST", "/nowhere", NOISE, "application/json", 404),
    ("PUT", "/v1/models/plants:predict", NOISE, "application/json", 405),
    ("POST", "/v1/models/plants:predict", NOISE, "image/png", 415),
    ("POST", "/v1/models/plants:predict", NOISE, "application/json", 400),
    ("POST", "/v1/models/plants:predict", padded(b'{"instances": [{"size": "x"}]}'), "application/json", 400),
    ("POST", "/v1/models/plants:predict", b'{"instances": [{"size": 1, "kind": "%b"}, 1]}' % (b"x" * MEGABYTE), "application/json", 400),
    ("POST", "/v1/models/lists:predict", b'{"instances": [[%b"x"]]}' % (b"1.5," * 240_000), "application/json", 400),
    ("POST", "/v2/models/lists/infer", padded(b'{"inputs": []}'), "application/json", 400),
    ("POST", "/v1/models/tint:predict", NOISE, "image/png", 400),
    ("POST", "/v1/models/tint:predict", odd.image_file(1)[:-20] + NOISE[: MEGABYTE - 2000], "image/png", 400),
    ("POST", "/v1/models/tint:predict", PART * 9 + b"--edge--\r\n", "multipart/form-data; boundary=edge", 400),
    ("POST", "/v1/models/plants:predict", NOISE * 2, "application/json", 413),
]  # fmt: skip


def send_bad(server: LiveServer, n: int) -> None:
    rng = random.Random(n)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    for _ in range(n):
        method, path, body, content_type, status = rng.choice(BAD)
        try:
            connection.request(method, path, body, {"content-type": content_type})
        except ConnectionError:
            assert status == 413  # refused before all of it was sent
        response = connection.getresponse()
        response.read()
        assert response.status == status, (path, content_type)
    connection.close()


def test_two_thousand_refused_megabytes_leave_no_memory_behind(server: LiveServer) -> None:
    """After the first two hundred the process has the size it will have."""
    send_bad(server, REQUESTS // 10)
    before = server.metric("process_resident_memory_bytes")
    send_bad(server, REQUESTS)
    assert server.metric("process_resident_memory_bytes") - before < 50 * MEGABYTE
    assert server.metric("samegraph_in_flight_bytes") == 0


def series(server: LiveServer) -> int:
    """Return how many time series of ours there are."""
    return sum(line.startswith("samegraph_") for line in server.get("/metrics").body.decode().splitlines())


def test_nothing_a_caller_can_name_becomes_a_label(server: LiveServer) -> None:
    """Models, versions, methods, media types, deadlines, ids: whatever is sent, the second hundred adds no series to the first."""
    counts = []
    for round_ in range(2):
        for i in range(100):
            name = f"{round_}x{i}"
            server.request(f"M{i % 7}", f"/v1/models/{name}:predict")
            for method in ("POST", "PUT", "GET", "HEAD"):
                server.request(method, f"/v1/models/{name}:predict", b"{}", {"x-request-id": name, "x-deadline-ms": name})
            server.request("POST", f"/v1/models/plants/versions/{round_}{i}:predict", b"{}")
            server.request("POST", f"/v1/models/plants/labels/{name}:predict", b"{}")
            server.request("POST", f"/v2/models/plants/versions/{round_}{i}/infer?{name}={name}", b"{}")
            server.request("POST", "/v1/models/plants:predict", b"{}", {"content-type": f"{name}/{name}; {name}={name}"})
            server.request("POST", "/v1/models/plants:predict", json.dumps({"instances": [{name: 1}]}))
            server.get(f"/{name}")
        counts.append(series(server))
    assert counts[0] == counts[1]
    body = server.get("/metrics").body
    assert b"0x99" not in body
    assert b"1x99" not in body


def test_bad_bodies_are_told_to_their_senders_and_not_to_the_log(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    """A line for each would let callers fill the log, or wait for it."""
    with caplog.at_level(logging.DEBUG):
        send_bad(server, 50)
        for body in (b"hello", b"--edge", b"--edge\r\n: x\r\n\r\n", b"--edge\r\nno colon\r\n\r\n", b"--edge\nx"):
            reply = server.request("POST", "/v1/models/tint:predict", body, {"content-type": "multipart/form-data; boundary=edge"})
            assert reply.status == 400
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []

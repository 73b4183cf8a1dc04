"""`samegraph serve` from the outside: what it says when it cannot start, and when it can."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import package_builders as build
import pytest
from live_server import LiveServer, live_server
from samegraph_transforms.pack import pack
from server_process import ServerProcess

SAMEGRAPH = str(Path(sys.executable).with_name("samegraph"))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SAMEGRAPH, "serve", *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """The address stands in the message, and the exit code is the documented one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("--repository", str(tmp_path), "--port", port)
    assert result.returncode == 1
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("SAMEGRAPH_SERVER__PORT", "99999", "less than or equal to 65535"),
        ("SAMEGRAPH_SERVER__PROT", "1", "there is no such setting"),
        ("SAMEGRAPH_SEVER__PORT", "1", "unknown setting SAMEGRAPH_SEVER__PORT"),
        ("SAMEGRAPH_EXECUTION__DEVICE", "tpu", "cpu"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_accepted(variable: str, value: str, says: str) -> None:
    """Nothing misspelt is silently ignored."""
    result = run(**{variable: value})
    assert result.returncode == 2
    assert variable in result.stderr.replace("\n", "")
    assert says in " ".join(result.stderr.split())


def test_a_secret_is_never_printed() -> None:
    """Not even when it is the thing that is wrong."""
    result = run(SAMEGRAPH_ADMIN__TOKEN="hunter2")
    assert result.returncode == 2
    assert "SAMEGRAPH_ADMIN__TOKEN" in result.stderr
    assert "hunter2" not in result.stderr


def test_a_missing_repository_is_listened_for_and_not_a_crash(tmp_path: Path) -> None:
    """The mount may come later; readiness says what is missing until then."""
    server = ServerProcess(tmp_path / "later", announced="samegraph listens on ")
    try:
        assert server.get("/livez")[0] == 200
        status, body = server.get("/readyz")
        assert status == 503
        assert b"no model repository" in body or b"no model in" in body
        assert server.terminate() == 0
        assert not any("Traceback" in line or "never retrieved" in line for line in server.lines)
    finally:
        server.close()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveServer]:
    pack(build.draft(), build.samples(), tmp_path)
    with live_server(tmp_path) as server:
        yield server


def test_short_waits_are_measured_and_not_rounded_away(live: LiveServer) -> None:
    """A request of some hundred microseconds takes more than zero seconds."""
    for _ in range(20):
        live.predict("plants", {"instances": [{"size": 1.5, "kind": "moss"}]})
    total = live.metric("samegraph_request_duration_seconds_sum")
    assert 0 < total < 20
    assert live.metric("samegraph_request_duration_seconds_bucket", le="5e-05") < 20
    assert live.metric("samegraph_stage_duration_seconds_sum", stage="queue") > 0


def test_balancers_may_ask_with_head(live: LiveServer) -> None:
    """Health routes answer HEAD with the status and no body."""
    for path in ("/livez", "/readyz"):
        reply = live.request("HEAD", path)
        assert (reply.status, reply.body) == (200, b"")


def test_a_verb_the_models_do_not_have_is_404_and_says_which_they_have(live: LiveServer) -> None:
    """TF Serving's other verbs are not there."""
    reply = live.request("POST", "/v1/models/plants:classify", b"{}")
    assert (reply.status, reply.json()["code"]) == (404, "no_such_route")
    assert ":predict" in reply.json()["error"]


def test_a_broken_body_on_another_route_is_the_one_document(live: LiveServer) -> None:
    """FastAPI's own validation speaks our words."""
    reply = live.request("POST", "/v2/repository/index", b"{", {"content-type": "application/json"})
    assert (reply.status, reply.json()["code"], reply.json()["field"]) == (400, "malformed_json", None)

"""The peers of the speed table: what they are pinned to, how they are installed, started, accounted for and ended."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.native import compiled
from benchmarks.peers import install
from benchmarks.processes import MARK, Processes
from benchmarks.servers import PEERS, SERVERS, Server, ServerFailed, running
from benchmarks.workloads import FLIGHTS, TREES, Workload

ROOT = Path(__file__).resolve().parents[2]
#: What every contender must have in the same version, or the comparison is between libraries.
SHARED = ("onnxruntime", "numpy", "pillow", "msgspec")


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


# --- pins and installing ------------------------------------------------------------------------------------------------------------------


def lines(name: str, file: str) -> list[str]:
    return (PEERS / name / file).read_text().splitlines()


@pytest.mark.parametrize("name", install.PEERS)
def test_peer_is_pinned_whole(name: str) -> None:
    """Requirements and constraints are exact pins without addresses, and what is asked for is among what is pinned."""
    pinned = install.pins(name)
    assert all(re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.+!]+", line) for line in lines(name, "constraints.txt"))
    for line in lines(name, "requirements.txt"):
        package, version = re.fullmatch(r"([a-z0-9-]+)(?:\[[a-z,]+\])?==([A-Za-z0-9.+!]+)", line).groups()  # type: ignore[union-attr]
        assert pinned[package] == version
    assert name in pinned


@pytest.mark.parametrize("name", install.PEERS)
def test_peer_runs_the_models_with_our_libraries(name: str) -> None:
    """ONNX Runtime, NumPy, Pillow and msgspec are the ones this project is pinned to; ONNX Runtime is the wheel for the CPU."""
    ours = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pinned = install.pins(name)
    assert {package: pinned[package] for package in SHARED} == {package: ours[package] for package in SHARED}
    assert "onnxruntime-gpu" not in pinned


@pytest.mark.parametrize("name", install.PEERS)
def test_peer_has_an_app_that_compiles(name: str, tmp_path: Path) -> None:
    """Their frameworks are not installed here, so the apps are only compiled; `make bench` runs them."""
    py_compile.compile(str(PEERS / name / "app.py"), cfile=str(tmp_path / "app.pyc"), doraise=True)


def test_every_peer_is_a_server() -> None:
    """A directory below peers/ is in the table."""
    assert set(install.PEERS) <= SERVERS.keys()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Peers and their environments in a directory of the test: one asks for nothing, one for something that no pip understands."""
    for name, asked in (("nothing", ""), ("nonsense", "no requirement at all\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "requirements.txt").write_text(asked or "# nothing\n")
        (tmp_path / name / "constraints.txt").write_text("")
    monkeypatch.setattr(install, "HERE", tmp_path)
    monkeypatch.setattr(install, "INSTALLED", tmp_path / "installed")
    monkeypatch.setattr(install, "PEERS", ("nonsense", "nothing"))
    return tmp_path


def test_one_peer_that_cannot_be_installed_stops_no_other(elsewhere: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The reason is shown, kept for the table and reflected in the exit code; what is up to date is left alone the next time."""
    (elsewhere / "installed").mkdir()
    (elsewhere / "installed" / "nonsense").write_text("a file in the way")
    assert install.missing("nothing") == "not installed: run benchmarks/peers/install.py"
    assert install.main([]) == 1
    assert "nonsense: NOT installed" in capfd.readouterr().err
    assert re.match(r"not installed: .*nonsense", install.missing("nonsense") or "")
    assert install.missing("nothing") is None
    assert install.main(["nothing"]) == 0
    assert capfd.readouterr().out == ""
    (elsewhere / "nothing" / "constraints.txt").write_text("pip==1\n")
    assert install.missing("nothing") == "not installed: run benchmarks/peers/install.py"


def test_reason_is_what_pip_said(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is refused before pip looks for anything, so this environment may stand in for a new one."""

    def ours(place: Path, **_: object) -> None:
        (place / "bin").mkdir(parents=True)
        (place / "bin" / "python").symlink_to(sys.executable)

    monkeypatch.setattr("benchmarks.peers.install.venv.create", ours)
    assert install.main(["nonsense"]) == 1
    assert re.match(r"not installed: .*[Ii]nvalid requirement", install.missing("nonsense") or "")


def test_unknown_peer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message names those there are."""
    with pytest.raises(SystemExit, match="2"):
        install.main(["mosaic"])
    assert "mosec" in capsys.readouterr().err


def test_table_says_why_a_peer_is_not_in_it(elsewhere: Path) -> None:
    """Not installed, or no model it could load: a sentence either way, and none for ours."""
    assert (SERVERS["mosec"].unavailable(FLIGHTS) or "").startswith("flights has no plain form")
    assert SERVERS["samegraph"].unavailable(FLIGHTS) is None
    (elsewhere / "mosec").mkdir()
    for file in ("requirements.txt", "constraints.txt"):
        (elsewhere / "mosec" / file).write_text("")
    assert SERVERS["mosec"].unavailable(TREES) == "not installed: run benchmarks/peers/install.py"


# --- the model that peers share -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def peer_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that peers' apps import, told to serve a model that doubles two columns."""
    column = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n", 2])
    doubled = helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["n", 2])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [column], [doubled])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "model.onnx")
    monkeypatch.setenv("PEER_MODEL", str(tmp_path / "model.onnx"))
    monkeypatch.setenv("PEER_COLUMNS", '["a", "b"]')
    spec = importlib.util.spec_from_file_location("peer_model", PEERS / "model.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_batch_of_requests_is_divided_as_it_was_joined(peer_model: ModuleType) -> None:
    """Requests of one, two and no rows run as one batch and get their own rows back."""
    model = peer_model.Model()
    requests = [
        model.decode(json.dumps({"instances": rows}).encode()) for rows in ([{"a": 1, "b": 2}], [{"b": 4, "a": 3}, {"a": 5, "b": 6}], [])
    ]
    assert model.run(requests) == [[[2.0, 4.0]], [[6.0, 8.0], [10.0, 12.0]], []]
    assert json.loads(model.answer(b'{"instances": [{"a": 0.5, "b": 0}]}')) == {"predictions": [[1.0, 0.0]]}


def test_model_has_the_width_the_benchmark_says(peer_model: ModuleType) -> None:
    """The columns come from the environment, in order."""
    assert peer_model.COLUMNS == ["a", "b"]
    assert not peer_model.IS_IMAGE
    np.testing.assert_array_equal(peer_model.Model().run([[(1.0, 2.0)]])[0], [[2.0, 4.0]])


# --- the floor ----------------------------------------------------------------------------------------------------------------------------

ANSWER = (
    b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 51\r\n\r\n{"predictions": [{"label": 1, "probability": 0.5}]}'
)


@pytest.fixture(scope="module")
def floor() -> Iterator[int]:
    """The floor, on a port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen([compiled(PEERS / "floor.c"), str(port)])
    until(lambda: _accepts(port))
    yield port
    assert process.poll() is None, "it ended while it was tested"
    process.terminate()
    process.wait(10)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def asked(port: int, *parts: bytes, size: int | None = None) -> bytes:
    """Send these parts, and return what comes back: so many bytes, or everything until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        got = b""
        while size is None or len(got) < size:
            piece = connection.recv(1 << 20)
            if not piece:
                break
            got += piece
        return got


def post(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", b"host: x", b"Content-Length: %d" % len(body), *headers, b"", body])


CLOSE = b"connection: close"


@pytest.mark.parametrize(
    ("parts", "answers"),
    [
        pytest.param([post(b"{}", CLOSE)], 1, id="one"),
        pytest.param([post(b"first") + post(b"") + post(b"third", CLOSE)], 3, id="three in one write"),
        pytest.param([bytes([byte]) for byte in post(b"{}") + post(b"ab", CLOSE)], 2, id="byte by byte"),
        pytest.param([post(bytes(3_000_000)), post(b"", CLOSE)], 2, id="a large body"),
        pytest.param([b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"], 2, id="no body, and an old version"),
        pytest.param([post(b"{}", CLOSE) + post(b"{}")], 1, id="nothing after the last"),
    ],
)
def test_floor_answers_each_request_once(floor: int, parts: list[bytes], answers: int) -> None:
    """However requests are cut into packets, each is read whole and answered in turn."""
    assert asked(floor, *parts) == ANSWER * answers


def test_floor_keeps_what_a_slow_reader_is_owed(floor: int) -> None:
    """20,000 requests sent ahead of their answers get 20,000 answers, though nobody reads at first."""
    n = 20_000
    assert asked(floor, post(b"{}") * n, size=n * len(ANSWER)) == ANSWER * n


def test_floor_refuses_what_it_cannot_measure(floor: int) -> None:
    """A body without a length is refused after what came before it was answered."""
    got = asked(floor, post(b"{}") + b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
    assert got.startswith(ANSWER + b"HTTP/1.1 411 ")


# --- processes ----------------------------------------------------------------------------------------------------------------------------


def started(script: str, mark: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", script], env={**os.environ, **({MARK: mark} if mark else {})}, start_new_session=True)


def test_daemon_that_left_its_family_is_still_counted_and_ended(tmp_path: Path) -> None:
    """A process in a session of its own, whose parent has gone, carries the server's mark."""
    told = tmp_path / "pid"
    first = started(f"setsid sh -c 'echo $$ > {told}; exec sleep 600' & exec sleep 600", mark="m1")
    processes = Processes(first.pid, "m1")
    until(lambda: told.exists() and told.read_text().strip() != "")
    daemon = int(told.read_text())
    assert set(processes.living()) == {first.pid, daemon}
    assert processes.pss_bytes() > 0
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    assert processes.living() == [daemon]
    processes.end()
    assert processes.living() == []


def test_process_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing a server started outlives its measurement."""
    monkeypatch.setattr("benchmarks.processes.TERMINATE_S", 0.05)
    deaf = tmp_path / "deaf"
    first = started(f"trap '' TERM; touch {deaf}; while :; do sleep 600; done")
    until(deaf.exists)
    Processes(first.pid).end()
    assert first.wait(10) == -signal.SIGKILL


def test_process_that_covers_its_mark_is_remembered() -> None:
    """Once seen as a child it belongs to the family, though its parent has gone and it never had the mark."""
    first = started("sleep 600 & wait", mark="")
    processes = Processes(first.pid)
    until(lambda: len(processes.living()) == 2)
    (child,) = set(processes.living()) - {first.pid}
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    assert processes.living() == [child]
    processes.end()
    assert processes.living() == []


def test_cpu_of_all_processes_is_counted_even_of_those_that_ended() -> None:
    """The first process only waits for a child that works and ends; what the child used is there."""
    work = "import time\nwhile time.process_time() < 0.4: pass"
    first = started(f"{sys.executable} -c '{work}'; exec sleep 600", mark="m2")
    processes = Processes(first.pid, "m2")
    try:
        until(lambda: processes.cpu_s() >= 0.35)
        until(lambda: len(processes.living()) == 1)
        assert processes.cpu_s() >= 0.35
    finally:
        processes.end()
        first.wait(10)


# --- starting and ending ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    """One request for a model of which there is only a manifest."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "manifest.json").write_text("{}")
    bodies = tmp_path / ".plain" / "rows"
    bodies.mkdir(parents=True)
    (bodies / "0.json").write_text('{"instances": [1]}')
    return replace(TREES, model="m", version=1, home=tmp_path)


SLOW_TO_SERVE = """
import http.server, os, pathlib, sys
refusals = [503, 503]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        pathlib.Path(sys.argv[3]).open("a").write(body.decode() + "\\n")
        self.send_response(refusals.pop() if refusals else 200); self.end_headers()
print(sorted(str(path.relative_to(sys.argv[2])) for path in pathlib.Path(sys.argv[2]).rglob("*")), flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_server_is_ready_when_it_has_answered_a_request(workload: Workload, tmp_path: Path) -> None:
    """A front that is up before its workers are is not ready; it has this model only, and nothing of it is left in the end."""
    heard = tmp_path / "heard"
    command = lambda port, repository: [sys.executable, "-c", SLOW_TO_SERVE, str(port), str(repository), str(heard)]  # noqa: E731
    server = Server("slow", command, "/", lambda _: "/predict", list)
    with running(server, workload, tmp_path / "log") as up:
        assert heard.read_text().splitlines() == ['{"instances": [1]}'] * 3
        assert up.processes.living() == [up.pid]
        assert up.ready_s > 0
        assert "REPOSITORY" in up.command
        assert "PORT" in up.command
    assert up.processes.living() == []
    assert (tmp_path / "log").read_text().splitlines()[0] == "['m', 'm/1', 'm/1/manifest.json']"


def test_server_that_does_not_start_shows_its_last_lines(workload: Workload, tmp_path: Path) -> None:
    """The reason is in the message, not in a file."""
    broken = Server("broken", lambda *_: ["sh", "-c", "echo no such model >&2; exit 3"], "/", lambda _: "/", list)
    with pytest.raises(ServerFailed, match=r"(?s)exit code 3.*no such model"), running(broken, workload, tmp_path / "log"):
        pytest.fail("it never runs")


def test_server_that_never_answers_is_given_up(workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said last is in the message, and it is ended."""
    monkeypatch.setattr("benchmarks.servers.START_S", 0.5)
    silent = Server("silent", lambda *_: ["sleep", "600"], "/", lambda _: "/", list)
    with (
        pytest.raises(ServerFailed, match=r"silent was not ready after 0.5 s; it said .*refused"),
        running(silent, workload, tmp_path / "log"),
    ):
        pytest.fail("it never runs")


def test_error_while_measuring_still_ends_the_server(workload: Workload, tmp_path: Path) -> None:
    """Whatever happens inside, nothing is left."""
    floor = SERVERS["floor"]
    measuring = running(floor, workload, tmp_path / "log")
    up = measuring.__enter__()  # as `with` does it
    assert not measuring.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None), "the interrupt is passed on"
    assert up.processes.living() == []

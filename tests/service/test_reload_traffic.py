"""Versions come, fail and go while callers send: not one request fails, and each answer is that of the version it names."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import odd_packages as odd
import package_builders as build
import pytest
from live_server import LiveServer, live_server
from raw_http import PATIENCE_S
from samegraph_transforms.draft import DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.pack import pack
from samegraph_transforms.package import write_package
from server_process import ServerProcess

CALLERS = 8
ROWS = [{"size": 1.5, "kind": "moss"}, {"size": None, "kind": "oak"}, {"size": 7, "kind": "bamboo"}]
BODY = json.dumps({"instances": ROWS}).encode()


def weights(version: int) -> np.ndarray:
    """Every version has weights of its own, so that an answer shows who computed it."""
    return np.asarray(build.WEIGHTS * np.float32(1 + version / 8), dtype=np.float32)


def probabilities(rows: Any, version: int) -> np.ndarray:
    scores = build.reference(rows)["features"] @ weights(version) + build.BIAS
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def package(version: int, weights_of: int | None = None) -> tuple[PackageDraft, list[GoldenSample]]:
    """Return a version and its golden samples; `weights_of` builds it with the wrong weights."""
    first, _, last = build.draft().stages
    model = DraftStage("model", build.classifier(weights(version if weights_of is None else weights_of)))
    probability = probabilities(build.ROWS, version)
    label = np.array([build.LABELS[i] for i in probability.argmax(axis=1)], dtype=object)
    body = json.dumps({"instances": list(build.ROWS)}).encode()
    sample = GoldenSample("all", "/v1/models/plants:predict", odd.JSON, body, {"label": label, "probability": probability})
    return build.draft(version=version, stages=[first, model, last]), [sample]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    root.mkdir()
    pack(*package(1), root)
    odd.pack_tint(root, 1)
    return root


@pytest.fixture
def server(repository: Path) -> Iterator[LiveServer]:
    with live_server(repository, execution={"run_slots": 2}) as live:
        yield live


class Caller(threading.Thread):
    """Sends requests on one connection until told to stop, and checks every answer against the version it names."""

    def __init__(self, port: int, images: bool) -> None:
        super().__init__()
        self.port = port
        self.images = images
        self.over = threading.Event()
        self.answered = threading.Event()
        self.versions: Counter[int] = Counter()
        self.failure: Exception | None = None

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            while not self.over.is_set():
                self._one(connection)
        except Exception as error:  # noqa: BLE001 - `callers` raises it again
            self.failure = error
        finally:
            self.answered.set()
            connection.close()

    def _one(self, connection: http.client.HTTPConnection) -> None:
        if self.images:
            connection.request("POST", "/v1/models/tint:predict", IMAGE, {"content-type": "image/png"})
        else:
            connection.request("POST", "/v1/models/plants:predict", BODY, odd.JSON)
        response = connection.getresponse()
        document = json.loads(response.read())
        assert response.status == 200, document
        version = int(document["model_version"])
        assert response.headers["samegraph-model-version"] == str(version)
        if self.images:
            assert document["predictions"] == [TINT]
        else:
            got = [p["probability"] for p in document["predictions"]]
            np.testing.assert_allclose(got, probabilities(ROWS, version), rtol=0, atol=2e-7)
        self.versions[version] += 1
        self.answered.set()


IMAGE = odd.image_file(4, size=(640, 480))
TINT = odd.tint(IMAGE)


@contextmanager
def callers(port: int) -> Iterator[list[Caller]]:
    """Let callers send while the block runs; every one must have been answered rightly every time."""
    threads = [Caller(port, images=i % 2 == 1) for i in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        every_caller_answered(threads)
        yield threads
        every_caller_answered(threads)
    finally:
        for thread in threads:
            thread.over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    for thread in threads:
        if thread.failure is not None:
            raise thread.failure


def every_caller_answered(threads: list[Caller]) -> None:
    """Wait until each has had an answer to a request he sent from now on: the second answer from now."""
    for _ in range(2):
        for thread in threads:
            thread.answered.clear()
        for thread in threads:
            assert thread.answered.wait(PATIENCE_S)


def look(server: LiveServer) -> None:
    server.await_(server.service.repository.sync())


def served(server: LiveServer, model: str) -> list[int]:
    return sorted(server.run(lambda: server.service.repository.routes.models[model].ready))


def test_versions_come_and_go_under_traffic(server: LiveServer, repository: Path) -> None:
    """Ten versions of a table model and five of an image model; each takes over and each is used."""
    with callers(server.port) as threads:
        for version in range(2, 12):
            pack(*package(version), repository)
            if version % 2:
                odd.pack_tint(repository, version)
            look(server)
            every_caller_answered(threads)
            if version > 3:
                shutil.rmtree(repository / "plants" / str(version - 2))
                look(server)
        assert served(server, "plants") == [10, 11]
        assert served(server, "tint") == [9, 11]
    plants = sum((t.versions for t in threads if not t.images), Counter[int]())
    tint = sum((t.versions for t in threads if t.images), Counter[int]())
    assert set(plants) == set(range(1, 12))
    assert set(tint) == {1, 3, 5, 7, 9, 11}
    assert server.metric("samegraph_requests_total", status="200") == plants.total() + tint.total()
    assert server.metric("samegraph_in_flight_requests") == 0


def test_a_latest_version_that_goes_away_hands_over_to_the_one_before(server: LiveServer, repository: Path) -> None:
    """Rolling back is removing a directory, and costs no request."""
    pack(*package(2), repository)
    look(server)
    with callers(server.port) as threads:
        for _ in range(5):
            shutil.rmtree(repository / "plants" / "2")
            look(server)
            every_caller_answered(threads)
            pack(*package(2), repository)
            look(server)
            every_caller_answered(threads)
    plants = sum((t.versions for t in threads if not t.images), Counter[int]())
    assert set(plants) == {1, 2}


def test_versions_that_fail_their_proof_take_no_traffic(server: LiveServer, repository: Path) -> None:
    """Tried under load, refused by their golden samples, never seen by a caller."""
    with callers(server.port) as threads:
        for version in range(2, 6):
            draft, samples = package(version, weights_of=version + 1)
            write_package(draft, samples, repository / "plants" / str(version), [])
            look(server)
            every_caller_answered(threads)
        assert server.metric("samegraph_loads_total", result="failure") == 4
        pack(*package(6), repository)
        look(server)
        every_caller_answered(threads)
    plants = sum((t.versions for t in threads if not t.images), Counter[int]())
    assert set(plants) == {1, 6}


def test_a_retired_version_answers_what_it_was_asked_and_is_let_go(server: LiveServer, repository: Path) -> None:
    """Requests that wait for a version when it goes away are answered by it; then nothing is left of it on the device."""
    over = threading.Event()
    for _ in range(2):
        server.service.device._pool.submit(over.wait, PATIENCE_S)
    lane = server.service.repository.routes.resolve("tint")[1].lane
    with ThreadPoolExecutor(6) as senders:
        try:
            waiting = [senders.submit(send_image, server) for _ in range(6)]
            until(server, lambda: server.service.gate.load.requests == len(waiting))
            shutil.rmtree(repository / "tint")
            look(server)
            assert send_image(server) == 404
        finally:
            over.set()
        assert [reply.result() for reply in waiting] == [200] * len(waiting)
    until(server, lambda: lane not in server.service.device._lanes)


def send_image(server: LiveServer) -> int:
    return server.request("POST", "/v1/models/tint:predict", IMAGE, {"content-type": "image/png"}).status


def until(server: LiveServer, condition: Callable[[], bool]) -> None:
    """Wait for turns of the server's loop until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not server.run(condition):
        assert time.monotonic() < deadline, "it did not come to pass"


def test_sighup_looks_at_once(repository: Path) -> None:
    """An operator who cannot wait for the next look sends the signal; callers notice nothing but the new version."""
    process = ServerProcess(repository, REPOSITORY__POLL_S="3600", LOG__ACCESS="false")
    try:
        assert process.url, "\n".join(process.lines)
        with callers(int(process.url.rpartition(":")[2])) as threads:
            pack(*package(2), repository)
            process.process.send_signal(signal.SIGHUP)
            while not any(t.versions[2] for t in threads):
                every_caller_answered(threads)
        assert process.terminate() == 0
    finally:
        process.close()

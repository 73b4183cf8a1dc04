"""Versions that serve are proven again; one that fails is withdrawn only if another can take its place."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import package_builders as build
import pytest
from live_server import LiveServer, live_server
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.pack import pack
from samegraph_transforms.package import write_package
from samegraph_transforms.runtime import PackageRuntime

GOOD = {"instances": [{"size": 1.5, "kind": "moss"}]}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    root.mkdir()
    for version in (1, 2):
        pack(build.draft(version=version), build.samples(), root)
    return root


@pytest.fixture
def server(repository: Path) -> Iterator[LiveServer]:
    with live_server(repository) as live:
        yield live


def spoil(server: LiveServer, repository: Path, version: int) -> None:
    """Make the sessions of a version that serves answer otherwise than its golden samples say, as a device that goes wrong would."""
    wrong = [build.draft().stages[0], DraftStage("model", build.classifier(build.WEIGHTS * 3)), build.draft().stages[2]]
    elsewhere = repository.parent / "wrong" / "plants" / str(version)
    other = PackageRuntime.load(write_package(build.draft(version=version, stages=wrong), build.samples(), elsewhere))
    state = next(s for s in server.service.repository.states() if s.version == version)
    assert state.loaded is not None
    state.loaded.runtime.run = other.run  # type: ignore[method-assign]


def recheck(server: LiveServer) -> None:
    server.await_(server.service.repository.recheck())


def answering(server: LiveServer) -> str:
    return server.predict("plants", GOOD).headers["samegraph-model-version"]


def test_versions_that_pass_go_on_and_the_time_is_told(server: LiveServer) -> None:
    """A check that passes changes nothing but its time."""
    before = server.metric("samegraph_golden_check_timestamp_seconds", version="2")
    recheck(server)
    assert answering(server) == "2"
    assert server.metric("samegraph_golden_check", version="2") == 1
    assert server.metric("samegraph_golden_check_timestamp_seconds", version="2") > before > 1e9
    assert server.get("/readyz").json()["status"] == "ready"


def test_a_version_that_fails_is_withdrawn_when_another_can_take_its_place(server: LiveServer, repository: Path) -> None:
    """The latest version goes wrong; the one before answers, and the failed one is not tried again."""
    spoil(server, repository, 2)
    recheck(server)
    assert answering(server) == "1"
    reply = server.predict("plants", GOOD, "/versions/2")
    assert (reply.status, reply.json()["code"]) == (503, "not_ready")
    assert "do not replay any more: golden sample 'row 0'" in reply.json()["error"]
    server.await_(server.service.repository.sync())
    assert answering(server) == "1"
    assert server.metric("samegraph_model_state", state="failed", version="2") == 1


def test_the_only_version_goes_on_and_the_service_is_degraded(server: LiveServer, repository: Path) -> None:
    """With nothing to take its place, a wrong answer that is told of is better than none; a check that passes again ends it."""
    shutil.rmtree(repository / "plants" / "1")
    server.await_(server.service.repository.sync())
    state = server.service.repository.states()[0]
    assert state.loaded is not None
    right = state.loaded.runtime.run
    spoil(server, repository, 2)
    recheck(server)
    assert answering(server) == "2"
    document = server.get("/readyz").json()
    assert (document["ready"], document["status"]) == (True, "degraded")
    assert "no other version can take its place" in document["degraded"][0]
    assert server.metric("samegraph_golden_check", version="2") == 0
    state.loaded.runtime.run = right  # type: ignore[method-assign]
    recheck(server)
    assert server.metric("samegraph_golden_check", version="2") == 1
    assert server.get("/readyz").json()["status"] == "ready"


def test_two_versions_that_fail_do_not_withdraw_each_other(server: LiveServer, repository: Path) -> None:
    """A version whose own check failed takes nobody's place: the first is withdrawn for the second, the second stays."""
    for version in (1, 2):
        spoil(server, repository, version)
    recheck(server)
    recheck(server)
    assert answering(server) == "2"
    assert server.get("/readyz").json()["status"] == "degraded"


def test_a_version_that_the_routing_file_names_is_never_withdrawn(server: LiveServer, repository: Path) -> None:
    """No other version can stand for a label."""
    (repository / "routing.yaml").write_text("models:\n  plants:\n    labels: {stable: 2}\n")
    server.await_(server.service.repository.sync())
    spoil(server, repository, 2)
    recheck(server)
    routes = server.service.repository.routes.models["plants"]
    assert routes.labels["stable"] in routes.ready
    assert server.get("/readyz").json()["status"] == "degraded"


def test_samples_that_were_changed_are_no_reason_to_doubt_the_answers(server: LiveServer, repository: Path) -> None:
    """The golden files are compared with their digests; when they are others, nothing is concluded."""
    expected = repository / "plants" / "2" / "golden" / "expected.npz"
    expected.chmod(0o644)
    expected.write_bytes(expected.read_bytes()[:-1])
    before = server.service.repository.checks["plants", 2]
    recheck(server)
    assert answering(server) == "2"
    assert server.service.repository.checks["plants", 2] is before


def test_the_timer_checks_by_itself(repository: Path) -> None:
    """With a short period the time of the check moves without anybody asking."""
    with live_server(repository, repository={"path": repository, "recheck_s": 0.05}) as server:
        first = server.service.repository.checks["plants", 2]
        until = time.monotonic() + 30
        while server.service.repository.checks["plants", 2].at <= first.at:
            assert time.monotonic() < until, "no check within 30 s"
            server.get("/readyz")  # gives the server its turn
        assert replace(server.service.repository.checks["plants", 2], at=first.at) == first

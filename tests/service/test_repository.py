"""Versions on disk and versions in service: loaded, failed, replaced, retired, while the others go on answering."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import package_builders as build
import pytest
from live_server import LiveServer, live_server
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.pack import pack
from samegraph_transforms.package import read_package, write_package

GOOD = {"instances": [{"size": 1.5, "kind": "moss"}]}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    root.mkdir()
    pack(build.draft(version=1), build.samples(), root)
    return root


@pytest.fixture
def server(repository: Path) -> Iterator[LiveServer]:
    with live_server(repository) as live:
        yield live


def look(server: LiveServer) -> None:
    """Look at the repository now, and wait until everything found was tried."""
    server.await_(server.service.repository.sync())


def version_of(server: LiveServer) -> str:
    return server.predict("plants", GOOD).headers["samegraph-model-version"]


def states(server: LiveServer) -> dict[str, str]:
    return {v["version"]: v["state"] for v in server.get("/v1/models/plants").json()["model_version_status"]}


def wrong_package(repository: Path, version: int) -> None:
    """Write a package whose graph is not the one its golden samples came from, past `pack`'s own check."""
    wrong = [build.draft().stages[0], DraftStage("model", build.classifier(build.WEIGHTS * 3)), build.draft().stages[2]]
    write_package(build.draft(version=version, stages=wrong), build.samples(), repository / "plants" / str(version), [])


def test_a_new_version_takes_over_and_the_one_before_stays(server: LiveServer, repository: Path) -> None:
    """The latest two are served; the latest answers."""
    assert version_of(server) == "1"
    pack(build.draft(version=2), build.samples(), repository)
    look(server)
    assert version_of(server) == "2"
    assert states(server) == {"1": "AVAILABLE", "2": "AVAILABLE"}


def test_the_third_latest_retires_only_when_two_newer_ones_work(server: LiveServer, repository: Path) -> None:
    """A version that fails displaces nobody."""
    pack(build.draft(version=2), build.samples(), repository)
    wrong_package(repository, 3)
    look(server)
    assert states(server) == {"1": "AVAILABLE", "2": "AVAILABLE", "3": "END"}
    pack(build.draft(version=4), build.samples(), repository)
    look(server)
    assert states(server) == {"2": "AVAILABLE", "3": "END", "4": "AVAILABLE"}


def test_a_version_that_answers_differently_is_not_served_and_says_which_sample(server: LiveServer, repository: Path) -> None:
    """The golden samples decide, on this machine, before any traffic; the reason names sample and tensor."""
    wrong_package(repository, 2)
    look(server)
    assert version_of(server) == "1"
    reply = server.predict("plants", GOOD, "/versions/2")
    assert (reply.status, reply.json()["code"]) == (503, "not_ready")
    assert "golden sample 'row 0'" in reply.json()["error"]
    assert "'probability'" in reply.json()["error"]
    readiness = server.get("/readyz")
    assert (readiness.status, readiness.json()["status"]) == (200, "degraded")
    assert server.metric("samegraph_loads_total", result="failure") == 1
    assert server.metric("samegraph_model_state", state="failed", version="2") == 1


def test_a_failed_version_is_tried_again_only_when_its_files_change(server: LiveServer, repository: Path) -> None:
    """A broken package costs one load, not one at every look."""
    wrong_package(repository, 2)
    look(server)
    look(server)
    assert server.metric("samegraph_loads_total", result="failure") == 1
    shutil.rmtree(repository / "plants" / "2")
    pack(build.draft(version=2), build.samples(), repository)
    look(server)
    assert version_of(server) == "2"


def test_a_damaged_file_is_never_loaded(server: LiveServer, repository: Path) -> None:
    """What the digest does not cover does not run."""
    pack(build.draft(version=2), build.samples(), repository)
    graph = repository / "plants" / "2" / "model.onnx"
    graph.chmod(0o644)
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    look(server)
    assert version_of(server) == "1"
    error = server.predict("plants", GOOD, "/versions/2").json()["error"]
    assert "model.onnx" in error
    assert str(repository) not in error


def test_other_files_under_a_served_number_change_nothing_and_are_reported(server: LiveServer, repository: Path) -> None:
    """A version is immutable; the loaded one goes on answering."""
    before = server.predict("plants", GOOD).headers["samegraph-package-digest"]
    shutil.rmtree(repository / "plants" / "1")
    pack(build.draft(version=1, description="another"), build.samples(), repository)
    look(server)
    assert server.predict("plants", GOOD).headers["samegraph-package-digest"] == before
    assert any("another package" in reason for reason in server.get("/readyz").json()["degraded"])


def test_a_removed_version_leaves_and_the_model_with_its_last(server: LiveServer, repository: Path) -> None:
    """Taking the directory away takes the version out of service."""
    pack(build.draft(version=2), build.samples(), repository)
    look(server)
    shutil.rmtree(repository / "plants" / "2")
    look(server)
    assert version_of(server) == "1"
    shutil.rmtree(repository / "plants")
    look(server)
    assert server.predict("plants", GOOD).status == 404
    assert server.get("/readyz").status == 503


def test_a_link_out_of_the_repository_is_not_followed(server: LiveServer, repository: Path, tmp_path: Path) -> None:
    """Serving never leaves the directory it was given."""
    elsewhere = tmp_path / "elsewhere"
    pack(build.draft(name="outside"), [build.sample("r", build.ROWS, "outside")], elsewhere)
    (repository / "outside").symlink_to(elsewhere / "outside")
    look(server)
    assert server.predict("outside", GOOD).status == 404


def test_a_package_over_the_memory_budget_is_refused_with_its_numbers(repository: Path) -> None:
    """The budget refuses a load; what is served stays."""
    files = read_package(repository / "plants" / "1").manifest.files
    size = sum(entry.bytes for name, entry in files.items() if not name.startswith("golden/"))
    with live_server(repository, repository={"memory_budget_bytes": size * 3 // 2}) as server:
        assert version_of(server) == "1"
        pack(build.draft(version=2), build.samples(), repository)
        look(server)
        assert states(server) == {"1": "AVAILABLE", "2": "END"}
        assert "memory budget" in server.predict("plants", GOOD, "/versions/2").json()["error"]


def test_a_repository_that_goes_away_keeps_its_models_in_service(server: LiveServer, repository: Path) -> None:
    """A mount that blinks is shown as degraded, not as an outage."""
    moved = repository.rename(repository.with_name("gone"))
    look(server)
    assert version_of(server) == "1"
    assert server.get("/readyz").json()["status"] == "degraded"
    moved.rename(repository)
    look(server)
    assert server.get("/readyz").json()["status"] == "ready"


def test_an_empty_repository_is_not_ready_and_says_so(tmp_path: Path) -> None:
    """Readiness is about answering."""
    with live_server(tmp_path) as server:
        reply = server.get("/readyz")
        assert reply.status == 503
        assert "no model" in reply.json()["reasons"][0]
        assert server.get("/livez").status == 200


def test_a_broken_new_model_leaves_a_running_server_ready(server: LiveServer, repository: Path) -> None:
    """A mistake in a shared repository must not take every replica out of its balancer."""
    wrong = [build.draft().stages[0], DraftStage("model", build.classifier(build.WEIGHTS * 3)), build.draft().stages[2]]
    write_package(
        build.draft(name="newcomer", stages=wrong), [build.sample("r", build.ROWS, "newcomer")], repository / "newcomer" / "1", []
    )
    look(server)
    reply = server.get("/readyz")
    assert (reply.status, reply.json()["status"]) == (200, "degraded")
    assert any("newcomer" in reason for reason in reply.json()["degraded"])


def test_a_model_that_is_broken_from_the_start_keeps_the_server_from_being_ready(repository: Path) -> None:
    """A new replica does not take traffic it could not answer like the others."""
    wrong = [build.draft().stages[0], DraftStage("model", build.classifier(build.WEIGHTS * 3)), build.draft().stages[2]]
    write_package(build.draft(name="other", stages=wrong), [build.sample("r", build.ROWS, "other")], repository / "other" / "1", [])
    with live_server(repository) as server:
        reply = server.get("/readyz")
        assert reply.status == 503
        assert "model 'other'" in reply.json()["reasons"][0]


def test_a_repository_that_comes_late_is_waited_for_whole(tmp_path: Path) -> None:
    """What is in the first directory that could be read is what the server was started for."""
    late = tmp_path / "late"
    with live_server(late) as server:
        assert server.get("/readyz").status == 503
        pack(build.draft(), build.samples(), late)
        wrong = [build.draft().stages[0], DraftStage("model", build.classifier(build.WEIGHTS * 3)), build.draft().stages[2]]
        write_package(build.draft(name="other", stages=wrong), [build.sample("r", build.ROWS, "other")], late / "other" / "1", [])
        look(server)
        assert server.get("/readyz").status == 503
        shutil.rmtree(late / "other")
        look(server)
        assert server.get("/readyz").status == 200

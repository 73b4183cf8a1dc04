"""Repositories as people leave them: broken, half copied, full of things that are no models. What works goes on working."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import package_builders as build
import pytest
from live_server import LiveServer, live_server
from samegraph_transforms.pack import pack

GOOD = {"instances": [{"size": 1.5, "kind": "moss"}]}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    pack(build.draft(version=1), build.samples(), root)
    return root


@pytest.fixture(scope="module")
def running(repository: Path) -> Iterator[LiveServer]:
    with live_server(repository) as live:
        yield live


@pytest.fixture
def server(running: LiveServer, repository: Path) -> Iterator[LiveServer]:
    """The server over a repository that holds version 1 of `plants` and, before and after the test, nothing else."""
    yield running
    for entry in [*repository.iterdir(), *(repository / "plants").iterdir()]:
        if entry.name == "plants" or (entry.name == "1" and entry.parent.name == "plants"):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    look(running)
    assert answers(running) == "1"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good version 2, outside the repository."""
    return pack(build.draft(version=2), build.samples(), tmp_path_factory.mktemp("elsewhere")).path


def look(server: LiveServer) -> None:
    server.await_(server.service.repository.sync())


def answers(server: LiveServer) -> str:
    """Return the version that answers a call that names none."""
    reply = server.predict("plants", GOOD)
    assert reply.status == 200
    return reply.headers["samegraph-model-version"]


def state_of(server: LiveServer, version: int) -> str | None:
    """Return state and reason of a version; None when it is not known."""
    known = [v for v in server.get("/v1/models/plants").json()["model_version_status"] if v["version"] == str(version)]
    return f"{known[0]['state']} {known[0]['status']['error_message']}" if known else None


def copy(source: Path, target: Path, names: list[str]) -> None:
    """Copy some entries of a package, as a copy that is not over yet has."""
    target.mkdir(exist_ok=True)
    for name in names:
        entry = source / name
        if entry.is_dir():
            shutil.copytree(entry, target / name)
        else:
            shutil.copy(entry, target / name)


ENTRIES = ["assets", "golden", "manifest.json", "model.onnx", "postprocess.onnx", "preprocess.batch.onnx"]
ORDERS = {
    "alphabet": ENTRIES,
    "backwards": ENTRIES[::-1],
    "model-first": ["model.onnx", *(e for e in ENTRIES if e != "model.onnx")],
    "manifest-first": ["manifest.json", *(e for e in ENTRIES if e != "manifest.json")],
    "manifest-last": [*(e for e in ENTRIES if e != "manifest.json"), "manifest.json"],
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_package_that_is_copied_file_by_file_is_served_when_it_is_whole(
    server: LiveServer, repository: Path, elsewhere: Path, order: str
) -> None:
    """Whatever comes first, and however often the server looks meanwhile, no part of it takes traffic, and the whole does."""
    assert sorted(p.name for p in elsewhere.iterdir()) == ENTRIES
    for name in ORDERS[order]:
        assert answers(server) == "1"
        copy(elsewhere, repository / "plants" / "2", [name])
        look(server)
    assert answers(server) == "2"
    assert state_of(server, 2) == "AVAILABLE "


def test_the_first_package_of_a_model_may_be_copied_file_by_file_too(server: LiveServer, repository: Path, tmp_path: Path) -> None:
    """A model.onnx alone is a bare model, until its manifest says that it is more."""
    draft = build.draft(name="shrubs")
    source = pack(draft, [build.sample("r", build.ROWS, "shrubs")], tmp_path / "other").path
    (repository / "shrubs").mkdir()
    for name in ORDERS["model-first"]:
        copy(source, repository / "shrubs" / "1", [name])
        look(server)
    reply = server.predict("shrubs", GOOD)
    assert (reply.status, server.get("/v1/models/shrubs/metadata").json()["proof"]["proven"]) == (200, True)


def test_a_bare_model_does_not_displace_a_package(server: LiveServer, repository: Path, elsewhere: Path) -> None:
    """Its callers send raw inputs, which a bare model does not take."""
    copy(elsewhere, repository / "plants" / "2", ["model.onnx"])
    look(server)
    assert answers(server) == "1"
    assert "still being copied" in str(state_of(server, 2))


def whole(elsewhere: Path, version: Path) -> Path:
    shutil.copytree(elsewhere, version)
    version.chmod(0o755)
    (version / "manifest.json").unlink()
    return version / "manifest.json"


MANIFESTS = {
    "empty": b"",
    "brace": b"{",
    "list": b"[]",
    "null": b"null",
    "binary": bytes(range(256)),
    "utf-16": "{}".encode("utf-16"),
    "deep": b"[" * 100_000,
    "nan": b'{"format": NaN}',
    "long-number": b'{"format": ' + b"9" * 10_000 + b"}",
    "other-format": b'{"format": 99}',
    "path-out": b'{"format": 1, "name": "../plants", "version": 2}',
    "huge": b'{"a": "' + b"x" * 5_000_000 + b'"}',
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_says_nothing_fails_its_version_alone(server: LiveServer, repository: Path, elsewhere: Path, name: str) -> None:
    """With a reason that names the file; the version before it answers."""
    whole(elsewhere, repository / "plants" / "2").write_bytes(MANIFESTS[name])
    look(server)
    assert answers(server) == "1"
    assert "manifest.json" in str(state_of(server, 2))
    assert len(str(state_of(server, 2))) < 1000


THINGS: dict[str, Callable[[Path], object]] = {
    "directory": Path.mkdir,
    "file": lambda path: path.write_text("x"),
    "link-to-itself": lambda path: path.symlink_to(path.name),
    "link-to-nothing": lambda path: path.symlink_to("nothing"),
    "link-up": lambda path: path.symlink_to(".."),
    "link-out": lambda path: path.symlink_to("/etc"),
    "link-to-a-device": lambda path: path.symlink_to("/dev/zero"),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("file", ["manifest.json", "model.onnx", "golden"])
def test_things_that_are_no_files_fail_their_version_alone(
    server: LiveServer, repository: Path, elsewhere: Path, file: str, thing: str
) -> None:
    """A link is not followed and a pipe is not waited for."""
    version = repository / "plants" / "2"
    shutil.copytree(elsewhere, version)
    version.chmod(0o755)
    shutil.rmtree(version / file) if file == "golden" else (version / file).unlink()
    THINGS[thing](version / file)
    look(server)
    assert answers(server) == "1"
    assert str(state_of(server, 2)).startswith("END failed: ")


@pytest.mark.parametrize("thing", THINGS)
def test_things_that_are_no_versions_are_left_alone(server: LiveServer, repository: Path, elsewhere: Path, thing: str) -> None:
    """Beside them a new version is found and served."""
    THINGS[thing](repository / "plants" / "3")
    THINGS[thing](repository / "odd")
    shutil.copytree(elsewhere, repository / "plants" / "2")
    look(server)
    assert answers(server) == "2"
    assert server.get("/v1/models").json() == {"models": ["plants"]}


def test_names_that_are_no_names_are_left_alone(server: LiveServer, repository: Path, elsewhere: Path) -> None:
    """Each directory is a model or version under one name only, and names cannot lead anywhere."""
    for name in (".hidden", "-dash", "sp ace", "new\nline", "n" * 200, "ünï", "a:b"):
        (repository / name).mkdir()
        shutil.copytree(elsewhere, repository / name / "2")
    for version in ("02", "+2", "2.0", "-2", "٢", "2e0", "99999999999999999999", " 2"):
        copy(elsewhere, repository / "plants" / version, ["model.onnx"])
    look(server)
    assert answers(server) == "1"
    assert server.get("/v1/models").json() == {"models": ["plants"]}
    assert [v["version"] for v in server.get("/v1/models/plants").json()["model_version_status"]] == ["1"]


def test_thousands_of_empty_directories_hold_up_nothing(server: LiveServer, repository: Path, elsewhere: Path) -> None:
    """They are neither models nor versions; the one that is, is found among them."""
    for i in range(2000):
        (repository / f"empty{i}").mkdir()
        (repository / "plants" / str(1000 + i)).mkdir()
    shutil.copytree(elsewhere, repository / "plants" / "2")
    look(server)
    assert answers(server) == "2"
    assert server.get("/v1/models").json() == {"models": ["plants"]}

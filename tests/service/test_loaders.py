"""Tests of samegraph_service.loaders and of how the repository uses them: all CPUs while it starts, then behind the serving."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import package_builders as build
import pytest
from live_server import live_server
from samegraph_service.loaders import NICENESS, SWITCH_INTERVAL_S, Loaders
from samegraph_service.loading import PHASES, Loaded, LoadOptions, load_version
from samegraph_service.repository import Repository
from samegraph_transforms.pack import pack
from server_process import ServerProcess

WAIT_S = 20.0


@pytest.fixture
def loaders() -> Iterator[Loaders]:
    loaders = Loaders(2)
    yield loaders
    loaders.close()


def niceness(_: object = None) -> int:
    """Return the niceness of the calling thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_while_a_server_starts_a_proof_runs_on_all_threads(loaders: Loaders) -> None:
    """Two executions wait for each other, which one thread could not do."""
    barrier = threading.Barrier(2)
    arrived = loaders.pool.submit(lambda: list(loaders.spread(lambda n: (barrier.wait(WAIT_S), n)[1], [1, 2])))
    assert arrived.result(WAIT_S) == [1, 2]


def test_afterwards_loading_is_one_thread_that_stands_back(loaders: Loaders) -> None:
    """The system runs it after the others, and executions of a proof follow each other on it."""
    before = loaders.pool.submit(niceness).result(WAIT_S)
    loaders.stand_back()
    assert loaders.pool.submit(niceness).result(WAIT_S) == (min(19, before + NICENESS) if sys.platform == "linux" else before)
    names = loaders.pool.submit(lambda: set(loaders.spread(lambda _: threading.current_thread().name, range(5))))
    assert len(names.result(WAIT_S)) == 1
    assert niceness() == before


def test_the_interpreter_lock_changes_hands_faster_while_something_loads(loaders: Loaders) -> None:
    """Only once somebody is served, and as before when it is over, whatever happened."""
    before = sys.getswitchinterval()

    def fail() -> None:
        with loaders.loading():
            assert sys.getswitchinterval() == pytest.approx(expected)
            raise KeyError

    expected = before
    with pytest.raises(KeyError):
        fail()
    loaders.stand_back()
    expected = min(before, SWITCH_INTERVAL_S)
    with pytest.raises(KeyError):
        fail()
    assert sys.getswitchinterval() == before


# --- in the repository ---------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models with two versions each."""
    for name in ("birds", "plants"):
        for version in (1, 2):
            samples = [build.sample(s.name, build.ROWS, name) for s in build.samples()[-1:]]
            pack(build.draft(name=name, version=version), samples, tmp_path)
    return tmp_path


OPTIONS = LoadOptions(("CPUExecutionProvider",), 1, "auto", None, 1 << 40, 1 << 20, 1 << 20)


def weight_of(version: Path) -> int:
    """Return the bytes of a package's graphs and weights."""
    return sum(p.stat().st_size for p in version.rglob("*") if p.is_file() and "golden" not in p.parts and p.name != "manifest.json")


class Watched:
    """Loads versions, and knows which were loading at the same time."""

    def __init__(self, together: int = 1) -> None:
        self.budgets: dict[tuple[str, int], int] = {}
        self.most = 0
        self._barrier = threading.Barrier(together)
        self._now = 0
        self._lock = threading.Lock()

    def __call__(self, path: Path, name: str, version: int, options: LoadOptions, left: int) -> Loaded:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.budgets[name, version] = left
        try:
            self._barrier.wait(WAIT_S)
            return load_version(path, name, version, options, left)
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def repository_of(models: Path, load: Watched, options: LoadOptions = OPTIONS) -> Iterator[Repository]:
    """Make a repository that serves nobody."""

    def serve(loaded: Loaded) -> Any:
        return loaded

    repository = Repository(models, keep_versions=2, options=options, serve=serve, retire=lambda _: None, load=load, threads=2)
    yield repository
    repository.close()


def test_models_load_side_by_side_at_the_start(models: Path) -> None:
    """Every model's latest version is being loaded before any of them is ready."""
    watched = Watched(together=2)
    with repository_of(models, watched) as repository:
        asyncio.run(repository.sync())
        assert watched.most == 2
        assert repository.ready_models() == ["birds", "plants"]
        assert repository.loads == {"success": 4, "failure": 0}


def test_later_versions_load_one_after_another(models: Path) -> None:
    """Whoever is served then comes first."""
    watched = Watched()

    async def look_twice(repository: Repository) -> None:
        await repository.sync()
        watched.most = 0
        for name in ("birds", "plants"):
            pack(build.draft(name=name, version=3), [build.sample("all", build.ROWS, name)], models)
        await repository.sync()

    with repository_of(models, watched) as repository:
        asyncio.run(look_twice(repository))
        assert watched.most == 1
        assert [(s.model, s.version) for s in repository.states()] == [("birds", 2), ("birds", 3), ("plants", 2), ("plants", 3)]


def test_versions_that_load_together_share_the_memory_budget(models: Path) -> None:
    """What a version will take counts from the moment its load begins; the sum never exceeds the budget."""
    size = weight_of(models / "birds" / "2")
    options = LoadOptions(("CPUExecutionProvider",), 1, "auto", None, int(size * 1.5), 1 << 20, 1 << 20)
    with repository_of(models, Watched(), options) as repository:
        asyncio.run(repository.sync())
        states = {(s.model, s.version): s for s in repository.states()}
        assert states["birds", 2].state == "ready"
        assert all("memory budget" in s.reason for key, s in states.items() if key != ("birds", 2))


def test_where_the_time_of_a_load_went_is_told(tmp_path: Path) -> None:
    """Every phase is in the metadata and the metrics, and they add up to the whole."""
    pack(build.draft(), build.samples(), tmp_path)
    with live_server(tmp_path) as server:
        loading = server.get("/v1/models/plants/metadata").json()["loading"]
        assert tuple(loading["phases"]) == PHASES
        assert loading["seconds"] > 0
        told = {phase: server.metric("samegraph_load_phase_seconds", model="plants", phase=phase) for phase in PHASES}
        assert sum(told.values()) == pytest.approx(server.metric("samegraph_load_seconds", model="plants"))
        assert told["session"] > 0
        assert told["golden"] > 0


def test_where_the_time_of_a_start_went_is_told(tmp_path: Path) -> None:
    """From the start of the process to the last model, in the log and in the metrics."""
    pack(build.draft(), build.samples(), tmp_path)
    server = ServerProcess(tmp_path)
    try:
        text = server.get("/metrics")[1].decode()
        assert server.terminate() == 0
        (event,) = [line for line in server.events() if line["event"] == "server_started"]
        assert event["ready"] is True
        assert list(event["phases"]) == ["imports", "setup", "loading"]
        assert event["seconds"] == pytest.approx(sum(event["phases"].values()), abs=0.002)
        for phase in event["phases"]:
            assert f'samegraph_start_seconds{{phase="{phase}"}}' in text
    finally:
        server.close()


def test_a_server_imports_nothing_that_only_training_needs(tmp_path: Path) -> None:
    """Neither to start nor to load and answer; each of them would take longer than everything else together."""
    pack(build.draft(), build.samples(), tmp_path)
    server = ServerProcess(tmp_path)
    try:
        maps = Path(f"/proc/{server.process.pid}/maps")
        mapped = maps.read_text() if maps.exists() else ""
        for package in ("sklearn", "pandas", "scipy", "torch", "matplotlib"):
            assert f"/{package}/" not in mapped
    finally:
        server.close()

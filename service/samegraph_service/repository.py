"""The model repository: which versions are on disk, which are served, and why the others are not.

Looks at the directory when told to, loads what is new on the threads of `loaders`, and swaps routes on the event loop in one assignment.
A version that fails never takes traffic and never displaces one that works.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from samegraph_transforms.errors import SamegraphError
from samegraph_transforms.manifest import RawField
from samegraph_transforms.package import list_models, list_versions, read_package

from . import memory
from .errors import Internal, RoutingProblem
from .experiments import routing_file
from .experiments.routing_file import FILE_NAME, NOTHING, RoutingFile
from .loaders import Loaders
from .loading import Check, Loaded, LoadOptions, check_again, load_version
from .logs import get_logger
from .predict import Served
from .routing import ModelRoutes, RouteTable

log = get_logger("samegraph.repository")

State = Literal["loading", "ready", "failed", "unloading", "unloaded"]
Key: TypeAlias = tuple[str, int]
T = TypeVar("T")


_HALF_COPIED = (
    "a bare model.onnx beside packages of the same model is taken for a package that is still being copied; "
    "it is loaded when its manifest.json is there (a bare model needs a name of its own)"
)


class Fingerprint(NamedTuple):
    """What changes when somebody writes into a version's directory.

    Attributes:
        bare: Whether there is no manifest, only a model.onnx.
        files: Hash of the names, times, sizes and inodes of its files.
        bytes: Size of its graphs and weights: everything but the golden samples.
    """

    bare: bool
    files: int
    bytes: int


@dataclass(frozen=True)
class VersionState:
    """One known version.

    Attributes:
        state: Where it stands.
        reason: Why, when it is not ready; a warning when it is.
        fingerprint: Of the files the state was reached with.
        loaded: What was loaded, when ready.
        served: What takes traffic, when ready.
    """

    model: str
    version: int
    state: State
    reason: str
    fingerprint: Fingerprint
    loaded: Loaded | None = None
    served: Served | None = None


class Repository:
    """Keeps the routes in step with the directory. For the event loop's thread, except where stated.

    Args:
        path: The directory.
        keep_versions: Latest versions of each model that are served, besides those that routing.yaml names.
        options: How versions are loaded.
        serve: Makes a loaded version take traffic (registers its queue with the device).
        retire: Stops a version that no route names any more.
        load: Loads one version; replaceable for tests.
        threads: Versions that load at the same time until everything was tried once; afterwards it is one.
        now: Seconds since 1970, for the time of a check.

    Attributes:
        routes: The table in force.
        scanned: Whether the directory was looked at and everything in it tried at least once.
        problem: Why the directory cannot be read, or None.
        routing: The routing file in force.
        routing_problems: Why the file that lies there is not in force; empty when it is.
        checks: (model, version) → the last check of a version that is ready; its loading counts as the first.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_versions: int,
        options: LoadOptions,
        serve: Callable[[Loaded], Served],
        retire: Callable[[Served], None],
        load: Callable[[Path, str, int, LoadOptions, int], Loaded] = load_version,
        threads: int = 1,
        now: Callable[[], float] = time.time,
        on_routes: Callable[[RoutingFile], None] = lambda _: None,
    ) -> None:
        self.path = path
        self._on_routes = on_routes
        self.routes: RouteTable[Served] = RouteTable()
        self.scanned = False
        self.problem: str | None = None
        self.loads = {"success": 0, "failure": 0}
        self.routing: RoutingFile = NOTHING
        self.routing_problems: Sequence[str] = ()
        self.routing_reads = {"success": 0, "failure": 0}
        self._keep = keep_versions
        self._unloaded: set[str] = set()  # models an operator does not want served
        self._loaders = Loaders(threads)
        self._options = replace(options, spread=self._loaders.spread)
        self._serve = serve
        self._retire = retire
        self._load = load
        self._states: dict[Key, VersionState] = {}
        self._expected: set[str] = set()
        self._read_once = False
        self._routing_seen: object = None  # what the routing file was read from, and compared with
        self._routing_gone_stale = False  # the file in force names versions that went away
        self._withdrawn: set[tuple[str, str, str]] = set()
        self._trials: dict[tuple[str, str, str], Callable[[], None]] = {}
        self._loading: dict[Key, int] = {}
        self._now = now
        self.checks: dict[Key, Check] = {}
        self._busy = asyncio.Lock()

    # --- looking ------------------------------------------------------------------------------------------------------

    def states(self) -> list[VersionState]:
        """Return every known version, by model and number."""
        return [self._states[key] for key in sorted(self._states)]

    def ready_models(self) -> list[str]:
        """Return the models that can answer."""
        return sorted(name for name, routes in self.routes.models.items() if routes.default is not None)

    def not_ready(self) -> list[str]:
        """Return a reason for every model that callers count on and that has no ready version.

        Callers count on what was there at the start and on what was ready once. A model that is new to a running server is not
        that yet: while it loads, or when it is broken, the others go on and `warnings` tells of it.
        """
        return [
            f"model {name!r}: " + _why_not_ready(routes)
            for name, routes in sorted(self.routes.models.items())
            if routes.default is None and name in self._expected
        ]

    def warnings(self) -> list[str]:
        """Return what an operator should know although every model answers."""
        found = [
            f"version {s.version} of model {s.model!r}: {s.reason}" for s in self.states() if s.reason and s.state in ("ready", "failed")
        ]
        return [*([self.problem] if self.problem else ()), *self._routing_warnings(), *found]

    def _routing_warnings(self) -> list[str]:
        state = "names what is gone" if self._routing_gone_stale else "is not in force"
        found = [f"{FILE_NAME} {state}: {problem}" for problem in self.routing_problems]
        for name, routes in sorted(self.routes.models.items()):
            for label, version in routes.labels.items():
                if version not in routes.ready:
                    found.append(f"label {label!r} of model {name!r} stands for version {version}: {routes.why_not(version)}")
            if routes.experiment is not None:
                found += routes.experiment.first_unready()
            routing = self.routing.models.get(name)
            for shadow in () if routing is None else routing.shadows:
                version = routing.number(shadow.version, shadow.label) if routing is not None else 0
                if version not in routes.ready:
                    found.append(f"shadow version {version} of model {name!r} sees nothing: {routes.why_not(version)}")
        return found

    async def write_routing(self, text: str, if_revision: str | None) -> RoutingFile:
        """Check a routing file, write it into the repository and put it in force before returning.

        Raises:
            RoutingProblem: It is not valid, or names what the repository does not have.
            RoutingConflict: The file there has another revision than `if_revision`.
            RoutingReadOnly: The repository cannot be written to.
        """
        async with self._busy:
            found = await self._in_thread(self._scan)
            if isinstance(found, str):
                raise RoutingProblem([found])
            file = await self._in_thread(
                partial(routing_file.write_routing, self.path, text, if_revision=if_revision, versions=found, fields_of=self.fields_of)
            )
        await self.sync()
        return file

    def withdraw(self, model: str, experiment: str, arm: str, *, withdrawn: bool = True, trial: Callable[[], None] | None = None) -> None:
        """Let the experiment's fallback answer for an arm from now on, or the arm again, calling `trial` for each of its requests."""
        key = (model, experiment, arm)
        if withdrawn == (key in self._withdrawn) and trial is self._trials.get(key):
            return
        self._withdrawn = self._withdrawn | {key} if withdrawn else self._withdrawn - {key}
        self._trials = {**{k: v for k, v in self._trials.items() if k != key}, **({} if trial is None else {key: trial})}
        self._publish()

    def versions(self) -> dict[str, set[int]]:
        """Return the versions of every model that are known, ready or not."""
        found: dict[str, set[int]] = {}
        for model, version in self._states:
            found.setdefault(model, set()).add(version)
        return found

    def fields_of(self, model: str, version: int) -> Sequence[RawField] | None:
        """Return a version's raw fields, from its package if it is not loaded; None when they cannot be known. For any thread."""
        state = self._states.get((model, version))
        if state is not None and state.loaded is not None:
            return state.loaded.package.manifest.fields
        try:
            return read_package(self.path / model / str(version), verify_digests=False).manifest.fields
        except (SamegraphError, OSError):
            return None

    # --- keeping in step ----------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Look at the directory once and load and unload what changed. Calls queue up behind each other."""
        async with self._busy:
            found = await self._in_thread(self._scan)
            if isinstance(found, str):
                if self.problem != found:
                    log.error("repository_unreadable", path=str(self.path), reason=found)
                self.problem = found
                self.scanned = True
                return
            self.problem = None
            before = self.routes
            routing = await self._read_routing(found)
            self._expected = self._expected & set(found) if self._read_once else set(found)
            self._forget_missing(found)
            if self._read_once:
                for name in sorted(found):
                    await self._sync_model(name, found[name], (self.routing, routing))
                if routing is not self.routing:
                    await self._change_routing(routing, found)
                if self.routes is not before:
                    await self._in_thread(memory.trim)  # what retired
            else:
                self._read_once = True
                self.routing = routing  # nothing answers yet
                async with asyncio.TaskGroup() as models:
                    for name in sorted(found):
                        models.create_task(self._sync_model(name, found[name], (routing,)))
                self._loaders.stand_back()
            self.scanned = True

    async def recheck(self) -> None:
        """Replay the golden samples of every version that is ready, one version after another, behind everything else.

        A version that fails is withdrawn when another that is ready, and passed its own last check, can take its route; for a version
        that the routing file names, none can. Otherwise it goes on answering, and `warnings` tells of it.
        """
        for state in [s for s in self.states() if s.loaded is not None and s.loaded.golden_samples]:
            async with self._busy:  # nothing loads or leaves meanwhile
                there = self._states.get((state.model, state.version))
                if there is not None and there.loaded is state.loaded:
                    await self._recheck(there)

    async def _recheck(self, state: VersionState) -> None:
        assert state.loaded is not None
        with self._loaders.loading():
            check = await self._in_thread(check_again, state.loaded, self._now)
        before = self.checks.get((state.model, state.version))
        facts: dict[str, Any] = {"model": state.model, "version": state.version}
        if check.unchecked:
            log.warning("version_not_rechecked", **facts, reason=check.reason)
            return
        self.checks[state.model, state.version] = check
        if check.passed:
            log.info("version_rechecked", **facts, golden_samples=state.loaded.golden_samples, max_ulp=check.max_ulp)
            if before is not None and not before.passed:
                self._set(replace(state, reason=""))
            return
        reason = f"its golden samples do not replay any more: {self._without_path(check.reason)}"
        withdrawn = self._can_be_spared(state)
        log.error("version_recheck_failed", **facts, reason=check.reason, withdrawn=withdrawn)
        if not withdrawn:
            self._set(replace(state, reason=f"{reason}; no other version can take its place, so it goes on answering"))
            return
        del self.checks[state.model, state.version]
        self._set(VersionState(state.model, state.version, "failed", f"withdrawn: {reason}", state.fingerprint))
        if state.served is not None:
            self._retire(state.served)

    def _can_be_spared(self, state: VersionState) -> bool:
        """Whether callers of a version get their answers from another one when it goes."""
        routing = self.routing.models.get(state.model)
        if routing is not None and state.version in routing.named():
            return False
        return any(
            other.model == state.model and other.version != state.version and other.state == "ready" and self._passed(other)
            for other in self._states.values()
        )

    def _passed(self, state: VersionState) -> bool:
        check = self.checks.get((state.model, state.version))
        return check is not None and check.passed

    def allow(self, model: str) -> None:
        """Take back an `unload`: the next look serves the model again."""
        self._unloaded.discard(model)

    async def unload(self, model: str) -> None:
        """Stop serving every version of a model until `allow` is called; what already chose one of them is answered."""
        self._unloaded.add(model)
        async with self._busy:
            if model in self._unloaded:
                await self._hold_back(model)

    async def _hold_back(self, model: str) -> None:
        self._expected.discard(model)
        for state in [s for s in self.states() if s.model == model and s.state != "unloaded"]:
            self.checks.pop((model, state.version), None)
            self._set(
                VersionState(
                    model, state.version, "unloaded", "unloaded by an operator; load the model to serve it again", state.fingerprint
                )
            )
            log.info("version_unloaded", model=model, version=state.version)
            if state.served is not None:
                self._retire(state.served)

    def close(self) -> None:
        """End the loading threads."""
        self._loaders.close()

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loaders.pool, call, *arguments)

    def _scan(self) -> dict[str, dict[int, Fingerprint]] | str:
        """Return model → version → fingerprint, or why the directory cannot be read (in the loading thread)."""
        try:
            return {name: self._versions(name) for name in list_models(self.path)}
        except (SamegraphError, OSError) as error:
            return str(error)

    def _versions(self, name: str) -> dict[int, Fingerprint]:
        versions: dict[int, Fingerprint] = {}
        for version in list_versions(self.path, name):
            try:
                versions[version] = _fingerprint(self.path / name / str(version))
            except OSError:
                continue  # it went away between two looks
        return versions

    def _forget_missing(self, found: Mapping[str, Mapping[int, Fingerprint]]) -> None:
        for key, state in list(self._states.items()):
            model, version = key
            if version not in found.get(model, {}):
                del self._states[key]
                self._publish()
                if state.served is not None:
                    log.info("version_removed", model=model, version=version)
                    self._retire(state.served)

    async def _read_routing(self, found: Mapping[str, Mapping[int, Fingerprint]]) -> RoutingFile:
        """Return the routing file to put in force: the one that lies there, or, when that is bad or unchanged, the one in force."""
        versions = {name: frozenset(numbers) for name, numbers in found.items()}
        seen, file, problems = await self._in_thread(self._routing_there, versions)
        if seen == self._routing_seen:
            return self.routing
        self._routing_seen = seen
        if problems != self.routing_problems and problems:
            self.routing_reads["failure"] += 1
            log.error("routing_refused", in_force=self.routing.revision, problems=list(problems))
        self.routing_problems = problems
        self._routing_gone_stale = file is not None and file.revision == self.routing.revision
        if file is None or problems or file.revision == self.routing.revision:
            return self.routing
        self.routing_reads["success"] += 1
        return file

    def _routing_there(self, versions: Mapping[str, Collection[int]]) -> tuple[object, RoutingFile | None, Sequence[str]]:
        """Return what the routing file is known by, the file, and what is wrong with it; nothing more when it was looked at before."""
        try:
            status = (self.path / FILE_NAME).stat()
            seen = ((status.st_mtime_ns, status.st_size, status.st_ino), versions)
        except OSError as error:
            seen = ((error.errno or 0, 0, 0), versions)
        if seen == self._routing_seen:
            return seen, None, ()
        try:
            file = routing_file.read(self.path)
        except RoutingProblem as problem:
            return seen, None, problem.problems
        return seen, file, tuple(routing_file.problems_with(file, versions, self.fields_of))

    async def _change_routing(self, routing: RoutingFile, found: Mapping[str, Mapping[int, Fingerprint]]) -> None:
        """Put a routing file in force, in one step, and let go of the versions that only the one before named."""
        before, self.routing = self.routing, routing
        self._publish()
        log.info("routing_changed", revision=routing.revision, before=before.revision)
        for name in sorted(found):
            await self._sync_model(name, found[name], (routing,))

    async def _sync_model(self, name: str, found: Mapping[int, Fingerprint], routings: Sequence[RoutingFile]) -> None:
        """Serve the latest versions that can be served and those that routing files name; older ones leave only when newer ones work."""
        if name in self._unloaded:
            await self._hold_back(name)
            return
        named = {version for routing in routings if name in routing.models for version in routing.models[name].named()}
        ready: list[int] = []
        packages = not all(fingerprint.bare for fingerprint in found.values())
        for version in sorted(found, reverse=True):
            if (len(ready) < self._keep or version in named) and await self._is_ready(name, version, found[version], packages):
                ready.append(version)
        for (model, version), state in list(self._states.items()):
            if model == name and state.state == "ready" and version not in ready:
                await self._unload(state)

    async def _is_ready(self, name: str, version: int, fingerprint: Fingerprint, packages: bool) -> bool:
        state = self._states.get((name, version))
        if state is not None and state.state == "ready" and not (state.fingerprint.bare and not fingerprint.bare):
            if state.fingerprint != fingerprint:
                await self._refuse_replacement(state, fingerprint)
            return True
        if state is not None and state.state == "failed" and state.fingerprint == fingerprint:
            return False
        if state is not None and state.state == "ready":
            await self._unload(state)  # what looked like a bare model was a package whose manifest has come now
        if fingerprint.bare and packages:
            self._failed(name, version, fingerprint, _HALF_COPIED)
            return False
        return await self._try_load(name, version, fingerprint)

    async def _try_load(self, name: str, version: int, fingerprint: Fingerprint) -> bool:
        self._set(VersionState(name, version, "loading", "loading", fingerprint))
        log.info("version_loading", model=name, version=version)
        in_use = sum(s.loaded.bytes for s in self._states.values() if s.loaded is not None) + sum(self._loading.values())
        left = self._options.memory_budget_bytes - in_use
        self._loading[name, version] = fingerprint.bytes
        try:
            with self._loaders.loading():
                loaded = await self._in_thread(_load_and_trim, self._load, self.path, name, version, self._options, left)
        except SamegraphError as error:
            self._failed(name, version, fingerprint, str(error))
            return False
        except Exception as error:
            log.exception("version_load_crashed", model=name, version=version)
            self._failed(name, version, fingerprint, f"{Internal()} ({type(error).__name__})")
            return False
        finally:
            del self._loading[name, version]
        warning = "" if loaded.package.proven else "a bare model.onnx: served as tensors, nothing was proven"
        if loaded.golden_samples:
            self.checks[name, version] = Check(self._now(), passed=True, max_ulp=loaded.max_ulp)
        self._set(VersionState(name, version, "ready", warning, fingerprint, loaded, self._serve(loaded)))
        self._expected.add(name)
        self.loads["success"] += 1
        log.info(
            "version_ready",
            model=name,
            version=version,
            digest=loaded.package.digest[:12],
            seconds=round(loaded.seconds, 3),
            phases={phase: round(seconds, 3) for phase, seconds in loaded.phases.items()},
            golden_samples=loaded.golden_samples,
            max_ulp=loaded.max_ulp,
            merged=loaded.runtime.merged,
        )
        if warning:
            log.warning("version_unproven", model=name, version=version, reason=warning)
        return True

    def _failed(self, name: str, version: int, fingerprint: Fingerprint, reason: str) -> None:
        self.loads["failure"] += 1
        self._set(VersionState(name, version, "failed", f"failed: {self._without_path(reason)}", fingerprint))
        log.error("version_failed", model=name, version=version, reason=reason)

    def _without_path(self, reason: str) -> str:
        """Return a reason as callers may read it: where the repository lies on this machine is for the log only."""
        for path in (self.path.absolute(), self.path):
            reason = reason.replace(f"{path}{os.sep}", "")
        return reason

    async def _refuse_replacement(self, state: VersionState, fingerprint: Fingerprint) -> None:
        """A version is immutable: other files under a served number change nothing, and are said to."""
        assert state.loaded is not None
        reason = await self._in_thread(_difference, self.path / state.model / str(state.version), state.loaded)
        if reason:
            log.error("version_replaced", model=state.model, version=state.version, reason=reason)
        self._set(replace(state, fingerprint=fingerprint, reason=reason))

    async def _unload(self, state: VersionState) -> None:
        del self._states[state.model, state.version]
        self.checks.pop((state.model, state.version), None)
        self._publish()
        log.info("version_retired", model=state.model, version=state.version)
        if state.served is not None:
            self._retire(state.served)

    def _set(self, state: VersionState) -> None:
        self._states[state.model, state.version] = state
        self._publish()

    def _publish(self) -> None:
        """Swap in a new route table; calls that already chose a version keep it."""
        models: dict[str, ModelRoutes[Served]] = {}
        for name in {model for model, _ in self._states}:
            mine = [s for s in self._states.values() if s.model == name]
            models[name] = self._routes_of(
                name,
                ready=MappingProxyType({s.version: s.served for s in mine if s.served is not None}),
                states=MappingProxyType({s.version: s.reason for s in mine if s.served is None}),
            )
        self.routes = RouteTable(MappingProxyType(models))
        self._on_routes(self.routing)

    def _routes_of(self, name: str, ready: Mapping[int, Served], states: Mapping[int, str]) -> ModelRoutes[Served]:
        routing = self.routing.models.get(name)
        if routing is None:
            return ModelRoutes(ready, states)
        return routing_file.model_routes(name, routing, ready, states, self._withdrawn, self._trials)


def _why_not_ready(routes: ModelRoutes[Served]) -> str:
    """Return why a model's default route has no version that is ready."""
    if routes.named_default is not None:
        return f"its default is version {routes.named_default}: {routes.why_not(routes.named_default)}"
    return "; ".join(f"version {v}: {why}" for v, why in sorted(routes.states.items())) or "no version found"


def _load_and_trim(load: Callable[[Path, str, int, LoadOptions, int], Loaded], *arguments: Any) -> Loaded:
    """Load a version and give back what only its loading took."""
    try:
        return load(*arguments)
    finally:
        memory.trim()


def _fingerprint(directory: Path) -> Fingerprint:
    bare = not os.path.lexists(directory / "manifest.json")
    os.lstat(directory / ("model.onnx" if bare else "manifest.json"))  # raises when the version is gone
    found = []
    for folder, _, names in os.walk(directory):  # every file: one that arrives after the manifest makes a failed package whole
        for name in names:
            try:
                status = os.lstat(Path(folder) / name)
            except OSError:
                continue  # a temporary file of whoever is copying
            found.append((folder, name, status.st_mtime_ns, status.st_size, status.st_ino))
    golden = str(directory / "golden")
    size = sum(entry[3] for entry in found if not (entry[0] == golden or entry[0].startswith(f"{golden}{os.sep}")))
    return Fingerprint(bare, hash(tuple(sorted(found))), size)


def _difference(directory: Path, loaded: Loaded) -> str:
    """Return why the files now in a served version's directory are not what is served, or "" when they are."""
    kept = "the version that was loaded goes on serving; give the new package a number of its own"
    try:
        digest = read_package(directory, verify_digests=False).digest if loaded.package.proven else loaded.package.digest
    except (SamegraphError, OSError) as error:
        return f"its files were changed and are no valid package now ({error}); {kept}"
    return "" if digest == loaded.package.digest else f"another package (digest {digest[:12]}) was put under this number; {kept}"

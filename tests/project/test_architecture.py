"""Imports point one way: what docs/architecture.md draws is what the code does."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "samegraph_service": ROOT / "service" / "samegraph_service",
    "samegraph_transforms": ROOT / "transforms" / "samegraph_transforms",
    "samegraph_client": ROOT / "client" / "samegraph_client",
}

#: The service from top to bottom; a module imports only from lines below its own. docs/architecture.md gives the reasons.
SERVICE_ORDER = (
    "commands drift_command feedback_command routes_command top_command capture.package_commands",
    "capture.commands",
    "top",
    "launch",
    "server",
    "app",
    "rpc.server",
    "rpc.messages",
    "rpc.descriptors",
    "api.meta api.drift api.experiments api.routing api.feedback api.v2_routes",
    "api.v2_service",
    "service",
    "pages openapi",
    "api.asgi api.protocol",
    "api.front",
    "api.repeats",
    "api.v1 api.v2",
    "api.access api.encoding api.error_document api.multipart api.paths api.v2_tensors",
    "experiments.analysis.commands",
    "experiments.analysis.comparison_page experiments.analysis.terminal",
    "experiments.analysis.page",
    "experiments.analysis.compare",
    "experiments.analysis.guard experiments.analysis.plot experiments.analysis.snapshots",
    "experiments.analysis.report experiments.analysis.routing_edit experiments.analysis.routing_store",
    "experiments.analysis.sources",
    "experiments.analysis.evidence",
    "experiments.analysis.clusters",
    "experiments.analysis.paired experiments.analysis.sample_ratio experiments.analysis.sequences",
    "repository experiments.shadow",
    "experiments.watch experiments.signing experiments.feedback",
    "loading predict experiments.routing_file",
    "experiments.exposition",
    "drift.report_html drift.report_text drift.report_sources capture.revalidation",
    "drift.document drift.exposition drift.report exposition capture.exposition capture.export capture.renewal",
    "capture.reader",
    "capture.sink",
    "capture.columns",
    "drift.monitor",
    "drift.version",
    "drift.windows",
    "drift.counting drift.tap capture.tap",
    "call device tracing",
    "experiments.view",
    "batching admission routing clock",
    "experiments.counters",
    "experiments.assignment experiments.routing_metrics experiments.breaker experiments.prediction_id",
    "simulated",
    "turns cost releases poison quota metrics loaders logs operation settings example_image drift.statistics",
    "drift.distributions drift.window_sizes log_writer memory capture.options",
    "capture.storage",
    "tickets",
    "errors",
)
#: The path of a prediction: knows callbacks and a clock, but neither HTTP nor settings nor files.
CORE = (
    "experiments.assignment",
    "call",
    "predict",
    "device",
    "batching",
    "admission",
    "routing",
    "cost",
    "releases",
    "poison",
    "turns",
    "tickets",
    "errors",
)
WEB = {"fastapi", "starlette", "uvicorn", "httptools", "python_multipart", "httpx2", "httpx"}
TRAINING = {"sklearn", "pandas", "scipy", "torch", "skl2onnx", "tensorflow", "keras", "tf2onnx"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def modules(package: str) -> dict[str, ast.Module]:
    """Return dotted name below the package → syntax tree; the package itself is ""."""
    directory = PACKAGES[package]
    found = {}
    for path in sorted(directory.rglob("*.py")):
        name = ".".join(path.relative_to(directory).with_suffix("").parts)
        found["" if name == "__init__" else name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(package: str, module: str, tree: ast.Module) -> Iterator[str]:
    """Yield the absolute names a module imports at run time, wherever in it; what only type checkers read is left out."""
    hidden = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) and _for_types(node.test) for inner in ast.walk(node)}
    base = [package, *module.split(".")] if module else [package]
    if (PACKAGES[package] / Path(*base[1:]) / "__init__.py").is_file() and module:
        base.append("__init__")
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = base[: len(base) - node.level] if module else base[: len(base) - node.level + 1]
            prefix = ".".join([*above, *([node.module] if node.module else [])]) if node.level else node.module or ""
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def _for_types(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def dependencies(package: str) -> dict[str, set[str]]:
    """Return module → the modules of its own package it imports."""
    trees = modules(package)
    return {name: {own for target in imports(package, name, tree) if (own := _own(package, target, trees))} for name, tree in trees.items()}


def _own(package: str, target: str, known: Collection[str]) -> str | None:
    """Return the module of the package that an imported name comes from."""
    if target != package and not target.startswith(f"{package}."):
        return None
    name = target.removeprefix(package).removeprefix(".")
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def outside(package: str) -> dict[str, set[str]]:
    """Return module → the top-level packages it imports from elsewhere."""
    return {
        name: {target.partition(".")[0] for target in imports(package, name, tree)} - {package} for name, tree in modules(package).items()
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_no_cycle(package: str) -> None:
    """Any module can be read, and imported, after the ones it rests on."""
    try:
        TopologicalSorter({name: own - {name} for name, own in dependencies(package).items()}).prepare()
    except CycleError as cycle:
        pytest.fail(f"{package} has an import cycle: {' → '.join(cycle.args[1])}")


def test_every_module_of_the_service_has_its_place() -> None:
    """A new module is put into the order on purpose; a removed one leaves it."""
    placed = [name for line in SERVICE_ORDER for name in line.split()]
    assert sorted(placed) == sorted(
        name
        for name in modules("samegraph_service")
        if name not in ("", "api", "capture", "drift", "experiments", "experiments.analysis", "rpc")
    )


def test_the_service_imports_downwards_only() -> None:
    """App, then API, then the path, then what it stands on; never upwards and never sideways."""
    height = {name: -i for i, line in enumerate(SERVICE_ORDER) for name in line.split()}
    upwards = [
        f"{name} imports {own}"
        for name, owns in dependencies("samegraph_service").items()
        for own in owns
        if name in height and own in height and own != name and height[own] >= height[name]
    ]
    assert upwards == []


@pytest.mark.parametrize("name", CORE)
def test_the_core_knows_no_web_and_no_settings(name: str) -> None:
    """The one path of a prediction could run below gRPC or in a test without changing a line."""
    assert not outside("samegraph_service")[name] & (WEB | {"asyncio", "os"})
    assert not {own for own in dependencies("samegraph_service")[name] if own == "settings" or own.startswith("api")}


def test_only_the_top_reads_settings() -> None:
    """Everything below gets values, not the settings object."""
    readers = {name for name, owns in dependencies("samegraph_service").items() if "settings" in owns}
    assert readers == {"launch", "server", "app", "service"}


def test_only_the_runtime_of_packages_runs_graphs() -> None:
    """Serving runs graphs through the very code that packing proves; the service has no ONNX of its own."""
    users = {name for name, used in outside("samegraph_service").items() if used & {"onnx", "onnxruntime"}}
    assert users == set()


def test_packages_know_no_server() -> None:
    """A trainer's environment needs no web framework, and nothing in it depends on the service."""
    for name, used in outside("samegraph_transforms").items():
        assert not used & (WEB | {"samegraph_service", "samegraph_client", "prometheus_client"}), name


def test_training_extras_stay_with_the_importers() -> None:
    """scikit-learn and pandas are imported where pipelines are, and nowhere a server could reach."""
    users = {name for name, used in outside("samegraph_transforms").items() if used & TRAINING}
    assert users
    assert all(name == "tabular" or name.startswith("_sklearn") for name in users)
    reached = {own for name, owns in dependencies("samegraph_transforms").items() if name not in users for own in owns}
    assert not reached & users


def test_the_client_is_light() -> None:
    """A caller needs neither ONNX nor NumPy nor anything of the server."""
    for name, used in outside("samegraph_client").items():
        assert not used & {"onnx", "onnxruntime", "numpy", "fastapi", "samegraph_transforms", "samegraph_service"}, name


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_unpickles(package: str) -> None:
    """A model repository is data: reading it can run no code of its author's."""
    for name, used in outside(package).items():
        assert not used & UNPICKLERS, name


def test_load_tests_know_the_client_only() -> None:
    """They send what any caller could send; golden answers reach them as a file."""
    found: set[str] = set()
    for path in sorted((ROOT / "loadtest").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    assert "samegraph_client" in found
    assert not found & {"samegraph_service", "samegraph_transforms"}

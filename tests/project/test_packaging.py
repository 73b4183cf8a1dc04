"""The project's own files keep their promises."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = ("pyproject.toml", "transforms/pyproject.toml", "client/pyproject.toml")


def declared(path: str) -> dict[str, Any]:
    """Return the project table of a pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / path).read_text())["project"]
    return table


def package(requirement: str) -> str:
    """Return the package a requirement names."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return found[0].lower()


def everything_asked_for(path: str) -> list[str]:
    """Return all requirements of a project, extras included, without our own distributions."""
    table = declared(path)
    asked = [*table["dependencies"], *(line for extra in table.get("optional-dependencies", {}).values() for line in extra)]
    return [line for line in asked if not line.startswith("samegraph")]


def pins(name: str) -> dict[str, str]:
    """Return package → version of a constraints file."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[A-Za-z0-9.+!]+", line) for line in lines), (
        "a constraints file holds exact pins and no addresses"
    )
    return {line.partition("==")[0]: line.partition("==")[2] for line in lines}


@pytest.mark.parametrize("path", PROJECTS)
def test_every_dependency_has_its_reason(path: str) -> None:
    """docs/dependencies.md names everything a pyproject.toml asks for."""
    page = (ROOT / "docs/dependencies.md").read_text()
    assert [line for line in everything_asked_for(path) if f"`{package(line)}`" not in page] == []


@pytest.mark.parametrize("path", PROJECTS)
def test_every_dependency_is_pinned(path: str) -> None:
    """The constraints files pin everything any of the three distributions asks for; what only converts is pinned beside its script."""
    pinned = {**pins("constraints.txt"), **pins("constraints-build.txt"), **pins("scripts/references/requirements-keras.txt")}
    assert [line for line in everything_asked_for(path) if package(line) not in pinned] == []


def test_both_environments_run_the_same_versions() -> None:
    """What packs a model and what serves it have the same version of every package both have."""
    serving, build = pins("constraints.txt"), pins("constraints-build.txt")
    assert {name: (serving[name], build[name]) for name in serving.keys() & build.keys() if serving[name] != build[name]} == {}


def test_clients_of_other_servers_stay_in_their_own_environment() -> None:
    """They pin what the service must be free to choose; what their environment asks for is pinned and has its reason."""
    asked = runpy.run_path(str(ROOT / "scripts/environment.py"))["RECIPES"]["clients"][2]
    assert asked == runpy.run_path(str(ROOT / "scripts/lock.py"))["CLIENTS"]
    page = (ROOT / "docs/dependencies.md").read_text()
    for line in asked:
        assert package(line) in pins("constraints-clients.txt")
        assert f"`{line}`" in page
    assert {"tritonclient", "kserve"} & {*pins("constraints.txt"), *pins("constraints-build.txt")} == set()


def test_training_packages_never_enter_the_serving_environment() -> None:
    """No serving or test requirement brings scikit-learn, pandas or torch."""
    assert {"scikit-learn", "pandas", "scipy", "torch"} & pins("constraints.txt").keys() == set()


def test_onnx_runtime_is_declared_once() -> None:
    """Only samegraph-transforms asks for an ONNX Runtime distribution, and never for two on one platform."""
    asking = {path: [line for line in everything_asked_for(path) if package(line).startswith("onnxruntime")] for path in PROJECTS}
    assert asking["pyproject.toml"] == asking["client/pyproject.toml"] == []
    gpu, cpu = sorted(asking["transforms/pyproject.toml"], key=package, reverse=True)
    assert gpu.partition(";")[2].strip() == "sys_platform == 'linux' and platform_machine == 'x86_64'"
    assert cpu.partition(";")[2].strip() == "sys_platform != 'linux' or platform_machine != 'x86_64'"


def test_client_needs_neither_onnx_nor_a_web_framework() -> None:
    """Its users install two packages; what extras add is none of the server's weight either."""
    assert {package(line) for line in declared("client/pyproject.toml")["dependencies"]} == {"httpx2", "tenacity"}
    heavy = {"onnx", "onnxruntime", "onnxruntime-gpu", "fastapi", "starlette", "uvicorn", "pydantic", "samegraph", "samegraph-transforms"}
    assert {package(line) for line in everything_asked_for("client/pyproject.toml")} & heavy == set()


def test_distributions_share_one_version() -> None:
    """The three versions, and the pins between them, are the same."""
    versions = {declared(path)["version"] for path in PROJECTS}
    assert len(versions) == 1
    own = [line for line in declared("pyproject.toml")["dependencies"] if line.startswith("samegraph")]
    assert own == [f"samegraph-transforms=={versions.pop()}"]


def test_old_python_can_read_the_environment_script() -> None:
    """The script whose first task is to refuse an old Python is readable for one."""
    ast.parse((ROOT / "scripts/environment.py").read_text(), feature_version=(3, 6))


def test_environment_script_names_its_recipes() -> None:
    """A wrong name is answered with the usage, not with a traceback."""
    done = subprocess.run([sys.executable, ROOT / "scripts/environment.py", "sevre"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert ".venv-build" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_examples_build_in_what_make_serve_installs() -> None:
    """A clone that never ran the tests has everything that the example models' scripts import: what only a test asks for is no help."""
    recipe = runpy.run_path(str(ROOT / "scripts/environment.py"))["RECIPES"]["build"][2]
    extras = re.fullmatch(r"transforms\[(.*)\]", recipe[-1])
    assert extras
    table = declared("transforms/pyproject.toml")
    asked = {package(line) for line in table["dependencies"]}
    asked |= {package(line) for extra in extras[1].split(",") for line in table["optional-dependencies"][extra]}
    own = {"samegraph_transforms", "models"}
    brought = {
        "sklearn": "scikit-learn",
        "scipy": "scikit-learn",
        "threadpoolctl": "scikit-learn",
        "PIL": "pillow",
        "onnxruntime": "onnxruntime",
    }
    wanted = {brought.get(name, name) for name in imports_of(ROOT / "models") - own - sys.stdlib_module_names}
    assert "tokenizers" in wanted
    assert wanted <= asked


def imports_of(directory: Path) -> set[str]:
    """Return the top-level modules that files below a directory import; those of a reference run in an environment of their own."""
    files = [file for file in directory.rglob("*.py") if "reference" not in file.parts]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in named}


def test_make_lists_its_targets() -> None:
    """`make help` shows the two commands a newcomer needs."""
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(r"make serve +\S+", shown)
    assert re.search(r"make test +\S+", shown)

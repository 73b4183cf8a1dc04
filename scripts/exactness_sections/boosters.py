"""Models of XGBoost and LightGBM, read from their files, compared with the libraries' own answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from samegraph_transforms.boosted import from_boosted
from samegraph_transforms.executor import OrtExecutor

from scripts.exactness_sections._counting import Count, onnx_runtime, section, table

ROOT = Path(__file__).resolve().parents[2]
REFERENCES = ROOT / "tests" / "transforms" / "references" / "boosters"
REQUIREMENTS = ROOT / "scripts" / "references" / "requirements-boosters.txt"

ABOUT = """Model files of XGBoost (JSON) and LightGBM (text), and rows with the answers that the libraries themselves gave in an
environment of their own (`scripts/references/boosters.py`); more than half of the rows lie on a threshold or on one of the
numbers beside it, others have missing values. Answers without a function at the end are sums of leaves in training's type and
order, and equal. Where `exp` comes last the libraries' and ONNX Runtime's differ in the last bits: at most 4 ULP are promised
for float32, 1e-7 of the largest answer for float64."""

HEAD = ["importer and model", "reference", "rows", "elements", "different", "largest ULP", "decisions flipped"]


PIPELINES = """Pipelines of scikit-learn that end with the libraries' own classes, fitted and packed by `scripts/references/boosters.py` in
the environment that trains the example models, with the two libraries beside it. Rows are those of training and edge rows; elements are
counted in batches of several sizes, each stage and output."""

PIPELINE_HEAD = ["importer, last step and pipeline", "reference", "rows", "elements", "different", "largest ULP", "decisions flipped"]


def measure(work: Path, scale: float) -> dict[str, Any]:  # noqa: ARG001 - the golden files are all there is
    """Compare every golden file, then fit and pack the pipelines."""
    versions = dict(re.findall(r"^(xgboost|lightgbm)==([\d.]+)", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE))
    rows = [_row(path, versions) for path in sorted(p for p in REFERENCES.iterdir() if p.suffix != ".npz")]
    tables = [table("", HEAD, rows), table(PIPELINES, PIPELINE_HEAD, _pipelines(work, versions))]
    return section("XGBoost and LightGBM", ABOUT, tables, ["numpy", "onnx", onnx_runtime()])


def _pipelines(work: Path, versions: dict[str, str]) -> list[list[Any]]:
    """Install the libraries alone, and let the environment that trains fit with them."""
    beside = work / "boosters"
    python = ROOT / ".venv-build" / "bin" / "python"
    if not beside.exists():
        wanted = [f"{name}=={version}" for name, version in versions.items()]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", beside, *wanted], check=True)
    script = ROOT / "scripts" / "references" / "boosters.py"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "transforms"), str(beside)])}
    done = subprocess.run([python, script, "--pipelines"], check=True, stdout=subprocess.PIPE, text=True, env=paths)
    rows = []
    for name, estimator, count, elements, different, ulp, flips in json.loads(done.stdout.splitlines()[-1]):
        library = "XGBoost" if estimator.startswith("XGB") else "LightGBM"
        reference = f"{library} {versions[library.lower()]}"
        rows.append([f"`from_sklearn`, `{estimator}`, {name}", reference, count, elements, different, ulp, flips])
    return rows


def _row(path: Path, versions: dict[str, str]) -> list[Any]:
    library, what = path.stem.split("-", 1)
    golden = np.load(path.with_suffix(".npz"))
    draft = from_boosted(path.read_bytes(), name="m", version=1, missing=float(golden["missing"]))
    executor = OrtExecutor(draft.stages[-1].model)
    got = dict(zip(executor.output_names, executor.run({"features": golden["rows"]}), strict=True))
    answer = golden["answer"]
    count, flipped = Count(), None
    if "label" in got:
        both = np.stack([1 - answer, answer], axis=1) if answer.ndim == 1 else answer
        chosen = (answer > 0.5).astype(np.int64) if library == "xgboost" and answer.ndim == 1 else both.argmax(axis=1)
        flipped = int(np.count_nonzero(got["label"] != chosen))
        count.add(np.ascontiguousarray(got["probability"]), both.reshape(-1))
    else:
        count.add(got["value"], answer.reshape(-1))
    name = {"xgboost": "XGBoost", "lightgbm": "LightGBM"}[library]
    title = f"`from_boosted`, {name}, {what.replace('-', ' ')} ({_objective(path)})"
    return [title, f"{name} {versions[library]}", len(golden["rows"]), count.elements, count.different, count.ulp, flipped]


def _objective(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return f"`{json.loads(text)['learner']['objective']['name']}`"
    found = re.search(r"^objective=(\S+)", text, re.MULTILINE)
    assert found is not None, path
    return f"`{found[1]}`"

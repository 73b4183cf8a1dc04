"""ONNX files that contain their preprocessing, and Keras' layers by way of tf2onnx, compared with the libraries they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from samegraph_transforms.divergence import diagnose
from samegraph_transforms.draft import GoldenSample, PackageDraft
from samegraph_transforms.exactness import Comparison
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.golden import promised, replay
from samegraph_transforms.keras_import import from_converted
from samegraph_transforms.manifest import DEFAULT_TOLERANCES
from samegraph_transforms.onnx_import import from_onnx, golden_rows, golden_samples
from samegraph_transforms.package import write_package
from samegraph_transforms.runtime import PackageRuntime

from scripts.exactness_sections._counting import Count, onnx_runtime, section, table

REFERENCES = Path(__file__).parents[2] / "tests" / "transforms" / "references"
ABOUT = (
    "Files as skl2onnx and tf2onnx write them, run behind raw rows and compared with what scikit-learn and Keras themselves answered "
    "(`scripts/references/onnx_files.py`, `scripts/references/keras_models.py`). Half of the forests' rows lie on thresholds and beside "
    "them. scikit-learn's float64 answers are rounded where a file answers float32. A float near 0 may be many ULP from another and still "
    "within 1e-7 of the largest: the largest difference stands beside."
)
HEAD = (
    "what", "reference", "rows tried", "elements compared", "elements different", "largest ULP", "largest difference", "decisions flipped",
)  # fmt: skip
SKL = "scikit-learn 1.9.1, skl2onnx 1.20.0"
KERAS = "Keras 3.15.1, TensorFlow 2.21.0, tf2onnx 1.17.0"

#: Reference file → what it is, and how it is imported.
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "columns": ("`from_onnx`: StandardScaler and OneHotEncoder on columns with strings, float64", {"split_at": "transformed_column"}),
    "forest": ("`from_onnx`: RandomForestClassifier on a float32 matrix", {"columns": {"X": ["amount", "age"]}}),
    "words": ("`from_onnx`: TfidfVectorizer, its token pattern written out, ASCII text", {}),
}
LIES: dict[str, tuple[str, dict[str, Any]]] = {
    "scaled-forest": ("StandardScaler in front of the same forest", {"columns": {"X": ["amount", "age"]}}),
    "words-sublinear": ("TfidfVectorizer with sublinear_tf, the converter's token pattern", {}),
}


def measure(work: Path, scale: float) -> dict[str, Any]:
    """Replay the references; `scale` takes that share of their rows."""
    exact = [_row(title, SKL, *_compared(name, how, work, scale)[:2]) for name, (title, how) in FILES.items()]
    layers = [_layer(name, scale) for name in _names() if name not in ("houses", "photos")]
    layers += [
        _network("houses", "`from_keras`, `from_converted`: five layers on columns and a network", work, scale),
        _network("photos", "`from_saved_model`, `from_converted`: a network on images", work, scale),
    ]
    refused = [_refused(name, title, how, work, scale) for name, (title, how) in LIES.items()]
    tables = [
        table("Files of skl2onnx", HEAD, exact),
        table("Keras' layers alone, and in networks", HEAD, layers),
        table("What is refused because it differs", (*HEAD, "first node that diverges"), refused, control=True),
    ]
    return section("ONNX files and Keras models", ABOUT, tables, ["numpy", "onnx", onnx_runtime()])


def _row(title: str, reference: str, rows: int, found: Sequence[Comparison]) -> list[Any]:
    labels = sum(c.different for c in found if c.max_ulp == 0 and c.tensor in ("label", "output_label"))
    elements, different = sum(c.elements for c in found), sum(c.different for c in found)
    return [title, reference, rows, elements, different, max(c.max_ulp for c in found), _shown(max(c.max_abs for c in found)), labels]


def _shown(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _compared(
    name: str, how: Mapping[str, Any], work: Path, scale: float
) -> tuple[int, list[Comparison], tuple[PackageDraft, list[GoldenSample]]]:
    """Run a share of a file's rows, a row an execution."""
    rows, outputs, values = golden_rows(REFERENCES / "onnx-files" / f"{name}.jsonl")
    take = slice(None, None, max(1, round(1 / scale)))
    draft = from_onnx(REFERENCES / "onnx-files" / f"{name}.onnx", name=name, version=1, rows=rows, **how)
    inner = {k: v[take] for k, v in values.items()}
    samples = golden_samples(draft, rows[take], {k: v[take] for k, v in outputs.items()}, values=inner)
    return len(samples), _replayed(draft, samples, work), (draft, samples)


def _replayed(draft: PackageDraft, samples: Sequence[GoldenSample], work: Path) -> list[Comparison]:
    package = write_package(draft, samples, work / draft.name / "1")
    runtime = PackageRuntime.load(package)
    results = replay(runtime, samples, [1], profile="cpu.same")
    return [c for r in results if not r.merged for c in r.comparisons]


def _refused(name: str, title: str, how: Mapping[str, Any], work: Path, scale: float) -> list[Any]:
    rows, found, (draft, samples) = _compared(name, how, work, scale)
    package = write_package(draft, samples, work / draft.name / "1")
    runtime = PackageRuntime.load(package)
    tolerance = DEFAULT_TOLERANCES["cpu.same"].model_copy(update={"atol": 1e-6})
    changed = package.manifest.model_copy(update={"tolerances": {"cpu.same": tolerance}})
    runtime.manifest = changed
    results = replay(runtime, samples, [1], profile="cpu.same")
    node = diagnose(package, samples, results, promised(changed, "cpu.same"))
    return [*_row(title, SKL, rows, found), "none" if node is None else f"{node.node} ({node.operator})"]


def _names() -> list[str]:
    return sorted(p.stem for p in (REFERENCES / "keras").glob("*.npz"))


def _drafted(name: str, **how: Any) -> PackageDraft:
    return from_converted(REFERENCES / "keras" / f"{name}.onnx", name=name, version=1, **how)


def _calls(name: str) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, array in np.load(REFERENCES / "keras" / f"{name}.npz").items():
        call, _, what = key.partition("/")
        found.setdefault(call, {})[what] = array
    return found


def _layer(name: str, scale: float) -> list[Any]:
    """Compare one layer, bit by bit."""
    model = _drafted(name).stages[-1].model
    executor, value = OrtExecutor(model), model.graph.input[0]
    count, rows, largest = Count(), 0, 0.0
    for call in _calls(name).values():
        take = slice(None, None, max(1, round(1 / scale)))
        wanted = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        (got,) = executor.run({value.name: call["x"][take].astype(wanted)})
        expected = call["answer"][take]
        count.add(got, expected.reshape(-1))
        rows += len(expected)
        with np.errstate(invalid="ignore"):
            largest = max(largest, float(np.nan_to_num(np.abs(got.astype(float) - expected.astype(float))).max(initial=0)))
    whole = count.different if name.startswith(("string", "integer", "discretization", "category")) else 0
    return [name.replace("-", " "), KERAS, rows, count.elements, count.different, count.ulp, _shown(largest), whole]


def _network(name: str, title: str, work: Path, scale: float) -> list[Any]:
    """Compare a whole model: probabilities, and the class they choose."""
    rows: list[dict[str, Any]] = []
    answers: list[np.ndarray] = []
    for call in _calls(name).values():
        for i in range(0, len(call["answer"]), max(1, round(1 / scale))):
            rows.append({n: a[i] if a.ndim > 2 else a[i, 0].item() for n, a in call.items() if n != "answer"})
            answers.append(call["answer"][i])
    draft = _drafted(name, rows=rows)
    output = draft.outputs[0].name
    samples = golden_samples(draft, rows, {output: np.stack(answers)})
    found = _replayed(draft, samples, work)
    package = write_package(draft, samples, work / draft.name / "1")
    runtime = PackageRuntime.load(package)
    flipped = 0
    for row, answer in zip(rows, answers, strict=True):
        typed = runtime.signature.check_row({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()})
        flipped += int(runtime.predict([typed])[output][0].argmax() != answer.argmax())
    return [*_row(title, KERAS, len(rows), found)[:-1], flipped]

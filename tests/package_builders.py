"""A small but whole package for tests: raw columns in, probabilities and a label out, with its reference in plain NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from samegraph_transforms.draft import DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.manifest import Batching, Missing, Output, Provenance, RawField
from samegraph_transforms.opsets import IR_VERSION, opset_imports

KINDS = ("moss", "fern", "oak")
LABELS = ("low", "mid", "high")
WEIGHTS = np.array([[0.5, -0.25, 0.125], [1.0, 0.3, -0.7]], dtype=np.float32)
BIAS = np.array([0.1, 0.0, -0.1], dtype=np.float32)

Row = Mapping[str, Any]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, list[Any]]],
    outputs: Sequence[tuple[str, int, list[Any]]],
    **tensors: np.ndarray,
) -> onnx.ModelProto:
    """Build a model from nodes, (name, element type, shape) triples and initializers."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION)


def preprocess() -> onnx.ModelProto:
    """Raw columns → features float32 [n, 2]; a missing size is 0, an unknown kind −1."""
    return model_of(
        [
            helper.make_node("IsNaN", ["size"], ["gone"]),
            helper.make_node("Where", ["gone", "zero", "size"], ["filled"]),
            helper.make_node("Cast", ["filled"], ["size32"], to=TensorProto.FLOAT),
            helper.make_node(
                "LabelEncoder",
                ["kind"],
                ["code"],
                domain="ai.onnx.ml",
                keys_strings=list(KINDS),
                values_floats=[0.0, 1.0, 2.0],
                default_float=-1.0,
            ),
            helper.make_node("Concat", ["size32", "code"], ["features"], axis=1),
        ],
        [("size", TensorProto.DOUBLE, ["n", 1]), ("kind", TensorProto.STRING, ["n", 1])],
        [("features", TensorProto.FLOAT, ["n", 2])],
        zero=np.array(0.0),
    )


def classifier(weights: np.ndarray = WEIGHTS) -> onnx.ModelProto:
    """Features → probability float32 [n, 3]."""
    return model_of(
        [helper.make_node("Gemm", ["features", "w", "b"], ["scores"]), helper.make_node("Softmax", ["scores"], ["probability"], axis=1)],
        [("features", TensorProto.FLOAT, ["n", 2])],
        [("probability", TensorProto.FLOAT, ["n", 3])],
        w=weights,
        b=BIAS,
    )


def postprocess() -> onnx.ModelProto:
    """Probability → label, string [n]."""
    return model_of(
        [
            helper.make_node("ArgMax", ["probability"], ["best"], axis=1, keepdims=0),
            helper.make_node("LabelEncoder", ["best"], ["label"], domain="ai.onnx.ml", keys_int64s=[0, 1, 2], values_strings=list(LABELS)),
        ],
        [("probability", TensorProto.FLOAT, ["n", 3])],
        [("label", TensorProto.STRING, ["n"])],
    )


def draft(name: str = "plants", version: int = 1, **changes: Any) -> PackageDraft:
    """Return the whole draft; `changes` replace its parts."""
    whole = PackageDraft(
        name=name,
        version=version,
        description="How tall a plant grows.",
        fields=[
            RawField(
                name="size", kind="number", missing=Missing(rule="nan"), minimum=-1000, maximum=1000, description="Size in cm.", example=3.5
            ),
            RawField(name="kind", kind="string", known=list(KINDS), description="What it is.", example="fern"),
        ],
        outputs=[
            Output(name="label", dtype="string", decided_by="probability", description="The likeliest class."),
            Output(name="probability", dtype="float32", shape=[3], element_names=list(LABELS)),
        ],
        stages=[DraftStage("preprocess.batch", preprocess()), DraftStage("model", classifier()), DraftStage("postprocess", postprocess())],
        batching=Batching(max_batch_size=8),
        provenance=Provenance(trainer="tests", framework="NumPy", data="Made up.", license="CC0"),
        assets={"labels.txt": "\n".join(LABELS).encode()},
    )
    return replace(whole, **changes)


def reference(rows: Sequence[Row], weights: np.ndarray = WEIGHTS) -> dict[str, np.ndarray]:
    """What training computes: features, probability and label for `rows`."""
    size = np.array([0.0 if r["size"] is None else r["size"] for r in rows], dtype=np.float32)
    code = np.array([KINDS.index(r["kind"]) if r["kind"] in KINDS else -1 for r in rows], dtype=np.float32)
    features = np.stack([size, code], axis=1)
    scores = features @ weights + BIAS
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    probability = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    label = np.array([LABELS[i] for i in probability.argmax(axis=1)], dtype=object)
    return {"features": features, "probability": probability, "label": label}


ROWS: tuple[Row, ...] = (
    {"size": 1.5, "kind": "moss"},
    {"size": -2.25, "kind": "fern"},
    {"size": None, "kind": "oak"},
    {"size": 0.1, "kind": "bamboo"},
    {"size": 7, "kind": "fern"},
)


def sample(name: str, rows: Sequence[Row], model: str = "plants", weights: np.ndarray = WEIGHTS) -> GoldenSample:
    """Return the golden sample of one V1 request with `rows`."""
    answer = reference(rows, weights)
    return GoldenSample(
        name=name,
        path=f"/v1/models/{model}:predict",
        headers={"content-type": "application/json"},
        body=json.dumps({"instances": list(rows)}).encode(),
        outputs={"label": answer["label"], "probability": answer["probability"]},
        values={"features": answer["features"]},
    )


def samples(weights: np.ndarray = WEIGHTS) -> list[GoldenSample]:
    """Return one sample a row, and one of all rows together."""
    return [*(sample(f"row {i}", [row], weights=weights) for i, row in enumerate(ROWS)), sample("all rows", ROWS, weights=weights)]

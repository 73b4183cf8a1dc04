"""Models over instances of different lengths: a sentence classifier over token ids, right and wrong, and its reference in NumPy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import package_builders as build
from onnx import TensorProto, helper
from samegraph_transforms.draft import DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.manifest import DEFAULT_TOLERANCES, Batching, Output, Ragged, RaggedInput, RawField, Tolerance

VOCABULARY, WIDTH, CLASSES = 50, 8, 3
BUCKETS = [4, 8, 16]
_RNG = np.random.default_rng(11)
EMBEDDING = _RNG.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
WEIGHTS = _RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32)
JSON = {"content-type": "application/json"}

Ids = Sequence[int]


def classifier(*, masked: bool = True, tokens: bool = False) -> onnx.ModelProto:
    """Ids int64 [n, length] and their mask → scores of the mean embedding, float32 [n, 3]; with `tokens` also of each, [n, length, 3].

    Without `masked` the mean is over the padding too: the mistake that packing must find.
    """
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["vectors"]),
        helper.make_node("Cast", ["mask"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ones", "last"], ["column"]),
        helper.make_node("Mul", ["vectors", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept" if masked else "vectors", "tokens_axis"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["ones", "tokens_axis"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "weights"], ["scores"]),
    ]
    outputs: list[tuple[str, int, list[Any]]] = [("scores", TensorProto.FLOAT, ["n", CLASSES])]
    if tokens:
        nodes.append(helper.make_node("MatMul", ["vectors", "weights"], ["each"]))
        outputs.append(("each", TensorProto.FLOAT, ["n", "length", CLASSES]))
    return build.model_of(
        nodes,
        [("ids", TensorProto.INT64, ["n", "length"]), ("mask", TensorProto.INT64, ["n", "length"])],
        outputs,
        embedding=EMBEDDING,
        weights=WEIGHTS,
        last=np.array([-1]),
        tokens_axis=np.array([1]),
    )


def scores(ids: Ids) -> np.ndarray:
    """What training computes for one sentence, [3]."""
    return np.asarray(EMBEDDING[np.asarray(ids)].mean(axis=0, dtype=np.float32) @ WEIGHTS)


def each(ids: Ids) -> np.ndarray:
    """What training computes for every token of a sentence, [length, 3]."""
    return np.asarray(EMBEDDING[np.asarray(ids)] @ WEIGHTS)


def sentence(length: int, seed: int = 0) -> list[int]:
    """Return token ids, the same for the same arguments."""
    return [int(i) for i in np.random.default_rng([length, seed]).integers(1, VOCABULARY, length)]


def ragged(**changes: Any) -> Ragged:
    """Return the declaration of the classifier's length; `changes` replace its members."""
    members: dict[str, Any] = {"inputs": {"ids": RaggedInput()}, "buckets": BUCKETS, "mask": "mask"}
    return Ragged(**{**members, **changes})


def draft(
    *, masked: bool = True, tokens: bool = False, name: str = "sentences", max_batch_size: int = 8, declared: Ragged | None = None
) -> PackageDraft:
    """Return the classifier's draft."""
    outputs = [Output(name="scores", dtype="float32", shape=[CLASSES])]
    if tokens:
        outputs.append(Output(name="each", dtype="float32", shape=[None, CLASSES]))
    declared = declared or (ragged(outputs={"each": 0}) if tokens else ragged())
    return build.draft(
        name=name,
        fields=[RawField(name="ids", kind="tensor", dtype="int64", shape=[None])],
        outputs=outputs,
        stages=[DraftStage("model", classifier(masked=masked, tokens=tokens))],
        batching=Batching(max_batch_size=max_batch_size, ragged=[declared]),
        tolerances={**DEFAULT_TOLERANCES, "cpu.same": Tolerance(ulp=4, relative_to_max=1e-6)},  # sums in another order than NumPy's
    )


def sample(ids: Ids, *, tokens: bool = False, name: str = "sentences") -> GoldenSample:
    """Return the golden sample of one sentence."""
    answers = {"scores": scores(ids)[None], **({"each": each(ids)[None]} if tokens else {})}
    body = json.dumps({"instances": [{"ids": list(ids)}]}).encode()
    return GoldenSample(f"{len(ids)} tokens: {ids[:3]}", f"/v1/models/{name}:predict", JSON, body, answers)


def samples(
    *, tokens: bool = False, lengths: Sequence[int] = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16), name: str = "sentences"
) -> list[GoldenSample]:
    """Return a golden sample for each length."""
    return [sample(sentence(n), tokens=tokens, name=name) for n in lengths]

"""A wide tabular version without graphs: every plain kind of field and missing rule, with rows, answers and a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from samegraph_transforms.baseline import Baseline
from samegraph_transforms.baseline_build import BaselineBuilder
from samegraph_transforms.draft import BaselineRows
from samegraph_transforms.manifest import Manifest, Missing, Output, RawField, Stage
from samegraph_transforms.signature import Row, column

GONE = "\ue000gone"
CARRIERS = ("AA", "B6", "DL", "UA", "WN")
CLASSES = ("late", "on time")

FIELDS = (
    RawField(name="distance", kind="number", missing=Missing(rule="nan")),
    RawField(name="hour", kind="integer"),
    RawField(name="carrier", kind="string", known=list(CARRIERS), missing=Missing(rule="sentinel", sentinel=GONE)),
    RawField(name="tail", kind="string"),
    RawField(name="freight", kind="boolean"),
    RawField(name="wind", kind="number", missing=Missing(rule="nan"), minimum=0, maximum=200),
)
OUTPUTS = (
    Output(name="answer", dtype="string", decided_by="chance"),
    Output(name="chance", dtype="float32", shape=[2], element_names=list(CLASSES)),
)
#: Where each field would be among the graph's inputs.
FEEDS = {"distance": ("f", 0), "wind": ("f", 1), "hour": ("i", 0), "carrier": ("s", 0), "tail": ("s", 1), "freight": ("b", 0)}


def manifest(fields: Sequence[RawField] = FIELDS, name: str = "flights", version: int = 1) -> Manifest:
    return Manifest(
        name=name,
        version=version,
        fields=list(fields),
        outputs=list(OUTPUTS),
        stages=[Stage(name="model", file="model.onnx", inputs={}, outputs={})],
    )


def rows_of(n: int, seed: int = 0, **shifts: float) -> list[Row]:
    """Return n rows in the order of `FIELDS`; `shifts` are added to numbers, and the share of `tail` values nobody knows."""
    rng = np.random.default_rng(seed)
    distance = rng.gamma(2.0, 400.0, n) + shifts.get("distance", 0.0)
    gone = rng.random(n) < 0.04
    carriers = rng.choice(CARRIERS, n, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    return [
        (
            None if gone[i] else float(distance[i]),
            int(rng.integers(5, 24)),
            None if rng.random() < 0.02 else str(carriers[i]),
            f"N{rng.integers(0, 80)}",
            bool(rng.random() < 0.3),
            float(rng.integers(0, 5) * 5 + shifts.get("wind", 0.0)),
        )
        for i in range(n)
    ]


def answers_of(n: int, seed: int = 0) -> list[np.ndarray]:
    chance = np.random.default_rng(seed).beta(2, 3, n).astype(np.float32)
    scores = np.stack([chance, 1 - chance], axis=1)
    return [np.array([CLASSES[i] for i in scores.argmax(axis=1)], dtype=object), scores]


def baseline_of(of: Manifest, rows: Sequence[Row], arrays: Sequence[np.ndarray], **options: Any) -> Baseline:
    """Return the baseline of some rows and answers; `options` are those of `BaselineRows`."""
    builder = BaselineBuilder(of, BaselineRows(rows=[], **options))
    builder.add(rows, dict(zip((o.name for o in of.outputs), arrays, strict=True)))
    return builder.finish()


def feeds_of(rows: Sequence[Row], fields: Sequence[RawField] = FIELDS) -> dict[str, np.ndarray]:
    """Return the rows as a graph's inputs, columns where `FEEDS` says."""
    columns: dict[str, dict[int, np.ndarray]] = {}
    for field, values in zip(fields, zip(*rows, strict=True), strict=True):
        name, place = FEEDS[field.name]
        columns.setdefault(name, {})[place] = column(field, values)[field.name]
    return {name: np.concatenate([placed[i] for i in sorted(placed)], axis=1) for name, placed in columns.items()}

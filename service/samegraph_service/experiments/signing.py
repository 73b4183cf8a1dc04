"""Prediction ids of answers: what an id carries, looked up once per version or assignment, and the labels that were answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from samegraph_transforms.manifest import Output

from samegraph_service.batching import Part
from samegraph_service.call import Answer, Origin

from .assignment import Assignment
from .prediction_id import LABELLED_INSTANCES, NO_BUCKET, IdPrefix, PredictionIds, label_hash

#: Versions and assignments whose prefix is kept.
KEPT = 8192


def label_place(outputs: Sequence[Output]) -> int | None:
    """Return which output is the answered label, or None.

    It is the first that holds one value or a ranking and is decided by another output, or else the first such that is text.
    """
    flat = [i for i, output in enumerate(outputs) if len(output.shape) <= 1]
    decided = [i for i in flat if outputs[i].decided_by is not None]
    texts = [i for i in flat if outputs[i].dtype == "string"]
    return next(iter([*decided, *texts]), None)


class AnswerSigner:
    """Makes the ids of answers. For the event loop's thread.

    Args:
        ids: Makes and signs ids.
    """

    def __init__(self, ids: PredictionIds) -> None:
        self._ids = ids
        self._generation = ids.generation
        self._kept: dict[Assignment | Origin, tuple[IdPrefix, int | None]] = {}

    def __call__(self, answer: Answer) -> str:
        """Return a new id for an answer."""
        ids = self._ids
        if self._generation != ids.generation or len(self._kept) > KEPT:
            self._kept.clear()
            self._generation = ids.generation
        owner = answer.assignment or answer.origin
        known = self._kept.get(owner)
        if known is None:
            known = self._kept[owner] = (self._prefix(answer.origin, answer.assignment), label_place(answer.origin.outputs))
        prefix, place = known
        n = answer.n
        labels: Sequence[bytes] = ()
        if place is not None and n <= LABELLED_INSTANCES and not answer.errors:
            labels = _labels(answer, place) if n > 1 else _label(answer.parts[0], place, answer.parts[0].offset)
        return ids.sign(prefix, n, labels).decode()

    def _prefix(self, origin: Origin, assignment: Assignment | None) -> IdPrefix:
        if assignment is None or assignment.reason:  # feedback for it counts for its version alone
            return self._ids.prefix(origin.model, origin.version, bucket=NO_BUCKET)
        return self._ids.prefix(
            origin.model,
            origin.version,
            experiment=assignment.experiment,
            revision=assignment.revision,
            arm=assignment.arm,
            bucket=assignment.bucket,
        )


def _labels(answer: Answer, place: int) -> list[bytes]:
    """Return the hash of each instance's answered label; empty when an instance has none."""
    found: list[bytes] = []
    for part in answer.parts:
        for row in range(part.offset, part.offset + part.count):
            found += _label(part, place, row)
    return found if len(found) == answer.n else []


def _label(part: Part, place: int, row: int) -> tuple[bytes, ...]:
    """Return the hash of one row's label, of a ranking the first; nothing when it has none."""
    value: Any = part.outputs.arrays[place][row]
    if type(value) is str:
        return (label_hash(value),)
    if isinstance(value, np.ndarray):
        if not value.size:
            return ()
        value = value[0]
    return (label_hash(value.item() if isinstance(value, np.generic) else value),)

"""What an author or importer hands to `pack`: the graphs and facts of a package that is not written yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from .manifest import DEFAULT_TOLERANCES, Batching, Decoder, Output, Provenance, RawField, StageName, Tokenizer, Tolerance, Vectorizer


@dataclass(frozen=True)
class DraftStage:
    """One graph of the chain.

    Attributes:
        name: Which stage it is.
        model: The graph. Item-stage graphs see one instance without a batch dimension; all others have a leading batch dimension.
        inputs: Graph input name → name of the value bound to it; None binds every input to the value of the same name.
        outputs: Graph output name → name the value has from here on; None keeps the names.
    """

    name: StageName
    model: onnx.ModelProto
    inputs: Mapping[str, str] | None = None
    outputs: Mapping[str, str] | None = None


@dataclass(frozen=True)
class BaselineRows:
    """Held-out training rows, whose statistics become the package's baseline.

    Held out, because what a pipeline was fitted on looks more like itself than anything that comes later.

    Attributes:
        rows: Instances as a caller would send them, keyed by field (an image may be its bytes; for a single field the bare value will do).
        made_from: Which rows, in a sentence.
        sampled_from: When the first of them was taken, ISO 8601.
        sampled_to: When the last of them was taken.
        truth: The right answer for each, to set measured accuracy beside the expected one.
        off: Fields of which nothing is kept.
        hashed: String fields whose values are kept as digests.
        importance: Field → how much drift there matters, 1 where nothing is said.
        known: String field or label output → every value training saw; a manifest's `allowed`, `known` and class names need no repeating.
        positive: Output of two class probabilities → the class that counts as positive; otherwise the second.
    """

    rows: Sequence[object]
    made_from: str = ""
    sampled_from: str | None = None
    sampled_to: str | None = None
    truth: Sequence[object] | None = None
    off: Collection[str] = ()
    hashed: Collection[str] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    known: Mapping[str, Collection[str]] = field(default_factory=dict)
    positive: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PackageDraft:
    """Everything `pack` needs but the golden samples."""

    name: str
    version: int
    fields: Sequence[RawField]
    outputs: Sequence[Output]
    stages: Sequence[DraftStage]
    description: str = ""
    decoders: Sequence[Decoder] = ()
    tokenizers: Sequence[Tokenizer] = ()
    vectorizers: Sequence[Vectorizer] = ()
    batching: Batching = field(default_factory=Batching)
    tolerances: Mapping[str, Tolerance] = field(default_factory=lambda: dict(DEFAULT_TOLERANCES))
    provenance: Provenance = field(default_factory=Provenance)
    assets: Mapping[str, bytes] = field(default_factory=dict)
    baseline: BaselineRows | None = None


@dataclass(frozen=True)
class GoldenSample:
    """One raw request with the answer the training code gave for it.

    Attributes:
        name: Short and unique; error messages say it.
        path: The predict route the request goes to, for example `/v1/models/penguins:predict`.
        headers: Lower-case names; `content-type` decides how the body is read.
        body: The raw request bytes the API accepts.
        outputs: Manifest output name → array [n_instances, *shape] from the *training* code.
        values: Named intermediates (stage boundary values, for example `pixels`) from the training code, [n_instances, ...].
    """

    name: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    outputs: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray] = field(default_factory=dict)

"""The manifest: what one model package says about itself.

`manifest.json` is written last, holds the digest of every other file, and its own SHA-256 is the package's identity.
The JSON Schema published in docs/manifest.schema.json is generated from these classes.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

FORMAT: Literal[1] = 1
MAX_EXACT_INTEGER = 2**53

#: A model name: it becomes a directory and a URL segment, so nothing that means something to either.
NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$"
#: A field or value name: also an ONNX value name and a JSON key.
VALUE_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.\- ]{0,127}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
ValueName = Annotated[str, Field(pattern=VALUE_PATTERN)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Kind = Literal["number", "integer", "boolean", "string", "text", "image", "bytes", "tensor"]
Dtype = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool", "string",
]  # fmt: skip
StageName = Literal["preprocess.item", "preprocess.batch", "model", "postprocess"]
STAGE_FILES: dict[str, str] = {
    "preprocess.item": "preprocess.item.onnx",
    "preprocess.batch": "preprocess.batch.onnx",
    "model": "model.onnx",
    "postprocess": "postprocess.onnx",
}
STAGE_ORDER: tuple[str, ...] = tuple(STAGE_FILES)
#: Kinds whose value in a request is encoded bytes.
BINARY_KINDS = frozenset({"image", "bytes"})
#: Longest bucket of a ragged length, and most shapes that all buckets of a package make together.
MAX_BUCKET = 1 << 20
MAX_SHAPE_BUCKETS = 64


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Missing(_Model):
    """What a missing value (JSON null, or NaN in a binary tensor) becomes before the graph sees it."""

    rule: Literal["refuse", "nan", "sentinel", "companion"] = Field(
        default="refuse",
        description=(
            "refuse: null is an error. nan: a float64 NaN (numbers and integers only). sentinel: the value in `sentinel`. "
            "companion: the kind's zero value, with the boolean graph input `<field>__missing` set."
        ),
    )
    sentinel: float | int | bool | str | None = Field(default=None, description="The stand-in value when rule is `sentinel`.")

    @model_validator(mode="after")
    def _sentinel_goes_with_its_rule(self) -> Missing:
        if (self.rule == "sentinel") != (self.sentinel is not None):
            raise ValueError("`sentinel` is given exactly when rule is 'sentinel'")
        return self


class RawField(_Model):
    """One named raw input of an instance, as the caller sends it."""

    name: ValueName = Field(description="Name in requests; also the name of the graph input it feeds.")
    kind: Kind = Field(description="What the caller sends: a JSON scalar, encoded bytes, or a tensor.")
    description: str = Field(default="", description="A sentence for people who call the model.")
    required: bool = Field(default=True, description="False: the field may be left out; `default`, or else the missing rule, applies.")
    default: JsonValue = Field(default=None, description="Value of a field that was left out (never of one sent as null).")
    missing: Missing = Field(default_factory=Missing, description="What null becomes.")
    allowed: list[float | int | bool | str] | None = Field(
        default=None,
        description="The closed set of values; anything else is refused. None: open (the graph decides what an unseen value means).",
    )
    known: list[str] | None = Field(
        default=None, description="Values seen in training, when the set is open: for documentation, examples and drift, never a check."
    )
    minimum: float | None = Field(default=None, description="Smallest accepted number (inclusive).")
    maximum: float | None = Field(default=None, description="Largest accepted number (inclusive).")
    max_length: int | None = Field(default=None, ge=1, description="Longest accepted string or text, in characters.")
    max_bytes: int | None = Field(default=None, ge=1, description="Largest accepted encoded image or byte string.")
    max_pixels: int | None = Field(
        default=None, ge=1, description="Largest accepted width × height of an image, read from its header before decoding."
    )
    dtype: Dtype | None = Field(default=None, description="Tensors only: element type in the graph.")
    shape: list[int | None] | None = Field(default=None, description="Tensors only: shape of one instance; null is any length.")
    example: JsonValue = Field(default=None, description='A value that works, in JSON form (`{"b64": …}` for bytes).')

    @model_validator(mode="after")
    def _facts_fit_the_kind(self) -> RawField:
        if self.kind == "tensor" and (self.dtype is None or self.shape is None):
            raise ValueError(f"field {self.name!r}: a tensor needs dtype and shape")
        if self.kind != "tensor" and (self.dtype is not None or self.shape is not None):
            raise ValueError(f"field {self.name!r}: dtype and shape are for tensors; a {self.kind}'s are fixed")
        if (self.minimum is not None or self.maximum is not None) and self.kind not in ("number", "integer"):
            raise ValueError(f"field {self.name!r}: minimum and maximum are for numbers")
        if self.missing.rule == "nan" and self.kind not in ("number", "integer"):
            raise ValueError(f"field {self.name!r}: only numbers can be NaN; give a {self.kind} a sentinel or a companion")
        if self.required and self.default is not None:
            raise ValueError(f"field {self.name!r}: a default is for fields that are not required")
        return self

    @property
    def graph_dtype(self) -> str:
        """Element type of the graph input (numpy's name; `string` for text); numbers are always float64."""
        if self.kind == "tensor":
            assert self.dtype is not None
            return self.dtype
        if self.kind == "integer":
            return "float64" if self.missing.rule == "nan" else "int64"
        return {"number": "float64", "boolean": "bool", "string": "string", "text": "string", "image": "uint8", "bytes": "uint8"}[self.kind]

    @property
    def companion(self) -> str | None:
        """Name of the boolean graph input that says the value was missing, if the field has one."""
        return f"{self.name}__missing" if self.missing.rule == "companion" else None


class Output(_Model):
    """One named output of an instance."""

    name: ValueName = Field(description="Name in answers; also the name of the value it is, among the stages' outputs.")
    dtype: Dtype = Field(description="Element type of the graph output.")
    shape: list[int | None] = Field(
        default_factory=list, description="Shape for one instance; [] is a scalar. The graph output is [n, *shape]."
    )
    description: str = Field(default="", description="A sentence for people who call the model.")
    element_names: list[str] | None = Field(default=None, description="What each place along the last axis means (class names, say).")
    decided_by: ValueName | None = Field(
        default=None,
        description=(
            "For a class or label: the float output it is chosen from. A choice may differ from training only where that output's "
            "margin is below the promised bound."
        ),
    )


class Stage(_Model):
    """One graph of the chain. Values flow by name: raw fields first, then every stage's outputs."""

    name: StageName = Field(description="Which stage it is; item stages see one instance, the others a batch.")
    file: str = Field(description="Path inside the package.")
    inputs: dict[str, str] = Field(description="Graph input name → name of the value bound to it.")
    outputs: dict[str, str] = Field(description="Graph output name → name the value has from here on.")


class Decoder(_Model):
    """Which decoder an ImageDecoder host node stands for, and what it returns for every pixel mode."""

    node: str = Field(description="Name of the ImageDecoder node in preprocess.item.onnx.")
    library: Literal["Pillow"] = Field(default="Pillow", description="The library training decoded with.")
    library_version: str = Field(description="Version of the library training decoded with.")
    codecs: dict[str, str] = Field(default_factory=dict, description="Codec library versions, for example libjpeg_turbo, zlib, webp.")
    formats: list[str] = Field(description="Container formats accepted, by the library's names; any other is refused.")
    modes: dict[str, str] = Field(
        description=(
            "The library's pixel mode → the mode it is handed over as (grey, grey+alpha, RGB or RGBA arrays of shape [H, W, C]); "
            "a mode not listed is refused."
        )
    )
    exif_orientation: Literal["ignore", "apply"] = Field(
        default="ignore", description="Whether the EXIF orientation tag is applied after decoding."
    )
    truncated: Literal["refuse"] = Field(default="refuse", description="What a file that ends early gets.")


#: What a tokenizer makes of a text.
TokenArray = Literal["ids", "mask", "type_ids"]


def _ids_and_mask() -> list[TokenArray]:
    return ["ids", "mask"]


class HostKernel(_Model):
    """A node whose function is not exact as a graph: its library runs it, on every machine that serves the package."""

    node: str = Field(description="Name of the node in preprocess.item.onnx.")
    function: str = Field(description="The function it calls.")
    library: Literal["OpenCV"] = Field(default="OpenCV", description="The library that computes it.")
    library_version: str = Field(description="Version of the library where the package was written.")
    bound: int = Field(ge=0, description="Most levels between the library's pixels and the function's own, as measured.")
    digest: Sha256 = Field(description="SHA-256 of what training's library makes of fixed images; another one is refused.")


class Tokenizer(_Model):
    """Which tokenizer a `samegraph::Tokenize` host node stands for."""

    node: str = Field(description="Name of the Tokenize node in preprocess.item.onnx.")
    file: str = Field(default="assets/tokenizer.json", description="The tokenizer.json, by its path in the package.")
    library: Literal["tokenizers"] = Field(default="tokenizers", description="The library training tokenized with.")
    library_version: str = Field(description="Version of the library training tokenized with.")
    arrays: list[TokenArray] = Field(
        default_factory=_ids_and_mask,
        min_length=1,
        description="What the node gives, in the order of its outputs, int64 [length] each: ids, ones (mask), segments (type_ids).",
    )
    add_special_tokens: bool = Field(default=True, description="Whether tokens such as [CLS] and [SEP] are put around a text.")
    max_length: int | None = Field(
        default=None,
        ge=1,
        le=MAX_BUCKET,
        description="Most tokens of a text, special ones included; the rest is cut off. Unset: what the file says about truncation.",
    )

    @field_validator("arrays")
    @classmethod
    def _each_once(cls, arrays: list[TokenArray]) -> list[TokenArray]:
        if len(set(arrays)) != len(arrays):
            raise ValueError(f"arrays are given once each; got {', '.join(arrays)}")
        return arrays


class Vectorizer(_Model):
    """How a `samegraph::CountTerms` host node counts the terms of a text: what a fitted scikit-learn text vectorizer does.

    First lower case, then accents, then terms. Python's `re`, `str.lower` and `unicodedata` do it, as they did in training.
    """

    node: str = Field(description="Name of the CountTerms node in preprocess.item.onnx.")
    file: str = Field(description="JSON with the vocabulary in the order of its columns and the stop words, by its path in the package.")
    n_features: int = Field(ge=1, le=2**31 - 1, description="Columns of the count matrix.")
    hashed: bool = Field(
        default=False, description="Whether a term's column is its MurmurHash3 modulo n_features; otherwise the vocabulary's."
    )
    alternate_sign: bool = Field(default=False, description="Hashed terms: whether a term counts as −1 where its hash is negative.")
    analyzer: Literal["word", "char", "char_wb"] = Field(
        default="word",
        description="Terms are words, runs of characters, or runs of characters within words that have a space at both ends.",
    )
    ngram_range: tuple[Annotated[int, Field(ge=1, le=64)], Annotated[int, Field(ge=1, le=64)]] = Field(
        default=(1, 1), description="Least and most words or characters of a term."
    )
    token_pattern: str | None = Field(
        default=None, max_length=4096, description="Words: the Python regular expression whose matches, or their one group, they are."
    )
    lowercase: bool = Field(default=True, description="Whether the text is put into lower case, by str.lower.")
    strip_accents: Literal["ascii", "unicode"] | None = Field(
        default=None, description="NFKD first; then what is not ASCII is left out, or combining characters are."
    )
    binary: bool = Field(default=False, description="Whether every count is 1.")
    unicode_version: str = Field(description="Version of the Unicode database training had; later ones differ in characters that are new.")

    @model_validator(mode="after")
    def _words_have_a_pattern(self) -> Vectorizer:
        if (self.analyzer == "word") != (self.token_pattern is not None):
            raise ValueError("token_pattern is given exactly when analyzer is 'word'")
        if self.ngram_range[0] > self.ngram_range[1]:
            raise ValueError(f"ngram_range: {self.ngram_range[0]} is more than {self.ngram_range[1]}")
        return self


class RaggedInput(_Model):
    """Where a ragged length is in one input, and what stands beyond the end of a shorter one."""

    axis: int = Field(default=0, ge=0, le=15, description="Axis of one instance's value that has the length; the batch does not count.")
    pad_value: float | int | bool | str = Field(default=0, description="Element that fills up a shorter value, in the input's own type.")


class Ragged(_Model):
    """One length that differs between instances, such as a number of tokens, and how instances of different lengths run together.

    An instance is padded to the smallest bucket that holds it and runs with others of that bucket. `pack` proves that padding changes no
    answer by more than the package promises.
    """

    inputs: dict[ValueName, RaggedInput] = Field(
        min_length=1, description="Tensor fields or item-stage outputs that have this length; within an instance it is the same in all."
    )
    buckets: list[int] = Field(
        min_length=1, description="Lengths that are padded to, ascending; all are warmed up before the version is ready."
    )
    mask: ValueName | None = Field(
        default=None,
        description="Graph input that the server makes: [n, length], 1 where an instance has an element and 0 where there is padding.",
    )
    mask_dtype: Literal["int64", "int32", "bool", "float32"] = Field(default="int64", description="Element type of the mask.")
    outputs: dict[ValueName, int] = Field(
        default_factory=dict, description="Output → axis of one instance's output that has this length, where the padding is cut off again."
    )
    max_padding_ratio: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Largest share of a bucket that may be padding; an instance that would waste more runs at its own length.",
    )
    beyond: Literal["refuse", "exact"] = Field(
        default="refuse", description="What an instance longer than the largest bucket gets: an error, or an execution at its own length."
    )

    @field_validator("buckets")
    @classmethod
    def _ascending(cls, buckets: list[int]) -> list[int]:
        if buckets[0] < 1 or any(a >= b for a, b in itertools.pairwise(buckets)) or buckets[-1] > MAX_BUCKET:
            raise ValueError(f"buckets must be ascending lengths between 1 and {MAX_BUCKET}; got {buckets}")
        return buckets


class Batching(_Model):
    """Hints the server starts from; it may choose smaller batches, never larger ones."""

    max_batch_size: int = Field(default=64, ge=1, le=65536, description="Most instances in one execution.")
    max_queue_delay_s: float = Field(
        default=0.0, ge=0, le=10, description="Opt-in wait for more instances; 0 starts at once with what is there."
    )
    ragged: list[Ragged] = Field(
        default_factory=list,
        # Left out of manifest.json when empty: packages from before there was this member keep their one spelling, and their digest.
        exclude_if=lambda ragged: not ragged,
        description=(
            "Lengths that differ between instances. Without an entry, instances of different shapes run in executions of their own. "
            "An empty list is left out."
        ),
    )

    @field_validator("ragged")
    @classmethod
    def _few_shapes(cls, ragged: list[Ragged]) -> list[Ragged]:
        if math.prod(len(axis.buckets) for axis in ragged) > MAX_SHAPE_BUCKETS:
            raise ValueError(
                f"ragged lengths make more than {MAX_SHAPE_BUCKETS} shapes, all of which would be warmed up; use fewer buckets"
            )
        return ragged


class FileEntry(_Model):
    """Size and digest of one file of the package."""

    sha256: Sha256 = Field(description="SHA-256 of the content, in lower-case hex.")
    bytes: int = Field(ge=0, description="Size of the content.")


class Tolerance(_Model):
    """The promise for float tensors on one device profile; integers, strings and booleans are always equal.

    A float element passes when it is within `ulp` units in the last place, or within
    `relative_to_max` × the largest magnitude of the reference tensor, or within `atol + rtol × |reference|`.
    """

    ulp: int = Field(default=0, ge=0, description="Most representable numbers between the reference and the package.")
    relative_to_max: float = Field(
        default=0.0, ge=0, description="Allowed difference as a share of the reference tensor's largest magnitude."
    )
    atol: float = Field(default=0.0, ge=0, description="Allowed difference, absolute; `rtol` adds to it.")
    rtol: float = Field(default=0.0, ge=0, description="Allowed difference as a share of the reference element, added to `atol`.")


#: What is promised when an author states nothing else (docs/exactness: the contract).
DEFAULT_TOLERANCES: dict[str, Tolerance] = {
    "cpu.same": Tolerance(ulp=4, relative_to_max=1e-7),
    "cpu.other": Tolerance(atol=1e-5, rtol=1e-5),
    "gpu": Tolerance(atol=1e-5, rtol=1e-5),
}


class Measured(_Model):
    """What `pack` measured against the training code, per tensor, beside what is promised."""

    tensor: str = Field(description="Name of the value.")
    elements: int = Field(ge=0, description="Elements compared, over all samples and batch sizes.")
    different: int = Field(ge=0, description="Elements that are not bit-equal.")
    max_ulp: int = Field(ge=0, description="Largest distance in units in the last place; 0 for other types than floats.")
    max_abs: float = Field(ge=0, description="Largest absolute difference.")
    flips: int = Field(default=0, ge=0, description="Labels that differ where the reference's margin is below the promised bound.")


class Importer(_Model):
    """What read the package from a file or object of another library, and what shows that it reads it rightly."""

    name: str = Field(description="The importer: a module of samegraph_transforms.")
    proven: bool = Field(description="Whether it was compared with the library it reads from.")
    reference: str = Field(default="", description="What it was compared with; if it was not, why not.")
    warnings: list[str] = Field(default_factory=list, description="What it found in the file that its author should know.")


class Provenance(_Model):
    """Where the package came from. Holds no time stamp, so that the same training gives the same digest."""

    trainer: str = Field(default="", description="What made it: a script, a repository and revision.")
    framework: str = Field(default="", description="For example `scikit-learn 1.9.1`.")
    libraries: dict[str, str] = Field(default_factory=dict, description="Library → version in the training environment.")
    python: str = Field(default="", description="Python version of the training environment.")
    machine: str = Field(default="", description="Processor the proof ran on, architecture and model; `pack` fills it in.")
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="What else the proof ran with: system, libraries, execution providers, threads, locale; `pack` fills it in.",
    )
    data: str = Field(default="", description="The training data, in a sentence: source, rows, period, licence.")
    license: str = Field(default="", description="Licence of the model.")
    notes: str = Field(default="", description="Anything else worth knowing.")
    importer: Importer | None = Field(
        default=None,
        # Left out of manifest.json when there is none, so that other packages keep their digest.
        exclude_if=lambda importer: importer is None,
        description="What read it from a file or object of another library. Left out for packages made otherwise.",
    )


class Manifest(_Model):
    """The whole of manifest.json."""

    format: Literal[1] = Field(default=FORMAT, description="Format number of the package; a reader refuses any other than its own.")
    name: Name = Field(description="Name of the model: the directory above the version's, and a segment of its URLs.")
    version: int = Field(ge=1, le=2**31 - 1, description="Number of this version: the directory's name.")
    description: str = Field(default="", description="What the model answers, in a sentence.")
    fields: list[RawField] = Field(min_length=1, description="Raw inputs of one instance, in the order of rows.")
    outputs: list[Output] = Field(min_length=1, description="Outputs of one instance, in the order of answers.")
    stages: list[Stage] = Field(min_length=1, description="The chain of graphs, in the order they run; `model` is always there.")
    decoders: list[Decoder] = Field(default_factory=list, description="One per ImageDecoder node of preprocess.item.onnx.")
    tokenizers: list[Tokenizer] = Field(
        default_factory=list,
        # Left out of manifest.json when empty, as `batching.ragged` is: the digest of packages without text stays what it was.
        exclude_if=lambda tokenizers: not tokenizers,
        description="One per Tokenize node of preprocess.item.onnx. An empty list is left out.",
    )
    vectorizers: list[Vectorizer] = Field(
        default_factory=list,
        exclude_if=lambda vectorizers: not vectorizers,
        description="One per CountTerms node of preprocess.item.onnx. An empty list is left out.",
    )
    host_kernels: list[HostKernel] = Field(
        default_factory=list,
        exclude_if=lambda kernels: not kernels,
        description="Nodes of preprocess.item.onnx that no graph computes exactly: their library must be there. An empty list is left out.",
    )
    batching: Batching = Field(default_factory=Batching, description="Hints for forming batches.")
    tolerances: dict[str, Tolerance] = Field(
        default_factory=lambda: dict(DEFAULT_TOLERANCES),
        description=(
            "Device profile → what is promised for floats there: `cpu.same` (the processor and runtime of the proof), `cpu.other`, `gpu`."
        ),
    )
    measured: list[Measured] = Field(default_factory=list, description="What the proof measured, per tensor in the order the data flows.")
    golden_samples: int = Field(default=0, ge=0, description="How many golden samples lie in golden/.")
    provenance: Provenance = Field(default_factory=Provenance, description="Where the package came from.")
    files: dict[str, FileEntry] = Field(default_factory=dict, description="Every file of the package but manifest.json, by POSIX path.")

    @field_validator("stages")
    @classmethod
    def _stages_in_order(cls, stages: list[Stage]) -> list[Stage]:
        names = [s.name for s in stages]
        if "model" not in names:
            raise ValueError("a package needs a `model` stage")
        if names != sorted(set(names), key=STAGE_ORDER.index):
            raise ValueError(f"stages must be distinct and in the order {', '.join(STAGE_ORDER)}; got {', '.join(names)}")
        return stages

    @model_validator(mode="after")
    def _names_are_unique(self) -> Manifest:
        for what, names in (("field", [f.name for f in self.fields]), ("output", [o.name for o in self.outputs])):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{what} named twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _ragged_lengths_are_open(self) -> Manifest:
        seen: set[tuple[str, int]] = set()
        for axis in self.batching.ragged:
            for name, place in axis.inputs.items():
                self._check_ragged_input(name, place)
                if (name, place.axis) in seen:
                    raise ValueError(f"batching.ragged: axis {place.axis} of {name!r} is given twice")
                seen.add((name, place.axis))
            for name, number in axis.outputs.items():
                output = next((o for o in self.outputs if o.name == name), None)
                if output is None or not 0 <= number < len(output.shape) or output.shape[number] is not None:
                    raise ValueError(f"batching.ragged: {name!r} is no output whose axis {number} is open (null in its shape)")
        self._check_masks()
        return self

    def _check_ragged_input(self, name: str, place: RaggedInput) -> None:
        field = next((f for f in self.fields if f.name == name), None)
        item = self.stage("preprocess.item")
        if field is not None and field.kind == "tensor":
            shape = field.shape or []
            if not (place.axis < len(shape) and shape[place.axis] is None):
                raise ValueError(f"batching.ragged: axis {place.axis} of {name!r} is not open; its shape must have null there")
            if isinstance(place.pad_value, str) != (field.dtype == "string"):
                raise ValueError(f"batching.ragged: pad_value of {name!r} must be a {field.dtype}, not {place.pad_value!r}")
        elif item is None or name not in item.outputs.values():
            raise ValueError(f"batching.ragged: {name!r} is neither a tensor field nor an output of the item stage")
        if not any(name in stage.inputs.values() for stage in self.stages if stage.name != "preprocess.item"):
            raise ValueError(f"batching.ragged: no stage that sees a batch reads {name!r}, so nothing pads it")

    def _check_masks(self) -> None:
        made = {value for stage in self.stages for value in stage.outputs.values()} | {f.name for f in self.fields}
        made |= {f.companion for f in self.fields if f.companion is not None}
        masks = self.masks
        for mask in masks:
            if mask in made or masks.count(mask) > 1:
                raise ValueError(f"batching.ragged: the mask {mask!r} has the name of another value")
            if not any(mask in stage.inputs.values() for stage in self.stages if stage.name != "preprocess.item"):
                raise ValueError(f"batching.ragged: no stage that sees a batch reads the mask {mask!r}")

    @property
    def masks(self) -> list[str]:
        """Names of the values that the server makes to say what is padding."""
        return [axis.mask for axis in self.batching.ragged if axis.mask is not None]

    def field(self, name: str) -> RawField:
        """Return the raw field called `name`; KeyError if there is none."""
        for f in self.fields:
            if f.name == name:
                return f
        raise KeyError(name)

    def stage(self, name: str) -> Stage | None:
        """Return the stage called `name`, or None."""
        return next((s for s in self.stages if s.name == name), None)


def is_safe_name(name: str) -> bool:
    """Whether `name` may be a model's name (and so a directory and a URL segment)."""
    return re.fullmatch(NAME_PATTERN, name) is not None and not name.endswith(".")


def json_number(value: float) -> float | None:
    """Return `value`, or None for NaN and infinities, which JSON cannot carry."""
    return value if math.isfinite(value) else None


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of manifest.json (published as docs/manifest.schema.json)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}

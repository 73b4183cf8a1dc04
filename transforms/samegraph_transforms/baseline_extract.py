"""Raw rows and answers → one column of values per variable: what baselines are built from and what a server counts.

    InputColumns(manifest, fields).read(rows, pixels)    {variable name: values}, one value per row
    OutputColumns(manifest).read(arrays)                 likewise for the answers
    expected_cells(scores, positive)                     the sums behind expected accuracy

Which statistics a field or output has is a matter of its kind and shape alone (`field_statistics`, `output_statistics`), so a server
whose version has a baseline reads exactly the columns that baseline has variables for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .baseline import FieldBaseline, VariableKind
from .baseline_bins import Values
from .baseline_images import CONTAINER, PIXELS, container_facts, pixel_facts
from .baseline_text import BLOCK_NAMES, TEXT, TOKENS, text_facts, token_facts
from .decode import DEFAULT_MODES, FORMATS
from .manifest import Manifest, Output, RawField
from .signature import Row
from .tokenization import TokenFacts

#: Most elements of a tensor, and most classes of a score, that get a variable each.
MAX_ELEMENTS: Final = 16


@dataclass(frozen=True)
class Statistic:
    """A variable before anything was counted.

    Attributes:
        name: The variable's name.
        kind: How its values are binned.
        description: What is measured.
        unit: Of a number.
        known: Every value a category can have; None when that is for the rows to show.
        integers: Whether the category's values are integers.
        computed: Whether a number comes from float arithmetic (`baseline_bins.numeric_variable`).
    """

    name: str
    kind: VariableKind
    description: str = ""
    unit: str = ""
    known: tuple[str, ...] | None = None
    integers: bool = False
    computed: bool = False


# --- fields ----------------------------------------------------------------------------------------------------------

_CONTAINER: Final[dict[str, tuple[VariableKind, str, str, tuple[str, ...] | None]]] = {
    "width": ("numeric", "Width of the image as stored.", "pixels", None),
    "height": ("numeric", "Height of the image as stored.", "pixels", None),
    "aspect": ("numeric", "Width by height.", "", None),
    "bytes": ("numeric", "Size of the file.", "bytes", None),
    "format": ("categorical", "Container format.", "", FORMATS),
    "mode": ("categorical", "Pixel mode in the file.", "", tuple(DEFAULT_MODES)),
    "exif_orientation": ("categorical", "EXIF orientation tag.", "", ("none", *map(str, range(1, 9)))),
    "chroma_subsampling": (
        "categorical",
        "Chroma subsampling of a JPEG.",
        "",
        ("4:2:0", "4:2:2", "4:4:4", "4:4:0", "4:1:1", "4:1:0", "grey", "none", "other"),
    ),
    "quality_estimate": ("numeric", "Quality setting of a JPEG, from its quantisation table.", "", None),
}
_PIXELS: Final = {
    "brightness": ("Mean luma of what the model sees.", "0 to 255"),
    "contrast": ("Standard deviation of the luma.", "0 to 255"),
    "red_share": ("Red by red + green + blue.", "share"),
    "green_share": ("Green by red + green + blue.", "share"),
    "blue_share": ("Blue by red + green + blue.", "share"),
    "saturation": ("Spread of the channels by the brightest one.", "share"),
    "black_share": ("Pixels that are black.", "share"),
    "saturated_share": ("Pixels that are white or nearly.", "share"),
    "sharpness": ("Variance of the Laplacian.", ""),
}
_TEXT: Final[dict[str, tuple[VariableKind, str, str]]] = {
    "characters": ("numeric", "Length of the text.", "characters"),
    "words": ("numeric", "Words, parted by white space.", "words"),
    "word_length": ("numeric", "Mean length of a word.", "characters"),
    "block": ("categorical", "Unicode block of most characters.", ""),
    "other_blocks_share": ("numeric", "Characters of other blocks.", "share"),
    "non_ascii_share": ("numeric", "Characters beyond ASCII.", "share"),
    "vowel_share": ("numeric", "a, e, i, o, u among ASCII letters.", "share"),
    "capital_share": ("numeric", "A to Z among ASCII letters.", "share"),
    "digit_share": ("numeric", "Digits.", "share"),
    "punctuation_share": ("numeric", "ASCII punctuation.", "share"),
    "control_share": ("numeric", "Control characters.", "share"),
    "nfc_changed": ("boolean", "Whether normal form C is another text.", ""),
}
_TOKENS: Final[dict[str, tuple[VariableKind, str, str]]] = {
    "tokens": ("numeric", "Tokens the model is given, or terms.", "tokens"),
    "unknown_share": ("numeric", "Tokens that stand for what the vocabulary does not have.", "share"),
    "truncated": ("boolean", "Whether the text had more tokens than the model takes.", ""),
}
_TENSOR: Final = {
    "mean": "Mean of the finite elements.",
    "std": "Standard deviation of the finite elements.",
    "minimum": "Smallest finite element.",
    "maximum": "Largest finite element.",
    "finite_share": "Elements that are finite.",
}


def field_statistics(field: RawField, *, pixels: bool = False, tokens: bool = False) -> list[Statistic]:
    """Return what is measured of a raw field.

    Args:
        field: The field.
        pixels: For images: whether the item stage gives uint8 pixels to look at.
        tokens: For texts: whether a tokenizer reads them.
    """
    name = field.name
    if field.kind in ("number", "integer"):
        return [Statistic(name, "numeric", field.description)]
    if field.kind == "boolean":
        return [Statistic(name, "boolean", field.description)]
    if field.kind == "string":
        known = field.allowed if field.allowed is not None else field.known
        return [Statistic(name, "categorical", field.description, known=None if known is None else tuple(map(str, known)))]
    if field.kind == "text":
        closed = {"block": BLOCK_NAMES}
        measured = _TEXT | _TOKENS if tokens else _TEXT
        return [Statistic(f"{name}.{what}", kind, text, unit, closed.get(what)) for what, (kind, text, unit) in measured.items()]
    if field.kind == "bytes":
        return [Statistic(f"{name}.bytes", "numeric", "Size.", "bytes")]
    return _image_statistics(name, pixels) if field.kind == "image" else _array_statistics(name, field.graph_dtype, field.shape or [])


def _image_statistics(name: str, pixels: bool) -> list[Statistic]:
    found = [Statistic(f"{name}.{what}", kind, text, unit, known) for what, (kind, text, unit, known) in _CONTAINER.items()]
    found.append(Statistic(f"{name}.upscaled", "boolean", "Whether the short side is smaller than the model's input."))
    if pixels:
        found += [Statistic(f"{name}.{what}", "numeric", text, unit) for what, (text, unit) in _PIXELS.items()]
    return found


def _array_statistics(
    name: str, dtype: str, shape: Sequence[int | None], places: Sequence[str] | None = None, *, computed: bool = False
) -> list[Statistic]:
    """Return what is measured of an array of numbers: each element of a short vector, else moments."""
    if dtype in ("string", "bool"):
        return []
    if (elements := _elements(name, shape, places)) is not None:
        return [Statistic(element, "numeric", computed=computed) for element in elements]
    return [Statistic(f"{name}.{what}", "numeric", text, computed=True) for what, text in _TENSOR.items()]


def _elements(name: str, shape: Sequence[int | None], places: Sequence[str] | None) -> list[str] | None:
    """Return the names of an array's elements when there are few enough for a variable each, else None."""
    if not shape or list(shape) == [1]:
        return [name]
    if len(shape) != 1 or shape[0] is None or not 0 < shape[0] <= MAX_ELEMENTS:
        return None
    unique = places is not None and len(set(places)) == shape[0]
    return [f"{name}.{place}" for place in (places if unique and places is not None else range(shape[0]))]


class InputColumns:
    """Reads the monitored quantities of raw rows.

    Args:
        manifest: The package's manifest.
        fields: What is monitored of each field, in the manifest's order; the variables in them do not matter.
        tokenizers: Text field → what counts its tokens; needed for the fields whose baseline names a tokenizer.
    """

    def __init__(
        self, manifest: Manifest, fields: Sequence[FieldBaseline], tokenizers: Mapping[str, Callable[[str], TokenFacts]] | None = None
    ) -> None:
        counts = tokenizers or {}
        self._readers = [
            (place, baseline.pixels, _reader(field, baseline, counts[field.name] if baseline.tokenizer is not None else None))
            for place, (field, baseline) in enumerate(zip(manifest.fields, fields, strict=True))
            if baseline.monitored != "off"
        ]

    def read(self, rows: Sequence[Row], pixels: Mapping[str, Sequence[np.ndarray | None]] | None = None) -> dict[str, Values]:
        """Return one column per variable, with one value per row.

        Args:
            rows: Checked rows, as `Signature` returns them; at least one.
            pixels: Item-stage value (`FieldBaseline.pixels`) → that value for each row, for images.
        """
        columns: dict[str, Values] = {}
        by_field = list(zip(*rows, strict=True))
        for place, value, read in self._readers:
            columns.update(read(by_field[place], pixels.get(value) if pixels and value is not None else None))
        return columns


_Reader = Callable[[Sequence[Any], Sequence[np.ndarray | None] | None], dict[str, Values]]


def _reader(field: RawField, baseline: FieldBaseline, tokens: Callable[[str], TokenFacts] | None) -> _Reader:
    name = field.name
    if field.kind == "image":
        return lambda values, pixels: _image_columns(name, values, pixels, baseline)
    if field.kind == "text":
        if tokens is not None:
            return lambda values, _: _table(name, (*TEXT, *TOKENS), (text_facts(v) | token_facts(v, tokens) for v in values))
        return lambda values, _: _table(name, TEXT, map(text_facts, values))
    if field.kind == "bytes":
        return lambda values, _: {f"{name}.bytes": [None if v is None else len(v) for v in values]}
    if field.kind == "tensor":
        return lambda values, _: _array_columns(name, values, field.graph_dtype, field.shape or [], None)
    return lambda values, _: {name: values}


def _table(name: str, keys: Iterable[str], facts: Iterable[Mapping[str, Any]]) -> dict[str, Values]:
    listed = list(facts)
    return {f"{name}.{key}": [fact[key] for fact in listed] for key in keys}


def _image_columns(
    name: str, files: Sequence[bytes | None], pixels: Sequence[np.ndarray | None] | None, baseline: FieldBaseline
) -> dict[str, Values]:
    facts = [container_facts(data) for data in files]
    columns = _table(name, CONTAINER, facts)
    columns[f"{name}.upscaled"] = [_upscaled(fact, baseline.model_size) for fact in facts]
    if baseline.pixels is not None:
        columns |= _table(name, PIXELS, map(pixel_facts, pixels if pixels is not None else [None] * len(files)))
    return columns


def _upscaled(facts: Mapping[str, Any], model_size: tuple[int, int] | None) -> bool | None:
    if model_size is None or facts["width"] is None:
        return None
    return bool(min(facts["width"], facts["height"]) < min(model_size))


def _array_columns(
    name: str, values: Sequence[Any], dtype: str, shape: Sequence[int | None], places: Sequence[str] | None
) -> dict[str, Values]:
    if dtype in ("string", "bool"):
        return {}
    elements = _elements(name, shape, places)
    if elements is None:
        return _table(name, _TENSOR, map(_moments, values))
    if any(value is None for value in values):
        return {element: [None if v is None else v.reshape(-1)[i].item() for v in values] for i, element in enumerate(elements)}
    matrix = np.asarray(values).reshape(len(values), -1)
    return {element: matrix[:, i] for i, element in enumerate(elements)}


def _moments(value: np.ndarray | None) -> dict[str, float | None]:
    facts: dict[str, float | None] = dict.fromkeys(_TENSOR)
    if value is None or not value.size:
        return facts
    finite = value[np.isfinite(value)].astype(np.float64)
    facts["finite_share"] = finite.size / value.size
    if finite.size:
        with np.errstate(over="ignore", invalid="ignore"):
            facts |= {"mean": float(finite.mean()), "std": float(finite.std())}
        facts |= {"minimum": float(finite.min()), "maximum": float(finite.max())}
    return facts


# --- outputs ---------------------------------------------------------------------------------------------------------


def output_statistics(output: Output, outputs: Sequence[Output]) -> list[Statistic]:
    """Return what is measured of one output among a package's `outputs`."""
    name = output.name
    if (classes := _class_of(output, outputs)) is not None:
        return [Statistic(name, "categorical", "The answer.", known=classes or None, integers=output.dtype.startswith(("int", "uint")))]
    if output.dtype == "bool" and _elements(name, output.shape, None) == [name]:
        return [Statistic(name, "boolean", "The answer.")]
    if not _are_scores(output, outputs):
        floats = output.dtype.startswith("float")
        return _array_statistics(name, output.dtype, output.shape, output.element_names, computed=floats)
    found = [
        Statistic(f"{name}.top", "numeric", "The largest score.", computed=True),
        Statistic(f"{name}.margin", "numeric", "The largest score less the second.", computed=True),
    ]
    if not any(o.decided_by == name for o in outputs):
        known = tuple(_class_names(output))
        found.append(Statistic(f"{name}.class", "categorical", "The class of the largest score.", known=known))
    return found + [
        Statistic(f"{name}.{class_}", "numeric", f"The score of {class_}.", computed=True) for _, class_ in _shown_classes(output)
    ]


def _class_of(output: Output, outputs: Sequence[Output]) -> tuple[str, ...] | None:
    """Return the classes an output names (empty: not listed), or None when it is not a class."""
    integers = output.dtype.startswith(("int", "uint"))
    if output.dtype != "string" and not (integers and output.decided_by is not None):
        return None
    source = next((o for o in outputs if o.name == output.decided_by), None)
    return tuple(source.element_names or ()) if source is not None else ()


def _are_scores(output: Output, outputs: Sequence[Output]) -> bool:
    """Whether an output holds one float per class (or per place of a list of the best classes)."""
    vector = len(output.shape) == 1 and output.shape[0] is not None and output.shape[0] > 1
    meant = output.element_names is not None or any(o.decided_by == output.name for o in outputs)
    return output.dtype.startswith("float") and vector and meant


def _class_names(output: Output) -> list[str]:
    k = output.shape[0] or 0
    names = output.element_names
    return list(names) if names is not None and len(set(names)) == k == len(names) else [str(i) for i in range(k)]


def _shown_classes(output: Output) -> list[tuple[int, str]]:
    """Return place and name of the classes whose score has a variable: with two classes one says it all, and the second is the positive."""
    names = _class_names(output)
    if output.element_names is None or len(names) > MAX_ELEMENTS:
        return []
    named = [(i, class_ if class_ not in ("top", "margin", "class") else str(i)) for i, class_ in enumerate(names)]
    return named[1:] if len(named) == 2 else named


class OutputColumns:
    """Reads the monitored quantities of answers.

    Args:
        manifest: The package's manifest.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._outputs = list(manifest.outputs)

    def read(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Values]:
        """Return one column per variable, with one value per row.

        Args:
            arrays: Output → [n, *shape], as the package gives them.
        """
        columns: dict[str, Values] = {}
        for output in self._outputs:
            columns.update(self._read_one(output, arrays[output.name]))
        return columns

    def _read_one(self, output: Output, array: np.ndarray) -> dict[str, Values]:
        name, n = output.name, len(array)
        if _class_of(output, self._outputs) is not None or output.dtype == "bool":
            first = array.reshape(n, -1)[:, :1].ravel() if array.size else [None] * n
            return {name: first}
        if not _are_scores(output, self._outputs):
            return _array_columns(name, list(array), output.dtype, output.shape, output.element_names)
        scores = array.reshape(n, -1).astype(np.float64, copy=False)
        best = np.partition(scores, -2, axis=1)[:, -2:]
        with np.errstate(invalid="ignore"):
            columns: dict[str, Values] = {f"{name}.top": best[:, 1], f"{name}.margin": best[:, 1] - best[:, 0]}
        if not any(o.decided_by == name for o in self._outputs):
            names = _class_names(output)
            columns[f"{name}.class"] = [names[i] for i in scores.argmax(axis=1)]
        return columns | {f"{name}.{class_}": scores[:, i] for i, class_ in _shown_classes(output)}


def positive_class(output: Output, outputs: Sequence[Output], wanted: str | None = None) -> str | None:
    """Return the class that counts as positive: of two classes the `wanted` one, or else the second; None with more classes."""
    if not _are_scores(output, outputs) or output.element_names is None or len(output.element_names) != 2:
        return None
    return wanted if wanted in output.element_names else output.element_names[1]


def expected_cells(output: Output, array: np.ndarray, positive: str | None) -> dict[str, float]:
    """Return the sums that expected accuracy follows from; see `baseline.Expected`.

    Args:
        output: The output that holds the class probabilities.
        array: [n, k] as the package gives it; rows that are not finite are left out.
        positive: The positive class, for two classes.

    Source: confidence-based performance estimation without labels (CBPE, NannyML).
    """
    scores = np.clip(array.reshape(len(array), -1).astype(np.float64), 0.0, 1.0)
    scores = scores[np.isfinite(scores).all(axis=1)]
    top = scores.max(axis=1) if scores.size else np.zeros(0)
    cells = {"correct": float(top.sum()), "wrong": float((1.0 - top).sum())}
    if positive is None:
        return cells
    place = _class_names(output).index(positive)
    p, answered = scores[:, place], scores.argmax(axis=1) == place if scores.size else np.zeros(0, dtype=np.bool_)
    sums = {"tp": p[answered], "fp": 1.0 - p[answered], "fn": p[~answered], "tn": 1.0 - p[~answered]}
    return cells | {cell: float(values.sum()) for cell, values in sums.items()}

"""Rows at the edges of a signature: what golden samples should hold besides ordinary rows, made from the fields alone.

    for name, instance in edge_instances(fields, typical={"photo": jpeg_bytes}).items():
        samples.append(capture(name, instance))          # the training code's answer to it

`missing_edges` says which of them a set of golden samples lacks; `pack` prints that. For tables whose training frame is at hand,
`tabular.edge_rows` knows the columns' true extremes and goes further.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from PIL import Image

from .draft import GoldenSample
from .errors import InputError
from .manifest import RawField
from .signature import Signature
from .wire import decode_request

_UNSEEN: Final = "never seen in training"
_NON_ASCII: Final = "Ünïcødé 東京 e\u0301 🙂"
#: Of EXIF: how the camera was held; 6 is a quarter turn.
_ORIENTATION, _QUARTER_TURN = 0x0112, 6
#: From this ratio of its sides on an image counts as very tall or very wide.
_LONG: Final = 20
_SEED = 20251121


def edge_images() -> dict[str, bytes]:
    """Return image files at the edges of what decoders and resizes do, by a name with the usual ending; always the same bytes here.

    One pixel; very tall, very wide; grey, grey with alpha, alpha, palette with a transparent colour, 16 bits a pixel; CMYK; turned by EXIF;
    progressive; odd sides with chroma at half resolution. The sizes are small: all of them together take less than 100 kB.
    """
    generator = np.random.default_rng(_SEED)
    noise = generator.integers(0, 256, (45, 61, 3)).astype(np.uint8)
    across, down = np.meshgrid(np.linspace(0, 255, 61), np.linspace(0, 255, 45))
    smooth = np.stack([across, down, 255 - across], axis=2).astype(np.uint8)
    smooth[10:25, 20:40] = noise[10:25, 20:40]
    picture = Image.fromarray(smooth)
    alpha = Image.fromarray(down.astype(np.uint8))
    clear = picture.copy()
    clear.putalpha(alpha)
    grey_clear = Image.merge("LA", (picture.convert("L"), alpha))
    deep = Image.fromarray((down * 257).astype(np.uint16))
    exif = Image.Exif()
    exif[_ORIENTATION] = _QUARTER_TURN
    return {
        "one-pixel.png": _file(picture.crop((25, 15, 26, 16)), "PNG"),
        "very-tall.png": _file(picture.resize((3, 301)), "PNG"),
        "very-wide.png": _file(picture.resize((301, 3)), "PNG"),
        "grey.png": _file(picture.convert("L"), "PNG"),
        "grey.jpg": _file(picture.convert("L"), "JPEG", quality=90),
        "grey-alpha.png": _file(grey_clear, "PNG"),
        "alpha.png": _file(clear, "PNG"),
        "palette-transparent.png": _file(picture.quantize(16), "PNG", transparency=3),
        "sixteen-bit.png": _file(deep, "PNG"),
        "cmyk.jpg": _file(picture.convert("CMYK"), "JPEG", quality=90),
        "exif-turned.jpg": _file(picture, "JPEG", quality=90, exif=exif),
        "progressive.jpg": _file(picture, "JPEG", quality=90, progressive=True),
        "chroma-halved.jpg": _file(picture, "JPEG", quality=80, subsampling="4:2:0"),
    }


def _file(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def edge_instances(fields: Sequence[RawField], typical: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Return one JSON-ready instance for every edge of every field, by a name that says which.

    A typical instance is changed in one field: null where it may be missing; the least and the largest accepted number, zero; both
    booleans; the ends of a closed set; an unseen, an empty, a non-ASCII and the longest string or text; and every image of `edge_images`
    that the field's limits allow.

    Args:
        fields: The signature.
        typical: Field → a value that works, in JSON form or bytes; the field's own `example` where one is left out.

    Returns:
        Name → instance; bytes as `{"b64": …}`.

    Raises:
        ValueError: A required field has neither.
    """
    values = {f.name: (typical or {}).get(f.name, f.example) for f in fields}
    lacking = [f.name for f in fields if values[f.name] is None and f.required and f.missing.rule == "refuse" and f.kind != "image"]
    if lacking:
        raise ValueError(f"no typical value for {', '.join(lacking)}: give one in `typical`, or an `example` in the field")
    for f in fields:
        if f.kind == "image" and values[f.name] is None:
            values[f.name] = edge_images()["chroma-halved.jpg"]
    rows = {"edge-typical": values}
    for f in fields:
        rows |= {f"edge-{f.name}-{what}": {**values, f.name: value} for what, value in _edges(f)}
    nullable = {f.name: None for f in fields if f.missing.rule != "refuse"}
    if len(nullable) > 1:
        rows["edge-everything-missing"] = {**values, **nullable}
    return {name: {key: _json(value) for key, value in row.items()} for name, row in rows.items()}


def _json(value: Any) -> Any:
    return {"b64": base64.b64encode(value).decode("ascii")} if isinstance(value, bytes | bytearray | memoryview) else value


def _edges(field: RawField) -> Iterator[tuple[str, Any]]:
    if field.missing.rule != "refuse":
        yield "null", None
    if field.allowed is not None:
        yield "first-allowed", field.allowed[0]
        yield "last-allowed", field.allowed[-1]
    elif field.kind == "boolean":
        yield "true", True
        yield "false", False
    elif field.kind in ("string", "text"):
        yield from _strings(field)
    elif field.kind in ("number", "integer"):
        yield from _numbers(field)
    elif field.kind == "image":
        for name, data in edge_images().items():
            with Image.open(io.BytesIO(data)) as image:
                fits = image.width * image.height <= (field.max_pixels or np.inf) and len(data) <= (field.max_bytes or np.inf)
            if fits:
                yield name, data


def _strings(field: RawField) -> Iterator[tuple[str, str]]:
    limit = field.max_length
    for what, value in (("empty", ""), ("unseen", _UNSEEN), ("non-ascii", _NON_ASCII), ("space", f" {field.example or 'x'} ")):
        if limit is None or len(value) <= limit:
            yield what, value
    if limit is not None:
        yield "longest", "長" * limit


def _numbers(field: RawField) -> Iterator[tuple[str, float | int]]:
    whole = field.kind == "integer"
    wanted: list[tuple[str, float | None]] = [("min", field.minimum), ("max", field.maximum), ("zero", 0)]
    if not whole:
        wanted.append(("tiny", 5e-324))
    low = -np.inf if field.minimum is None else field.minimum
    high = np.inf if field.maximum is None else field.maximum
    for what, value in wanted:
        if value is not None and low <= value <= high:
            yield what, int(value) if whole else float(value)


# --- what golden samples lack ---------------------------------------------------------------------------------------------


def missing_edges(signature: Signature, samples: Sequence[GoldenSample]) -> list[str]:
    """Return, in words, the edges of the signature that no golden sample has; requests that are refused count for nothing.

    Looked for are, by field: null, the least and the largest accepted number, an unseen word (where the known ones are listed), empty and
    non-ASCII text; of images a grey one, one with alpha, CMYK, an EXIF turn, a side of one pixel, a very long side.
    """
    wanted = {f.name: dict.fromkeys(_wanted(f), False) for f in signature.fields}
    by_name = {f.name: f for f in signature.fields}
    for sample in samples:
        try:
            rows = decode_request(signature, sample.headers, sample.body).rows
        except InputError:
            continue
        for row in rows:
            for name, value in zip(signature.names, row, strict=True) if not isinstance(row, InputError) else ():
                if not all(wanted[name].values()):
                    wanted[name].update(dict.fromkeys(_shown(by_name[name], value) & wanted[name].keys(), True))
    return [f"{what} in {name!r}" for name, edges in wanted.items() for what, seen in edges.items() if not seen]


def _wanted(field: RawField) -> Iterator[str]:
    if field.missing.rule != "refuse":
        yield "null"
    if field.kind in ("number", "integer") and field.allowed is None:
        yield from (
            word for word, bound in (("the least accepted", field.minimum), ("the largest accepted", field.maximum)) if bound is not None
        )
    if field.kind in ("string", "text") and field.allowed is None:
        yield from ("empty text", "non-ASCII text")
        if field.known is not None:
            yield "an unseen word"
    if field.kind == "image":
        yield from ("a grey image", "alpha", "CMYK", "an EXIF turn", "a side of one pixel", "a very long side")


def _bounds(field: RawField) -> tuple[tuple[str, float | None], ...]:
    return ("the least accepted", field.minimum), ("the largest accepted", field.maximum)


def _shown(field: RawField, value: Any) -> set[str]:
    """Return the edges that a value is at."""
    if value is None or (isinstance(value, float) and value != value):
        return {"null"}
    if isinstance(value, str):
        empty, foreign = {"empty text"} if not value else set(), {"non-ASCII text"} if not value.isascii() else set()
        return empty | foreign | ({"an unseen word"} if field.known is not None and value not in field.known else set())
    if isinstance(value, bool):
        return set()
    if isinstance(value, int | float):
        return {word for word, bound in _bounds(field) if value == bound}
    return _image_edges(bytes(value)) if field.kind == "image" else set()


def _image_edges(data: bytes) -> set[str]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            short, long = sorted(image.size)
            edges = {
                "a grey image": image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16"),
                "alpha": image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info,
                "CMYK": image.mode == "CMYK",
                "an EXIF turn": image.getexif().get(_ORIENTATION, 1) != 1,
                "a side of one pixel": short == 1,
                "a very long side": long >= _LONG * short,
            }
    except Exception:  # noqa: BLE001 - Pillow raises a dozen classes for damaged files, which golden samples may hold
        return set()
    return {name for name, there in edges.items() if there}

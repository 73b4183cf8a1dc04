"""Captured rows in other forms: requests a server accepts again, tables, and images for an annotation tool."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import pyarrow.parquet as pq
from samegraph_transforms.manifest import BINARY_KINDS

from .columns import json_value
from .reader import Batch, Capture, CaptureError, answered_class, check_whole, requests, score_output

_EXTENSIONS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


@dataclass
class Written:
    """What an export came to.

    Attributes:
        rows: Rows written.
        requests: Requests written, where they are.
        left_out: Rows whose image was deleted since.
        notes: What else there is to say.
    """

    rows: int = 0
    requests: int = 0
    left_out: int = 0
    notes: list[str] = field(default_factory=list)


def row_document(batch: Batch, i: int) -> dict[str, Any]:
    """Return a row as JSON values: who answered what when, inputs and outputs."""
    meta = {name: values[i] for name, values in batch.meta.items()}
    facts = batch.facts
    return {
        "time": meta.pop("time").isoformat(),
        "model": facts.model,
        "version": facts.version,
        **meta,
        "inputs": {name: json_value(values[i]) for name, values in batch.inputs.items()},
        "outputs": {name: json_value(values[i]) for name, values in batch.outputs.items()},
    }


# --- requests -------------------------------------------------------------------------------------------------------------


def instance_documents(capture: Capture, batch: Batch) -> list[dict[str, Any] | None]:
    """Return a batch's rows as instances of a JSON request; None where an image was deleted since.

    Raises:
        CaptureError: A field was not captured, or only as a digest.
    """
    binary = {f.name for f in batch.facts.fields if f.kind in BINARY_KINDS}
    return [
        None if row is None else {name: _sent(value, name in binary) for name, value in row.items()} for row in capture.instances(batch)
    ]


def _sent(value: Any, binary: bool) -> Any:
    if binary and value is not None:
        return {"b64": base64.b64encode(value).decode()}
    return json_value(value)


def export_requests(capture: Capture, batches: Iterable[Batch], to: TextIO) -> Written:
    """Write a V1 body a line, one for each captured request."""
    written = Written()
    made: dict[int, list[dict[str, Any] | None]] = {}
    for rows in requests(batches):
        instances = []
        for batch, i in rows:
            if id(batch) not in made:
                made = {id(batch): instance_documents(capture, batch)}
            instances.append(made[id(batch)][i])
        there = [instance for instance in instances if instance is not None]
        written.left_out += len(instances) - len(there)
        if there:
            to.write(json.dumps({"instances": there}, ensure_ascii=False) + "\n")
            written.rows += len(there)
            written.requests += 1
    return written


def export_instances(capture: Capture, batches: Iterable[Batch], to: TextIO) -> Written:
    """Write an instance a line, as `samegraph predict` and a draft's baseline take them."""
    written = Written()
    for batch in batches:
        for instance in instance_documents(capture, batch):
            if instance is None:
                written.left_out += 1
                continue
            to.write(json.dumps(instance, ensure_ascii=False) + "\n")
            written.rows += 1
    return written


# --- tables ---------------------------------------------------------------------------------------------------------------


def export_csv(batches: Iterable[Batch], to: TextIO) -> Written:
    """Write a table of one version: what is no plain value as JSON, of an image its SHA-256.

    Raises:
        CaptureError: The rows are of versions with different columns.
    """
    written = Written()
    writer = csv.writer(to, lineterminator="\n")
    header: list[str] | None = None
    for batch in batches:
        names = [*batch.meta, "model", "version", *(f"inputs.{n}" for n in batch.inputs), *(f"outputs.{n}" for n in batch.outputs)]
        if header is None:
            header = names
            writer.writerow(header)
        elif names != header:
            raise CaptureError("the rows are of models with different columns; choose one with --model and --version")
        for i in range(batch.n):
            writer.writerow(_cells(batch, i))
            written.rows += 1
    return written


def _cells(batch: Batch, i: int) -> Iterator[Any]:
    yield from (values[i].isoformat() if name == "time" else values[i] for name, values in batch.meta.items())
    yield batch.facts.model
    yield batch.facts.version
    for values in (*batch.inputs.values(), *batch.outputs.values()):
        yield _cell(values[i])


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping) and "sha256" in value:
        return value["sha256"]
    value = json_value(value)
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | dict) else value


def export_parquet(batches: Iterable[Batch], to: BinaryIO) -> Written:
    """Write the rows of one version as one Parquet file of the same columns.

    Raises:
        CaptureError: The rows are of packages with different columns, or there are none.
    """
    written = Written()
    writer: Any = None
    try:
        for batch in batches:
            if writer is None:
                writer = pq.ParquetWriter(to, batch.columns.schema, compression="zstd")
            elif not batch.columns.schema.equals(writer.schema):
                raise CaptureError("the rows are of models with different columns; choose one with --model and --version")
            writer.write_batch(batch.columns)
            written.rows += batch.n
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise CaptureError("no row fits the choice, so there is nothing to write")
    return written


# --- images to annotate ---------------------------------------------------------------------------------------------------


def export_coco(capture: Capture, batches: Iterable[Batch], directory: Path) -> Written:
    """Write images with the model's answers as pre-annotations: `images/` and `annotations/instances_default.json`, in COCO's layout.

    An image that was captured several times is there once, with its latest answer. An annotation's box is the whole image, as the answer
    is about all of it; `score` is the model's confidence. Categories are the classes the model names, or else those it answered.

    Raises:
        CaptureError: The rows are of several models, hold no image or no class scores, or the images were not captured.
    """
    written = Written()
    images: dict[str, dict[str, Any]] = {}
    answers: dict[str, tuple[str, float]] = {}
    names: list[str] = []
    model = ""
    (directory / "images").mkdir(parents=True, exist_ok=True)
    (directory / "annotations").mkdir(exist_ok=True)
    for batch in batches:
        image_field = _image_field(batch)
        if model not in ("", batch.facts.model):
            raise CaptureError("the rows are of several models; choose one with --model")
        model = batch.facts.model
        output = score_output(batch.facts.outputs)
        if output is None:
            raise CaptureError(f"{model} gives no class scores, so there is nothing to annotate with")
        names += [name for name in output.element_names or () if name not in names]
        for i in range(batch.n):
            facts = batch.inputs[image_field][i]
            if facts is None or not facts["width"]:
                written.left_out += 1
                continue
            digest = facts["sha256"]
            if digest not in images:
                entry = _copied(capture, facts, directory)
                if entry is None:
                    written.left_out += 1
                    continue
                images[digest] = {"id": len(images) + 1, **entry}
            images[digest]["date_captured"] = batch.meta["time"][i].isoformat()
            images[digest]["prediction_id"] = batch.meta["prediction_id"][i]
            answers[digest] = answered_class(batch, i)
    names += sorted({name for name, _ in answers.values()} - set(names))
    _write_json(directory / "annotations" / "instances_default.json", _coco(model, images, answers, names))
    written.rows = len(images)
    return written


def _image_field(batch: Batch) -> str:
    found = [f.name for f in batch.facts.fields if f.kind == "image"]
    if len(found) != 1:
        raise CaptureError(f"{batch.facts.model} takes {len(found)} images an instance; images to annotate come from models that take one")
    check_whole(batch.facts, only=found[0])
    return found[0]


def _copied(capture: Capture, facts: Mapping[str, Any], directory: Path) -> dict[str, Any] | None:
    try:
        data = capture.blob(facts)
    except FileNotFoundError:
        return None
    assert data is not None
    name = facts["sha256"] + _EXTENSIONS.get(facts["format"] or "", "")
    (directory / "images" / name).write_bytes(data)
    turned = facts["exif_orientation"] in ("5", "6", "7", "8")  # annotation tools show the picture upright
    width, height = (facts["height"], facts["width"]) if turned else (facts["width"], facts["height"])
    return {"file_name": name, "width": width, "height": height, "license": 0, "flickr_url": "", "coco_url": ""}


def _coco(model: str, images: Mapping[str, dict[str, Any]], answers: Mapping[str, tuple[str, float]], names: list[str]) -> dict[str, Any]:
    categories = {name: i for i, name in enumerate(names, 1)}
    return {
        "info": {"description": f"Captured requests of {model}, with its answers as pre-annotations", "version": "1.0"},
        "licenses": [{"id": 0, "name": "", "url": ""}],
        "categories": [{"id": i, "name": name, "supercategory": ""} for name, i in categories.items()],
        "images": list(images.values()),
        "annotations": [
            {
                "id": entry["id"],
                "image_id": entry["id"],
                "category_id": categories[answers[digest][0]],
                "score": answers[digest][1],
                "bbox": [0, 0, entry["width"], entry["height"]],
                "area": entry["width"] * entry["height"],
                "segmentation": [],
                "iscrowd": 0,
            }
            for digest, entry in images.items()
        ],
    }


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def shown(value: Any, width: int = 60) -> str:
    """Return a value in a few characters, for a table."""
    if isinstance(value, Mapping) and "sha256" in value:
        size = f"{value['width']}x{value['height']} " if value.get("width") else ""
        return f"{value.get('format') or 'bytes'} {size}{value['sha256'][:8]}"
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        text = ", ".join(shown(v) for v in value[:8]) + (", …" if len(value) > 8 else "")
    else:
        text = "–" if value is None else str(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def text_stream(binary: BinaryIO) -> io.TextIOWrapper:
    """Return a stream that writes UTF-8."""
    return io.TextIOWrapper(binary, encoding="utf-8", newline="")

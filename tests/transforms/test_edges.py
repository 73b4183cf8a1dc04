"""Rows at the edges of a signature."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from package_builders import KINDS, draft, reference, sample, samples
from PIL import Image
from samegraph_transforms.draft import GoldenSample
from samegraph_transforms.edges import edge_images, edge_instances, missing_edges
from samegraph_transforms.image import Decode, Preprocess, Resize, ToRGB
from samegraph_transforms.manifest import Manifest, Missing, RawField
from samegraph_transforms.pack import pack
from samegraph_transforms.signature import Signature


def signature(directory: Path) -> Signature:
    """The small package's signature."""
    return Signature(pack(draft(), samples(), directory).manifest)


def test_every_edge_of_the_fields_is_there_and_works(tmp_path: Path) -> None:
    """Null, least, largest, zero, unseen, empty and non-ASCII: the package takes each and answers as its reference does."""
    rows = edge_instances(draft().fields)
    expected = {"typical", "size-null", "size-min", "size-max", "size-zero", "size-tiny"}
    expected |= {f"kind-{what}" for what in ("empty", "unseen", "non-ascii", "space")}
    assert {name.removeprefix("edge-") for name in rows} == expected
    assert rows["edge-kind-unseen"]["kind"] not in KINDS
    golden = [sample(name, [row]) for name, row in rows.items()]
    assert pack(draft(), golden, tmp_path).manifest.golden_samples == len(rows)
    assert reference([rows["edge-size-null"]])["features"][0, 0] == 0


def test_a_field_without_a_value_that_works_is_told() -> None:
    """Nothing is made up for a field that must be there and says no example."""
    with pytest.raises(ValueError, match="no typical value for weight"):
        edge_instances([RawField(name="weight", kind="number")])
    assert edge_instances([RawField(name="weight", kind="number")], {"weight": 2.5})["edge-weight-zero"] == {"weight": 0.0}


def test_closed_sets_lengths_and_companions_are_kept() -> None:
    """Allowed values from end to end, strings no longer than may be, and everything missing at once."""
    fields = [
        RawField(name="grade", kind="string", allowed=["a", "b", "c"], example="b"),
        RawField(name="note", kind="text", max_length=4, example="ok", missing=Missing(rule="sentinel", sentinel="")),
        RawField(name="paid", kind="boolean", example=True, missing=Missing(rule="companion")),
    ]
    rows = edge_instances(fields)
    assert [rows[f"edge-grade-{end}-allowed"]["grade"] for end in ("first", "last")] == ["a", "c"]
    assert rows["edge-note-longest"]["note"] == "長長長長"
    assert "edge-note-unseen" not in rows
    assert rows["edge-everything-missing"] == {"grade": "b", "note": None, "paid": None}


def test_images_are_what_their_names_say_and_decode() -> None:
    """One pixel, long sides, grey, alpha, 16 bits, CMYK, EXIF: each small, each the same every time, each taken by the pipeline."""
    images = edge_images()
    assert images == edge_images()
    assert sum(map(len, images.values())) < 100_000
    modes = {name: Image.open(io.BytesIO(data)).mode for name, data in images.items()}
    assert modes["cmyk.jpg"] == "CMYK"
    assert modes["grey.jpg"] == modes["grey.png"] == "L"
    assert (modes["alpha.png"], modes["grey-alpha.png"], modes["sixteen-bit.png"]) == ("RGBA", "LA", "I;16")
    pipeline = Preprocess([Decode(), ToRGB(), Resize((8, 8), "bilinear")])
    for name, instance in edge_instances(pipeline.fields("photo")).items():
        assert pipeline.item(base64.b64decode(instance["photo"]["b64"])).shape == (8, 8, 3), name
    small = [f.model_copy(update={"max_pixels": 10}) for f in pipeline.fields("photo")]
    assert {name for name in edge_instances(small) if "one-pixel" in name or "tall" in name} == {"edge-photo-one-pixel.png"}


def test_golden_samples_are_asked_for_the_edges_they_lack(tmp_path: Path) -> None:
    """What no sample shows is named; what the made rows show is not."""
    takes = signature(tmp_path)
    lacking = missing_edges(takes, [sample("one", [{"size": 1.0, "kind": "oak"}])])
    assert lacking == [
        "null in 'size'",
        "the least accepted in 'size'",
        "the largest accepted in 'size'",
        "empty text in 'kind'",
        "non-ASCII text in 'kind'",
        "an unseen word in 'kind'",
    ]
    made = [sample(name, [row]) for name, row in edge_instances(takes.fields).items()]
    assert missing_edges(takes, made) == []


def test_image_edges_are_recognised_in_requests() -> None:
    """Image bytes and JSON bodies alike; a file that is none counts for nothing."""
    fields: list[Any] = Preprocess([Decode(), ToRGB(), Resize((8, 8), "bilinear")]).fields("photo")
    takes = Signature(Manifest.model_construct(name="frames", fields=fields))

    def request(name: str, body: bytes, media_type: str) -> GoldenSample:
        return GoldenSample(name, "/v1/models/frames:predict", {"content-type": media_type}, body, {})

    images = edge_images()
    assert len(missing_edges(takes, [request("broken", b"none", "image/png")])) == 6
    some = [request(name, images[name], "image/png") for name in ("grey.png", "very-tall.png")]
    body = json.dumps({"instances": [{"b64": base64.b64encode(images["cmyk.jpg"]).decode()}]}).encode()
    assert missing_edges(takes, [*some, request("json", body, "application/json")]) == [
        "alpha in 'photo'",
        "an EXIF turn in 'photo'",
        "a side of one pixel in 'photo'",
    ]


def test_pack_recommends_the_edges_that_are_lacking(tmp_path: Path) -> None:
    """One line, which names them and says what makes them."""
    lines: list[str] = []
    pack(draft(), [sample("one", [{"size": 1.0, "kind": "oak"}])], tmp_path, progress=lines.append)
    (line,) = [line for line in lines if "no golden sample has" in line]
    assert "null in 'size'; the least accepted in 'size'" in line
    assert "edge_instances" in line

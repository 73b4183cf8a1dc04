"""Raw inputs on the wire."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from samegraph_client import RawInputInvalid
from samegraph_client.encoding import encode, media_type

JPEG = b"\xff\xd8\xff\xe0rest"


@pytest.mark.parametrize(
    ("raw", "instances", "single"),
    [
        pytest.param({"age": 41, "city": None}, [{"age": 41, "city": None}], True, id="row"),
        pytest.param([{"age": 41}, {"age": 29}], [{"age": 41}, {"age": 29}], False, id="rows"),
        pytest.param("great film", ["great film"], True, id="text is one instance"),
        pytest.param(["a", "b"], ["a", "b"], False, id="texts"),
        pytest.param({"x": float("nan")}, [{"x": None}], True, id="NaN is missing"),
        pytest.param({"x": np.float64("nan"), "y": np.int64(3)}, [{"x": None, "y": 3}], True, id="numpy scalars"),
        pytest.param({"x": np.arange(4).reshape(2, 2)}, [{"x": [[0, 1], [2, 3]]}], True, id="array"),
        pytest.param([JPEG], [{"b64": base64.b64encode(JPEG).decode()}], False, id="list of bytes"),
        pytest.param({"image": JPEG, "id": 7}, [{"image": {"b64": base64.b64encode(JPEG).decode()}, "id": 7}], True, id="bytes in a row"),
        pytest.param(True, [True], True, id="boolean"),
    ],
)
def test_raw_input_becomes_v1_instances(raw: object, instances: list[object], single: bool) -> None:
    """Every JSON form of a raw input becomes the instances a V1 server expects."""
    body = encode(raw)
    assert json.loads(body.content) == {"instances": instances}
    assert (body.media_type, body.single) == ("application/json", single)


@pytest.mark.parametrize("raw", [JPEG, bytearray(JPEG), memoryview(JPEG)], ids=["bytes", "bytearray", "memoryview"])
def test_bytes_travel_as_they_are(raw: object) -> None:
    """Encoded bytes are the body itself, named by their first bytes."""
    body = encode(raw)
    assert (body.content, body.media_type, body.single) == (JPEG, "image/jpeg", True)


def test_path_travels_as_its_content(tmp_path: Path) -> None:
    """A path stands for the bytes of its file."""
    file = tmp_path / "cat.jpg"
    file.write_bytes(JPEG)
    assert encode(file).content == JPEG
    assert json.loads(encode(file, wire="v1").content) == {"instances": [{"b64": base64.b64encode(JPEG).decode()}]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x00\x00\x00\x00WAVE", "application/octet-stream"),
        (b"GIF89a", "image/gif"),
        (b"", "application/octet-stream"),
    ],
)
def test_media_type_comes_from_the_bytes(content: bytes, expected: str) -> None:
    """The media type is what the bytes are, not what a file name says."""
    assert media_type(content) == expected


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param([], "the list is empty", id="no instances"),
        pytest.param({"x": float("inf")}, "instance 0, field 'x' is infinite", id="infinity"),
        pytest.param([{"x": 1}, {"x": object()}], "instance 1, field 'x' is a object", id="no form"),
        pytest.param({1: 2}, "field names are text", id="field name"),
        pytest.param(Path("/nowhere/cat.jpg"), "cannot read /nowhere/cat.jpg", id="missing file"),
    ],
)
def test_what_has_no_form_is_named(raw: object, words: str) -> None:
    """An input that cannot be sent is refused before anything is sent, with its place."""
    with pytest.raises(RawInputInvalid, match=words):
        encode(raw)

"""Tests of samegraph_service.openapi: what the document says a model takes is what the server takes."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from PIL import Image
from samegraph_service.api import error_document, v1, v2
from samegraph_service.batching import Outputs, Part
from samegraph_service.call import Answer, Origin
from samegraph_service.errors import (
    BodyTooLarge,
    BodyTooSlow,
    DeadlineExceeded,
    Draining,
    Internal,
    NoFeedbackKey,
    NotReady,
    Overloaded,
    PoisonInstance,
    Unauthorized,
    UnknownModel,
)
from samegraph_service.example_image import example_image
from samegraph_service.openapi import ExampleRequest, Json, ModelDoc, infer_example, openapi_document, predict_examples
from samegraph_transforms.errors import InputError, SamegraphError
from samegraph_transforms.manifest import Decoder, Manifest, Missing, Output, RawField, Stage
from samegraph_transforms.signature import Signature
from samegraph_transforms.wire import decode_request, decode_v1

BASE: Json = {
    "openapi": "3.1.0",
    "info": {"title": "samegraph", "version": "0.1.0"},
    "paths": {"/livez": {"get": {"operationId": "livez", "responses": {"200": {"description": "It answers."}}}}},
    "components": {"schemas": {"Health": {"type": "object"}}},
    "tags": [{"name": "health"}],
}
STAGE = Stage(name="model", file="model.onnx", inputs={}, outputs={})
SCORE = Output(name="score", dtype="float32", shape=[])
LABEL = Output(name="label", dtype="string", shape=[])
DECODER = Decoder(node="decode", library_version="12.0.0", formats=["JPEG", "PNG"], modes={"RGB": "RGB", "L": "L"})


def manifest(fields: list[RawField], outputs: list[Output] | None = None, **more: Any) -> Manifest:
    """Make a manifest called `m` with these fields."""
    return Manifest(**{"name": "m", "version": 1, "stages": [STAGE], **more}, fields=fields, outputs=outputs or [SCORE])


def tabular() -> Manifest:
    """Make a manifest with one field of every scalar kind and every missing rule."""
    fields = [
        RawField(name="age", kind="number", minimum=0, maximum=130, missing=Missing(rule="nan"), description="Age in years"),
        RawField(name="rooms", kind="integer", minimum=1, missing=Missing(rule="sentinel", sentinel=-1)),
        RawField(name="member", kind="boolean", missing=Missing(rule="companion")),
        RawField(name="island", kind="string", allowed=["Biscoe", "Dream"], missing=Missing(rule="sentinel", sentinel="")),
        RawField(name="city", kind="string", known=["Oslo", "Turin"], max_length=12),
        RawField(name="size", kind="integer", allowed=[1, 2, 3]),
        RawField(name="notes", kind="text", required=False, default="none", max_length=40),
        RawField(name="hint", kind="number", required=False),
    ]
    probabilities = Output(name="probabilities", dtype="float32", shape=[3], element_names=["a", "b", "c"], description="Per class")
    return manifest(fields, [probabilities, LABEL], description="A table.")


def image(**more: Any) -> Manifest:
    """Make a manifest with one image field."""
    return manifest(
        [RawField(name="image", kind="image", max_bytes=10_000_000, max_pixels=50_000_000)], [SCORE, LABEL], decoders=[DECODER], **more
    )


MANIFESTS: dict[str, Manifest] = {
    "tabular": tabular(),
    "image": image(),
    "image_and_column": manifest([RawField(name="photo", kind="image"), RawField(name="x", kind="number", required=False, default=0.5)]),
    "bytes": manifest([RawField(name="data", kind="bytes", max_bytes=5)]),
    "text": manifest([RawField(name="text", kind="text", max_length=5)]),
    "one_number": manifest([RawField(name="x", kind="number", minimum=3)]),
    "below_zero": manifest([RawField(name="x", kind="integer", maximum=-2.5), RawField(name="y", kind="number", maximum=-1)]),
    "tensors": manifest(
        [
            RawField(name="pixels", kind="tensor", dtype="float32", shape=[2, 3]),
            RawField(name="tokens", kind="tensor", dtype="int64", shape=[None]),
            RawField(name="words", kind="tensor", dtype="string", shape=[2]),
            RawField(name="mask", kind="tensor", dtype="bool", shape=[]),
            RawField(name="levels", kind="tensor", dtype="uint8", shape=[2], example=[0, 255]),
        ],
        [Output(name="y", dtype="int64", shape=[None, 2])],
    ),
}
each_manifest = pytest.mark.parametrize("m", [pytest.param(m, id=name) for name, m in MANIFESTS.items()])


def document(*models: ModelDoc) -> Json:
    """Make the document of these models on top of BASE."""
    return openapi_document(models, base=BASE)


def doc_of(m: Manifest, name: str = "m", **more: Any) -> Json:
    """Make the document of one model with one version."""
    return document(ModelDoc(name=name, versions={1: m}, default=1, **more))


def validator(doc: Json, schema: Json) -> Draft202012Validator:
    """Make a validator for `schema`, whose references point into `doc`."""
    return Draft202012Validator({**schema, "components": doc["components"]})


def component(doc: Json, name: str) -> Draft202012Validator:
    """Make a validator for a schema component of `doc`."""
    return validator(doc, {"$ref": f"#/components/schemas/{name}"})


def media_types_with_examples(doc: Json) -> Iterator[tuple[str, Json, Any]]:
    """Yield (where, schema, example) for every example in the document, in requests, answers and errors."""

    def walk(node: Any, where: str) -> Iterator[tuple[str, Json, Any]]:
        if isinstance(node, dict):
            if "schema" in node and "example" in node:
                yield where, node["schema"], node["example"]
            for name, example in node.get("examples", {}).items() if "schema" in node else ():
                yield f"{where}/{name}", node["schema"], example["value"]
            for key, value in node.items():
                yield from walk(value, f"{where}/{key}")

    yield from walk(doc["paths"], "")
    yield from walk(doc["components"]["responses"], "responses")


# --- the document as a whole -----------------------------------------------------------------------------------------


@each_manifest
def test_the_document_is_valid_openapi(m: Manifest) -> None:
    """An independent validator accepts the document of every kind of model, and it survives JSON."""
    doc = doc_of(m)
    OpenAPIV31SpecValidator(json.loads(json.dumps(doc, allow_nan=False))).validate()


def test_all_models_together_are_valid_openapi() -> None:
    """Many models with several versions, labels and odd names fit in one document, with unique operation ids."""
    models = [ModelDoc(name=name, versions={1: m, 7: m}, default=7, labels={"stable": 1}) for name, m in MANIFESTS.items()]
    models.append(ModelDoc(name="a.b-c_1", versions={1: tabular()}, default=1))
    doc = document(*models)
    OpenAPIV31SpecValidator(doc).validate()
    ids = [operation["operationId"] for item in doc["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))


@each_manifest
def test_every_example_satisfies_its_schema(m: Manifest) -> None:
    """The examples shown in the page, of requests and of errors, are what the schemas beside them say."""
    doc = doc_of(m)
    found = list(media_types_with_examples(doc))
    assert len(found) > 10
    for where, schema, example in found:
        errors = [e.message for e in validator(doc, schema).iter_errors(example)]
        assert not errors, where


@each_manifest
def test_the_server_reads_every_predict_example(m: Manifest) -> None:
    """Each example, sent as it stands, is decoded by the server's own code without an error."""
    for key, example in predict_examples(m).items():
        decoded = decode_v1(Signature(m), json.dumps(example["value"]).encode())
        assert len(decoded.rows) == 1
        assert not isinstance(decoded.rows[0], InputError), f"{key}: {decoded.rows[0]}"


def test_the_base_document_is_kept_and_not_changed() -> None:
    """FastAPI's paths, schemas and tags stay; the argument itself is left alone."""
    before = copy.deepcopy(BASE)
    doc = doc_of(tabular())
    assert before == BASE
    assert doc["paths"]["/livez"] == BASE["paths"]["/livez"]
    assert doc["components"]["schemas"]["Health"] == {"type": "object"}
    assert doc["tags"][-1] == {"name": "health"}
    assert doc["info"] == BASE["info"]


def test_a_models_own_description_wins_over_the_base_per_method() -> None:
    """Where FastAPI describes the same path, other methods survive and the model's method is the model's."""
    path = "/v1/models/m:predict"
    base = {**BASE, "paths": {path: {"post": {"summary": "generic"}, "options": {"summary": "kept"}}}}
    item = openapi_document([ModelDoc(name="m", versions={1: tabular()}, default=1)], base=base)["paths"][path]
    assert item["post"]["operationId"] == "m.predict"
    assert item["options"] == {"summary": "kept"}


def test_no_models_leaves_the_base() -> None:
    """An empty repository still has a valid document."""
    doc = document()
    OpenAPIV31SpecValidator(doc).validate()
    assert set(doc["paths"]) == {"/livez"}


def test_a_model_of_which_nothing_is_ready_has_no_paths() -> None:
    """What cannot answer is not offered."""
    doc = document(ModelDoc(name="m", versions={}, default=None))
    assert set(doc["paths"]) == {"/livez"}
    assert [t["name"] for t in doc["tags"]] == ["models", "health"]


def test_each_version_and_label_has_its_own_path_and_schema() -> None:
    """The default path follows the default version; the pinned paths stay with theirs."""
    new = manifest([RawField(name="y", kind="text")], version=2)
    doc = document(ModelDoc(name="m", versions={1: tabular(), 2: new}, default=2, labels={"stable": 1}))

    def request_schema(path: str) -> str:
        content = doc["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        return str(content["schema"]["$ref"]).rsplit("/", 1)[-1]

    assert request_schema("/v1/models/m:predict") == "m.v2.PredictRequest"
    assert request_schema("/v1/models/m/versions/1:predict") == "m.v1.PredictRequest"
    assert request_schema("/v1/models/m/versions/2:predict") == "m.v2.PredictRequest"
    assert request_schema("/v1/models/m/labels/stable:predict") == "m.v1.PredictRequest"
    assert request_schema("/v2/models/m/versions/1/infer") == "m.v1.InferRequest"
    assert "Answering: version 1, version 2 (default)." in doc["tags"][0]["description"]


def test_a_model_without_a_default_offers_its_pinned_versions_only() -> None:
    """When no version is the default, the path without a version is not promised."""
    doc = document(ModelDoc(name="m", versions={3: tabular()}, default=None))
    assert "/v1/models/m:predict" not in doc["paths"]
    assert "/v1/models/m/versions/3:predict" in doc["paths"]


def test_status_and_metadata_routes_are_listed() -> None:
    """Both protocols' reading routes are there, for the model and for each version."""
    paths = doc_of(tabular())["paths"]
    for path in ("/v1/models/m", "/v1/models/m/metadata", "/v1/models/m/versions/1/metadata", "/v2/models/m", "/v2/models/m/versions/1"):
        assert "get" in paths[path]


def test_every_failure_is_described_by_the_one_error_document() -> None:
    """Each status of the contract has the error document, with an example; those to be repeated say when."""
    doc = doc_of(tabular())
    responses = doc["paths"]["/v1/models/m:predict"]["post"]["responses"]
    assert set(responses) == {"200", "400", "404", "408", "413", "415", "422", "429", "500", "503", "504"}
    for status in sorted(set(responses) - {"200"}):
        response = doc["components"]["responses"][responses[status]["$ref"].rsplit("/", 1)[-1]]
        content = response["content"]["application/json"]
        assert content["schema"] == {"$ref": "#/components/schemas/ErrorDocument"}
        assert set(content["example"]) == {"error", "code", "retryable", "field", "instance", "request_id"}
        assert ("Retry-After" in response["headers"]) == (status in {"429", "503"})


# --- one field's schema ----------------------------------------------------------------------------------------------

ACCEPTED: list[tuple[str, str, list[Any], list[Any]]] = [
    ("tabular", "age", [0, 130, 41.5, None], [-1, 131, "41", True, [1]]),
    ("tabular", "rooms", [1, 2**53, None], [0, 1.5, 2**53 + 2, "1", False]),
    ("tabular", "member", [True, False, None], [0, 1, "true"]),
    ("tabular", "island", ["Biscoe", "Dream", None], ["biscoe", "", 3]),
    ("tabular", "city", ["Oslo", "Paris", "", "x" * 12], [None, "x" * 13, 5]),
    ("tabular", "size", [1, 3], [4, None, "1", True]),
    ("tabular", "notes", ["", "x" * 40], [None, "x" * 41, 1]),
    ("image", "image", [{"b64": "AAAA"}], [{"b64": ""}, {"b64": 1}, {"b64": "AAAA", "x": 1}, {}, None, "AAAA"]),
    ("bytes", "data", [{"b64": "AAAA"}, {"b64": "AAAAAAA="}], [{"b64": "A" * 12}]),
    ("tensors", "pixels", [[[1, 2.5, 3], [4, 5, 6]]], [[[1, 2, 3]], [1, 2, 3], [[1, 2, "3"], [4, 5, 6]], [[True, 2, 3], [4, 5, 6]], None]),
    ("tensors", "tokens", [[], [1, 2, -3]], [[1.5], ["1"], [[1]], [2**63]]),
    ("tensors", "words", [["a", "b"]], [["a"], ["a", 1]]),
    ("tensors", "mask", [True], [1, [True]]),
    ("tensors", "levels", [[0, 255]], [[0, 256], [-1, 0]]),
]


@pytest.mark.parametrize(("which", "name", "good", "bad"), [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in ACCEPTED])
def test_schema_and_server_accept_the_same_values(which: str, name: str, good: list[Any], bad: list[Any]) -> None:
    """For each kind of field, a value passes the published schema exactly when the server takes it."""
    m = MANIFESTS[which]
    doc = doc_of(m)
    valid = predict_examples(m)["rows"]["value"]["instances"][0]
    for value, expected in [*((v, True) for v in good), *((v, False) for v in bad)]:
        instance = {**valid, name: value}
        assert component(doc, "m.v1.Instance").is_valid(instance) is expected, value
        assert isinstance(Signature(m).try_row(instance, 0), InputError) is not expected, value


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**54), 2**54) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=45)
    | st.sampled_from(["Biscoe", "Dream", 1, 2, 3, 0.5, 130]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["b64", "x"]), inner, max_size=2),
    max_leaves=3,
)  # fmt: skip


@given(name=st.sampled_from([f.name for f in tabular().fields]), value=JSON_VALUES)
@settings(max_examples=400, deadline=None)
def test_schema_and_server_agree_on_anything(name: str, value: Any) -> None:
    """No JSON value at all passes one and fails the other."""
    m = MANIFESTS["tabular"]
    instance = {**TABULAR_EXAMPLE, name: value}
    assert TABULAR_INSTANCE.is_valid(instance) is not isinstance(Signature(m).try_row(instance, 0), InputError)


TABULAR_EXAMPLE: Json = predict_examples(tabular())["rows"]["value"]["instances"][0]
TABULAR_INSTANCE = component(doc_of(tabular()), "m.v1.Instance")


@pytest.mark.parametrize("name", [f.name for f in tabular().fields])
def test_schema_and_server_agree_on_what_may_be_left_out(name: str) -> None:
    """A field is required in the schema exactly when the server misses it; one that is optional but has no stand-in is required."""
    instance = {k: v for k, v in TABULAR_EXAMPLE.items() if k != name}
    taken = not isinstance(Signature(MANIFESTS["tabular"]).try_row(instance, 0), InputError)
    assert TABULAR_INSTANCE.is_valid(instance) is taken
    assert taken is (name == "notes")


def test_an_unknown_field_is_refused() -> None:
    """A misspelt name fails the schema too."""
    assert not TABULAR_INSTANCE.is_valid({**TABULAR_EXAMPLE, "colour": "red"})


@pytest.mark.parametrize(
    ("body", "valid"),
    [
        pytest.param({"instances": [{"x": 4}]}, True, id="row"),
        pytest.param({"instances": [4, {"x": 5}]}, True, id="bare"),
        pytest.param({"inputs": {"x": [4, 5]}}, True, id="columns"),
        pytest.param({"inputs": [4, 5]}, True, id="bare column"),
        pytest.param({"instances": [4], "signature_name": "serving_default"}, True, id="signature name"),
        pytest.param({"instances": [4], "signature_name": "other"}, False, id="other signature"),
        pytest.param({"instances": []}, False, id="no instances"),
        pytest.param({"inputs": {"x": []}}, False, id="empty column"),
        pytest.param({"instances": [4], "inputs": [4]}, False, id="both"),
        pytest.param({}, False, id="neither"),
        pytest.param({"instances": [4], "extra": 1}, False, id="unknown member"),
        pytest.param({"instances": 4}, False, id="not a list"),
        pytest.param([4], False, id="not an object"),
    ],
)
def test_the_outer_shape_of_a_request_is_the_servers(body: Any, valid: bool) -> None:
    """Rows or columns, never both; the server's decoder agrees on every case."""
    m = MANIFESTS["one_number"]
    assert component(doc_of(m), "m.v1.PredictRequest").is_valid(body) is valid
    try:
        rows = decode_v1(Signature(m), json.dumps(body).encode()).rows
        taken = not any(isinstance(r, InputError) for r in rows)
    except InputError:
        taken = False
    assert taken is valid


def test_descriptions_say_what_a_caller_needs() -> None:
    """Missing values, defaults, values seen in training and limits are stated in words."""
    properties = doc_of(tabular())["components"]["schemas"]["m.v1.Instance"]["properties"]
    assert properties["age"]["description"] == "Age in years. `null` means missing."
    assert "Seen in training: `Oslo`, `Turin`; another value is accepted" in properties["city"]["description"]
    assert 'Left out, it is "none".' in properties["notes"]["description"]
    photo = doc_of(image())["components"]["schemas"]["m.v1.Instance"]["properties"]["image"]
    assert photo["description"].startswith("An encoded image (JPEG, PNG), sent as the file is. At most 50,000,000 pixels.")


def test_a_huge_closed_set_is_counted_instead_of_listed() -> None:
    """Ten thousand values would make the page unusable; their number is given."""
    m = manifest([RawField(name="tail", kind="string", allowed=[f"N{i}" for i in range(10_000)])])
    schema = doc_of(m)["components"]["schemas"]["m.v1.Instance"]["properties"]["tail"]
    assert "enum" not in schema
    assert "One of 10,000 values, such as `N0`" in schema["description"]


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        pytest.param({"predictions": [{"probabilities": [0.1, 0.2, 0.7], "label": "c"}]}, True, id="rows"),
        pytest.param({"predictions": [{"probabilities": [None, 0.2, 0.7], "label": "c"}]}, True, id="NaN is null"),
        pytest.param({"outputs": {"probabilities": [[0.1, 0.2, 0.7]], "label": ["c"]}}, True, id="columns"),
        pytest.param(
            {"predictions": [None], "errors": [{"instance": 0, "code": "undecodable", "field": "image", "error": "x", "retryable": False}]},
            True,
            id="partial",
        ),
        pytest.param({"predictions": [{"probabilities": [0.1, 0.2], "label": "c"}]}, False, id="wrong shape"),
        pytest.param({"predictions": [{"label": "c"}]}, False, id="missing output"),
        pytest.param({"answer": 1}, False, id="something else"),
    ],
)
def test_the_answers_schema_follows_the_outputs(answer: Json, valid: bool) -> None:
    """Rows, columns, partial answers and unrepresentable numbers are covered; other shapes are not."""
    assert component(doc_of(tabular()), "m.v1.PredictResponse").is_valid(answer) is valid


def test_a_single_output_is_answered_bare() -> None:
    """One output: the predictions are the values themselves."""
    response = component(doc_of(MANIFESTS["one_number"]), "m.v1.PredictResponse")
    assert response.is_valid({"predictions": [0.5, None]})
    assert response.is_valid({"outputs": [0.5]})
    assert not response.is_valid({"predictions": [{"score": 0.5}]})


def test_the_meaning_of_each_place_is_told() -> None:
    """Class names stand in the description of the output."""
    schema = doc_of(tabular())["components"]["schemas"]["m.v1.Prediction"]["properties"]["probabilities"]
    assert schema["description"] == "Per class. In this order: `a`, `b`, `c`."


# --- bodies other than JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        pytest.param("tabular", ["application/json"], id="tabular"),
        pytest.param(
            "image",
            ["application/json", "image/jpeg", "image/png", "application/octet-stream", "multipart/form-data"],
            id="image: the decoder's formats",
        ),
        pytest.param(
            "image_and_column",
            ["application/json", "image/jpeg", "image/png", "application/octet-stream", "multipart/form-data"],
            id="image with an optional column",
        ),
        pytest.param("bytes", ["application/json", "application/octet-stream", "multipart/form-data"], id="bytes"),
        pytest.param("text", ["application/json", "text/plain"], id="text"),
        pytest.param("tensors", ["application/json"], id="tensors"),
    ],
)
def test_the_media_types_are_those_the_model_takes(which: str, expected: list[str]) -> None:
    """JSON always, and raw bodies where one field can take them."""
    content = doc_of(MANIFESTS[which])["paths"]["/v1/models/m:predict"]["post"]["requestBody"]["content"]
    assert list(content) == expected


def test_file_bodies_are_marked_so_that_the_page_offers_an_upload() -> None:
    """An image body, an octet stream and each multipart part have a content media type, and no JSON encoding."""
    content = doc_of(image())["paths"]["/v1/models/m:predict"]["post"]["requestBody"]["content"]
    assert content["image/png"]["schema"]["contentMediaType"] == "image/png"
    part = content["multipart/form-data"]["schema"]["properties"]["image"]["items"]
    assert part == {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}


def test_the_text_example_is_taken_as_a_raw_body() -> None:
    """The text/plain example can be sent as it stands."""
    m = MANIFESTS["text"]
    content = doc_of(m)["paths"]["/v1/models/m:predict"]["post"]["requestBody"]["content"]["text/plain"]
    (row,) = decode_request(Signature(m), {"content-type": "text/plain"}, content["example"].encode()).rows
    assert row == ("A sen",)


# --- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formats", "modes", "max_pixels", "expected"),
    [
        pytest.param([], [], None, ("PNG", "RGB", (32, 32)), id="anything goes"),
        pytest.param(["JPEG", "PNG"], ["L", "RGB"], None, ("PNG", "RGB", (32, 32)), id="PNG preferred"),
        pytest.param(["JPEG"], ["RGB"], 100, ("JPEG", "RGB", (10, 10)), id="JPEG only, few pixels"),
        pytest.param(["PNG"], ["L"], 1, ("PNG", "L", (1, 1)), id="grey, one pixel"),
        pytest.param(["PNG"], ["RGBA"], None, ("PNG", "RGBA", (32, 32)), id="with alpha"),
        pytest.param(["WEBP"], ["RGB"], None, ("WEBP", "RGB", (32, 32)), id="WEBP only"),
    ],
)
def test_the_example_image_is_what_the_decoder_accepts(
    formats: list[str], modes: list[str], max_pixels: int | None, expected: tuple[str, str, tuple[int, int]]
) -> None:
    """Format, mode and size respect the package's decoder, and the pixels are a gradient."""
    data = example_image(formats, modes, max_pixels=max_pixels)
    with Image.open(io.BytesIO(data)) as decoded:
        decoded.load()
        assert (decoded.format, decoded.mode, decoded.size) == expected
        contrast = int(np.ptp(np.asarray(decoded.convert("L"))))
    assert contrast > 90 or expected[2] == (1, 1)
    assert len(data) < 2_000


def test_a_fields_own_example_is_preferred() -> None:
    """The author's example goes before anything made up."""
    m = manifest(
        [RawField(name="x", kind="number", minimum=0, maximum=1, example=0.125), RawField(name="c", kind="string", known=["Oslo"])]
    )
    assert predict_examples(m)["rows"]["value"] == {"instances": [{"x": 0.125, "c": "Oslo"}]}


def test_golden_requests_come_first_with_their_answers() -> None:
    """Real requests are offered before made-up ones; the answer training gave stands in the response."""
    golden = ExampleRequest("coffee", "application/json", b'{"instances": [{"x": 5}]}', answer={"predictions": [0.25]})
    doc = doc_of(MANIFESTS["one_number"], examples={1: [golden]})
    operation = doc["paths"]["/v1/models/m:predict"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert list(examples) == ["golden_1", "rows", "bare", "columns"]
    assert examples["golden_1"] == {"summary": "A real request: coffee", "value": {"instances": [{"x": 5}]}}
    answer = operation["responses"]["200"]["content"]["application/json"]["examples"]["golden_1"]["value"]
    assert component(doc, "m.v1.PredictResponse").is_valid(answer)


def test_golden_requests_that_do_not_fit_are_left_out() -> None:
    """Large, broken and foreign bodies are skipped without moving the answers of the others."""
    small = base64.b64encode(b"\x89PNG").decode()
    golden = [
        ExampleRequest("large", "image/png", b"x" * 100_000, answer={"predictions": ["wrong place"]}),
        ExampleRequest("broken", "application/json", b"{", answer={"predictions": ["wrong place"]}),
        ExampleRequest("foreign", "text/plain", b"hello", answer={"predictions": ["wrong place"]}),
        ExampleRequest("small", "image/png", b"\x89PNG", answer={"predictions": ["right"]}),
    ]
    doc = doc_of(image(), examples={1: golden})
    operation = doc["paths"]["/v1/models/m:predict"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert examples["golden_1"]["value"] == {"instances": [{"image": {"b64": small}}]}
    assert "golden_2" not in examples
    answers = operation["responses"]["200"]["content"]["application/json"]["examples"]
    assert answers == {"golden_1": {"summary": "The answer to: small", "value": {"predictions": ["right"]}}}


# --- the Open Inference Protocol -------------------------------------------------------------------------------------


@each_manifest
def test_the_infer_example_names_every_field_once(m: Manifest) -> None:
    """One tensor per field, whose shape and data agree; bytes say that they are base64."""
    inputs = infer_example(m)["inputs"]
    assert [t["name"] for t in inputs] == [f.name for f in m.fields]
    for tensor, f in zip(inputs, m.fields, strict=True):
        flat = tensor["data"]
        while flat and isinstance(flat[0], list):
            flat = [v for inner in flat for v in inner]
        assert len(flat) == math.prod(tensor["shape"])
        assert ("parameters" in tensor) == (f.kind in ("image", "bytes"))


@each_manifest
def test_the_server_reads_the_infer_example(m: Manifest) -> None:
    """The V2 example, sent as it stands, satisfies its schema and is decoded by the server's own code without an error."""
    example = infer_example(m)
    assert component(doc_of(m), "m.v1.InferRequest").is_valid(example)
    (row,) = v2.decode(Signature(m), v2.parse(json.dumps(example).encode()), 10).rows
    assert not isinstance(row, InputError), row


@each_manifest
def test_the_server_takes_every_published_datatype_and_no_other(m: Manifest) -> None:
    """For each field, the datatypes in the schema are exactly those the server's decoder accepts; the field's own comes first."""
    own = {"number": "FP64", "integer": "INT64", "boolean": "BOOL", "string": "BYTES", "text": "BYTES", "image": "BYTES", "bytes": "BYTES"}
    alternatives = doc_of(m)["components"]["schemas"]["m.v1.InferRequest"]["properties"]["inputs"]["items"]["oneOf"]
    published = {s["title"]: s["properties"]["datatype"]["enum"] for s in alternatives}
    for place, f in enumerate(m.fields):
        assert published[f.name][0] == own.get(f.kind, v2.DATATYPES[f.graph_dtype])
        taken = set()
        for datatype in v2.DATATYPES.values():
            example = infer_example(m)
            example["inputs"][place]["datatype"] = datatype
            try:
                v2.decode(Signature(m), v2.parse(json.dumps(example).encode()), 10)
                taken.add(datatype)
            except InputError as error:
                if error.code == "out_of_range":  # the datatype is taken; it is this example's value that it cannot hold
                    taken.add(datatype)
                elif error.code != "wrong_dtype":
                    raise
        assert set(published[f.name]) == taken, f.name


# --- what the server itself writes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["tabular", "one_number"])
@pytest.mark.parametrize("form", ["rows", "columns"])
@pytest.mark.parametrize("failed", [False, True], ids=["whole", "partial"])
def test_the_servers_answers_satisfy_the_schema(which: str, form: Literal["rows", "columns"], failed: bool) -> None:
    """V1 answers as the server encodes them, rows, columns and partial, are what the document promises."""
    m = MANIFESTS[which]
    values = {
        "probabilities": np.array([[0.5, 0.25, math.nan]], np.float32),
        "label": np.array(["a"], object),
        "score": np.array([0.5], np.float32),
    }
    errors: dict[int, SamegraphError] = {1: InputError("bad", code="undecodable", field="image", instance=1)} if failed else {}
    origin = Origin("m", 1, "d" * 64, m.outputs)
    answer = Answer(origin, "r-1", "r-1", [Part(0, 1, Outputs([values[o.name] for o in m.outputs]), 0)], 1 + len(errors), errors, form)
    body = json.loads(v1.encode(answer, v1.ending(origin)))
    assert [e.message for e in component(doc_of(m), "m.v1.PredictResponse").iter_errors(body)] == []


def test_the_servers_errors_satisfy_the_schema() -> None:
    """The error document as the server writes it, for a request and for one instance."""
    doc = document()
    for error in (InputError("bad", code="wrong_type", field="x", instance=0), Draining(), Internal()):
        assert component(doc, "ErrorDocument").is_valid(error_document.document(error, "r-1"))
        assert component(doc, "InstanceError").is_valid(error_document.instance_document(error, 3))


def test_the_error_examples_are_the_servers_codes() -> None:
    """Status and retryability in each error's example are what the server gives its code."""
    by_code = {m.code: m for m in map(error_document.mapping_of, every_error())}
    for name, response in document()["components"]["responses"].items():
        example = response["content"]["application/json"]["example"]
        mapped = by_code[example["code"]]
        assert (name, example["retryable"]) == (f"Error{mapped.status}", mapped.retryable)


def every_error() -> Iterator[SamegraphError]:
    """Yield one error of every code a request can meet."""
    yield from (InputError("x", code=code) for code in InputError.CODES)
    yield from (
        Unauthorized("x"),
        UnknownModel("x", []),
        BodyTooLarge("x"),
        BodyTooSlow("x"),
        Internal(),
        NotReady("x"),
        DeadlineExceeded("x"),
        PoisonInstance(0, 600),
        NoFeedbackKey(),
    )
    yield Overloaded("x", reason="rows", retry_after_s=1.0)

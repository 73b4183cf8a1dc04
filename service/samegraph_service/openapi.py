"""The OpenAPI 3.1 document: FastAPI's own paths, and for each loaded model the requests it really takes.

Nothing here is written by hand per model. The manifest says which raw fields there are, what may be missing, which values
are allowed and which media types a body may have; this module says the same in JSON Schema, with an example that works.
It is a pure function of its arguments, and knows nothing of the web framework.
"""

from __future__ import annotations

import base64
import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

import numpy as np
from pydantic import JsonValue
from samegraph_transforms.manifest import BINARY_KINDS, MAX_EXACT_INTEGER, Manifest, Output, RawField
from samegraph_transforms.signature import Signature
from samegraph_transforms.wire import is_json, media_types, raw_field

from .example_image import example_image

Json: TypeAlias = dict[str, Any]

#: Longer closed sets are described and counted instead of listed, so that the page stays readable.
MAX_LISTED_VALUES = 1000
#: Larger golden requests are left out: a browser's text area does not take megabytes of base64.
MAX_EXAMPLE_BYTES = 32 * 1024
MAX_GOLDEN_EXAMPLES = 3

_MEDIA_TYPES = {
    "JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp",
    "TIFF": "image/tiff", "JPEG2000": "image/jp2", "AVIF": "image/avif", "PPM": "image/x-portable-pixmap",
}  # fmt: skip
_DATATYPES = {
    "float64": "FP64", "float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32", "int16": "INT16", "int8": "INT8",
    "uint64": "UINT64", "uint32": "UINT32", "uint16": "UINT16", "uint8": "UINT8", "bool": "BOOL", "string": "BYTES",
}  # fmt: skip


@dataclass(frozen=True)
class ExampleRequest:
    """One real request that works, from a package's golden samples.

    Attributes:
        name: Short and unique within its version; shown in the page.
        content_type: Of the body; JSON, or a raw body's media type.
        body: The raw bytes of a V1 predict request.
        answer: The V1 answer, when known.
    """

    name: str
    content_type: str
    body: bytes
    answer: JsonValue = None


@dataclass(frozen=True)
class ModelDoc:
    """One loaded model, as far as its callers are concerned.

    Attributes:
        name: The model's name in the URL.
        versions: Version → manifest, for the versions that answer.
        default: The version that answers when the request names none; one of `versions`, or None when none is ready.
        examples: Version → real requests to show before the generated ones.
        labels: Label → version.
    """

    name: str
    versions: Mapping[int, Manifest]
    default: int | None
    examples: Mapping[int, Sequence[ExampleRequest]] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)


def openapi_document(models: Sequence[ModelDoc], *, base: Mapping[str, Any]) -> Json:
    """Describe every route of the service as one OpenAPI 3.1 document.

    Args:
        models: The loaded models; the page lists them by name.
        base: The document FastAPI made of the other routes; it is not changed. Where both describe a method of the same
            path, the model's own description wins.

    Returns:
        A new document, ready for `json.dumps`.
    """
    document: Json = copy.deepcopy(dict(base))
    document["openapi"] = "3.1.0"
    document.setdefault("info", {"title": "samegraph", "version": "0"})
    paths: Json = {}
    components: dict[str, Json] = {
        "schemas": dict(_COMMON_SCHEMAS),
        "responses": _error_responses(),
        "headers": dict(_HEADERS),
        "parameters": dict(_PARAMETERS),
    }
    models = sorted(models, key=lambda m: m.name)
    for model in models:
        for version, manifest in sorted(model.versions.items()):
            components["schemas"].update(_version_schemas(model.name, version, manifest))
        for path, item in _model_paths(model):
            paths.setdefault(path, {}).update(item)
    for path, item in document.pop("paths", {}).items():
        paths[path] = {**{method: _with_our_errors(operation) for method, operation in item.items()}, **paths.get(path, {})}
    document["paths"] = paths
    merged = document.setdefault("components", {})
    for section, entries in components.items():
        merged[section] = {**merged.get(section, {}), **entries}
    described = [tag for tag in document.get("tags", []) if tag["name"] != _METADATA_TAG["name"]]
    document["tags"] = [*(_tag(m) for m in models if m.versions), _METADATA_TAG, *described]
    return document


def predict_examples(manifest: Manifest, golden: Sequence[ExampleRequest] = ()) -> dict[str, Json]:
    """Return JSON predict bodies that the model answers, by a short key, as OpenAPI example objects.

    The golden ones that fit on a page come first, then one built from the fields' examples, allowed values and limits: as a
    row, as columns and, for a model with one field, as a bare value.
    """
    examples: dict[str, Json] = {}
    for key, request, body in _shown(manifest, golden):
        examples[key] = {"summary": f"A real request: {request.name}", "value": body}
    instance = example_instance(manifest)
    examples["rows"] = {"summary": "Rows: one object per instance", "value": {"instances": [instance]}}
    if len(manifest.fields) == 1:
        bare = instance[manifest.fields[0].name]
        examples["bare"] = {"summary": "Rows: the bare value, since there is one field", "value": {"instances": [bare]}}
    columns = {name: [value] for name, value in instance.items()}
    examples["columns"] = {"summary": "Columns: one list per field", "value": {"inputs": columns}}
    return examples


def example_instance(manifest: Manifest) -> Json:
    """Return one instance, in JSON form, that satisfies every rule of the manifest's fields."""
    return {f.name: _example_value(f, manifest) for f in manifest.fields}


# --- schemas of one version ------------------------------------------------------------------------------------------


def _component(model: str, version: int, what: str) -> str:
    return f"{model}.v{version}.{what}"


def _ref(section: str, name: str) -> Json:
    return {"$ref": f"#/components/{section}/{name}"}


def _schema_ref(model: str, version: int, what: str) -> Json:
    return _ref("schemas", _component(model, version, what))


def _version_schemas(model: str, version: int, manifest: Manifest) -> Iterator[tuple[str, Json]]:
    for what, schema in (
        ("Instance", _instance_schema(manifest)),
        ("PredictRequest", _predict_request_schema(model, version, manifest)),
        ("Prediction", _prediction_schema(manifest.outputs)),
        ("PredictResponse", _predict_response_schema(model, version, manifest)),
        ("InferRequest", _infer_request_schema(manifest)),
        ("InferResponse", _infer_response_schema(model, manifest)),
    ):
        yield _component(model, version, what), schema


def _must_be_sent(f: RawField) -> bool:
    return f.required or (f.default is None and f.missing.rule == "refuse")


def _object(properties: Json, required: Sequence[str], **more: Any) -> Json:
    schema: Json = {"type": "object", "properties": properties, "additionalProperties": False, **more}
    if required:
        schema["required"] = list(required)
    return schema


def _instance_schema(manifest: Manifest) -> Json:
    properties = {f.name: field_schema(f, manifest) for f in manifest.fields}
    required = [f.name for f in manifest.fields if _must_be_sent(f)]
    return _object(properties, required, description="One instance: a value for every raw field the model was trained on.")


def field_schema(f: RawField, manifest: Manifest) -> Json:
    """Return the JSON Schema of one raw field's value in a V1 request."""
    schema = _KIND_SCHEMAS[f.kind](f)
    if f.allowed is not None and len(f.allowed) <= MAX_LISTED_VALUES:
        schema["enum"] = list(f.allowed)
    if f.missing.rule != "refuse":
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"].append(None)
    if f.default is not None:
        schema["default"] = f.default
    if f.kind not in BINARY_KINDS and (f.example is not None or f.known):
        schema["examples"] = [f.example] if f.example is not None else list(f.known or [])[:10]
    description = " ".join(_field_sentences(f, manifest))
    if description:
        schema["description"] = description
    return schema


def _field_sentences(f: RawField, manifest: Manifest) -> Iterator[str]:
    if f.description:
        yield f.description.rstrip(".") + "."
    if f.kind == "image":
        yield f"An encoded image ({', '.join(_formats(manifest)) or 'any format the package decodes'}), sent as the file is."
    if f.max_pixels is not None:
        yield f"At most {f.max_pixels:,} pixels."
    if f.max_bytes is not None:
        yield f"At most {f.max_bytes:,} bytes once decoded from base64."
    if f.allowed is not None and len(f.allowed) > MAX_LISTED_VALUES:
        yield f"One of {len(f.allowed):,} values, such as {_some(f.allowed)}; the metadata lists them."
    if f.known and f.allowed is None:
        yield f"Seen in training: {_some(f.known)}; another value is accepted and treated as unseen."
    if f.missing.rule != "refuse":
        yield "`null` means missing."
    if not f.required and f.default is not None:
        yield f"Left out, it is {json.dumps(f.default)}."


def _some(values: Sequence[object], most: int = 10) -> str:
    listed = ", ".join(f"`{v}`" for v in values[:most])
    return listed if len(values) <= most else f"{listed} and {len(values) - most:,} more"


def _bounds(low: float | None, high: float | None) -> Json:
    return {k: v for k, v in (("minimum", low), ("maximum", high)) if v is not None}


def _number_schema(f: RawField) -> Json:
    return {"type": "number", "format": "double", **_bounds(f.minimum, f.maximum)}


def _integer_range(f: RawField) -> tuple[int, int]:
    low = -MAX_EXACT_INTEGER if f.minimum is None else max(-MAX_EXACT_INTEGER, math.ceil(f.minimum))
    high = MAX_EXACT_INTEGER if f.maximum is None else min(MAX_EXACT_INTEGER, math.floor(f.maximum))
    return low, high


def _integer_schema(f: RawField) -> Json:
    return {"type": "integer", "format": "int64", **_bounds(*_integer_range(f))}


def _string_schema(f: RawField) -> Json:
    return {"type": "string"} if f.max_length is None else {"type": "string", "maxLength": f.max_length}


def _binary_schema(f: RawField) -> Json:
    encoded: Json = {"type": "string", "contentEncoding": "base64", "minLength": 4}
    if f.kind == "image":
        encoded["contentMediaType"] = "image/*"
    if f.max_bytes is not None:
        encoded["maxLength"] = 4 * math.ceil(f.max_bytes / 3)
    return _object({"b64": encoded}, ["b64"])


def _tensor_schema(f: RawField) -> Json:
    return _array_schema(f.dtype or "float64", f.shape or [])


def _array_schema(dtype: str, shape: Sequence[int | None], *, nullable: bool = False) -> Json:
    schema = _element_schema(dtype, nullable=nullable)
    for length in reversed(shape):
        schema = {"type": "array", "items": schema}
        if length is not None:
            schema |= {"minItems": length, "maxItems": length}
    return schema


def _element_schema(dtype: str, *, nullable: bool) -> Json:
    if dtype == "string":
        return {"type": "string"}
    if dtype == "bool":
        return {"type": "boolean"}
    if dtype.startswith("float"):
        return {"type": ["number", "null"] if nullable else "number"}
    info = np.iinfo(dtype)
    return {"type": "integer", "minimum": int(info.min), "maximum": int(info.max)}


_KIND_SCHEMAS: dict[str, Callable[[RawField], Json]] = {
    "number": _number_schema,
    "integer": _integer_schema,
    "boolean": lambda _: {"type": "boolean"},
    "string": _string_schema,
    "text": _string_schema,
    "image": _binary_schema,
    "bytes": _binary_schema,
    "tensor": _tensor_schema,
}


def _predict_request_schema(model: str, version: int, manifest: Manifest) -> Json:
    instance = _schema_ref(model, version, "Instance")
    columns: Json = _object(
        {f.name: {"type": "array", "minItems": 1, "items": field_schema(f, manifest)} for f in manifest.fields},
        [f.name for f in manifest.fields if _must_be_sent(f)],
    )
    if len(manifest.fields) == 1:
        bare = field_schema(manifest.fields[0], manifest)
        instance = {"anyOf": [instance, bare]}
        columns = {"anyOf": [columns, {"type": "array", "minItems": 1, "items": bare}]}
    rows = {"type": "array", "minItems": 1, "items": instance}
    return {
        "oneOf": [
            _object({"instances": rows, "signature_name": _SIGNATURE_NAME}, ["instances"], title="Rows"),
            _object({"inputs": columns, "signature_name": _SIGNATURE_NAME}, ["inputs"], title="Columns"),
        ]
    }


_SIGNATURE_NAME: Json = {
    "enum": ["serving_default", None],
    "description": "TensorFlow Serving's clients send it; there is the one signature.",
}


_IDENTITY: Json = {
    "model_name": {"type": "string"},
    "model_version": {"type": "string"},
    "prediction_id": {"type": "string", "description": "Names this prediction, for feedback; instance i of it is `<id>.i`."},
}


def _output_schema(output: Output) -> Json:
    schema = _array_schema(output.dtype, output.shape, nullable=True)
    sentences = [output.description.rstrip(".") + "."] if output.description else []
    if output.element_names:
        sentences.append(f"In this order: {_some(output.element_names, 20)}.")
    if sentences:
        schema["description"] = " ".join(sentences)
    return schema


def _prediction_schema(outputs: Sequence[Output]) -> Json:
    if len(outputs) == 1:
        return _output_schema(outputs[0])
    properties = {o.name: _output_schema(o) for o in outputs}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _predict_response_schema(model: str, version: int, manifest: Manifest) -> Json:
    prediction = {"anyOf": [_schema_ref(model, version, "Prediction"), {"type": "null"}]}
    outputs = {o.name: {"type": "array", "items": _output_schema(o)} for o in manifest.outputs}
    columns: Json = {"type": "object", "properties": outputs, "required": list(outputs)}
    if len(manifest.outputs) == 1:
        (columns,) = outputs.values()
    rows = {
        "type": "array",
        "items": prediction,
        "description": "In the order of the instances; `null` in the place of an instance that failed.",
    }
    failed = {
        "type": "array",
        "items": _ref("schemas", "InstanceError"),
        "description": "The instances that failed (with `on_error=partial`).",
    }
    return {
        "oneOf": [
            {
                "type": "object",
                "title": "Rows",
                "properties": {"predictions": rows, "errors": failed, **_IDENTITY},
                "required": ["predictions"],
            },
            {"type": "object", "title": "Columns", "properties": {"outputs": columns, **_IDENTITY}, "required": ["outputs"]},
        ]
    }


# --- the Open Inference Protocol -------------------------------------------------------------------------------------


def _datatypes(f: RawField) -> list[str]:
    """Return the tensor datatypes a field takes, its own first: a column's may also be any that widen into it without loss."""
    own = f.graph_dtype
    if f.kind in BINARY_KINDS:
        return ["BYTES"]
    if f.kind == "tensor" or own in ("string", "bool"):
        return [_DATATYPES[own]]
    # A nullable integer is a float64 in the graph and still a whole number on the wire; a 64-bit integer fits up to 2^53.
    own, floats = ("int64", []) if f.kind == "integer" else ("float64", ["float32", "float16"])
    return [_DATATYPES[d] for d in dict.fromkeys([own, *floats, *(d for d in _DATATYPES if "int" in d)])]


def _tensor_input_schema(f: RawField) -> Json:
    shape = f.shape if f.kind == "tensor" and f.shape is not None else None
    dimensions: Json = {
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "minItems": 1,
        "maxItems": 2,
        "description": "[n] or [n, 1]",
    }
    if shape is not None:
        described = ", ".join("n" if d is None else str(d) for d in ("n", *shape))
        dimensions |= {"minItems": 1 + len(shape), "maxItems": 1 + len(shape), "description": f"[{described}]"}
    properties: Json = {
        "name": {"const": f.name},
        "datatype": {"enum": _datatypes(f)},
        "shape": dimensions,
        "data": {
            "type": "array",
            "items": {},
            "description": "Row-major, flat or nested." + (" `null` is missing." if f.missing.rule != "refuse" else ""),
        },
        "parameters": {"type": "object"},
    }
    required = ["name", "datatype", "shape", "data"]
    if f.kind in BINARY_KINDS:
        properties["parameters"] = {"type": "object", "properties": {"content_type": {"const": "base64"}}, "required": ["content_type"]}
        required.append("parameters")
    return {"type": "object", "title": f.name, "properties": properties, "required": required}


def _infer_request_schema(manifest: Manifest) -> Json:
    inputs: Json = {
        "type": "array",
        "minItems": max(1, sum(_must_be_sent(f) for f in manifest.fields)),
        "maxItems": len(manifest.fields),
        "items": {"oneOf": [_tensor_input_schema(f) for f in manifest.fields]},
    }
    outputs = {
        "type": "array",
        "items": {"type": "object", "properties": {"name": {"enum": [o.name for o in manifest.outputs]}}, "required": ["name"]},
    }
    properties = {"id": {"type": "string"}, "parameters": {"type": "object"}, "inputs": inputs, "outputs": outputs}
    return {"type": "object", "properties": properties, "required": ["inputs"]}


def _infer_response_schema(model: str, manifest: Manifest) -> Json:
    tensors = [
        {
            "type": "object",
            "title": o.name,
            "properties": {
                "name": {"const": o.name},
                "datatype": {"const": _DATATYPES[o.dtype]},
                "shape": {"type": "array", "items": {"type": "integer"}},
                "data": {"type": "array", "items": {}},
            },
            "required": ["name", "datatype", "shape", "data"],
        }
        for o in manifest.outputs
    ]
    properties: Json = {
        "model_name": {"const": model},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": {"oneOf": tensors}},
    }
    return {"type": "object", "properties": properties, "required": ["model_name", "model_version", "outputs"]}


def infer_example(manifest: Manifest) -> Json:
    """Return a V2 JSON infer body with one instance that the model answers."""
    return {"id": "example-1", "inputs": [_infer_input(f, _example_value(f, manifest)) for f in manifest.fields]}


def _infer_input(f: RawField, value: Any) -> Json:
    tensor: Json = {"name": f.name, "datatype": _datatypes(f)[0], "shape": [1], "data": [value]}
    if f.kind == "tensor":
        tensor["shape"] = [1, *(1 if d is None else d for d in f.shape or [])]
        if f.example is not None:
            tensor["shape"] = list(np.array([f.example], dtype=object).shape)
    if f.kind in BINARY_KINDS:
        tensor |= {"data": [value["b64"]], "parameters": {"content_type": "base64"}}
    return tensor


# --- examples --------------------------------------------------------------------------------------------------------


def _shown(manifest: Manifest, golden: Sequence[ExampleRequest]) -> list[tuple[str, ExampleRequest, JsonValue]]:
    """Return key, request and JSON body of the golden requests that stand on the page."""
    bodies = ((request, _example_body(manifest, request)) for request in golden)
    fitting = [(request, body) for request, body in bodies if body is not None][:MAX_GOLDEN_EXAMPLES]
    return [(f"golden_{i}", request, body) for i, (request, body) in enumerate(fitting, 1)]


def _example_body(manifest: Manifest, request: ExampleRequest) -> JsonValue:
    """Return a golden request as a JSON body, or None when it does not fit on the page or cannot be JSON."""
    media_type = request.content_type.partition(";")[0].strip().lower()
    if len(request.body) > MAX_EXAMPLE_BYTES:
        return None
    if is_json(media_type):
        try:
            parsed: JsonValue = json.loads(request.body)
        except ValueError:  # a golden sample may hold a body that must be refused
            return None
        return parsed if isinstance(parsed, dict) else None
    name = raw_field(Signature(manifest), media_type)
    if name is None:
        return None
    if media_type == "text/plain":
        return {"instances": [{name: request.body.decode("utf-8", "replace")}]}
    return {"instances": [{name: {"b64": base64.b64encode(request.body).decode("ascii")}}]}


def _example_value(f: RawField, manifest: Manifest) -> Any:
    for candidate in (f.example, f.default, *(f.allowed or [])[:1], *(f.known or [])[:1]):
        if candidate is not None:
            return candidate
    return _KIND_EXAMPLES[f.kind](f, manifest)


def _example_number(f: RawField, _: Manifest) -> float:
    if f.minimum is not None and f.maximum is not None:
        return f.minimum + (f.maximum - f.minimum) / 2
    return max(0.0, f.minimum) if f.minimum is not None else min(0.0, f.maximum if f.maximum is not None else 0.0)


def _example_integer(f: RawField, manifest: Manifest) -> int:
    low, high = _integer_range(f)
    return min(max(low, math.floor(_example_number(f, manifest))), high)


def _example_text(f: RawField, _: Manifest) -> str:
    return "A sentence to try."[: f.max_length] if f.kind == "text" else "example"[: f.max_length]


def _example_binary(f: RawField, manifest: Manifest) -> Json:
    image = f.kind == "image"
    data = example_image(_formats(manifest), _modes(manifest), max_pixels=f.max_pixels) if image else b"example"[: f.max_bytes]
    return {"b64": base64.b64encode(data).decode("ascii")}


def _example_tensor(f: RawField, _: Manifest) -> Any:
    return _zeros(f.dtype or "float64", f.shape or [])


def _zeros(dtype: str, shape: Sequence[int | None]) -> Any:
    value: Any = {"string": "example", "bool": False}.get(dtype, 0.0 if dtype.startswith("float") else 0)
    for length in reversed(shape):
        value = [value] * (1 if length is None else length)
    return value


_KIND_EXAMPLES: dict[str, Callable[[RawField, Manifest], Any]] = {
    "number": _example_number,
    "integer": _example_integer,
    "boolean": lambda *_: False,
    "string": _example_text,
    "text": _example_text,
    "image": _example_binary,
    "bytes": _example_binary,
    "tensor": _example_tensor,
}


def _formats(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(fmt for d in manifest.decoders for fmt in d.formats))


def _modes(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(mode for d in manifest.decoders for mode in d.modes))


# --- paths -----------------------------------------------------------------------------------------------------------


def _tag(model: ModelDoc) -> Json:
    version = model.default if model.default is not None else max(model.versions)
    answering = ", ".join(f"version {v}" + (" (default)" if v == model.default else "") for v in sorted(model.versions))
    return {"name": model.name, "description": " ".join(filter(None, (model.versions[version].description, f"Answering: {answering}.")))}


def _model_paths(model: ModelDoc) -> Iterator[tuple[str, Json]]:
    v1, v2 = f"/v1/models/{model.name}", f"/v2/models/{model.name}"
    routes = [_Route(f"/versions/{v}", f".v{v}", f"version {v}", v) for v in sorted(model.versions)]
    if model.default is not None and model.default in model.versions:
        routes.insert(0, _Route("", "", "the default version", model.default))
    labelled = [_Route(f"/labels/{name}", f".label.{name}", f"the version labelled {name}", v) for name, v in sorted(model.labels.items())]
    for route in (*routes, *(r for r in labelled if r.version in model.versions)):
        yield f"{v1}{route.suffix}:predict", {"post": _predict_operation(model, route)}
    for route in routes:
        yield f"{v2}{route.suffix}/infer", {"post": _infer_operation(model, route)}
    if model.versions:
        yield v1, {"get": _get(model, "status", f"States of the versions of {model.name}", "ModelStatus")}
    for route in routes:
        of = f"{model.name}, {route.words}"
        yield (
            f"{v1}{route.suffix}/metadata",
            {"get": _get(model, f"metadata{route.key}", f"Signature, proof and provenance of {of}", "ModelMetadata")},
        )
        yield f"{v2}{route.suffix}", {"get": _get(model, f"v2.metadata{route.key}", f"V2 metadata of {of}", "InferMetadata")}


@dataclass(frozen=True)
class _Route:
    """One way to name a version: what goes into the path and the operation id, in words, and which version it is."""

    suffix: str
    key: str
    words: str
    version: int


def _operation(model: ModelDoc, key: str, summary: str, **more: Any) -> Json:
    return {"operationId": f"{model.name}.{key}", "summary": summary, "tags": [model.name], **more}


def _predict_operation(model: ModelDoc, route: _Route) -> Json:
    version = route.version
    manifest, golden = model.versions[version], model.examples.get(version, ())
    answer: Json = {"schema": _schema_ref(model.name, version, "PredictResponse")}
    answer["examples"] = _answer_examples(manifest, golden) or {"shape": _answer_shape(model.name, version, manifest)}
    return _operation(
        model,
        f"predict{route.key}",
        f"Predict with {route.words}",
        description=manifest.description,
        parameters=[_ref("parameters", name) for name in _PARAMETERS],
        requestBody={"required": True, "content": dict(_predict_bodies(model.name, version, manifest, golden))},
        responses=_responses(
            {
                "description": "The predictions, in the order of the instances.",
                "headers": _answer_headers(),
                "content": {"application/json": answer},
            }
        ),
    )


def _answer_examples(manifest: Manifest, golden: Sequence[ExampleRequest]) -> Json:
    shown = _shown(manifest, golden)
    return {
        key: {"summary": f"The answer to: {request.name}", "value": request.answer}
        for key, request, _ in shown
        if request.answer is not None
    }


def _answer_shape(name: str, version: int, manifest: Manifest) -> Json:
    """Return an answer of the right shape, for packages whose real answers are not at hand; it says that the values mean nothing."""
    values = {o.name: _zeros(o.dtype, o.shape) for o in manifest.outputs}
    prediction = values if len(values) > 1 else values[manifest.outputs[0].name]
    body = {"predictions": [prediction], "model_name": name, "model_version": str(version), "prediction_id": "5f1c9f0e2b7a4d33"}
    return {"summary": "The shape of an answer; its values are placeholders", "value": body}


def _predict_bodies(name: str, version: int, manifest: Manifest, golden: Sequence[ExampleRequest]) -> Iterator[tuple[str, Json]]:
    signature = Signature(manifest)
    yield "application/json", {"schema": _schema_ref(name, version, "PredictRequest"), "examples": predict_examples(manifest, golden)}
    for media_type in media_types(signature):
        if media_type == "image/*":
            for concrete in _image_media_types(manifest):
                yield concrete, {"schema": _file_schema(concrete, "One encoded image: one instance.")}
        elif media_type == "application/octet-stream":
            yield media_type, {"schema": _file_schema(media_type, "The bytes of the one binary field: one instance.")}
        elif media_type == "text/plain":
            (text,) = (f for f in manifest.fields if f.name == raw_field(signature, media_type))
            yield (
                media_type,
                {"schema": {**_string_schema(text), "description": "One text: one instance."}, "example": _example_value(text, manifest)},
            )
        elif media_type == "multipart/form-data":
            yield media_type, _multipart_body(signature)


def _image_media_types(manifest: Manifest) -> list[str]:
    # A concrete type instead of `image/*`, because the page sends what stands here as the Content-Type.
    return list(dict.fromkeys(_MEDIA_TYPES.get(f.upper(), "application/octet-stream") for f in _formats(manifest))) or [
        "image/jpeg",
        "image/png",
    ]


def _file_schema(media_type: str, description: str) -> Json:
    return {"type": "string", "contentMediaType": media_type, "description": description}


def _multipart_body(signature: Signature) -> Json:
    name = raw_field(signature, "application/octet-stream") or signature.names[0]
    # `format` says the same as `contentMediaType` in the words of OpenAPI 3.0, which Swagger UI still looks for in lists of files.
    part = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    files = {
        "type": "array",
        "minItems": 1,
        "items": part,
        "description": "One instance per part, answered in order; a bad one fails alone.",
    }
    return {"schema": {"type": "object", "properties": {name: files}, "required": [name]}}


def _infer_operation(model: ModelDoc, route: _Route) -> Json:
    version = route.version
    request = {
        "schema": _schema_ref(model.name, version, "InferRequest"),
        "examples": {"tensors": {"summary": "One instance", "value": infer_example(model.versions[version])}},
    }
    answer = {"schema": _schema_ref(model.name, version, "InferResponse")}
    return _operation(
        model,
        f"infer{route.key}",
        f"Predict with {route.words}, Open Inference Protocol",
        requestBody={"required": True, "content": {"application/json": request}},
        responses=_responses({"description": "The output tensors.", "headers": _answer_headers(), "content": {"application/json": answer}}),
    )


def _get(model: ModelDoc, key: str, summary: str, schema: str) -> Json:
    answer = {"description": summary + ".", "content": {"application/json": {"schema": _ref("schemas", schema)}}}
    operation = _operation(model, key, summary, responses={"200": answer, "404": _ref("responses", "Error404")})
    return {**operation, "tags": [_METADATA_TAG["name"]]}


# --- what every model shares -----------------------------------------------------------------------------------------

_UNAUTHORIZED: tuple[str, Json] = (
    "The bearer token is missing or wrong, or none is configured.",
    {"error": "admin routes are closed: no SAMEGRAPH_ADMIN__TOKEN is configured", "code": "unauthorized"},
)
_CONFLICT: tuple[str, Json] = (
    "The server is not set up for this, or the file it concerns cannot be written.",
    {"error": "this server takes no feedback: no SAMEGRAPH_FEEDBACK__KEY_FILE is configured", "code": "no_feedback_key"},
)
_ERRORS: dict[int, tuple[str, Json]] = {
    400: (
        "A bad input: not JSON, an unknown, missing or wrong field, a value out of range, an image that cannot be decoded.",
        {"error": "field 'age' must be a number; got a string", "code": "wrong_type", "retryable": False, "field": "age", "instance": 0},
    ),
    404: (
        "No such model, version or label.",
        {"error": "unknown model 'peguins'; this server has flights, penguins", "code": "unknown_model"},
    ),
    408: ("The body did not arrive in time.", {"error": "the body did not arrive within 30 s", "code": "body_too_slow", "retryable": True}),
    413: ("The body is larger than the server takes.", {"error": "the body is over the limit of 67108864 bytes", "code": "body_too_large"}),
    415: (
        "The model does not take this media type.",
        {"error": "this model does not take text/html; it takes application/json", "code": "unsupported_media_type"},
    ),
    422: (
        "The model failed twice on an instance of exactly this content; it is not run again for a while.",
        {"error": "the model failed twice on an instance of exactly this content", "code": "poison_instance", "instance": 0},
    ),
    429: (
        "Too much to do: send it again after the hint.",
        {"error": "the queue is full; come back in 120 ms", "code": "overloaded", "retryable": True},
    ),
    500: (
        "A fault of the server; its log has the details under the request id.",
        {"error": "an internal error occurred", "code": "internal", "retryable": True},
    ),
    503: (
        "Not ready, or shutting down: send it again, or elsewhere.",
        {"error": "version 3 is loading", "code": "not_ready", "retryable": True},
    ),
    504: (
        "The deadline passed while the request waited.",
        {"error": "the deadline passed after 0.5 s in the queue", "code": "deadline_exceeded", "retryable": True},
    ),
}


def _with_our_errors(operation: Json) -> Json:
    """Replace the failure that FastAPI describes, and that is never sent, by those that are."""
    responses = operation.get("responses", {})
    if "422" not in responses:
        return operation
    ours = {str(status): _ref("responses", f"Error{status}") for status in (400, 404, 503)}
    return {**operation, "responses": ours | {status: r for status, r in responses.items() if status != "422"}}


def _error_responses() -> dict[str, Json]:
    errors = {401: _UNAUTHORIZED, 409: _CONFLICT, **_ERRORS}
    return {f"Error{status}": _error_response(status, description, example) for status, (description, example) in errors.items()}


def _error_response(status: int, description: str, example: Json) -> Json:
    blank = {"error": "", "code": "", "retryable": False, "field": None, "instance": None, "request_id": "5f1c9f0e2b7a4d33"}
    document = {**blank, **example}
    headers = {"x-request-id": _ref("headers", "RequestId")}
    if status in (429, 503):
        headers |= {"Retry-After": _ref("headers", "RetryAfter"), "retry-after-ms": _ref("headers", "RetryAfterMs")}
    content = {"application/json": {"schema": _ref("schemas", "ErrorDocument"), "example": document}}
    return {"description": f"{HTTPStatus(status).phrase}. {description}", "headers": headers, "content": content}


def _responses(success: Json) -> Json:
    return {"200": success} | {str(status): _ref("responses", f"Error{status}") for status in _ERRORS}


def _answer_headers() -> Json:
    names = {
        "samegraph-model": "Model",
        "samegraph-model-version": "ModelVersion",
        "samegraph-package-digest": "PackageDigest",
        "samegraph-prediction-id": "PredictionId",
        "samegraph-failed-instances": "FailedInstances",
        "x-request-id": "RequestId",
    }
    return {header: _ref("headers", component) for header, component in names.items()}


def _header(description: str, kind: str = "string") -> Json:
    return {"description": description, "schema": {"type": kind}}


_METADATA_TAG = {"name": "models", "description": "What is loaded, in which state, and what it takes."}

_HEADERS: Json = {
    "Model": _header("The model that answered."),
    "ModelVersion": _header("The version that answered.", "integer"),
    "PackageDigest": _header("Identity of the package that answered: SHA-256 of its manifest, in hex."),
    "PredictionId": _header("Names this prediction, for feedback; instance i of it is `<id>.i`."),
    "FailedInstances": _header("How many instances of the request failed; absent when none did.", "integer"),
    "RequestId": _header("Id of the request, also in the server's log: the caller's own `x-request-id`, or one made here."),
    "RetryAfter": _header("Whole seconds to wait before sending the request again.", "integer"),
    "RetryAfterMs": _header("The same in milliseconds.", "integer"),
}

_PARAMETERS: Json = {
    "OnError": {
        "name": "on_error",
        "in": "query",
        "description": "Whether one bad instance fails the request or only itself. Default: `partial` for multipart, else `fail`.",
        "schema": {"type": "string", "enum": ["fail", "partial"]},
    },
    "Timeout": {
        "name": "x-request-timeout-seconds",
        "in": "header",
        "description": "How long the caller waits; an answer that would come later is 504. The server's own limit applies as well.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
}

_ERROR_PROPERTIES: Json = {
    "error": {"type": "string", "description": "A sentence for a person."},
    "code": {"type": "string", "description": "The same for a program: a stable word."},
    "retryable": {"type": "boolean", "description": "Whether the same request may succeed later."},
    "field": {"type": ["string", "null"], "description": "The raw field at fault."},
    "instance": {"type": ["integer", "null"], "minimum": 0, "description": "Index of the instance at fault."},
}

_COMMON_SCHEMAS: Json = {
    "ErrorDocument": {
        "type": "object",
        "description": "What every route answers when it fails.",
        "properties": {
            **_ERROR_PROPERTIES,
            "request_id": {"type": ["string", "null"], "description": "Names the request in the server's log."},
        },
        "required": ["error", "code", "retryable"],
    },
    "InstanceError": {
        "type": "object",
        "description": "One instance that failed while its neighbours were answered.",
        "properties": _ERROR_PROPERTIES,
        "required": ["error", "code", "retryable", "instance"],
    },
    "ModelStatus": {
        "type": "object",
        "properties": {
            "model_version_status": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"version": {"type": "string"}, "state": {"type": "string"}, "status": {"type": "object"}},
                    "required": ["version", "state"],
                },
            },
            "name": {"type": "string"},
            "ready": {"type": "boolean", "description": "Whether any version answers."},
        },
        "required": ["name", "ready", "model_version_status"],
    },
    "ModelMetadata": {
        "type": "object",
        "description": "What the version takes and answers, what was proven of it, how it runs here and where it came from.",
        "properties": {name: {"type": "object"} for name in ("model_spec", "proof", "execution", "provenance")}
        | {name: {"type": "array", "items": {"type": "object"}} for name in ("fields", "outputs")}
        | {name: {"type": "string"} for name in ("digest", "description")},
        "required": ["model_spec", "digest", "fields", "outputs"],
    },
    "InferMetadata": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"},
            "inputs": {"type": "array", "items": _ref("schemas", "TensorMetadata")},
            "outputs": {"type": "array", "items": _ref("schemas", "TensorMetadata")},
        },
        "required": ["name", "platform", "inputs", "outputs"],
    },
    "TensorMetadata": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "datatype": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["name", "datatype", "shape"],
    },
}

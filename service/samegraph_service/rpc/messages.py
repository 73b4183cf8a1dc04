"""The protocol's messages: their classes, and what becomes of them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from samegraph_transforms.errors import InputError

from samegraph_service.api import v2
from samegraph_service.api.v2_tensors import written
from samegraph_service.call import Answer

from .descriptors import DESCRIPTORS

#: Datatype → the field of `InferTensorContents` that holds it. FP16 and BF16 have none: they come in bytes.
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def _classes() -> dict[str, type[Any]]:
    """Return full name → class of every message, in a pool of their own: the default one may hold another client's of the same names."""
    pool = descriptor_pool.DescriptorPool()
    names = []
    for file in descriptor_pb2.FileDescriptorSet.FromString(base64.b64decode(DESCRIPTORS)).file:
        pool.Add(file)
        names += [f"{file.package}.{message.name}" for message in file.message_type]
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


_CLASSES = _classes()


def message_type(name: str) -> type[Any]:
    """Return the class of a message of the inference service; KeyError if there is none."""
    return _CLASSES[f"inference.{name}"]


InferRequest = message_type("ModelInferRequest")
InferResponse = message_type("ModelInferResponse")
StreamInferResponse = message_type("ModelStreamInferResponse")
HealthRequest = _CLASSES["grpc.health.v1.HealthCheckRequest"]
HealthResponse = _CLASSES["grpc.health.v1.HealthCheckResponse"]


def parsed(kind: type[Any], data: bytes) -> Any:
    """Read a message.

    Raises:
        InputError: The bytes are no such message.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InputError(f"the message is no {kind.DESCRIPTOR.full_name}", code="bad_body") from error


def filled(kind: type[Any], document: Mapping[str, Any]) -> bytes:
    """Return a message with the members of a document, in bytes."""
    message: Message = ParseDict(dict(document), kind())
    return message.SerializeToString()


def parameters_of(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as V2 has them in JSON; one without a value is left out."""
    chosen = ((name, entry.WhichOneof("parameter_choice"), entry) for name, entry in entries.items())
    return {name: getattr(entry, choice) for name, choice, entry in chosen if choice is not None}


def to_request(message: Any) -> v2.InferRequest:
    """Return what an inference request asks.

    Raises:
        InputError: Its contents are not where the protocol puts them.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InputError(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs; it needs one each", code="wrong_shape"
        )
    inputs = [_tensor(tensor, raw[i] if raw else None) for i, tensor in enumerate(message.inputs)]
    outputs = [v2.RequestedOutput(output.name, parameters_of(output.parameters)) for output in message.outputs]
    return v2.InferRequest(inputs, message.id, parameters_of(message.parameters), outputs, binary=True)


def _tensor(tensor: Any, raw: bytes | None) -> v2.InputTensor:
    found = v2.InputTensor(tensor.name, tensor.datatype, list(tensor.shape), parameters_of(tensor.parameters))
    if raw is not None:
        if tensor.HasField("contents"):
            raise InputError(
                f"input {tensor.name[:100]!r} has `contents` beside raw_input_contents; send one of them",
                code="bad_body",
                field=tensor.name[:100],
            )
        found.raw = memoryview(raw)
    elif tensor.datatype == "BYTES":
        found.elements = list(tensor.contents.bytes_contents)
    elif tensor.datatype in ("FP32", "FP64"):  # by way of bytes, in which NaN is missing
        contents = getattr(tensor.contents, _contents(tensor))
        found.raw = memoryview(np.array(contents, "<f4" if tensor.datatype == "FP32" else "<f8").tobytes())
    else:
        found.data = list(getattr(tensor.contents, _contents(tensor)))
    return found


def _contents(tensor: Any) -> str:
    name = _CONTENTS.get(tensor.datatype)
    if name is None:
        raise InputError(
            f"input {tensor.name[:100]!r}: {tensor.datatype[:20]!r} has no typed contents; send it in raw_input_contents",
            code="wrong_dtype",
            field=tensor.name[:100],
        )
    return name


def response_to(answer: Answer, request: v2.InferRequest) -> Any:
    """Return an answer as a message; every output is in `raw_output_contents`, as Triton's are."""
    origin = answer.origin
    message = InferResponse(model_name=origin.model, model_version=str(origin.version), id=request.id or answer.request_id)
    for name, text in v2.parameters_of(answer).items():
        message.parameters[name].string_param = str(text)
    for tensor in v2.outputs_of(answer, request):
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        message.raw_output_contents.append(written(tensor.array))
    return message

"""ONNX external data, kept inside the package and covered by its digests.

A graph may keep its weights in other files. A hostile or careless graph can name any file of the machine there, so locations
are checked before anything is opened, and the bytes come from a reader that has compared them with the manifest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import onnx

from .errors import DigestMismatch, PackageError
from .paths import check_relative
from .weights import Weights, is_detached

#: Above this many bytes of weights in one graph they go to a file of their own: a protobuf message ends at 2 GiB.
MAX_EMBEDDED_BYTES = 1 << 30
#: Offsets in a data file are multiples of this, so that runtimes can map it (onnx: ExternalData.md).
ALIGNMENT = 4096
MIN_MOVED_BYTES = 1024


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of `model`: initializers (sparse ones too) and attributes, in the main graph, sub-graphs and functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in itertools.chain([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [], attribute.sparse_tensors):
            yield sparse.values
            yield sparse.indices
        for graph in itertools.chain([attribute.g] if attribute.HasField("g") else [], attribute.graphs):
            yield from _graph_tensors(graph)


def _lies_outside(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL and not is_detached(tensor)


def _facts(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def locations(model: onnx.ModelProto) -> list[str]:
    """Return the distinct files `model` keeps tensors in, sorted.

    Raises:
        UnsafePath: A location would leave the directory of the graph.
    """
    found = set()
    for tensor in tensors(model):
        if _lies_outside(tensor):
            found.add(check_relative(_facts(tensor).get("location", ""), what=f"external data of tensor {tensor.name!r}"))
    return sorted(found)


def embed(model: onnx.ModelProto, read: Callable[[str], bytes], weights: Weights | None = None) -> None:
    """Bring external tensors into `model`, in place.

    Args:
        model: A graph that may use external data.
        read: Gives the checked bytes of a location.
        weights: Takes large initializers instead, which become references to it; None brings all of them in.

    Raises:
        UnsafePath: A location would leave the package.
        DigestMismatch: An offset or length lies outside the file.
        PackageError: An offset or length is not a number.
    """
    files = {location: read(location) for location in locations(model)}
    if not files:
        return
    if weights is not None:
        for tensor in filter(_lies_outside, model.graph.initializer):
            facts = _facts(tensor)
            data = files[facts["location"]]
            weights.adopt(tensor, data, *_place(data, facts, tensor.name))
    for tensor in filter(_lies_outside, tensors(model)):
        facts = _facts(tensor)
        data = files[facts["location"]]
        start, end = _place(data, facts, tensor.name)
        tensor.raw_data = data[start:end]
        tensor.ClearField("data_location")
        del tensor.external_data[:]


def _place(data: bytes, facts: dict[str, str], name: str) -> tuple[int, int]:
    """Return where in its file a tensor begins and ends."""
    try:
        offset = int(facts.get("offset", "0"))
        length = int(facts["length"]) if "length" in facts else len(data) - offset
    except ValueError as error:
        raise PackageError(f"external data of tensor {name!r}: offset and length must be numbers") from error
    if offset < 0 or length < 0 or offset + length > len(data):
        raise DigestMismatch(f"external data of tensor {name!r} reaches beyond {facts['location']} ({len(data)} bytes)")
    return offset, offset + length


def move_out(model: onnx.ModelProto, location: str) -> tuple[onnx.ModelProto, list[bytes]]:
    """Return a copy of `model` whose large tensors live in `location`, and that file's content in pieces.

    Tensors keep their order and every offset is a multiple of `ALIGNMENT`, so the same model gives the same bytes.
    """
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    pieces: list[bytes] = []
    position = 0
    for tensor in moved.graph.initializer:
        if not tensor.HasField("raw_data") or len(tensor.raw_data) < MIN_MOVED_BYTES:
            continue
        padding = -position % ALIGNMENT
        data = tensor.raw_data
        pieces += [b"\0" * padding, data]
        onnx.external_data_helper.set_external_data(tensor, location, offset=position + padding, length=len(data))
        tensor.ClearField("raw_data")
        position += padding + len(data)
    return moved, pieces


def embedded_bytes(model: onnx.ModelProto) -> int:
    """Return how many bytes of tensor data `model` holds itself."""
    return sum(len(tensor.raw_data) for tensor in tensors(model))

"""Keep the weights of a graph beside its protobuf instead of in it.

Python's protobuf holds the interpreter lock while it parses, copies and writes a message: ten milliseconds for 18 MB of weights, five or
six times over until a session is made, and a server that loads a model answers nobody meanwhile. So large tensors are cut out of
the bytes before they are parsed. What is left is small. On the way into ONNX Runtime they are put back, behind the graph in the same
message, in a file that exists in memory only: neither end of that way holds the lock, and nothing of it is left when the session is made.

    weights = Weights()
    model.ParseFromString(weights.cut(data))         # large initializers are references now
    ...                                              # merge, rename, pack: references travel along
    with weights.whole(model) as source:             # bytes, or the path of that file
        session = InferenceSession(source)
"""

from __future__ import annotations

import math
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from .errors import ExecutionError

#: Smaller tensors stay where they are: shapes, axes and scales that graph surgery wants to read.
MIN_DETACHED_BYTES = 4096
#: Names a reference; a graph cannot guess it, so it cannot pass off a file's tensor for one.
_TOKEN = f"samegraph-memory-{secrets.token_hex(8)}/"
_DTYPES: dict[int, type[np.generic]] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.DOUBLE: np.float64,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.INT8: np.int8,
    onnx.TensorProto.INT16: np.int16,
    onnx.TensorProto.INT32: np.int32,
    onnx.TensorProto.INT64: np.int64,
    onnx.TensorProto.UINT8: np.uint8,
    onnx.TensorProto.UINT16: np.uint16,
    onnx.TensorProto.UINT32: np.uint32,
    onnx.TensorProto.UINT64: np.uint64,
    onnx.TensorProto.BOOL: np.bool_,
}
#: Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


class Weights:
    """Tensors that were cut out of graphs and wait to be handed to a session."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._arrays)

    def cut(self, data: bytes) -> bytes:
        """Cut the large initializers of the main graph out of a serialized model.

        Args:
            data: The bytes of a model; they are kept as long as the tensors are.

        Returns:
            The model with a reference in place of each tensor that was cut out, which travels through copies and renames. `data`
            itself when there is none, or when it is no message of that kind: its parser says what is wrong with it.
        """
        if sys.byteorder != "little":
            return data  # raw data is little-endian
        before = dict(self._arrays)
        try:
            return _rewritten(data, 0, len(data), _GRAPH, lambda start, end: self._graph(data, start, end)) or data
        except (IndexError, ValueError, DecodeError):
            self._arrays = before
            return data

    def adopt(self, tensor: onnx.TensorProto, data: bytes, start: int, end: int) -> bool:
        """Make `tensor`, an initializer of a main graph, a reference to the raw data in `data[start:end]`.

        Returns:
            Whether that was done; tensors that are small, or of a kind that stays in its graph, are left as they are.
        """
        array = _array(tensor, data, start, end)
        if array is None:
            return False
        self._count += 1
        location = f"{_TOKEN}{id(self)}-{self._count}"
        self._arrays[location] = array
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        return True

    @contextmanager
    def whole(self, model: onnx.ModelProto) -> Iterator[bytes | str]:
        """Give the serialized model with the tensors it refers to, and forget them; its bytes when it refers to none, else a path.

        Raises:
            ExecutionError: A tensor was cut out for another `Weights`, or was given away already.
        """
        graph = model.graph
        references = [tensor for tensor in graph.initializer if is_detached(tensor)]
        if not references:
            yield model.SerializeToString()
            return
        pieces = [self._piece(tensor) for tensor in references]
        light = onnx.ModelProto()
        light.CopyFrom(model)
        kept = [tensor for tensor in graph.initializer if not is_detached(tensor)]
        del light.graph.initializer[:]
        light.graph.initializer.extend(kept)
        size = sum(len(head) + raw.nbytes for head, raw in pieces)
        # A message whose graph comes in two parts is one whose graph is both of them together.
        with _MemoryFile() as file:
            file.write(light.SerializeToString() + _varint(_GRAPH << 3 | 2) + _varint(size))
            for head, raw in pieces:
                file.write(head)
                file.write(raw)
            del pieces
            yield file.path

    def _piece(self, tensor: onnx.TensorProto) -> tuple[bytes, memoryview]:
        """Return an initializer of a graph on the wire: what comes before its raw data, and that."""
        array = self._arrays.pop(_location(tensor), None)
        if array is None:
            raise ExecutionError(f"the tensor {tensor.name!r} was cut out of its graph and is not here")
        facts = onnx.TensorProto()
        facts.CopyFrom(tensor)
        facts.ClearField("data_location")
        del facts.external_data[:]
        head = facts.SerializeToString() + _varint(_RAW_DATA << 3 | 2) + _varint(array.nbytes)
        return _varint(_INITIALIZER << 3 | 2) + _varint(len(head) + array.nbytes) + head, array.reshape(-1).view(np.uint8).data

    def clear(self) -> None:
        """Forget tensors whose graph was not loaded after all."""
        self._arrays.clear()

    def _graph(self, data: bytes, start: int, end: int) -> bytes | None:
        return _rewritten(data, start, end, _INITIALIZER, lambda first, last: self._tensor(data, first, last))

    def _tensor(self, data: bytes, start: int, end: int) -> bytes | None:
        """Cut one tensor out; return the reference, or None when it stays."""
        if end - start < MIN_DETACHED_BYTES:
            return None
        raw = [(first, last) for number, _, first, last in _fields(data, start, end) if number == _RAW_DATA]
        if len(raw) != 1:
            return None
        tensor = onnx.TensorProto()
        tensor.ParseFromString(_rewritten(data, start, end, _RAW_DATA, _nothing) or b"")
        outside = tensor.data_location == onnx.TensorProto.EXTERNAL
        return None if outside or not self.adopt(tensor, data, *raw[0]) else tensor.SerializeToString()


def _nothing(_start: int, _end: int) -> bytes:
    return b""


def is_detached(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor is a reference to one that was cut out."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL and _location(tensor).startswith(_TOKEN)


def _location(tensor: onnx.TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _array(tensor: onnx.TensorProto, data: bytes, start: int, end: int) -> np.ndarray | None:
    """Return the tensor as it lies in `data`; None when it is of a kind that stays in the graph."""
    dtype = _DTYPES.get(tensor.data_type)
    if dtype is None or end - start < MIN_DETACHED_BYTES or tensor.HasField("segment"):
        return None
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims) or math.prod(dims) * np.dtype(dtype).itemsize != end - start:
        return None
    return np.frombuffer(data, dtype, math.prod(dims), start).reshape(dims)


class _MemoryFile:
    """A file without a name in any directory, gone when closed; where the system has no such thing, a temporary file."""

    def __init__(self) -> None:
        self._temporary: Path | None = None
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("samegraph-weights")
            self.path = f"/proc/self/fd/{self._descriptor}"
        else:
            self._descriptor, self.path = tempfile.mkstemp(suffix=".onnx")
            self._temporary = Path(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        if self._temporary is not None:
            self._temporary.unlink()

    def write(self, data: bytes | memoryview) -> None:
        """Append to the file, without the interpreter lock."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]


# --- the wire format (protobuf.dev/programming-guides/encoding) ---------------------------------------------------------


def _rewritten(data: bytes, start: int, end: int, wanted: int, change: Callable[[int, int], bytes | None]) -> bytes | None:
    """Return a message with the content of every field numbered `wanted` replaced by what `change` makes of it; None when nothing is."""
    pieces: list[bytes] = []
    copied = start
    for number, field_start, content, field_end in _fields(data, start, end):
        if number == wanted:
            new = change(content, field_end)
            if new is not None:
                pieces += [data[copied:field_start], _varint(number << 3 | 2), _varint(len(new)), new]
                copied = field_end
    return b"".join([*pieces, data[copied:end]]) if pieces else None


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, start, start of the content and end of every field of a message; ValueError when it is none."""
    at = start
    while at < end:
        field_start = at
        tag, at = _read_varint(data, at)
        kind = tag & 7
        content = at
        if kind == 0:
            _, at = _read_varint(data, at)
        elif kind == 1:
            at += 8
        elif kind == 2:
            length, content = _read_varint(data, at)
            at = content + length
        elif kind == 5:
            at += 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > end:
            raise ValueError("a field reaches beyond its message")
        yield tag >> 3 if kind == 2 else -1, field_start, content, at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

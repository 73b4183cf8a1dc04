"""Read a PyTorch *legacy* checkpoint of plain tensors, with NumPy and without PyTorch.

The file (what `torch.save` wrote before version 1.6) is, one after the other: a pickled magic number, a pickled protocol number, a
pickled dictionary of type sizes, the pickled state dictionary, the pickled list of storage keys, and then each storage as an
8-byte element count with its raw elements. In the state dictionary a tensor is a call of `torch._utils._rebuild_tensor_v2` on a
storage that is named by a persistent id.

Unpickling can run anything the file names, so the unpickler here resolves just the four names such a file needs and refuses all
others. The storages it meets are empty place-holders until the raw elements, which follow the pickles, are read.
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001


class UnreadableCheckpoint(ValueError):
    """Raised when a file is not a checkpoint of the one kind this module reads; says what was met."""


@dataclass
class _Storage:
    """One run of elements that tensors are views of; `elements` stays None until the raw part of the file is reached."""

    dtype: np.dtype[Any]
    size: int
    elements: np.ndarray | None = None


@dataclass(frozen=True)
class _TensorView:
    """What a tensor is before its storage has been read. Offset and strides count elements, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        assert self.storage.elements is not None
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min(self.offset, *self.shape, *self.strides, 0) < 0 or (0 not in self.shape and last >= self.storage.size):
            raise UnreadableCheckpoint(f"a tensor of shape {self.shape} reaches outside its storage of {self.storage.size} elements")
        flat = self.storage.elements[self.offset :]
        return np.lib.stride_tricks.as_strided(flat, self.shape, [s * flat.itemsize for s in self.strides]).copy()


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], _requires_grad: bool, _hooks: object
) -> _TensorView:
    return _TensorView(storage, offset, tuple(shape), tuple(strides))


class _StorageType:
    """Stands for `torch.FloatStorage` and its like: a name with an element type, not something to call."""

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)


#: Every name a checkpoint of plain tensors needs. Nothing here can read a file, start a program or import a module.
_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): _StorageType("<f4"),
    ("torch", "LongStorage"): _StorageType("<i8"),
}


class _StrictUnpickler(pickle.Unpickler):
    def __init__(self, stream: BytesIO, storages: dict[str, _Storage]) -> None:
        super().__init__(stream)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UnreadableCheckpoint(f"the file asks for {module}.{name}, which a checkpoint of plain tensors has no use for") from None

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType(dtype=dtype), str(key), _, int(size), None):
                return self._storages.setdefault(key, _Storage(dtype, size))
        raise UnreadableCheckpoint(f"not a storage: {pid!r}")


def read_legacy_checkpoint(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of a state dictionary by name, each a C-contiguous array of its own.

    Args:
        data: The whole file.

    Raises:
        UnreadableCheckpoint: The file is of another kind, is cut short, or asks for anything but tensors.
    """
    if sys.byteorder != "little":
        raise UnreadableCheckpoint("the raw elements are little-endian, as the file says; this machine is not")
    stream = BytesIO(data)
    storages: dict[str, _Storage] = {}

    def load() -> Any:
        try:
            return _StrictUnpickler(stream, storages).load()
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, MemoryError) as error:
            if isinstance(error, UnreadableCheckpoint):
                raise
            raise UnreadableCheckpoint(f"not a PyTorch legacy checkpoint: {error}") from error

    head = (load(), load())
    if head != (MAGIC_NUMBER, PROTOCOL_VERSION):
        raise UnreadableCheckpoint(f"not a PyTorch legacy checkpoint: it starts with {head}")
    load()  # sizes of C types on the machine that wrote it; the element types above have fixed sizes
    state, keys = load(), load()
    _read_storages(stream, storages, keys)
    if not isinstance(state, dict) or not all(isinstance(v, _TensorView) for v in state.values()):
        raise UnreadableCheckpoint("the file holds something other than a flat state dictionary of tensors")
    return {str(name): view.array() for name, view in state.items()}


def _read_storages(stream: BytesIO, storages: dict[str, _Storage], keys: Any) -> None:
    if not isinstance(keys, list) or set(keys) != storages.keys():
        raise UnreadableCheckpoint("the list of storages and the tensors do not go together")
    for key in keys:
        storage = storages[key]
        size = struct.unpack("<q", _exactly(stream, 8))[0]
        if size != storage.size:
            raise UnreadableCheckpoint(f"storage {key} has {size} elements, its tensors expect {storage.size}")
        storage.elements = np.frombuffer(_exactly(stream, size * storage.dtype.itemsize), storage.dtype)


def _exactly(stream: BytesIO, n_bytes: int) -> bytes:
    data = stream.read(n_bytes)
    if len(data) != n_bytes:
        raise UnreadableCheckpoint(f"the file ends early: {n_bytes} bytes expected, {len(data)} left")
    return data

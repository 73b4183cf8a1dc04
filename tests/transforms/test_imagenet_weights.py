"""Reading a PyTorch legacy checkpoint without PyTorch, and without running what it says."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
from collections import OrderedDict
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from models.imagenet.weights import MAGIC_NUMBER, PROTOCOL_VERSION, UnreadableCheckpoint, read_legacy_checkpoint


class _Storage:
    """What torch pickles by persistent id."""

    def __init__(self, kind: type, key: str, elements: np.ndarray, size: int | None = None) -> None:
        self.pid = ("storage", kind, key, "cpu", elements.size if size is None else size, None)
        self.elements = elements


class _Tensor:
    def __init__(self, rebuild: Any, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.call: tuple[Any, ...] = (rebuild, (storage, offset, shape, strides, False, OrderedDict()))

    def __reduce__(self) -> Any:
        return self.call


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, _Storage) else None


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The names PyTorch writes into a checkpoint, so that the standard pickler can write the same."""
    module, utils = ModuleType("torch"), ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(module, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2() -> None: ...

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    module.rebuild = _rebuild_tensor_v2  # type: ignore[attr-defined]
    return module


def _checkpoint(state: object, storages: list[_Storage], *, magic: int = MAGIC_NUMBER, keys: list[str] | None = None) -> bytes:
    stream = io.BytesIO()
    for part in (magic, PROTOCOL_VERSION, {"little_endian": True}, state, keys or [s.pid[2] for s in storages]):
        _Pickler(stream, 2).dump(part)
    for storage in storages:
        stream.write(struct.pack("<q", storage.elements.size) + storage.elements.tobytes())
    return stream.getvalue()


def test_tensors_come_back_with_names_shapes_and_values(torch: Any) -> None:
    """A contiguous tensor, a transposed view of the same storage with an offset, and an integer scalar are read as torch saw them."""
    floats = _Storage(torch.FloatStorage, "7", np.arange(12, dtype="<f4"))
    count = _Storage(torch.LongStorage, "8", np.array([41], dtype="<i8"))
    state = OrderedDict(
        whole=_Tensor(torch.rebuild, floats, 0, (3, 4), (4, 1)),
        view=_Tensor(torch.rebuild, floats, 2, (2, 3), (1, 4)),
        count=_Tensor(torch.rebuild, count, 0, (), ()),
    )
    read = read_legacy_checkpoint(_checkpoint(state, [floats, count]))
    assert list(read) == ["whole", "view", "count"]
    np.testing.assert_array_equal(read["whole"], np.arange(12, dtype=np.float32).reshape(3, 4))
    np.testing.assert_array_equal(read["view"], np.array([[2, 6, 10], [3, 7, 11]], np.float32))
    assert read["count"].tolist() == 41
    assert read["count"].dtype == np.int64
    assert read["view"].flags.c_contiguous


class _RunsACommand:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.marker,))


def test_a_checkpoint_that_names_anything_else_is_refused_before_it_runs(tmp_path: Any) -> None:
    """A file that asks for os.mkdir is refused by that name, and the call does not happen."""
    marker = tmp_path / "ran"
    with pytest.raises(UnreadableCheckpoint, match=r"mkdir"):
        read_legacy_checkpoint(_checkpoint(_RunsACommand(str(marker)), []))
    assert not marker.exists()


def test_an_element_type_that_is_not_expected_is_refused(torch: Any) -> None:
    """Half precision is not silently read as something else."""
    half = _Storage(torch.HalfStorage, "1", np.zeros(4, "<f2"))
    with pytest.raises(UnreadableCheckpoint, match=r"torch\.HalfStorage"):
        read_legacy_checkpoint(_checkpoint({"w": _Tensor(torch.rebuild, half, 0, (4,), (1,))}, [half]))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (3, 1)), (-1, (2,), (1,)), (3, (2,), (-1,))],
    ids=["too-long", "offset", "strides", "negative-offset", "negative-stride"],
)
def test_a_view_never_reaches_outside_its_storage(torch: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Memory beyond the four elements of the storage cannot be read, whatever shape and strides the file gives."""
    storage = _Storage(torch.FloatStorage, "1", np.zeros(4, "<f4"))
    with pytest.raises(UnreadableCheckpoint, match="outside its storage"):
        read_legacy_checkpoint(_checkpoint({"w": _Tensor(torch.rebuild, storage, offset, shape, strides)}, [storage]))


def test_every_way_of_being_cut_short_is_named(torch: Any) -> None:
    """No prefix of a checkpoint is accepted, and none raises anything but the one error."""
    storage = _Storage(torch.FloatStorage, "1", np.ones(4, "<f4"))
    whole = _checkpoint({"w": _Tensor(torch.rebuild, storage, 0, (4,), (1,))}, [storage])
    for length in range(len(whole)):
        with pytest.raises(UnreadableCheckpoint):
            read_legacy_checkpoint(whole[:length])


def test_counts_that_disagree_are_refused(torch: Any) -> None:
    """A storage whose raw part has another length than its tensors were promised is refused, and so is one nobody announced."""
    storage = _Storage(torch.FloatStorage, "1", np.ones(4, "<f4"), size=5)
    state = {"w": _Tensor(torch.rebuild, storage, 0, (4,), (1,))}
    with pytest.raises(UnreadableCheckpoint, match="4 elements, its tensors expect 5"):
        read_legacy_checkpoint(_checkpoint(state, [storage]))
    with pytest.raises(UnreadableCheckpoint, match="do not go together"):
        read_legacy_checkpoint(_checkpoint(state, [storage], keys=["2"]))


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04 a zip file, as torch writes today", b"\x80\x02}.", b"nonsense"], ids=["empty", "zip", "dict", "text"]
)
def test_another_kind_of_file_is_refused(data: bytes) -> None:
    """What is not a legacy checkpoint is said to be none."""
    with pytest.raises(UnreadableCheckpoint, match="not a PyTorch legacy checkpoint"):
        read_legacy_checkpoint(data)


def test_a_checkpoint_of_something_else_than_tensors_is_refused() -> None:
    """A pickled whole module, or numbers among the tensors, is not a state dictionary."""
    with pytest.raises(UnreadableCheckpoint, match="flat state dictionary"):
        read_legacy_checkpoint(_checkpoint({"epoch": 3}, []))
    with pytest.raises(UnreadableCheckpoint, match="starts with"):
        read_legacy_checkpoint(_checkpoint({}, [], magic=1))

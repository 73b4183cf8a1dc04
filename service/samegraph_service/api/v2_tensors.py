"""Tensors as the Open Inference Protocol writes them in bytes: little-endian, row-major, no padding; strings with their length in front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from struct import Struct
from typing import Any

import numpy as np
from samegraph_transforms.errors import InputError

#: Largest dimension of a tensor without elements. Nothing else bounds it, since no data has to be sent for it.
MAX_EMPTY_DIMENSION = 4096

_LENGTH = Struct("<I")
_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("u1"), "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip


def numbers(name: str, datatype: str, data: memoryview) -> np.ndarray:
    """Return the elements of a tensor that is not BYTES, flat; BF16 comes as float32, which holds it exactly.

    Raises:
        InputError: The bytes are no whole number of elements.
    """
    dtype = _DTYPES[datatype]
    if len(data) % dtype.itemsize:
        raise InputError(
            f"input {name!r} has {len(data)} bytes, no whole number of {datatype} elements of {dtype.itemsize} bytes",
            code="wrong_shape",
            field=name,
        )
    array: np.ndarray = np.frombuffer(data, dtype)
    if datatype == "BOOL":
        return array.astype(np.bool_)
    if datatype == "BF16":
        return np.left_shift(array.astype(np.uint32), 16).view(np.float32)
    return array


def strings(name: str, data: memoryview) -> list[bytes]:
    """Return the elements of a BYTES tensor: each is its length in four bytes, then so many bytes.

    Raises:
        InputError: A length points beyond the end.
    """
    elements: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        if at + 4 > end:
            raise _short(name, len(elements))
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if at + length > end:
            raise _short(name, len(elements))
        elements.append(bytes(data[at : at + length]))
        at += length
    return elements


def _short(name: str, index: int) -> InputError:
    return InputError(
        f"input {name!r} ends within element {index}; each BYTES element is its length as four little-endian bytes, then its bytes",
        code="truncated",
        field=name,
    )


def check_shape(name: str, shape: Sequence[int], n_values: int) -> None:
    """Refuse a shape that does not say how many values there are.

    Raises:
        InputError: `wrong_shape`.
    """
    # In this order: a product of absurd dimensions is never formed, and nothing is built for instances that were only declared.
    if any(not 0 <= d <= max(n_values, MAX_EMPTY_DIMENSION) for d in shape) or n_values != math.prod(shape):
        raise InputError(f"input {name!r} has shape {described(shape)} but holds {n_values} values", code="wrong_shape", field=name)


def described(shape: Sequence[int]) -> str:
    """Return a shape as text of bounded length."""
    shown = ", ".join(digits(d) for d in shape[:8])
    return f"[{shown}, …]" if len(shape) > 8 else f"[{shown}]"


def digits(number: int) -> str:
    """Return an integer as text of bounded length."""
    return str(number) if abs(number) < 10**18 else "a number of more than 18 digits"


def written(array: np.ndarray) -> bytes:
    """Return an output's elements in bytes; strings are UTF-8."""
    if array.dtype.kind == "O":
        pieces: list[bytes] = []
        for element in array.ravel().tolist():
            data = element if isinstance(element, bytes) else str(element).encode()
            pieces += (_LENGTH.pack(len(data)), data)
        return b"".join(pieces)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def classified(array: np.ndarray, count: int, labels: Sequence[str] | None) -> np.ndarray:
    """Return the classification extension's answer: per instance the `count` largest values as `value:index[:label]`.

    Args:
        array: Numbers, [n, *shape].
        count: At least 1; more than there are elements means all of them.
        labels: One per element of an instance, or None.

    Returns:
        Strings as objects of shape [n, min(count, elements)], the largest first; equal values in the order of their index, NaN last.
    """
    flat = array.reshape(len(array), -1).astype(np.float64) if array.dtype.kind == "b" else array.reshape(len(array), -1)
    count = min(count, flat.shape[1])
    keys = flat.astype(np.float64)  # negated below: unsigned integers have no negatives
    order = np.argsort(-keys, axis=1, kind="stable")[:, :count]
    named = labels is not None and len(labels) == flat.shape[1]
    answer = np.empty(order.shape, dtype=object)
    for i, places in enumerate(order.tolist()):
        for j, place in enumerate(places):
            value = flat[i, place]
            text = f"{value:f}" if flat.dtype.kind == "f" else str(value)
            answer[i, j] = f"{text}:{place}:{labels[place]}" if named and labels is not None else f"{text}:{place}"
    return answer

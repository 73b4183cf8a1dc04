"""A package's raw-input signature: which values an instance may hold, checked once, for every protocol.

A checked instance is a *row*: a tuple with one Python value per manifest field, in manifest order. `None` in a row means
missing (and is only there when the field's missing rule allows it); `Signature.columns` applies the rules.

There are two ways in, held to the same accepted set by a property test:
`decode_*` reads JSON straight into typed structures generated from the manifest (fast, all or nothing), and
`check_row` takes one already parsed instance and explains what is wrong with it.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np

from .errors import InputError
from .manifest import BINARY_KINDS, MAX_EXACT_INTEGER, Manifest, RawField

Row: TypeAlias = tuple[Any, ...]

_KIND_WORDS = {
    "number": "a number",
    "integer": "an integer",
    "boolean": "true or false",
    "string": "a string",
    "text": "a string",
    "image": 'an encoded image as {"b64": "…"}',
    "bytes": 'bytes as {"b64": "…"}',
    "tensor": "a nested list",
}
_JSON_WORDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
_RAGGED = "must be a nested list of equally long lists"
_ZERO: dict[str, Any] = {"number": 0.0, "integer": 0, "boolean": False, "string": "", "text": ""}

#: What the typed pass raises for a body that is not as expected; text that is not UTF-8 and deep nesting come as Python's own errors.
_NOT_TYPED = (msgspec.MsgspecError, InputError, UnicodeDecodeError, RecursionError)


_astuple = msgspec.structs.astuple


class B64(msgspec.Struct, forbid_unknown_fields=True):
    """Bytes in JSON: an object with the single key `b64`."""

    b64: bytes


class Signature:
    """The raw inputs of one package, ready to check and to turn into graph inputs.

    Args:
        manifest: The package's manifest.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.fields: tuple[RawField, ...] = tuple(manifest.fields)
        self.names: tuple[str, ...] = tuple(f.name for f in self.fields)
        self.single: RawField | None = self.fields[0] if len(self.fields) == 1 else None
        self._by_name = {f.name: f for f in self.fields}
        self._checks = tuple((f, _FieldCheck(f)) for f in self.fields)
        self._finish = _row_finisher(self.fields)
        self._row_type = _row_type(self.fields)
        self._column_types: dict[str, Any] = {}
        for f in self.fields:
            if _is_typed(f):
                value_type = _value_type(f, whole_floats=True)
                self._column_types[f.name] = list[value_type]  # type: ignore[valid-type]
        self._decode_whole: msgspec.json.Decoder[Any] | None = None
        self._finish_whole = _row_finisher(self.fields, whole_floats=True)
        self._decode_rows: msgspec.json.Decoder[Any] | None = None
        self._decode_bare: msgspec.json.Decoder[Any] | None = None
        if self._row_type is not None:
            self._decode_rows = msgspec.json.Decoder(_body_type(self._row_type))
            if any(f.kind == "integer" for f in self.fields):
                self._decode_whole = msgspec.json.Decoder(_body_type(_row_type(self.fields, whole_floats=True)))
            if self.single is not None:
                self._decode_bare = msgspec.json.Decoder(_body_type(_value_type(self.single)))

    # --- checking ---------------------------------------------------------------------------------------------------

    def decode_rows(self, body: bytes) -> list[Row] | None:
        """Decode a V1 `{"instances": [...]}` body in one typed pass.

        Returns:
            The rows, or None when anything at all is not as expected: then parse untyped and use `check_row` to say what.
        """
        if self._decode_bare is not None:
            try:
                return [self._finish((value,)) for value in self._decode_bare.decode(body).instances]
            except _NOT_TYPED:
                pass
        if self._decode_rows is None:
            return None
        try:
            decoded = self._decode_rows.decode(body).instances
            finish = self._finish
            if finish is not _unchanged:
                return [finish(_astuple(row)) for row in decoded]
            return [_astuple(decoded[0])] if len(decoded) == 1 else [_astuple(row) for row in decoded]  # a comprehension is a call
        except _NOT_TYPED:
            return self._decode_whole_floats(body)

    def _decode_whole_floats(self, body: bytes) -> list[Row] | None:
        """Decode rows in which integers may be written as floats, as pandas writes a column with gaps: a thirtieth of the untyped pass."""
        if self._decode_whole is None:
            return None
        try:
            finish = self._finish_whole
            return [finish(_astuple(row)) for row in self._decode_whole.decode(body).instances]
        except _NOT_TYPED:
            return None

    def check_row(self, instance: object, index: int | None = None) -> Row:
        """Check one parsed instance and return its row.

        Args:
            instance: An object keyed by field name; for a single-field model the bare value will do.
            index: The instance's place in its request, for the error.

        Raises:
            InputError: The first thing that is wrong, naming field and instance.
        """
        try:
            if self.single is not None and self._is_bare(instance, self.single):
                return (self._checks[0][1](instance),)
            if not isinstance(instance, Mapping):
                raise InputError(
                    f"an instance must be an object with the fields {_listed(self.names)}; got {_word(instance)}",
                    code="bad_body",
                    field=None,
                )
            self._refuse_unknown(instance)
            return tuple(check(instance[f.name]) if f.name in instance else check.absent() for f, check in self._checks)
        except InputError as error:
            raise (error if index is None else error.at(index)) from error.__cause__

    @staticmethod
    def _is_bare(instance: object, single: RawField) -> bool:
        """Whether an instance of a single-field model is the bare value rather than an object that names the field."""
        if not isinstance(instance, Mapping):
            return True
        return single.kind in BINARY_KINDS and "b64" in instance and single.name not in instance

    def check_columns(self, inputs: Mapping[str, Sequence[object]]) -> list[Row | InputError]:
        """Check the columnar form: one equally long list per field.

        Raises:
            InputError: The columns cannot be lined up, or a name is unknown.
        """
        self._refuse_unknown(inputs)
        lengths = {name: len(values) for name, values in inputs.items()}
        if len(set(lengths.values())) > 1:
            described = ", ".join(f"{name}: {n}" for name, n in lengths.items())
            raise InputError(
                f"the columns in `inputs` have different lengths ({described}); each needs one value per instance", code="wrong_shape"
            )
        n = next(iter(lengths.values()), 0)
        rows = self.rows_of_columns(inputs, n)
        if rows is not None:
            return list(rows)
        return [self.try_row({name: values[i] for name, values in inputs.items()}, i) for i in range(n)]

    def rows_of_columns(self, columns: Mapping[str, Sequence[object] | np.ndarray], n: int) -> list[Row] | None:
        """Check whole columns, one value per instance each, field by field: a fifth of the time of row by row.

        Args:
            columns: Sequences, or arrays along their first dimension, of known fields; every one `n` long.
            n: Number of instances.

        Returns:
            The rows, or None when anything at all is not as expected: then `check_row` says what.
        """
        checked: list[Sequence[Any]] = []
        try:
            for field, check in self._checks:
                values = columns.get(field.name)
                if values is None:
                    checked.append([check.absent()] * n)
                elif isinstance(values, np.ndarray):
                    checked.append(check.array(values))
                elif field.name in self._column_types:
                    typed = msgspec.convert(values, self._column_types[field.name])
                    checked.append([_whole(value) for value in typed] if field.kind == "integer" else typed)
                else:
                    checked.append([check(value) for value in values])
        except _NOT_TYPED:
            return None
        return list(zip(*checked, strict=True))

    def try_row(self, instance: object, index: int) -> Row | InputError:
        """Like `check_row`, but return the error."""
        try:
            return self.check_row(instance, index)
        except InputError as error:
            return error

    def row_of(self, values: Mapping[str, object]) -> Row:
        """Build a row from already typed values (bytes, arrays, scalars), filling the rest with defaults.

        Raises:
            InputError: A value breaks its field's rules, or a required field is not among `values`.
        """
        self._refuse_unknown(values)
        return tuple(check(values[f.name]) if f.name in values else check.absent() for f, check in self._checks)

    def field(self, name: str) -> RawField:
        """Return the field called `name`; KeyError if there is none."""
        return self._by_name[name]

    def _refuse_unknown(self, values: Mapping[str, object]) -> None:
        for name in values:
            if name not in self._by_name:
                raise InputError(
                    f"unknown field {str(name)[:100]!r}; this model's fields are {_listed(self.names)}",
                    code="unknown_field",
                    field=str(name)[:100],
                )

    # --- graph inputs -----------------------------------------------------------------------------------------------

    def columns(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Turn rows into graph inputs, applying every field's missing rule.

        Args:
            rows: Checked rows.

        Returns:
            For each non-binary field an array of shape [n, 1] (tensors: [n, *shape]) in the field's graph dtype, and a boolean
            [n, 1] `<field>__missing` for fields with a companion.
        """
        columns: dict[str, np.ndarray] = {}
        for field, values in zip(self.fields, zip(*rows, strict=True), strict=True):
            if field.kind not in BINARY_KINDS:
                columns.update(column(field, values))
        return columns


def column(field: RawField, values: Sequence[Any]) -> dict[str, np.ndarray]:
    """Turn one field's checked values into its graph inputs (see `Signature.columns`)."""
    if field.kind == "tensor":
        return {field.name: np.stack(values)}
    arrays: dict[str, np.ndarray] = {}
    rule = field.missing.rule
    if rule == "sentinel":
        values = [field.missing.sentinel if v is None else v for v in values]
    elif rule == "companion":
        arrays[f"{field.name}__missing"] = np.array([v is None for v in values], dtype=np.bool_).reshape(-1, 1)
        values = [_ZERO[field.kind] if v is None else v for v in values]
    dtype: Any = object if field.graph_dtype == "string" else field.graph_dtype
    # numpy turns None into NaN when it builds a float64 array, which is the `nan` rule.
    arrays[field.name] = np.array(values, dtype=dtype).reshape(-1, 1)
    return arrays


class _FieldCheck:
    """Check one value of one field, from parsed JSON or already typed, and explain what is wrong."""

    def __init__(self, field: RawField) -> None:
        self.field = field
        self._nullable = field.missing.rule != "refuse"
        self._allowed = None if field.allowed is None else set(field.allowed)
        self._convert = {
            "number": self._number,
            "integer": self._integer,
            "boolean": self._boolean,
            "string": self._string,
            "text": self._string,
            "image": self._bytes,
            "bytes": self._bytes,
            "tensor": self._tensor,
        }[field.kind]

    def __call__(self, value: object) -> Any:
        if value is None:
            if self._nullable:
                return None
            raise self._error("must not be null; this model was trained without missing values here", "wrong_type")
        checked = self._convert(value)
        if checked is not None and self._allowed is not None and checked not in self._allowed:
            raise self._error(f"must be one of {_listed(self.field.allowed or [])}; got {_shown(checked)}", "not_allowed")
        return checked

    def array(self, values: np.ndarray) -> Sequence[Any]:
        """Check many values at once, along the first dimension."""
        field = self.field
        if field.kind == "boolean" and values.dtype == np.bool_ and self._allowed is None:
            return values.tolist()  # type: ignore[no-any-return]
        if field.kind == "integer" and values.dtype.kind in "iu" and self._allowed is None and values.size:
            for bound in (int(values.min()), int(values.max())):
                self._integer(bound)
            return values.tolist()  # type: ignore[no-any-return]
        if field.kind != "number" or values.dtype != np.float64 or self._allowed is not None:
            return [self(value) for value in (values if field.kind == "tensor" else values.tolist())]
        missing = np.flatnonzero(np.isnan(values))
        present = np.delete(values, missing) if missing.size else values
        if present.size:
            for value in (float(present.min()), float(present.max())):
                self._number(value)
        checked: list[Any] = values.tolist()
        for place in missing.tolist():
            checked[place] = self(None)
        return checked

    def absent(self) -> Any:
        """Return what a field that was left out stands for."""
        if self.field.required:
            raise InputError(
                f"field {self.field.name!r} is required; send {_KIND_WORDS[self.field.kind]}"
                + (", or null if it is missing" if self._nullable else ""),
                code="missing_field",
                field=self.field.name,
            )
        return self(self.field.default)

    def _error(self, text: str, code: str) -> InputError:
        return InputError(f"field {self.field.name!r} {text}", code=code, field=self.field.name)

    def _wrong_type(self, value: object) -> InputError:
        return self._error(
            f"must be {_KIND_WORDS[self.field.kind]}{' or null' if self._nullable else ''}; got {_word(value)}", "wrong_type"
        )

    def _number(self, value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise self._wrong_type(value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isnan(number):
            return self(None)  # type: ignore[no-any-return]
        if math.isinf(number):
            raise self._error("is too large for a 64-bit float; send a finite number, or null if it is missing", "out_of_range")
        self._check_range(number)
        return number

    def _integer(self, value: object) -> int | None:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise self._wrong_type(value)
        if isinstance(value, float | np.floating) and math.isnan(value):
            return self(None)  # type: ignore[no-any-return]
        if isinstance(value, float | np.floating) and (math.isinf(value) or value != int(value)):
            raise self._error(f"must be a whole number; got {_shown(float(value))}", "wrong_type")
        number = int(value)
        if abs(number) > MAX_EXACT_INTEGER:
            raise self._error("must be between -2^53 and 2^53, the whole numbers a float64 holds exactly", "out_of_range")
        self._check_range(number)
        return number

    def _check_range(self, number: float) -> None:
        low, high = self.field.minimum, self.field.maximum
        if (low is not None and number < low) or (high is not None and number > high):
            span = (
                f"between {low:g} and {high:g}"
                if low is not None and high is not None
                else f"at least {low:g}"
                if low is not None
                else f"at most {high:g}"
            )
            raise self._error(f"must be {span}; got {_shown(number)}", "out_of_range")

    def _boolean(self, value: object) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise self._wrong_type(value)
        return bool(value)

    def _string(self, value: object) -> str:
        if not isinstance(value, str):
            raise self._wrong_type(value)
        limit = self.field.max_length
        if limit is not None and len(value) > limit:
            raise self._error(f"is {len(value)} characters long; the limit is {limit}", "too_long")
        return value

    def _bytes(self, value: object) -> bytes:
        data = self._encoded(value)
        if not data:
            raise self._error("is empty; send the whole encoded file", "undecodable")
        if self.field.max_bytes is not None and len(data) > self.field.max_bytes:
            raise self._error(f"is {len(data)} bytes; the limit is {self.field.max_bytes}", "too_large")
        return data

    def _encoded(self, value: object) -> bytes:
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if isinstance(value, B64):
            return value.b64
        if not (isinstance(value, Mapping) and set(value) == {"b64"} and isinstance(value["b64"], str)):
            raise self._wrong_type(value)
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise self._error("holds text in `b64` that is not base64 (standard alphabet, with padding)", "undecodable") from error

    def _tensor(self, value: object) -> np.ndarray:
        dtype = self.field.graph_dtype
        if isinstance(value, np.ndarray):
            return self._shaped(_widened(self, value))
        if not isinstance(value, list | tuple | int | float | str):
            raise self._wrong_type(value)
        _refuse_mixed(self, value)
        try:
            with np.errstate(over="raise"):
                array = np.array(value, dtype=object if dtype == "string" else dtype)
        except (OverflowError, FloatingPointError) as error:
            raise self._error(f"holds a number that {dtype} cannot hold", "out_of_range") from error
        except (TypeError, ValueError) as error:
            raise self._error(_RAGGED, "wrong_shape") from error
        if dtype == "string" and not all(isinstance(leaf, str) for leaf in array.flat):
            raise self._error(_RAGGED, "wrong_shape")  # an array of objects holds unequal lists as they are
        return self._shaped(array)

    def _shaped(self, array: np.ndarray) -> np.ndarray:
        want = self.field.shape or []
        if array.ndim != len(want) or any(w is not None and w != got for w, got in zip(want, array.shape, strict=True)):
            raise self._error(f"must have shape {_shape(want)} per instance; got {_shape(list(array.shape))}", "wrong_shape")
        return array


def _refuse_mixed(check: _FieldCheck, value: object) -> None:
    """Refuse leaves of another JSON type than the tensor's (a bool is not a number, a float is not an integer)."""
    dtype = check.field.graph_dtype
    allowed: tuple[type, ...] = (
        (str,) if dtype == "string" else (bool,) if dtype == "bool" else (int, float) if dtype.startswith("float") else (int,)
    )
    stack: list[object] = [value]
    while stack:
        leaf = stack.pop()
        if isinstance(leaf, list | tuple):
            stack.extend(leaf)
        elif not isinstance(leaf, allowed) or (isinstance(leaf, bool) and bool not in allowed):
            raise check._error(f"must hold {dtype} values only; found {_word(leaf)}", "wrong_type")


def _widened(check: _FieldCheck, array: np.ndarray) -> np.ndarray:
    """Widen a typed array without loss to the field's dtype, or refuse."""
    want = check.field.graph_dtype
    if want == "string":
        if array.dtype.kind not in "OU":
            raise check._error(f"must hold strings; got {array.dtype}", "wrong_dtype")
        return array.astype(object)
    if array.dtype != np.dtype(want) and not np.can_cast(array.dtype, np.dtype(want), casting="safe"):
        raise check._error(f"must be {want}; {array.dtype} would lose information", "wrong_dtype")
    return array.astype(want, copy=False)


# --- the typed fast path ------------------------------------------------------------------------------------------------


def _unchanged(row: Row) -> Row:
    return row


def _whole(value: Any) -> Any:
    """Return an integer that may be written as a float; refuse one with a fraction."""
    if type(value) is not float:
        return value
    if not value.is_integer():
        raise InputError("not a whole number", code="wrong_type")  # only ever caught: the untyped pass explains
    return int(value)


def _row_finisher(fields: Sequence[RawField], *, whole_floats: bool = False) -> Any:
    """Return the function that turns a typed tuple into a row; most signatures need none."""
    places: list[tuple[int, Callable[[Any], Any]]] = [
        (i, _FieldCheck(f)) for i, f in enumerate(fields) if f.kind in BINARY_KINDS or f.kind == "tensor"
    ]
    if whole_floats:
        places += [(i, _whole) for i, f in enumerate(fields) if f.kind == "integer"]
    if not places:
        return _unchanged

    def finish(row: Row) -> Row:
        values = list(row)
        for i, check in places:
            values[i] = check(values[i])
        return tuple(values)

    return finish


def _value_type(field: RawField, *, whole_floats: bool = False) -> Any:
    """Return the msgspec type whose accepted values are a subset of what `_FieldCheck` accepts; with `whole_floats`, after `_whole`."""
    base: Any
    if field.kind in ("number", "integer"):
        low, high = field.minimum, field.maximum
        if field.kind == "integer":
            low = -MAX_EXACT_INTEGER if low is None else max(math.ceil(low), -MAX_EXACT_INTEGER)
            high = MAX_EXACT_INTEGER if high is None else min(math.floor(high), MAX_EXACT_INTEGER)
        scalar = int if field.kind == "integer" else float
        base = Annotated[scalar, msgspec.Meta(ge=low, le=high)]
        if low is None and high is None:
            base = float
        if field.kind == "integer" and whole_floats:
            base = base | Annotated[float, msgspec.Meta(ge=low, le=high)]
    elif field.kind in ("string", "text"):
        if field.allowed is not None:
            base = Literal[tuple(str(v) for v in field.allowed)]
        else:
            base = str if field.max_length is None else Annotated[str, msgspec.Meta(max_length=field.max_length)]
    elif field.kind == "boolean":
        base = bool
    elif field.kind == "tensor":
        leaf: Any = {"string": str, "bool": bool}.get(field.graph_dtype, float if field.graph_dtype.startswith("float") else int)
        base = reduce(lambda inner, _: list[inner], field.shape or [], leaf)  # type: ignore[valid-type]
    else:
        base = B64
    return base | None if field.missing.rule != "refuse" else base


def _is_typed(field: RawField) -> bool:
    """Whether a value of msgspec's type for a scalar field needs no further check."""
    if field.kind in BINARY_KINDS or field.kind == "tensor":
        return False
    return field.allowed is None or (field.kind in ("string", "text") and field.max_length is None)


def _row_type(fields: Sequence[RawField], *, whole_floats: bool = False) -> Any:
    """Return a struct type for one instance, or None when the rules do not fit msgspec's types."""
    for f in fields:
        if f.allowed is not None and not _is_typed(f):
            return None
    members: list[Any] = []
    for i, f in enumerate(fields):
        options: dict[str, Any] = {"name": f.name}
        if not f.required:
            if f.default is None and f.missing.rule == "refuse":
                return None
            if isinstance(f.default, list | dict):
                return None
            options["default"] = float(f.default) if f.kind == "number" and isinstance(f.default, int | float) else f.default
        members.append((f"f{i}", _value_type(f, whole_floats=whole_floats), msgspec.field(**options)))
    return msgspec.defstruct("Row", members, forbid_unknown_fields=True, kw_only=True)


def _body_type(instance_type: Any) -> Any:
    return msgspec.defstruct(
        "Body",
        [("instances", list[instance_type]), ("signature_name", Literal["serving_default"] | None, None)],
        forbid_unknown_fields=True,
    )


# --- words --------------------------------------------------------------------------------------------------------------


def _word(value: object) -> str:
    return _JSON_WORDS.get(type(value), type(value).__name__)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _listed(values: Sequence[object]) -> str:
    shown = ", ".join(_shown(v) for v in values[:20])
    return shown + (f" and {len(values) - 20} more" if len(values) > 20 else "")


def _shape(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if d is None else str(d) for d in shape) + "]"

"""Rows and answers ↔ Arrow columns: the layout of a capture file, in both directions and bit for bit.

A file holds rows of one package version. Its columns:

    time            timestamp[us, UTC]      when the request was answered
    model, version, digest                  what answered
    experiment, arm                         NAME@REVISION and the assigned arm, or null
    request_id, prediction_id, protocol     of the request
    instance        int32                   the row's place in its request
    inputs          struct                  one member per captured field; not there when all fields are excluded
    outputs         struct                  one member per output

A number is a double, an integer a long, a boolean a bool, strings and texts are strings; null is a missing value. An image or byte string
is a struct of its SHA-256, under which it lies in `images/`, and facts of its file. A hashed field is a string. A tensor or output of rank
1 is a list, of higher rank a struct of its shape and its elements in row-major order.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from samegraph_transforms.baseline_images import container_facts
from samegraph_transforms.errors import SamegraphError
from samegraph_transforms.manifest import BINARY_KINDS, Manifest, Output, RawField
from samegraph_transforms.signature import Row

from .options import Treatment
from .tap import Captured

#: Format number of the files; a reader refuses any other than its own.
FORMAT = 1
#: Key of the facts in a file's metadata.
FACTS = b"samegraph"

_META = pa.schema(
    [
        ("time", pa.timestamp("us", tz="UTC")),
        ("model", pa.string()),
        ("version", pa.int64()),
        ("digest", pa.string()),
        ("experiment", pa.string()),
        ("arm", pa.string()),
        ("request_id", pa.string()),
        ("prediction_id", pa.string()),
        ("protocol", pa.string()),
        ("instance", pa.int32()),
    ]
)
_SCALARS = {
    "number": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "text": pa.string(),
}
_BYTES = pa.struct([("sha256", pa.string()), ("bytes", pa.int64())])
_IMAGE = pa.struct(
    [
        *_BYTES,
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("exif_orientation", pa.string()),
        ("chroma_subsampling", pa.string()),
        ("quality_estimate", pa.int32()),
    ]
)
_FACTS_OF_FIELD = {"example", "known", "description"}  # left out of the files: long, and of no use to a reader


class CaptureFileInvalid(SamegraphError):
    """Raised when a file is no capture file of this format."""


def file_facts(manifest: Manifest, digest: str, treatments: Mapping[str, Treatment]) -> dict[str, Any]:
    """Return what a file says about all of its rows, as JSON values."""
    return {
        "format": FORMAT,
        "model": manifest.name,
        "version": manifest.version,
        "digest": digest,
        "fields": [field.model_dump(mode="json", exclude=_FACTS_OF_FIELD, exclude_defaults=True) for field in manifest.fields],
        "outputs": [output.model_dump(mode="json", exclude_defaults=True) for output in manifest.outputs],
        "treated": {name: treatment for name, treatment in treatments.items() if treatment != "plain"},
    }


@dataclass(frozen=True)
class FileFacts:
    """What a file says about all of its rows.

    Attributes:
        model: Which model answered.
        version: Which version.
        digest: Its package digest.
        fields: Its raw fields, captured or not.
        outputs: Its outputs.
        treated: Fields that were hashed or excluded.
        since: Time of the first row.
        until: Time of the last row.
        rows: How many there are.
    """

    model: str
    version: int
    digest: str
    fields: tuple[RawField, ...]
    outputs: tuple[Output, ...]
    treated: Mapping[str, Treatment]
    since: datetime
    until: datetime
    rows: int


def read_facts(schema: pa.Schema, name: str) -> FileFacts:
    """Return the facts in a file's schema.

    Raises:
        CaptureFileInvalid: It is no capture file, or one of another format.
    """
    raw = (schema.metadata or {}).get(FACTS)
    if raw is None:
        raise CaptureFileInvalid(f"{name} is a Parquet file but no capture of samegraph's; name the directory that the service captures to")
    document = json.loads(raw)
    if document.get("format") != FORMAT:
        raise CaptureFileInvalid(f"{name}: format is {document.get('format')!r}; this samegraph reads format {FORMAT}")
    return FileFacts(
        model=document["model"],
        version=document["version"],
        digest=document["digest"],
        fields=tuple(RawField.model_validate(field) for field in document["fields"]),
        outputs=tuple(Output.model_validate(output) for output in document["outputs"]),
        treated=document["treated"],
        since=datetime.fromisoformat(document["since"]),
        until=datetime.fromisoformat(document["until"]),
        rows=document["rows"],
    )


# --- writing --------------------------------------------------------------------------------------------------------------


#: A request, the first of its answered rows that is meant, and how many.
Piece: TypeAlias = tuple[Captured, int, int]


class Layout:
    """The columns of one version's files.

    Args:
        manifest: The version's manifest.
        digest: Its package digest.
        treatments: What becomes of each field.
        key: The key of hashed fields.
    """

    def __init__(self, manifest: Manifest, digest: str, treatments: Mapping[str, Treatment], key: bytes = b"") -> None:
        self.manifest = manifest
        self.digest = digest
        self._treatments = treatments
        self._key = key
        self._captured = [(i, f) for i, f in enumerate(manifest.fields) if treatments[f.name] != "excluded"]
        inputs = [pa.field(f.name, pa.string() if treatments[f.name] == "hashed" else _field_type(f)) for _, f in self._captured]
        outputs = [pa.field(o.name, _array_type(o.dtype, o.shape)) for o in manifest.outputs]
        self._inputs, self._outputs = pa.struct(inputs), pa.struct(outputs)
        structs = [pa.field("inputs", self._inputs)] if self._captured else []  # Parquet has no struct without members
        self.schema: pa.Schema = pa.schema([*_META, *structs, pa.field("outputs", self._outputs)])

    def table(self, batches: Sequence[pa.RecordBatch], times: Sequence[float]) -> pa.Table:
        """Return batches as the table of one file, its facts included."""
        facts = file_facts(self.manifest, self.digest, self._treatments)
        facts |= {"since": _time(min(times)).isoformat(), "until": _time(max(times)).isoformat(), "rows": sum(len(b) for b in batches)}
        table = pa.Table.from_batches(batches, self.schema)
        return table.replace_schema_metadata({FACTS: json.dumps(facts, ensure_ascii=False).encode()})

    def batch(self, pieces: Sequence[Piece], blobs: dict[str, bytes]) -> pa.RecordBatch:
        """Return answered rows of some requests as columns; many together cost a row a tenth of what one alone does.

        Args:
            pieces: The requests, or parts of them.
            blobs: Takes the images and byte strings of their rows, by SHA-256.

        Raises:
            ValueError: A value cannot be written, such as a string that is no Unicode text.
        """
        rows: list[Row] = []
        places: list[int] = []
        taken: list[list[np.ndarray]] = [[] for _ in self.manifest.outputs]
        for captured, first, count in pieces:
            answered = range(len(captured.rows)) if captured.answered is None else captured.answered
            chosen = answered[first : first + count]
            places += chosen
            rows += [captured.rows[i] for i in chosen]  # type: ignore[misc]  # an answered row is no error
            _take_answers(captured.parts, first, count, taken)
        n = len(rows)
        meta = [
            pa.array([self.manifest.name] * n, pa.string()),
            pa.array([self.manifest.version] * n, pa.int64()),
            pa.array([self.digest] * n, pa.string()),
            *(
                pa.array([value for captured, _, count in pieces for value in [getattr(captured, name)] * count], pa.string())
                for name in ("experiment", "arm", "request_id", "prediction_id", "protocol")
            ),
            pa.array(places, pa.int32()),
        ]
        times = pa.array(
            [time for captured, _, count in pieces for time in [round(captured.time_s * 1e6)] * count], pa.int64()
        ).cast(_META.field("time").type)  # fmt: skip
        inputs = [self._input(field, [row[i] for row in rows], blobs) for i, field in self._captured]
        outputs = [_outputs(output, arrays) for output, arrays in zip(self.manifest.outputs, taken, strict=True)]
        structs = [_struct(inputs, self._inputs)] if inputs else []
        columns = [times, *meta, *structs, _struct(outputs, self._outputs)]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _input(self, field: RawField, values: Sequence[Any], blobs: dict[str, bytes]) -> pa.Array:
        if self._treatments[field.name] == "hashed":
            return pa.array([None if v is None else self._hashed(v) for v in values], pa.string())
        if field.kind in BINARY_KINDS:
            return pa.array([None if v is None else _blob(v, field, blobs) for v in values], _field_type(field))
        if field.kind == "tensor":
            return _arrays(values, _field_type(field), field.graph_dtype, field.shape or [])
        return pa.array(values, _SCALARS[field.kind], from_pandas=False)

    def _hashed(self, value: Any) -> str:
        if isinstance(value, np.ndarray):
            raw = b"%s%s%s" % (str(value.dtype).encode(), str(value.shape).encode(), _array_bytes(value))
        else:
            raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return hmac.new(self._key, raw, hashlib.sha256).hexdigest()[:32]


def _array_bytes(value: np.ndarray) -> bytes:
    return json.dumps(value.tolist()).encode() if value.dtype == object else np.ascontiguousarray(value).tobytes()


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _struct(columns: list[pa.Array], kind: pa.StructType) -> pa.Array:
    return pa.StructArray.from_arrays(columns, fields=list(kind))


def _field_type(field: RawField) -> pa.DataType:
    if field.kind == "tensor":
        return _array_type(field.graph_dtype, field.shape or [])
    if field.kind in BINARY_KINDS:
        return _IMAGE if field.kind == "image" else _BYTES
    return _SCALARS[field.kind]


def _element_type(dtype: str) -> pa.DataType:
    if dtype == "string":
        return pa.string()
    return pa.from_numpy_dtype(np.dtype(dtype))


def _array_type(dtype: str, shape: Sequence[int | None]) -> pa.DataType:
    element = _element_type(dtype)
    if not shape:
        return element
    return pa.list_(element) if len(shape) == 1 else pa.struct([("shape", pa.list_(pa.int32())), ("data", pa.list_(element))])


def _blob(data: bytes, field: RawField, blobs: dict[str, bytes]) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    known: dict[str, Any] = {"sha256": digest, "bytes": len(data)}
    if field.kind == "image":
        facts = container_facts(data)
        known |= {name: facts[name] for name in _IMAGE.names if name not in known}
    return known


def _take_answers(parts: Sequence[Any], first: int, count: int, taken: list[list[np.ndarray]]) -> None:
    """Add, per output, the arrays that hold `count` answered rows from `first` on, in order."""
    at = 0
    for part in parts:
        low, high = max(first - at, 0), min(first + count - at, part.count)
        if low < high:
            for array, into in zip(part.arrays(), taken, strict=True):
                into.append(array if low == 0 and high == len(array) else array[low:high])
        at += part.count


def _outputs(output: Output, pieces: Sequence[np.ndarray]) -> pa.Array:
    kind = _array_type(output.dtype, output.shape)
    if not output.shape:
        return _flat([piece.reshape(-1) for piece in pieces], kind)
    return _arrays([row for piece in pieces for row in piece], kind, output.dtype, output.shape)


def _arrays(values: Sequence[np.ndarray | None], kind: pa.DataType, dtype: str, shape: Sequence[int | None]) -> pa.Array:
    """Return one array a row as a column."""
    if any(value is None for value in values):
        return pa.array([None if v is None else _plain(v, len(shape)) for v in values], kind)
    present = [value for value in values if value is not None]
    if not shape:
        return _flat([value.reshape(-1) for value in present], kind)
    offsets = np.zeros(len(present) + 1, dtype=np.int32)
    np.cumsum([value.size for value in present], out=offsets[1:])
    data = pa.ListArray.from_arrays(pa.array(offsets), _flat([value.reshape(-1) for value in present], _element_type(dtype)))
    if len(shape) == 1:
        return data
    shapes = pa.array([list(value.shape) for value in present], pa.list_(pa.int32()))
    return pa.StructArray.from_arrays([shapes, data], fields=list(kind))


def _plain(value: np.ndarray, rank: int) -> Any:
    if rank == 0:
        return value.item()
    data = value.reshape(-1).tolist()
    return data if rank == 1 else {"shape": list(value.shape), "data": data}


def _flat(pieces: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    flat = pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else np.zeros(0)
    if pa.types.is_string(kind):
        return pa.array(flat.tolist(), kind)
    return pa.array(np.ascontiguousarray(flat), kind, from_pandas=False)  # NaN stays NaN, bit for bit


# --- reading --------------------------------------------------------------------------------------------------------------


def input_values(column: pa.Array, field: RawField) -> list[Any]:
    """Return a captured field's values as a row holds them; of an image or byte string its facts, among them `sha256`."""
    if field.kind == "tensor":
        return _read_arrays(column, field.graph_dtype, field.shape or [])
    values: list[Any] = column.to_pylist()
    return values


def output_array(column: pa.Array, output: Output) -> list[np.ndarray]:
    """Return an output's values, one array of its shape a row."""
    if not output.shape:
        values = _numbers(column, output.dtype)
        return [values[i : i + 1].reshape(()) for i in range(len(values))]
    return [value for value in _read_arrays(column, output.dtype, output.shape) if value is not None]


def _read_arrays(column: pa.Array, dtype: str, shape: Sequence[int | None]) -> list[Any]:
    if not shape:
        return [None if v is None else np.array(v, dtype=_numpy(dtype)) for v in column.to_pylist()]
    lists = column if len(shape) == 1 else column.field("data")
    shapes = None if len(shape) == 1 else column.field("shape").to_pylist()
    found: list[Any] = []
    for i in range(len(column)):
        if not column[i].is_valid:
            found.append(None)
            continue
        flat = _numbers(lists[i].values, dtype)
        found.append(flat if shapes is None else flat.reshape(shapes[i]))
    return found


def _numbers(values: pa.Array, dtype: str) -> np.ndarray:
    if dtype == "string":
        return np.array(values.to_pylist(), dtype=object)
    return values.to_numpy(zero_copy_only=False).astype(_numpy(dtype), copy=False)  # type: ignore[no-any-return]


def _numpy(dtype: str) -> Any:
    return object if dtype == "string" else np.dtype(dtype)


def json_value(value: Any) -> Any:
    """Return an array or a row's value as JSON values; floats as Python writes them, which loses nothing."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def members(batch: pa.RecordBatch, name: str) -> Iterator[tuple[str, pa.Array]]:
    """Yield the members of a struct column; none when it is not there."""
    if name not in batch.schema.names:
        return
    column = batch.column(name)
    for i in range(column.type.num_fields):
        yield column.type.field(i).name, column.field(i)

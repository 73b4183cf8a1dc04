"""Outcomes as a file: JSON lines, CSV or Parquet, written as they come."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from .errors import ExtraMissing
from .many import Outcome

Format = Literal["jsonl", "csv", "parquet"]
#: Columns of a file, and what they hold; the prediction is JSON in CSV and Parquet, since its shape is the model's.
COLUMNS = (
    "index",
    "name",
    "time_s",
    "ok",
    "prediction",
    "error",
    "model",
    "version",
    "arm",
    "prediction_id",
    "attempts",
    "refusals",
    "elapsed_s",
)
#: Rows of a Parquet row group; what is buffered before it is written.
_ROW_GROUP = 1000


class Writer(Protocol):
    """Writes outcomes one by one."""

    def write(self, outcome: Outcome, name: str | None = None) -> None:
        """Write an outcome; `name` is what its item is called."""
        ...


def format_of(path: Path) -> Format:
    """Return the format a file's name asks for.

    Raises:
        ValueError: It asks for none of them.
    """
    formats: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
    found = formats.get(path.suffix.lower())
    if found is None:
        raise ValueError(f"{path.name} ends in none of {', '.join(formats)}; say which format it shall have")
    return found


@contextmanager
def writer(path: Path | None, kind: Format, stream: IO[str]) -> Iterator[Writer]:
    """Open a writer on a file, or on a text stream when there is no path.

    Raises:
        ExtraMissing: Parquet is asked for and pyarrow is not installed.
        ValueError: Parquet is asked for on a stream of text.
    """
    if kind == "parquet":
        if path is None:
            raise ValueError("Parquet is no text: give a file to write to")
        with _parquet(path) as parquet:
            yield parquet
    elif path is None:
        yield _TextWriter(stream, kind)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield _TextWriter(file, kind)


def row(outcome: Outcome, name: str | None) -> dict[str, Any]:
    """Return an outcome as one row of `COLUMNS`."""
    prediction = outcome.prediction
    return {
        "index": outcome.index,
        "name": name,
        "time_s": outcome.time_s,
        "ok": outcome.ok,
        "prediction": None if prediction is None else prediction.value,
        "error": None if outcome.error is None else f"{type(outcome.error).__name__}: {outcome.error}",
        "model": None if prediction is None else prediction.model,
        "version": None if prediction is None else prediction.version,
        "arm": None if prediction is None else prediction.arm,
        "prediction_id": None if prediction is None else prediction.prediction_id,
        "attempts": outcome.attempts,
        "refusals": outcome.refusals,
        "elapsed_s": round(outcome.elapsed_s, 6),
    }


class _TextWriter:
    def __init__(self, stream: IO[str], kind: Format) -> None:
        self._stream = stream
        self._csv = csv.DictWriter(stream, COLUMNS) if kind == "csv" else None
        if self._csv is not None:
            self._csv.writeheader()

    def write(self, outcome: Outcome, name: str | None = None) -> None:
        """Write one line, and let it be seen at once."""
        fields = row(outcome, name)
        if self._csv is not None:
            self._csv.writerow(_flat(fields))
        else:
            self._stream.write(json.dumps({key: value for key, value in fields.items() if value is not None or key == "prediction"}) + "\n")
        self._stream.flush()


class _ParquetWriter:
    def __init__(self, file: Any, schema: Any) -> None:
        self._file, self._schema = file, schema
        self._rows: list[dict[str, Any]] = []

    def write(self, outcome: Outcome, name: str | None = None) -> None:
        """Keep the row until there are enough for a group."""
        self._rows.append(_flat(row(outcome, name)))
        if len(self._rows) >= _ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what is kept."""
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()


@contextmanager
def _parquet(path: Path) -> Iterator[_ParquetWriter]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ExtraMissing("writing Parquet", "parquet") from error
    kinds = {
        "index": pa.int64(),
        "time_s": pa.float64(),
        "ok": pa.bool_(),
        "attempts": pa.int32(),
        "refusals": pa.int32(),
        "elapsed_s": pa.float64(),
    }
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    with pq.ParquetWriter(path, schema) as file:
        made = _ParquetWriter(file, schema)
        try:
            yield made
        finally:
            made.flush()


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose prediction is text."""
    return {**fields, "prediction": None if fields["prediction"] is None else json.dumps(fields["prediction"])}

"""Read what was captured: files, and their rows a batch at a time, chosen by model, version, arm, time and confidence."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from samegraph_transforms.errors import SamegraphError
from samegraph_transforms.manifest import BINARY_KINDS, Output, RawField

from .columns import CaptureFileInvalid, FileFacts, input_values, members, output_array, read_facts
from .storage import IMAGES, Storage, Stored, image_name, open_storage

#: Rows read at once.
BATCH_ROWS = 256
_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class CaptureError(SamegraphError):
    """Raised when a capture cannot be used as asked; says why."""


@dataclass(frozen=True)
class Choice:
    """Which rows.

    Attributes:
        model: Of this model only.
        version: Of this version only.
        digest: Of packages whose digest begins like this.
        arm: Of requests assigned to this arm only.
        since: Answered at this time or later.
        until: Answered before this time.
        below: Answered with a confidence below this.
        above: Answered with this confidence or a higher one.
        most: This many rows at most.
    """

    model: str | None = None
    version: int | None = None
    digest: str | None = None
    arm: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    below: float | None = None
    above: float | None = None
    most: int | None = None

    def wants(self, facts: FileFacts) -> bool:
        """Whether a file may hold such rows."""
        return (
            self.model in (None, facts.model)
            and self.version in (None, facts.version)
            and (self.digest is None or facts.digest.startswith(self.digest))
            and (self.since is None or facts.until >= self.since)
            and (self.until is None or facts.since < self.until)
        )


@dataclass(frozen=True)
class CaptureFile:
    """One file.

    Attributes:
        stored: Where it lies.
        facts: What it says about its rows.
    """

    stored: Stored
    facts: FileFacts


@dataclass(frozen=True)
class Batch:
    """Some rows of one file.

    Attributes:
        facts: What the file says.
        file: Its name.
        columns: The rows as they are in it.
        meta: Column → values: `time`, `experiment`, `arm`, `request_id`, `prediction_id`, `protocol`, `instance`.
        inputs: Captured field → values, as rows hold them; of an image or byte string its facts; of a hashed field its digest.
        outputs: Output → one array of its shape a row.
        n: Rows.
    """

    facts: FileFacts
    file: str
    columns: pa.RecordBatch
    meta: Mapping[str, Sequence[Any]]
    inputs: Mapping[str, Sequence[Any]]
    outputs: Mapping[str, Sequence[np.ndarray]]
    n: int

    def instance(self, i: int) -> dict[str, Any]:
        """Return a row's inputs by field."""
        return {name: values[i] for name, values in self.inputs.items()}


@dataclass
class Capture:
    """What lies at a directory or URL.

    Args:
        url: The directory or URL the service captured to.
        storage: In its place, for tests.

    Attributes:
        gone: Images that files name and that were deleted since.
        unreadable: Files that cannot be read, with the reason.
    """

    url: str
    storage: Storage | None = None
    gone: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.storage is None:
            try:
                self.storage = open_storage(self.url)
            except Exception as error:  # whatever a file system raises
                raise CaptureError(f"{self.url} cannot be opened: {error}") from error

    def files(self, choice: Choice | None = None) -> list[CaptureFile]:
        """Return the files that may hold rows of the choice, in the order of their first rows.

        Raises:
            CaptureError: There are no capture files at all.
        """
        choice = choice or Choice()
        found, any_there = [], False
        for stored in self._stored():
            parts = stored.name.split("/")
            if choice.model is not None and len(parts) == 3 and parts[0] not in (choice.model, f"{choice.model}.model"):
                any_there = True  # another model's, so it need not be opened
                continue
            try:
                with self._open(stored.name) as file:
                    facts = read_facts(pq.read_schema(file), stored.name)
            except (CaptureFileInvalid, pa.ArrowException, OSError, ValueError, KeyError) as error:
                self.unreadable.append((stored.name, str(error)))
                continue
            any_there = True
            if choice.wants(facts):
                found.append(CaptureFile(stored, facts))
        if not any_there:
            why = f"; {self.unreadable[0][1]}" if self.unreadable else ", or nothing has been written yet"
            raise CaptureError(f"{self.url} holds no captured requests{why}")
        return sorted(found, key=lambda file: (file.facts.since, file.stored.name))

    def _stored(self) -> list[Stored]:
        assert self.storage is not None
        return [s for s in self.storage.files() if s.name.endswith(".parquet") and not s.name.startswith(f"{IMAGES}/")]

    def images(self) -> list[Stored]:
        """Return the images and byte strings that are there."""
        assert self.storage is not None
        return [s for s in self.storage.files() if s.name.startswith(f"{IMAGES}/")]

    def _open(self, name: str) -> Any:
        assert self.storage is not None
        return self.storage.open(name)

    def batches(self, choice: Choice | None = None, files: Iterable[CaptureFile] | None = None) -> Iterator[Batch]:
        """Yield the rows of the choice in batches of at most `BATCH_ROWS`; memory is bounded whatever there is.

        Raises:
            CaptureError: Rows are to be chosen by confidence and the model gives no scores.
        """
        choice = choice or Choice()
        left = choice.most
        for file in self.files(choice) if files is None else files:
            for batch in self._read(file, choice):
                n = batch.n if left is None else min(batch.n, left)
                if n:
                    yield batch if n == batch.n else _rows_of(batch, range(n))
                if left is not None:
                    left -= n
                    if not left:
                        return

    def _read(self, file: CaptureFile, choice: Choice) -> Iterator[Batch]:
        with self._open(file.stored.name) as opened:
            for columns in pq.ParquetFile(opened).iter_batches(batch_size=BATCH_ROWS):
                batch = _batch(columns, file)
                places = [i for i in range(batch.n) if _chosen(batch, i, choice)]
                if choice.below is not None or choice.above is not None:
                    scores = confidences(batch)
                    low, high = choice.above, choice.below
                    places = [i for i in places if (low is None or scores[i] >= low) and (high is None or scores[i] < high)]
                yield batch if len(places) == batch.n else _rows_of(batch, places)

    # --- images -------------------------------------------------------------------------------------------------------

    def blob(self, facts: Mapping[str, Any] | None) -> bytes | None:
        """Return the image or byte string that a row's facts name; None for a missing value.

        Raises:
            FileNotFoundError: It was deleted to keep to the bounds.
            CaptureError: What lies there is not what was captured.
        """
        if facts is None:
            return None
        digest = facts["sha256"]
        assert self.storage is not None
        try:
            data = self.storage.read(image_name(digest))
        except FileNotFoundError:
            self.gone += 1
            raise
        if hashlib.sha256(data).hexdigest() != digest:
            raise CaptureError(f"{image_name(digest)} is not what its name says; it was changed after it was captured")
        return data

    def instances(self, batch: Batch) -> list[dict[str, Any] | None]:
        """Return a batch's inputs as instances: images and byte strings are bytes; None where one of them is gone.

        Raises:
            CaptureError: A field was not captured, or only as a digest.
        """
        check_whole(batch.facts)
        binary = [f.name for f in batch.facts.fields if f.kind in BINARY_KINDS]
        found: list[dict[str, Any] | None] = []
        for i in range(batch.n):
            instance = batch.instance(i)
            try:
                found.append({**instance, **{name: self.blob(instance[name]) for name in binary}})
            except FileNotFoundError:
                found.append(None)
        return found


def check_whole(facts: FileFacts, only: str | None = None) -> None:
    """Refuse rows that cannot be sent again.

    Args:
        facts: Of their file.
        only: The one field that matters; None is all of them.

    Raises:
        CaptureError: A field was excluded or hashed; names it.
    """
    for name, treatment in facts.treated.items():
        if only in (None, name):
            raise CaptureError(
                f"field {name!r} of {facts.model}/{facts.version} was {treatment} when it was captured, so these rows cannot be run again"
            )


# --- rows -----------------------------------------------------------------------------------------------------------------


def _batch(columns: pa.RecordBatch, file: CaptureFile) -> Batch:
    facts = file.facts
    fields = {f.name: f for f in facts.fields}
    outputs = {o.name: o for o in facts.outputs}
    names = ("time", "experiment", "arm", "request_id", "prediction_id", "protocol", "instance")
    return Batch(
        facts,
        file.stored.name,
        columns,
        {name: columns.column(name).to_pylist() for name in names},
        {name: _values(column, fields[name], facts) for name, column in members(columns, "inputs")},
        {name: output_array(column, outputs[name]) for name, column in members(columns, "outputs")},
        len(columns),
    )


def _values(column: pa.Array, field: RawField, facts: FileFacts) -> list[Any]:
    if facts.treated.get(field.name) == "hashed":
        hashed: list[Any] = column.to_pylist()
        return hashed
    return input_values(column, field)


def _rows_of(batch: Batch, places: Sequence[int]) -> Batch:
    def of(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        return {name: [values[i] for i in places] for name, values in columns.items()}

    columns = batch.columns.take(pa.array(list(places), pa.int64()))
    return Batch(batch.facts, batch.file, columns, of(batch.meta), of(batch.inputs), of(batch.outputs), len(places))


def _chosen(batch: Batch, i: int, choice: Choice) -> bool:
    time = batch.meta["time"][i]
    return (
        (choice.arm is None or batch.meta["arm"][i] == choice.arm)
        and (choice.since is None or time >= choice.since)
        and (choice.until is None or time < choice.until)
    )


def score_output(outputs: Sequence[Output]) -> Output | None:
    """Return the output that says how sure the model is: the one a class is decided by, else the first with named classes."""
    by_name = {o.name: o for o in outputs}
    decided = next((by_name[o.decided_by] for o in outputs if o.decided_by in by_name), None)
    named = next((o for o in outputs if o.element_names and o.dtype.startswith("float")), None)
    return decided or named


def confidences(batch: Batch) -> list[float]:
    """Return each row's highest class score.

    Raises:
        CaptureError: The model gives no class scores.
    """
    output = score_output(batch.facts.outputs)
    if output is None:
        names = ", ".join(o.name for o in batch.facts.outputs)
        raise CaptureError(
            f"{batch.facts.model}/{batch.facts.version} gives no class scores (its outputs: {names}), so there is no confidence"
        )
    return [float(np.max(row)) if row.size else 0.0 for row in batch.outputs[output.name]]


def answered_class(batch: Batch, i: int) -> tuple[str, float]:
    """Return a row's class and its score: the first label where the model answers labels, else the class with the highest score."""
    output = score_output(batch.facts.outputs)
    assert output is not None
    scores = batch.outputs[output.name][i].reshape(-1)
    label = next((o for o in batch.facts.outputs if o.decided_by == output.name), None)
    if label is not None:
        first = np.asarray(batch.outputs[label.name][i]).reshape(-1)[0]
        return str(first), float(np.max(scores))
    place = int(np.argmax(scores))
    names = output.element_names or []
    return (names[place] if place < len(names) else str(place)), float(scores[place])


def requests(batches: Iterable[Batch]) -> Iterator[list[tuple[Batch, int]]]:
    """Yield the rows of each request, as places in batches.

    A request's rows lie together in one file, in the order of their places in it.
    """
    found: list[tuple[Batch, int]] = []
    for batch in batches:
        ids, places = batch.meta["request_id"], batch.meta["instance"]
        for i in range(batch.n):
            if found:
                last, k = found[-1]
                same = last.file == batch.file and last.meta["request_id"][k] == ids[i] and last.meta["instance"][k] < places[i]
                if not same:
                    yield found
                    found = []
            found.append((batch, i))
    if found:
        yield found


def parse_time(text: str, now: datetime | None = None) -> datetime:
    """Return the moment in `2026-11-21`, `2026-11-21T15:00:00Z` or `2h` (so long ago); UTC where no zone is given.

    Raises:
        ValueError: It is neither.
    """
    text = text.strip()
    if text and text[-1] in _AGES and text[:-1].replace(".", "", 1).isdigit():
        return (now or datetime.now(UTC)) - timedelta(seconds=float(text[:-1]) * _AGES[text[-1]])
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

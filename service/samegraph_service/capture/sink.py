"""The writing thread: empties the tap, gathers rows by version, and closes a file when there are enough of them.

Nothing here is waited for. What cannot be written is dropped and counted by reason, and a storage that hangs holds up this thread only:
the tap's queue fills up behind it and drops what is new.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from samegraph_transforms.manifest import Manifest

from samegraph_service.logs import get_logger

from .columns import Layout, Piece
from .options import CaptureOptions, Treatment
from .storage import IMAGES, Storage, Stored, image_name, open_storage
from .tap import DROP_REASONS, Captured, CaptureTap, DropReason

log = get_logger("samegraph.capture")

#: Seconds rows are gathered for before they are looked at.
GATHER_S = 0.2
#: Rows turned into columns at once, about: some hundred microseconds.
ROWS_TOGETHER = 256
#: Longest rest after a piece of work, in seconds.
LONGEST_REST_S = 1.0
#: Digests of images that are remembered as stored.
KNOWN_IMAGES = 65_536
#: Seconds between two looks at what lies in a local directory.
LOOK_S = 600.0
#: For how long dropped rows make the service degraded, in seconds; and how long a write may take before it does.
TOLD_FOR_S = 300.0
SLOW_WRITE_S = 30.0


_UNWRITABLE = (ValueError, TypeError, OverflowError, pa.ArrowException)


class _Buffer:
    """Requests of one version that wait for their file."""

    def __init__(self, layout: Layout | None, since: float) -> None:
        self.layout = layout
        self.since = since
        self.waiting: list[Captured] = []
        self.rows = 0
        self.bytes = 0

    def add(self, captured: Captured) -> None:
        self.waiting.append(captured)
        self.rows += captured.n
        self.bytes += captured.bytes


class CaptureSink:
    """Captures the requests of all versions. `start`, `stop` and `expect` are for the event loop's thread.

    Args:
        options: How.
        storage: Where to; None opens the options' URL.
        clock: Seconds since the epoch.

    Attributes:
        tap: Where sampled requests are handed over.
        written: (model, version) → rows in files.
        dropped: Rows that are in no file, by reason; `overflow` is counted by the tap.
        files: Files written.
        bytes: Bytes written, images included.
        images: Images and byte strings written.
        deleted: Local files and images deleted to keep to the bounds.
        failures: Writes that failed.
        stored: Bytes in a local directory, by what they are.
    """

    def __init__(self, options: CaptureOptions, storage: Storage | None = None, clock: Callable[[], float] = time.time) -> None:
        self.options = options
        self._wake = threading.Event()
        self.tap = CaptureTap(
            sample_ratio=options.sample_ratio,
            model_ratios=options.model_ratios,
            max_rows=options.max_queued_rows,
            max_bytes=options.max_queued_bytes,
            wake=self._wake.set,
            clock=clock,
        )
        self.written: dict[tuple[str, int], int] = {}
        self._dropped: dict[DropReason, int] = dict.fromkeys(DROP_REASONS, 0)
        self.files = self.bytes = self.images = self.deleted = self.failures = 0
        self.stored: dict[str, int] = {"files": 0, "images": 0}
        self._storage = open_storage(options.url) if storage is None else storage
        self._clock = clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._turning = threading.Lock()
        self._buffers: dict[tuple[str, int, str], _Buffer] = {}
        self._known_images: OrderedDict[str, None] = OrderedDict()
        self._replica = os.urandom(4).hex()
        self._number = itertools.count(1).__next__
        self._looked_at: float | None = None
        self._writing_since: float | None = None
        self._failing = ""
        self._refused: dict[tuple[str, int], str] = {}
        self._fields_seen: set[str] = set()
        self._models_seen: set[str] = set()

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the writing thread."""
        self._thread = threading.Thread(target=self._run, name="samegraph-capture", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits and stop; what is not in a file within the bound is lost. Harmless when it is not running."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        self._wake.set()
        thread.join(self.options.flush_s)
        left, _ = self.tap.waiting()
        if left:
            log.warning("capture_left", rows=left, seconds=self.options.flush_s)

    def flush(self) -> None:
        """Write everything that waits, here and now."""
        with self._turning:
            self._gather()
            for key in list(self._buffers):
                self._write(key, _no_rest)

    def turn(self, rest: Callable[[], object] | None = None) -> None:
        """Take what waits and close the files that are due."""
        with self._turning:
            self._gather()
            for key in self._due(self._clock()):
                self._write(key, rest or _no_rest)
            self._keep_to_bounds()

    def _run(self) -> None:
        rest = _Rest(self.options.cpu_ratio, self._stopping)
        while not self._stopping.is_set():
            try:
                self.turn(rest)
                self._wait()
            except Exception:  # capture goes on beside the predictions and must not end because of one of them
                log.exception("capture_failed")
                self._stopping.wait(1.0)
        try:
            self.flush()
        except Exception:  # the thread ends either way; why what was gathered is lost stands in the log
            log.exception("capture_failed")

    def _wait(self) -> None:
        self._wake.clear()
        self.tap.awake = False
        if self._stopping.is_set():  # or the wake-up that came before the flag fell would be lost
            return
        if not self.tap.has_new() and not self._wake.wait(max(0.01, self.next_due() - self._clock())):
            return
        self._stopping.wait(GATHER_S)

    def next_due(self) -> float:
        """Return when there is something to do although nothing new comes, in seconds since the epoch."""
        due = [buffer.since + self.options.rotate_s for buffer in self._buffers.values() if buffer.rows]
        return min(due, default=self._clock() + LOOK_S)

    # --- gathering ----------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        for captured in self.tap.drain():
            manifest = captured.manifest
            key = (manifest.name, manifest.version, captured.digest)
            buffer = self._buffers.get(key)
            if buffer is None:
                buffer = self._buffers[key] = _Buffer(self._layout(manifest, captured.digest), self._clock())
            if buffer.layout is None:
                self._drop("refused", captured.n, captured.bytes)
            else:
                if not buffer.rows:
                    buffer.since = self._clock()
                buffer.add(captured)

    def _layout(self, manifest: Manifest, digest: str) -> Layout | None:
        treatments = self.treatments(manifest)
        if treatments is None:
            return None
        try:
            return Layout(manifest, digest, treatments, self.options.key)
        except Exception:  # a signature nobody foresaw costs its own capture
            log.exception("capture_failed", model=manifest.name, version=manifest.version)
            self._refused[manifest.name, manifest.version] = f"capture: {manifest.name}/{manifest.version} cannot be captured; see the log"
            return None

    def treatments(self, manifest: Manifest) -> dict[str, Treatment] | None:
        """Return what becomes of each field; None when the settings name one that the model does not have: then nothing of it is kept."""
        names = [f.name for f in manifest.fields]
        unknown = sorted({*self.options.exclude.unknown(manifest.name, names), *self.options.hashed.unknown(manifest.name, names)})
        if unknown:
            self._refused[manifest.name, manifest.version] = (
                f"capture: {manifest.name}/{manifest.version} has no field {unknown[0]!r}, so nothing of it is captured"
            )
            return None
        return self.options.treatments(manifest.name, manifest.fields)

    def expect(self, manifest: Manifest) -> None:
        """Say that a version is served: its series begin at 0, and the settings are held against its fields."""
        key = (manifest.name, manifest.version)
        self.tap.sampled.setdefault(key, 0)
        self.written.setdefault(key, 0)
        self._models_seen.add(manifest.name)
        self._fields_seen |= {f.name for f in manifest.fields}
        if self.treatments(manifest) is None:
            log.error(
                "capture_refused", model=manifest.name, version=manifest.version, reason=self._refused[manifest.name, manifest.version]
            )

    def _due(self, now: float) -> list[tuple[str, int, str]]:
        options = self.options
        filled = [(key, b) for key, b in self._buffers.items() if b.rows]
        due = [
            key
            for key, b in filled
            if b.rows >= options.rotate_rows or b.bytes >= options.rotate_bytes or now - b.since >= options.rotate_s
        ]
        rows, size = self.tap.waiting()
        # Half a queue of rows that wait for company would make new ones overflow.
        if not due and filled and (rows * 2 > options.max_queued_rows or size * 2 > options.max_queued_bytes):
            due = [max(filled, key=lambda entry: entry[1].bytes)[0]]
        return due

    # --- writing ------------------------------------------------------------------------------------------------------

    def _write(self, key: tuple[str, int, str], rest: Callable[[], object]) -> None:
        buffer = self._buffers.pop(key)
        if buffer.layout is None or not buffer.rows:
            return
        self._writing_since = self._clock()
        name = f"{_safe(key[0])}/{key[1]}/{_stamp(buffer.waiting[0].time_s)}-{self._replica}-{self._number()}.parquet"
        try:
            blobs: dict[str, bytes] = {}
            batches, kept, lost = self._columns(buffer, buffer.layout, blobs, rest)
            content = memoryview(b"")
            if kept:
                self._store_images(blobs)
                data = pa.BufferOutputStream()
                pq.write_table(buffer.layout.table(batches, [captured.time_s for captured in kept]), data, compression="zstd")
                content = memoryview(data.getvalue())
                self._make_room("files", content.nbytes, self.options.max_bytes)
                self._storage.write(name, content)
        except Exception as error:  # whatever a file system raises: these rows are lost, and nothing else is
            self.failures += 1
            if not self._failing:
                log.warning("capture_write_failed", exc_info=error, file=name, rows=buffer.rows)
            self._failing = f"capture: the last write failed: {type(error).__name__}: {error}"[:300]
            self._drop("failed", buffer.rows, buffer.bytes)
            return
        finally:
            self._writing_since = None
        for captured in lost:
            self._drop("unwritable", captured.n, captured.bytes)
        if not kept:
            return
        if self._failing:
            log.info("capture_writes_again", file=name)
            self._failing = ""
        self.files += 1
        self.bytes += content.nbytes
        self.stored["files"] += content.nbytes
        rows = sum(captured.n for captured in kept)
        self.written[key[:2]] = self.written.get(key[:2], 0) + rows
        self.tap.done(rows, sum(captured.bytes for captured in kept))

    def _columns(
        self, buffer: _Buffer, layout: Layout, blobs: dict[str, bytes], rest: Callable[[], object]
    ) -> tuple[list[Any], list[Captured], list[Captured]]:
        """Return the buffer's rows as batches, the requests they are of, and requests that cannot be written: those are lost alone."""
        batches: list[Any] = []
        kept: list[Captured] = []
        lost: list[Captured] = []
        for together in _together(buffer.waiting):
            try:
                found = [layout.batch(pieces, blobs) for pieces in _pieces(together)]
            except _UNWRITABLE:
                self._one_by_one(together, layout, blobs, (batches, kept, lost))
            else:
                batches += found
                kept += together
            rest()
        return batches, kept, lost

    def _one_by_one(
        self,
        together: Sequence[Captured],
        layout: Layout,
        blobs: dict[str, bytes],
        into: tuple[list[Any], list[Captured], list[Captured]],
    ) -> None:
        batches, kept, lost = into
        for captured in together:
            try:
                batches += [layout.batch(pieces, blobs) for pieces in _pieces([captured])]
            except _UNWRITABLE as error:
                log.warning("capture_unwritable", model=captured.manifest.name, request=captured.request_id, reason=str(error)[:200])
                lost.append(captured)
            else:
                kept.append(captured)

    def _store_images(self, blobs: dict[str, bytes]) -> None:
        for digest, data in blobs.items():
            name = image_name(digest)
            known = digest in self._known_images
            if known and not self._storage.local:
                self._known_images.move_to_end(digest)
                continue
            if not self._storage.exists(name):
                self._make_room("images", len(data), self.options.max_image_bytes)
                self._storage.write(name, data)
                self.images += 1
                self.bytes += len(data)
                self.stored["images"] += len(data)
            self._known_images[digest] = None
            if len(self._known_images) > KNOWN_IMAGES:
                self._known_images.popitem(last=False)

    def _drop(self, reason: DropReason, rows: int, size: int) -> None:
        self._dropped[reason] += rows
        self.tap.done(rows, size)

    # --- bounds of a local directory ----------------------------------------------------------------------------------

    def _make_room(self, what: str, size: int, bound: int) -> None:
        """Delete the oldest until `size` more bytes fit.

        Raises:
            OSError: They never will.
        """
        if not self._storage.local:
            return
        if size > bound:
            raise OSError(f"{size} bytes are more than the bound of {bound} for all {what}")
        if self._looked_at is None or self.stored[what] + size > bound:
            self._look(what, size)

    def _keep_to_bounds(self) -> None:
        """Look at a local directory now and then: files grow old, and other replicas write there too."""
        if self._storage.local and (self._looked_at is None or self._clock() - self._looked_at >= LOOK_S):
            self._look()

    def _look(self, room_for: str = "", size: int = 0) -> None:
        self._looked_at = self._clock()
        oldest = self._looked_at - self.options.max_age_s
        found: dict[str, list[Stored]] = {"files": [], "images": []}
        for stored in self._storage.files():
            if stored.name.startswith(f"{IMAGES}/"):
                found["images"].append(stored)
            elif stored.name.endswith(".parquet"):
                found["files"].append(stored)
        for what, bound in (("files", self.options.max_bytes), ("images", self.options.max_image_bytes)):
            files = sorted(found[what], key=lambda stored: stored.modified_s)
            total = sum(stored.bytes for stored in files)
            wanted = bound - (size if what == room_for else 0)
            for stored in files:
                if stored.modified_s >= oldest and total <= wanted:
                    break
                self._storage.delete(stored.name)
                self.deleted += 1
                total -= stored.bytes
            self.stored[what] = total

    # --- telling ------------------------------------------------------------------------------------------------------

    @property
    def dropped(self) -> dict[DropReason, int]:
        """Rows that are in no file, by reason."""
        return {**self._dropped, "overflow": self.tap.overflowed}

    def warnings(self) -> list[str]:
        """Return what an operator should look at."""
        now = self._clock()
        found = list(self._refused.values())
        if self._failing:
            found.append(self._failing)
        since = self._writing_since
        if since is not None and now - since > SLOW_WRITE_S:
            found.append(f"capture: a write has been under way for {now - since:.0f} s")
        if self.tap.overflowed_at is not None and now - self.tap.overflowed_at < TOLD_FOR_S:
            found.append(f"capture: rows come faster than they are written; {self.tap.overflowed} were dropped so far")
        named = self.options.exclude.anywhere | self.options.hashed.anywhere
        if self._models_seen and (unknown := sorted(named - self._fields_seen)):
            found.append(f"capture: no served model has a field {unknown[0]!r}, which is to be excluded or hashed")
        return found


def _together(waiting: Sequence[Captured]) -> Iterator[list[Captured]]:
    """Yield requests that have about `ROWS_TOGETHER` rows, or one that has more."""
    found: list[Captured] = []
    rows = 0
    for captured in waiting:
        found.append(captured)
        rows += captured.n
        if rows >= ROWS_TOGETHER:
            yield found
            found, rows = [], 0
    if found:
        yield found


def _pieces(together: Sequence[Captured]) -> Iterator[list[Piece]]:
    """Yield the rows of requests, at most `ROWS_TOGETHER` at a time when it is one request."""
    if len(together) > 1 or together[0].n <= ROWS_TOGETHER:
        yield [(captured, 0, captured.n) for captured in together]
        return
    (captured,) = together
    for first in range(0, captured.n, ROWS_TOGETHER):
        yield [(captured, first, min(ROWS_TOGETHER, captured.n - first))]


class _Rest:
    """Rests after every piece of work so that the thread's CPU time is `ratio` of the time; not at all once it is to stop."""

    def __init__(self, ratio: float, stopping: threading.Event) -> None:
        self._debt = (1 - ratio) / ratio
        self._stopping = stopping
        self._since = time.thread_time()

    def __call__(self) -> None:
        worked = time.thread_time() - self._since
        if worked >= 0.0005:
            if not self._stopping.is_set():
                self._stopping.wait(min(worked * self._debt, LONGEST_REST_S))
            self._since = time.thread_time()


def _no_rest() -> None:
    """Go on at once."""


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def _safe(model: str) -> str:
    # `images` is a name a model may have; its files must not lie among the images.
    return f"{model}.model" if model == IMAGES else model

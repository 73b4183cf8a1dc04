"""Where a report's counts come from: replicas over HTTP, a Prometheus that scrapes them, or rows in files. Each returns a `Found`."""

from __future__ import annotations

import base64
import datetime as dt
import http.client
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from pydantic import ValidationError
from samegraph_transforms.baseline import Baseline, Variable
from samegraph_transforms.errors import AuthoringError, ExecutionError, InputError, RemoteError
from samegraph_transforms.manifest import Manifest, RawField
from samegraph_transforms.package import Package
from samegraph_transforms.predicting import read_items
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.signature import Row

from .counting import RowCounter, Totals
from .document import TREND_PARTS
from .exposition import label_value
from .report import Found, Moments, Part, found_in
from .statistics import AlarmRule
from .window_sizes import WindowSize, parse_windows

#: Longest answer that is read: a document of a thousand variables with its trend has a few megabytes.
MAX_ANSWER_BYTES = 256 << 20
#: Rows of a file that go through the package together.
ROWS_TOGETHER = 256
#: Names of a column that says when a row came, unless a field of the model is called so.
TIME_COLUMNS = ("time", "timestamp", "at")


class JsonApi:
    """GETs JSON documents.

    Args:
        url: Where the server answers; a path in it is kept in front of every other.
        headers: Sent with every request, for a proxy that wants to know who asks.
        timeout_s: Longest wait for an answer.

    Raises:
        RemoteError: It is no address.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, timeout_s: float = 30.0) -> None:
        self.url = (url if "//" in url else f"http://{url}").rstrip("/")
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RemoteError(f"{url!r} is no server address; give one such as http://127.0.0.1:8000")
        self._headers = dict(headers or {})
        self._timeout_s = timeout_s

    def get(self, path: str, **parameters: str) -> Any:
        """Return the document at a path.

        Raises:
            RemoteError: It cannot be had; says the server's reason.
        """
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        request = urllib.request.Request(f"{self.url}{path}{query}", headers={"accept": "application/json", **self._headers})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:  # noqa: S310 - the scheme was checked above
                body = answer.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise RemoteError(f"{self.url}{path}: {_reason(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise RemoteError(f"{self.url} cannot be asked: {reason}; is it the right address, and does it run?") from error
        if len(body) > MAX_ANSWER_BYTES:
            raise RemoteError(f"{self.url}{path} answers with more than {MAX_ANSWER_BYTES} bytes")
        try:
            return json.loads(body)
        except ValueError as error:
            raise RemoteError(f"{self.url}{path} answers with something that is no JSON; is this the right address?") from error


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(1 << 20))["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"status {error.code}"


# --- replicas -------------------------------------------------------------------------------------------------------------


def found_on_replicas(replicas: Sequence[JsonApi], model: str | None, version: int | None, window: str | None) -> Found:
    """Return what one or several replicas of a service counted, added up.

    Args:
        replicas: The servers, at least one.
        model: Which model; None is the only one.
        version: Which version; None is the first replica's default.
        window: The window's label; None is the longest.

    Raises:
        RemoteError: A replica cannot be asked, or they do not serve the same package.
    """
    first = replicas[0]
    name = urllib.parse.quote(model if model is not None else _only_model(first), safe="")
    at = f"/v1/models/{name}/drift" if version is None else f"/v1/models/{name}/versions/{version}/drift"
    began = first.get(at)
    sizes: dict[str, int] = began["windows"]
    chosen = max(sizes, key=sizes.__getitem__) if window is None else window
    if chosen not in sizes:
        raise RemoteError(f"{first.url} has no window {chosen!r}; it has {', '.join(sizes)} (SAMEGRAPH_DRIFT__WINDOWS)")
    path = f"/v1/models/{name}/versions/{began['version']}"
    with ThreadPoolExecutor(min(len(replicas), 16)) as asking:
        documents = list(asking.map(lambda replica: replica.get(f"{path}/drift", trend=chosen), replicas))
    for replica, document in zip(replicas, documents, strict=True):
        if document["digest"] != began["digest"]:
            raise RemoteError(
                f"{replica.url} serves another package as {began['model']}/{began['version']} than {first.url}; nothing to add up"
            )
    return found_in(documents, _baseline_of(first, path), chosen, _replicas_words(replicas))


def _replicas_words(replicas: Sequence[JsonApi]) -> str:
    return replicas[0].url if len(replicas) == 1 else f"{len(replicas)} replicas: {', '.join(replica.url for replica in replicas)}"


def _only_model(api: JsonApi) -> str:
    models: list[str] = api.get("/v1/models")["models"]
    if len(models) != 1:
        raise RemoteError(f"{api.url} serves {', '.join(models) or 'no model'}; choose one with --model")
    return models[0]


def _baseline_of(api: JsonApi, path: str) -> Baseline:
    try:
        return Baseline.model_validate(api.get(f"{path}/baseline"))
    except ValidationError as error:
        raise RemoteError(f"{api.url} has a baseline of another format than this samegraph reads") from error


# --- Prometheus -----------------------------------------------------------------------------------------------------------


def found_in_prometheus(
    api: JsonApi, package: Package, baseline: Baseline, *, window: str, job: str | None = None, at: float | None = None
) -> Found:
    """Return what a Prometheus knows of all replicas together: growth of the counters over the window, and over its parts.

    Args:
        api: The Prometheus.
        package: The version, of which Prometheus knows the bins but not what they hold.
        baseline: Its baseline.
        window: A duration such as `24h`.
        job: Only series of this job; None is all.
        at: The window's end, seconds since the epoch; None is now.

    Raises:
        RemoteError: It cannot be asked, knows nothing of the version, or holds another baseline for it.
    """
    (size,) = parse_windows(window)
    asked = _Prometheus(api, package, job, at)
    variables = _sided(baseline)
    known = asked.bins("max by ({name}, bin) (samegraph_baseline_{output}bin_rows{selector})")
    if not known:
        raise RemoteError(f"{api.url} has no samegraph_baseline_bin_rows{asked.selector}; does it scrape this version's replicas?")
    _check_baseline(api, variables, known)
    grown = "sum by ({name}, bin) (increase(samegraph_{side}_bin_rows_total{selector}[{window}]))"
    counts = asked.bins(grown, window=window)
    trend = _prometheus_trend(asked, grown, size, variables)
    rule, notes = _prometheus_rule(asked, len(variables))
    left_out = [variable.name for side, variable in variables if (side, variable.name) not in known]
    if left_out:
        notes.append(
            f"The replicas' cap on series leaves out {len(left_out)} variables: {', '.join(left_out[:10])}{' …' * (len(left_out) > 10)}"
        )
    return Found(
        f"Prometheus {api.url}{'' if job is None else f', job {job}'}",
        package.manifest.name,
        str(package.manifest.version),
        package.digest,
        baseline,
        rule,
        window,
        [_ordered(counts.get((side, variable.name), {}), variable) for side, variable in variables],
        _prometheus_moments(asked, variables, window),
        trend,
        _prometheus_cells(asked, window),
        f"in {window}",
        {
            (labels["field"], labels["kind"]): round(value)
            for labels, value in asked.series(
                "sum by (field, kind) (increase(samegraph_input_errors_total{selector}[{window}])) > 0.5", window=window
            )
        },
        notes,
    )


class _Prometheus:
    """Questions about one version."""

    def __init__(self, api: JsonApi, package: Package, job: str | None, at: float | None) -> None:
        named = {"model": package.manifest.name, "version": str(package.manifest.version), **({} if job is None else {"job": job})}
        self.selector = "{" + ",".join(f'{name}="{label_value(value)}"' for name, value in named.items()) + "}"
        self.at = time.time() if at is None else at
        self._api = api

    def _data(self, path: str, expression: str, **parameters: str) -> list[dict[str, Any]]:
        answer = self._api.get(path, query=expression, **parameters)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def _filled(self, expression: str, **names: str) -> str:
        for name, value in {"selector": self.selector, **names}.items():
            expression = expression.replace(f"{{{name}}}", value)
        return expression

    def series(self, expression: str, **names: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of every series an expression gives, NaN left out."""
        found = self._data("/api/v1/query", self._filled(expression, **names), time=repr(self.at))
        values = [(one["metric"], float(one["value"][1])) for one in found]
        return [(labels, value) for labels, value in values if not math.isnan(value)]

    def bins(self, expression: str, **names: str) -> dict[tuple[str, str], dict[str, float]]:
        """Return (side, variable) → bin → value, of inputs and answers."""
        found: dict[tuple[str, str], dict[str, float]] = {}
        for side, name, output in (("input", "field", ""), ("output", "output", "output_")):
            for labels, value in self.series(expression, side=side, name=name, output=output, **names):
                found.setdefault((side, labels[name]), {})[labels["bin"]] = value
        return found

    def ranges(self, expression: str, step_s: int, steps: int, **names: str) -> list[dict[tuple[str, str], dict[str, float]]]:
        """Return what `bins` would at so many moments, the last of them now."""
        moments: list[dict[tuple[str, str], dict[str, float]]] = [{} for _ in range(steps)]
        start = self.at - step_s * (steps - 1)
        for side, name, output in (("input", "field", ""), ("output", "output", "output_")):
            asked = self._filled(expression, side=side, name=name, output=output, **names)
            for one in self._data("/api/v1/query_range", asked, start=repr(start), end=repr(self.at), step=str(step_s)):
                for moment, value in one["values"]:
                    of = moments[round((float(moment) - start) / step_s)].setdefault((side, one["metric"][name]), {})
                    of[one["metric"]["bin"]] = float(value)
        return moments


def _sided(baseline: Baseline) -> list[tuple[str, Variable]]:
    return [*(("input", variable) for _, variable in baseline.inputs()), *(("output", variable) for _, variable in baseline.answers())]


def _ordered(by_bin: Mapping[str, float], variable: Variable) -> np.ndarray:
    return np.array([by_bin.get(label, 0.0) for label in variable.labels])


def _check_baseline(api: JsonApi, variables: Sequence[tuple[str, Variable]], known: Mapping[tuple[str, str], Mapping[str, float]]) -> None:
    for side, variable in variables:
        held = known.get((side, variable.name))
        if held is not None and _ordered(held, variable).tolist() != variable.counts:
            raise RemoteError(f"{api.url} holds another baseline of {variable.name} than the package; give the package that is served")


def _prometheus_rule(asked: _Prometheus, tests: int) -> tuple[AlarmRule, list[str]]:
    """Return the replicas' own rule, and what to say where they do not agree with their defaults."""
    told = {
        name: max((value for _, value in asked.series(f"max (samegraph_drift_{name}{{selector}})")), default=None)
        for name in ("least_psi", "min_rows", "level_z")
    }
    rule = AlarmRule()
    if told["least_psi"] is None or told["min_rows"] is None or told["level_z"] is None:
        return rule, ["Prometheus does not have the replicas' rule; the defaults stand in."]
    alpha = (1 - NormalDist().cdf(told["level_z"])) * tests
    return AlarmRule(told["least_psi"], float(f"{alpha:.6g}"), int(told["min_rows"])), []


def _prometheus_trend(asked: _Prometheus, grown: str, size: WindowSize, variables: Sequence[tuple[str, Variable]]) -> list[Part]:
    length = -(-size.minutes // TREND_PARTS)
    steps = -(-size.minutes // length)
    parts = []
    for k, moment in enumerate(asked.ranges(grown, length * 60, steps, window=f"{length}m")):
        end = dt.datetime.fromtimestamp(asked.at - 60 * length * (steps - 1 - k), dt.UTC)
        counts = [_ordered(moment.get((side, variable.name), {}), variable) for side, variable in variables] if moment else []
        parts.append(Part(f"{length} min to {end:%Y-%m-%d %H:%M} UTC", counts))
    return parts


def _prometheus_moments(asked: _Prometheus, variables: Sequence[tuple[str, Variable]], window: str) -> list[Moments]:
    def by_field(name: str, more: str = "") -> dict[str, float]:
        selector = asked.selector[:-1] + more + "}"
        found = asked.series(f"sum by (field) (increase(samegraph_input_value_{name}_total{selector}[{window}]))")
        return {labels["field"]: value for labels, value in found}

    n, squared = by_field("count"), by_field("offset_squared")
    above, below = by_field("offset", ',side="above"'), by_field("offset", ',side="below"')
    moments: list[Moments] = []
    for side, variable in variables:
        rows = n.get(variable.name, 0.0) if side == "input" else 0.0
        if rows <= 0:
            moments.append((None, None))
            continue
        offset = (above.get(variable.name, 0.0) - below.get(variable.name, 0.0)) / rows
        spread = squared.get(variable.name, 0.0) / rows - offset * offset
        moments.append(((variable.mean or 0.0) + offset, math.sqrt(max(0.0, spread))))
    return moments


def _prometheus_cells(asked: _Prometheus, window: str) -> dict[str, dict[str, float]]:
    cells: dict[str, dict[str, float]] = {}
    for labels, value in asked.series(
        "sum by (output, cell) (increase(samegraph_output_expected_total{selector}[{window}]))", window=window
    ):
        cells.setdefault(labels["output"], {})[labels["cell"]] = value
    return cells


# --- rows in files --------------------------------------------------------------------------------------------------------


def found_in_files(
    sources: Sequence[Path | str], package: Package, baseline: Baseline, rule: AlarmRule, progress: Callable[[int, int], None] | None = None
) -> Found:
    """Count rows of files against a package's baseline, with the answers that the package gives to them here.

    Args:
        sources: Paths of Parquet, CSV, JSON or JSON Lines files with a column or member per field (others are left out), or of images; a
            string is the directory or URL of a capture, of which this version's rows are taken.
        package: The package.
        baseline: Its baseline, or another made from the same fields and outputs.
        rule: What makes an alarm.
        progress: Called with rows done.

    Raises:
        AuthoringError: A file cannot be read.
        CaptureError: A capture cannot be read, or left a field out.
        ExecutionError: A graph does not load or run.
    """
    errors: dict[tuple[str, str], int] = {}
    with closing(PackageRuntime.load(package)) as runtime:
        counter = RowCounter(package.manifest, baseline, tokenizers=runtime.tokenizers)
        counted: list[tuple[float | None, Totals]] = []
        done = 0
        for chunk in _chunks(_rows(sources, runtime, errors), ROWS_TOGETHER):
            counted += _count(runtime, counter, chunk, errors)
            done += len(chunk)
            if progress is not None:
                progress(done, 0)
    total = sum((of for _, of in counted), start=counter.layout.zero())
    slots = counter.layout.slots
    return Found(
        ", ".join(map(str, sources[:3])) + (f" and {len(sources) - 3} more" if len(sources) > 3 else ""),
        package.manifest.name,
        str(package.manifest.version),
        package.digest,
        baseline,
        rule,
        f"{total.rows:,} rows",
        [slot.counts(total) for slot in slots],
        [slot.mean_and_std(total) for slot in slots],
        [Part(label, [slot.counts(of) for slot in slots] if of.rows else []) for label, of in _file_trend(counted, counter.layout.zero())],
        {
            of.output.name: dict(zip(of.cells, total.floats[of.start : of.start + len(of.cells)].tolist(), strict=True))
            for of in counter.layout.expected
        },
        "of these rows",
        errors,
        [] if not errors else [f"{sum(errors.values()):,} rows of the files are refused by the package and not counted."],
    )


def _rows(sources: Iterable[Path | str], runtime: PackageRuntime, errors: dict[tuple[str, str], int]) -> Iterator[tuple[float | None, Row]]:
    """Yield (when, row) of everything that fits the signature."""
    manifest = runtime.manifest
    for source in sources:
        for when, instance in _captured(source, manifest) if isinstance(source, str) else _instances(source, manifest.fields):
            try:
                if isinstance(instance, InputError):
                    raise instance
                yield when, runtime.signature.check_row(instance)
            except InputError as error:
                key = error.field or "_request", error.code
                errors[key] = errors.get(key, 0) + 1


def _instances(path: Path, fields: Sequence[RawField]) -> Iterator[tuple[float | None, Any]]:
    if path.is_dir() and any(path.glob("*.parquet")):
        for file in sorted(path.glob("*.parquet")):
            yield from _parquet(file, fields)
    elif path.suffix.lower() in (".parquet", ".pq"):
        yield from _parquet(path, fields)
    else:
        for item in read_items(path, fields, ignore_extra=True):
            value = {"b64": base64.b64encode(item.value).decode()} if isinstance(item.value, bytes) else item.value
            yield None, item.error if item.error is not None else value


def _captured(url: str, manifest: Manifest) -> Iterator[tuple[float | None, Any]]:
    try:
        from samegraph_service.capture.reader import Capture, Choice
    except ImportError as error:
        raise AuthoringError("reading a capture takes pyarrow and fsspec; install samegraph[capture]") from error
    capture = Capture(url)
    for batch in capture.batches(Choice(model=manifest.name, version=manifest.version)):
        for when, instance in zip(batch.meta["time"], capture.instances(batch), strict=True):
            if instance is not None:
                yield _seconds(when), {name: _plain(value) for name, value in instance.items()}


def _parquet(path: Path, fields: Sequence[RawField]) -> Iterator[tuple[float | None, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise AuthoringError(f"{path}: reading Parquet takes pyarrow; install samegraph[capture]") from error
    try:
        with pq.ParquetFile(path) as file:
            names = [field.name for field in fields if field.name in file.schema_arrow.names]
            if not names:
                raise AuthoringError(f"{path} has no column of the model's fields; they are {', '.join(f.name for f in fields)}")
            clock = next((name for name in TIME_COLUMNS if name in file.schema_arrow.names and name not in names), None)
            for batch in file.iter_batches(4096, columns=[*names, *([clock] if clock else [])]):
                for instance in batch.to_pylist():
                    when = _seconds(instance.pop(clock, None)) if clock else None
                    yield when, {name: _plain(value) for name, value in instance.items()}
    except (pa.ArrowException, OSError) as error:
        raise AuthoringError(f"{path} cannot be read as Parquet: {error}") from error


def _plain(value: Any) -> Any:
    """Return a cell as a request would have it."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def _seconds(value: Any) -> float | None:
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=value.tzinfo or dt.UTC).timestamp()
    return float(value) if isinstance(value, int | float) else None


def _chunks(rows: Iterator[tuple[float | None, Row]], n: int) -> Iterator[list[tuple[float | None, Row]]]:
    while chunk := list(islice(rows, n)):
        yield chunk


def _count(
    runtime: PackageRuntime, counter: RowCounter, chunk: Sequence[tuple[float | None, Row]], errors: dict[tuple[str, str], int]
) -> list[tuple[float | None, Totals]]:
    """Return what some rows come to, each stretch of rows of one minute by itself."""
    prepared, rows, times = [], [], []
    for when, row in chunk:
        try:
            prepared.append(runtime.prepare(row))
            rows.append(row)
            times.append(when)
        except (InputError, ExecutionError) as error:
            key = getattr(error, "field", None) or "_request", getattr(error, "code", "execution_failed")
            errors[key] = errors.get(key, 0) + 1
    if not rows:
        return []
    most = runtime.manifest.batching.max_batch_size
    arrays = [_answers(runtime, prepared[start : start + most]) for start in range(0, len(rows), most)]
    whole = [np.concatenate(of) for of in zip(*arrays, strict=True)]
    counted = []
    begin = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or _minute(times[end]) != _minute(times[begin]):
            pixels = {
                name: [item[place] for item in prepared[begin:end]] for name, place in runtime.item_places.items() if name in counter.pixels
            }
            counted.append((times[begin], counter.count(rows[begin:end], pixels, [array[begin:end] for array in whole])))
            begin = end
    return counted


def _minute(when: float | None) -> int | None:
    return None if when is None else math.floor(when / 60)


def _answers(runtime: PackageRuntime, prepared: Sequence[Any]) -> list[np.ndarray]:
    if runtime.shapes is None:
        return list(runtime.run(runtime.collate(prepared)))
    names = [output.name for output in runtime.manifest.outputs]
    each = runtime.predict_each(prepared)
    return [np.concatenate([answer[name] for answer in each]) for name in names]


def _file_trend(counted: Sequence[tuple[float | None, Totals]], zero: Totals) -> list[tuple[str, Totals]]:
    """Return the rows in equal parts: of time where every row says when it came, else of rows in their order."""
    times = [when for when, _ in counted if when is not None]
    if len(times) == len(counted) and times and max(times) > min(times):
        begin, length = min(times), (max(times) - min(times)) / TREND_PARTS
        parts = [zero] * TREND_PARTS
        for when, of in counted:
            assert when is not None
            place = min(int((when - begin) / length), TREND_PARTS - 1)
            parts[place] = parts[place] + of
        ends = [dt.datetime.fromtimestamp(begin + length * (k + 1), dt.UTC) for k in range(TREND_PARTS)]
        return [(f"to {end:%Y-%m-%d %H:%M} UTC", of) for end, of in zip(ends, parts, strict=True)]
    if len(counted) < 2:
        return []
    found: list[tuple[str, Totals]] = []
    number, first = min(TREND_PARTS, len(counted)), 1
    for k in range(number):
        part = sum((of for _, of in counted[k * len(counted) // number : (k + 1) * len(counted) // number]), start=zero)
        found.append((f"rows {first:,} to {first + part.rows - 1:,}", part))
        first += part.rows
    return found

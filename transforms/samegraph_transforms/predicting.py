"""Predict from files: images, CSV, JSON and JSON Lines, through a package in this process or through a running server.

read_items(source, fields)          what there is to predict, one item each, as the caller's protocol has it
PackagePredictor, ServerPredictor   items → results; an item that fails is a result too and never stops the others
"""

from __future__ import annotations

import base64
import csv
import http.client
import itertools
import json
import math
import ssl
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from pydantic import ValidationError

from .errors import AuthoringError, ExecutionError, InputError, RemoteError
from .manifest import BINARY_KINDS, Output, RawField
from .package import Package
from .runtime import PackageRuntime
from .signature import Row
from .wire import decode_raw, parse_json, predictions

MEDIA_TYPES = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".gif": "image/gif", ".bmp": "image/bmp",
    ".webp": "image/webp", ".tif": "image/tiff", ".tiff": "image/tiff", ".txt": "text/plain",
}  # fmt: skip
#: Instances in one JSON request, and about how many bytes: enough to batch, small enough for any server's limit.
REQUEST_INSTANCES = 64
REQUEST_BYTES = 1 << 20
#: How often a server that says "later" (429, 503) is asked again, and how long one item may wait for it, in seconds.
ATTEMPTS = 6
MAX_WAIT_S = 60.0


@dataclass(frozen=True)
class Item:
    """One thing to predict.

    Attributes:
        name: Where it came from: a file, or a file with a line number.
        media_type: `application/json` for a parsed instance in `value`; else how the bytes in `value` are sent.
        value: The instance or the bytes.
        error: Why it could not even be read.
    """

    name: str
    media_type: str
    value: Any
    error: InputError | None = None


@dataclass(frozen=True)
class Result:
    """What became of one item: a prediction in the API's own shape, or an error with its code."""

    item: str
    prediction: Any = None
    error: str | None = None
    code: str | None = None
    field: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return one line of output."""
        if self.error is None:
            return {"item": self.item, "prediction": self.prediction}
        return {"item": self.item, "error": self.error, "code": self.code, "field": self.field}


class Predictor(Protocol):
    """Something that answers items, in order."""

    @property
    def fields(self) -> Sequence[RawField]:
        """The model's raw inputs."""
        ...

    @property
    def output_names(self) -> Sequence[str]:
        """The model's outputs."""
        ...

    def predict(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield one result per item, in order."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


# --- reading ---------------------------------------------------------------------------------------------------------


def read_items(source: Path, fields: Sequence[RawField], *, ignore_extra: bool = False, stdin: TextIO | None = None) -> Iterator[Item]:
    """Yield what `source` holds to predict.

    Args:
        source: An image or text file, a directory of them, a .csv or .tsv with a header, a .json (one instance, a list of them, or a
            V1 request), a .jsonl with one instance a line, or `-` for JSON Lines on standard input.
        fields: The model's raw inputs: they say what a CSV cell means.
        ignore_extra: Leave out columns and members that are no fields, instead of letting them fail.
        stdin: Where `-` reads from; None is the process's own.

    Raises:
        AuthoringError: There is nothing of the kind, or it cannot be predicted with this model.
    """
    suffix = source.suffix.lower()
    if str(source) == "-":
        items = _jsonl(stdin or sys.stdin, "stdin")
    elif source.is_dir():
        items = _directory(source, fields)
    elif not source.is_file():
        raise AuthoringError(f"{source} does not exist; give a file, a directory of images, or - for JSON Lines on standard input")
    elif suffix in (".csv", ".tsv"):
        items = _csv(source, fields, "\t" if suffix == ".tsv" else ",", ignore_extra=ignore_extra)
    elif suffix in (".jsonl", ".ndjson"):
        items = _jsonl_file(source)
    elif suffix == ".json":
        items = _json(source)
    else:
        items = iter([_raw(source, source.name, fields)])
    return _without_extra(items, {f.name for f in fields}) if ignore_extra else items


def _without_extra(items: Iterable[Item], names: set[str]) -> Iterator[Item]:
    for item in items:
        if item.media_type == "application/json" and isinstance(item.value, dict) and names & item.value.keys():
            yield Item(item.name, item.media_type, {k: v for k, v in item.value.items() if k in names}, item.error)
        else:
            yield item


def _directory(directory: Path, fields: Sequence[RawField]) -> Iterator[Item]:
    kinds = {f.kind for f in fields}
    suffixes = {s for s, m in MEDIA_TYPES.items() if m.startswith("image/")} if kinds & BINARY_KINDS else {".txt"}
    files = sorted(p for p in directory.rglob("*") if p.suffix.lower() in suffixes and p.is_file() and not p.name.startswith("."))
    if not files:
        raise AuthoringError(f"{directory} holds no {'images' if len(suffixes) > 1 else '.txt files'} ({', '.join(sorted(suffixes))})")
    return (_raw(path, path.relative_to(directory).as_posix(), fields) for path in files)


def _raw(path: Path, name: str, fields: Sequence[RawField]) -> Item:
    media_type = MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")
    needed = [f for f in fields if f.required] or list(fields)[:1]
    if len(needed) != 1 or needed[0].kind not in ("image", "bytes", "text", "string"):
        takes = ", ".join(f"{f.name} ({f.kind})" for f in fields)
        raise AuthoringError(f"{path} would be sent as it is, but this model takes {takes}; give a .csv, .json or .jsonl")
    try:
        return Item(name, media_type, path.read_bytes())
    except OSError as error:
        return Item(name, media_type, b"", InputError(f"cannot be read: {error.strerror}", code="bad_body"))


def _jsonl_file(path: Path) -> Iterator[Item]:
    with path.open(encoding="utf-8") as lines:
        yield from _jsonl(lines, path.name)


def _jsonl(lines: Iterable[str], name: str) -> Iterator[Item]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _parsed(line.encode(), f"{name}:{number}")


def _parsed(text: bytes, name: str) -> Item:
    try:
        return Item(name, "application/json", parse_json(text))
    except InputError as error:
        return Item(name, "application/json", None, error)


def _json(path: Path) -> Iterator[Item]:
    whole = _parsed(path.read_bytes(), path.name)
    if whole.error is not None:
        raise AuthoringError(f"{path}: {whole.error}") from whole.error
    document = whole.value
    if isinstance(document, dict) and isinstance(document.get("instances"), list):
        document = document["instances"]
    elif isinstance(document, dict) and isinstance(document.get("inputs"), dict) and len(document) == 1:
        document = _rows_of(document["inputs"], path)
    if not isinstance(document, list):
        return iter([whole])
    return (Item(f"{path.name}[{i}]", "application/json", instance) for i, instance in enumerate(document))


def _rows_of(columns: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    if not all(isinstance(values, list) for values in columns.values()) or len({len(v) for v in columns.values()}) > 1:
        raise AuthoringError(f"{path}: `inputs` must hold equally long lists, one per field")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _csv(path: Path, fields: Sequence[RawField], delimiter: str, *, ignore_extra: bool) -> Iterator[Item]:
    by_name = {f.name: f for f in fields}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        _check_header(path, list(reader.fieldnames or []), by_name, ignore_extra)
        try:
            for row in reader:
                yield _csv_item(row, f"{path.name}:{reader.line_num}", by_name, path.parent)
        except (csv.Error, UnicodeDecodeError) as error:
            raise AuthoringError(f"{path}, after line {reader.line_num}: {error}") from error


def _check_header(path: Path, header: list[str], by_name: Mapping[str, RawField], ignore_extra: bool) -> None:
    unknown = [name for name in header if name not in by_name]
    if not header or len(unknown) == len(header):
        raise AuthoringError(f"{path}: the first line must name the columns; this model's fields are {', '.join(by_name)}")
    if unknown and not ignore_extra:
        raise AuthoringError(f"{path}: no field of the model is called {', '.join(unknown)}; leave such columns out with --ignore-extra")
    missing = [name for name, field in by_name.items() if field.required and name not in header]
    if missing:
        raise AuthoringError(f"{path}: the columns {', '.join(missing)} are missing; the model needs them")


def _csv_item(row: Mapping[str | None, Any], name: str, by_name: Mapping[str, RawField], base: Path) -> Item:
    if None in row or None in row.values():
        return Item(name, "application/json", None, InputError("the line has another number of cells than the header", code="bad_body"))
    try:
        instance = {key: _cell(text, by_name[key], base) for key, text in row.items() if key in by_name and key is not None}
    except OSError as error:
        return Item(name, "application/json", None, InputError(f"{error.filename} cannot be read: {error.strerror}", code="bad_body"))
    return Item(name, "application/json", instance)


def _cell(text: str, field: RawField, base: Path) -> Any:
    """Return the JSON value of a CSV cell; one that does not read as the field's kind stays text and fails with the field's error."""
    if field.kind in ("string", "text"):
        return None if text == "" and field.missing.rule != "refuse" else text
    text = text.strip()
    if text == "" or (field.kind in ("number", "integer") and text.lower() == "nan"):
        return None
    if field.kind in BINARY_KINDS:
        return {"b64": base64.b64encode((base / text).read_bytes()).decode()}
    if field.kind == "boolean":
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)
    try:
        return _number(text) if field.kind in ("number", "integer") else json.loads(text)
    except ValueError:
        return text


def _number(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return int(value) if value.is_integer() and abs(value) <= 2**53 else value


# --- a package in this process ---------------------------------------------------------------------------------------


class PackagePredictor:
    """Answer items with a package loaded here, in batches, exactly as a server would.

    Raises:
        ExecutionError: A graph does not load.
    """

    def __init__(self, package: Package) -> None:
        self._runtime = PackageRuntime.load(package)
        self.fields: Sequence[RawField] = package.manifest.fields
        self._outputs: Sequence[Output] = package.manifest.outputs
        self.output_names: Sequence[str] = [o.name for o in self._outputs]
        self._batch = min(package.manifest.batching.max_batch_size, REQUEST_INSTANCES)

    def predict(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield one result per item, in order."""
        for chunk in _batched(items, self._batch):
            yield from self._chunk(chunk)

    def close(self) -> None:
        """Drop the sessions."""
        self._runtime.close()

    def _chunk(self, items: Sequence[Item]) -> list[Result]:
        prepared = [self._prepare(item) for item in items]
        good = [p for p in prepared if not isinstance(p, InputError)]
        try:
            answers = iter(self._run(good))
        except ExecutionError:
            answers = iter([self._run_alone(p) for p in good])
        return [
            _failed(item, p) if isinstance(p, InputError) else _answered(item, next(answers))
            for item, p in zip(items, prepared, strict=True)
        ]

    def _prepare(self, item: Item) -> Any:
        if item.error is not None:
            return item.error
        try:
            row = self._row(item)
            if isinstance(row, InputError):
                return row
            prepared = self._runtime.prepare(row)
            if self._runtime.shapes is not None:
                self._runtime.shapes.key(prepared)  # a length the package does not take is this item's error alone
            return prepared
        except InputError as error:
            return error
        except ExecutionError as error:
            return InputError(str(error), code="execution_failed")

    def _row(self, item: Item) -> Row | InputError:
        if item.media_type == "application/json":
            return self._runtime.signature.check_row(item.value)
        return decode_raw(self._runtime.signature, item.media_type, item.value)

    def _run(self, prepared: Sequence[Any]) -> list[Any]:
        if not prepared:
            return []
        if self._runtime.shapes is None:
            return [_jsonable(p) for p in predictions(self._outputs, self._runtime.run(self._runtime.collate(prepared)))]
        rows = self._runtime.predict_each(prepared)
        return [_jsonable(predictions(self._outputs, [row[name] for name in self.output_names])[0]) for row in rows]

    def _run_alone(self, prepared: Any) -> Any:
        try:
            return self._run([prepared])[0]
        except ExecutionError as error:
            return InputError(str(error), code="execution_failed")


def _batched(items: Iterable[Item], n: int) -> Iterator[tuple[Item, ...]]:
    iterator = iter(items)
    while chunk := tuple(itertools.islice(iterator, n)):
        yield chunk


def _failed(item: Item, error: InputError) -> Result:
    return Result(item.name, error=str(error), code=error.code, field=error.field)


def _answered(item: Item, answer: Any) -> Result:
    return _failed(item, answer) if isinstance(answer, InputError) else Result(item.name, prediction=answer)


def _jsonable(value: Any) -> Any:
    """Return `value` with NaN and infinities as None, as the API answers them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    return value


# --- a running server ------------------------------------------------------------------------------------------------


class ServerPredictor:
    """Answer items through a running server's V1 API, several requests at a time, on connections that are kept.

    Args:
        url: The server, for example `http://127.0.0.1:8000`; a path in it is a prefix.
        model: The model's name; None takes the server's only model.
        version: A version number; None lets the server route.
        concurrency: Requests under way at once.
        timeout_s: Longest wait for one answer.
        sleep: How to wait between attempts.

    Raises:
        RemoteError: The server cannot be reached, or does not serve the model.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        version: int | None = None,
        *,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._http = ServerConnection(url, timeout_s, sleep)
        try:
            name = urllib.parse.quote(model if model is not None else self._only_model(), safe="")
            self._path = f"/v1/models/{name}" + (f"/versions/{version}" if version is not None else "")
            self.fields, self.output_names = self._describe()
        except BaseException:  # interrupted as well: the connection must not stay open
            self._http.close()
            raise
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="predict")
        self._ahead = concurrency * 2

    def predict(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield one result per item, in order."""
        waiting: list[Future[list[Result]]] = []
        for group in _requests(items):
            waiting.append(self._pool.submit(self._send, group))
            if len(waiting) >= self._ahead:
                yield from waiting.pop(0).result()
        for future in waiting:
            yield from future.result()

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._http.close()

    def _describe(self) -> tuple[Sequence[RawField], Sequence[str]]:
        """Ask for the model's raw inputs and the names of its outputs."""
        metadata = self._http.get_json(f"{self._path}/metadata")
        try:
            return [RawField.model_validate(f) for f in metadata["fields"]], [str(o["name"]) for o in metadata["outputs"]]
        except (KeyError, TypeError, ValidationError) as error:
            raise RemoteError(f"{self._http.url}{self._path} is not described the way samegraph does; is it a samegraph server?") from error

    def _only_model(self) -> str:
        models = self._http.get_json("/v1/models").get("models", [])
        if len(models) != 1:
            raise RemoteError(f"the server has the models {', '.join(map(str, models)) or '(none)'}; choose one with --model")
        return str(models[0])

    def _send(self, group: Sequence[Item]) -> list[Result]:
        first = group[0]
        if first.error is not None:
            return [_failed(first, first.error)]
        if first.media_type != "application/json":
            status, answer = self._http.post(f"{self._path}:predict", first.value, first.media_type)
        else:
            body = json.dumps({"instances": [item.value for item in group]}, allow_nan=False).encode()
            status, answer = self._http.post(f"{self._path}:predict?on_error=partial", body, "application/json")
        if status == 200:
            return _results(group, answer)
        if len(group) > 1:  # all of them failed, or the request as a whole: ask for each alone
            return [result for item in group for result in self._send([item])]
        return [
            Result(
                first.name,
                error=str(answer.get("error", f"status {status}")),
                code=str(answer.get("code", status)),
                field=answer.get("field"),
            )
        ]


def _requests(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Group JSON instances into requests of bounded size; anything else is a request of its own."""
    group: list[Item] = []
    size = 0
    for item in items:
        if item.error is not None or item.media_type != "application/json":
            if group:
                yield group
                group, size = [], 0
            yield [item]
            continue
        size += len(json.dumps(item.value))
        group.append(item)
        if len(group) >= REQUEST_INSTANCES or size >= REQUEST_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _results(group: Sequence[Item], answer: Mapping[str, Any]) -> list[Result]:
    answers = answer.get("predictions")
    if not isinstance(answers, list) or len(answers) != len(group):
        raise RemoteError(f"the server answered {len(group)} instances with something else than {len(group)} predictions")
    errors = {e["instance"]: e for e in answer.get("errors", [])}
    return [
        Result(item.name, error=str(errors[i]["error"]), code=str(errors[i]["code"]), field=errors[i].get("field"))
        if i in errors
        else Result(item.name, prediction=answers[i])
        for i, item in enumerate(group)
    ]


class ServerConnection:
    """Requests over kept connections, one a thread, asked again when the server says "later"."""

    def __init__(self, url: str, timeout_s: float, sleep: Callable[[float], object]) -> None:
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RemoteError(f"{url!r} is no server address; give one such as http://127.0.0.1:8000")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._parts = parts
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._local = threading.local()
        self._all: list[http.client.HTTPConnection] = []

    def get_json(self, path: str) -> dict[str, Any]:
        """Return a document.

        Raises:
            RemoteError: It cannot be had; says the server's reason.
        """
        status, answer = self._ask("GET", path, None, "application/json")
        if status != 200:
            raise RemoteError(f"{self.url}{path}: {answer.get('error', f'status {status}')}")
        return answer

    def post(self, path: str, body: bytes, media_type: str) -> tuple[int, dict[str, Any]]:
        """Send a body; return status and answer.

        Raises:
            RemoteError: No answer can be had, or it is no JSON object.
        """
        return self._ask("POST", path, body, media_type)

    def close(self) -> None:
        """Close every connection."""
        for connection in self._all:
            connection.close()

    def _ask(self, method: str, path: str, body: bytes | None, media_type: str) -> tuple[int, dict[str, Any]]:
        waited = 0.0
        for attempt in range(1, ATTEMPTS + 1):
            response, data = self._exchange(method, path, body, media_type)
            answer = self._parse(response.status, data, path)
            if response.status not in (429, 503) or not answer.get("retryable", True) or attempt == ATTEMPTS:
                return response.status, answer
            pause = min(_retry_after(response, attempt), MAX_WAIT_S - waited)
            if pause <= 0:
                return response.status, answer
            self._sleep(pause)
            waited += pause
        raise AssertionError("unreachable")

    def _exchange(self, method: str, path: str, body: bytes | None, media_type: str) -> tuple[http.client.HTTPResponse, bytes]:
        headers = {"content-type": media_type, "accept": "application/json"}
        target = self._parts.path.rstrip("/") + path
        for fresh in (False, True):
            connection = self._connection(fresh=fresh)
            reused = connection.sock is not None
            try:
                _send(connection, method, target, body, headers)
                response = connection.getresponse()
                return response, response.read()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
                # A server may close a kept connection between two requests; predicting again is safe.
                if not reused:
                    raise RemoteError(f"{self.url} closed the connection without an answer") from error
            except TimeoutError as error:
                connection.close()
                raise RemoteError(
                    f"{self.url} gave no answer within {self._timeout_s:g} s; raise --timeout or look at the server"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise RemoteError(
                    f"nothing answers at {self.url} ({error}); is the server running? Start it with: samegraph serve"
                ) from error
        raise AssertionError("unreachable")

    def _connection(self, *, fresh: bool) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None and fresh:
            connection.close()
        if connection is None or fresh:
            host, port = self._parts.hostname or "", self._parts.port
            if self._parts.scheme == "https":
                connection = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=ssl.create_default_context())
            else:
                connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
            self._local.connection = connection
            self._all.append(connection)
        return connection

    def _parse(self, status: int, data: bytes, path: str) -> dict[str, Any]:
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            return answer
        if status == 200:
            raise RemoteError(f"{self.url}{path} answered with something that is no JSON object; is it a samegraph server?")
        return {"error": f"status {status} from {self.url}{path}", "code": str(status)}


def _send(connection: http.client.HTTPConnection, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> None:
    """Send a request; a server that stops reading a body (too large, say) has usually answered already, so that is no error yet."""
    fresh = connection.sock is None
    try:
        connection.request(method, target, body, headers)
    except (BrokenPipeError, ConnectionResetError):
        if not fresh or connection.sock is None:
            raise


def _retry_after(response: http.client.HTTPResponse, attempt: int) -> float:
    """Return how long the server asks to wait, in seconds, or a doubling pause when it does not say."""
    for header, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(response.headers[header]) * scale)
        except (TypeError, ValueError):
            continue
    return 0.1 * 2.0**attempt

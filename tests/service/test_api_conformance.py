"""The API against its own description: whatever is sent, the answer is one that /openapi.json documents, and never a 5xx."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import odd_packages as odd
import package_builders as build
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from live_server import LiveServer, live_server
from raw_http import PATIENCE_S
from samegraph_transforms.pack import pack

EXAMPLES = 1_000
METHODS = ("get", "post", "put", "delete", "patch")


@dataclass(frozen=True)
class Operation:
    """One documented operation."""

    method: str
    path: str
    document: dict[str, Any]


@dataclass
class Api:
    """The running server, its description, and a connection to it."""

    server: LiveServer
    description: dict[str, Any]
    connection: http.client.HTTPConnection

    def operations(self) -> list[Operation]:
        return [Operation(m, path, item[m]) for path, item in sorted(self.description["paths"].items()) for m in METHODS if m in item]

    def resolved(self, document: Any) -> Any:
        """Follow a reference into the description."""
        while "$ref" in document:
            target = self.description
            for name in document["$ref"].removeprefix("#/").split("/"):
                target = target[name.replace("~1", "/").replace("~0", "~")]
            document = target
        return document

    def examples(self, operation: Operation) -> list[tuple[str, Any]]:
        """Return (content type, body) of every documented example."""
        content = self.resolved(operation.document.get("requestBody", {})).get("content", {})
        return [
            (content_type, self.resolved(example)["value"])
            for content_type, media in content.items()
            for example in media.get("examples", {}).values()
            if "value" in self.resolved(example)
        ]

    def check(self, operation: Operation, path: str, body: bytes | None, headers: dict[str, str]) -> int:
        """Send a request and hold its answer to the description; return the status."""
        self.connection.request(operation.method.upper(), path, body, headers)
        response = self.connection.getresponse()
        sent = response.read()
        assert response.status < 500, (path, body, sent)
        documented = operation.document["responses"]
        assert str(response.status) in documented or "default" in documented, (path, response.status, sent)
        answer = self.resolved(documented.get(str(response.status), documented.get("default")))
        content_type = (response.getheader("content-type") or "").partition(";")[0]
        if "content" not in answer:
            return response.status
        assert content_type in answer["content"], (path, content_type)
        schema = answer["content"][content_type].get("schema")
        if schema is not None and content_type == "application/json":
            validator = Draft202012Validator({**schema, "components": self.description["components"]})
            validator.validate(json.loads(sent))
        for name, header in answer.get("headers", {}).items():
            value = response.getheader(name)
            assert value is not None or not self.resolved(header).get("required", False), (path, name)
        return response.status


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    repository: Path = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        pack(build.draft(version=version), build.samples(), repository)
    for make in (odd.pack_tensors, odd.pack_lists, odd.pack_greeting, odd.pack_tint):
        make(repository)
    with live_server(repository, limits={"max_body_bytes": 100_000, "max_instances": 50}) as live:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=PATIENCE_S)
        yield Api(live, live.get("/openapi.json").json(), connection)
        connection.close()


# --- what is sent ---------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6
)
NAMES = st.sampled_from(["plants", "tint", "nothing", "..", "%", "a/b", "0"]) | st.text(min_size=1, max_size=8)
VERSIONS = st.sampled_from(["1", "2", "9", "-1", "x", "1.0", "", "99999999999999999999999"]) | st.text(max_size=4)


def changed(draw: st.DrawFn, value: Any) -> Any:
    """Return a JSON value with one place in it replaced, removed, doubled or wrapped."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        how = draw(st.sampled_from(["inside", "inside", "inside", "drop", "rename"]))
        rest = {k: v for k, v in value.items() if k != key}
        if how == "drop":
            return rest
        return {**rest, (key if how == "inside" else draw(st.text(max_size=6))): changed(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(value) - 1))
        how = draw(st.sampled_from(["inside", "inside", "inside", "drop", "double"]))
        middle = {"drop": [], "double": [value[at]] * 2}.get(how)
        return [*value[:at], *([changed(draw, value[at])] if middle is None else middle), *value[at + 1 :]]
    return draw(JSON | st.just([value]) | st.just({"b64": value}))


@st.composite
def bodies(draw: st.DrawFn, examples: list[tuple[str, Any]]) -> tuple[str, bytes]:
    """Draw a content type and a body: a documented example, one with a change or two, or something else altogether."""
    if not examples or draw(st.integers(0, 9)) == 0:
        content_type = draw(st.sampled_from(["application/json", "text/plain", "image/png", "multipart/form-data; boundary=x", "a/b", ""]))
        return content_type, draw(st.binary(max_size=60)) if draw(st.booleans()) else json.dumps(draw(JSON)).encode()
    content_type, value = draw(st.sampled_from(examples))
    if content_type != "application/json":
        return content_type, str(value).encode()
    for _ in range(draw(st.integers(0, 2))):
        value = changed(draw, value)
    return content_type, json.dumps(value).encode()


def path_of(draw: st.DrawFn, operation: Operation) -> str:
    path = operation.path
    for name in ("{model}", "{experiment}", "{label}"):
        path = path.replace(name, quote(draw(NAMES), safe=""))
    path = path.replace("{version}", quote(draw(VERSIONS), safe=""))
    assert "{" not in path
    if draw(st.booleans()):
        path += "?on_error=" + quote(draw(st.sampled_from(["fail", "partial"]) | st.text(max_size=4)), safe="")
    return path


HEADER_TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f\x85\xa0"), max_size=8)
DEADLINES = st.sampled_from(["30", "1e9", "0", "-1", "nan", "1e-9"]) | HEADER_TEXT


# --- tests ----------------------------------------------------------------------------------------------------------------


def test_the_description_covers_every_model_and_both_protocols(api: Api) -> None:
    """The operations the tests below draw from."""
    paths = {operation.path for operation in api.operations()}
    for name in ("plants", "tensors", "lists", "greeting", "tint"):
        assert {f"/v1/models/{name}:predict", f"/v2/models/{name}/infer"} <= paths
    assert len(api.operations()) > 40


def test_every_documented_example_is_answered(api: Api) -> None:
    """What the page offers to try works, and the answer is the one it describes."""
    tried = 0
    for operation in api.operations():
        if "{" in operation.path:
            continue  # its examples are of a model and an experiment that a reader puts in
        for content_type, value in api.examples(operation):
            if content_type == "application/json":
                assert api.check(operation, operation.path, json.dumps(value).encode(), {"content-type": content_type}) == 200
                tried += 1
    assert tried > 20


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_whatever_is_sent_is_answered_as_described(api: Api, data: st.DataObject) -> None:
    """Examples with something changed, and things that are no examples, to every operation."""
    operation = data.draw(st.sampled_from(api.operations()))
    path = data.draw(st.composite(lambda draw: path_of(draw, operation))())
    headers = {"x-request-timeout-seconds": data.draw(DEADLINES)} if data.draw(st.integers(0, 3)) == 0 else {}
    body: bytes | None = None
    if operation.method == "post":
        headers["content-type"], body = data.draw(bodies(api.examples(operation)))
    api.check(operation, path, body, {k: v.encode("latin-1").decode("latin-1") for k, v in headers.items()})


def test_methods_that_are_not_described_are_refused_with_those_that_are(api: Api) -> None:
    """The Allow header names every method of the path, as 405 asks for."""
    for path, item in sorted(api.description["paths"].items()):
        if "{" in path:
            continue
        described = {m.upper() for m in METHODS if m in item}
        for method in sorted({"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} - described):
            reply = api.server.request(method, path, b"", {})
            assert reply.status == 405, (method, path)
            assert described <= set(reply.headers["allow"].split(", ")), (method, path)
            assert reply.json()["code"] == "method_not_allowed"


def test_the_server_is_as_it_was(api: Api) -> None:
    """Nothing is held, and nothing failed inside."""
    assert api.server.metric("samegraph_in_flight_requests") == 0
    assert api.server.metric("samegraph_errors_total", code="internal") == 0

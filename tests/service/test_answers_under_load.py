"""Five thousand mixed requests from sixteen callers at once: every answer is checked against its own input, and the books balance."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import odd_packages as odd
import package_builders as build
import pytest
from live_server import LiveServer, live_server
from raw_http import PATIENCE_S, Wire, request
from samegraph_transforms.draft import DraftStage, GoldenSample
from samegraph_transforms.pack import pack

CALLERS = 16
REQUESTS = 5_000
#: Each version has weights of its own, so that an answer shows which version computed it.
FACTORS = {1: 1.0, 2: 2.0}


def probabilities(rows: list[dict[str, Any]], version: int) -> np.ndarray:
    """What training of that version computes."""
    scores = build.reference(rows)["features"] @ (build.WEIGHTS * np.float32(FACTORS[version])) + build.BIAS
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def pack_version(repository: Any, version: int) -> None:
    rows = [dict(r) for r in build.ROWS]
    probability = probabilities(rows, version)
    label = np.array([build.LABELS[i] for i in probability.argmax(axis=1)], dtype=object)
    first, _, last = build.draft().stages
    model = DraftStage("model", build.classifier(build.WEIGHTS * np.float32(FACTORS[version])))
    body = json.dumps({"instances": rows}).encode()
    sample = GoldenSample("all", "/v1/models/plants:predict", odd.JSON, body, {"label": label, "probability": probability})
    pack(build.draft(version=version, stages=[first, model, last]), [sample], repository)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    repository = tmp_path_factory.mktemp("models")
    for version in FACTORS:
        pack_version(repository, version)
    odd.pack_greeting(repository)
    odd.pack_lists(repository)
    odd.pack_tint(repository)
    with live_server(repository) as live:
        yield live


@dataclass
class Books:
    """What one caller sent and got."""

    sent: int = 0
    hung_up: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    rows: int = 0
    failed_rows: int = 0


@dataclass
class Sender:
    """Sends one kind of request after the other on a connection it keeps, and checks what comes back."""

    server: LiveServer
    rng: random.Random
    books: Books = field(default_factory=Books)

    def __post_init__(self) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE_S)

    def run(self, n: int) -> Books:
        simple, images = [self.rows, self.rows, self.columns, self.tensors, self.text, self.lists], [self.image, self.form]
        kinds: list[Callable[[], None]] = [*simple, *images, self.partial, self.bad, self.hang_up]
        for _ in range(n):
            self.rng.choice(kinds)()
        self.connection.close()
        return self.books

    def post(self, path: str, body: bytes, content_type: str = "application/json", status: int = 200) -> tuple[Any, Any]:
        self.connection.request("POST", path, body, {"content-type": content_type})
        response = self.connection.getresponse()
        document = json.loads(response.read())
        self.books.sent += 1
        self.books.statuses[response.status] += 1
        assert response.status == status, document
        return document, response.headers

    def some_rows(self, most: int = 20) -> list[dict[str, Any]]:
        kinds = [*build.KINDS, "bamboo", "", "ферн"]
        return [
            {"size": self.rng.choice([None, self.rng.randrange(-1000, 1000), self.rng.uniform(-9, 9)]), "kind": self.rng.choice(kinds)}
            for _ in range(self.rng.randrange(1, most))
        ]

    def some_version(self, suffix: str) -> tuple[str, int]:
        version = self.rng.choice([None, *FACTORS])
        middle = "" if version is None else f"/versions/{version}"
        return f"/models/plants{middle}{suffix}", version or max(FACTORS)

    # --- kinds --------------------------------------------------------------------------------------------------------

    def rows(self) -> None:
        rows = self.some_rows()
        path, version = self.some_version(":predict")
        document, headers = self.post("/v1" + path, json.dumps({"instances": rows}).encode())
        assert headers["samegraph-model-version"] == document["model_version"] == str(version)
        self.same([p["probability"] for p in document["predictions"]], [p["label"] for p in document["predictions"]], rows, version)

    def columns(self) -> None:
        rows = self.some_rows()
        path, version = self.some_version(":predict")
        document, _ = self.post("/v1" + path, json.dumps({"inputs": {k: [r[k] for r in rows] for k in ("size", "kind")}}).encode())
        self.same(document["outputs"]["probability"], document["outputs"]["label"], rows, version)

    def tensors(self) -> None:
        rows = self.some_rows()
        path, version = self.some_version("/infer")
        size = {"name": "size", "datatype": "FP64", "shape": [len(rows), 1], "data": [r["size"] for r in rows]}
        kind = {"name": "kind", "datatype": "BYTES", "shape": [len(rows)], "data": [r["kind"] for r in rows]}
        document, _ = self.post("/v2" + path, json.dumps({"id": "me", "inputs": [size, kind]}).encode())
        outputs = {o["name"]: o["data"] for o in document["outputs"]}
        assert (document["id"], document["model_version"]) == ("me", str(version))
        self.same(np.reshape(outputs["probability"], (-1, 3)), outputs["label"], rows, version)

    def same(self, probability: Any, label: Any, rows: list[dict[str, Any]], version: int) -> None:
        expected = probabilities(rows, version)
        np.testing.assert_allclose(np.asarray(probability), expected, rtol=0, atol=2e-7)
        assert list(label) == [build.LABELS[i] for i in expected.argmax(axis=1)]
        self.books.rows += len(rows)

    def text(self) -> None:
        text = self.rng.choice(["hello", "Hello", "hello ", ""])
        document, _ = self.post("/v1/models/greeting:predict", text.encode(), "text/plain")
        assert document["predictions"] == [int(text == "hello")]
        self.books.rows += 1

    def lists(self) -> None:
        length = self.rng.randrange(4)
        rows = [[self.rng.random() for _ in range(length)] for _ in range(self.rng.randrange(1, 4))]
        document, _ = self.post("/v1/models/lists:predict", json.dumps({"instances": rows}).encode())
        assert document["predictions"] == [[v + v for v in row] for row in rows]
        self.books.rows += len(rows)

    def image(self) -> None:
        data, expected = IMAGES[self.rng.randrange(len(IMAGES))]
        document, _ = self.post("/v1/models/tint:predict", data, "image/x")
        assert document["predictions"] == [expected]
        self.books.rows += 1

    def form(self) -> None:
        """A form whose parts are good and bad images, in any order."""
        parts = [self.rng.choice([*IMAGES, (b"no image", None)]) for _ in range(self.rng.randrange(1, 5))] + [IMAGES[0]]
        body = b"".join(b"--edge\r\nContent-Type: image/x\r\n\r\n" + data + b"\r\n" for data, _ in parts) + b"--edge--\r\n"
        document, _ = self.post("/v1/models/tint:predict", body, "multipart/form-data; boundary=edge")
        assert document["predictions"] == [expected for _, expected in parts]
        bad = [i for i, (_, expected) in enumerate(parts) if expected is None]
        assert [e["instance"] for e in document.get("errors", [])] == bad
        self.books.rows += len(parts) - len(bad)
        self.books.failed_rows += len(bad)

    def partial(self) -> None:
        rows: list[Any] = [*self.some_rows(5), {"size": "x", "kind": "moss"}, *self.some_rows(5)]
        document, _ = self.post("/v1/models/plants/versions/1:predict?on_error=partial", json.dumps({"instances": rows}).encode())
        good = [r for r in rows if r["size"] != "x"]
        predictions = [p for p in document["predictions"] if p is not None]
        assert [p is None for p in document["predictions"]] == [r["size"] == "x" for r in rows]
        assert [(e["instance"], e["field"]) for e in document["errors"]] == [(rows.index({"size": "x", "kind": "moss"}), "size")]
        self.same([p["probability"] for p in predictions], [p["label"] for p in predictions], good, 1)
        self.books.failed_rows += 1

    def bad(self) -> None:
        path, body, status, code = self.rng.choice(BAD)
        document, _ = self.post(path, body, status=status)
        assert document["code"] == code

    def hang_up(self) -> None:
        """Send one row and leave before the answer, or before the end of the request."""
        whole = request(body=json.dumps({"instances": [{"size": 1, "kind": "oak"}]}).encode())
        with Wire(self.server.port) as wire:
            wire.send(whole if self.rng.random() < 0.5 else whole[:-3])
        self.books.hung_up += 1


IMAGES = [(data, odd.tint(data)) for data in (odd.image_file(i, f) for i, f in enumerate(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")))]
BAD = [
    ("/v1/models/plants:predict", b"{", 400, "malformed_json"),
    ("/v1/models/plants:predict", b'{"instances": []}', 400, "no_instances"),
    ("/v1/models/plants:predict", b'{"instances": [{"size": 1}]}', 400, "missing_field"),
    ("/v1/models/plants/versions/9:predict", b'{"instances": [1]}', 404, "unknown_version"),
    ("/v1/models/trees:predict", b'{"instances": [1]}', 404, "unknown_model"),
    ("/v2/models/plants/infer", b'{"inputs": [{"name": "size", "datatype": "FP64", "shape": [7], "data": [1]}]}', 400, "wrong_shape"),
    ("/v1/models/lists:predict", b'{"instances": [[1], [1, 2]]}', 400, "wrong_shape"),
]


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what


def test_every_answer_is_right_and_the_books_balance(server: LiveServer) -> None:
    """Models, versions, protocols, bad requests and callers who leave, all at once: nobody gets another's answer, nothing is lost.

    Afterwards every request with a whole head is counted once, every answered row once, and nothing is held.
    """
    senders = [Sender(server, random.Random(seed)) for seed in range(CALLERS)]
    with ThreadPoolExecutor(CALLERS) as pool:
        books = list(pool.map(lambda sender: sender.run(REQUESTS // CALLERS), senders))
    sent, hung_up = sum(b.sent for b in books), sum(b.hung_up for b in books)
    assert sent + hung_up == REQUESTS // CALLERS * CALLERS
    assert hung_up > 100
    until("a request was not counted", lambda: server.metric("samegraph_requests_total") == sent + hung_up)
    known: Counter[int] = sum((b.statuses for b in books), Counter())
    for status in known.keys() - {200}:
        assert server.metric("samegraph_requests_total", status=str(status)) == known[status]
    answered_all_the_same = server.metric("samegraph_requests_total", status="200") - known[200]
    left = server.metric("samegraph_requests_total", status="499")
    assert answered_all_the_same + left == hung_up
    assert left == server.metric("samegraph_cancelled_requests_total")
    assert server.metric("samegraph_instances_total") == sum(b.rows for b in books) + answered_all_the_same
    assert server.metric("samegraph_failed_instances_total") == sum(b.failed_rows for b in books)
    load = server.run(lambda: server.service.gate.load)
    assert (load.requests, load.rows, load.bytes) == (0, 0, 0)
    assert server.metric("samegraph_queue_rows") == server.metric("samegraph_run_slots_busy") == 0

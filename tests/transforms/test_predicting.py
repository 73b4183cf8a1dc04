"""Reading items from files, and predicting them through a package or over HTTP."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ragged_models
from package_builders import ROWS, draft, reference, samples
from samegraph_transforms.errors import AuthoringError, InputError, RemoteError
from samegraph_transforms.manifest import Missing, RawField
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package, write_package
from samegraph_transforms.predicting import Item, PackagePredictor, Result, ServerPredictor, read_items
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.wire import decode_request, predictions

FIELDS = draft().fields
IMAGE = [RawField(name="image", kind="image")]


def json_items(*instances: Any) -> list[Item]:
    """Return instances as items."""
    return [Item(f"item {i}", "application/json", instance) for i, instance in enumerate(instances)]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The whole package, unproven (its proof is tested elsewhere)."""
    return write_package(draft(), samples(), tmp_path_factory.mktemp("repository") / "plants" / "1")


class TestReading:
    def read(self, path: Path, fields: Any = FIELDS, **options: Any) -> list[Item]:
        """Read a source to the end."""
        return list(read_items(path, fields, **options))

    def test_csv_cells_become_the_fields_kinds(self, tmp_path: Path) -> None:
        """Numbers, booleans, strings and tensors are read as what the field is; empty and nan are null."""
        nullable = Missing(rule="nan")
        fields = [
            RawField(name="n", kind="number", missing=nullable),
            RawField(name="i", kind="integer"),
            RawField(name="b", kind="boolean"),
            RawField(name="s", kind="string"),
            RawField(name="z", kind="string", missing=Missing(rule="sentinel", sentinel="-")),
            RawField(name="t", kind="tensor", dtype="float32", shape=[2]),
        ]
        path = tmp_path / "rows.csv"
        path.write_text('n,i,b,s,z,t\n1.5,3,true,007,x,"[1, 2]"\n,4.0,No,,,"[1]"\nNaN,-5,1, a ,b,oops\n')
        first, second, third = self.read(path, fields)
        assert first.value == {"n": 1.5, "i": 3, "b": True, "s": "007", "z": "x", "t": [1, 2]}
        assert second.value == {"n": None, "i": 4, "b": False, "s": "", "z": None, "t": [1]}
        assert third.value == {"n": None, "i": -5, "b": True, "s": " a ", "z": "b", "t": "oops"}
        assert [i.name for i in (first, second, third)] == ["rows.csv:2", "rows.csv:3", "rows.csv:4"]

    @pytest.mark.parametrize("text", ["abc", "1,5", "inf", "-Infinity", "0x10"])
    def test_cell_that_is_no_number_fails_with_the_fields_own_error(self, tmp_path: Path, package: Package, text: str) -> None:
        """A bad cell is not silently null, and the other rows are predicted."""
        path = tmp_path / "rows.csv"
        path.write_text(f'size,kind\n"{text}",oak\n1,oak\n')
        with closing(PackagePredictor(package)) as predictor:
            bad, good = predictor.predict(self.read(path))
        assert (bad.code, bad.field) == ("wrong_type", "size")
        assert good.error is None

    def test_byte_order_mark_and_tabs_are_understood(self, tmp_path: Path) -> None:
        """Files as spreadsheets write them."""
        path = tmp_path / "rows.tsv"
        path.write_bytes("\ufeffsize\tkind\r\n2\tfern\r\n".encode())
        assert [i.value for i in self.read(path)] == [{"size": 2, "kind": "fern"}]

    def test_image_cells_are_paths_beside_the_file(self, tmp_path: Path) -> None:
        """A cell of an image field names a file; one that is missing fails alone."""
        (tmp_path / "a.jpg").write_bytes(b"abc")
        (tmp_path / "rows.csv").write_text("image\na.jpg\nb.jpg\n")
        first, second = self.read(tmp_path / "rows.csv", IMAGE)
        assert first.value == {"image": {"b64": "YWJj"}}
        assert second.error is not None
        assert "b.jpg cannot be read" in str(second.error)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "the first line must name the columns; this model's fields are size, kind"),
            ("1,2\n3,4\n", "the first line must name the columns"),
            ("size,kind,species\n1,oak,x\n", "no field of the model is called species; leave such columns out with --ignore-extra"),
            ("kind\noak\n", "the columns size are missing"),
        ],
    )
    def test_header_that_does_not_fit_is_refused(self, tmp_path: Path, text: str, reason: str) -> None:
        """A CSV without the right header is refused as a whole, before anything is predicted."""
        (tmp_path / "rows.csv").write_text(text)
        with pytest.raises(AuthoringError, match=reason):
            self.read(tmp_path / "rows.csv")

    def test_extra_columns_and_members_can_be_left_out(self, tmp_path: Path) -> None:
        """A file that also holds the answers can be predicted as it is."""
        (tmp_path / "rows.csv").write_text("size,kind,species\n1,oak,x\n")
        (tmp_path / "rows.jsonl").write_text('{"size": 1, "kind": "oak", "species": "x"}\n')
        for name in ("rows.csv", "rows.jsonl"):
            assert [i.value for i in self.read(tmp_path / name, ignore_extra=True)] == [{"size": 1, "kind": "oak"}]

    def test_line_with_another_number_of_cells_fails_alone(self, tmp_path: Path) -> None:
        """A ragged line does not shift values into other columns."""
        (tmp_path / "rows.csv").write_text("size,kind\n1,oak,2\n1\n1,oak\n")
        assert [i.error is None for i in self.read(tmp_path / "rows.csv")] == [False, False, True]

    def test_broken_quoting_is_refused_with_the_line(self, tmp_path: Path) -> None:
        """A file the CSV reader cannot read says where."""
        (tmp_path / "rows.csv").write_text('size,kind\n1,"oak\n')
        with pytest.raises(AuthoringError, match=r"rows\.csv, after line 1"):
            self.read(tmp_path / "rows.csv")

    def test_json_lines_fail_one_by_one(self, tmp_path: Path) -> None:
        """A broken line, or a bare NaN, costs only itself; empty lines are skipped."""
        (tmp_path / "rows.jsonl").write_text('{"size": 1, "kind": "oak"}\n\n{"size": \n{"size": NaN, "kind": "oak"}\n[1]\n')
        first, second, third, fourth = self.read(tmp_path / "rows.jsonl")
        assert first.value == {"size": 1, "kind": "oak"}
        assert [e.error.code for e in (second, third) if e.error] == ["malformed_json", "not_a_number"]
        assert (fourth.name, fourth.value) == ("rows.jsonl:5", [1])

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ('{"size": 1, "kind": "oak"}', ["x.json"]),
            ('[{"size": 1, "kind": "oak"}, {"size": 2, "kind": "fern"}]', ["x.json[0]", "x.json[1]"]),
            ('{"instances": [{"size": 1, "kind": "oak"}]}', ["x.json[0]"]),
            ('{"inputs": {"size": [1, 2], "kind": ["oak", "fern"]}}', ["x.json[0]", "x.json[1]"]),
        ],
    )
    def test_json_holds_one_instance_a_list_or_a_request(self, tmp_path: Path, text: str, names: list[str]) -> None:
        """All usual forms of a JSON file are understood."""
        (tmp_path / "x.json").write_text(text)
        items = self.read(tmp_path / "x.json")
        assert [i.name for i in items] == names
        assert items[0].value == {"size": 1, "kind": "oak"}

    @pytest.mark.parametrize("text", ["{", '{"inputs": {"size": [1], "kind": []}}', ""])
    def test_json_that_cannot_be_read_is_refused(self, tmp_path: Path, text: str) -> None:
        """A single document is right or wrong as a whole."""
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(AuthoringError, match=r"x\.json"):
            self.read(tmp_path / "x.json")

    def test_standard_input_is_json_lines(self) -> None:
        """A dash reads JSON Lines."""
        items = list(read_items(Path("-"), FIELDS, stdin=io.StringIO('{"size": 1, "kind": "oak"}\n')))
        assert [(i.name, i.value["size"]) for i in items] == [("stdin:1", 1)]

    def test_directory_gives_its_images_in_order(self, tmp_path: Path) -> None:
        """Images are found below a directory, by name; other files and hidden ones are left out."""
        (tmp_path / "more").mkdir()
        for name in ("b.PNG", "a.jpg", "more/c.webp", ".hidden.jpg", "notes.md"):
            (tmp_path / name).write_bytes(name.encode())
        items = self.read(tmp_path, IMAGE)
        assert [(i.name, i.media_type) for i in items] == [("a.jpg", "image/jpeg"), ("b.PNG", "image/png"), ("more/c.webp", "image/webp")]
        assert items[0].value == b"a.jpg"

    def test_directory_without_images_is_refused(self, tmp_path: Path) -> None:
        """An empty directory says what was looked for."""
        with pytest.raises(AuthoringError, match=r"holds no images \(\.bmp"):
            self.read(tmp_path, IMAGE)

    def test_image_for_a_model_of_columns_is_refused(self, tmp_path: Path) -> None:
        """A file that cannot be meant says what the model takes."""
        (tmp_path / "a.jpg").write_bytes(b"x")
        with pytest.raises(AuthoringError, match=r"this model takes size \(number\), kind \(string\)"):
            self.read(tmp_path / "a.jpg")

    def test_missing_file_is_refused(self, tmp_path: Path) -> None:
        """A wrong path says what can be given."""
        with pytest.raises(AuthoringError, match="does not exist; give a file, a directory of images"):
            self.read(tmp_path / "nothing.csv")


class TestPackage:
    def test_answers_are_the_references(self, package: Package) -> None:
        """Rows predicted in this process get the training code's answers, in order."""
        rows = [ROWS[i % len(ROWS)] for i in range(30)]
        with closing(PackagePredictor(package)) as predictor:
            results = list(predictor.predict(json_items(*rows)))
        assert [r.prediction["label"] for r in results] == reference(rows)["label"].tolist()
        assert [r.item for r in results] == [f"item {i}" for i in range(30)]

    def test_items_of_different_lengths_get_their_own_answers(self, tmp_path: Path) -> None:
        """Sentences are padded to run together, and their token scores have no padding; one that is too long is an error of its own."""
        package = pack(ragged_models.draft(tokens=True), ragged_models.samples(tokens=True), tmp_path)
        sentences = [ragged_models.sentence(n) for n in (3, 9, 40, 1, 3, 16)]
        with closing(PackagePredictor(package)) as predictor:
            results = list(predictor.predict(json_items(*({"ids": ids} for ids in sentences))))
        assert [r.code for r in results] == [None, None, "wrong_shape", None, None, None]
        for ids, result in zip(sentences, results, strict=True):
            if result.error is None:
                np.testing.assert_allclose(result.prediction["scores"], ragged_models.scores(ids), rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(result.prediction["each"], ragged_models.each(ids), rtol=1e-4, atol=1e-5)

    def test_failing_items_do_not_stop_the_others(self, package: Package) -> None:
        """Every item has a result in its own place, with code and field where it failed."""
        unread = Item("unread", "application/json", None, InputError("broken", code="malformed_json"))
        items = [*json_items(ROWS[0], {"size": 1}, {"size": 1, "kind": "oak", "odd": 2}, 7), unread, *json_items(ROWS[1])]
        with closing(PackagePredictor(package)) as predictor:
            results = list(predictor.predict(items))
        assert [r.code for r in results] == [None, "missing_field", "unknown_field", "bad_body", "malformed_json", None]
        assert [r.field for r in results][1:3] == ["kind", "odd"]
        assert results[5].prediction["label"] == reference([ROWS[1]])["label"][0]


class Handler(BaseHTTPRequestHandler):
    """A V1 server over a real package, with faults that tests ask for."""

    protocol_version = "HTTP/1.1"
    runtime: PackageRuntime
    faults: list[Callable[[Handler], bool]]
    seen: list[tuple[str, str]]
    connections: set[int]

    def do_GET(self) -> None:
        """Answer metadata and the list of models."""
        if self.path == "/v1/models":
            self.answer(200, {"models": ["plants"]})
        elif self.path.endswith("/metadata") and "/plants/" in self.path:
            manifest = self.runtime.manifest
            dump = {"fields": [f.model_dump(mode="json", exclude_defaults=True) for f in manifest.fields]}
            self.answer(200, {**dump, "outputs": [{"name": o.name} for o in manifest.outputs]})
        else:
            self.answer(404, {"error": "unknown model 'weeds'", "code": "unknown_model", "retryable": False})

    def do_POST(self) -> None:
        """Predict, unless a fault is due."""
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.path, self.headers["content-type"]))
        self.connections.add(id(self.connection))
        if self.faults and self.faults.pop(0)(self):
            return
        try:
            rows = decode_request(self.runtime.signature, {"content-type": self.headers["content-type"]}, body).rows
        except InputError as error:
            self.answer(400, {"error": str(error), "code": error.code, "field": error.field})
            return
        errors = [
            {"instance": i, "error": str(r), "code": r.code, "field": r.field} for i, r in enumerate(rows) if isinstance(r, InputError)
        ]
        good = [r for r in rows if not isinstance(r, InputError)]
        if not good:
            self.answer(400, errors[0])
            return
        answers = iter(predictions(self.runtime.manifest.outputs, list(self.runtime.predict(good).values())))
        self.answer(200, {"predictions": [None if isinstance(r, InputError) else next(answers) for r in rows], "errors": errors})

    def answer(self, status: int, document: object, **headers: str) -> bool:
        """Send a JSON document."""
        data = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        return True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Stay silent."""


@pytest.fixture
def server(package: Package) -> Iterator[tuple[str, type[Handler]]]:
    """A running server: its address, and the handler class whose faults a test sets."""
    handler: type[Handler] = type(
        "OneTest", (Handler,), {"runtime": PackageRuntime.load(package), "faults": [], "seen": [], "connections": set()}
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", handler
        http.shutdown()
        thread.join()
        handler.runtime.close()


def waits() -> tuple[list[float], Callable[[float], object]]:
    """Return a clock that only writes down how long it was asked to wait."""
    asked: list[float] = []
    return asked, asked.append


class TestServer:
    def predict(self, url: str, items: list[Item], **options: Any) -> list[Result]:
        """Predict items over HTTP."""
        with closing(ServerPredictor(url, "plants", **{"concurrency": 1, **options})) as predictor:
            return list(predictor.predict(items))

    def test_answers_are_the_packages(self, server: tuple[str, type[Handler]], package: Package) -> None:
        """Over HTTP and in this process the same items get the same results."""
        items = json_items(*ROWS, {"size": "x", "kind": "oak"}, *ROWS)
        with closing(PackagePredictor(package)) as local:
            assert self.predict(server[0], items) == list(local.predict(items))

    def test_many_items_keep_their_order_and_share_requests(self, server: tuple[str, type[Handler]]) -> None:
        """Hundreds of items go in a few requests, several at a time, and come back in order."""
        rows = [{"size": i / 10, "kind": "oak"} for i in range(300)]
        results = self.predict(server[0], json_items(*rows), concurrency=4)
        assert [r.prediction["label"] for r in results] == reference(rows)["label"].tolist()
        assert len(server[1].seen) == 5
        assert len(server[1].connections) <= 4

    def test_connection_is_kept(self, server: tuple[str, type[Handler]]) -> None:
        """One connection serves all requests of a thread."""
        self.predict(server[0], json_items(*[{"size": i, "kind": "oak"} for i in range(200)]))
        assert len(server[1].seen) == 4
        assert len(server[1].connections) == 1

    def test_failing_items_do_not_stop_the_others(self, server: tuple[str, type[Handler]]) -> None:
        """A request in which every instance fails is taken apart, so each item gets its own reason."""
        results = self.predict(server[0], json_items({"size": 1}, {"size": "x", "kind": "oak"}))
        assert [r.code for r in results] == ["missing_field", "wrong_type"]

    def test_raw_bytes_are_sent_with_their_media_type(self, server: tuple[str, type[Handler]]) -> None:
        """An image goes as it is; the server's refusal is the item's error."""
        (result,) = self.predict(server[0], [Item("a.png", "image/png", b"png")])
        assert server[1].seen[-1][1] == "image/png"
        assert result.code == "unsupported_media_type"

    def test_only_model_is_found(self, server: tuple[str, type[Handler]]) -> None:
        """A server with one model needs no --model; a version goes into the path."""
        with closing(ServerPredictor(server[0], None, 3)) as predictor:
            assert next(predictor.predict(json_items(ROWS[0]))).error is None
        assert server[1].seen[0][0].startswith("/v1/models/plants/versions/3:predict")

    def test_overload_is_waited_out_as_the_server_asks(self, server: tuple[str, type[Handler]]) -> None:
        """A 429 is asked again after exactly the time the server names, the finer header first."""
        server[1].faults += [
            lambda h: h.answer(429, {"error": "busy", "code": "overloaded", "retryable": True}, retry_after="1", retry_after_ms="150"),
            lambda h: h.answer(503, {"error": "not ready", "code": "not_ready"}, retry_after="2"),
        ]
        asked, sleep = waits()
        (result,) = self.predict(server[0], json_items(ROWS[0]), sleep=sleep)
        assert result.error is None
        assert asked == [0.15, 2.0]

    def test_endless_overload_ends_as_an_error_of_the_item(self, server: tuple[str, type[Handler]]) -> None:
        """Patience is bounded: the server's own words become the item's error."""
        server[1].faults += [lambda h: h.answer(429, {"error": "busy", "code": "overloaded"}, retry_after="30")] * 20
        asked, sleep = waits()
        (result,) = self.predict(server[0], json_items(ROWS[0]), sleep=sleep)
        assert (result.error, result.code) == ("busy", "overloaded")
        assert asked == [30.0, 30.0]

    def test_connection_closed_while_idle_is_opened_again(self, server: tuple[str, type[Handler]]) -> None:
        """A server may drop a kept connection between requests; nothing is lost."""

        def answer_and_hang_up(handler: Handler) -> bool:
            handler.close_connection = True
            return handler.answer(200, {"predictions": [None]})

        server[1].faults.append(answer_and_hang_up)
        items = [Item("a", "text/plain", b"x"), *json_items(ROWS[0])]
        first, second = self.predict(server[0], items)
        assert first.error is None
        assert second.prediction["label"] == reference([ROWS[0]])["label"][0]

    def test_connection_closed_without_an_answer_is_an_error(self, server: tuple[str, type[Handler]]) -> None:
        """A server that dies in the middle is reported, not asked for ever."""

        def hang_up(handler: Handler) -> bool:
            handler.close_connection = True
            return True

        server[1].faults += [hang_up] * 3
        with pytest.raises(RemoteError, match="closed the connection without an answer"):
            self.predict(server[0], json_items(ROWS[0]))

    def test_other_server_is_recognised(self, server: tuple[str, type[Handler]]) -> None:
        """An answer that is no prediction is named as such."""
        server[1].faults.append(lambda h: h.answer(200, {"hello": 1}))
        with pytest.raises(RemoteError, match="something else than 1 predictions"):
            self.predict(server[0], json_items(ROWS[0]))

    def test_unknown_model_carries_the_servers_reason(self, server: tuple[str, type[Handler]]) -> None:
        """The server says what it does not know."""
        with pytest.raises(RemoteError, match="unknown model 'weeds'"):
            ServerPredictor(server[0], "weeds")

    def test_nobody_listening_says_how_to_start(self) -> None:
        """The commonest mistake has the remedy in its message."""
        with pytest.raises(RemoteError, match=r"nothing answers at http://127\.0\.0\.1:1 .*samegraph serve"):
            ServerPredictor("127.0.0.1:1", "plants")

    @pytest.mark.parametrize("url", ["ftp://x", "http://", "http:///v1"])
    def test_address_that_is_none_is_refused(self, url: str) -> None:
        """An address of another kind says what one looks like."""
        with pytest.raises(RemoteError, match="is no server address"):
            ServerPredictor(url, "plants")

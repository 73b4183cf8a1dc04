"""Capture: what is sampled is in whole Parquet files with its answers, what is not is counted, and no request waits for either."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from live_server import LiveServer, live_server
from odd_packages import image_file, pack_greeting, pack_lists, pack_tensors, pack_tint
from package_builders import draft, samples
from samegraph_service.capture.options import FieldNames, check_libraries, parse_field_names, parse_ratios, read_key
from samegraph_service.capture.reader import Batch, Capture, Choice
from samegraph_service.capture.sink import CaptureSink
from samegraph_service.capture.storage import LocalStorage, open_storage
from samegraph_service.capture.tap import place_of
from samegraph_service.commands import serve
from samegraph_transforms.errors import EnvironmentUnfit
from samegraph_transforms.pack import pack
from server_process import ServerProcess

KEY = "a key that nobody guesses"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    pack(draft(), samples(), models)
    pack_tint(models)
    pack_greeting(models)
    pack_tensors(models)
    pack_lists(models)
    return models


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "captured")


def flushed(server: LiveServer) -> None:
    """Write what was captured so far; the caller has its answer a moment before it is handed over."""
    sink = server.service.capture
    assert sink is not None
    server.run(lambda: None)
    sink.flush()


def rows_of(url: str, **choice: Any) -> list[tuple[Batch, int]]:
    return [(batch, i) for batch in Capture(url).batches(Choice(**choice)) for i in range(batch.n)]


def until(holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.01)


# --- what is in a file --------------------------------------------------------------------------------------------------


def test_a_row_is_kept_with_its_answer_and_its_circumstances(models: Path, url: str) -> None:
    """Typed columns for inputs and outputs, and who answered which request when."""
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        body = {"instances": [{"size": 1.5, "kind": "moss"}, {"size": None, "kind": "oak"}]}
        reply = server.predict("plants", body, **{"x-request-id": "r-1"})
        flushed(server)
    (first, i), (second, j) = rows_of(url)
    answers = reply.json()["predictions"]
    assert [first.instance(i), second.instance(j)] == body["instances"]
    assert [b.outputs["label"][k].item() for b, k in ((first, i), (second, j))] == [a["label"] for a in answers]
    assert [b.outputs["probability"][k].tolist() for b, k in ((first, i), (second, j))] == [
        pytest.approx(list(a["probability"].values()) if isinstance(a["probability"], dict) else a["probability"]) for a in answers
    ]
    assert first.meta["request_id"][i] == "r-1"
    assert first.meta["prediction_id"][i] == reply.json()["prediction_id"]
    assert [first.meta["instance"][i], second.meta["instance"][j]] == [0, 1]
    assert first.meta["protocol"][i] == "v1"
    assert (first.facts.model, first.facts.version, first.facts.digest) == ("plants", 1, reply.headers["samegraph-package-digest"])
    assert abs(first.meta["time"][i].timestamp() - time.time()) < 60


def test_any_parquet_reader_understands_a_file(models: Path, url: str) -> None:
    """Numbers are doubles, strings strings, classes a list; the columns say what they are."""
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        server.predict("plants", {"instances": [{"size": 1.5, "kind": "moss"}]})
        flushed(server)
    (file,) = Path(url).rglob("*.parquet")
    table = pq.read_table(file)
    assert str(table.schema.field("inputs").type) == "struct<size: double, kind: string>"
    assert re.fullmatch(r"plants/1/\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{8}-1\.parquet", file.relative_to(url).as_posix())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_images_are_kept_once_by_hash_with_facts_of_their_files(models: Path, url: str) -> None:
    """Raw bodies, multipart and base64 of one picture share one file."""
    picture = image_file(1)
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        raw = server.request("POST", "/v1/models/tint:predict", picture, {"content-type": "image/png"})
        parts = b"".join(b"--x\r\ncontent-type: image/png\r\n\r\n%b\r\n" % p for p in (picture, b"no image", image_file(2))) + b"--x--\r\n"
        multi = server.request("POST", "/v1/models/tint:predict", parts, {"content-type": "multipart/form-data; boundary=x"})
        assert (raw.status, multi.status) == (200, 200)
        flushed(server)
    capture = Capture(url)
    found = list(rows_of(url))
    assert [b.meta["protocol"][i] for b, i in found] == ["raw", "multipart", "multipart"]
    assert [b.meta["instance"][i] for b, i in found] == [0, 0, 2], "an instance that failed alone is left out"
    facts = found[0][0].inputs["image"][found[0][1]]
    assert (facts["format"], facts["width"], facts["height"], facts["bytes"]) == ("PNG", 23, 17, len(picture))
    assert capture.blob(facts) == picture
    assert len(list((Path(url) / "images").rglob("*"))) - len(list((Path(url) / "images").iterdir())) == 2


def test_columns_and_tensors_of_v2_are_rows_too(models: Path, url: str) -> None:
    """The tap sees decoded rows, so every protocol gives the same columns."""
    v2 = {
        "inputs": [
            {"name": "size", "datatype": "FP64", "shape": [2], "data": [1.5, -0.0]},
            {"name": "kind", "datatype": "BYTES", "shape": [2], "data": ["moss", "fern"]},
        ]
    }
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        assert server.request("POST", "/v2/models/plants/infer", json.dumps(v2), {"content-type": "application/json"}).status == 200
        flushed(server)
    found = rows_of(url)
    assert [b.instance(i) for b, i in found] == [{"size": 1.5, "kind": "moss"}, {"size": -0.0, "kind": "fern"}]
    assert str(found[1][0].inputs["size"][1]) == "-0.0"
    assert found[0][0].meta["protocol"][0] == "v2"


def test_what_was_refused_is_not_kept(models: Path, url: str) -> None:
    """A request without an answer has nothing to be replayed against."""
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        assert server.predict("plants", {"instances": [{"size": "wide", "kind": "moss"}]}).status == 400
        assert (
            server.predict(
                "plants", {"instances": [{"size": 1, "kind": "moss"}, {"size": "x", "kind": "moss"}]}, "?on_error=partial"
            ).status
            == 200
        )
        flushed(server)
    assert [b.instance(i) for b, i in rows_of(url)] == [{"size": 1.0, "kind": "moss"}]


# --- which requests -----------------------------------------------------------------------------------------------------


def test_replicas_choose_the_same_requests_without_talking(models: Path, tmp_path: Path) -> None:
    """The request id alone decides; about the asked share of ids that count up is chosen."""
    ids = [f"boot-{i:x}" for i in range(20_000)]
    for ratio in (0.01, 0.25):
        chosen = sum(place_of(i) < ratio * 2**32 for i in ids) / len(ids)
        assert chosen == pytest.approx(ratio, abs=4 * (ratio * (1 - ratio) / len(ids)) ** 0.5)
        blocks = np.array([place_of(i) < ratio * 2**32 for i in ids]).reshape(-1, 1000).sum(axis=1)
        assert 0.3 < blocks.var() / (1000 * ratio * (1 - ratio)) < 3, "neither in a pattern nor in clusters"
    kept = []
    for replica in ("a", "b"):
        url = str(tmp_path / replica)
        with live_server(models, capture={"url": url, "sample_ratio": 0.5}) as server:
            for i in range(40):
                server.predict("plants", {"instances": [{"size": i, "kind": "moss"}]}, **{"x-request-id": f"id-{i}"})
            flushed(server)
        kept.append({b.meta["request_id"][i] for b, i in rows_of(url)})
    assert kept[0] == kept[1] == {f"id-{i}" for i in range(40) if place_of(f"id-{i}") < 2**31}


def test_a_model_may_have_its_own_share(models: Path, url: str) -> None:
    """0 for one and all for another."""
    with live_server(models, capture={"url": url, "model_ratios": "plants=0, greeting=1"}) as server:
        server.predict("plants", {"instances": [{"size": 1, "kind": "moss"}]})
        assert server.predict("greeting", {"instances": ["Ada"]}).status == 200
        flushed(server)
    assert [b.facts.model for b, _ in rows_of(url)] == ["greeting"]


def test_capture_is_off_unless_asked_for(models: Path) -> None:
    """No thread, no tap, no series."""
    with live_server(models) as server:
        assert server.service.capture is None
        assert b"samegraph_capture" not in server.get("/metrics").body
        assert not any(t.name == "samegraph-capture" for t in threading.enumerate())


# --- privacy ------------------------------------------------------------------------------------------------------------


def test_excluded_and_hashed_values_are_nowhere_in_the_files(models: Path, url: str, tmp_path: Path) -> None:
    """A digest is the same for the same value and key, and null where the value was missing."""
    (tmp_path / "key").write_text(KEY)
    settings = {"url": url, "sample_ratio": 1, "exclude": "size", "hashed": "plants:kind", "hash_key_file": tmp_path / "key"}
    with live_server(models, capture=settings) as server:
        for kind in ("Secretia", "moss", "Secretia"):
            server.predict("plants", {"instances": [{"size": 1.5, "kind": kind}]})
        flushed(server)
    rows = [b.instance(i) for b, i in rows_of(url)]
    assert [set(row) for row in rows] == [{"kind"}] * 3
    assert rows[0] == rows[2] != rows[1]
    assert re.fullmatch("[0-9a-f]{32}", rows[0]["kind"])
    for file in Path(url).rglob("*.parquet"):
        assert "Secretia" not in str(pq.read_table(file).to_pylist())
        assert b"Secretia" not in file.read_bytes()


def test_a_field_the_model_does_not_have_stops_its_capture(models: Path, url: str) -> None:
    """Whoever misspells a field to exclude must not find it captured."""
    with live_server(models, capture={"url": url, "sample_ratio": 1, "exclude": "plants:siez"}) as server:
        server.predict("plants", {"instances": [{"size": 1, "kind": "moss"}]})
        server.predict("greeting", {"instances": ["Ada"]})
        flushed(server)
        assert "'siez'" in str(server.get("/readyz").json()["degraded"])
        assert server.metric("samegraph_capture_dropped_rows_total", reason="refused") == 1
        assert server.metric("samegraph_degraded") >= 1
    assert {b.facts.model for b, _ in rows_of(url)} == {"greeting"}


def test_a_name_that_no_model_has_is_pointed_out(models: Path, url: str) -> None:
    """It may be meant for a model to come, so nothing stops; but somebody should look."""
    with live_server(models, capture={"url": url, "sample_ratio": 1, "exclude": "kid"}) as server:
        assert "'kid'" in str(server.get("/readyz").json()["degraded"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"CAPTURE__SAMPLE_RATIO": "0.1"}, "SAMEGRAPH_CAPTURE__URL must say where"),
        ({"CAPTURE__MODEL_RATIOS": "plants=2"}, "MODEL=RATIO"),
        ({"CAPTURE__EXCLUDE": ":name"}, "names no field"),
        ({"CAPTURE__SAMPLE_RATIO": "1", "CAPTURE__URL": "x", "CAPTURE__HASHED": "name"}, "HASH_KEY_FILE"),
        ({"CAPTURE__SAMPLE_RATIO": "1", "CAPTURE__URL": "nosuch://x"}, "nosuch"),
    ],
    ids=["no url", "ratio", "field", "no key", "protocol"],
)
def test_wrong_settings_stop_the_start(settings: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would capture wrongly, or nothing, is said before the first request."""
    for name, value in settings.items():
        monkeypatch.setenv(f"SAMEGRAPH_{name}", value)
    result = CliRunner().invoke(serve, ["--repository", str(tmp_path), "--port", "0"])
    assert result.exit_code != 0
    assert message in result.output


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EnvironmentUnfit, match=r"pyarrow and fsspec is not installed; pip install 'samegraph\[capture\]'"):
        check_libraries("s3://bucket")


def test_short_and_missing_keys_are_refused(tmp_path: Path) -> None:
    """A key that can be found by trying is none."""
    names = parse_field_names("name")
    (tmp_path / "key").write_text("short")
    with pytest.raises(EnvironmentUnfit, match="has 5 bytes"):
        read_key(tmp_path / "key", names)
    with pytest.raises(EnvironmentUnfit, match="cannot be read"):
        read_key(tmp_path / "none", names)
    assert read_key(None, FieldNames()) == b""


def test_notations() -> None:
    """Spaces and empty entries do no harm."""
    assert parse_ratios(" a=0.5, b = 1 ,") == {"a": 0.5, "b": 1.0}
    names = parse_field_names("x, m:y")
    assert (names.covers("any", "x"), names.covers("m", "y"), names.covers("n", "y")) == (True, True, False)


# --- bounds and failures ------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Stalled(LocalStorage):
    """A storage whose writes wait until they are let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.entered, self.let_go = threading.Event(), threading.Event()

    def write(self, name: str, data: bytes | memoryview) -> None:
        self.entered.set()
        assert self.let_go.wait(60)
        super().write(name, data)


def storage_of(server: LiveServer, storage: Any) -> CaptureSink:
    sink = server.service.capture
    assert sink is not None
    sink._storage = storage
    return sink


def ask(server: LiveServer, times: int = 1) -> None:
    for i in range(times):
        assert server.predict("plants", {"instances": [{"size": i, "kind": "moss"}]}).status == 200


def balanced(server: LiveServer) -> bool:
    names = ("sampled_rows_total", "written_rows_total", "dropped_rows_total", "waiting_rows")
    sampled, written, dropped, waiting = (server.metric(f"samegraph_capture_{name}") for name in names)
    return sampled == written + dropped + waiting


def test_a_storage_that_hangs_costs_rows_but_no_answers(models: Path, url: str) -> None:
    """The queue fills up behind it, what is new is dropped and counted, and a shutdown does not wait for it."""
    settings = {"url": url, "sample_ratio": 1, "rotate_rows": 1, "max_queued_rows": 5, "flush_s": 0.05}
    with live_server(models, capture=settings) as server:
        storage = Stalled(Path(url))
        sink = storage_of(server, storage)
        ask(server)
        assert storage.entered.wait(20)
        ask(server, 10)
        assert server.metric("samegraph_capture_dropped_rows_total", reason="overflow") == 6
        assert balanced(server)
        assert "faster than they are written" in str(server.get("/readyz").json()["degraded"])
        assert server.get("/readyz").json()["ready"]
    storage.let_go.set()
    until(lambda: sink.tap.waiting() == (0, 0), "what waited was written")
    assert len(rows_of(url)) == 5


def test_a_directory_that_cannot_be_written_costs_rows_but_no_answers(models: Path, tmp_path: Path) -> None:
    """Counted, said once, and over as soon as it can be written again."""
    place = tmp_path / "file"
    place.write_text("in the way")
    with live_server(models, capture={"url": str(place), "sample_ratio": 1}) as server:
        ask(server, 3)
        flushed(server)
        assert server.metric("samegraph_capture_dropped_rows_total", reason="failed") == 3
        assert server.metric("samegraph_capture_write_failures_total") == 1
        assert "the last write failed" in str(server.get("/readyz").json()["degraded"])
        place.unlink()
        ask(server)
        flushed(server)
        assert server.get("/readyz").json()["degraded"] == []
        assert balanced(server)
    assert len(rows_of(str(place))) == 1


def test_a_row_that_cannot_be_written_is_lost_alone(models: Path, url: str) -> None:
    """A string that is no Unicode text costs its own request."""
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        sink = server.service.capture
        assert sink is not None
        ask(server)
        lone = {"instances": [{"size": 1, "kind": "\ud800"}]}
        server.predict("plants", json.dumps(lone).encode())
        ask(server)
        flushed(server)
        assert balanced(server)
    assert len(rows_of(url)) == 2


def test_a_fault_of_ours_costs_rows_that_are_counted(models: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong between queue and file, no row goes on counting as waiting."""

    def broken(*_: object) -> None:
        raise RuntimeError("nobody foresaw this")

    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        with monkeypatch.context() as patch:
            patch.setattr("samegraph_service.capture.columns.Layout.batch", broken)
            ask(server, 2)
            flushed(server)
        assert server.metric("samegraph_capture_waiting_rows") == 0
        assert server.metric("samegraph_capture_dropped_rows_total", reason="failed") == 2
        with monkeypatch.context() as patch:
            patch.setattr("samegraph_service.capture.columns.Layout.__init__", broken)
            ask(server)
            flushed(server)
        assert server.metric("samegraph_capture_dropped_rows_total", reason="refused") == 1
        assert "cannot be captured" in str(server.get("/readyz").json()["degraded"])
        assert balanced(server)


def test_the_thread_sleeps_while_there_is_nothing_to_write(models: Path, url: str) -> None:
    """A version of which nothing is captured is never due."""
    with live_server(models, capture={"url": url, "sample_ratio": 1, "exclude": "plants:siez", "rotate_s": 0.001}) as server:
        sink = server.service.capture
        assert sink is not None
        ask(server)
        until(lambda: sink.tap.waiting() == (0, 0), "the row is refused")
        assert sink.next_due() > time.time() + 60


def test_files_close_by_rows_and_by_time(models: Path, url: str) -> None:
    """Whatever comes first; a row is in a file after the set time at the latest."""
    with live_server(models, capture={"url": url, "sample_ratio": 1, "rotate_rows": 3, "rotate_s": 0.2}) as server:
        ask(server, 3)
        until(lambda: len(list(Path(url).rglob("*.parquet"))) >= 1, "three rows make a file")
        ask(server)
        until(lambda: len(rows_of(url)) == 4, "the fourth is written when its time is over")


def test_the_oldest_files_go_first_and_the_bound_holds_after_every_write(models: Path, url: str) -> None:
    """The directory never holds more than it may."""
    with live_server(models, capture={"url": url, "sample_ratio": 1, "max_bytes": 30_000}) as server:
        for _ in range(12):
            ask(server)
            flushed(server)
            assert sum(f.stat().st_size for f in Path(url).rglob("*.parquet")) <= 30_000
        assert server.metric("samegraph_capture_deleted_files_total") > 0
        assert server.metric("samegraph_capture_stored_bytes", kind="files") <= 30_000
        numbers = sorted(int(f.stem.rpartition("-")[2]) for f in Path(url).rglob("*.parquet"))
    assert numbers == list(range(12 - len(numbers) + 1, 13))


def test_images_have_a_bound_of_their_own(models: Path, url: str) -> None:
    """The least recently seen go first; one that comes again stays."""
    size = max(len(image_file(seed)) for seed in range(1, 6))
    with live_server(models, capture={"url": url, "sample_ratio": 1, "max_image_bytes": max(1024, int(2.5 * size))}) as server:
        for at, seed in enumerate((1, 2, 1, 3)):
            server.request("POST", "/v1/models/tint:predict", image_file(seed), {"content-type": "image/png"})
            flushed(server)
            for file in (f for f in (Path(url) / "images").rglob("*") if f.is_file()):
                if file.stat().st_mtime > time.time() - 1000:  # seen just now: say so in steps a file system can tell apart
                    os.utime(file, (time.time() - 5000 + at,) * 2)
        held = {f.read_bytes() for f in (Path(url) / "images").rglob("*") if f.is_file()}
    assert held == {image_file(1), image_file(3)}


def test_old_files_and_images_go(models: Path, url: str) -> None:
    """Age counts from when a file was written, and of an image from when it was last seen."""
    with live_server(models, capture={"url": url, "sample_ratio": 1, "max_age_s": 60}) as server:
        sink = server.service.capture
        assert sink is not None
        server.request("POST", "/v1/models/tint:predict", image_file(1), {"content-type": "image/png"})
        flushed(server)
        for file in Path(url).rglob("*"):
            if file.is_file():
                os.utime(file, (time.time() - 100,) * 2)
        sink._looked_at = None
        sink.turn()
        assert [f for f in Path(url).rglob("*") if f.is_file()] == []


def test_killed_while_writing_leaves_whole_files_only(models: Path, url: str) -> None:
    """Whatever is there after kill -9 can be read."""
    settings: dict[str, Any] = {"CAPTURE__URL": url, "CAPTURE__SAMPLE_RATIO": "1", "CAPTURE__ROTATE_ROWS": "20", "CAPTURE__CPU_RATIO": "1"}
    server = ServerProcess(models, LOG__ACCESS="false", **settings)
    try:
        body = json.dumps({"instances": [{"size": i, "kind": "moss"} for i in range(20)]}).encode()
        request = urllib.request.Request(f"{server.url}/v1/models/plants:predict", body, {"content-type": "application/json"})
        while len(list(Path(url).rglob("*.parquet"))) < 3:
            urllib.request.urlopen(request, timeout=30).read()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(60)
    finally:
        server.close()
    capture = Capture(url)
    files = capture.files()
    assert len(files) >= 3
    assert capture.unreadable == []
    assert sum(batch.n for batch in capture.batches()) == sum(file.facts.rows for file in files)


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written whole is removed at once."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        LocalStorage(tmp_path).write("plants/1/x.parquet", b"data")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_leftovers_of_a_killed_writer_are_removed_when_they_are_old(tmp_path: Path) -> None:
    """And are never taken for files."""
    storage = LocalStorage(tmp_path)
    storage.write("a/1/x.parquet", b"whole")
    for name, age in (("a/1/.y.parquet.7.partial", 7200), ("a/1/.z.parquet.8.partial", 10)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert [s.name for s in storage.files()] == ["a/1/x.parquet"]
    assert {p.name for p in (tmp_path / "a/1").iterdir()} == {"x.parquet", ".z.parquet.8.partial"}


def test_shutdown_writes_what_waits(models: Path, url: str) -> None:
    """A rolling update loses nothing."""
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        ask(server, 7)
    assert len(rows_of(url)) == 7


# --- elsewhere ----------------------------------------------------------------------------------------------------------


def test_any_fsspec_url_will_do(models: Path) -> None:
    """Rows and images in memory, as in a bucket."""
    url = "memory://captured/here"
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        ask(server, 2)
        server.request("POST", "/v1/models/tint:predict", image_file(1), {"content-type": "image/png"})
        flushed(server)
        ask(server)
        flushed(server)
    assert len(rows_of(url, model="plants")) == 3
    ((batch, i),) = rows_of(url, model="tint")
    assert Capture(url).blob(batch.inputs["image"][i]) == image_file(1)


def test_elsewhere_files_are_moved_into_place_when_they_are_whole() -> None:
    """A file system whose puts can be seen half done gets another name first."""
    import fsspec

    storage = open_storage("memory://m")
    assert storage.local is False
    fs = fsspec.filesystem("memory")
    storage._whole_puts = False  # type: ignore[attr-defined]
    storage.write("a/b.parquet", b"x")
    assert [s.name for s in storage.files()] == ["a/b.parquet"]
    assert fs.cat_file("/m/a/b.parquet") == b"x"
    storage.delete("a/b.parquet")
    storage.delete("a/b.parquet")
    assert list(storage.files()) == []


# --- whatever way a request comes -----------------------------------------------------------------------------------------


ROUTING = """
models:
  plants:
    default: 1
    experiments:
      taller:
        salt: s1
        unit: {header: samegraph-unit}
        enrolment: {share: 1.0, salt: e1}
        arms: {control: {version: 1, weight: 1}, treatment: {version: 2, weight: 1}}
    shadows: [{version: 2, share: 1.0}]
"""


def test_rows_say_which_arm_they_were_assigned_to_and_shadows_leave_none(tmp_path: Path, url: str) -> None:
    """One row a request that a caller sent, with `NAME@REVISION` and the arm; the command line chooses by it."""
    models = tmp_path / "models"
    pack(draft(), samples(), models)
    pack(draft(version=2), samples(), models)
    (models / "routing.yaml").write_text(ROUTING)
    answered = {}
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        for i in range(20):
            headers = {"samegraph-unit": f"u{i}", "x-request-id": f"r{i}"}
            reply = server.predict("plants", {"instances": [{"size": i, "kind": "moss"}]}, **headers)
            answered[f"r{i}"] = (reply.headers["samegraph-arm"], reply.headers["samegraph-experiment"])
        flushed(server)
    found = rows_of(url)
    assert {b.meta["request_id"][i]: (b.meta["arm"][i], b.meta["experiment"][i]) for b, i in found} == answered
    assert len(found) == 20
    treated = rows_of(url, arm="treatment")
    assert 0 < len(treated) < 20
    assert {b.facts.version for b, _ in treated} == {2}


def test_grpc_and_compressed_bodies_are_captured_alike(models: Path, url: str) -> None:
    """The tap sees decoded rows: how they came is one column."""
    import gzip

    import grpc
    from samegraph_service.rpc import messages

    settings: dict[str, Any] = {"CAPTURE__URL": url, "CAPTURE__SAMPLE_RATIO": "1"}
    server = ServerProcess(models, GRPC__PORT="0", LOG__ACCESS="false", **settings)
    try:
        port = next(e["port"] for e in server.events() if e["event"] == "grpc_listening")
        message = messages.InferRequest(model_name="plants")
        message.inputs.add(name="size", datatype="FP64", shape=[1, 1]).contents.fp64_contents.append(2.5)
        message.inputs.add(name="kind", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"fern")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(message.SerializeToString(), timeout=20)
        body = gzip.compress(json.dumps({"instances": [{"size": 3.5, "kind": "oak"}]}).encode())
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/models/plants:predict", body, headers), timeout=20).read()
        assert server.terminate() == 0
    finally:
        server.close()
    assert {b.meta["protocol"][i]: b.instance(i) for b, i in rows_of(url)} == {
        "grpc": {"size": 2.5, "kind": "fern"},
        "v1": {"size": 3.5, "kind": "oak"},
    }

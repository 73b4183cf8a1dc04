"""Drift as an operator meets it: rows sent over HTTP, counters in /metrics, states in JSON."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import LiveServer, live_server
from odd_packages import image_file, pack_greeting, pack_tint
from package_builders import KINDS, draft, samples
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from ragged_models import draft as ragged_draft
from ragged_models import samples as ragged_samples
from ragged_models import sentence
from samegraph_transforms.draft import BaselineRows
from samegraph_transforms.pack import pack

#: Far beyond this machine's monotonic clock, so that the server's own looks come to nothing.
NOON = 60.0 * 10**7


def plants(n: int, seed: int, *, grown: float = 0.0, kinds: Sequence[float] = (0.5, 0.3, 0.15, 0.05)) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    sizes = rng.normal(grown, 2.0, n)
    names = rng.choice([*KINDS, "bamboo"], n, p=list(kinds))
    return [{"size": None if rng.random() < 0.03 else float(s), "kind": str(k)} for s, k in zip(sizes, names, strict=True)]


def photo(seed: int, *, quality: int = 90) -> bytes:
    return image_file(seed, "JPEG", (40 + seed % 3, 30), quality=quality)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    pack(
        draft(baseline=BaselineRows(rows=plants(2000, 1), made_from="Plants of last summer.", importance={"kind": 3.0})), samples(), models
    )
    pack_tint(models, baseline=BaselineRows(rows=[{"image": photo(i)} for i in range(40)]))
    pack_greeting(models, BaselineRows(rows=[f"hello number {i}" for i in range(40)]))
    return models


@pytest.fixture
def server(repository: Path) -> Iterator[LiveServer]:
    with live_server(repository, drift={"windows": "5m,1h", "min_rows": 100}) as live:
        yield live


class Scrape:
    """One reading of /metrics, after everything that waits was counted."""

    def __init__(self, server: LiveServer) -> None:
        server.service.drift.flush()
        reply = server.get("/metrics")
        assert reply.status == 200
        self.samples = [s for family in text_string_to_metric_families(reply.body.decode()) for s in family.samples]

    def value(self, name: str, **labels: str) -> float:
        found = [s.value for s in self.samples if s.name == name and all(s.labels.get(k) == v for k, v in labels.items())]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    def bins(self, name: str, **labels: str) -> dict[str, float]:
        """Return bin → rows, of the bins that have any."""
        mine = [s for s in self.samples if s.name == name and all(s.labels.get(k) == v for k, v in labels.items())]
        return {s.labels["bin"]: s.value for s in mine if s.value}

    def rows_by_quantity(self, model: str) -> dict[str, float]:
        """Return quantity → sum over its bins, of inputs and outputs."""
        found: dict[str, float] = {}
        for s in self.samples:
            if s.labels.get("model") == model and s.name in ("samegraph_input_bin_rows_total", "samegraph_output_bin_rows_total"):
                quantity = s.labels.get("field", s.labels.get("output", ""))
                found[quantity] = found.get(quantity, 0.0) + s.value
        return found

    def states(self, model: str, window: str) -> dict[str, str]:
        """Return quantity → what its window says."""
        mine = [s for s in self.samples if s.name == "samegraph_drift_state" and s.value == 1 and s.labels["window"] == window]
        return {s.labels["field"]: s.labels["state"] for s in mine if s.labels["model"] == model}


def test_golden_samples_and_warm_up_are_no_traffic(server: LiveServer) -> None:
    """A version that was proven and warmed up has counted nothing, and has all its series."""
    scrape = Scrape(server)
    for model in ("plants", "tint", "greeting"):
        assert scrape.value("samegraph_input_rows_total", model=model) == 0
        assert set(scrape.rows_by_quantity(model).values()) == {0.0}


def test_rows_of_every_protocol_are_counted_once(server: LiveServer) -> None:
    """Rows, columns, the Open Inference Protocol and answers in part: each answered row is in every quantity once."""
    some = plants(30, 2)
    assert server.predict("plants", {"instances": some[:10]}).status == 200
    columns = {"inputs": {name: [p[name] for p in some[10:20]] for name in ("size", "kind")}}
    assert server.predict("plants", columns).status == 200
    tensors = {
        "inputs": [
            {"name": "size", "shape": [10, 1], "datatype": "FP64", "data": [1.5] * 10},
            {"name": "kind", "shape": [10, 1], "datatype": "BYTES", "data": [p["kind"] for p in some[20:]]},
        ]
    }
    assert server.request("POST", "/v2/models/plants/infer", json.dumps(tensors), {"content-type": "application/json"}).status == 200
    partly = server.predict("plants", {"instances": [some[0], {"size": "tall", "kind": "fern"}, {"kind": 7}, some[1]]}, "?on_error=partial")
    assert len(partly.json()["errors"]) == 2
    scrape = Scrape(server)
    assert scrape.value("samegraph_input_rows_total", model="plants") == 32
    assert set(scrape.rows_by_quantity("plants").values()) == {32.0}
    sent = [*some[:20], *({"size": 1.5, "kind": p["kind"]} for p in some[20:]), some[0], some[1]]
    by_kind = scrape.bins("samegraph_input_bin_rows_total", model="plants", field="kind")
    baseline = server.get("/v1/models/plants/baseline").json()
    order = baseline["fields"][1]["variables"][0]["categories"]
    assert by_kind == {
        **{f"{i:02d}": n for i, name in enumerate(order) if (n := sum(p["kind"] == name for p in sent))},
        **({"unseen": n} if (n := sum(p["kind"] == "bamboo" for p in sent)) else {}),
    }
    missing = sum(p["size"] is None for p in sent)
    assert scrape.bins("samegraph_input_bin_rows_total", model="plants", field="size").get("missing", 0) == missing
    assert scrape.value("samegraph_input_value_count_total", model="plants", field="size") == 32 - missing


def test_broken_rows_are_counted_by_field(server: LiveServer) -> None:
    """What never reaches the model is counted under the field at fault, and a caller's own words never become a label."""
    for body in ({"instances": [{"size": "x", "kind": "fern"}]}, {"instances": [{"kind": "fern"}]}, {"instances": [{"sise": 1}]}, b"{"):
        assert server.predict("plants", body).status == 400
    assert server.predict("plants", {"instances": [{"size": 1e9, "kind": "fern"}, plants(1, 1)[0]]}, "?on_error=partial").status == 200
    scrape = Scrape(server)
    counted = {
        (s.labels["field"], s.labels["kind"]): s.value
        for s in scrape.samples
        if s.name == "samegraph_input_errors_total" and s.labels["model"] == "plants" and s.value
    }
    assert counted == {
        ("size", "wrong_type"): 1,
        ("size", "missing_field"): 1,
        ("_unknown", "unknown_field"): 1,
        ("_request", "malformed_json"): 1,
        ("size", "out_of_range"): 1,
    }
    assert scrape.value("samegraph_input_rows_total", model="plants") == 1


def test_planted_drift_shows_where_it_is(server: LiveServer) -> None:
    """Quiet on plants as before; grown plants and a renamed kind are drifted, named by field and bin, in metrics and JSON; then quiet."""
    send, drift = server.predict, server.service.drift
    assert Scrape(server).states("plants", "5m") == dict.fromkeys(Scrape(server).rows_by_quantity("plants"), "not_enough_data")
    assert send("plants", {"instances": plants(400, 5)}).status == 200
    drift.flush()
    drift.look(NOON)
    quiet = Scrape(server).states("plants", "5m")
    assert set(quiet.values()) == {"quiet"}

    assert send("plants", {"instances": plants(400, 6, grown=5.0, kinds=(0.05, 0.3, 0.15, 0.5))}).status == 200
    drift.flush()
    drift.look(NOON + 300)
    scrape = Scrape(server)
    assert scrape.states("plants", "5m")["size"] == "drifted"
    assert scrape.states("plants", "5m")["kind"] == "drifted"
    assert scrape.states("plants", "5m")["label"] == "drifted"
    own = {"model": "plants", "side": "input", "field": "size", "window": "5m"}
    assert scrape.value("samegraph_drift_psi", **own) > scrape.value("samegraph_drift_psi_critical", **own)
    assert scrape.value("samegraph_drift_sample_rows", **own) == 400
    assert scrape.value("samegraph_drift_sample_rows", **{**own, "window": "1h"}) == 800

    document = server.get("/v1/models/plants/versions/1/drift").json()
    by_name = {(v["side"], v["name"]): v for v in document["variables"]}
    size, kind = by_name["input", "size"], by_name["input", "kind"]
    assert size["windows"]["5m"]["linf_bin"] == "09"  # the largest tenth of the baseline, which half of the grown ones are in
    assert size["windows"]["5m"]["mean"] == pytest.approx(5.0, abs=0.5)
    assert size["baseline"]["mean"] == pytest.approx(0.0, abs=0.2)
    assert kind["windows"]["5m"]["linf_bin"] in ("unseen", "00")  # bamboo, which nobody knew, in place of moss: equally much of each
    assert kind["holds"][kind["bins"].index("00")] == "moss"
    assert sum(size["windows"]["1h"]["counts"]) == 800
    assert sum(size["total"]["counts"]) == document["rows"] == 800
    assert document["windows"] == {"5m": 5, "1h": 60}
    assert document["dropped_rows"] == {"sampled": 0, "overflow": 0, "failed": 0}
    assert kind["importance"] == 3.0
    assert by_name["output", "label"]["exported"] is True

    drift.look(NOON + 600)
    assert set(Scrape(server).states("plants", "5m").values()) == {"not_enough_data"}


def test_images_are_counted_by_file_and_by_pixels(server: LiveServer) -> None:
    """Raw bodies, base64 and many in one request: facts of the file and of what the model saw; a broken file is an error of its field."""
    jpeg = {"content-type": "image/jpeg"}
    for seed in range(5):
        assert server.request("POST", "/v1/models/tint:predict", photo(seed), jpeg).status == 200
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (255, 255, 255)).save(stream, "PNG")
    assert server.request("POST", "/v1/models/tint:predict", stream.getvalue(), {"content-type": "image/png"}).status == 200
    assert server.request("POST", "/v1/models/tint:predict", photo(1)[:200], jpeg).status == 400
    scrape = Scrape(server)
    assert scrape.value("samegraph_input_rows_total", model="tint") == 6
    assert set(scrape.rows_by_quantity("tint").values()) == {6.0}
    assert scrape.value("samegraph_input_errors_total", model="tint", field="image", kind="truncated") == 1
    holds = {v["name"]: dict(zip(v["bins"], v["holds"], strict=True)) for v in server.get("/v1/models/tint/drift").json()["variables"]}

    def seen(quantity: str) -> dict[str, float]:
        bins = scrape.bins("samegraph_input_bin_rows_total", model="tint", field=quantity)
        return {holds[quantity][label]: n for label, n in bins.items()}

    assert seen("image.format") == {"JPEG": 5, "PNG": 1}
    assert seen("image.chroma_subsampling") == {"4:2:0": 5, "none": 1}
    assert sum(seen("image.brightness").values()) == 6
    brightness = scrape.bins("samegraph_input_bin_rows_total", model="tint", field="image.brightness")
    assert brightness["above"] == 1  # white, as no photo of the baseline was


def test_texts_are_counted_by_their_statistics(server: LiveServer) -> None:
    """A text itself is nowhere in the metrics; its script is."""
    assert server.predict("greeting", {"instances": ["hello number 7", "здравствуй, мир"]}).status == 200
    scrape = Scrape(server)
    assert set(scrape.rows_by_quantity("greeting").values()) == {2.0}
    document = server.get("/v1/models/greeting/drift").json()
    block = next(v for v in document["variables"] if v["name"] == "text.block")
    counted = {holds: n for holds, n in zip(block["holds"], block["total"]["counts"], strict=True) if n}
    assert counted == {"Basic Latin": 1, "Cyrillic": 1}
    assert not any("здравствуй" in str(s.labels) or "hello number" in str(s.labels) for s in scrape.samples)


def test_a_retired_version_leaves_the_metrics(repository: Path, tmp_path: Path) -> None:
    """When a version goes its series go; when a new one comes it starts at 0."""
    models = tmp_path / "models"
    shutil.copytree(repository, models)
    with live_server(models, repository={"path": models, "poll_s": 3600, "keep_versions": 1}) as server:
        assert server.predict("plants", {"instances": plants(20, 1)}).status == 200
        assert Scrape(server).value("samegraph_input_rows_total", model="plants", version="1") == 20
        pack(draft(version=2, baseline=BaselineRows(rows=plants(500, 9))), samples(), models)
        server.await_(server.service.repository.sync())
        assert server.predict("plants", {"instances": plants(3, 1)}).status == 200
        scrape = Scrape(server)
        assert scrape.value("samegraph_input_rows_total", model="plants") == 3
        assert {s.labels["version"] for s in scrape.samples if s.labels.get("model") == "plants" and "_bin_rows" in s.name} == {"2"}


def test_sentences_of_any_length_are_counted(tmp_path: Path) -> None:
    """Rows that run padded, in shapes of their own, are counted as they were sent, each once."""
    rows = [sentence(n, seed) for n in range(1, 17) for seed in range(3)]
    pack(
        replace(ragged_draft(tokens=True), baseline=BaselineRows(rows=[{"ids": ids} for ids in rows])),
        ragged_samples(tokens=True),
        tmp_path,
    )
    with live_server(tmp_path) as server:
        for ids in rows[::5]:
            assert server.predict("sentences", {"instances": [{"ids": ids}]}).status == 200
        scrape = Scrape(server)
        assert set(scrape.rows_by_quantity("sentences").values()) == {len(rows[::5])}
        assert scrape.value("samegraph_drift_dropped_rows_total", model="sentences", reason="failed") == 0
        document = server.get("/v1/models/sentences/drift").json()
        largest = next(v for v in document["variables"] if v["name"] == "ids.maximum")
        assert largest["total"]["mean"] == pytest.approx(np.mean([max(ids) for ids in rows[::5]]))


def test_a_baseline_that_cannot_be_read_is_a_reason(repository: Path, tmp_path: Path) -> None:
    """A version whose baseline is of a format we do not know is not served, and says why; the others are."""
    models = tmp_path / "models"
    shutil.copytree(repository, models)
    where = models / "greeting" / "1"
    raw = (where / "baseline.json").read_bytes().replace(b'"format": 1', b'"format": 99')
    (where / "baseline.json").write_bytes(raw)
    manifest = json.loads((where / "manifest.json").read_bytes())
    manifest["files"]["baseline.json"] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (where / "manifest.json").write_text(json.dumps(manifest))
    with live_server(models) as server:
        status = server.get("/v1/models/greeting").json()["model_version_status"][0]
        assert "format is 99" in status["status"]["error_message"]
        assert server.predict("plants", {"instances": plants(1, 1)}).status == 200


class TestWithoutABaseline:
    def test_there_is_nothing_to_show(self, tmp_path: Path) -> None:
        """A package without a baseline has no series, and its routes say what to do."""
        pack(draft(), samples(), tmp_path)
        with live_server(tmp_path) as server:
            assert server.predict("plants", {"instances": plants(3, 1)}).status == 200
            for path in ("drift", "versions/1/drift", "baseline", "versions/1/baseline"):
                reply = server.get(f"/v1/models/plants/{path}")
                assert reply.status == 404
                assert reply.json()["code"] == "no_baseline"
                assert "pack it with held-out" in reply.json()["error"]
            assert server.get("/v1/models/weeds/drift").json()["code"] == "unknown_model"
            assert server.get("/v1/models/plants/versions/7/drift").json()["code"] == "unknown_version"
            assert not any("samegraph_input_bin" in s.name for s in Scrape(server).samples)

    def test_switched_off_counts_nothing(self, repository: Path) -> None:
        """With drift off no row is handed over, and the routes say that it is off."""
        with live_server(repository, drift={"enabled": False}) as server:
            assert server.predict("plants", {"instances": plants(3, 1)}).status == 200
            reply = server.get("/v1/models/plants/drift")
            assert (reply.status, reply.json()["code"]) == (404, "no_baseline")
            assert "SAMEGRAPH_DRIFT__ENABLED" in reply.json()["error"]
            served = server.service.repository.routes.models["plants"].ready[1]
            assert served.lane.tap is None


def test_openmetrics_ends_once(server: LiveServer) -> None:
    """The other format has drift too, before its one end."""
    reply = server.request("GET", "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    text = reply.body.decode()
    assert text.endswith("# EOF\n")
    assert text.count("# EOF") == 1
    assert "# TYPE samegraph_input_bin_rows counter\n" in text


@pytest.mark.parametrize(
    ("options", "whole"),
    [({}, True), ({"max_queued_rows": 3_000, "cpu_ratio": 0.01}, False)],
    ids=["as it is by default", "with a queue far too small"],
)
def test_a_burst_is_counted_or_counted_as_dropped(repository: Path, options: dict[str, Any], whole: bool) -> None:
    """50,000 rows in large bodies, as fast as they come: every answered row is counted or told as dropped.

    In every scrape taken meanwhile the bins of every quantity sum to the rows.
    """
    bodies = [json.dumps({"instances": plants(2_000, seed)}).encode() for seed in range(25)]
    with live_server(repository, drift={"windows": "5m", **options}) as server:
        scrapes: list[dict[str, float]] = []
        began = time.perf_counter()
        with ThreadPoolExecutor(4) as callers:
            answers = [callers.submit(server.predict, "plants", body) for body in bodies]
            while not all(answer.done() for answer in answers):
                text = server.get("/metrics").body.decode()
                found = [s for family in text_string_to_metric_families(text) for s in family.samples if s.labels.get("model") == "plants"]
                sums: dict[str, float] = {}
                for s in found:
                    if s.name in ("samegraph_input_bin_rows_total", "samegraph_output_bin_rows_total"):
                        quantity = s.labels.get("field") or s.labels["output"]
                        sums[quantity] = sums.get(quantity, 0.0) + s.value
                (rows,) = [s.value for s in found if s.name == "samegraph_input_rows_total"]
                scrapes.append({**sums, "rows": rows})
        seconds = time.perf_counter() - began
        assert [answer.result().status for answer in answers] == [200] * len(bodies)
        scrape = Scrape(server)
        counted = scrape.value("samegraph_input_rows_total", model="plants")
        dropped = {
            r: scrape.value("samegraph_drift_dropped_rows_total", model="plants", reason=r) for r in ("sampled", "overflow", "failed")
        }
    print(f"{50_000 / seconds:,.0f} rows/s; {counted:,.0f} counted, dropped {dropped}")
    assert counted + sum(dropped.values()) == 50_000
    assert dropped["failed"] == 0
    assert (counted < 50_000) or whole
    assert counted > 0
    assert set(scrape.rows_by_quantity("plants").values()) == {counted}
    assert scrapes
    assert all(len(set(one.values())) == 1 for one in scrapes)

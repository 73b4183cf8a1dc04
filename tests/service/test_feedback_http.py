"""Feedback and what experiments count, over HTTP, on three replicas that share nothing but a repository and a key."""

from __future__ import annotations

import json
import os
import random
import shutil
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import package_builders as build
import pytest
from live_server import LiveServer, Reply, live_server
from onnx import TensorProto, helper, numpy_helper
from prometheus import wait_for
from prometheus_client.parser import text_string_to_metric_families
from samegraph_service.experiments.prediction_id import new_key
from samegraph_service.rpc import messages
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.pack import pack
from server_process import ServerProcess

#: Requests of the recount; set it for more.
REQUESTS = int(os.environ.get("STRESS_REQUESTS", "600"))
#: Version 2 fails on sizes above this.
BREAKS_ABOVE = 500.0
ROUTING = """
models:
  plants:
    default: 1
    labels: {production: 1}
    experiments:
      taller:
        salt: s1
        unit: {header: samegraph-unit}
        enrolment: {share: 0.8, salt: e1}
        arms:
          control: {version: 1, weight: 1}
          treatment: {version: 2, weight: 1}
        slo_ms: 60000
        metrics:
          clicked: {kind: binary}
          height: {kind: number, min: -10, max: 100}
          correct: {kind: label}
        guardrails: {max_error_ratio: 0.05, min_requests: 20, withdraw_s: 2}
"""
Samples = Counter[tuple[str, frozenset[tuple[str, str]]]]


def fragile() -> Any:
    """Return preprocessing that answers as `build.preprocess` does, but fails on large sizes."""
    graph = build.preprocess()
    del graph.graph.node[-1]
    graph.graph.node.extend(
        [
            helper.make_node("Greater", ["size32", "limit"], ["large"]),
            helper.make_node("Cast", ["large"], ["place"], to=TensorProto.INT64),
            helper.make_node("Gather", ["one", "place"], ["factor"]),
            helper.make_node("Mul", ["size32", "factor"], ["same"]),
            helper.make_node("Concat", ["same", "code"], ["features"], axis=1),
        ]
    )
    tensors = {"limit": np.array(BREAKS_ABOVE, np.float32), "one": np.array([1.0], np.float32)}
    graph.graph.initializer.extend([numpy_helper.from_array(array, name) for name, array in tensors.items()])
    return graph


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), directory)
    whole = build.draft()
    pack(build.draft(version=2, stages=[DraftStage("preprocess.batch", fragile()), *whole.stages[1:]]), build.samples(), directory)
    (directory / "routing.yaml").write_text(ROUTING, encoding="utf-8")
    return directory


def key_file(directory: Path, *keys: str) -> Path:
    path = directory / "feedback.keys"
    path.write_text("\n".join(keys or (new_key(),)))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def replicas(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LiveServer]]:
    keys = key_file(tmp_path_factory.mktemp("keys"))
    with ExitStack() as stack:
        yield [stack.enter_context(live_server(models, feedback={"key_file": keys})) for _ in range(3)]


def samples(server: LiveServer) -> Samples:
    return Counter(
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(server.get("/metrics").body.decode())
            for sample in family.samples
        }
    )


def total(of: Samples, name: str, **labels: str) -> float:
    return sum(value for (found, own), value in of.items() if found == name and labels.items() <= dict(own).items())


def feed(server: LiveServer, *items: Mapping[str, Any]) -> dict[str, Any]:
    reply = server.request("POST", "/v1/models/plants:feedback", json.dumps({"feedback": items}), {"content-type": "application/json"})
    assert reply.status == 200, reply.body
    document: dict[str, Any] = reply.json()
    return document


def row(rng: random.Random, low: float = -2.0, high: float = 8.0) -> dict[str, Any]:
    return {"size": rng.uniform(low, high), "kind": rng.choice(["moss", "fern", "oak"])}


def predict_and_note(replicas: list[LiveServer], rng: random.Random) -> tuple[Counter[tuple[str, str, str]], list[dict[str, Any]]]:
    """Send requests; return what has to be counted by what the answers say, and the feedback to send, some of it twice."""
    expected: Counter[tuple[str, str, str]] = Counter()
    items: list[dict[str, Any]] = []
    for i in range(REQUESTS):
        path = "/versions/2" if rng.random() < 0.05 else ""
        headers = {} if rng.random() < 0.05 else {"samegraph-unit": f"user-{rng.randrange(200)}"}
        bad = rng.random() < 0.05
        document = {"instances": [{"size": "tall", "kind": "oak"}] if bad else [row(rng) for _ in range(rng.choice((1, 1, 3)))]}
        reply = rng.choice(replicas).predict("plants", document, path, **headers)
        if bad:
            assert reply.status == 400
            continue
        assert reply.status == 200
        arm, unassigned = reply.headers.get("samegraph-arm", ""), reply.headers.get("samegraph-unassigned", "")
        if unassigned:
            expected["unassigned", unassigned, ""] += 1
        else:
            expected["exposures", arm, ""] += 1
        identifier, n = reply.headers["samegraph-prediction-id"], len(document["instances"])
        assert reply.json()["prediction_id"] == identifier
        if rng.random() < 0.6:
            instance, answered = rng.randrange(n), reply.json()["predictions"]
            right = rng.random() < 0.5
            label = answered[instance]["label"] if right else "no such plant"
            height = rng.randrange(-10, 100)
            item = {"prediction_id": f"{identifier}.{instance}", "values": {"height": height}, "label": label, "feedback_id": str(i)}
            items += [item] * rng.choice((1, 1, 2))
            if not unassigned:
                expected["n", arm, "height"] += 1
                expected["sum", arm, "height"] += height + 10
                expected["sumsq", arm, "height"] += (height + 10) ** 2
                expected["n", arm, "correct"] += 1
                expected["sum", arm, "correct"] += right
    return expected, items


def test_sums_over_replicas_equal_a_recount_of_all_answers(replicas: list[LiveServer]) -> None:
    """Every request's answer is noted, its outcome goes to any replica, some twice; what the replicas export adds up to the notes."""
    rng = random.Random(5)
    before = sum((samples(server) for server in replicas), Counter())
    expected, items = predict_and_note(replicas, rng)
    # One replica gets a value and its repeats: what another replica counted, this one cannot know.
    for start in range(0, len(items), 50):
        batch = items[start : start + 50]
        for k, server in enumerate(replicas):
            mine = [item for item in batch if int(item["feedback_id"]) % 3 == k]
            if mine:
                results = feed(server, *mine)["results"]
                assert [result["feedback_id"] for result in results] == [item["feedback_id"] for item in mine]
                assert {result.get("reason") for result in results} <= {None, "duplicate"}
    after = sum((samples(server) for server in replicas), Counter())

    def rise(name: str, **labels: str) -> float:
        return total(after, f"samegraph_experiment_{name}_total", **labels) - total(before, f"samegraph_experiment_{name}_total", **labels)

    for arm in ("control", "treatment"):
        assert rise("exposures", arm=arm) == rise("served", arm=arm, served=arm) == expected["exposures", arm, ""]
        assert expected["exposures", arm, ""] > REQUESTS / 5
        for metric in ("height", "correct"):
            assert rise("feedback", arm=arm, metric=metric) == expected["n", arm, metric] > 0
            assert rise("feedback_value_sum", arm=arm, metric=metric) == expected["sum", arm, metric]
        assert rise("feedback_value_sumsq", arm=arm, metric="height") == expected["sumsq", arm, "height"]
    for reason in ("no_unit", "pinned", "not_enrolled"):
        assert rise("unassigned", reason=reason) == expected["unassigned", reason, ""] > 0
    assert rise("feedback_rejected", reason="duplicate") == len(items) - len({item["feedback_id"] for item in items})
    assert rise("errors") == rise("slow") == 0
    name = "samegraph_version_feedback_total"
    assert total(after, name, metric="label") - total(before, name, metric="label") == len({item["feedback_id"] for item in items})


def test_a_units_bucket_is_that_of_its_exposures_and_its_feedback(replicas: list[LiveServer]) -> None:
    """Both are counted in one bucket, on whichever replica."""
    unit = {"samegraph-unit": "user-17"}
    reply = replicas[0].predict("plants", {"instances": [row(random.Random(1))]}, **unit)
    before = [samples(server) for server in replicas]
    feed(replicas[1], {"prediction_id": reply.headers["samegraph-prediction-id"], "values": {"clicked": True}})
    replicas[2].predict("plants", {"instances": [row(random.Random(1))]}, **unit)
    after = [samples(server) for server in replicas]
    buckets = {
        dict(own)["bucket"]
        for old, new in zip(before, after, strict=True)
        for (name, own), value in (new - old).items()
        if value and name in ("samegraph_experiment_exposures_total", "samegraph_experiment_feedback_total")
    }
    assert len(buckets) == 1


def test_v2_answers_carry_the_id_too(replicas: list[LiveServer]) -> None:
    """In the header and among the parameters; its own `id` stays the caller's."""
    inputs = [
        {"name": "size", "datatype": "FP64", "shape": [1], "data": [1.5]},
        {"name": "kind", "datatype": "BYTES", "shape": [1], "data": ["moss"]},
    ]
    reply = replicas[0].request(
        "POST", "/v2/models/plants/infer", json.dumps({"id": "mine", "inputs": inputs}), {"samegraph-unit": "user-1"}
    )
    assert reply.status == 200, reply.body
    document = reply.json()
    assert document["id"] == "mine"
    assert document["parameters"]["prediction_id"] == reply.headers["samegraph-prediction-id"]
    label = document["outputs"][0]["data"][0]
    assert feed(replicas[1], {"prediction_id": document["parameters"]["prediction_id"], "label": label})["accepted"] == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b"[]", 400, "bad_body"),
        (b'"text"', 400, "bad_body"),
        (b'{"feedback": {}}', 400, "bad_body"),
        (b'{"feedback": []}', 400, "no_instances"),
        (b'{"feedback": [{}], "more": 1}', 400, "bad_body"),
        (b'{"feedback": [' + b"1," * 1000 + b"1]}", 413, "too_many_instances"),
        (b'{"prediction_id": "' + b"x" * (1 << 20) + b'"}', 413, "body_too_large"),
        (b"[" * 100_000, 400, "bad_body"),
    ],
    ids=["empty", "cut", "list", "text", "no-list", "no-items", "more", "too-many", "too-large", "deep"],
)
def test_a_body_that_is_no_feedback_gets_the_error_document(replicas: list[LiveServer], body: bytes, status: int, code: str) -> None:
    """As everywhere; nothing of it is counted."""
    reply = replicas[0].request("POST", "/v1/models/plants:feedback", body, {"content-type": "application/json"})
    assert (reply.status, reply.json()["code"]) == (status, code)
    assert set(reply.json()) == {"error", "code", "retryable", "field", "instance", "request_id"}


def test_one_bad_item_costs_the_others_nothing(replicas: list[LiveServer]) -> None:
    """Results come in order, each with its own reason."""
    reply = replicas[0].predict("plants", {"instances": [row(random.Random(1))]}, **{"samegraph-unit": "user-1"})
    good = {"prediction_id": reply.headers["samegraph-prediction-id"], "values": {"clicked": 1}}
    items = (
        b'{"feedback": [7, {"prediction_id": "x"}, %b, {"values": {"a": 1e999}}, {"label": [[[1]]]}, {"label": "\xff"}]}'
        % json.dumps(good).encode()
    )
    reply = replicas[0].request("POST", "/v1/models/plants:feedback", items, {"content-type": "application/json"})
    assert reply.status == 200
    document = reply.json()
    assert (document["accepted"], document["rejected"]) == (1, 5)
    assert [result["status"] for result in document["results"]] == ["rejected", "rejected", "accepted", "rejected", "rejected", "rejected"]


def test_other_ways_to_ask_are_answered(replicas: list[LiveServer]) -> None:
    """Another model, method or media type; and the route stands in the API document."""
    server = replicas[0]
    assert server.request("POST", "/v1/models/trees:feedback", "{}").json()["code"] == "unknown_model"
    reply = server.get("/v1/models/plants:feedback")
    assert (reply.status, reply.headers["allow"], reply.json()["code"]) == (405, "POST", "method_not_allowed")
    reply = server.request("POST", "/v1/models/plants:feedback", b"x", {"content-type": "image/png"})
    assert (reply.status, reply.json()["code"]) == (415, "unsupported_media_type")
    operation = server.get("/openapi.json").json()["paths"]["/v1/models/{model}:feedback"]["post"]
    assert set(operation["responses"]) == {"200", "400", "404", "409", "413", "415", "503"}


def test_without_a_key_feedback_is_refused_with_what_to_do(models: Path) -> None:
    """The prediction id is the request's id, as ever; exposures are counted all the same."""
    with live_server(models) as server:
        reply = server.predict("plants", {"instances": [row(random.Random(1))]}, **{"samegraph-unit": "user-1"})
        assert reply.headers["samegraph-prediction-id"] == reply.headers["x-request-id"]
        refused = server.request("POST", "/v1/models/plants:feedback", b"{}")
        assert (refused.status, refused.json()["code"]) == (409, "no_feedback_key")
        assert "SAMEGRAPH_FEEDBACK__KEY_FILE" in refused.json()["error"]
        assert total(samples(server), "samegraph_experiment_exposures_total") == 1
        assert total(samples(server), "samegraph_experiment_feedback_rejected_total") == 0


def test_keys_are_read_again_and_a_bad_file_changes_nothing(models: Path, tmp_path: Path) -> None:
    """SIGHUP takes a new first key at once and goes on accepting the old one; a file that cannot be used shows under `degraded`."""
    old, new = new_key(), new_key()
    keys = key_file(tmp_path, old)
    with live_server(models, feedback={"key_file": keys}) as server:

        def predicted() -> str:
            return server.predict("plants", {"instances": [row(random.Random(1))]}).headers["samegraph-prediction-id"]

        first = predicted()
        key_file(tmp_path, new, old)
        server.run(server.service.rescan)
        second = predicted()
        assert first[:4] != second[:4]  # another key's id
        assert feed(server, *({"prediction_id": one, "values": {"clicked": 1}} for one in (first, second)))["accepted"] == 2
        third = predicted()
        keys.chmod(0o644)
        server.run(server.service.rescan)
        assert any("mode 0644" in reason for reason in server.get("/readyz").json()["degraded"])
        assert feed(server, {"prediction_id": third, "values": {"clicked": 1}})["accepted"] == 1
        key_file(tmp_path, new)
        server.run(server.service.rescan)
        assert server.get("/readyz").json()["degraded"] == []
        refused = feed(server, {"prediction_id": first, "values": {"clicked": 0}})["results"][0]
        assert refused["reason"] == "forged"


def unit_of(server: LiveServer, arm: str) -> str:
    """Return a unit that gets this arm."""
    for i in range(100):
        reply = server.predict("plants", {"instances": [row(random.Random(1))]}, **{"samegraph-unit": f"user-{i}"})
        if reply.headers.get("samegraph-arm") == arm:
            return f"user-{i}"
    raise AssertionError(arm)


def test_an_arm_that_fails_outright_is_withdrawn_tried_and_restored(models: Path, tmp_path: Path) -> None:
    """Its units get the fallback and stay assigned; the other arm's never notice; twenty good requests bring it back."""
    with live_server(models, feedback={"key_file": key_file(tmp_path)}) as server:
        rng = random.Random(2)
        units = {arm: {"samegraph-unit": unit_of(server, arm)} for arm in ("control", "treatment")}
        failed = 0
        while not server.service.experiments.withdrawn("plants", "taller", "treatment"):
            reply = server.predict("plants", {"instances": [row(rng, 501, 999)]}, **units["treatment"])
            assert reply.status == 500
            failed += 1
            assert failed < 25
            assert server.predict("plants", {"instances": [row(rng)]}, **units["control"]).status == 200
        assert failed >= 2
        errors = server.metric("samegraph_experiment_errors_total", arm="treatment")
        assert errors == failed
        degraded = server.get("/readyz").json()
        assert degraded["ready"]
        assert any("'treatment'" in reason and "withdrawn" in reason for reason in degraded["degraded"])
        fell_back = server.predict("plants", {"instances": [row(rng, 501, 999)]}, **units["treatment"])
        assert fell_back.status == 200
        assert fell_back.headers["samegraph-arm"] == "treatment"
        assert fell_back.headers["samegraph-served-arm"] == "control"
        assert fell_back.headers["samegraph-model-version"] == "1"
        answered = 0
        assert server.metric("samegraph_experiment_withdrawn", arm="treatment") == 1
        while server.service.experiments.withdrawn("plants", "taller", "treatment"):
            reply = server.predict("plants", {"instances": [row(rng)]}, **units["treatment"])
            assert reply.status == 200
            answered += 1
            assert answered < 50_000
        assert server.predict("plants", {"instances": [row(rng)]}, **units["treatment"]).headers["samegraph-model-version"] == "2"
        assert server.metric("samegraph_experiment_served_total", arm="treatment", served="control") > 0
        assert server.metric("samegraph_experiment_errors_total", arm="control") == 0


def test_a_repeated_request_is_one_exposure_with_one_id(models: Path, tmp_path: Path) -> None:
    """What is answered from another attempt's computation carries its prediction id and counts no more."""
    with live_server(models, feedback={"key_file": key_file(tmp_path)}) as server:
        headers = {"samegraph-unit": "user-1", "idempotency-key": "order-17"}
        unassigned = {"idempotency-key": "order-18"}
        document = {"instances": [row(random.Random(1))]}
        first, *again = [server.predict("plants", document, **headers) for _ in range(3)]
        assert {reply.headers["samegraph-replayed"] for reply in again} == {"stored"}
        assert {reply.headers["samegraph-prediction-id"] for reply in again} == {first.headers["samegraph-prediction-id"]}
        for _ in range(2):
            server.predict("plants", document, **unassigned)
        after = samples(server)
        assert total(after, "samegraph_experiment_exposures_total") == 1
        assert total(after, "samegraph_experiment_unassigned_total") == 1


def test_a_trial_that_fails_costs_two_requests_and_the_arm_stays_out(models: Path, tmp_path: Path) -> None:
    """While half open the arm gets its units again; two of them fail, the fallback takes over and the others see nothing of it."""
    with live_server(models, feedback={"key_file": key_file(tmp_path)}) as server:
        rng = random.Random(4)
        unit = {"samegraph-unit": unit_of(server, "treatment")}
        while not server.service.experiments.withdrawn("plants", "taller", "treatment"):
            assert server.predict("plants", {"instances": [row(rng, 501, 999)]}, **unit).status == 500
        statuses: Counter[int] = Counter()
        while statuses[500] < 2:
            reply = server.predict("plants", {"instances": [row(rng, 501, 999)]}, **unit)
            assert reply.status == 500 or reply.headers["samegraph-served-arm"] == "control"
            statuses[reply.status] += 1
            assert sum(statuses.values()) < 50_000
        after = [server.predict("plants", {"instances": [row(rng, 501, 999)]}, **unit) for _ in range(20)]
        assert {(reply.status, reply.headers.get("samegraph-served-arm")) for reply in after} == {(200, "control")}
        assert server.service.experiments.withdrawn("plants", "taller", "treatment")
        assert server.metric("samegraph_experiment_withdrawn", arm="treatment") == 1


def test_a_repeat_that_joins_and_a_shadows_copy_are_no_exposures(models: Path, tmp_path: Path) -> None:
    """Two callers who ask the same under one key at the same time are one exposure; what the shadow computes is none."""
    repository = tmp_path / "models"
    shutil.copytree(models, repository)
    text = ROUTING.replace("enrolment: {share: 0.8, salt: e1}", "enrolment: {salt: e1}")
    (repository / "routing.yaml").write_text(text + "    shadows:\n      - {version: 2, share: 1}\n", encoding="utf-8")
    with live_server(repository, feedback={"key_file": key_file(tmp_path)}, shadow={"max_batch_s": 1}) as server:
        unit = {"samegraph-unit": unit_of(server, "control")}
        before = total(samples(server), "samegraph_experiment_exposures_total")
        document, n = {"instances": [row(random.Random(1)) for _ in range(40)]}, 0
        repeats, replies = server.service.front.repeats, list[Reply]()
        while not repeats.joined:  # until a pair really met
            n += 1
            key = {**unit, "idempotency-key": f"order-{n}"}
            with ThreadPoolExecutor(2) as pool:
                pair = [pool.submit(server.predict, "plants", document, **key) for _ in range(2)]
                replies = [one.result() for one in pair]
            assert len({reply.headers["samegraph-prediction-id"] for reply in replies}) == 1
            assert n < 500
        assert "joined" in {reply.headers.get("samegraph-replayed") for reply in replies}
        tallies = server.service.shadows.tallies
        wait_for(lambda: server.run(lambda: tallies["plants", 1, 2].compared) > 0, "the shadow has computed a copy")
        after = samples(server)
        assert total(after, "samegraph_experiment_exposures_total") == before + n
        assert total(after, "samegraph_experiment_served_total", served="treatment") == total(
            after, "samegraph_experiment_exposures_total", arm="treatment"
        )


def posted(server: ServerProcess, verb: str, body: str, **headers: str) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of an answer."""
    request = urllib.request.Request(f"{server.url}/v1/models/plants:{verb}", body.encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_an_experiment_over_grpc_takes_feedback_over_http(models: Path, tmp_path: Path) -> None:
    """Metadata name the unit; the answer's say arm and prediction id; the same unit has the same arm over both, and one count."""
    server = ServerProcess(models, GRPC__PORT="0", FEEDBACK__KEY_FILE=str(key_file(tmp_path)), LOG__LEVEL="info")
    with closing(server):
        port = next(e["port"] for e in server.events() if e["event"] == "grpc_listening")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            message = messages.InferRequest(model_name="plants")
            message.inputs.add(name="size", datatype="FP64", shape=[1, 1]).contents.fp64_contents.append(1.5)
            message.inputs.add(name="kind", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"moss")
            seen: Counter[str] = Counter()
            items = []
            for i in range(30):
                metadata = (("samegraph-unit", f"user-{i}"),)
                data, call = ask.with_call(message.SerializeToString(), timeout=20, metadata=metadata)
                said = {name: value for name, value in call.initial_metadata() if isinstance(value, str)}
                body = json.dumps({"instances": [{"size": 1.5, "kind": "moss"}]})
                headers = {"content-type": "application/json", "samegraph-unit": f"user-{i}"}
                assert said.get("samegraph-arm") == posted(server, "predict", body, **headers)[0].get("samegraph-arm")
                assert said["samegraph-model-version"] == messages.message_type("ModelInferResponse").FromString(data).model_version
                if "samegraph-arm" in said:
                    seen[said["samegraph-arm"]] += 1
                    items.append({"prediction_id": said["samegraph-prediction-id"], "values": {"clicked": 1}})
        assert set(seen) == {"control", "treatment"}
        answered = posted(server, "feedback", json.dumps({"feedback": items}), **{"content-type": "application/json"})[1]
        assert json.loads(answered)["accepted"] == len(items)
        counted: dict[tuple[str, str], float] = defaultdict(float)
        for family in text_string_to_metric_families(server.get("/metrics")[1].decode()):
            for sample in family.samples:
                if sample.labels.get("arm"):
                    counted[sample.name, sample.labels["arm"]] += sample.value
        for arm, n in seen.items():
            assert counted["samegraph_experiment_exposures_total", arm] == 2 * n  # over gRPC and over HTTP
            assert counted["samegraph_experiment_feedback_total", arm] == n

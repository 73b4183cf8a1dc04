"""The clients people already have, unmodified, against the real server: what they read is, to the bit, what V1 answers, as training did."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from samegraph_transforms.exactness import compare
from samegraph_transforms.golden import read_samples
from samegraph_transforms.package import read_package
from server_process import ROOT, ServerProcess

PYTHON = ROOT / ".venv-clients" / "bin" / "python"
TOKEN = "a-token-of-sixteen"
Case = dict[str, Any]


@pytest.fixture(scope="module")
def server(examples: Path) -> Iterator[ServerProcess]:
    """A server with gRPC and an admin token, which compresses answers from a kilobyte on."""
    running = ServerProcess(examples, LOG__ACCESS="false", GRPC__PORT="0", ADMIN__TOKEN=TOKEN, SERVER__COMPRESS_FROM_BYTES="1000")
    try:
        assert running.url, "the server did not become ready:\n" + "\n".join(running.lines)
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def grpc_address(server: ServerProcess) -> str:
    port = next(e["port"] for e in server.events() if e["event"] == "grpc_listening")
    return f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def cases(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Case], Path]:
    """Golden rows without missing values of every example, as columns; images as base64."""
    found: list[Case] = []
    for model, version in (("penguins", 1), ("flights", 1), ("flights", 2), ("imagenet", 1)):
        samples = read_samples(examples / model / str(version) / "golden")
        if model == "imagenet":
            bodies = [s.body for s in samples if s.headers["content-type"] == "image/jpeg"][:3]
            columns: dict[str, list[Any]] = {"image": [base64.b64encode(body).decode() for body in bodies]}
        else:
            rows = [row for s in samples if b'"instances"' in s.body for row in json.loads(s.body)["instances"]]
            whole = [row for row in rows if len(row) == len(rows[0]) and None not in row.values()][:40]
            columns = {name: [row[name] for row in whole] for name in whole[0]}
        case = {"name": f"{model}-{version}", "model": model, "version": str(version), "bytes": model == "imagenet", "inputs": columns}
        found.append(case)
    many = {name: values * 20 for name, values in found[2]["inputs"].items()}
    found.append({**found[2], "name": "many", "inputs": many})
    path = tmp_path_factory.mktemp("cases") / "cases.json"
    path.write_text(json.dumps(found))
    return found, path


def run(script: str, *arguments: object) -> Any:
    """Run a script of tests/clients in the clients' environment; return the JSON it printed."""
    assert PYTHON.is_file(), "there is no .venv-clients; run `make test`, or `python3 scripts/environment.py clients`"
    command = [str(PYTHON), str(ROOT / "tests" / "clients" / script), *map(str, arguments)]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=alone)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def post(server: ServerProcess, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    connection.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


@pytest.fixture(scope="module")
def expected(server: ServerProcess, cases: tuple[list[Case], Path], examples: Path) -> dict[str, dict[str, np.ndarray]]:
    """What V1 answers: case → output → array in the output's own type."""
    found = {}
    for case in cases[0]:
        columns = {name: [{"b64": v} for v in values] if case["bytes"] else values for name, values in case["inputs"].items()}
        path = f"/v1/models/{case['model']}/versions/{case['version']}:predict"
        status, _, body = post(server, path, json.dumps({"inputs": columns}).encode())
        assert status == 200, body
        manifest = read_package(examples / case["model"] / case["version"]).manifest
        answered = json.loads(body)["outputs"]
        found[case["name"]] = {
            o.name: np.array(answered[o.name], dtype=object if o.dtype == "string" else np.dtype(o.dtype)) for o in manifest.outputs
        }
    return found


def same(got: dict[str, Any], want: dict[str, np.ndarray], *, one_batch: bool = True) -> None:
    """Hold a client's outputs to the arrays, bit by bit; of rows that fill several batches the last digits depend on how they were cut."""
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name]["shape"] == list(array.shape), name
        if array.dtype == object:
            assert got[name]["data"] == array.ravel().tolist(), name
        else:
            assert got[name]["dtype"] == array.dtype.name, name
            data = base64.b64decode(got[name]["data"])
            assert data == array.tobytes() if one_batch else np.allclose(np.frombuffer(data, array.dtype), array.ravel(), 1e-12, 0), name


def close(got: list[Any], array: np.ndarray) -> bool:
    """Whether a client read these values: to the bit, but for rows that fill several batches."""
    want = array.ravel().tolist()
    return got == want or (len(array) > 256 and array.dtype != object and np.allclose(got, want, 1e-12, 0))


def test_what_v1_answers_is_what_training_did(expected: dict[str, dict[str, np.ndarray]], examples: Path) -> None:
    """The yardstick of the tests below: the images' golden answers, within the promise."""
    manifest = read_package(examples / "imagenet/1").manifest
    samples = [s for s in read_samples(examples / "imagenet/1/golden") if s.headers["content-type"] == "image/jpeg"][:3]
    for output in manifest.outputs:
        golden = np.concatenate([s.outputs[output.name] for s in samples])
        assert compare(golden, expected["imagenet-1"][output.name], manifest.tolerances["cpu.same"], tensor=output.name).passed


@pytest.mark.parametrize("kind", ["http", "http-aio", "grpc", "grpc-aio"])
def test_tritonclient(
    kind: str,
    server: ServerProcess,
    grpc_address: str,
    cases: tuple[list[Case], Path],
    expected: dict[str, dict[str, np.ndarray]],
) -> None:
    """Sync and asyncio, HTTP and gRPC: tensors, images, classification, compression, streams, errors, and all that is told."""
    over_http = kind.startswith("http")
    got = run("triton.py", kind, urlsplit(server.url).netloc if over_http else grpc_address, cases[1], TOKEN)
    for name, forms in got["answers"].items():
        for answer in forms.values():
            same(answer, expected[name], one_batch=name != "many")
    assert set(got["answers"]["penguins-1"]) == ({"binary", "binary-all", "json", "json-all"} if over_http else {"binary", "binary-all"})
    for answer in got["compressed"].values():
        same(answer, expected["many"], one_batch=False)
    probabilities = expected["penguins-1"]["probability"]
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    rows = np.array(got["classes"]["probability"]["data"]).reshape(-1, 2)
    assert [[int(text.split(":")[1]) for text in row] for row in rows] == best.tolist()
    for i, answer in enumerate(got["stream"][:-1]):
        assert answer[0] == str(i)
        same(answer[1], expected["penguins-1"])
    assert over_http or "nothing" in got["stream"][-1]
    _check_errors(got["errors"], over_http)
    _check_told(got["told"])


def _check_errors(errors: dict[str, list[str]], over_http: bool) -> None:
    """Statuses and texts that a person can act on."""
    statuses = {
        "unknown model": ("404", "NOT_FOUND", "unknown model 'nothing'"),
        "unknown version": ("404", "NOT_FOUND", "has no version 77"),
        "missing input": ("400", "INVALID_ARGUMENT", "is required"),
        "unknown output": ("400", "INVALID_ARGUMENT", "unknown output 'nothing'"),
        "sequence": ("400", "UNIMPLEMENTED", "sequences"),
        "shared memory": ("400", "UNIMPLEMENTED", "shared memory"),
        "trace": ("400", "UNIMPLEMENTED", "trace settings"),
        "load without token": ("401", "UNAUTHENTICATED", "Authorization"),
    }
    for name, (status, code, text) in statuses.items():
        assert errors[name][0] == (status if over_http else f"StatusCode.{code}"), name
        assert text in errors[name][1], name


def _check_told(told: dict[str, Any]) -> None:
    assert told["live"]
    assert told["ready"] == [True, True, False]
    assert told["unloaded"] == [False, True]
    assert "binary_tensor_data" in told["server"]["extensions"]
    assert told["config"]["name"] == "penguins"
    assert int(told["config"]["max_batch_size"]) > 1
    (statistics,) = told["statistics"]
    assert int(statistics["inference_count"]) >= 40
    assert int(statistics["inference_stats"]["compute_infer"]["ns"]) > 0
    assert {(e["name"], e["version"]) for e in told["index"]} >= {("penguins", "1"), ("flights", "1"), ("flights", "2"), ("imagenet", "1")}


def test_kserves_client(
    server: ServerProcess, grpc_address: str, cases: tuple[list[Case], Path], expected: dict[str, dict[str, np.ndarray]]
) -> None:
    """V1 and V2 over REST, with tensors in JSON and in bytes, and gRPC with raw and typed contents."""
    got = run("kserve_client.py", server.url, grpc_address, cases[1])
    default = {c["name"] for c in cases[0] if c["name"] != "flights-1"}  # this client cannot name a version
    for name, forms in got["answers"].items():
        if name not in default:
            continue
        want = expected[name]
        for form, answer in forms.items():
            if form == "v1":
                answer = {
                    key: {"shape": list(want[key].shape), "data": np.array([p[key] for p in answer]).ravel().tolist()} for key in want
                }
            for key, array in want.items():
                assert answer[key]["shape"] == list(array.shape), (name, form, key)
                assert close(answer[key]["data"], array), (name, form, key)
    assert got["ready"] == [True, True, True, True, False, True, True, True]
    assert got["rest error"][0] == 400
    assert "no instances" in got["rest error"][1]
    assert got["grpc error"] == ["NOT_FOUND", got["grpc error"][1]]


def test_a_client_of_tensorflow_serving(
    server: ServerProcess, cases: tuple[list[Case], Path], expected: dict[str, dict[str, np.ndarray]]
) -> None:
    """Rows and columns, `signature_name`, images in `b64`, status, metadata, and `error` when something is wrong."""
    got = run("tensorflow_serving.py", server.url, cases[1])
    for name, want in expected.items():
        for key, array in want.items():
            assert close([value for p in got["rows"][name] for value in np.ravel(p[key]).tolist()], array)
            assert close(np.ravel(got["columns"][name][key]).tolist(), array)
    assert got["status"] == [{"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]
    assert got["metadata"] == {"name": "penguins", "version": "1", "signature_name": "serving_default"}
    assert got["error"][0] == 400
    assert "is required" in got["error"][1]


def test_the_requests_of_perf_analyzer(server: ServerProcess, cases: tuple[list[Case], Path]) -> None:
    """What it asks, in its order, and what it reads of the answers: metadata, configuration, statistics, inferences in bytes, statistics.

    Source: perf_analyzer's src/model_parser.cc and src/client_backend/triton/triton_client_backend.cc.
    """

    def get(path: str) -> Any:
        status, body = server.get(path)
        assert status == 200, (path, body)
        return json.loads(body)

    assert "statistics" in get("/v2")["extensions"]
    metadata, config = get("/v2/models/penguins"), get("/v2/models/penguins/config")
    assert config["max_batch_size"] > 0  # so the first dimension of every shape is the batch's
    assert not {"sequence_batching", "ensemble_scheduling", "response_cache"} & config.keys()
    assert config["model_transaction_policy"]["decoupled"] is False
    assert {i["name"] for i in config["input"]} == {i["name"] for i in metadata["inputs"]}
    assert {o["name"] for o in config["output"]} == {o["name"] for o in metadata["outputs"]}
    before = get("/v2/models/penguins/stats")["model_stats"][0]
    inputs, tail = [], b""
    for described in metadata["inputs"]:
        assert described["shape"][1:] == [1]
        if described["datatype"] == "BYTES":
            text = str(cases[0][0]["inputs"][described["name"]][0]).encode()
            data = len(text).to_bytes(4, "little") + text
        else:
            data = np.array(cases[0][0]["inputs"][described["name"]][:1], {"FP64": "<f8", "INT64": "<i8"}[described["datatype"]]).tobytes()
        inputs.append(
            {"name": described["name"], "shape": [1, 1], "datatype": described["datatype"], "parameters": {"binary_data_size": len(data)}}
        )
        tail += data
    outputs = [{"name": o["name"], "parameters": {"binary_data": True}} for o in metadata["outputs"]]
    for i in range(10):
        text = json.dumps({"id": str(i), "inputs": inputs, "outputs": outputs}).encode()
        headers = {"Inference_Header_Content_Length": str(len(text)), "Content_Type": "application/octet-stream"}
        status, answered, body = post(server, "/v2/models/penguins/infer", text + tail, **headers)
        assert status == 200, body
        document = json.loads(body[: int(answered["inference-header-content-length"])])
        assert document["id"] == str(i)
        assert [o["name"] for o in document["outputs"]] == [o["name"] for o in outputs]
    after = get("/v2/models/penguins/versions/1/stats")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 10
    assert after["execution_count"] - before["execution_count"] == 10
    for phase in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][phase]["count"] - before["inference_stats"][phase]["count"] == 10, phase
    for phase in ("cache_hit", "cache_miss"):
        assert after["inference_stats"][phase] == {"count": 0, "ns": 0}

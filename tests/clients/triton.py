"""Ask a server through NVIDIA's tritonclient, and print what it returned as JSON. Runs in .venv-clients, unmodified packages only.

python triton.py http|http-aio|grpc|grpc-aio ADDRESS CASES.json TOKEN
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import inspect
import json
import queue
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

KIND, ADDRESS, CASES, TOKEN = sys.argv[1:]
HTTP = KIND.startswith("http")
PROTOCOL = importlib.import_module("tritonclient.http" if HTTP else "tritonclient.grpc")
MODULE = importlib.import_module(f"{PROTOCOL.__name__}.aio") if KIND.endswith("aio") else PROTOCOL


async def ask(method: Any, *arguments: Any, **options: Any) -> Any:
    """Call a method of the blocking or of the asyncio client."""
    answer = method(*arguments, **options)
    return await answer if inspect.isawaitable(answer) else answer


def tensors(case: dict[str, Any], metadata: dict[str, Any], binary: bool) -> list[Any]:
    """Return a case's inputs, in the datatypes the server names."""
    inputs = []
    for described in metadata["inputs"]:
        values = case["inputs"][described["name"]]
        if case["bytes"]:
            values = [base64.b64decode(v) for v in values]
        array = np.array(values, dtype=triton_to_np_dtype(described["datatype"])).reshape(-1, 1)
        tensor = PROTOCOL.InferInput(described["name"], list(array.shape), described["datatype"])
        tensor.set_data_from_numpy(array, **({"binary_data": binary} if HTTP else {}))
        inputs.append(tensor)
    return inputs


def outputs(names: list[str], binary: bool, **options: Any) -> list[Any]:
    return [PROTOCOL.InferRequestedOutput(name, **({"binary_data": binary} if HTTP else {}), **options) for name in names]


def shown(result: Any, names: list[str]) -> dict[str, Any]:
    """Return outputs as shape and bytes, strings as text."""
    found = {}
    for name in names:
        array = result.as_numpy(name)
        text = array.dtype.kind in "OSU"
        data = [v.decode() if isinstance(v, bytes) else v for v in array.ravel()] if text else base64.b64encode(array.tobytes()).decode()
        found[name] = {"shape": list(array.shape), "dtype": "text" if text else array.dtype.name, "data": data}
    return found


async def failure(method: Any, *arguments: Any, **options: Any) -> list[str]:
    try:
        await ask(method, *arguments, **options)
    except InferenceServerException as error:
        return [str(error.status()), error.message()]
    return ["", "no error"]


async def infer_all(client: Any, cases: list[dict[str, Any]], metadata: dict[str, Any]) -> dict[str, Any]:
    """Return case → form of the tensors → outputs."""
    answers: dict[str, Any] = {}
    for case in cases:
        described = metadata[case["model"]]
        names = [o["name"] for o in described["outputs"]]
        forms = ["binary", "json"] if HTTP and not case["bytes"] else ["binary"]
        mine = answers[case["name"]] = {}
        for form in forms:
            inputs = tensors(case, described, form == "binary")
            options = {"model_version": case["version"], "request_id": f"{case['name']}-{form}"}
            result = await ask(client.infer, case["model"], inputs, outputs=outputs(names, form == "binary"), **options)
            mine[form] = shown(result, names)
            mine[f"{form}-all"] = shown(await ask(client.infer, case["model"], inputs, **options), names)
    return answers


async def compressed(client: Any, case: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    inputs = tensors(case, metadata[case["model"]], not HTTP)
    names = [o["name"] for o in metadata[case["model"]]["outputs"]]
    answers = {}
    for algorithm in ("gzip", "deflate"):
        options: dict[str, Any] = (
            {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
            if HTTP
            else {"compression_algorithm": algorithm}
        )
        answers[algorithm] = shown(await ask(client.infer, case["model"], inputs, outputs=outputs(names, False), **options), names)
    return answers


async def streamed(client: Any, case: dict[str, Any], metadata: dict[str, Any]) -> list[Any]:
    """Return the answers of a stream of requests, the last of which names no model."""
    inputs = tensors(case, metadata[case["model"]], True)
    names = [o["name"] for o in metadata[case["model"]]["outputs"]]
    asked = [(case["model"], str(i)) for i in range(20)] + [("nothing", "20")]
    if KIND == "grpc":
        waiting: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: waiting.put((result, error)))
        for model, name in asked:
            client.async_stream_infer(model, inputs, request_id=name)
        got = [waiting.get(timeout=30) for _ in asked]
        client.stop_stream()
    else:

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for model, name in asked:
                yield {"model_name": model, "inputs": inputs, "request_id": name}

        got = [answer async for answer in client.stream_infer(requests(), stream_timeout=30)]
    return [error.message() if error is not None else [result.get_response().id, shown(result, names)] for result, error in got]


async def errors(client: Any, case: dict[str, Any], metadata: dict[str, Any]) -> dict[str, list[str]]:
    inputs = tensors(case, metadata[case["model"]], True)
    model, first = case["model"], inputs[0]
    return {
        "unknown model": await failure(client.infer, "nothing", inputs),
        "unknown version": await failure(client.infer, model, inputs, model_version="77"),
        "missing input": await failure(client.infer, model, [first]),
        "unknown output": await failure(client.infer, model, inputs, outputs=outputs(["nothing"], True)),
        "sequence": await failure(client.infer, model, inputs, sequence_id=3, sequence_start=True),
        "shared memory": await failure(client.get_system_shared_memory_status),
        "trace": await failure(client.get_trace_settings),
        "load without token": await failure(client.load_model, model),
    }


async def told(client: Any, model: str) -> dict[str, Any]:
    """Return everything that is no inference."""
    options: dict[str, Any] = {} if HTTP else {"as_json": True}
    admin = {"headers": {"authorization": f"Bearer {TOKEN}"}}
    before = await ask(client.get_inference_statistics, model, **options)
    await ask(client.unload_model, "sentiment", **admin)
    unloaded = await ask(client.is_model_ready, "sentiment")
    await ask(client.load_model, "sentiment", **admin)
    config = await ask(client.get_model_config, model, **options)
    index = await ask(client.get_model_repository_index, **options)
    return {
        "live": await ask(client.is_server_live),
        "ready": [await ask(client.is_server_ready), await ask(client.is_model_ready, model), await ask(client.is_model_ready, "nothing")],
        "unloaded": [unloaded, await ask(client.is_model_ready, "sentiment")],
        "server": await ask(client.get_server_metadata, **options),
        "config": config.get("config", config),
        "statistics": before["model_stats"],
        "index": index if HTTP else index["models"],
    }


async def main(cases: list[dict[str, Any]]) -> None:
    client = MODULE.InferenceServerClient(ADDRESS)
    options: dict[str, Any] = {} if HTTP else {"as_json": True}
    metadata = {c["model"]: await ask(client.get_model_metadata, c["model"], **options) for c in cases}
    classes = outputs(["probability"], True, class_count=2)
    first = cases[0]
    result = await ask(client.infer, first["model"], tensors(first, metadata[first["model"]], True), outputs=classes)
    found = {
        "answers": await infer_all(client, cases, metadata),
        "compressed": await compressed(client, cases[-1], metadata),
        "classes": shown(result, ["probability"]),
        "errors": await errors(client, first, metadata),
        "told": await told(client, first["model"]),
        "stream": [] if HTTP else await streamed(client, first, metadata),
    }
    await ask(client.close)
    print(json.dumps(found))


asyncio.run(main(json.loads(Path(CASES).read_text())))

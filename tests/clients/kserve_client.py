"""Ask a server through KServe's Python client, and print what it returned as JSON. Runs in .venv-clients.

python kserve_client.py URL GRPC_ADDRESS CASES.json
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

URL, ADDRESS, CASES = sys.argv[1:]
DATATYPES = {"str": "BYTES", "int": "INT64", "float": "FP64", "bool": "BOOL"}
NUMPY = {"BYTES": np.object_, "INT64": np.int64, "FP64": np.float64, "BOOL": np.bool_}


def request_of(case: dict[str, Any], binary: bool) -> InferRequest:
    """Return a case as KServe's request; `binary` puts the tensors into bytes."""
    inputs = []
    for name, values in case["inputs"].items():
        datatype = "BYTES" if case["bytes"] else DATATYPES[type(values[0]).__name__]
        if any(type(v) is float for v in values):
            datatype = "FP64"
        given = [base64.b64decode(v) for v in values] if case["bytes"] else values
        tensor = InferInput(name, [len(values), 1], datatype)
        tensor.set_data_from_numpy(np.array(given, dtype=NUMPY[datatype]).reshape(-1, 1), binary_data=binary)
        inputs.append(tensor)
    return InferRequest(case["model"], inputs, request_id="k1")


def shown(response: Any) -> dict[str, Any]:
    found = {}
    for output in response.outputs:
        array = output.as_numpy()
        text = array.dtype.kind in "OSU"
        data = [v.decode() if isinstance(v, bytes) else v for v in array.ravel()] if text else array.astype(float).ravel().tolist()
        found[output.name] = {"shape": list(array.shape), "data": data}
    return found


async def main(cases: list[dict[str, Any]]) -> None:
    found: dict[str, Any] = {"answers": {}}
    v1, v2 = InferenceRESTClient(RESTConfig(protocol="v1")), InferenceRESTClient(RESTConfig(protocol="v2"))
    async with InferenceGRPCClient(ADDRESS) as over_grpc:
        for case in cases:
            mine = found["answers"][case["name"]] = {}
            rows = [dict(zip(case["inputs"], values, strict=True)) for values in zip(*case["inputs"].values(), strict=True)]
            if case["bytes"]:
                rows = [{name: {"b64": value} for name, value in row.items()} for row in rows]
            mine["v1"] = (await v1.infer(URL, {"instances": rows}, model_name=case["model"]))["predictions"]
            mine["v2 binary"] = shown(await v2.infer(URL, request_of(case, True), model_name=case["model"]))
            if not case["bytes"]:
                mine["v2 json"] = shown(await v2.infer(URL, request_of(case, False), model_name=case["model"]))
            mine["grpc"] = shown(await over_grpc.infer(request_of(case, True)))
            if not case["bytes"]:
                mine["grpc typed"] = shown(await over_grpc.infer(request_of(case, False)))
        found["ready"] = [
            await v1.is_model_ready(URL, "penguins"),
            await v2.is_server_ready(URL),
            await v2.is_server_live(URL),
            await v2.is_model_ready(URL, "penguins"),
            await v2.is_model_ready(URL, "nothing"),
            await over_grpc.is_server_ready(),
            await over_grpc.is_server_live(),
            await over_grpc.is_model_ready("penguins"),
        ]
        try:
            await v2.infer(URL, {"inputs": []}, model_name="penguins")
        except httpx.HTTPStatusError as error:
            found["rest error"] = [error.response.status_code, str(error)]
        try:
            case = {**cases[0], "model": "nothing"}
            await over_grpc.infer(request_of(case, True))
        except grpc.RpcError as error:
            found["grpc error"] = [error.code().name, error.details()]
    await v1.close()
    await v2.close()
    print(json.dumps(found))


asyncio.run(main(json.loads(Path(CASES).read_text())))

"""Ask a server as TensorFlow Serving's REST pages show it, with `requests`, and print what came back. Runs in .venv-clients.

python tensorflow_serving.py URL CASES.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import requests

URL, CASES = sys.argv[1:]
found: dict[str, Any] = {"rows": {}, "columns": {}}
for case in json.loads(Path(CASES).read_text()):
    model = f"{URL}/v1/models/{case['model']}/versions/{case['version']}"
    columns = {name: [{"b64": v} for v in values] if case["bytes"] else values for name, values in case["inputs"].items()}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    body = json.dumps({"signature_name": "serving_default", "instances": rows})
    answer = requests.post(f"{model}:predict", data=body, headers={"content-type": "application/json"}, timeout=60)
    answer.raise_for_status()
    found["rows"][case["name"]] = answer.json()["predictions"]
    answer = requests.post(f"{model}:predict", json={"inputs": columns}, timeout=60)
    answer.raise_for_status()
    found["columns"][case["name"]] = answer.json()["outputs"]
found["status"] = requests.get(f"{URL}/v1/models/penguins", timeout=60).json()["model_version_status"]
found["metadata"] = requests.get(f"{URL}/v1/models/penguins/metadata", timeout=60).json()["model_spec"]
bad = requests.post(f"{URL}/v1/models/penguins:predict", json={"instances": [{}]}, timeout=60)
found["error"] = [bad.status_code, bad.json()["error"]]
print(json.dumps(found))

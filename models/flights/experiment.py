"""Replay flights that nobody trained on as the traffic of an A/B test: the aeroplane is the unit, what became of the flight the outcome.

    python models/flights/experiment.py --url http://127.0.0.1:8000 --url http://127.0.0.1:8001 --flights 40000
    python models/flights/experiment.py --write flights.jsonl --flights 5000     # the same rows, with their labels, for `samegraph compare`

An aeroplane flies many times, some of them thousands, so flights of one are no independent observations; docs/ab-testing.md says what
follows from that. Needs the training environment.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from models.flights.train import CATEGORIES, LATE_MINUTES, NUMBERS, load, split

WORKERS = 4
#: Outcomes in one feedback request.
TOGETHER = 200


def rows(flights: int, months: str, seed: int) -> list[tuple[str, dict[str, Any], str]]:
    """Return (aeroplane, raw fields, what became of it) of flights that were not trained on, in random order."""
    frame = load()
    data = split(frame)
    chosen = frame.loc[(data.X_test if months == "same" else data.X_later).index]
    chosen = chosen[chosen["tailnum"].notna()].sample(frac=1, random_state=seed)[:flights]
    fields = chosen[CATEGORIES + NUMBERS].astype(object)
    raw = fields.where(pd.notna(fields), None).to_dict("records")
    late = chosen["arr_delay"] > LATE_MINUTES
    return [(unit, row, "late" if one else "on time") for unit, row, one in zip(chosen["tailnum"], raw, late, strict=True)]


def send(urls: Sequence[str], flights: Sequence[tuple[str, dict[str, Any], str]], seed: int) -> Counter[str]:
    """Predict each flight on any of the servers, and report what became of it to any of them."""
    rng, counts = random.Random(seed), Counter[str]()
    connections = [http.client.HTTPConnection(urlsplit(url).netloc, timeout=60) for url in urls]

    def post(path: str, document: Any, **headers: str) -> tuple[http.client.HTTPResponse, Any]:
        connection = rng.choice(connections)
        connection.request("POST", path, json.dumps(document), {"content-type": "application/json", **headers})
        response = connection.getresponse()
        return response, json.loads(response.read())

    outcomes = []
    for unit, row, truth in flights:
        response, _ = post("/v1/models/flights:predict", {"instances": [row]}, **{"samegraph-unit": unit})
        counts[f"status {response.status}"] += 1
        counts[response.headers.get("samegraph-arm") or "no arm"] += 1
        outcomes.append({"prediction_id": f"{response.headers['samegraph-prediction-id']}.0", "label": truth})
        if len(outcomes) == TOGETHER:
            _, found = post("/v1/models/flights:feedback", {"feedback": outcomes})
            counts["outcomes taken"] += found.get("accepted", 0)
            outcomes = []
    if outcomes:
        _, found = post("/v1/models/flights:feedback", {"feedback": outcomes})
        counts["outcomes taken"] += found.get("accepted", 0)
    for connection in connections:
        connection.close()
    return counts


def main() -> int:
    """Run with what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", action="append", default=[], help="a server; repeat for each replica")
    parser.add_argument("--write", type=Path, help="write the rows with a column `arrived` to this file, and send nothing")
    parser.add_argument("--flights", type=int, default=40_000)
    parser.add_argument("--months", choices=["same", "later"], default="same", help="January to August as in training, or September on")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    found = rows(options.flights, options.months, options.seed)
    if options.write is not None:
        options.write.write_text("".join(json.dumps({**row, "arrived": truth}) + "\n" for _, row, truth in found), encoding="utf-8")
        print(f"{len(found):,} flights written to {options.write}")
        return 0
    began, whole, parts = time.monotonic(), Counter[str](), []
    urls = options.url or ["http://127.0.0.1:8000"]

    def work(i: int) -> None:
        parts.append(send(urls, found[i::WORKERS], options.seed * WORKERS + i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in parts:
        whole += part
    print(
        f"{len(found):,} flights of {len({unit for unit, _, _ in found}):,} aeroplanes in {time.monotonic() - began:.0f} s: {dict(whole)}"
    )
    return 0 if len(parts) == WORKERS and {k for k in whole if k.startswith("status")} == {"status 200"} else 1


if __name__ == "__main__":
    sys.exit(main())

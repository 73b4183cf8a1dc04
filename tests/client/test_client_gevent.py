"""The blocking face under gevent, as locust runs it: one thread, patched sockets, many greenlets."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from scripted_server import predicted, refused, scripted_server

PROGRAM = """
from gevent import monkey
monkey.patch_all()
import json, sys, time
import gevent
from samegraph_client import Client

ticks = []
def tick():
    while True:
        ticks.append(time.monotonic())
        gevent.sleep(0.005)

ticker = gevent.spawn(tick)
with Client(sys.argv[1]) as client:
    singles = [gevent.spawn(client.predict, "m", {"x": n}) for n in range(60)]
    results = client.predict_many("m", ({"x": 100 + n} for n in range(60)))
    indexes = [outcome.index for outcome in results]
    values = [single.get(timeout=30).value for single in singles]
ticker.kill()
longest = max(b - a for a, b in zip(ticks, ticks[1:]))
print(json.dumps({"indexes": indexes, "values": values, "ticks": len(ticks), "longest": longest, "refusals": results.report.refusals}))
"""


def test_blocking_face_yields_to_other_greenlets() -> None:
    """Single calls and a burst share the gate, a refusal pauses all of them, and the hub goes on turning meanwhile."""
    with scripted_server(predicted(1), refused(headers={"retry-after-ms": "300"}), predicted(1)) as server:
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM, server.url], capture_output=True, text=True, timeout=60, env=dict(os.environ), check=False
        )
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout)
    assert told["indexes"] == list(range(60))
    assert told["values"] == [1] * 60
    assert len(server.received) == 121
    assert told["ticks"] >= 20  # a blocked hub would have ticked once during the pause of 300 ms

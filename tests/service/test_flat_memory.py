"""Memory is flat under open overload: a real server refuses thousands of callers, each with a key and a name of his own."""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
from pathlib import Path
from urllib.parse import urlsplit

import package_builders as build
from samegraph_transforms.pack import pack
from server_process import ServerProcess

#: Requests of each half; more when asked for.
REQUESTS = int(os.environ.get("SAMEGRAPH_TEST_FLAT_REQUESTS", "1500"))
BODY = json.dumps({"instances": [{"size": 3.5, "kind": "fern"}]})
#: A leak of 1.4 KB a request; the allocator's own ups and downs are below one MiB.
MOST_GROWTH_BYTES = 2 << 20


def resident_bytes(server: ServerProcess) -> float:
    """Return what the server says it occupies."""
    found = re.search(r"(?m)^process_resident_memory_bytes ([\d.e+]+)", server.get("/metrics")[1].decode())
    assert found
    return float(found[1])


def test_refusing_thousands_of_callers_costs_no_memory(tmp_path: Path) -> None:
    """After as many as fill its tables, the server grows no more."""
    pack(build.draft(), build.samples(), tmp_path)
    server = ServerProcess(
        tmp_path,
        EXECUTION__SIMULATED_BATCH_S="0.5",
        EXECUTION__RUN_SLOTS="1",
        LIMITS__MAX_REQUESTS="4",
        ADMISSION__MAX_KEYS="200",
        ADMISSION__MAX_CALLERS="200",
        ADMISSION__CALLER_HEADER="x-tenant",
        LOG__ACCESS="false",
    )
    address = urlsplit(server.url).netloc
    over = threading.Event()

    def send(connection: http.client.HTTPConnection, name: str) -> int:
        connection.request("POST", "/v1/models/plants:predict", BODY, {"x-tenant": name, "idempotency-key": name})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def keep_busy(number: int) -> None:
        connection, sent = http.client.HTTPConnection(address, timeout=60), 0
        while not over.is_set():
            sent += 1
            send(connection, f"busy {number} {sent}")
        connection.close()

    busy = [threading.Thread(target=keep_busy, args=(number,)) for number in range(4)]
    try:
        for thread in busy:
            thread.start()
        connection = http.client.HTTPConnection(address, timeout=60)
        sizes, statuses = [], dict.fromkeys((200, 429), 0)
        for half in range(2):
            for i in range(REQUESTS):
                statuses[send(connection, f"caller {half} {i}")] += 1
            sizes.append(resident_bytes(server))
        connection.close()
    finally:
        over.set()
        for thread in busy:
            thread.join()
        server.close()
    assert statuses[429] > 0.9 * 2 * REQUESTS, statuses
    assert sizes[1] - sizes[0] <= MOST_GROWTH_BYTES, sizes

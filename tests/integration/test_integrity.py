"""Concurrency truth: models, versions, shapes, bad instances, cancellations and tiny deadlines mixed, every answer checked.

`STRESS_REQUESTS` sets the number of requests; the nightly figure is 100,000.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from samegraph_transforms.golden import read_samples
from server_process import ServerProcess

REQUESTS = int(os.environ.get("STRESS_REQUESTS", "4000"))
CALLERS = 32
TABULAR = (("penguins", 1), ("flights", 1), ("flights", 2))


@dataclass(frozen=True)
class Known:
    """One raw instance and the label the training code gave it."""

    model: str
    version: int
    instance: Any
    label: str


@pytest.fixture(scope="module")
def known(examples: Path) -> list[Known]:
    """Every single-instance held-out request of the tabular examples, with its reference label."""
    found = []
    for model, version in TABULAR:
        for sample in read_samples(examples / ".heldout" / model / str(version)):
            for instance, label in zip(json.loads(sample.body)["instances"], np.asarray(sample.outputs["label"]), strict=True):
                found.append(Known(model, version, instance, str(label)))
    return found


@pytest.fixture(scope="module")
def own_server(examples: Path) -> Iterator[ServerProcess]:
    running = ServerProcess(examples, LOG__ACCESS="false", EXECUTION__MAX_BATCH_SIZE="16")
    try:
        assert running.url, "\n".join(running.lines)
        yield running
    finally:
        running.close()


class Caller:
    """One keep-alive connection that sends requests and checks each answer against its own input."""

    def __init__(self, url: str, known: list[Known], seed: int, counts: Counter[str]) -> None:
        self._address = urlsplit(url)
        self._by_route: dict[tuple[str, int], list[Known]] = {}
        for one in known:
            self._by_route.setdefault((one.model, one.version), []).append(one)
        self._random = random.Random(seed)
        self._counts = counts
        self._seed = seed
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, requests: int) -> None:
        kinds = [self.right, self.right, self.right, self.partial, self.bad, self.cancelled, self.hurried, self.pipelined]
        for i in range(requests):
            await self._random.choice(kinds)(f"{self._seed}-{i}")
        if self._streams is not None:
            self._streams[1].close()

    async def right(self, identifier: str) -> None:
        """Some good rows: every label is the reference's."""
        chosen = self._choose(self._random.choice((1, 1, 1, 2, 5, 40)))
        status, headers, body = await self._ask(self._request(chosen, identifier))
        assert status == 200, body
        assert headers["x-request-id"] == identifier
        self._check(chosen, json.loads(body)["predictions"])

    async def partial(self, identifier: str) -> None:
        """A bad row among good ones: null in its place."""
        chosen: list[Known | None] = list(self._choose(3))
        place = self._random.randrange(3)
        rows = [one.instance for one in chosen if one is not None]
        rows[place] = {"nonsense": 1}
        first = chosen[0]
        assert first is not None
        chosen[place] = None
        status, _, body = await self._ask(self._bytes(first, rows, identifier, query="?on_error=partial"))
        answer = json.loads(body)
        assert status == 200
        assert [e["instance"] for e in answer["errors"]] == [place]
        self._check(chosen, answer["predictions"])

    async def bad(self, identifier: str) -> None:
        """A request that cannot be answered is refused under its own id."""
        (one,) = self._choose(1)
        status, headers, body = await self._ask(self._bytes(one, [{**one.instance, "extra": 1}], identifier))
        assert (status, headers["x-request-id"], json.loads(body)["code"]) == (400, identifier, "unknown_field")
        self._counts["refused"] += 1

    async def cancelled(self, identifier: str) -> None:
        """A caller who leaves before his answer."""
        reader, writer = await asyncio.open_connection(self._address.hostname, self._address.port)
        writer.write(self._request(self._choose(40), identifier))
        await writer.drain()
        writer.close()
        del reader
        self._counts["left"] += 1

    async def hurried(self, identifier: str) -> None:
        """A deadline of a millisecond: right in time, or told so; never wrong."""
        chosen = self._choose(40)
        status, _, body = await self._ask(self._request(chosen, identifier, b"x-deadline-ms: 1\r\n"))
        answer = json.loads(body)
        if status == 200:
            self._check(chosen, answer["predictions"])
        else:
            assert (status, answer["code"]) in {(504, "deadline_exceeded"), (400, "deadline_too_short"), (429, "deadline_unreachable")}
            self._counts["late"] += 1

    async def pipelined(self, identifier: str) -> None:
        """Three requests at once on one connection: answered in order."""
        batches = [self._choose(n) for n in (1, 7, 2)]
        reader, writer = await self._connection()
        writer.write(b"".join(self._request(b, f"{identifier}-{i}") for i, b in enumerate(batches)))
        for i, chosen in enumerate(batches):
            status, headers, body = await _read(reader)
            assert (status, headers["x-request-id"]) == (200, f"{identifier}-{i}")
            self._check(chosen, json.loads(body)["predictions"])

    def _choose(self, n: int) -> list[Known]:
        return self._random.choices(self._by_route[self._random.choice(TABULAR)], k=n)

    def _check(self, chosen: list[Known] | list[Known | None], predictions: list[Any]) -> None:
        assert [p and p["label"] for p in predictions] == [one and one.label for one in chosen]
        self._counts["answered"] += 1
        self._counts["rows"] += sum(one is not None for one in chosen)

    def _request(self, chosen: list[Known], identifier: str, headers: bytes = b"") -> bytes:
        return self._bytes(chosen[0], [one.instance for one in chosen], identifier, headers)

    @staticmethod
    def _bytes(one: Known, rows: list[Any], identifier: str, headers: bytes = b"", query: str = "") -> bytes:
        body = json.dumps({"instances": rows}).encode()
        path = f"/v1/models/{one.model}/versions/{one.version}:predict{query}"
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-id: {identifier}\r\n"
        return head.encode() + headers + b"content-length: %d\r\n\r\n" % len(body) + body

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._address.hostname, self._address.port)
        return self._streams

    async def _ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await self._connection()
        writer.write(request)
        return await _read(reader)


async def _read(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def metrics(server: ServerProcess) -> dict[str, float]:
    totals: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(server.get("/metrics")[1].decode()):
        for sample in family.samples:
            totals[sample.name] += sample.value
    return totals


@pytest.mark.slow
def test_no_answer_is_swapped_lost_or_late_without_a_word(own_server: ServerProcess, known: list[Known]) -> None:
    """Everything mixed from many callers at once; each checks every answer, and the server's own counts agree."""
    counts: Counter[str] = Counter()
    each = REQUESTS // CALLERS

    async def all_callers() -> None:
        await asyncio.gather(*(Caller(own_server.url, known, seed, counts).run(each) for seed in range(CALLERS)))

    asyncio.run(all_callers())
    after = metrics(own_server)
    print(f"\n{dict(counts)}")
    assert counts["answered"] > REQUESTS / 2
    assert min(counts["refused"], counts["left"], counts["late"]) > 0
    assert after["samegraph_in_flight_requests"] == after["samegraph_in_flight_rows"] == after["samegraph_in_flight_bytes"] == 0
    assert after["samegraph_instances_total"] >= counts["rows"]
    assert own_server.terminate() == 0
    assert not [line for line in own_server.lines if '"level":"error"' in line]

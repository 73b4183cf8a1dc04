#!/usr/bin/env python3
"""What one JSON row costs between socket and model: the server's own connections, fed without sockets.

    .venv/bin/python benchmarks/path.py                                   the benchmark's trees at 1, 16 and 64 connections
    .venv/bin/python benchmarks/path.py --model flights --version 2 --repository models --profile

Every connection gets a request in every turn and the loop turns until all are answered, as when 64 clients wait for each other. Printed is
the CPU time of the loop's thread per request in microseconds: the least and the median of the rounds. What the operating system and
uvloop add for sockets is not in it. `--profile` shows where the calls go.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from samegraph_service.api.protocol import PredictProtocol, protocol_class
from samegraph_service.service import Service
from samegraph_service.settings import Settings
from samegraph_transforms.golden import read_samples
from samegraph_transforms.package import read_package
from uvicorn.server import ServerState

ROOT = Path(__file__).resolve().parent.parent
LOAD_S = 120.0


class Sink(asyncio.Transport):
    """A transport that keeps the latest answer."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.latest = b""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Take an answer."""
        self.latest = bytes(data)

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_write_buffer_size(self) -> int:
        """Everything is taken at once."""
        return 0

    def pause_reading(self) -> None:
        """Nothing reads."""

    def resume_reading(self) -> None:
        """Nothing reads."""

    def close(self) -> None:
        """End."""


def main() -> int:
    """Measure and print; return the exit code."""
    options = _options()
    uvloop.install()
    asyncio.run(_measure(options))
    return 0


async def _measure(options: argparse.Namespace) -> None:
    async def nothing_else(_scope: object, _receive: object, _send: object) -> None:
        raise RuntimeError("a request left the path")

    overrides: dict[str, Any] = {"repository": {"path": options.repository}, "log": {"access": False}}
    service = Service(Settings(**overrides), None, nothing_else)
    await service.start()
    await asyncio.wait_for(service.loaded.wait(), LOAD_S)
    protocol_type = protocol_class(lambda: service.front)
    config = uvicorn.Config(nothing_else, interface="asgi3", http=protocol_type, loop="none", lifespan="off", log_config=None)
    config.load()
    requests = _requests(options)
    for connections in options.connections:
        await _at(connections, config, protocol_type, requests, options)
    await service.drain()
    await service.close()


async def _at(
    connections: int, config: uvicorn.Config, protocol_type: type[PredictProtocol], requests: list[bytes], options: argparse.Namespace
) -> None:
    sinks = [Sink() for _ in range(connections)]
    protocols: list[PredictProtocol] = []
    for sink in sinks:
        protocol = protocol_type(config, ServerState(), {})
        protocol.connection_made(sink)
        protocols.append(protocol)
    turns = max(1, options.requests // connections)

    async def turn(number: int) -> None:
        for place, protocol in enumerate(protocols):
            protocol.data_received(requests[(place + number) % len(requests)])
        while any(protocol._active is not None for protocol in protocols):  # noqa: ASYNC110 - the loop must turn, that is what is measured
            await asyncio.sleep(0)  # a turn of the loop

    for number in range(20):
        await turn(number)
    if not sinks[0].latest.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"the server answered {sinks[0].latest!r}")
    figures = []
    for _ in range(options.rounds):
        started = time.thread_time()
        for number in range(turns):
            await turn(number)
        figures.append((time.thread_time() - started) / (turns * connections) * 1e6)
    print(
        f"{connections:>3} connections: {min(figures):6.2f} µs a request at the least, {statistics.median(figures):6.2f} in the median",
        flush=True,
    )
    if options.profile:
        profile = cProfile.Profile()
        profile.enable()
        for number in range(turns):
            await turn(number)
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)
    for protocol in protocols:
        protocol.connection_lost(None)


def _requests(options: argparse.Namespace) -> list[bytes]:
    """Return requests of one row each, from the package's golden samples."""
    package = read_package(options.repository / options.model / str(options.version))
    documents = [json.loads(sample.body) for sample in read_samples(package.golden_dir()) if sample.body.startswith(b"{")]
    bodies = [json.dumps({"instances": document["instances"][:1]}).encode() for document in documents if document.get("instances")][:16]
    path = f"/v1/models/{options.model}/versions/{options.version}:predict"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\nContent-Length: "
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=ROOT / "benchmarks/.packages", help="where the packages are")
    parser.add_argument("--model", default="trees", help="one that takes JSON rows (default: trees)")
    parser.add_argument("--version", type=int, default=1, help="its version (default: 1)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64], help="how many (default: 1 16 64)")
    parser.add_argument("--rounds", type=int, default=30, help="rounds (default: 30)")
    parser.add_argument("--requests", type=int, default=2000, help="requests in a round (default: 2000)")
    parser.add_argument("--profile", action="store_true", help="also show the functions that took most")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

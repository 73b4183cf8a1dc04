"""A real server on a real port, in a thread of the test process."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samegraph_service.app import Application, create_app
from samegraph_service.server import Server
from samegraph_service.service import Service
from samegraph_service.settings import Settings


@dataclass(frozen=True)
class Reply:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class LiveServer:
    """Talks to the running server."""

    def __init__(self, server: Server, application: Application, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.application = application
        self.loop = loop
        self.port = server.port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def service(self) -> Service:
        return self.application.running()

    def request(self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body.encode() if isinstance(body, str) else body, dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def predict(self, model: str, document: Any, path: str = "", **headers: str) -> Reply:
        """POST a V1 JSON body; `path` goes between the model and `:predict`, or is a query when it starts with `?`."""
        middle, query = ("", path) if path.startswith("?") else (path, "")
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.request("POST", f"/v1/models/{model}{middle}:predict{query}", body, {"content-type": "application/json", **headers})

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of one sample of /metrics; 0 when it is not there."""
        from prometheus_client.parser import text_string_to_metric_families

        total = 0.0
        for family in text_string_to_metric_families(self.get("/metrics").body.decode()):
            for sample in family.samples:
                if sample.name == name and all(sample.labels.get(k) == v for k, v in labels.items()):
                    total += sample.value
        return total

    def run(self, function: Any, *args: Any) -> Any:
        """Call a plain function on the server's loop and return its result."""

        async def call() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)

    def await_(self, coroutine: Any) -> Any:
        """Run a coroutine on the server's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)


@contextmanager
def live_server(models: Path, **groups: Mapping[str, Any]) -> Iterator[LiveServer]:
    """Serve the repository `models` until the block ends; `groups` override settings by group."""
    overrides: dict[str, Any] = {"repository": {"path": models, "poll_s": 3600}, "server": {"port": 0}, "log": {"access": False}}
    for group, values in groups.items():
        overrides[group] = {**overrides.get(group, {}), **values}
    settings = Settings(**overrides)
    application = create_app(settings)
    server = Server(application, settings)
    started = threading.Event()
    state: dict[str, Any] = {}

    async def main() -> None:
        state["loop"] = asyncio.get_running_loop()
        serving = asyncio.ensure_future(server.serve())
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn says that it listens by a flag only
            await asyncio.sleep(0.005)
        if server.started:
            await application.running().loaded.wait()
        started.set()
        await serving

    def run() -> None:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(60), "the server did not start"
    assert server.started, "the server failed to start"
    live = LiveServer(server, application, state["loop"])
    try:
        yield live
    finally:
        live.loop.call_soon_threadsafe(server._begin_drain)
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"

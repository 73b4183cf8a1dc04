"""A TCP server on a loopback port that hands each whole HTTP request to a function and writes the bytes it returns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

#: The number of the request (from 0, over all connections) and its head with its body → what to write; an empty answer hangs up.
Answer = Callable[[int, bytes], Awaitable[bytes]]


def http(document: str, status: str = "200 OK", *headers: str) -> bytes:
    """Return a whole answer with a JSON body."""
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(document)}", *headers]
    return "\r\n".join([*lines, "", document]).encode()


@contextmanager
def byte_server(answer: Answer, *, backlog: int = 1024, reads_body: bool = True) -> Iterator[int]:
    """Run it in a thread of its own; yield the port.

    Args:
        answer: Called for each request, in the order in which they arrived whole.
        backlog: Of the listening socket.
        reads_body: Whether bodies are read before answering; if not, nothing more is read from the connection.
    """
    count = 0

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(next(line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")))
                body = await reader.readexactly(length) if reads_body else b""
                number, count = count, count + 1
                written = await answer(number, head + body)
                writer.write(written)
                await writer.drain()
                if not written or b"connection: close" in written:
                    break
                if not reads_body:
                    await ended.wait()  # and not a future of its own: nothing would hold on to that, nor to this task
                    writer.transport.abort()  # `close` would wait for a caller who reads nothing
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the caller has gone
        finally:
            writer.close()

    loop = asyncio.new_event_loop()
    ended = asyncio.Event()
    server = loop.run_until_complete(asyncio.start_server(converse, "127.0.0.1", 0, backlog=backlog))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(_end(server, ended), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(server: asyncio.Server, ended: asyncio.Event) -> None:
    server.close()
    ended.set()
    quiet = 0
    while quiet < 3:  # a connection that was just accepted gets its task a turn later, and is closed for good one after that
        await asyncio.sleep(0)
        talking = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        quiet = 0 if talking else quiet + 1
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)

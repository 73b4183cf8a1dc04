"""A connection that sends exactly the bytes it is told to, for requests no client library would make."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

#: Every wait of these tests ends; a server that hangs fails the test instead of the run.
PATIENCE_S = 20.0


@dataclass(frozen=True)
class RawReply:
    """One answer as it came over the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One TCP connection to a server on this machine."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self._socket = socket.socket()
        self._socket.settimeout(PATIENCE_S)
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # pieces go out as they are sent
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def send(self, *pieces: bytes) -> None:
        """Send the pieces one by one."""
        for piece in pieces:
            self._socket.sendall(piece)

    def end_sending(self) -> None:
        """Close this side of the connection and keep the other open."""
        self._socket.shutdown(socket.SHUT_WR)

    def reply(self, *, head_only: bool = False) -> RawReply:
        """Read one answer; `head_only` says that none of it may be a body (the answer to HEAD).

        Raises:
            EOFError: The server closed the connection before it was complete.
        """
        head = self._until(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        pairs = (line.partition(b":") for line in lines)
        headers = {name.strip().lower().decode(): value.strip().decode() for name, _, value in pairs}
        return RawReply(int(first.split()[1]), headers, b"" if head_only else self._body(headers))

    def is_closed(self) -> bool:
        """Wait until the server closes the connection; False when it sends something instead."""
        if self._buffer:
            return False
        try:
            return self._socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self._exactly(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self._until(b"\r\n"), 16):
            body += self._exactly(size)
            self._until(b"\r\n")
        self._until(b"\r\n")
        return body

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._more()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _more(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise EOFError(f"the server closed the connection after {self._buffer[:200]!r}")
        self._buffer += data


def request(
    path: str = "/v1/models/plants:predict", body: bytes | None = b"", method: str = "POST", version: str = "1.1", **headers: str
) -> bytes:
    """Return the bytes of a request; `content-length` is added unless `headers` say how long the body is or there is none.

    Underscores in header names stand for hyphens.
    """
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not {"content-length", "transfer-encoding"} & set(named):
        named["content-length"] = str(len(body))
    lines = [f"{method} {path} HTTP/{version}", "host: localhost", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(*pieces: bytes) -> bytes:
    """Return the pieces as the chunks of a chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"

"""The transport: two methods, so that the HTTP library can be replaced. Why httpx2: docs/dependencies.md.

A transport sends one request and returns the whole answer, or raises a TransportFailure; it never retries.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import httpx2

from .dispatch import Answer, Request
from .errors import AddressInvalid, AttemptTimedOut, ConnectionFailed, Unreachable

#: Servers close idle connections (uvicorn after 5 s unless told otherwise); ours go first, so that no request races the close.
IDLE_EXPIRY_S = 4.0
CONNECT_S = 5.0


class Transport(Protocol):
    """Sends requests over blocking sockets."""

    def send(self, request: Request, timeout_s: float | None) -> Answer:
        """Return the whole answer; raise a TransportFailure when there is none within `timeout_s`."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


class AsyncTransport(Protocol):
    """Sends requests from an asyncio event loop."""

    def send(self, request: Request, timeout_s: float | None) -> Coroutine[Any, Any, Answer]:
        """Return the whole answer; raise a TransportFailure when there is none within `timeout_s`."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


class HttpxTransport:
    """A Transport on httpx2's synchronous client."""

    def __init__(self) -> None:
        self._client = httpx2.Client(limits=_limits(), follow_redirects=False)

    def send(self, request: Request, timeout_s: float | None) -> Answer:
        """Send over a kept connection, or a new one."""
        with translated(request.url):
            return _answer(
                self._client.request(
                    request.method, request.url, headers=dict(request.headers), content=request.body, timeout=_timeout(timeout_s)
                )
            )

    def close(self) -> None:
        """Close every connection."""
        self._client.close()


class AsyncHttpxTransport:
    """An AsyncTransport on httpx2's asynchronous client."""

    def __init__(self) -> None:
        self._client = httpx2.AsyncClient(limits=_limits(), follow_redirects=False)

    async def send(self, request: Request, timeout_s: float | None) -> Answer:
        """Send over a kept connection, or a new one; the whole answer must be there in time."""
        with translated(request.url):
            async with asyncio.timeout(timeout_s):
                return _answer(
                    await self._client.request(
                        request.method, request.url, headers=dict(request.headers), content=request.body, timeout=_timeout(timeout_s)
                    )
                )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn httpx2's exceptions into ours; everything else (cancellation above all) passes."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise _unconnected(url, error) from error
    except (httpx2.TimeoutException, TimeoutError) as error:
        raise AttemptTimedOut(f"no answer from {url} in time ({type(error).__name__})") from error
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise AddressInvalid(f"{url!r} is not an address ({error}): it must begin with http:// or https:// and name a host") from error
    except httpx2.TransportError as error:
        raise ConnectionFailed(f"no answer from {url}: {str(error) or type(error).__name__}") from error


def _unconnected(url: str, error: Exception) -> ConnectionFailed:
    """Return the error of a connection that was not made: whether it is worth waiting for depends on what went wrong."""
    because: BaseException | None = error
    while because is not None:
        if isinstance(because, ssl.SSLError):  # somebody listens, but is not who was asked for: waiting would not change it
            return ConnectionFailed(f"no secure connection to {url}: {because}")
        if isinstance(because, socket.gaierror):
            return Unreachable(f"no connection to {url}: the name of its host is not known ({because.strerror})")
        because = because.__cause__ or because.__context__
    return Unreachable(f"no connection to {url}: {str(error) or type(error).__name__}")


def _limits() -> httpx2.Limits:
    return httpx2.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=IDLE_EXPIRY_S)


def _timeout(timeout_s: float | None) -> httpx2.Timeout:
    """A limit for each step of an attempt; waiting for a pooled connection has none, because it would lose the request."""
    connect = CONNECT_S if timeout_s is None else min(CONNECT_S, timeout_s)
    return httpx2.Timeout(timeout_s, connect=connect, pool=None)


def _answer(response: httpx2.Response) -> Answer:
    return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()}, response.content)

"""Transports for the client: one that counts how attempts end, and one that a generator of open load can afford.

The latter uses locust's own HTTP library, whose parser is in C. The client's own transport keeps its connections in one list and looks
through it for every request, which thousands of requests under way at once turn into the bottleneck of the measurement (300 a second became
50). The client's policy core, its gate and its retries are the same.
"""

from __future__ import annotations

import json
from collections import Counter
from urllib.parse import urlsplit

import gevent
from geventhttpclient.client import HTTPClient
from samegraph_client.dispatch import Answer, Request
from samegraph_client.errors import AttemptTimedOut, ConnectionFailed, TransportFailure, Unreachable
from samegraph_client.transport import Transport

CONNECT_S = 5.0
#: Longest silence of a server within an answer when the caller names no timeout.
SILENCE_S = 300.0


class CountingTransport:
    """Sends through another transport, and counts how attempts end: answered (anew, joined, stored), refused with which code, failed how.

    Args:
        inner: Sends.
        ends: What happened → how often; the client's questions about the server are left out.
    """

    def __init__(self, inner: Transport, ends: Counter[str]) -> None:
        self._inner = inner
        self._ends = ends

    def send(self, request: Request, timeout_s: float | None) -> Answer:
        """As the other's."""
        counted = request.method == "POST"
        try:
            answer = self._inner.send(request, timeout_s)
        except TransportFailure as failure:
            self._ends[type(failure).__name__] += counted
            raise
        if counted:
            self._ends[_end(answer)] += 1
        return answer

    def close(self) -> None:
        """Close the other."""
        self._inner.close()


def _end(answer: Answer) -> str:
    if 200 <= answer.status < 300:
        replayed = answer.headers.get("samegraph-replayed")
        return f"answered, {replayed}" if replayed else "answered"
    try:
        document = json.loads(answer.body)
    except ValueError:
        document = None
    code = document.get("code") if isinstance(document, dict) else None
    return f"{answer.status} {code or 'without a code'}"


class GeventTransport:
    """Sends requests from greenlets, each over a connection of its own while it is under way.

    Args:
        url: The one server it sends to.
        most: Most connections.
    """

    def __init__(self, url: str, most: int) -> None:
        parts = urlsplit(url)
        self._client = HTTPClient(
            parts.hostname or "127.0.0.1",
            parts.port,
            connection_timeout=CONNECT_S,
            network_timeout=SILENCE_S,
            concurrency=most,
            disable_ipv6=True,
        )

    def send(self, request: Request, timeout_s: float | None) -> Answer:
        """Return the whole answer.

        Raises:
            Unreachable: No connection could be made.
            AttemptTimedOut: There was no answer in time.
            ConnectionFailed: The connection broke before the answer was whole.
        """
        parts = urlsplit(request.url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        late = gevent.Timeout(timeout_s) if timeout_s is not None else None
        try:
            if late is not None:
                late.start()
            response = self._client.request(request.method, target, request.body or b"", dict(request.headers))
            with response:
                return Answer(response.status_code, {name.lower(): value for name, value in response.items()}, bytes(response.read()))
        except gevent.Timeout as error:
            if error is not late:
                raise
            raise AttemptTimedOut(f"no answer from {request.url} in time") from error
        except ConnectionRefusedError as error:
            raise Unreachable(f"no answer from {request.url}: {error}") from error
        except TimeoutError as error:
            raise AttemptTimedOut(f"no answer from {request.url} in time") from error
        except (OSError, ValueError) as error:  # the library's parse errors are ValueErrors
            raise ConnectionFailed(f"no answer from {request.url}: {str(error) or type(error).__name__}") from error
        finally:
            if late is not None:
                late.close()

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

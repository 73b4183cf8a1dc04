#!/usr/bin/env python3
"""`samegraph serve` with stand-ins for what is still to be added to every answer, so that the speed table has room for it.

    .venv/bin/python benchmarks/standins.py serve --repository models

Each request draws an arm of an experiment (two SHA-256, as weighted rendezvous over two arms needs) and each answer carries a signed
prediction id (HMAC-SHA-256 over model, version, arm and minute, base64url) and the fields that advertise the in-flight limit. The answers
are the server's own. When one of these comes for real, its stand-in goes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import time

from samegraph_service.api import front
from samegraph_transforms.cli import main

KEY = bytes(range(32))
UNIT = b"user-1234567"
ARMS = (b"1", b"2")
POLICY = b'ratelimit-policy: "inflight";q=64;qu="concurrent-requests"\r\n'

_admit = front.Front.admit
_http1 = front.Response.http1


def assigned() -> bytes:
    """Return the arm that weighted rendezvous gives a unit."""
    best, arm = math.inf, b""
    for name in ARMS:
        u = (int.from_bytes(hashlib.sha256(b"delay\x1fsalt\x1f%b\x1f%b" % (UNIT, name)).digest()[:8], "big") + 1) / 2**64
        score = -math.log(u) / 0.5
        if score < best:
            best, arm = score, name
    return arm


def admit(self: front.Front, exchange: front.Exchange) -> None:
    """Do what an experiment will do between routing and admission."""
    _admit(self, exchange)
    assigned()


def http1(self: front.Response, close: bool, with_body: bool = True) -> bytes:
    """Write the answer with the fields that are to come."""
    written = _http1(self, close, with_body)
    if self.answer is None:
        return written
    payload = b"\x01%b|%b|%d" % (self._request_id, b"trees/1/2", int(time.time()) // 60)
    signature = base64.urlsafe_b64encode(payload + hmac.digest(KEY, payload, "sha256")[:10])
    fields = b'%bratelimit: "inflight";r=%d;t=0\r\nsamegraph-arm: 2\r\nsamegraph-prediction-id: %b\r\n' % (POLICY, 42, signature)
    end = written.index(b"\r\n") + 2
    return written[:end] + fields + written[end:]


if __name__ == "__main__":
    front.Front.admit = admit  # type: ignore[method-assign]
    front.Response.http1 = http1  # type: ignore[method-assign]
    main()

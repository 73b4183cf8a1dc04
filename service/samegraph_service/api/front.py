"""What every HTTP way in does with a predict request, without I/O: head → admitted → body → response.

    front.admit(exchange)            early refusals and the reservation, before the body is read
    front.run(exchange, body)        answer and response; calls back once, perhaps before it returns
    front.note(exchange, response)   counts and logs what was sent

`asgi.py` and `protocol.py` differ only in how they read and write bytes.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import parse_qsl

import msgspec
from samegraph_transforms.errors import InputError, SamegraphError
from samegraph_transforms.signature import Signature
from samegraph_transforms.wire import Decoded, decode_v1

from samegraph_service.admission import Asked, Caller, Gate, priority_of
from samegraph_service.api import encoding, error_document, v1, v2
from samegraph_service.api.paths import Target
from samegraph_service.api.repeats import Key, Repeat, Repeats, fingerprint
from samegraph_service.call import Answer, Call, Failure, OnError, Origin, Outcome
from samegraph_service.capture.tap import CaptureTap, Kept
from samegraph_service.clock import Loop
from samegraph_service.errors import (
    BadDeadline,
    BadHeader,
    BodyTooLarge,
    BodyTooSlow,
    CallerGone,
    DeadlineExceeded,
    Draining,
    Internal,
    KeyReused,
    MethodNotAllowed,
    Refused,
)
from samegraph_service.experiments.assignment import Assignment
from samegraph_service.experiments.signing import AnswerSigner
from samegraph_service.experiments.watch import ExperimentWatch
from samegraph_service.logs import AccessLog, bind_request_id, get_logger
from samegraph_service.metrics import UNKNOWN_MODEL, Metrics
from samegraph_service.predict import Predictor, Served
from samegraph_service.routing import Decision, Experiment, RouteTable
from samegraph_service.tracing import Tracer
from samegraph_service.turns import BACKGROUND, NORMAL

log = get_logger("samegraph.http")

Headers = list[tuple[bytes, bytes]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,128}")
#: Answers with more values than this are written on a host thread: a thousand values take the loop about half a millisecond.
ENCODE_ON_HOST_VALUES = 4096
#: Shared heads whose route is remembered until the routes change.
MAX_JUDGED = 4096
#: Bodies larger than this are compared with those that came under the same key on a host thread.
COMPARE_ON_HOST_BYTES = 262_144
#: Prepared lines of `ratelimit` that are kept.
MAX_ADVERTS = 8192
#: JSON and multipart bodies larger than this are decoded on a host thread.
DECODE_ON_HOST_BYTES = 32768


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of a request on the wire, and what its head may say.

    Attributes:
        max_body_bytes: Largest body.
        max_instances: Most instances.
        body_timeout_s: Longest time head and body may take to arrive, in seconds.
        discard_s: Longest time the rest of a refused body is read to be thrown away, in seconds.
        compress_from_bytes: Smallest answer that is compressed for callers who accept it; None compresses none.
        caller_header: Header that names the caller, in lower case; empty for his address.
        priorities: Whether callers may choose their class.
        advertise: Whether answers carry the in-flight limit.
    """

    max_body_bytes: int
    max_instances: int
    body_timeout_s: float
    discard_s: float = 5.0
    compress_from_bytes: int | None = None
    caller_header: bytes = b""
    priorities: bool = True
    advertise: bool = True


class Head:
    """A predict request's line and headers, and what follows from them alone: the same for every request that has the same.

    Attributes:
        target: What the path names.
        headers: Lower-case name → value; of a repeated header the last.
        declared: `content-length`, or 0.
        has_body: Whether a body follows.
        given_id: The caller's request id, when it is a safe one.
        protocol: `v1`, `raw`, `multipart` or `v2`.
        shared: Other requests have this very head.
        timeout_s: The caller's deadline in seconds, once the head was judged.
        on_error: What one bad instance does to the others, once the head was judged.
        coding: How the body is compressed, once the head was judged.
        accepts: How the answer may be compressed, once the head was judged.
        priority: Its class, once the head was judged.
        key: Its idempotency key, or None, once the head was judged.
        plain: It asks for no deadline, no class and no key, once the head was judged.
    """

    __slots__ = (
        "accepts",
        "coding",
        "content_type",
        "declared",
        "given_id",
        "has_body",
        "headers",
        "key",
        "method",
        "on_error",
        "path",
        "plain",
        "priority",
        "protocol",
        "query",
        "shared",
        "target",
        "timeout_s",
    )

    def __init__(self, method: str, path: str, query: bytes, headers: dict[bytes, bytes], target: Target) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.target = target
        given = headers.get(b"x-request-id")
        self.given_id = "" if given is None or not _REQUEST_ID.fullmatch(given) else given.decode()
        self.content_type = headers[b"content-type"].decode("latin-1") if b"content-type" in headers else "application/json"
        self.protocol = "v2" if target.protocol == "v2" else v1.protocol_of(self.content_type)
        length = headers.get(b"content-length", b"")
        self.declared = int(length) if length.isdigit() else 0
        self.has_body = self.declared > 0 or b"transfer-encoding" in headers
        self.shared = False
        self.timeout_s: float | None = None
        self.on_error: OnError = "fail"
        self.coding: encoding.Coding | None = None
        self.accepts: encoding.Coding | None = None
        self.priority = NORMAL
        self.key: bytes | None = None
        self.plain = True


class Exchange(Call):
    """One predict request over HTTP, from its head to its response.

    Args:
        front: What answers it.
        head: Its head.
        client: The caller's address, or "".
    """

    complete = False  # whether its body is here already

    __slots__ = ("client", "front", "head", "max_instances", "repeat", "v2")

    def __init__(self, front: Front, head: Head, client: str) -> None:
        Call.__init__(self, _DECODERS[head.protocol], head.given_id or front.fresh_id(), front.now(), front.finished)
        self.head = head
        self.client = client
        self.front = front
        self.repeat: Repeat | None = None
        self.max_instances = front.limits.max_instances
        self.v2: v2.InferRequest | None = None

    def cancel(self) -> None:
        """The caller is gone; a computation that others wait for goes on."""
        if self.repeat is None:
            Call.cancel(self)
        else:
            self.front.leave(self, self.repeat)

    def encode(self, answer: Answer) -> bytes | v2.Encoded:
        """Write the answer in the caller's protocol.

        Raises:
            SamegraphError: It cannot be written.
        """
        if self.v2 is None:
            return v1.encode(answer, _static(answer).v1)
        return v2.encode(answer, self.v2)

    def respond(self, response: Response) -> None:
        """Take the response, exactly once after `Front.run`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Static:
    """What is the same in every answer of a version, or in every answer of it that an experiment decided the same about.

    Attributes:
        pairs: Headers, for ASGI.
        raw: Status line and the same headers, as HTTP/1.1.
        v1: The end of a V1 body, up to the prediction id.
    """

    pairs: tuple[tuple[bytes, bytes], ...]
    raw: bytes
    v1: bytes


@dataclass(frozen=True, slots=True)
class Advert:
    """What an answer says about the in-flight limit.

    Attributes:
        pairs: Headers, for ASGI.
        raw: The same, as HTTP/1.1.
    """

    pairs: tuple[tuple[bytes, bytes], ...] = ()
    raw: bytes = b""


_NO_ADVERT = Advert()


class Response(msgspec.Struct, eq=False):
    """One answer, ready to be written by either way in.

    Attributes:
        status: HTTP status.
        body: Its bytes.
        error: What went wrong, or None.
        answer: What was answered, or None; None too when another request was answered with it.
        advert: What it says about the in-flight limit.
        replayed: `joined` or `stored` when another request's computation gave it, else empty.
    """

    status: int
    body: bytes
    _headers: Headers | None = None
    error: SamegraphError | None = None
    answer: Answer | None = None
    _static: Static | None = None
    _request_id: bytes = b""
    _prediction_id: bytes = b""
    advert: Advert = _NO_ADVERT
    replayed: str = ""

    def add(self, pair: tuple[bytes, bytes]) -> None:
        """Add a header."""
        self._headers = [*(self._headers or ()), pair]

    def again(self, how: str, request_id: str) -> Response:
        """Return it for another request under the same key: `joined` or `stored`."""
        ids = request_id.encode(), self._prediction_id
        headers = [pair for pair in self._headers or () if pair[0] != b"traceresponse"] or None
        other = Response(self.status, self.body, headers, self.error, None, self._static, *ids)
        other.replayed = how
        return other

    def pairs(self) -> Headers:
        """Return the headers for ASGI."""
        replayed = [(b"samegraph-replayed", self.replayed.encode())] if self.replayed else []
        if self._static is None:
            return [*(self._headers or ()), *self.advert.pairs, *replayed]
        own = self._headers or ()
        return [
            *(self._static.pairs if not own or own[0][0] != b"content-type" else self._static.pairs[1:]),
            *own,
            (b"content-length", b"%d" % len(self.body)),
            (b"x-request-id", self._request_id),
            (b"samegraph-prediction-id", self._prediction_id),
            *self.advert.pairs,
            *replayed,
        ]

    def http1(self, close: bool, with_body: bool = True) -> bytes:
        """Return the whole HTTP/1.1 response, or its head only (the answer to HEAD)."""
        end = b"connection: close\r\n\r\n" if close else b"\r\n"
        if self._static is not None and not self._headers and with_body and not self.replayed:
            return b"".join(
                (
                    self._static.raw,
                    b"content-length: ",
                    b"%d" % len(self.body),
                    b"\r\nx-request-id: ",
                    self._request_id,
                    b"\r\nsamegraph-prediction-id: ",
                    self._prediction_id,
                    b"\r\n",
                    self.advert.raw,
                    end,
                    self.body,
                )
            )
        lines = [_status_line(self.status), *(b"%b: %b\r\n" % pair for pair in self.pairs()), end, self.body if with_body else b""]
        return b"".join(lines)


class Front:
    """Shared by all HTTP ways in. For the event loop's thread only.

    Args:
        loop: The event loop.
        predictor: The prediction path.
        gate: Admission.
        routes: Returns the table in force.
        metrics: Counts answers.
        access_log: Notes answers; None for no access log.
        host: Threads for large answers.
        limits: Bounds on the wire.
        capture: Takes sampled requests with their answers; None when nothing is captured.
        experiments: Counts what experiments decided; None for no counting.
        sign: Makes prediction ids; None where request ids stand for them.
        tracer: Traces sampled requests; None when nothing is traced.
        repeats: The requests that are known by an idempotency key.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        predictor: Predictor,
        gate: Gate,
        routes: Callable[[], RouteTable[Served]],
        metrics: Metrics,
        access_log: AccessLog | None,
        host: ThreadPoolExecutor,
        limits: HttpLimits,
        capture: CaptureTap | None = None,
        experiments: ExperimentWatch | None = None,
        sign: AnswerSigner | None = None,
        tracer: Tracer | None = None,
        repeats: Repeats | None = None,
    ) -> None:
        self.limits = limits
        self.now = loop.time  # the clock of `Head.received`: the core's, not uvloop's, which stands still within a turn
        self._loop = loop
        self._predictor = predictor
        self.gate = gate
        self._routes = routes
        self._metrics = metrics
        self._access_log = access_log
        self._capture = capture
        self._experiments = experiments
        self._sign = sign
        self._tracer = tracer
        self._host = host
        self.repeats = repeats if repeats is not None else Repeats(loop, keep_s=0.0, max_keys=1, max_bytes=0)  # an empty one is false
        self._adverts: dict[tuple[int, int], Advert] = {}
        self._lone_adverts: dict[int, Advert] = {}
        self._next_id = itertools.count(1).__next__
        self._boot = os.urandom(6).hex()
        self._judged: dict[Head, Decision[Served]] = {}  # shared heads and what answers them, under the table in force
        self._judged_by: RouteTable[Served] | None = None
        self.finished = self._finished  # bound once

    @property
    def draining(self) -> bool:
        """Whether answers should end their connections."""
        return self.gate.draining

    def fresh_id(self) -> str:
        """Return an id no other request of this process, and very likely of any other, has."""
        return f"{self._boot}-{self._next_id():x}"

    # --- before the body ----------------------------------------------------------------------------------------------

    def admit(self, exchange: Exchange) -> None:
        """Let a request in on its head, or refuse it before its body is read.

        Raises:
            SamegraphError: Why not.
        """
        head, table = exchange.head, self._routes()
        if self._tracer is not None:
            exchange.trace = self._tracer.begin(head.headers, exchange.received)
        if table is not self._judged_by or len(self._judged) > MAX_JUDGED:
            self._judged.clear()
            self._judged_by = table
        decision = self._judged.get(head)
        if decision is None:
            decision = self._judge(head)
            if head.shared:
                self._judged[head] = decision
        exchange.served = decision.served
        exchange.assignment = decision.assignment
        if decision.shadows:
            exchange.shadows = decision.shadows
        if decision.undecided is not None:
            self._leave_open(exchange, decision.undecided)
        exchange.timeout_s = head.timeout_s
        exchange.on_error = head.on_error
        caller = exchange.caller
        if caller is None:
            caller = exchange.caller = self._caller_of(head, exchange.client)
        if head.plain:
            exchange.reservation = self.gate.reserve(head.declared, caller, exchange.served.asked)
        else:
            self._reserve(exchange, head, caller)
        if head.has_body and not exchange.complete:
            exchange.reservation.arriving(exchange.received)  # type: ignore[union-attr]

    def caller_at(self, address: str) -> Caller | None:
        """Return the caller all requests of a connection come from; None when their heads have to be seen to tell."""
        return None if self.limits.caller_header else self.gate.callers.of(address)

    def _caller_of(self, head: Head, address: str) -> Caller:
        """Return the caller a request comes from."""
        named = head.headers.get(self.limits.caller_header) if self.limits.caller_header else None
        return self.gate.callers.of(address if named is None else named[:256].decode("latin-1"))

    def _reserve(self, exchange: Exchange, head: Head, caller: Caller) -> None:
        """Take a place for a request that asks for something; one whose key is known needs none."""
        exchange.priority = head.priority
        key = None if head.key is None else (caller.name, head.key)
        asked = Asked(exchange.served.lane, head.timeout_s, head.priority, key)
        if key is not None and self.repeats.get(key) is not None:
            exchange.reservation = self.gate.hold(head.declared, caller, asked)
        else:
            exchange.reservation = self.gate.reserve(head.declared, caller, asked)

    @staticmethod
    def _leave_open(exchange: Exchange, experiment: Experiment[Served]) -> None:
        """Assign a request without a unit at random, or leave it to its body."""
        if experiment.plan.unit.field:
            exchange.undecided = experiment
        else:
            exchange.served, exchange.assignment = experiment.at_random(random.random(), random.random())

    def _judge(self, head: Head) -> Decision[Served]:
        """Check what the head alone decides and return what answers it."""
        if head.method != "POST":
            raise MethodNotAllowed(f"predictions are asked for with POST, not {head.method[:16]}", allowed=("POST",))
        head.timeout_s = _timeout_s(head.headers)
        head.on_error = "fail" if head.protocol == "v1" and not head.query else _on_error(head)
        if self.limits.priorities and b"samegraph-priority" in head.headers:
            head.priority = _priority(head.headers[b"samegraph-priority"])
        if b"idempotency-key" in head.headers:
            head.key = _key(head.headers[b"idempotency-key"])
        head.plain = head.timeout_s is None and head.priority == NORMAL and head.key is None
        if head.declared > self.limits.max_body_bytes:
            raise self.too_large()
        if b"content-encoding" in head.headers:
            head.coding = encoding.coding_of(head.headers[b"content-encoding"][:64])
        if b"accept-encoding" in head.headers and self.limits.compress_from_bytes is not None and head.key is None:
            head.accepts = encoding.accepted(head.headers[b"accept-encoding"][:256])
        target = head.target
        decision = self._predictor.decide(target.model, target.version, target.label, head.headers)
        if head.protocol in ("raw", "multipart"):
            v1.check_media_type(decision.served.runtime.signature, head.content_type)
        return decision

    def too_large(self) -> BodyTooLarge:
        """Return the refusal of a body over the limit."""
        limit = self.limits.max_body_bytes
        return BodyTooLarge(f"the body is larger than the limit of {limit} bytes; send fewer instances or smaller images per request")

    def too_slow(self) -> BodyTooSlow:
        """Return the refusal of a body that does not arrive."""
        limit = self.limits.body_timeout_s
        return BodyTooSlow(f"the body did not arrive within {limit:g} s; send it faster or in smaller requests")

    # --- with the body ------------------------------------------------------------------------------------------------

    def run(self, exchange: Exchange, body: bytes) -> None:
        """Run an admitted request; its `respond` is called exactly once, perhaps before this returns."""
        exchange.body = body
        size = exchange.body_bytes = len(body)
        exchange.heavy = size > DECODE_ON_HOST_BYTES and exchange.head.protocol != "raw"
        if exchange.head.coding is not None:
            exchange.decode, exchange.heavy = self._decode_compressed, True
        if exchange.head.key is not None:
            self._run_keyed(exchange, exchange.head.key)
            return
        if self._capture is not None:
            self._capture.sample(exchange)
        self._predictor.submit(exchange.served, exchange)

    def _decode_compressed(self, call: Call, signature: Signature) -> Decoded:
        """Inflate a body, then decode it; on a host thread."""
        assert isinstance(call, Exchange)
        assert call.head.coding is not None
        call.body = encoding.inflate(call.body, call.head.coding, self.limits.max_body_bytes)
        call.body_bytes = len(call.body)
        return _DECODERS[call.head.protocol](call, signature)

    def _finished(self, exchange: Exchange, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            self._deliver(exchange, self.failed(outcome.error, exchange.request_id))
            return
        if self._sign is not None:
            outcome.prediction_id = self._sign(outcome)
        if outcome.n * exchange.served.values_per_row > ENCODE_ON_HOST_VALUES:
            self._host.submit(self._encode_on_host, exchange, outcome)
        else:
            started = self.now()
            body = _encoded(exchange, outcome)
            if exchange.head.accepts is not None and self._coding(exchange, body) is not None:
                self._host.submit(self._compress_on_host, exchange, outcome, body, self.now() - started)
            else:
                self._respond(exchange, outcome, body, None, self.now() - started)

    def _encode_on_host(self, exchange: Exchange, answer: Answer) -> None:
        started = self.now()
        self._compress_on_host(exchange, answer, _encoded(exchange, answer), self.now() - started)

    def _coding(self, exchange: Exchange, body: Body) -> encoding.Coding | None:
        """Return how an answer is compressed; None when it is not worth it, or the caller does not accept it."""
        smallest = self.limits.compress_from_bytes
        if exchange.head.accepts is None or smallest is None or isinstance(body, SamegraphError):
            return None
        if exchange.head.key is not None:
            return None  # it may be answered again to somebody who accepts no coding
        return exchange.head.accepts if len(body if isinstance(body, bytes) else body.body) >= smallest else None

    def _compress_on_host(self, exchange: Exchange, answer: Answer, body: Body, seconds: float) -> None:
        started, coding = self.now(), self._coding(exchange, body)
        if coding is not None and not isinstance(body, SamegraphError):
            body = (
                encoding.deflate(body, coding)
                if isinstance(body, bytes)
                else v2.Encoded(encoding.deflate(body.body, coding), body.json_bytes)
            )
        self._loop.call_soon_threadsafe(self._respond, exchange, answer, body, coding, seconds + self.now() - started)

    def _respond(self, exchange: Exchange, answer: Answer, body: Body, coding: encoding.Coding | None, seconds: float) -> None:
        exchange.served.metrics.encode.observe(seconds)
        if exchange.trace is not None:
            now = self.now()
            exchange.trace.span("encode", now - seconds, now)
        if isinstance(body, SamegraphError):
            self._deliver(exchange, self.failed(body, exchange.request_id))
            return
        headers = None
        if not isinstance(body, bytes):
            if body.json_bytes is not None:
                headers = [(b"content-type", _BINARY), (b"inference-header-content-length", b"%d" % body.json_bytes)]
            body = body.body
        if answer.errors:
            headers = [(b"samegraph-failed-instances", b"%d" % len(answer.errors))]
        if coding is not None:
            headers = [*(headers or ()), (b"content-encoding", coding.encode()), (b"vary", b"accept-encoding")]
        request_id, prediction_id = answer.request_id.encode(), answer.prediction_id.encode()
        self._deliver(exchange, Response(200, body, headers, None, answer, _static(answer), request_id, prediction_id))

    def _deliver(self, exchange: Exchange, response: Response) -> None:
        """Hand a response to its request, and to all that came under the same key."""
        if exchange.repeat is None:
            if exchange.trace is not None:
                response.add(exchange.trace.response_header)
            if self.limits.advertise:
                response.advert = self._advert(exchange, response)
            exchange.respond(response)
            return
        for party in self.repeats.finish(exchange.repeat, response):
            party.repeat = None
            self._deliver(party, response if party is exchange else response.again("joined", party.request_id))

    def failed(self, error: SamegraphError, request_id: str) -> Response:
        """Return the response to a request that failed."""
        status, headers, body = error_document.response(error, request_id)
        return Response(status, body, headers, error)

    def refused(self, error: SamegraphError, exchange: Exchange) -> Response:
        """Return the response to a request that was refused before it ran."""
        response = self.failed(error, exchange.request_id)
        if exchange.trace is not None:
            response.add(exchange.trace.response_header)
        if self.limits.advertise:
            response.advert = self._advert(exchange, response)
        return response

    # --- the in-flight limit ------------------------------------------------------------------------------------------

    def _advert(self, exchange: Exchange, response: Response) -> Advert:
        """Return what an answer says about the limit; for a caller who is alone here, the line prepared for so many requests."""
        gate, caller = self.gate, exchange.caller
        if response.error is None and caller is not None and not gate.line:
            here = gate.load.requests
            if caller.requests == here:
                advert = self._lone_adverts.get(here)
                if advert is None:
                    if len(self._lone_adverts) >= MAX_ADVERTS:
                        self._lone_adverts.clear()
                    advert = self._lone_adverts[here] = self._any_advert(caller, response)
                return advert
        return _NO_ADVERT if caller is None else self._any_advert(caller, response)

    def advert_to(self, named: str | None, address: str) -> dict[str, str]:
        """Return the headers that tell somebody who only asks what he may have in flight.

        Args:
            named: The caller as the header names him, if one is set and it does.
            address: Where he asks from.
        """
        if not self.limits.advertise:
            return {}
        most, free = self.gate.quota(self.gate.callers.of(address if named is None else named[:256]))
        return {name.decode(): value.decode() for name, value in _make_advert(most, free, 0 if free else 1).pairs}

    def _any_advert(self, caller: Caller, response: Response) -> Advert:
        if isinstance(response.error, Refused):
            return _make_advert(self.gate.quota(caller)[0], 0, math.ceil(response.error.retry_after_s or 0.0))
        quota = self.gate.quota(caller)
        advert = self._adverts.get(quota)
        if advert is None:
            if len(self._adverts) >= MAX_ADVERTS:
                self._adverts.clear()
            advert = self._adverts[quota] = _make_advert(*quota, 0 if quota[1] else 1)
        return advert

    # --- requests with a key ------------------------------------------------------------------------------------------

    def _run_keyed(self, exchange: Exchange, key: bytes) -> None:
        """Compare a request with what is known of its key; a large one on a host thread."""
        head = exchange.head
        facts = b"\0".join(
            (head.path.encode(), head.query, head.content_type.encode(), head.headers.get(b"inference-header-content-length", b""))
        )
        if exchange.body_bytes <= COMPARE_ON_HOST_BYTES:
            self._run_known(exchange, key, fingerprint(facts, exchange.body))
        else:
            self._host.submit(self._compare_on_host, exchange, key, facts)

    def _compare_on_host(self, exchange: Exchange, key: bytes, facts: bytes) -> None:
        self._loop.call_soon_threadsafe(self._run_known, exchange, key, fingerprint(facts, exchange.body))

    def _run_known(self, exchange: Exchange, name: bytes, print_: bytes) -> None:
        """Answer a request from what is known under its key, join it to what runs, or run it."""
        assert isinstance(exchange.caller, Caller)
        key: Key = (exchange.caller.name, name)
        repeat = self.repeats.get(key)
        if exchange.cancelled:
            exchange.release()
            self._deliver(exchange, self.failed(CallerGone("the caller hung up"), exchange.request_id))
        elif repeat is None:
            exchange.repeat = self.repeats.lead(key, print_, exchange)
            if self._capture is not None:
                self._capture.sample(exchange)
            self._predictor.submit(exchange.served, exchange)
        elif repeat.fingerprint != print_:
            exchange.release()
            self.repeats.reused += 1
            text = "this idempotency-key was used for another request; send every new request with a key of its own"
            self._deliver(exchange, self.failed(KeyReused(text), exchange.request_id))
        elif repeat.response is not None:
            exchange.release()
            self.repeats.stored += 1
            self._deliver(exchange, repeat.response.again("stored", exchange.request_id))
        else:
            exchange.release()
            exchange.body = b""
            exchange.repeat = repeat
            self.repeats.join(repeat, exchange, self._predictor.deadline_of(exchange), self._late)

    def _late(self, repeat: Repeat, party: Exchange) -> None:
        """One who waits for a computation has waited long enough."""
        error = DeadlineExceeded("the deadline passed while the request of the same key was at work")
        self._leave(repeat, party, self.failed(error, party.request_id))

    def leave(self, party: Exchange, repeat: Repeat) -> None:
        """The caller of one who waits for a computation is gone; when nobody waits for it any more it may go on for his return."""
        party.cancelled = True
        self._leave(repeat, party, self.failed(CallerGone("the caller hung up"), party.request_id))

    def _leave(self, repeat: Repeat, party: Exchange, response: Response) -> None:
        leader = repeat.leader
        others = self.repeats.leave(repeat, party)
        if party is not leader:
            party.repeat = None
            self._deliver(party, response)
            if not others and leader is not None and not self._goes_on(repeat, leader, response):
                Call.cancel(leader)
        elif others or self._goes_on(repeat, leader, response):
            leader.cancelled = False  # its computation goes on
            if self.limits.advertise:
                response.advert = self._advert(party, response)
            party.respond(response)
        else:
            repeat.parties[party] = None
            if isinstance(response.error, DeadlineExceeded):
                leader.fail(response.error)
            else:
                Call.cancel(leader)

    def _goes_on(self, repeat: Repeat, leader: Exchange, response: Response) -> bool:
        """Whether a computation goes on that nobody waits for: it is under way, and it was left, not late."""
        return leader.running and isinstance(response.error, CallerGone) and self.repeats.abandon(repeat, leader.served.model)

    def crashed(self, exchange: Exchange, error: Exception) -> Response:
        """Log an exception nobody expected and return a response that does not tell it."""
        with bind_request_id(exchange.request_id):
            log.error("request_crashed", exc_info=error, path=exchange.head.path)
        return self.failed(Internal(), exchange.request_id)

    # --- taps ---------------------------------------------------------------------------------------------------------

    def note(self, exchange: Exchange, response: Response) -> None:
        """Count and log an answer, or a caller who left before it."""
        seconds = self.now() - exchange.received
        head, answer = exchange.head, response.answer
        if response.replayed:
            model, version, code = exchange.served.model, exchange.served.version, ""
            if response.error is not None:
                code = error_document.mapping_of(response.error).code
        elif answer is not None:
            origin = answer.origin
            model, version, code = origin.model, origin.version, ""
            exchange.served.metrics.duration.observe(seconds)
            if answer.errors:
                for failure in answer.errors.values():
                    self._metrics.error(model, error_document.mapping_of(failure).code)
            if self._capture is not None and type(exchange.decode) is Kept:
                self._capture.take(exchange, answer, head.protocol)
        else:
            version = 0
            model, code = self._count_failure(head, response)
        assignment = exchange.assignment
        if exchange.trace is not None and self._tracer is not None:
            self._finish_trace(self._tracer, exchange, response, (model, version, code))
        if not response.replayed:
            self._metrics.request(model, version, head.protocol, response.status)
            if assignment is not None and self._experiments is not None:
                self._count_experiment(self._experiments, assignment, seconds, response)
        log = self._access_log
        if log is None:
            return
        if log.pass_over and response.status < 500:
            log.pass_over -= 1
        else:
            log.record(
                head.method,
                head.path,
                response.status,
                seconds,
                exchange.request_id,
                exchange.client,
                head.declared,
                len(response.body),
                model,
                version,
                0 if answer is None else answer.n,
                code,
                "" if assignment is None else assignment.name,
                "" if assignment is None else assignment.arm,
                "" if assignment is None else assignment.reason,
            )

    @staticmethod
    def _finish_trace(tracer: Tracer, exchange: Exchange, response: Response, about: tuple[str, int, str]) -> None:
        """Hand the trace of an answered request over, with what the conventions for HTTP servers and we want to know of it."""
        (model, version, code), head, answer, assignment = about, exchange.head, response.answer, exchange.assignment
        attributes: dict[str, str | int] = {
            "http.request.method": head.method[:16],
            "url.path": head.path[:256],
            "http.response.status_code": response.status,
            "client.address": exchange.client,
            "samegraph.request_id": exchange.request_id,
            "samegraph.protocol": head.protocol,
            "samegraph.model": model,
        }
        if version:
            attributes["samegraph.version"] = version
        if answer is not None:
            attributes["samegraph.instances"] = answer.n
        if code:
            attributes["error.type"] = code
        if response.replayed:
            attributes["samegraph.replayed"] = response.replayed
        if assignment is not None and assignment.arm:
            attributes |= {"samegraph.experiment": assignment.name, "samegraph.arm": assignment.arm}
        tracer.finish(exchange.trace, f"{head.method[:16]} {head.protocol} {model}", response.status, attributes)

    @staticmethod
    def _count_experiment(experiments: ExperimentWatch, assignment: Assignment, seconds: float, response: Response) -> None:
        """Count an answer, or a failure that is not the caller's; what a server that stops refuses says nothing about an arm."""
        if response.answer is not None:
            experiments.count(assignment, seconds, failed=False)
        elif response.status >= 500 and not isinstance(response.error, Draining):
            experiments.count(assignment, seconds, failed=True)

    def note_unread(self, protocol: str, response: Response) -> None:
        """Count a request of which not even the model could be read."""
        if response.error is not None:
            self._metrics.error(UNKNOWN_MODEL, error_document.mapping_of(response.error).code)
        self._metrics.request(UNKNOWN_MODEL, 0, protocol, response.status)

    def _count_failure(self, head: Head, response: Response) -> tuple[str, str]:
        """Count a request that failed; return its model (of the closed set) and error code."""
        model = head.target.model if head.target.model in self._routes().models else UNKNOWN_MODEL
        if response.error is None:
            return model, ""
        if isinstance(response.error, CallerGone):
            self._metrics.cancelled += 1
        code = error_document.mapping_of(response.error).code
        self._metrics.error(model, code)
        return model, code


# --- protocols ------------------------------------------------------------------------------------------------------------


def _decode_json(call: Call, signature: Signature) -> Decoded:
    assert isinstance(call, Exchange)
    return decode_v1(signature, call.body, max_instances=call.max_instances)


def _decode_bytes(call: Call, signature: Signature) -> Decoded:
    assert isinstance(call, Exchange)
    return v1.decode(signature, call.head.content_type, call.body, call.max_instances)


def _decode_v2(call: Call, signature: Signature) -> Decoded:
    assert isinstance(call, Exchange)
    return decode_v2(call, signature, v2.parse(call.body, call.head.headers.get(b"inference-header-content-length")))


def decode_v2(call: Exchange, signature: Signature, request: v2.InferRequest) -> Decoded:
    """Decode a V2 request, whatever it came in; a deadline in it shortens the call's.

    Raises:
        SamegraphError: It cannot be answered as it is.
    """
    call.v2 = request
    v2.check(request, call.served.origin.outputs)
    asked = v2.timeout_s(request)
    if asked is not None:
        call.timeout_s = asked if call.timeout_s is None else min(call.timeout_s, asked)
    priority = v2.priority(request)
    if priority and call.front.limits.priorities:
        call.priority = min(BACKGROUND, priority)
    return v2.decode(signature, request, call.max_instances)


_DECODERS = {"v1": _decode_json, "raw": _decode_bytes, "multipart": _decode_bytes, "v2": _decode_v2, "grpc": _decode_v2}


#: A body in the caller's protocol, or why there is none.
Body: TypeAlias = bytes | v2.Encoded | SamegraphError
_BINARY = b"application/octet-stream"


def _encoded(exchange: Exchange, answer: Answer) -> Body:
    """Write an answer, or say why it cannot be."""
    try:
        return exchange.encode(answer)
    except SamegraphError as error:
        return error
    except Exception as error:
        log.error("encode_failed", exc_info=error, model=answer.origin.model, version=answer.origin.version)
        return Internal()


def _static(answer: Answer) -> Static:
    owner = answer.assignment or answer.origin
    static = owner.prepared
    if static is None:
        static = owner.prepared = _make_static(answer.origin, answer.assignment)
    return static  # type: ignore[no-any-return]


def _make_static(origin: Origin, assignment: Assignment | None) -> Static:
    pairs = [
        (b"content-type", b"application/json"),
        (b"samegraph-model", origin.model.encode()),
        (b"samegraph-model-version", b"%d" % origin.version),
        (b"samegraph-package-digest", origin.digest.encode()),
    ]
    if assignment is not None:
        pairs += [(b"samegraph-%b" % name.encode(), value.encode()) for name, value in assignment.facts().items()]
    raw = _status_line(200) + b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    return Static(tuple(pairs), raw, v1.ending(origin, {} if assignment is None else assignment.facts()))


def _make_advert(most: int, free: int, next_s: int) -> Advert:
    """Return the fields of the IETF's draft on RateLimit header fields, with its quota unit `concurrent-requests`."""
    pairs = (
        (b"ratelimit-policy", b'"inflight";q=%d;qu="concurrent-requests"' % most),
        (b"ratelimit", b'"inflight";r=%d;t=%d' % (free, next_s)),
    )
    return Advert(pairs, b"".join(b"%b: %b\r\n" % pair for pair in pairs))


@lru_cache(maxsize=128)
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


def _timeout_s(headers: dict[bytes, bytes]) -> float | None:
    """Return the caller's deadline in seconds from its header.

    Raises:
        BadDeadline: The header is not a positive number.
    """
    for name, scale in ((b"x-request-timeout-seconds", 1.0), (b"x-deadline-ms", 0.001)):
        if name in headers:
            try:
                seconds = -1.0 if b"_" in headers[name] else float(headers[name]) * scale  # Python alone reads 1_000 as a number
            except ValueError:
                seconds = -1.0
            if not (seconds > 0 and math.isfinite(seconds)):
                raise BadDeadline(f"header {name.decode()} must be a positive number; got {headers[name][:40].decode('latin-1')!r}")
            return seconds
    return None


def _priority(value: bytes) -> int:
    """Return the class a header names.

    Raises:
        BadHeader: It names none.
    """
    found = priority_of(value[:32].decode("latin-1"))
    if found is None:
        given = value[:32].decode("latin-1")
        raise BadHeader(f"header samegraph-priority must be interactive, normal or background; got {given!r}")
    return found


def _key(value: bytes) -> bytes:
    """Return an idempotency key, without the quotes the IETF's draft puts around it.

    Raises:
        BadHeader: It is empty, too long, or not printable ASCII.
    """
    key = value[1:-1] if len(value) >= 2 and value[:1] == value[-1:] == b'"' else value
    if not 1 <= len(key) <= 255 or not all(32 <= byte < 127 for byte in key):
        raise BadHeader("header idempotency-key must be 1 to 255 printable ASCII characters, the same for every attempt of one request")
    return key


def _on_error(head: Head) -> OnError:
    default = v1.default_on_error(v1.protocol_of(head.content_type)) if head.target.protocol == "v1" else "fail"
    for name, value in parse_qsl(head.query.decode("latin-1"), keep_blank_values=True):
        if name == "on_error":
            if value not in ("fail", "partial") or (value == "partial" and head.target.protocol == "v2"):
                raise InputError(f"on_error must be 'fail' or, in V1, 'partial'; got {value[:40]!r}", code="bad_body", field="on_error")
            return "partial" if value == "partial" else "fail"
    return default

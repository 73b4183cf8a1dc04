"""The one place that knows statuses: an error → status, code, headers and the document every protocol answers with.

{"error": text, "code": word, "retryable": bool, "field": name|null, "instance": index|null, "request_id": id}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec
from samegraph_transforms import errors as package_errors
from samegraph_transforms.errors import InputError, SamegraphError

from samegraph_service import errors


@dataclass(frozen=True, slots=True)
class Mapping:
    """What an error class becomes."""

    status: int
    code: str
    retryable: bool


_INTERNAL = Mapping(500, "internal", True)
_BY_CLASS: dict[type[SamegraphError], Mapping] = {
    InputError: Mapping(400, "bad_input", False),  # the code is the error's own
    errors.NoSuchRoute: Mapping(404, "no_such_route", False),
    errors.MethodNotAllowed: Mapping(405, "method_not_allowed", False),
    errors.UnknownModel: Mapping(404, "unknown_model", False),
    errors.UnknownVersion: Mapping(404, "unknown_version", False),
    errors.NoBaseline: Mapping(404, "no_baseline", False),
    errors.NoEvidence: Mapping(404, "no_evidence", False),
    errors.NoFeedbackKey: Mapping(409, "no_feedback_key", False),
    errors.NotReady: Mapping(503, "not_ready", True),
    errors.Overloaded: Mapping(429, "overloaded", True),
    errors.DeadlineUnreachable: Mapping(429, "deadline_unreachable", True),
    errors.Draining: Mapping(503, "draining", True),
    errors.DeadlineExceeded: Mapping(504, "deadline_exceeded", True),
    errors.DeadlineTooShort: Mapping(400, "deadline_too_short", False),
    errors.KeyReused: Mapping(400, "key_reused", False),
    errors.BadDeadline: Mapping(400, "bad_deadline", False),
    errors.BadHeader: Mapping(400, "bad_header", False),
    errors.BadRequest: Mapping(400, "bad_request", False),
    errors.UnsupportedExtension: Mapping(400, "unsupported_extension", False),
    errors.HeadTooLarge: Mapping(431, "head_too_large", False),
    errors.BodyTooLarge: Mapping(413, "body_too_large", False),
    errors.BodyTooSlow: Mapping(408, "body_too_slow", True),
    errors.ExecutionFailed: Mapping(500, "execution_failed", False),
    errors.PoisonInstance: Mapping(422, "poison_instance", False),
    errors.CallerGone: Mapping(499, "caller_gone", False),
    errors.Unauthorized: Mapping(401, "unauthorized", False),
    errors.RoutingProblem: Mapping(400, "bad_routing", False),
    errors.RoutingConflict: Mapping(412, "routing_changed", False),
    errors.RoutingReadOnly: Mapping(409, "routing_read_only", False),
    errors.Internal: _INTERNAL,
    errors.ServiceError: _INTERNAL,
    package_errors.SamegraphError: _INTERNAL,
}
_INPUT_STATUS = {"unsupported_media_type": 415, "too_large": 413, "too_many_pixels": 413, "too_many_instances": 413}


#: HTTP status → gRPC status, by name: this module knows no gRPC.
_GRPC_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    410: "NOT_FOUND",
    412: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",  # not RESOURCE_EXHAUSTED: sending it again would not help
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    431: "INVALID_ARGUMENT",
    499: "CANCELLED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def grpc_status(error: SamegraphError) -> str:
    """Return the name of the gRPC status an error becomes."""
    if isinstance(error, errors.UnsupportedExtension):
        return "UNIMPLEMENTED"
    return _GRPC_STATUS[mapping_of(error).status]


def mapping_of(error: SamegraphError) -> Mapping:
    """Return status, code and retryability of an error, looked up along its class's MRO."""
    if isinstance(error, InputError):
        return Mapping(_INPUT_STATUS.get(error.code, 400), error.code, False)
    for cls in type(error).__mro__:
        if cls in _BY_CLASS:
            return _BY_CLASS[cls]
    return _INTERNAL


def document(error: SamegraphError, request_id: str) -> dict[str, Any]:
    """Return the error document."""
    mapped = mapping_of(error)
    document = {
        "error": _text(error, mapped),
        "code": mapped.code,
        "retryable": mapped.retryable,
        "field": getattr(error, "field", None),
        "instance": getattr(error, "instance", None),
        "request_id": request_id,
        **_facts(error),
    }
    if isinstance(error, errors.RoutingProblem):
        document["problems"] = list(error.problems)
    if isinstance(error, errors.RoutingReadOnly):
        document["file"] = error.text
    return document


def _facts(error: SamegraphError) -> dict[str, Any]:
    """Return the further members of a refusal for load."""
    if not isinstance(error, errors.Refused):
        return {}
    return {"retry_after_ms": math.ceil((error.retry_after_s or 0.0) * 1000), **error.facts}


def instance_document(error: SamegraphError, instance: int) -> dict[str, Any]:
    """Return the entry of a partial answer's `errors` for one failed instance."""
    mapped = mapping_of(error)
    return {
        "instance": instance,
        "code": mapped.code,
        "field": getattr(error, "field", None),
        "error": _text(error, mapped),
        "retryable": mapped.retryable,
    }


def response(error: SamegraphError, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of the answer to a failed request."""
    body = msgspec.json.encode(document(error, request_id))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode("latin-1", "replace")),
    ]
    headers.extend(_hint_headers(error))
    return mapping_of(error).status, headers, body


def _hint_headers(error: SamegraphError) -> list[tuple[bytes, bytes]]:
    """Whole seconds for everyone, milliseconds for clients that know better; rounded up, so that nobody comes back early."""
    headers = []
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers += [(b"retry-after", b"%d" % math.ceil(retry_after_s)), (b"retry-after-ms", b"%d" % math.ceil(retry_after_s * 1000))]
    if isinstance(error, errors.MethodNotAllowed) and error.allowed:
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if isinstance(error, errors.Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, errors.RoutingConflict):
        headers.append((b"etag", b'"%b"' % error.revision.encode()))
    return headers


def _text(error: SamegraphError, mapped: Mapping) -> str:
    # Texts of our own errors are written for callers; anything else that ends as a 500 stays in the log.
    if mapped is _INTERNAL and not isinstance(error, errors.Internal):
        return str(errors.Internal())
    return str(error)

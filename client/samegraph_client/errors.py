"""Every error the client raises, as one tree.

ClientError
├── RawInputInvalid           the raw input cannot be put on the wire (nothing was sent)
├── TransportFailure          an attempt got no answer
│   ├── ConnectionFailed      no connection, or it was lost before the answer
│   │   ├── Unreachable       no connection could be made; nothing was sent
│   │   └── AddressInvalid    the address is none; trying again changes nothing
│   └── AttemptTimedOut       no answer within the attempt's time
├── AnswerNotUnderstood       a 2xx answer that is not in V1's shape
├── DeadlineExceeded          the call's deadline leaves no room for another attempt
├── FeedbackRejected          the server does not take an item of feedback
├── JournalError              a burst's journal cannot be used
│   ├── JournalBusy           another process has it open
│   ├── JournalMismatch       it belongs to other items
│   └── JournalFull           it has reached its limit
├── ExtraMissing              what was asked for needs an optional package
├── VideoUnreadable           a file holds no video that can be decoded
└── ServerError               the server answered with an error document
    ├── InputRejected         400, 413, 415, 422: the raw input or the request is at fault
    ├── NotAuthorized         401, 403
    ├── NotFound              404: no such model, version or label
    ├── Refused               429, 503: overloaded, not ready or draining; worth trying again
    ├── ServerDeadlinePassed  504: the deadline passed while the request was queued
    └── ServerFault           everything else
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from .hints import retry_after_s

T = TypeVar("T")


class ClientError(Exception):
    """Base of every error of this package; `str()` is a sentence fit to show to a person."""

    #: Tries made when the error was raised; 0 when nothing was sent.
    attempts: int = 0


class RawInputInvalid(ClientError, ValueError):
    """Raised when a raw input cannot be put on the wire; nothing was sent."""


class TransportFailure(ClientError):
    """Raised when an attempt got no answer; the HTTP library's exception is its cause."""

    #: Whether it is a sign of too much load, so that less should be sent.
    overload: bool = False


class ConnectionFailed(TransportFailure):
    """Raised when no connection could be made, or it was lost before the answer."""


class Unreachable(ConnectionFailed):
    """Raised when no connection could be made: nobody listens, or the address is wrong. Nothing was sent.

    Attributes:
        waited_s: Seconds a burst waited for the server before it gave up; None when nothing waited for it.
    """

    waited_s: float | None = None


class AddressInvalid(ConnectionFailed):
    """Raised when what was given as the address of a server is none; trying again changes nothing."""


class AttemptTimedOut(TransportFailure):
    """Raised when no answer came within the attempt's time."""

    overload = True


class AnswerNotUnderstood(ClientError):
    """Raised when an answer with a good status is not in V1's shape."""


class DeadlineExceeded(ClientError, TimeoutError):
    """Raised when the call's deadline leaves no room for another attempt.

    Attributes:
        last: What the last attempt failed with; None when no attempt was made.
        wait_s: The wait that did not fit, in seconds; None when the time was simply over.
    """

    def __init__(self, message: str, *, last: ClientError | None, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.last = last
        self.wait_s = wait_s


class FeedbackRejected(ClientError):
    """Raised when the server does not take an item of feedback.

    Attributes:
        reason: The server's machine word, for example `late`.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class JournalError(ClientError):
    """Base of what can be wrong with a burst's journal."""


class JournalBusy(JournalError):
    """Raised when another process has the journal open."""


class JournalMismatch(JournalError):
    """Raised when a journal belongs to another burst, other items, or is no journal."""


class JournalFull(JournalError):
    """Raised when a journal has reached its limit, or the disk has; nothing is sent that could not be noted."""


class ExtraMissing(ClientError, ImportError):
    """Raised when what was asked for needs an optional package; the message says which to install."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package: pip install 'samegraph-client[{extra}]'")
        self.extra = extra


class VideoUnreadable(ClientError):
    """Raised when a file holds no video that can be decoded."""


@dataclass(frozen=True)
class ErrorDocument:
    """What the server says about a failure; members a foreign server leaves out are None."""

    error: str
    code: str | None = None
    retryable: bool | None = None
    field: str | None = None
    instance: int | None = None
    request_id: str | None = None
    spread: bool = False

    @classmethod
    def parse(cls, body: bytes, status: int) -> ErrorDocument:
        """Read an error document, or make one from whatever text the answer holds; never raises."""
        try:
            found = json.loads(body)
        except ValueError:  # not JSON: a proxy's page, say
            found = None
        if not isinstance(found, dict):
            text = body[:300].decode("utf-8", "replace").strip()
            return cls(error=text or f"status {status} without a body")
        return cls(
            error=str(found.get("error") or found.get("detail") or f"status {status}"),
            code=_typed(found.get("code"), str),
            retryable=_typed(found.get("retryable"), bool),
            field=_typed(found.get("field"), str),
            instance=_typed(found.get("instance"), int),
            request_id=_typed(found.get("request_id"), str),
            spread=found.get("spread") is True,
        )


def _typed(value: object, kind: type[T]) -> T | None:
    return value if isinstance(value, kind) else None


class ServerError(ClientError):
    """Raised when the server answered with an error document.

    Attributes:
        status: The HTTP status.
        document: Everything the server said.
        hint_s: Seconds the server asked to wait (`retry-after-ms`, `Retry-After`), or None.
    """

    def __init__(self, status: int, document: ErrorDocument, hint_s: float | None = None) -> None:
        super().__init__(f"{document.error} (status {status})")
        self.status = status
        self.document = document
        self.hint_s = hint_s

    @property
    def error(self) -> str:
        """The server's sentence."""
        return self.document.error

    @property
    def code(self) -> str | None:
        """The server's machine word, for example `missing_field`."""
        return self.document.code

    @property
    def field(self) -> str | None:
        """The raw input field at fault."""
        return self.document.field

    @property
    def instance(self) -> int | None:
        """Zero-based index of the instance at fault."""
        return self.document.instance

    @property
    def request_id(self) -> str | None:
        """The id under which the server logged the request."""
        return self.document.request_id

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later: the server's word, or else what its status usually means."""
        if self.document.retryable is not None:
            return self.document.retryable
        return self.status in _RETRYABLE

    @property
    def cut_off(self) -> bool:
        """Whether something between here and the server gave up on the answer: a 504 that is not a samegraph server's own."""
        return self.status == 504 and self.code is None

    @property
    def hinted_refusal(self) -> bool:
        """Whether this is a refusal that says when to come back; such a one does not count as an attempt."""
        return self.status in (429, 503) and self.hint_s is not None


class InputRejected(ServerError):
    """Raised when the raw input or the request is at fault; sending it again changes nothing."""


class NotAuthorized(ServerError):
    """Raised when the server wants credentials, or others."""


class NotFound(ServerError):
    """Raised when the server has no such model, version or label."""


class Refused(ServerError):
    """Raised when the server is overloaded, not ready or draining, and the retry policy gave up."""


class ServerDeadlinePassed(ServerError):
    """Raised when the deadline passed while the request was queued in the server."""


class ServerFault(ServerError):
    """Raised when the server failed for a reason of its own."""


_RETRYABLE = frozenset({408, 425, 429, 502, 503, 504})
_BY_STATUS: dict[int, type[ServerError]] = {
    400: InputRejected,
    401: NotAuthorized,
    403: NotAuthorized,
    404: NotFound,
    413: InputRejected,
    415: InputRejected,
    422: InputRejected,
    429: Refused,
    503: Refused,
    504: ServerDeadlinePassed,
}


def from_answer(status: int, headers: Mapping[str, str], body: bytes) -> ServerError:
    """Return the error an answer with this status stands for.

    Args:
        status: HTTP status, not 2xx.
        headers: Names in lower case.
        body: The whole body.
    """
    return _BY_STATUS.get(status, ServerFault)(status, ErrorDocument.parse(body, status), retry_after_s(headers))

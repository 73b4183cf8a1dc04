"""Every error the service raises, as one tree under the package library's `SamegraphError`.

    SamegraphError
    ├── InputError, ExecutionError, …     (samegraph_transforms.errors)
    ├── DriftInputError                   counts that cannot be compared
    ├── FeedbackKeyError                  the file of keys for prediction ids cannot be used
    └── ServiceError
        ├── NoSuchRoute                   nothing answers this path
        ├── MethodNotAllowed              the path exists, the method does not
        ├── UnknownModel                  no model of that name is in the repository
        ├── UnknownVersion                the model has no such version or label
        ├── NoBaseline                    the version has nothing its rows could be compared with
        ├── NoEvidence                    nothing was counted of that experiment
        ├── NoFeedbackKey                 feedback is closed: no key signs prediction ids
        ├── NotReady                      the model or version is known but cannot answer now
        ├── Refused                       admission refused: come back after the hint
        │   ├── Overloaded                there is no place
        │   └── DeadlineUnreachable       there is one, but the answer would come after the deadline
        ├── Draining                      the server is shutting down
        ├── DeadlineExceeded              the caller's deadline passed while the request waited
        ├── DeadlineTooShort              no answer could ever meet that deadline
        ├── KeyReused                     the idempotency key belongs to another request
        ├── BadDeadline                   the deadline header is not a positive number
        ├── BadHeader                     the priority or the idempotency key is none
        ├── BadRequest                    the bytes are not HTTP
        ├── UnsupportedExtension          a part of a protocol that this server does not have
        ├── HeadTooLarge                  request line and headers are over the limit
        ├── BodyTooLarge                  the body is over the server's limit
        ├── BodyTooSlow                   the body did not arrive in time
        ├── ExecutionFailed               the model's graph failed on this instance
        ├── PoisonInstance                executions failed on this very instance before
        ├── CallerGone                    the caller hung up or cancelled
        ├── RoutingProblem                routing.yaml is not valid, or names what is not there
        ├── RoutingConflict               routing.yaml was changed by somebody else in between
        ├── RoutingReadOnly               routing.yaml cannot be written here; it has to be applied elsewhere
        ├── Unauthorized                  an admin route needs a token
        └── Internal                      a bug of ours; the log has the traceback, the answer does not

`api/error_document.py` alone knows which status each of them becomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samegraph_transforms.errors import SamegraphError


class DriftInputError(SamegraphError):
    """Raised when counts cannot be compared: they are over other bins, or there are none."""


class FeedbackKeyError(SamegraphError):
    """Raised when the file of keys that sign prediction ids cannot be used."""


class ServiceError(SamegraphError):
    """Base of the service's own errors.

    Attributes:
        retry_after_s: Seconds after which a retry makes sense, or None when the server cannot know.
    """

    retry_after_s: float | None = None


class NoSuchRoute(ServiceError):
    """Raised when nothing answers the path."""


class MethodNotAllowed(ServiceError):
    """Raised when the path exists but not for this method.

    Attributes:
        allowed: The methods that do work.
    """

    def __init__(self, message: str, *, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class UnknownModel(ServiceError):
    """Raised when no model of that name is in the repository."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        have = f"this server has {', '.join(known[:20])}" if known else "the repository is empty"
        super().__init__(f"unknown model {name[:128]!r}; {have}")


class UnknownVersion(ServiceError):
    """Raised when the model has no such version or label."""


class NoBaseline(ServiceError):
    """Raised when a version has no baseline, or none is watched."""


class NoEvidence(ServiceError):
    """Raised when nothing is known of the experiment, or of the arm, that is asked about."""


class NoFeedbackKey(ServiceError):
    """Raised when feedback is sent to a server that signs no prediction ids."""

    def __init__(self) -> None:
        super().__init__(
            "this server takes no feedback: no SAMEGRAPH_FEEDBACK__KEY_FILE is configured, so its prediction ids are not signed; "
            "docs/feedback.md says how to make a key"
        )


class NotReady(ServiceError):
    """Raised when the model or version is known but cannot answer now."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(ServiceError):
    """Raised when admission refuses a request for the work that is there already.

    Attributes:
        reason: Which bound was met, as in the metric `samegraph_refused_total`.
        facts: Further members of the error document.
    """

    def __init__(self, message: str, *, reason: str, retry_after_s: float, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.facts = facts or {}


class Overloaded(Refused):
    """Raised when a request meets a bound of the work that is accepted."""


class DeadlineUnreachable(Refused):
    """Raised when the answer is predicted to come after the caller's deadline, and a later attempt could make it."""


class Draining(ServiceError):
    """Raised when the server is shutting down."""

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__("this server is shutting down; send the request to another replica, or again after the hint")
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ServiceError):
    """Raised when the caller's deadline passed while the request waited."""


class DeadlineTooShort(ServiceError):
    """Raised when one execution takes longer than the caller's whole deadline."""


class KeyReused(ServiceError):
    """Raised when an idempotency key comes again with another request."""


class BadDeadline(ServiceError):
    """Raised when the deadline the caller sent is not a positive number."""


class BadHeader(ServiceError):
    """Raised when a header of ours that the caller sent cannot be understood."""


class BadRequest(ServiceError):
    """Raised when the bytes on a connection are not a valid HTTP request."""


class UnsupportedExtension(ServiceError):
    """Raised when a request needs a part of a protocol that this server does not have, such as shared memory or sequences."""


class HeadTooLarge(ServiceError):
    """Raised when the request line and headers are over the limit."""


class BodyTooLarge(ServiceError):
    """Raised when the body is over the server's limit."""


class BodyTooSlow(ServiceError):
    """Raised when the body did not arrive within the server's limit."""


class ExecutionFailed(ServiceError):
    """Raised when the model's graph failed on this instance alone; its neighbours were answered.

    Attributes:
        instance: Zero-based index of the instance in its request.
    """

    def __init__(self, instance: int | None) -> None:
        super().__init__("the model failed on this instance; the server's log has the reason under this request id")
        self.instance = instance


class PoisonInstance(ServiceError):
    """Raised when an instance comes again on which executions failed twice while the model worked for others; it is not run.

    Attributes:
        instance: Zero-based index of the instance in its request.
    """

    def __init__(self, instance: int, remembered_s: float) -> None:
        super().__init__(
            "the model failed twice on an instance of exactly this content, so it is not run again; change it, or try when "
            f"{remembered_s:g} s have passed since the last failure"
        )
        self.instance = instance


class CallerGone(ServiceError):
    """Raised when the caller hung up before his answer was ready; nobody reads it."""


class Unauthorized(ServiceError):
    """Raised when an admin route is called without its token, or when no token is configured."""


class RoutingProblem(ServiceError):
    """Raised when a routing file is not valid, or names what the repository does not have.

    Attributes:
        problems: One sentence each, beginning with the path in the file.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class RoutingConflict(ServiceError):
    """Raised when the routing file has another revision than the one a change was made from.

    Attributes:
        revision: The revision there is.
    """

    def __init__(self, asked: str, revision: str) -> None:
        if asked:
            text = f"the routing file has revision {revision}, not {asked[:64]!r}, from which the change was made; repeat it from there"
        else:
            text = f"say in the header If-Match which revision the change was made from: there is {revision!r} now, and * is any"
        super().__init__(text)
        self.revision = revision


class RoutingReadOnly(ServiceError):
    """Raised when the routing file cannot be written where the server reads it.

    Attributes:
        text: The file to apply elsewhere.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(
            f"the model repository cannot be written to here ({reason}); put this file there the way the repository is deployed"
        )
        self.text = text


class Internal(ServiceError):
    """Raised in place of an exception nobody expected; the log has the traceback."""

    def __init__(self) -> None:
        super().__init__("an internal error occurred; the server's log has the details under this request id")

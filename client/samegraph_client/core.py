"""The sans-IO core: one generator plays a whole call, and says what to send and how long to wait.

Both faces (`faces.py`) drive it with their own sockets and sleep; nothing here blocks, so nothing is written twice.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

from .encoding import Wire, encode
from .errors import AnswerNotUnderstood, ClientError, DeadlineExceeded, RawInputInvalid, TransportFailure, from_answer
from .policy import RetryPolicy, Tries


@dataclass(frozen=True)
class Request:
    """One HTTP request; the body is bytes, so it can be sent again."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """One whole HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Send:
    """Asks the face to send `request` and hand back an Answer or a TransportFailure within `timeout_s` (None: no limit)."""

    request: Request
    timeout_s: float | None


@dataclass(frozen=True)
class Pause:
    """Asks the face to wait."""

    seconds: float


Exchange = Generator[Send | Pause, Answer | TransportFailure | None, "Prediction"]


@dataclass(frozen=True)
class InstanceError:
    """Why one instance of a partly failed request has no prediction."""

    instance: int
    code: str | None
    field: str | None
    error: str
    retryable: bool


@dataclass(frozen=True)
class Prediction:
    """What the server answered, and what it took to get it.

    Attributes:
        predictions: One entry per instance, in the order sent; None where the instance failed (`on_error="partial"`).
        errors: The instances that failed.
        model: Name of the model that answered; None when the server does not say (the same for the next five).
        version: Its version.
        package_digest: The version's identity: the digest of its package.
        arm: The experiment arm, when it took part in one.
        prediction_id: The id to send outcomes back with.
        request_id: The id under which the server logged the request.
        attempts: Times the request was sent.
        refusals: Refusals with a hint among them.
        waited_s: Seconds spent waiting between attempts.
        elapsed_s: Seconds from the call to the answer.
    """

    predictions: list[object]
    single: bool = field(repr=False)
    errors: tuple[InstanceError, ...] = ()
    model: str | None = None
    version: str | None = None
    package_digest: str | None = None
    arm: str | None = None
    prediction_id: str | None = None
    request_id: str | None = None
    attempts: int = 1
    refusals: int = 0
    waited_s: float = 0.0
    elapsed_s: float = 0.0

    @property
    def value(self) -> object:
        """The prediction itself when one instance was sent; the list of predictions when a list was."""
        return self.predictions[0] if self.single else self.predictions


@dataclass(frozen=True)
class Core:
    """Everything a client knows that is not a socket.

    Attributes:
        base_url: Where the server is, without a trailing slash.
        policy: When and how long to retry.
        headers: Sent with every request.
        wire: `auto` may send bytes as they are; `v1` sends V1 JSON only, for servers that know nothing else.
        clock: Monotonic seconds.
    """

    base_url: str
    policy: RetryPolicy
    headers: Mapping[str, str]
    wire: Wire
    clock: Callable[[], float]

    def predict(
        self,
        model: str,
        raw: object,
        *,
        version: int | str | None = None,
        label: str | None = None,
        on_error: Literal["fail", "partial"] = "fail",
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> Exchange:
        """Play one prediction: yields what to do next, returns the Prediction, raises a ClientError.

        The arguments are those of `Client.predict`.
        """
        policy = self.policy if deadline_s is None else _with_deadline(self.policy, deadline_s)
        body = encode(raw, self.wire)
        query = "?on_error=partial" if on_error == "partial" else ""
        url = f"{self.base_url}{predict_path(model, version, label)}{query}"
        fixed = {
            "accept": "application/json",
            "content-type": body.media_type,
            "idempotency-key": f'"{uuid.uuid4().hex}"',  # one per call, the same on every attempt: a structured-field string
            **{name.lower(): value for name, value in {**self.headers, **(headers or {})}.items()},
        }
        tries = Tries(policy, started=self.clock())
        answer = yield from self._attempts(Request("POST", url, fixed, body.content), tries)
        return self._prediction(answer, body.single, tries)

    def _attempts(self, request: Request, tries: Tries) -> Generator[Send | Pause, Answer | TransportFailure | None, Answer]:
        """Send until an answer is good; raise what made it give up."""
        last: ClientError | None = None
        while True:
            answer = yield self._next_send(request, tries, last)
            if isinstance(answer, Answer) and 200 <= answer.status < 300:
                return answer
            if answer is None:
                raise TypeError("a Send must be answered with an Answer or a TransportFailure")
            last = from_answer(answer.status, answer.headers, answer.body) if isinstance(answer, Answer) else answer
            last.attempts = tries.attempts
            wait_s = tries.after(last, self.clock())
            if wait_s is None:
                raise last
            self._refuse_late(tries, last, wait_s)
            yield Pause(wait_s)
            tries.waited_s += wait_s

    def _next_send(self, request: Request, tries: Tries, last: ClientError | None) -> Send:
        """Return the next attempt with the time it has, which the server is told too."""
        remaining = tries.remaining_s(self.clock())
        if remaining is not None and remaining <= 0:
            raise _too_late(tries, last, None)
        limits = [limit for limit in (remaining, tries.policy.attempt_timeout_s) if limit is not None]
        timeout_s = min(limits) if limits else None
        headers = {**request.headers, "x-attempt": str(tries.attempts)}
        if timeout_s is not None:
            headers["x-request-timeout-seconds"] = f"{timeout_s:.3f}"
        tries.attempts += 1
        return Send(Request(request.method, request.url, headers, request.body), timeout_s)

    def _refuse_late(self, tries: Tries, last: ClientError, wait_s: float) -> None:
        """Fail now, with what is known, rather than sleep towards a deadline that cannot be met."""
        remaining = tries.remaining_s(self.clock())
        if remaining is not None and wait_s >= remaining:
            raise _too_late(tries, last, wait_s) from last

    def _prediction(self, answer: Answer, single: bool, tries: Tries) -> Prediction:
        document = _document(answer)
        predictions = document["predictions"]
        headers = answer.headers
        return Prediction(
            predictions=predictions,
            single=single,
            errors=tuple(_instance_error(item) for item in document.get("errors") or ()),
            model=headers.get("samegraph-model"),
            version=headers.get("samegraph-model-version"),
            package_digest=headers.get("samegraph-package-digest"),
            arm=headers.get("samegraph-arm"),
            prediction_id=headers.get("samegraph-prediction-id"),
            request_id=headers.get("x-request-id"),
            attempts=tries.attempts,
            refusals=tries.refusals,
            waited_s=tries.waited_s,
            elapsed_s=self.clock() - tries.started,
        )


def predict_path(model: str, version: int | str | None = None, label: str | None = None) -> str:
    """Return V1's path to predict with a model, percent-encoded.

    Raises:
        RawInputInvalid: Both a version and a label are given.
    """
    if version is not None and label is not None:
        raise RawInputInvalid(f"give a version ({version}) or a label ({label!r}), not both")
    pinned = f"/versions/{quote(str(version), safe='')}" if version is not None else f"/labels/{quote(label, safe='')}" if label else ""
    return f"/v1/models/{quote(model, safe='')}{pinned}:predict"


def _with_deadline(policy: RetryPolicy, deadline_s: float) -> RetryPolicy:
    return RetryPolicy(policy.stop, policy.wait, policy.hint_wait, deadline_s, policy.attempt_timeout_s)


def _too_late(tries: Tries, last: ClientError | None, wait_s: float | None) -> DeadlineExceeded:
    why = f"the next attempt would have to wait {wait_s:.3g} s" if wait_s is not None else "the time is over"
    failed = f"; the last one failed: {last}" if last else ""
    error = DeadlineExceeded(
        f"no answer within {tries.policy.deadline_s:g} s: {why} after {tries.attempts} attempts{failed}", last=last, wait_s=wait_s
    )
    error.attempts = tries.attempts
    return error


def _document(answer: Answer) -> dict[str, list[object]]:
    """Return the answer's document once it is known to hold a list of predictions."""
    try:
        document = json.loads(answer.body)
    except ValueError as error:
        raise AnswerNotUnderstood(f"the answer (status {answer.status}) is not JSON: {answer.body[:80]!r}") from error
    if not isinstance(document, dict) or not isinstance(document.get("predictions"), list):
        shown = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise AnswerNotUnderstood(f"the answer has no list called `predictions`; it has {shown}")
    return document


def _instance_error(item: object) -> InstanceError:
    if not isinstance(item, dict) or not isinstance(item.get("instance"), int):
        raise AnswerNotUnderstood(f"an entry of `errors` does not name its instance: {item!r}")
    return InstanceError(item["instance"], item.get("code"), item.get("field"), str(item.get("error", "")), item.get("retryable") is True)

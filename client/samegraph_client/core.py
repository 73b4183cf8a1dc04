"""What a call says to the server, sans-IO: raw input → requests, answers → Prediction, and which protocol the server speaks.

When something is sent, and sent again, is `dispatch.py`'s business; both faces put their sockets under the two.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

from . import v2
from .dispatch import INTERACTIVE, Answer, Call, Exchange, Request
from .encoding import Body, Wire, encode
from .errors import AnswerNotUnderstood, ClientError, FeedbackRejected, RawInputInvalid, ServerError
from .policy import RetryPolicy, Tries


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
        experiment: The experiment, when it took part in one.
        attempts: Times the request was sent.
        refusals: Refusals with a hint among them.
        waited_s: Seconds spent waiting between attempts.
        queued_s: Seconds spent waiting for the gate before the first attempt.
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
    queued_s: float = 0.0
    experiment: str | None = None

    @property
    def value(self) -> object:
        """The prediction itself when one instance was sent; the list of predictions when a list was."""
        return self.predictions[0] if self.single else self.predictions


@dataclass(frozen=True)
class Options:
    """How a model is to be asked; the arguments are those of `Client.predict`.

    Attributes:
        version: Pins a version.
        label: Pins a label.
        on_error: What one bad instance costs.
        headers: Sent with the call.
        unit: Who it is about: decides the arm of an experiment.
    """

    version: int | str | None = None
    label: str | None = None
    on_error: Literal["fail", "partial"] = "fail"
    headers: Mapping[str, str] = field(default_factory=dict)
    unit: str | None = None

    def __post_init__(self) -> None:
        """Refuse two pins at once."""
        if self.version is not None and self.label is not None:
            raise RawInputInvalid(f"give a version ({self.version}) or a label ({self.label!r}), not both")


class Core:
    """Everything a client knows about its server that is not a socket and not load.

    Args:
        base_url: Where the server is, without a trailing slash.
        policy: When and how long to retry.
        headers: Sent with every request.
        wire: `auto` finds out what the server speaks; `v1` and `v2` speak that and nothing else.
        unit_header: The header that names the unit of an experiment.
        clock: Monotonic seconds.
    """

    def __init__(
        self, base_url: str, policy: RetryPolicy, headers: Mapping[str, str], wire: Wire, unit_header: str, clock: Callable[[], float]
    ) -> None:
        if wire not in ("auto", "v1", "v2"):
            raise ValueError(f"wire must be auto, v1 or v2, got {wire!r}")
        self.base_url = base_url.rstrip("/")
        self.policy = policy
        self.clock = clock
        self._headers = dict(headers)
        self._wire: Wire = wire
        self._unit_header = unit_header.lower()
        self._ours = False
        self._signatures: dict[tuple[str, str | None], v2.Signature | None] = {}

    def limit_asked(self) -> Request:
        """Return the request whose answer tells the limit on requests in flight, and that somebody is there.

        A server of another maker answers without a limit.
        """
        return Request("GET", f"{self.base_url}/v2/health/ready", self._fixed(Options()), b"")

    def predict(
        self,
        model: str,
        raw: object,
        options: Options,
        *,
        key: str | None = None,
        deadline_s: float | None = None,
        priority: int = INTERACTIVE,
        patient: bool = False,
    ) -> Call:
        """Return the call that predicts; its result is a Prediction."""
        return self._call(
            lambda tries: self._predict(model, raw, options, key or uuid.uuid4().hex, tries),
            self.policy.deadline_s if deadline_s is None else deadline_s,
            priority,
            patient,
        )

    def feedback(self, model: str, document: Mapping[str, object], deadline_s: float | None) -> Call:
        """Return the call that sends feedback; its result has the server's answer as its only prediction."""
        body = Body(json.dumps(document, allow_nan=False).encode(), "application/json", single=True)
        path = f"/v1/models/{quote(model, safe='')}:feedback"
        return self._call(
            lambda tries: self._send_feedback(path, body, tries),
            self.policy.deadline_s if deadline_s is None else deadline_s,
            INTERACTIVE,
            False,
        )

    def _call(self, speak: Callable[[Tries], Exchange], deadline_s: float | None, priority: int, patient: bool) -> Call:
        if deadline_s is not None and not deadline_s > 0:
            raise ValueError(f"deadline_s must be > 0 seconds or None, got {deadline_s}")
        now = self.clock()
        tries = Tries(self.policy, started=now)
        deadline = float("inf") if deadline_s is None else now + deadline_s
        return Call(speak(tries), tries, priority=priority, patient=patient, deadline=deadline)

    def _predict(self, model: str, raw: object, options: Options, key: str, tries: Tries) -> Exchange:
        fixed = {"idempotency-key": f'"{key}"', **self._fixed(options)}
        signature = yield from self._signature_wanted(model, raw, options)
        spoken = self._wire  # another call may find out meanwhile that this was the wrong one
        if signature is None:
            body, url = encode(raw, "v1" if self._wire == "v1" else "auto"), self._v1_url(model, options)
        else:
            body, url = v2.encode(raw, signature), self._v2_url(model, options)
        reply = yield _post(url, body, fixed)
        if spoken == "auto" and not self._ours and signature is None and _not_our_protocol(reply):
            signature, body, url = yield from self._other_protocol(model, raw, options, body, reply)
            reply = yield _post(url, body, fixed)
        answer = _good(reply)
        self._ours = self._ours or "samegraph-model" in answer.headers
        document = _document(answer)
        predictions = _v1_predictions(document) if signature is None else v2.predictions(document)
        return self._prediction(answer, document, predictions, body.single, tries)

    def _send_feedback(self, path: str, body: Body, tries: Tries) -> Exchange:
        answer = _good((yield _post(self.base_url + path, body, self._fixed(Options()))))
        return self._prediction(answer, {}, [_json(answer) if answer.body else None], True, tries)

    def _fixed(self, options: Options) -> dict[str, str]:
        named = {} if options.unit is None else {self._unit_header: options.unit}
        own = {name.lower(): value for name, value in {**self._headers, **options.headers}.items()}
        return {"accept": "application/json", **named, **own}

    def _v1_url(self, model: str, options: Options) -> str:
        query = "?on_error=partial" if options.on_error == "partial" else ""
        return f"{self.base_url}{predict_path(model, options.version, options.label)}{query}"

    def _v2_url(self, model: str, options: Options, suffix: str = "/infer") -> str:
        pinned = f"/versions/{quote(str(options.version), safe='')}" if options.version is not None else ""
        return f"{self.base_url}/v2/models/{quote(model, safe='')}{pinned}{suffix}"

    def _signature_wanted(self, model: str, raw: object, options: Options) -> Generator[Request, Answer | ClientError, v2.Signature | None]:
        """Return the model's V2 signature if V2 is the way to go, asking the server for it once."""
        if self._wire == "v2":
            if options.label is not None or options.on_error == "partial":
                raise RawInputInvalid("V2 knows neither labels nor on_error=partial; leave them out, or let the client choose the protocol")
            return (yield from self._signature(model, options, must=True))
        if self._wire == "v1" or options.label is not None or options.on_error == "partial" or not v2.holds_arrays(raw):
            return None
        signature = yield from self._signature(model, options, must=False)
        return signature if signature is not None and signature.binary and _has_tensors(signature) else None

    def _signature(self, model: str, options: Options, *, must: bool) -> Generator[Request, Answer | ClientError, v2.Signature | None]:
        place = (model, None if options.version is None else str(options.version))
        if place not in self._signatures:
            fixed = self._fixed(options)
            described = yield Request("GET", self._v2_url(model, options, ""), fixed, b"")
            if isinstance(described, ClientError):
                if must or not isinstance(described, ServerError):
                    raise described
                self._signatures[place] = None
                return None
            server = yield Request("GET", f"{self.base_url}/v2", fixed, b"")
            self._signatures[place] = v2.Signature.parse(_json(server) if isinstance(server, Answer) else None, _json(described))
        return self._signatures[place]

    def _other_protocol(
        self, model: str, raw: object, options: Options, body: Body, reply: Answer | ClientError
    ) -> Generator[Request, Answer | ClientError, tuple[v2.Signature | None, Body, str]]:
        """Return the request in the protocol this foreign server does speak; remember which that is.

        Raises:
            ServerError: It speaks none of them (the first refusal is the one worth showing).
        """
        has_path = isinstance(reply, ServerError) and reply.status not in (404, 405)
        if self._wire != "v2" and has_path and body.media_type != "application/json":
            self._wire = "v1"  # it has the path, but takes no raw bodies
            return None, encode(raw, "v1"), self._v1_url(model, options)
        signature = None
        if options.label is None and options.on_error == "fail":
            signature = yield from self._signature(model, options, must=False)
        if signature is None:
            raise _bad(reply)
        self._wire = "v2"
        return signature, v2.encode(raw, signature), self._v2_url(model, options)

    def _prediction(
        self, answer: Answer, document: Mapping[str, object], predictions: list[object], single: bool, tries: Tries
    ) -> Prediction:
        headers = answer.headers
        errors = document.get("errors")
        return Prediction(
            predictions=predictions,
            single=single,
            errors=tuple(_instance_error(item) for item in errors) if isinstance(errors, list) else (),
            model=headers.get("samegraph-model"),
            version=headers.get("samegraph-model-version"),
            package_digest=headers.get("samegraph-package-digest"),
            arm=headers.get("samegraph-arm"),
            experiment=headers.get("samegraph-experiment"),
            prediction_id=headers.get("samegraph-prediction-id"),
            request_id=headers.get("x-request-id"),
            attempts=tries.attempts,
            refusals=tries.refusals,
            waited_s=tries.waited_s,
            queued_s=tries.queued_s,
            elapsed_s=self.clock() - tries.started,
        )


def predict_path(model: str, version: int | str | None = None, label: str | None = None) -> str:
    """Return V1's path to predict with a model, percent-encoded."""
    pinned = f"/versions/{quote(str(version), safe='')}" if version is not None else f"/labels/{quote(label, safe='')}" if label else ""
    return f"/v1/models/{quote(model, safe='')}{pinned}:predict"


def feedback(
    prediction_id: str, values: Mapping[str, bool | float] | None, label: str | float | bool | None, feedback_id: str | None
) -> dict[str, object]:
    """Return the document of one item of feedback."""
    given = {"prediction_id": prediction_id, "values": None if values is None else dict(values), "label": label, "feedback_id": feedback_id}
    return {name: value for name, value in given.items() if value is not None}


def taken(answer: object) -> Mapping[str, object]:
    """Return what the server did with one item of feedback.

    Raises:
        FeedbackRejected: It did not take it.
        AnswerNotUnderstood: The answer is not about one item.
    """
    results = answer.get("results", [answer]) if isinstance(answer, dict) else None
    if not isinstance(results, list) or len(results) != 1 or not isinstance(results[0], dict):
        raise AnswerNotUnderstood(f"the answer does not say what became of the feedback: {answer!r:.200}")
    result: dict[str, object] = results[0]
    if result.get("status") == "rejected":
        raise FeedbackRejected(str(result.get("error") or result.get("reason")), str(result.get("reason")))
    return result


def _post(url: str, body: Body, headers: Mapping[str, str]) -> Request:
    return Request("POST", url, {"content-type": body.media_type, **body.headers, **headers}, body.content)


def _has_tensors(signature: v2.Signature) -> bool:
    """Whether arrays can have a place in the signature; it is V1's business to refuse those that have none."""
    return any(field.datatype != "BYTES" for field in signature.inputs)


def _not_our_protocol(reply: Answer | ClientError) -> bool:
    """Whether a refusal may come from a server that does not know the protocol; a samegraph server gives its refusals a code."""
    return isinstance(reply, ServerError) and reply.status in (400, 404, 405, 415, 422) and reply.code is None


def _good(reply: Answer | ClientError) -> Answer:
    if isinstance(reply, ClientError):
        raise reply
    return reply


def _bad(reply: Answer | ClientError) -> ClientError:
    assert isinstance(reply, ClientError)
    return reply


def _json(answer: Answer) -> object:
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise AnswerNotUnderstood(f"the answer (status {answer.status}) is not JSON: {answer.body[:80]!r}") from error


def _document(answer: Answer) -> dict[str, object]:
    document = _json(answer)
    if not isinstance(document, dict):
        raise AnswerNotUnderstood(f"the answer has no list called `predictions`; it has {type(document).__name__}")
    return document


def _v1_predictions(document: Mapping[str, object]) -> list[object]:
    predictions = document.get("predictions")
    if not isinstance(predictions, list):
        raise AnswerNotUnderstood(f"the answer has no list called `predictions`; it has {sorted(document)}")
    return predictions


def _instance_error(item: object) -> InstanceError:
    if not isinstance(item, dict) or not isinstance(item.get("instance"), int):
        raise AnswerNotUnderstood(f"an entry of `errors` does not name its instance: {item!r}")
    return InstanceError(item["instance"], item.get("code"), item.get("field"), str(item.get("error", "")), item.get("retryable") is True)

"""`Call` and `Answer`: the values that travel between a protocol adapter and the one prediction path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec
from samegraph_transforms.errors import InputError, SamegraphError
from samegraph_transforms.manifest import Output
from samegraph_transforms.signature import Row, Signature
from samegraph_transforms.wire import Decoded, Form

from .admission import Caller, Reservation
from .batching import Arrays, Part, Work, joined
from .errors import CallerGone
from .experiments.assignment import Assignment
from .turns import NORMAL

OnError = Literal["fail", "partial"]


class Call(Work):
    """One request on its way: what an adapter understood of it, then its rows, then what they gave.

    An adapter makes it from the request's head and hands it to `Predictor.submit` once the body is there. It is one object from the head
    to the answer, because at tens of thousands of requests a second every further one shows. Adapters may subclass it for what is theirs.

    Attributes:
        decode: Turns the body into checked rows for the chosen version's signature; raises InputError.
        body: The request's body; let go of once it is decoded.
        request_id: Names the request in the answer and the logs.
        assignment: What an experiment decided about it, or None.
        undecided: The experiment (a `routing.Experiment`) that decides once the first row is known, or None.
        timeout_s: The caller's deadline in seconds from `received`, or None for the server's.
        received: Loop time when the request's headers were read.
        on_error: Whether one bad instance fails the request (`fail`) or only itself (`partial`).
        heavy: Decoding takes long enough to be done on a host thread.
        on_done: Called exactly once with the call and its outcome.
        reservation: Its place in the server; `submit` sees that it is released.
        served: What answers it (a `predict.Served`), once it was routed.
        form: Rows or columns, as the caller sent them.
        rows: What waits for the item stage.
        shadows: The versions (`routing.ShadowRoute`) that may get a copy once it is answered.
        copied: Its decoded rows, for those; only set when there are any.
        trace: Where its stages are noted (a `tracing.Trace`), when it is traced.
        cancelled: The caller is gone.
    """

    __slots__ = (
        "assignment",
        "body",
        "body_bytes",
        "caller",
        "cancelled",
        "copied",
        "decode",
        "form",
        "heavy",
        "on_done",
        "on_error",
        "priority",
        "received",
        "request_id",
        "reservation",
        "rows",
        "running",
        "served",
        "shadows",
        "timeout_s",
        "trace",
        "undecided",
    )

    def __init__(  # not the base's: how many rows there are is known when they are decoded
        self, decode: Callable[[Call, Signature], Decoded], request_id: str, received: float, on_done: OnDone
    ) -> None:
        self.decode = decode
        self.request_id = request_id
        self.received = received
        self.on_done = on_done
        self.body: bytes = b""
        self.body_bytes = 0
        self.timeout_s: float | None = None
        self.on_error: OnError = "fail"
        self.heavy = False
        self.reservation: Reservation | None = None
        self.served: Any = None
        self.assignment: Assignment | None = None
        self.undecided: Any = None
        self.shadows: Sequence[Any] = ()
        self.copied: Sequence[Any]
        self.form: Form = "rows"
        self.rows: Sequence[Row | InputError] = ()
        self.caller: Caller | None = None
        self.priority = NORMAL
        self.trace: Any = None
        self.cancelled = False
        self.running = False

    def cancel(self) -> None:
        """The caller is gone: waiting rows leave their queue, running ones are ignored when they come back."""
        self.cancelled = True
        if self.running:
            self.fail(CallerGone("the caller hung up"))

    def release(self) -> None:
        """Give its place in the server back; a second call does nothing."""
        if self.reservation is not None:
            self.reservation.release()
            self.reservation = None


class Origin:
    """Who gives an answer: the same object for every answer of a version.

    Attributes:
        model: Model name.
        version: Version number.
        digest: Its package digest.
        outputs: Its manifest's outputs.
        prepared: What an adapter has made of it once and uses for every answer.
    """

    __slots__ = ("digest", "model", "outputs", "prepared", "version")

    def __init__(self, model: str, version: int, digest: str, outputs: Sequence[Output]) -> None:
        self.model = model
        self.version = version
        self.digest = digest
        self.outputs = tuple(outputs)
        self.prepared: Any = None


class Answer(msgspec.Struct, eq=False):
    """The outputs for one request. A record of msgspec's, as is what every request makes: they take a third of a class's time to make.

    Attributes:
        origin: Who gave it.
        request_id: From the call.
        prediction_id: Names the prediction to whoever sends feedback; the request id unless somebody signs a better one.
        parts: The executions that answered its rows, in request order.
        n: Instances in the request.
        errors: Instance index → what went wrong (only with `on_error=partial`); those have no row in `arrays`.
        form: Rows or columns, as the caller sent them.
        assignment: What an experiment decided about the request, or None.
    """

    origin: Origin
    request_id: str
    prediction_id: str
    parts: Sequence[Part]
    n: int
    errors: dict[int, SamegraphError]
    form: Form = "rows"
    assignment: Assignment | None = None

    @property
    def arrays(self) -> Arrays:
        """Per output, [n_answered, *shape], rows in request order."""
        return joined(self.parts)


@dataclass(slots=True)
class Failure:
    """A request that has no answer, and why."""

    error: SamegraphError
    model: str = ""
    version: int | None = None


Outcome: TypeAlias = Answer | Failure
OnDone: TypeAlias = Callable[[Any, Outcome], None]

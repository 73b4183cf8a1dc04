"""`Call` and `Answer`: the values that travel between a protocol adapter and the one prediction path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
from samegraph_transforms.errors import SamegraphError
from samegraph_transforms.manifest import Output
from samegraph_transforms.signature import Signature
from samegraph_transforms.wire import Decoded, Form

OnError = Literal["fail", "partial"]


@dataclass(slots=True)
class Call:
    """One request, as a protocol adapter understood it from path and headers; its body is decoded once a version is chosen.

    Attributes:
        model: Model name from the path.
        version: Version from the path, or None for the default.
        label: Label from the path, or None.
        decode: Turns the body into checked rows for the chosen version's signature; raises InputError.
        request_id: Names the request in the answer and the logs.
        body_bytes: Size of the body, for accounting.
        timeout_s: The caller's deadline in seconds from `received`, or None for the server's.
        received: Loop time when the request's headers were read.
        on_error: Whether one bad instance fails the request (`fail`) or only itself (`partial`).
        protocol: For metrics: `v1`, `raw`, `multipart` or `v2`.
        heavy: Decoding takes long enough to be done on a host thread.
    """

    model: str
    version: int | None
    label: str | None
    decode: Callable[[Signature], Decoded]
    request_id: str
    body_bytes: int
    timeout_s: float | None
    received: float
    on_error: OnError = "fail"
    protocol: str = "v1"
    heavy: bool = False


@dataclass(slots=True)
class Answer:
    """The outputs for one request.

    Attributes:
        model: Model name.
        version: The version that answered.
        digest: Its package digest.
        request_id: From the call.
        signature_outputs: Manifest outputs, in the order of `arrays`.
        arrays: Per output, [n_answered, *shape], rows in request order.
        n: Instances in the request.
        errors: Instance index → what went wrong (only with `on_error=partial`); those have no row in `arrays`.
        form: Rows or columns, as the caller sent them.
    """

    model: str
    version: int
    digest: str
    request_id: str
    signature_outputs: Sequence[Output]
    arrays: Sequence[np.ndarray]
    n: int
    errors: dict[int, SamegraphError] = field(default_factory=dict)
    form: Form = "rows"


@dataclass(slots=True)
class Failure:
    """A request that has no answer, and why."""

    error: SamegraphError
    model: str = ""
    version: int | None = None


Outcome: TypeAlias = Answer | Failure
OnDone: TypeAlias = Callable[[Outcome], None]


class Timer(Protocol):
    """What `Loop.call_at` returns."""

    def cancel(self) -> None:
        """Make the timer not fire."""


class Loop(Protocol):
    """The few calls the sans-IO core makes on an event loop (asyncio's has them; tests bring their own)."""

    def time(self) -> float:
        """Return monotonic seconds."""
        ...

    def call_soon(self, callback: Callable[..., object], *args: object) -> object:
        """Run the callback in the next turn of the loop; only from the loop's own thread."""
        ...

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> object:
        """Run the callback in the loop's thread; from any thread."""
        ...

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> Timer:
        """Run the callback at loop time `when`."""
        ...

"""The whole core on a clock of its own: a real ONNX model that takes a declared time, a gate, and callers who come and go.

Nothing waits: the loop jumps from one event to the next, so a minute of overload takes as long as its Python takes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import package_builders as build
from fakes import FakeLoop
from samegraph_service.admission import Asked, Gate, Limits
from samegraph_service.batching import BatchPolicy
from samegraph_service.call import Answer, Call, Outcome
from samegraph_service.device import Device, Lane
from samegraph_service.errors import DeadlineExceeded, DeadlineTooShort, Refused
from samegraph_service.metrics import VersionMetrics
from samegraph_service.predict import Deadlines, Predictor, Served, served_version
from samegraph_service.routing import RouteTable
from samegraph_service.simulated import Pace, paced_cost
from samegraph_service.turns import NORMAL
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.wire import decode_v1

#: A batch of so many rows takes so many seconds.
BATCH, BATCH_S = 32, 0.2
BODY = build.sample("x", [build.ROWS[0]]).body


class PacedPool(Executor):
    """Run slots on the bench's clock: an execution runs at once and is over when its time has passed.

    Args:
        loop: The bench's.
        seconds: Returns how long an execution of so many rows takes.
    """

    def __init__(self, loop: BenchLoop, seconds: Callable[[int], float]) -> None:
        self._loop = loop
        self._seconds = seconds

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        rows = len(args[3]) if len(args) > 3 else 1
        self._loop.call_at(self._loop.now + self._seconds(rows), fn, *args)
        return Future()


class BenchLoop(FakeLoop):
    """A loop that jumps to its next event."""

    def play(self, until: float) -> None:
        """Let everything happen that is due before `until`."""
        while True:
            self.run()
            following = min((t[0] for t in self._timers[:1]), default=until)
            if following >= until:
                self.now = until
                self.run()
                return
            self.now = max(self.now, following)


class PacedRunner:
    """A package's own runtime, and cost models that see the declared time instead of the machine's."""

    def __init__(self, runtime: PackageRuntime) -> None:
        self._runtime = runtime
        self.shapes = runtime.shapes
        self.collate = runtime.collate
        self.run = runtime.run


class BenchLane(Lane):
    """A lane that does not learn from this machine's clock what passes around an execution: on the bench nothing does."""

    @property
    def around_s(self) -> float:
        return 0.0

    @around_s.setter
    def around_s(self, _: float) -> None:
        """Forget it."""


@dataclass
class Told:
    """What one attempt came to: an answer, or an error and when the caller heard of it."""

    at: float
    answer: bool
    error: Exception | None = None


@dataclass
class Bench:
    """One server on the bench.

    Attributes:
        runtime: The real model.
        limits: What it may accept.
        slots: Run slots.
        spread: Executions take up to that share more or less than declared.
    """

    runtime: PackageRuntime
    limits: Limits = field(default_factory=lambda: Limits(96, 100_000, 1 << 30))
    slots: int = 1
    max_hint_s: float = 86400.0
    default_s: float = 30.0
    noise: Callable[[], float] = lambda: 1.0

    def __post_init__(self) -> None:
        self.loop = BenchLoop()
        pace = Pace(BATCH_S / 2, BATCH_S / 2 / BATCH)
        self.errors: list[float] = []
        self.device = Device(self.loop, self.slots, 0.0, PacedPool(self.loop, lambda rows: pace.seconds(rows) * self.noise()))
        self.metrics = VersionMetrics("plants", 1)
        self.cost = paced_cost(pace, BATCH)
        self.cost.observe = self._observe  # type: ignore[method-assign]
        self._pace = pace
        self.lane = BenchLane("plants/1", PacedRunner(self.runtime), BatchPolicy(BATCH), self.cost, self.metrics)
        self.device.add(self.lane)
        self.served = served_version(self.runtime, self.lane, self.metrics)
        self.gate = Gate(
            self.limits,
            self.device,
            self.loop.time,
            default_s=self.default_s,
            max_hint_s=self.max_hint_s,
            on_hint_error=self.errors.append,
        )
        table: RouteTable[Served] = RouteTable()
        self.predictor = Predictor(
            self.loop, self.device, PacedPool(self.loop, lambda _: 0.0), Deadlines(self.default_s, 300.0), lambda: table
        )

    def _observe(self, n: int, seconds: float) -> None:
        """What the executions of this machine take says nothing here."""

    def attempt(
        self,
        heard: Callable[[Told], None],
        *,
        caller: str = "a",
        key: str | None = None,
        timeout_s: float | None = None,
        priority: int = NORMAL,
        body: bytes = BODY,
    ) -> Call | None:
        """Send one request; `heard` is called exactly once. Returns the call, if it was let in."""

        def done(call: Call, outcome: Outcome) -> None:
            heard(Told(self.loop.now, isinstance(outcome, Answer), None if isinstance(outcome, Answer) else outcome.error))

        call = Call(lambda call, signature: decode_v1(signature, call.body), "r", self.loop.now, done)
        call.body, call.body_bytes, call.timeout_s, call.priority = body, len(body), timeout_s, priority
        call.caller = self.gate.callers.of(caller)
        asked = Asked(self.lane, timeout_s, priority, None if key is None else (caller, key))
        try:
            call.reservation = self.gate.reserve(len(body), call.caller, asked)
        except Refused as error:
            heard(Told(self.loop.now, False, error))
            return None
        self.predictor.submit(self.served, call)
        return call


@dataclass
class Job:
    """A caller with one thing to be done, who comes back when he is told to.

    Attributes:
        begun: When it first asked.
        done: When it had its answer; None as long as it has none.
        lost: Why it never will.
    """

    bench: Bench
    caller: str
    key: str | None
    deadline_s: float | None = None
    obeys: Callable[[float], float] = lambda hint_s: hint_s
    gives_up: bool = True
    priority: int = NORMAL
    begun: float = 0.0
    done: float | None = None
    lost: str = ""
    attempts: int = 0
    hints: int = 0
    unhinted: int = 0

    def start(self) -> None:
        """Ask for the first time."""
        self.begun = self.bench.loop.now
        self._ask()

    def _left_s(self) -> float | None:
        return None if self.deadline_s is None else self.begun + self.deadline_s - self.bench.loop.now

    def _ask(self) -> None:
        self.attempts += 1
        self.call = self.bench.attempt(self._heard, caller=self.caller, key=self.key, timeout_s=self._left_s(), priority=self.priority)

    def _heard(self, told: Told) -> None:
        if told.answer:
            self.done = told.at
        elif isinstance(told.error, Refused):
            hint_s = told.error.retry_after_s
            if hint_s is None:
                self.unhinted += 1
                return
            self.hints += 1
            wait_s, left_s = self.obeys(hint_s), self._left_s()
            if left_s is not None and wait_s >= left_s:
                self.lost = "gave up"
                return
            self.bench.loop.call_at(self.bench.loop.now + wait_s, self._ask)
        else:
            kinds: dict[type[object], str] = {DeadlineExceeded: "late", DeadlineTooShort: "too short"}
            self.lost = kinds.get(type(told.error), repr(told.error))

    def hang_up(self) -> None:
        """Leave, if it waits here."""
        if self.call is not None:
            self.call.cancel()


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


__all__ = ["BATCH", "BATCH_S", "Bench", "Job", "Told", "percentile"]

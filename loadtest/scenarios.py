"""The load models, as locust users.

Two kinds of load are honest about latency, and only these are used:

- a *burst*: everything is due at once, and the client decides when to send (through its gate, or each item on its own);
- *open arrivals*: items fall due at times that were drawn beforehand (a Poisson process of a stated rate) and are sent then, whether or not
  earlier ones are answered. Latency counts from when an item was due.

A closed loop ("each user sends his next request when the last is answered") slows down with the server and so never shows overload;
locust's own pools turn into one when they are smaller than the load, which is why each item gets a greenlet of its own here.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.pool import Pool
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser
from samegraph_client import Client, ClientError, Gate, Outcome, Prediction, Report, RetryPolicy
from samegraph_client.transport import HttpxTransport, Transport

from .record import Burst, Item, Record
from .samples import Sample
from .transport import CountingTransport, GeventTransport

#: Most items of an open load under way at once; more means the server is drowning, and they are counted as lost.
MOST_OPEN = 20_000


@dataclass
class Plan:
    """What the users of one run share.

    Attributes:
        url: Where to send.
        model: Model to ask.
        samples: Golden samples to send, in turn.
        record: Where everything is noted.
        frames: Items of a burst.
        repeats: Bursts, one after the other.
        rate: Items a second of open arrivals.
        duration_s: Seconds of open arrivals.
        ramp: Factor by which the rate rises and falls again; 1 for a steady one.
        independent: Whether each item of a burst has a client, and so a gate, of its own.
        interactive_rate: Items a second of the interactive caller beside a burst.
        deadline_s: Longest an item may take, waits included.
        attempt_timeout_s: Longest one attempt may take; None for no limit of its own.
        units: How many different units ask, in an experiment; 0 for none.
        caller_header: Header that names the caller.
        seed: Of the arrivals and the units.
        started: Clock time at which the scenario began.
    """

    url: str
    model: str
    samples: Sequence[Sample]
    record: Record = field(default_factory=Record)
    frames: int = 300
    repeats: int = 1
    rate: float = 20.0
    duration_s: float = 20.0
    ramp: float = 1.0
    independent: bool = False
    interactive_rate: float = 2.0
    deadline_s: float = 120.0
    attempt_timeout_s: float | None = None
    units: int = 0
    caller_header: str = "x-caller"
    seed: int = 1
    started: float = field(default_factory=time.monotonic)
    active: int = 0

    def now(self) -> float:
        """Seconds since the scenario began."""
        return time.monotonic() - self.started

    def client(self, caller: str, *, gate: Gate | None = None, open_load: bool = False) -> Client:
        """Return a client that says who calls; one for open load can have thousands of requests under way."""
        inner: Transport = GeventTransport(self.url, MOST_OPEN) if open_load else HttpxTransport()
        transport = CountingTransport(inner, self.record.ends)
        policy = RetryPolicy(deadline_s=self.deadline_s, attempt_timeout_s=self.attempt_timeout_s)
        return Client(self.url, headers={self.caller_header: caller}, policy=policy, gate=gate, transport=transport)

    def arrivals(self, rate: float, duration_s: float, seed: int) -> Iterator[float]:
        """Yield the times of a Poisson process from its beginning; with `ramp`, its rate rises to that factor and falls again."""
        generator = random.Random(seed)
        at = 0.0
        top = rate * self.ramp
        while True:  # thinning: draw at the highest rate, keep each with the present rate's share of it
            at += generator.expovariate(top)
            if at >= duration_s:
                return
            present = rate * (1 + (self.ramp - 1) * (1 - abs(2 * at / duration_s - 1)))
            if generator.random() * top < present:
                yield at


class LoadEnvironment(Environment):
    """Locust's environment with the plan of the run.

    Args:
        plan: What the users share.
        facts: As locust's own.
    """

    def __init__(self, plan: Plan, **facts: Any) -> None:
        super().__init__(**facts)
        self.plan = plan


class LoadUser(User):
    """What all users share."""

    abstract = True
    role = ""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        assert isinstance(environment, LoadEnvironment)
        self.plan = environment.plan
        self.plan.active += 1

    def finished(self) -> None:
        """End this user; the run is over when all have ended."""
        self.plan.active -= 1
        raise StopUser

    def note(self, item: Item, error: Exception | None) -> None:
        """Remember an item and tell locust, so that its own statistics have it too."""
        self.plan.record.add(item)
        problem: Exception | None = error if error is not None else (AssertionError(item.wrong) if item.wrong else None)
        facts = {"request_type": self.role, "name": self.plan.model, "response_time": item.latency * 1000, "response_length": 0}
        self.environment.events.request.fire(**facts, exception=problem, context={})

    def item(self, sample: Sample, due: float, sent: float, prediction: Prediction | None, error: Exception | None, **facts: Any) -> None:
        """Remember what became of one item."""
        answer = {} if prediction is None else {"arm": prediction.arm or "", "version": prediction.version or ""}
        item = Item(
            self.role,
            due,
            sent,
            self.plan.now(),
            ok=prediction is not None,
            wrong="" if prediction is None else self.wrong(sample, prediction),
            error="" if error is None else type(error).__name__,
            **{**answer, **facts},
        )
        self.note(item, error)

    def wrong(self, sample: Sample, prediction: Prediction) -> str:
        """Return where an answer differs from the golden one. Another version's answers are another model's: they are not compared."""
        if prediction.version is not None and prediction.version != str(sample.version):
            return ""
        return sample.wrong(prediction.predictions)

    def samples(self, seed: int = 0) -> Iterator[Sample]:
        """Yield the samples over and over, in an order of the seed's."""
        order = list(self.plan.samples)
        random.Random(seed).shuffle(order)
        return itertools.cycle(order)


class BurstUser(LoadUser):
    """*burst*: all frames of a video are there at once, and all of them want their answer; repeated."""

    role = "burst"
    fixed_count = 1

    @task
    def send(self) -> None:
        """Send every burst, then end."""
        for repeat in range(self.plan.repeats):
            chosen = list(itertools.islice(self.samples(repeat), self.plan.frames))
            (self._each_alone if self.plan.independent else self._through_the_gate)(chosen)
        self.finished()

    def _through_the_gate(self, chosen: Sequence[Sample]) -> None:
        due = self.plan.now()
        with self.plan.client("burst") as client:
            results = client.predict_many(
                self.plan.model, (sample.raw for sample in chosen), ordered=False, item_deadline_s=self.plan.deadline_s, unit=None
            )
            for outcome in results:
                self._outcome(chosen[outcome.index], due, outcome)
            report: Report = results.report
        self.plan.record.bursts.append(
            Burst(
                len(chosen),
                report.makespan_s,
                report.lower_bound_s,
                report.hint_returns,
                report.hint_hits,
                report.hint_error_s,
            )
        )

    def _outcome(self, sample: Sample, due: float, outcome: Outcome) -> None:
        error, prediction = outcome.error, outcome.prediction
        facts = {"attempts": outcome.attempts, "refusals": outcome.refusals, "waited_s": outcome.waited_s}
        self.item(sample, due, due + outcome.queued_s, prediction, error, **facts)

    def _each_alone(self, chosen: Sequence[Sample]) -> None:
        """Let every item have a client of its own, as three hundred separate callers would: only the hints keep them apart."""
        clients = [self.plan.client("burst", gate=Gate(start=1, most=1)) for _ in chosen]  # before the clock runs: each takes milliseconds
        due = self.plan.now()
        burst = Burst(len(chosen), 0.0)
        pool = Pool(len(chosen))
        for sample, client in zip(chosen, clients, strict=True):
            pool.spawn(self._alone, client, sample, due, burst)
        pool.join()
        burst.makespan_s = self.plan.now() - due
        self.plan.record.bursts.append(burst)

    def _alone(self, client: Client, sample: Sample, due: float, burst: Burst) -> None:
        with client:
            sent = self.plan.now()
            results = client.predict_many(self.plan.model, [sample.raw], item_deadline_s=self.plan.deadline_s)
            for outcome in results:
                facts = {"attempts": outcome.attempts, "refusals": outcome.refusals, "waited_s": outcome.waited_s}
                self.item(sample, due, sent, outcome.prediction, outcome.error, **facts)
            burst.hint_returns += results.report.hint_returns
            burst.hint_hits += results.report.hint_hits
            burst.hint_error_s += results.report.hint_error_s


class OpenUser(LoadUser):
    """Open arrivals: sent when they fall due, each in a greenlet of its own."""

    role = "steady"
    fixed_count = 1

    @task
    def send(self) -> None:
        """Send everything at its time, wait for the last answer, then end."""
        plan = self.plan
        pool = Pool(MOST_OPEN)
        samples = self.samples(plan.seed)
        units = random.Random(plan.seed)
        with plan.client(self.role, gate=Gate(start=MOST_OPEN, most=MOST_OPEN), open_load=True) as client:
            begun = plan.now()
            for at in plan.arrivals(self.rate(), plan.duration_s, plan.seed):
                due = begun + at
                if (early := due - plan.now()) > 0:
                    gevent.sleep(early)
                if self.over():
                    break
                unit = f"unit-{units.randrange(plan.units)}" if plan.units else None
                if pool.free_count() == 0:
                    self.note(
                        Item(self.role, due, plan.now(), plan.now(), ok=False, attempts=0, error="GeneratorFull"), RuntimeError("full")
                    )
                    continue
                pool.spawn(self._one, client, next(samples), due, unit)
            pool.join()
        self.finished()

    def rate(self) -> float:
        """Items a second."""
        return self.plan.rate

    def over(self) -> bool:
        """Whether to stop before the time is up."""
        return False

    def _one(self, client: Client, sample: Sample, due: float, unit: str | None) -> None:
        sent = self.plan.now()
        prediction: Prediction | None = None
        error: Exception | None = None
        try:
            prediction = client.predict(self.plan.model, sample.raw, unit=unit, deadline_s=self.plan.deadline_s)
        except ClientError as failure:
            error = failure
        facts: dict[str, Any] = {"unit": unit or ""}
        if prediction is not None:
            facts |= {"attempts": prediction.attempts, "refusals": prediction.refusals, "waited_s": prediction.waited_s}
        self.item(sample, due, sent, prediction, error, **facts)


class InteractiveUser(OpenUser):
    """A person beside somebody else's burst: now and then one item, until the burst is over."""

    role = "interactive"

    def rate(self) -> float:
        """Items a second."""
        return self.plan.interactive_rate

    def over(self) -> bool:
        """Whether only he is left."""
        return self.plan.active <= 1


#: Called with the plan while a scenario runs, in a greenlet of its own: does something to the fleet.
Meddle = Callable[[Plan], None]

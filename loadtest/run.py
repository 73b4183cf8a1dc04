"""Run a scenario with locust's own runner, without its web page, and return what was seen."""

from __future__ import annotations

import time
from collections.abc import Sequence

import gevent

from .scenarios import LoadEnvironment, LoadUser, Meddle, Plan
from .watch import Watch


class RunTooLong(RuntimeError):
    """Raised when a scenario is not over after its longest time; what was seen until then is in the plan's record."""


def run(
    plan: Plan,
    users: Sequence[type[LoadUser]],
    addresses: Sequence[str],
    meddle: Meddle | None = None,
    *,
    longest_s: float = 900.0,
) -> None:
    """Run the users of a scenario to their end.

    Args:
        plan: What they share; its record is filled.
        users: One of each class is run.
        addresses: Replicas to look at.
        meddle: Does something to the fleet while they run.
        longest_s: After how long to give up.

    Raises:
        RunTooLong: They were not done by then.
    """
    environment = LoadEnvironment(plan, user_classes=list(users), host=plan.url)
    runner = environment.create_local_runner()
    plan.started = time.monotonic()
    watch = Watch(addresses, plan.now)
    watch.start()
    meddler = None if meddle is None else gevent.spawn(meddle, plan)
    try:
        runner.start(len(users), spawn_rate=100)
        with gevent.Timeout(longest_s, RunTooLong(f"not over after {longest_s:g} s")):
            if runner.spawning_greenlet is not None:
                runner.spawning_greenlet.join()
            while runner.user_count:
                gevent.sleep(0.05)
            if meddler is not None:
                meddler.get()
    finally:
        if meddler is not None:
            meddler.kill()
        runner.quit()
        watch.stop()
        plan.record.moments = watch.moments
        plan.record.executed = watch.executed

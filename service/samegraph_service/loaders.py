"""The threads on which versions are loaded, proven and warmed up.

While a server starts nobody is served yet, so all CPUs of the quota load at the same time. Once everything was tried, loading stands
back: one thread, which the system runs after all others, and which gives up the interpreter lock ten times as often as usual, so that
the versions that answer go on as if nothing happened.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from . import memory

#: Added to the niceness of the thread that loads beside the serving. With more, others might stop it for long in the middle of holding the
#: interpreter lock.
NICENESS = 10
#: Seconds a thread may keep the interpreter lock from another while a version loads beside the serving; Python's own is 5 ms.
SWITCH_INTERVAL_S = 0.0005

T = TypeVar("T")
R = TypeVar("R")


class Loaders:
    """Runs the loading of versions. For the event loop's thread, but for `spread`.

    Args:
        threads: Versions that load at the same time while the server starts, and executions of one proof; the CPU quota.

    Attributes:
        pool: Where loading runs.
    """

    def __init__(self, threads: int) -> None:
        self._stands_back = False
        self._provers = ThreadPoolExecutor(threads, thread_name_prefix="samegraph-prove") if threads > 1 else None
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="samegraph-load")

    def spread(self, work: Callable[[T], R], inputs: Iterable[T]) -> Iterable[R]:
        """Do what `map` does, on several threads while the server starts. Called on threads of `pool`."""
        provers = self._provers
        return map(work, inputs) if provers is None else provers.map(work, inputs)

    def stand_back(self) -> None:
        """Load one version at a time from now on, and behind everything else; nothing may be loading when this is called."""
        self._stands_back = True
        provers, self._provers = self._provers, None
        for pool in (provers, self.pool):
            if pool is not None:
                pool.shutdown(wait=False)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="samegraph-load", initializer=_step_behind)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Put around the load of one version; once loading stands back, no thread keeps the interpreter lock from the others for long."""
        if not self._stands_back:
            yield
            return
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, SWITCH_INTERVAL_S))
        memory.before_loading()
        try:
            yield
        finally:
            memory.after_loading()
            sys.setswitchinterval(before)

    def close(self) -> None:
        """Wait for what is loading and end the threads."""
        for pool in (self.pool, self._provers):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)


def _step_behind() -> None:
    """Let the system run this thread after others; only Linux knows niceness by thread."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)

"""Look at the replicas' own `/metrics` about once a second while a scenario runs."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Sequence

from prometheus_client.parser import text_string_to_metric_families

from .record import Moment

#: What is added up over all series of a page.
_WANTED = {
    "samegraph_queue_rows": "queue",
    "samegraph_in_flight_requests": "in_flight",
    "samegraph_batch_size_sum": "batch_rows",
    "samegraph_batch_size_count": "batches",
    "samegraph_refused_total": "refused",
    "samegraph_instances_total": "answered",
}


class Watch:
    """A thread that scrapes; `start` it, `stop` it, read `moments` and `executed`.

    Args:
        addresses: The replicas.
        clock: Seconds since the scenario began.
        every_s: How often.
    """

    def __init__(self, addresses: Sequence[str], clock: Callable[[], float], every_s: float = 1.0) -> None:
        self.moments: list[Moment] = []
        self._addresses = addresses
        self._clock = clock
        self._every_s = every_s
        self._ended = threading.Event()
        self._before: dict[str, tuple[float, dict[str, float]]] = {}
        self._at_first: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._look()
        self._at_first = {address: page["batch_rows"] for address, (_, page) in self._before.items()}
        self._thread.start()

    def stop(self) -> None:
        """Look a last time and end."""
        self._ended.set()
        self._thread.join()
        self._look()

    @property
    def executed(self) -> float | None:
        """Instances that were computed since `start`, as the replicas of the last look say; None when there are none."""
        pages = {address: page["batch_rows"] for address, (_, page) in self._before.items()}
        return sum(rows - self._at_first.get(address, 0.0) for address, rows in pages.items()) if pages else None

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        totals = dict.fromkeys(_WANTED.values(), 0.0)
        rates = {"refused": 0.0, "answered": 0.0, "batch_rows": 0.0, "batches": 0.0}
        seen = 0
        for address in self._addresses:
            page = self._page(address)
            if page is None:
                self._before.pop(address, None)
                continue
            seen += 1
            now = time.monotonic()
            then, before = self._before.get(address, (now, page))
            self._before[address] = (now, page)
            for name, value in page.items():
                totals[name] += value
            for name in rates:
                grown = page[name] - before[name] if page[name] >= before[name] else page[name]
                rates[name] += grown if name.startswith("batch") else grown / max(now - then, 1e-3)
        batch = rates["batch_rows"] / rates["batches"] if rates["batches"] else None
        moment = Moment(self._clock(), totals["queue"], totals["in_flight"], batch, rates["refused"], rates["answered"], seen)
        self.moments.append(moment)

    @staticmethod
    def _page(address: str) -> dict[str, float] | None:
        try:
            with urllib.request.urlopen(f"{address}/metrics", timeout=5) as response:
                text = response.read(16 << 20).decode()
        except (OSError, ValueError):
            return None
        found = dict.fromkeys(_WANTED.values(), 0.0)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in _WANTED:
                    found[_WANTED[sample.name]] += sample.value
        return found

"""Experiments without a server: units that come back, outcomes they have, and the metrics pages replicas would show of them."""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKETS = 64
Key = tuple[str, tuple[tuple[str, str], ...]]


def bucket_of(unit: str) -> int:
    """Return the bucket a server would put a unit into."""
    return hashlib.sha256(b"bucket\x1f" + unit.encode()).digest()[0] % BUCKETS


@dataclass
class Replica:
    """The experiment counters of one process, as its metrics page shows them."""

    model: str = "flights"
    experiment: str = "trees"
    revision: str = "0badcafe"
    weights: Mapping[str, float] = field(default_factory=lambda: {"control": 1.0, "treatment": 1.0})
    metrics: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: {"clicked": {"kind": "binary", "goal": "increase"}})
    current: bool = True
    counts: dict[Key, float] = field(default_factory=lambda: defaultdict(float))
    #: Held while a page is read: who holds it changes many counts at one moment, as a real process has all its series from its start.
    lock: threading.RLock = field(default_factory=threading.RLock)

    def _add(self, name: str, value: float, **labels: str) -> None:
        both = {"model": self.model, "experiment": self.experiment, "revision": self.revision, **labels}
        self.counts[f"samegraph_experiment_{name}", tuple(both.items())] += value

    def expose(self, unit: str, arm: str, *, n: float = 1, error: bool = False, slow: bool = False, seconds: float = 0.01) -> None:
        """Count `n` requests of a unit."""
        bucket = str(bucket_of(unit))
        self._add("exposures_total", n, arm=arm, bucket=bucket)
        self._add("errors_total", n * error, arm=arm, bucket=bucket)
        self._add("slow_total", n * slow, arm=arm, bucket=bucket)
        self._add("served_total", n, arm=arm, served=arm)
        for bound in (0.005, 0.05, 0.5, math.inf):
            self._add("duration_seconds_bucket", n * (seconds <= bound), arm=arm, le="+Inf" if math.isinf(bound) else str(bound))
        self._add("duration_seconds_sum", n * seconds, arm=arm)
        self._add("duration_seconds_count", n, arm=arm)

    def feedback(self, unit: str, arm: str, metric: str, values: Sequence[float]) -> None:
        """Count outcomes of a unit; the values are already above the metric's minimum."""
        labels = {"arm": arm, "metric": metric, "bucket": str(bucket_of(unit))}
        self._add("feedback_total", len(values), **labels)
        self._add("feedback_value_sum_total", sum(values), **labels)
        self._add("feedback_value_sumsq_total", sum(v * v for v in values), **labels)

    def unassigned(self, reason: str, n: float = 1) -> None:
        self._add("unassigned_total", n, reason=reason)

    def page(self) -> str:
        """Return the page as text."""
        families: dict[str, list[str]] = {}
        with self.lock:
            counts = dict(self.counts)
        for (name, labels), value in counts.items():
            family = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") if "duration" in name else name
            families.setdefault(family, []).append(f"{name}{_written(labels)} {value!r}")
        text = [f"# TYPE {f} {'histogram' if 'duration' in f else 'counter'}\n" + "\n".join(lines) for f, lines in families.items()]
        of = {"model": self.model, "experiment": self.experiment}
        text.append("# TYPE samegraph_experiment_info gauge")
        text.append(
            f"samegraph_experiment_info{_written({**of, 'revision': self.revision, 'current': str(int(self.current))}.items())} 1.0"
        )
        text.append("# TYPE samegraph_experiment_arm_weight gauge")
        for arm, weight in self.weights.items():
            planned = {**of, "revision": self.revision, "arm": arm}
            text.append(f"samegraph_experiment_arm_weight{_written(planned.items())} {weight!r}")
        text.append("# TYPE samegraph_experiment_metric_info gauge")
        for metric, more in self.metrics.items():
            text.append(f"samegraph_experiment_metric_info{_written({**of, 'metric': metric, 'min': '', 'max': '', **more}.items())} 1.0")
        return "\n".join(text) + "\n"


def _written(labels: Iterable[tuple[str, str]]) -> str:
    return "{" + ",".join(f'{k}="{v}"' for k, v in labels) + "}"


def simulate(
    replicas: Sequence[Replica],
    units: int,
    rates: Mapping[str, float],
    *,
    seed: int,
    error: Mapping[str, float] | None = None,
    spread: float = 0.0,
    requests: int = 8,
) -> None:
    """Let units ask and answer: each comes a heavy-tailed number of times, to any replica, and clicks with a rate of its own.

    Args:
        replicas: Where requests go, at random.
        units: How many.
        rates: Arm → mean rate of clicks; units are shared evenly over the arms.
        seed: Of everything random.
        error: Arm → share of requests that fail.
        spread: How far a unit's own rate lies from its arm's, as a part of it.
        requests: Mean number of a unit's requests.
    """
    rng = random.Random(seed)
    arms = sorted(rates)
    for i in range(units):
        unit, arm = f"u{seed}-{i}", arms[rng.randrange(len(arms))]
        own = rates[arm] * (1 + spread * rng.choice((-1, 1)))
        for _ in range(min(200, max(1, round(requests * 0.5 * rng.paretovariate(2.0))))):
            replica = rng.choice(list(replicas))
            replica.expose(unit, arm, error=rng.random() < (error or {}).get(arm, 0.0), seconds=rng.randrange(1, 64) / 1024)
            replica.feedback(unit, arm, "clicked", [float(rng.random() < own)])


@contextmanager
def shown(replica: Replica) -> Iterator[str]:
    """Serve a replica's page; yields host:port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = replica.page().encode()
            with suppress(ConnectionError):  # whoever scrapes may lose his patience
                self.send_response(200)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()

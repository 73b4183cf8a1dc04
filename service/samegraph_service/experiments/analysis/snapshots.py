"""Looks kept in a file, a line each, so that a sequence can be drawn over time without a Prometheus server."""

from __future__ import annotations

import json
from pathlib import Path

from samegraph_transforms.errors import SamegraphError

from .evidence import Evidence, Sample, gather
from .sources import Look

#: Looks that are read at most: the newest.
MAX_LOOKS = 2000
#: Largest file that is read, in bytes.
MAX_BYTES = 256 << 20


class BadSnapshots(SamegraphError):
    """Raised when a file of looks cannot be read; says which line."""


def add_look(path: Path, evidence: Evidence, time: float) -> None:
    """Append what is known now to a file, which is made when it is not there.

    Raises:
        OSError: It cannot be written.
    """
    line = {
        "time": time,
        "model": evidence.model,
        "experiment": evidence.experiment,
        "samples": [[s.name, dict(s.labels), s.value] for s in _samples(evidence)],
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n")


def read_looks(path: Path, model: str, experiment: str) -> list[Look]:
    """Return the looks a file holds at one experiment, oldest first; none when there is no file.

    Raises:
        BadSnapshots: A line is none of ours, or the file is too large.
    """
    if not path.exists():
        return []
    if path.stat().st_size > MAX_BYTES:
        raise BadSnapshots(f"{path} has more than {MAX_BYTES >> 20} MB; begin a new file")
    found = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                look = json.loads(line)
                if (look["model"], look["experiment"]) == (model, experiment):
                    samples = [Sample(name, labels, value) for name, labels, value in look["samples"]]
                    found.append(Look(float(look["time"]), gather(samples, model, experiment)))
            except (ValueError, KeyError, TypeError) as error:
                raise BadSnapshots(f"{path}, line {number}: this is no look that `report --append` wrote ({error})") from error
    return sorted(found[-MAX_LOOKS:], key=lambda look: look.time)


def _samples(evidence: Evidence) -> list[Sample]:
    """Return the counters a look needs: outcomes, exposures, errors and slow answers; no latency."""
    prefix = "samegraph_experiment_"
    of = {"model": evidence.model, "experiment": evidence.experiment}
    found = []
    for metric, what in evidence.metrics.items():
        labels = {**of, "metric": metric, "kind": what.kind, "min": repr(what.minimum), "goal": what.goal}
        found.append(Sample(f"{prefix}metric_info", labels, 1.0))
    for revision in evidence.revisions:
        here = {**of, "revision": revision.name}
        found.append(Sample(f"{prefix}info", {**here, "current": str(int(revision.current))}, 1.0))
        for arm, counts in revision.arms.items():
            base = {**here, "arm": arm}
            if counts.weight is not None:
                found.append(Sample(f"{prefix}arm_weight", base, counts.weight))
            families = {"exposures_total": counts.exposures, "errors_total": counts.errors, "slow_total": counts.slow}
            series = [(name, base, values) for name, values in families.items()]
            for metric, moments in counts.feedback.items():
                labels = {**base, "metric": metric}
                series += [
                    ("feedback_total", labels, moments.n),
                    ("feedback_value_sum_total", labels, moments.total),
                    ("feedback_value_sumsq_total", labels, moments.squares),
                ]
            found += [Sample(f"{prefix}{n}", {**own, "bucket": str(g)}, v) for n, own, values in series for g, v in enumerate(values) if v]
    return found

"""A whole experiment on real replicas: traffic with units, feedback, a weight change, a report, a harmful version withdrawn.

    PYTHONPATH=tests:tests/support python tests/acceptance/ab_fleet.py --requests 100000 --units 4000

Starts `samegraph serve` processes and a Prometheus over them, and ends them. Prints a table of what was checked; the exit status is 1 when
anything failed.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import math
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx
from onnx import TensorProto, helper
from package_builders import (
    BIAS,
    KINDS,
    LABELS,
    ROWS,
    WEIGHTS,
    classifier,
    draft,
    model_of,
    postprocess,
    preprocess,
    reference,
    sample,
    samples,
)
from prometheus import Prometheus, prometheus, wait_for
from samegraph_service.experiments import routing_file
from samegraph_service.experiments.analysis import sequences
from samegraph_service.experiments.analysis.guard import Decision, Guard
from samegraph_service.experiments.analysis.page import render
from samegraph_service.experiments.analysis.report import Report, make_report
from samegraph_service.experiments.analysis.routing_store import AdminStore, RepositoryStore, RoutingStore
from samegraph_service.experiments.analysis.sources import PrometheusSource, fetch_pages, from_pages
from samegraph_service.experiments.assignment import Plan
from samegraph_service.experiments.prediction_id import new_key
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.pack import pack
from server_process import ServerProcess

MODEL, EXPERIMENT = "plants", "taller"
TOKEN = "only-for-this-run"
#: What an oak costs the harmful version: about 40 ms where this was written; every other request takes a few.
SLOW_STEPS, SLO_MS = 60, 20
#: Share of oaks: few, so that harm must be told from chance.
OAKS = 0.12
#: Share of outcomes whose label is noise: nobody is always right.
NOISE = 0.05
#: Guardrails of the file below, which share its alpha: failed, slow, and wrong.
RAILS, ALPHA, MARGINS = 3, 0.01, {"slow": 0.05, "outcome": 0.03}
#: Outcomes that a caller sends together while a harmful version is on trial.
BATCH = 20
#: Seconds of traffic that are counted before anybody can act on them: two scrapes of half a second, and a margin.
LATE_S = 2.0
ROUTING = """\
models:
  plants:
    default: 1
    experiments:
      taller:
        salt: {salt}
        unit: {{header: samegraph-unit}}
        arms:
          control: {{version: 1, weight: 1}}
          treatment: {{version: {version}, weight: {weight}}} # on trial
        slo_ms: {slo}
        metrics:
          clicked: {{kind: binary, goal: increase}}
          visits: {{kind: count, max: 50, goal: increase}}
          correct: {{kind: label, guard: true, margin: 0.03}}
        guardrails: {{min_requests: {min_requests}, slow_margin: 0.05, error_margin: 0.01, alpha: 0.01}}
"""


@dataclass(frozen=True)
class Options:
    """How large a run is.

    Attributes:
        requests: Predictions with feedback, of both weights together.
        harm_requests: Most predictions while a harmful version is on trial.
        units: Units that ask; how often each does is heavy-tailed.
        replicas: Server processes.
        workers: Connections that send at the same time.
        lift: Effect of the treatment on clicks, from 0.30.
        seed: Of everything random.
        directory: Where packages, the routing file and what Prometheus stores go.
        html: Where the report's page goes; None for nowhere.
    """

    requests: int = 100_000
    harm_requests: int = 6_000
    units: int = 4_000
    replicas: int = 3
    workers: int = 6
    lift: float = 0.06
    seed: int = 1
    directory: Path = Path()
    html: Path | None = None


@dataclass
class Check:
    """One line of the table."""

    what: str
    ok: bool
    figures: str


@dataclass
class Outcome:
    """What a run found."""

    checks: list[Check] = field(default_factory=list)
    report: Report | None = None
    seconds: float = 0.0

    def check(self, what: str, ok: bool, figures: str) -> None:
        self.checks.append(Check(what, bool(ok), figures))

    @property
    def ok(self) -> bool:
        return all(c.ok for c in self.checks)


# --- packages -------------------------------------------------------------------------------------------------------------


def pack_versions(repository: Path) -> None:
    """Write four versions: 1 and 2 alike, 3 slow for one kind of plant of three, 4 wrong for that kind."""
    pack(draft(version=1), samples(), repository)
    pack(draft(version=2), samples(), repository)
    stages = [
        DraftStage("preprocess.batch", preprocess()),
        DraftStage("model", slow_classifier()),
        DraftStage("postprocess", postprocess()),
    ]
    pack(draft(version=3, stages=stages), samples(), repository)
    stages = [DraftStage("preprocess.batch", miscoded()), DraftStage("model", classifier()), DraftStage("postprocess", postprocess())]
    pack(draft(version=4, stages=stages), [sample(f"row {i}", [row]) for i, row in enumerate(ROWS) if row["kind"] != "oak"], repository)


def miscoded() -> onnx.ModelProto:
    """Return the preprocessing with a code for oaks that the classifier never saw: it calls them all high, and none of them is."""
    graph = preprocess()
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "values_floats":
                attribute.floats[KINDS.index("oak")] = -5.0
    return graph


def slow_classifier(steps: int = SLOW_STEPS, n: int = 256) -> onnx.ModelProto:
    """Return the test classifier with `steps` products of n × n matrices before any answer that has an oak in its batch."""
    tensor = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("MatMul", ["state", "state"], ["next"]), helper.make_node("Identity", ["on"], ["again"])],
        "step",
        [tensor("i", TensorProto.INT64, []), tensor("on", TensorProto.BOOL, []), tensor("state", TensorProto.FLOAT, [n, n])],
        [tensor("again", TensorProto.BOOL, []), tensor("next", TensorProto.FLOAT, [n, n])],
    )
    nodes = [
        helper.make_node("Slice", ["features", "one", "two", "axis"], ["code"]),
        helper.make_node("ReduceMax", ["code"], ["highest"], keepdims=0),
        helper.make_node("Greater", ["highest", "fern"], ["oak"]),
        helper.make_node("Cast", ["oak"], ["whether"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whether", "steps"], ["times"]),
        helper.make_node("Loop", ["times", "", "start"], ["end"], body=body),
        helper.make_node("ReduceSum", ["end"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Gemm", ["features", "w", "b"], ["plain"]),
        helper.make_node("Add", ["plain", "nothing"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probability"], axis=1),
    ]
    return model_of(
        nodes,
        [("features", TensorProto.FLOAT, ["n", 2])],
        [("probability", TensorProto.FLOAT, ["n", 3])],
        w=WEIGHTS,
        b=BIAS,
        one=np.array([1]),
        two=np.array([2]),
        axis=np.array([1]),
        fern=np.array(1.5, np.float32),
        steps=np.array(steps),
        start=np.full((n, n), 1 / n, np.float32),
        zero=np.array(0.0, np.float32),
    )


# --- traffic --------------------------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """What one worker saw.

    Attributes:
        statuses: Status → requests.
        arms: Unit → the arms it was given, with requests.
        versions: (arm, version that answered) → requests.
        feedback: Accepted and rejected items.
        unsigned: Answers without a signed prediction id.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    arms: dict[str, Counter[str]] = field(default_factory=dict)
    versions: Counter[tuple[str, str]] = field(default_factory=Counter)
    feedback: Counter[str] = field(default_factory=Counter)

    def add(self, other: Sent) -> None:
        self.statuses += other.statuses
        self.versions += other.versions
        self.feedback += other.feedback
        for unit, arms in other.arms.items():
            self.arms.setdefault(unit, Counter()).update(arms)


class Caller:
    """One caller with a connection to every replica: predicts for units, and reports what came of it later, to any replica."""

    def __init__(self, urls: Sequence[str], seed: int, lift: float, batch: int) -> None:
        self._connections = [http.client.HTTPConnection(urlsplit(url).netloc, timeout=30) for url in urls]
        self._rng = random.Random(seed)
        self._lift = lift
        self._batch = batch
        self._outcomes: list[dict[str, Any]] = []
        self.sent = Sent()

    def predict(self, unit: str) -> None:
        """Send one request of a unit; its outcome waits until there are as many as a batch."""
        rng = self._rng
        row = {"size": round(rng.uniform(-3, 3), 2), "kind": "oak" if rng.random() < OAKS else rng.choice(KINDS[:2])}
        body = json.dumps({"instances": [row]})
        headers = {"content-type": "application/json", "samegraph-unit": unit}
        status, answered, _ = self._exchange(f"/v1/models/{MODEL}:predict", body, headers)
        self.sent.statuses[status] += 1
        if status != 200:
            return
        arm = answered["samegraph-arm"]
        self.sent.arms.setdefault(unit, Counter())[arm] += 1
        self.sent.versions[arm, answered["samegraph-model-version"]] += 1
        own = random.Random(unit).gauss(0, 0.08)  # some units click more than others
        clicked = rng.random() < 0.30 + own + self._lift * (arm == "treatment")
        values = {"clicked": int(clicked), "visits": min(50, int(rng.expovariate(0.5)))}
        label = rng.choice(LABELS) if rng.random() < NOISE else reference([row])["label"][0]
        self._outcomes.append({"prediction_id": answered["samegraph-prediction-id"], "values": values, "label": label})
        if len(self._outcomes) >= self._batch:
            self.report()

    def report(self) -> None:
        """Send the outcomes that wait."""
        if not self._outcomes:
            return
        body = json.dumps({"feedback": self._outcomes})
        status, _, text = self._exchange(f"/v1/models/{MODEL}:feedback", body, {"content-type": "application/json"})
        found = json.loads(text)
        assert status == 200, found
        self.sent.feedback["accepted"] += found["accepted"]
        self.sent.feedback["rejected"] += found["rejected"]
        self._outcomes.clear()

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _exchange(self, path: str, body: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        connection = self._rng.choice(self._connections)
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()


def units_of(options: Options, n: int, seed: int) -> list[str]:
    """Return the unit of each of `n` requests: a heavy tail of how often each comes, in random order."""
    rng = random.Random(seed)
    weights = [rng.paretovariate(1.7) for _ in range(options.units)]
    return rng.choices([f"unit-{options.seed}-{i}" for i in range(options.units)], weights, k=n)


def send(
    urls: Sequence[str], options: Options, units: Sequence[str], seed: int, stop: Callable[[], bool] = lambda: False, batch: int = 200
) -> Sent:
    """Send one request for each unit, by several callers at the same time, and outcomes in batches; ends early when `stop` says so."""
    callers = [Caller(urls, seed * 100 + i, options.lift, batch) for i in range(options.workers)]
    failures: list[BaseException] = []

    def work(caller: Caller, own: Sequence[str]) -> None:
        try:
            with closing(caller):
                for unit in own:
                    if stop():
                        break
                    caller.predict(unit)
                caller.report()
        except BaseException as error:  # noqa: BLE001 - a caller that breaks is a finding of the run
            failures.append(error)

    threads = [threading.Thread(target=work, args=(c, units[i :: options.workers])) for i, c in enumerate(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    whole = Sent()
    for caller in callers:
        whole.add(caller.sent)
    return whole


# --- the run --------------------------------------------------------------------------------------------------------------


def run(options: Options) -> Outcome:
    """Do all of it and return what was found; everything that was started has ended then."""
    outcome, began = Outcome(), time.monotonic()
    repository, keys, series = (options.directory / name for name in ("models", "feedback.keys", "prometheus"))
    repository.mkdir(parents=True)
    series.mkdir()
    pack_versions(repository)
    keys.touch(mode=0o600)
    keys.write_text(new_key() + "\n", encoding="utf-8")
    put(repository, version=2, weight=1)
    with ExitStack() as stack:
        settings: dict[str, Any] = {
            "FEEDBACK__KEY_FILE": str(keys),
            "REPOSITORY__POLL_S": "0.2",
            "REPOSITORY__KEEP_VERSIONS": "3",
            "LOG__ACCESS": "false",
            "ADMIN__TOKEN": TOKEN,
        }
        servers = [ServerProcess(repository, **settings) for _ in range(options.replicas)]
        for server in servers:
            stack.callback(server.close)
        urls = [server.url for server in servers]
        for server in servers:
            wait_for(lambda s=server: s.get("/readyz")[0] == 200, "a replica is ready")  # type: ignore[misc]
        watching = stack.enter_context(prometheus(series, [urlsplit(url).netloc for url in urls], []))
        wait_for(lambda: watching.value('count(up{job="samegraph"} == 1)') == len(urls), "Prometheus sees all replicas")
        source = PrometheusSource(watching.url, lookback_s=3600)
        _effect(outcome, options, repository, urls, watching, source)
        _harm(outcome, options, repository, urls, source, version=3, reason="slow", store=RepositoryStore(repository))
        token = options.directory / "admin.token"
        token.write_text(TOKEN + "\n", encoding="utf-8")
        _harm(outcome, options, repository, urls, source, version=4, reason="outcome", store=AdminStore(urls[0], token))
        for server in servers:
            outcome.check("a replica ends in order", server.terminate() == 0, "exit status 0")
    outcome.seconds = time.monotonic() - began
    return outcome


def put(repository: Path, *, version: int, weight: float, salt: str = "s1", min_requests: int = 200) -> Plan:
    """Write the routing file and return what it decides."""
    routing_file.write_routing(repository, ROUTING.format(salt=salt, version=version, weight=weight, slo=SLO_MS, min_requests=min_requests))
    return plan_of(repository)


def plan_of(repository: Path) -> Plan:
    plan = routing_file.read(repository).models[MODEL].plan(MODEL)
    assert plan is not None
    return plan


def wait_for_plan(urls: Sequence[str], revision: str) -> None:
    """Wait until every replica assigns by this revision."""

    def current(url: str) -> bool:
        page = fetch_pages([url])[0]
        return any(f'revision="{revision}",current="{now}"' in page for now in ("1", "true"))

    for url in urls:
        wait_for(lambda u=url: current(u), f"{url} assigns by {revision}")  # type: ignore[misc]


def _effect(
    outcome: Outcome, options: Options, repository: Path, urls: Sequence[str], watching: Prometheus, source: PrometheusSource
) -> None:
    """Half of the traffic at equal weights, half at one to three; then every figure against what must come out."""
    before = plan_of(repository)
    wait_for_plan(urls, before.revision)
    began = time.time()
    half = options.requests // 2
    first = send(urls, options, units_of(options, half, options.seed), options.seed)
    _assigned(outcome, "at equal weights", first, before)
    after = put(repository, version=2, weight=3)
    wait_for_plan(urls, after.revision)
    second = send(urls, options, units_of(options, options.requests - half, options.seed + 1), options.seed + 1)
    _assigned(outcome, "at one to three", second, after)
    _moved(outcome, first, second, before, after)
    whole = Sent()
    whole.add(first)
    whole.add(second)
    answered = sum(whole.statuses.values())
    outcome.check(
        "no request failed", whole.statuses == Counter({200: answered}), f"{answered:,} requests, statuses {dict(whole.statuses)}"
    )
    outcome.check("all feedback was taken", whole.feedback == Counter(accepted=answered), f"{dict(whole.feedback)}")
    wait_for(
        lambda: watching.value(f'sum(samegraph_experiment_feedback_total{{model="{MODEL}",metric="clicked"}})') == answered,
        "Prometheus has seen all feedback",
    )
    pages = _plain(make_report(from_pages(fetch_pages(urls), MODEL, EXPERIMENT), metric="clicked"))
    deadline = time.monotonic() + 10
    while True:  # the last scrape may have come between two counts of one call
        found = source.evidence(MODEL, EXPERIMENT)
        apart = _apart(_plain(make_report(found, metric="clicked")), pages)
        if not apart or time.monotonic() > deadline:
            break
    figures = "; ".join(apart[:3]) or f"{len(found.revisions)} revisions"
    outcome.check("the report from Prometheus is that of the summed counters", not apart, figures)
    alone = make_report(from_pages(fetch_pages(urls[:1]), MODEL, EXPERIMENT), metric="clicked").to_json()
    status, body = get(urls[0], f"/v1/models/{MODEL}/experiments/{EXPERIMENT}?metric=clicked")
    own = status == 200 and {**json.loads(body), "source": ""} == {**alone, "source": ""}
    listed = [e["experiment"] for e in json.loads(get(urls[0], f"/v1/models/{MODEL}/experiments")[1])["experiments"]]
    missing = get(urls[0], f"/v1/models/{MODEL}/experiments/none")
    outcome.check(
        "a replica answers with its own report", own and listed == [EXPERIMENT] and missing[0] == 404, f"status {status}, {listed}"
    )
    looks = source.history(MODEL, EXPERIMENT, began, time.time(), steps=60)
    report = outcome.report = make_report(found, metric="clicked", time=time.time(), looks=looks)
    [effect] = [e for e in report.effects if e.metric == "clicked"]
    inside = effect.interval.low <= options.lift <= effect.interval.high
    outcome.check(
        "the sequence holds the planted effect", inside, f"{effect.interval.low:.4f} to {effect.interval.high:.4f}, {report.verdict}"
    )
    ratios = [r.sample_ratio for r in report.revisions]
    outcome.check("sample ratios are as planned", not any(r and r.broken for r in ratios), ", ".join(f"p {r.p:.3g}" for r in ratios if r))
    if options.html is not None:
        options.html.write_text(render(report), encoding="utf-8")


def get(url: str, path: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def _plain(report: Report) -> dict[str, Any]:
    """Return the report without what depends on where it was read."""
    document = report.to_json()
    return {**document, "source": "", "revisions": _comparable(document)}


def _apart(one: Any, other: Any, path: str = "") -> list[str]:
    """Return the places where two documents differ, with both values."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in _apart(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [found for i, pair in enumerate(zip(one, other, strict=True)) for found in _apart(*pair, f"{path}.{i}")]
    return [] if one == other else [f"{path.lstrip('.')} is {str(one)[:60]} and {str(other)[:60]}"]


def _comparable(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the revisions without planned weights: replicas tell those of the one in force, Prometheus remembers them all."""
    out = []
    for revision in report["revisions"]:
        kept = dict(revision)
        if not revision["current"]:
            kept["sample_ratio"] = None
            kept["arms"] = {name: {**arm, "weight": None} for name, arm in revision["arms"].items()}
        out.append(kept)
    return out


def _assigned(outcome: Outcome, when: str, sent: Sent, plan: Plan) -> None:
    """Every unit has one arm, the one the file says, on whichever replica; and the arms' shares of units are the planned ones."""
    torn = sum(len(arms) > 1 for arms in sent.arms.values())
    wrong = sum(next(iter(arms)) != plan.arm_of(unit.encode()) for unit, arms in sent.arms.items())
    outcome.check(
        f"every unit keeps its arm, {when}", torn == 0 and wrong == 0, f"{len(sent.arms):,} units, {torn} torn, {wrong} elsewhere"
    )
    n = len(sent.arms)
    weights = {arm.name: arm.weight for arm in plan.arms}
    share = weights["treatment"] / sum(weights.values())
    got = sum("treatment" in arms for arms in sent.arms.values())
    bound = 3.89 * math.sqrt(n * share * (1 - share))  # one time in ten thousand
    outcome.check(f"shares are inside binomial bounds, {when}", abs(got - n * share) <= bound, f"{got / n:.4f} of units for {share:.4g}")


def _moved(outcome: Outcome, first: Sent, second: Sent, before: Plan, after: Plan) -> None:
    """Raising the treatment's weight moved units to it only, and about as many as it must."""
    both = sorted(first.arms.keys() & second.arms.keys())
    moves = Counter((next(iter(first.arms[u])), next(iter(second.arms[u]))) for u in both)
    back = moves["treatment", "control"]
    outcome.check(
        "a raised weight takes units and gives none away", back == 0, f"{moves['control', 'treatment']:,} moved there, {back} back"
    )
    must = sum(before.arm_of(u.encode()) != after.arm_of(u.encode()) for u in both)
    outcome.check("only units that had to move moved", moves["control", "treatment"] == must, f"{must:,} of {len(both):,}")


def _harm(
    outcome: Outcome,
    options: Options,
    repository: Path,
    urls: Sequence[str],
    source: PrometheusSource,
    *,
    version: int,
    reason: str,
    store: RoutingStore,
) -> None:
    """A harmful version is put on trial while the guard watches; it must be gone, for this reason, within what the theory gives."""
    what = {"slow": "slow", "outcome": "wrong"}[reason]
    plan = put(repository, version=version, weight=1, salt=f"s{version}")
    wait_for_plan(urls, plan.revision)
    gone, decisions = threading.Event(), list[Decision]()
    log = io.StringIO()
    guard = Guard(store, source, log=log)

    between = [0.0]  # the longest time from one look to the end of the next

    def watch() -> None:
        before = time.monotonic()
        while not gone.wait(0.2):
            looked = time.monotonic()
            decisions[:] = guard.look()
            between[0], before = max(between[0], time.monotonic() - before), looked
            if any(d.do == "withdraw" for d in decisions):
                gone.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    slowly, began, seed = Options(**{**vars(options), "workers": min(2, options.workers)}), time.monotonic(), options.seed + 2 * version
    try:
        sent = send(urls, slowly, units_of(options, options.harm_requests, seed), seed, gone.is_set, batch=BATCH)
        seconds = time.monotonic() - began
        time_to_look = time.monotonic() + 5
        while not gone.is_set() and time.monotonic() < time_to_look:
            gone.wait(0.1)
    finally:
        withdrawn = gone.is_set()
        gone.set()
        watcher.join()
    trial = sum(n for (arm, _), n in sent.versions.items() if arm == "treatment")
    figures = f"{trial:,} requests on trial; {decisions[0].words if decisions else log.getvalue()[-300:]}"
    outcome.check(
        f"the {what} version is withdrawn", withdrawn and all(d.reason == reason for d in decisions if d.do == "withdraw"), figures
    )
    if not withdrawn:
        return
    theory = _theory(source, plan.revision, reason)
    late = (LATE_S + between[0]) * trial / seconds + slowly.workers * BATCH
    allowed = 2 * theory + late  # when a sequence decides varies; twice the mean is rare
    figures = f"{trial:,}; theory {theory:,}, {trial / seconds:,.0f} a second, a look every {between[0]:.1f} s, allowed {allowed:,.0f}"
    outcome.check(f"the {what} one within the requests the theory gives", trial <= allowed, figures)
    outcome.check(f"no request failed while the {what} one went", set(sent.statuses) == {200}, f"statuses {dict(sent.statuses)}")
    back = plan_of(repository)
    wait_for_plan(urls, back.revision)
    rest = send(urls, options, units_of(options, 600, seed + 1), seed + 1)
    outcome.check(
        f"everybody gets the fallback after the {what} one",
        set(rest.versions) == {("control", "1")} and set(rest.statuses) == {200},
        f"{dict(rest.versions)}",
    )
    again = guard.look()
    text = (repository / routing_file.FILE_NAME).read_text(encoding="utf-8")
    outcome.check(f"the {what} one's withdrawal stays, comments and all", again[0].do == "hold" and "# on trial" in text, again[0].words)


def _theory(source: PrometheusSource, revision: str, reason: str) -> int:
    """Return the requests per arm at which the bound passes its margin at the shares that were seen."""
    found = next(r for r in source.evidence(MODEL, EXPERIMENT).revisions if r.name == revision)
    counts = [found.arms[name] for name in ("control", "treatment")]
    a, b = (arm.share_of("slow") if reason == "slow" else arm.feedback["correct"] for arm in counts)
    harm = b.mean - a.mean if reason == "slow" else a.mean - b.mean
    spread = a.mean * (1 - a.mean) + b.mean * (1 - b.mean)
    n = 200
    while n < 10**6 and harm - sequences.one_sided_half_width(spread / n, 2 * n, ALPHA / RAILS) <= MARGINS[reason]:
        n += 10
    return n


# --- telling --------------------------------------------------------------------------------------------------------------


def table(outcome: Outcome) -> str:
    """Return the table of checks."""
    wide = max(len(c.what) for c in outcome.checks)
    lines = [f"{'ok  ' if c.ok else 'FAIL'}  {c.what:{wide}}  {c.figures}" for c in outcome.checks]
    return "\n".join([*lines, f"{sum(c.ok for c in outcome.checks)} of {len(outcome.checks)} in {outcome.seconds:.0f} s"])


def main() -> int:
    """Run with what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Options()
    for name in ("requests", "harm_requests", "units", "replicas", "workers", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    parser.add_argument("--lift", type=float, default=defaults.lift)
    parser.add_argument("--html", type=Path, default=None, help="where the report's page goes")
    with tempfile.TemporaryDirectory() as directory:
        outcome = run(Options(**vars(parser.parse_args()), directory=Path(directory)))
    print(table(outcome))
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())

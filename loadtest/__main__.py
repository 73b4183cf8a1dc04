"""python -m loadtest SCENARIO: run a load test against servers started here (or one that runs here already) and write a report.

The exit code is 0 when every threshold was met, 1 when one was missed, 2 for wrong usage and 3 when the run itself failed.
"""

# Everything that waits must be gevent's from the first import on; the client's blocking face then runs in greenlets.
from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import urllib.request  # noqa: E402
from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: E402
from dataclasses import dataclass, field, replace  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402

from loadtest import checks  # noqa: E402
from loadtest.checks import Check  # noqa: E402
from loadtest.fleet import Fleet, FleetError, existing  # noqa: E402
from loadtest.record import Record  # noqa: E402
from loadtest.report import ends, render, summary  # noqa: E402
from loadtest.run import RunTooLong, run  # noqa: E402
from loadtest.samples import Sample, read_samples  # noqa: E402
from loadtest.scenarios import BurstUser, InteractiveUser, LoadUser, OpenUser, Plan  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
ADMIN_TOKEN = "load-test-of-this-machine"  # noqa: S105 - of servers that live for one run on loopback
WEIGHTS = {"control": 2.0, "treatment": 1.0}


@dataclass(frozen=True)
class Scenario:
    """A load with its thresholds.

    Attributes:
        about: A sentence.
        users: Who sends.
        checks: What must have been seen.
        replicas: Servers it needs.
        settings: Their variables, without prefix.
        meddle: What is done to them meanwhile.
        routing: routing.yaml of the repository, or "".
        plan: Values of the plan that differ from the defaults.
        proxy_s: After how many seconds a proxy in between gives up on an answer; None for no proxy before a single server.
        model: Model it asks unless told otherwise.
    """

    about: str
    users: Sequence[type[LoadUser]]
    checks: Callable[[Plan], Iterator[Check]]
    replicas: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    meddle: Callable[[Fleet, Plan, Path], None] | None = None
    routing: str = ""
    plan: Mapping[str, object] = field(default_factory=dict)
    proxy_s: int | None = None
    model: str = "penguins"


def _burst(plan: Plan) -> Iterator[Check]:
    yield from checks.answered(plan.record)
    if plan.independent:
        yield from checks.bursts(plan.record, attempts=2.2, hint_hits=0.9)
    else:
        yield from checks.bursts(plan.record, attempts=1.1, makespan_ratio=1.1)


def _behind_proxy(plan: Plan) -> Iterator[Check]:
    yield from checks.answered(plan.record)
    yield from checks.bursts(plan.record, attempts=2.2)
    yield from checks.computed_in_vain(plan.record, 0)


def _behind_unknown_proxy(plan: Plan) -> Iterator[Check]:
    """What is in flight when the proxy shows itself is sent again; its keys find what ran on."""
    yield from checks.answered(plan.record)
    yield from checks.bursts(plan.record, attempts=3.2)
    yield from checks.computed_in_vain(plan.record, 0)


def _open(plan: Plan) -> Iterator[Check]:
    yield from checks.answered(plan.record)
    yield from checks.punctual(plan.record, OpenUser.role, late_s=0.1)


def _overloaded(plan: Plan) -> Iterator[Check]:
    """Beyond saturation items may be given up by their callers; none may be lost without a word, and none answered wrongly."""
    record = plan.record
    yield checks.at_most("answers that are not the golden ones", len(record.wrong()), 0)
    silent = sum(count for name, count in record.errors().items() if name not in ("Refused", "DeadlineExceeded", "AttemptTimedOut"))
    yield checks.at_most("items lost for another reason than load", silent, 0)
    answers = sum(item.ok for item in record.items)
    yield checks.at_least("items answered", answers, 1)
    late = record.errors()["AttemptTimedOut"] / answers if answers else 1.0
    yield checks.at_most("items let in and not answered by their deadline, of those answered", late, 0.05)
    yield from checks.punctual(record, OpenUser.role, late_s=0.25)


def _two_callers(plan: Plan) -> Iterator[Check]:
    yield from checks.answered(plan.record)
    makespan = max((burst.makespan_s for burst in plan.record.bursts), default=float("nan"))
    yield checks.at_most("the other caller's mean wait", plan.record.mean_latency(InteractiveUser.role), 0.15 * makespan, "s")


def _reload(plan: Plan) -> Iterator[Check]:
    yield from _open(plan)
    loads = [at for at, text in plan.record.notes if text.startswith("reloaded")]
    yield checks.at_least("reloads while it ran", len(loads), 3)


def _experiment(plan: Plan) -> Iterator[Check]:
    yield from _open(plan)
    yield from checks.sticky(plan.record)
    yield from checks.shares(plan.record, WEIGHTS)


def _replica_loss(plan: Plan) -> Iterator[Check]:
    yield from checks.answered(plan.record)
    yield checks.at_least("things done to the fleet", len(plan.record.notes), 3)


def _lose_replicas(fleet: Fleet, plan: Plan, _: Path) -> None:
    """Kill one replica in the middle of a burst, drain another, start the first again."""
    _await_items(plan, plan.frames // 6)
    fleet.replicas[0].kill()
    plan.record.notes.append((plan.now(), "killed replica 0 (SIGKILL)"))
    _await_items(plan, plan.frames // 3)
    fleet.replicas[1].terminate()
    plan.record.notes.append((plan.now(), "asked replica 1 to drain (SIGTERM)"))
    _await_items(plan, plan.frames // 2)
    fleet.start_again(0)
    plan.record.notes.append((plan.now(), "started replica 0 again"))


def _await_items(plan: Plan, count: int) -> None:
    while len(plan.record.items) < count and plan.active:
        gevent.sleep(0.02)


def _reload_others(fleet: Fleet, plan: Plan, repository: Path) -> None:
    """Put new versions of another model into the repository, one after the other, and have them loaded under load."""
    other = next((p for p in sorted(repository.iterdir()) if p.is_dir() and p.name != plan.model and (p / "1").is_dir()), None)
    if other is None:
        raise FleetError(f"reloading needs a second model beside {plan.model} in the repository")
    for number in range(3):
        gevent.sleep(plan.duration_s / 5)
        copy = repository / f"reloaded-{number}"
        _bare_copy(other / "1", copy)
        headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
        request = urllib.request.Request(f"{fleet.addresses[0]}/admin/reload", method="POST", headers=headers)
        urllib.request.urlopen(request, timeout=60).close()
        plan.record.notes.append((plan.now(), f"reloaded the repository with a new model, a copy of {other.name}"))


def _bare_copy(version: Path, target: Path) -> None:
    """Copy a version's graph as a bare model of another name: it is loaded, warmed and served like any other."""
    (target / "1").mkdir(parents=True)
    shutil.copy2(version / "model.onnx", target / "1" / "model.onnx")


ROUTING = """\
models:
  {model}:
    experiments:
      load-test:
        salt: load-test
        unit: {{header: samegraph-unit}}
        arms:
          control: {{version: {first}, weight: 2}}
          treatment: {{version: {second}, weight: 1}}
"""

SLOW = {"EXECUTION__SIMULATED_BATCH_S": "0.2", "EXECUTION__RUN_SLOTS": "1", "EXECUTION__MAX_BATCH_SIZE": "32"}

SCENARIOS: dict[str, Scenario] = {
    "burst": Scenario(
        "all frames of a video at once, through one client's gate", [BurstUser], _burst, plan={"repeats": 3}, model="imagenet"
    ),
    "burst-independent": Scenario(
        "the same from as many callers that only obey the server's hints",
        [BurstUser],
        _burst,
        settings={**SLOW, "LIMITS__MAX_REQUESTS": "96"},
        plan={"independent": True},
    ),
    "steady": Scenario("open arrivals at a steady rate", [OpenUser], _open),
    "ramp": Scenario(
        "open arrivals whose rate rises tenfold, to several times what the server can do, and falls again",
        [OpenUser],
        _overloaded,
        settings=SLOW,
        plan={"ramp": 10.0, "rate": 60.0, "deadline_s": 5.0},
    ),
    "two-callers": Scenario("a burst beside a person who asks now and then", [BurstUser, InteractiveUser], _two_callers, settings=SLOW),
    "reload": Scenario(
        "new versions of another model are loaded under load",
        [OpenUser],
        _reload,
        settings={"ADMIN__TOKEN": ADMIN_TOKEN},
        meddle=_reload_others,
    ),
    "experiment": Scenario(
        "units of an A/B test keep their arm, and arms get their share",
        [OpenUser],
        _experiment,
        replicas=2,
        routing=ROUTING,
        plan={"units": 2000, "rate": 150.0},
        model="flights",
    ),
    "proxy": Scenario(
        "a burst that takes several times as long as a proxy in between waits for an answer",
        [BurstUser],
        _behind_proxy,
        settings={"EXECUTION__SIMULATED_BATCH_S": "0.4", "EXECUTION__RUN_SLOTS": "1", "EXECUTION__MAX_BATCH_SIZE": "16"},
        plan={"attempt_timeout_s": 1.8},
        proxy_s=2,
    ),
    "proxy-unaware": Scenario(
        "the same by a client that was not told of the proxy, and finds out",
        [BurstUser],
        _behind_unknown_proxy,
        settings={"EXECUTION__SIMULATED_BATCH_S": "0.4", "EXECUTION__RUN_SLOTS": "1", "EXECUTION__MAX_BATCH_SIZE": "16"},
        proxy_s=2,
    ),
    "replica-loss": Scenario(
        "a burst over three replicas of which one is killed, one drained and one started again",
        [BurstUser],
        _replica_loss,
        replicas=3,
        settings=SLOW,
        meddle=_lose_replicas,
        plan={"frames": 900},
    ),
}


def main() -> int:
    """Run from the command line; return the exit code."""
    arguments = _parser().parse_args()
    scenario = SCENARIOS[arguments.scenario]
    arguments.model = arguments.model or scenario.model
    scenario = replace(scenario, settings={**scenario.settings, **dict(arguments.settings)})
    try:
        with _repository(arguments, scenario) as repository:
            samples = _samples(arguments, repository)
            with _target(arguments, scenario, repository) as (url, addresses, fleet):
                plan = _plan(arguments, scenario, url, samples)
                meddle = scenario.meddle
                if meddle is not None and fleet is None:
                    raise FleetError(f"{arguments.scenario} does things to its servers, so it starts its own; leave --url out")
                print(f"{arguments.scenario}: {scenario.about}; {len(samples)} golden samples of {plan.model} to {url}", flush=True)
                run(plan, scenario.users, addresses, None if meddle is None or fleet is None else lambda p: meddle(fleet, p, repository))
    except (FleetError, RunTooLong, ValueError, OSError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 3
    return _conclude(arguments, scenario, plan)


def _conclude(arguments: argparse.Namespace, scenario: Scenario, plan: Plan) -> int:
    found = list(scenario.checks(plan))
    for line in summary(plan.record, found):
        print(line)
    facts = {
        "scenario": f"{arguments.scenario}, {scenario.about}",
        "model": f"{plan.model}, {len(plan.samples)} golden samples, every answer compared",
        "load": _load(scenario, plan),
        "attempts": ends(plan.record),
        "servers": f"{scenario.replicas} on this machine" + "".join(f", {name}={value}" for name, value in scenario.settings.items()),
    }
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(render(f"Load test: {arguments.scenario}", facts, plan.record, found), encoding="utf-8")
    print(f"report: {arguments.report}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(_document(arguments.scenario, plan.record, found), indent=1) + "\n", encoding="utf-8")
    return 0 if all(check.met for check in found) else 1


def _load(scenario: Scenario, plan: Plan) -> str:
    if BurstUser in scenario.users:
        return f"{plan.repeats} × {plan.frames} items at once" + (", each from a client of its own" if plan.independent else "")
    top = f", rising to {plan.ramp:g} times that and falling again" if plan.ramp > 1 else ""
    return f"open arrivals, {plan.rate:g} a second for {plan.duration_s:g} s{top}"


def _document(name: str, record: Record, found: Sequence[Check]) -> dict[str, object]:
    return {
        "scenario": name,
        "items": len(record.items),
        "lost": record.lost(),
        "wrong": len(record.wrong()),
        "attempts_per_item": record.attempts_per_item(),
        "attempts": dict(record.ends),
        "makespans_s": [burst.makespan_s for burst in record.bursts],
        "lower_bounds_s": [burst.lower_bound_s for burst in record.bursts],
        "latency_s": {role: {str(q): record.latency(q, role) for q in (0.5, 0.95, 0.99)} for role in record.roles()},
        "hint_hit_ratio": record.hint_hit_ratio,
        "executed": record.executed,
        "notes": record.notes,
        "checks": [{"what": c.what, "figure": c.figure, "bound": c.bound, "met": c.met} for c in found],
    }


def _plan(arguments: argparse.Namespace, scenario: Scenario, url: str, samples: Sequence[Sample]) -> Plan:
    plan = Plan(url, arguments.model, samples)
    given = {name: getattr(arguments, name) for name in ("frames", "repeats", "rate", "duration_s", "deadline_s", "seed")}
    for name, value in {**scenario.plan, **{name: value for name, value in given.items() if value is not None}}.items():
        setattr(plan, name, value)
    return plan


@contextlib.contextmanager
def _repository(arguments: argparse.Namespace, scenario: Scenario) -> Iterator[Path]:
    """Yield a repository with the model (and another one to reload), linked together for this run: the real one is never written to."""
    source: Path = arguments.repository
    if not (source / arguments.model).is_dir():
        raise FleetError(f"{source} has no model {arguments.model}; `make models` builds the examples")
    with tempfile.TemporaryDirectory(prefix="samegraph-load-") as directory:
        target = Path(directory)
        wanted = {arguments.model, *(["penguins", "flights"] if scenario.meddle is _reload_others else [])}
        for name in sorted(wanted):
            for version in sorted(p for p in (source / name).iterdir() if p.name.isdecimal()):
                shutil.copytree(version, target / name / version.name)
        if scenario.routing:
            versions = sorted((p.name for p in (target / arguments.model).iterdir()), key=int)
            if len(versions) < 2:
                raise FleetError(f"an experiment needs two versions; {arguments.model} has {', '.join(versions)}")
            text = scenario.routing.format(model=arguments.model, first=versions[-2], second=versions[-1])
            (target / "routing.yaml").write_text(text)
        yield target


@contextlib.contextmanager
def _target(arguments: argparse.Namespace, scenario: Scenario, repository: Path) -> Iterator[tuple[str, list[str], Fleet | None]]:
    if arguments.url is not None:
        with existing(arguments.url) as url:
            yield url, [url], None
        return
    balanced = None if scenario.proxy_s is None else True
    with Fleet(repository, scenario.replicas, scenario.settings, balanced=balanced, timeout_s=scenario.proxy_s or 60) as fleet:
        yield fleet.url, fleet.addresses, fleet


def _samples(arguments: argparse.Namespace, repository: Path) -> list[Sample]:
    """Return the samples of --golden, or export those held out when the model was built, or the package's own."""
    if arguments.golden is not None:
        return read_samples(arguments.golden)
    versions = sorted((p for p in (repository / arguments.model).iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    held_out = arguments.repository / ".heldout" / arguments.model / versions[-1].name
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "samples.jsonl"
        command = [str(Path(sys.executable).with_name("samegraph")), "golden", "export", str(versions[-1]), "--output", str(file)]
        subprocess.run([*command, *(["--samples", str(held_out)] if held_out.is_dir() else [])], check=True, capture_output=True)
        return [
            sample for sample in read_samples(file) if arguments.all_samples or not isinstance(sample.raw, list) or len(sample.raw) == 1
        ]


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<18} {scenario.about}" for name, scenario in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m loadtest", description=f"{__doc__}\nScenarios:\n{listed}\n", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", choices=SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--model", help="model to ask (default: imagenet for burst, flights for experiment, else penguins)")
    parser.add_argument("--repository", type=Path, default=ROOT / "models", help="where its packages are (default: models/)")
    parser.add_argument("--url", help="a server that runs on this machine already; default: start what the scenario needs")
    parser.add_argument("--golden", type=Path, help="golden samples as `samegraph golden export` writes them; default: those held out")
    parser.add_argument("--all-samples", action="store_true", help="send requests of several instances too")
    parser.add_argument("--frames", type=_positive, help="items of a burst (300)")
    parser.add_argument("--repeats", type=_positive, help="bursts, one after the other")
    parser.add_argument("--rate", type=float, help="items a second of open arrivals")
    parser.add_argument("--duration", dest="duration_s", type=float, help="seconds of open arrivals")
    parser.add_argument("--deadline", dest="deadline_s", type=float, help="seconds an item may take")
    parser.add_argument(
        "--set",
        dest="settings",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the servers it starts, without SAMEGRAPH_ (LIMITS__MAX_REQUESTS=64); may be repeated",
    )
    parser.add_argument("--seed", type=int, help="of arrivals and units")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    parser.add_argument("--report", type=Path, default=ROOT / ".cache" / "loadtest" / f"{stamp}.html", help="where the page goes")
    parser.add_argument("--json", type=Path, help="where the figures go as JSON")
    return parser


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    return name.upper().removeprefix("SAMEGRAPH_"), value


def _positive(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100_000:
        raise argparse.ArgumentTypeError("must be from 1 to 100,000")
    return value


if __name__ == "__main__":
    sys.exit(main())

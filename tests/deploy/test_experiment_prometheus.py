"""Evidence from a real Prometheus is that of the pages it scraped, restarts included, and its history ends where the evidence stands."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from experiment_pages import Replica, shown, simulate
from prometheus import Prometheus, prometheus, wait_for
from samegraph_service.errors import NoEvidence
from samegraph_service.experiments import routing_file
from samegraph_service.experiments.analysis.commands import experiment
from samegraph_service.experiments.analysis.report import make_report
from samegraph_service.experiments.analysis.sources import PrometheusSource, SourceError, fetch_pages, from_pages

RATES = {"control": 0.3, "treatment": 0.36}


def wait_until_seen(watching: Prometheus, replicas: list[Replica]) -> None:
    """Wait until every count of every replica is what was scraped last."""
    for name in ("exposures", "feedback"):
        total = sum(v for r in replicas for (n, _), v in r.counts.items() if n == f"samegraph_experiment_{name}_total")
        wait_for(lambda n=name, t=total: watching.value(f"sum(samegraph_experiment_{n}_total)") == t, f"Prometheus has seen every {name}")  # type: ignore[misc]


@pytest.mark.slow
def test_a_report_from_prometheus_is_the_report_from_the_pages(tmp_path: Path) -> None:
    """Three replicas: evidence, report and raw sum agree with the pages to the last count; then one starts anew and nothing is lost."""
    replicas = [Replica() for _ in range(3)]
    with shown(replicas[0]) as a, shown(replicas[1]) as b, shown(replicas[2]) as c, prometheus(tmp_path, [a, b, c], []) as watching:
        simulate(replicas, 150, RATES, seed=1)
        wait_until_seen(watching, replicas)
        begun = time.time()
        simulate(replicas, 350, RATES, seed=2)
        wait_until_seen(watching, replicas)
        source = PrometheusSource(watching.url, lookback_s=600)
        pages = from_pages(fetch_pages([a, f"http://{b}", f"http://{c}/metrics"]), "flights", "trees")
        found, raw = source.evidence("flights", "trees"), source.raw_evidence("flights", "trees")
        assert found.revisions == pages.revisions
        assert raw.revisions == pages.revisions
        of_pages, of_prometheus = make_report(pages).to_json(), make_report(found).to_json()
        assert {**of_pages, "source": ""} == {**of_prometheus, "source": ""}
        assert source.experiments() == [("flights", "trees")]

        before = replicas[1].counts.copy()
        with replicas[1].lock:
            replicas[1].counts.clear()  # the process ends, and a new one begins under the same address
            simulate(replicas, 40, RATES, seed=3)
        wait_until_seen(watching, replicas)
        again, raw = source.evidence("flights", "trees"), source.raw_evidence("flights", "trees")
        for key, value in before.items():
            replicas[1].counts[key] += value
        whole = from_pages([r.page() for r in replicas], "flights", "trees")
        assert again.revisions == whole.revisions
        assert raw.current.exposed < again.current.exposed

        now = time.time()
        first = source.first_seen("flights", "trees", now)
        assert first is not None
        assert begun - 60 < first < begun + 1
        looks = source.history("flights", "trees", first, now)
        exposed = [look.evidence.current.exposed for look in looks]
        assert exposed == sorted(exposed)
        assert len({*exposed}) >= 3
        assert looks[-1].evidence.current.arms["control"].feedback == again.current.arms["control"].feedback
        assert source.rates("flights", "trees", again.current.name, window_s=60)["clicked"] > 1

        with pytest.raises(NoEvidence, match="knows nothing of experiment 'other'"):
            source.evidence("flights", "other")
        with pytest.raises(SourceError, match=r"answered 400: .*parse error"):
            source.value("sum(")


ROUTING = """\
models:
  flights:
    experiments:
      trees:
        salt: s1
        arms:
          control: {version: 1}
          treatment: {version: 2} # on trial
        guardrails: {min_requests: 200}
"""


@pytest.mark.slow
def test_the_guard_withdraws_a_harmful_arm_once_and_for_good(tmp_path: Path) -> None:
    """From what Prometheus scraped of two replicas: a dry run writes nothing, the next look does, and those after it nothing more."""
    (tmp_path / "routing.yaml").write_text(ROUTING, encoding="utf-8")
    plan = routing_file.read(tmp_path).models["flights"].plan("flights")
    assert plan is not None
    replicas = [Replica(revision=plan.revision) for _ in range(2)]
    simulate(replicas, 400, RATES, seed=1, error={"treatment": 0.3})
    textfile = tmp_path / "guard.prom"
    with shown(replicas[0]) as a, shown(replicas[1]) as b, prometheus(tmp_path, [a, b], []) as watching:
        wait_until_seen(watching, replicas)
        looks = []
        for more in (["--dry-run"], [], []):
            arguments = ["guard", "--repository", str(tmp_path), "--prometheus", watching.url, "--once", "--textfile", str(textfile)]
            result = CliRunner().invoke(experiment, [*arguments, *more])
            looks.append((result.exit_code, json.loads(result.stderr)["event"], (tmp_path / "routing.yaml").read_text(encoding="utf-8")))
        withdrawn = ROUTING.replace("{version: 2}", "{version: 2, weight: 0}")
        assert looks == [(3, "arm_withdrawn", ROUTING), (3, "arm_withdrawn", withdrawn), (0, "guard_looked", withdrawn)]
    assert "samegraph_guard_looks_total 1" in textfile.read_text(encoding="utf-8")
    result = CliRunner().invoke(experiment, ["guard", "--repository", str(tmp_path), "--prometheus", watching.url, "--once"])
    assert (result.exit_code, json.loads(result.stderr)["event"]) == (1, "guard_failed")  # Prometheus has ended
    assert (tmp_path / "routing.yaml").read_text(encoding="utf-8") == withdrawn


def test_a_source_that_does_not_answer_is_named() -> None:
    """A report without one of its replicas would be wrong, so there is none."""
    with pytest.raises(SourceError, match=r"nothing can be read from http://127\.0\.0\.1:1/metrics"):
        fetch_pages(["127.0.0.1:1"])
    with pytest.raises(SourceError, match="is no address"):
        PrometheusSource("file:///etc/passwd").experiments()


def test_what_is_no_prometheus_is_named() -> None:
    """Another kind of server behind the address is told from an experiment that is not there."""
    with shown(Replica()) as address, pytest.raises(SourceError, match=r"answered 501|does not answer as Prometheus does"):
        PrometheusSource(address).experiments()

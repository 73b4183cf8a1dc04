"""Three real servers under a real Prometheus: the rules evaluate, drift is that of the pooled rows, and every panel finds its series."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from live_server import LiveServer, live_server
from package_builders import KINDS, draft, samples
from prometheus import INTERVAL, Prometheus, prometheus, wait_for
from prometheus_client.parser import text_string_to_metric_families
from samegraph_service.drift import statistics
from samegraph_service.drift_command import drift
from samegraph_service.experiments.prediction_id import LABELLED_INSTANCES, new_key
from samegraph_transforms.baseline import Baseline, Variable
from samegraph_transforms.cli import SamegraphGroup
from samegraph_transforms.draft import BaselineRows
from samegraph_transforms.pack import pack

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "samegraph.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
DRIFT_PAGE = (ROOT / "docs" / "drift.md").read_text(encoding="utf-8")
#: The window of `exact_rules`.
EXACT = "exact"
#: Series that rest on those before them; the groups of rules they come from are evaluated one beside the other.
STEPS = (
    "field_bin:samegraph_window_rows:increase",
    "field:samegraph_drift_state:code",
    "ALERTS_FOR_STATE",
    "model:samegraph_requests:rate5m",
)
#: What stands for Grafana's variables in the dashboard's queries.
VARIABLES = {"job": ".*", "model": ".*", "version": ".*", "side": ".*", "field": ".*", "window": "1h", "against": "baseline"}

#: Two arms of one version: what is answered does not depend on who asks.
ROUTING = """
models:
  plants:
    experiments:
      same:
        salt: s1
        unit: {header: samegraph-unit}
        arms: {control: {version: 1}, treatment: {version: 1}}
        slo_ms: 1000
        metrics: {clicked: {kind: binary}}
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """What the tests of this module look at.

    Attributes:
        servers: Replicas of one service.
        prometheus: What scrapes them.
        baseline: The baseline of the package all serve.
        package: Where that package is.
        sent: The rows each replica was sent.
        answers: The labels each replica answered with.
    """

    servers: Sequence[LiveServer]
    prometheus: Prometheus
    baseline: Baseline
    package: Path
    sent: Sequence[Sequence[Row]]
    answers: Sequence[Sequence[str]]

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.sent for row in rows]


def training_rows() -> list[Row]:
    rng = random.Random(1)
    return [{"size": round(rng.gauss(5, 3), 3), "kind": rng.choice(KINDS[:2])} for _ in range(1200)]


def traffic() -> list[list[Row]]:
    """Return the rows of each replica: uneven in number and unlike in what they hold."""
    rng = random.Random(2)
    many = [{"size": round(rng.gauss(7, 3), 3), "kind": rng.choice(KINDS)} for _ in range(640)]
    few = [{"size": None if i % 7 == 0 else round(rng.gauss(-1, 9), 3), "kind": "moss"} for i in range(210)]
    fewer = [{"size": round(rng.gauss(5, 3), 3), "kind": rng.choice(KINDS[:2])} for _ in range(70)]
    return [many, few, fewer]


def rules_in(directory: Path) -> list[Path]:
    """Return the rules that are deployed, at the pace of a test, with a window beside theirs that extrapolates nothing."""
    files = []
    for path in sorted(RULES.glob("*.yml")):
        files.append(directory / path.name)
        files[-1].write_text(re.sub(r"interval: \d+m", f"interval: {INTERVAL}", path.read_text(encoding="utf-8")), encoding="utf-8")
    files.append(directory / "exact.yml")
    files[-1].write_text(json.dumps(exact_rules()), encoding="utf-8")
    return files


def exact_rules() -> dict[str, Any]:
    """Return the rules of a window whose rows are differences of two scrapes; everything further is computed by the deployed rules."""
    rules = []
    for side, name in (("input", "field"), ("output", "output")):
        bins, constant = f"samegraph_{side}_bin_rows_total", f"samegraph_baseline_{'output_' * (side == 'output')}bin_rows"
        for record, expression, against in (
            (
                "field_bin:samegraph_window_rows:increase",
                f"sum without (instance) (last_over_time({bins}[5m]) - min_over_time({bins}[5m]))",
                {},
            ),
            ("field_bin:samegraph_reference_rows:max", f"max without (instance) ({constant})", {"against": "baseline"}),
        ):
            named = f'sum without (output) (label_replace({expression}, "field", "$1", "{name}", "(.+)"))'
            rules.append({"record": record, "expr": named, "labels": {"side": side, "window": EXACT, **against}})
    return {"groups": [{"name": "exact", "interval": INTERVAL, "rules": rules}]}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    models, directory = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("prometheus")
    package = pack(draft(baseline=BaselineRows(rows=training_rows())), samples(), models)
    baseline = package.baseline()
    assert baseline is not None
    (models / "routing.yaml").write_text(ROUTING, encoding="utf-8")
    keys = directory / "feedback.keys"
    keys.write_text(new_key())
    keys.chmod(0o600)
    with ExitStack() as stack:
        servers = [stack.enter_context(live_server(models, drift={"cpu_ratio": 1.0}, feedback={"key_file": keys})) for _ in traffic()]
        watching = stack.enter_context(
            prometheus(directory, [server.url.removeprefix("http://") for server in servers], rules_in(directory))
        )
        wait_for(
            lambda: watching.value("count(samegraph_input_rows_total == 0)") == len(servers), "all replicas were seen before any traffic"
        )
        sent = traffic()
        answers = [send(server, rows[:50]) for server, rows in zip(servers, sent, strict=True)]
        for server in servers:
            assert server.predict("plants", {"instances": [{"size": "large", "kind": "moss"}]}).status == 400
        wait_for(
            lambda: watching.value("count(samegraph_errors_total)") == len(servers),
            "first requests were seen, so that further ones have a rate",
        )
        for server, rows, labels in zip(servers, sent, answers, strict=True):
            labels += send(server, rows[50:])
        settle(watching, sum(map(len, sent)))
        yield Stage(servers, watching, baseline, package.path, sent, answers)


def settle(watching: Prometheus, total: int) -> None:
    """Wait until all rows are seen, then until the windows were counted after that, then until all the rest was computed from these."""
    wait_for(lambda: watching.value("sum(samegraph_input_rows_total)") == total, "Prometheus has seen every row")
    for series in STEPS:
        wait_for_a_new(watching, series)
    wait_for(lambda: all(rule["health"] == "ok" for rule in watching.rules()), "every rule was evaluated")
    wait_for(lambda: _all_up(watching, total), "all replicas are up")


def wait_for_a_new(watching: Prometheus, series: str) -> None:
    """Wait until all of these series have a value from after this moment."""
    seen = time.time()
    wait_for(lambda: watching.value(f"min(timestamp({series}))") > seen, f"{series} was evaluated anew")


def _all_up(watching: Prometheus, total: int) -> bool:
    """Choose this moment to ask everything about, when no scrape fails at it."""
    watching.at = time.time()
    return watching.value("sum(up)") == len(traffic()) and watching.value("sum(samegraph_input_rows_total)") == total


def send(server: LiveServer, rows: Sequence[Row]) -> list[str]:
    labels: list[str] = []
    for start in range(0, len(rows), 50):
        sent = rows[start : start + 50]
        reply = server.predict("plants", {"instances": sent}, **{"samegraph-unit": f"user-{start}"})
        assert reply.status == 200, reply.body
        answered = [answer["label"] for answer in reply.json()["predictions"]]
        labels += answered
        outcome: dict[str, Any] = {"prediction_id": f"{reply.headers['samegraph-prediction-id']}.0", "values": {"clicked": 1}}
        if len(sent) <= LABELLED_INSTANCES:
            outcome["label"] = answered[0]
        taken = server.request("POST", "/v1/models/plants:feedback", json.dumps(outcome))
        assert taken.json()["accepted"] == 1, taken.body
    return labels


def counted(variable: Variable, values: Sequence[Any]) -> list[int]:
    """Return the rows in each bin of `variable`, counted here and not by the code that serves."""
    return [Counter(label_of(variable, value) for value in values)[label] for label in variable.labels]


def label_of(variable: Variable, value: Any) -> str:
    if value is None:
        return "missing"
    if variable.kind == "categorical":
        return f"{variable.categories.index(value):02d}" if value in variable.categories else "unseen"
    assert variable.minimum is not None
    assert variable.maximum is not None
    if not variable.minimum <= value <= variable.maximum:
        return "below" if value < variable.minimum else "above"
    return f"{int(np.searchsorted(variable.edges, value, side='right')):02d}"


def variable_of(stage: Stage, name: str) -> tuple[Variable, list[Any]]:
    """Return a variable of the baseline and its values in all rows that were sent, or in all answers."""
    if name == "label":
        found = next(v for _, v in stage.baseline.answers() if v.name == name)
        return found, [label for labels in stage.answers for label in labels]
    return next(v for _, v in stage.baseline.inputs() if v.name == name), [row[name] for row in stage.rows]


# --- drift ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["size", "kind", "label"])
def test_drift_is_that_of_the_pooled_rows(stage: Stage, name: str) -> None:
    """Statistics from three replicas' counters are what the server's own formulas make of all raw rows together, to 1e-9."""
    variable, values = variable_of(stage, name)
    window = counted(variable, values)
    n_eff, tests = statistics.effective_rows(sum(window), variable.rows), len([*stage.baseline.inputs(), *stage.baseline.answers()])
    expected = {
        "field:samegraph_drift_psi:sum": statistics.population_stability_index(variable.counts, window),
        "field:samegraph_drift_js_divergence_bits:sum": statistics.js_divergence_bits(variable.counts, window),
        "field:samegraph_drift_linf:max": statistics.l_infinity(variable.counts, window)[0],
        "field:samegraph_drift_effective_rows:harmonic": n_eff,
        "field:samegraph_drift_psi_critical:quantile": statistics.psi_critical_closed_form(len(window), n_eff, alpha=0.001 / tests),
    }
    found = {rule: stage.prometheus.value(f'{rule}{{field="{name}", window="{EXACT}", against="baseline"}}') for rule in expected}
    assert found == pytest.approx(expected, rel=1e-9)
    one_replica = counted(variable, values[: len(stage.sent[0])])
    assert expected["field:samegraph_drift_psi:sum"] != pytest.approx(
        statistics.population_stability_index(variable.counts, one_replica), rel=0.05
    )


@pytest.mark.parametrize("name", ["size", "kind", "label"])
def test_verdicts_are_the_servers_own(stage: Stage, name: str) -> None:
    """The rules call a field what the server's exact rule calls the pooled rows."""
    variable, values = variable_of(stage, name)
    tests = len([*stage.baseline.inputs(), *stage.baseline.answers()])
    verdict = statistics.compare(variable.counts, counted(variable, values), statistics.AlarmRule(), tests=tests).state
    code = stage.prometheus.value(f'field:samegraph_drift_state:code{{field="{name}", window="{EXACT}", against="baseline"}}')
    assert ("not_enough_data", "quiet", "shifted", "drifted")[int(code)] == verdict


@pytest.mark.parametrize("name", ["size", "kind"])
def test_the_bin_that_moved_is_named(stage: Stage, name: str) -> None:
    """The largest change of a share has the sign, the size and the bin it has in the raw rows."""
    variable, values = variable_of(stage, name)
    window = np.array(counted(variable, values))
    change = window / window.sum() - np.array(variable.counts) / variable.rows
    own = f'field_bin:samegraph_share_difference:sub{{field="{name}", window="{EXACT}"}}'
    assert stage.prometheus.by("bin", f"topk(1, {own})") == pytest.approx({variable.labels[int(change.argmax())]: change.max()})


@pytest.mark.parametrize("window", ["1h", "24h"])
def test_extrapolation_stretches_a_replica_as_a_whole(stage: Stage, window: str) -> None:
    """What `increase` makes of a replica's counts is one factor for all its bins, so it changes no replica's shares, only its weight."""
    variable, values = variable_of(stage, "size")
    ends = np.cumsum([0, *map(len, stage.sent)])
    replicas = np.array([counted(variable, values[start:end]) for start, end in itertools.pairwise(ends)], dtype=float)
    recorded = stage.prometheus.by("bin", f'field_bin:samegraph_window_rows:increase{{field="size", window="{window}"}}')
    rows = np.array([recorded[label] for label in variable.labels])
    factors, *_ = np.linalg.lstsq(replicas.T, rows)
    assert factors @ replicas == pytest.approx(rows, rel=1e-9, abs=1e-9)
    assert all(factors >= 1)
    assert all(factors < 2.2)  # by at most 1.1 of the time between two scrapes, of which there was one at least


def test_counts_of_every_quantity_sum_to_the_rows(stage: Stage) -> None:
    """No row is in two bins or in none, on any replica."""
    rows = stage.prometheus.by("instance", "samegraph_input_rows_total")
    for label, metric in (("field", "samegraph_input_bin_rows_total"), ("output", "samegraph_output_bin_rows_total")):
        sums = stage.prometheus.query(f"sum by (instance, {label}) ({metric})")
        assert len(sums) > 2
        assert all(value == rows[dict(labels)["instance"]] for labels, value in sums.items())


def test_differences_of_the_last_values_are_exact(stage: Stage) -> None:
    """The expression docs/drift.md gives for exact numbers gives the pooled counts themselves, from the first scrape of all replicas on."""
    (block,) = re.findall(r"    sum by \(job, model, version, field, bin\) \(\n.*?\n    \)", DRIFT_PAGE, flags=re.DOTALL)
    began = stage.prometheus.value("max(min_over_time(timestamp(samegraph_input_rows_total)[10m:500ms]))")
    now = stage.prometheus.at or time.time()
    exact = block.replace("offset 1h", f"offset {int((now - began) * 1000)}ms")
    for name in ("size", "kind"):
        variable, values = variable_of(stage, name)
        found = stage.prometheus.by("bin", f'({exact}) and on (field) label_replace(vector(1), "field", "{name}", "", "")')
        assert [found[label] for label in variable.labels] == counted(variable, values)


def test_a_report_is_made_from_prometheus(stage: Stage) -> None:
    """`samegraph drift report --prometheus` says of all replicas what the rules say, and names the bin."""
    group = SamegraphGroup(commands={"drift": drift})
    asked = [
        "drift",
        "report",
        f"--prometheus={stage.prometheus.url}",
        f"--package={stage.package}",
        "--window=1h",
        "--job=samegraph",
        "--json",
    ]

    def told() -> dict[str, Any]:
        result = CliRunner().invoke(group, asked)
        assert result.exit_code == 3, result.output
        return dict(json.loads(result.stdout))

    def of_rule(variable: dict[str, Any]) -> float | None:
        return stage.prometheus.value(f'field:samegraph_drift_psi:sum{{field="{variable["name"]}", window="1h", against="baseline"}}')

    report = told()
    assert report["rule"]["alpha"] == pytest.approx(0.001)
    assert report["errors"] == [{"field": "size", "kind": "wrong_type", "count": pytest.approx(len(stage.servers), abs=4)}]
    for variable in report["variables"]:
        # Both stretch each replica's counts of a few seconds to their window (by up to 2.2, see above), each at a moment of its own, so the
        # replicas' weights differ; that the same counts give the same figure to 1e-9 is tested with differences of the last values.
        assert variable["psi"] == pytest.approx(of_rule(variable), rel=0.35), variable["name"]
        assert sum(point["rows"] for point in variable["trend"]) > len(stage.rows) / 2
    (size,) = [variable for variable in report["variables"] if variable["name"] == "size"]
    change = {b["bin"]: b["now"] / size["rows"] - b["baseline"] / stage.baseline.rows for b in size["bins"]}
    assert size["linf_bin"]["bin"] == max(change, key=lambda label: abs(change[label]))
    mean = sum(value for row in stage.rows if (value := row["size"]) is not None) / sum(row["size"] is not None for row in stage.rows)
    assert size["mean"]["now"] == pytest.approx(mean, rel=0.1)


# --- the dashboard --------------------------------------------------------------------------------------------------------


def substituted(expression: str) -> str:
    """Return a query of the dashboard as Grafana would send it."""
    for name, value in VARIABLES.items():
        expression = re.sub(rf"\${name}\b", value, expression)
    return expression.replace("$__rate_interval", "1m")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Return (panel's title, query) of all panels."""
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def metrics_in(expression: str) -> set[str]:
    """Return the names of the series an expression reads."""
    return set(re.findall(r"\b(?:[a-z_]+:\w+:\w+|(?:samegraph|process)_\w+)", re.sub(r'"[^"]*"', "", expression)))


@pytest.mark.parametrize(("title", "expression"), queries(), ids=[f"{title} {i}" for i, (title, _) in enumerate(queries())])
def test_every_panel_finds_its_series(stage: Stage, title: str, expression: str) -> None:
    """A real Prometheus takes the query and has series for it from the real servers."""
    query = substituted(expression)
    assert "$" not in query
    assert stage.prometheus.query(query), f"{title} stays empty: {query}"


def test_every_variable_and_annotation_can_be_asked(stage: Stage) -> None:
    """The lists people choose from are filled from series that exist, and annotations are valid queries."""
    asked = [v["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    for text in asked:
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", text)
        assert found
        selector, label = substituted(found[1]), found[2]
        assert stage.prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": selector}), text
    notes = [note["expr"] for note in DASHBOARD["annotations"]["list"] if "expr" in note]
    assert notes
    for note in notes:
        stage.prometheus.query(substituted(note))


def test_dashboard_and_rules_read_what_is_exported(stage: Stage) -> None:
    """Every series a panel, rule or alert reads is recorded by a rule or stands on a replica's /metrics under that very name."""
    exported = {
        sample.name
        for family in text_string_to_metric_families(stage.servers[0].get("/metrics").body.decode())
        for sample in family.samples
    }
    rules = list(stage.prometheus.rules())
    known = exported | {rule["name"] for rule in rules if rule["type"] == "recording"}
    read = [(rule["name"], rule["query"]) for rule in rules] + queries()
    assert {(where, name) for where, expression in read for name in metrics_in(expression) - known} == set()


def test_drift_is_told_and_nothing_else_fires(stage: Stage) -> None:
    """Of healthy replicas whose inputs drifted, that is what waits for its 15 minutes; no alert of the service is near."""
    waiting = {dict(labels)["alertname"] for labels in stage.prometheus.query('ALERTS{alertstate="pending"}')}
    assert {"SamegraphInputDrifted", "SamegraphOutputDrifted"} <= waiting
    assert waiting.isdisjoint(
        {"SamegraphDown", "SamegraphNoReplicaReady", "SamegraphNotReady", "SamegraphDegraded", "SamegraphVersionsDiffer"}
    )
    assert waiting.isdisjoint({"SamegraphDriftBlind", "SamegraphDriftRowsDropped", "SamegraphGoldenCheckFailed", "SamegraphErrors"})
    assert stage.prometheus.query('ALERTS{alertstate="firing"}') == {}


# --- what Grafana wants of the file -----------------------------------------------------------------------------------------


def test_panels_have_a_place_of_their_own() -> None:
    """Ids differ, and no two panels lie over each other on the grid of 24 columns."""
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    cells = Counter(
        (x, y)
        for at in (panel["gridPos"] for panel in every)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    )
    assert max(cells.values()) == 1
    assert max(x for x, _ in cells) == 23


def test_the_dashboard_can_be_provisioned() -> None:
    """It has a fixed identity, no id of somebody's database, and asks the Prometheus that was chosen."""
    assert DASHBOARD["uid"] == "samegraph"
    assert "id" not in DASHBOARD
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["datasource"] == chosen
        assert [target["datasource"] for target in panel["targets"]] == [chosen] * len(panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_panel_is_explained(panel: dict[str, Any]) -> None:
    """It says what it shows, has a unit, and docs/observability.md says what it is good for."""
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert f"\n| {panel['title']} | " in PAGE

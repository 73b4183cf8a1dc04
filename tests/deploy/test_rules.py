"""The recording rules and alerts under deploy/prometheus, judged by Prometheus' own tool, and documented each."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "prometheus"
RULES = sorted((DEPLOY / "rules").glob("*.yml"))
CASES = sorted((DEPLOY / "tests").glob("*.yml"))
PAGE = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
SEVERITIES = ("critical", "warning", "info")


@dataclass(frozen=True)
class Alert:
    """One alert as its file has it."""

    name: str
    text: str

    def value(self, key: str) -> str:
        found = re.search(rf"\b{key}: *(.*)", self.text)
        assert found, f"{self.name} has no {key}"
        return found[1]


def alerts() -> list[Alert]:
    """Return every alert of the rules."""
    blocks = re.split(r"(?m)^ +- (?=alert: |record: |name: )", "".join(path.read_text(encoding="utf-8") for path in RULES))
    return [Alert(block.split()[1], block) for block in blocks if block.startswith("alert: ")]


def recorded() -> list[str]:
    """Return the name of every recorded series, in order."""
    return list(dict.fromkeys(name for path in RULES for name in re.findall(r"record: (\S+)", path.read_text(encoding="utf-8"))))


def promtool(*arguments: str | Path) -> str:
    """Run promtool; return what it says, having passed."""
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_the_configuration_and_its_rules_are_valid() -> None:
    """Prometheus' own check accepts the configuration people take, and finds the rule files from it."""
    assert f"{len(RULES)} rule files found" in promtool("check", "config", DEPLOY / "prometheus.yml")


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_rules_say_what_they_must(case: Path) -> None:
    """The pinned cases come out to ten digits; every alert fires when it must and only then."""
    promtool("test", "rules", case)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_every_alert_is_tested_both_ways(alert: Alert) -> None:
    """Some case makes it fire, and in another, or at another time, it keeps quiet."""
    assertions = [text for case in CASES for text in re.split(r"(?m)^ +- (?=\{?eval_time|name:|expr:)", case.read_text(encoding="utf-8"))]
    mine = [text for text in assertions if re.search(rf"alertname: {alert.name}\b", text)]
    assert any("exp_alerts" in text for text in mine)
    assert any("exp_alerts" not in text for text in mine)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_every_alert_leads_to_its_advice(alert: Alert) -> None:
    """It has a severity, a summary and a description, and its runbook is a heading of docs/observability.md with something under it."""
    severity = alert.value("labels").removeprefix("{severity: ").removesuffix("}")
    assert severity in SEVERITIES
    assert alert.value("summary")
    assert alert.value("description")
    assert alert.value("runbook") == f"docs/observability.md#{alert.name.lower()}"
    advice = re.search(rf"(?ms)^### {alert.name}\n(.*?)(?=^### |\Z)", PAGE)
    assert advice
    assert len(advice[1].split()) > 20
    assert re.search(rf"(?m)^\| \[{alert.name}\]\(#{alert.name.lower()}\) \| {severity} \|", PAGE)


def test_every_recorded_series_is_documented_and_no_other() -> None:
    """Names in the page's tables of rules and knobs are those the rules record."""
    documented = re.findall(r"(?m)^\| `([a-z_]+:[^`]+)` \|", PAGE)
    assert sorted(documented) == sorted(recorded())


@pytest.mark.parametrize("knob", [name for name in recorded() if name.endswith(":knob")])
def test_every_knob_has_the_documented_value(knob: str) -> None:
    """The page says the number that is in the file, and some alert or dashboard reads the knob."""
    text = (DEPLOY / "rules" / "knobs.yml").read_text(encoding="utf-8")
    value = re.search(rf"record: {knob} .*\n +expr: vector\(([\d.]+)\)", text)
    assert value
    assert re.search(rf"(?m)^\| `{knob}` \| {re.escape(value[1])} \|", PAGE)
    assert f"scalar({knob})" in "".join(alert.text for alert in alerts())


def test_expressions_are_written_out() -> None:
    """Prometheus reads the name of a YAML alias as the expression, without a word, so no expression may be one."""
    assert [path.name for path in RULES if re.search(r"expr: *[*&]", path.read_text(encoding="utf-8"))] == []

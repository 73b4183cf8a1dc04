"""`samegraph experiment report`, from its command line: what it reads, prints and writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from experiment_pages import Replica, shown, simulate
from samegraph_service.experiments.analysis.commands import experiment
from samegraph_service.experiments.analysis.snapshots import read_looks

BETTER = {"control": 0.3, "treatment": 0.45}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(experiment, ["report", *arguments], env={"COLUMNS": "160"})


@pytest.fixture
def replicas() -> list[Replica]:
    both = [Replica(), Replica()]
    simulate(both, 1000, BETTER, seed=1)
    return both


def test_the_report_of_two_replicas(replicas: list[Replica]) -> None:
    """The verdict comes first, then effects, arms and the sample ratio; the experiment need not be named when it is the only one."""
    with shown(replicas[0]) as a, shown(replicas[1]) as b:
        result = run("--replica", a, "--replica", b)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "trees on flights, read from 2 replicas"
    assert lines[1].startswith("Treatment is better for clicked by between 0.")
    assert re.search(r"clicked +treatment +0\.\d+ +0\.\d+ +0\.\d+ +0\.\d+ to 0\.\d+ .* better", result.output)
    assert "Sample ratio of 0badcafe: as planned" in result.output


def test_json_is_the_whole_report(replicas: list[Replica]) -> None:
    """Everything a program needs, without NaN, under names of its own."""
    with shown(replicas[0]) as a, shown(replicas[1]) as b:
        document = json.loads(run("trees", "--model", "flights", "--replica", a, "--replica", b, "--json").output)
    assert document["state"] == "better"
    [effect] = document["effects"]
    assert effect["decision"] == "better"
    assert effect["low"] < effect["effect"] < effect["high"]
    assert effect["p"] < 0.05
    assert document["revisions"][0]["sample_ratio"]["broken"] is False
    assert set(document["revisions"][0]["arms"]) == {"control", "treatment"}


def test_looks_are_kept_and_drawn(replicas: list[Replica], tmp_path: Path) -> None:
    """Each run with --append adds a look, and the page draws the sequence over all of them."""
    looks, page = tmp_path / "looks.jsonl", tmp_path / "report.html"
    with shown(replicas[0]) as a:
        for seed in (2, 3, 4):
            simulate(replicas[:1], 100, BETTER, seed=seed)
            result = run("--replica", a, "--append", str(looks), "--html", str(page))
            assert result.exit_code == 0, result.output
    kept = read_looks(looks, "flights", "trees")
    exposed = [look.evidence.current.exposed for look in kept]
    assert exposed == sorted(set(exposed))
    assert len(exposed) == 3
    assert kept[-1].evidence.current.arms["treatment"].feedback["clicked"].count > 100
    text = page.read_text(encoding="utf-8")
    assert text.count('class="estimate"') == 3  # clicked, errors and slow, over three looks
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    looks.write_text("{}\n", encoding="utf-8")
    with shown(replicas[0]) as a:
        assert "line 1: this is no look" in str(run("--replica", a, "--append", str(looks)).exception)


def test_names_are_escaped_on_the_page(tmp_path: Path) -> None:
    """An arm's name cannot become markup."""
    replica = Replica(weights={"control": 1, "<b>x</b>": 1})
    simulate([replica], 200, {"control": 0.3, "<b>x</b>": 0.3}, seed=1)
    page = tmp_path / "report.html"
    with shown(replica) as a:
        assert run("--replica", a, "--html", str(page)).exit_code == 0
    assert "<b>x" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["other"], "no such experiment was found; there are: second of flights, trees of flights"),
        ([], "several experiments fit: second of flights, trees of flights; name one"),
        (["trees", "--control", "b"], "has no arm 'b'; it has control, treatment"),
    ],
    ids=["unknown", "several", "no-such-arm"],
)
def test_what_cannot_be_reported_is_said(replicas: list[Replica], arguments: list[str], message: str) -> None:
    """The message names what there is instead."""
    second = Replica(experiment="second")
    second.expose("u", "control")
    with shown(replicas[0]) as a, shown(second) as b:
        result = run(*arguments, "--replica", a, "--replica", b)
    assert result.exit_code == 1
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "soon"], "'soon' is no duration; write 90s, 15m, 6h, 14d or 4w"),
        (["--header", "token"], "'token' is no header; write 'Name: value'"),
        (["--prometheus", "x", "--replica", "y"], "give either --prometheus or --replica"),
    ],
    ids=["duration", "header", "two-sources"],
)
def test_wrong_usage_is_said(arguments: list[str], message: str) -> None:
    """Exit code 2, and what to write instead."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_broken_ratio_leads_the_page_and_closes_the_effects(tmp_path: Path) -> None:
    """Whoever opens the page sees the warning and the shares; effects are there, behind a closed section."""
    replica, page = Replica(), tmp_path / "report.html"
    simulate([replica], 600, BETTER, seed=1)
    for i in range(4000):
        replica.expose(f"more-{i}", "treatment")
    with shown(replica) as a:
        result = run("--replica", a, "--html", str(page))
    assert result.output.splitlines()[1].startswith("Sample ratio is broken: do not read the rest.")
    text = page.read_text(encoding="utf-8")
    assert text.index("Sample ratio is broken") < text.index("<h2>Revisions") < text.index("<details>") < text.index('class="sequence"')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "http://127.0.0.1:1"], "--url needs --token-file"),
        (["--token-file", "t"], "--token-file goes with --url"),
        (["--url", "x", "--token-file", "t", "--repository", "."], "give either --repository or --url"),
        (["--repository", "nowhere"], "'nowhere' does not exist"),
        ([], "'models' is no directory; give --repository, or --url with --token-file"),
    ],
    ids=["no-token", "no-url", "two-places", "no-directory", "no-default"],
)
def test_the_guard_says_where_it_needs_to_be_told_the_file_is(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, before anything is asked."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(experiment, ["guard", "--prometheus", "http://127.0.0.1:1", "--once", *arguments])
    assert result.exit_code == 2
    assert message in result.output

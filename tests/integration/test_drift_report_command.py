"""`samegraph drift report` as it is run: against real servers and files, with exit codes for cron, and the server's own pages."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from live_server import LiveServer, live_server
from package_builders import KINDS, draft, samples
from samegraph_service.drift import statistics
from samegraph_service.drift_command import drift
from samegraph_transforms.baseline import Baseline
from samegraph_transforms.baseline_bins import Binner
from samegraph_transforms.cli import SamegraphGroup
from samegraph_transforms.draft import BaselineRows
from samegraph_transforms.pack import pack

#: Far beyond this machine's monotonic clock, so that the server's own looks come to nothing.
NOON = 60.0 * 10**7

Row = dict[str, Any]


def plants(n: int, seed: int, grown: float = 0.0) -> list[Row]:
    rng = np.random.default_rng(seed)
    sizes, kinds = rng.normal(grown, 2.0, n), rng.choice(KINDS, n, p=[0.5, 0.3, 0.2])
    return [{"size": None if rng.random() < 0.03 else float(s), "kind": str(k)} for s, k in zip(sizes, kinds, strict=True)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    pack(draft(baseline=BaselineRows(rows=plants(3000, 1), made_from="Plants of last summer.")), samples(), models)
    return models


@pytest.fixture(scope="module")
def baseline(repository: Path) -> Baseline:
    return Baseline.model_validate_json((repository / "plants" / "1" / "baseline.json").read_bytes())


@pytest.fixture(scope="module")
def replicas(repository: Path) -> Iterator[list[LiveServer]]:
    """Two replicas with uneven traffic: one sees most of it, the other other plants."""
    with live_server(repository, drift={"windows": "5m,1h"}) as one, live_server(repository, drift={"windows": "5m,1h"}) as other:
        for minute in range(4):
            for server, rows in ((one, traffic()[0][minute::4]), (other, traffic()[1][minute::4])):
                assert server.predict("plants", {"instances": rows}).status == 200
                server.service.drift.flush()
                server.service.drift.look(NOON + 60 * minute)
        assert other.predict("plants", {"instances": [{"size": "tall", "kind": "moss"}]}).status == 400
        yield [one, other]


def traffic() -> tuple[list[Row], list[Row]]:
    return plants(1600, 2), plants(400, 3, grown=9.0)


def run(*arguments: str) -> Result:
    """Run the command as the `samegraph` group does, errors included."""
    return CliRunner().invoke(SamegraphGroup(commands={"drift": drift}), ["drift", "report", *arguments])


def report_of(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def variable(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [v for v in report["variables"] if v["name"] == name]
    assert isinstance(found, dict)
    return found


def pooled(baseline: Baseline, name: str, rows: Sequence[Row], alone: int) -> statistics.Comparison:
    """Return the comparison of raw values, all together."""
    (of,) = [v for _, v in baseline.inputs() if v.name == name]
    return statistics.compare(of.counts, Binner(of).count([row[name] for row in rows]), statistics.AlarmRule(), tests=alone)


class TestReplicas:
    def test_several_say_what_the_pooled_rows_say(self, replicas: list[LiveServer], baseline: Baseline) -> None:
        """Counts of uneven replicas are added up before anything is computed; what drifted is named with its bin; exit code 3."""
        result = run(*(f"--url={server.url}" for server in replicas), "--json")
        report = report_of(result)
        assert result.exit_code == 3
        assert (report["rows"], report["window"], report["model"]) == (2000, "1h", "plants")
        everything = [*traffic()[0], *traffic()[1]]
        for name in ("size", "kind"):
            expected, found = pooled(baseline, name, everything, len(report["variables"])), variable(report, name)
            assert found["state"] == expected.state
            for statistic in ("psi", "psi_critical", "p_value", "js_divergence_bits", "linf"):
                assert found[statistic] == getattr(expected, statistic), statistic
        assert variable(report, "size")["linf_bin"]["bin"] == "above"
        sizes = [row["size"] for row in everything if row["size"] is not None]
        assert variable(report, "size")["mean"]["now"] == pytest.approx(np.mean(sizes))
        assert report["errors"] == [{"field": "size", "kind": "wrong_type", "count": 1}]
        assert sum(point["rows"] for point in variable(report, "size")["trend"]) == 2000

    def test_one_without_drift_exits_with_0(self, replicas: list[LiveServer]) -> None:
        """Cron sees nothing, and the table says that all is quiet."""
        result = run(f"--url={replicas[0].url}", "--model=plants", "--version=1")
        assert result.exit_code == 0, result.output
        assert "quiet: " in result.stdout
        assert "1,600 rows against 3,000" in result.stdout

    def test_few_rows_exit_with_4(self, repository: Path) -> None:
        """Nothing known is neither drifted nor fine."""
        with live_server(repository) as server:
            result = run(f"--url={server.url}")
        assert result.exit_code == 4
        assert "not enough data" in result.stdout

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["--url=http://127.0.0.1:9"], 1, "cannot be asked"),
            (["--url=ftp://example"], 1, "is no server address"),
            ([], 2, "one kind of source"),
            (["--url=http://x", "--data=."], 2, "one kind of source"),
            (["--data=."], 2, "need --package"),
            (["--url=http://x", "--header=nonsense"], 2, "--header"),
        ],
    )
    def test_what_cannot_be_is_told(self, arguments: list[str], code: int, words: str) -> None:
        """A failure is no verdict: other exit codes, and one sentence."""
        result = run(*arguments)
        assert result.exit_code == code
        assert words in result.output.replace("\n", " ")

    def test_an_unknown_window_names_the_known_ones(self, replicas: list[LiveServer]) -> None:
        """So that nobody has to look them up."""
        result = run(f"--url={replicas[0].url}", "--window=7h")
        assert result.exit_code == 1
        assert "5m, 1h" in result.output


class TestFiles:
    def test_rows_of_any_format_are_counted_alike(self, repository: Path, tmp_path: Path) -> None:
        """JSON Lines, CSV and Parquet of the same rows give the same report; columns that are no fields do not matter."""
        rows = plants(700, 5, grown=4.0)
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, "user": 7}) + "\n" for row in rows))
        (tmp_path / "rows.csv").write_text(
            "size,kind,user\n" + "".join(f"{'' if r['size'] is None else repr(r['size'])},{r['kind']},7\n" for r in rows)
        )
        pq.write_table(pa.Table.from_pylist([{**row, "user": 7} for row in rows]), tmp_path / "rows.parquet")
        reports = [
            report_of(run(f"--data={tmp_path / name}", f"--package={repository / 'plants'}", "--json"))
            for name in ("rows.jsonl", "rows.csv", "rows.parquet")
        ]
        for report in reports:
            assert report["rows"] == 700
            assert variable(report, "size")["state"] == "drifted"
            assert report["variables"] == reports[0]["variables"]

    def test_times_make_the_trend(self, repository: Path, tmp_path: Path) -> None:
        """With a column of times the trend shows when the drift began: here, at half of the day."""
        noon = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
        rows = [
            {**row, "time": noon + dt.timedelta(minutes=12 * (i // 50) - 720)}
            for i, row in enumerate([*plants(3000, 6), *plants(3000, 7, grown=6.0)])
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "day.parquet")
        result = run(f"--data={tmp_path}", f"--package={repository / 'plants' / '1'}", "--json")
        points = variable(report_of(result), "size")["trend"]
        over = [point["psi"] > point["psi_critical"] for point in points]
        assert len(points) == 24
        assert over == [False] * 12 + [True] * 12
        assert "2026-03-01 12:" in points[12]["part"]

    def test_a_capture_is_read_as_it_was_written(self, repository: Path, baseline: Baseline, tmp_path: Path) -> None:
        """Rows that a server captured give the counts of the rows that were sent."""
        rows = plants(400, 9)
        with live_server(repository, capture={"url": str(tmp_path / "captured"), "sample_ratio": 1.0}) as server:
            assert server.predict("plants", {"instances": rows}).status == 200
        report = report_of(run(f"--capture={tmp_path / 'captured'}", f"--package={repository / 'plants'}", "--json"))
        assert report["rows"] == 400
        (of,) = [v for _, v in baseline.inputs() if v.name == "size"]
        assert [b["now"] for b in variable(report, "size")["bins"]] == Binner(of).count([row["size"] for row in rows]).tolist()

    def test_refused_rows_are_told(self, repository: Path, tmp_path: Path) -> None:
        """A row the package would refuse is counted as that, and the others count."""
        rows: list[Row] = [*plants(300, 8), {"size": "tall", "kind": "moss"}, {"size": 1e9, "kind": "moss"}]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
        report = report_of(run(f"--data={tmp_path / 'rows.jsonl'}", f"--package={repository / 'plants'}", "--json"))
        assert report["rows"] == 300
        assert {(e["field"], e["kind"]): e["count"] for e in report["errors"]} == {
            ("size", "wrong_type"): 1,
            ("size", "out_of_range"): 1,
            ("_request", "malformed_json"): 1,
        }


class Page(HTMLParser):
    """Collects what a page refers to, and whether its elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if "href" in found else []
        self.sources += [found["src"] or ""] if "src" in found else []
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


class TestPages:
    def test_the_file_is_whole_and_alone(self, replicas: list[LiveServer], tmp_path: Path) -> None:
        """Every element is closed, every link leads to a card on the page, and nothing is loaded."""
        target = tmp_path / "drift.html"
        assert run(*(f"--url={server.url}" for server in replicas), "--quiet", f"--html={target}").exit_code == 3
        page = Page(target.read_text(encoding="utf-8"))
        assert page.open == []
        assert page.sources == []
        assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
        assert "input-size" in page.ids

    def test_a_server_shows_its_own_view(self, replicas: list[LiveServer]) -> None:
        """From the start page to the overview to the report of a version; the same renderer as the command's."""
        server = replicas[1]
        assert 'href="drift"' in server.get("/").body.decode()
        overview = server.get("/drift")
        assert overview.status == 200
        links = [link for link in Page(overview.body.decode()).links if link.startswith("drift/")]
        assert links == ["drift/plants/1?window=5m", "drift/plants/1?window=1h"]
        reply = server.get(f"/{links[1]}")
        text = reply.body.decode()
        assert reply.status == 200
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert Page(text).open == []
        assert "<b>400</b> rows (this replica)" in text
        assert 'class="chip drifted"' in text

    def test_what_is_not_there_is_answered_like_anything_else(self, replicas: list[LiveServer]) -> None:
        """An unknown model, version or window gets the one error document."""
        for path, status in (("/drift/plants/7", 404), ("/drift/roses/1", 404), ("/drift/plants/1?window=9h", 400)):
            reply = replicas[0].get(path)
            assert (reply.status, "code" in reply.json()) == (status, True)
        assert replicas[0].get("/v1/models/plants/drift?trend=9h").status == 400

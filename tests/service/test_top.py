"""`samegraph top`: rates out of two pages, several replicas added up, and what is drawn of them."""

from __future__ import annotations

import inspect
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from package_builders import draft, samples
from rich.console import Console
from samegraph_service.top import Page, Replica, Screen, scrape
from samegraph_service.top_command import top
from samegraph_transforms.pack import pack
from server_process import ServerProcess

HEAD = """\
# TYPE samegraph_ready gauge
samegraph_ready 1.0
# TYPE samegraph_degraded gauge
samegraph_degraded 0.0
# TYPE samegraph_in_flight_requests gauge
samegraph_in_flight_requests 95.0
# TYPE samegraph_in_flight_requests_limit gauge
samegraph_in_flight_requests_limit 100.0
# TYPE samegraph_model_state gauge
samegraph_model_state{model="m",state="ready",version="1"} 1.0
# TYPE samegraph_queue_rows gauge
samegraph_queue_rows{model="m",version="1"} 7.0
"""


ADMISSION = """\
# TYPE samegraph_hint_returns counter
samegraph_hint_returns_total{{result="hit"}} {hit}
samegraph_hint_returns_total{{result="miss"}} {miss}
samegraph_hint_returns_total{{result="early"}} {early}
# TYPE samegraph_hint_error_seconds histogram
samegraph_hint_error_seconds_sum{{side="early"}} 3.0
samegraph_hint_error_seconds_count{{side="early"}} {hit}
samegraph_hint_error_seconds_sum{{side="late"}} 1.0
samegraph_hint_error_seconds_count{{side="late"}} {miss}
# TYPE samegraph_tickets counter
samegraph_tickets_total{{event="expired"}} {early}
# TYPE samegraph_tickets_waiting gauge
samegraph_tickets_waiting {waiting}
# TYPE samegraph_replayed_requests counter
samegraph_replayed_requests_total{{how="joined"}} {hit}
# TYPE samegraph_refused counter
samegraph_refused_total{{reason="deadline"}} {miss}
# TYPE samegraph_expired_requests counter
samegraph_expired_requests_total{{model="m",version="1"}} {early}
# TYPE samegraph_cancelled_requests counter
samegraph_cancelled_requests_total {early}
"""


def page(at: float, *, answered: float = 0, refused: float = 0, fast: float = 0, slow: float = 0, rows: float = 0, runs: float = 0) -> Page:
    """A page of a replica with one version, its counters as given."""
    text = f"""\
# TYPE samegraph_requests counter
samegraph_requests_total{{model="m",protocol="v1",status="200",version="1"}} {answered}
samegraph_requests_total{{model="m",protocol="v1",status="429",version=""}} {refused}
# TYPE samegraph_refused counter
samegraph_refused_total{{reason="rows"}} {refused}
samegraph_refused_total{{reason="draining"}} 0
# TYPE samegraph_instances counter
samegraph_instances_total{{model="m",version="1"}} {rows}
# TYPE samegraph_request_duration_seconds histogram
samegraph_request_duration_seconds_bucket{{le="0.1",model="m",version="1"}} {fast}
samegraph_request_duration_seconds_bucket{{le="1.0",model="m",version="1"}} {fast + slow}
samegraph_request_duration_seconds_bucket{{le="+Inf",model="m",version="1"}} {fast + slow}
# TYPE samegraph_batch_size histogram
samegraph_batch_size_count{{model="m",version="1"}} {runs}
samegraph_batch_size_sum{{model="m",version="1"}} {rows}
# TYPE samegraph_backlog_rows counter
samegraph_backlog_rows_total{{model="m",version="1"}} {rows * 0.9}
# TYPE samegraph_backlog_wanted_rows counter
samegraph_backlog_wanted_rows_total{{model="m",version="1"}} {rows}
"""
    return Page.read(HEAD + text, at)


def screen_of(*pairs: tuple[Page, Page]) -> Screen:
    screen = Screen([f"http://replica-{i}" for i in range(len(pairs))])
    for replica, pair in zip(screen.replicas, pairs, strict=True):
        for one in pair:
            replica.take(one)
    return screen


def drawn(screen: Screen, width: int = 140) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(screen.draw(width))
    return capture.get()


def test_rates_are_of_the_interval_and_add_up() -> None:
    """Two replicas with intervals of their own: what each counted, by its own seconds."""
    screen = screen_of(
        (
            page(10, answered=100, refused=4, rows=800, runs=10, fast=90, slow=10),
            page(12, answered=300, refused=10, rows=2400, runs=60, fast=270, slow=30),
        ),
        (page(10, answered=0), page(11, answered=50, rows=50, runs=50, fast=50)),
    )
    document = screen.document()
    assert document["requests_per_second"] == pytest.approx((200 + 6) / 2 + 50)
    assert document["refused_per_second"] == {"rows": 3, "draining": 0}
    assert document["failed_per_second"] == {"m": {"4xx": pytest.approx(3)}}
    assert any("failed" in line and line.split()[:3] == ["m", "failed", "3"] for line in drawn(screen).splitlines())
    [version] = screen.versions()
    assert version.requests == {"2xx": 250}
    assert version.states == {"ready": 2}
    assert version.queue_rows == 14
    assert version.mean_batch == pytest.approx(1650 / 100)
    assert version.fill == pytest.approx(0.9)


def test_latency_is_interpolated_within_its_bucket() -> None:
    """Of 100 requests 90 took up to 0.1 s and 10 up to 1 s: the median is 0.1 · 50/90, p99 is 0.1 + 0.9 · 9/10."""
    [version] = screen_of((page(0), page(1, fast=90, slow=10))).versions()
    assert version.quantile(0.5) == pytest.approx(0.1 * 50 / 90)
    assert version.quantile(0.99) == pytest.approx(0.1 + 0.9 * 0.9)
    [idle] = screen_of((page(0, fast=9), page(1, fast=9))).versions()
    assert idle.quantile(0.5) is None


def test_restarted_process_counts_from_zero() -> None:
    """A counter below the one before belongs to another process; nothing is negative."""
    screen = screen_of((page(0, answered=1000, refused=50), page(1, answered=30)))
    assert screen.document()["requests_per_second"] == 30
    assert screen.by_label("samegraph_refused_total", "reason")["rows"] == 0


def test_first_page_alone_says_what_is_and_no_rate() -> None:
    """Gauges are there, rates are zero, and nothing divides by no time."""
    screen = Screen(["http://one"])
    screen.replicas[0].take(page(5, answered=100))
    assert screen.document()["requests_per_second"] == 0
    assert "m/1" in drawn(screen)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_screen_shows_what_matters(width: int) -> None:
    """Model, refusals and how near the limits are, on terminals of any width."""
    shown = drawn(screen_of((page(0), page(1, answered=120, refused=9, rows=120, runs=20, fast=120))), width)
    assert "m/1" in shown
    assert "rows 9/s" in shown
    assert "129 requests/s" in shown
    assert "95/100" in shown


@pytest.mark.parametrize("width", [60, 80, 140])
def test_refused_callers_are_seen_on_any_terminal(width: int) -> None:
    """How many hold tickets, whether hints held and by how much they were off; the alarm is red."""
    pages = [
        Page.read(HEAD + ADMISSION.format(hit=hit, miss=miss, early=early, waiting=40), at)
        for at, hit, miss, early in ((0, 0, 0, 0), (2, 30, 10, 4))
    ]
    pages[0].values["samegraph_hint_error_seconds_sum"] = dict.fromkeys(pages[1].values["samegraph_hint_error_seconds_sum"], 0.0)
    screen = screen_of((pages[0], pages[1]))
    hints = screen.hints()
    assert hints.hit_ratio == 0.75
    assert hints.mean_error == pytest.approx(0.1)
    shown = " ".join(drawn(screen, width).split())
    for words in ("40 waiting", "22/s came back", "75% got in when told", "2/s too early", "off by 100 ms", "2/s never came"):
        assert words in shown
    for words in ("refused deadline 5/s", "dropped expired 2/s callers left 2/s", "replayed joined 15/s"):
        assert words in shown
    assert max(map(len, drawn(screen, width).splitlines())) <= width
    document = screen.document()
    assert document["tickets"] == {"waiting": 40, "per_second": {"expired": 2}}
    assert document["hints"]["returns_per_second"] == {"hit": 15, "miss": 5, "early": 2}


def test_every_series_that_is_read_is_exported() -> None:
    """A name that no server has would read as nothing for ever; docs/metrics.md is held to what servers have."""
    source = Path(inspect.getsourcefile(Screen) or "").read_text(encoding="utf-8")
    read = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r'"(samegraph_[a-z_]+)"', source)}
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert {"samegraph_hint_returns_total", "samegraph_hint_error_seconds", "samegraph_tickets_waiting"} < read
    assert {name for name in read if f"| `{name}` |" not in documented} == set()


def test_curve_moves_on_with_every_interval() -> None:
    """Thirty rates at most, the newest last, drawn against the largest."""
    screen = Screen(["http://one"])
    screen.replicas[0].take(page(0))
    total = 0
    shown: list[str] = []
    for second in range(1, 40):
        total += second
        screen.replicas[0].take(page(second, answered=total))
        shown.append(drawn(screen, 200))
    lately = [next(word for word in text.split() if "▁" in word or "█" in word) for text in shown]
    assert [len(curve) for curve in (lately[0], lately[-1])] == [1, 30]
    assert lately[-1] == "".join(sorted(lately[-1]))
    assert lately[-1][-1] == "█"


def test_what_is_no_server_is_a_problem_and_not_an_end(tmp_path: Path) -> None:
    """Nothing listens, or something else answers: the line of that replica says so, the others go on."""
    gone = Replica("http://127.0.0.1:9")
    scrape(gone)
    assert gone.now is None
    assert "refused" in gone.problem.lower()
    other = Replica("file:///etc/hostname")
    scrape(other)
    assert "only http" in other.problem
    screen = Screen([gone.url, "http://two"])
    screen.replicas[0].lost(gone.problem)
    screen.replicas[1].take(page(0))
    assert gone.problem in drawn(screen)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    pack(draft(), samples(), repository)
    running = ServerProcess(repository)
    try:
        assert running.url, "\n".join(running.lines)
        yield running
    finally:
        running.close()


def test_running_server_is_seen_as_it_is(server: ServerProcess) -> None:
    """Requests sent between two scrapes are the increase, failures by their code, and the version is ready."""
    replica = Replica(server.url)
    scrape(replica)
    name = json.loads(server.get("/v1/models")[1])["models"][0]
    for _ in range(5):
        request = urllib.request.Request(f"{server.url}/v1/models/{name}:predict", b"{", method="POST")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=30)
    scrape(replica)
    assert replica.problem == ""
    screen = Screen([server.url])
    screen.replicas[0] = replica
    assert replica.total("samegraph_requests_total") == 5
    [version] = screen.versions()
    assert (version.model, version.states) == (name, {"ready": 1})
    assert screen.by_label("samegraph_errors_total", "code")["malformed_json"] > 0


def test_command_prints_one_interval(server: ServerProcess) -> None:
    """For people and for programs; without any server it fails."""
    runner = CliRunner()
    shown = runner.invoke(top, [server.url, "--once", "--interval", "0.2"])
    assert shown.exit_code == 0, shown.output
    assert "requests/s" in shown.output
    document = json.loads(runner.invoke(top, [server.url, "--once", "--json", "--interval", "0.2"]).output)
    assert document["replicas"][0]["ready"] == 1
    assert document["interval_seconds"] >= 0.2
    lost = runner.invoke(top, ["http://127.0.0.1:9", "--once", "--interval", "0.2"])
    assert lost.exit_code == 1
    assert runner.invoke(top, ["x"] * 65).exit_code == 2

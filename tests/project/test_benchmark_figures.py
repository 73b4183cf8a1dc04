"""Figures are what they say: intervals cover, ratios are taken within rounds, verdicts follow the interval, results merge by workload."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import analysis, picture, record
from benchmarks.analysis import OURS
from benchmarks.contenders import VARIANTS, Variant, clients_of, contenders, groups, role, rotated
from benchmarks.limit import Measured, Way, may_limit, ways
from benchmarks.load import Burst, Load, OpenLoad
from benchmarks.machine import cores, describe
from benchmarks.plan import QUICK, Pace, Progress, total_s
from benchmarks.ratios import Interval, median_interval, verdict
from benchmarks.record import Contender, NotARecord, Plain, Record, Result, Round, Turn
from benchmarks.report import page
from benchmarks.run import QUICK_SERVERS, QUICK_WORKLOADS, calmest, free_path
from benchmarks.targets import TARGETS, outcomes
from benchmarks.workloads import MOBILENET, TREES, WORKLOADS

#: A way that keeps this machine busy, whatever it has.
BUSY = Way("plain", 1, cores(), 1)
ALONE = Way("plain", 1, 1, 1)
IN_PROCESS = Way("package", 1, cores(), 1)


def load(per_s: float = 100.0, p50_ms: float = 10.0, p99_ms: float = 12.0, cpu_ms: float = 5.0, failed: int = 0) -> Load:
    return Load(per_s, p50_ms, p99_ms, cpu_ms, resident_mib=200.0, requests=100, failed=failed)


def plain(way: Way, per_s: float, cpu_ms: float, p50_ms: float = 9.0) -> Plain:
    return Plain(way, Measured(per_s, cpu_ms, p50_ms), Measured(per_s, cpu_ms, p50_ms))


def one_round(speed: float, turns: dict[str, Turn], cpu_ms: float = 4.0) -> Round:
    """A round of a machine that is `speed` times as fast as usual."""
    alone = [plain(ALONE, 60 * speed, cpu_ms, 8.0)] if cores() > 1 else []  # on one core it is the same way
    ways = [*alone, plain(BUSY, 110 * speed, cpu_ms, 9.0 if alone else 8.0), plain(IN_PROCESS, 130 * speed, cpu_ms / 2)]
    return Round(ways, turns, stolen_ratio=0.0, others_ratio=0.01)


def turn(loads: dict[int, Load], burst: Burst | None = None) -> Turn:
    return Turn(ready_s=3.0, loading_s=2.0, ready_mib=150.0, loads=loads, burst=burst)


def result(rounds: list[Round], title: str = "a photo", burst: int = 0) -> Result:
    return Result(
        title=title,
        measured_on="2026-01-02",
        command="benchmarks/run.py",
        machine=describe(),
        seconds=4,
        limiting=["plain"],
        burst=burst,
        contenders={
            "samegraph": Contender("ours", "samegraph serve"),
            "samegraph, chatty": Contender("variant", "samegraph serve --chatty"),
            "swift": Contender("peer", "swift serve", "swift 1.0"),
            "steady": Contender("peer", "steady serve"),
            "absent": Contender("peer", note="not installed: no wheel"),
        },
        rounds=rounds,
        plain_mib=140.0,
    )


# --- intervals --------------------------------------------------------------------------------------------------------


def test_interval_of_a_known_case() -> None:
    """The median of nine values, and percentiles of resampled medians that anybody can repeat: the seed is fixed."""
    found = median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    assert found == median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    assert (found.median, found.n) == (5.0, 9)
    # The chance that fewer than five of nine draws are above 2: the binomial tail, 3.4 % at 2 and 0.5 % at 1, so 2.5 % lies at 2.
    assert (found.low, found.high) == (2.0, 8.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([3.0], Interval(3.0, 3.0, 3.0, 1), id="one round has no spread"),
        pytest.param([1.0, 2.0, 4.0], Interval(2.0, 1.0, 4.0, 3), id="three rounds give their range"),
        pytest.param([5.0] * 9, Interval(5.0, 5.0, 5.0, 9), id="all alike"),
    ],
)
def test_interval_of_few_values(values: list[float], expected: Interval) -> None:
    """Few rounds say little, and the interval owns up to it."""
    assert median_interval(values) == expected


def test_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    """Of 200 runs of nine rounds with skewed noise, at least nine in ten have the true ratio in their interval."""
    generator = np.random.default_rng(7)
    runs = np.exp(generator.normal(0, 0.1, (200, 9)))
    covered = [found.low <= 1.0 <= found.high for found in map(median_interval, runs.tolist())]
    assert 0.9 <= np.mean(covered) < 1.0


def test_interval_of_nothing_is_refused() -> None:
    """A figure that was never measured is not zero."""
    with pytest.raises(ValueError, match="no round"):
        median_interval([])


@pytest.mark.parametrize(
    ("low", "median", "high", "bounds", "expected"),
    [
        pytest.param(1.0, 1.02, 1.04, {"at_most": 1.05}, "met", id="all below"),
        pytest.param(1.0, 1.05, 1.05, {"at_most": 1.05}, "met", id="up to the bound is within it"),
        pytest.param(1.0, 1.04, 1.08, {"at_most": 1.05}, "met at the median", id="reaches over"),
        pytest.param(1.0, 1.06, 1.08, {"at_most": 1.05}, "missed at the median", id="reaches under"),
        pytest.param(1.06, 1.07, 1.08, {"at_most": 1.05}, "missed", id="all above"),
        pytest.param(2.1, 2.5, 3.0, {"at_least": 2.0}, "met", id="at least: all above"),
        pytest.param(1.9, 2.5, 3.0, {"at_least": 2.0}, "met at the median", id="at least: reaches under"),
        pytest.param(1.5, 1.9, 2.1, {"at_least": 2.0}, "missed at the median", id="at least: reaches over"),
        pytest.param(1.5, 1.6, 1.9, {"at_least": 2.0}, "missed", id="at least: all below"),
    ],
)
def test_verdict_follows_the_interval(low: float, median: float, high: float, bounds: dict[str, float], expected: str) -> None:
    """Plainly met or missed only when the whole interval says so."""
    assert verdict(Interval(median, low, high, 9), **bounds) == expected
    assert verdict(None, **bounds) == "not measured"


def test_two_rounds_say_nothing_plainly() -> None:
    """An interval of one or two rounds is no interval."""
    assert verdict(Interval(1.0, 1.0, 1.0, 2), at_most=1.05) == "met at the median"
    assert verdict(Interval(2.0, 2.0, 2.0, 1), at_most=1.05) == "missed at the median"


def test_target_has_one_bound() -> None:
    """Neither none nor two."""
    with pytest.raises(ValueError, match="either"):
        verdict(Interval(1.0, 1.0, 1.0, 1))
    with pytest.raises(ValueError, match="either"):
        verdict(Interval(1.0, 1.0, 1.0, 1), at_most=1.0, at_least=1.0)


# --- ratios -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos() -> Result:
    """Three rounds on a machine that doubles its speed; peers took part in two of them."""
    rounds = []
    for number, speed in enumerate((1.0, 2.0, 2.0)):
        turns = {
            "samegraph": turn({1: load(55 * speed, p50_ms=8.5), 32: load(105 * speed, 300 / speed, 360 / speed, 4.2)}),
            "samegraph, chatty": turn({32: load(100 * speed, 300 / speed, 360 / speed, 4.41)}),
        }
        if number < 2:
            turns["swift"] = turn({1: load(30 * speed, p50_ms=30), 32: load(100 * speed, p99_ms=600, cpu_ms=6)})
            turns["steady"] = turn({1: load(50 * speed, p50_ms=9), 32: load(70 * speed, p99_ms=400, cpu_ms=5)})
        rounds.append(one_round(speed, turns))
    return result(rounds)


def test_ratios_are_taken_within_a_round(photos: Result) -> None:
    """A machine that doubles its speed between rounds leaves ratios as they were."""
    of_limit = analysis.of_limit(photos, "samegraph", 32, "per_s")
    of_peer = analysis.of_best_peer(photos, "samegraph", 32, "per_s")
    cost = analysis.of_limit(photos, "samegraph", 32, "cpu_ms")
    chatty = analysis.overhead(photos, "samegraph, chatty", 32, "cpu_ms")
    assert of_limit is not None
    assert of_peer is not None
    assert cost is not None
    assert chatty is not None
    assert (of_limit.low, of_limit.high, of_limit.n) == pytest.approx((105 / 110, 105 / 110, 3))
    assert (of_peer.median, of_peer.n) == pytest.approx((1.05, 2)), "only rounds in which peers took part"
    assert (cost.low, cost.high) == pytest.approx((1.05, 1.05))
    assert chatty.median == pytest.approx(1.05)


def test_cost_of_a_setting_is_borne_by_whoever_has_it(photos: Result) -> None:
    """Where a variant leaves something out, the usual settings are the dearer side."""
    photos.contenders["samegraph, quiet"] = Contender("variant", does_less=True)
    for one in photos.rounds:
        one.turns["samegraph, quiet"] = turn({32: load(cpu_ms=4.0)})
    cost = analysis.overhead(photos, "samegraph, quiet", 32, "cpu_ms")
    assert cost is not None
    assert cost.median == pytest.approx(4.2 / 4.0)
    what = [outcome.target.what for outcome in outcomes(Record("x86_64-2cpu", {"mobilenet": photos}))]
    assert "CPU per request: usual settings over *samegraph, quiet*, 32 clients" in what


def test_best_peer_is_best_in_that_figure(photos: Result) -> None:
    """One peer may answer most and another be the quickest."""
    assert analysis.best_peer(photos, 32, "per_s") == "swift"
    assert analysis.best_peer(photos, 32, "p99_ms") == "steady"
    tail = analysis.of_best_peer(photos, "samegraph", 32, "p99_ms")
    assert tail is not None
    assert (tail.low, tail.high) == pytest.approx((180 / 400, 360 / 400))


def test_limit_is_chosen_over_all_rounds_and_uses_every_core(photos: Result) -> None:
    """A single thread is no limit for thirty-two clients, nor is our own code, and one lucky round decides nothing."""
    assert analysis.limit_way(photos, 32, "per_s") == BUSY
    assert analysis.limit_way(photos, 1, "p50_ms") == ALONE
    processes = Way("plain", cores(), 1, 1)
    for number, one in enumerate(photos.rounds):
        lucky = number == 0
        photos.rounds[number] = replace(one, plain=[*one.plain, plain(processes, 500.0 if lucky else 50.0, 1.0 if lucky else 9.0)])
    assert analysis.limit_way(photos, 32, "cpu_ms") == BUSY
    assert analysis.limit_way(photos, 32, "per_s") == BUSY


def test_gain_of_our_code_over_the_plain_pipeline(photos: Result) -> None:
    """The same work in one process, in CPU time."""
    gain = analysis.gain_in_process(photos, 32)
    assert gain is not None
    assert gain.median == pytest.approx(2.0)


def test_burst_allows_for_the_load_generator() -> None:
    """The limit needs frames / rate, and the generator's own CPU on the same cores."""
    sent = Burst(300, makespan_s=3.5, p50_ms=1500, cpu_ms=9, refused=2, retries=2, failed=1, wrong=0, own_cpu_s=0.5 * cores())
    found = result([one_round(1.0, {"samegraph": turn({}, sent)})], burst=300)
    share, mishaps = analysis.burst_of_limit(found, "samegraph"), analysis.burst_mishaps(found, "samegraph")
    assert share is not None
    assert mishaps is not None
    assert share.median == pytest.approx(3.5 / (300 / 110 + 0.5))
    assert mishaps.median == 3
    assert analysis.failed(found, "samegraph") == 1


def test_start_and_memory_stand_beside_what_they_are_compared_with(photos: Result) -> None:
    """Loading is not counted against the start, and memory is the most after any load."""
    start, memory = analysis.loading_apart(photos, "samegraph"), analysis.memory_over_plain(photos, "samegraph")
    assert start is not None
    assert memory is not None
    assert start.median == pytest.approx(1.0)
    assert memory.median == pytest.approx(60.0)


def test_figure_that_was_not_measured_is_none(photos: Result) -> None:
    """Not zero, not an error."""
    assert analysis.figure(photos, "absent", 32, "per_s") is None
    assert analysis.figure(photos, "samegraph", 8, "per_s") is None
    assert analysis.of_best_peer(result([]), "samegraph", 32, "per_s") is None
    assert analysis.limit(result([]), 32, "per_s") is None


# --- promises ---------------------------------------------------------------------------------------------------------


def test_every_promise_is_held_against_the_record(photos: Result) -> None:
    """Figures of one workload are judged; what was not measured says so; each variant adds a promise of its own."""
    found = outcomes(Record("x86_64-2cpu", {"mobilenet": photos}))
    judged = {outcome.target.what: outcome.verdict for outcome in found if outcome.target.workload == "mobilenet"}
    assert judged["CPU per image over the limit's, 32 clients"] == "met"
    assert judged["p99 / p50 at 32 clients"] == "met"
    assert judged["median latency beyond the limit's single image, 1 client"] == "met"
    assert judged["CPU per request: *samegraph, chatty* over usual settings, 32 clients"] == "missed"
    assert {outcome.verdict for outcome in found if outcome.target.workload != "mobilenet"} == {"not measured"}
    assert len(found) == len(TARGETS) + 1


def test_promises_are_about_workloads_there_are() -> None:
    """A misspelt workload would never be measured."""
    assert {target.workload for target in TARGETS} <= WORKLOADS.keys()


# --- rounds and time --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disturbance:
    others_ratio: float


@pytest.mark.parametrize(
    ("disturbances", "rounds", "patience", "kept", "repeated"),
    [
        pytest.param([0.01, 0.5, 0.02], 2, 4, [0.01, 0.02], 1, id="measured again"),
        pytest.param([0.5, 0.3, 0.4, 0.2], 2, 2, [0.3, 0.2], 2, id="patience ends, the calmest count"),
        pytest.param([0.0, 0.0], 2, 4, [0.0, 0.0], 0, id="calm from the start"),
    ],
)
def test_disturbed_rounds_are_measured_again(
    disturbances: list[float], rounds: int, patience: int, kept: list[float], repeated: int
) -> None:
    """Rounds in which other programs used the CPU are set aside while patience lasts; then the least disturbed are kept."""
    found, again = calmest(lambda number: Disturbance(disturbances[number - 1]), rounds, patience)
    assert [one.others_ratio for one in found] == kept
    assert again == repeated


def test_limit_never_has_more_in_flight_than_clients() -> None:
    """A way's requests in flight are its processes, threads and batch multiplied, and no core idles that has work."""
    assert Way("plain", processes=2, threads=1, batch=32).in_flight == 64
    assert not may_limit(Way("plain", 1, cores(), 8), in_flight=8 * cores() - 1)
    assert may_limit(Way("plain", 1, cores(), 8), in_flight=8 * cores())
    assert may_limit(Way("plain", 1, 1, 1), in_flight=1)
    assert all(any(may_limit(way, n) for n in (1, 8, 32)) for way in ways(MOBILENET, MOBILENET.in_flight))


def test_order_changes_from_round_to_round() -> None:
    """Everybody comes first once."""
    names = ["a", "b", "c"]
    assert [rotated(names, turn) for turn in range(4)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_workloads_of_one_model_share_a_start() -> None:
    """Rows and bodies of rows are sent to the same process, and so are photos and the burst."""
    together = [[workload.name for workload in group] for group in groups(list(WORKLOADS.values()))]
    assert together == [["trees", "rows1000"], ["mobilenet", "burst"], ["resnet50"], ["rows"], ["images"]]


def test_variant_is_ours_with_other_settings() -> None:
    """It differs in what it is about and in nothing else, and is measured where a cost per request shows."""
    known = contenders()
    (name, variant), *_ = VARIANTS.items()
    usual, varied = (known[one].command(80, Path("models")) for one in (OURS, name))
    assert [word for word in usual if word not in variant.without] == varied
    assert role(name) == "variant"
    assert clients_of(name, TREES) == (64,)
    assert clients_of(name, WORKLOADS["images"]) == ()


def test_settings_of_a_variant_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are added to what ours is started with."""
    monkeypatch.setitem(VARIANTS, "samegraph, loud", Variant(variables={"SAMEGRAPH_LOG__LEVEL": "debug"}))
    assert contenders()["samegraph, loud"].environment(TREES, None)["SAMEGRAPH_LOG__LEVEL"] == "debug"


def test_whole_run_is_bounded_and_said() -> None:
    """What `make bench` plans for two cores stays below three quarters of an hour, and a quick look below three minutes."""
    everything, names = list(WORKLOADS.values()), list(contenders())
    assert total_s(everything, names, Pace(), offered=True) < 45 * 60
    assert total_s([WORKLOADS[name] for name in QUICK_WORKLOADS], QUICK_SERVERS, QUICK) < 180


def test_progress_follows_the_pace() -> None:
    """What took twice as long as planned goes on doing so; what is done is done."""
    now = [0.0]
    progress = Progress(600, clock=lambda: now[0])
    assert progress.left_s() == pytest.approx(600)
    now[0] = 600.0
    progress.done(300)
    assert progress.left_s() == pytest.approx(300 * 660 / 360)
    progress.done(1000)
    assert progress.left_s() == 0


# --- keeping ----------------------------------------------------------------------------------------------------------


def test_record_survives_being_kept(photos: Result, tmp_path: Path) -> None:
    """Every round is in the file, and reading it gives what was written."""
    photos.offered["samegraph"] = [OpenLoad(10, 10, 5, 9, 4, 0, 0, 10, 0, 0.1)]
    kept = Record("x86_64-2cpu", {"mobilenet": photos})
    record.write(kept, tmp_path / "new" / "result.json")
    assert record.read(tmp_path / "new" / "result.json") == kept
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["result.json"]


def test_merging_replaces_one_workload_and_keeps_the_others_conditions(photos: Result) -> None:
    """A workload that was measured again brings its own date; the rest stays as it was."""
    older = Record("x86_64-2cpu", {"trees": replace(photos, title="a row"), "mobilenet": photos})
    again = replace(photos, measured_on="2026-03-04", command="benchmarks/run.py --workload mobilenet")
    both = record.merged(older, Record("x86_64-2cpu", {"mobilenet": again}))
    assert list(both.workloads) == ["trees", "mobilenet"]
    assert (both.workloads["trees"].measured_on, both.workloads["mobilenet"].measured_on) == ("2026-01-02", "2026-03-04")
    text = page(both)
    assert "`trees`: measured on 2026-01-02" in text
    assert "`mobilenet`: measured on 2026-03-04" in text


def test_results_of_other_machines_do_not_mix(photos: Result) -> None:
    """Ratios of two machines in one table would compare nothing."""
    with pytest.raises(NotARecord, match="x86_64-2cpu cannot be merged into one of aarch64-4cpu"):
        record.merged(Record("aarch64-4cpu", {"mobilenet": photos}), Record("x86_64-2cpu", {"mobilenet": photos}))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"{}", "not a result", id="something else"),
        pytest.param(b'{"machine_class": "x", "workloads": {}, "format": 1}', "format 1", id="an older format"),
        pytest.param(None, "not a result", id="no such file"),
    ],
)
def test_file_that_is_no_result_is_refused(content: bytes | None, why: str, tmp_path: Path) -> None:
    """`--merge` into the wrong file must not overwrite it with something else."""
    file = tmp_path / "result.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(NotARecord, match=why):
        record.read(file)


# --- the page and the picture -----------------------------------------------------------------------------------------


def test_page_shows_ours_peers_targets_and_conditions(photos: Result) -> None:
    """Everything a reader needs to judge a figure stands on the page."""
    text = page(Record("x86_64-2cpu", {"mobilenet": photos}))
    for needed in (
        "revision",
        "cores",
        "onnxruntime",
        "benchmarks/run.py",
        "| ≤ 1.05 | 1.05 | met |",
        "**missed**",
        "not measured",
        "*limit: ",
        "**samegraph**",
        "swift",
        "absent: not installed: no wheel",
        "swift (swift 1.0): `swift serve`",
    ):
        assert needed in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)
    assert "Not a calm machine" not in text


def test_page_owns_up_to_a_disturbed_run(photos: Result) -> None:
    """Figures taken beside other programs are not to be quoted."""
    photos.rounds = [replace(one, others_ratio=0.3) for one in photos.rounds]
    assert "Not a calm machine" in page(Record("x86_64-2cpu", {"mobilenet": photos}))


def test_page_of_a_burst() -> None:
    """A burst has a table of its own: seconds, refusals, failures."""
    sent = Burst(300, makespan_s=3.0, p50_ms=1500, cpu_ms=9, refused=0, retries=0, failed=0, wrong=0, own_cpu_s=0.1)
    text = page(Record("x86_64-2cpu", {"burst": result([one_round(1.0, {"samegraph": turn({}, sent)})], burst=300)}))
    assert "| **samegraph** | 3.00 |" in text
    assert "refused at first" in text


def test_picture_has_a_line_for_each_server(photos: Result) -> None:
    """Two panels a workload, one line and its markers a server, axes with units; well-formed, and nothing is drawn outside."""
    for name, factor in (("samegraph", 1.0), ("swift", 0.5)):
        photos.offered[name] = [
            OpenLoad(rate, rate * factor, 5, 10 * rate * factor, 4, failed=0, refused=0, compared=10, wrong=0, own_cpu_ratio=0.1)
            for rate in (10.0, 30.0, 100.0)
        ]
    drawn = ET.fromstring(picture.offered(Record("x86_64-2cpu", {"mobilenet": photos})))
    ns = "{http://www.w3.org/2000/svg}"
    lines = [line for line in drawn.iter(f"{ns}polyline") if line.get("points", "").count(",") == 3]
    assert len(lines) == 4
    text = " ".join(element.text or "" for element in drawn.iter(f"{ns}text"))
    for needed in ("samegraph", "swift", "offered requests per second", "99th percentile of latency, ms", "answered per second"):
        assert needed in text
    height = float(drawn.get("height", "0"))
    places = [tuple(map(float, point.split(","))) for line in lines for point in line.get("points", "").split()]
    assert all(0 <= x <= picture.WIDTH and 0 <= y <= height for x, y in places)


def test_no_picture_without_open_arrivals(photos: Result) -> None:
    """Nothing was drawn from nothing."""
    assert picture.offered(Record("x86_64-2cpu", {"mobilenet": photos})) == ""


def test_axis_is_logarithmic_with_round_ends() -> None:
    """A factor is the same distance everywhere, and values beyond the ends stay at them."""
    axis = picture.Axis.around([30, 4200], 100)
    assert (axis.low, axis.high) == (20, 5000)
    assert axis.at(200) - axis.at(20) == pytest.approx(axis.at(2000) - axis.at(200))
    assert (axis.at(1), axis.at(1e6)) == (0, 100)
    assert axis.ticks() == [20, 50, 100, 200, 500, 1000, 2000, 5000]
    assert MOBILENET.is_image


def test_second_run_of_a_day_stands_beside_the_first(tmp_path: Path) -> None:
    """Nothing that was measured is overwritten without being asked."""
    assert free_path(tmp_path, "2026-01-02-x").name == "2026-01-02-x.json"
    (tmp_path / "2026-01-02-x.json").touch()
    assert free_path(tmp_path, "2026-01-02-x").name == "2026-01-02-x-2.json"

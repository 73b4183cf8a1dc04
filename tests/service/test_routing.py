"""Routing in a running server: labels, default, experiments and what answers say of them; the file is watched, kept, written."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import package_builders as build
import pytest
from click.testing import CliRunner
from live_server import LiveServer, Reply, live_server
from samegraph_service.errors import RoutingConflict, RoutingProblem
from samegraph_service.experiments.analysis.routing_store import AdminStore
from samegraph_service.experiments.analysis.sources import SourceError
from samegraph_service.experiments.assignment import Arm, Plan, Unit, bucket_of
from samegraph_service.experiments.routing_file import FILE_NAME, revision_of
from samegraph_service.routes_command import routes
from samegraph_service.routing import Experiment, ModelRoutes, RouteTable
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.pack import pack

TOKEN = "correct horse battery"
GOOD = {"instances": [{"size": 1.5, "kind": "moss"}]}
ROUTING = """\
models:
  plants:
    default: production
    labels: {production: 1, canary: 3}
    experiments:
      tall:
        salt: s1
        unit: {header: samegraph-unit}
        arms:
          control: {label: production}
          treatment: {label: canary}
"""


def with_versions(root: Path, *versions: int) -> Path:
    """Write plants in these versions, with weights of their own."""
    stages = build.draft().stages
    for version in versions:
        weights = build.WEIGHTS * version
        mine = [stages[0], DraftStage("model", build.classifier(weights)), stages[2]]
        pack(build.draft(version=version, stages=mine), build.samples(weights), root)
    return root


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_versions(tmp_path_factory.mktemp("packages"), 1, 2, 3, 4)


@pytest.fixture
def repository(packages: Path, tmp_path: Path) -> Path:
    root = tmp_path / "models"
    shutil.copytree(packages, root)
    (root / FILE_NAME).write_text(ROUTING)
    return root


@pytest.fixture
def server(repository: Path) -> Iterator[LiveServer]:
    with live_server(repository, admin={"token": TOKEN}) as live:
        yield live


def look(server: LiveServer) -> None:
    server.await_(server.service.repository.sync())


def degraded(server: LiveServer) -> list[str]:
    reply = server.get("/readyz")
    assert reply.status == 200
    found: list[str] = reply.json()["degraded"]
    return found


def said(reply: Reply) -> dict[str, str]:
    """Return what the headers say about who answered and why."""
    assert reply.status == 200, reply.body
    names = ("model-version", "experiment", "arm", "served-arm", "unassigned")
    return {name: reply.headers[f"samegraph-{name}"] for name in names if f"samegraph-{name}" in reply.headers}


def ask(server: LiveServer, unit: str = "", path: str = "") -> dict[str, str]:
    return said(server.predict("plants", GOOD, path, **({"samegraph-unit": unit} if unit else {})))


def plan_of(server: LiveServer) -> Plan:
    experiment = server.service.repository.routes.models["plants"].experiment
    assert experiment is not None
    return experiment.plan


def units_of(server: LiveServer, arm: str) -> str:
    """Return a unit that gets this arm."""
    plan = plan_of(server)
    return next(f"user-{i}" for i in range(1000) if plan.arm_of(f"user-{i}".encode()) == arm)


class TestAnswers:
    def test_a_unit_gets_its_arm_every_time_and_is_told(self, server: LiveServer) -> None:
        """In the headers, in V1's body and in V2's parameters; by every protocol the same."""
        plan = plan_of(server)
        for arm, version in (("control", "1"), ("treatment", "3")):
            unit = units_of(server, arm)
            replies = [server.predict("plants", GOOD, **{"samegraph-unit": unit}) for _ in range(3)]
            expected = {"model-version": version, "experiment": f"tall@{plan.revision}", "arm": arm}
            assert [said(reply) for reply in replies] == [expected] * 3
            body = replies[0].json()
            assert {name: body[name] for name in ("model_version", "experiment", "arm")} == {
                "model_version": version, "experiment": f"tall@{plan.revision}", "arm": arm,
            }  # fmt: skip
            v2 = {"inputs": [{"name": "size", "datatype": "FP64", "shape": [1], "data": [1.5]},
                             {"name": "kind", "datatype": "BYTES", "shape": [1], "data": ["moss"]}]}  # fmt: skip
            reply = server.request("POST", "/v2/models/plants/infer", json.dumps(v2), {"samegraph-unit": unit})
            assert reply.json()["parameters"] == {"experiment": f"tall@{plan.revision}", "arm": arm}

    def test_whoever_names_a_version_or_a_label_gets_it_and_does_not_count(self, server: LiveServer) -> None:
        """Pinned, also with a unit."""
        for path, version in (("/versions/1", "1"), ("/labels/canary", "3"), ("/versions/4", "4")):
            found = ask(server, "user-1", path)
            assert (found["model-version"], found["unassigned"]) == (version, "pinned")
            assert "arm" not in found

    def test_requests_without_a_unit_are_spread_and_marked(self, server: LiveServer) -> None:
        """By the weights, at random, on one connection with one head too; a unit that is too long is none."""
        found = [ask(server) for _ in range(60)] + [ask(server, "x" * 257) for _ in range(4)]
        assert {answer["unassigned"] for answer in found} == {"no_unit"}
        assert {(answer["arm"], answer["model-version"]) for answer in found} == {("control", "1"), ("treatment", "3")}

    def test_units_that_are_not_enrolled_get_the_default(self, server: LiveServer, repository: Path) -> None:
        """And it is said why."""
        (repository / FILE_NAME).write_text(ROUTING.replace("salt: s1", "salt: s1\n        enrolment: {share: 0}"))
        look(server)
        assert ask(server, "user-1") == {"model-version": "1", "experiment": ask(server)["experiment"], "unassigned": "not_enrolled"}

    def test_the_access_log_and_metadata_know_labels_and_arms(self, server: LiveServer) -> None:
        """What a person looks at says the same as the answers."""
        assert server.get("/v1/models/plants/labels/canary/metadata").json()["labels"] == ["canary"]
        assert server.get("/v1/models/plants/labels/canary").json()["model_version_status"][0]["version"] == "3"
        assert server.get("/v1/models/plants/labels/none").status == 404
        page = server.get("/").body.decode()
        assert "label canary" in page
        assert "Experiment tall@" in page
        assert "/v1/models/plants/labels/canary:predict" in server.get("/openapi.json").json()["paths"]
        assert server.get("/readyz").json()["routing"]["models"]["plants"]["labels"] == {"production": 1, "canary": 3}


class TestFallback:
    def test_an_arm_that_cannot_answer_is_answered_for_and_keeps_its_units(self, server: LiveServer, repository: Path) -> None:
        """Assigned and served are both told; it is degraded until the version is back."""
        unit = units_of(server, "treatment")
        shutil.move(repository / "plants" / "3", repository.parent / "3")
        look(server)
        found = ask(server, unit)
        assert (found["model-version"], found["arm"], found["served-arm"]) == ("1", "treatment", "control")
        assert any("arm 'treatment' of experiment 'tall' of model 'plants' stands for version 3" in reason for reason in degraded(server))
        assert server.predict("plants", GOOD, "/labels/canary").status == 404
        shutil.move(repository.parent / "3", repository / "plants" / "3")
        look(server)
        assert (ask(server, unit), degraded(server)) == ({"model-version": "3", "experiment": found["experiment"], "arm": "treatment"}, [])

    def test_an_arm_that_is_withdrawn_here_is_answered_for(self, server: LiveServer) -> None:
        """The circuit-break of one replica, and its end."""
        unit = units_of(server, "treatment")
        server.run(server.service.repository.withdraw, "plants", "tall", "treatment")
        assert (ask(server, unit)["arm"], ask(server, unit)["served-arm"]) == ("treatment", "control")
        assert any("is withdrawn here; control answers for it" in reason for reason in degraded(server))
        server.run(lambda: server.service.repository.withdraw("plants", "tall", "treatment", withdrawn=False))
        assert "served-arm" not in ask(server, unit)

    def test_a_default_that_is_not_ready_makes_the_model_not_ready(self, server: LiveServer, repository: Path) -> None:
        """Nobody gets another version than the one the operator named."""
        (repository / FILE_NAME).write_text("models: {plants: {default: 2}}\n")
        look(server)
        assert ask(server) == {"model-version": "2"}
        shutil.rmtree(repository / "plants" / "2")
        look(server)
        assert server.predict("plants", GOOD).status == 503
        reply = server.get("/readyz")
        assert (reply.status, reply.json()["reasons"][0]) == (503, "model 'plants': its default is version 2: it is not in the repository")
        gone = "routing.yaml names what is gone: models.plants.default: version 2 is not in the repository; it has 1, 3, 4"
        assert reply.json()["degraded"] == [gone]


class TestFile:
    def test_versions_it_names_are_loaded_and_kept(self, server: LiveServer, repository: Path) -> None:
        """Besides the latest two; they leave with the file that named them."""

        def loaded() -> list[int]:
            return [s.version for s in server.service.repository.states()]

        assert loaded() == [1, 3, 4]
        (repository / FILE_NAME).write_text(ROUTING.replace("production: 1", "production: 2"))
        look(server)
        assert loaded() == [2, 3, 4]
        (repository / FILE_NAME).unlink()
        look(server)
        assert loaded() == [3, 4]
        assert ask(server, "user-1") == {"model-version": "4"}

    def test_a_bad_file_leaves_the_old_one_and_shows(self, server: LiveServer, repository: Path) -> None:
        """In readiness, in metrics and (once) in the log; the next good one is taken."""
        before = ask(server, "user-1")
        (repository / FILE_NAME).write_text(ROUTING.replace("canary: 3", "canary: 9"))
        look(server)
        look(server)
        assert ask(server, "user-1") == before
        assert degraded(server) == [
            "routing.yaml is not in force: models.plants.labels.canary: version 9 is not in the repository; it has 1, 2, 3, 4"
        ]
        assert server.metric("samegraph_routing_problems") == 1
        assert server.metric("samegraph_routing_reads_total", result="failure") == 1
        (repository / FILE_NAME).write_text(ROUTING)
        look(server)
        assert (degraded(server), server.metric("samegraph_routing_problems")) == ([], 0)

    def test_a_file_becomes_good_when_the_version_arrives(self, server: LiveServer, repository: Path) -> None:
        """It is looked at again whenever the versions change."""
        shutil.move(repository / "plants" / "2", repository.parent / "2")
        (repository / FILE_NAME).write_text(ROUTING.replace("production: 1", "production: 2"))
        look(server)
        assert degraded(server) != []
        shutil.move(repository.parent / "2", repository / "plants" / "2")
        look(server)
        assert degraded(server) == []
        assert ask(server, path="/labels/production")["model-version"] == "2"

    def test_a_change_of_weights_moves_only_who_has_to_move(self, server: LiveServer, repository: Path) -> None:
        """Over HTTP, and shares lie inside binomial bounds."""
        units = [f"user-{i}" for i in range(300)]
        before = {unit: ask(server, unit)["arm"] for unit in units}
        controls = sum(arm == "control" for arm in before.values())
        assert abs(controls - 150) <= 4 * math.sqrt(75)
        (repository / FILE_NAME).write_text(ROUTING.replace("{label: canary}", "{label: canary, weight: 3}"))
        look(server)
        after = {unit: ask(server, unit)["arm"] for unit in units}
        assert {after[unit] for unit in units if before[unit] == "treatment"} == {"treatment"}
        assert 0 < sum(after[unit] != before[unit] for unit in units) < controls

    def test_it_is_watched(self, repository: Path) -> None:
        """A new file is in force after the next look, without anybody asking for it."""
        with live_server(repository, repository={"path": repository, "poll_s": 0.1}) as own:
            assert ask(own, path="/labels/canary")["model-version"] == "3"
            (repository / FILE_NAME).write_text(ROUTING.replace("canary: 3", "canary: 4"))
            deadline = time.monotonic() + 20
            while ask(own, path="/labels/canary")["model-version"] != "4":
                assert time.monotonic() < deadline

    def test_replicas_agree_without_talking(self, server: LiveServer, repository: Path) -> None:
        """The same file, the same arms and the same revision, in a server that was just started too."""
        with live_server(repository) as other:
            for i in range(40):
                assert ask(server, f"user-{i}") == ask(other, f"user-{i}")


class TestFieldUnit:
    ROUTING = ROUTING.replace("{header: samegraph-unit}", "{field: kind}")

    def test_the_unit_is_the_first_instances_value(self, packages: Path, tmp_path: Path) -> None:
        """Decided after decoding: by the raw value, in rows, columns and V2; missing is no unit."""
        shutil.copytree(packages, tmp_path / "models")
        (tmp_path / "models" / FILE_NAME).write_text(self.ROUTING)
        with live_server(tmp_path / "models") as own:
            plan = plan_of(own)
            arms = set()
            for kind in ("moss", "fern", "oak", "bamboo", "ünï"):
                arm = plan.arm_of(kind.encode())
                arms.add(arm)
                bodies = [
                    {"instances": [{"size": 1, "kind": kind}, {"size": 2, "kind": "other"}]},
                    {"inputs": {"size": [1], "kind": [kind]}},
                ]
                for body in bodies:
                    found = said(own.predict("plants", body))
                    assert (found["arm"], "unassigned" in found) == (arm, False)
                    assert found["model-version"] == {"control": "1", "treatment": "3"}[arm]
            assert arms == {"control", "treatment"}
            bad = own.predict("plants", {"instances": [{"size": "x", "kind": "moss"}]})
            assert (bad.status, bad.json()["code"]) == (400, "wrong_type")

    def test_arms_may_differ_in_other_fields(self, tmp_path: Path) -> None:
        """The row is read by whichever version can read it, and answered by the one the unit gets."""
        with_versions(tmp_path, 1)
        fields = [build.draft().fields[0].model_copy(update={"maximum": 2}), build.draft().fields[1]]
        pack(build.draft(version=3, fields=fields), [build.sample("small", build.ROWS[:2])], tmp_path)
        (tmp_path / FILE_NAME).write_text(
            self.ROUTING.replace("{label: production}", "{version: 3}").replace("treatment: {label: canary}", "treatment: {version: 1}")
        )
        with live_server(tmp_path) as own:
            plan = plan_of(own)
            for i in range(12):
                arm = plan.arm_of(b"k%d" % i)
                document = {"instances": [{"size": 5, "kind": f"k{i}"}]}  # over the maximum of version 3
                packed = gzip.compress(json.dumps(document).encode())
                replies = [own.predict("plants", document), own.predict("plants", packed, **{"content-encoding": "gzip"})]
                assert [reply.status for reply in replies] == [400 if arm == "control" else 200] * 2, replies[0].body


class TestAdmin:
    def put(self, server: LiveServer, text: str, match: str | None = "*", token: str = TOKEN) -> Reply:
        headers = {"authorization": f"Bearer {token}"} | ({} if match is None else {"if-match": match})
        return server.request("PUT", "/admin/routing", text, headers)

    def test_the_file_in_force_is_read_changed_and_in_force(self, server: LiveServer, repository: Path) -> None:
        """Read with its revision, written with `If-Match`, in force when the answer comes."""
        reply = server.request("GET", "/admin/routing", headers={"authorization": f"Bearer {TOKEN}"})
        assert reply.body.decode() == ROUTING
        changed = ROUTING.replace("canary: 3", "canary: 4")
        answer = self.put(server, changed, reply.headers["etag"])
        assert (answer.status, answer.json()["in_force"], answer.json()["problems"]) == (200, True, [])
        assert answer.headers["etag"] == f'"{answer.json()["revision"]}"'
        assert (repository / FILE_NAME).read_text() == changed
        assert ask(server, path="/labels/canary")["model-version"] == "4"
        late = self.put(server, ROUTING, reply.headers["etag"])
        assert (late.status, late.json()["code"], late.headers["etag"]) == (412, "routing_changed", answer.headers["etag"])
        assert self.put(server, ROUTING, None).status == 412

    def test_a_bad_file_is_refused_with_all_its_problems(self, server: LiveServer, repository: Path) -> None:
        """By place; nothing is written."""
        answer = self.put(server, ROUTING.replace("canary: 3", "canary: 9").replace("salt: s1", "salt: s1\n        slo_ms: -1"))
        assert (answer.status, answer.json()["code"]) == (400, "bad_routing")
        assert answer.json()["problems"] == ["models.plants.experiments.tall.slo_ms: must be greater than 0"]
        assert self.put(server, "x" * 300_000).status == 413
        assert self.put(server, ROUTING.replace("canary: 3", "canary: 9")).json()["problems"][0].startswith("models.plants.labels.canary")
        assert (repository / FILE_NAME).read_text() == ROUTING

    def test_where_nothing_can_be_written_the_file_to_apply_comes_back(self, server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on a read-only mount; tests may run as root, whom no mode keeps from writing."""

        def refuse(**_: Any) -> tuple[int, str]:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("tempfile.mkstemp", refuse)
        answer = self.put(server, ROUTING + "# more\n")
        assert (answer.status, answer.json()["code"], answer.json()["file"]) == (409, "routing_read_only", ROUTING + "# more\n")

    def test_the_guards_way_to_the_file(self, server: LiveServer, repository: Path, tmp_path: Path) -> None:
        """It reads what is in force, writes from there, and is told when somebody was quicker, the file is bad, or the token is."""
        token = tmp_path / "admin.token"
        token.write_text(TOKEN + "\n")
        store = AdminStore(server.url, token)
        there = store.read()
        assert (there.text, there.revision) == (ROUTING, revision_of(ROUTING.encode()))
        store.write(ROUTING.replace("canary: 3", "canary: 4"), there.revision)
        assert store.read().models["plants"].labels["canary"] == 4
        assert ask(server, path="/labels/canary")["model-version"] == "4"
        with pytest.raises(RoutingConflict):
            store.write(ROUTING, there.revision)
        with pytest.raises(RoutingProblem, match="version 9 is not in the repository"):
            store.write(ROUTING.replace("canary: 3", "canary: 9"), store.read().revision)
        token.write_text("another")
        with pytest.raises(SourceError, match=r"does not take the token in admin\.token"):
            store.read()
        token.unlink()
        with pytest.raises(SourceError, match="the token cannot be read"):
            store.read()

    def test_a_server_without_a_file_can_be_given_one(self, packages: Path, tmp_path: Path) -> None:
        """Its revision is `none` until then."""
        shutil.copytree(packages, tmp_path / "models")
        (tmp_path / "admin.token").write_text(TOKEN)
        with live_server(tmp_path / "models", admin={"token": TOKEN}) as live:
            store = AdminStore(live.url, tmp_path / "admin.token")
            assert store.read().revision == "none"
            store.write(ROUTING, "none")
            assert store.read().text == ROUTING

    def test_it_is_closed_without_the_token(self, server: LiveServer) -> None:
        """To read too: salts tell which unit gets what."""
        assert self.put(server, ROUTING, token="another").status == 401
        assert server.get("/admin/routing").status == 401

    def test_explain_says_why(self, server: LiveServer) -> None:
        """The draws as computed here."""
        document = server.get("/v1/models/plants/routing?unit=user-1").json()
        plan = plan_of(server)
        assert document["arm"] == plan.arm_of(b"user-1")
        assert document["scores"] == plan.scores(b"user-1")
        assert (document["bucket"], document["enrolment"]["draw"]) == (bucket_of(b"user-1"), plan.enrolment(b"user-1"))
        assert "has the least score" in document["why"]
        shown = server.get("/v1/models/plants/routing").json()
        assert shown["experiment"]["arms"]["treatment"] == {"version": 3, "weight": 1.0, "share": 0.5, "answered_by": 3}


class TestCommand:
    def run(self, *words: object) -> tuple[int, str]:
        done = CliRunner().invoke(routes, [str(word) for word in words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    def test_check_tells_what_is_wrong_before_a_server_sees_it(self, repository: Path) -> None:
        """Exit code 1 and a line for each."""
        code, text = self.run("check", "--repository", repository)
        assert (code, "is valid; it routes plants" in text) == (0, True)
        bad = repository.parent / "bad.yaml"
        bad.write_text(ROUTING.replace("canary: 3", "canary: 9"))
        code, text = self.run("check", bad, "--repository", repository)
        assert (code, text) == (1, "models.plants.labels.canary: version 9 is not in the repository; it has 1, 2, 3, 4\n")
        (repository / FILE_NAME).unlink()
        assert self.run("check", "--repository", repository)[0] == 0

    def test_show_and_explain_agree_with_the_server(self, server: LiveServer, repository: Path) -> None:
        """Offline and asked over HTTP the same words."""
        for words in (("show",), ("explain", "user-1"), ("explain", "user-2", "--model", "plants"), ("explain", "user-1", "--json")):
            offline, asked = self.run(*words, "--repository", repository), self.run(*words, "--url", server.url)
            assert offline == asked
            assert offline[0] == 0
        _, text = self.run("show", "--repository", repository)
        assert "treatment: version 3, 50 % of units" in text
        _, text = self.run("explain", "user-1", "--repository", repository)
        arm = ask(server, "user-1")["arm"]
        assert f"'user-1' gets arm {arm}, version" in text

    def test_schema_is_the_published_one(self) -> None:
        """For editors."""
        published = Path(__file__).parents[2] / "docs" / "routing.schema.json"
        assert json.loads(self.run("schema")[1]) == json.loads(published.read_text(encoding="utf-8"))


class TestTable:
    """Who answers for an arm that cannot, as pure functions."""

    def experiment(self, *ready: int, default: int | None = None, withdrawn: tuple[str, ...] = ()) -> Experiment[str]:
        arms = (Arm("a", 1, 1), Arm("b", 2, 1), Arm("c", 3, 0))
        plan = Plan("m", "e", "s", arms, Unit("u"), 1.0, "x", "a")
        return Experiment(plan, {v: f"v{v}" for v in ready}, default, slow_s=math.inf, withdrawn=withdrawn)

    @pytest.mark.parametrize(
        ("ready", "default", "withdrawn", "answers"),
        [
            ((1, 2, 3), 3, (), ("a", "b")),
            ((1, 3), 3, (), ("a", "a")),
            ((2, 9), 9, (), ("default", "b")),
            ((3,), None, (), ("c", "c")),
            ((2, 3), 3, (), ("c", "b")),
            ((1, 2), 2, ("b",), ("a", "a")),
            ((), None, (), (None, None)),
        ],
        ids=str,
    )  # fmt: skip
    def test_fallback_then_default_then_any(
        self, ready: tuple[int, ...], default: int | None, withdrawn: tuple[str, ...], answers: tuple[str | None, str | None]
    ) -> None:
        """In this order, and nobody when nothing is ready."""
        experiment = self.experiment(*ready, default=default, withdrawn=withdrawn)
        found = [experiment.answer_for(arm) for arm in ("a", "b")]
        assert tuple(None if answer is None else answer[0] for answer in found) == answers

    def test_answers_are_shared_objects(self) -> None:
        """One per arm and bucket: the hot path makes none."""
        experiment = self.experiment(1, 2)
        assert experiment.by_unit(b"u")[1] is experiment.by_unit(b"u")[1]
        assert experiment.pinned(1) is experiment.pinned(1)

    def test_a_model_without_an_experiment_decides_nothing(self) -> None:
        """As before there was a routing file."""
        table = RouteTable({"m": ModelRoutes({1: "v1", 2: "v2"})})
        decision = table.decide("m", None, None, {b"samegraph-unit": b"x"})
        assert (decision.served, decision.assignment, decision.undecided, decision.shadows) == ("v2", None, None, ())

"""routing.yaml: what is read, how every mistake is named by its place, and how the file is written."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from samegraph_service.errors import RoutingConflict, RoutingProblem, RoutingReadOnly
from samegraph_service.experiments import routing_file
from samegraph_service.experiments.routing_file import (
    FILE_NAME,
    LOCK_NAME,
    MAX_BYTES,
    NOTHING,
    RoutingFile,
    advice_on,
    json_schema,
    parse,
    problems_with,
    share_as_weight,
    write_routing,
)
from samegraph_transforms.manifest import RawField

SCHEMA = Path(__file__).parents[2] / "docs" / "routing.schema.json"
GOOD = """\
models:
  flights:
    default: production
    labels: {production: 1, canary: 2}
    experiments:
      delay-trees:
        salt: s1
        unit: {header: Samegraph-Unit}
        enrolment: {share: 0.5, salt: e1}
        arms:
          control: {version: 1, weight: 1}
          treatment: {label: canary, weight: 3}
        slo_ms: 250
        metrics:
          clicked: {kind: binary}
          visits: {kind: count, max: 1000}
          delay: {kind: number, min: -100, max: 2000, goal: decrease}
          correct: {kind: label}
        guardrails: {max_error_ratio: 0.05, min_requests: 200}
        rollout: {arm: treatment, steps: [1, 5, 10, 25, 50, 100], step: 1}
      older:
        enabled: false
        salt: s0
        arms: {a: {version: 1}}
    shadows:
      - {version: 2, share: 0.1}
"""


def read_text(text: str) -> RoutingFile:
    return parse(text.encode())


def problems_of(text: str) -> Sequence[str]:
    with pytest.raises(RoutingProblem) as caught:
        read_text(text)
    return caught.value.problems


class TestReading:
    def test_the_whole_schema_is_read(self) -> None:
        """Every member arrives, labels stand for their versions, header names are compared in lower case."""
        flights = read_text(GOOD).models["flights"]
        plan = flights.plan("flights")
        assert plan is not None
        assert [(arm.name, arm.version, arm.weight) for arm in plan.arms] == [("control", 1, 1.0), ("treatment", 2, 3.0)]
        assert (plan.unit.header, plan.unit.field, plan.fallback, plan.enrolment_share) == ("samegraph-unit", "", "control", 0.5)
        assert flights.default_version() == 1
        assert set(flights.named()) == {1, 2}
        experiment = flights.experiments["delay-trees"]
        assert experiment.metrics["delay"].bounds == (-100.0, 2000.0)
        assert experiment.metrics["clicked"].bounds == (0.0, 1.0)

    def test_no_file_and_an_empty_one_say_nothing(self, tmp_path: Path) -> None:
        """Everything stays as it is without a routing file."""
        assert routing_file.read(tmp_path) is NOTHING
        (tmp_path / FILE_NAME).write_text("# nothing yet\n")
        assert routing_file.read(tmp_path).models == {}
        assert routing_file.read(tmp_path).revision != NOTHING.revision

    def test_published_schema_is_up_to_date_and_takes_the_same_files(self) -> None:
        """docs/routing.schema.json is what `samegraph routes schema` prints; editors check files with it."""
        assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json_schema()
        jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(GOOD))

    def test_every_member_is_documented(self) -> None:
        """Each member of each object has a sentence."""
        schema = json_schema()
        for name, part in {"RoutingDocument": schema, **schema["$defs"]}.items():
            assert part.get("description"), name
            assert part["additionalProperties"] is False
            for member, facts in part["properties"].items():
                assert facts.get("description", "").endswith("."), f"{name}.{member}"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A pipe that nobody writes to would hold the reader for ever."""
    make(tmp_path / FILE_NAME)
    with pytest.raises(RoutingProblem, match=r"routing\.yaml is no regular file"):
        routing_file.read(tmp_path)


def test_a_link_is_followed(tmp_path: Path) -> None:
    """That is how Kubernetes mounts a file it replaces."""
    (tmp_path / "..data").write_text(GOOD)
    (tmp_path / FILE_NAME).symlink_to("..data")
    assert "flights" in routing_file.read(tmp_path).models


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("weight: 1}", "weight: -1}", "models.flights.experiments.delay-trees.arms.control.weight: must be greater than or equal to 0"),
        ("weight: 1}", "weight: .inf}", "models.flights.experiments.delay-trees.arms.control.weight: must be a finite number"),
        ("label: canary", "label: canry", "models.flights.experiments.delay-trees.arms.treatment.label: label 'canry' is not defined"),
        ("label: canary", "label: canary, version: 2", "arms.treatment: give either `version` or `label`"),
        ("salt: s1", "salt: 2020-01-01", "models.flights.experiments.delay-trees.salt: must be a text; put it in quotes"),
        ("salt: s1", "salt: s1\n        salt: s2", "models.flights.experiments.delay-trees.salt: is given twice (line 8)"),
        ("salt: e1", "salt: s1", "models.flights.experiments.delay-trees: `enrolment.salt` must differ from `salt`"),
        ("        salt: s1\n", "", "models.flights.experiments.delay-trees.salt: is missing"),
        ("default: production", "default: prod", "models.flights.default: label 'prod' is not defined"),
        ("default: production", "default: -3", "models.flights.default: must be `latest`, a version number or a label; got '-3'"),
        ("default: production", "default: [1]", "models.flights.default: must be `latest`, a version number or a label; got '[1]'"),
        ("production: 1", "production: '1'", "models.flights.labels.production: must be a valid integer; got '1'"),
        ("production: 1", "no: 1", "models.flights.labels: the key no (line 4) must be a text; put it in quotes"),
        ("production: 1", "production: 1, latest: 2", "models.flights.labels.latest: is the name of a policy"),
        ("production: 1", "2nd: 1", "models.flights.labels.2nd: is not a name"),
        ("header: Samegraph-Unit", "hader: x", "models.flights.experiments.delay-trees.unit.hader: is not known here"),
        ("header: Samegraph-Unit", "header: a, field: b", "unit: give either `header` or `field`"),
        ("header: Samegraph-Unit", "header: 'a b'", "models.flights.experiments.delay-trees.unit.header: "),
        ("enabled: false", "enabled: true", "models.flights.experiments: delay-trees, older are enabled and only one can decide"),
        ("weight: 1}", "weight: 0}", "at least one arm needs a weight above 0"),
        ("slo_ms: 250", "slo_ms: 250\n        fallback: x", "`fallback` names no arm; the arms are control, treatment"),
        ("arm: treatment", "arm: x", "`rollout.arm` names no arm"),
        ("step: 1}", "step: 9}", "`step` must be below the number of steps, 6"),
        ("max: 1000", "min: 1", "metrics.visits: a count begins at 0 and needs `max`"),
        ("min: -100, ", "", "metrics.delay: a number needs `min` and `max`"),
        ("share: 0.1", "share: 1.5", "models.flights.shadows.0.share: must be less than or equal to 1"),
        ("share: 0.1", "share: 0.1, lable: x", "models.flights.shadows.0.lable: is not known here"),
        ("flights:", "../flights:", "models.../flights: is not a name"),
        ("models:", "modls:", "modls: is not known here"),
        ("enrolment: {", "enrolment: &e {", ""),
    ],
)  # fmt: skip
def test_every_mistake_is_named_by_its_place(old: str, new: str, problem: str) -> None:
    """The path of the error is the one an editor of the file looks for."""
    text = GOOD.replace(old, new, 1)
    if "weight: 0}" in new:
        text = text.replace("weight: 3", "weight: 0")
    if not problem:
        read_text(text)  # an anchor that nobody refers to does no harm
        return
    assert any(problem in found for found in problems_of(text)), problems_of(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x [1]\nb: *x\n", "b: anchors and aliases are not read"),
        ("[" * 5000, "nested deeper than 32 levels"),
        ("a: " + "{a: " * 40 + "1" + "}" * 40, "nested deeper than 32 levels"),
        ("models: {", "routing.yaml is not valid YAML: line 1, column 10"),
        ("models: !!python/object/apply:os.system [id]", "models: a value of type tag:yaml.org,2002:python/object/apply"),
        ("- 1", "routing.yaml: must be a mapping"),
        ("models: 3", "models: must be a mapping"),
        ("models: {a: {default: 2020-13-45}}", "routing.yaml is not valid YAML: month must be in 1..12"),
        ("a: 1\n---\nb: 2\n", "routing.yaml is not valid YAML: line 2"),
        ("x" * (MAX_BYTES + 1), "routing.yaml is larger than 256 KiB"),
        ("\x00", "routing.yaml is not valid YAML"),
    ],
    ids=["alias", "deep flow", "deep map", "open", "tag", "list", "number", "date", "two documents", "large", "control character"],
)  # fmt: skip
def test_hostile_files_are_refused_in_a_sentence(text: str, problem: str) -> None:
    """A safe loader, bounded in size and depth, that expands nothing."""
    assert problem in problems_of(text)[0]


def test_bytes_that_are_no_text_are_refused() -> None:
    """The file is UTF-8."""
    with pytest.raises(RoutingProblem, match=r"routing\.yaml is not UTF-8: byte 3"):
        parse(b"abc\xff")


def test_the_number_of_problems_is_bounded() -> None:
    """A file that is wrong everywhere does not fill the log."""
    text = "models: {a: {labels: {" + ", ".join(f"l{i}: x" for i in range(32)) + "}}}"
    assert len(problems_of(text)) == 20


class TestAgainstTheRepository:
    fields = (RawField(name="user", kind="string"), RawField(name="age", kind="number"))

    def problems(self, text: str, versions: dict[str, set[int]] | None = None) -> list[str]:
        there = {"flights": {1, 2}} if versions is None else versions
        return problems_with(read_text(text), there, lambda _, version: self.fields if version == 1 else self.fields[1:])

    def test_names_of_what_is_there_are_fine(self) -> None:
        """Ready or not: a version that is loading may be named."""
        assert self.problems(GOOD) == []

    def test_a_model_or_version_that_is_not_there_is_named(self) -> None:
        """A label on a version nobody has would answer 404 for ever."""
        assert self.problems(GOOD, {"iris": {1}}) == ["models.flights: the repository has no such model; it has iris"]
        found = self.problems(GOOD, {"flights": {1}})
        assert found == ["models.flights.labels.canary: version 2 is not in the repository; it has 1"]

    @pytest.mark.parametrize(
        ("field", "problem"), [("user", "version 2 (arm treatment) has no raw field 'user'"), ("age", "is of kind number; a unit is")]
    )
    def test_a_unit_field_is_one_every_arm_has(self, field: str, problem: str) -> None:
        """The unit is read before it is known which version answers."""
        found = self.problems(GOOD.replace("header: Samegraph-Unit", f"field: {field}"))
        assert any(problem in sentence for sentence in found), found

    def test_what_may_be_meant_is_advised_on(self) -> None:
        """Units that are not enrolled should get what control gets; without a unit there is nothing to conclude."""
        assert advice_on(read_text(GOOD), {"flights": 2}) == []
        (found,) = advice_on(read_text(GOOD.replace("default: production", "default: latest")), {"flights": 2})
        assert found.startswith("models.flights.default: units that are not enrolled get version 2")
        (found,) = advice_on(read_text(GOOD.replace("        unit: {header: Samegraph-Unit}\n", "")), {"flights": 2})
        assert found.startswith("models.flights.experiments.delay-trees.unit: without a unit")


class TestWriting:
    def test_a_document_is_checked_and_written_whole(self, tmp_path: Path) -> None:
        """What was written reads back, and nothing else is left in the directory."""
        document: dict[str, Any] = yaml.safe_load(GOOD)
        written = write_routing(tmp_path, document)
        assert routing_file.read(tmp_path) == written
        assert {path.name for path in tmp_path.iterdir()} == {FILE_NAME, LOCK_NAME}

    def test_a_text_keeps_its_comments(self, tmp_path: Path) -> None:
        """What people write is not rewritten."""
        write_routing(tmp_path, f"# ours\n{GOOD}")
        assert (tmp_path / FILE_NAME).read_text().startswith("# ours\n")

    def test_a_bad_one_is_not_written(self, tmp_path: Path) -> None:
        """The old file stays."""
        write_routing(tmp_path, GOOD)
        with pytest.raises(RoutingProblem):
            write_routing(tmp_path, GOOD.replace("salt: s1", "salt: 1"))
        with pytest.raises(RoutingProblem, match="not in the repository"):
            write_routing(tmp_path, GOOD, versions={"flights": {1}})
        assert (tmp_path / FILE_NAME).read_text() == GOOD

    def test_two_writers_do_not_overwrite_each_other(self, tmp_path: Path) -> None:
        """A change is made from a revision, and refused when there is another by now."""
        first = write_routing(tmp_path, GOOD, if_revision="none")
        second = write_routing(tmp_path, GOOD + "# more\n", if_revision=first.revision)
        with pytest.raises(RoutingConflict) as caught:
            write_routing(tmp_path, GOOD, if_revision=first.revision)
        assert caught.value.revision == second.revision

    def test_of_many_who_write_at_once_none_is_lost(self, tmp_path: Path) -> None:
        """Four writers each add six lines, every time to what they read; whoever was too late reads again. All lines are there."""
        write_routing(tmp_path, GOOD)
        late: list[int] = []

        def add(writer: int) -> None:
            for i in range(6):
                while True:
                    there = routing_file.read(tmp_path)
                    try:
                        write_routing(tmp_path, f"{there.text}# {writer}.{i}\n", if_revision=there.revision)
                    except RoutingConflict:
                        late.append(writer)
                    else:
                        break

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(4)))
        lines = (tmp_path / FILE_NAME).read_text().splitlines()
        assert sorted(line for line in lines if line.startswith("# ")) == sorted(f"# {w}.{i}" for w in range(4) for i in range(6))
        assert late

    def test_a_writer_who_keeps_the_lock_is_not_waited_for_forever(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file stays as it is, and what was to be written comes back with the lock's name."""
        write_routing(tmp_path, GOOD)
        monkeypatch.setattr(routing_file, "LOCK_WAIT_S", 0.0)
        with (tmp_path / LOCK_NAME).open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(RoutingReadOnly, match=LOCK_NAME):
                write_routing(tmp_path, GOOD + "# more\n")
        assert write_routing(tmp_path, GOOD + "# more\n").text == GOOD + "# more\n"

    def test_a_file_system_without_locks_is_written_all_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The comparison remains."""

        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        first = write_routing(tmp_path, GOOD)
        write_routing(tmp_path, GOOD + "# more\n", if_revision=first.revision)
        with pytest.raises(RoutingConflict):
            write_routing(tmp_path, GOOD, if_revision=first.revision)

    def test_a_place_that_cannot_be_written_hands_the_file_back(self, tmp_path: Path) -> None:
        """Where the repository is mounted read-only somebody else has to apply it."""
        with pytest.raises(RoutingReadOnly) as caught:
            write_routing(tmp_path / "gone", GOOD)
        assert caught.value.text == GOOD


def test_a_share_becomes_a_weight() -> None:
    """10 % beside arms that weigh 3 together."""
    weight = share_as_weight(3, 10)
    assert weight / (weight + 3) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="100 %"):
        share_as_weight(3, 100)


def test_a_label_that_moves_makes_another_revision() -> None:
    """What arms resolve to is part of it, so counts of two versions are never one; a label no arm uses changes nothing."""
    text = GOOD.replace("labels: {production: 1, canary: 2}", "labels: {production: 1, canary: 2, other: 1}")

    def revision(text: str) -> str:
        plan = parse(text.encode()).models["flights"].plan("flights")
        assert plan is not None
        return plan.revision

    moved = {arm for arm in ("production: 1", "canary: 2", "other: 1") if revision(text.replace(arm, arm[:-1] + "3")) != revision(text)}
    used = {spec.label for spec in parse(text.encode()).models["flights"].experiments["delay-trees"].arms.values() if spec.label}
    assert {name.partition(":")[0] for name in moved} == used
    assert used
    assert "other" not in used

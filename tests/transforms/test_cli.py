"""The `samegraph` command: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from package_builders import ROWS, WEIGHTS, classifier, draft, reference, sample, samples
from samegraph_transforms import cli, golden
from samegraph_transforms.errors import PackageError
from samegraph_transforms.manifest import json_schema
from samegraph_transforms.pack import pack
from samegraph_transforms.package import list_models, read_package, write_package

TRAINER = "from package_builders import draft, samples\ndef packages():\n    yield draft(version={version}), samples()\n"
COMMANDS = ("pack", "inspect", "verify", "predict")


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli.cli, [str(a) for a in arguments], input=stdin)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two versions of the package."""
    for version in (1, 2):
        pack(draft(version=version), samples(), tmp_path / "models")
    return tmp_path / "models"


class TestHelp:
    @pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)], ids=["samegraph", *COMMANDS])
    def test_help_has_examples_and_exit_codes(self, command: tuple[str, ...]) -> None:
        """Every page of help shows how it is used and what its exit codes mean."""
        result = run(*command, "--help")
        assert result.exit_code == 0
        assert "samegraph " in result.output
        assert "Exit codes: 0" in result.output
        assert ("Examples:" if command else "Start here:") in result.output

    @pytest.mark.parametrize("command", COMMANDS)
    def test_commands_named_in_help_exist(self, command: str) -> None:
        """Options that examples use are options of the command."""
        own = cli.cli.get_command(click.Context(cli.cli), command)
        assert own is not None
        options = {o for p in own.params for o in p.opts}
        shown = {w for w in str(own.epilog).split() if w.startswith("--")}
        assert shown <= options | {"--version"}

    def test_version_is_the_distributions(self) -> None:
        """`--version` names what is installed."""
        try:
            version = metadata.version("samegraph-transforms")
        except metadata.PackageNotFoundError:
            version = ""
        result = run("--version")
        assert (version in result.output) if version else result.exit_code != 0

    def test_schema_is_printed(self) -> None:
        """The hidden command prints the manifest's JSON Schema."""
        assert json.loads(run("schema").output) == json_schema()


class TestErrors:
    def test_error_is_one_message_without_traceback(self, tmp_path: Path) -> None:
        """A failure is a sentence on stderr and exit code 1; stdout stays empty for pipes."""
        result = run("inspect", tmp_path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.output

    def test_debug_shows_the_traceback(self, tmp_path: Path) -> None:
        """With --debug the exception itself comes out."""
        result = run("--debug", "inspect", tmp_path)
        assert isinstance(result.exception, PackageError)

    @pytest.mark.parametrize(
        "arguments",
        [
            ("inspect",),
            ("inspect", "no/such/directory"),
            ("predict", "rows.csv"),
            ("predict", "rows.csv", "--package", ".", "--url", "http://x"),
            ("predict", "rows.csv", "--package", ".", "--model", "m"),
            ("verify", ".", "--batch", "0"),
            ("nonsense",),
        ],
    )
    def test_wrong_usage_is_exit_code_2(self, arguments: tuple[str, ...]) -> None:
        """Click's own refusals are told apart from failures."""
        assert run(*arguments).exit_code == 2

    def test_no_permission_is_a_message_too(self, repository: Path, tmp_path: Path) -> None:
        """What the system refuses is named without a traceback."""
        (tmp_path / "rows.csv").write_text("size,kind\n1,oak\n")
        result = run(
            "predict", tmp_path / "rows.csv", "--package", repository / "plants", "--output", tmp_path / "no" / "such" / "out.jsonl"
        )
        assert result.exit_code == 1
        assert "No such file or directory" in result.stderr


class TestPack:
    def test_script_is_packed(self, tmp_path: Path) -> None:
        """A trainer's script becomes a package; stdout has name, digest and place, stderr the story."""
        script = tmp_path / "train.py"
        script.write_text(TRAINER.format(version=3))
        result = run("pack", script, "--into", tmp_path / "models")
        assert result.exit_code == 0, result.output
        name, digest, place = result.stdout.split()
        assert (name, place) == ("plants/3", str(tmp_path / "models" / "plants" / "3"))
        assert read_package(place).digest == digest
        assert "golden samples" in result.stderr

    def test_packing_again_is_quick_to_agree(self, tmp_path: Path) -> None:
        """The same package again is exit code 0 and the same digest."""
        script = tmp_path / "train.py"
        script.write_text(TRAINER.format(version=3))
        first, second = (run("pack", script, "--into", tmp_path / "models", "-q") for _ in range(2))
        assert first.stdout == second.stdout
        assert first.exit_code == second.exit_code == 0
        assert first.stderr == ""

    def test_check_writes_nothing(self, tmp_path: Path) -> None:
        """--check proves and throws away."""
        script = tmp_path / "train.py"
        script.write_text(TRAINER.format(version=3))
        result = run("pack", script, "--into", tmp_path / "models", "--check")
        assert result.exit_code == 0
        assert "proven (nothing was written)" in result.stdout
        assert not (tmp_path / "models").exists()

    def test_wrong_package_is_refused_by_sample_and_tensor(self, tmp_path: Path) -> None:
        """The refusal names both on stderr, exit code 1, and nothing is left."""
        script = tmp_path / "train.py"
        script.write_text(
            "from dataclasses import replace\nfrom package_builders import *\n"
            "def packages():\n    whole = draft()\n    wrong = replace(whole.stages[1], model=classifier(-WEIGHTS))\n"
            "    yield replace(whole, stages=[whole.stages[0], wrong, whole.stages[2]]), samples()\n"
        )
        result = run("pack", script, "--into", tmp_path / "models")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "golden sample 'row 0'" in result.stderr
        assert "tensor 'probability'" in result.stderr
        assert list_models(tmp_path / "models") == []

    def test_script_without_packages_is_refused(self, tmp_path: Path) -> None:
        """A script that yields nothing is no success."""
        script = tmp_path / "train.py"
        script.write_text("def packages():\n    return []\n")
        result = run("pack", script, "--into", tmp_path / "models")
        assert result.exit_code == 1
        assert "yielded nothing" in result.stderr

    def test_script_error_has_its_cause_under_debug(self, tmp_path: Path) -> None:
        """A fault in the trainer's own code can be traced."""
        script = tmp_path / "train.py"
        script.write_text("1/0")
        assert "ZeroDivisionError" in run("pack", script).stderr
        exception = run("--debug", "pack", script).exception
        assert isinstance(exception, Exception)
        assert isinstance(exception.__cause__, ZeroDivisionError)


class TestInspect:
    def test_model_directory_means_its_latest_version(self, repository: Path) -> None:
        """`inspect models/plants` shows the highest version."""
        assert "plants version 2" in run("inspect", repository / "plants").stdout
        assert "plants version 1" in run("inspect", repository / "plants" / "1").stdout

    def test_json_is_for_programs(self, repository: Path) -> None:
        """--json is one valid document on stdout."""
        result = run("inspect", repository / "plants" / "1", "--json")
        assert json.loads(result.stdout)["digest"] == read_package(repository / "plants" / "1").digest

    def test_damaged_package_is_not_shown(self, repository: Path) -> None:
        """A changed file is an error that names it."""
        (repository / "plants" / "1" / "model.onnx").write_bytes(b"x")
        result = run("inspect", repository / "plants" / "1")
        assert result.exit_code == 1
        assert "model.onnx" in result.stderr

    def test_bare_model_is_shown_with_its_warning(self, tmp_path: Path) -> None:
        """A bare model.onnx can be looked at."""
        (tmp_path / "plants" / "1").mkdir(parents=True)
        onnx.save(classifier(), tmp_path / "plants" / "1" / "model.onnx")
        assert "NOT PROVEN" in run("inspect", tmp_path / "plants" / "1").stdout


class TestVerify:
    def test_exact_package_is_exit_code_0(self, repository: Path) -> None:
        """The report and the exit code agree."""
        result = run("verify", repository / "plants")
        assert result.exit_code == 0, result.output
        assert "exact: the package answers as training did" in result.stdout

    def test_wrong_package_is_exit_code_1(self, tmp_path: Path) -> None:
        """A package whose answers differ is reported on stdout and by the exit code."""
        whole = draft()
        wrong = [whole.stages[0], replace(whole.stages[1], model=classifier(-WEIGHTS)), whole.stages[2]]
        write_package(draft(stages=wrong), samples(), tmp_path / "plants" / "1")
        result = run("verify", tmp_path / "plants" / "1", "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["failures"][0]["tensor"] == "probability"

    def test_held_out_samples_and_sizes_can_be_given(self, repository: Path, tmp_path: Path) -> None:
        """--samples and --batch choose what is replayed; --profile which promise."""
        golden.write_samples(tmp_path / "heldout", [sample("held out", [{"size": 2.5, "kind": "oak"}])])
        result = run("verify", repository / "plants", "--samples", tmp_path / "heldout", "--batch", "3", "--profile", "cpu.other", "--json")
        report = json.loads(result.stdout)
        assert (report["samples"], report["batch_sizes"], report["profile"]) == (1, [3], "cpu.other")


class TestPredict:
    def rows(self, tmp_path: Path, *rows: Mapping[str, Any]) -> Path:
        """Write JSON Lines."""
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def test_results_are_json_lines_in_a_pipe(self, repository: Path, tmp_path: Path) -> None:
        """Off a terminal, stdout is one result a line, and the count goes to stderr."""
        result = run("predict", self.rows(tmp_path, *ROWS), "--package", repository / "plants")
        assert result.exit_code == 0, result.output
        answers = [json.loads(line) for line in result.stdout.splitlines()]
        assert [a["prediction"]["label"] for a in answers] == reference(ROWS)["label"].tolist()
        np.testing.assert_allclose([a["prediction"]["probability"] for a in answers], reference(ROWS)["probability"], rtol=1e-6)
        assert "5 of 5 predicted" in result.stderr

    def test_failed_item_is_exit_code_1_and_the_others_are_answered(self, repository: Path, tmp_path: Path) -> None:
        """One bad row does not cost its neighbours, and does not go unnoticed."""
        result = run("predict", self.rows(tmp_path, ROWS[0], {"size": 1}, ROWS[1]), "--package", repository / "plants")
        assert result.exit_code == 1
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [("prediction" in line, line.get("code")) for line in lines] == [(True, None), (False, "missing_field"), (True, None)]
        assert "2 of 3 predicted, 1 failed" in result.stderr

    def test_output_file_gets_the_lines(self, repository: Path, tmp_path: Path) -> None:
        """--output leaves stdout empty."""
        result = run("predict", self.rows(tmp_path, *ROWS), "--package", repository / "plants", "--output", tmp_path / "out.jsonl")
        assert result.stdout == ""
        assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5

    def test_table_is_for_people(self, repository: Path, tmp_path: Path) -> None:
        """--format table has a column per output and the reason in a failed row."""
        result = run("predict", self.rows(tmp_path, ROWS[0], {"size": 1}), "--package", repository / "plants", "--format", "table")
        assert "label" in result.stdout
        assert "rows.jsonl:1" in result.stdout
        assert "(missing_field)" in " ".join(result.stdout.split())

    def test_standard_input_is_read(self, repository: Path) -> None:
        """A dash reads JSON Lines from a pipe."""
        result = run("predict", "-", "--package", repository / "plants", stdin='{"size": 1.5, "kind": "moss"}\n')
        assert json.loads(result.stdout)["item"] == "stdin:1"

    def test_server_that_is_not_there_is_an_error(self, tmp_path: Path) -> None:
        """The message says how to start one."""
        result = run("predict", self.rows(tmp_path, *ROWS), "--url", "http://127.0.0.1:1", "--model", "plants")
        assert result.exit_code == 1
        assert "samegraph serve" in result.stderr


class FakePoint:
    """An entry point as `importlib.metadata` gives them."""

    def __init__(self, name: str, loaded: Any) -> None:
        self.name, self.value, self._loaded = name, f"somewhere:{name}", loaded

    def load(self) -> Any:
        """Return the object, or fail as a broken distribution does."""
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


class TestPlugins:
    @pytest.fixture(autouse=True)
    def _plugins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        @click.command()
        def hello() -> None:
            """Greet."""
            raise PackageError("no package here")

        @click.command()
        def pack() -> None:
            """Try to take the place of our own command."""

        points = [
            FakePoint("hello", hello),
            FakePoint("broken", ImportError("no web framework")),
            FakePoint("number", 3),
            FakePoint("pack", pack),
        ]
        monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == cli.GROUP else [])

    def test_plugin_commands_are_listed_and_run(self) -> None:
        """A command of another distribution appears in the help, and its errors are ours to show."""
        assert "Greet." in run("--help").output
        result = run("hello")
        assert (result.exit_code, result.stderr) == (1, "error: no package here\n")

    def test_broken_plugin_does_not_take_the_others_with_it(self) -> None:
        """The help still works; running the command says what is wrong."""
        assert "Not available: ImportError: no web framework" in run("--help").output
        result = run("broken", "--port", "1")
        assert result.exit_code == 1
        assert "does not load: ImportError: no web framework" in result.stderr

    def test_plugin_cannot_replace_our_own_command(self) -> None:
        """`pack` stays ours."""
        assert "Prove SOURCE" in run("pack", "--help").output

    def test_plugin_that_is_no_command_is_named(self) -> None:
        """A wrong entry point is a message."""
        assert "it is no click command but int" in run("number").stderr


def test_module_runs_as_a_program(tmp_path: Path) -> None:
    """`python -m samegraph_transforms` is the command, with its exit code and without noise on stdout."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "samegraph_transforms", "inspect", tmp_path],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")

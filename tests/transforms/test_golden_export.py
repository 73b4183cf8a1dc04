"""Golden samples as JSON Lines: what is written can be sent as it is, and holds the training code's answers."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from package_builders import draft, samples
from samegraph_transforms.cli import cli
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return pack(draft(), samples(), tmp_path_factory.mktemp("repository"))


def test_lines_hold_request_answer_and_promise(package: Package) -> None:
    """Bodies byte for byte, every output of every instance, and the tolerance of the profile asked for."""
    done = CliRunner().invoke(cli, ["golden", "export", str(package.path), "--profile", "gpu"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["name"] for line in lines] == [sample.name for sample in samples()]
    for line, sample in zip(lines, samples(), strict=True):
        assert base64.b64decode(line["body"]) == sample.body
        assert (line["path"], line["headers"]) == (sample.path, dict(sample.headers))
        for output in package.manifest.outputs:
            exported = [row[output.name] for row in line["predictions"]]
            np.testing.assert_array_equal(np.array(exported), sample.outputs[output.name].astype(np.array(exported).dtype))
        assert line["tolerance"] == {"ulp": 0, "relative_to_max": 0.0, "atol": 1e-5, "rtol": 1e-5}


def test_file_and_other_samples(package: Package, tmp_path: Path) -> None:
    """Held-out samples in a directory of their own go the same way, into a file."""
    target = tmp_path / "samples.jsonl"
    done = CliRunner().invoke(cli, ["golden", "export", str(package.path), "--samples", str(package.golden_dir()), "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert len(target.read_text().splitlines()) == len(samples())
    assert CliRunner().invoke(cli, ["golden", "export", str(tmp_path)]).exit_code == 1

"""Publishing an example: an older build makes way only for a proven new one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import package_builders as build
import pytest
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.errors import NotExact, PackageExists
from samegraph_transforms.golden import read_samples
from samegraph_transforms.package import read_package

from models._publish import publish


def _publish(repository: Path, *, replace: bool = True, description: str = "") -> str:
    draft = build.draft(description=description)
    return publish(draft, build.samples(), build.samples()[:2], repository, replace=replace).digest


def _leftovers(repository: Path) -> list[str]:
    return sorted(path.name for path in repository.rglob(".*") if path.name != ".heldout")


def test_a_first_build_writes_package_and_held_out_requests(tmp_path: Path) -> None:
    """The package is whole, the held-out requests lie beside it, and no scratch directory stays."""
    digest = _publish(tmp_path)
    assert read_package(tmp_path / "plants" / "1").digest == digest
    assert len(read_samples(tmp_path / ".heldout" / "plants" / "1")) == 2
    assert _leftovers(tmp_path) == []


def test_the_same_package_is_not_touched(tmp_path: Path) -> None:
    """A rebuild that comes to the same bytes leaves the very files a server may have open."""
    digest = _publish(tmp_path)
    before = (tmp_path / "plants" / "1" / "manifest.json").stat().st_ino
    assert _publish(tmp_path) == digest
    assert (tmp_path / "plants" / "1" / "manifest.json").stat().st_ino == before


def test_another_package_takes_the_place_of_the_older(tmp_path: Path) -> None:
    """With replace, the new digest is what the version has from then on."""
    older = _publish(tmp_path)
    newer = _publish(tmp_path, description="a better one")
    assert newer != older
    assert read_package(tmp_path / "plants" / "1").digest == newer
    assert _leftovers(tmp_path) == []


def test_a_damaged_package_is_replaced(tmp_path: Path) -> None:
    """A version whose files do not match its manifest is not taken for the same package."""
    digest = _publish(tmp_path)
    (tmp_path / "plants" / "1" / "model.onnx").write_bytes(b"")
    assert _publish(tmp_path) == digest
    assert read_package(tmp_path / "plants" / "1").digest == digest


def test_without_replace_another_package_is_refused(tmp_path: Path) -> None:
    """A version stays what it is unless its owner says otherwise."""
    older = _publish(tmp_path)
    with pytest.raises(PackageExists):
        _publish(tmp_path, replace=False, description="a better one")
    assert read_package(tmp_path / "plants" / "1").digest == older


def test_a_package_that_cannot_be_proven_leaves_the_older_in_place(tmp_path: Path) -> None:
    """When the new graphs answer differently, version and held-out requests are those of before."""
    older = _publish(tmp_path)
    before, _, after = build.draft().stages
    worse = DraftStage("model", build.classifier(build.WEIGHTS * np.float32(1.01)))
    wrong = build.draft(description="a worse one", stages=[before, worse, after])
    with pytest.raises(NotExact):
        publish(wrong, build.samples(), [], tmp_path, replace=True)
    assert read_package(tmp_path / "plants" / "1").digest == older
    assert len(read_samples(tmp_path / ".heldout" / "plants" / "1")) == 2
    assert _leftovers(tmp_path) == []

"""The benchmark's packages answer like the plain pipelines that the limit and the peers share, and what is sent is what is said."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from samegraph_transforms.package import read_package
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.wire import decode_request, predictions

from benchmarks.networks import mobilenet_v2
from benchmarks.packages import LEAVES, N_FRAMES, N_ROWS, TREES, build
from benchmarks.plain import Images, Rows
from benchmarks.workloads import BURST, MOBILENET, ROWS_1000, Plain, Workload
from benchmarks.workloads import TREES as ROW


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the smaller two packages, built once; the larger is made by the same code."""
    directory = tmp_path_factory.mktemp("packages")
    for name in ("trees", "mobilenet"):
        assert build(name, directory)
    return directory


def served(workload: Workload, repository: Path, body: bytes) -> list[Any]:
    """What our runtime answers, in process."""
    runtime = PackageRuntime.load(read_package(workload.package(repository)), intra_op_threads=1)
    rows: Any = decode_request(runtime.signature, {"content-type": workload.content_type}, body).rows
    return list(predictions(runtime.manifest.outputs, runtime.run(runtime.collate([runtime.prepare(row) for row in rows]))))


@pytest.mark.parametrize("workload", [ROW, ROWS_1000, MOBILENET], ids=lambda workload: workload.name)
def test_package_answers_like_the_plain_pipeline(workload: Workload, repository: Path) -> None:
    """The same floats, from our graphs and from what somebody writes who has never heard of them."""
    bodies = workload.bodies(repository)[:3]
    plain = Plain(workload, repository)
    for body in bodies:
        answer = served(workload, repository, body)
        assert len(answer) == workload.rows
        assert answer == plain.answers(body)


def test_batch_of_images_is_answered_like_single_ones(repository: Path) -> None:
    """What the limit runs in batches are the same answers within rounding, each at its place."""
    model = MOBILENET.plain_model(repository)
    assert model is not None
    images = Images(model)
    inputs = [images.decode(body) for body in MOBILENET.bodies(repository)[:3]]
    together = images.run(np.stack(inputs))
    for one, x in zip(together, inputs, strict=True):
        alone = images.run(x[np.newaxis])[0]
        assert one["class"] == alone["class"]
        np.testing.assert_allclose(one["probability"], alone["probability"], rtol=1e-5)


def test_bodies_are_what_the_titles_say(repository: Path) -> None:
    """Rows of 30 numbers, a thousand of them together, and different photos of 640×427 pixels."""
    columns = ROW.columns(repository)
    assert len(columns) == 30
    rows = ROW.bodies(repository)
    assert len(set(rows)) == len(rows) == N_ROWS
    for body in rows:
        (instance,) = json.loads(body)["instances"]
        assert list(instance) == columns
        assert all(isinstance(value, float) for value in instance.values())
    assert [len(json.loads(body)["instances"]) for body in ROWS_1000.bodies(repository)] == [1000] * 4
    frames = MOBILENET.bodies(repository)
    assert frames == BURST.bodies(repository)
    assert len(set(frames)) == len(frames) == N_FRAMES
    for frame in frames:
        with Image.open(io.BytesIO(frame)) as opened:
            assert (opened.format, opened.size, opened.mode) == ("JPEG", (640, 427), "RGB")


def test_answers_tell_bodies_apart(repository: Path) -> None:
    """A swapped answer would be seen: no two frames and no two rows are answered alike."""
    frames, rows = Plain(MOBILENET, repository), Plain(ROW, repository)
    assert len({str(frames.answers(body)) for body in MOBILENET.bodies(repository)}) == N_FRAMES
    assert len({str(rows.answers(body)) for body in ROW.bodies(repository)}) == N_ROWS


def test_trees_have_the_size_that_is_promised(repository: Path) -> None:
    """The cost of a row is that of its leaves."""
    model = onnx.load(ROW.package(repository) / "model.onnx")
    (trees,) = [node for node in model.graph.node if node.op_type == "TreeEnsemble"]
    attributes = {attribute.name: attribute for attribute in trees.attribute}
    leaves = len(attributes["leaf_targetids"].ints)
    assert 0.9 * TREES * LEAVES < leaves <= (TREES + 1) * LEAVES


def test_row_that_lacks_a_number_is_refused(repository: Path) -> None:
    """The plain pipeline is typed, so that peers do not win by checking less."""
    model = ROW.plain_model(repository)
    assert model is not None
    rows = Rows(model, ROW.columns(repository))
    row = json.loads(ROW.bodies(repository)[0])["instances"][0]
    del row["mean_area"]
    with pytest.raises(ValueError, match="mean_area"):
        rows.decode(json.dumps({"instances": [row]}).encode())


def test_network_is_the_published_architecture(repository: Path) -> None:
    """MobileNetV2 at width 1.0: 3.5 million weights, 52 convolutions, a linear layer."""
    model = onnx.load(MOBILENET.package(repository) / "model.onnx")
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    kinds = [node.op_type for node in model.graph.node]
    # The paper counts 3.4 million; batch normalisation, folded here, leaves one bias a channel.
    assert weights == pytest.approx(3.49e6, rel=0.01)
    assert (kinds.count("Conv"), kinds.count("Gemm"), kinds.count("Add")) == (52, 1, 10)


def test_same_seed_gives_the_same_network() -> None:
    """Two machines measure the same thing; another seed is another network."""
    photos = np.random.default_rng(5).normal(0, 1, (2, 3, 224, 224)).astype(np.float32)
    first, again, other = (mobilenet_v2(photos, seed) for seed in (1, 1, 2))
    for a, b, c in zip(first.graph.initializer, again.graph.initializer, other.graph.initializer, strict=True):
        np.testing.assert_allclose(numpy_helper.to_array(a), numpy_helper.to_array(b), rtol=1e-4, atol=1e-5)
        if a.name == "w0":
            assert not np.allclose(numpy_helper.to_array(a), numpy_helper.to_array(c))


def test_what_is_up_to_date_is_not_built_again(repository: Path) -> None:
    """`make bench` begins at once the second time; a package that is gone is built."""
    before = (repository / "trees" / "1" / "manifest.json").stat().st_mtime_ns
    assert not build("trees", repository)
    assert (repository / "trees" / "1" / "manifest.json").stat().st_mtime_ns == before

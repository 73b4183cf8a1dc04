"""The built imagenet package against the published network, and against Pillow and NumPy.

Needs models/imagenet/1 and its held-out requests, which `make models` (and so `make test`) builds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from samegraph_transforms.draft import GoldenSample
from samegraph_transforms.errors import InputError
from samegraph_transforms.exactness import compare
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.golden import read_samples
from samegraph_transforms.manifest import DEFAULT_TOLERANCES
from samegraph_transforms.package import Package, read_package
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.wire import decode_request

from models.imagenet.efficientnet import build_efficientnet_lite0
from models.imagenet.labels import class_labels
from models.imagenet.photos import PHOTOS, photo_paths
from models.imagenet.published import PublishedLogits, published_logits
from models.imagenet.reference.preprocessing import normalise, pixels
from models.imagenet.samples import encode

MODELS = Path(__file__).resolve().parents[2] / "models"
#: Best class of the photos the documentation shows, with its probability.
SHOWN = {
    "coffee.png": ("espresso", 0.951),
    "camera.png": ("tripod", 0.937),
    "chelsea.png": ("tiger cat", 0.408),
    "flower.jpg": ("daisy", 0.321),
    "china.jpg": ("palace", 0.280),
}


@pytest.fixture(scope="module")
def package() -> Package:
    """The package that `make models` built."""
    return read_package(MODELS / "imagenet" / "1")


@pytest.fixture(scope="module")
def runtime(package: Package) -> Iterator[PackageRuntime]:
    """The package, loaded as the server loads it."""
    loaded = PackageRuntime.load(package)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def published() -> dict[str, PublishedLogits]:
    """The committed logits of the published PyTorch network."""
    return dict(published_logits())


@pytest.fixture(scope="module")
def held_out() -> list[GoldenSample]:
    """Requests that are not golden, with the reference's answers."""
    return read_samples(MODELS / ".heldout" / "imagenet" / "1")


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    """The packaged photos."""
    return {name: path.read_bytes() for name, path in photo_paths().items()}


def test_the_reference_covers_every_photo(published: dict[str, PublishedLogits], photos: dict[str, bytes]) -> None:
    """Each of the seventeen photos has committed logits, and file and pixels are those they were computed from."""
    assert tuple(published) == PHOTOS
    for name, data in photos.items():
        published[name].check(name, data, pixels(data))


def test_the_built_network_gives_the_published_logits(
    package: Package, published: dict[str, PublishedLogits], photos: dict[str, bytes]
) -> None:
    """model.onnx is within 2e-5 of PyTorch's float32 and of the network in float64 (8.9e-6 and 1.2e-5 were measured; logits reach 11.4)."""
    network = OrtExecutor(package.load_stage("model"))
    logits = np.concatenate([network.run({"input": normalise(pixels(photos[name]))[None]})[0] for name in published])
    assert np.abs(logits - np.stack([p.logits for p in published.values()])).max() < 2e-5
    assert np.abs(logits - np.stack([p.logits_float64 for p in published.values()])).max() < 2e-5
    assert np.abs(logits).max() > 10


def test_a_network_padded_as_pytorch_pads_would_be_noticed(
    package: Package, published: dict[str, PublishedLogits], photos: dict[str, bytes]
) -> None:
    """Turning the stem's (0, 1) padding into (1, 0) moves a logit by more than a thousand times the bound of the test above."""
    model = package.load_stage("model")
    stem = next(node for node in model.graph.node if node.op_type == "Conv")
    pads = next(attribute for attribute in stem.attribute if attribute.name == "pads")
    assert list(pads.ints) == [0, 0, 1, 1]
    pads.ints[:] = [1, 1, 0, 0]
    logits = OrtExecutor(model).run({"input": normalise(pixels(photos["chelsea.png"]))[None]})[0][0]
    assert np.abs(logits - published["chelsea.png"].logits).max() > 1000 * 2e-5


def test_the_package_holds_the_network_as_built_from_the_weights(package: Package) -> None:
    """Packing changes nothing about the graph: building it again from the package's own tensors gives the same nodes and bytes."""
    model = package.load_stage("model")
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name not in ("zero", "six")}
    assert build_efficientnet_lite0(weights).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("name", SHOWN)
def test_a_photo_gets_the_answer_the_documentation_shows(runtime: PackageRuntime, photos: dict[str, bytes], name: str) -> None:
    """The file's bytes go in and the published network's class and probability come out."""
    answer = runtime.predict([runtime.signature.row_of({"image": photos[name]})])
    label, probability = SHOWN[name]
    assert answer["label"][0, 0] == label
    assert answer["probability"][0, 0] == pytest.approx(probability, abs=0.0005)
    assert (np.diff(answer["probability"][0]) <= 0).all()


def test_over_two_hundred_held_out_images_get_the_reference_answer(
    runtime: PackageRuntime, held_out: list[GoldenSample], published: dict[str, PublishedLogits]
) -> None:
    """Pixels are bit-equal and labels equal for every held-out request; floats keep to the promise for this very machine (4 ULP, or 1e-7
    of the largest), except for the photos whose reference is PyTorch, which keep to the package's own promise.
    """
    assert len(held_out) >= 200
    for sample in held_out:
        own = runtime.manifest.tolerances["cpu.same"]
        tolerance = own if sample.name in published else DEFAULT_TOLERANCES["cpu.same"]
        rows = [row for row in decode_request(runtime.signature, sample.headers, sample.body).rows if not isinstance(row, InputError)]
        trace = runtime.trace(rows)
        for tensor, expected in {**sample.values, **sample.outputs}.items():
            comparison = compare(expected, trace[tensor], tolerance, tensor=tensor)
            assert comparison.passed, f"{sample.name}: {tensor}: {comparison.detail}"


def test_held_out_images_are_not_golden_and_cover_the_encodings(package: Package, held_out: list[GoldenSample]) -> None:
    """No request body occurs on both sides, and JPEG, PNG, WebP, GIF and BMP are all among the held-out ones."""
    golden = {sample.body for sample in read_samples(package.path / "golden")}
    assert not golden & {sample.body for sample in held_out}
    media_types = {sample.headers["content-type"] for sample in held_out}
    assert media_types == {"image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"}


def test_golden_samples_are_held_to_pixels_and_logits(package: Package, published: dict[str, PublishedLogits]) -> None:
    """Every golden sample carries the intermediates, at least 32 of them exist, and nine photos carry PyTorch's very logits."""
    samples = read_samples(package.path / "golden")
    assert len(samples) >= 32
    assert all(set(sample.values) == {"pixels", "logits"} for sample in samples)
    by_name = {sample.name: sample for sample in samples}
    photos = by_name.keys() & published.keys()
    assert len(photos) == 9
    for name in photos:
        np.testing.assert_array_equal(by_name[name].values["logits"][0], published[name].logits)


def test_an_image_of_which_the_crop_leaves_nothing_is_refused(runtime: PackageRuntime) -> None:
    """An image one pixel wide gets an error that names the field, not the class of a black square."""
    data = encode(Image.new("RGB", (1, 40)), "PNG")
    with pytest.raises(ValueError, match="central crop is empty"):
        pixels(data)
    with pytest.raises(InputError, match="too small") as caught:
        runtime.predict([runtime.signature.row_of({"image": data})])
    assert (caught.value.code, caught.value.field) == ("wrong_shape", "image")


def test_class_names_are_unique_and_readable() -> None:
    """A thousand different names; those two classes share carry more than the shared word."""
    labels = class_labels()
    assert len(set(labels)) == len(labels) == 1000
    assert [labels[i] for i in (282, 967, 698)] == ["tiger cat", "espresso", "palace"]
    assert [labels[i] for i in (134, 517)] == ["crane bird", "construction crane"]
    assert all(label == label.strip() and len(label) < 60 for label in labels)

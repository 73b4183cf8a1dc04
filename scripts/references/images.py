"""Write what transformers, timm and torchvision make of images: the references of tests/transforms/test_image_imports.py.

By hand, in an environment of its own:

    python3 -m venv /tmp/images && /tmp/images/bin/pip install -r scripts/references/requirements-images.txt -e transforms
    /tmp/images/bin/python scripts/references/images.py

With --images N --out DIR: the whole tensors of N images more, for scripts/exactness_sections/importers_images.py, which compares them.

Writes tests/transforms/references/images/: cases.json says what each case imports (a configuration, or the classes and attributes of the
transforms), tensors.npz holds the libraries' answers, whole for small sizes and as SHA-256 of the float32 bytes for large ones. The real
objects are imported too; ends with 1 when one gives another tensor.
"""

from __future__ import annotations

import argparse
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
import timm.data  # type: ignore[import-not-found,unused-ignore]
import torch  # type: ignore[import-not-found,unused-ignore]
import torchvision.transforms as v1  # type: ignore[import-not-found,unused-ignore]
import torchvision.transforms.v2 as v2  # type: ignore[import-not-found,unused-ignore]
import transformers  # type: ignore[import-not-found,unused-ignore]
from PIL import Image, ImageOps
from samegraph_transforms.image_imports import from_huggingface, from_timm, from_torchvision
from torchvision.models import EfficientNet_B0_Weights, ResNet50_Weights, ViT_B_16_Weights  # type: ignore[import-not-found,unused-ignore]

ROOT = Path(__file__).parents[2]
OUT = ROOT / "tests" / "transforms" / "references" / "images"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
#: Tensors with more elements are kept as their digest.
MOST = 5000


def images() -> dict[str, bytes]:
    """Return name → file: seeded noise of odd shapes as PNG, one grey, and a photo."""
    rng = np.random.default_rng(11)
    made = {}
    for height, width in ((61, 47), (40, 131), (200, 37)):
        made[f"noise-{height}x{width}.png"] = png(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    made["grey.png"] = png(rng.integers(0, 256, (50, 50), dtype=np.uint8))
    return {**made, "coffee.jpg": (ROOT / "docs" / "photos" / "coffee.jpg").read_bytes()}


def png(pixels: np.ndarray) -> bytes:
    """Return pixels as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def huggingface_cases() -> dict[str, Any]:
    """Return name → slow image processor."""
    small = {"height": 24, "width": 32}
    clip = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    return {
        "hf-vit": transformers.ViTImageProcessor(),
        "hf-vit-small": transformers.ViTImageProcessor(size=small, resample=3, image_mean=MEAN, image_std=STD),
        "hf-vit-without-normalizing": transformers.ViTImageProcessor(size=small, do_normalize=False),
        "hf-vit-without-rescaling": transformers.ViTImageProcessor(size=small, do_rescale=False, image_mean=[127] * 3, image_std=[128] * 3),
        "hf-deit": transformers.DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size={"height": 31, "width": 30}),
        "hf-siglip": transformers.SiglipImageProcessor(size=small),
        "hf-clip": transformers.CLIPImageProcessor(),
        "hf-clip-small": transformers.CLIPImageProcessor(**clip),
        "hf-clip-odd": transformers.CLIPImageProcessor(size={"shortest_edge": 33}, crop_size={"height": 28, "width": 32}, resample=1),
        "hf-convnext": transformers.ConvNextImageProcessor(size={"shortest_edge": 28}, crop_pct=0.875),
        "hf-convnext-384": transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
        "hf-clip-crop-pads": transformers.CLIPImageProcessor(size={"shortest_edge": 25}, crop_size={"height": 40, "width": 30}),
        "hf-detr-fixed": transformers.DetrImageProcessor(size=small, do_pad=False),
    }


def timm_cases() -> dict[str, dict[str, Any]]:
    """Return name → data configuration."""
    usual = {"mean": tuple(MEAN), "std": tuple(STD)}
    return {
        "timm-resnet": {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center", **usual},
        "timm-small": {"input_size": (3, 28, 28), "interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center", **usual},
        "timm-squash": {"input_size": (3, 28, 24), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "squash", **usual},
        "timm-not-square": {"input_size": (3, 28, 41), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center", **usual},
        "timm-border": {"input_size": (3, 33, 28), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "border", **usual},
        "timm-border-224": {"input_size": (3, 224, 224), "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "border", **usual},
        "timm-squash-pads": {"input_size": (3, 28, 24), "interpolation": "bilinear", "crop_pct": 1.2, "crop_mode": "squash", **usual},
        "timm-whole": {"input_size": (3, 30, 30), "interpolation": "lanczos", "crop_pct": 1.0, "crop_mode": "center", **usual},
    }


def function(source: str) -> Any:
    """Return a function that knows its source, with what transforms need of the names in it."""
    made: Any = eval(source, {"torch": torch, "v1": v1, "ToTensor": v1.ToTensor, "to_tensor": v1.ToTensor()})  # noqa: S307 - our own text
    if hasattr(made, "__code__"):
        made.source = source
    return made


def torchvision_cases() -> dict[str, Any]:
    """Return name → transforms."""
    modes = v1.InterpolationMode
    to_float = v2.ToDtype(torch.float32, scale=True)
    normalize, tensor = v1.Normalize(MEAN, STD), v1.ToTensor()
    stack = v1.Lambda(torch.stack)
    each = [v1.Lambda(function(f"lambda crops: torch.stack([{made}(crop) for crop in crops])")) for made in ("ToTensor()", "v1.ToTensor()")]
    return {
        "v1-pad": v1.Compose([v1.Resize((27, 30)), v1.Pad((3, 0, 5, 12), fill=(124, 116, 104)), tensor, normalize]),
        "v1-pad-edge": v1.Compose([v1.Resize((27, 30)), v1.Pad((4, 9), padding_mode="edge"), tensor]),
        "v1-pad-reflect": v1.Compose([v1.Resize((7, 30)), v1.Pad((4, 20), padding_mode="reflect"), tensor]),
        "v2-pad-symmetric": v2.Compose([v2.Resize((27, 9)), v2.Pad(15, padding_mode="symmetric"), v2.ToImage(), to_float]),
        "v1-grey": v1.Compose([v1.Resize((27, 30)), v1.Grayscale(), tensor, v1.Normalize([0.5], [0.25])]),
        "v2-grey-3": v2.Compose([v2.Grayscale(3), v2.Resize((27, 30)), v2.ToImage(), to_float, v2.Normalize(MEAN, STD)]),
        "v2-grey-rgb": v2.Compose([v2.Resize((27, 30)), v2.Grayscale(), v2.RGB(), v2.ToImage(), to_float]),
        "v1-max-size": v1.Compose([v1.Resize(32, max_size=40), v1.CenterCrop(36), tensor, normalize]),
        "v2-longest": v2.Compose([v2.Resize(None, modes.BICUBIC, max_size=36), v2.CenterCrop((40, 36)), v2.ToImage(), to_float]),
        "v1-crop-pads": v1.Compose([v1.CenterCrop((45, 64)), tensor, normalize]),
        "v1-crop-of-a-tensor": v1.Compose([tensor, v1.CenterCrop((64, 45)), normalize]),
        "v1-flips": v1.Compose([v1.Resize((27, 30)), v1.RandomHorizontalFlip(1), v1.RandomVerticalFlip(0), v1.RandomGrayscale(1), tensor]),
        "v2-flips": v2.Compose([v2.Resize((27, 30)), v2.ToImage(), v2.RandomVerticalFlip(1.0), v2.RandomHorizontalFlip(0.0), to_float]),
        "v1-five-crop": v1.Compose([v1.Resize(32), v1.FiveCrop(21), each[0], normalize]),
        "v1-ten-crop": v1.Compose([v1.Resize(35, modes.BICUBIC), v1.TenCrop((20, 25)), each[1], normalize]),
        "v1-ten-crop-vertical": v1.Compose([v1.Resize(30), tensor, normalize, v1.TenCrop(21, vertical_flip=True), stack]),
        "v1-ten-crop-by-name": v1.Compose(
            [
                v1.Resize(30),
                v1.TenCrop(17),
                v1.Lambda(function("lambda crops: torch.stack([to_tensor(crop) for crop in crops])")),
                normalize,
            ]
        ),
        "v2-five-crop": v2.Compose([v2.Resize(33), v2.FiveCrop(28), v2.ToImage(), to_float, v2.Normalize(MEAN, STD), stack]),
        "v2-ten-crop": v2.Compose(
            [
                v2.Resize(33),
                v2.ToImage(),
                v2.TenCrop((19, 28)),
                to_float,
                v1.Lambda(function("lambda crops: torch.stack(crops)")),
                normalize,
            ]
        ),
        "timm-border-transforms": timm.data.create_transform((3, 30, 33), mean=MEAN, std=STD, crop_pct=0.95, crop_mode="border"),
        "v1": v1.Compose([v1.Resize(32), v1.CenterCrop(28), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
        "v1-exact-bicubic": v1.Compose([v1.Resize((27, 30), modes.BICUBIC), v1.ToTensor()]),
        "v1-nearest": v1.Compose([v1.Resize((27, 30), modes.NEAREST), v1.ToTensor()]),
        "v1-convert": v1.Compose([v1.Resize((27, 30)), v1.PILToTensor(), v1.ConvertImageDtype(torch.float32), v1.Normalize(MEAN, STD)]),
        "v2": v2.Compose([v2.RGB(), v2.Resize(33), v2.CenterCrop(28), v2.ToImage(), to_float, v2.Normalize(MEAN, STD)]),
        "v2-lanczos": v2.Compose([v2.Resize((27, 30), modes.LANCZOS), v2.PILToTensor(), to_float, v2.Normalize(MEAN, STD)]),
        "v2-unscaled": v2.Compose([v2.Resize((27, 30)), v2.ToImage(), v2.ToDtype(torch.float32), v2.Normalize([127.0] * 3, [128.0] * 3)]),
        "weights-resnet50": ResNet50_Weights.IMAGENET1K_V2.transforms(),
        "weights-efficientnet": EfficientNet_B0_Weights.IMAGENET1K_V1.transforms(),
        "weights-vit": ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1.transforms(),
    }


def recorded(one: Any) -> dict[str, Any]:
    """Return the module, the class and the attributes of a transform."""
    attributes = {k: plain(v) for k, v in vars(one).items() if not k.startswith("_") and k != "training"}
    return {"module": type(one).__module__, "class": type(one).__name__, "attributes": attributes}


def plain(value: Any) -> Any:
    """Return a value as JSON has it; transforms as `recorded` has them."""
    if isinstance(value, list) and value and callable(value[0]):
        return [recorded(v) for v in value]
    if isinstance(value, tuple):
        return list(value)
    if callable(value) and getattr(value, "__name__", None) in ("stack", "<lambda>"):
        return getattr(value, "source", "torch.stack")
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return str(value) if isinstance(value, torch.dtype) else getattr(value, "value", value)


def kept(tensor: np.ndarray) -> np.ndarray:
    """Return a small tensor as it is, a large one as its digest."""
    if tensor.size <= MOST:
        return tensor
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).digest(), dtype=np.uint8)


def processed(processor: Any, image: Image.Image) -> np.ndarray:
    """Return what an image processor makes of an image."""
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def transformed(transform: Any, image: Image.Image) -> np.ndarray:
    """Return what transforms of torchvision make of an image."""
    return np.asarray(transform(image).numpy())


def pipelines() -> tuple[dict[str, Any], dict[str, tuple[Callable[[Image.Image], np.ndarray], Any]]]:
    """Return name → what a case imports, and name → the library's program and ours, imported from the real object."""
    cases: dict[str, Any] = {}
    run: dict[str, tuple[Callable[[Image.Image], np.ndarray], Any]] = {}
    for name, processor in huggingface_cases().items():
        cases[name] = {"importer": "huggingface", "config": json.loads(processor.to_json_string())}
        run[name] = (
            partial(processed, processor),
            from_huggingface(processor.to_dict(), processor="slow"),
        )
    for name, config in timm_cases().items():
        transform = timm.data.create_transform(**config)
        cases[name] = {"importer": "timm", "config": config}
        run[name] = (partial(transformed, transform), from_timm(config))
    for name, transform in torchvision_cases().items():
        cases[name] = {"importer": "torchvision", "transforms": recorded(transform)}
        run[name] = (partial(transformed, transform), from_torchvision(transform))
    return cases, run


def means() -> dict[str, np.ndarray]:
    """Return answers for crops and what torch makes of them: the mean over five and ten, added in order, and as `mean` adds."""
    made: dict[str, Any] = {}
    for crops in (5, 10):
        logits = torch.from_numpy(np.random.default_rng(crops).normal(0, 3, (40, crops, 11)).astype(np.float32))
        made |= {f"answers/{crops}": logits, f"answers/{crops}/mean": sum(logits.unbind(1)) / crops}
        made |= {
            f"answers/{crops}/torch.mean": logits.mean(1),
            f"answers/{crops}/mean_of_softmax": sum(logits.softmax(2).unbind(1)) / crops,
        }
    return {name: value.numpy() for name, value in made.items()}


def main() -> int:
    """Write the references; return how many of our own tensors differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--sizes", type=int, default=0, help="images a rule of sizes, with --images")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("transformers", "timm", "torch", "torchvision", "numpy", "pillow")}
    cases, run = pipelines()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cases.json").write_text(json.dumps({"versions": versions, "cases": cases}, indent=1) + "\n")
    if options.images:
        return many(options.images, options.sizes, options.out, run)
    files = images()
    tensors, different, compared = means(), 0, 0
    for name, (reference, ours) in run.items():
        for file, content in files.items():
            wanted = np.asarray(reference(Image.open(io.BytesIO(content)).convert("RGB")))
            actual = ours(content)
            compared += wanted.size
            if actual.dtype != wanted.dtype or not np.array_equal(actual, wanted):
                print(f"{name}, {file}: {wanted.dtype} {wanted.shape} and {actual.dtype} {actual.shape}, {np.sum(actual != wanted)} differ")
                different += 1
            tensors[f"{name}/{file}"] = kept(wanted)
    np.savez_compressed(options.out / "tensors.npz", allow_pickle=False, **tensors)
    for file, content in files.items():
        if file.endswith(".png"):
            (options.out / file).write_bytes(content)
    print(f"{len(run)} cases, {len(files)} images, {compared:,} elements compared; {different} tensors differ")
    return min(different, 1)


def many(count: int, sizes: int, out: Path, run: dict[str, tuple[Callable[[Image.Image], np.ndarray], Any]]) -> int:
    """Write `count` images as PNG and, case by case, the libraries' tensors of all of them."""
    rng = np.random.default_rng(2026)
    files = {f"{place}.png": png(content(rng, place)) for place in range(count)}
    for file, data in files.items():
        (out / file).write_bytes(data)
    for name, (reference, _) in run.items():
        tensors = [reference(Image.open(io.BytesIO(data)).convert("RGB")) for data in files.values()]
        np.save(out / f"{name}.npy", np.stack(tensors))
    (out / "sizes.json").write_text(json.dumps(sized(sizes)))
    return 0


def sized(count: int) -> dict[str, list[Any]]:
    """Return rule → (height, width, what was wanted, the size that the library makes of them), as many as asked for."""
    rng = np.random.default_rng(31)
    made: dict[str, list[Any]] = {rule: [] for rule in ("shorter_int", "longer_int", "capped", "within_round", "cover_round", "contain")}
    of = v1.functional._compute_resized_output_size
    while len(made["contain"]) < count:
        height, width, *box = (int(v) for v in np.exp(rng.uniform(0, 6, 4)))
        image, side, most = Image.new("L", (width, height)), box[0], box[0] + box[1]
        rows = {
            "shorter_int": ([side], of((height, width), [side])),
            "longer_int": ([side], of((height, width), None, side, allow_size_none=True)),
            "capped": ([side, most], of((height, width), [side], most)),
            "within_round": (box, timm.data.transforms.ResizeKeepRatio.get_params(image, box, 1.0)),
            "cover_round": (box, timm.data.transforms.ResizeKeepRatio.get_params(image, box, 0.0)),
        }
        contained = ImageOps.contain(image, (box[1], box[0]), Image.Resampling.NEAREST)
        rows["contain"] = (box, [contained.height, contained.width])
        for rule, (wanted, size) in rows.items():
            made[rule].append([height, width, wanted, [max(1, int(v)) for v in size]])  # of no lines the library makes an error, we one
    return made


def content(rng: np.random.Generator, place: int) -> np.ndarray:
    """Return the pixels of one image: noise, black and white noise, a gradient or flat patches, sides of 8 to 320, one in nine long."""
    height, width = (int(v) for v in np.exp(rng.uniform(np.log(8), np.log(320), 2)))
    if place % 9 == 4:
        height, width = max(height, 9 * min(width, 30)), min(width, 30)
    kind, shape = place % 4, (height, width, 3)
    if kind == 0:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if kind == 1:
        return rng.integers(0, 2, shape, dtype=np.uint8) * np.uint8(255)
    if kind == 2:
        rows, columns, depth = np.indices(shape)
        return np.asarray((3 * rows + 5 * columns + 60 * depth) % 256, dtype=np.uint8)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.repeat(np.repeat(coarse, 8, 0), 8, 1)[:height, :width])


if __name__ == "__main__":
    sys.exit(main())

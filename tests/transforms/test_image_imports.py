"""Imported image pipelines give the tensors the libraries gave, bit for bit, called and served.

The references were written by scripts/references/images.py with transformers, timm and torchvision themselves. Transforms of torchvision
are rebuilt from their recorded classes and attributes: the importer reads nothing else.
"""

from __future__ import annotations

import hashlib
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from samegraph_transforms.draft import DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.errors import AuthoringError, UnsupportedStep
from samegraph_transforms.image import Preprocess
from samegraph_transforms.image_imports import from_huggingface, from_timm, from_torchvision
from samegraph_transforms.manifest import Output
from samegraph_transforms.opsets import IR_VERSION, opset_imports
from samegraph_transforms.pack import pack

ROOT = Path(__file__).parents[2]
REFERENCES = Path(__file__).parent / "references" / "images"
CASES: dict[str, dict[str, Any]] = json.loads((REFERENCES / "cases.json").read_text())["cases"]
FILES = {p.name: p.read_bytes() for p in (*sorted(REFERENCES.glob("*.png")), ROOT / "docs" / "photos" / "coffee.jpg")}


def rebuilt(recorded: dict[str, Any]) -> Any:
    """Return an object of a recorded class with its attributes."""
    made = type(recorded["class"], (), {"__module__": recorded["module"]})()
    for name, value in recorded["attributes"].items():
        nested = isinstance(value, list) and value and isinstance(value[0], dict)
        setattr(
            made, name, [rebuilt(v) for v in value] if nested else function(value) if name == "lambd" and isinstance(value, str) else value
        )
    return made


class Stack:
    """Stands for torch.stack: a function without Python code, known by its name."""

    __name__ = "stack"


def function(source: str) -> Any:
    """Return a recorded function, with modules and classes of the names that it has in training code."""
    torch, v1 = types.ModuleType("torch"), types.ModuleType("torchvision.transforms")
    torch.stack = Stack()  # type: ignore[attr-defined]
    v1.ToTensor = type("ToTensor", (), {"__module__": "torchvision.transforms.transforms"})  # type: ignore[attr-defined]
    return eval(source, {"torch": torch, "v1": v1, "ToTensor": v1.ToTensor, "to_tensor": v1.ToTensor()})


def imported(case: dict[str, Any]) -> Preprocess:
    """Import one case with the Pillow the references were made with."""
    if case["importer"] == "huggingface":
        return from_huggingface(json.dumps(case["config"]), processor="slow", semantics="pillow>=13")
    if case["importer"] == "timm":
        return from_timm(case["config"], semantics="pillow>=13")
    return from_torchvision(rebuilt(case["transforms"]), semantics="pillow>=13")


def assert_same(actual: np.ndarray, reference: np.ndarray) -> None:
    """Compare with a tensor, or with the digest of one."""
    assert actual.dtype == np.float32
    if reference.dtype == np.uint8:
        assert hashlib.sha256(np.ascontiguousarray(actual).tobytes()).digest() == reference.tobytes()
    else:
        np.testing.assert_array_equal(actual, reference)


@pytest.mark.parametrize("name", CASES)
def test_an_imported_pipeline_gives_the_library_s_tensors(name: str) -> None:
    preprocess = imported(CASES[name])
    with np.load(REFERENCES / "tensors.npz") as tensors:
        for file, content in FILES.items():
            assert_same(preprocess(content), tensors[f"{name}/{file}"])


@pytest.mark.parametrize("name", ["hf-clip-small", "timm-small", "timm-border", "v2"])
def test_an_imported_pipeline_becomes_a_package_proven_against_the_library(name: str, tmp_path: Path) -> None:
    preprocess = imported(CASES[name])
    shape = preprocess.output_shape
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", *shape]) for n in ("input", "tensor")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["tensor"])], "model", values[:1], values[1:])
    draft = PackageDraft(
        name="imported",
        version=1,
        fields=preprocess.fields(),
        decoders=preprocess.decoders(),
        outputs=[Output(name="tensor", dtype="float32", shape=list(shape))],
        stages=[*preprocess.stages(), DraftStage("model", helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION))],
    )
    with np.load(REFERENCES / "tensors.npz") as tensors:
        samples = [
            GoldenSample(
                name=file,
                path="/v1/models/imported:predict",
                headers={"content-type": "image/jpeg" if file.endswith("jpg") else "image/png"},
                body=content,
                outputs={"tensor": tensors[f"{name}/{file}"][np.newaxis]},
            )
            for file, content in FILES.items()
        ]
    measured = pack(draft, samples, tmp_path).manifest.measured
    assert {m.tensor: m.different for m in measured} == {"tensor": 0}


def transform(module: str, name: str, **attributes: Any) -> Any:
    """Return an object as torchvision's are: a class in a module, with attributes."""
    return rebuilt({"module": module, "class": name, "attributes": attributes})


V1, V2 = "torchvision.transforms.transforms", "torchvision.transforms.v2._misc"
RESIZE = transform(V1, "Resize", size=[8, 8], interpolation="bilinear", max_size=None)
TENSOR, FIVE = transform(V1, "ToTensor"), transform(V1, "FiveCrop", size=(8, 8))
NORMALIZE = transform(V1, "Normalize", mean=[0.5] * 3, std=[0.5] * 3)
RATIO = {"size": (8, 8), "interpolation": "bilinear", "longest": 0, "random_scale_prob": 0.0, "random_aspect_prob": 0.0}


@pytest.mark.parametrize(
    ("transforms", "step"),
    [
        pytest.param([transform(V1, "RandomHorizontalFlip", p=0.5)], "RandomHorizontalFlip", id="random"),
        pytest.param([transform(V2, "ToImage"), transform(V1, "Resize", size=[8, 8], interpolation="lanczos")], "Resize", id="tensor"),
        pytest.param([transform(V1, "Resize", size=8, interpolation="bilinear", max_size=7)], "Resize", id="longest side"),
        pytest.param([RESIZE, TENSOR, NORMALIZE, transform(V1, "CenterCrop", size=[9, 9])], "CenterCrop", id="crop of normalized"),
        pytest.param([transform(V1, "Pad", padding=(1, -2), fill=0, padding_mode="constant")], "Pad", id="pad that crops"),
        pytest.param([transform(V1, "Pad", padding=1, fill=0.5, padding_mode="constant")], "Pad", id="half a level"),
        pytest.param([transform(V1, "Pad", padding=1, fill=0, padding_mode="circular")], "Pad", id="unknown border"),
        pytest.param([TENSOR, transform(V1, "Pad", padding=1, fill=0, padding_mode="edge")], "Pad", id="border of a tensor"),
        pytest.param([TENSOR, transform(V1, "Grayscale", num_output_channels=1)], "Grayscale", id="grey of a tensor"),
        pytest.param([FIVE, transform(V1, "Resize", size=8, interpolation="bilinear")], "Resize", id="version 1 on a tuple"),
        pytest.param([FIVE, transform(V2, "CenterCrop", size=[8, 8])], "CenterCrop", id="crop of crops"),
        pytest.param([FIVE, TENSOR], "ToTensor", id="tensor of a tuple"),
        pytest.param(
            [FIVE, transform(V2, "PILToTensor"), transform(V2, "ToDtype", dtype="torch.float32", scale=True)], "ToDtype", id="plain"
        ),
        pytest.param([FIVE, transform(V1, "Lambda", lambd=Stack())], "Lambda", id="stack of images"),
        pytest.param([FIVE, transform(V2, "ToImage"), transform(V2, "Lambda", lambd=Stack())], "Lambda", id="version 2 sees one crop"),
        pytest.param([FIVE, transform(V1, "Lambda", lambd=len)], "Lambda", id="another function"),
        pytest.param([FIVE, transform(V1, "Lambda", lambd=lambda crops: crops[0])], "Lambda", id="another lambda"),
        pytest.param([transform(V1, "Lambda", lambd=Stack())], "Lambda", id="nothing to stack"),
        pytest.param([FIVE, transform("mine", "BatchMultiCrop")], "BatchMultiCrop", id="own class"),
        pytest.param([transform("timm", "ResizeKeepRatio", **{**RATIO, "longest": 0.5})], "ResizeKeepRatio", id="between the sides"),
        pytest.param([transform("timm", "ResizeKeepRatio", **{**RATIO, "random_scale_prob": 1})], "ResizeKeepRatio", id="random ratio"),
        pytest.param([transform("timm", "CenterCropOrPad", size=(8, 8), fill=0, padding_mode="edge")], "CenterCropOrPad", id="edge"),
        pytest.param(
            [transform(V2, "ToImage"), transform(V2, "Resize", size=8, interpolation="bilinear", max_size=9)],
            "Resize",
            id="longest side of a tensor",
        ),
        pytest.param([RESIZE, transform(V2, "ToImage"), transform(V2, "ToDtype", dtype="torch.float16", scale=True)], "ToDtype", id="half"),
        pytest.param([RESIZE, transform(V2, "ToDtype", dtype="torch.float32", scale=True)], "ToDtype", id="no tensor"),
        pytest.param([RESIZE, transform(V1, "Normalize", mean=[0], std=[1])], "Normalize", id="no float"),
    ],
)
def test_transforms_without_an_exact_step_are_refused_by_name(transforms: list[Any], step: str) -> None:
    with pytest.raises(UnsupportedStep) as refused:
        from_torchvision(transforms)
    assert refused.value.step == step
    assert step in str(refused.value)


def test_what_a_program_does_with_each_crop_can_be_said() -> None:
    stack = transform(V1, "Lambda", lambd=Stack())
    readable = from_torchvision(
        [FIVE, transform(V1, "Lambda", lambd=function("lambda crops: torch.stack([ToTensor()(crop) for crop in crops])"))]
    )
    own = transform(V1, "Lambda", lambd=lambda crops: [sum(crop) for crop in crops])
    assert repr(from_torchvision([FIVE, own], each_crop=[TENSOR])) == repr(readable)
    assert repr(from_torchvision([FIVE, own, own], each_crop=[TENSOR])) == repr(readable)  # the second is part of what was said
    assert repr(from_torchvision([FIVE, transform(V2, "ToImage"), transform("mine", "BatchMultiCrop"), to_float()], each_crop=[])) == repr(
        from_torchvision([transform(V2, "ToImage"), FIVE, stack, to_float()])
    )
    with pytest.raises(UnsupportedStep, match=r"say what it does with each crop .* each_crop=\[ToTensor"):
        from_torchvision([FIVE, own])
    with pytest.raises(UnsupportedStep, match="is a function, which cannot be read"):
        from_torchvision([FIVE, own, NORMALIZE, own], each_crop=[TENSOR])
    with pytest.raises(AuthoringError, match="each_crop says what nothing here needs said"):
        from_torchvision([transform(V2, "ToImage"), FIVE, stack, to_float()], each_crop=[])
    with pytest.raises(AuthoringError, match=r"left as a tuple; stack them, add Lambda\(torch.stack\)"):
        from_torchvision([TENSOR, FIVE])


@pytest.mark.parametrize(
    "source",
    [
        "lambda crops: torch.stack(crops, 1)",
        "lambda crops: torch.stack(crops[:5])",
        "lambda crops: torch.stack([ToTensor()(crop) for crop in crops[::-1]])",
        "lambda crops: torch.stack([ToTensor()(ToTensor()(crop)) for crop in crops])",
        "lambda crops: torch.stack([ToTensor()(crop) for crop in crops if crop])",
        "lambda crops: torch.stack([v1.ToTensor(3)(crop) for crop in crops])",
        "lambda crops: v1.stack(crops)",
        "lambda crops: torch.stack([nothing()(crop) for crop in crops])",
    ],
)
def test_a_function_that_only_looks_like_stacking_is_refused(source: str) -> None:
    with pytest.raises(UnsupportedStep, match="Lambda"):
        from_torchvision([FIVE, transform(V1, "Lambda", lambd=function(source)), to_float()])


def to_float() -> Any:
    """Return version 1's conversion."""
    return transform(V1, "ConvertImageDtype", dtype="torch.float32")


def test_transforms_must_end_in_a_float_tensor() -> None:
    with pytest.raises(AuthoringError, match=r"do not end in a float tensor; add ToTensor\(\)"):
        from_torchvision([RESIZE])


@pytest.mark.parametrize(
    ("config", "step"),
    [
        pytest.param({"image_processor_type": "ViTImageProcessorFast", "resample": 9}, "resample", id="unknown filter of a fast one"),
        pytest.param({"image_processor_type": "DetrImageProcessor"}, "size", id="another shape for every image"),
        pytest.param({"image_processor_type": "SamImageProcessor"}, "image_processor_type", id="unknown kind"),
        pytest.param({"image_processor_type": "ViTImageProcessor", "resample": 9}, "resample", id="unknown filter"),
    ],
)
def test_processors_without_an_exact_step_are_refused_by_key(config: dict[str, Any], step: str) -> None:
    with pytest.raises(UnsupportedStep) as refused:
        from_huggingface(config, processor="slow")
    assert refused.value.step == step


def test_slow_and_fast_processors_are_told_apart() -> None:
    config = {"image_processor_type": "ViTImageProcessor"}
    with pytest.raises(AuthoringError, match="does not tell whether"):
        from_huggingface(config)
    fast = from_huggingface({"image_processor_type": "ViTImageProcessorFast"})
    assert "TorchResize" in repr(fast)
    assert repr(fast) == repr(from_huggingface(config, processor="fast"))
    old = from_huggingface({"feature_extractor_type": "ViTFeatureExtractor"})  # there was no fast one then
    pillow = from_huggingface({"image_processor_type": "ViTImageProcessorPil"})
    asked = from_huggingface({"image_processor_type": "ViTImageProcessorFast"}, processor="slow")  # use_fast=False
    assert repr(old) == repr(pillow) == repr(asked) == repr(from_huggingface(config, processor="slow"))
    with pytest.raises(AuthoringError, match=r"not a preprocessor_config\.json"):
        from_huggingface(b"[1]")


def test_timm_configurations_without_an_exact_step_are_refused() -> None:
    usual = {"input_size": (3, 28, 28), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(UnsupportedStep, match="'random' has no exact step; there are `center`, `squash` and `border`"):
        from_timm({**usual, "crop_mode": "random"})
    with pytest.raises(UnsupportedStep, match="crop_border_pixels has no exact step"):
        from_timm({**usual, "crop_border_pixels": 3})
    with pytest.raises(UnsupportedStep, match="has 1 channels"):
        from_timm({**usual, "input_size": (1, 28, 28)})
    with pytest.raises(UnsupportedStep, match="has interpolation 'random'"):
        from_timm({**usual, "interpolation": "random"})
    with pytest.raises(AuthoringError, match="has no mean, std"):
        from_timm({"input_size": (3, 28, 28), "interpolation": "bicubic"})

"""The example packages, each made wrong in one place: all are refused, and the report names the node that was changed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from samegraph_transforms.draft import DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.errors import NotExact
from samegraph_transforms.functions import called_functions, library
from samegraph_transforms.golden import read_samples
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package, read_package

from scripts.exactness_sections._counting import onnx_runtime, section, table

MODELS = Path(__file__).resolve().parents[2] / "models"

ABOUT = """The packages of `models/`, with their own golden samples, whose answers the training code gave. One stage is changed in one
place, as people get it wrong, and packed again: `pack` must refuse it and name the node that was changed. The first row of each
package changes nothing and must be packed. *Proven*: a repair of that node alone gives training's values; otherwise it is the
first node that can be at fault."""

IMAGENET_MEAN, IMAGENET_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]

#: Changes a stage's graph and returns the name of the node at fault, as reports name it.
Change = Callable[[onnx.ModelProto], str]


@dataclass(frozen=True)
class Wrong:
    """One way to be wrong.

    Attributes:
        what: In words.
        package: Directory under models/.
        stage: The stage that is changed.
        change: What is done to it.
    """

    what: str
    package: str
    stage: str
    change: Change


def measure(work: Path, scale: float) -> dict[str, Any]:  # noqa: ARG001 - there is one set of packages
    """Pack every wrong package."""
    rows: list[list[Any]] = []
    for directory in dict.fromkeys(wrong.package for wrong in WRONG):
        package = read_package(MODELS / directory)
        samples = read_samples(package.path / "golden")
        rows.append(
            [directory, "nothing", len(samples), "packed" if _refusal(draft_of(package), samples, work) is None else "refused", *NONE]
        )
        rows += [_row(wrong, package, samples, work) for wrong in WRONG if wrong.package == directory]
    head = ["package", "what is wrong", "golden samples", "answer", "node changed", "node named", "kind", "proven"]
    return section("Packages that are wrong on purpose", ABOUT, [table("", head, rows)], ["numpy", "onnx", onnx_runtime()])


NONE = ("", "", "", "")


def _row(wrong: Wrong, package: Package, samples: Sequence[GoldenSample], work: Path) -> list[Any]:
    draft = draft_of(package)
    stage = next(stage for stage in draft.stages if stage.name == wrong.stage)
    node = wrong.change(stage.model)
    found = _refusal(draft, samples, work)
    if found is None:
        return [wrong.package, wrong.what, len(samples), "packed", f"`{node}`", *NONE[1:]]
    proven = "yes" if "are training's" in str(found) else "no"
    return [wrong.package, wrong.what, len(samples), "refused", f"`{node}`", f"`{found.node}`", found.kind, proven]


def draft_of(package: Package) -> PackageDraft:
    """Return the draft that a package could have been packed from; its graphs may be changed."""
    m = package.manifest
    stages = [DraftStage(s.name, package.load_stage(s.name), dict(s.inputs), dict(s.outputs)) for s in m.stages]
    return PackageDraft(
        name=m.name,
        version=m.version,
        fields=m.fields,
        outputs=m.outputs,
        stages=stages,
        decoders=m.decoders,
        tokenizers=m.tokenizers,
        batching=m.batching,
        tolerances=m.tolerances,
    )


def _refusal(draft: PackageDraft, samples: Sequence[GoldenSample], work: Path) -> NotExact | None:
    with tempfile.TemporaryDirectory(dir=work) as repository:
        try:
            pack(draft, samples, repository)
        except NotExact as error:
            return error
    return None


# ---------------------------------------------------------------- what is changed


def _node(model: onnx.ModelProto, operator: str, place: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type.startswith(operator)][place]


def _named(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _set_constant(model: onnx.ModelProto, node: onnx.NodeProto, values: Sequence[float]) -> None:
    """Put other values, one for each channel, where the node's second input comes from."""
    made = numpy_helper.from_array(np.array(values, np.float32).reshape(3, 1, 1), node.input[1])
    constant = next((n for n in model.graph.node if node.input[1] in n.output), None)
    if constant is not None:
        constant.attribute[0].CopyFrom(helper.make_attribute("value", made))
    else:
        next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1]).CopyFrom(made)


def _normalised_for_imagenet(model: onnx.ModelProto) -> str:
    _set_constant(model, _node(model, "Sub"), IMAGENET_MEAN)
    _set_constant(model, _node(model, "Div"), IMAGENET_STD)
    return _named(_node(model, "Sub"))


def _resized_by(function: str) -> Change:
    def change(model: onnx.ModelProto) -> str:
        node = _node(model, "PillowResize")
        node.op_type = function
        del model.functions[:]
        model.functions.extend(library(called_functions(model.graph.node)))
        return _named(node)

    return change


def _with_shuffled_categories(model: onnx.ModelProto) -> str:
    encoder = _node(model, "LabelEncoder")
    keys = next(attribute for attribute in encoder.attribute if attribute.name in ("keys_strings", "keys_tensor"))
    if keys.name == "keys_strings":
        keys.strings[:] = [*keys.strings[1:], keys.strings[0]]
    else:
        keys.t.string_data[:] = [*keys.t.string_data[1:], keys.t.string_data[0]]
    return _named(encoder)


def _filled_with_zero(model: onnx.ModelProto) -> str:
    where = _node(model, "Where")
    fill = next(t for t in model.graph.initializer if t.name in where.input)
    fill.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(fill)), fill.name))
    return _named(where)


def _narrowed_before_trees(model: onnx.ModelProto) -> str:
    trees = _node(model, "TreeEnsemble")
    casts = [
        helper.make_node("Cast", [trees.input[0]], ["narrowed"], name="narrow", to=TensorProto.FLOAT),
        helper.make_node("Cast", ["narrowed"], ["widened"], name="widen", to=TensorProto.DOUBLE),
    ]
    trees.input[0] = "widened"
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return "narrow"


WRONG = (
    Wrong("ImageNet's normalisation on EfficientNet-Lite0", "imagenet/1", "preprocess.batch", _normalised_for_imagenet),
    Wrong("bilinear where training had bicubic", "imagenet/1", "preprocess.item", _resized_by("PillowResize_bilinear_since13")),
    Wrong("OpenCV's INTER_LINEAR where training had Pillow's bicubic", "imagenet/1", "preprocess.item", _resized_by("OpenCVResize_linear")),
    Wrong("OpenCV's INTER_CUBIC where training had Pillow's bicubic", "imagenet/1", "preprocess.item", _resized_by("OpenCVResize_cubic")),
    Wrong("categories of an encoder shuffled", "flights/1", "preprocess.batch", _with_shuffled_categories),
    Wrong("missing numbers filled with 0", "flights/1", "preprocess.batch", _filled_with_zero),
    Wrong("a float32 cast before trees", "flights/2", "model", _narrowed_before_trees),
)

"""What an ONNX file has to be, and is made, before a package can be drafted from it: operators, outputs, batch dimension, stages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from . import external
from ._lineage import label, reads
from ._tf2onnx import PRODUCER, repair
from .errors import AuthoringError, UnsupportedStep
from .opsets import OLDEST_AI_ONNX
from .package import graph_names, parse_model

#: Domains whose operators the ONNX standard defines.
_STANDARD: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})
#: Operators that ONNX Runtime brings itself, beyond the standard.
_CONTRIBUTED: Final = frozenset({"com.microsoft", "com.microsoft.nchwc"})
#: onnxruntime-extensions.
_EXTENSIONS: Final = "ai.onnx.contrib"
#: What the locale of a StringNormalizer is set to: the one locale every Linux image has.
LOCALE: Final = "C.UTF-8"
BATCH: Final = "n"

_TREES: Final = frozenset({"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"})
_ARITHMETIC: Final = frozenset({"Scaler", "Normalizer", "Sub", "Div", "Mul", "Add", "MatMul", "Gemm", "Pow", "Sqrt", "Log", "Exp"})
_CLASSIFIERS: Final = frozenset({"TreeEnsembleClassifier", "LinearClassifier", "SVMClassifier"})
#: The default of skl2onnx, which is not the default of scikit-learn.
_ASCII_TOKENS: Final = "[a-zA-Z0-9_]+"


@dataclass
class OnnxFile:
    """A graph on its way into a package.

    Attributes:
        model: The graph; a copy of its own.
        warnings: What the author should know about it, a sentence each.
        element_names: Output → the class names along its last axis.
    """

    model: onnx.ModelProto
    warnings: list[str] = field(default_factory=list)
    element_names: dict[str, list[str]] = field(default_factory=dict)


def read_onnx(source: bytes | Path | str | onnx.ModelProto) -> OnnxFile:
    """Read a file with its external data, refuse what cannot run exactly, and repair what can be repaired without changing a value.

    `ZipMap` is taken out (the scores it wraps are the output then) and `StringNormalizer` gets a locale that is installed everywhere.

    Args:
        source: The file's path, its bytes (then without external data), or the model.

    Raises:
        UnsupportedStep: An operator cannot be run exactly; `.step` is the node.
        AuthoringError: The file is missing or cannot be read.
        PackageError: It is no ONNX model.
    """
    file = OnnxFile(_loaded(source))
    _tidy_opsets(file.model)
    if file.model.producer_name == PRODUCER:
        file.warnings += repair(file.model)
    for node in every_node(file.model):
        _check_operator(node, file)
    _remove_zip_maps(file)
    _set_locales(file)
    _name_classes(file)
    _warn_of_trees(file)
    return file


def _loaded(source: bytes | Path | str | onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.ModelProto()
    if isinstance(source, onnx.ModelProto):
        model.CopyFrom(source)
    elif isinstance(source, bytes):
        model = parse_model(source, "the ONNX file")
    else:
        path = Path(source)
        try:
            model = parse_model(path.read_bytes(), str(path))
            external.embed(model, lambda location: (path.parent / location).read_bytes())
        except OSError as error:
            raise AuthoringError(f"{error.filename}: {error.strerror}") from error
    if unread := external.locations(model):
        raise AuthoringError(f"the graph keeps weights in {', '.join(unread)}; give the path of the file, or embed them (onnx.load does)")
    return model


def every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node: of the graph, its subgraphs and the model-local functions."""
    for node in model.graph.node:
        yield from _with_inner(node)
    for function in model.functions:
        for node in function.node:
            yield from _with_inner(node)


def _with_inner(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    yield node
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inner in graph.node:
                yield from _with_inner(inner)


# --- operators --------------------------------------------------------------------------------------------------------


def _tidy_opsets(model: onnx.ModelProto) -> None:
    """Say each operator set once (skl2onnx repeats them), and refuse one that is too old."""
    versions: dict[str, int] = {}
    for opset in model.opset_import:
        domain = "" if opset.domain == "ai.onnx" else opset.domain
        versions[domain] = max(versions.get(domain, 0), opset.version)
    if 0 < versions.get("", OLDEST_AI_ONNX) < OLDEST_AI_ONNX:
        raise AuthoringError(
            f"the file uses operator set {versions['']}, which ONNX Runtime does not promise to run; it does from {OLDEST_AI_ONNX} on: "
            "onnx.version_converter.convert_version makes a newer one"
        )
    versions.setdefault("", OLDEST_AI_ONNX)
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())


def _check_operator(node: onnx.NodeProto, file: OnnxFile) -> None:
    if any((f.domain, f.name) == (node.domain, node.op_type) for f in file.model.functions):
        return
    if node.domain == _EXTENSIONS:
        raise UnsupportedStep(_extension_reason(node), step=label(node))
    if node.op_type == "ImageDecoder":
        raise UnsupportedStep(
            f"node {label(node)!r} (ImageDecoder) decodes image files inside the graph; ONNX Runtime has no kernel for it: cut the graph "
            "behind it and give `images={'input': Preprocess([Decode(), ToRGB(), …])}`, which decodes with the library training used",
            step=label(node),
        )
    if node.domain in _CONTRIBUTED:
        _warn_contributed(node, file)
    elif node.domain not in _STANDARD:
        raise UnsupportedStep(
            f"node {label(node)!r} is a {node.domain}::{node.op_type}, which neither the ONNX standard nor ONNX Runtime defines; "
            "export it as standard operators, or with its body as a model-local function",
            step=label(node),
        )
    elif not _is_defined(node, file.model):
        raise UnsupportedStep(
            f"node {label(node)!r} is a {node.op_type}, and ONNX has no such operator in the operator set of this file: the converter left "
            "what it does not know as it was. Leave that step out of the export and do it in a stage of its own, or export it otherwise",
            step=label(node),
        )


def _is_defined(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = next((o.version for o in model.opset_import if o.domain == domain), 1)
    return onnx.defs.has(node.op_type, domain=domain) and (
        version > onnx.defs.onnx_opset_version() or onnx.defs.has(node.op_type, max_inclusive_version=version, domain=domain)
    )


def _extension_reason(node: onnx.NodeProto) -> str:
    what = f"node {label(node)!r} is {node.op_type} of onnxruntime-extensions, which does not answer as training did: "
    if node.op_type in ("DecodeImage", "EncodeImage"):
        return what + (
            "it decodes JPEG with another library (libjpeg of dlib here, others on Windows and macOS; up to 69 of 255 levels from Pillow "
            "and OpenCV where chroma is halved). Export the graph from the decoded pixels on and give `images={'input': "
            "Preprocess([Decode(), ToRGB(), …])}`: `pack` then compares with training"
        )
    if "Tokenizer" in node.op_type or "Decoder" in node.op_type:
        return what + (
            "tokenizers written anew split some strings otherwise (dotted capital I, zero-width space, marked tokens). Export the graph "
            "from the token ids on and put samegraph_transforms.text.Tokenize with training's tokenizer.json in front"
        )
    return what + "its library is not part of ONNX Runtime. Export the graph without it and do that step in standard operators"


def _warn_contributed(node: onnx.NodeProto, file: OnnxFile) -> None:
    file.warnings.append(
        f"node {label(node)!r} is ONNX Runtime's own {node.op_type} ({node.domain}), no standard operator: other runtimes and "
        "onnx.reference do not know it"
    )
    if node.op_type == "Tokenizer" and attribute(node, "tokenexp") == _ASCII_TOKENS:
        file.warnings.append(
            f"node {label(node)!r} splits text with {_ASCII_TOKENS}, which drops every letter that is not ASCII; scikit-learn's default "
            "does not: have golden rows with such letters"
        )


def attribute(node: onnx.NodeProto, name: str) -> object:
    """Return a node's attribute, strings decoded; None when it has none of this name."""
    found = next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)
    return found.decode() if isinstance(found, bytes) else found


# --- repairs that change no value -----------------------------------------------------------------------------------------


def _remove_zip_maps(file: OnnxFile) -> None:
    graph = file.model.graph
    for node in [n for n in graph.node if n.op_type == "ZipMap"]:
        wrapped = next((o for o in graph.output if o.name == node.output[0]), None)
        if wrapped is None:
            raise UnsupportedStep(
                f"node {label(node)!r} is a ZipMap whose maps the graph goes on with; export with zipmap=False", step=label(node)
            )
        classes = _classes_of(node)
        elem = _element_type(file.model, node.input[0]) or TensorProto.FLOAT
        named = helper.make_tensor_value_info(node.output[0], elem, [None, len(classes) or None])
        wrapped.CopyFrom(named)
        file.element_names[node.output[0]] = classes
        node.CopyFrom(helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name))


def _classes_of(node: onnx.NodeProto) -> list[str]:
    for name in ("classlabels_int64s", "classlabels_strings", "classlabels_ints"):
        found = attribute(node, name)
        if isinstance(found, list) and found:
            return [value.decode() if isinstance(value, bytes) else str(value) for value in found]
    return []


def _element_type(model: onnx.ModelProto, name: str) -> int:
    inferred = _inferred(model)
    for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        if value.name == name:
            return value.type.tensor_type.elem_type
    return 0


def _set_locales(file: OnnxFile) -> None:
    for node in every_node(file.model):
        if node.op_type != "StringNormalizer" or node.domain not in _STANDARD:
            continue
        given = attribute(node, "locale")
        if given in (None, "en_US", "en_US.UTF-8"):
            kept = [a for a in node.attribute if a.name != "locale"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("locale", LOCALE)])
            file.warnings.append(
                f"node {label(node)!r} (StringNormalizer) wanted the locale {given or 'en_US.UTF-8'}, which slim images lack, "
                f"and would not load there; it is {LOCALE} now, with the same rules for letters"
            )
        elif given != LOCALE:
            file.warnings.append(f"node {label(node)!r} (StringNormalizer) needs the locale {given} wherever the model is served")


def _name_classes(file: OnnxFile) -> None:
    by_value = {node.output[1]: node for node in file.model.graph.node if node.op_type in _CLASSIFIERS and len(node.output) > 1}
    for output in file.model.graph.output:
        node = by_value.get(output.name)
        if node is not None and (classes := _classes_of(node)):
            file.element_names.setdefault(output.name, classes)


def _warn_of_trees(file: OnnxFile) -> None:
    """Name the float32 arithmetic in front of trees: where training computed in float64, rows cross thresholds."""
    makers = {name: node for node in file.model.graph.node for name in node.output}
    types = {v.name: v.type.tensor_type.elem_type for v in (*_inferred(file.model).graph.value_info, *file.model.graph.input)}
    for tree in file.model.graph.node:
        if tree.op_type not in _TREES:
            continue
        for node in _before(tree, makers):
            single = node.op_type in ("Scaler", "Normalizer") or types.get(node.output[0]) == TensorProto.FLOAT
            if node.op_type in _ARITHMETIC and single:
                file.warnings.append(
                    f"node {label(node)!r} ({node.op_type}) computes in float32 in front of the trees of {label(tree)!r}: where training "
                    "computed in float64, rows near a threshold take another branch. Have golden rows there; from_sklearn keeps float64"
                )
                break


def _before(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that a node's inputs come from, nearest first."""
    todo, seen = list(node.input), set[str]()
    while todo:
        name = todo.pop(0)
        maker = makers.get(name)
        if maker is None or name in seen:
            continue
        seen.update(maker.output)
        yield maker
        todo += reads(maker)


# --- shapes -------------------------------------------------------------------------------------------------------------


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return shape_inference.infer_shapes(model, data_prop=True)
    except (shape_inference.InferenceError, ValueError, RuntimeError):
        return model


def dims(value: onnx.ValueInfoProto) -> list[int | str | None] | None:
    """Return a value's declared shape (a symbol's name, or None, where a dimension is open); None when its rank is unknown."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or None for d in tensor.shape.dim]


def declare(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int | None]]) -> None:
    """Give inputs the shape [n, *shape] and let everything behind them be inferred anew, in place.

    Raises:
        AuthoringError: There is no such input.
    """
    names = graph_names(model)[0]
    for name, shape in shapes.items():
        value = next((i for i in model.graph.input if i.name == name and name in names), None)
        if value is None:
            raise AuthoringError(f"shapes: the file has no input {name!r}; it has {', '.join(names)}")
        value.CopyFrom(helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, [BATCH, *shape]))
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    for output, found in zip(model.graph.output, _inferred(model).graph.output, strict=True):
        if output.name == found.name and found.type.tensor_type.HasField("shape"):
            output.CopyFrom(found)


def make_batchable(model: onnx.ModelProto) -> str | None:
    """Open the batch dimension of a graph that fixes it, in place, if shape inference carries it to every output.

    Returns:
        Why it stays fixed, or None when it is open now (or was).
    """
    names = graph_names(model)[0]
    inputs = [i for i in model.graph.input if i.name in names]
    shapes = {i.name: dims(i) for i in inputs}
    if all(shape and not isinstance(shape[0], int) for shape in shapes.values()):
        return None
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    declare(opened, {name: [d if isinstance(d, int) else None for d in (shape or [None])[1:]] for name, shape in shapes.items()})
    for output in opened.graph.output:
        found = dims(output)
        if not found or found[0] != BATCH:
            return f"nothing shows that output {output.name!r} has a row per row of the input (its shape is {found or 'unknown'} then)"
    model.CopyFrom(opened)
    return None


# --- stages -------------------------------------------------------------------------------------------------------------


def cut(model: onnx.ModelProto, starts: Collection[str], ends: Sequence[str]) -> onnx.ModelProto:
    """Return the part of a graph that computes the values `ends` from its inputs and the values `starts`.

    What is needed on both sides of a cut is computed on both. Functions, opsets and metadata are kept.

    Args:
        model: The whole graph.
        starts: Values that are given instead of computed.
        ends: Values to return, in order.

    Raises:
        AuthoringError: A value does not exist, or its type is not known.
    """
    graph = model.graph
    inferred = _inferred(model).graph
    known = {v.name: v for v in (*inferred.value_info, *inferred.output, *inferred.input)}
    makers = {name: node for node in graph.node for name in node.output if name}
    constants = {t.name: t for t in graph.initializer}
    sparse = {t.values.name: t for t in graph.sparse_initializer}
    needed: set[str] = set()
    todo = [name for name in ends if name not in starts]
    while todo:
        name = todo.pop()
        if name in needed:
            continue
        needed.add(name)
        maker = makers.get(name)
        todo += [n for n in reads(maker) if n not in starts and n not in needed] if maker is not None else []
    nodes = [node for node in graph.node if any(name in needed for name in node.output)]
    wanted = {name for node in nodes for name in reads(node)} | set(ends)
    inputs = [i for i in graph.input if i.name in wanted and i.name not in starts and i.name not in constants]
    inputs += [_typed(known, makers, name) for name in starts if name in wanted]
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:], part.graph.initializer[:], part.graph.sparse_initializer[:]
    del part.graph.value_info[:]
    part.graph.node.extend(nodes)
    part.graph.input.extend(inputs)
    part.graph.output.extend(_typed(known, makers, name) for name in ends)
    part.graph.initializer.extend(t for name, t in constants.items() if name in wanted)
    part.graph.sparse_initializer.extend(t for name, t in sparse.items() if name in wanted)
    return part


def _typed(known: Mapping[str, onnx.ValueInfoProto], makers: Mapping[str, onnx.NodeProto], name: str) -> onnx.ValueInfoProto:
    value = known.get(name)
    if value is not None and value.type.tensor_type.elem_type:
        return value
    if name not in makers:
        raise AuthoringError(f"split_at: the graph has no value {name!r}; its nodes make {_some(makers)}")
    raise AuthoringError(f"split_at: nothing says which type {name!r} has, so the graph cannot be split there; take a value next to it")


def _some(names: Collection[str], most: int = 12) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def squeezed(model: onnx.ModelProto) -> None:
    """Take a leading dimension of 1 from every output, in place: what one instance gives."""
    for output in model.graph.output:
        shape = dims(output)
        if not shape or shape[0] != 1:
            continue
        inner = f"{output.name}/batch of one"
        for node in model.graph.node:
            for i, name in enumerate(node.output):
                if name == output.name:
                    node.output[i] = inner
            for i, name in enumerate(node.input):
                if name == output.name:
                    node.input[i] = inner
        axes = f"{output.name}/first axis"
        version = next(o.version for o in model.opset_import if o.domain == "")
        if version >= 13:
            model.graph.initializer.append(helper.make_tensor(axes, TensorProto.INT64, [1], [0]))
            node = helper.make_node("Squeeze", [inner, axes], [output.name], name=f"{output.name}/one instance")
        else:
            node = helper.make_node("Squeeze", [inner], [output.name], name=f"{output.name}/one instance", axes=[0])
        model.graph.node.append(node)
        elem = output.type.tensor_type.elem_type
        output.CopyFrom(helper.make_tensor_value_info(output.name, elem, shape[1:]))


def identity(outputs: Sequence[onnx.ValueInfoProto], like: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that hands batches of what one instance gives on as they are."""
    inputs = [
        helper.make_tensor_value_info(f"{o.name}/instances", o.type.tensor_type.elem_type, [BATCH, *(dims(o) or [])]) for o in outputs
    ]
    made = [helper.make_tensor_value_info(o.name, o.type.tensor_type.elem_type, [BATCH, *(dims(o) or [])]) for o in outputs]
    nodes = [helper.make_node("Identity", [i.name], [o.name], name=f"{o.name}/batch") for i, o in zip(inputs, made, strict=True)]
    graph = helper.make_graph(nodes, "batch", inputs, made)
    opsets = [o for o in like.opset_import if o.domain == ""]
    return helper.make_model(graph, opset_imports=opsets, ir_version=like.ir_version, producer_name="samegraph")


def prepend(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], tensors: Sequence[onnx.TensorProto]) -> None:
    """Put nodes in front of a graph, in place."""
    body = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *body])
    model.graph.initializer.extend(tensors)


def int64s(name: str, values: Sequence[int]) -> onnx.TensorProto:
    """Return a constant of whole numbers."""
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)

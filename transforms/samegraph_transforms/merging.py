"""Merge the batch stages of a package into one graph, so that one execution is one ONNX Runtime call."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import compose, helper

from .errors import ExecutionError
from .manifest import Stage
from .weights import is_detached


class CannotMerge(ExecutionError):
    """Raised when stages have to stay a chain: their operator sets differ, or their data lies outside the graph."""


def merge_stages(stages: Sequence[tuple[Stage, onnx.ModelProto]], wanted: Sequence[str]) -> onnx.ModelProto:
    """Merge stage graphs into one whose inputs are raw fields (or item-stage values) and whose outputs are `wanted`.

    Stage boundaries become Identity nodes, which ONNX Runtime removes.

    Args:
        stages: The batch stages in order, each with its graph.
        wanted: Value names to return.

    Raises:
        CannotMerge: The operator sets differ, a graph keeps tensors in other files, or has model-local functions twice.
    """
    opsets = _agreed_opsets([model for _, model in stages])
    known: dict[str, onnx.ValueInfoProto] = {}
    inputs: dict[str, onnx.ValueInfoProto] = {}
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    functions: dict[tuple[str, str], onnx.FunctionProto] = {}
    for i, (stage, model) in enumerate(stages):
        _refuse_external_data(model)
        _collect_functions(functions, model)
        prefix = f"s{i}/"
        graph = compose.add_prefix(model, prefix=prefix, rename_functions=False).graph
        for value in graph.input:
            name = stage.inputs[value.name.removeprefix(prefix)]
            if name not in known and name not in inputs:
                inputs[name] = _renamed(value, name)
            nodes.append(helper.make_node("Identity", [name], [value.name], name=f"{prefix}in/{name}"))
        nodes.extend(graph.node)
        initializers.extend(graph.initializer)
        for value in graph.output:
            name = stage.outputs[value.name.removeprefix(prefix)]
            known[name] = _renamed(value, name)
            nodes.append(helper.make_node("Identity", [value.name], [name], name=f"{prefix}out/{name}"))
    merged = helper.make_graph(nodes, "samegraph", list(inputs.values()), [known[name] for name in wanted], initializers)
    model = helper.make_model(merged, opset_imports=opsets, functions=list(functions.values()))
    model.ir_version = max(m.ir_version for _, m in stages)
    return model


def _agreed_opsets(models: Sequence[onnx.ModelProto]) -> list[onnx.OperatorSetIdProto]:
    versions: dict[str, int] = {}
    for model in models:
        for opset in model.opset_import:
            domain = "" if opset.domain == "ai.onnx" else opset.domain
            if versions.setdefault(domain, opset.version) != opset.version:
                raise CannotMerge(f"stages use different versions of the operator set {domain or 'ai.onnx'!r}")
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]


def _refuse_external_data(model: onnx.ModelProto) -> None:
    if any(t.data_location == onnx.TensorProto.EXTERNAL and not is_detached(t) for t in model.graph.initializer):
        raise CannotMerge("a stage keeps tensors in other files")


def _collect_functions(functions: dict[tuple[str, str], onnx.FunctionProto], model: onnx.ModelProto) -> None:
    for function in model.functions:
        kept = functions.setdefault((function.domain, function.name), function)
        if kept.SerializeToString(deterministic=True) != function.SerializeToString(deterministic=True):
            raise CannotMerge(f"two stages define the function {function.domain}::{function.name} differently")


def _renamed(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    renamed = onnx.ValueInfoProto()
    renamed.CopyFrom(value)
    renamed.name = name
    return renamed

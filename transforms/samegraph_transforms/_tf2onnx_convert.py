"""Convert a SavedModel with tf2onnx, in a process of its own: `python -m samegraph_transforms._tf2onnx_convert DIRECTORY FILE`.

TensorFlow's constant folding is left out: it makes of every division by a constant a multiplication with the reciprocal, whose last bit
is not that of the model that was trained.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any

import onnx


def _modules(*names: str) -> list[Any]:
    """Import libraries that are not there when this is checked or served."""
    return [importlib.import_module(name) for name in names]


def _without_folding(input_names: list[str], output_names: list[str], graph_def: Any) -> Any:
    """Inline functions as tf2onnx's own step does, and fold nothing."""
    tf, config_pb2, meta_graph_pb2, tf_optimizer = _modules(
        "tensorflow",
        "tensorflow.core.protobuf.config_pb2",
        "tensorflow.core.protobuf.meta_graph_pb2",
        "tensorflow.python.grappler.tf_optimizer",
    )

    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.optimizers[:] = ["function", "dependency"]
    config.graph_options.infer_shapes = True
    meta = tf.compat.v1.train.export_meta_graph(graph_def=graph_def)
    fetched = meta_graph_pb2.CollectionDef()
    fetched.node_list.value.extend([*input_names, *output_names])
    meta.collection_def["train_op"].CopyFrom(fetched)
    return tf_optimizer.OptimizeGraph(config, meta)


def _take_integer_tables(tf_op: Any, original: Any) -> None:
    """Let lookups from whole numbers to whole numbers become a LabelEncoder; tf2onnx knows tables of strings only."""

    @tf_op("LookupTableFindV2")
    class _Lookup:
        @classmethod
        def version_8(cls, ctx: Any, node: Any, initialized_tables: Any, **others: Any) -> None:
            table = node.inputs[0]
            while table.type == "Identity":
                table = table.inputs[0]
            kinds = {ctx.get_dtype(node.input[1]), ctx.get_dtype(node.output[0])}
            name = table.get_attr_value("shared_name")
            if kinds != {onnx.TensorProto.INT64} or name not in initialized_tables or not node.inputs[2].is_const():
                original.version_8(ctx, node, initialized_tables=initialized_tables, **others)
                return
            keys, values = initialized_tables[name]
            mapping = {"keys_int64s": keys, "values_int64s": values, "default_int64": node.inputs[2].get_tensor_value()}
            shape, read, outputs = ctx.get_shape(node.input[1]), node.input[1], node.output
            ctx.remove_node(node.name)
            ctx.make_node(
                "LabelEncoder",
                [read],
                domain="ai.onnx.ml",
                name=node.name,
                outputs=outputs,
                attr=mapping,
                shapes=[shape],
                dtypes=[onnx.TensorProto.INT64],
            )


def main() -> None:
    """Write FILE, with the versions of the libraries in its metadata."""
    tf, tf2onnx, convert, tf_loader = _modules("tensorflow", "tf2onnx", "tf2onnx.convert", "tf2onnx.tf_loader")
    handler, tables = _modules("tf2onnx.handler", "tf2onnx.custom_opsets.onnx_ml")
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("file")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--opset", default="18")
    given = parser.parse_args()
    tf_loader.tf_optimize_grappler = _without_folding
    _take_integer_tables(handler.tf_op, tables.LookupTableFind)
    options = ["--saved-model", given.directory, "--signature_def", given.signature, "--tag", "serve", "--opset", given.opset]
    sys.argv = ["tf2onnx", *options, "--output", given.file]
    convert.main()
    model = onnx.load(given.file)
    versions = {"tensorflow": tf.__version__, "tf2onnx": tf2onnx.__version__}
    onnx.helper.set_model_props(model, versions)
    onnx.save(model, given.file)


if __name__ == "__main__":
    main()

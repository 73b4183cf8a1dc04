"""The operator sets every graph we write is stamped with: new enough for ImageDecoder and TreeEnsemble, old enough to open everywhere."""

import onnx
from onnx import helper

#: ai.onnx: 20 brought ImageDecoder; 21 is what ONNX Runtime 1.20 and newer run without conversion.
AI_ONNX = 21
#: ai.onnx.ml: 5 brought TreeEnsemble, the first tree operator that takes double.
AI_ONNX_ML = 5
IR_VERSION = 10
#: ai.onnx of a file that is imported: it keeps its own, and ONNX Runtime promises to run 7 and newer.
OLDEST_AI_ONNX = 7
#: Domain of our model-local functions and host nodes.
DOMAIN = "samegraph"
DOMAIN_VERSION = 1


def opset_imports() -> list[onnx.OperatorSetIdProto]:
    """Return the imports for a model that may use standard, ML and samegraph operators."""
    return [
        helper.make_opsetid("", AI_ONNX),
        helper.make_opsetid("ai.onnx.ml", AI_ONNX_ML),
        helper.make_opsetid(DOMAIN, DOMAIN_VERSION),
    ]

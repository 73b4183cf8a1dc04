"""From a Keras model or a TensorFlow SavedModel, preprocessing layers included, to a package draft.

    draft = from_keras(model, name="houses", version=1)                    # a Keras 3 model
    draft = from_saved_model("exported/", name="houses", version=1)        # what model.export(…) or tf.saved_model.save wrote

Conversion needs TensorFlow and tf2onnx (extra `keras`) and runs in a process of its own; serving needs neither. What tf2onnx converts
exactly is taken, what it leaves or writes wrongly is built here or refused by the name of the layer. The rest is `onnx_import`.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import onnx

from ._tf2onnx import repair
from .draft import PackageDraft
from .errors import AuthoringError
from .manifest import Importer, Provenance
from .onnx_import import from_onnx

__all__ = ["from_converted", "from_keras", "from_saved_model"]

#: What the importer was compared with (scripts/references/keras_models.py).
PROVEN: Final = {"tensorflow": "2.21.0", "tf2onnx": "1.17.0"}
_TIMEOUT_S: Final = 1800


def from_keras(model: Any, *, name: str, version: int, opset: int = 18, **how: Any) -> PackageDraft:
    """Make a package draft of a built Keras 3 model that runs on TensorFlow.

    Args:
        model: The model; its inputs become the fields, by their names.
        name: Model name.
        version: Model version, >= 1.
        opset: ONNX operator set to write.
        how: What `onnx_import.from_onnx` takes: `rows`, `split_at`, `outputs`, `overrides`, `images`, …

    Raises:
        UnsupportedStep: A layer has no exact graph; `.step` is its name.
        AuthoringError: TensorFlow or tf2onnx is missing, or the conversion fails.
    """
    with tempfile.TemporaryDirectory(prefix="samegraph-keras-") as directory:
        model.export(directory, verbose=False)
        return from_converted(convert(directory, opset=opset), name=name, version=version, **how)


def from_saved_model(
    directory: Path | str, *, name: str, version: int, signature: str = "serving_default", opset: int = 18, **how: Any
) -> PackageDraft:
    """Make a package draft of a SavedModel directory.

    Args:
        directory: What `model.export` or `tf.saved_model.save` wrote.
        name: Model name.
        version: Model version, >= 1.
        signature: Which of its signatures.
        opset: ONNX operator set to write.
        how: What `onnx_import.from_onnx` takes.

    Raises:
        UnsupportedStep: A layer has no exact graph; `.step` is its name.
        AuthoringError: TensorFlow or tf2onnx is missing, or the conversion fails.
    """
    return from_converted(convert(directory, signature=signature, opset=opset), name=name, version=version, **how)


def from_converted(source: onnx.ModelProto | Path | str, *, name: str, version: int, **how: Any) -> PackageDraft:
    """Make a package draft of what `convert` wrote: the part of the import that needs neither TensorFlow nor tf2onnx.

    Args:
        source: The converted model, or its file.
        name: Model name.
        version: Model version, >= 1.
        how: What `onnx_import.from_onnx` takes.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source if isinstance(source, onnx.ModelProto) else onnx.load(source))
    warnings = repair(model)
    libraries = {p.key: p.value for p in model.metadata_props if p.key in PROVEN}
    given: Provenance = how.pop("provenance", None) or Provenance()
    draft = from_onnx(model, name=name, version=version, provenance=given.model_copy(update={"importer": None}), **how)
    read = draft.provenance.importer
    warnings += read.warnings if read is not None else []
    told = given.model_copy(
        update={
            "libraries": {**libraries, **given.libraries},
            "framework": given.framework or f"TensorFlow {libraries.get('tensorflow', '')}".strip(),
            "importer": _importer(libraries, warnings),
        }
    )
    return replace(draft, provenance=told)


def _importer(libraries: Mapping[str, str], warnings: list[str]) -> Importer:
    """Say whether these versions are the ones that were compared."""
    compared = ", ".join(f"{name} {version}" for name, version in PROVEN.items())
    if dict(libraries) == PROVEN:
        return Importer(name="keras_import", proven=True, reference=compared, warnings=list(dict.fromkeys(warnings)))
    here = ", ".join(f"{name} {version}" for name, version in libraries.items()) or "versions the file does not tell"
    reference = f"compared with {compared}; this was converted with {here}"
    return Importer(name="keras_import", proven=False, reference=reference, warnings=list(dict.fromkeys(warnings)))


def convert(directory: Path | str, *, signature: str = "serving_default", opset: int = 18) -> onnx.ModelProto:
    """Return the ONNX graph tf2onnx makes of a SavedModel, without TensorFlow's folding of constants.

    Raises:
        AuthoringError: TensorFlow or tf2onnx is missing, or the conversion fails; with the last line it said.
    """
    if missing := [name for name in ("tensorflow", "tf2onnx") if importlib.util.find_spec(name) is None]:
        raise AuthoringError(f"{' and '.join(missing)} not installed; pip install 'samegraph-transforms[keras]' (for the conversion only)")
    with tempfile.TemporaryDirectory(prefix="samegraph-tf2onnx-") as scratch:
        file = Path(scratch) / "model.onnx"
        command = [sys.executable, "-m", "samegraph_transforms._tf2onnx_convert", str(directory), str(file)]
        command += ["--signature", signature, "--opset", str(opset)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode or not file.is_file():
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise AuthoringError(f"{directory}: tf2onnx does not convert it: {said[:400]}")
        return onnx.load(file)

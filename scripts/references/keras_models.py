"""Write Keras models with preprocessing layers as tf2onnx converts them, with what Keras itself answers.

By hand, in an environment of its own:

    python3 -m venv /tmp/keras && /tmp/keras/bin/pip install -r scripts/references/requirements-keras.txt -e transforms --no-deps
    /tmp/keras/bin/pip install click msgspec pillow pydantic rich
    /tmp/keras/bin/python scripts/references/keras_models.py

Writes tests/transforms/references/keras/: per model the graph as `keras_import.convert` gives it, before anything is put right, and its
inputs with Keras' answers. Names as arguments write those only.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras  # type: ignore[import-not-found,unused-ignore]
import numpy as np
import tensorflow as tf  # type: ignore[import-not-found,import-untyped,unused-ignore]
from samegraph_transforms import keras_import

OUT = Path(__file__).parents[2] / "tests" / "transforms" / "references" / "keras"
ROWS = 400
TOWNS = ["Ulm", "Köln", "東京", "Oslo"]
L = keras.layers


def alone(layer: Any, shape: tuple[int | None, ...], dtype: str) -> Any:
    """Return a model of one layer."""
    x = keras.Input(shape, dtype=dtype, name="x")
    return keras.Model(x, layer(x))


def edges(boundaries: list[float], count: int) -> np.ndarray:
    """Return numbers of which half lie on boundaries and on the numbers next to them, in float32."""
    single = np.array(boundaries, dtype=np.float32)
    near = np.concatenate([single, np.nextafter(single, np.float32(-np.inf)), np.nextafter(single, np.float32(np.inf))])
    drawn = np.random.default_rng(0).normal(size=count).astype(np.float32) * 3
    return np.concatenate([near, drawn, [0, -0.0, np.nan, np.inf, -np.inf]]).astype(np.float32)[:, None]


def layers() -> dict[str, tuple[Any, dict[str, np.ndarray]]]:
    """Return name → a model of one layer and its inputs."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)
    sizes = [rng.integers(0, 256, (2, h, w, 3)).astype(np.float32) for h, w in ((37, 53), (9, 7), (16, 40), (61, 16))]
    numbers = (rng.normal(size=(ROWS, 3)) * [1, 50, 1e-3]).astype(np.float32)
    words = np.array([*TOWNS, "", "unseen", "köln", "Ulm "] * 5)[:, None]
    codes = np.array([*range(-3, 12), 2**40, -(2**40)])[:, None]
    boundaries = [-2.5, -0.1, 0.0, 0.3, 1 / 3, 4.0]
    mean, variance = rng.normal(size=3).tolist(), (rng.random(3) * 7).tolist()
    images = {f"x{i}": a for i, a in enumerate(sizes)}
    ids = rng.integers(0, 6, (50, 4))
    return {
        "rescaling": (alone(L.Rescaling(1 / 127.5, offset=-1), (12, 10, 3), "float32"), {"x0": pixels.astype(np.float32)}),
        "rescaling-bytes": (alone(L.Rescaling(1 / 255), (12, 10, 3), "uint8"), {"x0": pixels}),
        "normalization": (alone(L.Normalization(mean=mean, variance=variance), (3,), "float32"), {"x0": numbers}),
        "resizing-bilinear": (alone(L.Resizing(16, 24), (None, None, 3), "float32"), images),
        "resizing-nearest": (alone(L.Resizing(16, 24, interpolation="nearest"), (None, None, 3), "float32"), images),
        "center-crop": (alone(L.CenterCrop(9, 7), (None, None, 3), "float32"), images),
        "string-lookup": (alone(L.StringLookup(vocabulary=TOWNS), (1,), "string"), {"x0": words}),
        "string-lookup-one-hot": (alone(L.StringLookup(vocabulary=TOWNS, output_mode="one_hot"), (1,), "string"), {"x0": words}),
        "integer-lookup": (alone(L.IntegerLookup(vocabulary=[7, 3, -2, 9], name="codes"), (1,), "int64"), {"x0": codes}),
        "discretization": (alone(L.Discretization(bin_boundaries=boundaries), (1,), "float32"), {"x0": edges(boundaries, ROWS)}),
        "category-one-hot": (alone(L.CategoryEncoding(num_tokens=6, output_mode="one_hot"), (1,), "int64"), {"x0": ids[:, :1]}),
        "category-multi-hot": (alone(L.CategoryEncoding(num_tokens=6, output_mode="multi_hot"), (4,), "int64"), {"x0": ids}),
        "category-count": (alone(L.CategoryEncoding(num_tokens=6, output_mode="count"), (4,), "int64"), {"x0": ids}),
        # What has no exact graph: refused by name.
        "refused-resizing-area": (alone(L.Resizing(16, 24, interpolation="area"), (None, None, 3), "float32"), {}),
        "refused-resizing-bicubic": (alone(L.Resizing(16, 24, interpolation="bicubic"), (None, None, 3), "float32"), {}),
        "refused-resizing-antialias": (alone(L.Resizing(16, 24, antialias=True), (None, None, 3), "float32"), {}),
        "refused-multi-hot-of-lookup": (
            alone(lambda x: L.CategoryEncoding(num_tokens=4)(L.IntegerLookup(vocabulary=[7, 3, 9])(x)), (1,), "int64"),
            {},
        ),
        "refused-text-vectorization": (alone(L.TextVectorization(vocabulary=["a", "b"]), (1,), "string"), {}),
        "refused-hashing": (alone(L.Hashing(num_bins=8), (1,), "string"), {}),
        "refused-mask-token": (alone(L.StringLookup(vocabulary=TOWNS, mask_token=""), (1,), "string"), {}),
    }


def houses() -> tuple[Any, dict[str, np.ndarray]]:
    """Return a model of columns: numbers, a string and a code, each through its layer, then a classifier."""
    rng = np.random.default_rng(2)
    area, age = (keras.Input((1,), dtype="float32", name=n) for n in ("area", "age"))
    town = keras.Input((1,), dtype="string", name="town")
    code = keras.Input((1,), dtype="int64", name="code")
    scaled = L.Normalization(mean=85.5, variance=1234.5, name="scaled_area")(area)
    bins = L.CategoryEncoding(num_tokens=4, output_mode="one_hot")(L.Discretization(bin_boundaries=[10.0, 30.0, 70.0])(age))
    towns = L.StringLookup(vocabulary=TOWNS, output_mode="one_hot")(town)
    codes = L.CategoryEncoding(num_tokens=4, output_mode="one_hot")(L.IntegerLookup(vocabulary=[7, 3, 9], name="kind")(code))
    towns = L.Lambda(lambda t: keras.ops.cast(t, "float32"))(towns)
    features = L.Concatenate(name="features")([scaled, bins, towns, codes])
    answer = L.Dense(3, activation="softmax", name="probability")(L.Dense(12, activation="relu")(features))
    model = keras.Model([area, age, town, code], answer)
    rows = {
        "area": rng.lognormal(4.4, 0.6, (ROWS, 1)).astype(np.float32),
        "age": np.concatenate([[10, 30, 70], rng.integers(0, 120, ROWS - 3)]).astype(np.float32)[:, None],
        "town": rng.choice([*TOWNS, "unseen", ""], (ROWS, 1)),
        "code": rng.choice([7, 3, 9, 4, -1], (ROWS, 1)),
    }
    return model, rows


def photos() -> tuple[Any, dict[str, np.ndarray]]:
    """Return a small network on decoded images of any size."""
    rng = np.random.default_rng(3)
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    x = L.Rescaling(1 / 127.5, offset=-1)(L.Resizing(24, 24)(L.Lambda(lambda t: keras.ops.cast(t, "float32"))(image)))
    x = L.GlobalAveragePooling2D()(L.Conv2D(8, 3, activation="relu")(x))
    model = keras.Model(image, L.Dense(4, activation="softmax", name="probability")(x))
    sizes = ((40, 61), (24, 24), (100, 30), (13, 17))
    return model, {f"image{i}": rng.integers(0, 256, (3, h, w, 3), dtype=np.uint8) for i, (h, w) in enumerate(sizes)}


def answers(model: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return what Keras answers, as `predict` gives it."""
    given = {k: tf.constant(v) for k, v in inputs.items()}
    return np.asarray(model.predict(given if len(given) > 1 else next(iter(given.values())), verbose=0, batch_size=64))


def write(name: str, model: Any, calls: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Convert one model and write it with its answers."""
    with tempfile.TemporaryDirectory() as directory:
        model.export(directory, verbose=False)
        graph = keras_import.convert(directory)
    (OUT / f"{name}.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    arrays: dict[str, Any] = {}
    for call, inputs in calls.items():
        arrays |= {f"{call}/{k}": v for k, v in inputs.items()} | {f"{call}/answer": answers(model, inputs)}
    if arrays:
        np.savez_compressed(OUT / f"{name}.npz", **arrays)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(7)
    cases = {name: (model, {key: {"x": a} for key, a in arrays.items()}) for name, (model, arrays) in layers().items()}
    network, columns = houses()
    cases["houses"] = (network, {"rows": columns})
    network, pictures = photos()
    cases["photos"] = (network, {key: {"image": a} for key, a in pictures.items()})
    for name in sys.argv[1:] or cases:
        write(name, *cases[name])
    print(f"Keras {keras.__version__}, TensorFlow {tf.__version__}")

"""EfficientNet-Lite0 with random weights: the real graph without the download."""

from __future__ import annotations

from functools import cache

import numpy as np

from models.imagenet.efficientnet import BLOCK_GROUPS


@cache
def checkpoint_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the published checkpoint, by the names its package gives them."""

    def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}

    shapes = {"_conv_stem.weight": (32, 3, 3, 3), **norm("_bn0", 32)}
    number = 0
    for group in BLOCK_GROUPS:
        for repeat in range(group.repeats):
            block, filters_in = f"_blocks.{number}", group.filters_in if repeat == 0 else group.filters_out
            inside = filters_in * group.expand
            if group.expand > 1:
                shapes |= {f"{block}._expand_conv.weight": (inside, filters_in, 1, 1), **norm(f"{block}._bn0", inside)}
            shapes |= {f"{block}._depthwise_conv.weight": (inside, 1, group.kernel, group.kernel), **norm(f"{block}._bn1", inside)}
            shapes |= {f"{block}._project_conv.weight": (group.filters_out, inside, 1, 1), **norm(f"{block}._bn2", group.filters_out)}
            number += 1
    return shapes | {"_conv_head.weight": (1280, 320, 1, 1), **norm("_bn1", 1280), "_fc.weight": (1000, 1280), "_fc.bias": (1000,)}


def random_weights() -> dict[str, np.ndarray]:
    """Random weights of the right shapes that keep values in a sane range through fifty layers."""
    generator = np.random.default_rng(3)
    weights = {}
    for name, shape in checkpoint_shapes().items():
        if name.endswith("running_var"):
            weights[name] = generator.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            fan_in = max(1, int(np.prod(shape[1:])))
            weights[name] = (generator.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
    return weights

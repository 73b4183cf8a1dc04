"""Images made by Pillow 11, 12 and 13 in environments of their own: our functions and kernels give them back, whatever is installed here.

The digests were written by `scripts/exactness.py --only images`, which makes more images and compares them element by element.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pillow_reference import REFERENCES, order_of_passes
from samegraph_transforms.functions import SEMANTICS
from samegraph_transforms.kernels import native_semantics

from scripts.exactness_sections._pillow import GOLDEN, GOLDEN_CASES, TITLES, run_bodies, run_kernels

FILES = sorted(GOLDEN.glob("pillow-*.json"))


def _digests(results: Iterator[np.ndarray]) -> list[str]:
    return [hashlib.sha256(np.ascontiguousarray(got).tobytes()).hexdigest()[:16] for got in results]


def test_there_are_golden_images_of_both_orders_for_every_step() -> None:
    """Three versions, both semantics, and each step of the reference."""
    made = [json.loads(path.read_text()) for path in FILES]
    assert {m["pillow"].split(".")[0] for m in made} == {"11", "12", "13"}
    assert {m["semantics"] for m in made} == set(SEMANTICS)
    assert all(set(m["digests"]) == set(REFERENCES) == set(TITLES) for m in made)
    assert all(len(digests) == GOLDEN_CASES for m in made for digests in m["digests"].values())
    twelve, thirteen = (next(m["digests"] for m in made if m["pillow"].startswith(major)) for major in ("12", "13"))
    assert sum(a != b for a, b in zip(twelve["resize_lanczos"], thirteen["resize_lanczos"], strict=True)) > 3


@pytest.mark.parametrize("run", [run_bodies, run_kernels], ids=["onnx", "kernel"])
@pytest.mark.parametrize("name", TITLES)
def test_pixels_are_those_of_the_version_that_trained(name: str, run: Callable[..., Any]) -> None:
    """Each step on 40 images: the stated order of passes gives that version's bytes."""
    by_order = {semantics: _digests(run(name, semantics, GOLDEN_CASES)) for semantics in SEMANTICS}
    for path in FILES:
        made = json.loads(path.read_text())
        assert by_order[made["semantics"]] == made["digests"][name], path.name


def test_the_order_is_found_by_behaviour_on_both_sides() -> None:
    """The probe that training uses and the reference's own, written without it, agree about the installed Pillow."""
    assert order_of_passes() == native_semantics()


def test_golden_files_hold_nothing_of_a_machine() -> None:
    """A version, an order and digests; no path, no address."""
    for path in FILES:
        assert set(json.loads(Path(path).read_text())) == {"pillow", "semantics", "digests"}

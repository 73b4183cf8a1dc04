"""The page about scikit-learn names what is supported, and its code is the library's."""

from __future__ import annotations

import re
from pathlib import Path

import samegraph_transforms.tabular as tabular
from samegraph_transforms.errors import UnsupportedStep
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.impute import KNNImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from training.parity import make_frame, make_target, make_value

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scikit-learn.md").read_text()
FRAME = make_frame(60)[["height"]]


def supported_by_message(pipeline: object) -> list[str]:
    """Return the names the library lists when it refuses something."""
    try:
        tabular.from_sklearn(pipeline, FRAME, name="refused", version=1)
    except UnsupportedStep as error:
        return re.findall(r"\b[A-Z][A-Za-z]+\b", str(error).partition("supported are ")[2])
    raise AssertionError("it was not refused")


def test_every_supported_step_and_estimator_is_on_the_page() -> None:
    """What the library lists in its errors stands in the table."""
    frame = make_frame(60)
    steps = supported_by_message(make_pipeline(KNNImputer(), LinearRegression()).fit(FRAME, make_value(frame)))
    models = supported_by_message(make_pipeline(QuadraticDiscriminantAnalysis()).fit(FRAME, make_target(frame, [0, 1])))
    assert len(steps) >= 11
    assert len(models) >= 20
    assert [name for name in [*steps, *models] if f"`{name}`" not in PAGE] == []


def test_functions_on_the_page_exist() -> None:
    """The example imports what the module offers."""
    line = next(line for line in PAGE.splitlines() if line.startswith("from samegraph_transforms.tabular import "))
    assert set(line.partition(" import ")[2].split(", ")) <= set(tabular.__all__)

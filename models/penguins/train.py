#!/usr/bin/env python3
"""Train and pack `penguins` version 1: species from a penguin's measurements, with categories and missing values.

    python models/penguins/train.py                       into models/
    python models/penguins/train.py --repository DIR      into another repository
    python models/penguins/train.py --force               replace the version that is there

The data comes with the package palmerpenguins, downloaded by pip by exact version and hash (models/_fetch.py). Deterministic; a few
seconds on one CPU. Does nothing when the package is there and was built from the same inputs. See README.md for data and model.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd
from rich.console import Console
from samegraph_transforms.draft import GoldenSample, PackageDraft
from samegraph_transforms.manifest import Batching, Provenance
from samegraph_transforms.tabular import from_sklearn, print_fields
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from models._fetch import fetch, read_member
from models._tabular import Example, held_out_rows, main, prepare

NAME = "penguins"
SEED = 20240607
CATEGORIES = ["island", "sex"]
NUMBERS = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g", "year"]
DESCRIPTIONS = {
    "island": "Island in the Palmer Archipelago where the penguin was seen.",
    "sex": "female or male.",
    "bill_length_mm": "Length of the bill, in millimetres.",
    "bill_depth_mm": "Depth of the bill, in millimetres.",
    "flipper_length_mm": "Length of the flipper, in millimetres.",
    "body_mass_g": "Body mass, in grams.",
    "year": "Year of the study.",
}


def load() -> pd.DataFrame:
    """Return the 344 penguins, missing values as they are in the published table."""
    archive = fetch("palmerpenguins==0.1.6")
    return pd.read_csv(io.BytesIO(read_member(archive, "palmerpenguins/data/penguins.csv")))


def make_pipeline() -> Pipeline:
    """Return the pipeline as anyone would write it, not yet fitted."""
    numbers = Pipeline([("impute", SimpleImputer(strategy="median")), ("scale", StandardScaler())])
    categories = Pipeline([("impute", SimpleImputer(strategy="most_frequent")), ("onehot", OneHotEncoder(handle_unknown="ignore"))])
    columns = ColumnTransformer([("numbers", numbers, NUMBERS), ("categories", categories, CATEGORIES)])
    return Pipeline([("columns", columns), ("classifier", LogisticRegression(C=1.0, max_iter=1000))])


def train(console: Console) -> Iterator[Example]:
    """Train on three quarters of the penguins and yield the version."""
    penguins = load()
    X, y = penguins[CATEGORIES + NUMBERS], penguins["species"]
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=SEED, stratify=y)
    pipeline = make_pipeline().fit(X_train, y_train)
    accuracy = float((pipeline.predict(X_test) == y_test).mean())
    console.print(f"{NAME}/1: logistic regression on {len(X_train)} penguins; accuracy {accuracy:.4f} on {len(X_test)} others")
    draft = from_sklearn(
        pipeline,
        X_train,
        name=NAME,
        version=1,
        description="Species of a penguin from its measurements, island and sex.",
        overrides={
            name: {"description": text, **({"max_length": 64} if name in CATEGORIES else {})} for name, text in DESCRIPTIONS.items()
        },
        batching=Batching(max_batch_size=256),
        provenance=Provenance(
            trainer="models/penguins/train.py",
            data=f"palmerpenguins 0.1.6, {len(X_train)} of 344 penguins, Palmer Station 2007 to 2009",
            license="CC0-1.0",
            notes=f"accuracy {accuracy:.4f} on the {len(X_test)} penguins held out",
        ),
    )
    print_fields(draft, console)
    made_from = f"the {len(X_test)} penguins that were not trained on"
    draft = replace(
        draft, baseline=held_out_rows(pipeline, X_train, X_test, y_test, made_from=made_from, sampled_from="2007", sampled_to="2009")
    )
    yield prepare(pipeline, X_train, draft, X_test, seed=SEED)


def packages() -> Iterator[tuple[PackageDraft, Sequence[GoldenSample]]]:
    """Yield the draft with its golden samples, for `samegraph pack models/penguins/train.py`."""
    for example in train(Console(stderr=True)):
        yield example.draft, example.golden


if __name__ == "__main__":
    main(NAME, __doc__, train)

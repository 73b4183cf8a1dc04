"""What the tabular examples share: the command line, captured samples, and writing packages with their held-out requests."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from samegraph_transforms.draft import BaselineRows, GoldenSample, PackageDraft
from samegraph_transforms.errors import SamegraphError
from samegraph_transforms.golden import write_samples
from samegraph_transforms.pack import pack
from samegraph_transforms.tabular import capture, edge_rows, rows_of, varied_rows
from threadpoolctl import threadpool_limits

from models._fetch import FetchFailed
from models._stamp import built_versions, is_current, mark_current

#: Rows of a held-out request that carries several; the others carry one.
ROWS_TOGETHER = 8


@dataclass(frozen=True)
class Example:
    """One trained version of an example, ready to be packed.

    Attributes:
        draft: The package.
        golden: Its golden samples.
        held_out: Requests that are not golden, with the training code's answers.
    """

    draft: PackageDraft
    golden: list[GoldenSample]
    held_out: list[GoldenSample]


def prepare(pipeline: Any, frame: pd.DataFrame, draft: PackageDraft, unseen: pd.DataFrame, *, seed: int) -> Example:
    """Ask the training code for the golden and the held-out answers.

    Golden are the edges of every field and 16 training rows. Held out are rows the training never saw, as they are and varied by seeded
    noise: 240 requests of one row and 20 of several.

    Args:
        pipeline: The fitted pipeline.
        frame: Its training frame.
        draft: The package.
        unseen: Rows the training never saw.
        seed: Of the choice and the noise.
    """
    edges = capture(pipeline, frame, edge_rows(pipeline, frame, draft), draft=draft)
    typical = capture(pipeline, frame, frame.sample(16, random_state=seed), draft=draft, prefix="training-row")
    together = capture(pipeline, frame, frame.sample(24, random_state=seed + 1), draft=draft, prefix="rows", rows_per_request=12)
    golden = [*edges, *typical, *together]
    real = rows_of(pipeline, frame, unseen.sample(min(len(unseen), 100), random_state=seed))
    varied = varied_rows(pipeline, frame, draft, unseen, count=240 - len(real) + 20 * ROWS_TOGETHER, seed=seed)
    single, several = [*real, *varied[: 240 - len(real)]], varied[240 - len(real) :]
    seen = {sample.body for sample in golden}
    held_out = [
        *capture(pipeline, frame, single, draft=draft, prefix="row"),
        *capture(pipeline, frame, several, draft=draft, prefix="several", rows_per_request=ROWS_TOGETHER),
    ]
    return Example(draft, golden, [sample for sample in held_out if sample.body not in seen])


def held_out_rows(pipeline: Any, frame: pd.DataFrame, X: pd.DataFrame, y: pd.Series, *, made_from: str, **facts: Any) -> BaselineRows:
    """Return rows the training did not see, and their right answers, as what the package's baseline is made from.

    Args:
        pipeline: The fitted pipeline.
        frame: Its training frame.
        X: Rows of the same period and source that it was not fitted on.
        y: Their classes.
        made_from: Which rows, in a sentence.
        facts: Further facts of `BaselineRows`.
    """
    return BaselineRows(rows_of(pipeline, frame, X), made_from=made_from, truth=y.tolist(), **facts)


def area_under_curve(positive: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the ROC curve: how often a positive row scores above a negative one, ties counting half."""
    ranks = pd.Series(score).rank().to_numpy()
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def run(name: str, documentation: str, train: Callable[[Console], Iterable[Example]], arguments: Sequence[str] | None = None) -> int:
    """Train, pack and write held-out requests, unless everything is there and up to date; return the exit code.

    Args:
        name: The example.
        documentation: Text of `--help`.
        train: Yields the versions as they are trained, reporting to the console.
        arguments: The command line; None is this process's own.
    """
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path(__file__).resolve().parent, help="where the packages go (default: models/)")
    parser.add_argument("--force", action="store_true", help="train again and replace the versions that are there")
    options = parser.parse_args(arguments)
    repository: Path = options.repository.resolve()
    console = Console(highlight=False)
    if not options.force and is_current(repository, name):
        console.print(f"{name}: version {', '.join(built_versions(repository, name))} is up to date in {repository}")
        return 0
    try:
        # One thread: beside other load, OpenMP's spinning made two threads twenty times slower than one (22 s for 1.2 s).
        with threadpool_limits(limits=1):
            for example in train(console):
                write(example, repository, console, replace=options.force)
    except (SamegraphError, FetchFailed) as error:
        Console(stderr=True, highlight=False).print(f"[red]{name}:[/red] {error}", markup=True, soft_wrap=True)
        return 1
    mark_current(repository, name)
    return 0


def write(example: Example, repository: Path, console: Console, *, replace: bool) -> None:
    """Prove and write one version, and its held-out requests beside the repository's versions."""
    draft = example.draft
    if replace:
        shutil.rmtree(repository / draft.name / str(draft.version), ignore_errors=True)
    started = time.monotonic()
    with console.status(f"{draft.name}/{draft.version}: proving that the package answers like the training code") as status:
        package = pack(draft, example.golden, repository, progress=status.update)
    held_out = repository / ".heldout" / draft.name / str(draft.version)
    shutil.rmtree(held_out, ignore_errors=True)
    write_samples(held_out, example.held_out)
    worst = max((m.max_abs for m in package.manifest.measured), default=0.0)
    console.print(
        f"{draft.name}/{draft.version}: {len(example.golden)} golden samples answered as in training (largest difference {worst:.2g}), "
        f"{len(example.held_out)} held-out requests; packed in {time.monotonic() - started:.1f} s"
    )


def main(name: str, documentation: str | None, train: Callable[[Console], Iterable[Example]]) -> None:
    """Run as a program."""
    sys.exit(run(name, documentation or "", train))

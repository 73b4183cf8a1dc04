"""How far results are from a reference, and what every section says about itself."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
from samegraph_transforms.exactness import ulp_distance


def section(title: str, about: str, tables: Sequence[dict[str, Any]], libraries: Iterable[str]) -> dict[str, Any]:
    """Return a section: what docs/exactness/<section>.json holds, dated today, with the installed versions of `libraries`."""
    versions = {"Python": platform.python_version(), **{name: metadata.version(name) for name in libraries}}
    today = datetime.now(UTC).date().isoformat()
    return {"title": title, "about": about, "measured_on": today, "versions": versions, "tables": list(tables)}


def onnx_runtime() -> str:
    """Return the name of the distribution that ONNX Runtime is installed from."""
    installed = {name.lower() for d in metadata.distributions() if (name := d.metadata["Name"])}
    return next(name for name in ("onnxruntime-gpu", "onnxruntime") if name in installed)


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, control: bool = False) -> dict[str, Any]:
    """Return a table of a section; one that is a `control` shows that a difference would be seen, and counts nowhere."""
    made: dict[str, Any] = {"caption": caption, "head": list(head), "rows": [list(row) for row in rows]}
    return made | {"control": True} if control else made


@dataclass
class Count:
    """How far results are from a reference."""

    inputs: int = 0
    elements: int = 0
    different: int = 0
    ulp: int = 0

    def add(self, got: np.ndarray, expected: np.ndarray) -> None:
        """Compare one result of any shape with the reference's values."""
        self.inputs += 1
        self.elements += expected.size
        got = got.reshape(-1)
        assert got.size == expected.size, f"{got.size} elements for {expected.size}"
        if got.dtype.kind == "f":
            distance = ulp_distance(got, expected)
            self.different += int(np.count_nonzero(distance))
            self.ulp = max(self.ulp, int(distance.max()))
        else:
            self.different += int(np.count_nonzero(got != expected))


def compare(results: Iterator[np.ndarray], expected: np.ndarray) -> Count:
    """Compare results, one after the other, with a flat array that holds the reference's in the same order."""
    count, at = Count(), 0
    for got in results:
        count.add(got, expected[at : at + got.size])
        at += got.size
    return count

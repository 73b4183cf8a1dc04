"""What a server with another Pillow computes: its kernels on what all the versions made."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from scripts.exactness_sections._counting import Count, compare, section, table
from scripts.exactness_sections._pillow import SUPPORT, TITLES, goldens, run_kernels

CASES = 300
ROOT = SUPPORT.parents[1]

ABOUT = """A package trained under one Pillow answers bit-equal on a server with another. All of the steps of the section before, by the
kernels as they run under the Pillow in the second column."""

#: The other Pillow comes first; everything else is found in the environment of this process.
CHILD = """
import sys
sys.path[:0] = {first!r}
sys.path.append({packages!r})
from scripts.exactness_sections.kernels import count_kernels, print_counts
print_counts(*count_kernels({count}, {directories!r}))
"""


def kernels_under(python: Path, directories: Sequence[Path], count: int) -> tuple[str, dict[str, Count]]:
    """Compare the kernels under another Pillow with what each version made."""
    first = [str(ROOT), str(ROOT / "transforms"), str(SUPPORT)]
    code = CHILD.format(first=first, packages=sysconfig.get_path("purelib"), count=count, directories=[str(d) for d in directories])
    done = subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env={})
    pillow, counts = json.loads(done.stdout.splitlines()[-1])
    return pillow, {trained: Count(*numbers) for trained, numbers in counts.items()}


def count_kernels(count: int, directories: Sequence[str]) -> tuple[str, dict[str, list[int]]]:
    """Compare the kernels under the Pillow installed here with what others made: its version, and by theirs the numbers of a Count."""
    found: dict[str, list[int]] = {}
    for directory in map(Path, directories):
        about = json.loads((directory / "about.json").read_text())
        total = Count()
        for name in TITLES:
            part = compare(run_kernels(name, about["semantics"], count), np.load(directory / f"{name}.npy", mmap_mode="r"))
            total = Count(total.inputs + part.inputs, total.elements + part.elements, total.different + part.different)
        found[about["pillow"]] = [total.inputs, total.elements, total.different]
    return PIL.__version__, found


def print_counts(pillow: str, found: dict[str, list[int]]) -> None:
    """Hand the counts to the process that waits for them."""
    sys.stdout.write(json.dumps([pillow, found]) + "\n")


def measure(work: Path, scale: float) -> dict[str, Any]:
    """Run the kernels under every other Pillow."""
    made = goldens(work, max(1, round(2_000 * scale)))
    rows = []
    for one in made[:-1]:
        pillow, found = kernels_under(one.python, [m.directory for m in made], min(made[0].cases, max(1, round(CASES * scale))))
        for trained, counts in found.items():
            rows.append([f"Pillow {trained}", f"Pillow {pillow}", counts.inputs, counts.elements, counts.different])
    head = ["package trained under", "kernels run under", "images", "elements", "different"]
    return section("A server with another Pillow", ABOUT, [table("", head, rows)], ["numpy"])

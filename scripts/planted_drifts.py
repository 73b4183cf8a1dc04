#!/usr/bin/env python3
"""Print the table of planted drifts in docs/drift.md: real data with something done to it, and how many rows it took to see that.

.venv/bin/python scripts/planted_drifts.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from planted import DRIFTS, detect, table_row  # noqa: E402 - it lies with the tests that hold the page to it

if __name__ == "__main__":
    for planted in DRIFTS:
        print(table_row(planted, detect(planted)), flush=True)

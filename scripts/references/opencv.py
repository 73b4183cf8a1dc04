"""Write what OpenCV 4.5, 4.14 and the installed one make of images: the references of tests/transforms/test_opencv.py.

    .venv/bin/python scripts/references/opencv.py

Installs the other versions in environments of their own (scripts/exactness_sections/_opencv.py pins them) and runs
tests/support/opencv_reference.py there, which needs cv2 and NumPy alone. Writes tests/transforms/references/opencv/: digests of the first
images of every step by version, and the pixels of INTER_CUBIC through IPP, which are not equal to a graph's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from scripts.exactness_sections._opencv import GOLDEN_CASES, goldens, keep_golden  # noqa: E402


def main() -> None:
    """Write the references."""
    with tempfile.TemporaryDirectory() as work:
        for made in goldens(Path(work), GOLDEN_CASES):
            keep_golden(made, GOLDEN_CASES)
            print(f"OpenCV {made.opencv}, {made.ipp}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Run what CI runs, every step even when one fails, and end with a summary and the exit code.

    .venv/bin/python scripts/check.py               everything
    .venv/bin/python scripts/check.py lint types    only the steps named

Steps are independent, so one failure does not hide another. Exit code 0: every step passed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVING = ROOT / ".venv" / "bin"
BUILD = ROOT / ".venv-build" / "bin"

#: name → (what it does, command). The order is the order of running: quick and common failures first.
STEPS: dict[str, tuple[str, list[str]]] = {
    "format": ("code is formatted", [f"{SERVING}/ruff", "format", "--check", "."]),
    "lint": ("ruff finds nothing", [f"{SERVING}/ruff", "check", "."]),
    "types": ("mypy --strict finds nothing", [f"{SERVING}/mypy"]),
    "dockerfile": ("hadolint finds nothing", [f"{SERVING}/hadolint", "Dockerfile"]),
    "models": ("the example packages build", [f"{BUILD}/python", "models/build.py"]),
    "tests": ("tests in the serving environment", [f"{SERVING}/python", "-m", "pytest", "--ignore=tests/training"]),
    "training": ("tests in the build environment", [f"{BUILD}/python", "-m", "pytest", "tests/training"]),
    "image": ("the Dockerfile's own steps work", [f"{SERVING}/python", "scripts/prove_dockerfile.py"]),
}


def main(names: list[str]) -> int:
    """Run the named steps, or all of them; return 0 when every one passed."""
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        print(f"unknown step {unknown[0]!r}; the steps are {', '.join(STEPS)}", file=sys.stderr)
        return 2
    results = [(name, *run(name)) for name in names or list(STEPS)]
    print("\n" + "─" * 60)
    for name, code, seconds in results:
        print(f"{'passed' if code == 0 else f'FAILED ({code})':<12} {name:<11} {STEPS[name][0]:<36} {seconds:6.1f} s")
    return 0 if all(code == 0 for _, code, _ in results) else 1


def run(name: str) -> tuple[int, float]:
    """Run one step with its output shown; return its exit code and how long it took in seconds."""
    what, command = STEPS[name]
    print(f"\n── {name}: {what}", flush=True)
    started = time.monotonic()
    try:
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
    except FileNotFoundError:
        print(f"{command[0]} is not there; run `make test`, which makes both environments", file=sys.stderr)
        code = 127
    return code, time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

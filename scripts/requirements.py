#!/usr/bin/env python3
"""Print what the service needs from the registry, one requirement a line, without our own distributions.

    python3 scripts/requirements.py | pip install -r /dev/stdin -c constraints.txt

An image installs these before the source is copied in, so that a change of code does not reinstall them.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVING = ("pyproject.toml", "transforms/pyproject.toml")
#: Extras that an image has, so that what a package or a setting asks for is there.
EXTRAS = ("capture", "otel", "text")


def requirements() -> list[str]:
    """Return the declared dependencies of the service and of what it imports, extras and what builds them included, sorted."""
    found: set[str] = set()
    for path in SERVING:
        declared = tomllib.loads((ROOT / path).read_text())
        found.update(declared["project"]["dependencies"], declared["build-system"]["requires"])
        found.update(line for extra in EXTRAS for line in declared["project"].get("optional-dependencies", {}).get(extra, ()))
    return sorted(line for line in found if not line.startswith("samegraph"))


if __name__ == "__main__":
    print("\n".join(requirements()))

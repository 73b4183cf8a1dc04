#!/usr/bin/env python3
"""Build the example model packages: run every models/<name>/train.py whose packages are not there or no longer up to date.

    python models/build.py                      all examples, into models/
    python models/build.py penguins --force     one of them, from scratch

Needs the build environment (`make models` uses it). Downloads are kept in models/.downloads. When nothing has changed since the last
run it ends at once. The exit code is 1 when an example failed; the others are built all the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

MODELS = Path(__file__).resolve().parent
sys.path.insert(0, str(MODELS.parent))

from models._stamp import built_versions, is_current, mark_current  # noqa: E402


def examples() -> list[str]:
    """Return the names of the examples: every directory of models/ that has a train.py."""
    return sorted(path.parent.name for path in MODELS.glob("*/train.py"))


def build(name: str, repository: Path, *, force: bool) -> str | None:
    """Build one example's packages, showing what its train.py prints.

    Packages that were built from older inputs are replaced: they are build results of this checkout, not releases.

    Returns:
        None when its packages are there and up to date, else what went wrong, in a sentence.
    """
    replace = force or bool(built_versions(repository, name))
    command = [sys.executable, str(MODELS / name / "train.py"), "--repository", str(repository)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    code = subprocess.call([*command, *(["--force"] if replace else [])], env=environment)
    if code != 0:
        return f"models/{name}/train.py ended with exit code {code}; its messages are above"
    if not built_versions(repository, name):
        return f"models/{name}/train.py ended well but wrote no package to {repository / name}"
    mark_current(repository, name)
    return None


def main() -> int:
    """Build what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which examples (default: all of {', '.join(examples())})")
    parser.add_argument("--repository", type=Path, default=MODELS, help="where the packages go (default: models/)")
    parser.add_argument("--force", action="store_true", help="build even what is up to date")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(examples()))
    if unknown:
        parser.error(f"there is no example called {', '.join(unknown)}; there are: {', '.join(examples())}")
    repository = arguments.repository.resolve()
    wanted = arguments.names or examples()
    stale = [name for name in wanted if arguments.force or not is_current(repository, name)]
    failures = build_all(stale, repository, force=arguments.force)
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if not stale:
        print(f"Example packages are up to date: {', '.join(wanted)}")
    return 1 if failures else 0


def build_all(names: list[str], repository: Path, *, force: bool) -> list[str]:
    """Build the named examples one after the other; return what went wrong."""
    failures = []
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name}", flush=True)
        started = time.monotonic()
        failure = build(name, repository, force=force)
        if failure is not None:
            failures.append(failure)
        else:
            versions = ", ".join(built_versions(repository, name))
            print(f"[{number}/{len(names)}] {name}: version {versions} ready after {time.monotonic() - started:.0f} s", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())

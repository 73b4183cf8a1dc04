#!/usr/bin/env python3
"""Make a virtual environment of this repository, or do nothing when it is up to date.

    python3 scripts/environment.py serve       .venv        the three distributions, editable, with what the example models need
    python3 scripts/environment.py test        .venv        the same with the test extra
    python3 scripts/environment.py build       .venv-build  samegraph-transforms[train], for models/*/train.py
    python3 scripts/environment.py build-test  .venv-build  the same with pytest, for tests/training
    python3 scripts/environment.py clients     .venv-clients  other makers' clients and servers; for tests/integration
    python3 scripts/environment.py find        prints the Python that would be used

Needs Python 3.11 or newer with `venv` and `ensurepip`; an older one looks for a newer one on PATH and hands over to it. Only the standard
library, and only syntax that Python 3.6 can read, because its first task is to say so. The digest of everything the environment depends
on is kept inside it, so a second call costs a tenth of a second.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

MINIMUM = (3, 11)
PREFERRED = ["python3.13", "python3.12", "python3.11", "python3.14"]
ROOT = Path(__file__).resolve().parent.parent

#: recipe → (directory, constraints, pip arguments, recipe that must be in the directory first)
RECIPES = {
    "serve": (".venv", "constraints.txt", ["-e", ".[text]", "-e", "transforms", "-e", "client"], None),
    "test": (".venv", "constraints.txt", ["-e", ".[test]", "-e", "transforms", "-e", "client"], "serve"),
    "build": (".venv-build", "constraints-build.txt", ["-e", "transforms[train,text]"], None),
    "clients": (".venv-clients", "constraints-clients.txt", ["tritonclient[http,grpc]", "kserve", "requests", "litserve"], None),
    "build-test": (".venv-build", "constraints-build.txt", ["-e", "transforms[train,test]"], "build"),
}
DISTRIBUTIONS = ["pyproject.toml", "transforms/pyproject.toml", "client/pyproject.toml"]


def main(arguments: "list[str]") -> int:
    """Make the environment named on the command line; return the exit code."""
    if len(arguments) != 1 or arguments[0] not in [*RECIPES, "find"]:
        print(__doc__, file=sys.stderr)
        return 2
    python = usable_python()
    if python is None:
        print(
            f"samegraph needs Python {MINIMUM[0]}.{MINIMUM[1]} or newer with its venv and ensurepip modules (on Debian: apt install "
            f"python3-venv); {sys.executable} is {sys.version.split()[0]} and nothing newer is on PATH. PYTHON=/path/to/python names one.",
            file=sys.stderr,
        )
        return 1
    if arguments[0] == "find":
        print(python)
        return 0
    if os.path.realpath(python) != os.path.realpath(sys.executable):
        return subprocess.call([python, str(Path(__file__).resolve()), arguments[0]])
    return make(arguments[0])


def usable_python() -> "str | None":
    """Return the path of the first usable Python: the running one, then those on PATH; None when there is none."""
    test = f"import sys, venv, ensurepip; sys.exit(sys.version_info < {MINIMUM})"
    for path in [sys.executable, *map(shutil.which, PREFERRED)]:
        if path and subprocess.call([path, "-c", test], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
            return path
    return None


def make(recipe: str) -> int:
    """Bring the recipe's environment up to date; return the exit code."""
    import fcntl

    with Path(__file__).open() as lock:  # two makes at once would install over each other
        fcntl.flock(lock, fcntl.LOCK_EX)
        first = RECIPES[recipe][3]
        return (make_one(first) if first else 0) or make_one(recipe)


def make_one(recipe: str) -> int:
    """Make one recipe's environment unless its stamp says that nothing changed; return the exit code."""
    directory, constraints, requirements, first = RECIPES[recipe]
    target = ROOT / directory
    stamp = target / f".samegraph-{recipe}"
    wanted = digest(recipe)
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    if first is None:
        import venv

        print(f"Making {directory} with Python {sys.version.split()[0]} (a minute or two the first time)", flush=True)
        venv.create(target, clear=True, with_pip=True)
    else:
        print(f"Adding the {recipe} packages to {directory}", flush=True)
    code = install(target / "bin" / "python", constraints, requirements)
    if code == 0:
        stamp.write_text(wanted)
    return code


def install(python: Path, constraints: str, requirements: "list[str]") -> int:
    """Install the requirements with one pip command; return its exit code."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    quiet = [] if sys.stdout.isatty() else ["-qq"]  # a person wants to see it move; a log needs the errors only
    code = subprocess.call([*pip, "install", *quiet, "-c", constraints, *requirements], cwd=ROOT)
    if code:
        print("pip could not install the packages (its own message is above); run the same make target again to retry.", file=sys.stderr)
        return code
    return subprocess.call([*pip, "check", "-qq"], cwd=ROOT)


def digest(recipe: str) -> str:
    """Return what the environment depends on, as a hash: interpreter, place, recipe, constraints and declared dependencies."""
    import hashlib
    import json
    import tomllib

    _, constraints, requirements, first = RECIPES[recipe]
    facts = [sys.version, str(ROOT), requirements, RECIPES[first][2] if first else None, (ROOT / constraints).read_text()]
    for path in DISTRIBUTIONS:
        declared = tomllib.loads((ROOT / path).read_text())
        facts.append([declared["build-system"], declared["project"]])  # not the tool tables: a lint rule is no reason to reinstall
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

#!/usr/bin/env python3
"""Make a virtual environment of this repository, or do nothing when it is up to date.

    python3 scripts/environment.py serve   .venv        the three distributions, editable
    python3 scripts/environment.py test    .venv        the same with the test extra
    python3 scripts/environment.py build   .venv-build  samegraph-transforms[train], for models/*/train.py
    python3 scripts/environment.py build-test  .venv-build  the same with pytest, for tests/training
    python3 scripts/environment.py find    prints the Python that would be used

Needs Python 3.11 or newer with `venv` and `ensurepip`; an older one looks for a newer one on PATH and hands over to it. Standard library
only, and only syntax an old Python can read, because its first task is to say so. The digest of everything the environment depends on is
kept inside it, so a second call costs about 50 ms.
"""

from __future__ import print_function

import os
import shutil
import subprocess
import sys

MINIMUM = (3, 11)
PREFERRED = ["python3.13", "python3.12", "python3.11", "python3.14"]
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

#: recipe -> (directory, constraints, requirements, recipes that must be in the directory first)
RECIPES = {
    "serve": (".venv", "constraints.txt", ["-e", ".", "-e", "transforms", "-e", "client"], []),
    "test": (".venv", "constraints.txt", ["-e", ".[test]", "-e", "transforms", "-e", "client"], ["serve"]),
    "build": (".venv-build", "constraints-build.txt", ["-e", "transforms[train]"], []),
    "build-test": (".venv-build", "constraints-build.txt", ["-e", "transforms[train,test]"], ["build"]),
}
DISTRIBUTIONS = ["pyproject.toml", "transforms/pyproject.toml", "client/pyproject.toml"]


def main(arguments):
    """Make the environment named on the command line; return the exit code."""
    if len(arguments) != 1 or arguments[0] not in list(RECIPES) + ["find"]:
        print(__doc__, file=sys.stderr)
        return 2
    python = usable_python()
    if python is None:
        print(
            "samegraph needs Python %d.%d or newer with its venv and ensurepip modules (on Debian: apt install python3-venv); "
            "%s is %s and no newer one was found on PATH. Set PYTHON=/path/to/python to name one."
            % (MINIMUM[0], MINIMUM[1], sys.executable, sys.version.split()[0]),
            file=sys.stderr,
        )
        return 1
    if arguments[0] == "find":
        print(python)
        return 0
    if os.path.realpath(python) != os.path.realpath(sys.executable):
        return subprocess.call([python, os.path.abspath(__file__), arguments[0]])
    return make(arguments[0])


def usable_python():
    """Return the path of the first usable Python: the running one, then those on PATH; None when there is none."""
    candidates = [sys.executable]
    if hasattr(shutil, "which"):
        candidates += [path for path in map(shutil.which, PREFERRED) if path]
    for path in candidates:
        test = "import sys, venv, ensurepip; sys.exit(sys.version_info < %r)" % (MINIMUM,)
        with open(os.devnull, "w") as nowhere:
            if subprocess.call([path, "-c", test], stdout=nowhere, stderr=nowhere) == 0:
                return path
    return None


def make(recipe):
    """Bring the recipe's environment up to date; return the exit code."""
    import fcntl  # every platform samegraph runs on has it; an old Python elsewhere should still reach its message

    with open(os.path.abspath(__file__)) as lock:  # two makes at once would install into each other's feet
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in RECIPES[recipe][3] + [recipe]:
            code = make_one(name)
            if code:
                return code
    return 0


def make_one(recipe):
    """Make one recipe's environment unless its stamp says that nothing changed."""
    directory, constraints, requirements, first = RECIPES[recipe]
    target = os.path.join(ROOT, directory)
    stamp = os.path.join(target, ".samegraph-%s" % recipe)
    wanted = digest(recipe)
    if read(stamp) == wanted:
        return 0
    if not first:
        import venv

        print("Making %s with Python %s (a minute or two the first time)" % (directory, sys.version.split()[0]), flush=True)
        venv.create(target, clear=True, with_pip=True)
    else:
        print("Adding the %s packages to %s" % (recipe, directory), flush=True)
    code = install(os.path.join(target, "bin", "python"), constraints, requirements)
    if code == 0:
        with open(stamp, "w") as out:
            out.write(wanted)
    return code


def install(python, constraints, requirements):
    """Install the requirements with one pip command; return its exit code."""
    quiet = [] if sys.stdout.isatty() else ["-qq"]  # a log needs errors only
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    code = subprocess.call(command + quiet + ["-c", constraints] + requirements, cwd=ROOT)
    if code:
        print("pip could not install the packages (its own message is above); run the same make target again to retry.", file=sys.stderr)
        return code
    return subprocess.call([python, "-m", "pip", "check", "--disable-pip-version-check"], cwd=ROOT, stdout=subprocess.DEVNULL)


def digest(recipe):
    """Return what the environment depends on, as a hash: interpreter, place, recipe, constraints and declared dependencies."""
    import hashlib
    import json
    import tomllib

    _, constraints, requirements, first = RECIPES[recipe]
    facts = [sys.version, ROOT, requirements, [RECIPES[name][2] for name in first], read(os.path.join(ROOT, constraints))]
    for path in DISTRIBUTIONS:
        with open(os.path.join(ROOT, path), "rb") as file:
            declared = tomllib.load(file)
        facts.append([declared["build-system"], declared["project"]])  # not the tool tables: a lint rule is no reason to reinstall
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read(path):
    """Return the text of a file, or None when it is not there."""
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return file.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

#!/usr/bin/env python3
"""Install the peers side by side, each into a virtual environment of its own; do nothing where that is up to date.

    .venv/bin/python benchmarks/peers/install.py                all of them; some minutes and about 2 GB the first time
    .venv/bin/python benchmarks/peers/install.py mosec ray      these
    .venv/bin/python benchmarks/peers/install.py --lock ray     write ray/constraints.txt anew from ray/requirements.txt

A peer is a directory beside this file: `requirements.txt` says what is asked for, `constraints.txt` pins everything that follows from it.
Environments go to benchmarks/.peers/<name>. One that cannot be made does not stop the others: the reason is kept beside it, `make bench`
shows it in the peer's place, and the exit code here is 1. Servers differ in the versions they can live with, so they cannot share one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALLED = HERE.parent / ".peers"
PEERS = tuple(sorted(path.parent.name for path in HERE.glob("*/requirements.txt")))
#: How many of pip's last lines a reason keeps.
LAST_LINES = 3


def python(name: str) -> Path:
    """Return the interpreter of a peer's environment, there or not."""
    return INSTALLED / name / "bin" / "python"


def program(name: str, command: str) -> Path:
    """Return a program of a peer's environment, there or not."""
    return python(name).with_name(command)


def missing(name: str) -> str | None:
    """Return why a peer cannot be run, or None when it is installed and up to date."""
    stamp, reason = INSTALLED / name / ".complete", _reason_file(name)
    if stamp.is_file() and stamp.read_text() == _digest(name):
        return None
    if reason.is_file():
        return f"not installed: {reason.read_text().strip()}"
    return "not installed: run benchmarks/peers/install.py"


def install(name: str) -> str | None:
    """Make a peer's environment unless it is up to date.

    Args:
        name: One of `PEERS`.

    Returns:
        Why it could not be made, or None.
    """
    if missing(name) is None:
        return None
    environment, reason = INSTALLED / name, _reason_file(name)
    started = time.monotonic()
    print(f"{name}: installing {_version(name)}", flush=True)
    try:
        venv.create(environment, clear=True, with_pip=True)
        asked = ["-r", str(HERE / name / "requirements.txt"), "-c", str(HERE / name / "constraints.txt")]
        _pip(name, "install", *([] if sys.stdout.isatty() else ["-qq"]), *asked)
        _pip(name, "check")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:  # venv says ValueError to a file in its way
        said = getattr(error, "stderr", None) or str(error)
        reason.write_text(" / ".join(said.strip().splitlines()[-LAST_LINES:]))
        print(f"{name}: NOT installed: {reason.read_text()}", file=sys.stderr, flush=True)
        return reason.read_text()
    reason.unlink(missing_ok=True)
    (environment / ".complete").write_text(_digest(name))
    print(f"{name}: installed in {time.monotonic() - started:.0f} s", flush=True)
    return None


def lock(name: str) -> None:
    """Resolve a peer's requirements and pin every package that follows from them.

    Args:
        name: One of `PEERS`.

    Raises:
        subprocess.CalledProcessError: They cannot be had together.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        # Nothing that is installed already may decide what is chosen.
        resolve = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-qq", "--report", str(report)]
        subprocess.run([*resolve, "-r", str(HERE / name / "requirements.txt")], check=True)
        found = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    lines = sorted(f"{one['name'].lower().replace('_', '-').replace('.', '-')}=={one['version']}\n" for one in found)
    (HERE / name / "constraints.txt").write_text("".join(lines))


def pins(name: str) -> dict[str, str]:
    """Return package → version of everything a peer's environment holds."""
    lines = (HERE / name / "constraints.txt").read_text().split()
    return {line.partition("==")[0]: line.partition("==")[2] for line in lines}


def _version(name: str) -> str:
    return (HERE / name / "requirements.txt").read_text().split()[0]


def _reason_file(name: str) -> Path:
    return INSTALLED / f"{name}.failed"


def _digest(name: str) -> str:
    """Return what an environment depends on, as a hash: the interpreter, its place, and what it shall hold."""
    whole = hashlib.sha256(f"{sys.version} {INSTALLED}\n".encode())
    for file in ("requirements.txt", "constraints.txt"):
        whole.update((HERE / name / file).read_bytes())
    return whole.hexdigest()


def _pip(name: str, *arguments: str) -> None:
    command = [str(python(name)), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)


def main(arguments: Sequence[str]) -> int:
    """Install (or lock) the peers named; return 1 when one of them could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all of {', '.join(PEERS)})")
    parser.add_argument("--lock", action="store_true", help="write the constraints instead of installing")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in PEERS]
    if unknown:
        parser.error(f"there is no peer called {', '.join(unknown)}; there are: {', '.join(PEERS)}")
    names = options.names or PEERS
    if options.lock:
        for name in names:
            lock(name)
        return 0
    INSTALLED.mkdir(exist_ok=True)
    return 1 if [name for name in names if install(name) is not None] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

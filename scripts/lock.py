#!/usr/bin/env python3
"""Write constraints.txt, constraints-build.txt and constraints-clients.txt anew from what pip resolves today.

    .venv/bin/python scripts/lock.py            keep what is pinned, add what is new, drop what is gone
    .venv/bin/python scripts/lock.py --upgrade  resolve everything afresh

Run it after changing a dependency in one of the three pyproject.toml files, then `make test`. The first two files agree on every
package they share: the build environment is resolved under the serving one's pins. The clients' environment agrees with nobody: those
clients ask for releases of protobuf and grpcio that are not ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVING = ["-e", ".[test]", "-e", "transforms", "-e", "client"]
BUILD = ["-e", "transforms[train,test]"]
CLIENTS = ["tritonclient[http,grpc]", "kserve", "requests", "litserve"]
HEADER = """\
# Exact versions of {what}. Written by scripts/lock.py; do not edit.
# A constraints file: it pins what the pyproject.toml files ask for and asks for nothing itself.
"""


def main() -> None:
    """Resolve the environments and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="ignore today's pins and take the newest versions that fit")
    upgrade: bool = parser.parse_args().upgrade
    serving = ROOT / "constraints.txt"
    build = ROOT / "constraints-build.txt"
    pins = resolve(SERVING, [] if upgrade or not serving.exists() else [serving])
    serving.write_text(HEADER.format(what="the serving environment with the test extra (.venv)") + render(pins))
    kept = [] if upgrade or not build.exists() else [build]
    pins = resolve(BUILD, [without(kept[0], pins), serving] if kept else [serving])
    build.write_text(HEADER.format(what="the build environment (.venv-build)") + render(pins))
    clients = ROOT / "constraints-clients.txt"
    pins = resolve(CLIENTS, [] if upgrade or not clients.exists() else [clients])
    clients.write_text(HEADER.format(what="the environment of other servers' clients (.venv-clients)") + render(pins))
    print(f"wrote {serving.name}, {build.name} and {clients.name}")


def resolve(requirements: list[str], constraints: list[Path]) -> dict[str, str]:
    """Return name → version of everything pip would install, our own distributions left out.

    Args:
        requirements: pip arguments, relative to the repository root.
        constraints: Constraints files to obey; they must not contradict each other.
    """
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--disable-pip-version-check"]
        command += ["--report", str(report), *(f"-c{path}" for path in constraints), *requirements]
        print("resolving", " ".join(requirements), flush=True)
        subprocess.run(command, cwd=ROOT, check=True)
        installed = json.loads(report.read_text())["install"]
    pins = {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in installed}
    return {name: version for name, version in sorted(pins.items()) if not name.startswith("samegraph")}


def without(path: Path, pins: dict[str, str]) -> Path:
    """Return a copy of a constraints file less the packages that `pins` decides."""
    kept = [line for line in path.read_text().splitlines() if line.partition("==")[0] not in pins]
    copy = Path(tempfile.mkdtemp()) / path.name
    copy.write_text("\n".join(kept) + "\n")
    return copy


def render(pins: dict[str, str]) -> str:
    """Return the pins as lines; the ONNX Runtime of the other platforms is pinned beside the one of this."""
    for this, other in (("onnxruntime-gpu", "onnxruntime"), ("onnxruntime", "onnxruntime-gpu")):
        if this in pins:
            pins = dict(sorted({**pins, other: pins[this]}.items()))
            break
    return "".join(f"{name}=={version}\n" for name, version in pins.items())


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Prove the Dockerfile without a container engine: run its own steps in a clean directory, then start what it starts.

    .venv/bin/python scripts/prove_dockerfile.py [--models DIR] [--keep]

The steps are read from the Dockerfile, so they cannot drift from it. COPY takes only what .dockerignore lets through, RUN runs in a shell
with the image's absolute paths moved under the clean directory, ENV and WORKDIR are obeyed. What an image has root and apt for is listed
as not run. At the end the entry point is started on a free port (as an unprivileged user when this is run by root), the HEALTHCHECK
command must pass, and SIGTERM must end the server with exit code 0.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Absolute paths of the image that are moved under the clean directory.
MOVED = re.compile(r"(?<![\w./-])/(opt/samegraph|src|models|home/samegraph)\b")
#: Commands that need root and a package manager inside the image.
NEEDS_AN_IMAGE = ("apt-get", "useradd")
STARTUP_S = 90.0
UNPRIVILEGED = 10001


class ProofError(Exception):
    """Raised when a step fails; the message says which and why."""


@dataclass
class Image:
    """The clean directory that stands in for the image, and what the instructions so far have set.

    Attributes:
        root: The directory that stands in for `/`.
        workdir: The current WORKDIR, absolute in the image.
        environment: Variables for RUN and for the server.
    """

    root: Path
    workdir: str = "/"
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"})

    def move(self, text: str) -> str:
        """Return `text` with the image's paths moved under the clean directory."""
        return MOVED.sub(lambda found: f"{self.root}/{found[1]}", text)

    def path(self, name: str) -> Path:
        """Return where `name`, relative to the WORKDIR or absolute in the image, lies here."""
        return self.root / (Path(self.workdir) / name).as_posix().lstrip("/")


def main() -> int:
    """Run the proof; return 0 when every step and the server worked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="model repository to mount at /models (default: models)")
    parser.add_argument("--keep", action="store_true", help="leave the clean directory behind")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="samegraph-image-"))
    directory.chmod(0o755)  # the unprivileged user must get in
    try:
        prove(Image(root=directory), options.models)
    except ProofError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


def prove(image: Image, models: Path) -> None:
    """Carry out the instructions and then start the server."""
    allowed = ignore_rules((ROOT / ".dockerignore").read_text())
    image.environment["PATH"] = f"{python_shim(image.root)}:{image.environment['PATH']}"
    commands: dict[str, list[str]] = {}
    for instruction, argument in instructions((ROOT / "Dockerfile").read_text()):
        if instruction == "FROM":
            stage = argument.rpartition(" AS ")[2]
            print(f"── stage {stage}")
            if stage == "baked":  # needs built packages; the server below gets them mounted, which is what `mounted` does
                break
        elif instruction in ("ENTRYPOINT", "CMD"):
            commands[instruction] = json.loads(argument)
        elif instruction == "HEALTHCHECK":
            commands[instruction] = json.loads(argument.partition("CMD ")[2])
        else:
            carry_out(image, instruction, argument, allowed)
    serve(image, commands, models)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield (instruction, argument) of a Dockerfile, continuation lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, argument = line.strip().partition(" ")
            yield name.upper(), " ".join(argument.split())


def carry_out(image: Image, instruction: str, argument: str, allowed: re.Pattern[str]) -> None:
    """Carry out one instruction of the subset this Dockerfile uses."""
    match instruction:
        case "RUN" if argument.startswith(NEEDS_AN_IMAGE):
            print(f"   not run (needs an image): {argument}")
        case "RUN":
            run(image, argument)
        case "COPY":
            copy(image, argument.split(), allowed)
        case "WORKDIR":
            image.workdir = argument
            image.path(".").mkdir(parents=True, exist_ok=True)
        case "ENV":
            for name, value in (pair.split("=", 1) for pair in shlex.split(argument)):
                image.environment[name] = image.move(value).replace("$PATH", image.environment["PATH"])
        case "ARG" | "USER" | "EXPOSE":
            pass
        case _:
            raise ProofError(f"this proof does not know the instruction {instruction}; teach scripts/prove_dockerfile.py")


def run(image: Image, command: str) -> None:
    """Run a RUN step in the clean directory."""
    print(f"   {command}", flush=True)
    started = time.monotonic()
    done = subprocess.run(
        ["/bin/sh", "-c", image.move(command)],
        cwd=image.path("."),
        env={**image.environment, "PIP_QUIET": "2", **{name: value for name, value in os.environ.items() if name.startswith("PIP_")}},
        check=False,
    )
    if done.returncode:
        raise ProofError(f"exit code {done.returncode} from: {command}")
    print(f"   … {time.monotonic() - started:.1f} s")


def copy(image: Image, arguments: list[str], allowed: re.Pattern[str]) -> None:
    """Carry out a COPY from the build context; one from another stage must find its source where that stage left it."""
    *sources, target = [item for item in arguments if not item.startswith("--")]
    if any(item.startswith("--from") for item in arguments):
        if not image.path(sources[0]).exists():
            raise ProofError(f"COPY {' '.join(arguments)}: the earlier stage left nothing there")
        return
    count = 0
    for source in sources:
        files = [file for file in context_files(source) if allowed.fullmatch(file.relative_to(ROOT).as_posix())]
        if not files:
            raise ProofError(f"COPY {source}: not in the build context (missing, or .dockerignore leaves it out)")
        for file in files:
            inside = file.relative_to(ROOT / source) if (ROOT / source).is_dir() else Path(file.name)
            single = not target.endswith(("/", ".")) and (ROOT / source).is_file()
            place = image.path(target) if single else image.path(target) / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        count += len(files)
    print(f"   COPY {' '.join(arguments)} ({count} files)")


def context_files(source: str) -> list[Path]:
    """Return the files a COPY source names, before .dockerignore."""
    path = ROOT / source
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def ignore_rules(text: str) -> re.Pattern[str]:
    """Return a pattern that fully matches the paths .dockerignore lets into the build context (later lines win).

    Source: the rules of moby/patternmatcher, for the patterns used here: `*` stays within a segment, `**` does not,
    a pattern covers everything below what it names, `!` lets through again.
    """
    pattern = ""
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if line.startswith("#"):
            continue
        glob = re.escape(line.lstrip("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
        glob = glob.replace(r"\[0\-9\]", "[0-9]") + "(?:/.*)?"
        pattern = f"(?:{pattern}|{glob})" if line.startswith("!") else f"(?!{glob}$)(?:{pattern or '(?!)'})"
    return re.compile(pattern)


def python_shim(root: Path) -> Path:
    """Make `python3.12` mean a Python this machine has; return the directory to put on PATH.

    The image's Python is 3.12. Here the first of: a working python3.12, the system's python3, the one running this.
    """
    test = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    for candidate in filter(None, [shutil.which("python3.12"), "/usr/bin/python3", getattr(sys, "_base_executable", ""), sys.executable]):
        if Path(candidate).exists() and subprocess.run([candidate, "-c", test], capture_output=True, check=False).returncode == 0:
            break
    else:
        raise ProofError("no Python 3.11 or newer with venv and ensurepip was found")
    shims = root / "shims"
    shims.mkdir()
    (shims / "python3.12").write_text(f'#!/bin/sh\nexec {shlex.quote(candidate)} "$@"\n')
    (shims / "python3.12").chmod(0o755)
    print(f"python3.12 stands for {candidate}")
    return shims


def serve(image: Image, commands: dict[str, list[str]], models: Path) -> None:
    """Start the entry point, wait for the health check, stop it with SIGTERM, and require exit code 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # The port and the mount point are the only words replaced; the host stays 0.0.0.0, as in the image.
    command = [{"8000": port, "/models": str(models.resolve())}.get(word, word) for word in commands["ENTRYPOINT"] + commands["CMD"]]
    health = [word.replace(":8000/", f":{port}/") for word in commands["HEALTHCHECK"]]
    who = unprivileged(image)
    home = image.path("/home/samegraph")
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o777)
    environment = {**image.environment, "HOME": str(home)}
    print(f"── {' '.join(command)}" + (f" (as uid {who})" if who else ""), flush=True)
    executable = shutil.which(command[0], path=environment["PATH"])
    if executable is None:
        raise ProofError(f"the entry point {command[0]} is not on the image's PATH")
    with (image.root / "server.log").open("w+") as log:
        server = subprocess.Popen([executable, *command[1:]], env=environment, cwd=home, user=who, group=who, stdout=log, stderr=log)
        try:
            seconds = wait_for_health(server, health, environment)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/docs", timeout=10) as page:  # its assets came along in the wheel
                page.read()
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
        except (ProofError, OSError, subprocess.TimeoutExpired) as error:
            log.seek(0)
            raise ProofError(f"{error}; the server's last lines:\n{log.read()[-3000:]}") from error
        finally:
            server.kill()
    if code != 0:
        raise ProofError(f"after SIGTERM the server left with exit code {code}, not 0")
    print(f"   healthy after {seconds:.1f} s; SIGTERM ended it with exit code 0")


def wait_for_health(server: subprocess.Popen[bytes], health: list[str], environment: dict[str, str]) -> float:
    """Run the HEALTHCHECK command until it passes; return the seconds it took."""
    started = time.monotonic()
    executable = shutil.which(health[0], path=environment["PATH"])
    if executable is None:
        raise ProofError(f"the health check's {health[0]} is not on the image's PATH")
    while time.monotonic() - started < STARTUP_S:
        if subprocess.run([executable, *health[1:]], env=environment, capture_output=True, check=False).returncode == 0:
            return time.monotonic() - started
        if server.poll() is not None:
            raise ProofError(f"the server left with exit code {server.returncode} before it was healthy")
        time.sleep(0.5)
    raise ProofError(f"the health check did not pass within {STARTUP_S:g} s")


def unprivileged(image: Image) -> int | None:
    """Return the image's user id when we may become it and it can run this Python; else None, with a line that says so."""
    if os.geteuid() != 0:
        return None
    python = image.path("/opt/samegraph/bin/python")
    done = subprocess.run(
        [python, "-c", "import onnxruntime"], user=UNPRIVILEGED, group=UNPRIVILEGED, capture_output=True, check=False, cwd="/"
    )
    if done.returncode:
        print("   (started as root: another user cannot read the Python this machine lent)")
        return None
    return UNPRIVILEGED


if __name__ == "__main__":
    sys.exit(main())

"""Compile the small C programs that benchmarks need: a load generator must cost little beside the server it shares a machine with."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

COMPILED = Path(__file__).resolve().parent / ".compiled"
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")


class CompilerFailed(RuntimeError):
    """Raised when a C program cannot be compiled; says why."""


def compiled(source: Path) -> Path:
    """Return the program of one C file, compiled unless it was before.

    Raises:
        CompilerFailed: There is no C compiler, or it refuses the file.
    """
    digest = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    program = COMPILED / f"{source.stem}-{digest}"
    if program.exists():
        return program
    COMPILED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COMPILED) as scratch:
        made = Path(scratch) / source.stem
        try:
            done = subprocess.run(["cc", *FLAGS, "-o", made, source, "-lm"], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise CompilerFailed("there is no C compiler (cc); run scripts/system-packages, or install gcc and libc6-dev") from error
        if done.returncode:
            raise CompilerFailed(f"cc could not compile {source.name}:\n{done.stderr}")
        made.replace(program)  # two benchmarks may compile at once
    return program

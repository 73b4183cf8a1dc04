"""Whether a regular expression can be kept busy by a text: tried out in a process of its own, before a package is made.

A backtracking matcher may take time that grows with the square of a text, or doubles with every character of it, and Python holds its
interpreter lock meanwhile: one request would stop a server. No rule on the pattern's look tells (`[a-z]+(?:-[a-z]+)*` is harmless, `(a+)+!`
is not), so it is run: on long runs of each of a few characters, of the pattern's own characters and of its matches' pieces.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Final

from .errors import AuthoringError

#: Characters of the longest text that is tried; also the longest a text field may be unless the author says otherwise.
MAX_CHARACTERS: Final = 20_000
#: Seconds of processor time that all the texts of one length may take together.
_SECONDS: Final = 2
#: Patterns that are known to be fast: scikit-learn's own, and the usual change of it.
_KNOWN: Final = frozenset({r"(?u)\b\w\w+\b", r"\b\w\w+\b", r"(?u)\b\w+\b", r"\b\w+\b", r"\w+", r"\S+"})

_TRIAL: Final = r"""
import re, resource, sys
pattern, length, seconds = sys.stdin.read(), int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
found = re.compile(pattern).findall
own = sorted({c for c in pattern if c.isprintable()} | set("aA0 _-.'@/:,é\u6771"))[:60]
units = own + [a + b for a in "a0A" for b in own if b != a]
size = 16
while True:
    for unit in units:
        body = (unit * (size // len(unit) + 1))[:size]
        for text in (body, body[:-1] + "\x00", body[:-1] + "!"):
            found(text)
    if size == length:
        break
    size = min(length, size * 4)
"""


def refuse_slow(pattern: str, error: Callable[[str], AuthoringError]) -> None:
    """Refuse a pattern that some text of `MAX_CHARACTERS` keeps busy for seconds.

    Args:
        pattern: A regular expression that Python compiles.
        error: Makes the error of what is wrong.

    Raises:
        AuthoringError: It is that slow, or cannot be tried.
    """
    if pattern in _KNOWN:
        return
    command = [sys.executable, "-I", "-X", "utf8", "-c", _TRIAL, str(MAX_CHARACTERS), str(_SECONDS)]
    try:
        done = subprocess.run(command, input=pattern.encode("utf-8"), capture_output=True, timeout=60, check=False)
    except (subprocess.TimeoutExpired, UnicodeEncodeError) as cause:
        raise error(f"token_pattern {pattern!r} cannot be tried out: {cause}") from cause
    if done.returncode:
        raise error(
            f"token_pattern {pattern!r} can take seconds on a text of {MAX_CHARACTERS:,} characters, which would stop a server; let no "
            "part that repeats begin or end with what may be repeated beside it"
        )

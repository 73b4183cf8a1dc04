"""What a Markdown document promises: its fenced blocks, and the one rule by which printed answers are compared."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Models are trained on the reader's own processor, so the last digits of a probability are his.
FLOAT_TOLERANCE = 1e-3
#: What differs from run to run (ids) and from machine to machine (digests: a package holds what was measured on it).
_CHANGING = (
    re.compile(r'(?<=id": ")[0-9a-f]{12}-[0-9a-f]+(?=")'),
    re.compile(r"(?<=id: )[0-9a-f]{12}-[0-9a-f]+"),
    re.compile(r"\b[0-9a-f]{64}\b"),
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: The word after the fence.
        text: What is inside, without the fences.
        line: Line of its opening fence.
        answer: The block that follows a `sh` block at once and holds what it prints, if there is one.
    """

    language: str
    text: str
    line: int
    answer: Block | None = None


def blocks(document: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a document in order; the answer to a `sh` block comes with it and not by itself."""
    pending: Block | None = None
    for block, adjacent in _fenced(document.read_text(encoding="utf-8").splitlines()):
        if pending is not None and adjacent and block.language in ("json", "text", "http"):
            yield Block(pending.language, pending.text, pending.line, block)
            pending = None
            continue
        if pending is not None:
            yield pending
        pending = block if block.language == "sh" else None
        if pending is None:
            yield block
    if pending is not None:
        yield pending


def _fenced(lines: list[str]) -> Iterator[tuple[Block, bool]]:
    """Yield every fenced block, and whether it begins right after the one before it."""
    start, end = None, -1
    for i, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = i
        else:
            yield Block(lines[start][3:].strip(), "\n".join(lines[start + 1 : i]) + "\n", start + 1), start == end + 1
            start, end = None, i
    assert start is None, f"the fence in line {start} is never closed"


def difference(answer: Block, printed: str) -> str | None:
    """Return how `printed` differs from the documented answer, or None; ids, digests and last digits of floats may."""
    if answer.language == "json":
        return _different(json.loads(_steady(answer.text)), json.loads(_steady(_spaced(printed))), "$")
    expected, got = (_steady(text.replace("\r", "")).rstrip().splitlines() for text in (answer.text, printed))
    return None if expected == got else f"expected\n{answer.text}\ngot\n{printed}"


def _spaced(text: str) -> str:
    """Write JSON as the documents do, so that ids are found by the same pattern."""
    return json.dumps(json.loads(text))


def _steady(text: str) -> str:
    for pattern in _CHANGING:
        text = pattern.sub("…", text)
    return text


def _different(expected: object, got: object, at: str) -> str | None:
    if isinstance(expected, float) and isinstance(got, float):
        return None if math.isclose(expected, got, rel_tol=0, abs_tol=FLOAT_TOLERANCE) else f"{at}: expected {expected}, got {got}"
    if isinstance(expected, dict) and isinstance(got, dict):
        if list(expected) != list(got):
            return f"{at}: expected the members {list(expected)}, got {list(got)}"
        pairs = [(f"{at}.{k}", expected[k], got[k]) for k in expected]
    elif isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            return f"{at}: expected {len(expected)} entries, got {len(got)}"
        pairs = [(f"{at}[{i}]", *pair) for i, pair in enumerate(zip(expected, got, strict=True))]
    else:
        return None if (type(expected), expected) == (type(got), got) else f"{at}: expected {expected!r}, got {got!r}"
    return next((found for at, e, g in pairs if (found := _different(e, g, at)) is not None), None)

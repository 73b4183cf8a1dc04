"""The real thing: `samegraph serve` in a process of its own over the built example packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import MODELS, ServerProcess


@pytest.fixture(scope="session")
def examples() -> Path:
    """The built example packages; `make models` (part of `make test`) builds them."""
    wanted = ("penguins/1", "flights/1", "flights/2", "imagenet/1", "sentiment/1")
    missing = [name for name in wanted if not (MODELS / name / "manifest.json").is_file()]
    assert not missing, f"the example packages {missing} are not built; run `make models`"
    return MODELS


@pytest.fixture(scope="session")
def server(examples: Path) -> Iterator[ServerProcess]:
    """One server over all examples for the whole run."""
    running = ServerProcess(examples, LOG__ACCESS="false")
    try:
        assert running.url, "the server did not become ready:\n" + "\n".join(running.lines)
        yield running
    finally:
        running.close()

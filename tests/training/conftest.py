"""Fixtures of the tests that run in the build environment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Keep OpenMP and BLAS at one thread: on shared CPUs their spinning makes small fits many times slower."""
    with threadpool_limits(limits=1):
        yield

"""Keep what only the loading of models needs from staying in the process for good.

A load takes and frees hundreds of megabytes in pieces of all sizes on several threads. The C library keeps what was freed in the heap
of each thread, with what goes on living strewn over it: after the start of three small models 60 MB that nobody could use, and more after
every load. While a version loads, pieces of a megabyte and more are therefore taken from the system and given back to it one by one.
Otherwise that would cost every image a hundred page faults, so the heap gets them again.

glibc only; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from functools import cache
from typing import Any

#: Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
MIB = 1 << 20
#: Pieces from this size on come from the system while something loads.
LOADING_BYTES = MIB
#: The same while nothing does: the most glibc goes up to by itself. Free memory at the end of a heap is given back from twice that on.
SERVING_BYTES = 32 * MIB


def before_loading() -> None:
    """Take large pieces of memory from the system from now on."""
    _set(LOADING_BYTES)


def after_loading() -> None:
    """Take them from the heap again."""
    _set(SERVING_BYTES)


def settle() -> None:
    """Give back all that the start took and serving does not need, and take what is there out of the garbage collector's sight.

    The collector otherwise walks hundreds of thousands of objects that never die (modules, packages, sessions) while requests wait.
    """
    gc.collect()
    gc.freeze()
    trim()
    after_loading()


def trim() -> None:
    """Give memory that was freed back to the system, without the interpreter lock."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _set(threshold: int) -> None:
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, threshold)
        mallopt(_TRIM_THRESHOLD, 2 * threshold)


@cache
def _function(name: str) -> Callable[..., Any] | None:
    """Return a function of the C library, or None when this one has none of that name."""
    try:
        library = ctypes.CDLL(None)
        return getattr(library, name) if hasattr(library, "gnu_get_libc_version") else None
    except OSError:
        return None

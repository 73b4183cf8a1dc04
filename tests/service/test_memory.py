"""Tests of samegraph_service.memory: what loading took and serving does not need is the system's again."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap

import pytest
from samegraph_service import memory

#: Threads that allocate and free pieces of all sizes, with small ones in between that stay, as loading models does.
PROGRAM = """
    import sys, threading
    from pathlib import Path
    from samegraph_service import memory

    def resident_mib():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

    kept = []

    def load():
        pieces = []
        for i in range(60):
            pieces.append(bytearray(64 * 1024 * (1 + i % 40)))
            kept.append(bytearray(2000))
        pieces.clear()

    if sys.argv[1] == "settled":
        memory.before_loading()
    before = resident_mib()
    for _ in range(3):
        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if sys.argv[1] == "settled":
        memory.settle()
    print(resident_mib() - before)
"""


def left_mib(how: str) -> int:
    """Run the program and return the memory it keeps for a few megabytes that live on."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM), how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def test_memory_that_only_loading_took_is_given_back() -> None:
    """A few megabytes live on; without the settling, the heaps of four threads keep many times that."""
    assert left_mib("settled") < 16
    assert left_mib("settled") < left_mib("as it comes")


def test_what_is_there_after_loading_is_out_of_the_collectors_sight() -> None:
    """It never dies, and walking it would take the interpreter from whoever is served."""
    before = gc.get_freeze_count()
    try:
        memory.settle()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no such function nothing happens."""
    monkeypatch.setattr(memory, "_function", lambda _: None)
    memory.before_loading()
    memory.trim()

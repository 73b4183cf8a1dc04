"""How many CPUs and how much memory the process takes itself to have, over made-up /proc and /sys trees."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from samegraph_service.quota import cpu_quota, memory_limit

V2 = "0::/\n"
V1 = "4:memory:/\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n"
PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def tree(root: Path, groups: str | None, files: Mapping[str, str]) -> Path:
    """Write /proc/self/cgroup and files below /sys/fs/cgroup under `root`."""
    if groups is not None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.fixture(autouse=True)
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has more CPUs than any quota here."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


V1_FILES = {"cpu,cpuacct/cpu.cfs_period_us": "100000\n", "cpu,cpuacct/cpu.cfs_quota_us": "150000\n"}


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        (V2, {"cpu.max": "max 100000\n"}, 16),
        (V2, {"cpu.max": "200000 100000\n"}, 2),
        (V2, {"cpu.max": "150000 100000\n"}, 2),
        (V2, {"cpu.max": "20000 100000\n"}, 1),
        (V2, {"cpu.max": "2400000 100000\n"}, 16),
        (V2, {}, 16),
        (None, {"cpu.max": "300000 100000\n"}, 3),
        ("0::/app.slice/it.service\n", {"app.slice/it.service/cpu.max": "max 100000\n", "app.slice/cpu.max": "400000 100000\n"}, 4),
        ("0::/pod/one\n", {"pod/one/cpu.max": "300000 100000\n", "pod/cpu.max": "800000 100000\n"}, 3),
        ("0::/../../elsewhere\n", {"cpu.max": "500000 100000\n"}, 5),
        ("0::/not/visible\n", {"cpu.max": "600000 100000\n"}, 6),
        (V1, V1_FILES, 2),
        (V1, {**V1_FILES, "cpu,cpuacct/cpu.cfs_quota_us": "-1\n"}, 16),
        ("2:cpu,cpuacct:/docker/5f1c\n0::/\n", V1_FILES, 2),
        ("2:cpu:/kube/pod\n", {"cpu/kube/pod/cpu.cfs_quota_us": "700000", "cpu/kube/pod/cpu.cfs_period_us": "100000"}, 7),
        (V1, {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 5),
        ("3:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "unified/cpu.max": "max 100000"}, 16),
        (V2, {"cpu.max": "nonsense\n"}, 16),
        (V2, {"cpu.max": "100000 0\n"}, 16),
    ],
)
def test_cpus_are_those_of_the_tightest_quota(tmp_path: Path, groups: str | None, files: Mapping[str, str], cpus: int) -> None:
    """Versions 1 and 2, whole and in parts, on the group itself or above it, with and without a namespace."""
    assert cpu_quota(tree(tmp_path, groups, files)) == cpus


def test_affinity_counts_when_it_is_tighter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cpuset, `taskset` or a pinned container: the kernel shows all of them as the process's affinity."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7}, raising=False)
    assert cpu_quota(tree(tmp_path, V2, {"cpu.max": "800000 100000\n"})) == 2


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        (V2, {"memory.max": "1048576\n"}, 1 << 20),
        (V2, {"memory.max": "max\n"}, PHYSICAL),
        ("0::/pod/one\n", {"pod/one/memory.max": "max\n", "pod/memory.max": "2097152\n"}, 2 << 20),
        (V1, {"memory/memory.limit_in_bytes": "4194304\n"}, 4 << 20),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, PHYSICAL),
        ("4:memory:/group\n", {"memory/group/memory.limit_in_bytes": "1048576\n"}, 1 << 20),
        (None, {}, PHYSICAL),
    ],
)
def test_memory_is_that_of_the_tightest_limit(tmp_path: Path, groups: str | None, files: Mapping[str, str], limit: int) -> None:
    """As for CPUs; a limit above the machine's memory is none."""
    assert memory_limit(tree(tmp_path, groups, files)) == limit


def test_this_machine_can_be_read() -> None:
    """Whatever this test runs on, there is at least one CPU and some memory."""
    assert cpu_quota() >= 1
    assert 0 < memory_limit() <= PHYSICAL

"""The `gpu` settings reach the executor, and a version behind it is proven, warmed up and served like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from package_builders import ROWS, draft, reference, samples
from samegraph_service.loading import LoadOptions, load_version
from samegraph_service.service import gpu_options
from samegraph_service.settings import ExecutionSettings, GpuSettings, Settings
from samegraph_transforms.errors import NotExact
from samegraph_transforms.executor import CPU
from samegraph_transforms.gpu import GpuOptions
from samegraph_transforms.half import PROFILE
from samegraph_transforms.manifest import DEFAULT_TOLERANCES, Tolerance
from samegraph_transforms.pack import pack
from samegraph_transforms.signature import Row


def options(gpu: GpuOptions | None) -> LoadOptions:
    """Return how versions are loaded: on the CPU, the GPU's way with `gpu`."""
    return LoadOptions(
        providers=CPU,
        intra_op_threads=1,
        kernels="auto",
        max_batch_size=None,
        memory_budget_bytes=1 << 30,
        max_image_bytes=1 << 20,
        max_pixels=1 << 20,
        gpu=gpu,
    )


def rows() -> list[Row]:
    """Return the example rows in the order of the manifest's fields."""
    return [(float("nan") if row["size"] is None else float(row["size"]), row["kind"]) for row in ROWS]


def test_every_gpu_setting_reaches_the_executor() -> None:
    """Nothing the operator sets is dropped on the way; one binding set a run slot."""
    settings = Settings(
        execution=ExecutionSettings(max_batch_size=48),
        gpu=GpuSettings(
            memory_limit_bytes=1 << 30,
            buckets=False,
            arena_shrink=False,
            small_on_cpu=False,
            tf32=True,
            half=True,
            tensorrt=True,
            tensorrt_cache=Path("engines"),
        ),
    )
    assert gpu_options(settings, slots=3) == GpuOptions(
        memory_limit_bytes=1 << 30,
        buckets=False,
        max_batch_size=48,
        instances=3,
        tf32=True,
        tensorrt=True,
        engine_cache=Path("engines"),
        half=True,
        arena_shrink=False,
        small_on_cpu=False,
    )


def test_the_default_settings_are_the_executors_own_defaults() -> None:
    """An operator who sets nothing gets what docs/gpu.md describes."""
    assert gpu_options(Settings(), slots=2) == GpuOptions()


def test_a_version_behind_the_gpu_executor_is_proven_and_warmed_before_it_is_served(tmp_path: Path) -> None:
    """All golden samples pass, every bucket has its buffers on every binding set, and the answers are training's."""
    pack(draft(), samples(), tmp_path)
    loaded = load_version(tmp_path, "plants", 1, options(GpuOptions()), 1 << 30)
    assert loaded.golden_samples == len(samples())
    assert loaded.cost.known
    answers = loaded.runtime.predict(rows())
    assert answers["label"].tolist() == reference(ROWS)["label"].tolist()


@pytest.mark.parametrize(("atol", "served"), [(5e-3, True), (1e-9, False)], ids=["kept", "broken"])
def test_half_precision_is_served_only_when_the_promise_for_it_is_kept(atol: float, served: bool, tmp_path: Path) -> None:
    """The operator's choice goes through the same proof as every version, and a broken promise names the sample."""
    pack(replace(draft(), tolerances={**DEFAULT_TOLERANCES, PROFILE: Tolerance(atol=atol)}), samples(), tmp_path)
    if served:
        assert load_version(tmp_path, "plants", 1, options(GpuOptions(half=True)), 1 << 30).runtime.half
    else:
        with pytest.raises(NotExact, match="probability") as caught:
            load_version(tmp_path, "plants", 1, options(GpuOptions(half=True)), 1 << 30)
        assert caught.value.sample

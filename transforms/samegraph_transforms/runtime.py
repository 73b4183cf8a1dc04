"""Run a package: raw rows in, output arrays out. Packing, verifying and serving all run this one class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import onnx

from . import cuda
from .errors import ExecutionError
from .executor import CPU, Executor, OrtExecutor
from .itemplan import ItemPlan, compile_item_plan
from .manifest import Manifest, RawField, Stage
from .merging import CannotMerge, merge_stages
from .packing import ColumnGroup, pack_columns
from .signature import Row, Signature, column

if TYPE_CHECKING:
    from .gpu import GpuOptions
    from .package import Package

#: A row after the item stage: the row itself without one, else one entry per value the batch stages read.
Item: TypeAlias = tuple[Any, ...]
Feeds: TypeAlias = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class _Feed:
    """One input of the batch stages and where its value comes from."""

    name: str
    field: RawField | None  # None: an item-stage output
    place: int  # in an item
    row_place: int  # in a row; -1 for an item-stage output


class PackageRuntime:
    """One package, loaded and ready to run. Every method but `close` may be called from several threads at once.

    Attributes:
        manifest: The package's manifest.
        digest: The package's identity.
        signature: Its raw inputs.
        item_plan: The compiled item stage, or None when rows go straight into a batch.
        merged: Whether the batch stages run as one graph.
        providers: The execution providers in use.
        half: Whether the model stage computes in half precision.
    """

    def __init__(
        self,
        package: Package,
        *,
        read_stage: Callable[[Stage], onnx.ModelProto],
        make_item: Callable[[onnx.ModelProto], Executor],
        make_merged: Callable[[onnx.ModelProto], Executor],
        load_stage: Callable[[Stage], Executor],
        kernels: Literal["auto", "off"],
        merge: bool,
        half: bool = False,
    ) -> None:
        self.manifest: Manifest = package.manifest
        self.digest: str = package.digest
        self.signature = Signature(package.manifest)
        self._read_stage = read_stage
        self._load_stage = load_stage
        self.half: bool = half
        self._output_names = [o.name for o in self.manifest.outputs]
        self.item_plan: ItemPlan | None = None
        if self.manifest.stage("preprocess.item") is not None:
            self.item_plan = compile_item_plan(
                package.load_stage("preprocess.item"), self.manifest, make_executor=make_item, kernels=kernels
            )
        self._batch_stages = [s for s in self.manifest.stages if s.name != "preprocess.item"]
        self._feeds = self._plan_feeds()
        self._chain, groups = self._load_chain(make_merged, merge)
        self.merged: bool = len(self._chain) == 1
        self._stage_executors: list[tuple[Stage, Executor]] | None = None
        places = {feed.name: feed.place for feed in self._feeds}
        packed = {f.name for group in groups for f in group.fields}
        self._packed = [(group.input, group.collator(places)) for group in groups]
        self._loose = [feed for feed in self._feeds if feed.name not in packed]
        self.providers: tuple[str, ...] = tuple(getattr(self._chain[-1][1], "providers", CPU))

    @classmethod
    def load(
        cls,
        package: Package,
        *,
        intra_op_threads: int = 1,
        providers: Sequence[str] = CPU,
        kernels: Literal["auto", "off"] = "auto",
        merge: bool = True,
        gpu: GpuOptions | None = None,
    ) -> PackageRuntime:
        """Load a package's graphs.

        Args:
            package: A read and verified package.
            intra_op_threads: Threads inside one execution.
            providers: Execution providers of the batch stages; the item stage always runs on the CPU, and so does a package that is too
                small to gain from a GPU (`gpu.gains`), unless `gpu` says otherwise.
            kernels: `off` runs every item-stage function by its ONNX body.
            merge: Whether to run the batch stages as one graph where their operator sets allow it.
            gpu: How batch stages run on a GPU; None takes the defaults there. Given for the CPU, the GPU's way of running is used on it.

        Raises:
            ExecutionError: A graph does not load, or the stages do not fit together.
        """
        if gpu is not None or cuda.PROVIDER in providers:
            return cls._load_for_gpu(package, gpu, intra_op_threads=intra_op_threads, providers=providers, kernels=kernels, merge=merge)

        def read(stage: Stage) -> onnx.ModelProto:
            # The verified bytes themselves, not the path: what runs is what was compared with its digest.
            return package.load_stage(stage.name)

        def executor(model: onnx.ModelProto) -> Executor:
            return OrtExecutor(model, intra_op_threads=intra_op_threads, providers=providers)

        return cls(
            package,
            read_stage=read,
            make_item=OrtExecutor,
            make_merged=executor,
            load_stage=lambda stage: executor(read(stage)),
            kernels=kernels,
            merge=merge,
        )

    @classmethod
    def _load_for_gpu(
        cls,
        package: Package,
        gpu: GpuOptions | None,
        *,
        intra_op_threads: int,
        providers: Sequence[str],
        kernels: Literal["auto", "off"],
        merge: bool,
    ) -> PackageRuntime:
        """Load a package behind `gpu.GpuExecutor`; the item stage runs on the CPU as ever."""
        from .gpu import GpuExecutor, GpuOptions, cpu_backend, cuda_backend, gains
        from .half import PROFILE, to_half

        options = gpu or GpuOptions()
        stages = [stage for stage in package.manifest.stages if stage.name != "preprocess.item"]
        if cuda.PROVIDER in providers and options.small_on_cpu and not any(gains(package.load_stage(s.name)) for s in stages):
            return cls.load(package, intra_op_threads=intra_op_threads, providers=CPU, kernels=kernels, merge=merge)
        largest = package.manifest.batching.max_batch_size
        half = options.half and PROFILE in package.manifest.tolerances
        options = replace(options, half=half, max_batch_size=min(options.max_batch_size or largest, largest))

        def read(stage: Stage) -> onnx.ModelProto:
            model = package.load_stage(stage.name)
            return to_half(model) if half and stage.name == "model" else model

        def executor(model: onnx.ModelProto) -> Executor:
            if cuda.PROVIDER in providers:
                return GpuExecutor(cuda_backend(model, options, intra_op_threads=intra_op_threads), options)
            return GpuExecutor(cpu_backend(model, intra_op_threads=intra_op_threads), options)

        return cls(
            package,
            read_stage=read,
            make_item=OrtExecutor,
            make_merged=executor,
            load_stage=lambda stage: executor(read(stage)),
            kernels=kernels,
            merge=merge,
            half=half,
        )

    # --- running ----------------------------------------------------------------------------------------------------

    def prepare(self, row: Row) -> Item:
        """Run the item stage on one row, on the calling thread.

        Raises:
            InputError: The row's bytes cannot be decoded; it names the field.
            ExecutionError: A graph of the item stage failed.
        """
        if self.item_plan is None:
            return row
        values = self.item_plan(dict(zip(self.signature.names, row, strict=True)))
        return tuple(values[feed.name] if feed.field is None else row[feed.row_place] for feed in self._feeds)

    @property
    def item_places(self) -> dict[str, int]:
        """Item-stage value → its place in an item, for the values that the batch stages read."""
        return {feed.name: feed.place for feed in self._feeds if feed.field is None}

    def collate(self, items: Sequence[Item]) -> Feeds:
        """Stack items into the inputs of the loaded graph, applying every field's missing rule."""
        feeds: Feeds = {name: collate(items) for name, collate in self._packed}
        if self._loose:
            feeds.update(self._columns(items, self._loose))
        return feeds

    def _columns(self, items: Sequence[Item], feeds: Sequence[_Feed]) -> Feeds:
        """Stack items into one array per name: [n, 1] per scalar field, [n, *shape] otherwise."""
        columns: Feeds = {}
        for feed in feeds:
            values = [item[feed.place] for item in items]
            if feed.field is None:
                columns[feed.name] = np.stack(values)
            else:
                columns.update(column(feed.field, values))
        return columns

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the batch stages once.

        Args:
            feeds: As `collate` returns them.

        Returns:
            One array [n, *shape] per manifest output, in order.

        Raises:
            ExecutionError: The runtime failed, or returned another number of rows than it was given.
        """
        values: dict[str, np.ndarray] = dict(feeds)
        n = len(next(iter(values.values())))
        for stage, executor in self._chain:
            results = executor.run({name: values[stage.inputs[name]] for name in executor.input_names})
            values.update(zip((stage.outputs[name] for name in executor.output_names), results, strict=True))
        outputs = [values[name] for name in self._output_names]
        for name, array in zip(self._output_names, outputs, strict=True):
            if array.ndim == 0 or array.shape[0] != n:
                raise ExecutionError(
                    f"output {name!r} has shape {list(array.shape)} for a batch of {n}; its first dimension must be the batch"
                )
        return outputs

    def predict(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Run rows through all stages as one batch and return each output, [n, *shape]."""
        outputs = self.run(self.collate([self.prepare(row) for row in rows]))
        return dict(zip(self._output_names, outputs, strict=True))

    def trace(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Run rows stage by stage and return every value that crosses a stage boundary, in data-flow order."""
        values: dict[str, np.ndarray] = self._columns([self.prepare(row) for row in rows], self._feeds)
        for stage, executor in self._stages_apart():
            results = executor.run({name: values[stage.inputs[name]] for name in executor.input_names})
            values.update(zip((stage.outputs[name] for name in executor.output_names), results, strict=True))
        return values

    def warm_up(self, items: Sequence[Item]) -> None:
        """Run every batch size that a GPU keeps buffers for, so that no caller waits for their making; nothing to do on the CPU.

        Args:
            items: At least one, as `prepare` returns them; they are taken round to fill a batch.

        Raises:
            ExecutionError: As `run`.
        """
        from .gpu import GpuExecutor

        executors = [(stage, executor) for stage, executor in self._chain if isinstance(executor, GpuExecutor)]
        for size in executors[0][1].warm_up_sizes if executors else ():
            values = dict(self.collate([items[i % len(items)] for i in range(size)]))
            for stage, executor in executors:
                feeds = {name: values[stage.inputs[name]] for name in executor.input_names}
                executor.warm_up(feeds)
                values.update(zip((stage.outputs[name] for name in executor.output_names), executor.run(feeds), strict=True))

    def close(self) -> None:
        """Drop the sessions; running executions finish first because they hold their own reference."""
        self._chain = []
        self._stage_executors = None

    # --- loading ----------------------------------------------------------------------------------------------------

    def _plan_feeds(self) -> list[_Feed]:
        """Find what the batch stages read that no batch stage makes: item-stage outputs and raw fields."""
        made = set(self.item_plan.outputs) if self.item_plan is not None else set()
        by_name = {f.name: (i, f) for i, f in enumerate(self.signature.fields)}
        by_companion = {f.companion: (i, f) for i, f in enumerate(self.signature.fields) if f.companion is not None}
        feeds: dict[str, _Feed] = {}
        produced: set[str] = set()
        for stage in self._batch_stages:
            for name in stage.inputs.values():
                if name in produced:
                    continue
                if name in made:
                    feeds.setdefault(name, _Feed(name, None, len(feeds), -1))
                elif name in by_name or name in by_companion:
                    place, field = by_name.get(name) or by_companion[name]
                    # Without an item stage a row is its own item, so that `prepare` costs nothing.
                    feeds.setdefault(field.name, _Feed(field.name, field, place if self.item_plan is None else len(feeds), place))
                else:
                    raise ExecutionError(f"stage {stage.name!r} reads {name!r}, which is neither a raw field nor made by an earlier stage")
            produced.update(stage.outputs.values())
        missing = [name for name in self._output_names if name not in produced and name not in made]
        if missing:
            raise ExecutionError(f"no stage makes the output {missing[0]!r}")
        return list(feeds.values())

    def _load_chain(
        self, make_merged: Callable[[onnx.ModelProto], Executor], merge: bool
    ) -> tuple[list[tuple[Stage, Executor]], list[ColumnGroup]]:
        """Load the batch stages: as one graph with packed columns where that is asked for and possible, else one by one."""
        if merge:
            try:
                model = merge_stages([(s, self._read_stage(s)) for s in self._batch_stages], self._output_names)
            except CannotMerge:
                pass
            else:
                model, groups = pack_columns(model, self.signature.fields)
                executor = make_merged(model)
                names = {n: n for n in executor.input_names}, {n: n for n in executor.output_names}
                return [(Stage(name="model", file="", inputs=names[0], outputs=names[1]), executor)], groups
        return [(s, self._load_stage(s)) for s in self._batch_stages], []

    def _stages_apart(self) -> list[tuple[Stage, Executor]]:
        if self._stage_executors is None:
            self._stage_executors = [(s, self._load_stage(s)) for s in self._batch_stages]
        return self._stage_executors

"""Run a package: raw rows in, output arrays out. Packing, verifying and serving all run this one class."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import onnx

from . import cuda
from .errors import ExecutionError
from .executor import CPU, Executor, OrtExecutor
from .itemplan import ItemPlan, TextReader, compile_item_plan
from .manifest import BINARY_KINDS, Manifest, RawField, Stage
from .merging import CannotMerge, merge_stages
from .packing import ColumnGroup, pack_columns
from .ragged import OpenInput, Rows, ShapeKey, ShapePlan, grouped
from .signature import Row, Signature, column
from .weights import Weights

if TYPE_CHECKING:
    from .gpu import GpuOptions
    from .package import Package

#: Most combinations of batch size and ragged lengths that a GPU keeps buffers for and that are warmed up.
MAX_WARM_SHAPES = 128

#: A row after the item stage: the row itself without one, else one entry per value the batch stages read.
Item: TypeAlias = tuple[Any, ...]
Feeds: TypeAlias = dict[str, np.ndarray]
#: Kinds of fields whose value is not one element.
_NO_COLUMN = BINARY_KINDS | {"tensor"}


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
        item_stage_s: Seconds it took to compile, the battery of kernels nobody had tried here included.
        merged: Whether the batch stages run as one graph.
        providers: The execution providers in use.
        half: Whether the model stage computes in half precision.
        shapes: How rows of different shapes run together; None when every row has the same.
        batch_sizes: Rows of an execution that cost no padding, ascending; empty when every number does.
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
        self.item_stage_s: float = 0.0
        open_outputs: set[str] = set()
        item_stage = self.manifest.stage("preprocess.item")
        if item_stage is not None:
            started = time.perf_counter()
            model = package.load_stage("preprocess.item")
            self.item_plan = compile_item_plan(model, self.manifest, make_executor=make_item, kernels=kernels, read_file=package.read_file)
            open_outputs = {item_stage.outputs[value.name] for value in model.graph.output if _is_open(value)}
            self.item_stage_s = time.perf_counter() - started
        self._batch_stages = [s for s in self.manifest.stages if s.name != "preprocess.item"]
        self._feeds = self._plan_feeds()
        self._chain, groups = self._load_chain(make_merged, merge)
        self.merged: bool = len(self._chain) == 1
        self._whole = self._only_executor()
        self._stage_executors: list[tuple[Stage, Executor]] | None = None
        places = {feed.name: feed.place for feed in self._feeds}
        packed = {f.name for group in groups for f in group.fields}
        width = len(self.signature.fields if self.item_plan is None else self._feeds)  # of an item: see `_plan_feeds`
        self._packed = [(group.input, group.collator(places, width)) for group in groups]
        self._packed_at = {f.name: (group.input, i) for group in groups for i, f in enumerate(group.fields)}
        self.shapes: ShapePlan | None = self._plan_shapes(open_outputs)
        apart = packed if self.shapes is None else packed | {one.name for one in self.shapes.inputs}
        self._loose = [feed for feed in self._feeds if feed.name not in apart]
        self.batch_sizes: tuple[int, ...] = getattr(self._chain[0][1], "bucket_sizes", ())
        self._staged: bool = hasattr(self._chain[0][1], "bucket_sizes")
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

        weights = Weights()

        def read(stage: Stage) -> onnx.ModelProto:
            # The verified bytes themselves, not the path: what runs is what was compared with its digest.
            return package.load_stage(stage.name, weights)

        def executor(model: onnx.ModelProto) -> Executor:
            return OrtExecutor(model, intra_op_threads=intra_op_threads, providers=providers, weights=weights)

        runtime = cls(
            package,
            read_stage=read,
            make_item=OrtExecutor,
            make_merged=executor,
            load_stage=lambda stage: executor(read(stage)),
            kernels=kernels,
            merge=merge,
        )
        weights.clear()
        return runtime

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
        shapes = math.prod(len(axis.buckets) for axis in package.manifest.batching.ragged)
        options = replace(options, bindings=max(options.bindings, min(len(options.sizes()) * shapes, MAX_WARM_SHAPES)))

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
    def tokenizers(self) -> Mapping[str, TextReader]:
        """Text field → what makes tokens or terms of it."""
        return {} if self.item_plan is None else self.item_plan.tokenizers

    @property
    def item_places(self) -> dict[str, int]:
        """Item-stage value → its place in an item, for the values that the batch stages read."""
        return {feed.name: feed.place for feed in self._feeds if feed.field is None}

    @property
    def feed_columns(self) -> dict[str, tuple[str, int]]:
        """Field → (feed, column in it) of the scalar fields that enter the graph as one column, their missing rule applied."""
        loose = [] if self._staged else self._loose  # what is stacked in a device's buffer is gone with the next batch
        at = {feed.name: (feed.name, 0) for feed in loose if feed.field is not None and feed.field.kind not in _NO_COLUMN}
        alone = {f.name for f in self.signature.fields if f.companion is None}
        return {name: place for name, place in (at | self._packed_at).items() if name in alone}

    def collate(self, items: Sequence[Item], key: ShapeKey | None = None) -> Feeds:
        """Stack items into the inputs of the loaded graph, applying every field's missing rule.

        Args:
            items: Rows of one shape, or of one shape key.
            key: The shapes to run with; None is the first item's own key.

        Raises:
            ExecutionError: The items cannot run as one batch.
        """
        feeds: Feeds = {name: collate(items) for name, collate in self._packed}
        if self._loose:
            feeds.update(self._columns(items, self._loose, self._staged))
        if self.shapes is not None:
            for name, value in self.shapes.feeds(items, key or self.shapes.key(items[0])).items():
                feeds[name] = self._stacked(value) if isinstance(value, Rows) else value
        return feeds

    def _stacked(self, rows: Rows) -> np.ndarray:
        """Stack rows here, or leave that to the staging buffer they would be copied to next."""
        return cast(np.ndarray, rows) if self._staged else rows.stacked()

    @staticmethod
    def _columns(items: Sequence[Item], feeds: Sequence[_Feed], staged: bool = False) -> Feeds:
        """Stack items into one array per name: [n, 1] per scalar field, [n, *shape] otherwise."""
        columns: Feeds = {}
        for feed in feeds:
            values = [item[feed.place] for item in items]
            if feed.field is None:
                columns[feed.name] = cast(np.ndarray, Rows(values, values[0].shape)) if staged else np.stack(values)
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
        n = len(next(iter(feeds.values())))
        whole = self._whole
        if whole is None:
            outputs = self._run_chain(feeds)
        else:
            names = whole.input_names
            outputs = whole.run(feeds if len(feeds) == len(names) else {name: feeds[name] for name in names})
        for i, array in enumerate(outputs):
            if array.ndim == 0 or array.shape[0] != n:
                raise ExecutionError(
                    f"output {self._output_names[i]!r} has shape {list(array.shape)} for a batch of {n}; "
                    "its first dimension must be the batch"
                )
        return outputs

    def _run_chain(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the stages one after another, each with the names it knows."""
        values: dict[str, np.ndarray] = dict(feeds)
        for stage, executor in self._chain:
            results = executor.run({name: values[stage.inputs[name]] for name in executor.input_names})
            values.update(zip((stage.outputs[name] for name in executor.output_names), results, strict=True))
        return [values[name] for name in self._output_names]

    def _only_executor(self) -> Executor | None:
        """Return what runs everything under the names of the feeds and the outputs, or None when more than one thing or name is in play."""
        if len(self._chain) != 1:
            return None
        stage, executor = self._chain[0]
        same = all(stage.inputs[name] == name for name in executor.input_names)
        return executor if same and [stage.outputs[name] for name in executor.output_names] == self._output_names else None

    def predict(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Run rows through all stages, as one batch where their shapes allow it, and return each output, [n, *shape].

        Raises:
            InputError: A row cannot be prepared.
            ExecutionError: As `run`, or the rows' outputs differ in shape (`predict_each` returns those).
        """
        items = [self.prepare(row) for row in rows]
        if self.shapes is None:
            return dict(zip(self._output_names, self.run(self.collate(items)), strict=True))
        each = self.predict_each(items)
        try:
            return {name: np.concatenate([row[name] for row in each]) for name in self._output_names}
        except ValueError as error:
            raise ExecutionError("the rows' outputs differ in shape") from error

    def predict_each(self, items: Sequence[Item], key: ShapeKey | None = None) -> list[dict[str, np.ndarray]]:
        """Run items in as few executions as their shapes allow and return each row's outputs, [1, *shape].

        Args:
            items: As `prepare` returns them.
            key: The shapes to pad all of them to; None is each one's own key.

        Raises:
            InputError: A row has a length the package does not take.
            ExecutionError: As `run`.
        """
        shapes = self.shapes
        groups = grouped(() if shapes is None else key or shapes.key(item) for item in items)
        each: list[dict[str, np.ndarray]] = [{} for _ in items]
        for shape, places in groups.items():
            mine = [items[place] for place in places]
            arrays = self.run(self.collate(mine, shape or None))
            for place, row in zip(places, self._rows(arrays, mine), strict=True):
                each[place] = dict(zip(self._output_names, row, strict=True))
        return each

    def _rows(self, arrays: Sequence[np.ndarray], items: Sequence[Item]) -> Iterator[list[np.ndarray]]:
        """Yield every row's outputs without padding, [1, *shape] each."""
        pieces = [(len(items), list(arrays))] if self.shapes is None else self.shapes.cut(arrays, items)
        for count, piece in pieces:
            for i in range(count):
                yield [array[i : i + 1] for array in piece]

    def trace(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Run rows of one shape stage by stage and return every value that crosses a stage boundary, in data-flow order.

        Nothing is padded.
        """
        return self.trace_items([self.prepare(row) for row in rows])

    def trace_items(self, items: Sequence[Item]) -> dict[str, np.ndarray]:
        """Do what `trace` does, from items as `prepare` returns them."""
        values: dict[str, np.ndarray] = self._columns(items, self._feeds)
        if self.shapes is not None:
            masks = self.shapes.feeds(items, self.shapes.own_key(items[0]))
            values.update((name, value) for name, value in masks.items() if not isinstance(value, Rows))
        for stage, executor in self._stages_apart():
            results = executor.run({name: values[stage.inputs[name]] for name in executor.input_names})
            values.update(zip((stage.outputs[name] for name in executor.output_names), results, strict=True))
        return values

    def warm_up(self, items: Sequence[Item]) -> None:
        """Run every shape that a GPU keeps buffers for, so that no caller waits for their making; nothing to do on the CPU.

        That is every bucket of batch sizes with every bucket of ragged lengths.

        Args:
            items: At least one, as `prepare` returns them; they are taken round to fill a batch.

        Raises:
            ExecutionError: As `run`.
        """
        from .gpu import GpuExecutor

        executors = [(stage, executor) for stage, executor in self._chain if isinstance(executor, GpuExecutor)]
        if not executors:
            return
        batches = self.warm_batches(items, executors[0][1].warm_up_sizes, largest_first=True)
        for values in itertools.islice(batches, MAX_WARM_SHAPES):
            for stage, executor in executors:
                feeds = {name: values[stage.inputs[name]] for name in executor.input_names}
                executor.warm_up(feeds)
                values.update(zip((stage.outputs[name] for name in executor.output_names), executor.run(feeds), strict=True))

    def give_back(self, items: Sequence[Item]) -> None:
        """Run a small batch on the CPU and hand back what the arenas took for larger ones; a GPU has rules of its own (`gpu`).

        Args:
            items: At least one, as `prepare` returns them, of one shape.

        Raises:
            ExecutionError: As `run`.
        """
        values: dict[str, np.ndarray] = dict(self.collate(items))
        for stage, executor in self._chain:
            if isinstance(executor, OrtExecutor):
                feeds = {name: values[stage.inputs[name]] for name in executor.input_names}
                executor.give_back(feeds)
                if executor is not self._whole:
                    values.update(zip((stage.outputs[name] for name in executor.output_names), executor.run(feeds), strict=True))

    def warm_batches(self, items: Sequence[Item], sizes: Sequence[int], *, largest_first: bool = False) -> Iterator[Feeds]:
        """Yield a batch of every size in every bucket of ragged lengths, or just of every size when there are none.

        Args:
            items: At least one; taken round to fill a batch, and cropped where a bucket is shorter.
            sizes: Rows of a batch.
            largest_first: Begin with the longest bucket instead of the shortest.
        """
        for key, rows in self.warm_shapes(items, largest_first=largest_first):
            for size in sizes:
                yield self.collate([rows[i % len(rows)] for i in range(size)], key)

    def warm_shapes(self, items: Sequence[Item], *, largest_first: bool = False) -> Iterator[tuple[ShapeKey | None, list[Item]]]:
        """Yield every bucket of ragged lengths as the key of its shapes and rows for it; without buckets the first row's own shapes."""
        shapes = self.shapes
        if shapes is None:
            yield None, list(items)
            return
        keys = shapes.bucket_keys(items[0])
        for key in keys[::-1] if largest_first else keys:
            yield key, [item for item in items if shapes.fits(item, key)] or [shapes.cropped(items[0], key)]
        if not keys:
            own = shapes.own_key(items[0])
            yield own, [item for item in items if shapes.own_key(item) == own]

    def close(self) -> None:
        """Drop the sessions; running executions finish first because they hold their own reference."""
        self._chain = []
        self._whole = None
        self._stage_executors = None

    # --- loading ----------------------------------------------------------------------------------------------------

    def _plan_shapes(self, open_outputs: set[str]) -> ShapePlan | None:
        """Find the inputs whose shape may differ from row to row."""
        found = []
        names = [f.name for f in self.signature.fields]
        single = names[0] if len(names) == 1 else None
        for feed in self._feeds:
            if feed.field is None and feed.name in open_outputs:
                found.append(OpenInput(feed.name, feed.place, None, single))
            elif feed.field is not None and feed.field.kind == "tensor" and None in (feed.field.shape or []):
                dtype = feed.field.graph_dtype
                found.append(OpenInput(feed.name, feed.place, np.dtype("object" if dtype == "string" else dtype), feed.name))
        return ShapePlan(self.manifest, found) if found or self.manifest.batching.ragged else None

    def _plan_feeds(self) -> list[_Feed]:
        """Find what the batch stages read that no batch stage makes: item-stage outputs and raw fields."""
        made = set(self.item_plan.outputs) if self.item_plan is not None else set()
        by_name = {f.name: (i, f) for i, f in enumerate(self.signature.fields)}
        by_companion = {f.companion: (i, f) for i, f in enumerate(self.signature.fields) if f.companion is not None}
        feeds: dict[str, _Feed] = {}
        produced: set[str] = set(self.manifest.masks)
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


def _is_open(value: onnx.ValueInfoProto) -> bool:
    """Whether a graph leaves the shape of one of its outputs open."""
    tensor = value.type.tensor_type
    return not tensor.HasField("shape") or any(not dim.HasField("dim_value") for dim in tensor.shape.dim)

"""Run captured inputs again: does the package still give the answers that were given, what would another version say, has the data moved?

Rows are read, run and compared a few hundred at a time; what is kept of them are counts.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from samegraph_transforms.baseline import Baseline
from samegraph_transforms.baseline_build import field_tokenizers
from samegraph_transforms.errors import InputError
from samegraph_transforms.exactness import UNREACHABLE, Comparison, Deciding, compare
from samegraph_transforms.golden import promised, runtime_profile
from samegraph_transforms.manifest import Manifest, Output, Tolerance, json_number
from samegraph_transforms.package import Package
from samegraph_transforms.runtime import Item, PackageRuntime
from samegraph_transforms.signature import Row

from samegraph_service.drift.counting import RowCounter, Totals
from samegraph_service.drift.report import Found, Report, make_report
from samegraph_service.drift.statistics import AlarmRule

from .columns import FileFacts
from .reader import Batch, Capture, CaptureError, CaptureFile, Choice, check_whole

#: Changes from one answer to another that are listed.
CHANGES_SHOWN = 10


@dataclass
class OutputAgreement:
    """One output over all replayed rows.

    Attributes:
        name: Its name.
        decision: Whether it is no float: a label, a class, a count.
        rows: Rows compared.
        equal_rows: Rows in which every element is equal (to a float both zeros are).
        elements: Elements compared.
        different: Elements that are not equal.
        max_ulp: Largest distance in units in the last place.
        max_abs: Largest absolute difference.
        flipped: Rows whose decision (its first element) differs.
        excused: Elements that differ where the answer that was given was undecided, which is allowed.
        passed: Whether everything is within the promise.
        first: The first difference beyond the promise, in words.
        changes: (answer before, answer now) → rows.
    """

    name: str
    decision: bool
    rows: int = 0
    equal_rows: int = 0
    elements: int = 0
    different: int = 0
    max_ulp: int = 0
    max_abs: float = 0.0
    flipped: int = 0
    excused: int = 0
    passed: bool = True
    first: str = ""
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def agreement(self) -> float:
        """Share of the rows with an equal answer: of decisions the same one, of floats the same bits."""
        if not self.rows:
            return 1.0
        return (self.rows - self.flipped if self.decision else self.equal_rows) / self.rows

    def add(self, found: Comparison, expected: np.ndarray, got: np.ndarray, request: Callable[[int], str]) -> None:
        """Take in the comparison of some rows; `request` names the request of one of them."""
        self.rows += len(expected)
        self.elements += found.elements
        self.different += found.different
        self.max_ulp = max(self.max_ulp, found.max_ulp)
        self.max_abs = max(self.max_abs, found.max_abs)
        self.excused += len(found.flips)
        if not found.passed:
            self.passed = False
            if not self.first:
                row = found.first.index[0] if found.first is not None and found.first.index else 0
                self.first = f"request {request(row)}: {found.mismatch or found.first}"
        if expected.shape != got.shape:
            return
        if not found.different:
            self.equal_rows += len(expected)
            return
        nan = (expected != expected) & (got != got) if expected.dtype.kind == "f" else np.zeros(expected.shape, dtype=np.bool_)
        same = np.asarray((expected == got) | nan, dtype=np.bool_).reshape(len(expected), -1)
        self.equal_rows += int(same.all(axis=1).sum())
        if self.decision and same.shape[1]:
            for row in np.flatnonzero(~same[:, 0]).tolist():
                self.flipped += 1
                before, now = (str(a.reshape(len(a), -1)[row, 0]) for a in (expected, got))
                self.changes[before, now] += 1

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "output": self.name,
            "rows": self.rows,
            "equal_rows": self.equal_rows,
            "elements": self.elements,
            "different": self.different,
            "max_ulp": None if self.max_ulp == UNREACHABLE else self.max_ulp,
            "max_abs": json_number(self.max_abs),
            "flipped_rows": self.flipped if self.decision else None,
            "excused": self.excused,
            "agreement": self.agreement,
            "within_promise": self.passed,
            "first": self.first,
            "changes": [{"before": a, "now": b, "rows": n} for (a, b), n in self.changes.most_common(CHANGES_SHOWN)],
        }


@dataclass
class Against:
    """What another version says to the same rows.

    Attributes:
        package: Which.
        digest: Its digest.
        outputs: Outputs both have, captured answers against its own.
        refused: Rows it does not take, by error code.
        only_here: Outputs that it does not have.
    """

    package: str
    digest: str
    outputs: dict[str, OutputAgreement] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    only_here: tuple[str, ...] = ()

    @property
    def agreement(self) -> float:
        """Share of the rows whose decision stays: of the first output that is one, else the least of all outputs."""
        decisions = [o.agreement for o in self.outputs.values() if o.decision]
        return decisions[0] if decisions else min((o.agreement for o in self.outputs.values()), default=1.0)


@dataclass
class Revalidation:
    """What came of one captured version.

    Attributes:
        facts: Of the first of its files.
        package: Which package ran.
        digest: Its digest.
        profile: Which promise was applied.
        rows: Captured rows.
        replayed: Rows that were run.
        gone: Rows whose image was deleted since.
        refused: Rows that the package does not take, by error code.
        not_replayed: Why nothing was run; empty when it was.
        outputs: Captured answers against the package's.
        against: Captured answers against another version's.
        drift: The rows against the baseline; None without one.
    """

    facts: FileFacts
    package: str
    digest: str
    profile: str = ""
    rows: int = 0
    replayed: int = 0
    gone: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    not_replayed: str = ""
    outputs: dict[str, OutputAgreement] = field(default_factory=dict)
    against: Against | None = None
    drift: Report | None = None

    @property
    def same_package(self) -> bool:
        """Whether the package is the very one that gave the answers."""
        return self.digest == self.facts.digest

    @property
    def same_answers(self) -> bool:
        """Whether every answer is within the promise, and every row is taken."""
        return all(output.passed for output in self.outputs.values()) and not self.refused

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        other = self.against
        return {
            "model": self.facts.model,
            "version": self.facts.version,
            "captured_digest": self.facts.digest,
            "package": self.package,
            "package_digest": self.digest,
            "profile": self.profile,
            "rows": self.rows,
            "replayed": self.replayed,
            "images_gone": self.gone,
            "refused": dict(self.refused),
            "not_replayed": self.not_replayed or None,
            "same_answers": None if self.not_replayed else self.same_answers,
            "outputs": [output.to_json() for output in self.outputs.values()],
            "against": None
            if other is None
            else {
                "package": other.package,
                "digest": other.digest,
                "agreement": other.agreement,
                "refused": dict(other.refused),
                "only_here": list(other.only_here),
                "outputs": [output.to_json() for output in other.outputs.values()],
            },
            "drift": None if self.drift is None else self.drift.to_json(),
        }


def revalidate(
    capture: Capture,
    files: Sequence[CaptureFile],
    choice: Choice,
    package: Package,
    *,
    against: Package | None = None,
    rule: AlarmRule | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Revalidation:
    """Run the captured rows of one version again.

    Args:
        capture: Where they lie.
        files: The version's files.
        choice: Which of their rows.
        package: What is to have given the answers: the captured version, or another to be held to the same answers.
        against: Another version to compare the captured answers with.
        rule: What makes an alarm about drift; None for the service's defaults.
        progress: Called with rows done and rows in the files.

    Raises:
        ExecutionError: A graph does not load or run.
        CaptureError: There are no files.
    """
    if not files:
        raise CaptureError(f"{capture.url} holds no rows of {package}")
    facts = files[0].facts
    result = Revalidation(facts, str(package), package.digest)
    gone_before = capture.gone
    total = sum(file.facts.rows for file in files)
    with ExitStack() as open_:
        runner = _Runner(open_.enter_context(closing(PackageRuntime.load(package))), facts)
        result.profile = runner.profile
        other = None
        if against is not None:
            other = _Runner(open_.enter_context(closing(PackageRuntime.load(against))), facts)
            names = {o.name for o in against.manifest.outputs}
            only = tuple(o.name for o in facts.outputs if o.name not in names)
            result.against = Against(str(against), against.digest, only_here=only)
        try:
            check_whole(facts)
        except CaptureError as error:
            result.not_replayed = str(error)
        counting = _Counting(package, facts)
        for batch in capture.batches(choice, files):
            result.rows += batch.n
            if result.not_replayed:
                counting.add_untouched(batch)
            else:
                _replay(result, capture, batch, runner, other, counting)
            if progress is not None:
                progress(result.rows, total)
    result.gone = capture.gone - gone_before
    result.drift = counting.report(capture.url, rule or AlarmRule())
    return result


def _replay(result: Revalidation, capture: Capture, batch: Batch, runner: _Runner, other: _Runner | None, counting: _Counting) -> None:
    there = [(i, instance) for i, instance in enumerate(capture.instances(batch)) if instance is not None]
    ran = runner.run(there, result.refused)
    result.replayed += len(ran.places)
    runner.compare(result.outputs, batch, ran)
    if ran.places:
        counting.add(batch, ran)
    if other is not None and result.against is not None:
        taken = other.run(there, result.against.refused)
        other.compare(result.against.outputs, batch, taken)


@dataclass
class _Ran:
    """Rows that ran: their places in the batch, as rows and items, and per row the outputs, [1, *shape]."""

    places: list[int]
    rows: list[Row]
    items: list[Item]
    outputs: list[Mapping[str, np.ndarray]]
    runtime: PackageRuntime


class _Runner:
    """Runs captured instances through one package and compares its answers with those that were given."""

    def __init__(self, runtime: PackageRuntime, facts: FileFacts) -> None:
        self.runtime = runtime
        manifest = runtime.manifest
        self.profile = runtime_profile(runtime)
        self._tolerance: Tolerance = promised(manifest, self.profile)
        mine = {o.name: o for o in manifest.outputs}
        self._outputs = [(o, mine[o.name]) for o in facts.outputs if o.name in mine]
        self._fields = {f.name for f in manifest.fields}

    def run(self, instances: Sequence[tuple[int, Mapping[str, Any]]], refused: Counter[str]) -> _Ran:
        ran = _Ran([], [], [], [], self.runtime)
        for place, instance in instances:
            try:
                row = self.runtime.signature.check_row({name: value for name, value in instance.items() if name in self._fields})
                item = self.runtime.prepare(row)
            except InputError as error:
                refused[error.code] += 1
                continue
            ran.places.append(place)
            ran.rows.append(row)
            ran.items.append(item)
        most = self.runtime.manifest.batching.max_batch_size
        for start in range(0, len(ran.items), most):
            ran.outputs += self._together(ran.items[start : start + most])
        return ran

    def _together(self, items: Sequence[Item]) -> list[Mapping[str, np.ndarray]]:
        if self.runtime.shapes is not None:
            return list(self.runtime.predict_each(items))
        arrays = self.runtime.run(self.runtime.collate(items))
        names = [o.name for o in self.runtime.manifest.outputs]
        return [{name: array[i : i + 1] for name, array in zip(names, arrays, strict=True)} for i in range(len(items))]

    def compare(self, found: dict[str, OutputAgreement], batch: Batch, ran: _Ran) -> None:
        if not ran.places:
            return
        for output, mine in self._outputs:
            agreement = found.setdefault(output.name, OutputAgreement(output.name, not output.dtype.startswith("float")))
            given = [batch.outputs[output.name][i][None] for i in ran.places]
            got = [outputs[mine.name] for outputs in ran.outputs]
            deciding = batch.outputs.get(output.decided_by or "")
            scores = None if deciding is None else [deciding[i][None] for i in ran.places]
            shapes = {a.shape for a in given} | {a.shape for a in got}
            groups = [range(len(given))] if len(shapes) == 1 else [range(i, i + 1) for i in range(len(given))]
            for group in groups:
                self._compare(
                    agreement,
                    [given[i] for i in group],
                    [got[i] for i in group],
                    None if scores is None else [scores[i] for i in group],
                    [batch.meta["request_id"][ran.places[i]] for i in group],
                )

    def _compare(
        self,
        agreement: OutputAgreement,
        given: Sequence[np.ndarray],
        got: Sequence[np.ndarray],
        scores: Sequence[np.ndarray] | None,
        requests: Sequence[str],
    ) -> None:
        expected, actual = np.concatenate(given), np.concatenate(got)
        deciding = None if scores is None else Deciding(np.concatenate(scores), self._tolerance)
        found = compare(expected, actual, self._tolerance, tensor=agreement.name, decided_by=deciding)
        agreement.add(found, expected, actual, requests.__getitem__)


class _Counting:
    """Counts captured rows, with the answers that were given, over the baseline's bins."""

    def __init__(self, package: Package, facts: FileFacts) -> None:
        self._package = package
        baseline = package.baseline()
        # The bins of answers are those of the version that gave them; another package's say nothing about its fields either.
        fits = baseline is not None and _same_signature(package.manifest, facts)
        self._baseline = _without(baseline, facts.treated) if baseline is not None and fits else None
        self._counter = (
            None if self._baseline is None else RowCounter(package.manifest, self._baseline, tokenizers=field_tokenizers(package))
        )
        self._totals: Totals | None = None
        self._uncounted = 0

    def add(self, batch: Batch, ran: _Ran) -> None:
        if self._counter is None:
            return
        at = ran.runtime.item_places
        pixels = {name: [item[at[name]] for item in ran.items] for name in self._counter.pixels if name in at}
        self._grow(batch, ran.places, ran.rows, pixels)

    def add_untouched(self, batch: Batch) -> None:
        """Count rows that cannot be run: what was not captured is not looked at."""
        if self._counter is None or self._counter.pixels or any(f.kind == "image" and f.name in batch.inputs for f in batch.facts.fields):
            self._uncounted += batch.n
            return
        treated = batch.facts.treated
        rows = [tuple(None if f.name in treated else batch.inputs[f.name][i] for f in batch.facts.fields) for i in range(batch.n)]
        self._grow(batch, range(batch.n), rows, {})

    def _grow(self, batch: Batch, places: Sequence[int], rows: Sequence[Row], pixels: Mapping[str, Sequence[Any]]) -> None:
        assert self._counter is not None
        answers = [[batch.outputs[o.name][i][None] for i in places] for o in self._package.manifest.outputs]
        if all(len({a.shape for a in of}) == 1 for of in answers):
            grown = self._counter.count(rows, pixels, [np.concatenate(of) for of in answers])
            self._totals = grown if self._totals is None else self._totals + grown
            return
        for i, row in enumerate(rows):
            one = {name: values[i : i + 1] for name, values in pixels.items()}
            grown = self._counter.count([row], one, [of[i] for of in answers])
            self._totals = grown if self._totals is None else self._totals + grown

    def report(self, where: str, rule: AlarmRule) -> Report | None:
        if self._counter is None or self._baseline is None or self._totals is None:
            return None
        totals, slots = self._totals, self._counter.layout.slots
        manifest = self._package.manifest
        found = Found(
            where,
            manifest.name,
            str(manifest.version),
            self._package.digest,
            self._baseline,
            rule,
            f"{totals.rows:,} rows",
            [slot.counts(totals) for slot in slots],
            [slot.mean_and_std(totals) for slot in slots],
            expected={
                of.output.name: dict(zip(of.cells, totals.floats[of.start : of.start + len(of.cells)].tolist(), strict=True))
                for of in self._counter.layout.expected
            },
            expected_over="of these rows",
        )
        return make_report(found, f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC")


def _same_signature(manifest: Manifest, facts: FileFacts) -> bool:
    def of(fields: Sequence[Any], outputs: Sequence[Output]) -> Any:
        return [(f.name, f.kind, f.dtype, f.shape) for f in fields], [(o.name, o.dtype, o.shape, o.element_names) for o in outputs]

    return bool(of(manifest.fields, manifest.outputs) == of(facts.fields, facts.outputs))


def _without(baseline: Baseline, treated: Mapping[str, str]) -> Baseline:
    """Return a baseline that looks at nothing of fields that were not captured."""
    fields = [f.model_copy(update={"monitored": "off", "variables": []}) if f.name in treated else f for f in baseline.fields]
    return baseline.model_copy(update={"fields": fields})

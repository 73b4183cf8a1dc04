"""Which version answers a call: a pure function of a table and what the caller asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

from .errors import NotReady, UnknownModel, UnknownVersion
from .experiments.assignment import NO_BUCKET, Assignment, Plan, bucket_of, draw, fraction, header_unit

T = TypeVar("T")

#: What `Assignment.served_arm` says where the model's default version answers and no arm stands for it.
DEFAULT_ARM = "default"


class Experiment(Generic[T]):
    """One experiment over the versions that are ready: what each unit gets, in shared objects made once.

    Args:
        plan: What decides assignment.
        ready: Version number → what serves it.
        default: The version that answers calls that name none and take no part; None when it is not ready.
        slow_s: Seconds over which an answer counts as slow.
        withdrawn: Arms that must not answer now although their version is ready.
        trials: Arm → what is called for each request that goes to it, for arms that are tried after they were withdrawn.
    """

    def __init__(
        self,
        plan: Plan,
        ready: Mapping[int, T],
        default: int | None,
        *,
        slow_s: float,
        withdrawn: Collection[str] = (),
        trials: Mapping[str, Callable[[], None]] = MappingProxyType({}),
    ) -> None:
        self.plan = plan
        self.header = plan.unit.header.encode()
        self.withdrawn = frozenset(withdrawn)
        self._slow_s = slow_s
        self._trials = trials
        self._arm_of_version = {arm.version: arm.name for arm in reversed(plan.arms)}
        self._version_of_arm = {arm.name: arm.version for arm in plan.arms}
        self._chain = self._stand_ins(ready, default)
        #: Arm → what answers for it (its version, or the first of the chain that can), or None when nothing can.
        self._answers = {arm.name: self._answer_of(arm.name, arm.version, ready) for arm in plan.arms}
        others = [default, *(version for version, _ in self._chain)] if default is not None else [version for version, _ in self._chain]
        self._rest: tuple[int, T] | None = next(((version, ready[version]) for version in others if version in ready), None)
        self._pinned: dict[int, Assignment] = {}
        self._made: dict[tuple[str, int, str], tuple[T, Assignment]] = {}
        #: Versions one of which may answer, for reading a unit out of a body: the fallback's first.
        self.candidates: Sequence[T] = tuple({id(served): served for _, served in self._in_use()}.values())

    def _stand_ins(self, ready: Mapping[int, T], default: int | None) -> list[tuple[int, str]]:
        """Return what may answer for an arm that cannot, in order: the fallback, the default, any other arm."""
        arms = sorted(self.plan.arms, key=lambda arm: arm.name != self.plan.fallback)
        fallback = arms[0]
        chain = [(fallback.version, fallback.name)]
        if default is not None:
            chain.append((default, self._arm_of_version.get(default, DEFAULT_ARM)))
        chain += [(arm.version, arm.name) for arm in arms[1:] if arm.name not in self.withdrawn]
        return [(version, name) for version, name in chain if version in ready]

    def _answer_of(self, name: str, version: int, ready: Mapping[int, T]) -> tuple[T, int, str] | None:
        if version in ready and name not in self.withdrawn:
            return ready[version], version, name
        return next(((ready[number], number, arm) for number, arm in self._chain if arm != name), None)

    def _in_use(self) -> list[tuple[bool, T]]:
        found = [(name != self.plan.fallback, answer[0]) for name, answer in self._answers.items() if answer is not None]
        return sorted(found, key=lambda entry: entry[0])

    def by_unit(self, unit: bytes) -> tuple[T, Assignment]:
        """Return what answers a unit's request, and why.

        Raises:
            NotReady: Nothing that may answer is ready.
        """
        if not self.plan.enrolled(unit):
            return self._outside("not_enrolled")
        return self._assigned(self.plan.arm_of(unit), bucket_of(unit), "")

    def at_random(self, u: float, v: float) -> tuple[T, Assignment]:
        """Return what answers a request without a unit, given two random fractions, and that it does not count.

        Raises:
            NotReady: Nothing that may answer is ready.
        """
        if v >= self.plan.enrolment_share:
            return self._outside("no_unit")
        return self._assigned(self.plan.arm_at(u), NO_BUCKET, "no_unit")

    def pinned(self, version: int) -> Assignment:
        """Return what is said of a request that names its version."""
        assignment = self._pinned.get(version)
        if assignment is None:
            assignment = self._assignment("", 0, self._arm_of_version.get(version, DEFAULT_ARM), version, NO_BUCKET, "pinned")
            self._pinned[version] = assignment
        return assignment

    def _assigned(self, arm: str, bucket: int, reason: Literal["", "no_unit"]) -> tuple[T, Assignment]:
        made = self._made.get((arm, bucket, reason))
        if made is None:
            answer = self._answers[arm]
            if answer is None:
                raise self._nothing()
            served, version, name = answer
            assignment = self._assignment(arm, self._version_of_arm[arm], name, version, bucket, reason)
            made = self._made[arm, bucket, reason] = (served, assignment)
        return made

    def _outside(self, reason: Literal["not_enrolled", "no_unit"]) -> tuple[T, Assignment]:
        made = self._made.get(("", NO_BUCKET, reason))
        if made is None:
            if self._rest is None:
                raise self._nothing()
            version, served = self._rest
            name = self._arm_of_version.get(version, DEFAULT_ARM)
            assignment = self._assignment("", 0, name, version, NO_BUCKET, reason)
            made = self._made["", NO_BUCKET, reason] = (served, assignment)
        return made

    def _assignment(self, arm: str, version: int, served_arm: str, served_version: int, bucket: int, reason: Any) -> Assignment:
        plan = self.plan
        assignment = Assignment(
            plan.model,
            plan.experiment,
            plan.revision,
            arm=arm,
            version=version,
            served_arm=served_arm,
            served_version=served_version,
            bucket=bucket,
            reason=reason,
            slow_s=self._slow_s,
        )
        if reason != "pinned":
            assignment.trial = self._trials.get(served_arm)
        return assignment

    def _nothing(self) -> NotReady:
        plan = self.plan
        return NotReady(
            f"nothing that experiment {plan.experiment!r} of model {plan.model!r} could answer with is ready", retry_after_s=1.0
        )

    def answer_for(self, arm: str) -> tuple[str, int] | None:
        """Return the arm and the version that answer for an arm, or None when nothing can."""
        answer = self._answers[arm]
        return None if answer is None else (answer[2], answer[1])

    def first_unready(self) -> list[str]:
        """Return a sentence for every arm that another one answers for."""
        found = []
        for arm in self.plan.arms:
            answer = self._answers[arm.name]
            if answer is not None and answer[2] == arm.name:
                continue
            why = "is withdrawn here" if arm.name in self.withdrawn else f"stands for version {arm.version}, which is not ready"
            instead = "nothing answers for it" if answer is None else f"{answer[2]} answers for it"
            found.append(f"arm {arm.name!r} of experiment {self.plan.experiment!r} of model {self.plan.model!r} {why}; {instead}")
        return found


@dataclass(frozen=True)
class ShadowRoute(Generic[T]):
    """A version that sees a share of a model's traffic and never answers."""

    version: int
    share: float
    served: T


@dataclass(frozen=True)
class ModelRoutes(Generic[T]):
    """The routes of one model.

    Attributes:
        ready: Version number → what serves it.
        states: Version number → why it is not ready (`loading`, `failed: …`), for every known version that is not.
        labels: Label → version number.
        named_default: The version the routing file gives to calls that name none; None for the latest ready one.
        experiment: What decides calls that name no version, or None.
        shadows: Versions that see a share of the traffic.
    """

    ready: Mapping[int, T]
    states: Mapping[int, str] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    named_default: int | None = None
    experiment: Experiment[T] | None = None
    shadows: Sequence[ShadowRoute[T]] = ()

    @property
    def default(self) -> int | None:
        """The version that answers calls that name none: the one the routing file names if it is ready, else the latest ready one."""
        if self.named_default is not None:
            return self.named_default if self.named_default in self.ready else None
        return max(self.ready, default=None)

    def why_not(self, version: int) -> str:
        """Return why a version is not ready."""
        return self.states.get(version, "it is not in the repository")


class Decision(Generic[T]):
    """What a request's head decided.

    Attributes:
        served: What answers, or, while `undecided` is set, one of those that may.
        assignment: What an experiment decided, or None.
        shadows: Versions that may get a copy: all of the model, or, where the head names a unit, those that it is in the sample of.
        undecided: The experiment that still has to decide: at random for every request, or with the body when its unit is a field.
    """

    __slots__ = ("assignment", "served", "shadows", "undecided")

    def __init__(
        self,
        served: T,
        assignment: Assignment | None = None,
        undecided: Experiment[T] | None = None,
        shadows: Sequence[ShadowRoute[T]] = (),
    ) -> None:
        self.served = served
        self.shadows = shadows
        self.assignment = assignment
        self.undecided = undecided


@dataclass(frozen=True)
class RouteTable(Generic[T]):
    """All routes; replaced as a whole when anything changes."""

    models: Mapping[str, ModelRoutes[T]] = field(default_factory=lambda: MappingProxyType({}))

    def decide(self, model: str, version: int | None, label: str | None, headers: Mapping[bytes, bytes]) -> Decision[T]:
        """Return what answers a request with this head, as far as the head decides it.

        Raises:
            UnknownModel: The repository has no such model.
            UnknownVersion: The model has no such version or label.
            NotReady: It has, but it cannot answer now.
        """
        routes = self.models.get(model)
        if routes is None:
            raise UnknownModel(model, sorted(self.models))
        experiment, shadows = routes.experiment, routes.shadows
        if experiment is None:
            return Decision(self.resolve(model, version, label)[1], shadows=shadows)
        unit = header_unit(headers, experiment.header) if experiment.header else b""
        if unit and shadows:
            u = fraction(draw(b"shadow", unit))
            shadows = tuple(replace(shadow, share=1.0) for shadow in shadows if u < shadow.share)
        if version is not None or label is not None:
            number, served = self.resolve(model, version, label)
            return Decision(served, experiment.pinned(number), shadows=shadows)
        if unit:
            return Decision(*experiment.by_unit(unit), shadows=shadows)
        if not experiment.candidates:
            experiment.by_unit(b"")  # raises
        return Decision(experiment.candidates[0], None, experiment, shadows)

    def resolve(self, model: str, version: int | None = None, label: str | None = None) -> tuple[int, T]:
        """Return the version that answers a call outside of any experiment, and what serves it.

        Raises:
            UnknownModel: The repository has no such model.
            UnknownVersion: The model has no such version or label.
            NotReady: It has, but it cannot answer now.
        """
        routes = self.resolve_model(model)
        if label is not None:
            version = self._labelled(model, routes, label)
        if version is None:
            version = routes.default
            if version is None:
                raise self._no_default(model, routes)
        served = routes.ready.get(version)
        if served is not None:
            return version, served
        if version in routes.states:
            raise NotReady(f"version {version} of model {model!r} is not ready: {routes.states[version]}", retry_after_s=1.0)
        named = f"label {label!r} of model {model!r} stands for version {version}, which it has not" if label is not None else ""
        raise UnknownVersion(
            f"{named or f'model {model!r} has no version {version}'}; it has {', '.join(map(str, sorted(routes.ready))) or 'none ready'}"
        )

    def resolve_model(self, model: str) -> ModelRoutes[T]:
        """Return the routes of a model, ready or not.

        Raises:
            UnknownModel: The repository has no such model.
        """
        routes = self.models.get(model)
        if routes is None:
            raise UnknownModel(model, sorted(self.models))
        return routes

    def labelled(self, model: str, label: str) -> int:
        """Return the version behind a label, ready or not.

        Raises:
            UnknownModel: The repository has no such model.
            UnknownVersion: The model has no such label.
        """
        routes = self.models.get(model)
        if routes is None:
            raise UnknownModel(model, sorted(self.models))
        return self._labelled(model, routes, label)

    @staticmethod
    def _no_default(model: str, routes: ModelRoutes[T]) -> NotReady:
        if routes.named_default is not None:
            reason = f"version {routes.named_default} is its default and is not ready: {routes.why_not(routes.named_default)}"
            return NotReady(f"model {model!r} cannot answer: {reason}", retry_after_s=1.0)
        reasons = "; ".join(f"version {v}: {why}" for v, why in sorted(routes.states.items()))
        return NotReady(f"model {model!r} has no version that is ready ({reasons or 'none found'})", retry_after_s=1.0)

    @staticmethod
    def _labelled(model: str, routes: ModelRoutes[T], label: str) -> int:
        if label not in routes.labels:
            have = f"it has {', '.join(sorted(routes.labels))}" if routes.labels else "it has none"
            raise UnknownVersion(f"model {model!r} has no label {label[:64]!r}; {have}")
        return routes.labels[label]

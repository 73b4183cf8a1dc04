"""routing.yaml: the file in a repository that says which versions answer, under which labels and in which experiments.

`read` gives the file or every problem in it by its path in the file; `problems_with` compares it with the versions there are;
`write_routing` is the one way it is changed. The JSON Schema published in docs/routing.schema.json is generated from these classes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from samegraph_transforms.manifest import NAME_PATTERN, RawField

from samegraph_service.errors import RoutingConflict, RoutingProblem, RoutingReadOnly
from samegraph_service.routing import Experiment, ModelRoutes, ShadowRoute

from .assignment import Arm, Plan, Unit

T = TypeVar("T")

FILE_NAME: Final = "routing.yaml"
#: Held by whoever writes the file while he compares and renames; it stays there, empty.
LOCK_NAME: Final = f".{FILE_NAME}.lock"
#: Seconds to wait for another writer, who takes milliseconds.
LOCK_WAIT_S: Final = 5.0
#: What a file system answers that knows no locks.
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
#: Largest file, most levels of nesting, and how many problems are told at once.
MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 32
MAX_PROBLEMS: Final = 20
#: The revision of a file that is not there.
NO_FILE: Final = "none"
#: Raw field kinds that can name a unit.
UNIT_KINDS: Final = frozenset({"string", "text", "integer"})

MAX_EXPERIMENTS: Final = 16
MAX_ARMS: Final = 16
MAX_METRICS: Final = 16
MAX_LABELS: Final = 32
MAX_SHADOWS: Final = 4

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}$"
#: A label stands where a version number could; so it does not begin with a digit.
_LABEL = r"^[A-Za-z_][A-Za-z0-9_.\-]{0,63}$"

Name = Annotated[str, Field(pattern=_NAME)]
Label = Annotated[str, Field(pattern=_LABEL)]
Version = Annotated[int, Field(strict=True, ge=1, lt=10**10)]
Salt = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]*$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _no_number_as_text(value: object) -> object:
    """Refuse what YAML reads as a number or a date where a text is asked, with what to do about it."""
    if value is not None and not isinstance(value, str | dict | list):
        raise ValueError(f"must be a text; put it in quotes: {str(value)!r}")
    return value


Text = BeforeValidator(_no_number_as_text)


class UnitSource(_Part):
    """Where a request names the unit (a user, a session, a machine) that always gets the same arm: a header or a raw field."""

    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_\-]{0,63}$")] | None = Field(
        default=None, description="Name of a request header, decided on before the body is read."
    )
    field: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="Name of a raw field (string, text or integer) of the first instance; every version of the experiment has it.",
    )

    @model_validator(mode="after")
    def _one(self) -> UnitSource:
        if (self.header is None) == (self.field is None):
            raise ValueError("give either `header` or `field`; leave `unit` out for requests that are assigned at random")
        return self


class Enrolment(_Part):
    """Which share of units takes part at all; the others get the model's default version."""

    share: Share = Field(default=1.0, description="Share of units, 0 to 1. Raising it adds units and moves none.")
    salt: Annotated[Salt, Text] = Field(default="enrolment", description="Salt of this draw; another than the arms' salt.")


class ArmSpec(_Part):
    """One arm of an experiment: the version it stands for, and its weight."""

    version: Version | None = Field(default=None, description="A version number; or give `label`.")
    label: Annotated[Label, Text] | None = Field(default=None, description="A label of the same model; or give `version`.")
    weight: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] = Field(
        default=1.0, description="Share of units relative to the other arms; 0 for nobody. Raising one weight moves units only to that arm."
    )

    @model_validator(mode="after")
    def _one(self) -> ArmSpec:
        if (self.version is None) == (self.label is None):
            raise ValueError("give either `version` or `label`")
        return self


class MetricSpec(_Part):
    """One outcome that comes back as feedback, within bounds known beforehand."""

    kind: Literal["binary", "count", "number", "label"] = Field(
        description=(
            "binary: 0 or 1. count: a whole number from 0 to `max`. number: from `min` to `max`. "
            "label: the true label, compared with the answer."
        )
    )
    min: Annotated[float, Field(allow_inf_nan=False)] | None = Field(default=None, description="Least value of a number.")
    max: Annotated[float, Field(allow_inf_nan=False)] | None = Field(default=None, description="Largest value of a count or a number.")
    goal: Literal["increase", "decrease"] = Field(default="increase", description="Which direction is better.")
    guard: bool = Field(default=False, description="Whether `samegraph experiment guard` withdraws an arm for which it is surely worse.")
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="How much worse than the fallback's mean an arm's may be before the guard acts, in the metric's own unit."
    )

    @model_validator(mode="after")
    def _bounds_fit_the_kind(self) -> MetricSpec:
        if self.kind == "number" and (self.min is None or self.max is None or self.min >= self.max):
            raise ValueError("a number needs `min` and `max`, the first below the second")
        if self.kind == "count" and (self.min not in (None, 0) or self.max is None or self.max < 1):
            raise ValueError("a count begins at 0 and needs `max`, 1 or more")
        if self.kind in ("binary", "label") and not (self.min is None and self.max is None):
            raise ValueError(f"a {self.kind} metric has no `min` and no `max`")
        if self.kind == "label" and self.goal == "decrease":
            raise ValueError("a label metric is the share of right answers, whose `goal` is increase")
        low, high = self.bounds
        if self.margin >= high - low:
            raise ValueError(f"`margin` must be below {high - low:g}, the widest difference there can be")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest value."""
        return (self.min or 0.0, 1.0 if self.max is None else self.max)


class Guardrails(_Part):
    """When an arm is withdrawn: by a replica alone, and by `samegraph experiment guard`."""

    max_error_ratio: Share = Field(
        default=0.5,
        description="Share of failed requests over which a replica withdraws the arm by itself for `withdraw_s`: the circuit-break.",
    )
    min_requests: int = Field(default=200, ge=10, le=1_000_000, description="Requests of the arm below which nothing is withdrawn.")
    withdraw_s: float = Field(default=300.0, gt=0, le=86_400, description="Seconds a replica's own withdrawal lasts.")
    error_margin: Share = Field(
        default=0.01,
        description="Increase of the share of failed requests over the fallback's that is tolerated by `samegraph experiment guard`.",
    )
    slow_margin: Share = Field(default=0.05, description="The same for the share of requests slower than `slo_ms`.")
    alpha: Annotated[float, Field(gt=0, le=0.2)] = Field(
        default=0.01, description="Chance that a guardrail ever withdraws an arm that is as good as the fallback, however often it looks."
    )
    sample_ratio_alpha: Annotated[float, Field(gt=0, le=0.05)] = Field(
        default=0.0005, description="The same for the check that arms get the share of units that their weights say."
    )


class Rollout(_Part):
    """A plan in steps that `samegraph experiment guard` goes through while the guardrails hold, by changing the weights."""

    arm: Name = Field(description="The arm that is rolled out.")
    steps: list[Annotated[float, Field(gt=0, le=100)]] = Field(
        default=[1, 5, 10, 25, 50, 100], min_length=1, max_length=32, description="Shares of units in per cent, ascending."
    )
    step: int = Field(default=0, ge=0, le=31, description="Index of the step in force; written by the guard.")
    min_step_s: float = Field(default=3600.0, ge=0, le=2_592_000, description="Least seconds on each step.")
    min_requests: int = Field(default=1000, ge=0, le=1_000_000_000, description="Least requests of the arm on each step.")
    paused: bool = Field(default=False, description="Whether the guard leaves the step as it is; it sets this when it withdraws the arm.")

    @model_validator(mode="after")
    def _ascending(self) -> Rollout:
        if sorted(set(self.steps)) != self.steps:
            raise ValueError("`steps` must ascend")
        if self.step >= len(self.steps):
            raise ValueError(f"`step` must be below the number of steps, {len(self.steps)}")
        return self


class ExperimentSpec(_Part):
    """One experiment: units are assigned to arms, each a version of the model."""

    enabled: bool = Field(default=True, description="Whether it decides requests; of each model one experiment may.")
    salt: Annotated[Salt, Text] = Field(
        description="Decides with the experiment's name which unit gets which arm; another salt deals anew."
    )
    unit: UnitSource | None = Field(
        default=None, description="Where the unit id comes from; without it each request is assigned at random."
    )
    enrolment: Enrolment = Field(default_factory=Enrolment, description="Which share of units takes part.")
    arms: dict[Name, ArmSpec] = Field(min_length=1, max_length=MAX_ARMS, description="The arms by name; their order is for display only.")
    fallback: Name | None = Field(default=None, description="The arm that answers for one whose version is not ready. Default: the first.")
    slo_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = Field(
        default=None, description="Milliseconds over which an answer counts as slow."
    )
    metrics: dict[Name, MetricSpec] = Field(
        default_factory=dict, max_length=MAX_METRICS, description="The outcomes that feedback may report, by name."
    )
    guardrails: Guardrails = Field(default_factory=Guardrails, description="Bounds beyond which an arm is withdrawn.")
    rollout: Rollout | None = Field(default=None, description="A progressive rollout of one arm.")

    @model_validator(mode="after")
    def _arms_fit(self) -> ExperimentSpec:
        if not any(arm.weight > 0 for arm in self.arms.values()):
            raise ValueError("at least one arm needs a weight above 0")
        known = ", ".join(self.arms)
        if self.fallback is not None and self.fallback not in self.arms:
            raise ValueError(f"`fallback` names no arm; the arms are {known}")
        if self.rollout is not None and self.rollout.arm not in self.arms:
            raise ValueError(f"`rollout.arm` names no arm; the arms are {known}")
        if self.enrolment.salt == self.salt:
            raise ValueError("`enrolment.salt` must differ from `salt`, or enrolment would decide the arm too")
        return self

    @property
    def fallback_arm(self) -> str:
        """The arm that answers for one that cannot."""
        return self.fallback or next(iter(self.arms))


class Shadow(_Part):
    """A version that sees a sample of the model's traffic and never answers."""

    version: Version | None = Field(default=None, description="A version number; or give `label`.")
    label: Annotated[Label, Text] | None = Field(default=None, description="A label of the same model; or give `version`.")
    share: Share = Field(description="Share of requests that are copied to it, by the hash of their unit or id.")

    @model_validator(mode="after")
    def _one(self) -> Shadow:
        if (self.version is None) == (self.label is None):
            raise ValueError("give either `version` or `label`")
        return self


class ModelRouting(_Part):
    """The routes of one model."""

    default: Version | Label = Field(
        default="latest", description="What answers calls that name no version: `latest` (the latest ready one), a number or a label."
    )
    labels: dict[Label, Version] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="Names for versions, as callers may use them."
    )
    experiments: dict[Name, ExperimentSpec] = Field(
        default_factory=dict, max_length=MAX_EXPERIMENTS, description="Experiments by name; at most one is enabled."
    )
    shadows: list[Shadow] = Field(default_factory=list, max_length=MAX_SHADOWS, description="Versions that see traffic and never answer.")

    @property
    def enabled(self) -> tuple[str, ExperimentSpec] | None:
        """The experiment that decides requests, with its name."""
        return next(((name, spec) for name, spec in self.experiments.items() if spec.enabled), None)

    def number(self, version: int | None, label: str | None) -> int:
        """Return the version number that a version or a label stands for."""
        return self.labels[label] if label is not None else version or 0

    def default_version(self) -> int | None:
        """Return the version number the default names, or None for the latest."""
        if self.default == "latest":
            return None
        return self.default if isinstance(self.default, int) else self.labels[self.default]

    def named(self) -> dict[int, str]:
        """Return the versions it names, each with the path of one place that does."""
        found = {version: f"labels.{label}" for label, version in reversed(self.labels.items())}
        for name, spec in self.experiments.items():
            if spec.enabled:
                for arm, part in spec.arms.items():
                    found.setdefault(self.number(part.version, part.label), f"experiments.{name}.arms.{arm}")
        for i, shadow in enumerate(self.shadows):
            found.setdefault(self.number(shadow.version, shadow.label), f"shadows.{i}")
        default = self.default_version()
        if default is not None:
            found.setdefault(default, "default")
        return found

    def plan(self, model: str) -> Plan | None:
        """Return what decides assignment in the enabled experiment."""
        if self.enabled is None:
            return None
        name, spec = self.enabled
        unit = spec.unit or UnitSource.model_construct(header=None, field=None)
        return Plan(
            model=model,
            experiment=name,
            salt=spec.salt,
            arms=tuple(Arm(arm, self.number(part.version, part.label), part.weight) for arm, part in spec.arms.items()),
            unit=Unit((unit.header or "").lower(), unit.field or ""),
            enrolment_share=spec.enrolment.share,
            enrolment_salt=spec.enrolment.salt,
            fallback=spec.fallback_arm,
        )


class RoutingDocument(_Part):
    """The whole file."""

    models: dict[Annotated[str, Field(pattern=NAME_PATTERN)], ModelRouting] = Field(
        default_factory=dict,
        max_length=1000,
        description="The routes of each model by its name; a model that is left out answers with its latest version.",
    )


@dataclass(frozen=True)
class RoutingFile:
    """A file that was read.

    Attributes:
        document: What it says.
        revision: First 16 hexadecimal digits of SHA-256 over its bytes, or "none" when there is no file.
        text: The file itself.
    """

    document: RoutingDocument
    revision: str = NO_FILE
    text: str = ""

    @property
    def models(self) -> Mapping[str, ModelRouting]:
        """The routes of each model it names."""
        return self.document.models


#: What is in force when there is no file.
NOTHING: Final = RoutingFile(RoutingDocument())


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of routing.yaml (published as docs/routing.schema.json)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RoutingDocument.model_json_schema()}


# --- reading --------------------------------------------------------------------------------------------------------------


def read(repository: Path) -> RoutingFile:
    """Read a repository's routing file; one that is not there says nothing.

    Raises:
        RoutingProblem: It cannot be read, is larger than 256 KiB, or breaks its schema; tells every problem with its path in the file.
    """
    try:
        data = _bytes_of(repository / FILE_NAME)
    except FileNotFoundError:
        return NOTHING
    except OSError as error:
        raise RoutingProblem([f"{FILE_NAME} cannot be read: {error.strerror or type(error).__name__}"]) from error
    return parse(data)


def _bytes_of(path: Path) -> bytes:
    """Return a file's bytes, one more than the limit at most; a pipe that nobody writes to is not waited for."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise RoutingProblem([f"{FILE_NAME} is no regular file"])
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def parse(data: bytes) -> RoutingFile:
    """Read the bytes of a routing file.

    Raises:
        RoutingProblem: They break its schema; every problem with its path in the file.
    """
    if len(data) > MAX_BYTES:
        raise RoutingProblem([f"{FILE_NAME} is larger than {MAX_BYTES // 1024} KiB"])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RoutingProblem([f"{FILE_NAME} is not UTF-8: byte {error.start}"]) from error
    return RoutingFile(validated(_load(text)), revision_of(data), text)


def revision_of(data: bytes) -> str:
    """Return the revision of a file's bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def validated(document: object) -> RoutingDocument:
    """Check a document against the schema and against itself.

    Raises:
        RoutingProblem: It breaks one of them; every problem with its path in the file.
    """
    try:
        parsed = RoutingDocument.model_validate({} if document is None else document)
    except ValidationError as error:
        raise RoutingProblem(list(dict.fromkeys(_sentence(e) for e in error.errors()))[:MAX_PROBLEMS]) from None
    problems = [problem for name, routing in parsed.models.items() for problem in _inner_problems(f"models.{name}", routing)]
    if problems:
        raise RoutingProblem(problems[:MAX_PROBLEMS])
    return parsed


def _inner_problems(path: str, routing: ModelRouting) -> list[str]:
    """Return what is wrong within one model's part: labels that are not defined, more than one experiment."""
    problems = []
    have = f"labels.* has {', '.join(routing.labels)}" if routing.labels else "there are no labels"

    def label(place: str, name: str | int | None) -> None:
        if isinstance(name, str) and name != "latest" and name not in routing.labels:
            problems.append(f"{path}.{place}: label {name!r} is not defined; {have}")

    label("default", routing.default)
    if "latest" in routing.labels:
        problems.append(f"{path}.labels.latest: is the name of a policy and cannot be a label")
    enabled = [name for name, spec in routing.experiments.items() if spec.enabled]
    for name, spec in routing.experiments.items():
        for arm, part in spec.arms.items():
            label(f"experiments.{name}.arms.{arm}.label", part.label)
    for i, shadow in enumerate(routing.shadows):
        label(f"shadows.{i}.label", shadow.label)
    if len(enabled) > 1:
        problems.append(
            f"{path}.experiments: {', '.join(enabled)} are enabled and only one can decide a request; set `enabled: false` on the others"
        )
    return problems


def _sentence(error: Any) -> str:
    """Return one validation error with its path as it stands in the file."""
    parts = [str(part) for part in error["loc"] if part != "[key]"]
    branch = len(parts) > 1 and parts[-2] == "default" and parts[-1].startswith(("constrained-", "function-"))  # of the one union there is
    path = ".".join(parts[:-1] if branch else parts)
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "must").replace("must match", "does not match")
    if branch:
        message = f"must be `latest`, a version number or a label; got {str(error['input'])[:60]!r}"
    elif error["type"] == "extra_forbidden":
        message = "is not known here"
    elif error["type"] == "missing":
        message = "is missing"
    elif error["type"] in ("model_type", "dict_type"):
        message = "must be a mapping, `name: value`"
    elif "[key]" in error["loc"]:
        message = "is not a name: a letter, a digit or _, then up to 63 letters, digits, `_`, `-` and `.`; a label begins with no digit"
    elif error["type"] in ("string_type", "string_pattern_mismatch", "int_type", "float_type", "float_parsing", "bool_parsing"):
        message = f"{message}; got {str(error['input'])[:60]!r}"
    return f"{path or FILE_NAME}: {message}"


def _load(text: str) -> object:
    """Read YAML as plain values; duplicate keys, anchors, tags and keys that are no text are refused by their path."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _value(node, "", 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise RoutingProblem([f"{FILE_NAME} is not valid YAML: {place}{error.problem or error.context}"]) from error
    except (yaml.YAMLError, ValueError) as error:
        raise RoutingProblem([f"{FILE_NAME} is not valid YAML: {str(error)[:200]}"]) from error
    except RecursionError:
        raise RoutingProblem([f"{FILE_NAME} is nested deeper than {MAX_DEPTH} levels"]) from None


_CONSTRUCTOR = yaml.constructor.SafeConstructor()
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp")}


def _value(node: yaml.Node, path: str, depth: int) -> object:
    at = path or FILE_NAME
    if depth > MAX_DEPTH:
        raise RoutingProblem([f"{at}: nested deeper than {MAX_DEPTH} levels"])
    if getattr(node, "_seen", False):
        raise RoutingProblem([f"{at}: anchors and aliases are not read; write the value out"])
    node._seen = True  # type: ignore[attr-defined]
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = f"line {key_node.start_mark.line + 1}"
            key = _value(key_node, path, depth + 1)
            if not isinstance(key, str):
                raise RoutingProblem([f"{at}: the key {str(key_node.value)[:60]} ({line}) must be a text; put it in quotes"])
            inner = f"{path}.{key}" if path else key
            if key in found:
                raise RoutingProblem([f"{inner}: is given twice ({line})"])
            found[key] = _value(value_node, inner, depth + 1)
        return found
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_value(item, f"{path}.{i}" if path else str(i), depth + 1) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
        return _CONSTRUCTOR.construct_object(node)
    raise RoutingProblem([f"{at}: a value of type {node.tag} is not read"])


# --- comparing with what there is -----------------------------------------------------------------------------------------

#: The raw fields of a version, or None when they cannot be known.
FieldsOf: TypeAlias = Callable[[str, int], Sequence[RawField] | None]


def problems_with(file: RoutingFile, versions: Mapping[str, Collection[int]], fields_of: FieldsOf) -> list[str]:
    """Return what of a file cannot be meant, given the versions in the repository: names of nothing, units that not every version has.

    Args:
        file: What was read.
        versions: The versions of every model, ready or not.
        fields_of: Gives a version's raw fields.
    """
    problems = []
    for model, routing in file.models.items():
        if model not in versions:
            have = f"it has {', '.join(sorted(versions)[:20])}" if versions else "it has none"
            problems.append(f"models.{model}: the repository has no such model; {have}")
            continue
        there = sorted(versions[model])
        for version, place in routing.named().items():
            if version not in there:
                problems.append(f"models.{model}.{place}: version {version} is not in the repository; it has {', '.join(map(str, there))}")
        problems += _unit_problems(model, routing, there, fields_of)
    return problems[:MAX_PROBLEMS]


def _unit_problems(model: str, routing: ModelRouting, there: Sequence[int], fields_of: FieldsOf) -> list[str]:
    plan = routing.plan(model)
    if plan is None or not plan.unit.field:
        return []
    problems = []
    for arm in plan.arms:
        fields = fields_of(model, arm.version) if arm.version in there else None
        if fields is None:
            continue
        place = f"models.{model}.experiments.{plan.experiment}.unit.field"
        field = next((f for f in fields if f.name == plan.unit.field), None)
        if field is None:
            problems.append(f"{place}: version {arm.version} (arm {arm.name}) has no raw field {plan.unit.field!r}")
        elif field.kind not in UNIT_KINDS:
            problems.append(
                f"{place}: {plan.unit.field!r} of version {arm.version} (arm {arm.name}) is of kind {field.kind}; "
                "a unit is a string, a text or an integer"
            )
    return problems


def advice_on(file: RoutingFile, latest: Mapping[str, int]) -> list[str]:
    """Return what may be meant and is worth a look.

    Args:
        file: What was read.
        latest: The latest version of every model.
    """
    found = []
    for model, routing in file.models.items():
        plan = routing.plan(model)
        if plan is None:
            continue
        default = routing.default_version() or latest.get(model)
        fallback = next(arm for arm in plan.arms if arm.name == plan.fallback)
        if plan.enrolment_share < 1 and default != fallback.version:
            found.append(
                f"models.{model}.default: units that are not enrolled get version {default}, "
                f"and the fallback arm {fallback.name} is version {fallback.version}"
            )
        if not plan.unit.header and not plan.unit.field:
            found.append(
                f"models.{model}.experiments.{plan.experiment}.unit: without a unit nobody keeps his arm and nothing can be concluded"
            )
    return found


# --- putting it in force --------------------------------------------------------------------------------------------------


def model_routes(
    name: str,
    routing: ModelRouting,
    ready: Mapping[int, T],
    states: Mapping[int, str],
    withdrawn: Collection[tuple[str, str, str]] = (),
    trials: Mapping[tuple[str, str, str], Callable[[], None]] = MappingProxyType({}),
) -> ModelRoutes[T]:
    """Return a model's routes as its part of the file says.

    Args:
        name: The model.
        routing: Its part.
        ready: Version number → what serves it.
        states: Version number → why it is not ready.
        withdrawn: (model, experiment, arm) of arms that must not answer now.
        trials: The same of arms that are tried → what is called for each of their requests.
    """
    routes = ModelRoutes(ready, states, MappingProxyType(dict(routing.labels)), routing.default_version())
    shadows = [(routing.number(shadow.version, shadow.label), shadow.share) for shadow in routing.shadows]
    plan, enabled = routing.plan(name), routing.enabled
    decides = None
    if plan is not None and enabled is not None:
        slow_s = math.inf if enabled[1].slo_ms is None else enabled[1].slo_ms / 1000
        out = {arm for model, experiment, arm in withdrawn if (model, experiment) == (name, plan.experiment)}
        tried = {arm: trial for (model, experiment, arm), trial in trials.items() if (model, experiment) == (name, plan.experiment)}
        decides = Experiment(plan, ready, routes.default, slow_s=slow_s, withdrawn=out, trials=tried)
    return replace(
        routes,
        experiment=decides,
        shadows=tuple(ShadowRoute(version, share, ready[version]) for version, share in shadows if version in ready and share > 0),
    )


# --- writing --------------------------------------------------------------------------------------------------------------


def write_routing(
    repository: Path,
    document: Mapping[str, Any] | str,
    *,
    if_revision: str | None = None,
    versions: Mapping[str, Collection[int]] | None = None,
    fields_of: FieldsOf = lambda _model, _version: None,
) -> RoutingFile:
    """Check a routing file and put it into a repository in one step: a reader sees the old one or the new one.

    Of several who write at the same time, in whatever processes, each compares with what the one before him wrote (a lock on
    `.routing.yaml.lock` beside the file; on a file system without locks two within the same moment may both succeed, and the later stays).

    Args:
        repository: The repository.
        document: The file's text, or the whole document, which is written as YAML.
        if_revision: Write only when the file there has this revision ("none": when there is none); None writes over any.
        versions: The versions there are, to check against; None checks the file against its schema and itself only.
        fields_of: Gives a version's raw fields.

    Returns:
        The file as it was written.

    Raises:
        RoutingProblem: It is no valid routing file; every problem with its path in the file.
        RoutingConflict: The file there has another revision.
        RoutingReadOnly: The repository cannot be written to, or another writer kept it locked for 5 s; carries the file to apply.
    """
    text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    data = text.encode()
    file = parse(data)
    problems = [] if versions is None else problems_with(file, versions, fields_of)
    if problems:
        raise RoutingProblem(problems)
    path = repository / FILE_NAME
    try:
        with _one_writer(repository):
            if if_revision is not None:
                there = _revision_there(path)
                if there != if_revision:
                    raise RoutingConflict(if_revision, there)
            _replace(path, data)
    except OSError as error:
        raise RoutingReadOnly(text, error.strerror or type(error).__name__) from error
    return file


@contextmanager
def _one_writer(repository: Path) -> Iterator[None]:
    """Keep every other writer of the repository's routing file out.

    Raises:
        OSError: The lock's file cannot be made, or somebody holds it for too long.
    """
    path = repository / LOCK_NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError:  # another user's; reading is enough to lock it, but on NFS
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)  # which lets the lock go


def _lock(handle: int) -> None:
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, f"another process holds {LOCK_NAME}") from error
            time.sleep(0.005)
        else:
            return


def _revision_there(path: Path) -> str:
    try:
        return revision_of(_bytes_of(path))
    except FileNotFoundError:
        return NO_FILE
    except OSError as error:
        raise RoutingProblem([f"{FILE_NAME} cannot be read: {error.strerror or type(error).__name__}"]) from error


def _replace(path: Path, data: bytes) -> None:
    """Write beside the file, in the same directory and on the same device, and rename."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    handle, name = tempfile.mkstemp(prefix=f".{FILE_NAME}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)  # noqa: PTH101 - mkstemp gave a name
        os.replace(name, path)  # noqa: PTH105
    except BaseException:  # whatever it was, the file beside the routing file is not left behind
        Path(name).unlink(missing_ok=True)
        raise


def share_as_weight(others: float, percent: float) -> float:
    """Return the weight that gives an arm `percent` of units beside arms whose weights sum to `others`; 100 asks for `others` to be 0.

    Raises:
        ValueError: `percent` is not in [0, 100), or `others` is not above 0.
    """
    if not (0 <= percent < 100 and others > 0):
        raise ValueError("a share of 100 % or of nothing is made by setting the other weights to 0")
    return others * percent / (100 - percent)


def looks_like_revision(text: str) -> bool:
    """Whether a text can be the revision of a file."""
    return text == NO_FILE or re.fullmatch(r"[0-9a-f]{16}", text) is not None

"""Which arm a unit gets: pure functions of an experiment and the unit, and the shared objects that say so on a request.

The rule is weighted rendezvous hashing. Every arm draws u = SHA-256(experiment 0x1F salt 0x1F unit 0x1F arm), the first 8 bytes as a
big-endian number over 2^64, and the arm with the least -ln(u) / weight wins. A unit's draws do not depend on weights, so raising one
weight can only make that arm win where it lost, and every replica computes the same without knowing the others. Whether a unit takes
part at all is one more draw, with a salt of its own: SHA-256(experiment 0x1F salt 0x1F unit), enrolled when u is below the share.

Source: C. Schindelhauer and G. Schomaker, Weighted distributed hash tables (2005), the logarithmic method.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

SEPARATOR: Final = b"\x1f"
#: Units are spread over so many buckets, and statistics take a bucket for the thing that varies.
BUCKETS: Final = 64
#: The bucket of a request that no unit was assigned for.
NO_BUCKET: Final = -1
#: A longer unit id is taken for none.
MAX_UNIT_BYTES: Final = 256
#: Hexadecimal digits of a revision.
REVISION_DIGITS: Final = 8

_sha256, _log = hashlib.sha256, math.log  # found in less time by their own names

#: Why a request does not count for the arm that answered it.
Reason: TypeAlias = Literal["", "no_unit", "not_enrolled", "pinned"]
REASONS: Final = ("no_unit", "not_enrolled", "pinned")


def draw(*parts: bytes) -> int:
    """Return the first 8 bytes of SHA-256 over the parts, joined by 0x1F, as a big-endian number below 2^64."""
    return int.from_bytes(hashlib.sha256(SEPARATOR.join(parts)).digest()[:8], "big")


def fraction(number: int) -> float:
    """Return a draw as a fraction in [0, 1]."""
    return number / 18446744073709551616.0


def bucket_of(unit: bytes) -> int:
    """Return the bucket of a unit, 0 to 63: the same in every experiment and revision."""
    return hashlib.sha256(b"bucket\x1f" + unit).digest()[0] % BUCKETS


def _score(text: bytes, weight: float) -> float:
    number = int.from_bytes(_sha256(text).digest()[:8], "big")
    return -_log(number / 18446744073709551616.0) / weight if number else math.inf


@dataclass(frozen=True)
class Arm:
    """One arm of an experiment as assignment sees it.

    Attributes:
        name: Its name.
        version: The version it stands for.
        weight: Its share of units relative to the other arms; 0 for nobody.
    """

    name: str
    version: int
    weight: float


@dataclass(frozen=True)
class Unit:
    """Where the unit id of a request comes from: a header, a raw field of the first instance, or (both empty) nowhere.

    Attributes:
        header: Lower-case header name.
        field: Field name.
    """

    header: str = ""
    field: str = ""


@dataclass(frozen=True)
class Plan:
    """What decides assignment in one experiment.

    Attributes:
        model: Model name.
        experiment: Experiment name.
        salt: Salt of the arms' draws.
        arms: In the order of the file, which decides nothing.
        unit: Where unit ids come from.
        enrolment_share: Share of units that take part.
        enrolment_salt: Salt of that draw.
        fallback: Name of the arm that answers for one that cannot.
        revision: Changes with everything above but the fallback; equal on all replicas.
    """

    model: str
    experiment: str
    salt: str
    arms: Sequence[Arm]
    unit: Unit
    enrolment_share: float
    enrolment_salt: str
    fallback: str
    revision: str = field(init=False)
    _prefix: bytes = field(init=False, repr=False, compare=False)
    _drawing: list[tuple[str, bytes, float]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        document = {
            "model": self.model,
            "experiment": self.experiment,
            "salt": self.salt,
            "unit": {"header": self.unit.header, "field": self.unit.field},
            "enrolment": {"share": float(self.enrolment_share), "salt": self.enrolment_salt},
            "arms": {arm.name: {"version": arm.version, "weight": float(arm.weight)} for arm in self.arms},
        }
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        object.__setattr__(self, "revision", hashlib.sha256(canonical).hexdigest()[:REVISION_DIGITS])
        prefix = SEPARATOR.join((self.experiment.encode(), self.salt.encode(), b""))
        # Sorted by name, so that the order of the file decides nothing, not even between equal draws; an arm without weight never draws.
        drawing = sorted((arm for arm in self.arms if arm.weight > 0), key=lambda arm: arm.name)
        object.__setattr__(self, "_prefix", prefix)
        object.__setattr__(self, "_drawing", [(arm.name, SEPARATOR + arm.name.encode(), arm.weight) for arm in drawing])

    def enrolment(self, unit: bytes) -> float:
        """Return the unit's enrolment draw, a fraction; it takes part when that is below the share."""
        return fraction(draw(self.experiment.encode(), self.enrolment_salt.encode(), unit))

    def enrolled(self, unit: bytes) -> bool:
        """Return whether a unit takes part."""
        share = self.enrolment_share
        return share >= 1.0 or (share > 0.0 and self.enrolment(unit) < share)

    def scores(self, unit: bytes) -> dict[str, float]:
        """Return -ln(u) / weight of every arm with a weight above 0; the least wins."""
        begin = self._prefix + unit
        return {name: _score(begin + suffix, weight) for name, suffix, weight in self._drawing}

    def arm_of(self, unit: bytes) -> str:
        """Return the arm a unit gets, whether it is enrolled or not."""
        begin, best, least = self._prefix + unit, "", math.inf
        for name, suffix, weight in self._drawing:
            score = _score(begin + suffix, weight)
            if score < least or not best:
                best, least = name, score
        return best

    def arm_at(self, u: float) -> str:
        """Return the arm at a fraction of the summed weights: how a request without a unit gets one, with `u` drawn at random."""
        drawing = self._drawing
        place = u * sum([weight for _, _, weight in drawing])
        for name, _, weight in drawing:
            place -= weight
            if place < 0:
                return str(name)
        return str(drawing[-1][0])


class Assignment:
    """What an experiment decided about a request: one object for all requests that it decided the same about, until the routes change.

    Attributes:
        model: Model name.
        experiment: Experiment name.
        revision: Of what decided; 8 hexadecimal digits.
        name: Experiment and revision as answers and logs say it: `NAME@REVISION`.
        arm: The arm assigned; "" when none was (`pinned`, `not_enrolled`).
        version: The version of that arm, or 0.
        served_arm: The arm whose version answers: `arm` unless that one is not ready or withdrawn; "default" or "" where no arm answers.
        served_version: The version that answers.
        bucket: Of the unit, 0 to 63, or -1 when the request has none that was assigned.
        reason: Why it does not count for the arm: `no_unit`, `not_enrolled`, `pinned`; "" when it counts.
        slow_s: Seconds over which its answer counts as slow, or infinity.
        prepared: What the front has made of it once and uses for every answer.
        counts: What the counters have made of it once; None until then.
        trial: Called for each request of it, while the arm that answers is tried after it was withdrawn; None otherwise.
    """

    __slots__ = (
        "arm",
        "bucket",
        "counts",
        "experiment",
        "model",
        "name",
        "prepared",
        "reason",
        "revision",
        "served_arm",
        "served_version",
        "slow_s",
        "trial",
        "version",
    )

    def __init__(
        self,
        model: str,
        experiment: str,
        revision: str,
        *,
        arm: str = "",
        version: int = 0,
        served_arm: str = "",
        served_version: int = 0,
        bucket: int = NO_BUCKET,
        reason: Reason = "",
        slow_s: float = math.inf,
    ) -> None:
        self.model = model
        self.experiment = experiment
        self.revision = revision
        self.name = f"{experiment}@{revision}"
        self.arm = arm
        self.version = version
        self.served_arm = served_arm
        self.served_version = served_version
        self.bucket = bucket
        self.reason = reason
        self.slow_s = slow_s
        self.prepared: Any = None
        self.counts: Any = None
        self.trial: Callable[[], None] | None = None

    def facts(self) -> dict[str, str]:
        """Return what answers say of it, by name: headers put `samegraph-` in front, bodies write `_` for `-`."""
        facts = {"experiment": self.name}
        if self.arm:
            facts["arm"] = self.arm
        if self.fell_back:
            facts["served-arm"] = self.served_arm
        if self.reason:
            facts["unassigned"] = self.reason
        return facts

    @property
    def fell_back(self) -> bool:
        """Whether another arm than the assigned one answers."""
        return bool(self.arm) and self.arm != self.served_arm


def unit_bytes(value: object) -> bytes:
    """Return a raw field's value as a unit id, or b"" when it is none: missing, empty, too long or neither text nor a whole number."""
    if isinstance(value, str):
        unit = value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bool):
        return b""
    elif isinstance(value, int):
        unit = b"%d" % value
    elif isinstance(value, float) and value.is_integer():
        unit = b"%d" % int(value)
    else:
        return b""
    return unit if len(unit) <= MAX_UNIT_BYTES else b""


def header_unit(headers: Mapping[bytes, bytes], name: bytes) -> bytes:
    """Return the unit id in a request's headers, or b"" when there is none or it is too long."""
    unit = headers.get(name, b"").strip()
    return unit if len(unit) <= MAX_UNIT_BYTES else b""

"""Golden samples from JSON Lines (`samegraph golden export`), and whether an answer is the one training gave."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One raw input with the answer it must get.

    Attributes:
        name: Which sample it is.
        model: Model it is for.
        version: Version whose answer this is.
        raw: What to give the client: a list of instances, or the bytes of an image.
        predictions: One value an instance.
        tolerance: How far floats may be off, as the package promises.
    """

    name: str
    model: str
    version: int
    raw: Any
    predictions: Sequence[Any]
    tolerance: Mapping[str, float]

    def wrong(self, got: Sequence[object]) -> str:
        """Return where predictions differ from the golden ones by more than is promised; empty when they do not."""
        if len(got) != len(self.predictions):
            return f"{self.name}: {len(got)} predictions instead of {len(self.predictions)}"
        numbers = list(_numbers(self.predictions))
        bound = self.tolerance.get("relative_to_max", 0.0) * max(map(abs, numbers), default=0.0)
        return _differs(self.predictions, got, self.tolerance, bound, self.name)


def read_samples(path: Path, *, most: int = 10_000) -> list[Sample]:
    """Read at most `most` samples that this client can send: JSON rows and images.

    Raises:
        ValueError: The file holds no such sample, or is not JSON Lines of that form.
    """
    samples = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                document = json.loads(line)
                raw = _raw(document["headers"].get("content-type", "application/json"), base64.b64decode(document["body"]))
                if raw is not None:
                    facts = (document["name"], document["model"], document["version"], raw, document["predictions"], document["tolerance"])
                    samples.append(Sample(*facts))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: not a golden sample as `samegraph golden export` writes it ({error})") from error
            if len(samples) == most:
                break
    if not samples:
        raise ValueError(f"{path} holds no sample with JSON rows or an image")
    return samples


def _raw(content_type: str, body: bytes) -> Any:
    if content_type.startswith("image/"):
        return body
    if not content_type.startswith("application/json"):
        return None
    document = json.loads(body)
    instances = document.get("instances") if isinstance(document, dict) else None
    return [_plain(instance) for instance in instances] if isinstance(instances, list) else None


def _plain(value: Any) -> Any:
    """Give back bytes where JSON carries them as `{"b64": …}`: the client encodes them again."""
    if isinstance(value, dict):
        return base64.b64decode(value["b64"]) if set(value) == {"b64"} else {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner)


def _differs(expected: Any, got: Any, tolerance: Mapping[str, float], bound: float, place: str) -> str:
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping) or set(got) != set(expected):
            return f"{place}: another shape of answer"
        return next((d for key in expected if (d := _differs(expected[key], got[key], tolerance, bound, f"{place}.{key}"))), "")
    if isinstance(expected, list | tuple):
        if not isinstance(got, list | tuple) or len(got) != len(expected):
            return f"{place}: another number of values"
        pairs = enumerate(zip(expected, got, strict=True))
        return next((d for i, (e, g) in pairs if (d := _differs(e, g, tolerance, bound, f"{place}[{i}]"))), "")
    if isinstance(expected, float) and isinstance(got, int | float) and not isinstance(got, bool):
        allowed = max(bound, tolerance.get("atol", 0.0) + tolerance.get("rtol", 0.0) * abs(expected))
        if expected == got or abs(expected - got) <= allowed or _ulp(expected, float(got)) <= tolerance.get("ulp", 0):
            return ""
        return f"{place}: {got!r} instead of {expected!r}"
    return "" if expected == got and type(expected) is type(got) else f"{place}: {got!r} instead of {expected!r}"


def _ulp(a: float, b: float) -> int:
    """Distance in single precision, which is what float32 outputs were before they became JSON; doubles far apart in it are far apart."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return 1 << 40
    first, second = (struct.unpack("<i", struct.pack("<f", value))[0] for value in (a, b))
    ordered: list[int] = [value if value >= 0 else -(value & 0x7FFFFFFF) for value in (first, second)]
    return abs(ordered[0] - ordered[1])

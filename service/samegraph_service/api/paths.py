"""Predict paths, read once for every protocol.

POST /v1/models/{m}[/versions/{v}|/labels/{l}]:predict
POST /v2/models/{m}[/versions/{v}]/infer
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

#: Longer paths are no predict paths, and are not worth remembering.
MAX_LENGTH: Final = 256

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}"
_LABEL = r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}"
_V1 = re.compile(
    rf"/v1/models/(?P<model>{_NAME})(?:/versions/(?P<version>[0-9]{{1,10}})|/labels/(?P<label>{_LABEL}))?:predict",
    re.ASCII,
)
_V2 = re.compile(rf"/v2/models/(?P<model>{_NAME})(?:/versions/(?P<version>[0-9]{{1,10}}))?/infer", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """What a predict path names."""

    protocol: Literal["v1", "v2"]
    model: str
    version: int | None
    label: str | None = None


def predict_target(path: str) -> Target | None:
    """Return what a predict path names, or None for every other path."""
    return _target(path) if len(path) <= MAX_LENGTH else None


@lru_cache(maxsize=1024)
def _target(path: str) -> Target | None:
    if path.startswith("/v1/models/"):
        match = _V1.fullmatch(path)
        if match is not None:
            return Target("v1", match["model"], int(match["version"]) if match["version"] else None, match["label"])
    elif path.startswith("/v2/models/"):
        match = _V2.fullmatch(path)
        if match is not None:
            return Target("v2", match["model"], int(match["version"]) if match["version"] else None)
    return None

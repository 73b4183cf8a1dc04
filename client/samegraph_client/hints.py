"""Read what the server asks of its callers: how long to wait, how much to send at once. Pure functions of the answer's headers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the wait an answer asks for, in seconds >= 0, or None when it asks for none that can be read.

    `retry-after-ms` wins over `Retry-After`, being exact. A date is taken relative to the answer's own `Date`, so that the two clocks need
    not agree; a date without a `Date` beside it cannot be read. A negative or unreadable value is no hint, never "at once".

    Args:
        headers: Names in lower case.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    return seconds if seconds is not None else _until(value, headers.get("date"))


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if number >= 0 and math.isfinite(number) else None


def _until(then: str | None, now: str | None) -> float | None:
    later, earlier = _moment(then), _moment(now)
    return max(0.0, (later - earlier).total_seconds()) if later and earlier else None


def _moment(text: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # "-0000" means UTC of unknown origin


@dataclass(frozen=True)
class Advertised:
    """How much a server lets this caller have in flight, as it last said.

    Attributes:
        quota: Most requests at the same time, >= 1; None when it names no limit.
        remaining: Free places, >= 0.
    """

    quota: int | None
    remaining: int


def advertised(headers: Mapping[str, str]) -> Advertised | None:
    """Return the limit on requests in flight that an answer states, or None when it states none that can be read.

    Reads the `RateLimit` and `RateLimit-Policy` fields (draft-ietf-httpapi-ratelimit-headers). Only a policy counted in concurrent requests
    (`qu="concurrent-requests"`), or one called `inflight`, is a limit on requests in flight; one counted per window of time is not.

    Args:
        headers: Names in lower case.
    """
    policies = _items(headers.get("ratelimit-policy"))
    for name, parameters in _items(headers.get("ratelimit")).items():
        policy = policies.get(name, {})
        remaining = _number(parameters.get("r"))
        if remaining is None or not (name == "inflight" or policy.get("qu") == "concurrent-requests"):
            continue
        quota = _number(policy.get("q"))
        return Advertised(max(1, int(quota)) if quota is not None else None, int(remaining))
    return None


#: One member of a list: a quoted (or bare) name and its parameters. Bounded pieces, so that no header makes it slow.
_MEMBER = re.compile(r'\s*"?([\w.-]{1,100})"?((?:\s*;\s*[a-z*][\w.*-]{0,40}\s*=\s*(?:"[^"]{0,200}"|[^\s;,"]{1,40})){0,20})\s*(?:,|$)')
_PARAMETER = re.compile(r';\s*([a-z*][\w.*-]*)\s*=\s*(?:"([^"]*)"|([^\s;,"]+))')


def _items(value: str | None) -> dict[str, dict[str, str]]:
    """Read a structured-field list of named items as name → parameters; what does not parse is left out."""
    return {
        match.group(1): {name: quoted or bare for name, quoted, bare in _PARAMETER.findall(match.group(2))}
        for match in _MEMBER.finditer((value or "")[:2000])
    }

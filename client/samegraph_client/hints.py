"""Read how long the server asks to wait. Pure functions of the answer's headers: no clock is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

"""How long windows are, as people write it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNITS = {"m": 1, "h": 60, "d": 1440}
_DURATION = re.compile(r"([1-9][0-9]{0,3})([mhd])")
#: A longer window would keep more minutes than a small server has memory for.
LONGEST_MINUTES = 7 * 1440


@dataclass(frozen=True, slots=True)
class WindowSize:
    """How long a window is.

    Attributes:
        label: As it was written, for metrics: `1h`.
        minutes: The same in minutes.
    """

    label: str
    minutes: int


def parse_windows(text: str) -> tuple[WindowSize, ...]:
    """Return the windows in `text`: durations parted by commas, such as `1h,24h`.

    Raises:
        ValueError: There are none or more than four, one is given twice, or is no whole number of minutes, hours or days up to 7 days.
    """
    sizes = []
    for part in text.split(","):
        match = _DURATION.fullmatch(part.strip())
        minutes = int(match[1]) * _UNITS[match[2]] if match else 0
        if not 0 < minutes <= LONGEST_MINUTES:
            raise ValueError(f"a window is a number with m, h or d, up to 7d, such as 1h; got {part.strip()!r}")
        sizes.append(WindowSize(part.strip(), minutes))
    if len(sizes) > 4 or len({size.minutes for size in sizes}) < len(sizes):
        raise ValueError(f"give one to four different windows; got {text!r}")
    return tuple(sizes)

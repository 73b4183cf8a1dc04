"""Instances that make executions fail: known by their content, refused after two losses, forgotten after a while.

A loss is an execution that failed with the instance alone in it while the model works for others: for its neighbours in the batch, or for
an instance known to be good that runs right after. A model that is broken or a device that is out of memory fails them all, and nobody
is blamed. Nothing is hashed until something was lost.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

#: Losses after which an instance is refused.
LOSSES = 2
#: Instances remembered per version; the one lost longest ago is forgotten first.
CAPACITY = 1024
#: Seconds after its last loss for which an instance is remembered.
REMEMBERED_S = 600.0


@dataclass(slots=True)
class _Suspect:
    losses: int
    until: float


class Quarantine:
    """The instances of one version that made executions fail. For the event loop's thread.

    Attributes:
        refusing: How many instances are refused now, at most; those whose time is over are found out when they are looked for.
    """

    def __init__(self, capacity: int = CAPACITY, remembered_s: float = REMEMBERED_S) -> None:
        self._capacity = capacity
        self._remembered_s = remembered_s
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()  # the one lost longest ago first
        self.refusing = 0

    def lost(self, item: Iterable[object], now: float) -> None:
        """Count an execution that this instance alone made fail."""
        self.forget(now)
        name = fingerprint(item)
        suspect = self._suspects.pop(name, None) or _Suspect(0, 0.0)
        suspect.losses += 1
        suspect.until = now + self._remembered_s
        if suspect.losses == LOSSES:
            self.refusing += 1
        self._suspects[name] = suspect
        while len(self._suspects) > self._capacity:
            self._drop(next(iter(self._suspects)))

    def refuses(self, item: Iterable[object]) -> bool:
        """Whether this instance has had its losses; call `forget` first."""
        suspect = self._suspects.get(fingerprint(item))
        return suspect is not None and suspect.losses >= LOSSES

    def forget(self, now: float) -> None:
        """Drop those whose time is over."""
        while self._suspects:
            name, suspect = next(iter(self._suspects.items()))
            if suspect.until > now:
                return
            self._drop(name)

    def _drop(self, name: bytes) -> None:
        if self._suspects.pop(name).losses >= LOSSES:
            self.refusing -= 1


def fingerprint(item: Iterable[object]) -> bytes:
    """Return 16 bytes that tell an instance by its content: types, shapes and every value."""
    digest = blake2b(digest_size=16)
    for value in item:
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            digest.update(f"{value.dtype}{value.shape};".encode())
            digest.update(np.ascontiguousarray(value).view(np.uint8).data if value.size and value.ndim else value.tobytes())
        else:
            text = repr(value.tolist() if isinstance(value, np.ndarray) else value).encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(text))
            digest.update(text)
    return digest.digest()

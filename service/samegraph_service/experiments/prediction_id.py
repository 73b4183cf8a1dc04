"""Prediction ids that carry what feedback needs, signed, so that any replica takes feedback without a store.

    base64url( format 1 | key id 2 | model tag 4 | version 4 | bucket 1 | revision 4 | experiment | arm | zeros
             | minute 4 | nonce 8 | instances 2 | labels 1 + 3 each | MAC 10 )

Experiment and arm are a length byte and UTF-8; zeros make the whole a multiple of three bytes, so that no character of the text has
bits that mean nothing. The MAC is BLAKE2s with a key (RFC 7693), cut to 80 bits: on 64 bytes it takes 0.35 µs where HMAC-SHA-256 takes
1.5 µs. An instance is `id.index`.

The answered labels of a small request are in it as 24 bits of their SHA-256, so that a true label can be compared with what was
answered: two different labels of a model are taken for one with a chance of 6e-8.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import re
import stat
import struct
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from samegraph_service.errors import FeedbackKeyError

#: Instances of a request whose answered labels its id carries; of larger requests it carries none.
LABELLED_INSTANCES = 16
#: Most keys of a file.
MAX_KEYS = 16
#: Most bytes of a key file that are read.
MAX_FILE_BYTES = 65_536
#: Bytes of a key: as many as BLAKE2s takes.
KEY_BYTES = 32
#: The bucket of a prediction that no experiment assigned.
NO_BUCKET = 255
#: Requests with more instances than this are signed as having this many.
MOST_INSTANCES = 65_535
#: How far ahead of ours another replica's clock may be, in minutes.
MAX_AHEAD_MINUTES = 5

_FORMAT = 1
_MAC_BYTES = 10
_LABEL_BYTES = 3
_ALTERNATE = bytes.maketrans(b"+/", b"-_")
_TEXT = re.compile(r"([A-Za-z0-9_-]{40,1024})(?:\.(0|[1-9][0-9]{0,4}))?", re.ASCII)
_HEAD = struct.Struct(">B2s4sIB4s")
_TAIL = struct.Struct(">IQHB")
_NO_REVISION = bytes(4)

Refusal = Literal["malformed", "forged", "wrong_model", "late", "future", "unknown_instance"]


class RefusedId(Exception):
    """Raised when a prediction id is not accepted.

    Attributes:
        reason: Why, as a word of a closed set.
    """

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason: Refusal = reason


# --- keys ---------------------------------------------------------------------------------------------------------------


class Key:
    """One secret.

    Attributes:
        id: First two bytes of a hash of it: which key of a file signed, told without a name.
    """

    __slots__ = ("_state", "id")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes; got {len(secret)}")
        self.id = hashlib.sha256(b"samegraph feedback key" + secret).digest()[:2]
        self._state = hashlib.blake2s(key=secret, digest_size=_MAC_BYTES, person=b"smg-pid")

    def __repr__(self) -> str:
        """Tell the id, never the secret."""
        return f"Key(id={self.id.hex()})"

    def begun(self, start: bytes) -> hashlib.blake2s:
        """Return the MAC of a message that begins like this."""
        state = self._state.copy()
        state.update(start)
        return state

    def mac(self, message: bytes) -> bytes:
        """Return 80 bits that only who has the key can make."""
        return self.begun(message).digest()


def new_key() -> str:
    """Return a new key as a line for a key file."""
    return urlsafe_b64encode(os.urandom(KEY_BYTES)).decode().rstrip("=")


def read_keys(path: Path) -> tuple[Key, ...]:
    """Return the keys of a file: one a line, the first signs, all are accepted. Empty lines and lines that begin with `#` are left out.

    Raises:
        FeedbackKeyError: The file cannot be read, may be read by everybody, or holds no keys or something that is none.
    """
    try:
        if path.exists() and not path.is_file():
            raise FeedbackKeyError(f"the key file {path} is not a file")
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FeedbackKeyError(f"the key file {path} cannot be read: {error.strerror}") from error
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise FeedbackKeyError(
            f"the key file {path} has mode {stat.S_IMODE(mode):04o}: nobody but its owner and group may read it, nobody but its owner "
            "write it; run `chmod 600` on it (a Kubernetes secret: defaultMode 0440 with an fsGroup)"
        )
    if len(data) > MAX_FILE_BYTES:
        raise FeedbackKeyError(f"the key file {path} is larger than {MAX_FILE_BYTES} bytes")
    lines = data.decode("utf-8", "replace").splitlines()
    keys = tuple(_key(path, i, line.strip()) for i, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#")
    if not keys:
        raise FeedbackKeyError(f"the key file {path} holds no key; `samegraph feedback-key new` makes one")
    if len(keys) > MAX_KEYS:
        raise FeedbackKeyError(f"the key file {path} holds {len(keys)} keys; at most {MAX_KEYS} are accepted: remove the oldest")
    return keys


def _key(path: Path, number: int, line: str) -> Key:
    if re.fullmatch(r"[A-Za-z0-9_-]{43}", line, re.ASCII):
        return Key(urlsafe_b64decode(line + "="))
    raise FeedbackKeyError(
        f"line {number} of the key file {path} is no key: {KEY_BYTES} bytes in base64url without padding are expected, which "
        "`samegraph feedback-key new` makes"
    )


# --- ids ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a prediction id says.

    Attributes:
        version: The version that answered.
        experiment: The experiment whose assignment was obeyed; empty outside of any.
        revision: Its revision, 8 hexadecimal digits; empty outside.
        arm: The arm the unit was assigned to; empty outside.
        bucket: The unit's bucket, 0 to 63; `NO_BUCKET` outside.
        minute: When it was answered, in minutes since the epoch.
        nonce: Tells apart what is otherwise equal.
        instances: Instances of the request.
        labels: Hash of the answered label of each instance; empty when the id carries none.
        instance: Which instance is meant; None for the request as a whole, when it had more than one.
    """

    version: int
    experiment: str
    revision: str
    arm: str
    bucket: int
    minute: int
    nonce: int
    instances: int
    labels: tuple[bytes, ...]
    instance: int | None

    def answered(self, label: object) -> bool | None:
        """Whether this label was the answer for the instance; None when the id cannot tell."""
        if self.instance is None or self.instance >= len(self.labels):
            return None
        return hmac.compare_digest(self.labels[self.instance], label_hash(label))


@lru_cache(maxsize=4096)
def _label_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_LABEL_BYTES]


def label_hash(label: object) -> bytes:
    """Return the 24 bits by which labels are compared: those of a text; the class 3 is 3, 3.0 and "3", true is true and "true"."""
    if type(label) is str:
        return _label_hash(label)
    if isinstance(label, bool):
        return _label_hash("true" if label else "false")
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return _label_hash(str(label))


@lru_cache(maxsize=256)
def _model_tag(model: str) -> bytes:
    return hashlib.sha256(b"samegraph model " + model.encode()).digest()[:4]


class PredictionIds:
    """Makes and reads prediction ids. Making one needs no lock: a host thread may.

    Args:
        keys: The first signs, all are accepted.
        max_age_s: Oldest prediction that is accepted, in seconds.
        clock: Seconds since the epoch.
        random: Returns so many random bytes.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        *,
        max_age_s: float,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._clock = clock
        self._max_age_minutes = max_age_s / 60
        # Ids of one process differ by a count, those of two by where they begin; that nobody can guess one is the MAC's work.
        self._next_nonce = itertools.count(int.from_bytes(random(8)) >> 1).__next__
        self._keys: tuple[Key, ...] = ()
        self._by_id: dict[bytes, tuple[Key, ...]] = {}
        self.generation = 0
        self.set_keys(keys)

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys in force."""
        return self._keys

    def set_keys(self, keys: Sequence[Key]) -> None:
        """Use other keys; every prefix made before still signs with the key it was made for."""
        if not keys:
            raise ValueError("at least one key is needed")
        by_id: dict[bytes, tuple[Key, ...]] = {}
        for key in keys:
            by_id[key.id] = (*by_id.get(key.id, ()), key)
        self._keys, self._by_id = tuple(keys), by_id
        self.generation += 1

    def prefix(
        self, model: str, version: int, *, experiment: str = "", revision: str = "", arm: str = "", bucket: int = NO_BUCKET
    ) -> IdPrefix:
        """Return what all ids of predictions with these facts begin with; to be kept, as it is most of the work."""
        key = self._keys[0]
        names = b"".join(bytes((len(name),)) + name for name in (experiment.encode(), arm.encode()))
        code = bytes.fromhex(revision) if revision else _NO_REVISION
        head = _HEAD.pack(_FORMAT, key.id, _model_tag(model), version, bucket, code) + names
        head += bytes(_padding(len(head)))
        return IdPrefix(head, key.begun(head))

    def sign(self, prefix: IdPrefix, instances: int, labels: Sequence[bytes] = ()) -> bytes:
        """Return a new id.

        Args:
            prefix: From `prefix`.
            instances: Instances of the request, >= 1.
            labels: Hash of the answered label of each, or nothing.
        """
        if instances > MOST_INSTANCES:
            instances = MOST_INSTANCES
        tail = _TAIL.pack(int(self._clock()) // 60, self._next_nonce(), instances, len(labels))
        if labels:
            tail += b"".join(labels)
        state = prefix.state.copy()
        state.update(tail)
        return b2a_base64(prefix.head + tail + state.digest(), newline=False).translate(_ALTERNATE)

    def read(self, text: str, model: str) -> Prediction:
        """Return what an id says.

        Args:
            text: The id, or `id.index`.
            model: The model its feedback is sent to.

        Raises:
            RefusedId: It is not one of ours, of another model, too old or of the future, or has no such instance.
        """
        found = _TEXT.fullmatch(text)
        if found is None or len(found[1]) % 4:
            raise RefusedId("malformed", "this is not a signed prediction id; send the one an answer of this model carried")
        data = urlsafe_b64decode(found[1])
        message, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        # Nothing of what is inside is looked at before the MAC has held.
        if not any(hmac.compare_digest(key.mac(message), mac) for key in self._by_id.get(data[1:3], ())):
            raise RefusedId("forged", "the signature of this prediction id does not hold, or its key is no longer accepted")
        prediction = _parse(message, None if found[2] is None else int(found[2]))
        if message[3:7] != _model_tag(model):
            raise RefusedId("wrong_model", f"this prediction was made by another model than {model!r}")
        age = self._clock() / 60 - prediction.minute
        if age > self._max_age_minutes + 1:
            raise RefusedId(
                "late", f"this prediction is {age / 1440:.1f} days old; feedback is taken for {self._max_age_minutes / 1440:g} days"
            )
        if age < -MAX_AHEAD_MINUTES:
            raise RefusedId("future", "this prediction is from the future: the clocks of the replicas differ by more than five minutes")
        instance, instances = prediction.instance, prediction.instances
        if instance is not None and instance >= instances:
            raise RefusedId(
                "unknown_instance", f"the request had {instances} instance{'s' * (instances > 1)}; index {instance} is none of them"
            )
        return prediction


@dataclass(frozen=True, slots=True, eq=False)
class IdPrefix:
    """What the ids of like predictions begin with, and the MAC of their key begun with it."""

    head: bytes
    state: hashlib.blake2s


def _padding(length: int) -> int:
    """Return how many zeros make an id with a head of `length` bytes a multiple of three; labels have three bytes each."""
    return -(length + _TAIL.size + _MAC_BYTES) % 3


def _parse(message: bytes, instance: int | None) -> Prediction:
    """Take apart what was signed; only ours gets here."""
    _, _, _, version, bucket, code = _HEAD.unpack_from(message)
    at, names = _HEAD.size, []
    for _ in range(2):
        names.append(message[at + 1 : at + 1 + message[at]].decode())
        at += 1 + message[at]
    at += _padding(at)
    minute, nonce, instances, n_labels = _TAIL.unpack_from(message, at)
    at += _TAIL.size
    labels = tuple(message[at + i * _LABEL_BYTES : at + (i + 1) * _LABEL_BYTES] for i in range(n_labels))
    experiment, arm = names
    if instance is None and instances == 1:
        instance = 0
    return Prediction(version, experiment, code.hex() if experiment else "", arm, bucket, minute, nonce, instances, labels, instance)

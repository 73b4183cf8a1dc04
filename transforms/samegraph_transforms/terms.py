"""The host node `samegraph::CountTerms`: a text becomes the terms a scikit-learn text vectorizer counts in it.

    node     CountTerms(text) → columns, int64 [terms] ascending; counts, float64 [terms]: one row of the count matrix, as scipy keeps it
    engine   Python's own `re`, `str.lower` and `unicodedata`, which training called: there is nothing to reproduce
    file     JSON: the vocabulary in the order of its columns (none when terms are hashed), and the stop words

Only what is in the text is carried, so a vocabulary of 50,000 terms costs a short text no more than one of 50. Weights, norms and the
product with a model's coefficients are standard operators of the batch stages.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from .errors import InputError, ManifestInvalid
from .manifest import Vectorizer
from .tokenization import TokenFacts

OP_TYPE: Final = "CountTerms"
#: Most hashes of terms that are remembered in a process.
_REMEMBERED: Final = 65_536
_SPACES: Final = re.compile(r"\s\s+")


class TermCounter:
    """One vectorizer's way of counting, ready to run. May be called from any number of threads.

    Args:
        declared: What the manifest says about it.
        file: Content of its file.

    Raises:
        ManifestInvalid: The file does not fit what is declared, or the token pattern is no regular expression.
    """

    def __init__(self, declared: Vectorizer, file: bytes) -> None:
        self.declared = declared
        vocabulary, stop_words = _read(declared, file)
        self._places = None if vocabulary is None else {term: i for i, term in enumerate(vocabulary)}
        self._stop_words = frozenset(stop_words)
        self._split = _splitter(declared) if declared.analyzer == "word" else None

    @property
    def library(self) -> str:
        """What runs it, and its version."""
        return f"re of Python {sys.version.split()[0]}, Unicode {unicodedata.unidata_version}"

    def __call__(self, text: str, field: str | None = None) -> list[np.ndarray]:
        """Return columns, int64 [terms] ascending, and counts, float64 [terms], of one text.

        Raises:
            InputError: A term is to be hashed and is not Unicode (half of a surrogate pair).
        """
        terms = self.terms(text)
        found = self._hashed(terms, field) if self._places is None else self._counted(terms, self._places)
        columns = sorted(found)
        counts = [1.0] * len(columns) if self.declared.binary else [float(found[column]) for column in columns]
        return [np.array(columns, dtype=np.int64), np.array(counts, dtype=np.float64)]

    def facts(self, text: str) -> TokenFacts:
        """Return how many terms a text has, and how many of them the vocabulary lacks; for statistics."""
        terms = self.terms(text)
        unknown = 0 if self._places is None else sum(term not in self._places for term in terms)
        return TokenFacts(len(terms), unknown, truncated=False)

    def terms(self, text: str) -> Sequence[str]:
        """Return every term of a text, known or not, as often as it occurs."""
        declared = self.declared
        if declared.lowercase:
            text = text.lower()
        if declared.strip_accents is not None:
            text = _STRIP[declared.strip_accents](text)
        low, high = declared.ngram_range
        if declared.analyzer == "char":
            return list(_runs(_SPACES.sub(" ", text), low, high))
        if declared.analyzer == "char_wb":
            return [run for word in _SPACES.sub(" ", text).split() for run in _runs_of_word(f" {word} ", low, high)]
        assert self._split is not None
        words = self._split(text)
        if self._stop_words:
            words = [word for word in words if word not in self._stop_words]
        if high == 1:  # as scikit-learn, whatever the lower end is
            return words
        return [" ".join(words[i : i + n]) for n in range(low, min(high, len(words)) + 1) for i in range(len(words) - n + 1)]

    @staticmethod
    def _counted(terms: Iterable[str], places: dict[str, int]) -> dict[int, int]:
        return {places[term]: count for term, count in Counter(terms).items() if term in places}

    def _hashed(self, terms: Iterable[str], field: str | None) -> dict[int, int]:
        size, signed = self.declared.n_features, self.declared.alternate_sign
        found: dict[int, int] = {}
        try:
            for term, count in Counter(terms).items():
                number = murmurhash3(term)
                column = abs(number) % size
                found[column] = found.get(column, 0) + (-count if signed and number < 0 else count)
        except UnicodeEncodeError as error:
            named = "" if field is None else f"field {field!r}: "
            raise InputError(f"{named}the text is not valid Unicode; send whole characters", code="wrong_type", field=field) from error
        return found


def term_counters(declared: Sequence[Vectorizer], read_file: Callable[[str], bytes]) -> dict[str, TermCounter]:
    """Return node name → ready counter for everything a manifest declares.

    Args:
        declared: The manifest's vectorizers.
        read_file: Returns the content of a file of the package.

    Raises:
        ManifestInvalid: A file does not fit.
    """
    return {one.node: TermCounter(one, read_file(one.file)) for one in declared}


def terms_file(vocabulary: Sequence[str] | None, stop_words: Iterable[str]) -> bytes:
    """Return the file of a vectorizer.

    Args:
        vocabulary: Its terms in the order of their columns; None when terms are hashed.
        stop_words: Words that are left out before n-grams are made.
    """
    # Escaped: a vocabulary may hold half of a surrogate pair, which UTF-8 cannot.
    content = {"vocabulary": None if vocabulary is None else list(vocabulary), "stop_words": sorted(stop_words)}
    return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode("ascii")


@lru_cache(maxsize=_REMEMBERED)
def murmurhash3(term: str) -> int:
    """Return MurmurHash3 x86 32 of a term's UTF-8 with seed 0, as a signed number (Austin Appleby's public-domain MurmurHash3.cpp).

    Raises:
        UnicodeEncodeError: The term holds half of a surrogate pair.
    """
    data = term.encode("utf-8")
    mask, value = 0xFFFFFFFF, 0
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        value ^= _mixed(int.from_bytes(data[start : start + 4], "little"))
        value = (value << 13 | value >> 19) & mask
        value = (value * 5 + 0xE6546B64) & mask
    if whole < len(data):
        value ^= _mixed(int.from_bytes(data[whole:], "little"))
    value ^= len(data)
    value = ((value ^ value >> 16) * 0x85EBCA6B) & mask
    value = ((value ^ value >> 13) * 0xC2B2AE35) & mask
    value ^= value >> 16
    return value - (1 << 32) if value >> 31 else value


def _mixed(block: int) -> int:
    block = (block * 0xCC9E2D51) & 0xFFFFFFFF
    block = (block << 15 | block >> 17) & 0xFFFFFFFF
    return (block * 0x1B873593) & 0xFFFFFFFF


# --- texts ------------------------------------------------------------------------------------------------------------


def _strip_unicode(text: str) -> str:
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def _strip_ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


_STRIP: Final[dict[str, Callable[[str], str]]] = {"unicode": _strip_unicode, "ascii": _strip_ascii}


def _runs(text: str, low: int, high: int) -> Iterable[str]:
    for n in range(low, min(high, len(text)) + 1):
        for i in range(len(text) - n + 1):
            yield text[i : i + n]


def _runs_of_word(word: str, low: int, high: int) -> Iterable[str]:
    """Yield a word's runs of characters; one that is longer than the word gives the word, once."""
    for n in range(low, high + 1):
        if n >= len(word):
            yield word
            return
        for i in range(len(word) - n + 1):
            yield word[i : i + n]


def _splitter(declared: Vectorizer) -> Callable[[str], list[str]]:
    try:
        pattern = re.compile(declared.token_pattern or "")
    except (re.error, RecursionError, OverflowError) as error:
        raise ManifestInvalid(f"vectorizer {declared.node!r}: token_pattern is no regular expression: {error}") from error
    if pattern.groups > 1:
        raise ManifestInvalid(f"vectorizer {declared.node!r}: token_pattern has {pattern.groups} groups; one at most says what a token is")
    return pattern.findall


def _read(declared: Vectorizer, file: bytes) -> tuple[list[str] | None, list[str]]:
    try:
        content: Any = json.loads(file)
        vocabulary, stop_words = content["vocabulary"], content["stop_words"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ManifestInvalid(f"vectorizer {declared.node!r}: {declared.file} is no file of terms: {error}") from error
    lists = [stop_words] if vocabulary is None else [stop_words, vocabulary]
    if not all(isinstance(one, list) and all(isinstance(term, str) for term in one) for one in lists):
        raise ManifestInvalid(f"vectorizer {declared.node!r}: {declared.file} must hold lists of strings")
    if declared.hashed != (vocabulary is None) or (vocabulary is not None and len(set(vocabulary)) != declared.n_features):
        raise ManifestInvalid(f"vectorizer {declared.node!r}: {declared.file} does not hold {declared.n_features} different terms")
    return vocabulary, stop_words

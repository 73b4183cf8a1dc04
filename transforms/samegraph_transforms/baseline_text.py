"""What is measured of a text: lengths, shares of kinds of characters, the Unicode block most of it is written in. Never the text itself."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .errors import InputError
from .tokenization import TokenFacts

#: Longer texts are looked at up to here (`characters` still counts all of them), so that the cost of a text is bounded.
TEXT_LOOK: Final = 20_000

#: Names of the text statistics, in the order they are shown.
TEXT: Final = (
    "characters", "words", "word_length", "block", "other_blocks_share", "non_ascii_share", "vowel_share", "capital_share", "digit_share",
    "punctuation_share", "control_share", "nfc_changed",
)  # fmt: skip

#: Names of the token statistics, which texts have that a tokenizer reads; shown after the others.
TOKENS: Final = ("tokens", "unknown_share", "truncated")

#: First code point → block (The Unicode Standard, Blocks.txt; blocks that hardly occur are `other`).
_BLOCKS: Final = {
    0x0000: "Basic Latin", 0x0080: "Latin-1 Supplement", 0x0100: "Latin Extended-A", 0x0180: "Latin Extended-B", 0x0250: "IPA Extensions",
    0x02B0: "Spacing Modifier Letters", 0x0300: "Combining Diacritical Marks", 0x0370: "Greek and Coptic", 0x0400: "Cyrillic",
    0x0500: "Cyrillic Supplement", 0x0530: "Armenian", 0x0590: "Hebrew", 0x0600: "Arabic", 0x0700: "Syriac", 0x0750: "Arabic Supplement",
    0x0780: "other", 0x0900: "Devanagari", 0x0980: "Bengali", 0x0A00: "Gurmukhi", 0x0A80: "Gujarati", 0x0B00: "Oriya", 0x0B80: "Tamil",
    0x0C00: "Telugu", 0x0C80: "Kannada", 0x0D00: "Malayalam", 0x0D80: "Sinhala", 0x0E00: "Thai", 0x0E80: "Lao", 0x0F00: "Tibetan",
    0x1000: "Myanmar", 0x10A0: "Georgian", 0x1100: "Hangul Jamo", 0x1200: "Ethiopic", 0x1380: "other", 0x1780: "Khmer",
    0x1800: "Mongolian", 0x18B0: "other", 0x1E00: "Latin Extended Additional", 0x1F00: "Greek Extended", 0x2000: "General Punctuation",
    0x2070: "Superscripts and Subscripts", 0x20A0: "Currency Symbols", 0x20D0: "other", 0x2100: "Letterlike Symbols",
    0x2150: "Number Forms", 0x2190: "Arrows", 0x2200: "Mathematical Operators", 0x2300: "other", 0x2500: "Box Drawing",
    0x2580: "other", 0x25A0: "Geometric Shapes", 0x2600: "Miscellaneous Symbols", 0x2700: "Dingbats", 0x27C0: "other",
    0x2E80: "CJK Radicals Supplement", 0x2F00: "other", 0x3000: "CJK Symbols and Punctuation", 0x3040: "Hiragana", 0x30A0: "Katakana",
    0x3100: "Bopomofo", 0x3130: "other", 0x3400: "CJK Unified Ideographs Extension A", 0x4DC0: "other", 0x4E00: "CJK Unified Ideographs",
    0xA000: "other", 0xAC00: "Hangul Syllables", 0xD7B0: "other", 0xF900: "CJK Compatibility Ideographs", 0xFB00: "other",
    0xFB50: "Arabic Presentation Forms-A", 0xFE00: "other", 0xFF00: "Halfwidth and Fullwidth Forms", 0xFFF0: "other",
    0x1F300: "Miscellaneous Symbols and Pictographs", 0x1F600: "Emoticons", 0x1F650: "other", 0x1F680: "Transport and Map Symbols",
    0x1F700: "other", 0x1F900: "Supplemental Symbols and Pictographs", 0x1FA00: "other", 0x20000: "CJK Unified Ideographs Extension B",
    0x2A6E0: "other",
}  # fmt: skip
_STARTS: Final = np.array(list(_BLOCKS), dtype=np.uint32)
#: Every name `block` can have.
BLOCK_NAMES: Final = tuple(dict.fromkeys(_BLOCKS.values()))
_BLOCK_NUMBERS: Final = np.array([BLOCK_NAMES.index(name) for name in _BLOCKS.values()], dtype=np.intp)


def _ascii(characters: str) -> np.ndarray:
    table = np.zeros(128, dtype=np.bool_)
    table[[ord(c) for c in characters]] = True
    return table


_SPACES: Final = _ascii(" \t\n\r\v\f")
_CAPITALS: Final = _ascii("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LETTERS: Final = _ascii("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_VOWELS: Final = _ascii("AEIOUaeiou")
_DIGITS: Final = _ascii("0123456789")
_PUNCTUATION: Final = _ascii("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def text_facts(text: str | None) -> dict[str, Any]:
    """Return statistics of a text, looking at its first `TEXT_LOOK` characters.

    Args:
        text: The text; None is missing.

    Returns:
        `characters` (of all of it, in code points), `words` (parted by white space), `word_length` (characters besides white space, by
        words), `block` (the Unicode block of most characters besides white space), `other_blocks_share` (of those characters, in other
        blocks), `non_ascii_share`, `digit_share` (0 to 9), `punctuation_share` (of ASCII), `control_share` (of all characters, control
        characters besides white space), `capital_share` and `vowel_share` (A to Z, and a, e, i, o, u, of the letters of ASCII),
        `nfc_changed` (whether Unicode's normal form C is another text). Shares are from 0 to 1. All are None for a missing text, and
        what there is nothing to divide by is None.
    """
    facts: dict[str, Any] = dict.fromkeys(TEXT)
    if text is None:
        return facts
    looked_at = text[:TEXT_LOOK]
    points = np.frombuffer(looked_at.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    ascii_ = points[points < 128]
    words = len(looked_at.split())
    spaces = _count(_SPACES[ascii_])
    facts |= {"characters": len(text), "words": words, "nfc_changed": not unicodedata.is_normalized("NFC", looked_at)}
    if len(points):
        controls = _count((points < 32) | ((points >= 127) & (points < 160))) - _count(_SPACES[ascii_[ascii_ < 32]])
        facts["non_ascii_share"] = _share(len(points) - len(ascii_), len(points))
        facts["digit_share"] = _share(_count(_DIGITS[ascii_]), len(points))
        facts["punctuation_share"] = _share(_count(_PUNCTUATION[ascii_]), len(points))
        facts["control_share"] = _share(controls, len(points))
    if words:
        facts["word_length"] = round((len(points) - spaces) / words, 4)
    if letters := _count(_LETTERS[ascii_]):
        facts["capital_share"] = _share(_count(_CAPITALS[ascii_]), letters)
        facts["vowel_share"] = _share(_count(_VOWELS[ascii_]), letters)
    facts |= _blocks(points, spaces)
    return facts


def token_facts(text: str | None, count: Callable[[str], TokenFacts]) -> dict[str, Any]:
    """Return statistics of a text's tokens.

    Args:
        text: The text; None is missing.
        count: The model's own tokenizer, `TextTokenizer.facts` say, or its vectorizer, `TermCounter.facts`.

    Returns:
        `tokens` (how many the model is given; of a text whose terms are counted, how many terms it has), `unknown_share` (of them, those
        that the vocabulary does not have; None where there are none), `truncated` (whether the text had more than the model takes). All
        are None for a missing text and one that is refused.
    """
    if text is None:
        return dict.fromkeys(TOKENS)
    try:
        found = count(text)
    except InputError:
        return dict.fromkeys(TOKENS)
    return {
        "tokens": found.tokens,
        "unknown_share": _share(found.unknown, found.tokens) if found.tokens else None,
        "truncated": found.truncated,
    }


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6)


def _blocks(points: np.ndarray, spaces: int) -> dict[str, Any]:
    numbers = _BLOCK_NUMBERS[np.searchsorted(_STARTS, points, side="right") - 1]
    counts = np.bincount(numbers, minlength=len(BLOCK_NAMES))
    counts[0] -= spaces
    total = int(counts.sum())
    if not total:
        return {}
    most = int(counts.argmax())
    return {"block": BLOCK_NAMES[most], "other_blocks_share": _share(total - int(counts[most]), total)}

"""What is measured of a text, and that nothing of the text itself is kept."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samegraph_transforms.baseline_text import BLOCK_NAMES, TEXT, TEXT_LOOK, text_facts

SENTENCES = {
    "english": ("The quick brown fox jumps over 12 lazy dogs.", "Basic Latin"),
    "german": ("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.", "Basic Latin"),
    "russian": ("Съешь же ещё этих мягких французских булок, да выпей чаю.", "Cyrillic"),
    "greek": ("Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.", "Greek and Coptic"),
    "arabic": ("نص حكيم له سر قاطع وذو شأن عظيم", "Arabic"),
    "hindi": ("ऋषियों को सताने वाले दुष्ट राक्षसों", "Devanagari"),
    "japanese": ("いろはにほへと ちりぬるを", "Hiragana"),
    "chinese": ("视野无限广，窗外有蓝天", "CJK Unified Ideographs"),
    "korean": ("키스의 고유조건은 입술끼리", "Hangul Syllables"),
    "emoji": ("😀😁😂 ok", "Emoticons"),
}


@pytest.mark.parametrize(("text", "block"), SENTENCES.values(), ids=SENTENCES)
def test_block_is_the_one_most_is_written_in(text: str, block: str) -> None:
    """A text in another script is in another block."""
    facts = text_facts(text)
    assert facts["block"] == block
    assert block in BLOCK_NAMES
    assert facts["characters"] == len(text)
    assert facts["words"] == len(text.split())


def test_shares_are_of_what_they_say() -> None:
    """Each share counts its own characters and divides by its own whole."""
    facts = text_facts("Ab1 é\x00!\t")
    assert facts == {
        "characters": 8, "words": 2, "word_length": 3.0, "block": "Basic Latin", "other_blocks_share": round(1 / 6, 6),
        "non_ascii_share": 1 / 8, "vowel_share": 0.5, "capital_share": 0.5, "digit_share": 1 / 8, "punctuation_share": 1 / 8,
        "control_share": 1 / 8, "nfc_changed": False,
    }  # fmt: skip


def test_another_language_in_the_same_script_shows() -> None:
    """English and German share a block, but not the letters beyond ASCII nor the length of words."""
    english, german = (text_facts(SENTENCES[language][0]) for language in ("english", "german"))
    assert english["non_ascii_share"] == 0 < german["non_ascii_share"]
    assert german["word_length"] > english["word_length"]


def test_missing_and_empty_texts() -> None:
    """A missing text has no facts; an empty one has a length and no shares."""
    assert text_facts(None) == dict.fromkeys(TEXT)
    assert text_facts("") == {**dict.fromkeys(TEXT), "characters": 0, "words": 0, "nfc_changed": False}


@given(st.text(st.characters(), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_has_shares_between_none_and_all(text: str) -> None:
    """Whatever comes, lone surrogates too, shares lie in [0, 1] and normal form C is what Unicode says."""
    facts = text_facts(text)
    assert set(facts) == set(TEXT)
    assert all(0 <= value <= 1 for name, value in facts.items() if name.endswith("_share") and value is not None)
    assert facts["nfc_changed"] == (unicodedata.normalize("NFC", text) != text)


def test_cost_of_a_long_text_is_bounded() -> None:
    """Beyond the first characters only the length is counted."""
    facts: dict[str, Any] = text_facts("a " * TEXT_LOOK + "1" * 100)
    assert facts["characters"] == 2 * TEXT_LOOK + 100
    assert facts["words"] == TEXT_LOOK // 2
    assert facts["digit_share"] == 0


def test_facts_are_plain_values() -> None:
    """Numbers, names and booleans of Python, so that they bin and travel like a caller's values."""
    assert not any(isinstance(value, np.generic | np.ndarray) for value in text_facts("Some text, 1.").values())

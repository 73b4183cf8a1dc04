"""The host node `samegraph::Tokenize`: a text becomes tokens by the library and the file training used.

    node     Tokenize(text) → any of ids, mask, type ids, int64 [length] each, as the manifest's `Tokenizer` of that node says
    engine   the `tokenizers` library with the package's own assets/tokenizer.json: there is nothing to reproduce

Padding that a tokenizer.json asks for is never applied here: instances are padded when they run together, to the length of a bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, get_args

import numpy as np

from .errors import AuthoringError, EnvironmentUnfit, InputError, ManifestInvalid
from .manifest import TokenArray, Tokenizer

OP_TYPE: Final = "Tokenize"
#: What a node may give, in the order its outputs are declared.
ARRAYS: Final[tuple[TokenArray, ...]] = get_args(TokenArray)
_ATTRIBUTES: Final = {"ids": "ids", "mask": "attention_mask", "type_ids": "type_ids"}


@dataclass(frozen=True)
class TokenFacts:
    """What can be said about a text's tokens without telling them.

    Attributes:
        tokens: How many the model is given.
        unknown: How many of those stand for what the vocabulary does not have.
        truncated: Whether the text had more than the model takes.
    """

    tokens: int
    unknown: int
    truncated: bool


class TextTokenizer:
    """One tokenizer, ready to run. May be called from any number of threads.

    Args:
        declared: What the manifest says about it.
        file: Content of the tokenizer.json.

    Attributes:
        pad_id: What the file pads with, 0 when it says nothing.
        longest: Most tokens a text becomes, special ones included; None when there is no bound.

    Raises:
        EnvironmentUnfit: The `tokenizers` library is not installed, or too old for the file.
        ManifestInvalid: The file is no tokenizer.json, or its bound leaves no room for a token.
    """

    def __init__(self, declared: Tokenizer, file: bytes) -> None:
        self.declared = declared
        self._engine = engine = load_engine(file, declared.file)
        padding = engine.padding or {}
        self.pad_id: int = int(padding.get("pad_id", 0))
        engine.no_padding()
        truncation = dict(engine.truncation or {})
        if declared.max_length is not None:
            truncation["max_length"] = declared.max_length
        if truncation:
            special = engine.num_special_tokens_to_add(False) if declared.add_special_tokens else 0
            if truncation["max_length"] <= special:
                raise ManifestInvalid(
                    f"tokenizer {declared.node!r}: max_length {truncation['max_length']} leaves no room beside {special} special tokens"
                )
            engine.enable_truncation(**truncation)
        self.longest: int | None = int(truncation["max_length"]) if truncation else None
        self._take = [(name, _ATTRIBUTES[name]) for name in declared.arrays]
        self._unknown = _unknown_id(engine)

    @property
    def library(self) -> str:
        """The library and its version."""
        return f"tokenizers {library_version()}"

    def __call__(self, text: str, field: str | None = None) -> list[np.ndarray]:
        """Return the node's outputs for one text, int64 [length] each, in the order of `declared.arrays`.

        Raises:
            InputError: The text is not Unicode (half of a surrogate pair), or has no token at all where the model needs one.
        """
        encoding = self._encode(text, field)
        return [np.array(getattr(encoding, attribute), dtype=np.int64) for _, attribute in self._take]

    def facts(self, text: str) -> TokenFacts:
        """Return how many tokens a text has, and of what kind; for statistics.

        Raises:
            InputError: As when called.
        """
        encoding = self._encode(text, None)
        ids = encoding.ids
        return TokenFacts(len(ids), 0 if self._unknown is None else ids.count(self._unknown), bool(encoding.overflowing))

    def _encode(self, text: str, field: str | None) -> Any:
        named = "" if field is None else f"field {field!r}: "
        try:
            encoding = self._engine.encode(text, add_special_tokens=self.declared.add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise InputError(f"{named}the text is not valid Unicode; send whole characters", code="wrong_type", field=field) from error
        if not encoding.ids:
            raise InputError(f"{named}the text has no token; send at least one word", code="wrong_shape", field=field)
        return encoding


class CountsTokens(Protocol):
    """What reads a text and can tell how many tokens it has."""

    def facts(self, text: str) -> TokenFacts:
        """Return how many tokens a text has, and of what kind."""
        ...


def token_counters(tokenizers: Mapping[str, CountsTokens]) -> dict[str, Callable[[str], TokenFacts]]:
    """Return text field → what counts its tokens, for statistics."""
    return {field: tokenizer.facts for field, tokenizer in tokenizers.items()}


def load_engine(file: bytes, name: str) -> Any:
    """Return the library's own tokenizer of a tokenizer.json.

    Raises:
        EnvironmentUnfit: The `tokenizers` library is not installed.
        ManifestInvalid: The content is no tokenizer.json that the installed version reads.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise EnvironmentUnfit(
            "this package tokenizes text, which needs the `tokenizers` library; install samegraph-transforms[text]"
        ) from error
    try:
        return tokenizers.Tokenizer.from_buffer(file)
    except Exception as error:  # the library raises plain exceptions
        raise ManifestInvalid(f"{name} is no tokenizer that tokenizers {library_version()} reads: {error}") from error


def library_version() -> str:
    """Return the version of the installed `tokenizers` library.

    Raises:
        AuthoringError: It is not installed.
    """
    from importlib import metadata

    try:
        return metadata.version("tokenizers")
    except metadata.PackageNotFoundError as error:
        raise AuthoringError("tokenizing needs the `tokenizers` library; install samegraph-transforms[text]") from error


def tokenizers_of(declared: Sequence[Tokenizer], read_file: Callable[[str], bytes]) -> dict[str, TextTokenizer]:
    """Return node name → ready tokenizer for everything a manifest declares.

    Args:
        declared: The manifest's tokenizers.
        read_file: Returns the content of a file of the package.

    Raises:
        EnvironmentUnfit: The `tokenizers` library is not installed.
        ManifestInvalid: A file is no tokenizer.json.
    """
    return {one.node: TextTokenizer(one, read_file(one.file)) for one in declared}


def _unknown_id(engine: Any) -> int | None:
    """Return the id that stands for what the vocabulary does not have; None where everything has a token (byte level)."""
    name = getattr(engine.model, "unk_token", None)
    if name is None:
        number = getattr(engine.model, "unk_id", None)
        return int(number) if number is not None else None
    found = engine.token_to_id(name)
    return None if found is None else int(found)

"""Write text preprocessing once: the object trains, and the graph it emits serves.

    tokens = Tokenize(Path("tokenizer.json"), max_length=256)

    batch = tokens.batch(["a text", "another"])   # as training feeds it: {"input_ids": int64 [2, longest], "attention_mask": …}
    draft = PackageDraft(..., fields=tokens.fields("text"), stages=[*tokens.stages("text"), DraftStage("model", model), ...],
                         tokenizers=tokens.tokenizers(), assets=tokens.assets(), batching=Batching(ragged=[tokens.ragged()]))

The heads that follow a transformer (`mean_pool`, `first_token`) are graphs in standard operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .draft import DraftStage
from .errors import AuthoringError
from .manifest import Ragged, RaggedInput, RawField, TokenArray, Tokenizer
from .opsets import DOMAIN, IR_VERSION, opset_imports
from .tokenization import ARRAYS, OP_TYPE, TextTokenizer, library_version

NODE: Final = "tokenize"
ASSET: Final = "tokenizer.json"
#: Longest text accepted unless the author says otherwise, in characters: a bound on what one request may cost.
DEFAULT_MAX_CHARACTERS: Final = 100_000
#: Lengths that texts are padded to unless the author says otherwise, as far as `max_length` goes.
DEFAULT_BUCKETS: Final = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Tokenize:
    """A text into tokens, by a tokenizer.json.

    Attributes:
        file: The tokenizer.json: its path or its content.
        max_length: Most tokens of a text, special ones included; the rest is cut off. None: what the file says.
        names: What the model's inputs are called: `ids`, `mask`, `type_ids` → name; those left out are not made.
        add_special_tokens: Whether tokens such as [CLS] and [SEP] are put around the text.
    """

    file: Path | bytes
    max_length: int | None = None
    names: Mapping[TokenArray, str] | None = None
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        if unknown := [name for name in self._names if name not in ARRAYS]:
            raise AuthoringError(f"Tokenize: names are given for {', '.join(ARRAYS)}, not for {', '.join(unknown)}")
        if "ids" not in self._names:
            raise AuthoringError("Tokenize: a model needs `ids`; give their name, for example names={'ids': 'input_ids'}")

    @property
    def _names(self) -> Mapping[TokenArray, str]:
        return {"ids": "input_ids", "mask": "attention_mask"} if self.names is None else self.names

    @cached_property
    def _content(self) -> bytes:
        return self.file if isinstance(self.file, bytes) else Path(self.file).read_bytes()

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return TextTokenizer(self.tokenizers()[0], self._content)

    # --- training -----------------------------------------------------------------------------------------------------

    def __call__(self, text: str) -> dict[str, np.ndarray]:
        """Return model input → int64 [length] for one text.

        Raises:
            InputError: The text is not valid Unicode, or has no token.
        """
        arrays = self._tokenizer(text)
        return {self._names[name]: array for name, array in zip(self._order, arrays, strict=True)}

    def batch(self, texts: Sequence[str], length: int | None = None) -> dict[str, np.ndarray]:
        """Return model input → int64 [texts, length], padded to `length` or to the longest text, as training feeds it.

        Raises:
            InputError: A text is not valid Unicode, or has no token.
            ValueError: A text is longer than `length`.
        """
        rows = [self(text) for text in texts]
        longest = max(len(row[self._names["ids"]]) for row in rows)
        if length is not None and length < longest:
            raise ValueError(f"a text has {longest} tokens, more than {length}")
        padded = {}
        for name in self._order:
            value = self._tokenizer.pad_id if name == "ids" else 0
            out = np.full((len(rows), length or longest), value, dtype=np.int64)
            for place, row in zip(out, rows, strict=True):
                mine = row[self._names[name]]
                place[: len(mine)] = mine
            padded[self._names[name]] = out
        return padded

    # --- serving ------------------------------------------------------------------------------------------------------

    @property
    def _order(self) -> list[TokenArray]:
        return [name for name in ARRAYS if name in self._names]

    def fields(self, name: str = "text", *, max_characters: int = DEFAULT_MAX_CHARACTERS, description: str = "") -> list[RawField]:
        """Return the raw field the text arrives in."""
        return [RawField(name=name, kind="text", description=description or "The text.", max_length=max_characters)]

    def tokenizers(self) -> list[Tokenizer]:
        """Return the manifest's description of this tokenizer."""
        return [
            Tokenizer(
                node=NODE,
                file=f"assets/{ASSET}",
                library_version=library_version(),
                arrays=self._order,
                add_special_tokens=self.add_special_tokens,
                max_length=self.max_length,
            )
        ]

    def assets(self) -> dict[str, bytes]:
        """Return the files the package needs."""
        return {ASSET: self._content}

    def stages(self, name: str = "text") -> list[DraftStage]:
        """Return the item stage: one node, from the text to its tokens."""
        outputs = [self._names[one] for one in self._order]
        node = helper.make_node(OP_TYPE, [name], outputs, name=NODE, domain=DOMAIN)
        graph = helper.make_graph(
            [node],
            "text_to_tokens",
            [helper.make_tensor_value_info(name, TensorProto.STRING, [1])],
            [helper.make_tensor_value_info(output, TensorProto.INT64, ["tokens"]) for output in outputs],
        )
        model = helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION)
        return [DraftStage("preprocess.item", model)]

    def ragged(self, buckets: Sequence[int] | None = None, *, max_padding_ratio: float = 0.5) -> Ragged:
        """Return how texts of different lengths run together.

        Args:
            buckets: Lengths that are padded to, ascending; None for powers of two up to `max_length`.
            max_padding_ratio: Largest share of a bucket that may be padding.

        Raises:
            AuthoringError: Nothing bounds the length, and no buckets are given.
        """
        longest = self._tokenizer.longest
        if buckets is None:
            if longest is None:
                raise AuthoringError("Tokenize: nothing bounds the number of tokens; give max_length, or buckets")
            buckets = [*(size for size in DEFAULT_BUCKETS if size < longest), longest]
        pads: dict[TokenArray, int] = {"ids": self._tokenizer.pad_id}
        return Ragged(
            inputs={self._names[one]: RaggedInput(axis=0, pad_value=pads.get(one, 0)) for one in self._order},
            buckets=list(buckets),
            max_padding_ratio=max_padding_ratio,
            beyond="exact" if longest is None or longest > buckets[-1] else "refuse",
        )


def mean_pool(
    hidden: str, mask: str, output: str, *, size: int, normalize: bool = False, stage: Literal["postprocess"] = "postprocess"
) -> DraftStage:
    """Return the head of most sentence embeddings: the mean of a text's token vectors, those of padding left out.

    Args:
        hidden: Value with the token vectors, float32 [n, length, size].
        mask: Value that is 1 where there is a token, int64 [n, length].
        output: Name of the result, float32 [n, size].
        size: Numbers in a vector.
        normalize: Whether the result is divided by its Euclidean length (at least 1e-12).
        stage: Which stage it is.
    """
    nodes = [
        helper.make_node("Cast", [mask], ["mask_f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_f", "last"], ["mask_3"]),
        helper.make_node("Mul", [hidden, "mask_3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask_f", "tokens"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
    ]
    if normalize:
        nodes += [
            helper.make_node("ReduceL2", ["mean", "tokens"], ["length"], keepdims=1),
            helper.make_node("Max", ["length", "least"], ["length_kept"]),
            helper.make_node("Div", ["mean", "length_kept"], [output]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["mean"], [output]))
    constants = {"last": np.array([2], np.int64), "tokens": np.array([1], np.int64)}
    if normalize:
        constants["least"] = np.array(1e-12, np.float32)
    inputs = [
        helper.make_tensor_value_info(hidden, TensorProto.FLOAT, ["n", "length", size]),
        helper.make_tensor_value_info(mask, TensorProto.INT64, ["n", "length"]),
    ]
    return DraftStage(stage, _graph("mean_pool", nodes, inputs, output, size, constants))


def first_token(hidden: str, output: str, *, size: int, stage: Literal["postprocess"] = "postprocess") -> DraftStage:
    """Return the head of classifiers that read the first token's vector ([CLS]).

    Args:
        hidden: Value with the token vectors, float32 [n, length, size].
        output: Name of the result, float32 [n, size].
        size: Numbers in a vector.
        stage: Which stage it is.
    """
    node = helper.make_node("Gather", [hidden, "first"], [output], axis=1)
    inputs = [helper.make_tensor_value_info(hidden, TensorProto.FLOAT, ["n", "length", size])]
    return DraftStage(stage, _graph("first_token", [node], inputs, output, size, {"first": np.array(0, np.int64)}))


def _graph(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    output: str,
    size: int,
    constants: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        name,
        list(inputs),
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", size])],
        initializer=[numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION)

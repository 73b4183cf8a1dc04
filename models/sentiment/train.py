#!/usr/bin/env python3
"""Train and pack `sentiment` version 1: whether a short English text speaks well or ill of something, from the raw text.

    python models/sentiment/train.py                       into models/
    python models/sentiment/train.py --repository DIR      into another repository
    python models/sentiment/train.py --force               replace the version that is there

The rated texts come with the source archive of vaderSentiment, downloaded by pip by exact version and hash (models/_fetch.py).
Deterministic; about ten seconds on one CPU. Does nothing when the package is there and was built from the same inputs. See README.md.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from samegraph_transforms.draft import BaselineRows, DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.manifest import Batching, Output, Provenance
from samegraph_transforms.opsets import IR_VERSION, opset_imports
from samegraph_transforms.text import Tokenize
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from models._fetch import fetch, read_member
from models._tabular import Example, main

NAME = "sentiment"
SEED = 20241103
SOURCES = ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets")
#: Mean ratings nearer to zero than this, of a scale from -4 to 4, say neither; those texts are left out of training.
CLEAR = 0.5
LABELS = ("negative", "positive")
VOCABULARY = 6000
#: Inverse strength, chosen once by cross-validation among powers of ten; shares are small numbers, so it is large.
REGULARIZATION = 100.0
MAX_TOKENS = 128
#: Texts nobody trains on and everybody sends.
EDGES = {
    "empty": "",
    "one-letter": "a",
    "spaces": "   \t ",
    "newlines": "First line.\r\nSecond line.\n",
    "shouting": "THIS IS THE WORST PHONE EVER!!!",
    "accents": "Le café était délicieux, mais le décor était naïf.",
    "german": "Das war leider überhaupt nicht gut, schönes Wetter hin oder her.",
    "russian": "Это было просто замечательно!",
    "chinese": "这部电影非常好看，我很喜欢。",
    "emoji": "loved it 😍😍 👍🏽 👨‍👩‍👧",
    "combining": "cafe\u0301 nai\u0308ve",
    "right-to-left": "هذا رائع",
    "null-character": "good\x00bad",
    "markup": "<b>great</b> &amp; cheap",
    "one-long-word": "a" * 300,
    "longer-than-the-model": "not good, not bad, just long. " * 40,
    "unassigned": "fine \U000e0fff\uffff",
}


@dataclass(frozen=True)
class Rated:
    """A text with what twenty people thought of it."""

    source: str
    rating: float
    text: str


def load() -> list[Rated]:
    """Return the 23,703 rated texts in the order they are published."""
    inner = read_member(fetch("vaderSentiment==3.3.2", "sdist"), "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
    rated = []
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        for source in SOURCES:
            member = archive.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            assert member is not None
            for line in member.read().decode("utf-8").splitlines():
                _, rating, text = line.split("\t", 2)
                rated.append(Rated(source, float(rating), text))
    return rated


def train_tokenizer(texts: Sequence[str]) -> bytes:
    """Return a byte-pair tokenizer of these texts as a tokenizer.json, with [CLS] in front of every text."""
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))  # noqa: S106
    engine.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=2, special_tokens=["[PAD]", "[UNK]", "[CLS]"], show_progress=False
    )
    engine.train_from_iterator(texts, trainer)
    engine.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    engine.enable_padding(pad_id=0, pad_token="[PAD]", length=MAX_TOKENS)  # noqa: S106 - as published ones do; serving does not pad so
    return json.dumps(json.loads(engine.to_str()), ensure_ascii=False, indent=None).encode()


@dataclass(frozen=True)
class Network:
    """A number for every token, averaged over a text: what training fitted, in the precision it computes in.

    Attributes:
        scores: float64 [vocabulary, 1]: how much a token speaks for `positive`.
        bias: What is added to a text's mean.
    """

    scores: np.ndarray
    bias: float

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return float32 [n, 2], the probability of each label, for int64 [n, length] token ids and their mask."""
        kept = self.scores[ids] * mask[..., None]
        mean = kept.sum(axis=1) / mask.sum(axis=1, keepdims=True)
        positive = 1 / (1 + np.exp(-(mean + self.bias)))
        return np.concatenate([1 - positive, positive], axis=1).astype(np.float32)


def fit(tokens: Tokenize, texts: Sequence[str], positive: np.ndarray) -> Network:
    """Fit a logistic regression on the share of every token in a text, which is a mean over the text's tokens."""
    vocabulary = tokenizers.Tokenizer.from_buffer(tokens.assets()["tokenizer.json"]).get_vocab_size()
    rows = [tokens(text)["input_ids"] for text in texts]
    lengths = np.array([len(row) for row in rows])
    ends = np.concatenate([[0], lengths.cumsum()])
    shares = sparse.csr_matrix((np.repeat(1 / lengths, lengths), np.concatenate(rows), ends), shape=(len(rows), vocabulary))
    shares.sum_duplicates()
    classifier = LogisticRegression(C=REGULARIZATION, max_iter=3000).fit(shares, positive)
    return Network(classifier.coef_.T.copy(), float(classifier.intercept_[0]))


def model_graph(network: Network) -> onnx.ModelProto:
    """Return the network as a graph, in double as it was trained: ids and mask [n, length] → float32 [n, 2] and the label."""
    constants = {
        "scores": network.scores,
        "bias": np.array([network.bias]),
        "one": np.array(1.0),
        "last": np.array([2], np.int64),
        "tokens": np.array([1], np.int64),
        "labels": np.array(LABELS, dtype=object),
    }
    nodes = [
        helper.make_node("Gather", ["scores", "input_ids"], ["found"], name="scores_of_tokens"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.DOUBLE),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3"]),
        helper.make_node("Mul", ["found", "mask_3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "tokens"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"], name="mean_of_tokens"),
        helper.make_node("Add", ["mean", "bias"], ["score"]),
        helper.make_node("Neg", ["score"], ["minus"]),
        helper.make_node("Exp", ["minus"], ["power"]),
        helper.make_node("Add", ["one", "power"], ["denominator"]),
        helper.make_node("Div", ["one", "denominator"], ["positive"]),
        helper.make_node("Sub", ["one", "positive"], ["negative"]),
        helper.make_node("Concat", ["negative", "positive"], ["both"], axis=1),
        helper.make_node("Cast", ["both"], ["probability"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["probability"], ["place"], axis=1, keepdims=0),
        helper.make_node("Gather", ["labels", "place"], ["label"], name="label_of_place"),
    ]
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"]) for name in ("input_ids", "attention_mask")],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, ["n"]),
            helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 2]),
        ],
        initializer=[numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION)


class Reference:
    """The training code's answers."""

    def __init__(self, tokens: Tokenize, network: Network) -> None:
        self._tokens = tokens
        self._network = network

    def answers(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the outputs for texts, each on its own as training evaluates them."""
        rows = [self._network(*self._tokens.batch([text]).values())[0] for text in texts]
        probability = np.stack(rows)
        return {"label": np.array(LABELS, dtype=object)[probability.argmax(axis=1)], "probability": probability}

    def sample(self, name: str, texts: Sequence[str], *, plain: bool = False) -> GoldenSample:
        """Return a request with its answers: JSON, or one text as it is."""
        body = texts[0].encode() if plain else json.dumps({"instances": [{"text": text} for text in texts]}, ensure_ascii=False).encode()
        kind = "text/plain; charset=utf-8" if plain else "application/json"
        values = self._tokens.batch(texts) if len(texts) == 1 else {}
        return GoldenSample(name, f"/v1/models/{NAME}:predict", {"content-type": kind}, body, self.answers(texts), values)


def golden_samples(reference: Reference, texts: Sequence[str]) -> Iterator[GoldenSample]:
    """Yield the edges, texts for every bucket, several in a request, and plain texts."""
    for name, text in EDGES.items():
        yield reference.sample(f"edge-{name}", [text])
    by_length = sorted(texts, key=len)
    step = len(by_length) // 24
    for number in range(24):
        yield reference.sample(f"text-{number}", [by_length[number * step]], plain=number % 3 == 2)
    for tokens in (7, 14, 28, 56, 110):  # just inside each bucket, so that its padding is proven
        yield reference.sample(f"length-{tokens}", [" ".join(["good"] * tokens)])
    yield reference.sample("together", by_length[:: len(by_length) // 16])


def train(console: Console) -> Iterator[Example]:
    """Train on four fifths of the clear texts and yield the version."""
    rated = load()
    order = np.random.default_rng(SEED).permutation(len(rated))
    held, seen = [rated[i] for i in order[: len(rated) // 5]], [rated[i] for i in order[len(rated) // 5 :]]
    clear = [one for one in seen if abs(one.rating) >= CLEAR]
    tokens = Tokenize(train_tokenizer([one.text for one in seen]), max_length=MAX_TOKENS)
    network = fit(tokens, [one.text for one in clear], np.array([one.rating > 0 for one in clear]))
    reference = Reference(tokens, network)
    judged = [one for one in held if abs(one.rating) >= CLEAR]
    right = reference.answers([one.text for one in judged])["label"] == [LABELS[one.rating > 0] for one in judged]
    accuracy = float(np.mean(right))
    most = max(np.mean([one.rating > 0 for one in judged]), np.mean([one.rating <= 0 for one in judged]))
    console.print(
        f"{NAME}/1: logistic regression on token shares on {len(clear)} texts; accuracy {accuracy:.4f} on {len(judged)} others "
        f"(always the commoner label: {most:.4f})"
    )
    notes = f"accuracy {accuracy:.4f} on {len(judged)} texts held out; texts rated within {CLEAR} of neutral were left out"
    draft = PackageDraft(
        name=NAME,
        version=1,
        description="Whether a short English text speaks well or ill of something.",
        fields=tokens.fields("text", max_characters=20_000, description="A sentence or two, in English."),
        outputs=[
            Output(name="label", dtype="string", shape=[], description="negative or positive.", decided_by="probability"),
            Output(name="probability", dtype="float32", shape=[2], description="The probability of each.", element_names=list(LABELS)),
        ],
        stages=[*tokens.stages("text"), DraftStage("model", model_graph(network))],
        tokenizers=tokens.tokenizers(),
        assets=tokens.assets(),
        batching=Batching(max_batch_size=64, ragged=[tokens.ragged([8, 16, 32, 64, MAX_TOKENS])]),
        provenance=Provenance(
            libraries={name: metadata.version(name) for name in ("numpy", "scikit-learn", "scipy", "tokenizers")},
            trainer="models/sentiment/train.py",
            framework=f"tokenizers {tokenizers.__version__}, scikit-learn {metadata.version('scikit-learn')}",
            data=f"hutto_ICWSM_2014 of vaderSentiment 3.3.2: {len(clear)} of {len(rated)} rated tweets and sentences",
            license="MIT",
            notes=notes,
        ),
        baseline=BaselineRows(
            [{"text": one.text} for one in held],
            made_from=f"the {len(held)} texts that were not trained on",
            known={"label": LABELS},
        ),
    )
    others = [one.text for one in held]
    held_out = [reference.sample(f"text-{i}", [text], plain=i % 4 == 3) for i, text in enumerate(others[:200])]
    held_out += [reference.sample(f"several-{i}", others[200 + 8 * i : 208 + 8 * i]) for i in range(10)]
    yield Example(draft, list(golden_samples(reference, [one.text for one in clear])), held_out)


def packages() -> Iterator[tuple[PackageDraft, Sequence[GoldenSample]]]:
    """Yield the draft with its golden samples, for `samegraph pack models/sentiment/train.py`."""
    for example in train(Console(stderr=True)):
        yield example.draft, example.golden


if __name__ == "__main__":
    main(NAME, __doc__, train)

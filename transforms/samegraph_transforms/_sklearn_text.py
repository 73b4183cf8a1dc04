"""Fitted text vectorizers of scikit-learn: a host node counts terms in the item stage, and weights and norms are graph nodes in float64.

A count matrix travels as `Sparse` rows. Each of its columns is a `Column` all the same, so selectors and column transformers need not know;
a step that computes on a table gets one with its zeros (`GraphWriter.dense`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx
import pandas as pd
from onnx import TensorProto, helper
from pydantic import ValidationError
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import MaxAbsScaler, Normalizer, StandardScaler

from ._sklearn_graph import Block, Column, Sparse
from ._sklearn_site import Counted, Emit, Site
from ._sklearn_sparse import sparse_dot, weighted
from .errors import AuthoringError
from .manifest import MAX_SHAPE_BUCKETS, Ragged, RaggedInput, RawField, Vectorizer
from .opsets import DOMAIN, IR_VERSION, opset_imports
from .patterns import refuse_slow
from .terms import OP_TYPE, TermCounter, terms_file

VECTORIZERS: Final = (CountVectorizer, TfidfVectorizer, HashingVectorizer)
#: A text column's tensor begins with this: the batch stages never see the text.
TEXT_TENSOR: Final = "/text/"
#: Numbers of different terms that texts are padded to, as far as the training texts go.
_BUCKETS: Final = (16, 64, 256, 1024, 4096)
#: Training texts, the longest ones, whose terms are counted for that.
_LOOKED_AT: Final = 500
#: Most terms of one text: about a second of counting.
_MAX_TERMS: Final = 1_000_000
_INTEGERS: Final = (np.dtype("int64"), np.dtype("int32"))
_DOUBLE: Final = np.dtype("float64")


def reads_text(step: Any) -> bool:
    """Whether a step takes texts, one each row, and not a table."""
    if isinstance(step, Pipeline):
        return bool(step.steps) and reads_text(step.steps[0][1])
    if isinstance(step, FeatureUnion):
        return any(reads_text(part) for _, part in step.transformer_list)
    return isinstance(step, VECTORIZERS)


def text_columns(first: Any, order: Sequence[str]) -> set[str]:
    """Return the columns of a frame that text vectorizers read, given the pipeline's first step."""
    while isinstance(first, Pipeline) and first.steps:
        first = first.steps[0][1]
    if reads_text(first):
        return set(order)
    indices = getattr(first, "_transformer_to_input_indices", {})
    return {order[i] for name, part, _ in getattr(first, "transformers_", ()) if reads_text(part) for i in indices[name]}


# --- counting ---------------------------------------------------------------------------------------------------------


def _emit_count(site: Site, block: Block) -> Block:
    step = site.step
    if np.dtype(step.dtype) not in (*_INTEGERS, _DOUBLE):
        raise site.unsupported(f"counts in {np.dtype(step.dtype)}, in which later steps would compute; leave dtype at int64, or float64")
    return _columns(site, _counted(site, block))


def _emit_tfidf(site: Site, block: Block) -> Block:
    if np.dtype(site.step.dtype) == np.dtype("float32"):
        raise site.unsupported("gives float32, in which later steps would compute; leave its dtype at float64")
    return _columns(site, _tfidf(site, _counted(site, block), site.step._tfidf))


def _emit_tfidf_transformer(site: Site, block: Block) -> Block:
    return _columns(site, _tfidf(site, _whole(site, block), site.step))


def _emit_hashing(site: Site, block: Block) -> Block:
    step = site.step
    if np.dtype(step.dtype) != _DOUBLE:
        raise site.unsupported(f"counts in {np.dtype(step.dtype)}, in which later steps would compute; leave dtype at float64")
    found = _counted(site, block)
    return _columns(site, weighted(site.writer, found, idf=None, sublinear=False, norm=step.norm, at=site.at))


def _tfidf(site: Site, found: Sparse, step: Any) -> Sparse:
    if step.sublinear_tf and not found.counts:
        raise site.unsupported("sublinear_tf takes logarithms of what an earlier step has weighted or signed; let it follow counts")
    idf = step.idf_ if step.use_idf else None
    if idf is not None and np.asarray(idf).dtype != _DOUBLE:
        raise site.unsupported(f"has its idf in {np.asarray(idf).dtype}; train it on float64")
    return weighted(site.writer, found, idf=idf, sublinear=step.sublinear_tf, norm=step.norm, at=site.at)


def _whole(site: Site, block: Block) -> Sparse:
    """Return the sparse matrix that a block is, all of it."""
    found = site.writer.sparse.get(block[0].tensor) if block else None
    if found is None or [(c.tensor, c.index) for c in block] != [(found.values, i) for i in range(found.width)]:
        raise site.unsupported("weights something else than the whole count matrix of one text vectorizer; let it follow the vectorizer")
    return found


def _columns(site: Site, found: Sparse) -> Block:
    site.writer.sparse[found.values] = found
    return [Column(site.at, found.values, i, found.width, "float64") for i in range(found.width)]


def _counted(site: Site, block: Block) -> Sparse:
    """Plan the host node of a vectorizer, declare what it gives as inputs of this graph, and return that as a sparse matrix."""
    step, context = site.step, site.context
    if len(block) != 1 or block[0].field is None or not block[0].tensor.startswith(TEXT_TENSOR):
        raise site.unsupported("reads something else than one raw text column, as it came; let it be the first step on that column")
    name = block[0].field
    number = sum(one.field == name for one in context.counted) + 1
    suffix = "" if number == 1 else f"_{number}"
    declared, file = describe(step, f"count_{re.sub('[^A-Za-z0-9_]', '_', name)}_{len(context.counted) + 1}", site.unsupported)
    columns = context.writer.input(f"{name}.terms{suffix}", "int64", f"{name} terms{suffix}")
    counts = context.writer.input(f"{name}.counts{suffix}", "float64", f"{name} terms{suffix}")
    context.counted.append(Counted(name, declared, file, columns, counts))
    return Sparse(columns, counts, declared.n_features, counts=not declared.alternate_sign or declared.binary)


def describe(step: Any, node: str, error: Callable[[str], AuthoringError]) -> tuple[Vectorizer, bytes]:
    """Return how a fitted vectorizer counts, as the manifest says it, and the file of its terms.

    Args:
        step: A fitted CountVectorizer, TfidfVectorizer or HashingVectorizer.
        node: What the host node is to be called.
        error: Makes the error of what is wrong.

    Raises:
        AuthoringError: It calls the trainer's own code or reads files, or a text can keep its pattern busy.
    """
    _refuse_code(step, error)
    vocabulary = None if isinstance(step, HashingVectorizer) else sorted(step.vocabulary_, key=step.vocabulary_.__getitem__)
    stop_words = (step.get_stop_words() or ()) if step.analyzer == "word" else ()
    try:
        declared = Vectorizer(
            node=node,
            file=f"assets/{node}.terms.json",
            n_features=step.n_features if vocabulary is None else len(vocabulary),
            hashed=vocabulary is None,
            alternate_sign=vocabulary is None and bool(step.alternate_sign),
            analyzer=step.analyzer,
            ngram_range=(int(step.ngram_range[0]), int(step.ngram_range[1])),
            token_pattern=step.token_pattern if step.analyzer == "word" else None,
            lowercase=bool(step.lowercase),
            strip_accents=step.strip_accents or None,
            binary=bool(step.binary),
            unicode_version=unicodedata.unidata_version,
        )
    except ValidationError as wrong:
        raise error("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in wrong.errors())) from wrong
    return declared, terms_file(vocabulary, stop_words)


def _refuse_code(step: Any, error: Callable[[str], AuthoringError]) -> None:
    """Refuse what only Python code of the trainer's could do, and a pattern that a text could keep busy."""
    for option in ("analyzer", "tokenizer", "preprocessor", "strip_accents"):
        value = getattr(step, option)
        if callable(value):
            raise error(
                f"{option}={getattr(value, '__name__', value)} is Python code, which a package cannot hold; use the vectorizer's options "
                "(token_pattern, lowercase, strip_accents, stop_words, ngram_range), or compute the text before training"
            )
    if step.input != "content":
        raise error(f"input={step.input!r} reads files; train on the texts themselves (input='content')")
    if step.analyzer == "word":
        refuse_slow(step.token_pattern, error)


# --- the item stage ---------------------------------------------------------------------------------------------------


def item_graph(counted: Sequence[Counted]) -> onnx.ModelProto:
    """Return the item stage: one node for each vectorizer, from a text to the terms that are in it."""
    nodes = [helper.make_node(OP_TYPE, [one.field], [one.columns, one.counts], name=one.vectorizer.node, domain=DOMAIN) for one in counted]
    inputs = [helper.make_tensor_value_info(name, TensorProto.STRING, [1]) for name in dict.fromkeys(one.field for one in counted)]
    outputs = [
        helper.make_tensor_value_info(name, dtype, [f"{one.vectorizer.node} terms"])
        for one in counted
        for name, dtype in ((one.columns, TensorProto.INT64), (one.counts, TensorProto.DOUBLE))
    ]
    graph = helper.make_graph(nodes, "text_to_terms", inputs, outputs)
    return helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION, producer_name="samegraph")


def ragged_lengths(counted: Sequence[Counted], training: pd.DataFrame) -> list[Ragged]:
    """Return how texts with different numbers of terms run together: few buckets, since padding is cheap here and waiting is not.

    Args:
        counted: What is counted.
        training: The training frame, whose longest text decides how far the buckets go.
    """
    if not counted:
        return []
    most = next(n for n in range(len(_BUCKETS), 0, -1) if n ** len(counted) <= MAX_SHAPE_BUCKETS)
    found = []
    for one in counted:
        counter, texts = TermCounter(one.vectorizer, one.file), training[one.field].dropna()
        looked_at = sorted(texts.tolist(), key=len)[-_LOOKED_AT:]  # long texts have most terms
        longest = max((len(counter(text)[0]) for text in looked_at), default=0)
        wanted = [size for i, size in enumerate(_BUCKETS) if i == 0 or _BUCKETS[i - 1] < longest][-most:]
        inputs = {one.columns: RaggedInput(axis=0, pad_value=0), one.counts: RaggedInput(axis=0, pad_value=0.0)}
        found.append(Ragged(inputs=inputs, buckets=wanted, max_padding_ratio=1.0, beyond="exact"))
    return found


def refuse_costly(fields: Sequence[RawField], counted: Sequence[Counted]) -> None:
    """Refuse a text field that may be so long that counting its terms would take seconds.

    Raises:
        AuthoringError: Its longest text has more than `_MAX_TERMS` terms.
    """
    for one in counted:
        low, high = one.vectorizer.ngram_range
        longest = next(f.max_length for f in fields if f.name == one.field)
        if longest is None or longest * (high - low + 1) > _MAX_TERMS:
            raise AuthoringError(
                f"field {one.field!r}: a text of {longest or 'any number of'} characters may have more than {_MAX_TERMS:,} terms; set "
                "a smaller max_length in overrides, or train with a narrower ngram_range"
            )


# --- what follows -----------------------------------------------------------------------------------------------------


def _emit_truncated_svd(site: Site, block: Block) -> Block:
    found = site.writer.elements(block, at=site.at)
    components = np.asarray(site.step.components_, dtype=np.float64)
    tensor = sparse_dot(site.writer, found, components.T, at=site.at)
    return [Column(f"{site.at} {i}", tensor, i, len(components), "float64") for i in range(len(components))]


def _emit_scaled(site: Site, block: Block) -> Block:
    """Scale sparse rows by the reciprocal of the scale, as scikit-learn does."""
    step = site.step
    if getattr(step, "with_mean", False) or getattr(step, "clip", False):
        raise site.unsupported("has an exact graph on sparse rows without mean and without clipping only")
    found = site.writer.elements(block, at=site.at)
    if getattr(step, "scale_", None) is None:
        return _columns(site, found)
    factors = site.node("Gather", site.number(1.0 / step.scale_), found.columns)
    return _columns(site, replace(found, values=site.node("Mul", found.values, factors), counts=False))


def _emit_normalizer(site: Site, block: Block) -> Block:
    if site.step.norm == "max":
        raise site.unsupported("norm='max' has no exact graph on sparse rows; use 'l1' or 'l2'")
    found = site.writer.elements(block, at=site.at)
    return _columns(site, weighted(site.writer, found, idf=None, sublinear=False, norm=site.step.norm, at=site.at))


def scaled_rows(site: Site, block: Block, factor: str) -> Block:
    """Multiply a block that holds sparse columns by one number."""
    found = site.writer.elements(block, at=site.at)
    return _columns(site, replace(found, values=site.node("Mul", found.values, factor), counts=False))


#: Steps that keep rows sparse, or have a way of their own with them, on blocks that hold sparse columns.
SPARSE_EMITTERS: Final[dict[type, Emit]] = {
    MaxAbsScaler: _emit_scaled,
    StandardScaler: _emit_scaled,
    Normalizer: _emit_normalizer,
    TruncatedSVD: _emit_truncated_svd,
}
TEXT_EMITTERS: Final[dict[type, Emit]] = {
    CountVectorizer: _emit_count,
    TfidfVectorizer: _emit_tfidf,
    TfidfTransformer: _emit_tfidf_transformer,
    HashingVectorizer: _emit_hashing,
}

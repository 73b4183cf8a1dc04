"""Fitted scikit-learn transformers that compute on numbers: bins, powers, quantiles, projections, polynomials and named functions.

Everything is float64, written in the order in which scikit-learn and SciPy compute it. Where that is sums, products, quotients and
comparisons of single columns, the features are bit-equal. Three things are not, and docs/exactness.md holds what was measured:
`Exp` and `Log` of ONNX Runtime differ from NumPy's by up to 2 and 1 ULP (NumPy's own differ from one processor to another), and
sums over a row (`PCA`, `TruncatedSVD`, `Normalizer`) are made in an order that a BLAS chooses for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from scipy import sparse, stats
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    Normalizer,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
)

from ._sklearn_graph import NO_NULL, Block, Column
from ._sklearn_site import Emit, Site, clipped, matrix_of
from ._sklearn_trees import emit_places

_EPSILON: Final = float(np.finfo(np.float64).eps)
_LEAST: Final = 5e-324
#: Beyond this exp is infinite.
_EXP_LIMIT: Final = 709.0

# --- functions that ONNX does not have ---------------------------------------------------------------------------------------

#: Numerator and denominator of expm1 between -0.5 and 0.5, highest power first. Source: Cephes, unity.c.
_EXPM1: Final = (
    (1.2617719307481059087798e-4, 3.0299440770744196129956e-2, 9.9999999999999999991025e-1),
    (3.0019850513866445504159e-6, 2.5244834034968410419224e-3, 2.2726554820815502876593e-1, 2.0000000000000000000897e0),
)
#: Quantile of the normal distribution, around one half, and in the tails up to 8 deviations. Source: Cephes, ndtri.c, as in SciPy.
_NORMAL_MIDDLE: Final = (
    (-5.99633501014107895267e1, 9.80010754185999661536e1, -5.66762857469070293439e1, 1.39312609387279679503e1, -1.23916583867381258016e0),
    (
        1.0, 1.95448858338141759834e0, 4.67627912898881538453e0, 8.63602421390890590575e1, -2.25462687854119370527e2,
        2.00260212380060660359e2, -8.20372256168333339912e1, 1.59056225126211695515e1, -1.18331621121330003142e0,
    ),
)  # fmt: skip
_NORMAL_TAIL: Final = (
    (
        4.05544892305962419923e0, 3.15251094599893866154e1, 5.71628192246421288162e1, 4.40805073893200834700e1, 1.46849561928858024014e1,
        2.18663306850790267539e0, -1.40256079171354495875e-1, -3.50424626827848203418e-2, -8.57456785154685413611e-4,
    ),
    (
        1.0, 1.57799883256466749731e1, 4.53907635128879210584e1, 4.13172038254672030440e1, 1.50425385692907503408e1,
        2.50464946208309415979e0, -1.42182922854787788574e-1, -3.80806407691578277194e-2, -9.33259480895457427372e-4,
    ),
)  # fmt: skip
_EXP_MINUS_2: Final = 0.13533528323661269189
_ROOT_2_PI: Final = 2.50662827463100050242


def _polynomial(site: Site, x: str, coefficients: Sequence[float]) -> str:
    """Evaluate by Horner's rule, highest power first; a leading 1 costs no product, as in Cephes."""
    first, *rest = coefficients
    total = ""
    for place, coefficient in enumerate(rest):
        product = (x if first == 1 else site.node("Mul", x, site.number(first))) if place == 0 else site.node("Mul", total, x)
        total = site.node("Add", product, site.number(coefficient))
    return total


def _ratio(site: Site, x: str, parts: tuple[Sequence[float], Sequence[float]]) -> str:
    return site.node("Div", _polynomial(site, x, parts[0]), _polynomial(site, x, parts[1]))


def log1p(site: Site, x: str) -> str:
    """log(1 + x): the logarithm of the rounded sum, and what rounding took from it."""
    one = site.number(1.0)
    total = site.node("Add", x, one)
    lost = site.node("Sub", x, site.node("Sub", total, one))
    corrected = site.node("Add", site.node("Log", total), site.node("Div", lost, total))
    # Where 1 + x is x, nothing of use was lost, and where it is 0 the quotient is not a number.
    plain = site.node("Or", site.node("Equal", total, x), site.node("Equal", total, site.number(0.0)))
    return site.node("Where", plain, site.node("Log", total), corrected)


def expm1(site: Site, x: str) -> str:
    """exp(x) - 1: a quotient of polynomials near 0, the difference elsewhere. Source: Cephes, unity.c."""
    square = site.node("Mul", x, x)
    upper = site.node("Mul", x, _polynomial(site, square, _EXPM1[0]))
    ratio = site.node("Div", upper, site.node("Sub", _polynomial(site, square, _EXPM1[1]), upper))
    near = site.node("Add", ratio, ratio)
    far = site.node("Sub", site.node("Exp", x), site.number(1.0))
    return site.node("Where", site.node("LessOrEqual", site.node("Abs", x), site.number(0.5)), near, far)


def normal_quantile(site: Site, p: str) -> str:
    """Quantile of the standard normal distribution for 1e-15 < p < 1 - 1e-15. Source: Cephes, ndtri.c, which SciPy runs.

    Between exp(-2) and 1 - exp(-2) it is bit-equal to SciPy's; in the tails it differs by what the logarithm differs.
    """
    one, limit = site.number(1.0), site.number(_EXP_MINUS_2)
    above = site.node("Greater", p, site.number(1.0 - _EXP_MINUS_2))
    y = site.node("Where", above, site.node("Sub", one, p), p)
    centred = site.node("Sub", y, site.number(0.5))
    square = site.node("Mul", centred, centred)
    curve = site.node("Mul", square, _polynomial(site, square, _NORMAL_MIDDLE[0]))
    bent = site.node("Mul", centred, site.node("Div", curve, _polynomial(site, square, _NORMAL_MIDDLE[1])))
    middle = site.node("Mul", site.node("Add", centred, bent), site.number(_ROOT_2_PI))
    x = site.node("Sqrt", site.node("Mul", site.number(-2.0), site.node("Log", y)))
    start = site.node("Sub", x, site.node("Div", site.node("Log", x), x))
    z = site.node("Div", one, x)
    upper = site.node("Mul", z, _polynomial(site, z, _NORMAL_TAIL[0]))
    tail = site.node("Sub", start, site.node("Div", upper, _polynomial(site, z, _NORMAL_TAIL[1])))
    signed = site.node("Where", above, tail, site.node("Neg", tail))
    return site.node("Where", site.node("Greater", y, limit), middle, signed)


# --- bins and quantiles ------------------------------------------------------------------------------------------------------


def _emit_bins(site: Site, block: Block) -> Block:
    tensor = matrix_of(site, block)
    edges = [np.asarray(e, dtype=np.float64)[1:-1] for e in site.step.bin_edges_]
    codes = emit_places(site.writer, tensor, edges, at=site.at, side="right")
    if site.step.encode == "ordinal":
        return [replace(c, null=NO_NULL) for c in site.writer.columns_of(codes, block)]
    widths = [int(n) for n in site.step.n_bins_]
    owner = np.repeat(np.arange(len(block), dtype=np.int64), widths)
    places = np.concatenate([np.arange(w, dtype=np.float64) for w in widths])[None]
    spread = site.node("Gather", codes, site.writer.constant(owner, at=site.at), axis=1)
    tensor = site.writer.cast(site.node("Equal", spread, site.number(places)), "float64", at=site.at)
    return [Column(block[j].label, tensor, i, len(owner), "float64") for i, j in enumerate(owner)]


def _interpolation(site: Site, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return slope, start and value of `numpy.interp` for each place 0 … len(x) of a value among sorted x; the ends are flat."""
    with np.errstate(all="ignore"):
        width = np.diff(x)
        slopes = np.where(width > 0, np.diff(y) / width, 0.0)
    if not (np.isfinite(slopes).all() and np.isfinite(width).all()):
        raise site.unsupported("its quantiles are too close together, or too far apart, for a slope between them")
    return (
        np.concatenate([[0.0], slopes, [0.0]]),
        np.concatenate([[0.0], x[:-1], [0.0]]),
        np.concatenate([y[:1], y[:-1], y[-1:]]),
    )


def emit_interpolation(site: Site, tensor: str, x: np.ndarray, y: np.ndarray) -> str:
    """Write `numpy.interp(tensor, x, y)` for one column [n, 1]; x sorted, float64."""
    slopes, starts, values = _interpolation(site, x, y)
    places = site.writer.cast(emit_places(site.writer, tensor, [x], at=site.at, side="right"), "int64", at=site.at)
    slope, start, value = (site.node("Gather", site.number(part), places, axis=0) for part in (slopes, starts, values))
    return site.node("Add", site.node("Mul", slope, site.node("Sub", tensor, start)), value)


def _emit_quantiles(site: Site, block: Block) -> Block:
    if sparse.issparse(site.data):
        raise site.unsupported("it transforms sparse data; make the steps before it dense")
    x, step = matrix_of(site, block), site.step
    quantiles, references = np.asarray(step.quantiles_, dtype=np.float64), np.asarray(step.references_, dtype=np.float64)
    columns = [np.ascontiguousarray(q) for q in quantiles.T]
    count = len(references) + 1
    offsets = site.writer.constant(np.arange(len(columns), dtype=np.int64)[None] * count, at=site.at)

    def interpolated(values: str, side: Any, tables: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> str:
        places = site.writer.cast(emit_places(site.writer, x, columns, at=site.at, side=side), "int64", at=site.at)
        places = site.node("Add", places, offsets)
        slope, start, value = (site.node("Gather", site.number(np.concatenate([t[i] for t in tables])), places, axis=0) for i in range(3))
        return site.node("Add", site.node("Mul", slope, site.node("Sub", values, start)), value)

    upward = interpolated(x, "right", [_interpolation(site, q, references) for q in columns])
    # np.interp(-x, -quantiles[::-1], ...): its place counts the quantiles >= x, so its tables are read from the other end.
    mirrored = [_interpolation(site, -q[::-1], -references[::-1]) for q in columns]
    downward = interpolated(site.node("Neg", x), "left", [tuple(part[::-1] for part in t) for t in mirrored])  # type: ignore[misc]
    y = site.node("Mul", site.number(0.5), site.node("Sub", upward, downward))
    low, high = site.number(quantiles[0]), site.number(quantiles[-1])
    if step.output_distribution == "normal":
        threshold = site.number(1e-7)
        at_low = site.node("Less", site.node("Sub", x, threshold), low)
        at_high = site.node("Greater", site.node("Add", x, threshold), high)
    else:
        at_low, at_high = site.node("Equal", x, low), site.node("Equal", x, high)
    y = site.node("Where", at_high, site.number(1.0), y)
    y = site.node("Where", at_low, site.number(0.0), y)
    y = site.node("Where", site.node("IsNaN", x), x, y)
    if step.output_distribution == "normal":
        edge = 1e-7 - np.spacing(1)
        inner = normal_quantile(site, clipped(site, y, 1e-9, 1 - 1e-9))
        y = clipped(site, inner, float(stats.norm.ppf(edge)), float(stats.norm.ppf(1 - edge)))
    return site.writer.columns_of(y, block)


# --- powers and functions ----------------------------------------------------------------------------------------------------


def _emit_power(site: Site, block: Block) -> Block:
    x, step = matrix_of(site, block), site.step
    lambdas = np.asarray(step.lambdas_, dtype=np.float64)
    y = _box_cox(site, x, lambdas) if step.method == "box-cox" else _yeo_johnson(site, x, lambdas)
    if step.method == "box-cox":
        for column in block:
            site.limit(column, low=_LEAST)
    if step.standardize:
        scaler = step._scaler
        y = site.node("Div", site.node("Sub", y, site.number(scaler.mean_)), site.number(scaler.scale_))
    return site.writer.columns_of(y, block)


def _power(site: Site, log: str, exponents: str, logarithmic: str) -> str:
    """(exp(exponent * log) - 1) / exponent, and the logarithm itself where the exponent counts as 0."""
    return site.node("Where", logarithmic, log, site.node("Div", expm1(site, site.node("Mul", exponents, log)), exponents))


def _yeo_johnson(site: Site, x: str, lambdas: np.ndarray) -> str:
    positive = site.node("GreaterOrEqual", x, site.number(0.0))
    log = log1p(site, site.node("Abs", x))
    exponents = site.node("Where", positive, site.number(lambdas), site.number(2 - lambdas))
    above, below = (site.writer.constant(v, at=site.at) for v in (np.abs(lambdas) < _EPSILON, ~(np.abs(lambdas - 2) > _EPSILON)))
    logarithmic = site.node("Or", site.node("And", positive, above), site.node("And", site.node("Not", positive), below))
    y = _power(site, log, exponents, logarithmic)
    return site.node("Where", positive, y, site.node("Neg", y))


def _box_cox(site: Site, x: str, lambdas: np.ndarray) -> str:
    return _power(site, site.node("Log", x), site.number(lambdas), site.writer.constant(np.abs(lambdas) < 1e-19, at=site.at))


def _plain(op: str) -> Callable[[Site, str], str]:
    return lambda site, x: site.node(op, x)


def _logarithm(base: float) -> Callable[[Site, str], str]:
    return lambda site, x: site.node("Div", site.node("Log", x), site.number(math.log(base)))


#: Functions of NumPy that have a graph: name → (writer, least and largest argument with a finite answer).
_FUNCTIONS: Final[dict[str, tuple[Callable[[Site, str], str], float, float]]] = {
    "abs": (_plain("Abs"), -math.inf, math.inf),
    "ceil": (_plain("Ceil"), -math.inf, math.inf),
    "exp": (_plain("Exp"), -math.inf, _EXP_LIMIT),
    "expm1": (expm1, -math.inf, _EXP_LIMIT),
    "floor": (_plain("Floor"), -math.inf, math.inf),
    "log": (_plain("Log"), _LEAST, math.inf),
    "log10": (_logarithm(10), _LEAST, math.inf),
    "log1p": (log1p, float(np.nextafter(-1, 0)), math.inf),
    "log2": (_logarithm(2), _LEAST, math.inf),
    "negative": (_plain("Neg"), -math.inf, math.inf),
    "rint": (_plain("Round"), -math.inf, math.inf),
    "sign": (_plain("Sign"), -math.inf, math.inf),
    "sqrt": (_plain("Sqrt"), 0.0, math.inf),
    "square": (lambda site, x: site.node("Mul", x, x), -math.inf, math.inf),
}
_ALIASES: Final = {"absolute": "abs", "fabs": "abs"}


def function_name(function: object) -> str | None:
    """Return the name of a NumPy function that has a graph, or None."""
    if not isinstance(function, np.ufunc):
        return None
    name = _ALIASES.get(function.__name__, function.__name__)
    return name if name in _FUNCTIONS and getattr(np, function.__name__, None) is function else None


def emit_function(site: Site, function: object, x: str) -> str:
    """Write a NumPy function that `function_name` knows."""
    name = function_name(function)
    assert name is not None
    return _FUNCTIONS[name][0](site, x)


def _emit_function(site: Site, block: Block) -> Block:
    step = site.step
    if step.func is None:
        return block
    name = function_name(step.func)
    if name is None or step.kw_args:
        raise site.unsupported(
            f"it calls Python code ({getattr(step.func, '__name__', step.func)}), which a graph cannot hold; the identity (func=None) and "
            f"NumPy's {', '.join(_FUNCTIONS)} without arguments are supported: compute this column before training and send it as a raw "
            "field"
        )
    if name == "square" and not _all_floats(site.data):
        raise site.unsupported("square of whole numbers is made in int64, which overflows; make the column float64 before it")
    write, low, high = _FUNCTIONS[name]
    if math.isfinite(low) or math.isfinite(high):
        for column in block:
            site.limit(column, low=low, high=high)
    return site.writer.columns_of(write(site, matrix_of(site, block)), block)


def _all_floats(data: Any) -> bool:
    dtypes = data.dtypes if hasattr(data, "dtypes") else [data.dtype]
    return all(getattr(dtype, "kind", "") == "f" for dtype in dtypes)


def _emit_binarizer(site: Site, block: Block) -> Block:
    above = site.node("Greater", matrix_of(site, block), site.number(site.step.threshold))
    return site.writer.columns_of(site.writer.cast(above, "float64", at=site.at), block)


# --- over a whole row --------------------------------------------------------------------------------------------------------


def _components(site: Site, block: Block) -> str:
    components = np.asarray(site.step.components_)
    if components.dtype != np.float64:
        raise site.unsupported(f"it was fitted in {components.dtype}; fit it on float64")
    return site.writer.product(matrix_of(site, block), site.number(components.T), at=site.at)


def _projected(site: Site, tensor: str) -> Block:
    count = len(site.step.components_)
    return [Column(f"component {i}", tensor, i, count, "float64") for i in range(count)]


def _emit_pca(site: Site, block: Block) -> Block:
    step = site.step
    tensor = site.node("Sub", _components(site, block), site.number(np.reshape(step.mean_, (1, -1)) @ step.components_.T))
    if step.whiten:
        scale = np.maximum(np.sqrt(step.explained_variance_), _EPSILON)
        tensor = site.node("Div", tensor, site.number(scale))
    return _projected(site, tensor)


def _emit_svd(site: Site, block: Block) -> Block:
    return _projected(site, _components(site, block))


def _emit_normalizer(site: Site, block: Block) -> Block:
    x, axis = matrix_of(site, block), site.writer.constant(np.array([1], dtype=np.int64), at=site.at)
    if site.step.norm == "l2":
        norm = site.node("Sqrt", site.node("ReduceSum", site.node("Mul", x, x), axis))
    else:
        norm = site.node("ReduceSum" if site.step.norm == "l1" else "ReduceMax", site.node("Abs", x), axis)
    # Dense rows count as zero below ten epsilon, sparse ones at zero only.
    least = 0.0 if sparse.issparse(site.data) else float(10 * _EPSILON)
    small = site.node("LessOrEqual" if least == 0 else "Less", norm, site.number(least))
    return site.writer.columns_of(site.node("Div", x, site.node("Where", small, site.number(1.0), norm)), block)


def _emit_polynomial(site: Site, block: Block) -> Block:
    """Each term is the term without its first factor, times that factor: the order in which scikit-learn multiplies."""
    terms = [tuple(np.repeat(np.arange(len(block)), powers).tolist()) for powers in site.step.powers_]
    degree = max((len(term) for term in terms), default=0)
    if sparse.issparse(site.data) and degree > 2:
        raise site.unsupported("on sparse data it multiplies three and more factors in another order; make the steps before it dense")
    x = matrix_of(site, block)
    made: dict[tuple[int, ...], tuple[str, int, int]] = {(j,): (x, j, len(block)) for j in range(len(block))}
    needed = {term[i:] for term in terms for i in range(len(term))}
    for length in range(2, degree + 1):
        wanted = sorted(term for term in needed if len(term) == length)
        rest = [Column("", *made[term[1:]], dtype="float64") for term in wanted]
        first = [Column("", x, term[0], len(block), "float64") for term in wanted]
        product = site.node("Mul", site.writer.matrix(rest, at=site.at), site.writer.matrix(first, at=site.at))
        made |= {term: (product, i, len(wanted)) for i, term in enumerate(wanted)}
    zero = site.node("Sub", x, x) if () in terms else ""
    one = site.node("Add", zero, site.number(1.0)) if zero else ""
    labels = [" ".join(block[j].label for j in term) or "1" for term in terms]
    return [
        Column(label, *(made[term] if term else (one, 0, len(block))), dtype="float64") for label, term in zip(labels, terms, strict=True)
    ]


NUMBER_EMITTERS: Final[dict[type, Emit]] = {
    Binarizer: _emit_binarizer,
    FunctionTransformer: _emit_function,
    KBinsDiscretizer: _emit_bins,
    Normalizer: _emit_normalizer,
    PCA: _emit_pca,
    PolynomialFeatures: _emit_polynomial,
    PowerTransformer: _emit_power,
    QuantileTransformer: _emit_quantiles,
    TruncatedSVD: _emit_svd,
}

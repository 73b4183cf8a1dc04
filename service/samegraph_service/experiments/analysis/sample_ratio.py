"""Whether the arms got the shares they were planned to get. If not, something is wrong before any metric is read.

    observed   what each arm got: S_i, their sum n
    shares     what each was planned to get: theta_i, adding up to 1

The same formulas test events (errors, say) against the arms' shares of the traffic, without any denominators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from samegraph_service.drift.distributions import chi2_sf

#: Strength of the prior around the planned shares: about this many observations' worth.
CONCENTRATION = 10_000.0
#: Below this a sample ratio is called broken.
SRM_ALPHA = 0.001


def chi_square(observed: Sequence[float], shares: Sequence[float]) -> tuple[float, float]:
    """Return chi² = sum (O - E)²/E and its p-value with one degree of freedom less than arms; valid for one look.

    Args:
        observed: Units of each arm, >= 0. Requests of sticky units spread more than this allows: divide by their design effect first.
        shares: Planned share of each arm, > 0; brought to a sum of 1.

    Source: Pearson 1900; as a check of experiments: Fabijan et al., Diagnosing sample ratio mismatch in online controlled
    experiments, 2019.
    """
    n, whole = sum(observed), sum(shares)
    if n <= 0:
        return 0.0, 1.0
    statistic = sum((o - n * s / whole) ** 2 / (n * s / whole) for o, s in zip(observed, shares, strict=True))
    return statistic, float(chi2_sf(statistic, len(observed) - 1))


def log_bayes_factor(observed: Sequence[float], shares: Sequence[float], concentration: float = CONCENTRATION) -> float:
    """Return ln BF of "other shares" against the planned ones; a martingale under the planned ones, so it may be looked at always.

    lgamma(sum a) - sum lgamma(a_i) + sum lgamma(a_i + S_i) - lgamma(sum a + n) - sum S_i ln theta_i, a_i = concentration · theta_i.

    Source: Lindon, Malek, Anytime-valid inference for multinomial count data, 2022 (arXiv 2011.03567).
    """
    whole = sum(shares)
    theta = [s / whole for s in shares]
    prior = [concentration * t for t in theta]
    return (
        math.lgamma(sum(prior))
        - sum(map(math.lgamma, prior))
        + sum(math.lgamma(a + s) for a, s in zip(prior, observed, strict=True))
        - math.lgamma(sum(prior) + sum(observed))
        - sum(s * math.log(t) for s, t in zip(observed, theta, strict=True))
    )


def sequential_p_value(observed: Sequence[float], shares: Sequence[float], concentration: float = CONCENTRATION) -> float:
    """Return min(1, 1/BF): below alpha at any look ever with chance at most alpha while the planned shares hold."""
    return min(1.0, math.exp(-max(log_bayes_factor(observed, shares, concentration), 0.0)))

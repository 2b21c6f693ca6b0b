"""Exact binomial and beta-binomial probabilities, for intervals and for what a conformal limit promises."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def cdf(most: int, count: int, p: float) -> float:
    """P(at most `most` of `count`), each with probability `p` strictly between 0 and 1."""
    if most < 0:
        return 0.0
    terms = [log_choose(count, k) + k * math.log(p) + (count - k) * math.log1p(-p) for k in range(most + 1)]
    return min(1.0, math.fsum(map(math.exp, terms)))


def clopper_pearson(wrong: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a share, `wrong` of `count` (Clopper and Pearson, 1934); (0, 1) of nothing."""
    tail = (1.0 - level) / 2.0
    low = 0.0 if wrong == 0 else _solve(lambda p: 1.0 - cdf(wrong - 1, count, p) - tail)
    return low, upper_bound(wrong, count, tail)


def upper_bound(wrong: int, count: int, tail: float) -> float:
    """The share above which so few as `wrong` of `count` have a probability below `tail`."""
    return 1.0 if wrong == count else _solve(lambda p: tail - cdf(wrong, count, p))


def beta_binomial_tail(least: int, count: int, a: float, b: float) -> float:
    """P(at least `least` of `count`), where each has the same probability, itself drawn from Beta(a, b)."""
    logs = [log_choose(count, k) + log_beta(k + a, count - k + b) - log_beta(a, b) for k in range(least, count + 1)]
    return min(1.0, math.fsum(map(math.exp, logs)))


def central_range(count: int, p: float, level: float) -> tuple[int, int]:
    """The narrowest central range of a binomial that leaves at most (1 - level)/2 on each side."""
    tail = (1.0 - level) / 2.0
    terms = [log_choose(count, k) + k * math.log(p) + (count - k) * math.log1p(-p) for k in range(count + 1)]
    cumulated = np.cumsum(np.exp(terms))
    return int(np.searchsorted(cumulated, tail, side="right")), int(np.searchsorted(cumulated, 1.0 - tail, side="left"))


def log_choose(count: int, k: int) -> float:
    """Logarithm of the binomial coefficient."""
    return math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)


def log_beta(a: float, b: float) -> float:
    """Logarithm of the beta function."""
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _solve(rising: Callable[[float], float]) -> float:
    """Where a rising function of (0, 1) is zero, by halving."""
    low, high = 1e-12, 1.0 - 1e-12
    for _ in range(60):
        middle = 0.5 * (low + high)
        if rising(middle) < 0.0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)

"""Limits from good parts alone: at which score a part is rejected, and what that choice promises.

* `conformal_limit`: split conformal prediction (Vovk et al., 2005; Lei et al., 2018). With n scores of good parts the
  fit has not seen, the k-th smallest, k = ceil((n + 1)(1 - rate)), is exceeded by the next good part with a
  probability of at most `rate`, whatever the scores' distribution. The smallest rate n scores can promise is 1/(n+1).
* `fit_tail`: a generalised Pareto distribution on the largest scores (Pickands, 1975), fitted by probability-weighted
  moments (Hosking and Wallis, 1987): a second opinion that can look past the largest score, but promises nothing.
* `choose_limit`: the first where the scores allow it, else an extrapolation, always with plain words about which.

A part is rejected when its score is *greater* than the limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.binomial import beta_binomial_tail, upper_bound
from calibration.errors import FitError, TooFewImages

TAIL_SHARE = 0.25
TAIL_MINIMUM = 10
"""A Pareto tail is fitted to the largest quarter of the scores, and only to ten or more."""

CONFIDENCE = 0.95
"""Share of calibrations in which the rate told beside the promise is kept."""


class Origin(str, Enum):
    """Where the scores of good parts came from, which decides what a limit may promise."""

    HELD_OUT = "held-out"  # images the fit has not seen: the conformal promise holds
    CROSS = "cross-validated"  # each image scored by a fit without it: honest scores, but no promise
    AUGMENTED = "augmented"  # altered copies of images the fit has seen: a rough guess


@dataclass(frozen=True)
class Tail:
    """Generalised Pareto tail: P(score > x) = share * (1 + shape * (x - start) / scale)^(-1/shape) for x > start."""

    start: float
    share: float
    shape: float
    scale: float

    def quantile(self, rate: float) -> float:
        """The score exceeded with probability `rate`, at most `share`."""
        ratio = rate / self.share
        if abs(self.shape) < 1e-9:
            return self.start - self.scale * math.log(ratio)
        return self.start + self.scale * math.expm1(-self.shape * math.log(ratio)) / self.shape


@dataclass(frozen=True)
class Choice:
    """A limit and how it came about; `guaranteed` tells whether the finite-sample promise holds at `rate`."""

    limit: float
    floor: float  # shown as 0 percent of limit: the median good part
    rate: float
    origin: Origin
    scores: int
    method: str
    guaranteed: bool
    words: str
    second_opinion: float | None  # limit by the Pareto tail, where there are scores enough


def smallest_rate(count: int) -> float:
    """The smallest false-reject rate that `count` held-out good parts can promise: 1/(count + 1)."""
    return 1.0 / (count + 1)


def images_for(rate: float) -> int:
    """How many held-out good parts a promise of `rate` needs: the least n with 1/(n + 1) <= rate."""
    check_rate(rate)
    # The slack keeps 1/0.01 = 100.00000000000001 and the like from asking for one image more.
    return max(1, math.ceil(1.0 / rate - 1e-9) - 1)


def check_rate(rate: float) -> None:
    """Raises `FitError` where a false-reject rate is no share between 0 and 1."""
    if not 0.0 < rate < 1.0:
        raise FitError(f"false-reject rate {rate}: give a share above 0 and below 1, such as 0.01 for one in a hundred")


def conformal_limit(scores: ArrayLike, rate: float) -> float:
    """The smallest limit that a new good part exceeds with probability at most `rate` (exchangeable scores).

    Raises `TooFewImages`, naming the smallest rate these scores can promise.
    """
    check_rate(rate)
    values = _checked(scores)
    rank = _rank(values.size, rate)
    if rank > values.size:
        raise TooFewImages(
            f"{values.size} held-out images cannot promise a false-reject rate of {percent(rate)}: the smallest rate "
            f"they can promise is {percent(smallest_rate(values.size))}; bring {images_for(rate)} held-out images, or "
            "ask for a higher rate"
        )
    return float(values[rank - 1])


def exceeding_share(rate: float, count: int, fresh: int) -> float:
    """The chance that more than a share `rate` of `fresh` new good parts exceed the limit that `count` scores chose.

    With the limit at rank k of n scores, the true rate is Beta(n + 1 - k, k) over calibrations (Vovk, 2012), so the
    number of new parts that exceed it is beta-binomial: the promise holds on average, not each time.
    """
    over = count + 1 - _rank(count, rate)
    return beta_binomial_tail(math.floor(rate * fresh + 1e-9) + 1, fresh, over, count + 1 - over)


def confident_rate(rate: float, count: int, confidence: float = CONFIDENCE) -> float:
    """The rate that the limit of `count` scores for `rate` keeps to in a share `confidence` of all calibrations."""
    return upper_bound(count - _rank(count, rate), count, 1.0 - confidence)


def _rank(count: int, rate: float) -> int:
    """Which of `count` scores in rising order is the limit; above `count` where none is high enough."""
    return max(math.ceil((count + 1) * (1.0 - rate) - 1e-9), 1)


def fit_tail(scores: ArrayLike) -> Tail:
    """Fits a generalised Pareto distribution to the largest quarter (at least ten) of the scores.

    Raises `TooFewImages` below twenty scores and `FitError` where the largest are all equal.
    """
    values = _checked(scores)
    if values.size < 2 * TAIL_MINIMUM:
        raise TooFewImages(f"{values.size} scores are too few for a tail fit; bring {2 * TAIL_MINIMUM} or more")
    count = max(TAIL_MINIMUM, math.ceil(TAIL_SHARE * values.size))
    start = float(values[-count - 1])
    excess = values[-count:] - start
    plotting = (np.arange(1, count + 1) - 0.35) / count
    mean, moment = float(excess.mean()), float(((1.0 - plotting) * excess).mean())
    spread = mean - 2.0 * moment
    if mean <= 0.0 or spread <= 0.0:
        raise FitError("the largest scores are all equal, so no tail can be fitted; check the images for copies")
    return Tail(start, count / values.size, 2.0 - mean / spread, 2.0 * mean * moment / spread)


def choose_limit(scores: ArrayLike, rate: float, origin: Origin, strict: bool = False) -> Choice:
    """A limit for a false-reject rate of `rate`, from scores of good parts.

    Held-out scores that are numerous enough give the conformal limit and its promise. Else the limit is extrapolated:
    by the Pareto tail, or below twenty scores by an exponential tail above the median, and never below the largest
    score. `strict` raises `TooFewImages` instead.
    """
    check_rate(rate)
    values = _checked(scores)
    second = _second_opinion(values, rate)
    enough = values.size >= images_for(rate)
    if origin is Origin.HELD_OUT and (enough or strict):
        limit, guaranteed, method = conformal_limit(values, rate), True, "split conformal quantile"
        words = (
            f"At most {percent(rate)} of good parts are rejected on average, as long as they look like the "
            f"{values.size} held-out images; no assumption on their scores is made. In {percent(CONFIDENCE)} of all "
            f"such calibrations at most {percent(confident_rate(rate, values.size))} are."
        )
    elif strict:
        raise TooFewImages(
            f"too few images to hold {images_for(rate)} out, which a promise of {percent(rate)} needs; bring more "
            "images or ask for a higher rate"
        )
    else:
        largest = float(values[-1])
        if second is not None:
            limit, method = max(second, largest), f"generalised Pareto tail over {origin.value} scores"
        else:
            limit, method = max(_exponential(values, rate), largest), f"exponential tail over {origin.value} scores"
        guaranteed, words = False, _no_promise(values.size, rate, origin)
    median = float(np.median(values))
    limit = max(limit, median + max(1e-6, 1e-3 * abs(median)))  # equal scores must leave a scale to show percent on
    return Choice(limit, median, rate, origin, values.size, method, guaranteed, words, second)


def _no_promise(count: int, rate: float, origin: Origin) -> str:
    needed = images_for(rate)
    if origin is Origin.HELD_OUT:
        return (
            f"No guarantee: {count} held-out images can promise a false-reject rate of {percent(smallest_rate(count))} "
            f"at best; {percent(rate)} needs {needed}. The limit is an extrapolation."
        )
    how = (
        "each image was scored by a fit that had not seen it"
        if origin is Origin.CROSS
        else "altered copies of the images were scored, because there are too few images to hold any out"
    )
    advice = (
        ""
        if origin is Origin.CROSS
        else " Parts differ more than altered copies of one do, so expect far more false rejects than asked: bring "
        "more images, or choose the limit on other good parts with `calibrate limit`."
    )
    return (
        f"No guarantee: {how}, so the limit is an estimate.{advice} A promised rate of {percent(rate)} needs {needed} "
        "images held out of the fit."
    )


def _second_opinion(values: NDArray[np.float64], rate: float) -> float | None:
    try:
        tail = fit_tail(values)
    except (TooFewImages, FitError):
        return None
    return tail.quantile(rate) if rate <= tail.share else float(np.quantile(values, 1.0 - rate))


def _exponential(values: NDArray[np.float64], rate: float) -> float:
    """Extrapolates above the median with an exponential tail: the only shape that a handful of scores can carry."""
    median = float(np.median(values))
    above = values[values > median]
    scale = float((above - median).mean()) if above.size else 0.0
    return median + scale * math.log(max(0.5 / rate, 1.0))


def _checked(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.sort(np.asarray(scores, np.float64).ravel())
    if values.size == 0:
        raise TooFewImages("no scores of good parts to choose a limit from; bring images of good parts")
    if not np.isfinite(values).all():
        raise FitError("some scores of good parts are not finite; check the head and the encoder's weights")
    return values


def percent(rate: float) -> str:
    """A share as percent with as many digits as it needs: 0.01 -> '1 %'."""
    return f"{100.0 * rate:.3g} %"

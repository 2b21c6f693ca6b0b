"""Limits where defects are labelled too: the best F1, no miss, or the false-reject rate of good parts alone.

Three rules, of which none is right everywhere:

* `false_reject`: what good parts allow (`calibration.thresholds`), whatever it misses.
* `f1`: the limit of the largest F1 over the labelled images (van Rijsbergen, 1979); of equal ones the highest.
* `zero_miss`: the highest limit that misses none of the labelled defects. By exchangeability the next defect like the
  m labelled ones is missed with a probability of at most 1/(m + 1) (Vovk et al., 2005, as for good parts).

Counts on the images that chose a limit flatter it, so each rule is also cross-validated: chosen on nine tenths of the
images and counted on the last tenth. Intervals are exact (Clopper and Pearson, 1934).

Several regions: where all defective images have masks, each region's limit is chosen on good images and on the defects
that touch it; a region that no defect touches keeps its limit. Else all limits are moved by one factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.binomial import clopper_pearson
from calibration.errors import DataError
from calibration.metrics import image_ranking
from calibration.thresholds import Choice, Origin, choose_limit

FOLDS = 10

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Rule(str, Enum):
    """How a limit is chosen."""

    FALSE_REJECT = "false_reject"
    F1 = "f1"
    ZERO_MISS = "zero_miss"


@dataclass(frozen=True)
class Labelled:
    """Scores [n, R] of labelled images, which of them are defective [n], and where the limits are now [R] each.

    `touches` [n, R]: which regions an image's defect touches; None where masks are missing.
    """

    scores: Floats
    defective: Flags
    touches: Flags | None
    limits: Floats
    floors: Floats

    @property
    def good(self) -> int:
        """Number of good images."""
        return int((~self.defective).sum())

    @property
    def bad(self) -> int:
        """Number of defective images."""
        return int(self.defective.sum())

    @property
    def by_region(self) -> bool:
        """Whether each region's limit is chosen by itself."""
        return self.scores.shape[1] == 1 or self.touches is not None

    def take(self, chosen: Flags) -> Labelled:
        """Some of the images."""
        touches = None if self.touches is None else self.touches[chosen]
        return Labelled(self.scores[chosen], self.defective[chosen], touches, self.limits, self.floors)

    def percents(self, limits: Floats | None = None) -> Floats:
        """Each image's percent of limit [n], of its worst region; of the present limits where none are given."""
        limits = self.limits if limits is None else limits
        found: Floats = (100.0 * (self.scores - self.floors) / (limits - self.floors)).max(axis=1)
        return found

    def rejected(self, limits: Floats) -> Flags:
        """Which images [n] limits [R] reject."""
        return np.asarray((self.scores > limits).any(axis=1), bool)


@dataclass(frozen=True)
class Count:
    """So many of so many, with the exact 95 % interval of the share."""

    wrong: int
    count: int

    @property
    def share(self) -> float | None:
        """The share; None of nothing."""
        return self.wrong / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper and Pearson's, at 95 %."""
        return clopper_pearson(self.wrong, self.count)


@dataclass(frozen=True)
class LabelledChoice:
    """Limits [R] by one rule, and what they do to the labelled images. `validated` counts images that did not choose.

    `percents` [R] is where the new limits lie in percent of the present ones.
    """

    rule: Rule
    limits: Floats
    percents: Floats
    false_rejects: Count
    misses: Count
    validated: tuple[Count, Count] | None
    tails: tuple[Choice, ...] = ()  # of FALSE_REJECT: how each region's limit came about


def choose(rule: Rule, data: Labelled, rate: float, seed: int = 0) -> LabelledChoice:
    """The limits by `rule`. `rate` is the false-reject rate asked of all regions together.

    Raises `DataError` where there are no good or (but for FALSE_REJECT) no defective images.
    """
    check(rule, data)
    limits, tails = _limits(rule, data, rate)
    wrong, missed = _errors(data, limits)
    percents = 100.0 * (limits - data.floors) / (data.limits - data.floors)
    return LabelledChoice(rule, limits, percents, wrong, missed, _validate(rule, data, rate, seed), tails)


def check(rule: Rule, data: Labelled) -> None:
    """Raises `DataError` where the images do not allow `rule`."""
    if not data.good:
        raise DataError("none of the labelled images is good, so no limit can be chosen; add good ones")
    if rule is not Rule.FALSE_REJECT and not data.bad:
        raise DataError(f"none of the labelled images is defective: the rule {rule.value} needs defects")


def _limits(rule: Rule, data: Labelled, rate: float) -> tuple[Floats, tuple[Choice, ...]]:
    good = data.scores[~data.defective]
    regions = data.scores.shape[1]
    if rule is Rule.FALSE_REJECT:
        tails = tuple(choose_limit(column, rate / regions, Origin.HELD_OUT) for column in good.T)
        return np.array([tail.limit for tail in tails]), tails
    pick = f1_limit if rule is Rule.F1 else zero_miss_limit
    if not data.by_region:
        percents = data.percents()
        percent = pick(percents[~data.defective], percents[data.defective])
        return data.floors + (data.limits - data.floors) * percent / 100.0, ()
    limits = data.limits.copy()
    for region in range(regions):
        here = data.defective if data.touches is None else data.defective & data.touches[:, region]
        if here.any():
            limits[region] = pick(good[:, region], data.scores[here, region])
    return limits, ()


def f1_limit(good: ArrayLike, bad: ArrayLike) -> float:
    """The limit of the largest F1 over scores of good and defective images; half way to the next lower score."""
    negatives, positives = np.asarray(good, np.float64).ravel(), np.asarray(bad, np.float64).ravel()
    scores = np.concatenate((negatives, positives))
    labels = np.repeat((0, 1), (negatives.size, positives.size))
    _, threshold = image_ranking(labels, scores).f1_max
    return _just_below(threshold, scores)


def zero_miss_limit(good: ArrayLike, bad: ArrayLike) -> float:
    """The highest limit that rejects every defective image; half way to the next lower score of a good one."""
    negatives, positives = np.asarray(good, np.float64).ravel(), np.asarray(bad, np.float64).ravel()
    return _just_below(float(positives.min()), negatives)


def _just_below(threshold: float, scores: Floats) -> float:
    """A limit that `threshold` exceeds, and that no lower score exceeds which does not have to."""
    below = scores[scores < threshold]
    if not below.size:
        return float(np.nextafter(threshold, -np.inf))
    middle = 0.5 * (threshold + float(below.max()))
    return middle if middle < threshold else float(below.max())


def _errors(data: Labelled, limits: Floats) -> tuple[Count, Count]:
    rejected = data.rejected(limits)
    return (
        Count(int((rejected & ~data.defective).sum()), data.good),
        Count(int((~rejected & data.defective).sum()), data.bad),
    )


def _validate(rule: Rule, data: Labelled, rate: float, seed: int) -> tuple[Count, Count] | None:
    """(false rejects, misses) of images that had no part in choosing; None where there are too few of a kind."""
    kinds = [data.good] if rule is Rule.FALSE_REJECT else [data.good, data.bad]
    folds = min(FOLDS, *kinds) if len(kinds) > 1 else min(FOLDS, kinds[0])
    if folds < 2:
        return None
    fold = np.empty(data.defective.size, np.int64)
    rng = np.random.default_rng([seed, 0xF01D])
    for kind in (data.defective, ~data.defective):
        fold[kind] = rng.permutation(int(kind.sum())) % folds
    wrong = missed = 0
    for number in range(folds):
        limits, _ = _limits(rule, data.take(fold != number), rate)
        false_rejects, misses = _errors(data.take(fold == number), limits)
        wrong, missed = wrong + false_rejects.wrong, missed + misses.wrong
    return Count(wrong, data.good), Count(missed, data.bad)

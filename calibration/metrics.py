"""The field's seven metrics, exactly: no thresholds are sampled and no score is binned.

Image AUROC, AP and F1-max; pixel AUROC, AP and F1-max; AU-PRO. Each is a function of how many negatives lie above
each distinct positive score, because between two positive scores neither recall nor region overlap changes. So only
the (few) positives are ranked one by one, and the (many) negatives are sorted without their labels, or for AU-PRO
only the part of them that false-positive rates up to the limit can reach.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.errors import MetricError

Floats = NDArray[Any]

AUPRO_LIMIT = 0.3
"""False-positive rate up to which AU-PRO is integrated, by the field's convention."""


@dataclass(frozen=True)
class Ranking:
    """Positives and negatives ranked by score, descending.

    `scores`: the distinct positive scores. `weight`: the positives' weight at or above each (the true positives, when
    every weight is 1). `above`, `from_`: negatives strictly above, and at or above, each of those scores.
    """

    scores: Floats
    weight: NDArray[np.float64]
    above: NDArray[np.int64]
    from_: NDArray[np.int64]
    negatives: int

    @classmethod
    def of(cls, positives: Floats, negatives: Floats, weights: Floats | None = None) -> Ranking:
        """Ranks 1-D arrays of scores; `weights` belongs to the positives (default 1 each)."""
        order = np.sort(negatives)
        scores, weight = _cumulated(positives, weights)
        above = negatives.size - np.searchsorted(order, scores, side="right")
        from_ = negatives.size - np.searchsorted(order, scores, side="left")
        return cls(scores, weight, above.astype(np.int64), from_.astype(np.int64), negatives.size)

    @property
    def positives(self) -> float:
        """Total weight of the positives."""
        return float(self.weight[-1])

    @cached_property
    def auroc(self) -> float:
        """Area under the ROC curve: the chance that a positive outscores a negative, ties counting half."""
        gained = np.diff(self.weight, prepend=0.0)
        below = self.negatives - 0.5 * (self.above + self.from_)
        return float(gained @ below / (self.positives * self.negatives))

    @cached_property
    def average_precision(self) -> float:
        """Step-wise area under the precision-recall curve (no interpolation)."""
        gained = np.diff(self.weight, prepend=0.0)
        return float(gained @ (self.weight / (self.weight + self.from_)) / self.positives)

    @cached_property
    def f1_max(self) -> tuple[float, float]:
        """The largest F1 over every threshold, and the threshold (score >= threshold is positive) that gives it."""
        f1 = 2.0 * self.weight / (self.weight + self.from_ + self.positives)
        best = int(np.argmax(f1))
        return float(f1[best]), float(self.scores[best])


def _cumulated(positives: Floats, weights: Floats | None) -> tuple[Floats, NDArray[np.float64]]:
    """Distinct scores, descending, and the weight at or above each."""
    if weights is None:
        ranked = np.sort(positives)[::-1]
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        return ranked[last], (last + 1).astype(np.float64)
    order = np.argsort(positives)[::-1]
    ranked = positives[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    return ranked[last], np.cumsum(weights[order].astype(np.float64))[last]


def image_ranking(labels: ArrayLike, scores: ArrayLike) -> Ranking:
    """Ranks images: `labels` [N] (nonzero = defect) and `scores` [N].

    Raises `MetricError` where lengths differ, a score is not finite, or one of the two classes is absent.
    """
    truth, values = np.asarray(labels).astype(bool).ravel(), np.asarray(scores, np.float64).ravel()
    if truth.size != values.size:
        raise MetricError(f"{truth.size} labels for {values.size} scores; give one label per image")
    _check_finite(values, "image scores")
    _check_classes(int(truth.sum()), int((~truth).sum()), "image")
    return Ranking.of(values[truth], values[~truth])


def _check_finite(values: Floats, what: str) -> None:
    # min and max carry a NaN through and need no temporary array.
    if values.size == 0 or not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise MetricError(f"{what}: empty, or some are not finite; check the head and its weights")


def _check_classes(positives: int, negatives: int, what: str) -> None:
    if positives == 0:
        raise MetricError(f"no defective {what} among the data: ranking metrics need defects as well as good ones")
    if negatives == 0:
        raise MetricError(f"no good {what} among the data: ranking metrics need good ones as well as defects")


def region_weights(mask: NDArray[np.uint8], connectivity: int = 8) -> tuple[NDArray[np.float64], int]:
    """For each defective pixel (row-major), one over the area of its connected region; and the number of regions."""
    count, labels = cv2.connectedComponents(mask, connectivity=connectivity, ltype=cv2.CV_32S)
    flat = labels[mask > 0]
    areas = np.bincount(flat, minlength=count)
    return 1.0 / areas[flat], count - 1


class PixelScores:
    """Pixel scores of a data set, split into good and defective pixels; the pixel metrics follow from it.

    Add images one by one or as a stack; maps may differ in size from image to image.
    """

    def __init__(self, connectivity: int = 8) -> None:
        """`connectivity` of defect regions for AU-PRO: 8 (the field's choice) or 4."""
        if connectivity not in (4, 8):
            raise MetricError(f"connectivity {connectivity}: regions connect over 4 or 8 neighbours")
        self._connectivity = connectivity
        self._good: list[Floats] = []
        self._defective: list[Floats] = []
        self._weights: list[NDArray[np.float64]] = []
        self.regions = 0

    def add(self, maps: Floats, masks: NDArray[Any]) -> None:
        """Adds maps [H, W] or [N, H, W] with masks of the same shape (nonzero = defect).

        Raises `MetricError` where shapes differ or a score is not finite.
        """
        if maps.shape != masks.shape or maps.ndim not in (2, 3):
            raise MetricError(f"maps {list(maps.shape)} and masks {list(masks.shape)} must have one shape [N, H, W]")
        if maps.ndim == 2:
            maps, masks = maps[None], masks[None]
        _check_finite(maps, "anomaly maps")
        for one, mask in zip(maps, masks, strict=True):
            binary = (mask != 0).view(np.uint8)
            if not binary.any():
                self._good.append(one.ravel())
                continue
            weights, count = region_weights(binary, self._connectivity)
            self.regions += count
            self._weights.append(weights)
            self._defective.append(one[binary.view(bool)])
            self._good.append(one[~binary.view(bool)])

    def _split(self) -> tuple[Floats, Floats]:
        good = np.concatenate(self._good) if self._good else np.empty(0, np.float32)
        defective = np.concatenate(self._defective) if self._defective else np.empty(0, np.float32)
        _check_classes(defective.size, good.size, "pixel")
        return defective, good

    def ranking(self) -> Ranking:
        """Ranks all pixels (sorts every good pixel). Raises `MetricError` where one class is absent."""
        return Ranking.of(*self._split())

    def aupro(self, limit: float = AUPRO_LIMIT) -> float:
        """Area under the per-region-overlap curve over false-positive rates 0..`limit`, divided by `limit`.

        The curve has a vertex at every distinct threshold and is cut at the limit by linear interpolation
        (Bergmann et al., 2021, section 4; the usual codes sample 100 to 200 thresholds instead).
        """
        if not 0.0 < limit <= 1.0:
            raise MetricError(f"AU-PRO limit {limit}: give a false-positive rate above 0 and at most 1")
        defective, good = self._split()
        scores, overlap = _cumulated(defective, np.concatenate(self._weights))
        overlap /= self.regions
        total = good.size
        # Only the highest scores among good pixels lie within the limit: cut there, ties included, and sort those.
        cut, top = _top(good, min(total, int(limit * total) + 2))
        inside = int(np.searchsorted(-scores, -cut, side="right"))
        scores, overlap = scores[:inside], overlap[:inside]
        above = top.size - np.searchsorted(top, scores, side="right")
        from_ = top.size - np.searchsorted(top, scores, side="left")
        # Two vertices per distinct defective score: before it (good pixels only so far) and at it (with its ties).
        fpr = np.empty(2 * inside + 2)
        pro = np.empty(2 * inside + 2)
        fpr[0], pro[0] = 0.0, 0.0
        fpr[1:-1:2], fpr[2:-1:2] = above / total, from_ / total
        pro[1:-1:2], pro[2:-1:2] = np.concatenate(([0.0], overlap[:-1]))[:inside], overlap
        fpr[-1], pro[-1] = max(limit, float(fpr[-2])), pro[-2]
        return area_up_to(fpr, pro, limit)


def _top(values: Floats, count: int) -> tuple[float, Floats]:
    """A cut that at least `count` of the values reach, and those values in ascending order, ties complete.

    The cut is guessed from a strided sample and lowered until it holds: a few passes over the data, where
    `np.partition` needs many.
    """
    sample = np.sort(values[:: max(1, values.size // 200_000)])
    share = 1.05 * count / values.size
    while True:
        place = int(sample.size * (1.0 - share)) - 1
        cut = sample[place] if place > 0 else values.min()
        top = values[values >= cut]
        if top.size >= count:
            return float(cut), np.sort(top)
        share *= 1.2


def area_up_to(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Trapezoid area of y over ascending x in 0..limit, cut there by linear interpolation, divided by limit."""
    stop = int(np.searchsorted(x, limit, side="right"))
    area = float(np.diff(x[:stop]) @ (y[1:stop] + y[: stop - 1])) / 2.0
    if stop < x.size and x[stop] > x[stop - 1]:
        share = (limit - x[stop - 1]) / (x[stop] - x[stop - 1])
        end = y[stop - 1] + share * (y[stop] - y[stop - 1])
        area += 0.5 * (y[stop - 1] + end) * (limit - x[stop - 1])
    return area / limit


@dataclass(frozen=True)
class Seven:
    """The seven metrics of one class, 0..1."""

    image_auroc: float
    image_ap: float
    image_f1max: float
    pixel_auroc: float
    pixel_ap: float
    pixel_f1max: float
    aupro: float

    @property
    def mad(self) -> float:
        """Mean of the seven (mAD)."""
        values = asdict(self).values()
        return float(sum(values) / len(values))


def seven(labels: ArrayLike, scores: ArrayLike, pixels: PixelScores) -> Seven:
    """The seven metrics from image labels [N], image scores [N] and the pixels' scores."""
    image, pixel = image_ranking(labels, scores), pixels.ranking()
    return Seven(
        image.auroc,
        image.average_precision,
        image.f1_max[0],
        pixel.auroc,
        pixel.average_precision,
        pixel.f1_max[0],
        pixels.aupro(),
    )

"""Pixel metrics of any number of images in bounded memory, still exact.

Every metric needs, of all pixels, only how many good ones have each score and how much region weight each defective
score carries. Float32 scores of anomaly maps fall on few distinct values compared with the pixels of a large set (8.4
million from one power of two to the next), so scores are collected in a buffer and, whenever it is full, sorted and
merged into a table of distinct scores and their counts. 10,000 maps of 512 x 512 px are 2.6 billion pixels; the buffer
holds 32 million and the table at most the distinct scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import MetricError
from calibration.metrics import AUPRO_LIMIT, PixelScores, Ranking, area_up_to, region_weights

BUFFER = 1 << 25
"""Pixels that wait before they are merged."""


class Tally:
    """Distinct float32 scores in ascending order, and for each how many pixels have it and the sum of their weights."""

    def __init__(self, weighted: bool = False, buffer: int = BUFFER) -> None:
        """`weighted` keeps the weights' sums beside the counts; `buffer` is the number of scores that may wait."""
        self.scores: NDArray[np.float32] = np.empty(0, np.float32)
        self.counts: NDArray[np.int64] = np.empty(0, np.int64)
        self.weights: NDArray[np.float64] | None = np.empty(0, np.float64) if weighted else None
        self._limit = buffer
        self._waiting: list[tuple[NDArray[np.float32], NDArray[np.float64] | None]] = []
        self._held = 0

    def add(self, scores: NDArray[np.float32], weights: NDArray[np.float64] | None = None) -> None:
        """Adds 1-D scores, with one weight each where the tally is weighted."""
        self._waiting.append((scores, weights))
        self._held += scores.size
        if self._held >= self._limit:
            self.merge()

    def merge(self) -> None:
        """Sorts what waits into the table."""
        if not self._held:
            return
        scores = np.concatenate([scores for scores, _ in self._waiting])
        if self.weights is None:
            self._waiting.clear()
            scores.sort()
            first = _starts(scores)
            new = scores[first]
            counts = np.diff(first, append=scores.size)
        else:
            order = np.argsort(scores)
            scores = scores[order]
            weights = np.concatenate([weights for _, weights in self._waiting if weights is not None])[order]
            self._waiting.clear()
            first = _starts(scores)
            new = scores[first]
            counts = np.diff(first, append=scores.size)
            sums = np.add.reduceat(weights, first)
        self._held = 0
        if not self.scores.size:
            self.scores, self.counts = new, counts
            if self.weights is not None:
                self.weights = sums
            return
        at = np.searchsorted(self.scores, new)
        known = np.zeros(new.size, bool)
        inside = at < self.scores.size
        known[inside] = self.scores[at[inside]] == new[inside]
        self.counts[at[known]] += counts[known]
        fresh = ~known
        if self.weights is not None:
            self.weights[at[known]] += sums[known]
            self.weights = np.insert(self.weights, at[fresh], sums[fresh])
        self.counts = np.insert(self.counts, at[fresh], counts[fresh])
        self.scores = np.insert(self.scores, at[fresh], new[fresh])

    @property
    def total(self) -> int:
        """Pixels added."""
        return int(self.counts.sum()) + self._held


def _starts(ordered: NDArray[np.float32]) -> NDArray[np.int64]:
    """Where each distinct value of a sorted array begins."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))


class StreamedPixels(PixelScores):
    """`PixelScores` in bounded memory: the same metrics, equal to rounding, of any number of maps."""

    def __init__(self, connectivity: int = 8, buffer: int = BUFFER) -> None:
        """`connectivity` of regions for AU-PRO, 8 or 4; `buffer` is the number of pixels that may wait."""
        super().__init__(connectivity)
        self._of_good = Tally(buffer=buffer)
        self._of_defective = Tally(weighted=True, buffer=buffer)

    def add(self, maps: NDArray[Any], masks: NDArray[Any]) -> None:
        """Adds maps [H, W] or [N, H, W] with masks of the same shape (nonzero = defect), as float32.

        Raises `MetricError` where shapes differ or a score is not finite.
        """
        if maps.shape != masks.shape or maps.ndim not in (2, 3):
            raise MetricError(f"maps {list(maps.shape)} and masks {list(masks.shape)} must have one shape [N, H, W]")
        if maps.ndim == 2:
            maps, masks = maps[None], masks[None]
        if maps.size == 0 or not (np.isfinite(maps.min()) and np.isfinite(maps.max())):
            raise MetricError("anomaly maps: empty, or some are not finite; check the head and its weights")
        for one, mask in zip(maps.astype(np.float32), masks != 0, strict=True):
            # Adding 0 turns -0 into 0, so that equal scores are one value.
            flat, chosen = one.ravel() + np.float32(0.0), mask.ravel()
            if not chosen.any():
                self._of_good.add(flat)
                continue
            weights, count = region_weights(mask.view(np.uint8), self._connectivity)
            self.regions += count
            self._of_defective.add(flat[chosen], weights)
            self._of_good.add(flat[~chosen])

    @property
    def counts(self) -> tuple[int, int]:
        """(good, defective) pixels added."""
        return self._of_good.total, self._of_defective.total

    def ranking(self) -> Ranking:
        """Ranks all pixels. Raises `MetricError` where one class is absent."""
        weight = np.cumsum(self._merged()[1].counts[::-1]).astype(np.float64)
        return self._ranked(weight)

    def aupro(self, limit: float = AUPRO_LIMIT) -> float:
        """See `PixelScores.aupro`: exact, over every distinct score."""
        if not 0.0 < limit <= 1.0:
            raise MetricError(f"AU-PRO limit {limit}: give a false-positive rate above 0 and at most 1")
        weights = self._merged()[1].weights
        assert weights is not None
        ranked = self._ranked(np.cumsum(weights[::-1]) / self.regions)
        # Two vertices per distinct defective score: before it (good pixels only so far) and at it (with its ties).
        vertices = ranked.scores.size
        fpr, pro = np.zeros(2 * vertices + 2), np.zeros(2 * vertices + 2)
        fpr[1:-1:2], fpr[2::2][:vertices] = ranked.above / ranked.negatives, ranked.from_ / ranked.negatives
        pro[3:-1:2], pro[2::2][:vertices] = ranked.weight[:-1], ranked.weight
        fpr[-1], pro[-1] = 1.0, pro[-2]
        return area_up_to(fpr, pro, limit)

    def _merged(self) -> tuple[Tally, Tally]:
        self._of_good.merge()
        self._of_defective.merge()
        if not self._of_defective.scores.size:
            raise MetricError("no defective pixel among the data: pixel metrics need masks of defects")
        if not self._of_good.scores.size:
            raise MetricError("no good pixel among the data: the masks cover everything")
        return self._of_good, self._of_defective

    def _ranked(self, weight: NDArray[np.float64]) -> Ranking:
        good, defective = self._merged()
        below = np.concatenate(([0], np.cumsum(good.counts)))
        total = int(below[-1])
        scores = defective.scores[::-1]
        above = total - below[np.searchsorted(good.scores, scores, side="right")]
        from_ = total - below[np.searchsorted(good.scores, scores, side="left")]
        return Ranking(scores, weight, above, from_, total)

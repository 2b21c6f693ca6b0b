"""Confidence intervals of the image metrics by resampling images (Efron, 1979; percentile intervals).

Good and defective images are resampled apart, each with its own number, so that every resample has both and the share
of defects, on which AP and F1 depend, stays that of the data. Resampling is seeded and vectorised: a resample is a
vector of how often each image was drawn, and the metrics are cumulative sums over the images in order of score.

Pixel metrics get no interval: pixels of one image are not independent, and one resample of them costs as much as the
metric itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1max")
RESAMPLES = 1000
LEVEL = 0.95
_CELLS = 4_000_000  # of the work arrays at once


def resampled(labels: ArrayLike, scores: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Floats:
    """The three image metrics of each resample, [resamples, 3] in the order of `IMAGE_METRICS`.

    `labels` [N] (nonzero = defect) must hold both classes. Images are drawn in their order, so two runs over the same
    images with one seed are resampled alike and their differences can be taken resample by resample.
    """
    truth = np.asarray(labels).astype(bool).ravel()
    order = np.argsort(-np.asarray(scores, np.float64).ravel(), kind="stable")
    ranked = np.asarray(scores, np.float64).ravel()[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    rng = np.random.default_rng([seed, 0xB007])
    sides = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    out = np.empty((resamples, 3))
    step = max(1, _CELLS // truth.size)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = np.zeros((count, truth.size))
        for side in sides:
            drawn[:, side] = rng.multinomial(side.size, np.full(side.size, 1.0 / side.size), size=count)
        drawn = drawn[:, order]
        hits = np.cumsum(drawn * truth[order], axis=1)[:, ends]
        alarms = np.cumsum(drawn * ~truth[order], axis=1)[:, ends]
        out[start : start + count] = _metrics(hits, alarms, sides[0].size, sides[1].size)
    return out


def _metrics(hits: Floats, alarms: Floats, positives: int, negatives: int) -> Floats:
    """AUROC, AP and F1-max from true and false positives [resamples, thresholds] at falling thresholds."""
    gained = np.diff(hits, axis=1, prepend=0.0)
    before = np.concatenate((np.zeros((len(alarms), 1)), alarms[:, :-1]), axis=1)
    auroc = (gained * (negatives - 0.5 * (before + alarms))).sum(axis=1) / (positives * negatives)
    found = np.maximum(hits + alarms, 1.0)  # thresholds above every drawn image have found nothing, and gain nothing
    precision = (gained * hits / found).sum(axis=1) / positives
    f1 = (2.0 * hits / (hits + alarms + positives)).max(axis=1)
    return np.stack((auroc, precision, f1), axis=1)


def interval(samples: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of a metric's resamples."""
    low, high = np.quantile(np.asarray(samples, np.float64), ((1.0 - level) / 2.0, (1.0 + level) / 2.0))
    return float(low), float(high)


def mean_interval(samples: Sequence[Floats], level: float = LEVEL) -> list[tuple[float, float]]:
    """Intervals of the means over classes, from each class' resamples [resamples, M]."""
    mean = np.mean(np.stack(samples), axis=0)
    return [interval(mean[:, column], level) for column in range(mean.shape[1])]

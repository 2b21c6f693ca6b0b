"""Resampling equals the metrics of the drawn images; streamed pixel metrics equal those of all pixels at once."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.bootstrap import interval, mean_interval, resampled
from calibration.errors import MetricError
from calibration.metrics import PixelScores, image_ranking
from calibration.streaming import StreamedPixels, Tally


def scored(rng, good=40, bad=15, shift=1.0, levels=None):
    labels = np.repeat([0, 1], [good, bad])
    scores = rng.normal(labels * shift)
    return labels, scores if levels is None else np.round(scores * levels) / levels


@pytest.mark.parametrize("levels", [None, 2])
def test_resamples_equal_the_metrics_of_the_drawn_images(levels):
    labels, scores = scored(np.random.default_rng(1), levels=levels)
    order = np.random.default_rng(2).permutation(labels.size)
    labels, scores = labels[order], scores[order]
    found = resampled(labels, scores, seed=5, resamples=20)
    rng = np.random.default_rng([5, 0xB007])  # draws as documented: defects first, then good images
    bad, good = np.flatnonzero(labels), np.flatnonzero(labels == 0)
    of_bad = rng.multinomial(bad.size, np.full(bad.size, 1 / bad.size), size=20)
    of_good = rng.multinomial(good.size, np.full(good.size, 1 / good.size), size=20)
    for row, b, g in zip(found, of_bad, of_good, strict=True):
        drawn = np.concatenate((np.repeat(bad, b), np.repeat(good, g)))
        ranking = image_ranking(labels[drawn], scores[drawn])
        assert row == pytest.approx((ranking.auroc, ranking.average_precision, ranking.f1_max[0]), abs=1e-12)


def test_a_seed_gives_the_same_resamples():
    labels, scores = scored(np.random.default_rng(1))
    assert np.array_equal(resampled(labels, scores, 3, 50), resampled(labels, scores, 3, 50))
    assert not np.array_equal(resampled(labels, scores, 3, 50), resampled(labels, scores, 4, 50))


def test_equal_scores_give_an_auroc_of_half():
    found = resampled([0] * 5 + [1] * 5, np.ones(10), 0, 100)
    assert np.allclose(found[:, 0], 0.5)
    assert interval(found[:, 0]) == pytest.approx((0.5, 0.5))


def test_intervals_cover_the_true_auroc():
    """The AUROC of N(1,1) against N(0,1) is Phi(1/sqrt 2) = 0.7602; 95 % intervals miss it seldom."""
    rng, missed = np.random.default_rng(7), 0
    for trial in range(100):
        low, high = interval(resampled(*scored(rng, 60, 60), trial, 200)[:, 0])
        missed += not low <= 0.76025 <= high
    assert missed <= 13  # 5 expected; more than 13 would happen once in 2,000 runs of honest intervals


def test_the_mean_over_classes_is_narrower():
    rng = np.random.default_rng(3)
    samples = [resampled(*scored(rng), seed, 400) for seed in range(4)]
    alone = np.diff(interval(samples[0][:, 0]))[0]
    (low, high), *_ = mean_interval(samples)
    assert high - low < 0.75 * alone


def blobs(rng, count, size=(24, 30), levels=None):
    maps = rng.normal(size=(count, *size)).astype(np.float32)
    masks = np.zeros((count, *size), bool)
    for number in range(0, count, 2):
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
            masks[number, y : y + rng.integers(2, 6), x : x + rng.integers(2, 6)] = True
    maps += masks * 1.2
    return maps if levels is None else np.round(maps * levels).astype(np.float32) / levels, masks


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 6),
    levels=st.sampled_from([None, 1, 4]),
    buffer=st.sampled_from([1, 700, 3000, 1 << 20]),
    connectivity=st.sampled_from([4, 8]),
    limit=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_streamed_metrics_equal_those_of_all_pixels(seed, count, levels, buffer, connectivity, limit):
    maps, masks = blobs(np.random.default_rng(seed), count, levels=levels)
    whole, streamed = PixelScores(connectivity), StreamedPixels(connectivity, buffer)
    whole.add(maps, masks)
    for one, mask in zip(maps, masks, strict=True):
        streamed.add(one, mask)
    a, b = whole.ranking(), streamed.ranking()
    assert b.auroc == pytest.approx(a.auroc, abs=1e-12)
    assert b.average_precision == pytest.approx(a.average_precision, abs=1e-12)
    assert b.f1_max == pytest.approx(a.f1_max, abs=1e-12)
    assert streamed.aupro(limit) == pytest.approx(whole.aupro(limit), abs=1e-12)
    assert streamed.regions == whole.regions
    assert sum(streamed.counts) == maps.size


def test_memory_does_not_grow_with_the_number_of_maps():
    """Maps that share their scores, as upsampled patch maps of a large set nearly do, cost their table once."""
    rng = np.random.default_rng(0)
    maps, masks = blobs(rng, 4, (256, 256), levels=200)

    def peak(rounds: int) -> int:
        tracemalloc.start()
        pixels = StreamedPixels(buffer=1 << 18)
        for _ in range(rounds):
            pixels.add(maps, masks)
        pixels.aupro()
        (_, most) = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(40) < 1.2 * peak(4)


def test_a_tally_counts_every_score_once():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 50, 1000).astype(np.float32)
    tally = Tally(weighted=True, buffer=64)
    for start in range(0, 1000, 37):
        tally.add(values[start : start + 37], np.full(values[start : start + 37].size, 0.5))
    tally.merge()
    scores, counts = np.unique(values, return_counts=True)
    assert np.array_equal(tally.scores, scores)
    assert np.array_equal(tally.counts, counts)
    assert np.allclose(tally.weights, counts / 2)


def test_what_cannot_be_computed_is_said():
    maps = np.zeros((1, 4, 4), np.float32)
    pixels = StreamedPixels()
    pixels.add(maps, np.zeros((1, 4, 4), bool))
    with pytest.raises(MetricError, match="no defective pixel"):
        pixels.ranking()
    with pytest.raises(MetricError, match="not finite"):
        pixels.add(np.full((4, 4), np.nan, np.float32), np.zeros((4, 4), bool))
    with pytest.raises(MetricError, match="one shape"):
        pixels.add(maps, np.zeros((1, 4, 5), bool))
    everything = StreamedPixels()
    everything.add(maps, np.ones((1, 4, 4), bool))
    with pytest.raises(MetricError, match="cover everything"):
        everything.aupro()

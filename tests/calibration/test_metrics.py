import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.errors import MetricError
from calibration.metrics import PixelScores, image_ranking, seven

CASES = ("metrics_case1_float32_64x64", "metrics_case2_nonsquare_weak", "metrics_case3_quantised_ties_17_levels")


@pytest.fixture(params=CASES)
def golden(request, data):
    with np.load(data / f"{request.param}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.mark.parametrize("connectivity", [4, 8])
def test_aupro_equals_the_exact_definition(golden, connectivity):
    pixels = PixelScores(connectivity)
    pixels.add(golden["maps"], golden["masks"])
    assert pixels.regions == int(golden[f"exact/n_regions_conn{connectivity}"])
    for limit in (0.05, 0.3, 1.0):
        wanted = float(golden[f"exact/AUPRO_{limit}_conn{connectivity}"])
        assert pixels.aupro(limit) == pytest.approx(wanted, abs=1e-12)


def test_the_other_six_equal_the_exact_definitions(golden):
    image = image_ranking(golden["image_labels"], golden["image_scores"])
    pixels = PixelScores()
    for one, mask in zip(golden["maps"], golden["masks"], strict=True):
        pixels.add(one, mask)
    pixel = pixels.ranking()
    for prefix, ranking in (("I", image), ("P", pixel)):
        assert ranking.auroc == pytest.approx(float(golden[f"exact/{prefix}-AUROC"]), abs=1e-12)
        assert ranking.average_precision == pytest.approx(float(golden[f"exact/{prefix}-AP"]), abs=1e-12)
        assert ranking.f1_max[0] == pytest.approx(float(golden[f"exact/{prefix}-F1max"]), abs=1e-12)
        assert ranking.f1_max[1] == pytest.approx(float(golden[f"exact/{prefix}-F1max_threshold"]), abs=1e-12)
    all_of_them = seven(golden["image_labels"], golden["image_scores"], pixels)
    assert all_of_them.aupro == pytest.approx(float(golden["exact/AUPRO_0.3_conn8"]), abs=1e-12)
    assert all_of_them.mad == pytest.approx(
        np.mean([image.auroc, image.average_precision, image.f1_max[0], pixel.auroc, pixel.average_precision,
                 pixel.f1_max[0], all_of_them.aupro])
    )  # fmt: skip


def slow_aupro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """By the definition: one vertex per distinct threshold, nothing clever."""
    regions = []
    for number, mask in enumerate(masks):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += [(number, labels == label) for label in range(1, count)]
    x, y = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        hit = maps >= threshold
        x.append(hit[masks == 0].mean())
        y.append(np.mean([hit[number][region].mean() for number, region in regions]))
    end = np.interp(limit, x, y)  # x may repeat: take the last of equal ones, as np.interp does to the left
    inside = [(a, b) for a, b in zip(x, y, strict=True) if a <= limit] + [(limit, end)]
    if inside[-2][0] == limit:
        inside.pop()
    a, b = np.array(inside).T
    return float(((a[1:] - a[:-1]) * (b[1:] + b[:-1])).sum() / 2 / limit)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    levels=st.sampled_from([1, 2, 5, 1000]),
    limit=st.sampled_from([0.01, 0.3, 0.5, 1.0]),
    images=st.integers(1, 4),
)
def test_fast_aupro_is_the_slow_definition(seed, levels, limit, images):
    rng = np.random.default_rng(seed)
    masks = (rng.random((images, 9, 11)) < 0.2).astype(np.uint8)
    masks[0, 0, 0], masks[0, 8, 10] = 1, 0
    maps = (rng.integers(0, levels, masks.shape) / levels + 0.2 * masks).astype(np.float32)
    pixels = PixelScores()
    pixels.add(maps, masks)
    assert pixels.aupro(limit) == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_auroc_is_the_share_of_pairs_in_order(rows):
    labels, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], float)
    if labels.all() or not labels.any():
        with pytest.raises(MetricError):
            image_ranking(labels, scores)
        return
    good, bad = scores[~labels], scores[labels]
    pairs = [(b > g) + 0.5 * (b == g) for b in bad for g in good]
    assert image_ranking(labels, scores).auroc == pytest.approx(np.mean(pairs))


def test_scores_that_are_all_equal_tell_nothing():
    ranking = image_ranking([0, 1, 0, 1], [0.5] * 4)
    assert ranking.auroc == 0.5
    assert ranking.average_precision == 0.5
    pixels = PixelScores()
    pixels.add(np.zeros((1, 8, 8), np.float32), np.eye(8, dtype=np.uint8)[None])
    assert pixels.aupro(0.3) == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 0], [1.0, 2.0], "no defective image"),
        ([1, 1], [1.0, 2.0], "no good image"),
        ([0, 1], [1.0, float("nan")], "not finite"),
        ([0, 1, 1], [1.0, 2.0], "3 labels for 2 scores"),
    ],
)
def test_undefined_image_metrics_say_why(labels, scores, words):
    with pytest.raises(MetricError, match=words):
        image_ranking(labels, scores)


def test_undefined_pixel_metrics_say_why():
    pixels = PixelScores()
    with pytest.raises(MetricError, match="one shape"):
        pixels.add(np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 5), np.uint8))
    with pytest.raises(MetricError, match="not finite"):
        pixels.add(np.full((4, 4), np.inf, np.float32), np.zeros((4, 4), np.uint8))
    pixels.add(np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint8))
    with pytest.raises(MetricError, match="no defective pixel"):
        pixels.aupro()
    pixels.add(np.zeros((4, 4), np.float32), np.eye(4, dtype=np.uint8))
    with pytest.raises(MetricError, match="limit 0"):
        pixels.aupro(0.0)
    with pytest.raises(MetricError, match="connectivity 6"):
        PixelScores(6)

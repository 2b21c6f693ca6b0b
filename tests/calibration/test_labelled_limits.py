"""Limits from labelled images: the best there is, counted right, and written into a bundle of its own."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from calibration.binomial import cdf, clopper_pearson
from calibration.cli import app
from calibration.errors import CalibrationError, DataError
from calibration.fit import fit
from calibration.labelled_limits import (
    Labelled,
    Rule,
    choose,
    f1_limit,
    zero_miss_limit,
)
from calibration.options import FitOptions
from pipelines.bundle import Bundle
from pipelines.errors import BundleError

SCORES = st.lists(st.integers(0, 30).map(float), min_size=1, max_size=25)


def f1(limit: float, good, bad) -> float:
    hits, wrong = sum(score > limit for score in bad), sum(score > limit for score in good)
    return 2 * hits / (2 * hits + wrong + len(bad) - hits)


@settings(max_examples=200, deadline=None)
@given(SCORES, SCORES)
def test_no_limit_is_better(good, bad):
    every = [-1.0, *(value + 0.5 for value in range(-1, 31))]
    limit = f1_limit(good, bad)
    assert f1(limit, good, bad) == pytest.approx(max(f1(other, good, bad) for other in every))
    limit = zero_miss_limit(good, bad)
    assert min(bad) > limit
    wrong = sum(score > limit for score in good)
    assert wrong == min(sum(s > other for s in good) for other in every if all(s > other for s in bad))


def test_limits_lie_half_way_between_good_and_bad():
    assert f1_limit([1.0, 2.0], [4.0, 5.0]) == 3.0
    assert zero_miss_limit([1.0, 2.0], [4.0, 5.0]) == 3.0
    assert zero_miss_limit([6.0], [4.0]) < 4.0


def one_region(good, bad, limit=100.0, floor=0.0) -> Labelled:
    scores = np.array([*good, *bad], float)[:, None]
    defective = np.repeat((False, True), (len(good), len(bad)))
    return Labelled(scores, defective, None, np.array([limit]), np.array([floor]))


def test_counts_and_percents():
    data = one_region(range(100), [50, 98.5, 150, 160])
    best = choose(Rule.F1, data, 0.01)
    assert (best.false_rejects.wrong, best.misses.wrong) == (1, 1)
    assert best.percents[0] == pytest.approx(98.25)
    none = choose(Rule.ZERO_MISS, data, 0.01)
    assert (none.false_rejects.wrong, none.misses.wrong) == (50, 0)
    alone = choose(Rule.FALSE_REJECT, data, 0.01)
    assert alone.tails[0].guaranteed
    assert (alone.limits[0], alone.false_rejects.wrong, alone.misses.wrong) == (99.0, 0, 2)


def test_validation_counts_images_that_did_not_choose():
    """On images without any signal the best F1 flatters itself; unseen images say so."""
    rng = np.random.default_rng(0)
    data = one_region(rng.normal(size=60), rng.normal(size=12), 3.0, -3.0)
    choice = choose(Rule.ZERO_MISS, data, 0.1)
    assert choice.misses.wrong == 0
    assert choice.validated[1].wrong >= 1  # the lowest defect is always missed by the others' limit
    assert choose(Rule.F1, one_region([1, 2], [3]), 0.1).validated is None
    assert choose(Rule.F1, data, 0.1, seed=3).validated == choose(Rule.F1, data, 0.1, seed=3).validated


def test_the_next_defect_is_missed_as_rarely_as_promised():
    """1/(m + 1) on average over draws; the bound lets a sound implementation fail once in a million."""
    rng = np.random.default_rng(7)
    draws, m = 20_000, 9
    missed = 0
    for _ in range(draws):
        bad = rng.gamma(2.0, size=m + 1)
        missed += bad[-1] <= zero_miss_limit(rng.gamma(1.0, size=3), bad[:-1])
    expected = draws / (m + 1)
    assert missed <= expected + 4.9 * math.sqrt(expected)


def test_exact_intervals():
    known = ((0, 10, 0.0, 0.3085), (3, 10, 0.0667, 0.6525), (10, 10, 0.6915, 1.0), (1, 238, 0.0001, 0.0232))
    for wrong, count, low, high in known:
        assert clopper_pearson(wrong, count) == pytest.approx((low, high), abs=1e-4)
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert cdf(-1, 5, 0.5) == 0.0
    assert cdf(1, 2, 0.5) == pytest.approx(0.75)


def test_regions_by_their_own_defects_or_by_one_factor():
    scores = np.array([[1, 10], [2, 20], [3, 30], [9, 15], [2, 90]], float)
    defective = np.array([0, 0, 0, 1, 1], bool)
    touches = np.array([[0, 0], [0, 0], [0, 0], [1, 0], [0, 1]], bool)
    limits, floors = np.array([5.0, 50.0]), np.array([0.0, 0.0])
    own = choose(Rule.ZERO_MISS, Labelled(scores, defective, touches, limits, floors), 0.1)
    np.testing.assert_allclose(own.limits, [6.0, 60.0])
    assert (own.false_rejects.wrong, own.misses.wrong) == (0, 0)
    untouched = choose(Rule.F1, Labelled(scores[:4], defective[:4], touches[:4], limits, floors), 0.1)
    np.testing.assert_allclose(untouched.limits, [6.0, 50.0])
    # Without masks: good images reach 60 % of a limit, defects 180 % at least.
    common = choose(Rule.F1, Labelled(scores, defective, None, limits, floors), 0.1)
    np.testing.assert_allclose(common.percents, [120.0, 120.0])


@pytest.mark.parametrize(
    ("good", "bad", "rule", "text"),
    [([], [1], Rule.F1, "none of the labelled images is good"), ([1], [], Rule.ZERO_MISS, "needs defects")],
)
def test_what_cannot_be_chosen(good, bad, rule, text):
    with pytest.raises(DataError, match=text):
        choose(rule, one_region(good, bad), 0.1)


# --- command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> tuple[Path, Path]:
    """(bundle, data set) of plates with holes, some of them not to be seen."""
    rng = np.random.default_rng(3)
    root = tmp_path_factory.mktemp("plates")
    y, x = np.mgrid[:64, :64]
    for folder, count, depth in (("fit", 6, 0), ("data/good", 30, 0), ("data/hole", 8, 110), ("data/faint", 6, 0)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            image = 120 + 40 * np.sin(x / 3 + rng.uniform(0, 0.4)) + rng.normal(0, 3, (64, 64))
            at = rng.integers(16, 48, 2)
            image[(y - at[0]) ** 2 + (x - at[1]) ** 2 < 80] -= depth
            cv2.imwrite(str(root / folder / f"{number:03}.png"), np.clip(image, 0, 255).astype(np.uint8))
    options = FitOptions(images=root / "fit", out=root / "bundle", size=(64, 64), bank=60, rate=0.1)
    fit(options, lambda *_: None, lambda *_: None)
    return root / "bundle", root / "data"


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["limit", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, (SystemExit, CalibrationError, BundleError))
    return result.exit_code, result.output + str(result.exception or "")


def test_a_new_bundle_for_a_new_limit(labelled, tmp_path):
    bundle, data = labelled
    out = tmp_path / "strict"
    code, text = run(
        bundle, "--data", data, "--engine", "torch", "--rule", "f1", "--out", out, "--json", tmp_path / "j"
    )
    assert code == 0, text
    assert "30 good and 14 defective images" in text
    found = json.loads((tmp_path / "j").read_text())
    best = found["classes"]["data"]["f1"]
    assert best["misses"]["count"] <= 6
    assert best["misses"]["interval"][1] > best["misses"]["share"]
    before, after = Bundle.open(bundle), Bundle.open(out)
    assert after.id != before.id == found["id"]
    assert after.limit.regions[0].limit == best["regions"]["frame"]["limit"]
    assert after.limit.regions[0].limit == pytest.approx(
        before.limit.regions[0].floor
        + best["regions"]["frame"]["percent_of_present_limit"]
        / 100
        * (before.limit.regions[0].limit - before.limit.regions[0].floor)
    )
    told = after.manifest.provenance
    assert (told["limit_of"], told["rule"], told["method"]) == (before.id, "f1", "memory_bank")
    assert after.manifest.files == before.manifest.files
    np.testing.assert_array_equal(after.reference().scores, before.reference().scores)
    assert "No guarantee" in after.limit.guarantee
    code, text = run(bundle, "--data", data, "--out", out)
    assert code == 1
    assert "exists already" in text


def test_a_limit_that_is_of_no_use_is_not_written(labelled, tmp_path):
    """Six defects look like good parts: to miss none of them, half of the good parts would have to go."""
    bundle, data = labelled
    code, text = run(bundle, "--data", data, "--engine", "torch", "--rule", "zero_miss", "--out", tmp_path / "none")
    assert code == 1
    assert "some defects score like good parts" in text
    assert not (tmp_path / "none").exists()


def test_what_is_no_labelled_set(labelled, tmp_path):
    bundle, data = labelled
    code, text = run(bundle, "--data", data, "--engine", "torch", "--class", "side")
    assert code == 1
    assert "no labelled images of side; there are some of: data" in text
    (tmp_path / "good").mkdir()
    cv2.imwrite(str(tmp_path / "good" / "0.png"), np.zeros((64, 64), np.uint8))
    code, text = run(bundle, "--data", tmp_path, "--engine", "torch")
    assert code == 0
    assert "needs defects" in text
    code, text = run(bundle, "--data", tmp_path, "--engine", "torch", "--out", tmp_path / "new")
    assert code == 1
    assert "none of the labelled images is defective" in text
    code, text = run(bundle, "--data", tmp_path, "--engine", "torch", "--false-reject-rate", 2)
    assert code == 1
    assert "above 0 and below 1" in text

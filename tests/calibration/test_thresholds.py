import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.binomial import central_range
from calibration.errors import FitError, TooFewImages
from calibration.plan import make_plan
from calibration.thresholds import (
    Origin,
    choose_limit,
    confident_rate,
    conformal_limit,
    exceeding_share,
    fit_tail,
    images_for,
    smallest_rate,
)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-4, 0.9))
def test_images_for_is_the_least_number_that_can_promise(rate):
    count = images_for(rate)
    assert smallest_rate(count) <= rate * (1 + 1e-9)
    assert count == 1 or smallest_rate(count - 1) > rate
    scores = np.arange(float(count))
    assert conformal_limit(scores, rate) <= scores[-1]
    if count > 1:
        with pytest.raises(TooFewImages):
            conformal_limit(scores[:-1], rate)


def test_the_usual_numbers():
    assert images_for(0.01) == 99
    assert images_for(0.05) == 19
    assert images_for(0.5) == 1
    assert conformal_limit(np.arange(1.0, 100.0), 0.01) == 99.0
    assert conformal_limit(np.arange(1.0, 20.0), 0.1) == 18.0


def test_the_promise_holds_on_average_and_is_not_wasteful():
    """Over many draws the realised rate averages to at most the promise, and within 1/(n+1) of it."""
    rng = np.random.default_rng(0)
    for rate, count in ((0.05, 40), (0.02, 60), (0.2, 9)):
        scores = np.sort(rng.standard_gamma(2.0, (20_000, count + 1)), axis=1)
        fresh = rng.permuted(scores, axis=1)
        rejected = np.mean([row[-1] > conformal_limit(row[:-1], rate) for row in fresh[:8000]])
        deviation = np.sqrt(rate / 8000)
        assert rejected <= rate + 4 * deviation
        assert rejected >= rate - 1 / (count + 1) - 4 * deviation


SHAPES = {
    "gamma": lambda rng, size: rng.standard_gamma(0.5, size),
    "normal": lambda rng, size: rng.normal(3.0, 0.01, size),
    "heavy": lambda rng, size: rng.standard_cauchy(size),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rate", "count", "fresh"), [(0.01, 99, 300), (0.05, 40, 100), (0.1, 9, 50), (0.02, 120, 60)])
def test_the_promise_is_broken_as_often_as_theory_allows(shape, rate, count, fresh):
    """Calibrations whose realised rate exceeds the promise, against the beta-binomial law.

    They are binomial around it, so with the range below a sound implementation fails once in 10^7 of these rows.
    """
    splits = 2000
    rng = np.random.default_rng([count, fresh])
    scores = SHAPES[shape](rng, (splits, count + fresh))
    above = 0
    for row in scores:
        limit = conformal_limit(row[:count], rate)
        above += (row[count:] > limit).sum() > rate * fresh + 1e-9
    low, high = central_range(splits, exceeding_share(rate, count, fresh), 1.0 - 1e-7)
    assert low <= above <= high
    assert high - low < 0.26 * splits


def test_a_limit_one_rank_too_low_would_be_noticed():
    """The range of the test above is narrow enough for that."""
    splits, rate, count, fresh = 2000, 0.05, 40, 100
    scores = np.sort(np.random.default_rng(5).random((splits, count)), axis=1)
    new = np.random.default_rng(6).random((splits, fresh))
    above = sum((new[i] > scores[i, -3]).sum() > rate * fresh for i in range(splits))
    low, high = central_range(splits, exceeding_share(rate, count, fresh), 1.0 - 1e-7)
    assert not low <= above <= high


def test_the_rate_of_nearly_all_calibrations():
    assert confident_rate(0.01, 99) == pytest.approx(1 - 0.05 ** (1 / 99))
    rng = np.random.default_rng(4)
    rates = [1 - conformal_limit(rng.random(60), 0.1) for _ in range(4000)]  # of uniform scores: the limit's true rate
    assert np.mean(np.array(rates) <= confident_rate(0.1, 60)) == pytest.approx(0.95, abs=0.017)
    assert (
        "In 95 % of all such calibrations at most 2.98 % are"
        in choose_limit(rng.random(99), 0.01, Origin.HELD_OUT).words
    )


def test_the_smallest_rate_is_named():
    with pytest.raises(TooFewImages, match=r"smallest rate they can promise is 10 %; bring 99 held-out"):
        conformal_limit(np.arange(9.0), 0.01)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_a_rate_is_a_share(rate):
    with pytest.raises(FitError, match="above 0 and below 1"):
        conformal_limit([1.0], rate)


def test_scores_must_be_there_and_finite():
    with pytest.raises(TooFewImages, match="no scores"):
        conformal_limit([], 0.5)
    with pytest.raises(FitError, match="not finite"):
        choose_limit([1.0, float("inf")], 0.5, Origin.HELD_OUT)


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.25])
def test_the_tail_fit_finds_the_tail(shape):
    """Quantiles far beyond what was fitted, against the distribution's own."""
    rng = np.random.default_rng(1)
    uniform = rng.random(4000)
    scores = -np.log(uniform) if shape == 0 else (uniform**-shape - 1) / shape
    tail = fit_tail(scores)
    assert tail.shape == pytest.approx(shape, abs=0.1)
    for rate in (0.05, 0.01, 0.002):
        truth = -np.log(rate) if shape == 0 else (rate**-shape - 1) / shape
        assert tail.quantile(rate) == pytest.approx(truth, rel=0.12)


def test_the_tail_fit_refuses_what_it_cannot_fit():
    with pytest.raises(TooFewImages, match="too few for a tail fit"):
        fit_tail(np.arange(19.0))
    with pytest.raises(FitError, match="all equal"):
        fit_tail(np.ones(50))


def test_enough_held_out_scores_give_the_promise():
    scores = np.random.default_rng(0).normal(1.0, 0.1, 150)
    choice = choose_limit(scores, 0.01, Origin.HELD_OUT)
    assert choice.guaranteed
    assert choice.limit == conformal_limit(scores, 0.01)
    assert choice.second_opinion is not None
    assert "At most 1 %" in choice.words
    assert choice.floor == np.median(scores) < choice.limit


@pytest.mark.parametrize("origin", list(Origin))
@pytest.mark.parametrize("count", [1, 2, 5, 19, 20, 64])
def test_too_few_scores_give_a_limit_without_promise(origin, count):
    scores = np.random.default_rng(count).normal(1.0, 0.1, count)
    choice = choose_limit(scores, 0.001, origin)
    assert not choice.guaranteed
    assert choice.words.startswith("No guarantee")
    assert choice.limit >= scores.max()
    assert choice.limit > choice.floor
    with pytest.raises(TooFewImages):
        choose_limit(scores, 0.001, origin, strict=True)


def test_scores_that_were_not_held_out_never_promise():
    choice = choose_limit(np.linspace(0, 1, 5000), 0.01, Origin.CROSS)
    assert not choice.guaranteed
    assert "had not seen it" in choice.words


def test_a_limit_from_altered_copies_says_what_to_expect():
    words = choose_limit(np.linspace(1.0, 1.1, 32), 0.01, Origin.AUGMENTED).words
    assert "expect far more false rejects than asked" in words
    assert "calibrate limit" in words


def test_equal_scores_leave_room_between_floor_and_limit():
    for value in (0.0, 0.5, -3.0):
        choice = choose_limit([value] * 30, 0.1, Origin.HELD_OUT)
        assert choice.limit > choice.floor


@pytest.mark.parametrize(
    ("count", "trains", "fit", "held", "origin"),
    [
        (500, False, 375, 125, Origin.HELD_OUT),
        (223, True, 124, 99, Origin.HELD_OUT),
        (131, False, 32, 99, Origin.HELD_OUT),
        (130, False, 130, 0, Origin.CROSS),
        (64, True, 48, 16, Origin.HELD_OUT),
        (64, False, 64, 0, Origin.CROSS),
        (8, True, 8, 0, Origin.AUGMENTED),
        (3, False, 3, 0, Origin.AUGMENTED),
        (1, True, 1, 0, Origin.AUGMENTED),
    ],
)
def test_images_are_used_by_their_number(count, trains, fit, held, origin):
    plan = make_plan(count, 0.01, 1, 0, trains)
    assert (len(plan.fit), len(plan.held), plan.origin) == (fit, held, origin)
    assert sorted(plan.fit + plan.held) == list(range(count))
    assert plan == make_plan(count, 0.01, 1, 0, trains)


def test_regions_share_the_rate():
    assert make_plan(500, 0.02, 4, 0, False).rate == 0.005
    assert len(make_plan(500, 0.02, 4, 0, False).held) == 199


def test_a_guarantee_that_cannot_be_given_names_the_smallest_rate():
    with pytest.raises(TooFewImages, match=r"20 images cannot promise .* 1 %.*needs 99 .*smallest .* is 5 %"):
        make_plan(20, 0.01, 1, 0, False, guarantee=True)
    assert len(make_plan(20, 0.06, 1, 0, False, guarantee=True).held) == 16
    with pytest.raises(TooFewImages, match="over 3 regions"):
        make_plan(50, 0.01, 3, 0, True, guarantee=True)

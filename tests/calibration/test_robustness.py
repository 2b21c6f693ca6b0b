"""Alterations do what their names say, in growing strength, and the sweep finds where false rejects begin."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.errors import DataError
from calibration.evaluate import Judge
from calibration.fit import fit
from calibration.options import FitOptions
from calibration.robustness import ALTERATIONS, Curve, sweep
from calibration.score import open_engine
from calibration.sets import ClassSet, Item

BY_NAME = {alteration.name: alteration for alteration in ALTERATIONS}


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def textured(channels: int = 1, size=(40, 60)) -> np.ndarray:
    noise = np.random.default_rng(0).normal(120, 40, (*size, channels))
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 1.5) * 1.0, 0, 255).astype(np.uint8).reshape(*size, channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alteration", ALTERATIONS, ids=lambda one: one.name)
def test_every_alteration_grows_from_its_neutral_strength(alteration, channels):
    frame = textured(channels)
    before = frame.copy()

    def moved(strength: float) -> float:
        altered = alteration.apply(frame, strength, rng())
        assert altered.shape == frame.shape
        assert altered.dtype == np.uint8
        assert altered.flags.c_contiguous
        return float(np.abs(altered.astype(int) - frame).mean())

    assert moved(alteration.neutral) == 0.0
    middle = alteration.strengths.index(alteration.neutral)
    ways = [alteration.strengths[middle:]]
    if middle:
        ways.append(alteration.strengths[middle::-1])
    for way in ways:
        steps = [moved(strength) for strength in way]
        if alteration.name in ("shift", "rotation"):  # far enough is as different as it gets
            assert min(steps[1:]) > 0.0
        else:
            assert steps == sorted(steps)
            assert steps[-1] > steps[0]
    assert np.array_equal(frame, before)


def test_brightness_and_contrast_by_their_definition():
    frame = np.array([[[50], [100]], [[150], [100]]], np.uint8)
    assert BY_NAME["brightness"].apply(frame, 20, rng()).ravel().tolist() == [60, 120, 180, 120]
    assert BY_NAME["contrast"].apply(frame, -40, rng()).ravel().tolist() == [70, 100, 130, 100]
    assert BY_NAME["brightness"].apply(np.full((1, 1, 1), 250, np.uint8), 40, rng()).item() == 255


def test_noise_has_the_strength_asked():
    flat = np.full((200, 200, 1), 128, np.uint8)
    noisy = BY_NAME["noise"].apply(flat, 10, rng()).astype(float)
    assert noisy.std() == pytest.approx(10, abs=0.3)
    assert noisy.mean() == pytest.approx(128, abs=0.3)


def test_shift_goes_as_far_as_asked():
    frame = cv2.GaussianBlur(np.random.default_rng(1).normal(0, 1, (120, 120)), (0, 0), 3)
    frame = (128 + 300 * frame).clip(0, 255).astype(np.uint8)[..., None]
    altered = BY_NAME["shift"].apply(frame, 5, rng())
    moved, _ = cv2.phaseCorrelate(
        frame[20:-20, 20:-20, 0].astype(np.float64), altered[20:-20, 20:-20, 0].astype(np.float64)
    )
    assert np.hypot(*moved) == pytest.approx(0.05 * 120, abs=0.3)


def curve(wrong: list[int], strengths=(-20, -10, 0, 10, 20), count=10) -> Curve:
    good = np.array([[150.0] * bad + [50.0] * (count - bad) for bad in wrong])
    return Curve("brightness", "%", strengths, 0, good, np.full((len(wrong), 4), 150.0))


@pytest.mark.parametrize(
    ("wrong", "rate", "at"),
    [
        ([0, 0, 0, 0, 0], 0.01, ()),
        ([0, 0, 0, 1, 5], 0.01, (10,)),
        ([3, 0, 0, 0, 1], 0.01, (-20, 20)),
        ([3, 1, 0, 1, 1], 0.1, (-20,)),  # one of ten is the rate asked, not more
        ([1, 1, 1, 1, 1], 0.05, (0,)),
    ],
)
def test_where_false_rejects_exceed_the_rate(wrong, rate, at):
    found = curve(wrong)
    assert found.false_rejects.tolist() == wrong
    assert found.misses.tolist() == [0] * 5
    assert found.breaks(rate) == at


def test_a_sweep_over_a_real_bundle(tmp_path: Path, make_parts):
    good, bad = make_parts(8, 64, 64), make_parts(3, 64, 64, defect=True, name="smear", seed=9)
    options = FitOptions(images=good, out=tmp_path / "bundle", size=(64, 64), bank=60, rate=0.1)
    bundle = fit(options, lambda *_: None, lambda _: None).bundle
    items = [Item(path, "good") for path in sorted(good.iterdir())]
    items += [Item(path, "smear") for path in sorted(bad.iterdir())]
    one = ClassSet("discs", (), tuple(items))
    calls: list[tuple[int, int]] = []
    with open_engine(bundle, "torch", 1, lambda _: None) as engine:
        judge = Judge(bundle, engine)
        plain = judge.judge(judge.read(items[0].path))
        found = sweep(one, judge, 2, 0, lambda what, done, total, note: calls.append((done, total)))
        again = sweep(one, judge, 2, 0, lambda *_: None)
        with pytest.raises(DataError, match="needs good images"):
            sweep(ClassSet("none", (), tuple(items[-3:])), judge, 2, 0, lambda *_: None)
    assert calls[-1][0] == calls[-1][1]
    assert found.rate == 0.1
    for one_curve, same in zip(found.curves, again.curves, strict=True):
        assert one_curve.good.shape == (len(one_curve.strengths), 2)
        assert np.array_equal(one_curve.good, same.good)
        assert np.array_equal(one_curve.good[one_curve.strengths.index(one_curve.neutral)], found.curves[0].good[3])
    assert np.isfinite(plain.percents).all()
    blurred = next(one for one in found.curves if one.name == "blur")
    assert blurred.good[-1].max() > blurred.good[0].max()
    exported = found.to_json()["alterations"]["noise"]
    assert len(exported["false_rejects"]) == len(exported["strengths"])

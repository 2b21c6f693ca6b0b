"""How score and verdict move when light, focus or position do: what will cause false rejects, before it does.

Each alteration is applied to the same good and defective images in several strengths, and everything is scored by the
bundle as it is. Where the share of rejected good images first exceeds the false-reject rate that the limit was chosen
for, the alteration is worth a look at the mounting, or at the images for the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from calibration.evaluate import Judge, Report
from calibration.sets import ClassSet, Item

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class Alteration:
    """One way in which images change. `apply(frame, strength, rng)`; strengths in order, the unaltered one included."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    neutral: float
    apply: Callable[[Frame, float, np.random.Generator], Frame]
    bayer: bool  # whether a Bayer mosaic may be altered so


def _levels(values: NDArray[np.floating[Any]]) -> Frame:
    levels: Frame = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return levels


def brightness(frame: Frame, percent: float, rng: np.random.Generator) -> Frame:
    """Exposure: all levels times 1 + percent/100."""
    return _levels(frame * np.float32(1.0 + percent / 100.0))


def contrast(frame: Frame, percent: float, rng: np.random.Generator) -> Frame:
    """Distance of all levels from the image's mean, times 1 + percent/100."""
    mean = np.float32(frame.mean())
    return _levels((frame - mean) * np.float32(1.0 + percent / 100.0) + mean)


def blur(frame: Frame, sigma: float, rng: np.random.Generator) -> Frame:
    """Gaussian blur, as when out of focus."""
    return _shaped(cv2.GaussianBlur(frame, (0, 0), sigma), frame) if sigma > 0 else frame


def shift(frame: Frame, percent: float, rng: np.random.Generator) -> Frame:
    """Moved by percent of the longer side in a random direction; what comes in is mirrored at the border."""
    angle, reach = rng.uniform(0.0, 2.0 * np.pi), percent / 100.0 * max(frame.shape[:2])
    matrix = np.array([[1.0, 0.0, reach * np.cos(angle)], [0.0, 1.0, reach * np.sin(angle)]])
    return _moved(frame, matrix)


def rotation(frame: Frame, degrees: float, rng: np.random.Generator) -> Frame:
    """Turned about the middle, left or right at random; what comes in is mirrored at the border."""
    middle = ((frame.shape[1] - 1) / 2.0, (frame.shape[0] - 1) / 2.0)
    return _moved(frame, np.asarray(cv2.getRotationMatrix2D(middle, degrees * rng.choice((-1.0, 1.0)), 1.0)))


def noise(frame: Frame, levels: float, rng: np.random.Generator) -> Frame:
    """Gaussian noise with a standard deviation in gray levels, as at high gain."""
    return _levels(frame + rng.normal(0.0, 1.0, frame.shape).astype(np.float32) * np.float32(levels))


def jpeg(frame: Frame, quality: float, rng: np.random.Generator) -> Frame:
    """Packed as JPEG and unpacked; 100 leaves the image as it is."""
    if quality >= 100:
        return frame
    done, data = cv2.imencode(".jpg", frame, (cv2.IMWRITE_JPEG_QUALITY, int(quality)))
    assert done
    kind = cv2.IMREAD_COLOR if frame.shape[2] == 3 else cv2.IMREAD_GRAYSCALE
    return _shaped(cv2.imdecode(data, kind), frame)


def _moved(frame: Frame, matrix: NDArray[np.float64]) -> Frame:
    size = (frame.shape[1], frame.shape[0])
    return _shaped(
        cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101), frame
    )


def _shaped(altered: Any, frame: Frame) -> Frame:
    """OpenCV drops the channel of gray images."""
    return np.ascontiguousarray(altered).reshape(frame.shape)


ALTERATIONS = (
    Alteration("brightness", "% of exposure", (-40, -20, -10, 0, 10, 20, 40), 0, brightness, True),
    Alteration("contrast", "% of contrast", (-40, -20, -10, 0, 10, 20, 40), 0, contrast, True),
    Alteration("blur", "px sigma", (0, 0.5, 1, 2, 4), 0, blur, False),
    Alteration("shift", "% of the longer side", (0, 1, 2, 5, 10), 0, shift, False),
    Alteration("rotation", "degrees", (0, 1, 2, 5, 10), 0, rotation, False),
    Alteration("noise", "gray levels", (0, 2, 5, 10, 20), 0, noise, True),
    Alteration("JPEG", "quality", (100, 95, 80, 50, 25), 100, jpeg, False),
)


@dataclass(frozen=True)
class Curve:
    """Percents of limit under one alteration: good [S, n] and defective [S, m] images at each of S strengths."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    neutral: float
    good: NDArray[np.float64]
    defective: NDArray[np.float64]

    @property
    def false_rejects(self) -> NDArray[np.int64]:
        """Rejected good images at each strength [S]."""
        return np.asarray((self.good > 100.0).sum(axis=1), np.int64)

    @property
    def misses(self) -> NDArray[np.int64]:
        """Passed defective images at each strength [S]."""
        return np.asarray((self.defective <= 100.0).sum(axis=1), np.int64)

    def breaks(self, rate: float) -> tuple[float, ...]:
        """On each side of the neutral strength, the nearest one at which more than `rate` of the good are rejected."""
        over = self.false_rejects > rate * self.good.shape[1]
        middle = self.strengths.index(self.neutral)
        if over[middle]:
            return (self.neutral,)
        found = []
        for side in (range(middle - 1, -1, -1), range(middle + 1, len(self.strengths))):
            found += [self.strengths[i] for i in side if over[i]][:1]
        return tuple(found)


@dataclass(frozen=True)
class Robustness:
    """All curves of one class, and the false-reject rate that its limit was chosen for."""

    class_name: str
    rate: float
    curves: tuple[Curve, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rate": self.rate,
            "alterations": {
                curve.name: {
                    "unit": curve.unit,
                    "strengths": list(curve.strengths),
                    "good": curve.good.shape[1],
                    "defective": curve.defective.shape[1],
                    "false_rejects": curve.false_rejects.tolist(),
                    "misses": curve.misses.tolist(),
                    "good_median_percent": _medians(curve.good),
                    "defective_median_percent": _medians(curve.defective),
                    "exceeds_rate_at": list(curve.breaks(self.rate)),
                }
                for curve in self.curves
            },
        }


def _medians(percents: NDArray[np.float64]) -> list[float] | None:
    return np.median(percents, axis=1).tolist() if percents.shape[1] else None


def sweep(one: ClassSet, judge: Judge, count: int, seed: int, report: Report) -> Robustness:
    """Alters and scores at most `count` good and `count` defective test images, chosen by seed.

    Raises `DataError` where there is no good image.
    """
    good, bad = _some(one.good, count, seed), _some(one.defective, count, seed)
    if not good:
        raise DataError(f"{one.name}: the robustness check needs good images in the test, and there are none")
    bayer = judge.engine.frame.pixel_format.is_bayer
    chosen = [alteration for alteration in ALTERATIONS if alteration.bayer or not bayer]
    frames = [judge.read(item.path) for item in (*good, *bad)]
    plain = np.array([judge.judge(frame).percents.max() for frame in frames])
    total = sum(len(alteration.strengths) - 1 for alteration in chosen) * len(frames)
    done = 0
    curves = []
    for number, alteration in enumerate(chosen):
        percents = np.empty((len(alteration.strengths), len(frames)))
        for row, strength in enumerate(alteration.strengths):
            if strength == alteration.neutral:
                percents[row] = plain
                continue
            for column, frame in enumerate(frames):
                # One stream per image and alteration: stronger is more of the same, not another draw.
                rng = np.random.default_rng([seed, 0x40B, number, column])
                percents[row, column] = judge.judge(alteration.apply(frame, strength, rng)).percents.max()
                done += 1
                report(f"{one.name}: robustness", done, total, alteration.name)
        curves.append(
            Curve(
                alteration.name,
                alteration.unit,
                alteration.strengths,
                alteration.neutral,
                percents[:, : len(good)],
                percents[:, len(good) :],
            )
        )
    return Robustness(one.name, judge.bundle.limit.false_reject_rate, tuple(curves))


def _some(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    order = np.random.default_rng([seed, 0x40B]).permutation(len(items))[:count]
    return [items[i] for i in sorted(order)]

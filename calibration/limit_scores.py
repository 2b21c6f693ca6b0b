"""Scores that a limit is chosen on: of images that the fit has not seen, or of altered copies of those it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.datasets import NormalImages
from calibration.plan import Plan
from calibration.references import altered
from calibration.thresholds import Choice, Origin, choose_limit
from pipelines.pipeline import Pipeline

Report = Callable[[str, int, int, str], None]

ALTERED_SCORES = 32
"""Scores of altered copies made where no image can be held out."""


def unseen(images: NormalImages, plan: Plan, seed: int) -> list[NDArray[np.uint8] | int]:
    """What the limit is chosen on: numbers of held-out images, or altered copies of the fitted ones."""
    if plan.origin is Origin.HELD_OUT:
        return list(plan.held)
    bayer = images.pixel_format.is_bayer
    copies: list[NDArray[np.uint8] | int] = []
    for number in range(max(ALTERED_SCORES, len(plan.fit))):
        rng = np.random.default_rng([seed, 0xA17, number])
        copies.append(altered(images.read(plan.fit[number % len(plan.fit)]), rng, bayer))
    return copies


def score_frames(
    pipeline: Pipeline, images: NormalImages, frames: Sequence[NDArray[np.uint8] | int], report: Report
) -> NDArray[np.float64]:
    """Raw scores [n, R] of frames, or of image numbers."""
    scores: list[Tensor] = []
    for done, item in enumerate(frames, start=1):
        frame = images.read(item) if isinstance(item, int) else item
        with torch.inference_mode():
            scores.append(pipeline(torch.from_numpy(frame)[None])[0])
        report("scores for the limit", done, len(frames), "")
    return torch.cat(scores).double().numpy()


def choose_limits(scores: NDArray[np.float64], plan: Plan, guarantee: bool) -> tuple[Choice, ...]:
    """One limit per region from scores [n, R] of good parts."""
    return tuple(choose_limit(column, plan.rate, plan.origin, guarantee) for column in scores.T)

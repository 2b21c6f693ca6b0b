"""Augmentation of normal images in FoundAD's training: few images, seen in more ways than were taken.

With probability 0.3 one of horizontal flip, vertical flip, quarter turn; with probability 0.3 one of colour jitter,
gray, blur (the published recipe). Draws are separate from their application, as in `synthesis`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from calibration.synthesis import sample_jitter
from calibration.transforms import Jitter, color_jitter, gaussian_blur, grayscale

PROBABILITY = 0.3
BLUR_KERNEL = 23
BLUR_SIGMA = (0.1, 2.0)

Geometry = Literal["none", "hflip", "vflip", "rot90", "rot180", "rot270"]


@dataclass(frozen=True)
class Augmentation:
    """One draw. At most one of `jitter`, `gray` and `sigma` (blur, pixels) is set."""

    geometry: Geometry = "none"
    jitter: Jitter | None = None
    gray: bool = False
    sigma: float | None = None


def sample_augmentation(rng: np.random.Generator, geometry: bool = True, square: bool = True) -> Augmentation:
    """Draws an augmentation; `geometry` False leaves flips and turns out (parts that lie one way only).

    Where the input is not `square` a quarter turn would squeeze the part, so it becomes a half turn.
    """
    chosen: Geometry = "none"
    if rng.random() < PROBABILITY and geometry:
        kind = int(rng.integers(3))
        turn: Geometry = "rot90" if rng.random() < 0.5 else "rot270"
        chosen = ("hflip", "vflip", turn if square else "rot180")[kind]
    if rng.random() >= PROBABILITY:
        return Augmentation(chosen)
    kind = int(rng.integers(3))
    if kind == 0:
        return Augmentation(chosen, jitter=sample_jitter(rng, 0.3, 0.3, 0.3, 0.05))
    if kind == 1:
        return Augmentation(chosen, gray=True)
    return Augmentation(chosen, sigma=float(rng.uniform(*BLUR_SIGMA)))


def augment(picture: Tensor, draw: Augmentation) -> Tensor:
    """Applies a draw to a picture float32 [3, h, w] in 0..1."""
    if draw.geometry == "hflip":
        picture = picture.flip(-1)
    elif draw.geometry == "vflip":
        picture = picture.flip(-2)
    elif draw.geometry != "none":
        picture = torch.rot90(picture, {"rot90": 1, "rot180": 2, "rot270": 3}[draw.geometry], (-2, -1))
    if draw.jitter is not None:
        picture = color_jitter(picture, draw.jitter)
    if draw.gray:
        picture = grayscale(picture).expand(3, -1, -1)
    if draw.sigma is not None:
        picture = gaussian_blur(picture, BLUR_KERNEL, draw.sigma)
    return picture

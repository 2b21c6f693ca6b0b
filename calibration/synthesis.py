"""CutPaste: synthetic defects for training without defects (Li et al., 2021, in the form FoundAD uses).

A patch of the image is colour-jittered, perhaps rotated, and pasted elsewhere on the product. Two kinds: *normal*
(2 to 25 percent of the area, any aspect) and *scar* (a thin strip, rotated, its empty corners pasted with it).
`sample` makes draws from a seeded generator; `paste` and `patch_of` are pure functions of draws, so every synthetic
defect can be repeated from what was recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.foreground import Mask
from calibration.transforms import Jitter, color_jitter, rotate, rotated_size

AREA = (0.02, 0.25)
ASPECT = (0.3, 1 / 0.3)
SCAR_WIDTH = (2.0, 16.0)
SCAR_HEIGHT = (10.0, 25.0)
SCAR_DEGREES = (-45.0, 45.0)
JITTER = (0.5, 0.5, 0.5, 0.5)
"""Half-ranges of brightness, contrast, saturation (about 1) and hue (about 0)."""


@dataclass(frozen=True)
class CutPaste:
    """Every random choice of one synthetic defect.

    `top`, `left`, `height`, `width`: the patch that is cut, in pixels. `degrees`: rotation of a scar, None for the
    normal kind. `row`, `col`: where the patch's top-left corner lands; None where no place fits (image unchanged).
    """

    top: int
    left: int
    height: int
    width: int
    jitter: Jitter
    degrees: float | None
    row: int | None
    col: int | None


def patch_size(height: int, width: int, area: float, aspect: float) -> tuple[int, int]:
    """Height and width of a normal patch: `area` as a share of the image, `aspect` = width / height."""
    pixels = area * height * width
    return round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))


def places(mask: Mask, height: int, width: int) -> NDArray[np.intp]:
    """Foreground pixels [n, 2] (row, column) at which a patch's top-left corner fits inside the image."""
    rows, cols = mask.shape[0] - height, mask.shape[1] - width
    if rows < 0 or cols < 0:
        return np.empty((0, 2), np.intp)
    return np.argwhere(mask[: rows + 1, : cols + 1] > 0)


def patch_of(image: Tensor, draw: CutPaste) -> Tensor:
    """The patch [3, h, w] that `draw` pastes: cut from `image` [3, H, W], jittered, rotated."""
    cut = image[:, draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
    patch = color_jitter(cut, draw.jitter)
    return patch if draw.degrees is None else rotate(patch, draw.degrees)


def paste(image: Tensor, draw: CutPaste) -> Tensor:
    """A copy of the normalised image [3, H, W] with the drawn defect; `image` itself where no place fitted."""
    if draw.row is None or draw.col is None:
        return image
    patch = patch_of(image, draw)
    out = image.clone()
    out[:, draw.row : draw.row + patch.shape[1], draw.col : draw.col + patch.shape[2]] = patch
    return out


def sample_jitter(
    rng: np.random.Generator, brightness: float, contrast: float, saturation: float, hue: float
) -> Jitter:
    """Draws a colour jitter with the given half-ranges."""
    return Jitter(
        tuple(int(step) for step in rng.permutation(4)),
        float(rng.uniform(max(0.0, 1 - brightness), 1 + brightness)),
        float(rng.uniform(max(0.0, 1 - contrast), 1 + contrast)),
        float(rng.uniform(max(0.0, 1 - saturation), 1 + saturation)),
        float(rng.uniform(-hue, hue)),
    )


def sample(rng: np.random.Generator, mask: Mask, scar: bool | None = None) -> CutPaste:
    """Draws a defect for an image with this foreground mask uint8 [H, W]; `scar` None draws the kind as well.

    Strips are cut down to what the image holds, so images smaller than a strip work too.
    """
    rows, cols = mask.shape
    if scar is None:
        scar = bool(rng.random() > 0.5)
    if scar:
        width, height = int(rng.uniform(*SCAR_WIDTH)), int(rng.uniform(*SCAR_HEIGHT))
    else:
        height, width = patch_size(rows, cols, float(rng.uniform(*AREA)), float(rng.uniform(*ASPECT)))
    height, width = min(max(height, 1), rows - 1), min(max(width, 1), cols - 1)
    left, top = int(rng.integers(0, cols - width)), int(rng.integers(0, rows - height))
    jitter = sample_jitter(rng, *JITTER)
    degrees = float(rng.uniform(*SCAR_DEGREES)) if scar else None
    placed = (height, width) if degrees is None else rotated_size(height, width, degrees)
    row, col = _choose(rng, mask, *placed)
    return CutPaste(top, left, height, width, jitter, degrees, row, col)


def _choose(rng: np.random.Generator, mask: Mask, height: int, width: int) -> tuple[int | None, int | None]:
    """A uniform choice among `places`; (None, None) where there are none."""
    rows, cols = mask.shape[0] - height, mask.shape[1] - width
    if rows < 0 or cols < 0:
        return None, None
    inside = np.flatnonzero(mask[: rows + 1, : cols + 1])
    if inside.size == 0:
        return None, None
    flat = int(inside[int(rng.integers(inside.size))])
    return flat // (cols + 1), flat % (cols + 1)


def synthesise(rng: np.random.Generator, images: Tensor, masks: list[Mask]) -> Tensor:
    """A copy of normalised images [B, 3, H, W] with one drawn defect each (half normal, half scar)."""
    return torch.stack([paste(image, sample(rng, mask)) for image, mask in zip(images, masks, strict=True)])

"""Foreground masks: where on an image a synthetic defect may lie.

Rules and morphology are those of the published FoundAD synthesis (Otsu or triangle threshold on gray, closing then
opening with a square). Masks are uint8 [H, W], 1 on the foreground.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Mask = NDArray[np.uint8]

CLOSING = 6
OPENING = 6
"""Sides of the squares, in pixels of the model's input."""


class Foreground(str, Enum):
    """How the product is told from the background."""

    ALL = "all"  # textures, and products that fill the picture
    OTSU = "otsu"  # a bright product on a dark ground
    OTSU_INVERTED = "otsu_inverted"  # a dark product on a bright ground
    TRIANGLE = "triangle"  # a product whose gray values form no second peak


def denormalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of a normalised float32 image [3, H, W], cut off towards zero as in the published code."""
    # (x + mean/std) / (1/std) with both constants rounded once: the published order of operations, to the last bit.
    scale = torch.tensor([1.0 / s for s in std], dtype=image.dtype).view(3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], dtype=image.dtype).view(3, 1, 1)
    values: NDArray[np.float32] = (((image + shift) / scale).permute(1, 2, 0) * 255.0).clamp(0, 255).numpy()
    return values.astype(np.uint8)


def closing(mask: Mask, side: int) -> Mask:
    """Morphological closing with a square of `side` pixels."""
    return _morphology(mask, side, cv2.dilate, cv2.erode)


def opening(mask: Mask, side: int) -> Mask:
    """Morphological opening with a square of `side` pixels."""
    return _morphology(mask, side, cv2.erode, cv2.dilate)


def _morphology(mask: Mask, side: int, first: Callable[..., Any], second: Callable[..., Any]) -> Mask:
    """Two steps whose squares mirror each other, so that even sides shift nothing.

    Even sides work on an image extended by its edge values; odd sides reflect at the border in each step. That is
    what the published arrays show.
    """
    kernel = np.ones((side, side), np.uint8)
    if side % 2:
        border = {"borderType": cv2.BORDER_REFLECT}
        return np.asarray(second(first(mask, kernel, **border), kernel, **border), np.uint8)
    pad = side + 1
    wide = cv2.copyMakeBorder(mask, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    low, high = (side - 1) // 2, side // 2
    wide = second(first(wide, kernel, anchor=(low, low)), kernel, anchor=(high, high))
    return np.ascontiguousarray(wide[pad:-pad, pad:-pad], dtype=np.uint8)


def foreground_mask(
    rgb: NDArray[np.uint8],
    rule: Foreground,
    close: int = CLOSING,
    open_: int = OPENING,
    channel: int | None = None,
) -> Mask:
    """Foreground of an image uint8 [H, W, 3] (RGB) as a mask [H, W].

    `channel` thresholds one colour channel in place of gray.
    """
    if rule is Foreground.ALL:
        return np.ones(rgb.shape[:2], np.uint8)
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) if channel is None else np.ascontiguousarray(rgb[..., channel])
    method = cv2.THRESH_TRIANGLE if rule is Foreground.TRIANGLE else cv2.THRESH_OTSU
    inverted = rule is Foreground.OTSU_INVERTED
    kind = cv2.THRESH_BINARY_INV if inverted else cv2.THRESH_BINARY
    mask = np.asarray(cv2.threshold(gray, 0, 1, kind + method)[1], np.uint8)
    return opening(closing(mask, close), open_)


def suggest_foreground(images: Sequence[NDArray[np.uint8]]) -> Foreground:
    """The rule that fits these normal images uint8 [H, W, 3] (RGB), judged on at most 16 of them.

    An image shows a product on a ground when one side of Otsu's threshold is nearly absent from the border, fills
    5 to 90 percent of the picture, and the two sides differ clearly (Otsu's separability at least 0.75). The rule
    must hold for three quarters of the images; anything else counts as texture, where all pixels are foreground.
    """
    votes = [_vote(image) for image in list(images)[:16]]
    for rule in (Foreground.OTSU, Foreground.OTSU_INVERTED):
        if votes and votes.count(rule) >= 0.75 * len(votes):
            return rule
    return Foreground.ALL


def _vote(rgb: NDArray[np.uint8]) -> Foreground:
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    values = gray.astype(np.float64)
    total = values.var()
    bright = foreground_mask(rgb, Foreground.OTSU).astype(bool)
    share = float(bright.mean())
    if total < 1.0 or not 0.0 < share < 1.0:
        return Foreground.ALL
    between = share * (1.0 - share) * (values[bright].mean() - values[~bright].mean()) ** 2
    if between / total < 0.75:
        return Foreground.ALL
    edge = np.concatenate((bright[0], bright[-1], bright[:, 0], bright[:, -1])).mean()
    if edge < 0.1 and 0.05 <= share <= 0.9:
        return Foreground.OTSU
    if edge > 0.9 and 0.05 <= 1.0 - share <= 0.9:
        return Foreground.OTSU_INVERTED
    return Foreground.ALL

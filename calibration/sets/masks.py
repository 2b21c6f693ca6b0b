"""Reading masks of defects."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from pipelines.images import read_image

_LABELS_BELOW = 16
"""A mask whose largest value is smaller numbers the kinds of defects (VisA as published) instead of being black and
white."""


def read_mask(path: Path, size: tuple[int, int] | None, image: Path | None = None) -> NDArray[np.bool_]:
    """The mask bool [H, W] of a file: where it is brighter than half, or not zero where it numbers kinds of defects.

    Of colour masks the brightest channel counts. `size` (height, width) is that of the `image` it belongs to.
    Raises `ImageError` where the file does not decode and `DataError` where its size is another, naming both.
    """
    plane = read_image(path).pixels.max(axis=2)
    if size is not None and plane.shape != size:
        raise DataError(
            f"{path}: the mask is {plane.shape[1]} x {plane.shape[0]} px, its image "
            f"{image.name if image is not None else ''} is {size[1]} x {size[0]} px; export the mask at the image's "
            "size"
        )
    mask: NDArray[np.bool_] = plane > (0 if plane.max(initial=0) < _LABELS_BELOW else 127)
    return mask


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask [H, W] at another size (height, width), by the nearest pixel."""
    if mask.shape == size:
        return mask
    resized = cv2.resize(mask.view(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized).astype(bool)

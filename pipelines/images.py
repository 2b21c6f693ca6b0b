"""Pixel formats, and image files as the line sees them.

One decoder serves calibration, replay and the folder camera, so that a file scores the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ImageError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})


class PixelFormat(str, Enum):
    """Pixel formats of frames, by their GenICam names. All have 8 bits per channel."""

    MONO8 = "Mono8"
    RGB8 = "RGB8"
    BGR8 = "BGR8"
    BAYER_RG8 = "BayerRG8"
    BAYER_GR8 = "BayerGR8"
    BAYER_GB8 = "BayerGB8"
    BAYER_BG8 = "BayerBG8"

    @property
    def channels(self) -> int:
        """Bytes per pixel: 3 for RGB8 and BGR8, else 1."""
        return 3 if self in (PixelFormat.RGB8, PixelFormat.BGR8) else 1

    @property
    def is_bayer(self) -> bool:
        """Whether each pixel holds one colour of a 2x2 Bayer mosaic."""
        return self.value.startswith("Bayer")


@dataclass(frozen=True)
class Frame:
    """Pixels uint8 [H, W, C], C-contiguous, and their format."""

    pixels: NDArray[np.uint8]
    pixel_format: PixelFormat


def read_image(path: Path) -> Frame:
    """Decodes an image file: gray becomes Mono8 [H, W, 1], colour BGR8 [H, W, 3].

    EXIF rotation is applied, alpha is dropped, 16-bit samples keep their upper 8 bits.
    Raises `ImageError` where the file is missing, does not decode or holds other than 8 or 16-bit samples.
    """
    try:
        # Not cv2.imread: it cannot tell a missing file from a damaged one, and fails on some non-ASCII paths.
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ImageError(f"{path}: cannot read this image: {error.strerror}") from error
    if data.size == 0:
        raise ImageError(f"{path}: the file is empty; copy it again from its source")
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    except cv2.error as error:
        raise ImageError(f"{path}: this image does not decode ({error.err}); copy or export it again") from error
    if pixels is None:
        raise ImageError(f"{path}: this file does not decode as an image; copy or export it again")
    if pixels.dtype == np.uint16:
        pixels = np.right_shift(pixels.astype(np.uint16), 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ImageError(f"{path}: samples are {pixels.dtype}; use 8 or 16-bit images")
    if pixels.ndim == 2:
        return Frame(np.ascontiguousarray(pixels[:, :, None]), PixelFormat.MONO8)
    return Frame(np.ascontiguousarray(pixels), PixelFormat.BGR8)


def list_images(folder: Path) -> list[Path]:
    """Image files below `folder`, at any depth, in path order.

    Raises `ImageError` where the folder is missing, is no folder, or holds no image.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder}: there is no such folder; give a folder of images")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise ImageError(f"{folder}: no images in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found

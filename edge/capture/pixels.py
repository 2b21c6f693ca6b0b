"""Decoded pictures into slots: the one copy of the pixels, with their conversion to the format asked for."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.images import PixelFormat

# Where red, green (two) and blue lie in each 2 x 2 cell: row, column (GenICam PFNC 2.4, section 5: the name gives the
# first row's colours from the left).
_MOSAICS: dict[PixelFormat, tuple[str, str]] = {
    PixelFormat.BAYER_RG8: ("RG", "GB"),
    PixelFormat.BAYER_GR8: ("GR", "BG"),
    PixelFormat.BAYER_GB8: ("GB", "RG"),
    PixelFormat.BAYER_BG8: ("BG", "GR"),
}
_CODES = {
    (PixelFormat.BGR8, PixelFormat.RGB8): cv2.COLOR_BGR2RGB,
    (PixelFormat.BGR8, PixelFormat.MONO8): cv2.COLOR_BGR2GRAY,
    (PixelFormat.MONO8, PixelFormat.BGR8): cv2.COLOR_GRAY2BGR,
    (PixelFormat.MONO8, PixelFormat.RGB8): cv2.COLOR_GRAY2RGB,
}


def frame_view(buffer: NDArray[np.uint8], height: int, width: int, channels: int) -> NDArray[np.uint8] | None:
    """The first H*W*C bytes of a slot as uint8 [H, W, C], or None where the slot is too small."""
    size = height * width * channels
    if size > buffer.size:
        return None
    return buffer[:size].reshape(height, width, channels)


def whole_cells(pixels: NDArray[np.uint8], form: PixelFormat) -> NDArray[np.uint8]:
    """`pixels` [H, W, C] without the last row or column that a mosaic's 2 x 2 cells cannot have."""
    return pixels[: pixels.shape[0] & ~1, : pixels.shape[1] & ~1] if form.is_bayer else pixels


def convert(pixels: NDArray[np.uint8], source: PixelFormat, out: NDArray[np.uint8], target: PixelFormat) -> None:
    """Writes `pixels`, Mono8 [H, W, 1] or BGR8 [H, W, 3], into `out` [H, W, C of target].

    A Bayer format keeps of each pixel the one colour its sensor would see; a gray picture is seen gray by all.
    """
    if source is target or (target.is_bayer and source is PixelFormat.MONO8):
        np.copyto(out, pixels)
    elif target.is_bayer:
        _mosaic(pixels, out[:, :, 0], _MOSAICS[target])
    else:
        flat_in = pixels[:, :, 0] if source.channels == 1 else pixels
        flat_out = out[:, :, 0] if target.channels == 1 else out
        cv2.cvtColor(flat_in, _CODES[source, target], dst=flat_out)


def _mosaic(bgr: NDArray[np.uint8], out: NDArray[np.uint8], cell: tuple[str, str]) -> None:
    for row in (0, 1):
        for column in (0, 1):
            channel = "BGR".index(cell[row][column])
            out[row::2, column::2] = bgr[row::2, column::2, channel]

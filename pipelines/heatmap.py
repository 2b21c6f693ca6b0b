"""Anomaly heatmaps on one fixed scale, for the line's pictures and for reports alike.

The scale is percent of limit, 0 to 200, the same for every frame of every camera: a colour means the same today and
tomorrow, and a good part looks calm however its own scores vary. Scores up to half the limit leave the frame as it is.
The contour runs where the map crosses the limit.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.images import PixelFormat

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

SCALE_PERCENT = 200.0
"""Percent of limit at the end of the scale; more looks the same."""

# percent of limit: colour (BGR), opacity
_STOPS: tuple[tuple[float, Colour, float], ...] = (
    (0.0, (120, 60, 20), 0.0),
    (40.0, (170, 90, 20), 0.0),
    (75.0, (190, 170, 30), 0.28),
    (95.0, (90, 225, 190), 0.40),
    (100.0, (40, 230, 255), 0.45),
    (130.0, (20, 130, 255), 0.55),
    (165.0, (40, 40, 235), 0.62),
    (200.0, (120, 0, 190), 0.70),
)

_BAYER = {  # GenICam names the first two pixels of the mosaic, OpenCV those of its second row and column
    PixelFormat.BAYER_RG8: cv2.COLOR_BayerBG2BGR,
    PixelFormat.BAYER_GR8: cv2.COLOR_BayerGB2BGR,
    PixelFormat.BAYER_GB8: cv2.COLOR_BayerGR2BGR,
    PixelFormat.BAYER_BG8: cv2.COLOR_BayerRG2BGR,
}


def to_bgr(pixels: Image, pixel_format: PixelFormat) -> Image:
    """A frame uint8 [H, W, C] in colours that cv2 understands: uint8 BGR [H, W, 3], for people to look at."""
    if pixel_format is PixelFormat.BGR8:
        return pixels
    if pixel_format is PixelFormat.RGB8:
        return _image(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    plane = np.ascontiguousarray(pixels[:, :, 0])
    code = _BAYER[pixel_format] if pixel_format.is_bayer else cv2.COLOR_GRAY2BGR
    if pixel_format.is_bayer and min(plane.shape) < 4:
        code = cv2.COLOR_GRAY2BGR  # too small to interpolate
    return _image(cv2.cvtColor(plane, code))


def percent_map(patches: NDArray[np.floating], limit: float, floor: float) -> NDArray[np.float32]:
    """Raw patch scores [h, w] as percent of limit, float32, finite, 0 to 1e6."""
    with np.errstate(all="ignore"):
        percent = 100.0 * (patches.astype(np.float64) - floor) / (limit - floor)
    return np.nan_to_num(percent, nan=0.0, posinf=1e6, neginf=0.0).clip(0.0, 1e6).astype(np.float32)


def paint(part: Image, percent: NDArray[np.float32], contour_percent: float = 100.0) -> None:
    """Lays the heatmap of a percent map [h, w] of any size over `part`, uint8 BGR [H, W, 3], in place.

    `contour_percent` is where the contour runs: the limit that is in force, in percent of the bundle's.
    """
    size = (part.shape[1], part.shape[0])
    smooth = cv2.resize(np.minimum(percent, 4 * SCALE_PERCENT), size, interpolation=cv2.INTER_LINEAR)
    index = np.clip(smooth * (255.0 / SCALE_PERCENT), 0, 255).astype(np.uint8)
    # The table holds colour x opacity and 1 - opacity for each step, so that blending is two look-ups.
    blended = part * _FADE[index][:, :, None] + _PAINT[index]
    part[:] = blended.astype(np.uint8)
    outline(part, smooth > contour_percent, (255, 255, 255))


def outline(picture: Image, mask: NDArray[np.bool_], colour: Colour) -> None:
    """Draws the borders of a mask [H, W] on `picture`, uint8 BGR, in place: a thin line on a dark one."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, (20, 20, 20), 3, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, colour, 1, cv2.LINE_AA)


def scale_colours(steps: int) -> Image:
    """The heatmap's scale from 0 to `SCALE_PERCENT` over middle grey, uint8 BGR [steps, 3]."""
    index = np.linspace(0, 255, steps).astype(np.uint8)
    grey = np.full((steps, 3), 128.0, np.float32)
    return (grey * _FADE[index][:, None] + _PAINT[index]).astype(np.uint8)


def _image(array: object) -> Image:
    assert isinstance(array, np.ndarray)
    return array


def _tables() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per step of the scale: what is left of the frame [256], and what is painted over it [256, 3]."""
    steps = np.linspace(0.0, SCALE_PERCENT, 256)
    at = [stop[0] for stop in _STOPS]
    opacity = np.interp(steps, at, [stop[2] for stop in _STOPS])
    colour = np.stack([np.interp(steps, at, [stop[1][c] for stop in _STOPS]) for c in range(3)], axis=1)
    return (1.0 - opacity).astype(np.float32), (colour * opacity[:, None]).astype(np.float32)


_FADE, _PAINT = _tables()

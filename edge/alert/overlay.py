"""The picture of a verdict: the frame, under a heatmap on the fixed scale.

The scale is that of `pipelines.heatmap`; the contour runs where patches cross the camera's limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.alert.deadlines import effective_limit
from edge.messages import Decision, RegionScore, Verdict
from pipelines.heatmap import SCALE_PERCENT, Colour, Image, paint, percent_map, scale_colours, to_bgr
from pipelines.images import PixelFormat

LONGEST_PX = 1280  # larger frames are shrunk: the frame itself is archived beside, whole
SHORTEST_PX = 560  # smaller frames are enlarged, so that the text is readable
_INK: Colour = (235, 235, 235)
_DIM: Colour = (160, 160, 160)
_BAR: Colour = (38, 32, 28)
_SIGNAL: dict[Decision, Colour] = {
    Decision.PASS: (90, 200, 90),
    Decision.REJECT: (60, 60, 240),
    Decision.UNJUDGED: (60, 180, 250),
}
_HEADER, _FOOTER = 52, 56
_FONT = cv2.FONT_HERSHEY_DUPLEX


def patch_percent(region: RegionScore) -> NDArray[np.float32] | None:
    """The region's patch scores as percent of limit, float32 [h, w]; None where it carries none that fit its size."""
    if region.height * region.width == 0 or len(region.patches) != region.height * region.width * 4:
        return None
    patches = np.frombuffer(region.patches, "<f4").reshape(region.height, region.width)
    return percent_map(patches, region.limit, region.floor)


def draw(
    pixels: Image, pixel_format: PixelFormat, verdict: Verdict, regions: Sequence[RegionScore], limit_percent: float
) -> Image:
    """The picture, uint8 BGR: header with verdict and percent, frame with heatmap and contours, footer with the scale.

    `pixels` is the frame uint8 [H, W, C]; `limit_percent` the camera's, at which the contour runs.
    """
    frame = to_bgr(pixels, pixel_format)
    height, width = frame.shape[:2]
    zoom = min(LONGEST_PX / max(height, width), max(1.0, SHORTEST_PX / width))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_NEAREST
    picture = _image(cv2.resize(frame, size, interpolation=method)) if zoom != 1 else frame.copy()
    for region in regions:
        _heat(picture, region, zoom, limit_percent, named=len(regions) > 1, worst=region.name == verdict.region)
    canvas = np.full((size[1] + _HEADER + _FOOTER, max(size[0], SHORTEST_PX), 3), _BAR, np.uint8)
    left = (canvas.shape[1] - size[0]) // 2
    canvas[_HEADER : _HEADER + size[1], left : left + size[0]] = picture
    _header(canvas, verdict)
    _footer(canvas, limit_percent)
    return canvas


def frame_of(picture: Image) -> Image:
    """The frame with its heatmap, cut out of what `draw` made: no header, no footer. A view, uint8 BGR [h, w, 3]."""
    return picture[_HEADER : len(picture) - _FOOTER]


def _heat(picture: Image, region: RegionScore, zoom: float, limit_percent: float, named: bool, worst: bool) -> None:
    """Lays one region's heatmap, contour and, where there are several regions, its frame and name over `picture`."""
    percent = patch_percent(region)
    rows, columns = picture.shape[:2]
    left, top, right, bottom = region.left, region.top, region.right, region.bottom
    if right <= left or bottom <= top:  # the whole frame
        x0, y0, x1, y1 = 0, 0, columns, rows
    else:
        x0, x1 = (min(columns, round(x * zoom)) for x in (left, right))
        y0, y1 = (min(rows, round(y * zoom)) for y in (top, bottom))
    if x1 <= x0 or y1 <= y0:
        return
    part = picture[y0:y1, x0:x1]
    if percent is not None:
        at = 100.0 * (effective_limit(region, limit_percent) - region.floor) / (region.limit - region.floor)
        paint(part, percent, at)
    if named:
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), (255, 255, 255) if worst else _DIM, 2 if worst else 1)
        text = f"{_ascii(region.name)}  {_percent(region)}"
        cv2.rectangle(picture, (x0, y0), (x0 + _width(text, 0.45) + 12, y0 + 22), _BAR, -1)
        _write(picture, text, (x0 + 6, y0 + 16), 0.45, _INK)


def _header(canvas: Image, verdict: Verdict) -> None:
    colour = _SIGNAL[verdict.decision]
    cv2.rectangle(canvas, (0, 0), (canvas.shape[1], 5), colour, -1)
    title = verdict.decision.value.upper()
    _write(canvas, title, (14, 37), 0.85, colour, thickness=2)
    x = 14 + _width(title, 0.85, 2) + 16
    if verdict.percent is not None:
        text = f"{verdict.percent:.0f} % of limit"
        _write(canvas, text, (x, 36), 0.62, _INK)
        x += _width(text, 0.62) + 16
    who = f"{_ascii(verdict.id.camera)}  part {verdict.part}"
    width = _width(who, 0.5)
    if x + width + 14 <= canvas.shape[1]:
        _write(canvas, who, (canvas.shape[1] - width - 14, 36), 0.5, _DIM)


def _footer(canvas: Image, limit_percent: float) -> None:
    rows, columns = canvas.shape[:2]
    x0, x1, y = 24, columns - 24, rows - _FOOTER + 12
    canvas[y : y + 14, x0:x1] = scale_colours(x1 - x0)[None]
    for percent in (0, 50, 100, 150, 200):
        x = x0 + round((x1 - 1 - x0) * percent / SCALE_PERCENT)
        cv2.line(canvas, (x, y + 14), (x, y + 19), _DIM, 1)
        text = {100: "100 % = limit", 200: "200 % and more"}.get(percent, f"{percent} %")
        width = _width(text, 0.42)
        _write(canvas, text, (min(max(x - width // 2, 8), columns - width - 8), y + 34), 0.42, _DIM)
    if limit_percent <= SCALE_PERCENT:
        x = x0 + round((x1 - 1 - x0) * limit_percent / SCALE_PERCENT)
        cv2.line(canvas, (x, y - 4), (x, y + 18), (20, 20, 20), 4)
        cv2.line(canvas, (x, y - 4), (x, y + 18), (255, 255, 255), 2)


def _percent(region: RegionScore) -> str:
    percent = region.percent
    return f"{percent:.0f} %" if math.isfinite(percent) else "?"


def _write(canvas: Image, text: str, at: tuple[int, int], scale: float, colour: Colour, thickness: int = 1) -> None:
    cv2.putText(canvas, text, at, _FONT, scale, colour, thickness, cv2.LINE_AA)


def _width(text: str, scale: float, thickness: int = 1) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, thickness)[0][0])


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()  # all that cv2's font can draw


def _image(array: object) -> Image:
    assert isinstance(array, np.ndarray)
    return array

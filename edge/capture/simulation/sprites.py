"""What a drawn part type is made of: layers that turn with the part, and layers fixed to the lamp.

Everything is computed once per resolution; a frame then costs a few image operations on the part's box only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.capture.simulation.textures import Bytes, Floats, to_bytes

UNIT_SHADING = 128  # the byte that means "as the surface is" in shading and grain layers
LIGHT = np.array([-0.55, -0.83], np.float32)  # towards the lamp, in image axes: from above, a little from the left


@dataclass(frozen=True)
class Sprite:
    """One part type at one resolution, in a box of S x S pixels; C is 3 (BGR) or absent (gray).

    `surface` [S, S, C], `blank` (the surface without its print or stamp), `alpha` [S, S] and `grain` [G, G, C] turn
    with the part; `shading` and `shadow` [S, S, C] stay with the lamp. `unit` is the size in pixels of what is one
    pixel in a picture of 480 rows.
    """

    size: int
    unit: float
    surface: Bytes
    blank: Bytes
    marking: Bytes  # [S, S]: 255 where print or stamp is
    alpha: Bytes
    shading: Bytes
    shadow: Bytes
    grain: Bytes
    turn_deg: float  # parts lie at -turn_deg … turn_deg
    interior: NDArray[np.int32]  # [N, 2] x, y of points well inside the part
    edges: Floats  # [M, 4] x, y and outward normal of points on the outline (the hole's too)

    @property
    def channels(self) -> int:
        """3 for colour, 1 for gray."""
        return 3 if self.surface.ndim == 3 else 1


def grid(size: int) -> tuple[Floats, Floats]:
    """Pixel coordinates x, y, each float32 [size, size], with the origin in the centre."""
    axis = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
    x, y = np.meshgrid(axis, axis)
    return x.astype(np.float32), y.astype(np.float32)


def coverage(distance: Floats) -> Floats:
    """How much of each pixel is inside, 0 … 1, from the signed distance in pixels (negative inside)."""
    return np.asarray(np.clip(0.5 - distance, 0, 1), np.float32)


def facing(distance: Floats) -> Floats:
    """How much a slope that falls along `distance` faces the lamp: float32 -1 … 1."""
    dy, dx = np.gradient(distance)
    length = np.hypot(dx, dy) + 1e-6
    return np.asarray((dx * LIGHT[0] + dy * LIGHT[1]) / length, np.float32)


def assemble(
    *,
    unit: float,
    colour: Floats,
    blank: Floats,
    marking: Floats,
    alpha: Floats,
    shading: Floats,
    grain: Floats,
    turn_deg: float,
    height: float,
    gray: bool,
    rng: np.random.Generator,
) -> Sprite:
    """Packs float layers into bytes and finds where defects can go.

    `colour` and `blank` are BGR 0 … 255 [S, S, 3]; `marking` and `alpha` 0 … 1; `shading` and `grain` about 1;
    `height` is the part's height over the belt in pixels, for its shadow.
    """
    size = alpha.shape[0]
    pack = _gray if gray else _colour
    shadow = _shadow(alpha, height)
    outline = to_bytes(alpha * 255)
    inside = cv2.distanceTransform((outline > 200).astype(np.uint8), cv2.DIST_L2, 5)
    well_inside = np.argwhere(inside > 4 * unit)
    if len(well_inside) > 4096:
        well_inside = well_inside[rng.choice(len(well_inside), 4096, replace=False)]
    return Sprite(
        size=size,
        unit=unit,
        surface=pack(colour),
        blank=pack(blank),
        marking=to_bytes(marking * 255),
        alpha=outline,
        shading=pack(np.repeat(shading[:, :, None] * UNIT_SHADING, 3, axis=2)),
        shadow=pack(np.repeat(shadow[:, :, None] * 255, 3, axis=2)),
        grain=pack(np.repeat(grain[:, :, None] * UNIT_SHADING, 3, axis=2)),
        turn_deg=turn_deg,
        interior=np.ascontiguousarray(well_inside[:, ::-1]).astype(np.int32),
        edges=_edges(outline),
    )


def _colour(layer: NDArray[np.floating]) -> Bytes:
    return np.ascontiguousarray(to_bytes(layer))


def _gray(layer: NDArray[np.floating]) -> Bytes:
    return to_bytes(layer @ np.array([0.114, 0.587, 0.299], np.float32))


def _shadow(alpha: Floats, height: float) -> Floats:
    """Light left on the belt, 0 … 1: a soft shadow away from the lamp and a dark contact line."""
    size = alpha.shape[0]
    dx, dy = -LIGHT * height
    shift = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    cast = cv2.GaussianBlur(cv2.warpAffine(alpha, shift, (size, size)), (0, 0), max(0.8, 0.8 * height))
    contact = cv2.GaussianBlur(alpha, (0, 0), max(0.8, 0.25 * height))
    light = (1 - 0.5 * cast) * (1 - 0.35 * contact)
    # Fades to nothing at the box's border, where the layer ends.
    x, y = grid(size)
    border = (size / 2 - np.maximum(np.abs(x), np.abs(y))) / max(2.0, 0.04 * size)
    return np.asarray(1 - (1 - light) * np.clip(border, 0, 1), np.float32)


def _edges(alpha: Bytes) -> Floats:
    contours, _ = cv2.findContours((alpha > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    soft = cv2.GaussianBlur(alpha.astype(np.float32), (0, 0), 2)
    dy, dx = np.gradient(soft)
    rows = []
    for contour in contours:
        points = contour[:, 0, :]
        gx, gy = dx[points[:, 1], points[:, 0]], dy[points[:, 1], points[:, 0]]
        length = np.hypot(gx, gy) + 1e-6
        rows.append(np.column_stack([points, -gx / length, -gy / length]))
    return np.concatenate(rows).astype(np.float32)


SpriteMaker = Callable[[np.random.Generator, int, bool], Sprite]
"""Draws a part for pictures whose shorter side has that many pixels, in gray or colour."""

"""A part being damaged: the layers that a defect may change, with the truth mask kept in step."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.capture.simulation.sprites import LIGHT, Sprite
from edge.capture.simulation.textures import Bytes, Floats

_GRAY = np.array([0.114, 0.587, 0.299], np.float32)


@dataclass(frozen=True)
class Window:
    """A rectangle of the sprite around a point, with coordinates from that point in pixels, float32 [h, w] each."""

    rows: slice
    columns: slice
    x: Floats
    y: Floats


@dataclass
class Damage:
    """Copies of a sprite's layers to draw defects on. `turn` is the part's angle in the picture, in radians."""

    sprite: Sprite
    surface: Bytes
    turn: float
    alpha: Bytes = field(init=False)
    mask: Bytes = field(init=False)  # [S, S]: 255 where the part differs from a good one

    def __post_init__(self) -> None:
        self.alpha = self.sprite.alpha.copy()
        self.mask = np.zeros_like(self.alpha)

    @property
    def light(self) -> NDArray[np.float32]:
        """Direction towards the lamp as seen from the part, which has turned under it."""
        cos, sin = np.cos(-self.turn), np.sin(-self.turn)
        return np.array([cos * LIGHT[0] - sin * LIGHT[1], sin * LIGHT[0] + cos * LIGHT[1]], np.float32)

    def spot(self, rng: np.random.Generator) -> tuple[int, int]:
        """A random point well inside the part."""
        x, y = self.sprite.interior[rng.integers(len(self.sprite.interior))]
        return int(x), int(y)

    def edge(self, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """A random point of the outline and the outward normal there: x, y, nx, ny."""
        x, y, nx, ny = self.sprite.edges[rng.integers(len(self.sprite.edges))]
        return float(x), float(y), float(nx), float(ny)

    def window(self, x: float, y: float, reach: float) -> Window:
        """The rectangle of `reach` pixels on each side of x, y, cut at the sprite's border."""
        size = self.sprite.size
        left, right = max(0, int(x - reach)), min(size, int(x + reach) + 2)
        top, bottom = max(0, int(y - reach)), min(size, int(y + reach) + 2)
        across = np.arange(left, right, dtype=np.float32) - np.float32(x)
        down = np.arange(top, bottom, dtype=np.float32) - np.float32(y)
        grid_x, grid_y = np.meshgrid(across, down)
        return Window(slice(top, bottom), slice(left, right), grid_x, grid_y)

    def strokes(
        self, window: Window, points: NDArray[np.floating], strength: NDArray[np.floating], thickness: float
    ) -> Floats:
        """Anti-aliased polyline in the window, float32 0 … 1 [h, w]; points [n, 2] in sprite pixels.

        `strength` [n - 1] is the opacity of each piece; a thickness under one pixel fades the line instead.
        """
        layer = np.zeros(window.x.shape, np.uint8)
        wide = max(1, round(thickness))
        fade = min(1.0, thickness)
        corner = np.array([window.columns.start, window.rows.start])
        fixed = np.rint((points - corner) * 16).astype(np.int32)
        for start, end, value in zip(fixed[:-1], fixed[1:], strength, strict=True):
            level = int(np.clip(value * fade * 255, 0, 255))
            cv2.line(layer, start.tolist(), end.tolist(), level, wide, cv2.LINE_AA, shift=4)
        return layer.astype(np.float32) / 255

    def tint(self, window: Window, opacity: Floats, colour: tuple[float, float, float]) -> None:
        """Covers the surface with a BGR colour: opacity 0 … 1 [h, w]."""
        patch = self.surface[window.rows, window.columns]
        paint = np.array(colour, np.float32)
        if patch.ndim == 2:
            mixed = patch + opacity * (paint @ _GRAY - patch)
        else:
            mixed = patch + opacity[:, :, None] * (paint - patch)
        patch[...] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)

    def gain(self, window: Window, factor: Floats) -> None:
        """Multiplies the surface's brightness: factor about 1 [h, w]."""
        patch = self.surface[window.rows, window.columns]
        scale = factor if patch.ndim == 2 else factor[:, :, None]
        patch[...] = np.clip(np.rint(patch * scale), 0, 255).astype(np.uint8)

    def mark(self, window: Window, where: NDArray[np.bool_]) -> None:
        """Adds to the truth mask, where the part is (or was)."""
        part = np.maximum(self.alpha, self.sprite.alpha)[window.rows, window.columns] > 127
        self.mask[window.rows, window.columns][where & part] = 255

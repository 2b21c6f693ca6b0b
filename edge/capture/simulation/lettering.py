"""Print and stamps: text drawn straight or bent along a circle, as coverage maps 0 … 1."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edge.capture.simulation.textures import Floats


def text(words: str, height: float, spacing: float = 0.0) -> Floats:
    """The words in a sans-serif face, cropped to their ink: float32 [h, w] with capitals about `height` pixels high."""
    scale = 3  # drawn larger and shrunk: smoother edges than the rasteriser gives at small sizes
    font = ImageFont.load_default(size=max(6.0, height * scale * 1.38))
    glyphs = [font.getbbox(letter) for letter in words]
    gap = spacing * height * scale
    width = sum(font.getlength(letter) + gap for letter in words)
    canvas = Image.new("L", (int(width) + 8, int(max(box[3] for box in glyphs)) + 8), 0)
    draw = ImageDraw.Draw(canvas)
    x = 2.0
    for letter in words:
        draw.text((x, 2), letter, fill=255, font=font)
        x += font.getlength(letter) + gap
    ink = np.asarray(canvas.crop(canvas.getbbox() or (0, 0, 1, 1)), np.float32) / 255
    size = max(1, round(ink.shape[1] / scale)), max(1, round(ink.shape[0] / scale))
    return cv2.resize(ink, size, interpolation=cv2.INTER_AREA).astype(np.float32)


def place(layer: Floats, ink: Floats, x: float, y: float) -> None:
    """Puts `ink` on `layer`, centred at x, y from the layer's centre; what falls outside is cut off."""
    height, width = layer.shape
    shift = np.array(
        [[1, 0, (width - ink.shape[1]) / 2 + x], [0, 1, (height - ink.shape[0]) / 2 + y]],
        np.float32,
    )
    np.maximum(layer, cv2.warpAffine(ink, shift, (width, height)), out=layer)


def bend(layer: Floats, ink: Floats, radius: float, centre_deg: float, *, outward: bool = True) -> None:
    """Puts `ink` on `layer` along a circle around its centre, in the middle of the arc at `centre_deg`.

    Degrees run clockwise from 3 o'clock. `outward` letters have their feet towards the centre.
    """
    height, width = layer.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x -= (width - 1) / 2
    y -= (height - 1) / 2
    angle = np.arctan2(y, x) - np.deg2rad(centre_deg)
    angle = (angle + np.pi) % (2 * np.pi) - np.pi
    distance = np.hypot(x, y)
    sign = 1.0 if outward else -1.0
    along = sign * angle * radius + ink.shape[1] / 2
    across = sign * (radius - distance) + ink.shape[0] / 2
    bent = cv2.remap(ink, along.astype(np.float32), across.astype(np.float32), cv2.INTER_LINEAR)
    np.maximum(layer, bent, out=layer)

"""Bayer mosaics to colour, inside the scoring graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.images import PixelFormat
from pipelines.precision import Float32Module

# Colours of the mosaic's 2x2 cell, row by row, by the GenICam name.
_MOSAICS = {
    PixelFormat.BAYER_RG8: "RGGB",
    PixelFormat.BAYER_GR8: "GRBG",
    PixelFormat.BAYER_GB8: "GBRG",
    PixelFormat.BAYER_BG8: "BGGR",
}


class Demosaic(Float32Module):
    """Bilinear demosaicing: mosaic [B, H, W, 1] -> float32 RGB [B, H, W, 3], H and W even; values keep their range.

    One stride-2 convolution computes the 12 values of each 2x2 cell. The border is mirrored without repeating the edge,
    which keeps the mosaic's phase.
    """

    weight: Tensor

    def __init__(self, pixel_format: PixelFormat) -> None:
        super().__init__()
        cell = _MOSAICS[pixel_format]
        weight = torch.zeros(3, 2, 2, 4, 4)  # colour, pixel of the cell, window from one pixel before the cell
        for colour, name in enumerate("RGB"):
            for y in range(2):
                for x in range(2):
                    near = [
                        (dy, dx)
                        for dy in (-1, 0, 1)
                        for dx in (-1, 0, 1)
                        if cell[(y + dy) % 2 * 2 + (x + dx) % 2] == name
                    ]
                    # The pixel itself if it has the colour; else the mean of the nearest ones (2 or 4 of them).
                    nearest = min(dy * dy + dx * dx for dy, dx in near)
                    chosen = [(dy, dx) for dy, dx in near if dy * dy + dx * dx == nearest]
                    for dy, dx in chosen:
                        weight[colour, y, x, 1 + y + dy, 1 + x + dx] = 1 / len(chosen)
        self.register_buffer("weight", weight.reshape(12, 1, 4, 4), False)

    def forward(self, mosaic: Tensor) -> Tensor:
        """See the class."""
        B, H, W, _ = mosaic.shape
        padded = F.pad(mosaic.reshape(B, 1, H, W).float(), (1, 1, 1, 1), mode="reflect")
        cells = F.conv2d(padded, self.weight, stride=2)  # [B, colour * y * x, H / 2, W / 2]
        return cells.reshape(B, 3, 2, 2, H // 2, W // 2).permute(0, 4, 2, 5, 3, 1).reshape(B, H, W, 3)

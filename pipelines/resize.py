"""Antialiased resize as matrix products, equal to `F.interpolate(antialias=True)` and, with rounding, to Pillow.

Neither OpenVINO (from an exported graph) nor TensorRT has an antialiased resize, so it is written as products: each
axis is a matrix [target, source] whose rows are nearly all zero. It is cut into bands of some 32 target rows; a band
needs only the source rows under it, which are gathered and multiplied by its small matrix. At a frame of 5 MP that is
some 15 times less work than the whole matrix, and the same operators (gather, matrix product) run in every engine.

The sizes may be symbolic: where frames vary, an exported graph computes the bands from the frame's own size.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pipelines.precision import Float32Module

ResizeFilter = Literal["bilinear", "bicubic"]

_SUPPORT: dict[ResizeFilter, int] = {"bilinear": 1, "bicubic": 2}
_BAND = 32
"""Target rows per band: large enough for an efficient product, small enough that few of its weights are zero."""


def _weights(distance: Tensor, unit: Tensor, kernel: ResizeFilter) -> Tensor:
    """The filter, up to a factor, at whole-number distances of which `unit` make one pixel of the coarser grid."""
    if kernel == "bilinear":
        # A triangle in whole numbers: exact, also in an engine that rounds floats to 8 bits.
        return (unit - distance.abs()).clamp_min(0)
    x = distance.abs().double() / unit.double()  # cubic with a = -0.5
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def band_height(target: int) -> int:
    """The divisor of `target` that is nearest to 32 by ratio."""
    divisors = [n for n in range(1, target + 1) if target % n == 0]
    return min(divisors, key=lambda n: abs(math.log(n / _BAND)))


def bands(source: int, target: int, kernel: ResizeFilter) -> tuple[Tensor, Tensor]:
    """One axis of the resize: source rows int64 [bands, window] and weights float64 [bands, rows, window].

    The filter is stretched by the scale when shrinking. Distances are whole numbers of 1 / (2 target) source pixels, so
    nothing is lost to rounding however large the frame. `source` may be symbolic.
    """
    rows, support = band_height(target), _SUPPORT[kernel]
    window = rows * source // target + 2 * support * (source // target + 1) + 2
    i = torch.arange(target).reshape(-1, rows, 1)
    # A tensor of its own, since a symbolic size has no maximum in every exporter.
    size = torch.full((1,), source, dtype=torch.int64)
    coarse = size.clamp_min(target)
    first = (2 * i[:, :1] + 1) * size - 2 * support * coarse
    first = torch.div(first, 2 * target, rounding_mode="floor")  # below the first source pixel that has weight
    x = first + torch.arange(window)
    distance = (2 * x + 1) * target - (2 * i + 1) * size
    weights = _weights(distance, 2 * coarse, kernel)
    weights = weights * ((x >= 0) & (x < size)).to(weights.dtype)
    weights = weights.double() / weights.sum(dim=-1, keepdim=True).double()
    return x[:, 0].clamp_min(0).minimum(size - 1), weights


class AxisResize(Float32Module):
    """Resize of the second axis, [B, source, M] -> float32 [B, target, M]. `source` None: any size.

    With `round_levels` the result is in whole gray levels, rounded just as Pillow does.
    """

    rows: Tensor
    weights: Tensor

    def __init__(self, source: int | None, target: int, kernel: ResizeFilter, round_levels: bool = False) -> None:
        super().__init__()
        self.source, self.target, self.kernel, self.round_levels = source, target, kernel, round_levels
        if source is not None:
            rows, weights = self._bands(source)
            self.register_buffer("rows", rows, False)
            self.register_buffer("weights", weights, False)

    def forward(self, lines: Tensor) -> Tensor:
        """See the class. Integers are gathered as they are and become float32 after."""
        if self.source is None:
            rows, weights = (tensor.to(lines.device) for tensor in self._bands(lines.shape[1]))
        else:
            rows, weights = self.rows, self.weights
        B, _, M = lines.shape
        gathered = lines.index_select(1, rows.flatten()).reshape(B, *rows.shape, M)
        resized: Tensor = weights @ gathered.float()
        if self.round_levels:
            high, low = resized.chunk(2, dim=2)
            # (2048 high + low + half) >> 22 by whole numbers that float32 holds exactly.
            resized = ((high + (low / 2048).floor() + 1024) / 2048).floor().clamp(0, 255)
        return resized.reshape(B, self.target, M)

    def _bands(self, source: int) -> tuple[Tensor, Tensor]:
        rows, weights = bands(source, self.target, self.kernel)
        if self.round_levels:
            # Pillow's weights are whole multiples of 2^-22, and ties are common. Split in two halves of 11 bits they
            # are exact in float32, and so are the sums.
            fixed = torch.where(weights < 0, weights * 2**22 - 0.5, weights * 2**22 + 0.5).trunc()
            high = (fixed / 2048).floor()
            weights = torch.cat((high, fixed - 2048 * high), dim=1)
        return rows, weights.float()


class Resize(Float32Module):
    """Antialiased resize of interleaved pixels [B, h, w, C] -> planes float32 [B, C, H, W].

    `source` (height, width) None: any size. `round_levels` rounds to whole gray levels after the horizontal and after
    the vertical pass, which is what Pillow does and so what published numbers were made with.
    """

    def __init__(
        self,
        source: tuple[int, int] | None,
        target: tuple[int, int],
        kernel: ResizeFilter = "bilinear",
        round_levels: bool = False,
    ) -> None:
        super().__init__()
        self.target, self.round_levels = target, round_levels
        self.vertical = AxisResize(source[0] if source else None, target[0], kernel, round_levels)
        self.horizontal = AxisResize(source[1] if source else None, target[1], kernel, round_levels)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        B, h, w, C = images.shape
        H, W = self.target
        planes: Tensor
        if self.round_levels:  # in Pillow's order
            columns = self.horizontal(images.permute(0, 2, 1, 3).reshape(B, w, h * C))
            lines = self.vertical(columns.reshape(B, W, h, C).permute(0, 2, 3, 1).reshape(B, h, C * W))
            planes = lines.reshape(B, H, C, W).transpose(1, 2)
        else:
            # Rows first: the pass over the large frame then reads it in the order it lies in memory.
            lines = self.vertical(images.reshape(B, h, w * C))
            columns = self.horizontal(lines.reshape(B, H, w, C).permute(0, 2, 3, 1).reshape(B, w, C * H))
            planes = columns.reshape(B, W, C, H).permute(0, 2, 3, 1)
        return planes

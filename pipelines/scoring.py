"""From patch maps to scores: Top-K mean, and the operators of the published scoring rules.

Everything is float32, per image, and in raw units: nothing here looks at another image (no min-max over a set).

The published pixel-level rules (VisualAD, ViTAD) are chains of linear operators that treat rows and columns alike:
bilinear upsampling, then a separable Gaussian, then perhaps an average pool. `PixelMap` folds such a chain into one
constant matrix per axis, so that the whole of it costs two small matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.precision import Float32Module

BELOW_ALL = -1e30
"""Stands for an ignored patch where a maximum is looked for: below every score, finite in float32 and bfloat16."""


def topk_mean(values: Tensor, k: int, keep: Tensor | None = None) -> Tensor:
    """Mean of the `k` largest of each map: [..., h, w] -> [...], without positions where bool `keep` [h, w] is False.

    `k` must not exceed the positions kept (`PipelineConfig` and `Pipeline` check that when they are built).
    """
    values = values.float()
    if keep is not None:
        values = torch.where(keep, values, BELOW_ALL)
    flat = values.flatten(-2)
    if k == 1:
        return flat.amax(-1)
    return flat.topk(k, dim=-1, sorted=False).values.mean(-1)


def top_percent_count(positions: int, percent: float = 1.0) -> int:
    """How many of `positions` are their top `percent`: rounded up, at least 1."""
    return max(1, math.ceil(positions * percent / 100))


@dataclass(frozen=True)
class Kept:
    """The positions of a map that count: bool `mask` [h, w], and how many they are.

    The number is a plain one, known when the pipeline is built, so that an exported graph does not depend on data.
    """

    mask: Tensor
    count: int


def top_percent_mean(values: Tensor, percent: float = 1.0, kept: Kept | None = None) -> Tensor:
    """Mean of the largest `percent` of each map: [..., h, w] -> [...], among the positions that count."""
    if kept is None:
        return topk_mean(values, top_percent_count(math.prod(values.shape[-2:]), percent))
    return topk_mean(values, top_percent_count(kept.count, percent), kept.mask)


def upsample(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinear resize of maps [B, h, w] to `size` (H, W)."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=align_corners)[:, 0]


def gaussian_kernel(sigma: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalised 1-D Gaussian [2r + 1], cut at four deviations: r = round(4 sigma)."""
    radius = int(4 * sigma + 0.5)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    return (kernel / kernel.sum()).to(dtype)


def _mirrored(size: int, radius: int) -> Tensor:
    """Indices that extend a line by `radius` on both sides, edges repeated: ... c b a | a b c ... (any radius)."""
    index = torch.arange(-radius, size + radius) % (2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of maps [B, H, W] as two 1-D convolutions, mirrored at the edges with the edge repeated."""
    kernel = gaussian_kernel(sigma, maps.dtype).to(maps.device)
    radius = kernel.numel() // 2
    for axis in (-2, -1):
        padded = maps.index_select(axis, _mirrored(maps.shape[axis], radius).to(maps.device))
        shape = [1, 1, -1, 1] if axis == -2 else [1, 1, 1, -1]
        maps = F.conv2d(padded[:, None], kernel.view(shape))[:, 0]
    return maps


def average_pool(maps: Tensor, side: int = 16) -> Tensor:
    """Mean over `side` x `side` windows at stride 1, no padding: [B, H, W] -> [B, H - side + 1, W - side + 1]."""
    return F.avg_pool2d(maps[:, None], side, stride=1)[:, 0]


def axis_matrix(cells: int, pixels: int, align_corners: bool, sigma: float = 0.0, pool: int = 1) -> Tensor:
    """Upsampling, Gaussian and average pool along one axis as one float64 matrix [pixels - pool + 1, cells].

    Built by sending the unit vectors through the operators themselves; the other axis is a single pixel there.
    """
    lines = torch.eye(cells, dtype=torch.float64)[:, :, None]
    lines = upsample(lines, (pixels, 1), align_corners)
    if sigma:
        lines = gaussian_blur(lines, sigma)
    if pool > 1:
        lines = F.avg_pool2d(lines[:, None], (pool, 1), stride=1)[:, 0]
    return lines[:, :, 0].T.contiguous()


class PixelMap(Float32Module):
    """Patch maps [..., h, w] -> pixel maps [..., H, W]: bilinear upsampling, optional Gaussian, optional average pool.

    With `pool` > 1 the result is smaller by pool - 1 on each axis.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        size: tuple[int, int],
        align_corners: bool = False,
        sigma: float = 0.0,
        pool: int = 1,
    ) -> None:
        super().__init__()
        self.grid, self.size, self.pool = grid, size, pool
        self.register_buffer("rows", axis_matrix(grid[0], size[0], align_corners, sigma, pool).float(), False)
        columns = axis_matrix(grid[1], size[1], align_corners, sigma, pool).float()
        self.register_buffer("columns", columns.T.contiguous(), False)

    def forward(self, maps: Tensor) -> Tensor:
        """See the class. Float32 whatever comes in."""
        return self.rows @ maps.float() @ self.columns

    def kept(self, kept: Kept) -> Kept:
        """Which output positions count, by their patch; an averaging window by its centre.

        The count is exact where patches are whole pixels and nothing is pooled, else an upper bound.
        """
        pixels = F.interpolate(kept.mask[None, None].float(), self.size, mode="nearest-exact")[0, 0] > 0.5
        before, after = self.pool // 2, (self.pool - 1) // 2
        mask = pixels[before : self.size[0] - after, before : self.size[1] - after]
        return Kept(mask, kept.count * math.prod(self.size) // math.prod(self.grid))

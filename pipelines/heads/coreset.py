"""Greedy k-center coreset (PatchCore, algorithm 1): a few features such that every other one is near to one of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PROJECTED_WIDTH = 128
"""Channels the distances are taken in: a random projection to as many keeps distances within some 10 % (Johnson and
Lindenstrauss), and the choice of centres needs no more."""

EVERY = 256
"""Selections between two calls of `progress`."""


@torch.no_grad()
def greedy_coreset(
    features: Tensor,
    size: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Indices int64 [size] into float32 `features` [M, D]: the first drawn by `seed`, each next the farthest from all.

    Exact ties and a `size` of M or more are fine (all indices are returned then, each once). Time is M x size products
    of 128 channels, memory M x 128 floats.
    """
    count, width = features.shape
    if size >= count:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    points = features.float()
    if width > PROJECTED_WIDTH:
        projection = torch.randn(width, PROJECTED_WIDTH, generator=generator) / PROJECTED_WIDTH**0.5
        points = points @ projection.to(points.device)
    # |p - q|^2 = |p|^2 - 2 p.q + |q|^2: one matrix-vector product per selection. Centred, so that little is cancelled.
    points = points - points.mean(0)
    squares = points.square().sum(1)
    chosen = torch.empty(size, dtype=torch.int64)
    current = int(torch.randint(count, (1,), generator=generator))
    nearest = torch.full((count,), float("inf"), device=points.device)
    for step in range(size):
        chosen[step] = current
        distance = torch.addmv(squares, points, points[current], alpha=-2).add_(squares[current])
        torch.minimum(nearest, distance, out=nearest)
        nearest[current] = -1.0  # never again, even among duplicates
        current = int(nearest.argmax())
        if progress is not None and ((step + 1) % EVERY == 0 or step + 1 == size):
            progress(step + 1, size)
    return chosen

"""Keeping the numbers right when a pipeline runs in half precision.

What costs time (the transformer blocks) may run in fp16 or bf16; what decides the score (resize, reductions, distances,
Top-K) stays in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

UNIT_EPS = 1e-6
"""Smallest length divided by. The usual 1e-12 is zero in fp16, where a zero vector would become NaN."""


class Float32Module(nn.Module):
    """A module whose buffers stay float32: `half()` and `to(dtype)` move it between devices but never round it."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # nn.Module has no switch for "not this one", so the float buffers are put back, on the device they went to.
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            moved = self._buffers[name]
            assert moved is not None
            if moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis, in float32 whatever comes in; a zero vector stays zero."""
    x = x.float()
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(UNIT_EPS)

"""Where a patch is: learned tables that follow the input size, and rotary tables (RoPE).

Both depend on the input size alone, so they are computed once per size, always in float32, and kept as non-persistent
buffers: they move and change precision with the model, stay out of its state dict, and are constants of an exported
graph. The rotation is applied in the model's own precision: float16 keeps the tables' values (all within [-1, 1]) as
exactly as it keeps the queries and keys they multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import EncoderConfig, TableResize

KEPT_SIZES = 8
"""Tables of this many input sizes are kept; a line has one or two, only offline scoring of mixed files has more."""


def resize_table(table: Tensor, rows: int, cols: int, rule: TableResize) -> Tensor:
    """A learned position table [1, M*M, D] laid over rows x cols patches: [1, rows*cols, D], float32.

    - `bicubic_offset` (DINO v1, DINOv2): bicubic without antialiasing by the scale (n + 0.1) / M, and this scale, not
      the ratio of the sizes, drives the sampling coordinates (`interpolate_pos_encoding` of the originals).
    - `bicubic_antialias` (DINOv2 with registers; timm): antialiased bicubic by size.
    - `bilinear` (CLIP as VisualAD runs it): bilinear by size, align_corners=False.
    """
    side = math.isqrt(table.shape[1])
    if rows == cols == side:
        return table.float()
    image = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if rule == "bicubic_offset":
        scale = ((rows + 0.1) / side, (cols + 0.1) / side)
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    elif rule == "bicubic_antialias":
        image = F.interpolate(image, size=(rows, cols), mode="bicubic", align_corners=False, antialias=True)
    else:
        image = F.interpolate(image, size=(rows, cols), mode="bilinear", align_corners=False)
    assert image.shape[-2:] == (rows, cols)
    return image.permute(0, 2, 3, 1).reshape(1, rows * cols, -1)


def rotary_table(rows: int, cols: int, head_width: int, base: float, reference: int | None = None) -> Tensor:
    """Cosines and sines of the DINOv3 rotary embedding: float32 [2, rows*cols, head_width].

    Angle = 2 pi * coordinate / period, periods base^(2j / (d/2)) for j < d/4, coordinates of patch centres in [-1, 1],
    each axis normalised by itself (or by `reference` patches on both); laid out [rows' angles, columns' angles], twice.
    """
    periods = base ** (2 * torch.arange(head_width // 4, dtype=torch.float32) / (head_width // 2))
    y = (torch.arange(rows, dtype=torch.float32) + 0.5) / (reference or rows) * 2 - 1
    x = (torch.arange(cols, dtype=torch.float32) + 0.5) / (reference or cols) * 2 - 1
    coordinates = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2, 1)
    angles = (2 * math.pi * coordinates / periods).flatten(1).tile(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


class SizeTables(nn.Module):
    """Tables by input size, kept as non-persistent buffers; the oldest gives way beyond `KEPT_SIZES`."""

    def lookup(self, rows: int, cols: int, prefix: int, make: Callable[[], Tensor]) -> Tensor:
        """The table of this grid (and number of tokens before the patches), made and kept if it is new."""
        key = f"grid_{rows}x{cols}_after_{prefix}"
        kept = self._buffers.get(key)
        if kept is not None:
            return kept
        if torch.compiler.is_compiling():
            return make()  # traced tensors must not outlive the trace; call `prepare` first to export a constant
        # A table made under inference_mode could not take part in training a head later.
        with torch.inference_mode(False), torch.no_grad():
            table = make().clone()
        while len(self._buffers) >= KEPT_SIZES:
            del self._buffers[next(iter(self._buffers))]
        self.register_buffer(key, table, persistent=False)
        return table

    def sizes(self) -> list[tuple[int, int]]:
        """(rows, columns) of the tables kept."""
        return [(int(rows), int(cols)) for rows, cols in (key.split("_")[1].split("x") for key in self._buffers)]

    def forget(self) -> None:
        """Drops every table."""
        self._buffers.clear()


class LearnedPositions(nn.Module):
    """The learned position table [1, 1 + M*M, D], entry 0 the class token's."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        assert config.grid is not None
        assert config.table_resize is not None
        self.rule: TableResize = config.table_resize
        self.table = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.width))
        self.resized = SizeTables()

    def class_position(self) -> Tensor:
        """[1, 1, D]."""
        return self.table[:, :1]

    def patch_positions(self, rows: int, cols: int) -> Tensor:
        """[1, rows*cols, D], in the precision of the table."""

        def make() -> Tensor:
            return resize_table(self.table[:, 1:], rows, cols, self.rule).to(self.table.dtype)

        if self.table.requires_grad and torch.is_grad_enabled():
            self.resized.forget()  # the table is being trained: what was made of it is about to go stale
            return make()
        return self.resized.lookup(rows, cols, 0, make)

    def _load_from_state_dict(self, *args: Any) -> None:
        sizes = self.resized.sizes()
        self.resized.forget()
        super()._load_from_state_dict(*args)
        if not self.table.is_meta:  # what was prepared stays prepared, with the new table
            for rows, cols in sizes:
                self.patch_positions(rows, cols)


class RotaryPositions(nn.Module):
    """Rotary tables for queries and keys of the whole sequence: the identity for the tokens before the patches."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        assert config.rope_base is not None
        self.head_width = config.head_width
        self.base = config.rope_base
        self.reference = config.rope_reference
        self.tables = SizeTables()

    def rotation(self, rows: int, cols: int, prefix: int, like: Tensor) -> Tensor:
        """[2, prefix + rows*cols, head width]: cosines, sines signed for `rotate`; device and precision of `like`."""

        def make() -> Tensor:
            cos, sin = rotary_table(rows, cols, self.head_width, self.base, self.reference)
            half = self.head_width // 2
            sin = torch.cat((-sin[:, :half], sin[:, half:]), dim=1)
            cos, sin = F.pad(cos, (0, 0, prefix, 0), value=1.0), F.pad(sin, (0, 0, prefix, 0), value=0.0)
            return torch.stack((cos, sin)).to(like)

        # A whole-sequence table costs a few kilobytes and saves each block splitting and joining the sequence.
        return self.tables.lookup(rows, cols, prefix, make)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Applies `RotaryPositions.rotation` to queries or keys [..., sequence, head width]."""
    cos, sin = rotation.unbind(0)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin

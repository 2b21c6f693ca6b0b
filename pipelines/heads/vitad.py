"""ViTAD: a plain transformer decoder rebuilds, from the encoder's last block, what its earlier blocks saw.

Trained on normal images only, it cannot rebuild a defect; a patch's score is how far (in cosine) the rebuilt features
are from the encoder's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.config import ViTADConfig
from pipelines.encoders.vit import Encoder
from pipelines.errors import WeightsError
from pipelines.heads.base import Head, fill_ignored, quarters
from pipelines.heads.blocks import Block, init_linear
from pipelines.heads.published import load, part_with, require, tensors_of
from pipelines.precision import unit
from pipelines.scoring import Kept, PixelMap, topk_mean

SIGMA, POOL = 4.0, 16
"""Gaussian [px] and side of the average pool [px] before the maximum is taken."""


class Decoder(nn.Module):
    """Learned positions and pre-norm blocks; the outputs after some of them, without a norm."""

    def __init__(self, width: int, heads: int, positions: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.outputs = outputs
        self.positions = nn.Parameter(torch.empty(1, positions, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(max(outputs)))
        self.apply(init_linear)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """[B, N, D] -> one [B, N, D] per 1-based block in `outputs`, in that order."""
        tokens = tokens + self.positions
        found: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            found[number] = tokens
        return [found[number] for number in self.outputs]


class ViTAD(Head[ViTADConfig]):
    """Fuser, decoder, and the cosine distance of each pair.

    With teachers 3, 6, 9 and neck 12 the decoder has 9 blocks and the pairs are encoder 3 - decoder 9, 6 - 6, 9 - 3:
    the decoder undoes the encoder block by block.
    """

    name = "vitad"
    Config = ViTADConfig

    def __init__(
        self,
        config: ViTADConfig,
        *,
        width: int,
        depth: int,
        grid: tuple[int, int],
        patch: int,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(config, width=width, depth=depth, grid=grid, patch=patch, norm_eps=norm_eps)
        self.teachers = config.teachers or quarters(depth)[:3]
        self.neck = config.neck or depth
        if self.neck > depth or min(self.teachers) < 1 or max(self.teachers) >= self.neck:
            raise WeightsError(
                f"vitad: teachers {list(self.teachers)} must be blocks before the neck {self.neck}, "
                f"and that one of the encoder's {depth}"
            )
        if width % config.heads:
            raise WeightsError(f"vitad: {config.heads} heads do not divide the width {width}")
        self.fuser = nn.Linear(width, width)
        outputs = tuple(self.neck - teacher for teacher in self.teachers)
        self.decoder = Decoder(width, config.heads, grid[0] * grid[1], outputs)
        self.fuser.apply(init_linear)
        self.pixels = PixelMap(grid, self.input_size, align_corners=True, sigma=SIGMA, pool=POOL)

    def features(self, encoder: Encoder, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Teachers' features and the neck's, [B, N, D] each, no final norm. Fixed per image: training may keep them."""
        *teachers, neck = encoder.taps(images, (*self.teachers, self.neck))
        return teachers, neck

    def rebuild(self, neck: Tensor) -> list[Tensor]:
        """The decoder's version [B, N, D] of each teacher's features."""
        rebuilt: list[Tensor] = self.decoder(self.fuser(neck))
        return rebuilt

    def patch_scores(self, encoder: Encoder, images: Tensor) -> Tensor:
        """See `Head`: 1 - cosine, averaged over the pairs.

        The published code divides by the number of pairs twice; so does this, that scores equal published ones.
        """
        teachers, neck = self.features(encoder, images)
        pairs = zip(teachers, self.rebuild(neck), strict=True)
        distances = [1 - (unit(teacher) * unit(student)).sum(-1) for teacher, student in pairs]
        return self.to_grid(torch.stack(distances).sum(0) / len(distances) ** 2)

    def published_score(self, patch_map: Tensor, kept: Kept | None = None) -> Tensor:
        """Maximum of the pixel map (align_corners=True), smoothed and average-pooled."""
        if kept is None:
            return topk_mean(self.pixels(patch_map), 1)
        return topk_mean(self.pixels(fill_ignored(patch_map, kept)), 1, self.pixels.kept(kept).mask)

    @classmethod
    def from_published(cls, state: Mapping[str, Any], encoder: Encoder, grid: tuple[int, int]) -> ViTAD:
        """The fuser and decoder of an ADer checkpoint (`net_fusion.`, `net_s.`).

        The decoder has the encoder's number of heads, and its teachers are the encoder's quarters, as published; what
        the checkpoint holds but never uses (the decoder's class token, patch embedding, norm and classifier) is left.
        """
        flat = tensors_of(state)
        root = part_with(flat, "net_fusion.fc.weight")
        require(root or flat, ("net_fusion.fc.weight", "net_fusion.fc.bias", "net_s.pos_embed"), "ViTAD")
        width = root["net_fusion.fc.weight"].shape[0]
        if width != encoder.width:
            raise WeightsError(
                f"this ViTAD decoder is for features of width {width}, {encoder.config.name} has {encoder.width}; "
                "use the encoder it was trained with"
            )
        renamed = {f"fuser.{part}": root[f"net_fusion.fc.{part}"] for part in ("weight", "bias")}
        positions = root["net_s.pos_embed"]
        if positions.shape[1] != grid[0] * grid[1]:
            raise WeightsError(
                f"this ViTAD decoder has {positions.shape[1]} positions, an input of {grid[0]} x {grid[1]} patches "
                f"needs {grid[0] * grid[1]}; use the input size it was trained at"
            )
        renamed["decoder.positions"] = positions
        for name, tensor in root.items():
            if name.startswith("net_s.blocks."):
                renamed[name.replace("net_s.", "decoder.", 1)] = tensor
        head = cls(
            ViTADConfig(heads=encoder.config.heads),
            width=width,
            depth=encoder.depth,
            grid=grid,
            patch=encoder.patch,
        )
        load(head, renamed, "ViTAD")
        return head

"""FoundAD: a projector trained on a few normal images maps features onto the manifold of normal ones.

The residual between a patch feature and its projection is the patch's score (FoundAD, inference and Top-K score).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.config import FoundADConfig
from pipelines.encoders.vit import Encoder
from pipelines.errors import WeightsError
from pipelines.heads.base import Head
from pipelines.heads.blocks import Block, init_linear
from pipelines.heads.published import load, part_with, require, tensors_of
from pipelines.precision import unit
from pipelines.scoring import Kept, topk_mean


class Projector(nn.Module):
    """Patch features [B, N, D] -> their projection [B, N, D].

    The embedded input is added again after every block: r = embed(z); x = r; x = block(x) + r. `positions` is the
    number of patches where a learned position table is added to the embedded input, or 0.
    """

    def __init__(self, width: int, embed: int, depth: int, heads: int, positions: int = 0) -> None:
        super().__init__()
        self.embed = nn.Linear(width, embed)
        self.positions = nn.Parameter(torch.zeros(1, positions, embed)) if positions else None
        self.blocks = nn.ModuleList(Block(embed, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed, eps=1e-6)
        self.proj = nn.Linear(embed, width)
        self.apply(init_linear)
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        residual = self.embed(features)
        if self.positions is not None:
            residual = residual + self.positions
        x = residual
        for block in self.blocks:
            x = block(x) + residual
        projected: Tensor = self.proj(self.norm(x))
        return projected


class FoundAD(Head[FoundADConfig]):
    """Frozen features, trained projector, squared residual."""

    name = "foundad"
    Config = FoundADConfig

    def __init__(
        self,
        config: FoundADConfig,
        *,
        width: int,
        depth: int,
        grid: tuple[int, int],
        patch: int,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(config, width=width, depth=depth, grid=grid, patch=patch, norm_eps=norm_eps)
        if config.embed % config.heads:
            raise WeightsError(f"foundad: {config.heads} heads do not divide the projector's width {config.embed}")
        if config.last > depth:
            raise WeightsError(f"foundad: the encoder has {depth} blocks, so there is no {config.last}-th last one")
        positions = grid[0] * grid[1] if config.position_table else 0
        self.projector = Projector(width, config.embed, config.depth, config.heads, positions)

    def features(self, encoder: Encoder, images: Tensor) -> Tensor:
        """The features [B, N, D] that the projector sees and must reproduce."""
        features = encoder.features(images, last=self.config.last)
        return unit(features).to(features.dtype) if self.config.feat_normed else features

    def project(self, features: Tensor) -> Tensor:
        """Projection [B, N, D] of features, L2-normalised where the features are."""
        projected: Tensor = self.projector(features)
        return unit(projected).to(projected.dtype) if self.config.feat_normed else projected

    def residual(self, features: Tensor) -> Tensor:
        """Squared residual of each patch, mean over channels: [B, N, D] -> float32 [B, N]."""
        # The mean of squares is taken in float32: it overflows and underflows in fp16.
        return (features.float() - self.project(features).float()).square().mean(-1)

    def patch_scores(self, encoder: Encoder, images: Tensor) -> Tensor:
        """See `Head`."""
        return self.to_grid(self.residual(self.features(encoder, images)))

    def published_score(self, patch_map: Tensor, kept: Kept | None = None) -> Tensor:
        """Mean of the `top_k` largest patch scores."""
        return topk_mean(patch_map, self.config.top_k, None if kept is None else kept.mask)

    @classmethod
    def from_published(cls, state: Mapping[str, Any], encoder: Encoder, grid: tuple[int, int]) -> FoundAD:
        """The projector of a published checkpoint: `{"predictor": {...}}`, or keys below `predictor.`, or bare keys.

        The checkpoint does not say its number of heads: 12 wherever that divides the width, as published.
        """
        flat = tensors_of(state)
        part = part_with(flat, "predictor_embed.weight")
        require(part or flat, ("predictor_embed.weight", "predictor_norm.weight", "predictor_proj.weight"), "FoundAD")
        embed, width = part["predictor_embed.weight"].shape
        if width != encoder.width:
            raise WeightsError(
                f"this FoundAD projector is for features of width {width}, {encoder.config.name} has {encoder.width}; "
                "use the encoder it was trained with"
            )
        names = {
            "predictor_embed": "embed",
            "predictor_norm": "norm",
            "predictor_proj": "proj",
            "predictor_blocks": "blocks",
        }
        renamed: dict[str, Tensor] = {}
        for name, tensor in part.items():
            first, _, rest = name.partition(".")
            if first == "predictor_pos_embed":
                renamed["positions"] = tensor
            elif first in names:
                renamed[f"{names[first]}.{rest}"] = tensor
            elif first != "mask_token":  # in the files, but never used
                renamed[name] = tensor
        blocks = {int(name.split(".")[1]) for name in renamed if name.startswith("blocks.")}
        config = FoundADConfig(
            embed=embed,
            depth=max(blocks, default=-1) + 1 or 1,
            heads=12 if embed % 12 == 0 else 6,
            position_table="positions" in renamed,
        )
        head = cls(config, width=width, depth=encoder.depth, grid=grid, patch=encoder.patch)
        load(head.projector, renamed, "FoundAD")
        return head

"""Memory bank: patch features of normal images; a patch's score is its distance to the nearest of them.

Sources: PatchCore (greedy coreset by k-center with a random projection; maximum as image score) and AnomalyDINO (patch
tokens of a DINO encoder, cosine distance; mean of the top 1 % of patches as image score).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.config import MemoryBankConfig
from pipelines.encoders.vit import Encoder
from pipelines.errors import WeightsError
from pipelines.heads.base import Head
from pipelines.heads.coreset import greedy_coreset
from pipelines.precision import Float32Module, unit
from pipelines.scoring import Kept, top_percent_mean, topk_mean


class MemoryBank(Float32Module, Head[MemoryBankConfig]):
    """Nearest-neighbour distance to a bank [size, D'] of normal features, by one matrix product.

    D' is the encoder's width times the number of blocks. The bank stays in float32.
    """

    name = "memory_bank"
    Config = MemoryBankConfig
    bank: Tensor

    def __init__(
        self,
        config: MemoryBankConfig,
        *,
        width: int,
        depth: int,
        grid: tuple[int, int],
        patch: int,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(config, width=width, depth=depth, grid=grid, patch=patch, norm_eps=norm_eps)
        self.blocks = config.blocks or (depth,)
        if min(self.blocks) < 1 or max(self.blocks) > depth:
            raise WeightsError(f"memory_bank: the encoder has blocks 1 to {depth}, not {list(self.blocks)}")
        self.register_buffer("bank", torch.zeros(config.size, width * len(self.blocks)))

    def features(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Patch features float32 [B, N, D'], as they are kept in the bank and compared with it."""
        parts = []
        for tokens in encoder.taps(images, self.blocks):
            tokens = (encoder.norm(tokens) if self.config.normed else tokens).float()
            if self.config.pool > 1:
                image = tokens.transpose(1, 2).unflatten(2, self.grid)
                # Windows that hang over the edge average what they cover.
                pooled = F.avg_pool2d(image, self.config.pool, 1, self.config.pool // 2, count_include_pad=False)
                tokens = pooled.flatten(2).transpose(1, 2)
            # Each block has its own scale; unit length gives all of them the same say.
            parts.append(unit(tokens) if self.config.distance == "cosine" else tokens)
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return unit(joined) if self.config.distance == "cosine" and len(parts) > 1 else joined

    def distances(self, features: Tensor) -> Tensor:
        """Distance to the nearest in the bank: float32 [B, N, D'] -> [B, N].

        The bias of the product makes its output the (squared) distance itself, a small number, so that engines that
        round matrix products to 8 or 11 bits round the distance and not a similarity near 1.
        """
        if self.config.distance == "cosine":
            product = F.linear(features, -self.bank, torch.ones_like(self.bank[:, 0]))
            return product.amin(-1).clamp_min(0)
        product = F.linear(features, -2 * self.bank, self.bank.square().sum(-1))
        return (product.amin(-1) + features.square().sum(-1)).clamp_min(0).sqrt()

    def patch_scores(self, encoder: Encoder, images: Tensor) -> Tensor:
        """See `Head`."""
        return self.to_grid(self.distances(self.features(encoder, images)))

    def published_score(self, patch_map: Tensor, kept: Kept | None = None) -> Tensor:
        """Mean of the top 1 % of patches (AnomalyDINO), or the maximum (PatchCore), as configured."""
        if self.config.published == "max":
            return topk_mean(patch_map, 1, None if kept is None else kept.mask)
        return top_percent_mean(patch_map, 1.0, kept)

    def fit(
        self,
        features: Tensor | Sequence[Tensor],
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> MemoryBank:
        """Fills the bank with a greedy coreset of normal features ([M, D'] or several [..., D'], M >= size).

        Deterministic for a seed. `progress(done, total)` is called now and then. Raises `WeightsError` where there are
        fewer features than the bank holds, or they are of another width or not finite.
        """
        parts = [features] if isinstance(features, Tensor) else list(features)
        pool = torch.cat([part.reshape(-1, part.shape[-1]).float() for part in parts])
        size, width = self.bank.shape
        if pool.shape[1] != width:
            raise WeightsError(f"memory_bank: features have width {pool.shape[1]}, the bank {width}")
        if pool.shape[0] < size:
            raise WeightsError(
                f"memory_bank: {pool.shape[0]} patch features cannot fill a bank of {size}; "
                "give more images or a smaller bank"
            )
        if not bool(torch.isfinite(pool).all()):
            raise WeightsError("memory_bank: the features hold NaN or infinity; check the encoder's weights")
        chosen = greedy_coreset(pool, size, seed=seed, progress=progress)
        self.bank.copy_(pool[chosen])
        return self

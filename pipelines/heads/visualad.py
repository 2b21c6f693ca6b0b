"""VisualAD: two learned tokens, "anomaly" and "normal", run inside the frozen encoder.

A patch is scored by which of the two it resembles more. Trained once with defect masks, then used on products that it
has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.config import VisualADConfig
from pipelines.encoders.vit import Encoder
from pipelines.errors import WeightsError
from pipelines.heads.base import Head, fill_ignored, quarters
from pipelines.heads.published import load, part_with, require, tensors_of
from pipelines.precision import unit
from pipelines.scoring import Kept, PixelMap, top_percent_mean

SIGMA = 4.0
"""Of the Gaussian over the summed pixel map [px]."""


class SpatialCrossAttention(nn.Module):
    """SCA: anchors look at the patches; both tokens take from what they saw, each by its own gate.

    The anchors' queries, the keys and the values do not depend on the token, so they serve both.
    """

    def __init__(self, width: int, anchors: int, positions: int) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.empty(anchors, width))
        self.positions = nn.Parameter(torch.empty(1, positions, width))
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.q_norm = nn.LayerNorm(width, eps=1e-5)
        self.k_norm = nn.LayerNorm(width, eps=1e-5)
        self.gate = nn.Linear(width, anchors)
        self.out = nn.Linear(width, width)
        self.res_scale = nn.Parameter(torch.full((1,), 0.01))
        self.dropout = nn.Dropout(0.1)
        nn.init.normal_(self.anchors, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def attention(self, patches: Tensor) -> Tensor:
        """[B, N, D] -> how much each anchor attends to each patch: float32 [B, A, N]."""
        N, D = patches.shape[1:]
        queries = self.q_norm(self.q(self.anchors))
        keys = self.k_norm(self.k(patches + self.positions[:, :N]))
        logits = (queries * D**-0.5) @ keys.transpose(1, 2)
        weights: Tensor = logits.float().softmax(dim=-1)
        return weights

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """Tokens [B, 2, D] and patches [B, N, D] -> tokens [B, 2, D]."""
        attention: Tensor = self.dropout(self.attention(patches)).to(patches.dtype)
        # The values' projection has no bias, so the few averages are projected and not all patches: Wv sum = sum Wv.
        seen = self.v(attention @ patches)
        gates = torch.sigmoid(self.gate(tokens))
        updated: Tensor = tokens + self.res_scale * self.out(gates @ seen)
        return updated


class SelfAlignment(nn.Module):
    """SAF: Linear, GELU, Linear on patches, without residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        aligned: Tensor = self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(patches)))))
        return aligned


class VisualAD(Head[VisualADConfig]):
    """The two tokens, one SCA and one SAF per tap, and the final norm that was trained with them."""

    name = "visualad"
    Config = VisualADConfig
    token_positions: Tensor
    extra_tokens = 2

    def __init__(
        self,
        config: VisualADConfig,
        *,
        width: int,
        depth: int,
        grid: tuple[int, int],
        patch: int,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(config, width=width, depth=depth, grid=grid, patch=patch, norm_eps=norm_eps)
        self.taps = config.taps or quarters(depth)
        if min(self.taps) < 1 or max(self.taps) > depth:
            raise WeightsError(f"visualad: the encoder has blocks 1 to {depth}, not {list(self.taps)}")
        if grid[0] * grid[1] > config.positions:
            raise WeightsError(
                f"visualad: {grid[0]} x {grid[1]} patches are more than its {config.positions} positions; "
                f"choose an input of at most {math.isqrt(config.positions) * patch} x "
                f"{math.isqrt(config.positions) * patch} px"
            )
        self.floor = -2.0 * len(self.taps)
        # Anomaly first, normal second; in the sequence they stand before the class token.
        self.tokens = nn.Parameter(torch.randn(2, width) * width**-0.5 * 0.1)
        if config.token_positions:
            self.register_buffer("token_positions", torch.zeros(2, width))
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.sca = nn.ModuleList(SpatialCrossAttention(width, config.anchors, config.positions) for _ in self.taps)
        self.saf = nn.ModuleList(SelfAlignment(width) for _ in self.taps)
        self.pixels = PixelMap(grid, self.input_size, align_corners=False, sigma=SIGMA)

    def start_from(self, encoder: Encoder) -> VisualAD:
        """Before training: the norm starts as a copy of the encoder's."""
        self.norm.load_state_dict(encoder.norm.state_dict())
        return self

    def tap_features(self, encoder: Encoder, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The two tokens [B, 2, D] after the last block and the patches [B, N, D] of each tap, all through the norm."""
        positions = self.token_positions if self.config.token_positions else None
        sequence = encoder.tokens(images, extra=self.tokens, extra_positions=positions)
        outputs = encoder.run(sequence, images.shape[-2:], blocks=(*self.taps, self.depth), extra=2)
        patches = [self.norm(output[:, 2 + encoder.prefix :]) for output in outputs[:-1]]
        return self.norm(outputs[-1][:, :2]), patches

    def tap_maps(self, tokens: Tensor, patches: list[Tensor]) -> list[Tensor]:
        """Per tap: cosine to the anomaly token less cosine to the normal token, float32 [B, N]."""
        maps = []
        for sca, saf, tap in zip(self.sca, self.saf, patches, strict=True):
            pair = unit(sca(tokens, tap))
            direction = pair[:, 0] - pair[:, 1]
            # cos(x, a) - cos(x, n) is one product with the difference of the unit tokens.
            maps.append((unit(saf(tap)) @ direction[:, :, None])[:, :, 0])
        return maps

    def patch_scores(self, encoder: Encoder, images: Tensor) -> Tensor:
        """See `Head`: the sum over the taps."""
        maps = self.tap_maps(*self.tap_features(encoder, images))
        return self.to_grid(torch.stack(maps).sum(0))

    def published_score(self, patch_map: Tensor, kept: Kept | None = None) -> Tensor:
        """Mean of the top 1 % of pixels of the upsampled and smoothed map."""
        if kept is None:
            return top_percent_mean(self.pixels(patch_map))
        return top_percent_mean(self.pixels(fill_ignored(patch_map, kept)), kept=self.pixels.kept(kept))

    @classmethod
    def from_published(cls, state: Mapping[str, Any], encoder: Encoder, grid: tuple[int, int]) -> VisualAD:
        """The head of a published checkpoint, or of a state dict of the whole model (`visual.`, `cross_attn.`, ...)."""
        flat = tensors_of(state)
        found = _names(flat)
        numbers = sorted({int(name.split(".")[1]) for name in found if name.startswith("saf.")})
        if not numbers:
            raise WeightsError("this is no VisualAD checkpoint: it has no layer_transforms.layer_<block>")
        require(found, [f"sca.{numbers[0]}.anchors"], "VisualAD")
        width = found["tokens"].shape[1]
        if width != encoder.width or max(numbers) > encoder.depth:
            raise WeightsError(
                f"this VisualAD head is for features of width {width} of {max(numbers)} blocks or more, "
                f"{encoder.config.name} has width {encoder.width} and {encoder.depth} blocks; "
                "use the encoder it was trained with"
            )
        renamed: dict[str, Tensor] = {}
        for name, tensor in found.items():
            part, _, rest = name.partition(".")
            if part in ("sca", "saf"):
                number, _, rest = rest.partition(".")
                name = f"{part}.{numbers.index(int(number))}.{rest}" if int(number) in numbers else name
            renamed[name] = tensor
        anchors, positions = renamed["sca.0.anchors"], renamed.get("sca.0.positions")
        config = VisualADConfig(
            taps=tuple(numbers),
            anchors=anchors.shape[0],
            positions=positions.shape[1] if positions is not None else 1536,
            token_positions="token_positions" in renamed,
        )
        head = cls(
            config,
            width=width,
            depth=encoder.depth,
            grid=grid,
            patch=encoder.patch,
            norm_eps=encoder.config.norm_eps,
        )
        load(head, renamed, "VisualAD")
        return head


_SCA = {
    "anchor_queries": "anchors",
    "pos_encoding": "positions",
    "res_scale": "res_scale",
    "q_proj.weight": "q.weight",
    "k_proj.weight": "k.weight",
    "v_proj.weight": "v.weight",
    "q_norm.weight": "q_norm.weight",
    "q_norm.bias": "q_norm.bias",
    "k_norm.weight": "k_norm.weight",
    "k_norm.bias": "k_norm.bias",
    "gate.0.weight": "gate.weight",
    "gate.0.bias": "gate.bias",
    "out_proj.weight": "out.weight",
    "out_proj.bias": "out.bias",
}
_SAF = {"mlp.0.weight": "fc1.weight", "mlp.0.bias": "fc1.bias", "mlp.3.weight": "fc2.weight", "mlp.3.bias": "fc2.bias"}


def _names(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> ours, blocks still numbered as published: `sca.<block>.…`, `saf.<block>.…`."""
    visual = part_with(flat, "anomaly_token")
    require(visual, ("anomaly_token", "normal_token"), "VisualAD")
    found = {"tokens": torch.stack((visual["anomaly_token"].flatten(), visual["normal_token"].flatten()))}
    if "anomaly_pos" in visual and "normal_pos" in visual:
        found["token_positions"] = torch.stack((visual["anomaly_pos"].flatten(), visual["normal_pos"].flatten()))
    for ours, theirs in (("weight", ("ln_post.weight", "ln_post_weight")), ("bias", ("ln_post.bias", "ln_post_bias"))):
        for name in theirs:
            if name in visual:
                found[f"norm.{ours}"] = visual[name]
    require(found, ("norm.weight", "norm.bias"), "VisualAD (its trained ln_post)")
    for name, tensor in flat.items():
        if "layer_transforms." in name or "layer_attentions." in name:
            rest = name[name.rindex("layer_") + len("layer_") :]
            block, _, inner = rest.partition(".")
            part, table = ("saf", _SAF) if "layer_transforms." in name else ("sca", _SCA)
            if not block.isdigit():
                raise WeightsError(f"this is no VisualAD checkpoint: {name} names no block")
            found[f"{part}.{block}.{table.get(inner, inner)}"] = tensor
    return found

"""What a student's tokens are held to: the teacher's values, and the teacher's likenesses between tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

RELATED = 96
"""Tokens of an image whose likenesses are compared."""


def token_loss(predicted: Tensor, wanted: Tensor, cosine: float, count: int) -> Tensor:
    """Smooth L1 of standardised values and `cosine` times 1 - cosine per token; the sum over images / `count`.

    Tensors [B, N, C]. Smooth L1 (quadratic below 1 deviation) keeps the rare large activations of a CNN from ruling
    the gradient; the cosine is what a memory bank compares.
    """
    predicted, wanted = predicted.float(), wanted.float()
    each = F.smooth_l1_loss(predicted, wanted, reduction="none").mean((1, 2))
    if cosine:
        each = each + cosine * (1 - F.cosine_similarity(predicted, wanted, dim=-1)).mean(1)
    return each.sum() / count


def relation_loss(tokens: Tensor, wanted: Sequence[Tensor], generator: torch.Generator, count: int) -> Tensor:
    """Squared difference of the cosines between tokens of one image, student's and teacher's (relational distillation).

    `tokens` [B, N, D] are the student's, `wanted` the teacher's taps [B, N, C] each, which count alike. Some tokens of
    each image are compared, drawn by `generator`. The sum over images / `count`.
    """
    some = torch.randperm(tokens.shape[1], generator=generator)[:RELATED].to(tokens.device)
    units = [F.normalize(tap[:, some].float(), dim=-1) for tap in wanted]
    target = sum(unit @ unit.transpose(1, 2) for unit in units) / len(units)
    unit = F.normalize(tokens[:, some].float(), dim=-1)
    return (unit @ unit.transpose(1, 2) - target).square().mean((1, 2)).sum() / count

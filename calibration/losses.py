"""Losses of the trained heads, as published; every one is a sum over the batch divided by `count`.

`count` is the number of images of the whole step, by default those given: with several processes each gives its share
of the images and the number of all, and the sum over the processes is the loss of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.precision import unit
from pipelines.scoring import top_percent_mean

PairLoss = Literal["cosine", "cosine_patch", "l2", "l1"]
"""Of ViTAD's pairs: cosine over whole maps (published), cosine per patch, squared and absolute difference."""

_FOCAL_SMOOTH = 1e-5
_GAMMA = 2.0
_DICE_SMOOTH = 1.0
_MARGIN = 0.5


def pair_loss(wanted: Tensor, rebuilt: Tensor, kind: PairLoss = "cosine", count: int | None = None) -> Tensor:
    """Loss of one teacher and student, features [B, N, D] each, in float32 (ViTAD, training objective).

    "cosine" is 1 - cosine over N x D as one vector per image: strong patches weigh more than weak ones.
    """
    wanted, rebuilt = wanted.float(), rebuilt.float()
    if kind == "cosine":
        each = 1 - F.cosine_similarity(wanted.flatten(1), rebuilt.flatten(1), dim=1)
    elif kind == "cosine_patch":
        each = (1 - F.cosine_similarity(wanted, rebuilt, dim=-1)).mean(1)
    else:
        difference = wanted - rebuilt
        each = (difference.square() if kind == "l2" else difference.abs()).flatten(1).mean(1)
    return each.sum() / (count or len(each))


def reconstruction_loss(
    wanted: Sequence[Tensor], rebuilt: Sequence[Tensor], kind: PairLoss = "cosine", count: int | None = None
) -> Tensor:
    """Sum of `pair_loss` over the pairs."""
    pairs = zip(wanted, rebuilt, strict=True)
    return torch.stack([pair_loss(teacher, student, kind, count) for teacher, student in pairs]).sum()


def focal(logits: Tensor, masks: Tensor, count: int | None = None) -> Tensor:
    """Focal loss (gamma 2, alpha 1) of pixel maps [B, H, W] against masks in 0..1 of that shape.

    The target is cut to [1e-5, 1 - 1e-5] and 1e-5 is added to the probability, as published: one-hot labels are thus
    softened, and the logarithm stays finite.
    """
    defect = torch.sigmoid(logits.float())
    target = masks.float()
    one, other = (part.clamp(_FOCAL_SMOOTH, 1 - _FOCAL_SMOOTH) for part in (target, 1 - target))
    likely = one * defect + other * (1 - defect) + _FOCAL_SMOOTH
    each = (-((1 - likely) ** _GAMMA) * likely.log()).flatten(1).mean(1)
    return each.sum() / (count or len(each))


def dice(logits: Tensor, masks: Tensor, count: int | None = None) -> Tensor:
    """Dice loss of sigmoid(pixel maps) [B, H, W] against masks in 0..1, per image, smoothed by 1 on both sides."""
    defect, target = torch.sigmoid(logits.float()).flatten(1), masks.float().flatten(1)
    shared, both = (defect * target).sum(1), defect.sum(1) + target.sum(1)
    each = 1 - (2 * shared + _DICE_SMOOTH) / (both + _DICE_SMOOTH)
    return each.sum() / (count or len(each))


def image_loss(pixel_map: Tensor, labels: Tensor, count: int | None = None) -> Tensor:
    """Binary cross-entropy of the mean of the top 1 % of pixels [B, H, W], as a logit, against labels [B] in 0..1."""
    logits = top_percent_mean(pixel_map)
    return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / (count or len(labels))


def contrast(tokens: Tensor, count: int | None = None) -> Tensor:
    """Keeps anomaly and normal token apart, [B, 2, D]: mean of max(cosine + 0.5, 0)."""
    pair = unit(tokens)
    each = ((pair[:, 0] * pair[:, 1]).sum(-1) + _MARGIN).clamp_min(0)
    return each.sum() / (count or len(each))


def detection_loss(
    maps: Sequence[Tensor], tokens: Tensor, masks: Tensor, labels: Tensor, count: int | None = None
) -> Tensor:
    """VisualAD's loss: focal and Dice per tap's pixel map [B, H, W], image loss of their sum, and contrast of the last
    tap's tokens [B, 2, D]; all weights 1.
    """
    parts = [focal(one, masks, count) + dice(one, masks, count) for one in maps]
    parts += [image_loss(torch.stack(list(maps)).sum(0), labels, count), contrast(tokens, count)]
    return torch.stack(parts).sum()

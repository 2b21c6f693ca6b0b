"""The student: an encoder and one linear head per depth of the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.distill.teachers import Tap, Teacher
from pipelines.encoders import Encoder

RIDGE = 3e-2
"""Ridge penalty, as a share of the mean square of a token's channels."""


def to_patches(features: Tensor, stride: int, patch: int) -> Tensor:
    """Teacher features float32 [B, C, h, w] of cells of `stride` px, for each patch of `patch` px: [B, N, C'].

    Cells smaller than a patch are stacked (C' = C k^2 for k cells a side), larger ones interpolated bilinearly.
    """
    if stride < patch:
        features = F.pixel_unshuffle(features, patch // stride)
    elif stride > patch:
        features = F.interpolate(features, scale_factor=stride // patch, mode="bilinear", align_corners=False)
    return features.flatten(2).transpose(1, 2)


def width_of(tap: Tap, patch: int) -> int:
    """Values that a patch has of a tap."""
    return tap.channels * max(1, patch // tap.stride) ** 2


class Student(nn.Module):
    """Predicts standardised teacher features from the normed tokens of chosen blocks."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, taps: Sequence[Tap], blocks: Sequence[int], relation_block: int) -> None:
        super().__init__()
        self.encoder, self.taps, self.blocks = encoder, tuple(taps), tuple(blocks)
        self.relation_block = relation_block
        widths = [width_of(tap, encoder.patch) for tap in taps]
        heads = [nn.Linear(encoder.width, width) for width in widths]
        for head in heads:  # `fit_heads` starts them
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(heads)
        self.centres = [torch.zeros(width) for width in widths]
        self.scales = [torch.ones(width) for width in widths]
        self.register_buffer("mean", torch.tensor(encoder.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).view(3, 1, 1), persistent=False)

    def tokens(self, images: Tensor) -> dict[int, Tensor]:
        """Normed patch tokens [B, N, D] of each block that is needed, of images uint8 RGB [B, 3, S, S]."""
        blocks = tuple(sorted({*self.blocks, self.relation_block}))
        pictures = (images.float() / 255.0 - self.mean) / self.std
        found = self.encoder.taps(pictures, blocks)
        return {block: self.encoder.norm(tap) for block, tap in zip(blocks, found, strict=True)}

    def predict(self, tokens: dict[int, Tensor]) -> list[Tensor]:
        """Standardised predictions [B, N, C'] of each tap."""
        return [head(tokens[block]) for head, block in zip(self.heads, self.blocks, strict=True)]

    def targets(self, teacher: Teacher, images: Tensor) -> list[Tensor]:
        """Standardised teacher features [B, N, C'] of each tap."""
        found = zip(teacher.features(images), self.taps, self.centres, self.scales, strict=True)
        return [
            (to_patches(features, tap.stride, self.encoder.patch) - centre.to(images.device)) / scale.to(images.device)
            for features, tap, centre, scale in found
        ]


@torch.no_grad()
def standardise(student: Student, teacher: Teacher, batches: Iterator[Tensor]) -> None:
    """Measures the mean and deviation of each channel of the teacher; cells of one patch share their channel's."""
    sums = [torch.zeros(tap.channels, dtype=torch.float64) for tap in student.taps]
    squares = [torch.zeros_like(one) for one in sums]
    counts = [0] * len(sums)
    for images in batches:
        for number, features in enumerate(teacher.features(images)):
            values = features.double().cpu()
            sums[number] += values.sum((0, 2, 3))
            squares[number] += values.square().sum((0, 2, 3))
            counts[number] += values.numel() // values.shape[1]
    for number, tap in enumerate(student.taps):
        mean = sums[number] / counts[number]
        deviation = (squares[number] / counts[number] - mean.square()).clamp_min(0).sqrt()
        deviation = deviation.clamp_min(1e-3 * float(deviation.mean()) + 1e-12)
        # pixel_unshuffle keeps the cells of one channel together
        cells = width_of(tap, student.encoder.patch) // tap.channels
        student.centres[number] = mean.float().repeat_interleave(cells)
        student.scales[number] = deviation.float().repeat_interleave(cells)


@torch.no_grad()
def fit_heads(student: Student, teacher: Teacher, batches: Iterator[Tensor]) -> None:
    """Starts the heads at the ridge solution for the encoder as it is, so that no step is spent on finding it."""
    normal: dict[int, Tensor] = {}
    patch, width = student.encoder.patch, student.encoder.width
    right = [torch.zeros(width + 1, width_of(tap, patch), dtype=torch.float64) for tap in student.taps]
    for images in batches:
        tokens = {block: _with_one(values) for block, values in student.tokens(images).items()}
        for block, values in tokens.items():
            normal[block] = normal.get(block, torch.zeros(())) + values.T @ values
        for number, wanted in enumerate(student.targets(teacher, images)):
            right[number] += tokens[student.blocks[number]].T @ wanted.flatten(0, 1).double().cpu()
    for number, head in enumerate(student.heads):
        assert isinstance(head, nn.Linear)
        matrix = normal[student.blocks[number]].clone()
        penalty = RIDGE * matrix.diagonal()[:-1].mean()
        matrix.diagonal()[:-1] += penalty
        solution = torch.linalg.solve(matrix, right[number])
        head.weight.copy_(solution[:-1].T)
        head.bias.copy_(solution[-1])


def _with_one(tokens: Tensor) -> Tensor:
    """Tokens [B, N, D] as float64 rows [B N, D + 1], the last column 1."""
    rows = tokens.flatten(0, 1).double().cpu()
    return torch.cat((rows, torch.ones(len(rows), 1, dtype=torch.float64)), dim=1)

"""Training of VisualAD's tokens and their attention on an auxiliary set with defect masks (VisualAD, section 3).

The set is of other products than the line's: what is learned is what "anomalous" looks like, not one product. The
tokens run through the whole frozen encoder, so nothing of it can be kept between steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from calibration.checkpoints import StateFolder
from calibration.losses import detection_loss
from calibration.training import Report, Schedule, Trainer
from calibration.workers import Workers
from pipelines.encoders import Encoder
from pipelines.heads.visualad import SelfAlignment, SpatialCrossAttention, VisualAD
from pipelines.precision import unit
from pipelines.scoring import upsample

EPOCHS = 2
"""Published length of training: one or two."""


@dataclass(frozen=True)
class VisualADOptions:
    """How the head is trained. The defaults are the published ones."""

    token_rate: float = 1e-3
    rate: float = 1e-4
    floor: float = 1e-4  # lowest rate of the cosine schedule
    weight_decay: float = 0.01
    clip: float = 1.0  # of each token's gradient; the other gradients are not clipped


@dataclass(frozen=True)
class Labelled:
    """A batch: normalised images [B, 3, H, W], masks in 0..1 [B, H, W], labels in 0..1 [B] (1 = defective)."""

    images: Tensor
    masks: Tensor
    labels: Tensor


class LabelledSamples(Protocol):
    """Labelled pictures by number."""

    def __len__(self) -> int: ...

    def batch(self, numbers: Sequence[int]) -> Labelled:
        """The pictures of `numbers`, on the CPU."""


def pixel_maps(head: VisualAD, encoder: Encoder, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Each tap's map at the input's size, float32 [B, H, W], and the last tap's tokens [B, 2, D] behind its SCA."""
    tokens, patches = head.tap_features(encoder, images)
    maps = []
    pair = tokens
    for sca, saf, tap in zip(head.sca, head.saf, patches, strict=True):
        pair = sca(tokens, tap)
        units = unit(pair)
        direction = units[:, 0] - units[:, 1]
        patch_map = (unit(saf(tap)) @ direction[:, :, None])[:, :, 0]
        maps.append(upsample(head.to_grid(patch_map), (images.shape[-2], images.shape[-1])))
    return maps, pair


class VisualADTrainer(Trainer):
    """AdamW with a rate of its own for the tokens, cosine with a floor, and clipping per token."""

    def __init__(
        self,
        head: VisualAD,
        encoder: Encoder,
        samples: LabelledSamples,
        schedule: Schedule,
        options: VisualADOptions,
        state: StateFolder | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.head, self.encoder, self.labelled, self.options = head, encoder, samples, options
        super().__init__(head, len(samples), schedule, state, workers)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """See `Trainer`."""
        options = self.options
        rest = [parameter for parameter in self.parameters.values() if parameter is not self.head.tokens]
        groups = [{"params": [self.head.tokens], "lr": options.token_rate}, {"params": rest, "lr": options.rate}]
        return torch.optim.AdamW(groups, weight_decay=options.weight_decay)

    def loss(self, numbers: Sequence[int], count: int) -> Tensor:
        """See `Trainer`."""
        batch = self.labelled.batch(numbers)
        images, masks, labels = (part.to(self.device) for part in (batch.images, batch.masks, batch.labels))
        maps, tokens = pixel_maps(self.head, self.encoder, images)
        return detection_loss(maps, tokens, masks, labels, count)

    def prepare_update(self) -> None:
        """See `Trainer`."""
        options = self.options
        wave = 0.5 * (1 + math.cos(math.pi * self.step / self.schedule.steps))
        for group, start in zip(self.optimizer.param_groups, (options.token_rate, options.rate), strict=True):
            group["lr"] = max(options.floor + (start - options.floor) * wave, min(start, options.floor))
        gradient = self.head.tokens.grad
        if gradient is not None:
            norms = gradient.norm(dim=1, keepdim=True)
            gradient.mul_((options.clip / (norms + 1e-6)).clamp_max(1.0))


def initialise(head: VisualAD, encoder: Encoder, seed: int) -> None:
    """Draws the head anew, as published, from `seed` alone; the norm starts as the encoder's."""
    device = head.tokens.device
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        head.cpu()
        head.tokens.copy_(torch.randn(2, head.width) * head.width**-0.5 * 0.1)
        for module in head.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                module.reset_parameters()
            elif isinstance(module, SpatialCrossAttention):
                nn.init.normal_(module.anchors, std=0.02)
                nn.init.normal_(module.positions, std=0.02)
                nn.init.constant_(module.res_scale, 0.01)
        for module in head.modules():
            if isinstance(module, SelfAlignment):
                for layer in (module.fc1, module.fc2):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
    head.start_from(encoder).to(device)


def train(
    head: VisualAD,
    encoder: Encoder,
    samples: LabelledSamples,
    schedule: Schedule,
    options: VisualADOptions,
    state: StateFolder | None,
    report: Report,
    workers: Workers | None = None,
) -> list[float]:
    """Trains the head from the seed's own initial weights; returns the loss of every step."""
    initialise(head, encoder, schedule.seed)
    trainer = VisualADTrainer(head, encoder, samples, schedule, options, state, workers)
    trainer.restore()
    trainer.run(report)
    return trainer.losses

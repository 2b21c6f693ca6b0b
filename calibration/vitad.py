"""Training of ViTAD's fuser and decoder on good images alone, of one class or many (ViTAD, implementation details).

The encoder is frozen and nothing is augmented, which the method forbids (random crops and flips cost it half of its
accuracy), so the encoder's features of every image are computed once and kept. `keep_features=False` computes them
anew in every step, with the same losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from calibration.checkpoints import StateFolder
from calibration.early_stop import EarlyStop
from calibration.feature_store import IN_MEMORY_BYTES, FeatureStore
from calibration.losses import PairLoss, reconstruction_loss
from calibration.training import Report, Schedule, Trainer, precision_context
from calibration.workers import Workers
from pipelines.encoders import Encoder
from pipelines.heads.blocks import init_linear
from pipelines.heads.vitad import ViTAD

EPOCHS = 100
"""Published length of training."""


@dataclass(frozen=True)
class ViTADOptions:
    """How a decoder is trained. The defaults are the published ones."""

    rate: float = 1e-4
    weight_decay: float = 1e-4  # of matrices and tables; none of biases, norms and other 1-D tensors
    clip: float = 5.0
    drop_at: float = 0.8  # share of the steps after which the rate is a tenth
    loss: PairLoss = "cosine"
    keep_features: bool = True
    memory_bytes: int = IN_MEMORY_BYTES


class Samples(Protocol):
    """Normalised pictures by number, as the encoder takes them."""

    def __len__(self) -> int: ...

    def images(self, numbers: Sequence[int]) -> Tensor:
        """Float32 [len(numbers), 3, H, W]."""


class Features(Protocol):
    """Teachers' and neck features of samples by number."""

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """[len(numbers), P + 1, N, D]: those of the P teachers, then the neck's."""


class FreshFeatures:
    """The encoder's features, computed when they are asked for."""

    def __init__(self, samples: Samples, head: ViTAD, encoder: Encoder, schedule: Schedule) -> None:
        self._samples, self._head, self._encoder, self._schedule = samples, head, encoder, schedule

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """See `Features`."""
        device = self._head.fuser.weight.device
        with torch.no_grad(), precision_context(device, self._schedule.precision):
            teachers, neck = self._head.features(self._encoder, self._samples.images(numbers).to(device))
        # The stream between blocks is float32 in either precision; kept features need no more than products have.
        rows = torch.stack((*teachers, neck), dim=1)
        return rows.bfloat16() if self._schedule.precision == "bf16" else rows


class ViTADTrainer(Trainer):
    """AdamW with a clipped total gradient and one drop of the rate."""

    def __init__(
        self,
        head: ViTAD,
        features: Features,
        samples: int,
        schedule: Schedule,
        options: ViTADOptions,
        state: StateFolder | None = None,
        workers: Workers | None = None,
        early: EarlyStop | None = None,
        watched: int = 0,
    ) -> None:
        """`features` are of `samples` samples to train on, then of `watched` ones that `early` decides by."""
        self.head, self.features, self.options, self._watched = head, features, options, watched
        super().__init__(head, samples, schedule, state, workers)
        self.early = early
        self.gradient_norm = 0.0

    def make_optimizer(self) -> torch.optim.Optimizer:
        """See `Trainer`."""
        options = self.options
        decayed = [p for p in self.parameters.values() if p.ndim > 1]
        free = [p for p in self.parameters.values() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": options.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=options.rate, fused=True)

    def loss(self, numbers: Sequence[int], count: int) -> Tensor:
        """See `Trainer`."""
        *teachers, neck = self.features.rows(numbers).to(self.device, non_blocking=True).unbind(1)
        return reconstruction_loss(teachers, self.head.rebuild(neck), self.options.loss, count)

    def measure(self) -> float:
        """See `Trainer`."""
        batch, total = self.schedule.batch, 0.0
        for start in range(self.samples, self.samples + self._watched, batch):
            numbers = range(start, min(start + batch, self.samples + self._watched))
            with precision_context(self.device, self.schedule.precision):
                total += float(self.loss(numbers, self._watched))
        return total

    def prepare_update(self) -> None:
        """See `Trainer`."""
        options = self.options
        rate = options.rate * (0.1 if self.step >= options.drop_at * self.schedule.steps else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.gradient_norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), options.clip))


def initialise(head: ViTAD, seed: int) -> None:
    """Draws fuser and decoder anew, as published, from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        device = head.fuser.weight.device
        head.cpu().apply(init_linear)
        torch.nn.init.trunc_normal_(head.decoder.positions, std=0.02)
        head.to(device)


def train(
    head: ViTAD,
    encoder: Encoder,
    samples: Samples,
    schedule: Schedule,
    options: ViTADOptions,
    state: StateFolder | None,
    report: Report,
    workers: Workers | None = None,
    early: EarlyStop | None = None,
    watched: int = 0,
) -> list[float]:
    """Trains the head from the seed's own initial weights; returns the loss of every step.

    Complete features and the last checkpoint in `state` are gone on from. `early` ends it by the loss on the last
    `watched` samples, which are not trained on.
    """
    initialise(head, schedule.seed)
    fresh = FreshFeatures(samples, head, encoder, schedule)
    features: Features = fresh
    if options.keep_features:
        features = FeatureStore.compute(len(samples), fresh.rows, state, report, workers, options.memory_bytes)
    count = len(samples) - watched
    trainer = ViTADTrainer(head, features, count, schedule, options, state, workers, early, watched)
    trainer.restore()
    trainer.run(report)
    return trainer.losses

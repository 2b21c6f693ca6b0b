"""Training of FoundAD's projector on good images alone (FoundAD, training).

Each step shows the projector features of good pictures or of the same pictures with a pasted defect (one choice per
batch), and asks for the features of the good ones. Every random choice is a function of (seed, purpose, number), so a
fit that was killed and resumed equals one that was not.

Encoder features cost several times more than a projector step, so by default they are computed once for a pool of
augmented pictures and their pasted twins, and steps draw from the pool; `pool = 0` makes new pictures in every step,
as published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calibration.augment import augment, sample_augmentation
from calibration.checkpoints import StateFolder
from calibration.crops import Crops
from calibration.early_stop import EarlyStop
from calibration.errors import FitError
from calibration.foreground import Foreground, denormalise, foreground_mask
from calibration.synthesis import paste, sample
from pipelines.encoders import Encoder
from pipelines.heads.blocks import init_linear
from pipelines.heads.foundad import FoundAD

Loss = Literal["l2", "smooth_l1"]
Report = Callable[[str, int, int, str], None]
"""report(what, done, total, note)"""

WATCHED_BATCHES = 4
"""Batches of watched pictures that an early stop decides by, each with and without pasted defects."""

_VIEWS, _BATCH, _DROPOUT = 1, 2, 3
"""Purposes of random numbers; one stream each."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a projector is trained. The defaults of rate, decay, dropout and gate are the published ones."""

    steps: int = 600
    batch: int = 8
    pool: int = 384
    rate: float = 1e-3
    weight_decay: float = 1e-4
    dropout: float = 0.2
    paste_probability: float = 0.5
    loss: Loss = "l2"
    foreground: Foreground = Foreground.ALL
    flips: bool = True
    minutes: float | None = None  # stop earlier when this long is over; the result then depends on the machine
    seed: int = 0


def distance(wanted: Tensor, projected: Tensor, loss: Loss = "l2") -> Tensor:
    """Mean over batch, patches and channels of the squared or smooth-L1 (beta 1) difference; both [B, N, D]."""
    return F.mse_loss(projected, wanted) if loss == "l2" else F.smooth_l1_loss(projected, wanted, beta=1.0)


def _device(head: FoundAD) -> torch.device:
    return next(head.projector.parameters()).device


def training_loss(head: FoundAD, clean: Tensor, shown: Tensor, keep: Tensor | None, options: TrainingOptions) -> Tensor:
    """Loss of one step: `clean` features [B, N, D] wanted, `shown` ones given, dropped where bool `keep` is False."""
    if keep is not None:
        shown = shown * keep / (1.0 - options.dropout)
    return distance(clean, head.project(shown), options.loss)


class Views(Protocol):
    """Where a step's features come from."""

    def batch(self, step: int, pasted: bool) -> tuple[Tensor, Tensor]:
        """(wanted, shown) features [B, N, D] of a step."""


class Pictures:
    """Augmented good pictures and their pasted twins, by number."""

    def __init__(self, crops: Crops, encoder: Encoder, options: TrainingOptions) -> None:
        self._crops, self._options = crops, options
        self._mean, self._std = encoder.mean, encoder.std
        self._square = crops.size[0] == crops.size[1]

    def pair(self, number: int, pasted: bool) -> tuple[Tensor, Tensor]:
        """(good, shown) normalised pictures [3, S, S]; both the same unless `pasted`. Crops are taken in turn."""
        options = self._options
        rng = np.random.default_rng([options.seed, _VIEWS, number])
        cycle, place = divmod(number, len(self._crops))
        order = np.random.default_rng([options.seed, _VIEWS, 0xC4C1E, cycle]).permutation(len(self._crops))
        picture = self._crops.picture(int(order[place]))
        good = self._crops.normalise(augment(picture, sample_augmentation(rng, options.flips, self._square)))
        if not pasted:
            return good, good
        if options.foreground is Foreground.ALL:
            mask = np.ones(tuple(good.shape[1:]), np.uint8)
        else:
            mask = foreground_mask(denormalise(good, self._mean, self._std), options.foreground)
        return good, paste(good, sample(rng, mask))


class FreshViews:
    """New pictures in every step, as published."""

    def __init__(self, pictures: Pictures, head: FoundAD, encoder: Encoder, options: TrainingOptions) -> None:
        self._pictures, self._head, self._encoder, self._options = pictures, head, encoder, options

    def batch(self, step: int, pasted: bool) -> tuple[Tensor, Tensor]:
        """See `Views`."""
        size = self._options.batch
        pairs = [self._pictures.pair(step * size + i, pasted) for i in range(size)]
        with torch.no_grad():
            device = _device(self._head)
            clean = self._head.features(self._encoder, torch.stack([good for good, _ in pairs]).to(device))
            if not pasted:
                return clean, clean
            return clean, self._head.features(self._encoder, torch.stack([shown for _, shown in pairs]).to(device))


class PooledViews:
    """A pool of feature pairs, computed once (float16 [P, N, D] each) and kept in the fit's state."""

    def __init__(self, clean: Tensor, pasted: Tensor, options: TrainingOptions, device: torch.device) -> None:
        self._clean, self._pasted, self._options, self._device = clean, pasted, options, device

    @classmethod
    def compute(
        cls,
        pictures: Pictures,
        head: FoundAD,
        encoder: Encoder,
        options: TrainingOptions,
        state: StateFolder | None,
        report: Report,
    ) -> PooledViews:
        """Computes the pool, or takes it from `state` where it is complete."""
        stored = state.load("pool") if state is not None else None
        if stored is not None:
            return cls(stored[0]["clean"], stored[0]["pasted"], options, _device(head))
        clean, pasted = [], []
        for number in range(options.pool):
            good, shown = pictures.pair(number, True)
            with torch.inference_mode():
                features = head.features(encoder, torch.stack((good, shown)).to(_device(head))).half().cpu()
            clean.append(features[0].clone())
            pasted.append(features[1].clone())
            report("features", number + 1, options.pool, "")
        views = cls(torch.stack(clean), torch.stack(pasted), options, _device(head))
        if state is not None:
            state.save("pool", {"clean": views._clean, "pasted": views._pasted}, {})
        return views

    def batch(self, step: int, pasted: bool) -> tuple[Tensor, Tensor]:
        """See `Views`. The pool is gone through in a new order each time."""
        size, count = self._options.batch, len(self._clean)
        picked = []
        for number in range(step * size, (step + 1) * size):
            cycle, place = divmod(number, count)
            order = np.random.default_rng([self._options.seed, _BATCH, cycle]).permutation(count)
            picked.append(int(order[place]))
        clean = self._clean[picked].to(self._device).float()
        return clean, self._pasted[picked].to(self._device).float() if pasted else clean


def dropout_mask(shape: torch.Size, step: int, options: TrainingOptions) -> Tensor | None:
    """Which features of a step are kept: bool of `shape`, or None without dropout."""
    if options.dropout <= 0.0:
        return None
    entropy = np.random.SeedSequence([options.seed, _DROPOUT, step]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(entropy[0]) >> 1)
    return torch.rand(shape, generator=generator) >= options.dropout


class Trainer:
    """Steps, checkpoints and progress of one training run."""

    def __init__(
        self,
        head: FoundAD,
        views: Views,
        options: TrainingOptions,
        state: StateFolder | None = None,
        early: EarlyStop | None = None,
        watched: Views | None = None,
    ) -> None:
        """`watched` gives batches of pictures that are not trained on, which `early` decides by."""
        self.head, self.views, self.options, self._state = head, views, options, state
        self._early, self._watched = early, watched
        self.step = 0
        self.losses: list[float] = []
        self._parameters = dict(head.projector.named_parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=options.rate, weight_decay=options.weight_decay
        )

    def run(self, report: Report, save_every_s: float = 20.0) -> None:
        """Trains from where it stands to the last step (or the early stop, or the time), checkpointing now and then.

        Raises `FitError` where the loss is no longer finite.
        """
        options = self.options
        self.head.projector.train().requires_grad_(True)
        started = saved = time.monotonic()
        early = self._early
        while self.step < options.steps and not (early is not None and early.over):
            loss = self._one()
            self.losses.append(loss)
            self.step += 1
            if early is not None:
                projector, last = self.head.projector, self.step == options.steps
                early.look(self.step, last, self._measure, projector, self._parameters)
            report("training", self.step, options.steps, f"loss {np.mean(self.losses[-20:]):.4f}")
            now = time.monotonic()
            if now - saved > save_every_s:
                self.save()
                saved = now
            if options.minutes is not None and now - started > 60.0 * options.minutes:
                break
        self.save()
        if early is not None:
            early.put_back(self._parameters)
        self.head.projector.eval().requires_grad_(False)

    def _measure(self) -> float:
        """The loss on the watched pictures, half of them with a pasted defect."""
        assert self._watched is not None
        batches = [self._watched.batch(number, pasted) for number in range(WATCHED_BATCHES) for pasted in (False, True)]
        losses = [training_loss(self.head, clean, shown, None, self.options) for clean, shown in batches]
        return float(torch.stack(losses).mean())

    def _one(self) -> float:
        options = self.options
        rng = np.random.default_rng([options.seed, _BATCH, 0x6A7E, self.step])
        clean, shown = self.views.batch(self.step, bool(rng.random() < options.paste_probability))
        keep = dropout_mask(shown.shape, self.step, options)
        loss = training_loss(self.head, clean, shown, None if keep is None else keep.to(shown.device), options)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise FitError(f"training step {self.step}: the loss is {value}; try a smaller --rate or another encoder")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return value

    def save(self) -> None:
        """Stores weights, optimiser and losses in the fit's state."""
        if self._state is None:
            return
        tensors = {f"weight.{name}": parameter.detach().cpu() for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value.detach().cpu()
        values: dict[str, Any] = {"step": self.step, "losses": self.losses}
        if self._early is not None:
            tensors.update(self._early.tensors())
            values["early"] = self._early.values()
        self._state.save("training", tensors, values)

    def restore(self) -> bool:
        """Goes on from the fit's state; False where there is none. Raises `FitError` where it does not fit."""
        stored = self._state.load("training") if self._state is not None else None
        if stored is None:
            return False
        tensors, values = stored
        try:
            self._restore(tensors, values)
        except (KeyError, RuntimeError, ValueError) as error:
            raise FitError(
                f"the training state does not fit this head ({error}); start again without --resume"
            ) from error
        return True

    def _restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"weight.{name}"])
                kept = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                moments = {key: value.to(parameter.device, copy=True) for key, value in kept.items() if key != "step"}
                self._optimizer.state[parameter] = {"step": kept["step"].clone(), **moments}
        if self._early is not None:
            self._early.restore(tensors, values["early"])
        self.step, self.losses = int(values["step"]), [float(loss) for loss in values["losses"]]


def initialise(head: FoundAD, seed: int) -> None:
    """Draws the projector's weights anew, as published, from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        device = _device(head)
        head.projector.cpu().apply(init_linear)
        if head.projector.positions is not None:
            torch.nn.init.trunc_normal_(head.projector.positions, std=0.02)
        head.projector.to(device)


def train(
    head: FoundAD,
    encoder: Encoder,
    crops: Crops,
    options: TrainingOptions,
    state: StateFolder | None,
    report: Report,
    early: EarlyStop | None = None,
    watched: Crops | None = None,
) -> list[float]:
    """Trains the head's projector from the seed's own initial weights; returns the loss of every step.

    `early` ends it by the loss on `watched`, crops of images that are none of those trained on.
    """
    if len(crops) == 0:
        raise FitError("no pictures to train on")
    initialise(head, options.seed)
    pictures = Pictures(crops, encoder, options)
    views: Views
    if options.pool > 0:
        views = PooledViews.compute(pictures, head, encoder, options, state, report)
    else:
        views = FreshViews(pictures, head, encoder, options)
    seen: Views | None = None
    if early is not None:
        assert watched is not None
        few = replace(options, pool=WATCHED_BATCHES * options.batch)
        seen = PooledViews.compute(Pictures(watched, encoder, few), head, encoder, few, None, report)
    trainer = Trainer(head, views, options, state, early, seen)
    trainer.restore()
    trainer.run(report)
    return trainer.losses

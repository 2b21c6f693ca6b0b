"""Ending a training when images that it does not see stop gaining from it.

A fifth of the images for the fit is watched instead of trained on. Every `EVERY` steps the training's own loss is taken
on them, without dropout; when it has not fallen for `patience` such checks, training ends, and the weights of the best
check are kept. These images are none of those held out for the limit: a limit promises something of images that had no
say in the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from calibration.datasets import split
from calibration.errors import FitError

EVERY = 25
"""Training steps from check to check."""

SHARE, LEAST = 0.2, 5
"""Share of the images for the fit that is watched, and how many there must be."""


def split_watched(fit: Sequence[int], seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(images to train on, images to watch), chosen by seed. Raises `FitError` where there are fewer than five."""
    if len(fit) < LEAST:
        raise FitError(
            f"--patience needs at least {LEAST} images for the fit, a fifth of which is watched, not trained on; here "
            f"are {len(fit)}: bring more, or leave out --patience"
        )
    train, watched = split(len(fit), max(1, round(SHARE * len(fit))), seed)
    return tuple(fit[i] for i in train), tuple(fit[i] for i in watched)


class EarlyStop:
    """What the checks found so far, and the weights of the best."""

    def __init__(self, patience: int, every: int = EVERY) -> None:
        self.patience, self.every = patience, every
        self.best = math.inf
        self.best_step = 0
        self.failed = 0  # checks since the best
        self._weights: dict[str, Tensor] = {}

    @property
    def over(self) -> bool:
        """Whether training should end."""
        return self.failed >= self.patience

    def look(
        self, step: int, last: bool, measure: Callable[[], float], module: nn.Module, parameters: Mapping[str, Tensor]
    ) -> None:
        """Checks after step `step` where one is due: every `every` steps, and after the last.

        `measure` gives the loss on the watched images; `module` is in evaluation mode meanwhile. Raises `FitError`
        where it is not finite.
        """
        if step % self.every and not last:
            return
        module.eval()
        with torch.no_grad():
            value = measure()
        module.train()
        if not math.isfinite(value):
            raise FitError(f"training step {step}: the loss on the watched images is {value}; try a smaller rate")
        if value < self.best:
            self.best, self.best_step, self.failed = value, step, 0
            self._weights = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
        else:
            self.failed += 1

    def put_back(self, parameters: Mapping[str, Tensor]) -> None:
        """Gives `parameters` the values of the best check, if there was one."""
        with torch.no_grad():
            for name, value in self._weights.items():
                parameters[name].copy_(value)

    def told(self) -> dict[str, Any]:
        """For a bundle: how the training ended."""
        return {"patience": self.patience, "every": self.every, "best_step": self.best_step, "best_loss": self.best}

    def tensors(self) -> dict[str, Tensor]:
        """Weights of the best check, for a checkpoint."""
        return {f"best.{name}": value for name, value in self._weights.items()}

    def values(self) -> dict[str, Any]:
        """The rest, for a checkpoint; JSON values."""
        best = self.best if math.isfinite(self.best) else None
        return {"best": best, "best_step": self.best_step, "failed": self.failed}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint. Raises `KeyError` where it holds nothing of this."""
        self.best = math.inf if values["best"] is None else float(values["best"])
        self.best_step, self.failed = int(values["best_step"]), int(values["failed"])
        self._weights = {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}

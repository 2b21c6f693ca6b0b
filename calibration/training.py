"""What training runs share: steps, checkpoints, progress, mixed precision, several processes.

A step's batch is a function of (seed, step) and so is every other random choice, hence a run that was killed and
resumed ends with the weights of one that was not. With several processes each takes its share of a step's images;
gradients and losses are summed, so that the weights are those of one process with the whole batch, up to rounding.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from calibration.checkpoints import StateFolder
from calibration.early_stop import EarlyStop
from calibration.errors import FitError
from calibration.workers import Workers

Report = Callable[[str, int, int, str], None]
"""report(what, done, total, note)"""
Precision = Literal["fp32", "bf16"]

_ORDER, _NOISE = 0x0BDE4, 0x40153
"""Purposes of random numbers; one stream each."""


@dataclass(frozen=True)
class Schedule:
    """How long and in what portions to train.

    `minutes` stops earlier when this long is over; the result then depends on the machine.
    """

    steps: int
    batch: int = 8
    seed: int = 0
    precision: Precision = "fp32"
    minutes: float | None = None
    save_every_s: float = 20.0


def batch_numbers(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Which of `count` samples step `step` takes: all of them once, then again in a new order."""
    picked = []
    for number in range(step * batch, (step + 1) * batch):
        cycle, place = divmod(number, count)
        picked.append(int(np.random.default_rng([seed, _ORDER, cycle]).permutation(count)[place]))
    return picked


def precision_context(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 inside, or nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


class Trainer(ABC):
    """One training run of `module`; a method says what a step's loss is, and which parameters learn how fast."""

    def __init__(
        self,
        module: nn.Module,
        samples: int,
        schedule: Schedule,
        state: StateFolder | None = None,
        workers: Workers | None = None,
    ) -> None:
        if samples < 1:
            raise FitError("no pictures to train on")
        self.module, self.samples, self.schedule = module, samples, schedule
        self._state, self.workers = state, workers or Workers()
        self.step = 0
        self.losses: list[float] = []
        self.early: EarlyStop | None = None
        self.parameters: dict[str, nn.Parameter] = dict(module.named_parameters())
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = self.make_optimizer()

    @abstractmethod
    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of all parameters, once."""

    @abstractmethod
    def loss(self, numbers: Sequence[int], count: int) -> Tensor:
        """The share of the step's loss of the samples `numbers`, of `count` in the whole step."""

    @abstractmethod
    def prepare_update(self) -> None:
        """Sets the step's learning rate and clips gradients."""

    def measure(self) -> float:
        """The loss on the watched images of an early stop; the same in each process."""
        raise NotImplementedError(f"{type(self).__name__} watches no images")

    def run(self, report: Report) -> None:
        """Trains from where it stands to the last step (or the early stop, or the time), checkpointing now and then.

        Raises `FitError` where the loss is no longer finite.
        """
        schedule = self.schedule
        self.module.train().requires_grad_(True)
        started = saved = time.monotonic()
        stop = False
        early = self.early
        while self.step < schedule.steps and not stop and not (early is not None and early.over):
            late = schedule.minutes is not None and time.monotonic() - started > 60.0 * schedule.minutes
            stop = self.advance(late)
            if early is not None:
                early.look(self.step, self.step == schedule.steps, self._measured, self.module, self.parameters)
            report("training", self.step, schedule.steps, f"loss {np.mean(self.losses[-20:]):.4f}")
            now = time.monotonic()
            if now - saved > schedule.save_every_s:
                self.save()
                saved = now
        self.save()
        if early is not None:
            early.put_back(self.parameters)
        self.module.eval().requires_grad_(False)

    def _measured(self) -> float:
        """What the first process measured: all must decide alike, and cards round differently."""
        value = torch.tensor(self.measure() if self.workers.first else 0.0, device=self.device)
        self.workers.sum([value])
        return float(value)

    def advance(self, late: bool = False) -> bool:
        """Does one step; returns whether any process is `late`. Raises `FitError` where the loss is not finite."""
        schedule = self.schedule
        numbers = batch_numbers(self.step, schedule.batch, self.samples, schedule.seed)
        mine = [numbers[i] for i in self.workers.share(len(numbers))]
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(2, device=self.device)  # loss, and how many are late
        if mine:
            self._seed_noise()
            with precision_context(self.device, schedule.precision):
                loss = self.loss(mine, len(numbers))
            loss.backward()  # type: ignore[no-untyped-call]
            total[0] = loss.detach()
        total[1] = float(late)
        if self.workers.count > 1:
            for parameter in self.parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            grads = [p.grad for p in self.parameters.values() if p.grad is not None]
            self.workers.sum([*grads, total])
        value, lates = total.tolist()
        if not np.isfinite(value):
            raise FitError(f"training step {self.step}: the loss is {value}; try --precision fp32 or another encoder")
        self.prepare_update()
        self.optimizer.step()
        self.losses.append(value)
        self.step += 1
        return bool(lates > 0.0)

    def _seed_noise(self) -> None:
        """Dropout of a step depends on seed, step and process alone."""
        if any(isinstance(module, nn.Dropout) for module in self.module.modules()):
            key = [self.schedule.seed, _NOISE, self.step, self.workers.rank]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def save(self) -> None:
        """Stores weights, optimiser and losses in the fit's state."""
        if self._state is None or not self.workers.first:
            return
        tensors = {f"weight.{name}": parameter.detach().cpu() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value.detach().cpu()
        values: dict[str, Any] = {"step": self.step, "losses": self.losses}
        if self.early is not None:
            tensors.update(self.early.tensors())
            values["early"] = self.early.values()
        self._state.save("training", tensors, values)

    def restore(self) -> bool:
        """Goes on from the fit's state; False where there is none. Raises `FitError` where it does not fit."""
        stored = self._state.load("training") if self._state is not None else None
        self.workers.wait()  # none may save before all have read
        if stored is None:
            return False
        try:
            self._restore(*stored)
        except (KeyError, RuntimeError, ValueError) as error:
            raise FitError(
                f"the training state does not fit this head ({error}); start again without --resume"
            ) from error
        return True

    def _restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        unknown = {name.removeprefix("weight.") for name in tensors if name.startswith("weight.")} - {*self.parameters}
        if unknown:
            raise ValueError(f"it also holds {min(unknown)}")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight.{name}"])
                moments = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": tensors[f"step.{name}"].clone(), **moments}
        if self.early is not None:
            self.early.restore(tensors, values["early"])
        self.step, self.losses = int(values["step"]), [float(loss) for loss in values["losses"]]

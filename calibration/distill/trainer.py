"""Steps of a distillation: the loss of a batch of views, learning rate, moving average of the weights, checkpoints.

Everything random is a function of (seed, step), so a run that was killed goes on as if it had not been. With several
processes each takes its share of a step's images, as the other trainers do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from calibration.checkpoints import StateFolder
from calibration.distill.losses import relation_loss, token_loss
from calibration.distill.muon import MuonAdamW
from calibration.distill.pictures import Pictures, size_of, views
from calibration.distill.settings import DistillSettings
from calibration.distill.student import Student
from calibration.distill.teachers import Teacher
from calibration.errors import FitError
from calibration.training import Report, Schedule, Trainer
from calibration.workers import Workers

CLIP = 1.0
"""Norm that gradients are clipped to."""

FLOOR = 0.02
"""Last learning rate, as a share of the highest."""


class DistillTrainer(Trainer):
    """Trains a `Student`. `elapsed_s` is the time trained, over all interruptions."""

    module: Student

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        pictures: Pictures,
        settings: DistillSettings,
        state: StateFolder | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.settings, self._teacher, self._pictures = settings, teacher, pictures
        self.weights = settings.tap_weights or (1.0,) * len(student.taps)
        if len(self.weights) != len(student.taps):
            raise FitError(f"--tap-weight: the teacher has {len(student.taps)} taps, not {len(self.weights)}")
        schedule = Schedule(
            steps=settings.steps, batch=settings.batch, seed=settings.seed, precision=settings.precision
        )
        super().__init__(student, len(pictures), schedule, state, workers)
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.elapsed_s = 0.0
        self.crops = 0
        self.records: dict[str, Any] = {}
        """What the run keeps beside the weights: JSON values."""
        self.best: dict[str, Tensor] = {}
        """Average weights of the best probe so far."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Muon or AdamW for the encoder's matrices, AdamW for heads, norms, biases, gains and tokens."""
        settings = self.settings
        matrices = [p for name, p in self.parameters.items() if p.ndim == 2 and ".blocks." in name]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.parameters.values() if id(p) not in chosen]
        if settings.optimizer == "muon":
            return MuonAdamW(matrices, others, settings.rate, settings.weight_decay)
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98))

    @property
    def done(self) -> float:
        """Share of the run that is over, by steps or by hours, whichever is further."""
        share = self.step / self.settings.steps
        if self.settings.hours is not None:
            share = max(share, self.elapsed_s / (3600.0 * self.settings.hours))
        return min(share, 1.0)

    @property
    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine."""
        warm = min(1.0, (self.step + 1) / max(1, self.settings.warmup))
        return self.settings.rate * warm * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * self.done)))

    def loss(self, numbers: Sequence[int], count: int) -> Tensor:
        """See `Trainer`."""
        settings, student = self.settings, self.module
        size = size_of(self.step, settings.sizes, settings.seed)
        batch = views(self._pictures, numbers, (settings.seed, self.step), size, settings.augment)
        with torch.autocast(self.device.type, enabled=False):
            seen = batch.altered if settings.same_view else batch.plain
            wanted = student.targets(self._teacher, seen.to(self.device))
        tokens = student.tokens(batch.altered.to(self.device))
        losses = [
            weight * token_loss(one, other, settings.cosine, count)
            for weight, one, other in zip(self.weights, student.predict(tokens), wanted, strict=True)
        ]
        if settings.relation:
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.step)
            related = relation_loss(tokens[student.relation_block], wanted, generator, count)
            losses.append(settings.relation * related)
        return torch.stack(losses).sum()

    def prepare_update(self) -> None:
        """See `Trainer`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        nn.utils.clip_grad_norm_(list(self.parameters.values()), CLIP)

    def advance(self, late: bool = False) -> bool:
        """See `Trainer`; then follows the weights with their moving average."""
        stop = super().advance(late)
        decay = min(self.settings.ema, self.step / (self.step + 10.0))
        with torch.no_grad():
            averages, values = list(self.average.values()), [p.detach() for p in self.parameters.values()]
            torch._foreach_lerp_(averages, values, 1.0 - decay)
        self.crops += self.schedule.batch
        return stop

    def train(self, report: Report, look: Callable[[], None], stopped: Callable[[], bool]) -> bool:
        """Trains to the end; False where `stopped` ended it earlier. The state is saved in any case.

        `look` is called after every `probe_every` steps, with the average weights in place.
        Raises `FitError` where the loss is no longer finite.
        """
        settings = self.settings
        self.module.train().requires_grad_(True)
        before, saved = time.monotonic(), time.monotonic()
        while self.done < 1.0:
            stop = self.advance(stopped())
            now = time.monotonic()
            self.elapsed_s = self._agreed(self.elapsed_s + now - before)
            before = now
            recent = self.losses[-50:]
            note = f"loss {sum(recent) / len(recent):.4f} {self.records.get('note', '')}"
            report("distilling", *self._progress(), note)
            if self.step % settings.probe_every == 0 or self.done >= 1.0:
                with self.averaged():
                    look()
                self.save()
                before = saved = time.monotonic()
            elif now - saved > self.schedule.save_every_s:
                self.save()
                before = saved = time.monotonic()
            if stop and self.done < 1.0:
                self.save()
                return False
        self.save()
        self.module.eval().requires_grad_(False)
        return True

    def _agreed(self, seconds: float) -> float:
        """The first process's clock: all must end, and slow down, at the same step."""
        clock = torch.tensor([seconds if self.workers.first else 0.0], device=self.device)
        self.workers.sum([clock])
        return float(clock) if self.workers.count > 1 else seconds

    def _progress(self) -> tuple[int, int]:
        """Steps done and expected."""
        if self.done >= 1.0:
            return self.step, self.step
        return self.step, max(self.step + 1, round(self.step / self.done))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The student with its average weights, for as long as the context lasts."""
        kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        try:
            self._place(self.average)
            yield
        finally:
            self._place(kept)

    def keep_best(self) -> None:
        """Remembers the average weights as the best so far."""
        self.best = {name: value.clone() for name, value in self.average.items()}

    def place_best(self) -> None:
        """Puts the best weights into the student; the average ones where no probe has run."""
        self._place(self.best or self.average)

    @torch.no_grad()
    def _place(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def save(self) -> None:
        """Stores all that `restore` needs, in one file."""
        if self._state is None or not self.workers.first:
            return
        student = self.module
        tensors = {f"weight.{name}": parameter.detach().cpu() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value.detach().cpu()
        for part, values in (("average", self.average), ("best", self.best)):
            tensors |= {f"{part}.{name}": value.cpu() for name, value in values.items()}
        for number, (centre, scale) in enumerate(zip(student.centres, student.scales, strict=True)):
            tensors |= {f"centre.{number}": centre, f"scale.{number}": scale}
        numbers: dict[str, Any] = {
            "step": self.step,
            "losses": self.losses[-1000:],
            "elapsed_s": self.elapsed_s,
            "crops": self.crops,
            "records": self.records,
        }
        self._state.save("training", tensors, numbers)

    def _restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        moments = ("step", "exp_avg", "exp_avg_sq")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight.{name}"])
                found = {key: tensors[f"{key}.{name}"] for key in moments if f"{key}.{name}" in tensors}
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(self.device) for key, value in found.items()
                }
        self.step, self.losses = int(values["step"]), [float(loss) for loss in values["losses"]]
        self.average = {name: tensors[f"average.{name}"].to(self.device) for name in self.parameters}
        if any(name.startswith("best.") for name in tensors):
            self.best = {name: tensors[f"best.{name}"].to(self.device) for name in self.parameters}
        student = self.module
        student.centres = [tensors[f"centre.{number}"] for number in range(len(student.taps))]
        student.scales = [tensors[f"scale.{number}"] for number in range(len(student.taps))]
        self.elapsed_s, self.crops = float(values["elapsed_s"]), int(values["crops"])
        self.records = dict(values["records"])

"""Muon for the matrices of a transformer, AdamW for everything else, as one optimiser.

Muon (Jordan et al., 2024) steps along the momentum with its singular values made equal: all directions of a matrix
learn at one pace, so a run gets further on the same number of images. The step is scaled to the size of AdamW's
(0.2 sqrt(max(rows, columns)); Liu et al., 2025, "Muon is scalable for LLM training"), so both take the same rate. Own
code, because torch has it only since 2.9 and one matrix at a time: here matrices of one shape are one batched product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz polynomial: fast towards 1 rather than exactly to it."""

ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices [K, R, C] with nearly equal singular values (0.7 to 1.2) and the same singular vectors, float32."""
    a, b, c = QUINTIC
    x = matrices.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / x.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.transpose(1, 2)
        x = a * x + torch.baddbmm(b * square, square, square, alpha=c) @ x
    done: Tensor = x.transpose(1, 2) if tall else x
    return done


class MuonAdamW(torch.optim.Optimizer):
    """Muon for `matrices`, AdamW for `others`; weight decay, decoupled, for the matrices only."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        rate: float,
        weight_decay: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        """`rate` is the learning rate of both; the key "lr" of the groups may be set before each step."""
        groups = [
            {"params": list(matrices), "muon": True, "weight_decay": weight_decay},
            {"params": list(others), "muon": False, "weight_decay": 0.0},
        ]
        self._momentum, self._betas = momentum, betas
        super().__init__([group for group in groups if group["params"]], {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step. `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                self._muon(parameters, group)
            else:
                self._adamw(parameters, group)

    def _muon(self, parameters: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            shapes.setdefault(parameter.shape, []).append(parameter)
        for shape, alike in shapes.items():
            gradients = torch.stack([parameter.grad for parameter in alike if parameter.grad is not None])
            averages = torch.stack([self._moment(parameter, "exp_avg") for parameter in alike])
            averages.lerp_(gradients, 1 - self._momentum)
            steps = orthogonalise(gradients.lerp(averages, self._momentum))  # Nesterov's
            size = group["lr"] * 0.2 * max(shape) ** 0.5
            for parameter, average, step in zip(alike, averages, steps, strict=True):
                self.state[parameter]["exp_avg"].copy_(average)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(step.to(parameter), alpha=-size)

    def _adamw(self, parameters: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        first, second = self._betas
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            average, square = self._moment(parameter, "exp_avg"), self._moment(parameter, "exp_avg_sq")
            count = self.state[parameter].setdefault("step", torch.zeros(()))
            count += 1
            average.lerp_(gradient, 1 - first)
            square.lerp_(gradient.square(), 1 - second)
            scale = (square / (1 - second ** float(count))).sqrt_().add_(1e-8)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.addcdiv_(average, scale, value=-group["lr"] / (1 - first ** float(count)))

    def _moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        moment: Tensor = self.state[parameter].setdefault(name, torch.zeros_like(parameter))
        return moment

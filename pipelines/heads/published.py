"""Reading published checkpoints: unwrap, take the part that is ours, rename, and refuse what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.errors import WeightsError


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a nested mapping under dotted names; DataParallel's `module.` is dropped, other values too."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = str(key).removeprefix("module.")
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Mapping):
            found.update({f"{name}.{inner}": tensor for inner, tensor in tensors_of(value).items()})
    return found


def part_with(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The entries that share the prefix of the one called `name` (`net_s.`, `predictor.`, none), without that prefix.

    Empty where there is no such entry.
    """
    hits = sorted((key for key in state if key == name or key.endswith(f".{name}")), key=len)
    if not hits:
        return {}
    prefix = hits[0].removesuffix(name)
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def require(state: Mapping[str, Tensor], names: Iterable[str], what: str) -> None:
    """Raises `WeightsError` naming the first missing of `names`: this is no checkpoint of `what`."""
    missing = [name for name in names if name not in state]
    if missing:
        raise WeightsError(
            f"this is no {what} checkpoint: it lacks {', '.join(missing[:3])} "
            f"(it holds {', '.join(list(state)[:3])} ...)"
        )


def load(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Loads every parameter and buffer of `module`, all or nothing.

    Raises `WeightsError` naming the first keys that are missing, left over, of another shape, or not finite.
    """
    wanted = module.state_dict()
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    faults = [f"missing {name}" for name in missing] + [f"unknown {name}" for name in extra]
    for name in sorted(set(wanted) & set(state)):
        tensor = state[name]
        if tensor.shape != wanted[name].shape:
            faults.append(f"{name} has shape {list(tensor.shape)}, not {list(wanted[name].shape)}")
        elif not bool(torch.isfinite(tensor.float()).all()):
            faults.append(f"{name} holds NaN or infinity")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise WeightsError(f"this {what} checkpoint does not fit: {'; '.join(faults[:3])}{more}")
    module.load_state_dict({name: state[name].to(wanted[name].dtype) for name in wanted})

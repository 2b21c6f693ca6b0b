"""Procedural weights: a formula that gives every tensor its values by its name, so that only outputs need be stored."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
GOLDEN = Path(os.environ.get("EDGE_INSPECT_GOLDEN", Path(__file__).parents[4] / "shared" / "golden"))

TOKEN_LIKE = ("_token", "_tokens", "pos_embed", "class_embedding", "positional_embedding", "position_embeddings")


def array(name: str, shape: Sequence[int], scale: float, shift: float = 0.0) -> Tensor:
    """float32, uniform in [shift - scale, shift + scale): splitmix64 seeded with the FNV-1a hash of the name."""
    mask, gamma, digest = (1 << 64) - 1, 0x9E3779B97F4A7C15, 0xCBF29CE484222325
    for byte in name.encode():
        digest = ((digest ^ byte) * 0x100000001B3) & mask
    seed = digest ^ ((20260101 * gamma) & mask)
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(gamma)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    unit = ((z >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).astype(np.float32)
    return torch.from_numpy((np.float32(scale) * unit + np.float32(shift)).reshape(tuple(shape)))


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """{name: tensor} for {name: shape}: matrices keep the scale of their input, gains lie around one."""
    state = {}
    for key, shape in shapes.items():
        if key.endswith("rope_embed.periods"):
            state[key] = 100.0 ** (torch.arange(shape[0]) / shape[0])
        elif key.endswith("bias_mask"):
            ones = torch.ones(shape[0] // 3)
            state[key] = torch.cat((ones, 0 * ones, ones))
        elif key.endswith(".gamma"):
            state[key] = array(key, shape, 0.4, 0.6)
        elif key.endswith(TOKEN_LIKE):
            state[key] = array(key, shape, 0.3)
        elif len(shape) > 1:
            state[key] = array(key, shape, math.sqrt(3.0 / math.prod(shape[1:])))
        else:
            state[key] = array(key, shape, 0.2, 1.0) if key.endswith("weight") else array(key, shape, 0.1)
    return state


def shapes(
    family: str,
    *,
    width: int = 128,
    depth: int = 2,
    patch: int = 16,
    grid: int = 3,
    registers: int = 0,
    swiglu: bool = False,
) -> dict[str, list[int]]:
    """Names and shapes of the original form of a small encoder."""
    hidden = 4 * width
    keys: dict[str, list[int]] = {"cls_token": [1, 1, width]}
    keys |= {"patch_embed.proj.weight": [width, 3, patch, patch], "patch_embed.proj.bias": [width]}
    if family == "dinov3":
        keys |= {"storage_tokens": [1, registers or 4, width], "rope_embed.periods": [16], "mask_token": [1, width]}
    else:
        keys["pos_embed"] = [1, 1 + grid * grid, width]
        if registers:
            keys["register_tokens"] = [1, registers, width]
        if family == "dinov2":
            keys["mask_token"] = [1, width]
    for i in range(depth):
        linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        if swiglu:
            linear |= {"mlp.w1": (hidden, width), "mlp.w2": (hidden, width), "mlp.w3": (width, hidden)}
        else:
            linear |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
        for name, (rows, columns) in linear.items():
            keys |= {f"blocks.{i}.{name}.weight": [rows, columns], f"blocks.{i}.{name}.bias": [rows]}
        for name in ("norm1", "norm2"):
            keys |= {f"blocks.{i}.{name}.weight": [width], f"blocks.{i}.{name}.bias": [width]}
        if family != "dino":
            keys |= {f"blocks.{i}.ls1.gamma": [width], f"blocks.{i}.ls2.gamma": [width]}
        if family == "dinov3":
            keys[f"blocks.{i}.attn.qkv.bias_mask"] = [3 * width]
    return keys | {"norm.weight": [width], "norm.bias": [width]}


def kept(count: int) -> list[int]:
    """Which of `count` tokens the stored subsets hold: the prefix, every 13th, the last."""
    return sorted({i for i in (*range(5), *range(0, count, 13), count - 1) if i < count})


def stored(name: str) -> dict[str, Tensor]:
    """The stored arrays of one encoder, by `<input size>/<stage>`."""
    with np.load(DATA / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def stored_state(name: str) -> dict[str, Tensor]:
    """The procedural state dict that the stored arrays belong to."""
    return weights(json.loads((DATA / f"{name}_keys.json").read_text()))


def image(tag: str) -> Tensor:
    """The input of a stored array's size tag, `BxCxHxW`."""
    return array(f"input/{tag}", [int(n) for n in tag.split("x")], 2.0)


def full(name: str) -> Callable[[str], Tensor]:
    """Reader of the full reference file, where it is at hand; skips the test where it is not."""
    path = GOLDEN / "encoders" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"the full reference arrays are not here ({path}; set EDGE_INSPECT_GOLDEN to their folder)")
    file = np.load(path)
    return lambda key: torch.from_numpy(file[key])


@pytest.fixture(scope="session")
def procedural() -> SimpleNamespace:
    """The functions of this file."""
    return SimpleNamespace(
        array=array,
        weights=weights,
        shapes=shapes,
        kept=kept,
        stored=stored,
        stored_state=stored_state,
        image=image,
        full=full,
        data=DATA,
        golden=GOLDEN,
    )


@pytest.fixture(autouse=True)
def _no_gradients_by_accident() -> None:
    torch.manual_seed(0)

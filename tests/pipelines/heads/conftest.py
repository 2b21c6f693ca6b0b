"""Procedural weights by name, the stored reference arrays, and small encoders and pipelines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.encoders.config import EncoderConfig
from pipelines.encoders.vit import Encoder

DATA = Path(__file__).parent / "data"
GOLDEN = Path(os.environ.get("EDGE_INSPECT_GOLDEN", Path(__file__).parents[4] / "shared" / "golden"))
FILES = {
    "foundad": "foundad/foundad_dinov3_small.npz",
    "visualad": "visualad/visualad_small_interp.npz",
    "vitad": "vitad/vitad_small.npz",
}
TOKEN_LIKE = (
    *("cls_token", "pos_embed", "register_tokens", "storage_tokens", "mask_token", "class_embedding"),
    *("positional_embedding_frozen", "anomaly_token", "normal_token", "anomaly_pos", "normal_pos"),
    *("anchor_queries", "pos_encoding"),
)


def array(name: str, shape: tuple[int, ...], scale: float, shift: float = 0.0) -> Tensor:
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
    return torch.from_numpy((np.float32(scale) * unit + np.float32(shift)).reshape(shape))


@pytest.fixture(scope="session")
def weights() -> Callable[[str], dict[str, Tensor]]:
    """name of a head -> the whole reference model's state dict, encoder included."""

    def make(name: str) -> dict[str, Tensor]:
        state = {}
        for key, shape in json.loads((DATA / f"{name}_keys.json").read_text()).items():
            shape = tuple(shape)
            if key.endswith("rope_embed.periods"):
                state[key] = 100.0 ** (torch.arange(shape[0]) / shape[0])
            elif key.endswith("bias_mask"):
                ones = torch.ones(shape[0] // 3)
                state[key] = torch.cat((ones, 0 * ones, ones))
            elif key.endswith(".gamma"):
                state[key] = array(key, shape, 0.4, 0.6)
            elif key.endswith("res_scale"):
                state[key] = array(key, shape, 0.0, 0.3)
            elif key.endswith(TOKEN_LIKE):
                state[key] = array(key, shape, 0.3)
            elif len(shape) > 1:
                state[key] = array(key, shape, math.sqrt(3.0 / math.prod(shape[1:])))
            else:
                state[key] = array(key, shape, 0.2, 1.0) if key.endswith("weight") else array(key, shape, 0.1)
        return state

    return make


@pytest.fixture(params=["stored", "full"])
def golden(request: pytest.FixtureRequest) -> Callable[[str], tuple[dict[str, Tensor], int]]:
    """name of a head -> (arrays, the step at which maps are thinned): the stored ones, and the full files if there."""

    def load(name: str) -> tuple[dict[str, Tensor], int]:
        stored = request.param == "stored"
        path = DATA / f"{name}.npz" if stored else GOLDEN / FILES[name]
        if not path.is_file():
            pytest.skip(f"{path} is absent; set EDGE_INSPECT_GOLDEN to the folder of the full reference arrays")
        with np.load(path) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
        return arrays, 8 if stored else 1

    return load


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def close() -> Callable[..., None]:
    """close(mine, reference, relative=1e-5): equal within `relative` of the reference's range."""

    def check(mine: Tensor, reference: Tensor, relative: float = 1e-5) -> None:
        assert mine.shape == reference.shape
        spread = max(float(reference.max() - reference.min()), float(reference.abs().max()) * 0.1)
        assert float((mine.double() - reference.double()).abs().max()) <= relative * spread

    return check


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Encoder]:
    """A small random encoder of any family: tiny("dinov2", depth=4) ..."""

    def make(family: str = "dinov3", depth: int = 4, width: int = 48, seed: int = 0) -> Encoder:
        learned = family in ("dino", "dinov2", "clip")
        patch = 14 if family in ("dinov2", "clip") else 16
        config = EncoderConfig(
            name=f"tiny-{family}",
            family=family,  # type: ignore[arg-type]
            patch=patch,
            width=width,
            depth=depth,
            heads=3,
            hidden=4 * width,
            registers=4 if family == "dinov3" else 0,
            grid=4 if learned else None,
            table_resize="bicubic_antialias" if learned else None,
            rope_base=None if learned else 100.0,
            layer_scale=family in ("dinov2", "dinov3"),
            norm_pre=family == "clip",
            activation="quick_gelu" if family == "clip" else "gelu",
        )
        encoder = Encoder(config).init_weights(seed)
        for name, parameter in encoder.named_parameters():  # larger than a fresh model's: features must differ
            if parameter.ndim > 1:
                parameter.copy_(array(f"{family}/{seed}/{name}", tuple(parameter.shape), 0.25))
        return encoder

    return make

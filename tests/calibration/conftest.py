import json
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    return DATA


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _array(name: str, shape, scale: float, shift: float = 0.0) -> np.ndarray:
    """The procedural weights that the golden arrays were computed with: uniform, fixed by name (FNV-1a, splitmix64)."""
    gamma, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & mask
    seed ^= (20260101 * gamma) & mask
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(gamma)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    unit = ((z >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).astype(np.float32)
    return (np.float32(scale) * unit + np.float32(shift)).reshape(shape)


@pytest.fixture(scope="session")
def projector_weights() -> dict[str, torch.Tensor]:
    """State dict of the golden FoundAD projector, by its published names."""
    out = {}
    for key, shape in json.loads((DATA / "foundad_keys.json").read_text()).items():
        if key.endswith("mask_token"):
            scale, shift = 0.3, 0.0
        elif len(shape) <= 1:
            scale, shift = (0.2, 1.0) if key.endswith("weight") else (0.1, 0.0)
        else:
            scale, shift = math.sqrt(3.0 / math.prod(shape[1:])), 0.0
        out[key] = torch.from_numpy(_array(key, shape, scale, shift))
    return out


def part(rng: np.random.Generator, height: int, width: int, defect: bool = False) -> np.ndarray:
    """Gray picture of a bright disc with a fine, regular texture on a dark ground; a defect is a bright smear on it."""
    y, x = np.mgrid[:height, :width]
    cy, cx = height / 2 + rng.uniform(-2, 2), width / 2 + rng.uniform(-2, 2)
    disc = (y - cy) ** 2 + (x - cx) ** 2 < (0.4 * min(height, width)) ** 2
    image = 50.0 + 100.0 * disc + 12.0 * np.sin(x / 2.5) * np.cos(y / 3.0) + rng.normal(0, 2, (height, width))
    if defect:
        top, left = int(height * 0.4), int(width * 0.4)
        image[top : top + height // 5, left : left + width // 5] += 80.0
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture
def make_parts(tmp_path: Path) -> Callable[..., Path]:
    """make_parts(count, height=, width=, defect=, name=, seed=, colour=) -> folder of PNG files."""

    def make(
        count: int,
        height: int = 96,
        width: int = 96,
        defect: bool = False,
        name: str = "good",
        seed: int = 0,
        colour: bool = False,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        for number in range(count):
            image = part(rng, height, width, defect)
            if colour:
                image = np.stack([image, image // 2 + 40, 255 - image], axis=2)
            assert cv2.imwrite(str(folder / f"{number:03}.png"), image)
        return folder

    return make


TOKENS = (
    *("cls_token", "pos_embed", "class_embedding", "positional_embedding", "positional_embedding_frozen"),
    *("anomaly_token", "normal_token", "anomaly_pos", "normal_pos", "anchor_queries", "pos_encoding"),
)


@pytest.fixture(scope="session")
def reference_weights() -> Callable[[str], dict[str, torch.Tensor]]:
    """reference_weights("vitad") -> the state dict of a golden model, by its published names (`<name>_keys.json`)."""

    def make(name: str) -> dict[str, torch.Tensor]:
        out = {}
        for key, shape in json.loads((DATA / f"{name}_keys.json").read_text()).items():
            if key.endswith("res_scale"):
                scale, shift = 0.0, 0.3
            elif key.endswith(TOKENS):
                scale, shift = 0.3, 0.0
            elif len(shape) <= 1:
                scale, shift = (0.2, 1.0) if key.endswith("weight") else (0.1, 0.0)
            else:
                scale, shift = math.sqrt(3.0 / math.prod(shape[1:])), 0.0
            out[key] = torch.from_numpy(_array(key, shape, scale, shift))
        return out

    return make


@pytest.fixture(scope="session")
def reference_arrays() -> Callable[[str], dict[str, torch.Tensor]]:
    """reference_arrays("vitad") -> the golden arrays of a method's training (`<name>_train.npz`)."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(DATA / f"{name}_train.npz") as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}

    return load

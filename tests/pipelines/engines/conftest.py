"""A tiny pipeline with random weights, real in every other way, and bundles made of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipelines.bundle import Bundle, Limit, RegionLimit, expected, write_bundle
from pipelines.pipeline import Pipeline, PipelineConfig

ENCODER = {
    "name": "tiny",
    "family": "dinov3",
    "patch": 16,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "hidden": 64,
    "registers": 1,
    "rope_base": 100.0,
    "activation": "gelu_tanh",
    "layer_scale": True,
}

MakeBundle = Callable[..., Bundle]


def make_pipeline(seed: int = 0, **config: Any) -> Pipeline:
    torch.manual_seed(seed)
    made = Pipeline(
        PipelineConfig.model_validate(
            {
                "encoder": ENCODER,
                "head": {"name": "memory_bank", "size": 16},
                "input_size": (64, 64),
                "pixel_format": "Mono8",
                "score": {"k": 3},
                **config,
            }
        )
    )
    if made.config.head.name == "memory_bank":
        made.head.bank.copy_(torch.nn.functional.normalize(torch.randn_like(made.head.bank), dim=-1))
    return made


def picture(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """Smooth shading with a few spots: neighbouring pixels are alike, as in a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 220, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(3):
        centre = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(image, centre, int(rng.integers(3, 12)), [int(v) for v in rng.integers(0, 256, 3)], -1)
    return np.ascontiguousarray(image if channels == 3 else image[:, :, 1:2])


def make_bundle(path: Path, seed: int = 0, sizes: tuple[tuple[int, int], ...] = (), **config: Any) -> Bundle:
    """Limits are half-way through the references' scores, so that both verdicts occur."""
    pipeline = make_pipeline(seed, **config)
    channels = pipeline.config.pixel_format.channels
    frame = pipeline.config.frame
    sizes = sizes or ((frame,) * 4 if frame else ((80, 96), (64, 64), (150, 70), (97, 131)))
    frames = [picture(*size, channels, seed=i) for i, size in enumerate(sizes)]
    scores = expected(pipeline, frames).scores
    limits = [
        RegionLimit(name=name, limit=float(np.median(column)), floor=float(column.min()) * 0.9)
        for name, column in zip(pipeline.config.region_names, scores.T, strict=True)
    ]
    limit = Limit(
        regions=tuple(limits), method="median", false_reject_rate=0.5, n_normals=4, guarantee="none", seed=seed
    )
    return write_bundle(path, pipeline, limit, frames, {"made": "for a test"})


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """bundles(**config): a bundle with that configuration, written once per session."""
    folder = tmp_path_factory.mktemp("bundles")
    made: dict[str, Bundle] = {}

    def get(**config: Any) -> Bundle:
        key = repr(sorted(config.items()))
        if key not in made:
            made[key] = make_bundle(folder / f"bundle{len(made)}", **config)
        return made[key]

    return get


@pytest.fixture
def pictures() -> Callable[..., np.ndarray]:
    return picture


@pytest.fixture
def new_bundle() -> MakeBundle:
    return make_bundle


@pytest.fixture
def new_pipeline() -> Callable[..., Pipeline]:
    return make_pipeline


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))
    monkeypatch.delenv("EDGE_ENGINE_CACHE", raising=False)

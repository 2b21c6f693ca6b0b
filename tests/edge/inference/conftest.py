from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from edge.messages import FrameId, FrameRef, FrameStatus, host_id
from pipelines.bundle import Bundle, Limit, RegionLimit, expected, write_bundle
from pipelines.images import PixelFormat
from pipelines.pipeline import Pipeline, PipelineConfig

MakeFrame = Callable[..., FrameRef]
MakeBundle = Callable[..., Bundle]

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


@pytest.fixture(scope="session")
def make_frame() -> MakeFrame:
    host = host_id()

    def make(sequence: int = 0, *, camera: str = "top", **changes: Any) -> FrameRef:
        values: dict[str, Any] = {
            "id": FrameId(line="press", camera=camera, epoch=1000, sequence=sequence),
            "part": sequence,
            "trigger_ns": 0,
            "host": host,
            "age_ns": 0,
            "deadline_ns": 500_000_000,
            "status": FrameStatus.OK,
            "pixel_format": PixelFormat.MONO8,
            "height": 64,
            "width": 80,
            "ring": f"edge-inspect.press.{camera}",
            "slot": 0,
            "generation": 2,
        }
        return FrameRef(**(values | changes))

    return make


def picture(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 220, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, (int(rng.integers(width)), int(rng.integers(height))), 7, (255, 10, 10), -1)
    return np.ascontiguousarray(image if channels == 3 else image[:, :, 1:2])


@pytest.fixture(scope="session")
def make_bundle() -> MakeBundle:
    """A tiny bundle with random weights, real in every other way."""

    def make(path: Path, seed: int = 0, **config: Any) -> Bundle:
        torch.manual_seed(seed)
        values = {
            "encoder": ENCODER,
            "head": {"name": "memory_bank", "size": 16},
            "input_size": (64, 64),
            "pixel_format": "Mono8",
            "frame": (64, 80),
            "score": {"k": 3},
        }
        pipeline = Pipeline(PipelineConfig.model_validate(values | config))
        pipeline.head.bank.copy_(torch.nn.functional.normalize(torch.randn_like(pipeline.head.bank), dim=-1))
        height, width = pipeline.config.frame or (64, 80)
        frames = [picture(height, width, pipeline.config.pixel_format.channels, i) for i in range(4)]
        scores = expected(pipeline, frames).scores
        regions = tuple(
            RegionLimit(name=name, limit=float(np.median(column)), floor=float(column.min()) * 0.9)
            for name, column in zip(pipeline.config.region_names, scores.T, strict=True)
        )
        limit = Limit(regions=regions, method="median", false_reject_rate=0.5, n_normals=4, guarantee="none", seed=seed)
        return write_bundle(path, pipeline, limit, frames, {"made": "for a test"})

    return make

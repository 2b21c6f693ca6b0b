"""The `torch` engine: the pipeline as it is, in float32, eager. Runs wherever torch does; needs no build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.bundle import Bundle
from pipelines.config import PipelineConfig
from pipelines.engines.base import (
    GRAPH_VERSION,
    Engine,
    EngineKey,
    EngineOptions,
    config_sha256,
    in_place,
    map_shape,
)
from pipelines.engines.cpu import cpu_model
from pipelines.engines.frame import FrameSpec
from pipelines.manifest import WEIGHTS

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline


class TorchEngine(Engine):
    """Eager torch on the first GPU if there is one, else on the CPU."""

    name = "torch"
    built = False
    supported = ("fp32",)

    def __init__(
        self, pipeline: Pipeline, key: EngineKey, frame: FrameSpec, shape: tuple[int, int, int], threads: int | None
    ) -> None:
        super().__init__(key, frame, shape)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._pipeline = pipeline.to(self._device)
        if threads is not None:
            torch.set_num_threads(threads)  # of the whole process: torch knows no other

    @property
    def gains_by_batching(self) -> bool:
        """See `Engine`."""
        return self._device.type != "cpu"

    @classmethod
    def make_key(
        cls, bundle: Bundle, config: PipelineConfig, precision: str, options: EngineOptions | None = None
    ) -> EngineKey:
        """See `Engine.make_key`."""
        return EngineKey(
            engine=cls.name,
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model(),
            library=f"torch {torch.__version__}",
            precision=precision,
            frame=str(FrameSpec.of(config)),
            graph=GRAPH_VERSION,
            config=config_sha256(config),
            weights=bundle.manifest.files[WEIGHTS].sha256,
        )

    @classmethod
    def open(
        cls, bundle: Bundle, config: PipelineConfig, key: EngineKey, folder: Path | None, options: EngineOptions
    ) -> TorchEngine:
        """See `Engine.open`."""
        return cls(bundle.pipeline(config), key, FrameSpec.of(config), map_shape(bundle, config), options.threads)

    @property
    def description(self) -> str:
        """See `Engine.description`."""
        return f"{self.key.library}, eager fp32 on {self._device.type} ({self.key.device})"

    def _run(self, frames: Sequence[NDArray[np.uint8]], scores: NDArray[np.float32], maps: NDArray[np.float32]) -> None:
        # One by one: frames are separate ring slots, and stacking them would copy every pixel.
        for index, frame in enumerate(frames):
            with torch.inference_mode():
                score, patch_map = self._pipeline(torch.from_numpy(in_place(frame)).to(self._device))
            scores[index] = score[0].cpu().numpy()
            maps[index] = patch_map[0].cpu().numpy()

"""The graph that TensorRT builds: uint8 frames to scores and maps, in one precision with float32 where it matters.

"Strongly typed": every tensor has the type that the graph gives it, and the builder may not choose another. The encoder
and the head are halved (`Pipeline.half`); resizing, squared residuals, distances, unit vectors, Top-K and all buffers
of `pipelines.precision.Float32Module` stay float32, as docs/tensorrt.md explains.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.engines.tensorrt_targets import Batch, check_frames
from pipelines.errors import EngineError

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline

INPUT = "frames"
OUTPUTS = ("scores", "maps")
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""Type of weights and activations by precision; int8 and fp8 quantise an fp16 graph."""


class EngineGraph(nn.Module):
    """A pipeline as an engine runs it: frames uint8 [B, H, W, C] -> float32 [B, R], float32 [B, R, h, w].

    TensorRT takes uint8 only to cast it, so that is the first thing that happens; fp16 holds 0 to 255 exactly.
    """

    def __init__(self, pipeline: Pipeline, precision: str) -> None:
        super().__init__()
        dtype = TYPES.get(precision, torch.float16)
        self.pixels = torch.float32 if dtype == torch.float32 else torch.float16
        self.pipeline = pipeline.to(dtype).prepare()

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        scores, maps = self.pipeline.judge(self.pipeline.preprocess.transform(frames.to(self.pixels)))
        return scores, maps


def example(pipeline: Pipeline, batch: Batch) -> Tensor:
    """Frames of the right shape to trace with, uint8 [B, H, W, C]."""
    height, width = check_frames(pipeline.config)
    # With a batch of one, torch.export would take the number 1 for a constant of the graph.
    count = max(2, batch.low) if batch.dynamic else batch.low
    return torch.zeros(count, height, width, pipeline.config.pixel_format.channels, dtype=torch.uint8)


def export(graph: EngineGraph, batch: Batch) -> torch.export.ExportedProgram:
    """The traced graph, its batch fixed or a range. Raises `EngineError` where frames may have any size."""
    frames = example(graph.pipeline, batch)
    shapes: Any = None
    if batch.dynamic:
        shapes = ({0: torch.export.Dim("batch", min=batch.low, max=batch.high)},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(graph, (frames,), dynamic_shapes=shapes)


def rehearse(
    graph: EngineGraph, frames: Sequence[NDArray[np.uint8]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores [N, R] and maps [N, R, h, w] of the graph in torch on the CPU, in the engine's own precision.

    Where no GPU can run the engine yet, this shows whether its arithmetic can hold: overflow, wrong weights and wrong
    normalisation look here as they would there. Raises `EngineError` where torch cannot compute so on this CPU.
    """
    scores, maps = [], []
    try:
        with torch.inference_mode():
            for frame in frames:
                score, patch_map = graph(torch.from_numpy(np.array(frame[None])))
                scores.append(score.numpy())
                maps.append(patch_map.numpy())
    except RuntimeError as error:
        raise EngineError(f"torch cannot rehearse this precision on the CPU: {' '.join(str(error).split())}") from error
    return np.concatenate(scores), np.concatenate(maps)

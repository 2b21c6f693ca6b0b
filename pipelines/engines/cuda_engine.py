"""What the GPU engines share: frames through `cuda_buffers`, at once or as batches in flight."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.config import PipelineConfig
from pipelines.engines.base import Engine, EngineKey, Scored
from pipelines.engines.cuda_buffers import Lanes, Sizes, Ticket
from pipelines.engines.frame import FrameSpec
from pipelines.engines.tensorrt_targets import Batch, check_frames
from pipelines.errors import EngineError


class CudaEngine(Engine):
    """An engine whose computation is enqueued on a GPU. Subclasses give `Lanes`."""

    def __init__(self, lanes: Lanes, key: EngineKey, frame: FrameSpec) -> None:
        super().__init__(key, frame, lanes.sizes.maps)
        self._lanes = lanes

    def submit(self, frames: Sequence[NDArray[np.uint8]], maps: bool = True) -> Ticket:
        """Copies and enqueues at most `batch` frames; the frames are free again when this returns.

        Two batches can be in flight. Without `maps` only the scores are downloaded.
        Raises `EngineError` for wrong frames and where nothing more fits in flight.
        """
        for frame in frames:
            self.frame.check(frame)
        return self._lanes.submit(frames, maps)

    def collect(self, ticket: Ticket) -> Scored:
        """Waits for a batch. Its maps are empty [B, R, 0, 0] where they were not asked for."""
        regions, rows, columns = self.shape
        scores = np.empty((ticket.count, regions), dtype=np.float32)
        size = (rows, columns) if ticket.with_maps else (0, 0)
        maps = np.empty((ticket.count, regions, *size), dtype=np.float32)
        try:
            self._lanes.collect(ticket, scores, maps)
        except RuntimeError as error:
            raise EngineError(f"CUDA failed on a batch: {' '.join(str(error).split())[:400]}") from error
        return Scored(scores, maps)

    @property
    def batch(self) -> int:
        """Most frames in one batch."""
        return self._lanes.sizes.high

    def close(self) -> None:
        """See `Engine.close`."""
        self._lanes.close()

    def _run(self, frames: Sequence[NDArray[np.uint8]], scores: NDArray[np.float32], maps: NDArray[np.float32]) -> None:
        try:
            self._lanes.score(frames, scores, maps)
        except RuntimeError as error:
            raise EngineError(f"CUDA failed on a frame: {' '.join(str(error).split())[:400]}") from error


def sizes_of(config: PipelineConfig, shape: tuple[int, int, int], batch: Batch) -> Sizes:
    """The buffers of an engine. Raises `EngineError` where the configuration leaves the frame size open."""
    height, width = check_frames(config)
    return Sizes((height, width, config.pixel_format.channels), shape, batch.low, batch.high)


def frame_and_batch(config: PipelineConfig, batch: str) -> str:
    """The `frame` of an `EngineKey`: with the batch, which is part of the shapes that were built."""
    return f"{FrameSpec.of(config)}, batch {batch}"


def batch_of(key: EngineKey) -> Batch:
    """The batch in a key made by `frame_and_batch`."""
    return Batch.parse(key.frame.rpartition(" ")[2])


def same_but_batch(built: EngineKey, wanted: EngineKey) -> bool:
    """Whether two keys differ in nothing but the batch."""
    frame = built.frame.rpartition(", batch ")[0]
    return frame == wanted.frame.rpartition(", batch ")[0] and dataclasses.replace(built, frame=wanted.frame) == wanted

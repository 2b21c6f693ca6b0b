"""Training pictures: what the encoder would see of each region, as RGB, before normalisation and without upscaling.

Regions are cut by the pipeline's own preprocessing. A crop more than twice as large as the input is shrunk to twice
the input, which bounds memory and leaves augmentations (made before the final resize, as published) their effect.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.transforms import resize
from pipelines.config import PipelineConfig
from pipelines.pipeline import Pipeline
from pipelines.preprocess import Preprocess


class Crops:
    """Crops uint8 [3, h, w] of frames and regions, in frame order, regions of a frame one after the other."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._config: PipelineConfig = pipeline.config
        self.size = pipeline.config.input_size
        encoder = pipeline.encoder
        self._mean = torch.tensor(encoder.mean).view(3, 1, 1)
        self._std = torch.tensor(encoder.std).view(3, 1, 1)
        self._crops: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> Tensor:
        return self._crops[index]

    def extend(self, frames: Iterable[NDArray[np.uint8]]) -> None:
        """Cuts and keeps the regions of frames uint8 [H, W, C]."""
        config = self._config
        for frame in frames:
            regions = config.regions or (None,)
            for region in regions:
                height, width = frame.shape[:2] if region is None else (region.height_px, region.width_px)
                size = (min(height, 2 * self.size[0]), min(width, 2 * self.size[1]))
                one = Preprocess(
                    config.pixel_format,
                    size,
                    (0.0, 0.0, 0.0),
                    (1.0, 1.0, 1.0),
                    config.frame,
                    () if region is None else (region,),
                )
                with torch.inference_mode():
                    picture = one(torch.from_numpy(np.ascontiguousarray(frame)[None]))[0]
                    self._crops.append((picture * 255.0).round_().clamp_(0, 255).to(torch.uint8).clone())

    def normalise(self, picture: Tensor) -> Tensor:
        """Picture float [3, h, w] in 0..1 -> normalised [3, S_h, S_w]."""
        if tuple(picture.shape[-2:]) != tuple(self.size):
            picture = resize(picture, self.size)
        return (picture - self._mean) / self._std

    def picture(self, index: int) -> Tensor:
        """Crop `index` as float32 [3, h, w] in 0..1."""
        return self._crops[index].float().div_(255.0)

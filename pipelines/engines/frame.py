"""The frames an engine takes, and a bundle's reference frames in another camera's format.

A bundle is calibrated on one pixel format (and, mostly, one frame size). A camera that delivers another one gets an
engine built for its own: the preprocessing in the graph is the one of the camera's format, encoder and head stay. The
parity gate then needs frames of that format, so the stored ones are converted (`convert`), and the torch pipeline of
that format in float32 says what they must score. Limits stay the bundle's.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.config import PipelineConfig
from pipelines.errors import EngineError
from pipelines.images import PixelFormat

# OpenCV names a mosaic by its second row's second and third pixel, GenICam by the first row's first two.
_DEMOSAIC = {
    PixelFormat.BAYER_RG8: cv2.COLOR_BayerBG2RGB,
    PixelFormat.BAYER_GR8: cv2.COLOR_BayerGB2RGB,
    PixelFormat.BAYER_GB8: cv2.COLOR_BayerGR2RGB,
    PixelFormat.BAYER_BG8: cv2.COLOR_BayerRG2RGB,
}
# Channel (0 red, 1 green, 2 blue) of each pixel of the 2x2 cell, row by row.
_MOSAIC = {
    PixelFormat.BAYER_RG8: (0, 1, 1, 2),
    PixelFormat.BAYER_GR8: (1, 0, 2, 1),
    PixelFormat.BAYER_GB8: (1, 2, 0, 1),
    PixelFormat.BAYER_BG8: (2, 1, 1, 0),
}


class FrameSpec(BaseModel):
    """Pixel format and size of the frames that an engine takes; size None = any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pixel_format: PixelFormat
    height: int | None = Field(default=None, ge=1, le=65535)
    width: int | None = Field(default=None, ge=1, le=65535)

    @classmethod
    def of(cls, config: PipelineConfig) -> FrameSpec:
        """The frames that a pipeline was configured for."""
        height, width = config.frame or (None, None)
        return cls(pixel_format=config.pixel_format, height=height, width=width)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width), or None where frames may have any size."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    def __str__(self) -> str:
        size = self.size
        return f"{self.pixel_format.value} {'any size' if size is None else f'{size[1]}x{size[0]}'}"

    def check(self, frame: NDArray[np.uint8]) -> None:
        """Raises `EngineError` where `frame` is no uint8 [H, W, C] of this format and size."""
        height, width = self.size or (frame.shape[:2] if frame.ndim == 3 else (0, 0))
        if frame.dtype != np.uint8 or frame.shape != (height, width, self.pixel_format.channels) or frame.size == 0:
            raise EngineError(
                f"this engine takes {self} frames, uint8 [{self.height or 'H'}, {self.width or 'W'}, "
                f"{self.pixel_format.channels}]; it was given {frame.dtype} {list(frame.shape)}"
            )


def adapt(config: PipelineConfig, frame: FrameSpec | None) -> PipelineConfig:
    """The configuration for frames of `frame` (None = the configuration's own).

    Raises `EngineError` where the bundle's regions are drawn for another size, or the format does not allow the size.
    """
    if frame is None or frame == FrameSpec.of(config):
        return config
    if config.regions and frame.size != config.frame:
        height, width = config.frame or (0, 0)
        raise EngineError(
            f"the bundle's regions are drawn for frames of {width}x{height} px, this camera delivers {frame}; "
            "set the camera to that size, or calibrate a bundle for this camera"
        )
    try:
        return PipelineConfig.model_validate(
            {**config.model_dump(mode="json"), "pixel_format": frame.pixel_format, "frame": frame.size}
        )
    except ValidationError as error:
        raise EngineError(f"no engine for {frame} frames: {'; '.join(e['msg'] for e in error.errors())}") from error


def convert(frame: NDArray[np.uint8], source: PixelFormat, target: FrameSpec) -> NDArray[np.uint8]:
    """A frame [H, W, C] of format `source` as `target` would have delivered it: resized, colours converted."""
    size = target.size
    if source == target.pixel_format and (size is None or size == frame.shape[:2]):
        return frame
    rgb = _to_rgb(frame, source)
    if size is not None and size != rgb.shape[:2]:
        shrinks = size[0] <= rgb.shape[0] and size[1] <= rgb.shape[1]
        kernel = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        rgb = np.asarray(cv2.resize(rgb, (size[1], size[0]), interpolation=kernel), dtype=np.uint8)
    elif target.pixel_format.is_bayer:  # of any size, but a mosaic has whole cells
        rgb = rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2]
    return np.ascontiguousarray(_from_rgb(rgb, target.pixel_format), dtype=np.uint8)


def _to_rgb(frame: NDArray[np.uint8], source: PixelFormat) -> NDArray[np.uint8]:
    if source is PixelFormat.RGB8:
        return frame
    if source is PixelFormat.BGR8:
        return frame[:, :, ::-1]
    if source is PixelFormat.MONO8:
        return np.repeat(frame, 3, axis=2)
    return np.asarray(cv2.cvtColor(frame[:, :, 0], _DEMOSAIC[source]), dtype=np.uint8)


def _from_rgb(rgb: NDArray[np.uint8], target: PixelFormat) -> NDArray[np.uint8]:
    rgb = np.ascontiguousarray(rgb, dtype=np.uint8)
    if target is PixelFormat.RGB8:
        return rgb
    if target is PixelFormat.BGR8:
        return rgb[:, :, ::-1]
    if target is PixelFormat.MONO8:
        return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), dtype=np.uint8)[:, :, None]
    mosaic = np.empty(rgb.shape[:2], dtype=np.uint8)
    for index, channel in enumerate(_MOSAIC[target]):
        y, x = divmod(index, 2)
        mosaic[y::2, x::2] = rgb[y::2, x::2, channel]
    return mosaic[:, :, None]

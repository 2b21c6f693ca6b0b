"""From camera frames to the encoder's input, as part of the scoring graph.

uint8 [B, H, W, C] -> Bayer demosaic, region cut out, antialiased resize, RGB order, three channels, normalisation
-> float32 [B * R, 3, S_h, S_w], the regions of a frame one after the other.

Gray frames are resized on their one channel and become three only when they are normalised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.demosaic import Demosaic
from pipelines.errors import ImageError
from pipelines.images import PixelFormat
from pipelines.precision import Float32Module
from pipelines.regions import Region
from pipelines.resize import Resize, ResizeFilter


class Preprocess(Float32Module):
    """uint8 frames [B, H, W, C] -> float32 [B * R, 3, S_h, S_w], normalised RGB, frame by frame, region by region."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        pixel_format: PixelFormat,
        input_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        frame: tuple[int, int] | None = None,
        regions: Sequence[Region] = (),
        kernel: ResizeFilter = "bilinear",
        round_levels: bool = False,
    ) -> None:
        super().__init__()
        self.pixel_format, self.input_size, self.frame = pixel_format, input_size, frame
        self.boxes: tuple[tuple[int, int, int, int] | None, ...] = tuple(
            (region.y_px, region.x_px, region.height_px, region.width_px) for region in regions
        ) or (None,)
        if regions and frame is None:
            raise ImageError("regions need frames of one size; set the frame's size")
        self.demosaic = Demosaic(pixel_format) if pixel_format.is_bayer else None
        self.resizes = nn.ModuleList(
            Resize(frame if box is None else box[2:], input_size, kernel, round_levels) for box in self.boxes
        )
        # (x / 255 - mean) / std as one multiplication and one addition.
        std_ = torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std_)).float().view(1, 3, 1, 1), False)
        self.register_buffer("shift", (-torch.tensor(mean, dtype=torch.float64) / std_).float().view(1, 3, 1, 1), False)

    def forward(self, frames: Tensor) -> Tensor:
        """See the class. Raises `ImageError` for frames of another shape or type than announced."""
        self._check(frames)
        return self.transform(frames)

    def transform(self, frames: Tensor) -> Tensor:
        """`forward` for frames that are known to fit, their pixels of any type that holds 0 to 255 exactly."""
        images = [resize(self._cut(frames, box)) for box, resize in zip(self.boxes, self.resizes, strict=True)]
        joined = images[0] if len(images) == 1 else torch.stack(images, dim=1).flatten(0, 1)
        if self.pixel_format is PixelFormat.BGR8:
            joined = joined.flip(1)  # after the resize: the small picture, not the frame, changes its order
        return joined * self.scale + self.shift

    def _cut(self, frames: Tensor, box: tuple[int, int, int, int] | None) -> Tensor:
        """The region's pixels [B, h, w, C]: a view for gray and colour frames, float32 RGB for a mosaic."""
        H, W = frames.shape[1:3]
        if box is None:
            return frames if self.demosaic is None else self.demosaic(frames)
        y, x, h, w = box
        if self.demosaic is None:
            return frames[:, y : y + h, x : x + w]
        # Whole cells and one more around, so that the region's edge is interpolated as in the whole frame.
        top, left = max(0, y // 2 * 2 - 2), max(0, x // 2 * 2 - 2)
        bottom, right = min(H, (y + h + 1) // 2 * 2 + 2), min(W, (x + w + 1) // 2 * 2 + 2)
        rgb: Tensor = self.demosaic(frames[:, top:bottom, left:right])
        return rgb[:, y - top : y - top + h, x - left : x - left + w]

    def _check(self, frames: Tensor) -> None:
        if frames.dtype != torch.uint8 or frames.ndim != 4:
            raise ImageError(f"frames must be uint8 [B, H, W, C], these are {frames.dtype} {list(frames.shape)}")
        if frames.shape[3] != self.pixel_format.channels:
            raise ImageError(
                f"{self.pixel_format.value} frames have {self.pixel_format.channels} channel(s), "
                f"these have {frames.shape[3]}; the camera's pixel format differs from the bundle's"
            )
        if self.frame is not None and tuple(frames.shape[1:3]) != tuple(self.frame):
            raise ImageError(
                f"frames are {frames.shape[2]} x {frames.shape[1]} px, this pipeline is for "
                f"{self.frame[1]} x {self.frame[0]} px; set the camera to that size or calibrate again"
            )

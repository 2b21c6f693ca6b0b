"""From camera frames to the encoder's input, as part of the scoring graph.

uint8 [B, H, W, C] -> Bayer demosaic, region cut out, antialiased resize, RGB order, three channels, normalisation
-> float32 [B * R, 3, S_h, S_w], the regions of a frame one after the other.

The resize has two forms with one result:

- `interpolate`: `F.interpolate(antialias=True)`, for torch, OpenVINO and ONNX Runtime; works for frames of any size.
- `matrix`: two constant matrices, for engines without an antialiased resize (TensorRT); one frame size.

Gray frames are resized on their one channel and become three only when they are normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.errors import ImageError
from pipelines.images import PixelFormat
from pipelines.precision import Float32Module
from pipelines.regions import Region

ResizeForm = Literal["interpolate", "matrix"]
ResizeFilter = Literal["bilinear", "bicubic"]

# Colours of the mosaic's 2x2 cell, row by row, by the GenICam name.
_MOSAICS = {
    PixelFormat.BAYER_RG8: "RGGB",
    PixelFormat.BAYER_GR8: "GRBG",
    PixelFormat.BAYER_GB8: "GBRG",
    PixelFormat.BAYER_BG8: "BGGR",
}


def _weight(distance: Tensor, kernel: ResizeFilter) -> Tensor:
    """The filter's weight at a distance in source pixels of the wider grid: triangle, or cubic with a = -0.5."""
    x = distance.abs()
    if kernel == "bilinear":
        return (1 - x).clamp_min(0)
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resize_matrix(source: int, target: int, kernel: ResizeFilter = "bilinear") -> Tensor:
    """Antialiased resize of one axis as a float64 matrix [target, source]; rows add up to 1.

    The filter is stretched by the scale when shrinking (as Pillow and `F.interpolate(antialias=True)` do).
    """
    scale = source / target
    stretch = max(scale, 1.0)
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    weights = _weight((torch.arange(source, dtype=torch.float64) + 0.5 - centres[:, None]) / stretch, kernel)
    return weights / weights.sum(dim=1, keepdim=True)


class Demosaic(Float32Module):
    """Bilinear demosaicing: mosaic [B, 1, H, W] -> RGB [B, 3, H, W], H and W even; values keep their range.

    One stride-2 convolution computes the 12 values of each 2x2 cell. The border is mirrored without repeating the edge,
    which keeps the mosaic's phase.
    """

    weight: Tensor

    def __init__(self, pixel_format: PixelFormat) -> None:
        super().__init__()
        cell = _MOSAICS[pixel_format]
        weight = torch.zeros(3, 2, 2, 4, 4)  # colour, pixel of the cell, window from one pixel before the cell
        for colour, name in enumerate("RGB"):
            for y in range(2):
                for x in range(2):
                    near = [
                        (dy, dx)
                        for dy in (-1, 0, 1)
                        for dx in (-1, 0, 1)
                        if cell[(y + dy) % 2 * 2 + (x + dx) % 2] == name
                    ]
                    # The pixel itself if it has the colour; else the mean of the nearest ones (2 or 4 of them).
                    nearest = min(dy * dy + dx * dx for dy, dx in near)
                    chosen = [(dy, dx) for dy, dx in near if dy * dy + dx * dx == nearest]
                    for dy, dx in chosen:
                        weight[colour, y, x, 1 + y + dy, 1 + x + dx] = 1 / len(chosen)
        self.register_buffer("weight", weight.reshape(12, 1, 4, 4), False)

    def forward(self, mosaic: Tensor) -> Tensor:
        """See the class."""
        cells = F.conv2d(F.pad(mosaic.float(), (1, 1, 1, 1), mode="reflect"), self.weight, stride=2)
        return F.pixel_shuffle(cells, 2)


class Resize(Float32Module):
    """Antialiased resize [B, C, h, w] -> float32 [B, C, H, W]; see the module's text for the two forms.

    `round_levels` rounds to whole gray levels after the horizontal and after the vertical pass, which is what Pillow
    does and so what published numbers were made with. `source` (height, width) is needed by the matrix form only.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        target: tuple[int, int],
        kernel: ResizeFilter = "bilinear",
        round_levels: bool = False,
        form: ResizeForm = "interpolate",
        source: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.target, self.kernel, self.round_levels, self.form = target, kernel, round_levels, form
        if form == "matrix":
            if source is None:
                raise ImageError("the matrix form of the resize needs frames of one size; set the frame's size")
            self.register_buffer("rows", resize_matrix(source[0], target[0], kernel).float(), False)
            columns = resize_matrix(source[1], target[1], kernel).float()
            self.register_buffer("columns", columns.T.contiguous(), False)
            # The cheaper order of the two products; rounding needs Pillow's order, columns first.
            rows_first = target[0] * source[1] * (source[0] + target[1])
            columns_first = target[1] * source[0] * (source[1] + target[0])
            self.rows_first = not round_levels and rows_first < columns_first

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        images = images.float()
        if self.form == "matrix":
            if self.rows_first:
                return self.rows @ images @ self.columns
            return self._rounded(self.rows @ self._rounded(images @ self.columns))
        if not self.round_levels:
            return F.interpolate(images, self.target, mode=self.kernel, antialias=True)
        images = F.interpolate(images, (images.shape[-2], self.target[1]), mode=self.kernel, antialias=True)
        return self._rounded(F.interpolate(self._rounded(images), self.target, mode=self.kernel, antialias=True))

    def _rounded(self, images: Tensor) -> Tensor:
        return (images + 0.5).floor().clamp(0, 255) if self.round_levels else images


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
        form: ResizeForm = "interpolate",
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
            Resize(input_size, kernel, round_levels, form, frame if box is None else box[2:]) for box in self.boxes
        )
        # (x / 255 - mean) / std as one multiplication and one addition.
        std_ = torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std_)).float().view(1, 3, 1, 1), False)
        self.register_buffer("shift", (-torch.tensor(mean, dtype=torch.float64) / std_).float().view(1, 3, 1, 1), False)

    def forward(self, frames: Tensor) -> Tensor:
        """See the class. Raises `ImageError` for frames of another shape or type than announced."""
        self._check(frames)
        images = [resize(self._cut(frames, box)) for box, resize in zip(self.boxes, self.resizes, strict=True)]
        joined = images[0] if len(images) == 1 else torch.stack(images, dim=1).flatten(0, 1)
        if self.pixel_format is PixelFormat.BGR8:
            joined = joined.flip(1)  # after the resize: the small picture, not the frame, changes its order
        return joined * self.scale + self.shift

    def _cut(self, frames: Tensor, box: tuple[int, int, int, int] | None) -> Tensor:
        """The region's pixels [B, C, h, w]: a view for gray and colour frames, float32 RGB for a mosaic."""
        B, H, W, C = frames.shape
        # For one channel the axes can be renamed without moving a byte.
        planes = frames.reshape(B, 1, H, W) if C == 1 else frames.permute(0, 3, 1, 2)
        if box is None:
            return planes if self.demosaic is None else self.demosaic(planes)
        y, x, h, w = box
        if self.demosaic is None:
            return planes[:, :, y : y + h, x : x + w]
        # Whole cells and one more around, so that the region's edge is interpolated as in the whole frame.
        top, left = max(0, y // 2 * 2 - 2), max(0, x // 2 * 2 - 2)
        bottom, right = min(H, (y + h + 1) // 2 * 2 + 2), min(W, (x + w + 1) // 2 * 2 + 2)
        rgb: Tensor = self.demosaic(planes[:, :, top:bottom, left:right])
        return rgb[:, :, y - top : y - top + h, x - left : x - left + w]

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

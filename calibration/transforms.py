"""Image transforms of training and synthesis, as pure functions of explicit draws.

Images are float32 tensors [..., 3, H, W]. The arithmetic, step by step, is that of the reference tensor transforms
the published methods were trained with, so that the same draws give the same pixels. Nothing here is random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)
"""Weights of R, G and B in the gray value that contrast and saturation blend with."""


@dataclass(frozen=True)
class Jitter:
    """One draw of a colour jitter: factors, and the order (0 brightness, 1 contrast, 2 saturation, 3 hue)."""

    order: tuple[int, ...]
    brightness: float
    contrast: float
    saturation: float
    hue: float  # in turns, -0.5..0.5


def grayscale(image: Tensor) -> Tensor:
    """Luma of [..., 3, H, W] as [..., 1, H, W]."""
    red, green, blue = image.unbind(-3)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(-3)


def _blend(image: Tensor, other: Tensor, factor: float) -> Tensor:
    return (factor * image + (1.0 - factor) * other).clamp(0.0, 1.0)


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Scales the values; the result is clamped to 0..1 (normalised images too: the published synthesis does so)."""
    return _blend(image, torch.zeros_like(image), factor)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Blends with the mean gray of each image; the result is clamped to 0..1."""
    return _blend(image, grayscale(image).mean(dim=(-3, -2, -1), keepdim=True), factor)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Blends with the gray image; the result is clamped to 0..1."""
    return _blend(image, grayscale(image), factor)


def adjust_hue(image: Tensor, turns: float) -> Tensor:
    """Rotates the hue by `turns` (-0.5..0.5) in HSV space. Values outside 0..1 go through unclamped where V is kept."""
    hue, saturation, value = _rgb_to_hsv(image)
    return _hsv_to_rgb((hue + turns) % 1.0, saturation, value)


def _rgb_to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    red, green, blue = image.unbind(-3)
    high, low = image.amax(-3), image.amin(-3)
    flat = high == low
    chroma = high - low
    one = torch.ones_like(high)
    saturation = chroma / torch.where(flat, one, high)
    divisor = torch.where(flat, one, chroma)
    rc, gc, bc = (high - red) / divisor, (high - green) / divisor, (high - blue) / divisor
    from_red = (high == red) * (bc - gc)
    from_green = ((high == green) & (high != red)) * (2.0 + rc - bc)
    from_blue = ((high != green) & (high != red)) * (4.0 + gc - rc)
    hue = torch.fmod((from_red + from_green + from_blue) / 6.0 + 1.0, 1.0)
    return hue, saturation, high


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    sector = torch.floor(hue * 6.0)
    part = hue * 6.0 - sector
    sector = sector.to(torch.int32) % 6
    p = (value * (1.0 - saturation)).clamp(0.0, 1.0)
    q = (value * (1.0 - saturation * part)).clamp(0.0, 1.0)
    t = (value * (1.0 - saturation * (1.0 - part))).clamp(0.0, 1.0)
    index = sector.to(torch.int64).unsqueeze(0)
    red = torch.stack((value, q, p, p, t, value)).gather(0, index)
    green = torch.stack((t, value, value, q, p, p)).gather(0, index)
    blue = torch.stack((p, p, t, value, value, q)).gather(0, index)
    return torch.cat((red, green, blue)).movedim(0, -3)


def color_jitter(image: Tensor, jitter: Jitter) -> Tensor:
    """Applies the four adjustments in the drawn order."""
    steps = (
        lambda x: adjust_brightness(x, jitter.brightness),
        lambda x: adjust_contrast(x, jitter.contrast),
        lambda x: adjust_saturation(x, jitter.saturation),
        lambda x: adjust_hue(x, jitter.hue),
    )
    for step in jitter.order:
        image = steps[step](image)
    return image


def _inverse_rotation(degrees: float) -> tuple[float, float, float, float]:
    angle = math.radians(degrees)
    return math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)


def rotated_size(height: int, width: int, degrees: float) -> tuple[int, int]:
    """Height and width of the canvas that `rotate` returns.

    The corners are placed with the image's own corner as origin before rounding outwards, so the canvas can be a
    pixel larger than the tightest one; the published synthesis depends on it.
    """
    a, b, c, d = _inverse_rotation(degrees)
    corners = torch.tensor(
        [[x, y, 1.0] for x, y in ((-0.5 * width, -0.5 * height), (-0.5 * width, 0.5 * height),
                                  (0.5 * width, 0.5 * height), (0.5 * width, -0.5 * height))]
    )  # fmt: skip
    placed = corners @ torch.tensor([[a, b, 0.0], [c, d, 0.0]]).T
    shift = torch.tensor((width * 0.5, height * 0.5))
    tolerance = 1e-4  # an exact multiple of 90 degrees must not grow by rounding errors
    top = torch.ceil(((placed.amax(0) + shift) / tolerance).trunc() * tolerance)
    bottom = torch.floor(((placed.amin(0) + shift) / tolerance).trunc() * tolerance)
    size = top - bottom
    return int(size[1]), int(size[0])


def rotate(image: Tensor, degrees: float) -> Tensor:
    """Rotates [C, H, W] counter-clockwise about its centre, bilinear, on a canvas that holds it; corners are 0."""
    height, width = image.shape[-2:]
    out_height, out_width = rotated_size(height, width, degrees)
    a, b, c, d = _inverse_rotation(degrees)
    theta = torch.tensor([[a, b, 0.0], [c, d, 0.0]])
    base = torch.ones(1, out_height, out_width, 3)
    base[..., 0] = torch.linspace(-out_width * 0.5 + 0.5, out_width * 0.5 - 0.5, out_width)
    base[..., 1] = torch.linspace(-out_height * 0.5 + 0.5, out_height * 0.5 - 0.5, out_height).unsqueeze(-1)
    scaled = theta.T.unsqueeze(0) / torch.tensor([0.5 * width, 0.5 * height])
    grid = base.view(1, -1, 3).bmm(scaled).view(1, out_height, out_width, 2)
    return F.grid_sample(image.unsqueeze(0), grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def gaussian_blur(image: Tensor, kernel: int, sigma: float) -> Tensor:
    """Gaussian blur of [..., C, H, W] with an odd `kernel` width and reflected borders.

    Images smaller than the kernel's reach are blurred with the widest kernel that fits.
    """
    reach = min(kernel // 2, image.shape[-1] - 1, image.shape[-2] - 1)
    steps = torch.arange(-reach, reach + 1, dtype=image.dtype)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights = weights / weights.sum()
    lead = image.shape[:-2]
    flat = F.pad(image.reshape(-1, 1, *image.shape[-2:]), (reach,) * 4, mode="reflect")
    flat = F.conv2d(flat, weights.view(1, 1, 1, -1))
    flat = F.conv2d(flat, weights.view(1, 1, -1, 1))
    return flat.reshape(*lead, *image.shape[-2:])


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bilinear resize of [..., C, H, W] to `size` = (height, width)."""
    lead: Sequence[int] = image.shape[:-3]
    flat = image.reshape(-1, *image.shape[-3:])
    out = F.interpolate(flat, size=size, mode="bilinear", antialias=True, align_corners=False)
    return out.reshape(*lead, *out.shape[-3:])

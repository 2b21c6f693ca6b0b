"""Unlabelled images in memory, and the views that teacher and student get of them.

A view is a function of (seed, step, image): the same crop, flip and turn for both; other colours, blur and noise in the
altered one, from which the student learns. Where the teacher describes the plain one, the student learns not to mind
the lamp; where it describes the altered one too, the student learns to see what the teacher sees ("a good teacher is
patient and consistent", Beyer et al., 2022).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.datasets import split
from calibration.errors import DataError
from pipelines.errors import ImageError
from pipelines.images import list_images, read_image

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int], None]

CACHE_BYTES = 3 << 30
"""Decoded images kept in memory at most; those beyond are decoded at each use."""

AREA, ASPECT = (0.2, 1.0), (3 / 4, 4 / 3)
"""Share of the image that a crop covers, and its width / height before it is made square."""

GRAY, TURN = 0.2, 0.3
"""How often both views are gray, and how often they are turned by quarters."""

_VIEW, _ALTER, _SIZE = 0x71E3, 0xA17E, 0x517E
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Views:
    """One batch, uint8 RGB [B, 3, S, S]: crops as they are and, with the same geometry, altered."""

    plain: Tensor
    altered: Tensor


class Pictures:
    """Unlabelled images of any sizes and formats."""

    def __init__(self, paths: Sequence[Path], largest: int) -> None:
        """`largest`: largest crop [px]; images are kept at no more than twice that on their short side."""
        self.paths, self._short = tuple(paths), 2 * largest
        self._kept: dict[int, Pixels] = {}
        self._bytes = 0
        hasher = hashlib.sha256()
        for path in self.paths:
            hasher.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        self.fingerprint = hasher.hexdigest()
        """Hash over names and sizes of the files."""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Pixels:
        """Pixels uint8 [H, W, 1 or 3], RGB. Raises `ImageError` where the file cannot be read."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        pixels = read_image(self.paths[index]).pixels
        if pixels.shape[2] == 3:
            pixels = pixels[:, :, ::-1]
        if (short := min(pixels.shape[:2])) > self._short:
            scale = self._short / short
            size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
            shrunk = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            pixels = np.asarray(shrunk, np.uint8).reshape(size[1], size[0], -1)
        pixels = np.ascontiguousarray(pixels)
        if self._bytes + pixels.nbytes <= CACHE_BYTES:
            self._kept[index] = pixels
            self._bytes += pixels.nbytes
        return pixels


def find_pictures(
    folders: Sequence[Path], held_out: int, largest: int, seed: int, skip_bad: bool, progress: Progress
) -> tuple[Pictures, Pictures, list[str]]:
    """(to train on, held out, what was left out and why) of all images below `folders`; every file is decoded once.

    Raises `ImageError` for a folder that is missing or empty, `DataError` for files that do not decode and where fewer
    images remain than are held out.
    """
    listed = list(dict.fromkeys(path for folder in folders for path in list_images(folder)))
    bad: list[str] = []
    good: list[Path] = []
    for done, path in enumerate(listed, start=1):
        try:
            read_image(path)
            good.append(path)
        except ImageError as error:
            bad.append(str(error))
        progress(done, len(listed))
    if bad and not skip_bad:
        shown = "\n  ".join(bad[:10]) + (f"\n  and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise DataError(
            f"{len(bad)} of {len(listed)} images cannot be used; repair or remove them, or add --skip-bad:\n  {shown}"
        )
    if not good:
        raise DataError(f"{folders[0]}: none of its {len(listed)} images can be used; the first says: {bad[0]}")
    fit, held = split(len(good), held_out, seed)
    return Pictures([good[i] for i in fit], largest), Pictures([good[i] for i in held], largest), bad


def size_of(step: int, sizes: Sequence[int], seed: int) -> int:
    """Side of the crops of a step [px]."""
    return int(np.random.default_rng([seed, _SIZE, step]).choice(sizes))


def views(pictures: Pictures, numbers: Sequence[int], key: Sequence[int], size: int, strength: float) -> Views:
    """Views of images `numbers`; `key` (seed, step) and an image's number decide every random choice."""
    plain, altered = [], []
    for number in numbers:
        crop = random_crop(pictures[number], size, np.random.default_rng([*key, number, _VIEW]))
        plain.append(crop)
        altered.append(alter(crop, np.random.default_rng([*key, number, _ALTER]), strength))
    return Views(_tensor(plain), _tensor(altered))


def centre_crops(pictures: Pictures, size: int, squeeze: bool = False) -> Tensor:
    """The largest centred square of each image, or all of it squeezed to a square: uint8 [n, 3, size, size]."""
    crops = []
    for number in range(len(pictures)):
        pixels = pictures[number]
        height, width = pixels.shape[:2]
        if squeeze:
            crops.append(_square(pixels, size))
            continue
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        crops.append(_square(pixels[top : top + side, left : left + side], size))
    return _tensor(crops)


def random_crop(pixels: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """A random part of an image as uint8 [size, size, 3]: cropped, flipped, turned, sometimes gray."""
    height, width = pixels.shape[:2]
    area = rng.uniform(*AREA) * min(height, width) * min(max(height, width), 2 * min(height, width))
    aspect = float(np.exp(rng.uniform(*np.log(ASPECT))))
    h, w = min(height, max(8, round((area / aspect) ** 0.5))), min(width, max(8, round((area * aspect) ** 0.5)))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    crop = _square(pixels[top : top + h, left : left + w], size)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < TURN:
        crop = np.rot90(crop, int(rng.integers(1, 4)))
    if rng.random() < GRAY:
        crop = np.repeat((crop @ _LUMA).round().astype(np.uint8)[..., None], 3, axis=2)
    return np.ascontiguousarray(crop)


def alter(crop: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Other colours, blur and noise; the geometry is kept. uint8 [S, S, 3], strength 0 changes nothing.

    Brightness, contrast, saturation and a cast of colour are one linear map of the pixel values.
    """
    colour, blur, noise = rng.random(3)
    gain, contrast, saturation = np.exp(rng.uniform(-0.4, 0.4, 3) * strength)
    cast = np.exp(rng.normal(0.0, 0.06 * strength, 3))
    sigma, level = rng.uniform(0.3, 1.2), rng.uniform(1.0, 8.0) * strength
    out = crop
    if colour < 0.7 * min(strength, 1.0):
        mix = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
        mix = (gain * contrast * cast)[:, None] * mix
        offset = float(crop.mean()) * gain * (1 - contrast)
        out = np.asarray(cv2.transform(out, np.column_stack((mix, np.full(3, offset)))), np.uint8)
    if blur < 0.15 * min(strength, 1.0):
        out = np.asarray(cv2.GaussianBlur(out, (0, 0), sigma), np.uint8)
    if noise < 0.25 * min(strength, 1.0):
        grain = rng.normal(0.0, level, out.shape).astype(np.float32)
        out = np.clip(out + grain, 0, 255).round().astype(np.uint8)
    return out


def _square(pixels: Pixels, size: int) -> Pixels:
    shrinks = min(pixels.shape[:2]) >= size
    filtered = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    resized = np.asarray(filtered, np.uint8).reshape(size, size, -1)
    return np.repeat(resized, 3, axis=2) if resized.shape[2] == 1 else resized


def _tensor(crops: Sequence[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()

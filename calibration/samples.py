"""Pictures to train on, as the encoder takes them: regions of good images, and labelled images of an auxiliary set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calibration.datasets import NormalImages
from calibration.errors import DataError
from calibration.sets import Dataset, Item, read_mask
from calibration.sets.masks import resize_mask
from calibration.visualad import Labelled
from pipelines.encoders import Encoder
from pipelines.images import PixelFormat, read_image
from pipelines.pipeline import Pipeline
from pipelines.preprocess import Preprocess


class NormalSamples:
    """Regions of good images: R of the first image, then R of the second, ..."""

    def __init__(self, pipeline: Pipeline, images: NormalImages, indices: Sequence[int]) -> None:
        self._pipeline, self._images, self._indices = pipeline, images, tuple(indices)
        self._regions = len(pipeline.config.region_names)
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._indices) * self._regions

    def images(self, numbers: Sequence[int]) -> Tensor:
        """Float32 [len(numbers), 3, H, W], normalised. Raises `ImageError` where a file went bad meanwhile."""
        return torch.stack([self._regions_of(number // self._regions)[number % self._regions] for number in numbers])

    def _regions_of(self, place: int) -> Tensor:
        if self._last is None or self._last[0] != place:
            frame = torch.from_numpy(self._images.read(self._indices[place]))[None]
            with torch.no_grad():
                self._last = place, self._pipeline.preprocess(frame).cpu()
        return self._last[1]


class AuxiliarySamples:
    """Labelled images with masks, of any products, sizes and pixel formats, each as a whole.

    `unseen` are good images of the set that are not trained on (its training images), `good` those that are.
    """

    def __init__(self, dataset: Dataset, encoder: Encoder, size: tuple[int, int] = (0, 0)) -> None:
        """`size`, the height and width of the pictures, may be set later as `size`.

        Raises `DataError` where the set has no defective image with a mask, or no good one.
        """
        self._encoder, self.size = encoder, size
        items = [item for one in dataset.classes for item in one.test]
        self.items: tuple[Item, ...] = tuple(item for item in items if not item.defective or item.mask is not None)
        self.unmasked = len(items) - len(self.items)
        self.unseen: tuple[Path, ...] = tuple(path for one in dataset.classes for path in one.train)
        self.good: tuple[Path, ...] = tuple(item.path for item in self.items if not item.defective)
        defective = len(self.items) - len(self.good)
        if not defective or not self.good:
            raise DataError(
                f"{dataset.path}: visualad learns from good images and from defective ones with masks; of {len(items)} "
                f"labelled images here {len(self.good)} are good and {defective} are defective with a mask"
            )
        self._preprocess: dict[PixelFormat, Preprocess] = {}
        hasher = hashlib.sha256()
        for path in [path for item in self.items for path in (item.path, item.mask) if path is not None]:
            hasher.update(f"{path}\0{path.stat().st_size if path.is_file() else -1}\0".encode())
        self.fingerprint = hasher.hexdigest()
        """Hash of the files' paths and sizes."""

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, numbers: Sequence[int]) -> Labelled:
        """The pictures of `numbers`. Raises `ImageError` or `DataError` naming a file that cannot be used."""
        images, masks = zip(*(self._read(self.items[number]) for number in numbers), strict=True)
        labels = [float(self.items[number].defective) for number in numbers]
        return Labelled(torch.stack(images), torch.stack(masks), torch.tensor(labels))

    def _read(self, item: Item) -> tuple[Tensor, Tensor]:
        image = read_image(item.path)
        preprocess = self._preprocess.get(image.pixel_format)
        if preprocess is None:
            encoder = self._encoder
            preprocess = Preprocess(image.pixel_format, self.size, encoder.mean, encoder.std, None, ())
            self._preprocess[image.pixel_format] = preprocess
        with torch.no_grad():
            picture = preprocess(torch.from_numpy(image.pixels)[None])[0]
        mask = np.zeros(self.size, bool)
        if item.mask is not None:
            height, width = image.pixels.shape[:2]
            mask = resize_mask(read_mask(item.mask, (height, width), item.path), self.size)
        return picture, torch.from_numpy(mask).float()


def join_images(folders: Sequence[NormalImages]) -> NormalImages:
    """Good images of several folders (classes) as one; gray classes become colour where others are.

    Raises `DataError` where pixel formats differ otherwise.
    """
    if len(folders) == 1:
        return folders[0]
    formats = {images.pixel_format for images in folders}
    if len(formats) == 2 and PixelFormat.MONO8 in formats and max(form.channels for form in formats) == 3:
        formats.remove(PixelFormat.MONO8)
    if len(formats) > 1:
        listed = ", ".join(f"{images.paths[0].parent}: {images.pixel_format.value}" for images in folders)
        raise DataError(f"the folders hold images of different pixel formats ({listed}); a bundle takes those of one")
    frames = {images.frame for images in folders}
    hasher = hashlib.sha256("".join(images.fingerprint for images in folders).encode())
    return NormalImages(
        tuple(path for images in folders for path in images.paths),
        formats.pop(),
        frames.pop() if len(frames) == 1 else None,
        tuple(line for images in folders for line in images.skipped),
        hasher.hexdigest(),
        float(np.median([images.aspect for images in folders for _ in images.paths])),
    )

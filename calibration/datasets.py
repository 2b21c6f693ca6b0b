"""Folders of good images, checked before hours of work depend on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from pipelines.errors import ImageError
from pipelines.images import PixelFormat, list_images, read_image

Progress = Callable[[int, int], None]
"""progress(done, total)"""


@dataclass(frozen=True)
class NormalImages:
    """Images of good parts: all decode, all have one pixel format, none is there twice.

    `frame` is their (height, width) where all have one, else None. `fingerprint` is a hash over the decoded pixels of
    all of them, so it does not change when files are moved or renamed.
    """

    paths: tuple[Path, ...]
    pixel_format: PixelFormat
    frame: tuple[int, int] | None
    skipped: tuple[str, ...]  # what was left out, and why
    fingerprint: str
    aspect: float = 1.0  # median height / width

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels uint8 [H, W, C] of image `index`. Raises `ImageError` where the file went bad meanwhile."""
        return in_format(read_image(self.paths[index]).pixels, self.pixel_format)

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """The images of `indices`, one at a time."""
        for index in indices:
            yield self.read(index)


def in_format(pixels: NDArray[np.uint8], wanted: PixelFormat) -> NDArray[np.uint8]:
    """Pixels of a file, gray [H, W, 1] or BGR [H, W, 3], as frames of a `wanted` format with as many channels or more.

    Gray becomes colour without loss; one channel of a Bayer or gray format is taken as it is.
    """
    if pixels.shape[2] == 1 and wanted.channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., ::-1]) if wanted is PixelFormat.RGB8 else pixels


def load_normals(
    folder: Path,
    skip_bad: bool = False,
    pixel_format: PixelFormat | None = None,
    progress: Progress | None = None,
    take: int | None = None,
    seed: int = 0,
) -> NormalImages:
    """Finds and checks the images of good parts below `folder`.

    `pixel_format` says what the files' samples are where the file cannot tell: gray files of a Bayer camera.
    Copies of an image are used once and named in `skipped`. `skip_bad` leaves out files that do not decode. `take`
    draws so many of the files by `seed`; the others are not read.

    Raises `ImageError` for a missing or empty folder, `DataError` for files that do not decode (all are named), for
    gray and colour images in one folder, and where there are fewer than `take`.
    """
    listed = list_images(folder)
    if take is not None:
        if take > len(listed):
            raise DataError(f"{folder}: {take} images are asked for, there are {len(listed)}")
        drawn = np.random.default_rng([seed, 0x7A4E]).permutation(len(listed))[:take]
        listed = [listed[i] for i in sorted(map(int, drawn))]
    return load_files(listed, str(folder), skip_bad, pixel_format, progress)


def load_files(
    listed: Sequence[Path],
    where: str,
    skip_bad: bool = False,
    pixel_format: PixelFormat | None = None,
    progress: Progress | None = None,
) -> NormalImages:
    """Checks image files as `load_normals` does those of a folder; `where` names them in errors."""
    bad: list[str] = []
    skipped: list[str] = []
    seen: dict[bytes, Path] = {}
    by_format: dict[PixelFormat, list[Path]] = {}
    sizes: set[tuple[int, int]] = set()
    aspects: list[float] = []
    for done, path in enumerate(listed, start=1):
        try:
            image = read_image(path)
        except ImageError as error:
            bad.append(str(error))
        else:
            pixels = image.pixels
            digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
            if digest in seen:
                skipped.append(f"{path}: the same picture as {seen[digest]}; used once")
            else:
                seen[digest] = path
                by_format.setdefault(image.pixel_format, []).append(path)
                sizes.add((pixels.shape[0], pixels.shape[1]))
                aspects.append(pixels.shape[0] / pixels.shape[1])
        if progress is not None:
            progress(done, len(listed))
    if bad and not skip_bad:
        shown = "\n  ".join(bad[:10]) + (f"\n  and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise DataError(
            f"{len(bad)} of {len(listed)} images cannot be used; repair or remove them, or add --skip-bad:\n  {shown}"
        )
    if not seen:
        raise DataError(f"{where}: none of its {len(listed)} images can be used; the first says: {bad[0]}")
    if len(by_format) > 1:
        counts = ", ".join(f"{len(paths)} {kind.value} (such as {paths[0]})" for kind, paths in by_format.items())
        raise DataError(f"{where}: gray and colour images are mixed: {counts}; keep those of one camera")
    (found,) = by_format
    if pixel_format is not None and pixel_format.channels != found.channels:
        raise DataError(f"{where}: the images are {found.value}, which cannot be read as {pixel_format.value}")
    hasher = hashlib.sha256()
    for digest in sorted(seen):
        hasher.update(digest)
    return NormalImages(
        tuple(by_format[found]),
        pixel_format or found,
        sizes.pop() if len(sizes) == 1 else None,
        (*bad, *skipped),
        hasher.hexdigest(),
        float(np.median(aspects)),
    )


def split(count: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """(fit, held out): a seeded split of `count` images; both sides sorted, so that order of work is stable."""
    if not 0 <= held_out < count:
        raise DataError(f"{held_out} of {count} images cannot be held out; at least one is needed for the fit")
    order = np.random.default_rng([seed, 0x5B117]).permutation(count)
    held, fit = order[:held_out], order[held_out:]
    return sorted(map(int, fit)), sorted(map(int, held))

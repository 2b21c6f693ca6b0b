"""Looking at a student while it learns: held-out R2 of its predictions, and what a memory bank on its tokens is worth.

A probe set is a labelled set (see `calibration.sets`), or a folder of good images alone: then half of its test images
get a pasted strip (the scar of CutPaste), so no image of a set that results are reported on is needed to pick a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from calibration.distill.pictures import Pictures, centre_crops
from calibration.distill.student import Student
from calibration.distill.teachers import Teacher
from calibration.errors import DataError
from calibration.metrics import image_ranking
from calibration.sets import open_dataset
from calibration.synthesis import paste, sample
from pipelines.encoders import Encoder
from pipelines.images import list_images

FITTED, TESTED = 32, 64
"""Images of a probe set that fill the bank, and that are judged, at most."""

BANK, TOP = 5_000, 4
"""Patches in the bank, and patches averaged in an image's score."""

OPACITY = 0.3
"""Of pasted defects; opaque ones are found by any encoder and tell nothing."""

CHUNK = 8
Features = Callable[[Tensor], Tensor]
"""Images uint8 RGB [B, 3, S, S] -> patch features [B, N, D]."""


@dataclass(frozen=True)
class ProbeSet:
    """Images uint8 RGB [n, 3, S, S] that fill a bank, and images [m, 3, S, S] to judge with their labels."""

    name: str
    fitted: Tensor
    tested: Tensor
    defective: tuple[bool, ...]


def open_probe(path: Path, size: int, seed: int) -> ProbeSet:
    """Reads a probe set, its images at `size` x `size` px.

    Raises `DataError` or `ImageError` where the folder holds neither a labelled set nor enough good images.
    """
    rng = np.random.default_rng([seed, 0x9B0B])
    try:
        classes = open_dataset(path).classes
    except DataError:
        classes = ()
    tests = [item for one in classes for item in one.test]
    if any(item.defective for item in tests):
        fit = [p for one in classes for p in one.train]
        good = [item.path for item in tests if not item.defective]
        if not fit:
            good, fit = good[1::2], good[::2]
        bad = [item.path for item in tests if item.defective]
        good, bad = _some(rng, good, TESTED // 2), _some(rng, bad, TESTED // 2)
        tested = list(_squares([*good, *bad], size))
        labels = [False] * len(good) + [True] * len(bad)
    else:
        paths = _some(rng, list_images(path), FITTED + TESTED)
        cut = min(FITTED, len(paths) // 2)
        fit, rest = paths[:cut], list(_squares(paths[cut:], size))
        labels = [number % 2 == 1 for number in range(len(rest))]
        tested = [_scarred(one, rng) if label else one for one, label in zip(rest, labels, strict=True)]
    if not fit or len(set(labels)) < 2:
        raise DataError(f"--probe {path}: give a labelled set, or a folder of at least 4 good images")
    fitted = list(_squares(_some(rng, fit, FITTED), size))
    return ProbeSet(path.name, torch.stack(fitted), torch.stack(tested), tuple(labels))


def bank_auroc(features: Features, probe: ProbeSet, seed: int = 0) -> float:
    """Image AUROC of a memory bank: cosine distance to the nearest of `BANK` patches, mean of the `TOP` largest."""
    bank = torch.cat([F.normalize(features(chunk).float(), dim=-1).flatten(0, 1) for chunk in _chunks(probe.fitted)])
    order = np.random.default_rng([seed, 0xBA2C]).permutation(len(bank))[:BANK]
    bank = bank[torch.from_numpy(np.sort(order)).to(bank.device)].T.contiguous()
    scores: list[float] = []
    for chunk in _chunks(probe.tested):
        near = (F.normalize(features(chunk).float(), dim=-1) @ bank).amax(-1)
        scores += (1.0 - near).topk(TOP, dim=1).values.mean(1).tolist()
    return image_ranking(probe.defective, scores).auroc


def block_features(encoder: Encoder, block: int) -> Features:
    """Normed patch tokens of one block of an encoder."""
    device = encoder.cls_token.device
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (encoder.mean, encoder.std))

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            (tap,) = encoder.taps((images.to(device).float() / 255.0 - mean) / std, (block,))
            normed: Tensor = encoder.norm(tap)
        return normed

    return features


@torch.no_grad()
def held_out_r2(student: Student, teacher: Teacher, pictures: Pictures, size: int) -> list[float]:
    """R2 of the student's predictions of each tap on centre crops: 1 - squared error / variance, over all channels.

    Values are standardised, so each channel counts alike; the variance is that about the channel's mean on these crops.
    """
    device = student.mean.device
    errors = [0.0] * len(student.taps)
    counts = [0] * len(student.taps)
    sums: list[Tensor | None] = [None] * len(student.taps)
    squares = [0.0] * len(student.taps)
    for chunk in _chunks(centre_crops(pictures, size)):
        images = chunk.to(device)
        predicted = student.predict(student.tokens(images))
        for number, wanted in enumerate(student.targets(teacher, images)):
            rows = wanted.flatten(0, 1).double()
            errors[number] += float((predicted[number].flatten(0, 1).double() - rows).square().sum())
            squares[number] += float(rows.square().sum())
            total = sums[number]
            sums[number] = rows.sum(0) if total is None else total + rows.sum(0)
            counts[number] += len(rows)
    found = []
    for error, square, total, count in zip(errors, squares, sums, counts, strict=True):
        assert total is not None
        found.append(1.0 - error / max(square - float(total.square().sum()) / count, 1e-12))
    return found


def _chunks(images: Tensor) -> Iterator[Tensor]:
    return (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))


def _some(rng: np.random.Generator, paths: Sequence[Path], most: int) -> list[Path]:
    return [paths[i] for i in sorted(rng.permutation(len(paths))[:most])]


def _squares(paths: Sequence[Path], size: int) -> Tensor:
    """Whole images squeezed to a square: uint8 [n, 3, size, size]."""
    return centre_crops(Pictures(paths, size), size, squeeze=True)


def _scarred(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A copy of uint8 [3, S, S] with a pasted strip, half transparent."""
    mask = np.ones(tuple(image.shape[1:]), np.uint8)
    clean = image.float() / 255.0
    pasted = torch.lerp(clean, paste(clean, sample(rng, mask, scar=True)), OPACITY)
    return (pasted * 255.0).round_().clamp_(0, 255).to(torch.uint8)

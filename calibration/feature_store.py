"""Features of a frozen encoder, computed once and kept: in memory, or in mapped files where they are many.

Files hold a fixed number of samples each and are written whole or not at all, so an interrupted computation goes on
where it stopped, and several processes share the work. Kept values are those the encoder gave, unrounded.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from calibration.checkpoints import StateFolder
from calibration.errors import FitError
from calibration.workers import Workers

CHUNK = 32
"""Samples per file."""

IN_MEMORY_BYTES = 2 << 30
"""Features up to this size are held in memory, larger ones are read from their files as they are needed."""

SPARE_BYTES = 256 << 20
"""Left free on the disk."""

Compute = Callable[[Sequence[int]], Tensor]
"""compute(numbers of samples) -> their features [n, ...], on any device"""
Report = Callable[[str, int, int, str], None]


class FeatureStore:
    """Features [...] of samples 0 .. n - 1, by number."""

    def __init__(self, chunks: Sequence[Tensor], mapped: bool) -> None:
        self._chunks, self.mapped = list(chunks), mapped
        self._each = len(self._chunks[0])

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self._chunks)

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """Features [len(numbers), ...] in the order asked, on the CPU."""
        return torch.stack([self._chunks[number // self._each][number % self._each] for number in numbers])

    @classmethod
    def compute(
        cls,
        samples: int,
        compute: Compute,
        state: StateFolder | None,
        report: Report,
        workers: Workers | None = None,
        memory_bytes: int = IN_MEMORY_BYTES,
        batch: int = 1,
    ) -> FeatureStore:
        """Features of all samples, `batch` at a time; complete files of an interrupted fit in `state` are used.

        Without `state` everything is held in memory. Raises `FitError` where the disk has no room, naming how much is
        needed, or a kept file is damaged.
        """
        workers = workers or Workers()
        if state is None and workers.count > 1:
            raise FitError("several processes need a folder for the features that they share")
        starts = range(0, samples, CHUNK)
        missing = [start for start in starts if state is None or not _file(state, start).exists()]
        mine = [missing[place] for place in workers.share(len(missing))]
        total, done = sum(min(CHUNK, samples - start) for start in mine), 0
        held: list[Tensor] = []
        for start in mine:
            found = []
            for first in range(start, min(start + CHUNK, samples), batch):
                numbers = range(first, min(first + batch, start + CHUNK, samples))
                with torch.no_grad():
                    found.append(compute(numbers).cpu())
                done += len(numbers)
                report("features", done, total, "")
            part = torch.cat(found)
            if state is None:
                held.append(part)
                continue
            if start == mine[0]:
                _check_room(state, part, CHUNK * len(missing))
            state.save(_name(start), {"features": part}, {})
        if state is None:
            return cls(held, False)
        workers.wait()
        chunks = [_open(_file(state, start)) for start in starts]
        size = sum(chunk.numel() * chunk.element_size() for chunk in chunks)
        mapped = size > memory_bytes
        return cls(chunks if mapped else [chunk.clone() for chunk in chunks], mapped)


def _name(start: int) -> str:
    return f"features-{start // CHUNK:05d}"


def _file(state: StateFolder, start: int) -> Path:
    return state.path / f"{_name(start)}.safetensors"


def _open(file: Path) -> Tensor:
    """The features of a file, mapped: pages are read when they are touched, and the system may drop them again."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            features: Tensor = opened.get_tensor("features")
    except (OSError, safetensors.SafetensorError) as error:
        raise FitError(f"{file}: damaged ({error}); start again without --resume") from error
    return features


def _check_room(state: StateFolder, part: Tensor, samples: int) -> None:
    each = math.prod(part.shape[1:]) * part.element_size()
    needed = each * samples + SPARE_BYTES
    free = shutil.disk_usage(state.path).free
    if free < needed:
        raise FitError(
            f"{state.path}: the encoder's features of {samples} pictures need {needed / 2**30:.1f} GiB here and "
            f"{free / 2**30:.1f} GiB are free; make room, choose another --out, or add --recompute-features"
        )

"""Noise and grain from which belts and surfaces are made. All of it repeats without a seam, so that it can be tiled."""

from __future__ import annotations

from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]
Scalar = TypeVar("Scalar", bound=np.generic)


def cloud(rng: np.random.Generator, shape: tuple[int, ...], size: float) -> Floats:
    """Soft periodic noise float32 [H, W] of zero mean and unit deviation, with blobs of about `size` pixels."""
    height, width = shape
    # Blurring a coarse grid and enlarging it costs the same for every size; a wide Gaussian on the full image does not.
    step = max(1, int(size / 3))
    rows, columns = max(4, -(-height // step)), max(4, -(-width // step))
    pad = min(9, rows, columns)
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    grid = np.pad(grid, pad, mode="wrap")
    grid = cv2.GaussianBlur(grid, (0, 0), max(0.6, size / step / 2)).astype(np.float32)
    if step > 1:
        grid = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    noise = grid[pad * step : pad * step + height, pad * step : pad * step + width]
    return _standardise(noise)


def brushed(rng: np.random.Generator, height: int, width: int, length: float, thickness: float = 0.6) -> Floats:
    """Streaks along x, float32 [height, width] of zero mean and unit deviation: brushed, rolled or ground metal."""
    total = np.zeros((height, width), np.float32)
    for share, part in ((1.0, 1.0), (0.7, 0.3), (0.35, 0.06)):
        run = max(3, int(length * part))
        pad = min(run, width)
        noise = rng.standard_normal((height, width)).astype(np.float32)
        noise = np.pad(noise, ((2, 2), (pad, pad)), mode="wrap")
        for _ in range(2):
            noise = cv2.blur(noise, (run, 1)).astype(np.float32)
        noise = cv2.GaussianBlur(noise, (0, 0), sigmaX=0.3, sigmaY=thickness).astype(np.float32)
        total += share * _standardise(noise[2:-2, pad : pad + width])
    return _standardise(total)


def belt(rng: np.random.Generator, height: int, width: int, unit: float, colour: tuple[int, int, int]) -> Bytes:
    """A matt conveyor belt, uint8 BGR [height, width, 3], periodic: weave, wear along the run, scuffs and dust.

    `unit` is the size in pixels of what is one pixel in a picture of 480 rows.
    """
    pitch = max(3.0, 4.6 * unit)
    turns_x, turns_y = max(1, round(width / pitch)), max(1, round(height / pitch))
    x = np.arange(width, dtype=np.float32) * np.float32(2 * np.pi * turns_x / width)
    y = np.arange(height, dtype=np.float32) * np.float32(2 * np.pi * turns_y / height)
    weave = np.sin(x)[None, :] * np.sin(y)[:, None]
    relief = 1.0 + 0.05 * cloud(rng, (height, width), 3 * unit)
    tone = (
        1.0
        + 0.05 * weave * relief
        + 0.035 * cloud(rng, (height, width), 1.2 * unit)
        + 0.030 * cloud(rng, (height, width), 70 * unit)
        + 0.030 * brushed(rng, height, width, 160 * unit, thickness=1.5 * unit)
    )
    scuffs = np.zeros((height, width), np.uint8)
    for _ in range(14):
        start = rng.uniform((0, 0), (width, height))
        step = rng.uniform((-60, -6), (60, 6)) * unit
        line = np.stack([start, start + step]).astype(np.int32)
        cv2.polylines(scuffs, [line], False, int(rng.integers(8, 30)), max(1, round(unit)), cv2.LINE_AA)
    dust = rng.uniform((0, 0), (width, height), (40, 2)).astype(np.int32)
    for px, py in dust:
        cv2.circle(scuffs, (int(px), int(py)), max(0, round(0.7 * unit)), int(rng.integers(25, 115)), -1, cv2.LINE_AA)
    tone = tone + cv2.GaussianBlur(scuffs, (0, 0), 0.6 * unit).astype(np.float32) / 255
    return to_bytes(tone[:, :, None] * np.array(colour, np.float32))


def tiled(patch: NDArray[Scalar], height: int, width: int) -> NDArray[Scalar]:
    """A periodic patch [h, w, ...] repeated to fill [height, width, ...]: fine grain need not be drawn all over."""
    rows, columns = -(-height // patch.shape[0]), -(-width // patch.shape[1])
    return np.tile(patch, (rows, columns) + (1,) * (patch.ndim - 2))[:height, :width]


def to_bytes(values: NDArray[np.floating]) -> Bytes:
    """Values rounded and clipped to uint8."""
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _standardise(noise: Floats) -> Floats:
    return np.asarray((noise - noise.mean()) / (noise.std() + 1e-6), np.float32)

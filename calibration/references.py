"""Reference frames of a bundle: good ones, and synthetic defects on both sides of the limit.

An engine must reproduce their scores before it may judge, so they should show it both verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.synthesis import paste, sample
from pipelines.images import PixelFormat
from pipelines.pipeline import Pipeline

Frame = NDArray[np.uint8]

MAX_BYTES = 64 << 20
NORMAL, DEFECTIVE = 4, 4
ATTEMPTS = 4


def altered(frame: Frame, rng: np.random.Generator, bayer: bool) -> Frame:
    """The same good part as the camera might have seen it a moment later: shifted, brighter or darker, noisy.

    Shift by up to 1 percent of each side (an even number of pixels for a Bayer mosaic), gain within 3 percent, noise
    of one gray level. For limits where there are too few images to hold any out.
    """
    height, width = frame.shape[:2]
    reach = np.maximum(np.array((height, width)) // 100, 1)
    dy, dx = (int(rng.integers(-r, r + 1)) for r in reach)
    if bayer:
        dy, dx = dy // 2 * 2, dx // 2 * 2
    rows = np.clip(np.arange(height) + dy, 0, height - 1)
    cols = np.clip(np.arange(width) + dx, 0, width - 1)
    if bayer:  # stay on the mosaic's phase at the border
        rows, cols = rows // 2 * 2 + np.arange(height) % 2, cols // 2 * 2 + np.arange(width) % 2
        rows, cols = np.minimum(rows, height - 1), np.minimum(cols, width - 1)
    moved = frame[rows][:, cols].astype(np.float32)
    moved = moved * rng.uniform(0.97, 1.03) + rng.normal(0.0, 1.0, frame.shape).astype(np.float32)
    return np.clip(np.rint(moved), 0, 255).astype(np.uint8)


def with_defect(frame: Frame, pixel_format: PixelFormat, rng: np.random.Generator, strength: int) -> Frame:
    """`frame` with a synthetic defect: CutPaste at strength 0, an inverted block that grows with `strength` above."""
    height, width = frame.shape[:2]
    if strength == 0 and not pixel_format.is_bayer and min(height, width) > 2:
        picture = torch.from_numpy(frame.astype(np.float32) / 255.0).permute(2, 0, 1).expand(3, -1, -1)
        pasted = paste(picture, sample(rng, np.ones((height, width), np.uint8), scar=False))
        pasted = pasted[: frame.shape[2]] if frame.shape[2] == 3 else pasted.mean(0, keepdim=True)
        out: Frame = np.rint(pasted.permute(1, 2, 0).numpy() * 255.0).astype(np.uint8)
        return np.ascontiguousarray(out)
    share = min(0.15 * (1 + strength), 0.6)
    h, w = max(2, int(height * share)), max(2, int(width * share))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    out = frame.copy()
    block = out[top : top + h, left : left + w]
    checks = ((np.arange(h)[:, None] // 8 + np.arange(w)[None, :] // 8) % 2).astype(bool)[..., None]
    out[top : top + h, left : left + w] = np.where(checks, 255 - block, block)
    return out


def choose_references(
    pipeline: Pipeline, normals: Sequence[Frame], limits: NDArray[np.float64], seed: int
) -> list[Frame]:
    """Up to four of `normals` and as many with synthetic defects, within 64 MiB together (always one of each).

    Defects grow stronger until half of them exceed a limit [R], or cannot grow further.
    """
    each = max(1, MAX_BYTES // (2 * max(frame.nbytes for frame in normals)))
    good = list(normals[: min(NORMAL, each)])
    pixel_format = pipeline.config.pixel_format
    defective: list[Frame] = []
    wanted = min(DEFECTIVE, each)
    for number in range(wanted):
        source = normals[number % len(normals)]
        must_exceed = number >= wanted // 2
        for strength in range(ATTEMPTS):
            rng = np.random.default_rng([seed, 0x4EF, number, strength])
            frame = with_defect(source, pixel_format, rng, strength)
            with torch.inference_mode():
                scores = pipeline(torch.from_numpy(frame)[None])[0][0].numpy()
            if not must_exceed or bool((scores > limits).any()):
                break
        defective.append(frame)
    return good + defective

"""Filling a memory bank, and scoring each image by a bank without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from calibration.checkpoints import StateFolder
from calibration.datasets import NormalImages
from pipelines.heads.coreset import greedy_coreset
from pipelines.heads.memory_bank import MemoryBank
from pipelines.pipeline import Pipeline

CANDIDATES = 60_000
"""Patches the coreset is chosen among at most: its time grows with their number, its quality hardly does."""

CHUNK = 32
"""Images per file of kept features."""

Report = Callable[[str, int, int, str], None]


def features(
    pipeline: Pipeline, images: NormalImages, indices: Sequence[int], state: StateFolder | None, report: Report
) -> Tensor:
    """Patch features float16 [n, R, N, D] of the images of `indices`; taken from `state` as far as it holds them."""
    head = pipeline.head
    assert isinstance(head, MemoryBank)
    parts: list[Tensor] = []
    for start in range(0, len(indices), CHUNK):
        name, chunk = f"features-{start // CHUNK:04d}", indices[start : start + CHUNK]
        stored = state.load(name) if state is not None else None
        if stored is None:
            found = []
            for done, frame in enumerate(images.frames(chunk), start=start + 1):
                with torch.inference_mode():
                    pictures = pipeline.preprocess(torch.from_numpy(frame)[None].to(head.bank.device))
                    found.append(head.features(pipeline.encoder, pictures).half().cpu().clone())
                report("features", done, len(indices), "")
            part = torch.stack(found)
            if state is not None:
                state.save(name, {"features": part}, {})
        else:
            part = stored[0]["features"]
            report("features", start + len(chunk), len(indices), "")
        parts.append(part)
    return torch.cat(parts)


def fill(head: MemoryBank, kept: Tensor, keep: Tensor, seed: int, report: Report) -> Tensor:
    """Fills the bank with a coreset of `kept` [n, R, N, D]; returns the image number of each entry, int64 [size].

    Patches that bool `keep` [R, h, w] ignores are left out.
    """
    origin = torch.arange(kept.shape[0])[:, None, None].expand(kept.shape[:3])
    chosen = keep.cpu().flatten(1).expand(kept.shape[:3])
    patches, origin = kept[chosen], origin[chosen]
    if len(patches) > CANDIDATES:
        rng = np.random.default_rng([seed, 0xC0DE])
        some = torch.from_numpy(np.sort(rng.permutation(len(patches))[:CANDIDATES]))
        patches, origin = patches[some], origin[some]
    patches = patches.to(head.bank.device).float()
    picked = greedy_coreset(
        patches, head.bank.shape[0], seed=seed, progress=lambda done, total: report("coreset", done, total, "")
    )
    head.bank.copy_(patches[picked.to(patches.device)])
    return origin[picked.cpu()]


def leave_one_out(pipeline: Pipeline, kept: Tensor, origin: Tensor, report: Report) -> Tensor:
    """Raw scores float32 [n, R] of each image of `kept` [n, R, N, D], by the bank without that image's own patches.

    The bank is the one the bundle gets, so these scores are on its scale; they lie a little above those of new images.
    """
    head = pipeline.head
    assert isinstance(head, MemoryBank)
    whole = head.bank
    scores = []
    try:
        for number in range(kept.shape[0]):
            head.bank = whole[(origin != number).to(whole.device)]
            with torch.inference_mode():
                maps = head.distances(kept[number].to(whole.device).float()).reshape(1, kept.shape[1], *head.grid)
                scores.append(pipeline.scoring(maps, head)[0].cpu())
            report("leave-one-out scores", number + 1, kept.shape[0], "")
    finally:
        head.bank = whole
    return torch.cat(scores)

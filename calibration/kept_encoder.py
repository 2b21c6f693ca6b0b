"""The frozen encoder's features of pictures, kept on disk for all methods, seeds and numbers of shots that ask again.

Most of the time of an evaluation goes into an encoder that gives the same features each time. `KeptEncoder` stands in
for one and looks them up by the picture's content:

    <folder>/<encoder's id, 16 digits>/<height>x<width>/block<number>/<2 digits>/<digest of the picture>.npy

One file holds one block's raw patch tokens, float32 [N, D], unrounded, so what is computed from kept features equals
what is computed afresh. Files appear whole or not at all; several processes may share a folder. VisualAD runs tokens
of its own through the encoder and cannot use any of this.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calibration.errors import FitError
from pipelines.bundle import Bundle
from pipelines.encoders import Encoder
from pipelines.engines.base import map_shape
from pipelines.engines.frame import FrameSpec
from pipelines.engines.torch import TorchEngine
from pipelines.parity import check


def encoder_id(encoder: Encoder) -> str:
    """Content of an encoder: sha256 (hex) over the names and values of its weights."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        hasher.update(name.encode() + tensor.cpu().numpy().tobytes())
    return hasher.hexdigest()


class KeptEncoder(Encoder):
    """`encoder`, with the patch tokens of every picture that it has seen in `folder`.

    `hits` and `misses` count pictures that were looked up and computed.
    """

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        super().__init__(encoder.config)
        self.load_state_dict(encoder.state_dict())
        self.to(encoder.cls_token.device)
        self.folder = folder / encoder_id(encoder)[:16]
        self.hits = self.misses = 0

    def taps(self, images: Tensor, blocks: Sequence[int]) -> tuple[Tensor, ...]:
        """See `Encoder.taps`. Raises `FitError` where the folder cannot be written."""
        if images.dtype != torch.float32:
            return super().taps(images, blocks)
        self._check_blocks(blocks)
        rows = [self._one(image, blocks) for image in images]
        return tuple(torch.stack([row[place] for row in rows]).to(images.device) for place in range(len(blocks)))

    def _one(self, image: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Patch tokens [N, D] of one picture [3, H, W], block by block, on the CPU."""
        digest = hashlib.blake2b(image.cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()
        size = f"{image.shape[1]}x{image.shape[2]}"
        files = [self.folder / size / f"block{block:02d}" / digest[:2] / f"{digest}.npy" for block in blocks]
        tokens = (image.shape[1] // self.patch) * (image.shape[2] // self.patch)
        found = [_load(file, (tokens, self.width)) for file in files]
        kept = [tensor for tensor in found if tensor is not None]
        if len(kept) == len(files):
            self.hits += 1
            return kept
        self.misses += 1
        computed = [tap[0].cpu() for tap in super().taps(image[None], blocks)]
        for file, tensor in zip(files, computed, strict=True):
            _save(file, tensor)
        return computed


def _load(file: Path, shape: tuple[int, int]) -> Tensor | None:
    """The array of a file, or None where there is none or it is not what was written."""
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(array) if array.shape == shape and array.dtype == np.float32 else None


def _save(file: Path, tensor: Tensor) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as opened:
                np.save(opened, tensor.contiguous().numpy(), allow_pickle=False)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise FitError(
            f"{file.parent}: the encoder's features cannot be kept here ({error.strerror or error}); make room, choose "
            "another --keep-features, or leave it out"
        ) from error


class KeptTorchEngine(TorchEngine):
    """The torch engine around a `KeptEncoder`: equal scores, and times that say nothing of a line."""

    @property
    def description(self) -> str:
        """See `Engine.description`."""
        return f"{super().description}, encoder's features kept"


def open_with_kept_features(bundle: Bundle, folder: Path, threads: int | None) -> KeptTorchEngine:
    """The bundle's torch engine with the encoder's features in `folder`; passed through the parity gate as any other.

    Raises `ParityError` where it does not reproduce the bundle's reference frames.
    """
    pipeline = bundle.pipeline()
    pipeline.encoder = KeptEncoder(pipeline.encoder, folder)
    key = KeptTorchEngine.make_key(bundle, bundle.config, "fp32")
    shape = map_shape(bundle, bundle.config)
    engine = KeptTorchEngine(pipeline, key, FrameSpec.of(bundle.config), shape, threads)
    check(engine, bundle.reference(), bundle.limit).require()
    return engine

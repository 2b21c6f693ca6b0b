"""What a student learns from: dense features of a frozen network, on a grid that lines up with the student's patches.

Two kinds of teacher: one of our encoders (official DINO weights, for instance) and a convolutional network in any form
that OpenVINO reads. `open_teacher` tells them apart by the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from calibration.errors import FitError
from pipelines.encoders import Encoder, from_checkpoint

CNN_SUFFIXES = (".xml", ".onnx", ".tflite", ".pb", ".pdmodel")
ENCODER_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")


@dataclass(frozen=True)
class Tap:
    """One depth of a teacher: how it is called, its channels, and the side of one of its cells in image pixels."""

    name: str
    channels: int
    stride: int


class Teacher(Protocol):
    """A frozen network whose interior features are the targets."""

    name: str

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The depths that `features` gives, in its order."""
        ...

    def features(self, images: Tensor) -> list[Tensor]:
        """Images uint8 RGB [B, 3, H, W] -> float32 [B, C, H / stride, W / stride] for each tap.

        Cell (i, j) describes the pixels around ((i + 1/2) stride, (j + 1/2) stride). H and W are whole multiples of
        every stride. Tensors are on the device of the images.
        """
        ...


class EncoderTeacher:
    """One of our encoders. Images are resized so that one of its patches covers one patch of the student."""

    def __init__(self, encoder: Encoder, patch: int, blocks: Sequence[int] | None = None, name: str = "") -> None:
        """`patch`: side of the student's patches [px]; `blocks`: 1-based, by default half depth and the last.

        Raises `FitError` where the teacher has no such block.
        """
        self.name = name or encoder.config.name
        self.encoder = encoder.eval()
        self.blocks = tuple(blocks) if blocks else (max(1, encoder.depth // 2), encoder.depth)
        if not all(1 <= block <= encoder.depth for block in self.blocks):
            raise FitError(f"teacher {self.name}: it has blocks 1 to {encoder.depth}, not all of {self.blocks}")
        self._patch = patch
        self._mean = torch.tensor(encoder.mean).view(3, 1, 1)
        self._std = torch.tensor(encoder.std).view(3, 1, 1)

    @property
    def taps(self) -> tuple[Tap, ...]:
        """See `Teacher`."""
        return tuple(Tap(f"block {block}", self.encoder.width, self._patch) for block in self.blocks)

    def features(self, images: Tensor) -> list[Tensor]:
        """See `Teacher`. The final norm is applied: without it single channels dwarf all others in DINOv2."""
        rows, cols = images.shape[-2] // self._patch, images.shape[-1] // self._patch
        encoder, side = self.encoder, self.encoder.patch
        with torch.no_grad():
            pictures = images.float() / 255.0
            if side != self._patch:
                size = (rows * side, cols * side)
                pictures = F.interpolate(pictures, size=size, mode="bilinear", align_corners=False, antialias=True)
            pictures = (pictures - self._mean.to(pictures)) / self._std.to(pictures)
            found = encoder.taps(pictures.to(encoder.cls_token.dtype), self.blocks)
            return [encoder.norm(tap).float().transpose(1, 2).unflatten(2, (rows, cols)) for tap in found]


def open_teacher(file: Path, patch: int, taps: Sequence[str] = (), threads: int = 1, device: str = "cpu") -> Teacher:
    """The teacher in `file`: weights of one of our encoders, or a network for OpenVINO.

    `taps`: numbers of blocks for an encoder, names of interior outputs for a network; empty: the defaults.
    Raises `FitError` where the file is no teacher or lacks a tap, `WeightsError` where weights do not load.
    """
    if not file.exists():
        raise FitError(f"--teacher {file}: no such file")
    if file.suffix in CNN_SUFFIXES:
        from calibration.distill.cnn_teacher import CnnTeacher

        return CnnTeacher(file, taps, threads)
    if file.is_dir() or file.suffix in ENCODER_SUFFIXES:
        try:
            blocks = [int(tap) for tap in taps]
        except ValueError:
            raise FitError(f"--tap {', '.join(taps)}: an encoder's taps are numbers of blocks, such as 6") from None
        return EncoderTeacher(from_checkpoint(file).to(device), patch, blocks, name=file.stem)
    kinds = ", ".join((*ENCODER_SUFFIXES, *CNN_SUFFIXES))
    raise FitError(f"--teacher {file}: not a kind of file that holds a teacher ({kinds})")

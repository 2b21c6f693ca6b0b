"""What every head offers the pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from pipelines.encoders.vit import Encoder
from pipelines.errors import WeightsError
from pipelines.scoring import Kept

ConfigT = TypeVar("ConfigT")


class Head(nn.Module, ABC, Generic[ConfigT]):
    """Turns an encoder's tokens into one anomaly score per patch.

    A head is built for one encoder's width and depth and one patch grid (h, w) of the input. Its state dict holds only
    what is trained or calibrated; the encoder is passed in and stays frozen.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]]
    floor: float = 0.0
    """The lowest patch score possible; ignored patches show it in maps."""
    extra_tokens: int = 0
    """Tokens the head adds to the front of the encoder's sequence."""

    def __init__(
        self,
        config: ConfigT,
        *,
        width: int,
        depth: int,
        grid: tuple[int, int],
        patch: int,
        norm_eps: float = 1e-6,
    ) -> None:
        """`norm_eps` is that of the encoder's final norm, for heads that bring their own copy of it."""
        super().__init__()
        del norm_eps
        self.config = config
        self.width, self.depth, self.grid, self.patch = width, depth, grid, patch

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the encoder's input [px]."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    @abstractmethod
    def patch_scores(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> raw patch scores float32 [B, h, w], larger = more anomalous."""

    @abstractmethod
    def published_score(self, patch_map: Tensor, kept: Kept | None = None) -> Tensor:
        """The method's own image score: patch maps [B, h, w] -> float32 [B], of the patches that count."""

    def check_encoder(self, encoder: Encoder) -> None:
        """Raises `WeightsError` where the head was made for an encoder of another width, depth or patch."""
        for what in ("width", "depth", "patch"):
            mine, theirs = getattr(self, what), getattr(encoder, what)
            if mine != theirs:
                raise WeightsError(
                    f"this {self.name} head was made for an encoder of {what} {mine}, {encoder.config.name} has "
                    f"{theirs}; use the encoder it was trained with"
                )

    def to_grid(self, values: Tensor) -> Tensor:
        """Patch values [B, N] -> [B, h, w]."""
        return values.reshape(-1, *self.grid)

    @classmethod
    def from_published(cls, state: Mapping[str, Any], encoder: Encoder, grid: tuple[int, int]) -> Head[Any]:
        """The head of a published checkpoint, for the given encoder and patch grid. Raises `WeightsError`."""
        raise WeightsError(f"there are no published weights for {cls.name}; calibrate it on normal images")


def quarters(depth: int) -> tuple[int, int, int, int]:
    """1-based blocks at the four quarters of an encoder: 6, 12, 18, 24 of 24; 3, 6, 9, 12 of 12."""
    first, second, third, last = (max(1, round(depth * part / 4)) for part in (1, 2, 3, 4))
    return first, second, third, last


def fill_ignored(patch_map: Tensor, kept: Kept) -> Tensor:
    """Ignored patches get the lowest kept score of their map, so that smoothing carries nothing out of them."""
    lowest = torch.where(kept.mask, patch_map, float("inf")).amin(dim=(-2, -1), keepdim=True)
    return torch.where(kept.mask, patch_map, lowest)

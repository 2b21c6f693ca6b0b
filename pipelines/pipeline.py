"""The whole of scoring as one module: uint8 frames in, raw scores and patch maps out.

    pipeline = Pipeline(config)                 # weights are random or zero
    pipeline.load_state_dict(tensors)           # of a bundle
    scores, maps = pipeline(frames)             # uint8 [B, H, W, C] -> float32 [B, R], float32 [B, R, h, w]

One static graph per batch size: no control flow depends on data, so `torch.export` takes it as it is, and engines run
the same graph. Scores are raw: limits, percent and verdicts are made elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipelines.config import FoundADConfig, HeadConfig, PipelineConfig, ScoreRule
from pipelines.encoders.config import EncoderConfig
from pipelines.encoders.vit import Encoder
from pipelines.errors import InspectError
from pipelines.heads import HEADS, Head
from pipelines.precision import Float32Module
from pipelines.preprocess import Preprocess
from pipelines.regions import RegionsError
from pipelines.scoring import Kept, topk_mean

__all__ = ["HeadConfig", "Pipeline", "PipelineConfig", "ScoreRule", "Scoring"]


class Scoring(Float32Module):
    """Patch maps [B, R, h, w] -> scores [B, R] by one rule, and the maps with ignored patches at the floor."""

    keep: Tensor

    def __init__(self, config: PipelineConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.rule = config.score
        grids = [torch.from_numpy(region.keep_grid(grid)) for region in config.regions]
        keep = torch.stack(grids) if grids else torch.ones(1, *grid, dtype=torch.bool)
        self.register_buffer("keep", keep, False)
        self.counts: list[int] = keep.flatten(1).sum(1).tolist()
        self.all_kept = bool(keep.all())
        k = config.score.k
        if config.score.rule == "published" and isinstance(config.head, FoundADConfig):
            k = config.head.top_k
        elif config.score.rule == "published":
            k = 1
        for name, patches in zip(config.region_names, self.counts, strict=True):
            if k > patches:
                raise RegionsError(
                    f"region {name!r} has {patches} patches to judge, fewer than the {k} that Top-K averages; "
                    "choose a smaller K, smaller ignore areas or a larger input size"
                )

    def forward(self, maps: Tensor, head: Head[Any]) -> tuple[Tensor, Tensor]:
        """See the class. `head` gives its published rule and its floor."""
        if self.rule.rule == "topk":
            # Top-K of all regions at once; [R, h, w] broadcasts over the batch.
            scores = topk_mean(maps, self.rule.k, None if self.all_kept else self.keep)
        else:
            columns = [
                head.published_score(maps[:, r], None if self.all_kept else Kept(self.keep[r], count))
                for r, count in enumerate(self.counts)
            ]
            scores = torch.stack(columns, dim=1)
        return scores, maps if self.all_kept else torch.where(self.keep, maps, head.floor)


class Pipeline(nn.Module):
    """uint8 frames [B, H, W, C] -> (scores float32 [B, R], maps float32 [B, R, h, w]); see the module's text.

    `half()` halves the encoder and the head; resizing, distances and scoring stay in float32 and so do both outputs.
    The state dict holds `encoder.*` and `head.*` and nothing that the configuration already says.
    """

    def __init__(self, config: PipelineConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(EncoderConfig.from_dict(config.encoder))
        self.grid = self.encoder.check_size(*config.input_size)
        self.head: Head[Any] = HEADS[config.head.name](
            config.head,
            width=self.encoder.width,
            depth=self.encoder.depth,
            grid=self.grid,
            patch=self.encoder.patch,
            norm_eps=self.encoder.config.norm_eps,
        )
        self.preprocess = Preprocess(
            config.pixel_format,
            config.input_size,
            self.encoder.mean,
            self.encoder.std,
            config.frame,
            config.regions,
            config.resize,
            config.round_resize,
        )
        self.scoring = Scoring(config, self.grid)
        self.eval()

    @classmethod
    def from_config(
        cls, config: PipelineConfig, encoder: Encoder | None = None, head: Head[Any] | None = None
    ) -> Pipeline:
        """A pipeline around an encoder and a head that exist already (calibration); neither is copied.

        Raises `WeightsError` or `InspectError` where they do not belong to the configuration or to each other.
        """
        pipeline = cls(config)
        if encoder is not None:
            if encoder.config != pipeline.encoder.config:
                raise InspectError("the encoder is not the one of the configuration")
            pipeline.encoder = encoder
        if head is not None:
            head.check_encoder(pipeline.encoder)
            if head.config != config.head or head.grid != pipeline.grid:
                raise InspectError("the head is not the one of the configuration")
            pipeline.head = head
        return pipeline.eval()

    def prepare(self) -> Pipeline:
        """Makes the encoder's position tables of this input size ahead, so that an exported graph holds constants."""
        self.encoder.prepare(*self.config.input_size, extra=self.head.extra_tokens)
        return self

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """See the class. Raises `ImageError` for frames of another type, shape or size than the configuration's."""
        return self.judge(self.preprocess(frames))

    def judge(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The graph behind the preprocessing: normalised float32 [B * R, 3, S_h, S_w] -> what `forward` returns.

        An engine may run the two parts apart: the preprocessing in float32 for frames of any size, this one in half
        precision at its one size.
        """
        maps = self.head.patch_scores(self.encoder, images.to(self.encoder.cls_token.dtype)).float()
        maps = maps.reshape(-1, len(self.config.region_names), *self.grid)
        scores, maps = self.scoring(maps, self.head)
        return scores, maps

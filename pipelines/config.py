"""What a pipeline is made of, as data: the part of a bundle's manifest that says how pixels become scores.

JSON in, JSON out, nothing unknown accepted, and no torch here: a process that only reads manifests stays small.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.images import PixelFormat
from pipelines.regions import Region


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FoundADConfig(_Model):
    """FoundAD: a projector maps patch features onto the manifold of normal ones; the residual is the score."""

    name: Literal["foundad"] = "foundad"
    last: int = Field(default=3, ge=1, le=64, description="features of the n-th last block, final norm applied")
    embed: int = Field(default=384, ge=8, le=4096, description="width inside the projector")
    depth: int = Field(default=6, ge=1, le=64, description="blocks of the projector")
    heads: int = Field(default=12, ge=1, le=64, description="attention heads of the projector")
    position_table: bool = Field(default=False, description="learned positions added to the projector's input")
    feat_normed: bool = Field(default=False, description="features and projection L2-normalised before the residual")
    top_k: int = Field(default=10, ge=1, description="patches in the published image score (10 MVTec AD, 6 VisA)")


class MemoryBankConfig(_Model):
    """Memory bank of normal patch features; the distance to the nearest is the score. Nothing is trained."""

    name: Literal["memory_bank"] = "memory_bank"
    blocks: tuple[int, ...] = Field(default=(), description="1-based encoder blocks whose tokens are joined; () = last")
    normed: bool = Field(default=True, description="the encoder's final norm is applied to each block's tokens")
    distance: Literal["cosine", "euclidean"] = Field(default="cosine", description="cosine = 1 - cosine similarity")
    pool: int = Field(default=1, ge=1, le=7, description="side of the patch neighbourhood averaged; 1 = none; odd")
    size: int = Field(ge=1, le=1_000_000, description="features in the bank")
    published: Literal["top_1_percent", "max"] = Field(
        default="top_1_percent", description="image score: mean of the top 1 % (AnomalyDINO) or maximum (PatchCore)"
    )

    @model_validator(mode="after")
    def _odd(self) -> MemoryBankConfig:
        if self.pool % 2 == 0:
            raise ValueError("pool must be odd, so that a neighbourhood is centred on its patch")
        return self


class VisualADConfig(_Model):
    """VisualAD: learned anomaly and normal tokens run inside the frozen encoder; zero-shot."""

    name: Literal["visualad"] = "visualad"
    taps: tuple[int, ...] = Field(default=(), description="1-based encoder blocks that are scored; () = the quarters")
    anchors: int = Field(default=4, ge=1, le=64, description="anchor queries of the cross-attention")
    positions: int = Field(default=1536, ge=1, description="length of the cross-attention's position table")
    token_positions: bool = Field(
        default=False, description="the two tokens have stored position entries; false = the class token's entry"
    )


class ViTADConfig(_Model):
    """ViTAD: a decoder rebuilds the encoder's features from its last block; the cosine distance is the score."""

    name: Literal["vitad"] = "vitad"
    teachers: tuple[int, ...] = Field(default=(), description="1-based encoder blocks rebuilt; () = first 3 quarters")
    neck: int = Field(default=0, ge=0, description="1-based encoder block the decoder starts from; 0 = the last")
    heads: int = Field(default=6, ge=1, le=64, description="attention heads of the decoder")


HeadConfig = Annotated[
    FoundADConfig | MemoryBankConfig | VisualADConfig | ViTADConfig,
    Field(discriminator="name"),
]


class ScoreRule(_Model):
    """How a patch map becomes one score: the mean of the K largest patches, or the head's published rule."""

    rule: Literal["topk", "published"] = "topk"
    k: int = Field(default=10, ge=1, description="patches averaged by the topk rule")


class PipelineConfig(_Model):
    """Everything but the weights: `Pipeline(config)` builds the module, `load_state_dict` fills it."""

    encoder: dict[str, Any] = Field(description="EncoderConfig.to_dict() of the encoder")
    head: HeadConfig
    input_size: tuple[int, int] = Field(description="height, width [px] each region is resized to")
    pixel_format: PixelFormat
    frame: tuple[int, int] | None = Field(
        default=None, description="height, width [px] of every frame; none = frames of any size (then no regions)"
    )
    regions: tuple[Region, ...] = Field(default=(), description="() = the whole frame is one region named 'frame'")
    score: ScoreRule = ScoreRule()
    resize: Literal["bilinear", "bicubic"] = Field(default="bilinear", description="antialiased resize filter")
    round_resize: bool = Field(
        default=False, description="round to whole gray levels after each resize pass, as Pillow does (published code)"
    )

    @model_validator(mode="after")
    def _fits(self) -> PipelineConfig:
        if min(self.input_size) < 1 or (self.frame is not None and min(self.frame) < 1):
            raise ValueError("sizes are height, width of at least 1 px")
        if self.regions and self.frame is None:
            raise ValueError("regions need frames of one size; set frame")
        if len({region.name for region in self.regions}) != len(self.regions):
            raise ValueError("two regions have the same name; give each its own")
        if self.frame is not None:
            if self.pixel_format.is_bayer and (self.frame[0] % 2 or self.frame[1] % 2):
                raise ValueError("a Bayer frame has an even height and width")
            for region in self.regions:
                region.check_inside(self.frame)
        return self

    @property
    def region_names(self) -> tuple[str, ...]:
        """Names of the columns of scores, in order."""
        return tuple(region.name for region in self.regions) or ("frame",)

"""What the user of `calibrate fit` may choose, and the pipeline it makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from calibration.datasets import NormalImages
from calibration.errors import FitError
from calibration.foreground import Foreground
from calibration.foundad import TrainingOptions
from calibration.training import Precision
from pipelines.config import (
    FoundADConfig,
    HeadConfig,
    MemoryBankConfig,
    PipelineConfig,
    ScoreRule,
    VisualADConfig,
    ViTADConfig,
)
from pipelines.encoders import Encoder, compact, from_checkpoint
from pipelines.images import PixelFormat
from pipelines.pipeline import Pipeline
from pipelines.regions import Region, RegionsFile

Method = Literal["foundad", "memory_bank", "vitad", "visualad"]

DEFAULT_TOP_K: dict[Method, int] = {"memory_bank": 4, "foundad": 4, "vitad": 4, "visualad": 4}
DEFAULT_PIXELS = {"compact": 320}
PUBLISHED_PIXELS: dict[Method, int] = {"foundad": 512, "vitad": 256, "visualad": 518}


@dataclass(frozen=True)
class FitOptions:
    """Everything that decides what a fit gives. Defaults are explained and measured in docs/calibration.md.

    `encoder`: "compact" or a checkpoint. `size`: height and width of the input in pixels; None = by `default_size` (the
    area of 320 x 320 with the compact encoder). `top_k`: patches averaged in a score; None = the method's default.
    `block`: 1-based encoder block of the memory bank; None = the last but one. `foreground`: None = suggested from the
    images. `guarantee`: refuse where the images cannot promise the rate. `take`: use so many of the images, drawn by
    the seed (of each folder). `more_images`: further folders, such as one per class. `auxiliary`: the labelled set that
    visualad learns from. `features`: folder in which memory_bank and vitad keep the encoder's features for other fits
    and evaluations. `patience`: foundad and vitad stop after so many checks without a gain (`calibration.early_stop`);
    None = never. `steps`, `precision`, `keep_features`: of vitad and visualad; steps None = published epochs.
    """

    images: Path | None
    out: Path
    method: Method = "memory_bank"
    encoder: str = "compact"
    size: tuple[int, int] | None = None
    seed: int = 0
    rate: float = 0.01
    guarantee: bool = False
    held_out: int | None = None
    top_k: int | None = None
    regions: Path | None = None
    pixel_format: PixelFormat | None = None
    any_size: bool = False
    skip_bad: bool = False
    take: int | None = None
    resume: bool = False
    bank: int = 10_000
    block: int | None = None
    pool: int = 1
    embed: int | None = None
    foreground: Foreground | None = None
    device: str = "cpu"
    more_images: tuple[Path, ...] = ()
    auxiliary: Path | None = None
    steps: int | None = None
    patience: int | None = None
    precision: Precision = "fp32"
    keep_features: bool = True
    features: Path | None = None
    training: TrainingOptions = field(default_factory=TrainingOptions)


def load_encoder(name: str) -> Encoder:
    """The shipped compact encoder, or one from a checkpoint file. Raises `WeightsError`."""
    return compact() if name == "compact" else from_checkpoint(Path(name))


def make_pipeline(options: FitOptions, encoder: Encoder, images: NormalImages) -> Pipeline:
    """The pipeline to be fitted, regions and frame size resolved. Raises `InspectError` where options do not fit."""
    size = options.size or default_size(encoder, options.method, images.aspect if options.regions is None else 1.0)
    grid = encoder.check_size(*size)
    regions: tuple[Region, ...] = ()
    if options.regions is not None:
        if images.frame is None:
            raise FitError(
                f"{options.images}: regions need images of one size, these differ; take all of them with one camera"
            )
        regions = RegionsFile.load(options.regions).resolve(images.frame, grid)
    elif options.pixel_format is not None and options.pixel_format.is_bayer and images.frame is None:
        raise FitError(f"{options.images}: Bayer images must all have one size")
    config = PipelineConfig(
        encoder=encoder.config.to_dict(),
        head=head_config(options, encoder.width, encoder.depth),
        input_size=size,
        pixel_format=images.pixel_format,
        frame=None if options.any_size and not regions else images.frame,
        regions=regions,
        score=ScoreRule(k=options.top_k if options.top_k is not None else DEFAULT_TOP_K[options.method]),
    )
    return Pipeline.from_config(config, encoder=encoder)


def default_size(encoder: Encoder, method: Method, aspect: float) -> tuple[int, int]:
    """Input size where none is asked for: measured for the compact encoder, published for the others.

    Encoders with rotary positions take the shape of the images (`aspect` = height / width, 1/4 to 4) at the same area,
    once it is far from a square: squeezed parts hide their defects. Learned position tables stay square.
    """
    config = encoder.config
    side = DEFAULT_PIXELS.get(config.family, PUBLISHED_PIXELS.get(method) or config.native_size or 512)
    stretch = min(max(aspect, 0.25), 4.0) ** 0.5
    if config.rope_base is None or 2 / 3 <= aspect <= 3 / 2:
        stretch = 1.0
    patch = encoder.patch
    return max(1, round(side * stretch / patch)) * patch, max(1, round(side / stretch / patch)) * patch


def head_config(options: FitOptions, width: int, depth: int) -> HeadConfig:
    """The head for an encoder of `width` channels and `depth` blocks."""
    if options.method == "foundad":
        # The published projector is half as wide as ViT-B's tokens; narrower encoders keep the ratio, not the number.
        embed = options.embed or min(384, max(96, width // 2 // 12 * 12))
        return FoundADConfig(embed=embed, last=min(3, depth))
    if options.method == "vitad":
        # Heads as wide as the published ViT-S/16's; teachers and neck are the quarters of the encoder's depth.
        heads = max(heads for heads in range(1, max(1, width // 64) + 1) if width % heads == 0)
        return ViTADConfig(heads=heads)
    if options.method == "visualad":
        return VisualADConfig()
    block = options.block if options.block is not None else max(1, depth - 1)
    return MemoryBankConfig(blocks=(block,), normed=True, distance="cosine", pool=options.pool, size=options.bank)

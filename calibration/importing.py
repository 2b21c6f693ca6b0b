"""A published head becomes a bundle: its weights as they are, the limit from images of the line's own good parts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from calibration.datasets import load_normals
from calibration.errors import FitError, TooFewImages
from calibration.fit import FitSummary, Report, Say, check_new, write
from calibration.limit_scores import choose_limits, score_frames
from calibration.plan import Plan
from calibration.thresholds import Origin, images_for, percent, smallest_rate
from pipelines.images import PixelFormat
from pipelines.pipeline import Pipeline
from pipelines.published import PublishedKind, import_published
from pipelines.regions import RegionsFile


@dataclass(frozen=True)
class ImportOptions:
    """What decides an import. `encoder` None: the head's file holds the encoder too. `size` None: as published."""

    method: PublishedKind
    head: Path
    images: Path
    out: Path
    encoder: Path | None = None
    size: tuple[int, int] | None = None
    regions: Path | None = None
    pixel_format: PixelFormat | None = None
    any_size: bool = False
    skip_bad: bool = False
    rate: float = 0.01
    guarantee: bool = False
    seed: int = 0


def import_head(options: ImportOptions, report: Report, say: Say) -> FitSummary:
    """Reads the published weights, scores the images (none of which the head has seen) and writes the bundle.

    Raises `InspectError` for anything that stands in the way; nothing is written then.
    """
    started = time.monotonic()
    check_new(options.out)
    images = load_normals(
        options.images, options.skip_bad, options.pixel_format, lambda done, total: report("images", done, total, "")
    )
    for line in images.skipped:
        say(f"left out {line}")
    frame = None if options.any_size and options.regions is None else images.frame
    pipeline = import_published(
        options.method,
        options.head,
        options.encoder,
        input_size=options.size,
        pixel_format=images.pixel_format,
        frame=frame,
    )
    if options.regions is not None:
        if frame is None:
            raise FitError(f"{options.images}: regions need images of one size, these differ")
        regions = RegionsFile.load(options.regions).resolve(frame, pipeline.grid)
        config = pipeline.config.model_copy(update={"regions": regions})
        pipeline = Pipeline.from_config(config, encoder=pipeline.encoder, head=pipeline.head)
    pipeline.eval().requires_grad_(False)
    each = options.rate / len(pipeline.config.region_names)
    if options.guarantee and len(images) < images_for(each):
        raise TooFewImages(
            f"{len(images)} images cannot promise a false-reject rate of {percent(each)} per region: the smallest is "
            f"{percent(smallest_rate(len(images)))}; bring {images_for(each)}, or leave out --guarantee"
        )
    plan = Plan((), tuple(range(len(images))), Origin.HELD_OUT, each)
    say(f"{len(images)} good images, all of them new to the head, for the limit")
    scores = score_frames(pipeline, images, list(plan.held), report)
    choices = choose_limits(scores, plan, options.guarantee)
    provenance = {
        "made_by": "calibrate import",
        "method": options.method,
        "seed": options.seed,
        "head_file": options.head.name,
        "encoder_file": None if options.encoder is None else options.encoder.name,
    }
    bundle = write(options.out, pipeline, images, plan, choices, scores, options.rate, options.seed, provenance)
    seconds = time.monotonic() - started
    return FitSummary(bundle, options.method, options.rate, images, plan, choices, (), seconds)

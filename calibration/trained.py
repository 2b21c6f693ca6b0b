"""Fitting of ViTAD and VisualAD within `calibrate fit`: their schedules, their data, and what identifies a run."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import ceil
from typing import Any

import numpy as np

from calibration import visualad, vitad
from calibration.checkpoints import StateFolder
from calibration.datasets import NormalImages
from calibration.early_stop import EarlyStop, split_watched
from calibration.errors import DataError, FitError, TooFewImages
from calibration.options import FitOptions
from calibration.plan import Plan
from calibration.samples import AuxiliarySamples, NormalSamples
from calibration.sets import open_dataset
from calibration.thresholds import Choice, Origin, images_for, percent, smallest_rate
from calibration.training import Report, Schedule
from calibration.workers import Workers
from pipelines.encoders import Encoder
from pipelines.errors import ImageError
from pipelines.heads.visualad import VisualAD
from pipelines.heads.vitad import ViTAD
from pipelines.images import PixelFormat, read_image
from pipelines.pipeline import Pipeline

LIMIT_IMAGES = 256
"""Good images of an auxiliary set that a limit is chosen on at most, where the line gave none."""


def schedule_of(options: FitOptions, samples: int, epochs: float) -> Schedule:
    """Steps asked for, or as many as `epochs` rounds over the samples take."""
    training = options.training
    steps = options.steps if options.steps is not None else max(1, ceil(epochs * samples / training.batch))
    return Schedule(steps, training.batch, options.seed, options.precision, training.minutes)


def train_vitad(
    options: FitOptions,
    pipeline: Pipeline,
    images: NormalImages,
    plan: Plan,
    state: StateFolder,
    report: Report,
    workers: Workers,
    early: EarlyStop | None = None,
) -> list[float]:
    """Trains the pipeline's ViTAD head on the images of `plan.fit`, or those not watched; returns the losses."""
    assert isinstance(pipeline.head, ViTAD)
    train, watched = split_watched(plan.fit, options.seed) if early is not None else (plan.fit, ())
    samples = NormalSamples(pipeline, images, (*train, *watched))
    schedule = schedule_of(options, len(samples), vitad.EPOCHS)
    settings = vitad.ViTADOptions(keep_features=options.keep_features)
    last = len(watched) * len(samples) // len(plan.fit)  # regions of the watched images
    return vitad.train(
        pipeline.head, pipeline.encoder, samples, schedule, settings, state, report, workers, early, last
    )


def train_visualad(
    options: FitOptions,
    pipeline: Pipeline,
    auxiliary: AuxiliarySamples,
    state: StateFolder,
    report: Report,
    workers: Workers,
) -> list[float]:
    """Trains the pipeline's VisualAD head on the auxiliary set; returns the losses."""
    assert isinstance(pipeline.head, VisualAD)
    auxiliary.size = pipeline.config.input_size
    schedule = schedule_of(options, len(auxiliary), visualad.EPOCHS)
    settings = visualad.VisualADOptions()
    return visualad.train(pipeline.head, pipeline.encoder, auxiliary, schedule, settings, state, report, workers)


def settings_of(
    options: FitOptions, regions: int, plan: Plan, auxiliary: AuxiliarySamples | None
) -> dict[str, Any] | None:
    """What a resumed training must share with the interrupted one, and what the bundle tells of it."""
    if options.method == "vitad":
        schedule = schedule_of(options, len(plan.fit) * regions, vitad.EPOCHS)
        rates = asdict(vitad.ViTADOptions())
        rates = {key: rates[key] for key in ("rate", "weight_decay", "clip", "drop_at", "loss")}
        return {"steps": schedule.steps, "batch": schedule.batch, "precision": schedule.precision, **rates}
    if auxiliary is not None:
        schedule = schedule_of(options, len(auxiliary), visualad.EPOCHS)
        return {
            "steps": schedule.steps,
            "batch": schedule.batch,
            "precision": schedule.precision,
            "auxiliary": options.auxiliary.name if options.auxiliary is not None else "",
            "auxiliary_images": len(auxiliary),
            "auxiliary_fingerprint": auxiliary.fingerprint,
            **asdict(visualad.VisualADOptions()),
        }
    return None


def open_auxiliary(options: FitOptions, encoder: Encoder) -> AuxiliarySamples:
    """The labelled set that VisualAD learns from. Raises `FitError` where none is given, `DataError` for a bad one."""
    if options.auxiliary is None:
        raise FitError(
            "visualad learns from a labelled set of other products with masks of their defects: give it by --auxiliary "
            "(folders as in MVTec AD, VisA, BTAD, MPDD or Real-IAD)"
        )
    return AuxiliarySamples(open_dataset(options.auxiliary), encoder)


def auxiliary_normals(options: FitOptions, auxiliary: AuxiliarySamples) -> NormalImages:
    """Good images of the auxiliary set to choose a limit on: those not trained on, if there are any.

    Those of the pixel format asked for, or of the most frequent one. Raises `DataError` where there are none.
    """
    listed = auxiliary.unseen or auxiliary.good
    order = np.random.default_rng([options.seed, 0xA0C]).permutation(len(listed))[:LIMIT_IMAGES]
    found: dict[PixelFormat, list[int]] = {}
    hasher = hashlib.sha256()
    skipped: list[str] = []
    for number in sorted(map(int, order)):
        try:
            image = read_image(listed[number])
        except ImageError as error:
            if not options.skip_bad:
                raise DataError(f"{error}; or leave such files out with --skip-bad") from error
            skipped.append(str(error))
            continue
        found.setdefault(image.pixel_format, []).append(number)
        hasher.update(image.pixels.tobytes())
    wanted = options.pixel_format
    kinds = Counter({kind: len(numbers) for kind, numbers in found.items()})
    chosen = next((kind for kind, _ in kinds.most_common() if wanted is None or kind.channels == wanted.channels), None)
    if chosen is None:
        asked = f" that can be read as {wanted.value}" if wanted is not None else ""
        raise DataError(f"{options.auxiliary}: no good image{asked} to choose a limit on; give --images of the line")
    paths = tuple(listed[number] for number in found[chosen])
    return NormalImages(paths, wanted or chosen, None, tuple(skipped), hasher.hexdigest())


def unseen_plan(options: FitOptions, count: int, regions: int) -> Plan:
    """The plan of a head that was trained on none of the `count` images: all of them choose the limit."""
    each = options.rate / regions
    if options.guarantee and count < images_for(each):
        raise TooFewImages(
            f"{count} images cannot promise a false-reject rate of {percent(options.rate)}: that needs "
            f"{images_for(each)}, and the smallest rate they can promise is {percent(regions * smallest_rate(count))}; "
            "bring more, ask for a higher --false-reject-rate, or leave out --guarantee"
        )
    return Plan((), tuple(range(count)), Origin.HELD_OUT, each)


def without_promise(choices: Sequence[Choice], options: FitOptions, auxiliary: AuxiliarySamples) -> tuple[Choice, ...]:
    """The same limits, and in plain words that they were not chosen on the line's own parts."""
    seen = "" if auxiliary.unseen else ", which the training has seen"
    name = options.auxiliary.name if options.auxiliary is not None else "auxiliary"
    words = (
        f"No guarantee: the limit comes from {choices[0].scores} good images of the set {name}{seen}, not from parts "
        f"of this line, whose good parts may score higher or lower. Choose it again from good parts of the line "
        f"(--images) before {percent(options.rate)} of false rejects is relied on."
    )
    return tuple(replace(choice, guaranteed=False, words=words) for choice in choices)

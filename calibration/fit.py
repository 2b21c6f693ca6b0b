"""From a folder of good images to a bundle: data, head, limit, reference frames."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibration import foundad, memory_bank, trained
from calibration.checkpoints import StateFolder
from calibration.crops import Crops
from calibration.datasets import NormalImages, load_normals
from calibration.early_stop import EarlyStop, split_watched
from calibration.errors import FitError
from calibration.foreground import suggest_foreground
from calibration.kept_encoder import KeptEncoder, encoder_id
from calibration.limit_scores import choose_limits, score_frames, unseen
from calibration.options import FitOptions, load_encoder, make_pipeline
from calibration.plan import Plan, make_plan
from calibration.references import choose_references
from calibration.samples import AuxiliarySamples, join_images
from calibration.suspects import Suspect, among_fitted, warning
from calibration.thresholds import Choice, Origin, percent
from calibration.workers import Workers
from pipelines.bundle import Bundle, write_bundle
from pipelines.heads.foundad import FoundAD
from pipelines.heads.memory_bank import MemoryBank
from pipelines.heads.visualad import VisualAD
from pipelines.heads.vitad import ViTAD
from pipelines.manifest import Limit, RegionLimit
from pipelines.pipeline import Pipeline

Report = Callable[[str, int, int, str], None]
"""report(what, done, total, note)"""
Say = Callable[[str], None]
"""say(one line for people)"""


@dataclass(frozen=True)
class FitSummary:
    """What a fit did; JSON by `to_json`."""

    bundle: Bundle
    method: str
    rate: float
    images: NormalImages
    plan: Plan
    choices: tuple[Choice, ...]
    losses: tuple[float, ...]
    seconds: float
    suspects: tuple[Suspect, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "bundle": str(self.bundle.path),
            "id": self.bundle.id,
            "method": self.method,
            "images": len(self.images),
            "fitted": len(self.plan.fit),
            "held_out": len(self.plan.held),
            "skipped": list(self.images.skipped),
            "false_reject_rate": self.rate,
            "guaranteed": all(choice.guaranteed for choice in self.choices),
            "regions": [
                {"name": name, **asdict(choice), "origin": choice.origin.value}
                for name, choice in zip(self.bundle.config.region_names, self.choices, strict=True)
            ],
            "first_loss": float(np.mean(self.losses[:20])) if self.losses else None,
            "last_loss": float(np.mean(self.losses[-20:])) if self.losses else None,
            "suspects": [{"path": str(one.path), "percent": one.percent} for one in self.suspects],
            "steps": len(self.losses),
            "seconds": self.seconds,
        }


def fit(options: FitOptions, report: Report, say: Say) -> FitSummary:
    """Runs a fit from images to bundle.

    Raises `InspectError` (and its branches) for anything that stands in the way; nothing is written then except the
    state that `--resume` goes on from.
    """
    started = time.monotonic()
    check_new(options.out)
    workers = Workers.join(options.device)
    if workers.count > 1 and options.method not in ("vitad", "visualad"):
        raise FitError(f"{options.method} is fitted by one process; start this command without torchrun")
    if not workers.first:
        report, say = _silent, _mute
    encoder = load_encoder(options.encoder)
    if options.features is not None and options.method in ("memory_bank", "vitad"):
        # The others see altered pictures, or run tokens of their own through the encoder.
        encoder = KeptEncoder(encoder, options.features)
    auxiliary = trained.open_auxiliary(options, encoder) if options.method == "visualad" else None
    options, images = _images(options, auxiliary, report)
    for line in images.skipped:
        say(f"left out {line}")
    pipeline = make_pipeline(options, encoder, images)
    regions = len(pipeline.config.region_names)
    if auxiliary is not None:
        plan = trained.unseen_plan(options, len(images), regions)
        say(f"{len(auxiliary)} labelled images to learn from; {len(images)} good ones for the limit")
    else:
        trains = options.method != "memory_bank"
        plan = make_plan(len(images), options.rate, regions, options.seed, trains, options.held_out, options.guarantee)
        say(describe(images, plan))
    options, pipeline = _settle(options, pipeline, images, plan, say)
    training = _training(options, regions, plan, auxiliary)
    early = _early_stop(options, plan)
    state = StateFolder.beside(options.out, _identity(options, pipeline, images, plan, training))
    device = open_device(workers.device(options.device))
    if workers.first:
        if state.open(options.resume):
            say(f"going on from {state.path}")
        elif options.resume:
            say("there is no interrupted fit to go on from; starting from the beginning")
    workers.wait()
    alone, losses = _train(options, pipeline.to(device), images, plan, state, report, auxiliary, workers, early)
    pipeline.cpu().eval().requires_grad_(False)
    if alone is not None and plan.origin is Origin.CROSS:
        scores = alone
    else:
        scores = score_frames(pipeline, images, unseen(images, plan, options.seed), report)
    suspects = among_fitted(images, plan, alone, scores)
    if suspects:
        say(f"warning: {warning(suspects)}")
    choices = choose_limits(scores, plan, options.guarantee)
    if auxiliary is not None and options.images is None:
        choices = trained.without_promise(choices, options, auxiliary)
    provenance: dict[str, Any] = {"made_by": "calibrate fit", "method": options.method, "seed": options.seed}
    if training is not None:
        provenance["training"] = training
    if early is not None:
        say(f"stopped after step {len(losses)}; the weights are those of step {early.best_step}")
        provenance["early_stop"] = {**early.told(), "steps": len(losses)}
    if workers.first:
        write(options.out, pipeline, images, plan, choices, scores, options.rate, options.seed, provenance)
        state.remove()
    workers.wait()
    bundle = Bundle.open(options.out)
    seconds = time.monotonic() - started
    return FitSummary(bundle, options.method, options.rate, images, plan, choices, tuple(losses), seconds, suspects)


def _silent(what: str, done: int, total: int, note: str) -> None:
    """The report of a process that is not the first."""


def _mute(line: str) -> None:
    """What a process that is not the first says."""


def _images(options: FitOptions, auxiliary: AuxiliarySamples | None, report: Report) -> tuple[FitOptions, NormalImages]:
    """The good images of all folders given; for visualad without any, those of the auxiliary set."""
    if options.images is None:
        if auxiliary is None:
            raise FitError("no images to fit on; give a folder of good ones by --images")
        if options.guarantee or options.regions is not None:
            raise FitError("a guaranteed limit, and regions, need good parts of the line: give them by --images")
        return replace(options, any_size=True), trained.auxiliary_normals(options, auxiliary)
    folders = [
        load_normals(
            folder,
            options.skip_bad,
            options.pixel_format,
            lambda done, total: report("images", done, total, ""),
            options.take,
            options.seed,
        )
        for folder in (options.images, *options.more_images)
    ]
    return options, join_images(folders)


def _training(
    options: FitOptions, regions: int, plan: Plan, auxiliary: AuxiliarySamples | None
) -> dict[str, Any] | None:
    """How the head is trained, for the bundle; None where nothing is."""
    told: dict[str, Any] | None
    if options.method == "foundad":
        told = {**asdict(options.training), "foreground": options.training.foreground.value}
    else:
        told = trained.settings_of(options, regions, plan, auxiliary)
    return told if told is None or options.patience is None else {**told, "patience": options.patience}


def _early_stop(options: FitOptions, plan: Plan) -> EarlyStop | None:
    """The early stop asked for. Raises `FitError` where the method or the number of images allows none."""
    if options.patience is None:
        return None
    if options.method not in ("foundad", "vitad"):
        why = {"memory_bank": "is not trained", "visualad": "is trained for rounds over its auxiliary set"}
        raise FitError(f"--patience is for foundad and vitad; {options.method} {why[options.method]}")
    split_watched(plan.fit, options.seed)
    return EarlyStop(options.patience)


def check_new(out: Path) -> None:
    """Raises `FitError` where something is at `out` already."""
    if out.exists():
        raise FitError(f"{out}: exists already; bundles are never overwritten, choose another --out or remove it")


def open_device(name: str) -> torch.device:
    """A torch device by name ("cpu", "cuda", "cuda:1"). Raises `FitError` where there is none."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FitError(f"--device {name}: not usable here ({str(error).splitlines()[0]}); use --device cpu") from error
    return device


def describe(images: NormalImages, plan: Plan) -> str:
    """How the images are used, in words."""
    size = f"{images.frame[1]} x {images.frame[0]} px" if images.frame else "of several sizes"
    how = {
        Origin.HELD_OUT: f"{len(plan.fit)} for the fit, {len(plan.held)} held out for the limit",
        Origin.CROSS: "all for the fit, the limit by leaving one out",
        Origin.AUGMENTED: "all for the fit, the limit from altered copies of them",
    }[plan.origin]
    return f"{len(images)} good images ({images.pixel_format.value}, {size}): {how}"


def _settle(
    options: FitOptions, pipeline: Pipeline, images: NormalImages, plan: Plan, say: Say
) -> tuple[FitOptions, Pipeline]:
    """Fills in what depends on the images: the bank's size, or the foreground rule."""
    if options.method == "memory_bank":
        patches = int(pipeline.scoring.keep.sum()) * len(plan.fit)
        if options.bank <= patches:
            return options, pipeline
        config = pipeline.config
        head = config.head.model_copy(update={"size": patches})
        return options, Pipeline.from_config(config.model_copy(update={"head": head}), encoder=pipeline.encoder)
    if options.method != "foundad":
        return options, pipeline
    rule = options.foreground
    if rule is None:
        crops = Crops(pipeline)
        crops.extend(images.frames(plan.fit[:16]))
        rule = suggest_foreground([crops[i].permute(1, 2, 0).contiguous().numpy() for i in range(len(crops))])
        say(f"foreground for synthetic defects: {rule.value} (suggested by the images; --foreground overrides)")
    training = replace(options.training, foreground=rule, seed=options.seed)
    return replace(options, foreground=rule, training=training), pipeline


def _identity(
    options: FitOptions, pipeline: Pipeline, images: NormalImages, plan: Plan, training: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a resumed fit must share with the interrupted one. Threads and the time budget do not count."""
    told = None if training is None else {key: value for key, value in training.items() if key != "minutes"}
    return {
        "method": options.method,
        "seed": options.seed,
        "images": images.fingerprint,
        "paths": hashlib.sha256("\0".join(str(path) for path in images.paths).encode()).hexdigest(),
        "encoder": encoder_id(pipeline.encoder),
        "pipeline": pipeline.config.model_dump(mode="json"),
        "fit": list(plan.fit),
        "training": told,
    }


def _train(
    options: FitOptions,
    pipeline: Pipeline,
    images: NormalImages,
    plan: Plan,
    state: StateFolder,
    report: Report,
    auxiliary: AuxiliarySamples | None,
    workers: Workers,
    early: EarlyStop | None,
) -> tuple[NDArray[np.float64] | None, list[float]]:
    """Fits the head; returns scores [n, R] of the fitted images, each without itself, if that is cheap; and losses."""
    head = pipeline.head
    if isinstance(head, FoundAD):
        train, watched = split_watched(plan.fit, options.seed) if early is not None else (plan.fit, ())
        crops, others = Crops(pipeline), Crops(pipeline)
        for done, (number, frame) in enumerate(
            zip((*train, *watched), images.frames((*train, *watched)), strict=True), 1
        ):
            (others if number in watched else crops).extend([frame])
            report("crops", done, len(plan.fit), "")
        return None, foundad.train(head, pipeline.encoder, crops, options.training, state, report, early, others)
    if isinstance(head, VisualAD):
        assert auxiliary is not None
        return None, trained.train_visualad(options, pipeline, auxiliary, state, report, workers)
    if isinstance(head, ViTAD):
        return None, trained.train_vitad(options, pipeline, images, plan, state, report, workers, early)
    assert isinstance(head, MemoryBank)
    kept = memory_bank.features(pipeline, images, plan.fit, state, report)
    origin = memory_bank.fill(head, kept, pipeline.scoring.keep, options.seed, report)
    if plan.origin is Origin.AUGMENTED:
        return None, []
    return memory_bank.leave_one_out(pipeline, kept, origin, report).double().numpy(), []


def write(
    out: Path,
    pipeline: Pipeline,
    images: NormalImages,
    plan: Plan,
    choices: Sequence[Choice],
    scores: NDArray[np.float64],
    rate: float,
    seed: int,
    provenance: Mapping[str, Any],
) -> Bundle:
    """Writes the bundle with its limits, reference frames and `provenance`, to which data and limits are added."""
    config = pipeline.config
    limit = Limit(
        regions=tuple(
            RegionLimit(name=name, limit=choice.limit, floor=choice.floor)
            for name, choice in zip(config.region_names, choices, strict=True)
        ),
        method=choices[0].method,
        false_reject_rate=rate,
        n_normals=choices[0].scores,
        guarantee=guarantee_words(choices, rate),
        seed=seed,
    )
    pool = plan.held or plan.fit
    # Good reference frames spread over the scores seen, so that the gate is not tried on one kind only.
    order = np.argsort(scores[:, 0])[:: max(1, len(scores) // 4)] if len(scores) == len(pool) else np.arange(len(pool))
    normals = [images.read(pool[int(i)]) for i in order[:4]]
    limits = np.array([choice.limit for choice in choices])
    told = {
        **provenance,
        "encoder": config.encoder["name"],
        "encoder_id": encoder_id(pipeline.encoder),
        "images": len(images),
        "images_fingerprint": images.fingerprint,
        "fitted": len(plan.fit),
        "held_out": len(plan.held),
        "scores_for_the_limit": plan.origin.value,
        "limits": [{**asdict(choice), "origin": choice.origin.value} for choice in choices],
    }
    return write_bundle(out, pipeline, limit, choose_references(pipeline, normals, limits, seed), told)


def guarantee_words(choices: Sequence[Choice], rate: float) -> str:
    """The promise of all regions together, in words."""
    if len(choices) == 1:
        return choices[0].words
    share = percent(rate / len(choices))
    split = f"Each of {len(choices)} regions is given {share}, so that together they stay within {percent(rate)}. "
    return split + choices[0].words

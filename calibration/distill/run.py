"""A distillation from its settings to the encoder file: pictures, teacher, student, training, probes, card."""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibration.checkpoints import StateFolder
from calibration.distill.artifact import write_card, write_encoder, write_log
from calibration.distill.pictures import Pictures, find_pictures, views
from calibration.distill.probe import ProbeSet, bank_auroc, block_features, held_out_r2, open_probe
from calibration.distill.settings import DistillSettings
from calibration.distill.student import Student, fit_heads, standardise
from calibration.distill.teachers import Teacher, open_teacher
from calibration.distill.trainer import DistillTrainer
from calibration.errors import FitError
from calibration.training import Report, batch_numbers
from calibration.workers import Workers
from pipelines.encoders import Encoder, compact, from_checkpoint
from pipelines.encoders.dino import COMPACT

HEAD_BATCH = 8
"""Crops in one of the batches that the teacher is standardised on and the heads start from."""

_HEADS = 0x4EAD
_UNBOUND = ("hours", "resume", "threads", "device", "out")
"""Settings that may change from one run to the next that goes on from it."""


@dataclass(frozen=True)
class Distilled:
    """What came of a distillation."""

    out: Path
    card: dict[str, Any]
    finished: bool
    """False where it was stopped; the file holds the best so far."""


def distill(settings: DistillSettings, report: Report, say: Callable[[str], None]) -> Distilled:
    """Trains a compact encoder and writes it, its card (JSON) and its log (CSV).

    Interrupted by SIGINT or SIGTERM it finishes the step, saves, and writes the best encoder so far; the same settings
    with `resume` go on from there. Raises `InspectError` where something cannot be done.
    """
    workers = Workers.join(settings.device)
    device = torch.device(workers.device(settings.device))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    encoder = _encoder(settings).to(device)
    teacher = open_teacher(settings.teacher, encoder.patch, settings.taps, torch.get_num_threads(), str(device))
    train, held, skipped = find_pictures(
        settings.images,
        settings.held_out,
        max(settings.sizes),
        settings.seed,
        settings.skip_bad,
        lambda done, total: report("checking images", done, total, ""),
    )
    for line in skipped:
        say(f"left out: {line}")
    probes = [open_probe(path, settings.probe_size, settings.seed) for path in settings.probes]
    state = StateFolder(settings.out.with_name(f"{settings.out.name}.fit"), _identity(settings, train, teacher))
    found = state.open(settings.resume) if workers.first else settings.resume
    student = Student(encoder, teacher.taps, _blocks(settings, teacher, encoder), _probe_block(settings, encoder))
    trainer = DistillTrainer(student.to(device), teacher, train, settings, state, workers)
    if settings.resume and (not found or not trainer.restore()):
        say("nothing to go on from: starting anew")
        found = False
    if not (settings.resume and found):
        _start(trainer, teacher, train, settings, report)
    watch = _Watch(trainer, teacher, held, probes, settings, report, say)
    with _stop_signals(say) as stopped:
        if not trainer.records.get("rows"):
            with trainer.averaged():
                watch.look()
        finished = trainer.train(report, watch.look, stopped)
    card = _card(settings, teacher, trainer, train, held, finished)
    if workers.first:
        trainer.place_best()
        write_encoder(encoder, settings.out)
        write_card(settings.card, card)
        write_log(settings.log, trainer.records["rows"])
    workers.wait()
    if finished and workers.first:
        state.remove()
    return Distilled(settings.out, card, finished)


class _Watch:
    """Probes the student, logs, and remembers the best."""

    def __init__(
        self,
        trainer: DistillTrainer,
        teacher: Teacher,
        held: Pictures,
        probes: list[ProbeSet],
        settings: DistillSettings,
        report: Report,
        say: Callable[[str], None],
    ) -> None:
        self._trainer, self._teacher, self._held, self._probes = trainer, teacher, held, probes
        self._settings, self._report, self._say = settings, report, say

    def look(self) -> None:
        """Measures the student as it stands; its average weights are in place."""
        trainer, settings = self._trainer, self._settings
        student = trainer.module
        began = time.monotonic()
        row: dict[str, float | int | None] = {
            "step": trainer.step,
            "crops": trainer.crops,
            "hours": round(trainer.elapsed_s / 3600, 4),
            "rate": round(trainer.learning_rate, 7),
            "loss": round(sum(trainer.losses[-100:]) / max(1, len(trainer.losses[-100:])), 5),
        }
        if len(self._held):
            r2 = held_out_r2(student, self._teacher, self._held, settings.middle_size)
            row |= {f"r2 {tap.name}": round(value, 4) for tap, value in zip(student.taps, r2, strict=True)}
        features = block_features(student.encoder, student.relation_block)
        aurocs = [bank_auroc(features, probe, settings.seed) for probe in self._probes]
        row |= {f"auroc {probe.name}": round(value, 4) for probe, value in zip(self._probes, aurocs, strict=True)}
        # Without a probe set the held-out R2 picks the checkpoint.
        r2s = [value for name, value in row.items() if name.startswith("r2 ") and value is not None]
        judged = r2s if settings.pick == "r2" or not aurocs else aurocs
        score = sum(judged) / len(judged) if judged else None
        row["score"] = None if score is None else round(score, 4)
        rows = [*trainer.records.get("rows", []), row]
        best = trainer.records.get("best_score")
        if settings.pick == "last" or score is None or best is None or score > best:
            trainer.keep_best()
            trainer.records |= {"best_score": score, "best_step": trainer.step}
        trainer.records["rows"] = rows
        trainer.records["note"] = "" if score is None else f"probe {score:.3f}"
        if trainer.workers.first:
            write_log(settings.log, rows)
        shown = ", ".join(f"{name} {value}" for name, value in row.items())
        self._say(f"{shown} ({time.monotonic() - began:.0f} s)")


def _start(
    trainer: DistillTrainer, teacher: Teacher, train: Pictures, settings: DistillSettings, report: Report
) -> None:
    """Standardises the teacher and starts the heads at their least-squares solution."""

    def batches(what: str) -> Iterator[Tensor]:
        for number in range(settings.head_batches):
            chosen = batch_numbers(number, HEAD_BATCH, len(train), settings.seed)
            key = (settings.seed, _HEADS, number)
            yield views(train, chosen, key, settings.middle_size, 0.0).plain.to(trainer.device)
            report(what, number + 1, settings.head_batches, "")

    standardise(trainer.module, teacher, batches("standardising"))
    fit_heads(trainer.module, teacher, batches("fitting heads"))
    heads = [parameter.detach() for parameter in trainer.module.heads.parameters()]
    trainer.workers.sum(heads)  # one start for all, to the last bit
    for value in heads:
        value.div_(trainer.workers.count)
    trainer.average = {name: value.detach().clone() for name, value in trainer.parameters.items()}


def _encoder(settings: DistillSettings) -> Encoder:
    """The student's encoder. Raises `FitError` where the one to go on from is no compact encoder."""
    if settings.init is None:
        config = COMPACT.with_(
            name="",
            width=settings.width,
            depth=settings.depth,
            heads=settings.heads,
            hidden=4 * settings.width,
            patch=settings.patch,
        )
        other = f"compact_{settings.width}x{settings.depth}_patch{settings.patch}"
        name = "compact" if config.with_(name="compact") == COMPACT else other
        encoder = Encoder(config.with_(name=name)).init_weights(settings.seed)
        with torch.no_grad():  # residual branches start small, as in DINOv3
            for parameter in (value for name, value in encoder.named_parameters() if name.endswith("gamma")):
                parameter.fill_(0.1)
        return encoder
    encoder = compact() if settings.init == "compact" else from_checkpoint(Path(settings.init))
    if encoder.config.family != "compact":
        raise FitError(
            f"--init {settings.init}: {encoder.config.name} is not a compact encoder, and only those can go on"
        )
    return encoder


def _blocks(settings: DistillSettings, teacher: Teacher, encoder: Encoder) -> tuple[int, ...]:
    if not settings.blocks:
        return tuple(encoder.depth // 2 if tap.stride < encoder.patch else encoder.depth for tap in teacher.taps)
    if len(settings.blocks) != len(teacher.taps):
        raise FitError(f"--block: the teacher has {len(teacher.taps)} taps, not {len(settings.blocks)}")
    if not all(1 <= block <= encoder.depth for block in settings.blocks):
        raise FitError(f"--block: the student has blocks 1 to {encoder.depth}")
    return settings.blocks


def _probe_block(settings: DistillSettings, encoder: Encoder) -> int:
    block = settings.probe_block or max(1, encoder.depth - 1)
    if not 1 <= block <= encoder.depth:
        raise FitError(f"--probe-block {block}: the student has blocks 1 to {encoder.depth}")
    return block


def _identity(settings: DistillSettings, train: Pictures, teacher: Teacher) -> dict[str, Any]:
    plain = {key: _json(value) for key, value in asdict(settings).items() if key not in _UNBOUND}
    return {**plain, "pictures": train.fingerprint, "taps_found": [tap.name for tap in teacher.taps]}


def _json(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_json(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _card(
    settings: DistillSettings,
    teacher: Teacher,
    trainer: DistillTrainer,
    train: Pictures,
    held: Pictures,
    finished: bool,
) -> dict[str, Any]:
    student, records = trainer.module, trainer.records
    best = next((row for row in records["rows"] if row["step"] == records.get("best_step")), records["rows"][-1])
    return {
        "encoder": student.encoder.config.to_dict(),
        "teacher": {
            "name": teacher.name,
            "taps": [asdict(tap) for tap in teacher.taps],
            "shifts_px": list(getattr(teacher, "shifts", ())),
        },
        "student_blocks": list(student.blocks),
        "probe_block": student.relation_block,
        "images": {
            "folders": [folder.name for folder in settings.images],
            "trained": len(train),
            "held_out": len(held),
            "held_out_names": [path.name for path in held.paths],
        },
        "settings": {
            key: _json(value)
            for key, value in asdict(settings).items()
            if key not in ("teacher", "images", "out", "probes", "resume")
        },
        "finished": finished,
        "steps": trainer.step,
        "crops": trainer.crops,
        "hours": round(trainer.elapsed_s / 3600, 3),
        "processes": trainer.workers.count,
        "chosen": best,
        "software": {
            "torch": torch.__version__,
            "edge-inspect": version("edge-inspect"),
            "python": platform.python_version(),
        },
    }


@contextmanager
def _stop_signals(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within, SIGINT and SIGTERM only make the function that is given answer True; a second one ends at once."""
    caught: list[int] = []

    def handle(number: int, _: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        say("stopping after this step; once more to stop at once")

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)

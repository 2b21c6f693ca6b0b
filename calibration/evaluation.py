"""A whole evaluation: every class of a set by one bundle, or by bundles fitted on the way."""

from __future__ import annotations

import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from calibration.evaluate import Fingerprint, Judge, Report, evaluate_class, limited
from calibration.examples import Example, worst_examples
from calibration.kept_encoder import KeptTorchEngine, open_with_kept_features
from calibration.options import FitOptions
from calibration.per_class import PerClass, fitted_bundles, with_split
from calibration.results import ClassResult, Evaluation
from calibration.robustness import Robustness, sweep
from calibration.score import open_engine
from calibration.sets import ClassSet, Dataset
from pipelines.bundle import Bundle
from pipelines.engines import Engine

Say = Callable[[str], None]


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, and how.

    Either `bundle`, or `fit` with the options of a fit whose `images` and `out` are filled in per class. `shots`:
    images to fit on, chosen by seed; None = all. `joint`: one fit on all classes together. `keep`: folder in which the
    fitted bundles stay; `resume`: goes on from what it holds. `features`: folder of the encoder's features, shared by
    any number of evaluations; they are judged by torch then. `limit_images`: test images per class at most. `map_size`:
    side of the square to which maps and masks are brought for the pixel metrics; None = each image's own size.
    `examples`: worst cases per class and side that get pictures; 0 = none. `robustness`: images per class and label to
    alter; 0 = no robustness check.
    """

    bundle: Path | None = None
    fit: FitOptions | None = None
    shots: int | None = None
    joint: bool = False
    keep: Path | None = None
    resume: bool = False
    features: Path | None = None
    engine: str | None = None
    threads: int | None = None
    seed: int = 0
    limit_images: int | None = None
    map_size: int | None = None
    examples: int = 0
    robustness: int = 0


@dataclass(frozen=True)
class Run:
    """An evaluation with what only its report shows."""

    evaluation: Evaluation
    examples: tuple[Example, ...]
    robustness: tuple[Robustness, ...]


def evaluate(dataset: Dataset, options: EvaluateOptions, report: Report, say: Say) -> Run:
    """Evaluates all classes of `dataset`.

    Raises `InspectError` (and its branches) for anything that stands in the way; bundles fitted on the way are removed
    then, but for those in `keep`.
    """
    started, clock = datetime.now(timezone.utc), time.monotonic()
    classes = [with_split(one, options.seed) if options.fit is not None else one for one in dataset.classes]
    fingerprint = Fingerprint()
    results: list[ClassResult] = []
    examples: list[Example] = []
    robustness: list[Robustness] = []
    notes = list(dataset.notes)
    if options.fit is not None and options.fit.auxiliary is not None:
        one_limit = "; one limit for all classes" if len(classes) > 1 else ""
        notes.append(f"learned from {options.fit.auxiliary.name}, of this set only the limit{one_limit}")
    with _bundles(classes, options, report, say) as bundle_of:
        for one in classes:
            path, train = bundle_of(one)
            cut = limited(one, options.limit_images, options.seed)
            if len(cut.test) < len(one.test):
                notes.append(f"{one.name}: {len(cut.test)} of {len(one.test)} test images, chosen by seed")
            bundle = Bundle.open(path)
            with _open(bundle, options, say) as engine:
                judge = Judge(bundle, engine)
                if isinstance(engine, KeptTorchEngine):
                    notes.append(f"{one.name}: times are without the encoder, whose features were kept")
                found = evaluate_class(
                    cut, judge, dataset.path, options.seed, report, fingerprint, options.map_size, train
                )
                results.append(found)
                if options.examples:
                    examples += worst_examples(found, cut, judge, dataset.path, options.examples)
                if options.robustness:
                    robustness.append(sweep(cut, judge, options.robustness, options.seed, report))
    provenance = {
        "command": command(),
        "started_at": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 3),
        "seed": options.seed,
        "shots": options.shots,
        "joint": options.joint,
        "map_size": options.map_size,
        "data": str(dataset.path),
        "data_fingerprint": fingerprint.hexdigest(),
        "versions": versions(),
        "machine": f"{platform.machine()}, {_processor()}",
    }
    method = results[0].bundle["method"]
    evaluation = Evaluation(dataset.name, dataset.layout, method, tuple(results), provenance, tuple(notes))
    return Run(evaluation, tuple(examples), tuple(robustness))


@contextmanager
def _bundles(
    classes: Sequence[ClassSet], options: EvaluateOptions, report: Report, say: Say
) -> Iterator[Callable[[ClassSet], tuple[Path, int | None]]]:
    """Gives a function from a class to its bundle and the number of images it was fitted on here, if any."""
    if options.bundle is not None:
        fixed = options.bundle
        yield lambda one: (fixed, None)
        return
    assert options.fit is not None
    template = replace(options.fit, features=options.features)
    how = PerClass(template, options.seed, options.shots, options.joint, options.keep, options.resume)
    with fitted_bundles(classes, how, report, say) as bundle_of:
        yield bundle_of


def _open(bundle: Bundle, options: EvaluateOptions, say: Say) -> Engine:
    """The engine that judges: one around kept features where that is asked for and the method can use them."""
    if options.features is None or bundle.config.head.name == "visualad":
        return open_engine(bundle, options.engine, options.threads, say)
    return open_with_kept_features(bundle, options.features, options.threads)


def command() -> str:
    """The command as it was typed."""
    name = Path(sys.argv[0]).name
    return shlex.join(["calibrate" if name in ("cli.py", "__main__.py") else name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("edge-inspect", "torch", "openvino", "numpy", "opencv-python-headless"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"

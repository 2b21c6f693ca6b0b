"""A whole evaluation: every class of a set by one bundle, or by bundles fitted on the way."""

from __future__ import annotations

import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import numpy as np

from calibration.errors import DataError
from calibration.evaluate import Fingerprint, Judge, Report, evaluate_class, limited
from calibration.examples import Example, worst_examples
from calibration.fit import fit
from calibration.options import FitOptions
from calibration.results import ClassResult, Evaluation
from calibration.robustness import Robustness, sweep
from calibration.score import open_engine
from calibration.sets import ClassSet, Dataset
from pipelines.bundle import Bundle
from pipelines.images import read_image

Say = Callable[[str], None]

_DRAW = 0x7A4E  # the stream that `load_normals` draws by: one seed means the same images everywhere


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, and how.

    Either `bundle`, or `fit` with the options of a fit whose `images` and `out` are filled in per class. `shots`:
    images to fit on, chosen by seed; None = all. `joint`: one fit on all classes together. `keep`: folder in which the
    fitted bundles stay. `limit_images`: test images per class at most. `map_size`: side of the square to which maps and
    masks are brought for the pixel metrics; None = each image's own size. `examples`: worst cases per class and side
    that get pictures; 0 = none. `robustness`: images per class and label to alter; 0 = no robustness check.
    """

    bundle: Path | None = None
    fit: FitOptions | None = None
    shots: int | None = None
    joint: bool = False
    keep: Path | None = None
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
    classes = [_with_split(one, options.seed) if options.fit is not None else one for one in dataset.classes]
    fingerprint = Fingerprint()
    results: list[ClassResult] = []
    examples: list[Example] = []
    robustness: list[Robustness] = []
    notes = list(dataset.notes)
    with _bundles(classes, options, report, say) as bundle_of:
        for one in classes:
            path, train = bundle_of(one)
            cut = limited(one, options.limit_images, options.seed)
            if len(cut.test) < len(one.test):
                notes.append(f"{one.name}: {len(cut.test)} of {len(one.test)} test images, chosen by seed")
            bundle = Bundle.open(path)
            with open_engine(bundle, options.engine, options.threads, say) as engine:
                judge = Judge(bundle, engine)
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
    """Gives a function from a class to its bundle and the number of images it was fitted on."""
    if options.bundle is not None:
        fixed = options.bundle
        yield lambda one: (fixed, None)
        return
    assert options.fit is not None
    template = options.fit
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edge-inspect-evaluate-") as temporary:
        done: dict[str, tuple[Path, int]] = {}

        def bundle_of(one: ClassSet) -> tuple[Path, int]:
            name = "all classes" if options.joint else one.name
            if name not in done:
                chosen = classes if options.joint else [one]
                train = [path for each in chosen for path in shots_of(each, options.shots, options.seed)]
                out = (options.keep or Path(temporary)) / f"{name}.bundle".replace("/", "_")
                folder = Path(temporary) / f"{len(done)}.images"
                link(train, folder)
                any_size = template.any_size or not one_size(
                    [*train, *(item.path for each in chosen for item in each.test)]
                )
                filled = replace(template, images=folder, out=out, any_size=any_size)
                fit(filled, lambda what, *rest: report(f"{name}: {what}", *rest), say)
                done[name] = out, len(train)
            return done[name]

        yield bundle_of


def shots_of(one: ClassSet, shots: int | None, seed: int) -> list[Path]:
    """The images to fit on: all, or `shots` of them drawn by seed, those that `calibrate fit --take` draws of them.

    Fewer shots of one seed are among more. Raises `DataError` where there are not so many.
    """
    if not one.train:
        raise DataError(f"{one.name}: there are no images to fit on; add train/good, or evaluate a --bundle")
    train = sorted(one.train)
    if shots is None:
        return train
    if shots > len(train):
        raise DataError(f"{one.name}: {shots} shots asked, but there are only {len(train)} images to fit on")
    order = np.random.default_rng([seed, _DRAW]).permutation(len(train))
    return [train[i] for i in sorted(order[:shots])]


def _with_split(one: ClassSet, seed: int) -> ClassSet:
    """A class without images to fit on gets half of its good ones, chosen by seed; the test keeps the others."""
    if one.train or len(one.good) < 2:
        return one
    order = np.random.default_rng([seed, 0x5B117]).permutation(len(one.good))
    taken = {one.good[i].path for i in order[: len(one.good) // 2]}
    train = tuple(item.path for item in one.good if item.path in taken)
    return ClassSet(one.name, train, tuple(item for item in one.test if item.path not in taken))


def link(paths: Sequence[Path], folder: Path) -> None:
    """Makes a folder of links to `paths`, so that a fit sees these images and no others."""
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / f"{number:06d}-{path.name}").symlink_to(path.resolve())


def one_size(paths: Sequence[Path]) -> bool:
    """Whether all images have one size. Files that do not decode count as different: the fit will name them."""
    sizes = {read_image(path).pixels.shape[:2] for path in paths[:1]}
    for path in paths[1:]:
        sizes.add(read_image(path).pixels.shape[:2])
        if len(sizes) > 1:
            return False
    return True


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

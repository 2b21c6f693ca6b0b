"""Bundles fitted on the way of an evaluation: one per class, or one for all classes together."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from calibration.errors import DataError, FitError
from calibration.fit import Report, Say, check_new, fit
from calibration.kept_encoder import encoder_id
from calibration.options import FitOptions, load_encoder
from calibration.score import to_text, write_text
from calibration.sets import ClassSet
from calibration.sets.detect import open_dataset
from pipelines.images import read_image

_DRAW = 0x7A4E  # the stream that `load_normals` draws by: one seed means the same images everywhere

BundleOf = Callable[[ClassSet], tuple[Path, int]]
"""bundle_of(class) -> its bundle, and the number of images it was fitted on"""


@dataclass(frozen=True)
class PerClass:
    """How the bundles are fitted.

    `fit`: the options of a fit, whose `images` and `out` are filled in per class. `shots`: images to fit on, chosen by
    seed; None = all. `joint`: one fit on all classes together. `keep`: folder in which the bundles stay. `resume`:
    takes what `keep` holds of these very fits, finished or not.
    """

    fit: FitOptions
    seed: int = 0
    shots: int | None = None
    joint: bool = False
    keep: Path | None = None
    resume: bool = False


@contextmanager
def fitted_bundles(classes: Sequence[ClassSet], how: PerClass, report: Report, say: Say) -> Iterator[BundleOf]:
    """Gives a function from a class to its bundle; what is not kept goes away when this ends.

    VisualAD learns nothing of the classes, so it is trained once, and its limit is one for all of them.
    """
    if how.fit.method == "visualad":
        how = replace(how, joint=True)
        _check_auxiliary(how.fit, classes)
    with tempfile.TemporaryDirectory(prefix="edge-inspect-evaluate-") as temporary:
        home = how.keep or Path(temporary)
        _make(home)
        done: dict[str, tuple[Path, int]] = {}

        def bundle_of(one: ClassSet) -> tuple[Path, int]:
            name = "all classes" if how.joint and len(classes) > 1 else one.name
            if name not in done:
                chosen = classes if how.joint else [one]
                train = [path for each in chosen for path in shots_of(each, how.shots, how.seed)]
                tested = [item.path for each in chosen for item in each.test]
                stem = name.replace("/", "_")
                out = home / f"{stem}.bundle"
                options = replace(
                    how.fit,
                    images=home / f"{stem}.images",
                    out=out,
                    any_size=how.fit.any_size or not one_size([*train, *tested]),
                    resume=how.resume,
                )
                _fit(
                    options, train, home / f"{stem}.fit.json", lambda what, *rest: report(f"{name}: {what}", *rest), say
                )
                done[name] = out, len(train)
            return done[name]

        yield bundle_of


def _fit(options: FitOptions, train: Sequence[Path], notes: Path, report: Report, say: Say) -> None:
    """One fit on the images `train`. `notes` is a file that tells what the bundle is, for another run to resume."""
    made = _recipe(options, train)
    if options.resume and notes.exists():
        _compare(made, notes)
        if options.out.exists():
            say(f"{options.out}: fitted before")
            return
    check_new(options.out)
    write_text(notes, to_text(made))
    assert options.images is not None
    link(train, options.images)
    try:
        fit(options, report, say)
    finally:
        shutil.rmtree(options.images, ignore_errors=True)


def _recipe(options: FitOptions, train: Sequence[Path]) -> dict[str, Any]:
    """Everything that decides what a fit gives, as plain values."""
    told = asdict(options)
    for place in ("images", "out", "resume", "device", "features", "keep_features"):
        del told[place]
    hasher = hashlib.sha256()
    for path in train:
        hasher.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    told.update(encoder=encoder_id(load_encoder(options.encoder)), images_digest=hasher.hexdigest())
    plain: dict[str, Any] = json.loads(json.dumps(told, default=_plain))
    return plain


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else str(value)


def _compare(made: dict[str, Any], notes: Path) -> None:
    """Raises `FitError` where the fit that `notes` tells of was another one."""
    try:
        earlier = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FitError(f"{notes}: cannot be read ({error}); choose another --keep, or leave out --resume") from error
    if not isinstance(earlier, dict):
        raise FitError(f"{notes}: damaged; choose another --keep, or leave out --resume")
    changed = [key for key in sorted({*earlier, *made}) if earlier.get(key) != made.get(key)]
    if changed:
        listed = ", ".join(f"{key} was {earlier.get(key)}, is {made.get(key)}" for key in changed)
        raise FitError(
            f"{notes.parent}: what is kept here was fitted otherwise ({listed}); give the same options, or choose "
            "another --keep"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: bundles cannot be kept here: {error.strerror or error}") from error


def _check_auxiliary(options: FitOptions, classes: Sequence[ClassSet]) -> None:
    """Raises `DataError` where VisualAD would learn from images that it is measured on."""
    if options.auxiliary is None:
        return  # the fit says what is missing
    tested = {item.path.resolve() for one in classes for item in one.test}
    learned = (item.path for one in open_dataset(options.auxiliary).classes for item in one.test)
    both = next((path for path in learned if path.resolve() in tested), None)
    if both is not None:
        raise DataError(
            f"--auxiliary {options.auxiliary}: {both.name} is also an image to test with; visualad is measured on "
            "products that it has not learned from, so give a set of others"
        )


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


def with_split(one: ClassSet, seed: int) -> ClassSet:
    """A class without images to fit on gets half of its good ones, chosen by seed; the test keeps the others."""
    if one.train or len(one.good) < 2:
        return one
    order = np.random.default_rng([seed, 0x5B117]).permutation(len(one.good))
    taken = {one.good[i].path for i in order[: len(one.good) // 2]}
    train = tuple(item.path for item in one.good if item.path in taken)
    return ClassSet(one.name, train, tuple(item for item in one.test if item.path not in taken))


def link(paths: Sequence[Path], folder: Path) -> None:
    """Makes a folder of links to `paths`, so that a fit sees these images and no others.

    Where gray and colour images meet (classes of one model), gray ones are written there in colour, which loses
    nothing: a bundle takes frames of one format. Whatever is in the way at `folder` is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    gray = [read_image(path).pixels.shape[2] == 1 for path in paths] if len({path.parent for path in paths}) > 1 else []
    mixed = any(gray) and not all(gray)
    for number, path in enumerate(paths):
        place = folder / f"{number:06d}-{path.name}"
        if mixed and gray[number]:
            pixels = np.repeat(read_image(path).pixels, 3, axis=2)
            if not cv2.imwrite(str(place.with_suffix(".png")), pixels):
                raise DataError(f"{place}: an image cannot be written here; is there room?")
        else:
            place.symlink_to(path.resolve())


def one_size(paths: Sequence[Path]) -> bool:
    """Whether all images have one size. Files that do not decode count as different: the fit will name them."""
    sizes = {read_image(path).pixels.shape[:2] for path in paths[:1]}
    for path in paths[1:]:
        sizes.add(read_image(path).pixels.shape[:2])
        if len(sizes) > 1:
            return False
    return True

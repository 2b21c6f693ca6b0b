"""Two evaluations side by side: which differences are more than chance.

Where both ran over the same test images, image metrics are resampled together, image by image, so that what makes an
image hard for both cancels. Else each is resampled by itself and the interval is of the difference of two independent
results. Pixel metrics have differences and no intervals (see `calibration.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.bootstrap import IMAGE_METRICS, interval, resampled
from calibration.errors import DataError
from calibration.results import METRICS, means


@dataclass(frozen=True)
class Difference:
    """One metric of both runs; `difference` is second - first, `interval` its 95 % interval."""

    first: float | None
    second: float | None
    interval: tuple[float, float] | None = None

    @property
    def difference(self) -> float | None:
        """Second - first, where both have it."""
        return None if self.first is None or self.second is None else self.second - self.first

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "difference": self.difference}


@dataclass(frozen=True)
class Comparison:
    """Two evaluations compared, by class and metric; the mean is over the classes that both have."""

    names: tuple[str, str]
    what: tuple[str, str]
    runs: tuple[Mapping[str, Any], Mapping[str, Any]]
    classes: dict[str, dict[str, Difference]]
    mean: dict[str, Difference]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "format": "edge-inspect comparison 1",
            "first": self.names[0],
            "second": self.names[1],
            "classes": {name: _plain(metrics) for name, metrics in self.classes.items()},
            "mean": _plain(self.mean),
            "notes": list(self.notes),
        }


def _plain(metrics: Mapping[str, Difference]) -> dict[str, Any]:
    return {name: one.to_json() for name, one in metrics.items()}


def compare(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str], seed: int) -> Comparison:
    """Compares two evaluations as `calibration.results.load_evaluation` gives them.

    Raises `DataError` where they have no class in common.
    """
    shared = [name for name in first["classes"] if name in second["classes"]]
    if not shared:
        raise DataError(
            f"{names[0]} and {names[1]} have no class in common: {', '.join(first['classes'])}; and "
            f"{', '.join(second['classes'])}"
        )
    notes = []
    for run, name in ((first, names[0]), (second, names[1])):
        alone = [each for each in run["classes"] if each not in shared]
        if alone:
            notes.append(f"only in {name}, and left out here: {', '.join(alone)}")
    unpaired = []
    classes: dict[str, dict[str, Difference]] = {}
    samples: list[NDArray[np.float64]] = []
    for name in shared:
        a, b = first["classes"][name], second["classes"][name]
        paired = _images(a) == _images(b)
        if not paired:
            unpaired.append(name)
        differences = _samples(a, b, paired, seed)
        if differences is not None:
            samples.append(differences)
        classes[name] = _row(a, b, differences)
    if unpaired:
        notes.append(f"over other test images, so their differences are of independent results: {', '.join(unpaired)}")
    one, other = (means([run["classes"][name] for name in shared]) for run in (first, second))
    # Means are over the classes that have a metric; an interval needs all of them.
    mean = _row(one, other, np.mean(samples, axis=0) if len(samples) == len(shared) else None)
    return Comparison(names, (_what(first), _what(second)), (first, second), classes, mean, tuple(notes))


def _what(run: Mapping[str, Any]) -> str:
    made = run["provenance"]
    shots = made.get("shots")
    return f"{run['method']} on {run['dataset']}" + (f", {shots} shots" if shots else "") + f", seed {made.get('seed')}"


def _images(one: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted((image["path"], image["kind"]) for image in one["images"])


def _samples(
    first: Mapping[str, Any], second: Mapping[str, Any], paired: bool, seed: int
) -> NDArray[np.float64] | None:
    """Resampled differences of the image metrics [resamples, 3]; None where one of them has no image metrics."""
    if first["image_auroc"] is None or second["image_auroc"] is None:
        return None
    drawn = []
    for number, one in enumerate((first, second)):
        images = sorted(one["images"], key=lambda image: (image["path"], image["kind"]))
        labels = [image["kind"] != "good" for image in images]
        # One seed and one order of images: the same draws for both.
        drawn.append(resampled(labels, [image["rank"] for image in images], seed if paired else 2 * seed + number))
    return drawn[1] - drawn[0]


def _row(
    first: Mapping[str, Any], second: Mapping[str, Any], differences: NDArray[np.float64] | None
) -> dict[str, Difference]:
    found = {}
    for name in METRICS:
        ends = None
        if differences is not None and name in IMAGE_METRICS:
            ends = interval(differences[:, IMAGE_METRICS.index(name)])
        found[name] = Difference(first[name], second[name], ends)
    return found

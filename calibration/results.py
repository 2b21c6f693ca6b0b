"""What an evaluation found, as data: per class and mean, with intervals, counts, latency and how it was made."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.bootstrap import IMAGE_METRICS, interval, mean_interval, resampled
from calibration.errors import DataError, MetricError
from calibration.metrics import image_ranking
from calibration.sets import GOOD
from calibration.streaming import StreamedPixels

SEVEN = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")
METRICS = (*SEVEN, "mad")
FORMAT = "edge-inspect evaluation 1"


@dataclass(frozen=True)
class ScoredImage:
    """One image of a test: raw score and percent of limit of its worst region, and its anomaly rank.

    `rank` orders images by anomaly: the raw score, or the percent where there are several regions. `path` is relative
    to the data set.
    """

    path: str
    kind: str
    score: float
    percent: float
    rank: float
    mask: bool

    @property
    def defective(self) -> bool:
        """Whether it shows a defect."""
        return self.kind != GOOD

    @property
    def rejected(self) -> bool:
        """Whether the line would reject it."""
        return self.percent > 100.0


@dataclass(frozen=True)
class Latency:
    """Time of one `Engine.score` call per image, decoding not included [ms]."""

    median_ms: float
    p95_ms: float
    mean_ms: float
    images: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """From each call's seconds."""
        times = np.asarray(seconds) * 1e3
        return cls(float(np.median(times)), float(np.quantile(times, 0.95)), float(times.mean()), times.size)


@dataclass(frozen=True)
class ClassResult:
    """One class: metrics (None where they cannot be computed; `unavailable` says why), intervals and images."""

    name: str
    metrics: Mapping[str, float | None]
    unavailable: Mapping[str, str]
    images: tuple[ScoredImage, ...]
    train: int | None  # images the bundle was fitted on, where this run fitted it
    regions: int  # connected defect regions
    pixels: int  # pixels that entered the pixel metrics
    latency: Latency
    bundle: Mapping[str, Any]  # id, method, limit
    engine: str
    notes: tuple[str, ...] = ()
    samples: NDArray[np.float64] | None = field(default=None, compare=False)  # bootstrap [resamples, 3]

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of the image metrics."""
        if self.samples is None:
            return {}
        return {name: interval(self.samples[:, column]) for column, name in enumerate(IMAGE_METRICS)}

    @property
    def false_rejects(self) -> tuple[int, int]:
        """(rejected, all) good images."""
        good = [image for image in self.images if not image.defective]
        return sum(image.rejected for image in good), len(good)

    @property
    def misses(self) -> tuple[int, int]:
        """(passed, all) defective images."""
        bad = [image for image in self.images if image.defective]
        return sum(not image.rejected for image in bad), len(bad)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        kinds: dict[str, dict[str, int]] = {}
        for image in self.images:
            kind = kinds.setdefault(image.kind, {"images": 0, "rejected": 0})
            kind["images"] += 1
            kind["rejected"] += image.rejected
        return {
            **self.metrics,
            "unavailable": dict(self.unavailable),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "counts": {
                "train": self.train,
                "good": self.false_rejects[1],
                "defective": self.misses[1],
                "masks": sum(image.mask for image in self.images),
                "regions": self.regions,
                "pixels": self.pixels,
            },
            "at_limit": {
                "false_rejects": self.false_rejects[0],
                "false_reject_rate": _share(self.false_rejects),
                "misses": self.misses[0],
                "missed_rate": _share(self.misses),
            },
            "kinds": kinds,
            "latency": asdict(self.latency),
            "bundle": dict(self.bundle),
            "engine": self.engine,
            "notes": list(self.notes),
            "images": [asdict(image) for image in self.images],
        }


def _share(counts: tuple[int, int]) -> float | None:
    return counts[0] / counts[1] if counts[1] else None


@dataclass(frozen=True)
class Evaluation:
    """All classes of a data set, and their means."""

    dataset: str
    layout: str
    method: str
    classes: tuple[ClassResult, ...]
    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> dict[str, float | None]:
        """Means over the classes that have the metric; None where none has. mAD: the mean of the seven means."""
        return means([one.metrics for one in self.classes])

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of the means of the image metrics, over the classes that have them."""
        samples = [one.samples for one in self.classes if one.samples is not None]
        return dict(zip(IMAGE_METRICS, mean_interval(samples), strict=True)) if samples else {}

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and `calibrate compare`."""
        have = {name: sum(one.metrics[name] is not None for one in self.classes) for name in METRICS}
        return {
            "format": FORMAT,
            "dataset": self.dataset,
            "layout": self.layout,
            "method": self.method,
            "classes": {one.name: one.to_json() for one in self.classes},
            "mean": {
                **self.mean,
                "intervals": {name: list(ends) for name, ends in self.intervals.items()},
                "classes": have,
            },
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }

    def to_csv(self) -> str:
        """One row per class and one for the mean."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("class", *METRICS, "good", "defective", "false_rejects", "misses", "latency_median_ms"))
        for one in self.classes:
            values = ["" if one.metrics[name] is None else repr(one.metrics[name]) for name in METRICS]
            (wrong, good), (missed, bad) = one.false_rejects, one.misses
            rows.writerow((one.name, *values, good, bad, wrong, missed, f"{one.latency.median_ms:.3f}"))
        rows.writerow(("mean", *("" if value is None else repr(value) for value in self.mean.values()), *[""] * 5))
        return text.getvalue()


def means(metrics: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean of each of the seven over those that have it, and their mAD where all seven are there."""
    found: dict[str, float | None] = {}
    for name in SEVEN:
        values = [value for one in metrics if (value := one[name]) is not None]
        found[name] = float(np.mean(values)) if values else None
    return {**found, "mad": _mad(found)}


def _mad(metrics: Mapping[str, float | None]) -> float | None:
    values = [value for name in SEVEN if (value := metrics[name]) is not None]
    return float(np.mean(values)) if len(values) == len(SEVEN) else None


def measure(
    images: Sequence[ScoredImage], pixels: StreamedPixels | None
) -> tuple[dict[str, float | None], dict[str, str]]:
    """(metrics, why the missing ones are missing) from scored images and pixels; `pixels` None = no masks."""
    metrics: dict[str, float | None] = dict.fromkeys(METRICS)
    why: dict[str, str] = {}
    try:
        image = image_ranking([one.defective for one in images], [one.rank for one in images])
        metrics.update(image_auroc=image.auroc, image_ap=image.average_precision, image_f1max=image.f1_max[0])
    except MetricError as error:
        why.update(dict.fromkeys(IMAGE_METRICS, str(error)))
    try:
        if pixels is None:
            raise MetricError("no masks: pixel metrics need to know where the defects are")
        pixel = pixels.ranking()
        metrics.update(pixel_auroc=pixel.auroc, pixel_ap=pixel.average_precision, pixel_f1max=pixel.f1_max[0])
        metrics.update(aupro=pixels.aupro())
    except MetricError as error:
        why.update(dict.fromkeys(SEVEN[3:], str(error)))
    metrics = {name: None if value is None else float(value) for name, value in metrics.items()}
    metrics["mad"] = _mad(metrics)
    if metrics["mad"] is None:
        why["mad"] = "the mean of all seven metrics, and not all of them can be computed"
    return metrics, why


def bootstrap(images: Sequence[ScoredImage], seed: int) -> NDArray[np.float64] | None:
    """Resamples of the image metrics [resamples, 3]; None where a class of images is missing."""
    labels = np.array([one.defective for one in images])
    if labels.all() or not labels.any():
        return None
    return resampled(labels, [one.rank for one in images], seed)


def load_evaluation(path: Path) -> dict[str, Any]:
    """The content of an evaluation's JSON file. Raises `DataError` where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is not JSON ({error}); give a file of `calibrate evaluate --json`") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: this is no evaluation of this version; give a file of `calibrate evaluate --json`")
    try:
        for one in (*content["classes"].values(), content["mean"]):
            if any(one[name] is not None and not math.isfinite(one[name]) for name in METRICS):
                raise ValueError("a metric is not finite")
        for one in content["classes"].values():
            for image in one["images"]:
                ScoredImage(**image)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: this evaluation is damaged ({error}); evaluate again") from error
    return content

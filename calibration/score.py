"""Scoring files offline with a bundle: the same engines, the same numbers as on the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibration.datasets import in_format
from calibration.errors import DataError, MetricError
from calibration.metrics import image_ranking
from pipelines import engines
from pipelines.bundle import Bundle
from pipelines.engines import Engine, EngineOptions, FrameSpec
from pipelines.errors import ImageError
from pipelines.images import list_images, read_image

GOOD = "good"
"""Name of the folder of good images, by the convention of the public data sets."""


@dataclass(frozen=True)
class RegionResult:
    """Score of one region of one image, raw and in percent of the limit."""

    region: str
    score: float
    percent: float


@dataclass(frozen=True)
class FileResult:
    """What the bundle says of one file. `label` is the first folder below the one scored, "" for a flat folder."""

    path: Path
    label: str
    regions: tuple[RegionResult, ...]

    @property
    def percent(self) -> float:
        """Percent of limit of the worst region; more than 100 rejects."""
        return max(region.percent for region in self.regions)

    @property
    def score(self) -> float:
        """Raw score of the worst region (worst by percent of its limit)."""
        return max(self.regions, key=lambda region: region.percent).score

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "path": str(self.path),
            "label": self.label,
            "score": self.score,
            "percent": self.percent,
            "reject": self.percent > 100.0,
            "regions": [asdict(region) for region in self.regions],
        }


@dataclass(frozen=True)
class Results:
    """Results of all files; `image_auroc` where the folders tell good images from defective ones."""

    bundle: Bundle
    engine: str
    files: tuple[FileResult, ...]
    skipped: tuple[str, ...]
    image_auroc: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        good = [file for file in self.files if file.label == GOOD]
        other = [file for file in self.files if file.label not in ("", GOOD)]
        return {
            "bundle": str(self.bundle.path),
            "id": self.bundle.id,
            "engine": self.engine,
            "images": len(self.files),
            "rejected": sum(file.percent > 100.0 for file in self.files),
            "image_auroc": self.image_auroc,
            "false_reject_rate": _share(good, rejected=True),
            "missed_rate": _share(other, rejected=False),
            "skipped": list(self.skipped),
            "files": [file.to_json() for file in self.files],
        }

    def to_csv(self) -> str:
        """One row per image and region: path, label, region, score, percent, reject."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("path", "label", "region", "score", "percent", "reject"))
        for file in self.files:
            for region in file.regions:
                reject = int(region.percent > 100.0)
                rows.writerow((file.path, file.label, region.region, repr(region.score), repr(region.percent), reject))
        return text.getvalue()


def _share(files: Sequence[FileResult], rejected: bool) -> float | None:
    if not files:
        return None
    return sum((file.percent > 100.0) is rejected for file in files) / len(files)


def open_engine(bundle: Bundle, engine: str | None, threads: int | None, say: Callable[[str], None]) -> Engine:
    """The engine asked for, or the first of the default order that may judge. Raises `EngineError`."""
    order = engines.DEFAULT_ORDER if engine is None else (engine,)
    return engines.load(
        bundle,
        order,
        on_refused=lambda name, why: say(f"engine {name} refused: {why}"),
        options=EngineOptions(threads=threads),
    )


def score_folder(
    bundle: Bundle,
    folder: Path,
    engine: Engine,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Scores every image below `folder`, in path order.

    Raises `ImageError` for a missing or empty folder, `DataError` for a file that does not decode or has another pixel
    format than the bundle's (left out and listed with `skip_bad`), `EngineError` where the engine fails.
    """
    listed = list_images(folder)
    expected = FrameSpec.of(bundle.config)
    regions = bundle.limit.regions
    files: list[FileResult] = []
    skipped: list[str] = []
    for done, path in enumerate(listed, start=1):
        try:
            image = read_image(path)
            _check(path, image.pixels.shape, expected)
        except (ImageError, DataError) as error:
            if not skip_bad:
                raise DataError(f"{error}; or leave such files out with --skip-bad") from error
            skipped.append(str(error))
            continue
        finally:
            if progress is not None:
                progress(done, len(listed))
        (row,) = engine.score([in_format(image.pixels, expected.pixel_format)]).scores
        parts = path.relative_to(folder).parts
        found = tuple(
            RegionResult(region.name, float(score), region.percent(float(score)))
            for region, score in zip(regions, row, strict=True)
        )
        files.append(FileResult(path, parts[0] if len(parts) > 1 else "", found))
    if not files:
        raise DataError(f"{folder}: none of its {len(listed)} images can be scored; the first says: {skipped[0]}")
    return Results(bundle, engine.description, tuple(files), tuple(skipped), _auroc(files))


def _check(path: Path, shape: tuple[int, ...], expected: FrameSpec) -> None:
    if shape[2] > expected.pixel_format.channels:
        raise DataError(f"{path}: a colour image, the bundle takes {expected.pixel_format.value} frames")
    if expected.size is not None and tuple(shape[:2]) != tuple(expected.size):
        raise DataError(
            f"{path}: {shape[1]} x {shape[0]} px, the bundle takes {expected.size[1]} x {expected.size[0]} px "
            "(calibrate with --any-size for frames of any size)"
        )


def _auroc(files: Sequence[FileResult]) -> float | None:
    """Image AUROC over percent of limit, where there is a folder of good images and another one."""
    try:
        labelled = [file for file in files if file.label]
        return image_ranking([file.label != GOOD for file in labelled], [file.percent for file in labelled]).auroc
    except MetricError:
        return None


def write_text(path: Path, text: str) -> None:
    """Writes a small report, whole or not at all. Raises `DataError` where the place cannot be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def to_text(values: Any) -> str:
    """Indented JSON with a final newline; not-a-number is refused."""
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

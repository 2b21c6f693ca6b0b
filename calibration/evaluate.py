"""Evaluating a bundle, or a method fitted per class, on a labelled set.

Images go through the engine one by one, exactly as on the line. Anomaly maps are raised to the size of the image (or to
`map_size`) by bilinear interpolation, align_corners=False, and enter the pixel metrics as they come, so memory does not
grow with the number of images. Images of the test that have a defect but no mask are left out of the pixel metrics.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.data_check import digest_of
from calibration.datasets import in_format
from calibration.errors import DataError
from calibration.results import ClassResult, Latency, ScoredImage, bootstrap, measure
from calibration.sets import ClassSet, Item, read_mask
from calibration.sets.masks import resize_mask
from calibration.streaming import StreamedPixels
from pipelines.bundle import Bundle
from pipelines.engines import Engine
from pipelines.images import read_image

Frame = NDArray[np.uint8]
Map = NDArray[np.float32]
Report = Callable[[str, int, int, str], None]
"""report(what, done, total, note)"""


@dataclass(frozen=True)
class Judged:
    """What a bundle says of one frame: raw scores [R], their percents [R] and patch maps [R, h, w]."""

    scores: NDArray[np.float32]
    percents: NDArray[np.float64]
    maps: Map
    seconds: float

    @property
    def worst(self) -> int:
        """The region with the highest percent of its limit."""
        return int(np.argmax(self.percents))


class Judge:
    """A bundle with a loaded engine: frames in, scores in percent of limit and maps out."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle, self.engine = bundle, engine
        self.regions = bundle.limit.regions

    def read(self, path: Path) -> Frame:
        """The image of a file as the bundle takes it; gray becomes colour for a colour bundle, which loses nothing.

        Raises `ImageError`, and `DataError` for a colour image where the bundle takes gray.
        """
        pixels = read_image(path).pixels
        wanted = self.engine.frame.pixel_format
        if pixels.shape[2] > wanted.channels:
            raise DataError(f"{path}: a colour image, the bundle takes {wanted.value} frames; fit one on such images")
        size = self.engine.frame.size
        if size is not None and pixels.shape[:2] != size:
            raise DataError(
                f"{path}: {pixels.shape[1]} x {pixels.shape[0]} px, the bundle takes {size[1]} x {size[0]} px (fit "
                "with --any-size for images of any size)"
            )
        return in_format(pixels, wanted)

    def judge(self, frame: Frame) -> Judged:
        """Scores one frame uint8 [H, W, C]."""
        started = time.perf_counter()
        scores, maps = self.engine.score([frame])
        seconds = time.perf_counter() - started
        percents = [region.percent(float(score)) for region, score in zip(self.regions, scores[0], strict=True)]
        return Judged(scores[0], np.array(percents), maps[0], seconds)

    def pixel_map(self, judged: Judged, size: tuple[int, int], frame: tuple[int, int]) -> Map:
        """The anomaly map float32 of a frame of size `frame`, raised to `size` (height, width).

        Of one region over the whole frame these are raw scores. Several regions are put together as percents of their
        limits; where none looks is 0, and where they overlap the higher counts.
        """
        areas = self.bundle.config.regions
        if not areas:
            return raised(judged.maps[0], size)
        whole = np.zeros(frame, np.float32)
        for area, region, patches in zip(areas, self.regions, judged.maps, strict=True):
            percent = raised(patches, (area.height_px, area.width_px)) - np.float32(region.floor)
            percent *= np.float32(100.0 / (region.limit - region.floor))
            part = whole[area.y_px : area.y_px + area.height_px, area.x_px : area.x_px + area.width_px]
            np.maximum(part, percent, out=part)
        return whole if frame == size else raised(whole, size)


def raised(patches: Map, size: tuple[int, int]) -> Map:
    """A map [h, w] at another size (height, width): bilinear, align_corners=False."""
    return np.asarray(cv2.resize(patches, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), np.float32)


@dataclass
class Fingerprint:
    """Content of all tested images with their labels, in the order of neither files nor folders."""

    _digests: list[bytes] = field(default_factory=list)

    def add(self, pixels: Frame, item: Item) -> None:
        """Notes one decoded image."""
        self._digests.append(hashlib.sha256(digest_of(pixels) + item.kind.encode()).digest())

    def hexdigest(self) -> str:
        """sha256 over all of them."""
        return hashlib.sha256(b"".join(sorted(self._digests))).hexdigest()


def evaluate_class(
    one: ClassSet,
    judge: Judge,
    root: Path,
    seed: int,
    report: Report,
    fingerprint: Fingerprint,
    map_size: int | None = None,
    train: int | None = None,
) -> ClassResult:
    """Scores the test of a class and measures. `root` is the data set's folder, to which paths are shown relative.

    Raises `DataError` where the class has no test images, an image does not fit the bundle, or a mask not its image;
    `ImageError` where a file does not decode; `EngineError` where the engine fails.
    """
    if not one.test:
        raise DataError(f"{one.name}: there are no images to test with; add test/good and a folder per kind of defect")
    pixels = StreamedPixels() if any(item.mask is not None for item in one.test) else None
    images: list[ScoredImage] = []
    seconds: list[float] = []
    judge.judge(judge.read(one.test[0].path))  # the first call of an engine is no measure of the others
    for done, item in enumerate(one.test, start=1):
        frame = judge.read(item.path)
        fingerprint.add(frame, item)
        judged = judge.judge(frame)
        seconds.append(judged.seconds)
        score, percent = float(judged.scores[judged.worst]), float(judged.percents[judged.worst])
        images.append(
            ScoredImage(
                relative(item.path, root),
                item.kind,
                score,
                percent,
                score if len(judge.regions) == 1 else percent,
                item.mask is not None,
            )
        )
        if pixels is not None and (item.mask is not None or not item.defective):
            size = (frame.shape[0], frame.shape[1])
            mask = np.zeros(size, bool) if item.mask is None else read_mask(item.mask, size, item.path)
            at = size if map_size is None else (map_size, map_size)
            pixels.add(judge.pixel_map(judged, at, size), resize_mask(mask, at))
        report(f"{one.name}: test", done, len(one.test), "")
    metrics, why = measure(images, pixels)
    limit = judge.bundle.limit
    return ClassResult(
        one.name,
        metrics,
        why,
        tuple(images),
        train,
        0 if pixels is None else pixels.regions,
        0 if pixels is None else sum(pixels.counts),
        Latency.of(seconds),
        {
            "id": judge.bundle.id,
            "method": judge.bundle.manifest.method,
            "input_size": list(judge.bundle.config.input_size),
            "limit": limit.model_dump(mode="json"),
            "provenance": judge.bundle.manifest.provenance,
        },
        judge.engine.description,
        _notes(one, images, limit.false_reject_rate),
        bootstrap(images, seed),
    )


def _notes(one: ClassSet, images: Sequence[ScoredImage], rate: float) -> tuple[str, ...]:
    notes = []
    if len(images) > 1 and len({image.rank for image in images}) == 1:
        notes.append(f"all {len(images)} scores are equal: the head or its weights cannot tell anything apart")
    if one.unmasked and len(one.unmasked) < len(one.defective):
        notes.append(f"{len(one.unmasked)} defective images have no mask and are left out of the pixel metrics")
    good = [image for image in images if not image.defective]
    wrong = sum(image.rejected for image in good)
    # Three standard deviations above what the rate asked for lets expect.
    if good and wrong > rate * len(good) + 3.0 * (rate * (1.0 - rate) * len(good)) ** 0.5 + 0.5:
        notes.append(
            f"{wrong} of {len(good)} good images are rejected, far more than the {100 * rate:.3g} % the limit was "
            "chosen for: these images differ from those of the fit"
        )
    return tuple(notes)


def relative(path: Path, root: Path) -> str:
    """`path` as seen from `root`, where it lies below it."""
    try:
        return str(path.relative_to(root))
    except ValueError:
        return str(path)


def limited(one: ClassSet, count: int | None, seed: int) -> ClassSet:
    """`one` with at most `count` test images, good and defective ones in their proportion, chosen by seed."""
    if count is None or count >= len(one.test):
        return one
    good, bad = one.good, one.defective
    keep_bad = round(count * len(bad) / len(one.test))
    if bad and good:
        keep_bad = min(max(keep_bad, 1), max(count - 1, 1))
    rng = np.random.default_rng([seed, 0x11417])
    chosen: list[Item] = []
    for items, keep in ((good, count - keep_bad), (bad, keep_bad)):
        chosen += [items[i] for i in np.sort(rng.permutation(len(items))[: max(keep, 0)])]
    return ClassSet(one.name, one.train, tuple(chosen))

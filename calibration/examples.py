"""Pictures of the worst cases: defects that pass, or nearly so, and good parts that are rejected, or nearly so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.evaluate import Judge, Judged, relative
from calibration.results import ClassResult, ScoredImage
from calibration.sets import ClassSet, Item, read_mask
from pipelines.heatmap import outline, paint, percent_map, to_bgr

SIDE_PX = 420
"""Longest side of a picture in a report."""

MASK_COLOUR = (80, 255, 120)  # BGR: green, which the heatmap's scale does not use
_QUALITY = 85


@dataclass(frozen=True)
class Example:
    """One image: as the camera saw it with its mask outlined, and under the heatmap. Both JPEG."""

    class_name: str
    image: ScoredImage
    picture: bytes
    heatmap: bytes


def worst_examples(result: ClassResult, one: ClassSet, judge: Judge, root: Path, count: int) -> list[Example]:
    """Pictures of the `count` defects with the lowest and the `count` good images with the highest percent."""
    items = {relative(item.path, root): item for item in one.test}
    defects = sorted((image for image in result.images if image.defective), key=lambda image: image.percent)
    good = sorted((image for image in result.images if not image.defective), key=lambda image: -image.percent)
    return [_example(one.name, image, items[image.path], judge) for image in (*defects[:count], *good[:count])]


def _example(name: str, image: ScoredImage, item: Item, judge: Judge) -> Example:
    frame = judge.read(item.path)
    picture = shrunk(to_bgr(frame, judge.engine.frame.pixel_format))
    heated = picture.copy()
    heat(heated, judge, judge.judge(frame), (frame.shape[0], frame.shape[1]))
    if item.mask is not None:
        mask = read_mask(item.mask, (frame.shape[0], frame.shape[1]), item.path)
        size = (picture.shape[1], picture.shape[0])
        small = cv2.resize(mask.view(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 0
        outline(picture, np.asarray(small), MASK_COLOUR)
        outline(heated, np.asarray(small), MASK_COLOUR)
    return Example(name, image, jpeg(picture), jpeg(heated))


def heat(picture: NDArray[np.uint8], judge: Judge, judged: Judged, frame: tuple[int, int]) -> None:
    """Lays the heatmaps of all regions over `picture`, a BGR picture of any size of the frame, in place."""
    vertical, horizontal = picture.shape[0] / frame[0], picture.shape[1] / frame[1]
    areas: Sequence[tuple[int, int, int, int]] = [
        (area.x_px, area.y_px, area.x_px + area.width_px, area.y_px + area.height_px)
        for area in judge.bundle.config.regions
    ] or [(0, 0, frame[1], frame[0])]
    for (left, top, right, bottom), region, patches in zip(areas, judge.regions, judged.maps, strict=True):
        rows = slice(round(top * vertical), round(bottom * vertical))
        columns = slice(round(left * horizontal), round(right * horizontal))
        part = picture[rows, columns]
        if part.size:
            paint(part, percent_map(patches, region.limit, region.floor))


def shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy, no larger than a report needs."""
    zoom = SIDE_PX / max(picture.shape[:2])
    if zoom >= 1.0:
        return picture.copy()
    size = (max(1, round(picture.shape[1] * zoom)), max(1, round(picture.shape[0] * zoom)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A BGR picture as JPEG."""
    done, data = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))
    assert done
    return bytes(data.tobytes())

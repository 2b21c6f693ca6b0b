"""Results that the methods' authors published, to stand beside ours, always marked as published.

They hold for the authors' encoders and input sizes. A run with another encoder, size or number of shots is no
reproduction, and the report says which setting each row is of.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

MVTEC = "MVTec AD"
VISA = "VisA"

_MVTEC_CLASSES = """bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor
wood zipper"""
_VISA_CLASSES = """candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum"""
_CLASSES: Mapping[str, frozenset[str]] = {
    MVTEC: frozenset(_MVTEC_CLASSES.split()),
    VISA: frozenset(_VISA_CLASSES.split()),
}


@dataclass(frozen=True)
class Published:
    """One published row: means over all classes of a benchmark, 0..1; metrics that were not published are absent."""

    method: str
    benchmark: str
    setting: str
    metrics: Mapping[str, float]


def _seven(*values: float) -> dict[str, float]:
    names = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro", "mad")
    return {name: value / 100.0 for name, value in zip(names, values, strict=True)}


def _few(image_auroc: float, aupro: float) -> dict[str, float]:
    return {"image_auroc": image_auroc / 100.0, "aupro": aupro / 100.0}


PUBLISHED = (
    Published("foundad", MVTEC, "1 shot, DINOv3 ViT-B/16, 512 px", _few(96.1, 92.8)),
    Published("foundad", MVTEC, "2 shots, DINOv3 ViT-B/16, 512 px", _few(96.8, 93.3)),
    Published("foundad", VISA, "1 shot, DINOv3 ViT-B/16, 512 px", _few(92.6, 98.0)),
    Published("foundad", VISA, "2 shots, DINOv3 ViT-B/16, 512 px", _few(93.5, 98.0)),
    Published(
        "vitad",
        MVTEC,
        "one model for all classes, DINO ViT-S/16, 256 px",
        _seven(98.3, 99.4, 97.3, 97.7, 55.3, 58.7, 91.4, 85.4),
    ),
    Published(
        "vitad",
        VISA,
        "one model for all classes, DINO ViT-S/16, 256 px",
        _seven(90.5, 91.7, 86.3, 98.2, 36.6, 41.1, 85.1, 75.6),
    ),
)


def benchmark_of(classes: Collection[str]) -> str | None:
    """The benchmark that these are classes of: all of it or a part; None for any other data."""
    return next((name for name, known in _CLASSES.items() if classes and known.issuperset(classes)), None)


def published(method: str, classes: Collection[str]) -> list[Published]:
    """The published rows of `method`: those of the benchmark that `classes` belong to, or all where they are others."""
    benchmark = benchmark_of(classes)
    return [row for row in PUBLISHED if row.method == method and benchmark in (None, row.benchmark)]

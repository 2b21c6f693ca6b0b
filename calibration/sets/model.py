"""What a labelled set of images is, whatever its layout on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

GOOD = "good"
"""Kind of every image of a good part, whatever the layout calls it."""

GOOD_NAMES = frozenset({"good", "ok", "normal"})
"""Folder names that mean good, in lower case."""


@dataclass(frozen=True)
class Item:
    """One labelled image. `mask` marks its defect where there is a mask; `kind` names the defect, or is `GOOD`."""

    path: Path
    kind: str
    mask: Path | None = None

    @property
    def defective(self) -> bool:
        """Whether the image shows a defect."""
        return self.kind != GOOD


@dataclass(frozen=True)
class ClassSet:
    """One class (product): images of good parts to fit on, and labelled images to test with."""

    name: str
    train: tuple[Path, ...]
    test: tuple[Item, ...]

    @property
    def good(self) -> tuple[Item, ...]:
        """Good images of the test."""
        return tuple(item for item in self.test if not item.defective)

    @property
    def defective(self) -> tuple[Item, ...]:
        """Defective images of the test."""
        return tuple(item for item in self.test if item.defective)

    @property
    def unmasked(self) -> tuple[Item, ...]:
        """Defective images without a mask."""
        return tuple(item for item in self.test if item.defective and item.mask is None)


@dataclass(frozen=True)
class Dataset:
    """All classes of a set. `layout` is how it was read, in words; `notes` is what the reader should know of it."""

    path: Path
    layout: str
    classes: tuple[ClassSet, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

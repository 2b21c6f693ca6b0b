"""Sets that are told by their folders: MVTec AD and its kin, and plain folders."""

from __future__ import annotations

from pathlib import Path

from calibration.errors import DataError
from calibration.sets.model import GOOD, GOOD_NAMES, ClassSet, Dataset, Item
from pipelines.images import IMAGE_SUFFIXES

MASK_FOLDERS = ("ground_truth", "masks", "mask")


def subfolders(folder: Path) -> list[Path]:
    """Folders in `folder` that are not hidden, in order of name."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: this folder cannot be read: {error.strerror}") from error


def images_in(folder: Path) -> list[Path]:
    """Image files below `folder`, hidden ones left out, in order of path; none where there is no such folder."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def is_split(folder: Path) -> bool:
    """Whether `folder` is a class in the layout of MVTec AD: train or test folders of kinds, one of them good."""
    return any(
        kind.name.lower() in GOOD_NAMES
        for part in ("train", "test")
        if (folder / part).is_dir()
        for kind in subfolders(folder / part)
    )


def read_split(folder: Path) -> ClassSet:
    """Reads a class in the layout of MVTec AD. Raises `DataError` where there are defects among train."""
    train: list[Path] = []
    for kind in subfolders(folder / "train") if (folder / "train").is_dir() else ():
        if kind.name.lower() not in GOOD_NAMES:
            raise DataError(f"{kind}: images to fit on must be good ones; move this folder to {folder / 'test'}")
        train += images_in(kind)
    test = _labelled(folder / "test", [folder / name for name in MASK_FOLDERS]) if (folder / "test").is_dir() else ()
    return ClassSet(folder.resolve().name, tuple(train), test)


def is_plain(folder: Path) -> bool:
    """Whether `folder` holds a folder of good images, with or without folders of defective ones."""
    return any(kind.name.lower() in GOOD_NAMES for kind in subfolders(folder))


def read_plain(folder: Path) -> ClassSet:
    """Reads a class of plain folders: `good` and anything else. All of it is for the test."""
    return ClassSet(folder.resolve().name, (), _labelled(folder, [folder / name for name in MASK_FOLDERS]))


def read_folders(path: Path) -> Dataset | None:
    """The set at `path`, one class or the root of many; None where the folders tell nothing."""
    if is_split(path):
        return Dataset(path, "train/test folders (MVTec AD)", (read_split(path),))
    for root in (path, path / "1cls"):
        classes = [folder for folder in subfolders(root) if is_split(folder)] if root.is_dir() else []
        if classes:
            others = [folder.name for folder in subfolders(root) if folder not in classes]
            notes = (f"{root}: not read, without train or test folders: {', '.join(others)}",) if others else ()
            return Dataset(path, "train/test folders (MVTec AD)", tuple(map(read_split, classes)), notes)
    note = "there is no split: a fit takes half of the good images, and the test the others"
    if is_plain(path):
        return Dataset(path, "plain folders", (read_plain(path),), (note,))
    classes = [folder for folder in subfolders(path) if is_plain(folder)]
    if classes:
        return Dataset(path, "plain folders", tuple(map(read_plain, classes)), (note,))
    images = images_in(path) if not subfolders(path) else []
    if images:
        one = ClassSet(path.resolve().name, tuple(images), ())
        return Dataset(path, "images only", (one,), ("a folder of images without labels: all are taken as good ones",))
    return None


def _labelled(folder: Path, mask_folders: list[Path]) -> tuple[Item, ...]:
    items: list[Item] = []
    for kind in subfolders(folder):
        if kind.name in MASK_FOLDERS:
            continue
        if kind.name.lower() in GOOD_NAMES:
            items += [Item(path, GOOD) for path in images_in(kind)]
            continue
        masks: dict[str, Path] = {}
        for mask_folder in mask_folders:
            # Masks lie in a folder of the kind's name, or all in one.
            place = mask_folder / kind.name
            for mask in images_in(place if place.is_dir() else mask_folder):
                masks.setdefault(mask.stem, mask)
        items += [Item(path, kind.name, find_mask(masks, path.stem)) for path in images_in(kind)]
    return tuple(items)


def find_mask(masks: dict[str, Path], stem: str) -> Path | None:
    """The mask of the image named `stem`: `<stem>_mask` (MVTec AD) or `<stem>` (BTAD, VisA's conversion)."""
    return masks.get(f"{stem}_mask") or masks.get(stem)

"""VisA and Real-IAD as published: splits in files of their own beside the images."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration.errors import DataError
from calibration.sets.model import GOOD, ClassSet, Dataset, Item

VISA_SPLIT = Path("split_csv") / "1cls.csv"
_VISA_COLUMNS = {"object", "split", "label", "image", "mask"}


def read_visa(path: Path) -> Dataset | None:
    """VisA's root, or one class folder of it; None where there is no split file.

    Raises `DataError` for a split file without the columns object, split, label, image, mask, or that names files
    which are not there.
    """
    root, only = (path, None) if (path / VISA_SPLIT).is_file() else (path.resolve().parent, path.resolve().name)
    file = root / VISA_SPLIT
    if not file.is_file():
        return None
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Item]] = {}
    for line, row in enumerate(_rows(file), start=2):
        name = row["object"]
        if only is not None and name != only:
            continue
        image, mask = root / row["image"], root / row["mask"] if row["mask"] else None
        split, kind = row["split"], GOOD if row["label"] == "normal" else row["label"]
        if split not in ("train", "test"):
            raise DataError(f"{file}:{line}: split {split!r}; allowed are train and test")
        if split == "train" and kind != GOOD:
            raise DataError(f"{file}:{line}: a defective image for the fit; the split of one class (1cls) has none")
        train.setdefault(name, [])
        test.setdefault(name, [])
        if split == "train":
            train[name].append(image)
        else:
            test[name].append(Item(image, kind, mask))
    if not train:
        return None  # a folder that only happens to lie beside VisA's
    classes = tuple(ClassSet(name, tuple(train[name]), tuple(test[name])) for name in sorted(train))
    _check_there(file, classes)
    return Dataset(path, "VisA with its split file", classes)


def _rows(file: Path) -> Iterator[dict[str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            missing = _VISA_COLUMNS - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{file}: no column {', '.join(sorted(missing))}; this is no split file of VisA")
            for row in reader:
                yield {key: row[key] or "" for key in _VISA_COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: this split file cannot be read: {error}") from error


def read_real_iad(path: Path) -> Dataset | None:
    """Real-IAD's root; None where there are no split files.

    The split of single views (`realiad_jsons_sv`) is not read where the plain one is there. Images are taken from the
    largest size present. Raises `DataError` for a split file of another form or images that are not there.
    """
    folders = [path / "realiad_jsons" / "realiad_jsons", path / "realiad_jsons", path]
    folders += [path / "realiad_jsons" / "realiad_jsons_sv"]
    files = next((found for found in (sorted(folder.glob("*.json")) for folder in folders) if found), [])
    splits = {file: split for file in files if (split := _real_iad_split(file, file.parent == path)) is not None}
    if not splits:
        return None
    classes = tuple(_real_iad_class(path, file, split) for file, split in splits.items())
    for (file, _), one in zip(splits.items(), classes, strict=True):
        _check_there(file, (one,))
    return Dataset(path, f"Real-IAD with its split files ({files[0].parent.name})", classes)


def _real_iad_split(file: Path, stray: bool) -> dict[str, Any] | None:
    """The content of a split file; None for any other JSON. A `stray` file may as well be something else's."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if stray:
            return None
        raise DataError(f"{file}: this split file is damaged ({error}); copy it again") from error
    known = isinstance(content, dict) and {"meta", "train", "test"} <= content.keys()
    return content if known and isinstance(content["meta"], dict) else None


def _real_iad_class(root: Path, file: Path, split: dict[str, Any]) -> ClassSet:
    name, normal = file.stem, str(split["meta"].get("normal_class", "OK"))
    prefix = str(split["meta"].get("prefix", ""))
    sizes = sorted(root.glob("realiad_*"), key=_size_of, reverse=True)
    bases = [base for size in sizes for base in (size / name, size / prefix)] + [root / name, root / prefix, root]
    train: list[Path] = []
    test: list[Item] = []
    base: Path | None = None
    for part, entries in (("train", split["train"]), ("test", split["test"])):
        for number, entry in enumerate(entries):
            try:
                image, kind, mask = entry["image_path"], entry["anomaly_class"], entry.get("mask_path")
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{file}: {part}[{number}] needs image_path and anomaly_class") from error
            if base is None:
                base = next((folder for folder in bases if (folder / image).is_file()), bases[0])
            if part == "test":
                test.append(Item(base / image, GOOD if kind == normal else str(kind), base / mask if mask else None))
            elif kind == normal:
                train.append(base / image)
            else:
                raise DataError(f"{file}: {part}[{number}] is defective ({kind}); train holds {normal} images only")
    return ClassSet(name, tuple(train), tuple(test))


def _size_of(folder: Path) -> int:
    tail = folder.name.rpartition("_")[2]
    return int(tail) if tail.isdigit() else 0


def _check_there(file: Path, classes: tuple[ClassSet, ...]) -> None:
    """Names files of a split that are not there; a half-unpacked archive is the usual cause."""
    wanted = [path for one in classes for path in one.train]
    for one in classes:
        for item in one.test:
            wanted += [item.path] if item.mask is None else [item.path, item.mask]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of the {len(wanted)} files it names are not there, such as {missing[0]}; unpack "
            "the data set again beside its split file"
        )

"""What is wrong with a labelled set, found before hours of work depend on it.

Faults make numbers wrong or a command fail: files that do not decode, masks of another size, gray and colour images in
one class, an image in both splits or under two labels, a test without good or without defective images. Warnings are
what a reader of the results should know.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calibration.errors import DataError
from calibration.sets import GOOD, ClassSet, Dataset, read_mask
from pipelines.errors import ImageError
from pipelines.images import read_image

Progress = Callable[[int, int], None]
"""progress(done, total)"""

SHOWN = 5
"""Files named in one finding; the rest are counted."""


@dataclass(frozen=True)
class Finding:
    """One fault or warning, in words, with the class it concerns and all files."""

    code: str
    class_name: str
    text: str
    files: tuple[str, ...] = ()


@dataclass
class ClassReport:
    """Counts of one class. `sizes` (width x height) and `formats`, with the number of images that have them."""

    name: str
    train: int
    good: int
    defective: int
    masks: int
    kinds: dict[str, int]
    sizes: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    defect_share: float | None = None  # mean share of a defective image's pixels that its mask covers


@dataclass(frozen=True)
class DataReport:
    """All that was found in a set. `usable` means: no faults."""

    dataset: Dataset
    classes: tuple[ClassReport, ...]
    faults: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    fingerprint: str

    @property
    def usable(self) -> bool:
        """Whether nothing was found that makes results wrong."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "path": str(self.dataset.path),
            "layout": self.dataset.layout,
            "notes": list(self.dataset.notes),
            "usable": self.usable,
            "fingerprint": self.fingerprint,
            "classes": [asdict(one) for one in self.classes],
            "faults": [asdict(finding) for finding in self.faults],
            "warnings": [asdict(finding) for finding in self.warnings],
        }


class _Findings(list[Finding]):
    def note(self, code: str, one: str, text: str, files: Sequence[Path | str] = ()) -> None:
        """Adds a finding where there is something to name; `text` ends before the files."""
        names = tuple(map(str, files))
        shown = "; ".join(names[:SHOWN]) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        self.append(Finding(code, one, f"{text}: {shown}" if names else text, names))


def check(dataset: Dataset, progress: Progress | None = None) -> DataReport:
    """Decodes every image and mask once and reports. Reads only; raises nothing for what it finds."""
    total = sum(len(one.train) + len(one.test) for one in dataset.classes)
    faults, warnings = _Findings(), _Findings()
    places: dict[bytes, list[tuple[str, str, str, Path]]] = {}  # content -> class, split, kind, file
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    reports = []
    for one in dataset.classes:
        reports.append(_check_class(one, places, faults, warnings, step))
        _check_counts(one, faults, warnings)
    _check_copies(places, faults, warnings)
    if total == 0:
        faults.note("empty", "", f"{dataset.path}: the folders of this set hold no images")
    hasher = hashlib.sha256(b"".join(sorted(places)))
    return DataReport(dataset, tuple(reports), tuple(faults), tuple(warnings), hasher.hexdigest())


def digest_of(pixels: Any) -> bytes:
    """Identifies decoded pixels uint8 [H, W, C], however the file was named or packed."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def _check_class(
    one: ClassSet,
    places: dict[bytes, list[tuple[str, str, str, Path]]],
    faults: _Findings,
    warnings: _Findings,
    step: Callable[[], None],
) -> ClassReport:
    kinds = Counter(item.kind for item in one.test)
    masks = sum(item.mask is not None for item in one.test)
    counts = (len(one.train), len(one.good), len(one.defective), masks)
    report = ClassReport(one.name, *counts, dict(sorted(kinds.items())))
    sizes: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    corrupt: list[str] = []
    wrong: list[str] = []
    blank: list[Path] = []
    shares: list[float] = []
    by_format: dict[str, Path] = {}
    labelled: list[tuple[str, str, Path, Path | None]] = [("train", GOOD, path, None) for path in one.train]
    labelled += [("test", item.kind, item.path, item.mask) for item in one.test]
    for split, kind, path, mask in labelled:
        size = None
        try:
            image = read_image(path)
        except ImageError as error:
            corrupt.append(str(error))
        else:
            size = (image.pixels.shape[0], image.pixels.shape[1])
            sizes[f"{size[1]} x {size[0]}"] += 1
            formats[image.pixel_format.value] += 1
            by_format.setdefault(image.pixel_format.value, path)
            places.setdefault(digest_of(image.pixels), []).append((one.name, split, kind, path))
        if mask is not None:
            try:
                marked = read_mask(mask, size, path)
            except ImageError as error:
                corrupt.append(str(error))
            except DataError as error:
                wrong.append(str(error))
            else:
                shares.append(float(marked.mean()))
                if not marked.any():
                    blank.append(mask)
        step()
    report.sizes, report.formats = dict(sizes.most_common()), dict(formats.most_common())
    report.defect_share = sum(shares) / len(shares) if shares else None
    if corrupt:
        faults.note("corrupt", one.name, f"{len(corrupt)} files cannot be used", corrupt)
    if wrong:
        faults.note("mask_size", one.name, f"{len(wrong)} masks do not fit their images", wrong)
    if blank:
        warnings.note("blank_mask", one.name, f"{len(blank)} masks mark nothing; they say the image is good", blank)
    if len(by_format) > 1:
        named = [f"{name}, such as {path}" for name, path in by_format.items()]
        faults.note("mixed", one.name, "gray and colour images are mixed; keep those of one camera", named)
    if len(report.sizes) > 1:
        warnings.note("sizes", one.name, f"images of {len(report.sizes)} sizes; a line's frames have one")
    return report


def _check_counts(one: ClassSet, faults: _Findings, warnings: _Findings) -> None:
    good, defective = len(one.good), len(one.defective)
    if not one.train and not one.test:
        faults.note("empty", one.name, "no images at all")
        return
    if not one.train and not good:
        faults.note("no_good", one.name, "no good images: nothing can be fitted, and false rejects cannot be counted")
    elif one.test and not good:
        faults.note("no_good", one.name, "no good images in the test: ranking metrics need good ones and defects")
    if one.train and one.test and not defective:
        faults.note("no_defects", one.name, "no defective images in the test: ranking metrics need both")
    elif not defective:
        warnings.note("no_defects", one.name, "no defective images: a fit and its limit are possible, no evaluation")
    if not one.train and good:
        warnings.note("no_train", one.name, "no images to fit on; a fit takes half of the good ones")
    if len(one.train) == 1:
        warnings.note("one_image", one.name, "a single image to fit on: the limit is a guess, no rate can be promised")
    missing = [item.path for item in one.unmasked]
    if missing and len(missing) < defective:
        warnings.note(
            "no_mask", one.name, f"{len(missing)} defective images have no mask; pixel metrics leave them out", missing
        )
    elif missing:
        warnings.note("no_masks", one.name, "no masks: pixel metrics cannot be computed")


def _check_copies(
    places: dict[bytes, list[tuple[str, str, str, Path]]], faults: _Findings, warnings: _Findings
) -> None:
    """Images that are there more than once, by decoded content."""
    leaks: dict[str, list[str]] = {}
    contradictions: dict[str, list[str]] = {}
    copies: dict[str, list[str]] = {}
    for found in places.values():
        if len(found) < 2:
            continue
        name = found[0][0]
        text = " = ".join(str(path) for *_, path in found)
        if len({(kind == GOOD) for _, _, kind, _ in found}) > 1:
            contradictions.setdefault(name, []).append(text)
        elif len({split for _, split, _, _ in found}) > 1:
            leaks.setdefault(name, []).append(text)
        else:
            copies.setdefault(name, []).append(text)
    for name, texts in contradictions.items():
        faults.note("contradiction", name, f"{len(texts)} images are labelled good as well as defective", texts)
    for name, texts in leaks.items():
        faults.note("leak", name, f"{len(texts)} images are in train as well as in test; keep one copy", texts)
    for name, texts in copies.items():
        warnings.note("copies", name, f"{len(texts)} images are there more than once", texts)

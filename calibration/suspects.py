"""Good images that score unlike the others: likely defects that slipped in among them.

A head fitted on a defect learns to accept it, so such images should be looked at before a bundle is trusted. Each
image is scored by a fit that has not seen it (held out, or a memory bank without its own patches). Named are scores
beyond Tukey's far fence, three interquartile ranges above the upper quartile (Tukey, 1977; one in 400,000 of normally
distributed scores), that also exceed the limit which the others alone would give. Up to a fifth of the images may be
defective without hiding each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.data_check import Finding
from calibration.datasets import NormalImages, load_files
from calibration.errors import DataError
from calibration.plan import Plan
from calibration.sets import Dataset
from calibration.thresholds import Origin, choose_limit

AT_LEAST = 8
"""Scores below which quartiles mean nothing."""

FENCE = 3.0
RATE = 0.01
SHOWN = 10
"""Images named in a warning; the rest are counted."""

BANK = 4000
"""Patches of the bank that looks for suspects where there is no fit to take scores from."""

Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Suspect:
    """An image, and its score in percent of the limit that the other images alone would give."""

    path: Path
    percent: float

    def __str__(self) -> str:
        return f"{self.path} ({self.percent:.0f} %)"


def find_suspects(paths: Sequence[Path], scores: NDArray[np.float64]) -> tuple[Suspect, ...]:
    """The images whose scores [n, R] (each by a fit that has not seen it) are far out, the farthest first."""
    if len(paths) < AT_LEAST:
        return ()
    lower, upper = np.quantile(scores, (0.25, 0.75), axis=0)
    # Equal scores have no spread to judge by; their tiniest difference must not make a suspect.
    spread = np.maximum(upper - lower, 1e-3 * np.abs(upper) + 1e-9)
    far = (scores > upper + FENCE * spread).any(axis=1)
    if not far.any():
        return ()
    percents = np.full(len(paths), -np.inf)
    for column in scores.T:
        others = choose_limit(column[~far], RATE, Origin.CROSS)
        percents = np.maximum(percents, 100.0 * (column - others.floor) / (others.limit - others.floor))
    found = [Suspect(paths[i], float(percents[i])) for i in np.flatnonzero(far & (percents > 100.0)).tolist()]
    return tuple(sorted(found, key=lambda suspect: -suspect.percent))


def among_fitted(
    images: NormalImages, plan: Plan, alone: NDArray[np.float64] | None, scores: NDArray[np.float64]
) -> tuple[Suspect, ...]:
    """Images that score unlike the others, among those that were scored by a fit without them."""
    found: list[Suspect] = []
    if alone is not None:
        found += find_suspects([images.paths[i] for i in plan.fit], alone)
    if plan.origin is Origin.HELD_OUT:
        found += find_suspects([images.paths[i] for i in plan.held], scores)
    return tuple(sorted(found, key=lambda suspect: -suspect.percent))


def warning(suspects: Sequence[Suspect]) -> str:
    """What to tell of them; "" where there are none."""
    if not suspects:
        return ""
    shown = ", ".join(map(str, suspects[:SHOWN]))
    more = f" and {len(suspects) - SHOWN} more" if len(suspects) > SHOWN else ""
    return (
        f"{len(suspects)} of the good images score unlike the others (in percent of the limit that the others alone "
        f"would give): {shown}{more}. Look at them: a defect among the good images teaches the system to accept it"
    )


def look_through(images: NormalImages, report: Report, encoder: str = "compact") -> tuple[Suspect, ...]:
    """Suspects among images that nothing has been fitted on yet, by a small memory bank. Raises `InspectError`."""
    from calibration import memory_bank
    from calibration.options import FitOptions, default_size, load_encoder, make_pipeline
    from pipelines.heads.memory_bank import MemoryBank

    if len(images) < AT_LEAST:
        return ()
    opened = load_encoder(encoder)
    size = default_size(opened, "memory_bank", images.aspect)
    bank = min(BANK, size[0] * size[1] // opened.patch**2 * len(images))
    options = FitOptions(images=None, out=Path(), size=size, any_size=True, bank=bank)
    pipeline = make_pipeline(options, opened, images).eval()
    assert isinstance(pipeline.head, MemoryBank)
    kept = memory_bank.features(pipeline, images, range(len(images)), None, report)
    origin = memory_bank.fill(pipeline.head, kept, pipeline.scoring.keep, 0, report)
    scores = memory_bank.leave_one_out(pipeline, kept, origin, report)
    return find_suspects(images.paths, scores.double().numpy())


def among(dataset: Dataset, report: Report) -> list[Finding]:
    """A warning per class of a labelled set whose good images (those to fit on, if any) hold suspects.

    Classes whose images cannot be scored together are left out: other findings say why. Raises `InspectError`.
    """
    found = []
    for one in dataset.classes:
        paths = one.train or tuple(item.path for item in one.good)
        if len(paths) < AT_LEAST:
            continue

        def tell(what: str, done: int, total: int, note: str, name: str = one.name) -> None:
            report(f"{name}: {what}", done, total, note)

        try:
            images = load_files(paths, one.name, skip_bad=True)
        except DataError:
            continue
        suspects = look_through(images, tell)
        if suspects:
            files = tuple(str(suspect.path) for suspect in suspects)
            found.append(Finding("suspects", one.name, warning(suspects), files))
    return found

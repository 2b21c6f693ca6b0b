"""A bundle's limit, chosen again on labelled images: scored, counted by every rule, written as a new bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError, FitError
from calibration.evaluate import Fingerprint, Judge
from calibration.labelled_limits import Labelled, LabelledChoice, Rule, choose
from calibration.sets import ClassSet, Dataset, Item, read_mask
from calibration.thresholds import check_rate, percent
from pipelines.bundle import Bundle, Limit, RegionLimit, with_limit
from pipelines.parity import check as check_parity

Report = Callable[[str, int, int, str], None]
"""report(what, done, total, note)"""

ALL = "all"
"""Name of all classes together."""


@dataclass(frozen=True)
class Relimit:
    """Choices by every rule that the images allow, for each class and for all together, and what was not possible."""

    bundle: Bundle
    dataset: Dataset
    rate: float
    seed: int
    fingerprint: str
    data: dict[str, Labelled]
    choices: dict[str, dict[Rule, LabelledChoice]]
    impossible: dict[str, str]

    @property
    def whole(self) -> str:
        """Name of the entry of all images."""
        return ALL if ALL in self.data else next(iter(self.data))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        names = self.bundle.config.region_names
        return {
            "bundle": str(self.bundle.path),
            "id": self.bundle.id,
            "data": str(self.dataset.path),
            "data_fingerprint": self.fingerprint,
            "false_reject_rate": self.rate,
            "seed": self.seed,
            "classes": {
                name: {rule.value: _choice_json(choice, names) for rule, choice in found.items()}
                for name, found in self.choices.items()
            },
            "impossible": self.impossible,
        }


def _choice_json(choice: LabelledChoice, names: tuple[str, ...]) -> dict[str, Any]:
    counts = {"false_rejects": choice.false_rejects, "misses": choice.misses}
    if choice.validated is not None:
        counts |= dict(zip(("false_rejects_validated", "misses_validated"), choice.validated, strict=True))
    found: dict[str, Any] = {
        "regions": {
            name: {"limit": float(limit), "percent_of_present_limit": float(part)}
            for name, limit, part in zip(names, choice.limits, choice.percents, strict=True)
        }
    }
    for name, count in counts.items():
        found[name] = {"count": count.wrong, "of": count.count, "share": count.share, "interval": list(count.interval)}
    if choice.tails:
        found["guaranteed"] = all(tail.guaranteed for tail in choice.tails)
        found["tail_opinions"] = [tail.second_opinion for tail in choice.tails]
    return found


def relimit(
    judge: Judge, dataset: Dataset, rate: float | None, seed: int, report: Report, only: str | None = None
) -> Relimit:
    """Scores every labelled image (the `test` part of each class) and chooses limits by every rule.

    `rate` None: the bundle's own. `only`: one class, such as one camera. Raises `DataError` where there are no labelled
    images, or one does not fit the bundle; `ImageError` where one does not decode.
    """
    asked = judge.bundle.limit.false_reject_rate if rate is None else rate
    check_rate(asked)
    classes = [one for one in dataset.classes if (only is None or one.name == only) and one.test]
    if not classes:
        names = ", ".join(one.name for one in dataset.classes if one.test) or "none"
        raise DataError(
            f"{dataset.path}: no labelled images{f' of {only}' if only else ''}; there are some of: {names}"
        )
    fingerprint = Fingerprint()
    data = {one.name: _score(one, judge, report, fingerprint) for one in classes}
    if len(data) > 1:
        data[ALL] = _joined(list(data.values()))
    choices: dict[str, dict[Rule, LabelledChoice]] = {}
    impossible: dict[str, str] = {}
    for name, labelled in data.items():
        choices[name] = {}
        for rule in Rule:
            try:
                choices[name][rule] = choose(rule, labelled, asked, seed)
            except DataError as error:
                impossible[f"{name}: {rule.value}"] = str(error)
    return Relimit(judge.bundle, dataset, asked, seed, fingerprint.hexdigest(), data, choices, impossible)


def _score(one: ClassSet, judge: Judge, report: Report, fingerprint: Fingerprint) -> Labelled:
    scores: list[NDArray[np.float32]] = []
    touches: list[NDArray[np.bool_]] = []
    regions = len(judge.regions)
    known = regions > 1 and all(item.mask is not None for item in one.defective)
    for done, item in enumerate(one.test, start=1):
        frame = judge.read(item.path)
        fingerprint.add(frame, item)
        scores.append(judge.judge(frame).scores)
        if known:
            touches.append(_touched(item, judge, (frame.shape[0], frame.shape[1])))
        report(f"{one.name}: scores", done, len(one.test), "")
    return Labelled(
        np.array(scores, np.float64),
        np.array([item.defective for item in one.test]),
        np.array(touches) if known else None,
        np.array([region.limit for region in judge.regions]),
        np.array([region.floor for region in judge.regions]),
    )


def _touched(item: Item, judge: Judge, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which regions [R] the image's defect touches."""
    areas = judge.bundle.config.regions
    if item.mask is None:
        return np.zeros(len(areas), bool)
    mask = read_mask(item.mask, size, item.path)
    return np.array(
        [mask[area.y_px : area.y_px + area.height_px, area.x_px : area.x_px + area.width_px].any() for area in areas]
    )


def _joined(parts: list[Labelled]) -> Labelled:
    known = all(part.touches is not None for part in parts)
    return Labelled(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.defective for part in parts]),
        np.concatenate([part.touches for part in parts if part.touches is not None]) if known else None,
        parts[0].limits,
        parts[0].floors,
    )


def write(found: Relimit, judge: Judge, rule: Rule, out: Path) -> Bundle:
    """The bundle with the limits of `rule` over all images, at `out`. Weights and reference frames stay as they are.

    0 % is the median of the labelled good images. Raises `DataError` where the images do not allow the rule,
    `FitError` where its limit would reject half of the good images, `ParityError` where the engine would not do with
    the new limit, `BundleError` where the place is taken or cannot be written.
    """
    name = found.whole
    choice = found.choices[name].get(rule)
    if choice is None:
        raise DataError(f"{found.dataset.path}: {found.impossible[f'{name}: {rule.value}']}")
    data = found.data[name]
    floors = np.median(data.scores[~data.defective], axis=0)
    if not (choice.limits > floors).all():
        raise FitError(
            f"the limit by {rule.value} rejects {choice.false_rejects.wrong} of {choice.false_rejects.count} good "
            "images, so it is of no use: some defects score like good parts. See which with `calibrate evaluate`; a "
            "larger input, another method or better light may show them"
        )
    limit = Limit(
        regions=tuple(
            RegionLimit(name=region.name, limit=float(new), floor=float(floor))
            for region, new, floor in zip(judge.regions, choice.limits, floors, strict=True)
        ),
        method=_METHOD[rule] if not choice.tails else choice.tails[0].method,
        false_reject_rate=found.rate if rule is Rule.FALSE_REJECT else _realised(choice),
        n_normals=data.good,
        guarantee=words(choice, data, found.rate),
        seed=found.seed,
    )
    check_parity(judge.engine, found.bundle.reference(), limit).require()
    told = {
        "made_by": "calibrate limit",
        "rule": rule.value,
        "limit_of": found.bundle.id,
        "limit_data": found.dataset.name,
        "limit_data_fingerprint": found.fingerprint,
        "limit_good": data.good,
        "limit_defective": data.bad,
        "limit_false_rejects": choice.false_rejects.wrong,
        "limit_misses": choice.misses.wrong,
    }
    return with_limit(found.bundle, out, limit, told)


_METHOD = {
    Rule.F1: "largest F1 on labelled images",
    Rule.ZERO_MISS: "no miss among labelled defects",
    Rule.FALSE_REJECT: "good parts alone",
}


def _realised(choice: LabelledChoice) -> float:
    """The rate that a limit stands for where none was asked: of the next good image, by exchangeability."""
    return min((choice.false_rejects.wrong + 1) / (choice.false_rejects.count + 1), 0.999)


def words(choice: LabelledChoice, data: Labelled, rate: float) -> str:
    """What may be claimed of the limits, for the bundle."""
    if choice.tails:
        share = len(choice.tails)
        split = f"Each of {share} regions is given {percent(rate / share)}. " if share > 1 else ""
        return f"{split}{choice.tails[0].words} This holds if the fit has not seen these images."
    did = (
        f"Of the labelled images it rejects {choice.false_rejects.wrong} of {choice.false_rejects.count} good ones and "
        f"misses {choice.misses.wrong} of {choice.misses.count} defects"
    )
    if choice.validated is not None:
        wrong, missed = choice.validated
        did += f"; cross-validated {wrong.wrong} and {missed.wrong}"
    if choice.rule is Rule.ZERO_MISS:
        known = _fewest(data)
        return (
            f"Of defects like the {known} labelled ones at most {percent(1 / (known + 1))} are missed on average. "
            f"No guarantee on false rejects. {did}."
        )
    return f"No guarantee: the limit of the largest F1. {did}."


def _fewest(data: Labelled) -> int:
    """Defects that the least-tried region's limit rests on."""
    if data.touches is None:
        return data.bad
    counts = (data.touches & data.defective[:, None]).sum(axis=0)
    return int(counts[counts > 0].min()) if (counts > 0).any() else data.bad

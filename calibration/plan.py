"""How the images are used: which are fitted, which are held out, and what that can promise."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.datasets import split
from calibration.errors import TooFewImages
from calibration.thresholds import Origin, images_for, percent, smallest_rate

FIT_AT_LEAST = 32
"""Images left for the fit before so many are held out that a promise holds."""

HELD_SHARE = 0.25
CROSS_AT_LEAST = 4
TRAIN_HOLD_AT_LEAST = 16


@dataclass(frozen=True)
class Plan:
    """Image numbers to fit on and to hold out, and where the scores for the limit come from.

    `rate` is the rate per region: R regions at rate/R each reject at most `rate` of the parts together.
    """

    fit: tuple[int, ...]
    held: tuple[int, ...]
    origin: Origin
    rate: float


def make_plan(
    count: int,
    rate: float,
    regions: int,
    seed: int,
    trains: bool,
    held_out: int | None = None,
    guarantee: bool = False,
) -> Plan:
    """Decides for `count` images; `trains` tells a trained head from a bank, which can leave one image out for free.

    With images enough the number a promise needs, or a quarter if that is more, is held out. Else a bank is filled
    with all and judged by leaving one out (from 4 images on), a trained head holds a quarter out (from 16 on), and
    below that altered copies of the images must do. `held_out` overrides the number.

    Raises `TooFewImages` where `guarantee` is asked and the images cannot give it, naming the smallest rate they can.
    """
    each = rate / regions
    needed = images_for(each)
    quarter = round(HELD_SHARE * count)
    if held_out is None:
        if count >= needed + FIT_AT_LEAST:
            held_out = max(needed, quarter)
        elif guarantee and needed < count:
            held_out = needed
        elif trains and count >= TRAIN_HOLD_AT_LEAST:
            held_out = quarter
        else:
            held_out = 0
    if guarantee and held_out < needed:
        most = max(count - 1, 0)
        best = min(1.0, regions * smallest_rate(most))
        raise TooFewImages(
            f"{count} images cannot promise a false-reject rate of {percent(rate)}"
            + (f" over {regions} regions" if regions > 1 else "")
            + f": that needs {needed} held out and at least one for the fit. The smallest rate they can promise is "
            f"{percent(best)}; bring more images, ask for a higher --false-reject-rate, or leave out --guarantee"
        )
    fit, held = split(count, held_out, seed)
    if held:
        origin = Origin.HELD_OUT
    elif not trains and count >= CROSS_AT_LEAST:
        origin = Origin.CROSS
    else:
        origin = Origin.AUGMENTED
    return Plan(tuple(fit), tuple(held), origin, each)

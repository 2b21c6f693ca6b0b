"""What `calibrate limit` tells."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from calibration.labelled_limits import Count, LabelledChoice, Rule
from calibration.relimit import Relimit
from calibration.thresholds import percent

_WORDS = {
    Rule.FALSE_REJECT: "good parts alone",
    Rule.F1: "largest F1",
    Rule.ZERO_MISS: "no miss",
}


def show_limits(console: Console, found: Relimit) -> None:
    """Per class the limits by each rule, in percent of the present limit, and what they do."""
    names = found.bundle.config.region_names
    for name, choices in found.choices.items():
        data = found.data[name]
        _line(console, f"{name}: {data.good} good and {data.bad} defective images")
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
        for head in ("limit by", "% of present limit", "good rejected", "defects missed"):
            table.add_column(head, justify="left" if head == "limit by" else "right")
        present = data.rejected(data.limits)
        now = (
            Count(int((present & ~data.defective).sum()), data.good),
            Count(int((~present & data.defective).sum()), data.bad),
        )
        table.add_row("present limit", "100", *map(_count, now))
        for rule, choice in choices.items():
            table.add_row(_WORDS[rule], _percents(choice, names), *_counts(choice))
        console.print(table)
        for rule, choice in choices.items():
            _opinion(console, found, rule, choice, names)
    for what, why in found.impossible.items():
        _line(console, f"{what}: {why}")
    _line(
        console,
        "Below each share its exact 95 % interval, and after 'unseen' what cross-validation counts. The limit by good "
        f"parts asks for {percent(found.rate)} and promises it only for images that the fit has not seen.",
    )


def _opinion(console: Console, found: Relimit, rule: Rule, choice: LabelledChoice, names: tuple[str, ...]) -> None:
    """What the tail fit says of a limit by good parts alone, and why it promises nothing where it does not."""
    for number, tail in enumerate(choice.tails):
        name, region = names[number], found.bundle.limit.regions[number]
        if tail.second_opinion is not None:
            part = region.percent(tail.second_opinion)
            _line(console, f"{name}: by {_WORDS[rule]}, a Pareto tail would say {part:.0f} % of the present limit")
        if not tail.guaranteed:
            _line(console, f"{name}: {tail.words}")


def _percents(choice: LabelledChoice, names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return f"{choice.percents[0]:.1f}"
    return "\n".join(f"{name} {value:.1f}" for name, value in zip(names, choice.percents, strict=True))


def _counts(choice: LabelledChoice) -> tuple[str, str]:
    both = [_count(choice.false_rejects), _count(choice.misses)]
    if choice.validated is not None:
        both = [f"{text}\nunseen {count.wrong}" for text, count in zip(both, choice.validated, strict=True)]
    return both[0], both[1]


def _count(count: Count) -> str:
    if not count.count:
        return "-"
    low, high = count.interval
    return f"{count.wrong} of {count.count}\n{100 * low:.1f} to {100 * high:.1f} %"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

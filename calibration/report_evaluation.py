"""What `calibrate evaluate` and `calibrate compare` tell on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from calibration.compare import Comparison
from calibration.results import METRICS, Evaluation
from calibration.robustness import Robustness
from calibration.thresholds import percent

HEADS = ("I-AUROC", "I-AP", "I-F1", "P-AUROC", "P-AP", "P-F1", "AU-PRO", "mAD")
"""Short names of `METRICS`."""


def points(value: float | None) -> str:
    """A metric in percent points, as the field prints it."""
    return "-" if value is None else f"{100 * value:.1f}"


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """The table per class and mean, what the limit does, and what could not be computed."""
    table = _table(f"{evaluation.method} on {evaluation.dataset} [%]", ("class", *HEADS))
    for one in evaluation.classes:
        table.add_row(one.name, *(points(one.metrics[name]) for name in METRICS))
    if len(evaluation.classes) > 1:
        table.add_section()
        table.add_row("mean", *(points(value) for value in evaluation.mean.values()))
    console.print(table)
    table = _table("at the limit", ("class", "false rejects", "missed defects", "median ms"))
    for one in evaluation.classes:
        (wrong, good), (missed, bad) = one.false_rejects, one.misses
        table.add_row(one.name, f"{wrong} of {good}", f"{missed} of {bad}", f"{one.latency.median_ms:.1f}")
    console.print(table)
    for name, (low, high) in evaluation.intervals.items():
        head = HEADS[METRICS.index(name)]
        console.print(f"{head} 95 % interval {points(low)} to {points(high)}", highlight=False)
    for one in evaluation.classes:
        for reason, names in _by_reason(one.unavailable).items():
            _line(console, f"{one.name}: no {', '.join(HEADS[METRICS.index(name)] for name in names)}: {reason}")
        for note in one.notes:
            _line(console, f"{one.name}: {note}")
    for note in evaluation.notes:
        _line(console, f"note: {note}")


def _table(title: str, heads: Sequence[str]) -> Table:
    """A table that fits 80 columns: the first column text, the others numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    for number, head in enumerate(heads):
        # Names of classes are often one long word: broken, rather than cut.
        table.add_column(head, justify="right" if number else "left", no_wrap=bool(number), overflow="fold")
    return table


def _by_reason(unavailable: object) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    assert isinstance(unavailable, dict)
    for name, reason in unavailable.items():
        found.setdefault(reason, []).append(name)
    return found


def show_robustness(console: Console, found: Sequence[Robustness]) -> None:
    """At which strength of each alteration false rejects exceed the rate asked for."""
    for one in found:
        table = Table(title=f"{one.class_name}: false rejects exceed {percent(one.rate)} at")
        table.add_column("alteration")
        for head in ("from", "tried", "rejected good images"):
            table.add_column(head, justify="right")
        for curve in one.curves:
            at = curve.breaks(one.rate)
            first = (
                "unaltered already"
                if curve.neutral in at
                else ", ".join(f"{strength:+g}" if strength < 0 else f"{strength:g}" for strength in at) or "never"
            )
            tried = f"{min(curve.strengths):g} to {max(curve.strengths):g} {curve.unit}"
            counts = " ".join(map(str, curve.false_rejects))
            table.add_row(curve.name, first, tried, f"{counts} of {curve.good.shape[1]}")
        console.print(table)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Means of both runs with differences and intervals; per class the differences."""
    one = len(comparison.classes) == 1
    title = f"{next(iter(comparison.classes))} [%]" if one else f"mean of {len(comparison.classes)} classes [%]"
    table = _table(title, ("metric", "A", "B", "B - A", "95 % interval"))
    metrics = next(iter(comparison.classes.values())) if one else comparison.mean
    for name, head in zip(METRICS, HEADS, strict=True):
        found = metrics[name]
        ends = "" if found.interval is None else f"{_signed(found.interval[0])} to {_signed(found.interval[1])}"
        table.add_row(head, points(found.first), points(found.second), _signed(found.difference), ends)
    console.print(table)
    if not one:
        table = _table("B - A per class", ("class", *HEADS))
        for name, row in comparison.classes.items():
            table.add_row(name, *(_signed(row[metric].difference) for metric in METRICS))
        console.print(table)
    _line(console, f"A: {comparison.names[0]} ({comparison.what[0]})")
    _line(console, f"B: {comparison.names[1]} ({comparison.what[1]})")
    for note in comparison.notes:
        _line(console, f"note: {note}")


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

"""The report of a comparison: two evaluations side by side, one HTML file, no network."""

from __future__ import annotations

from html import escape

from calibration import charts
from calibration.compare import Comparison, Difference
from calibration.html_page import facts, figure, note, page, table
from calibration.report_evaluation import HEADS, points
from calibration.results import METRICS


def render(comparison: Comparison) -> str:
    """The whole document. Raises `CalibrationError` where matplotlib is missing."""
    rows = [("", [escape(name), *map(_cell, metrics.values())]) for name, metrics in comparison.classes.items()]
    if len(rows) > 1:
        rows.append(("mean", ["mean", *map(_cell, comparison.mean.values())]))
    shown = comparison.mean
    have = [name for name in METRICS if shown[name].difference is not None]
    parts = [
        "<h1>Comparison of two evaluations</h1>",
        facts(
            (letter, f"{escape(what)}<br><code>{escape(name)}</code>")
            for letter, name, what in zip("AB", comparison.names, comparison.what, strict=True)
        ),
        *map(note, comparison.notes),
        "<h2>Metrics [%]</h2>",
        table(("class", *HEADS), rows),
        "<p><small>A, then B, then B - A with its 95 % bootstrap interval over images; bold where the interval leaves "
        "out zero. Pixel metrics have no interval.</small></p>",
    ]
    if have:
        names = [HEADS[METRICS.index(name)] for name in have]
        values = [100.0 * (shown[name].difference or 0.0) for name in have]
        ends = [_percent(shown[name].interval) for name in have]
        parts.append("<h2>Mean differences</h2>" + figure(charts.differences(names, values, ends)))
    parts.append("<h2>At the limit</h2>" + _limits(comparison))
    parts.append("<h2>How they were made</h2>")
    for letter, run in zip("AB", comparison.runs, strict=True):
        made = run["provenance"]
        parts.append(
            facts(
                (
                    (f"{letter}: command", f"<code>{escape(str(made.get('command')))}</code>"),
                    ("data fingerprint", f"<code>{escape(str(made.get('data_fingerprint')))}</code>"),
                    ("machine", escape(str(made.get("machine")))),
                )
            )
        )
    return page("Comparison", parts)


def _percent(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if ends is None else (100.0 * ends[0], 100.0 * ends[1])


def _cell(one: Difference) -> str:
    text = f"{points(one.first)}<br>{points(one.second)}"
    if one.difference is None:
        return text
    change = f"{100 * one.difference:+.1f}"
    if one.interval is None:
        return f"{text}<br>{change}"
    low, high = one.interval
    sure = low > 0 or high < 0
    change = f"<b>{change}</b>" if sure else change
    return f'{text}<br>{change}<span class="ci">{100 * low:+.1f} to {100 * high:+.1f}</span>'


def _limits(comparison: Comparison) -> str:
    rows = []
    for name in comparison.classes:
        cells = [escape(name)]
        for run in comparison.runs:
            one = run["classes"][name]
            at, counts = one["at_limit"], one["counts"]
            cells += [
                f"{at['false_rejects']} of {counts['good']}",
                f"{at['misses']} of {counts['defective']}",
                f"{one['latency']['median_ms']:.1f}",
            ]
        rows.append(("", cells))
    heads = [f"{letter} {what}" for letter in "AB" for what in ("false rejects", "missed", "ms")]
    return table(("class", *heads), rows)

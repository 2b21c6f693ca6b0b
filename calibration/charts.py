"""Charts of a report as inline SVG, drawn by matplotlib (optional extra `report`)."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.results import ClassResult, ScoredImage
from calibration.robustness import Robustness

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GOOD, BAD, LIMIT, INK = "#2a7f9e", "#d1495b", "#222222", "#333333"
_CLASS_COLOURS = ("#2a7f9e", "#d1495b", "#edae49", "#66a182", "#8d5fa3", "#5c6b73")
_HIGHEST = 300.0  # percent of limit at which histograms end; more is counted in the last bar


def require() -> None:
    """Raises `CalibrationError` where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise CalibrationError(
            "--html draws charts with matplotlib, which is not installed; install edge-inspect[report]"
        )


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    require()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color("#999999")
        one.tick_params(colors=INK, labelsize=8, length=3)
        one.grid(color="#e6e6e6", linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element for HTML; `name` keeps its ids apart from other figures'."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg)


def curve(images: Sequence[ScoredImage]) -> tuple[NDArray[np.float64], ...] | None:
    """(false-positive rate, true-positive rate, precision) at every distinct score, falling; None without both."""
    labels = np.array([image.defective for image in images])
    ranks = np.array([image.rank for image in images])
    if labels.all() or not labels.any():
        return None
    order = np.argsort(-ranks, kind="stable")
    ends = np.flatnonzero(np.append(ranks[order][1:] != ranks[order][:-1], True))
    hits, alarms = np.cumsum(labels[order])[ends], np.cumsum(~labels[order])[ends]
    return alarms / (~labels).sum(), hits / labels.sum(), hits / (hits + alarms)


def roc_and_pr(classes: Sequence[ClassResult], legend: bool = True) -> str:
    """ROC and precision-recall curves of the image scores, one line per class; the dot is the limit."""
    figure, (roc, pr) = _figure(7.2, 3.1, 1, 2)
    for number, one in enumerate(classes):
        found = curve(one.images)
        if found is None:
            continue
        fpr, tpr, precision = found
        colour = _CLASS_COLOURS[number % len(_CLASS_COLOURS)]
        roc.plot([0, *fpr], [0, *tpr], color=colour, linewidth=1.4, label=one.name)
        # Step-wise: the average precision is the area under these steps.
        pr.step([0, *tpr], [precision[0], *precision], where="pre", color=colour, linewidth=1.4, label=one.name)
        (wrong, good), (missed, bad) = one.false_rejects, one.misses
        roc.plot([wrong / good], [1 - missed / bad], "o", color=colour, markeredgecolor="white", markersize=7)
        if wrong + bad - missed:
            at = (bad - missed) / (wrong + bad - missed)
            pr.plot([1 - missed / bad], [at], "o", color=colour, markeredgecolor="white", markersize=7)
    roc.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, linestyle="--")
    for axes, x, y, title in (
        (roc, "good images rejected", "defects found", "ROC"),
        (pr, "defects found (recall)", "rejects that are defects (precision)", "Precision and recall"),
    ):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
        axes.set_xlabel(x, fontsize=8.5, color=INK)
        axes.set_ylabel(y, fontsize=8.5, color=INK)
        axes.set_title(title, fontsize=9.5, loc="left", color=INK)
    if legend and 1 < len(classes) <= len(_CLASS_COLOURS):
        roc.legend(fontsize=7.5, frameon=False, loc="lower right")
    return _svg(figure, "roc " + " ".join(one.name for one in classes))


def histogram(one: ClassResult) -> str:
    """Scores of good and defective images in percent of limit, with the limit."""
    figure, (axes,) = _figure(7.2, 2.3)
    percents = {
        "good": np.array([image.percent for image in one.images if not image.defective]),
        "defective": np.array([image.percent for image in one.images if image.defective]),
    }
    every = np.concatenate(list(percents.values()))
    low = min(0.0, float(np.floor(np.quantile(every, 0.002) / 10) * 10))
    high = float(np.clip(np.ceil(every.max() / 20) * 20, 140.0, _HIGHEST))
    edges = np.linspace(low, high, int(np.clip(every.size // 4, 24, 60)) + 1)
    colours = {"good": GOOD, "defective": BAD}
    for name, values in percents.items():
        if values.size:
            axes.hist(
                np.clip(values, low, high),
                bins=edges.tolist(),
                color=colours[name],
                alpha=0.62,
                label=f"{name} ({values.size})",
            )
    axes.axvline(100.0, color=LIMIT, linewidth=1.3)
    axes.text(100.0, 0.98, " limit", transform=axes.get_xaxis_transform(), fontsize=8, va="top", color=LIMIT)
    axes.set_xlim(low, high)
    more = f"; {int((every > high).sum())} images above {high:.0f} % in the last bar" if (every > high).any() else ""
    axes.set_xlabel(f"score, percent of limit{more}", fontsize=8.5, color=INK)
    axes.set_ylabel("images", fontsize=8.5, color=INK)
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)
    return _svg(figure, f"histogram {one.name}")


def robustness(one: Robustness) -> str:
    """One panel per alteration: percent of limit of good and defective images over its strength."""
    columns = 4
    rows = -(-len(one.curves) // columns)
    figure, panels = _figure(7.4, 1.95 * rows + 0.2, rows, columns)
    top = min(_HIGHEST, max(140.0, *(float(np.max(found.good)) * 1.05 for found in one.curves)))
    for found, axes in zip(one.curves, panels, strict=False):
        x = np.arange(len(found.strengths))
        for values, colour, name in ((found.good, GOOD, "good"), (found.defective, BAD, "defective")):
            if values.shape[1]:
                low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=1)
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
                axes.plot(x, middle, color=colour, linewidth=1.4, marker="o", markersize=2.5, label=name)
        axes.plot(x, found.good.max(axis=1), color=GOOD, linewidth=0.8, linestyle=":", label="highest good")
        axes.axhline(100.0, color=LIMIT, linewidth=1.0)
        for strength in found.breaks(one.rate):
            axes.axvline(found.strengths.index(strength), color=BAD, linewidth=0.9, linestyle="--")
        axes.set_xticks(x, [f"{strength:g}" for strength in found.strengths])
        axes.set_ylim(min(0.0, float(found.good.min())), top)
        axes.tick_params(labelsize=7)
        axes.set_title(found.name, fontsize=9, loc="left", color=INK)
        axes.set_xlabel(found.unit, fontsize=7.5, color=INK)
    for axes in panels[len(one.curves) :]:
        axes.set_visible(False)
    for row in range(rows):
        panels[row * columns].set_ylabel("percent of limit", fontsize=7.5, color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    if len(panels) > len(one.curves):
        figure.legend(handles, labels, fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(0.98, 0.12))
    else:
        panels[0].legend(handles, labels, fontsize=7, frameon=False)
    return _svg(figure, f"robustness {one.class_name}")


def differences(names: Sequence[str], values: Sequence[float], ends: Sequence[tuple[float, float] | None]) -> str:
    """Horizontal bars of differences in percent points, with intervals where there are any."""
    figure, (axes,) = _figure(7.2, 0.9 + 0.27 * len(names))
    y = np.arange(len(names))[::-1]
    axes.barh(y, values, height=0.6, color=[GOOD if value >= 0 else BAD for value in values], alpha=0.75)
    for place, interval in zip(y, ends, strict=True):
        if interval is not None:
            axes.plot(interval, [place, place], color=INK, linewidth=1.3)
    axes.axvline(0.0, color=LIMIT, linewidth=1.0)
    axes.set_yticks(y, names)
    axes.set_xlabel("B - A, percent points; lines are 95 % intervals", fontsize=8.5, color=INK)
    axes.grid(axis="y", visible=False)
    return _svg(figure, "differences " + " ".join(names))

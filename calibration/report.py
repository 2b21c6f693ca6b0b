"""What `calibrate` tells at the end of a command."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from calibration.fit import FitSummary
from calibration.score import Results
from calibration.thresholds import percent


def show_fit(console: Console, summary: FitSummary) -> None:
    """The bundle, its limits and what they promise."""
    table = Table(title=f"{summary.method} on {len(summary.images)} images, {summary.seconds:.0f} s")
    for column in ("region", "limit", "floor", "tail's opinion", "scores", "from"):
        table.add_column(column, justify="left" if column in ("region", "from") else "right")
    for name, choice in zip(summary.bundle.config.region_names, summary.choices, strict=True):
        second = "-" if choice.second_opinion is None else f"{choice.second_opinion:.5g}"
        table.add_row(
            name, f"{choice.limit:.5g}", f"{choice.floor:.5g}", second, str(choice.scores), choice.origin.value
        )
    console.print(table)
    console.print(summary.bundle.limit.guarantee, highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"wrote {summary.bundle.path} ({summary.bundle.id[:12]})", highlight=False, markup=False, soft_wrap=True
    )


def show_scores(console: Console, results: Results) -> None:
    """Counts, and error rates and AUROC where the folders tell good from defective."""
    labels: dict[str, list[float]] = {}
    for file in results.files:
        labels.setdefault(file.label, []).append(file.percent)
    table = Table(title=f"{len(results.files)} images, engine {results.engine}")
    for column in ("folder", "images", "rejected", "median", "highest"):
        table.add_column(column, justify="left" if column == "folder" else "right")
    for label, values in sorted(labels.items()):
        ordered = sorted(values)
        rejected = sum(value > 100.0 for value in values)
        table.add_row(
            label or ".",
            str(len(values)),
            f"{rejected} ({percent(rejected / len(values))})",
            f"{ordered[len(ordered) // 2]:.0f} %",
            f"{ordered[-1]:.0f} %",
        )
    console.print(table)
    if results.image_auroc is not None:
        console.print(f"image AUROC {results.image_auroc:.4f}", highlight=False)
    for line in results.skipped:
        console.print(f"left out {line}", highlight=False, markup=False)

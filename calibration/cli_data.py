"""`calibrate data`: looking at labelled image sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Looks at labelled image sets.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Looks at labelled image sets."""


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A data set, a class of one, or a line's data folder.")],
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Writes all findings as JSON.")] = None,
    suspects: Annotated[
        bool, typer.Option(help="Also scores the good images, each without itself, to name defects among them.")
    ] = True,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; all cores otherwise.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Shows faults only.")] = False,
) -> None:
    """Decodes every image and mask, and tells what would make results wrong.

    Good images that score unlike the others are named: likely defects that slipped in (about 0.1 s per image;
    --no-suspects leaves that out).

    Exit code 0: usable, perhaps with warnings. 1: not usable as it is; the faults say why.
    """
    from calibration.data_check import DataReport
    from calibration.data_check import check as run
    from calibration.progress import Reporter
    from calibration.score import to_text, write_text
    from calibration.sets import open_dataset

    console = Console()
    dataset = open_dataset(folder)
    with Reporter(console, quiet) as reporter:
        report: DataReport = run(dataset, lambda done, total: reporter("images", done, total))
        if suspects:
            # torch takes seconds to import.
            from calibration.cli import use_threads
            from calibration.suspects import among

            use_threads(threads)
            report = replace(report, warnings=(*report.warnings, *among(dataset, reporter)))
    if json is not None:
        write_text(json, to_text(report.to_json()))
    if not quiet:
        _show(console, report)
    for finding in report.faults:
        where = f"{finding.class_name}: " if finding.class_name else ""
        Console(stderr=True).print(
            f"fault: {where}{finding.text}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    if not report.usable:
        raise typer.Exit(1)


def _show(console: Console, report: object) -> None:
    from calibration.data_check import DataReport

    assert isinstance(report, DataReport)
    table = Table(title=f"{report.dataset.name}: {report.dataset.layout}")
    for column in ("class", "train", "good", "defects", "masks", "sizes", "format", "defect area"):
        table.add_column(column, justify="left" if column in ("class", "sizes", "format") else "right")
    for one in report.classes:
        sizes = ", ".join(list(one.sizes)[:1])
        if len(one.sizes) > 1:
            sizes += f" and {len(one.sizes) - 1} more"
        area = "-" if one.defect_share is None else f"{100 * one.defect_share:.2g} %"
        counts = (one.train, one.good, one.defective, one.masks)
        table.add_row(one.name, *map(str, counts), sizes, ", ".join(one.formats), area)
    console.print(table)
    for note in report.dataset.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    for finding in report.warnings:
        where = f"{finding.class_name}: " if finding.class_name else ""
        console.print(f"warning: {where}{finding.text}", markup=False, highlight=False, soft_wrap=True)
    if report.usable:
        console.print("usable", style="green", highlight=False)

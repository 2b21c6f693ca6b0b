"""`calibrate limit`: a bundle's limit, chosen again where labelled images are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from calibration.labelled_limits import Rule
from calibration.progress import Reporter


def limit(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by `calibrate fit`.")],
    data: Annotated[Path, typer.Option("--data", metavar="DATASET", help="A labelled set, or a line's data folder.")],
    rule: Annotated[
        Rule | None,
        typer.Option(help="Rule of the new bundle: false_reject by good images alone, f1, zero_miss. [--out: f1]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="BUNDLE", help="The bundle to write; must not exist.")
    ] = None,
    false_reject_rate: Annotated[
        float | None, typer.Option(help="Share of good parts that may be rejected, 0..1. [the bundle's]")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Only this class, or camera. [all]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the cross-validation.")] = 0,
    engine: Annotated[
        str | None, typer.Option(metavar="openvino|torch", help="Engine; otherwise the first that may judge.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Writes all results as JSON.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; all cores otherwise.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Shows errors only.")] = False,
) -> None:
    """Compares limits on labelled images: by good ones alone, of the largest F1, and without a miss.

    Each is shown in percent of the present limit, with the false rejects and misses it makes. A bundle never changes:
    with --out, the limit of --rule goes into a new one. Or set the percent as `limit_percent` of a camera.
    """
    from calibration.evaluate import Judge
    from calibration.fit import check_new
    from calibration.relimit import relimit, write
    from calibration.report_limits import show_limits
    from calibration.score import open_engine, to_text, write_text
    from calibration.sets import open_dataset
    from pipelines.bundle import Bundle

    if out is not None:
        check_new(out)
    opened = Bundle.open(bundle)
    dataset = open_dataset(data)
    console = Console()
    with Reporter(console, quiet) as reporter, open_engine(opened, engine, threads, reporter.say) as loaded:
        judge = Judge(opened, loaded)
        found = relimit(judge, dataset, false_reject_rate, seed, reporter, only)
        made = None if out is None else write(found, judge, rule or Rule.F1, out)
    if json is not None:
        write_text(json, to_text(found.to_json() | {"written": None if made is None else str(made.path)}))
    if not quiet:
        show_limits(console, found)
        if made is not None:
            console.print(made.limit.guarantee, highlight=False, markup=False, soft_wrap=True)
            console.print(f"wrote {made.path} ({made.id[:12]})", highlight=False, markup=False, soft_wrap=True)

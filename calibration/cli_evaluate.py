"""`calibrate evaluate` and `calibrate compare`: the field's metrics of any bundle or method on any labelled set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from calibration.errors import CalibrationError
from calibration.progress import Reporter

if TYPE_CHECKING:
    from calibration.options import FitOptions

EXAMPLES, ALTERED = 4, 24
"""Worst cases per class and side in a report; images per label in a robustness check."""

HtmlFile = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Writes a report: one file, needs no network.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Writes all results as JSON.")]


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DATASET", help="A labelled set; see `calibrate data check`.")],
    bundle: Annotated[Path | None, typer.Option(metavar="BUNDLE", help="Evaluates this bundle.")] = None,
    method: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Fits a bundle per class first, as `calibrate fit` does.")
    ] = None,
    shots: Annotated[
        str | None, typer.Option(metavar="N|all", help="--method: images to fit on per class, chosen by seed. [all]")
    ] = None,
    auxiliary: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="--method visualad: labelled set of other products to learn from."),
    ] = None,
    joint: Annotated[bool, typer.Option("--joint", help="--method: one fit for all classes together.")] = False,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="--method: keeps the fitted bundles in this folder.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="--method: goes on from the fits in --keep, finished or interrupted.")
    ] = False,
    keep_features: Annotated[
        Path | None,
        typer.Option(
            "--keep-features",
            metavar="DIR",
            help="Keeps the encoder's features here, for other methods, seeds and shots on the same images.",
        ),
    ] = None,
    encoder: Annotated[
        str, typer.Option(metavar="compact|FILE", help="--method: the shipped encoder, or published weights.")
    ] = "compact",
    size: Annotated[str | None, typer.Option(help="--method: input of the encoder [px], as for fit.")] = None,
    false_reject_rate: Annotated[
        float, typer.Option(help="--method: share of good parts that may be rejected, 0..1.")
    ] = 0.01,
    top_k: Annotated[int | None, typer.Option(min=1, help="--method: patches averaged in a score.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="--method: training steps, where there is training.")] = None,
    bank: Annotated[int, typer.Option(min=1, max=1_000_000, help="--method memory_bank: patches kept.")] = 10_000,
    block: Annotated[int | None, typer.Option(min=1, help="--method memory_bank: encoder block.")] = None,
    device: Annotated[str, typer.Option(help="--method: fits on cpu, cuda or cuda:N.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of every random choice.")] = 0,
    engine: Annotated[
        str | None, typer.Option(metavar="openvino|torch", help="Engine; otherwise the first that may judge.")
    ] = None,
    map_size: Annotated[
        int | None,
        typer.Option(min=16, max=8192, help="Side of maps and masks for the pixel metrics [px]. [each image's own]"),
    ] = None,
    limit_images: Annotated[
        int | None, typer.Option(min=1, help="At most so many test images per class, chosen by seed.")
    ] = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also alters light, focus, position, noise: what causes false rejects.")
    ] = False,
    json: Json = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="One row per class, and the mean.")] = None,
    html: HtmlFile = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; all cores otherwise.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Shows errors only.")] = False,
) -> None:
    """Measures a bundle, or a method, on a labelled set: the field's seven metrics per class, and what the limit does.

    Metrics that cannot be computed (no masks, no defects, ...) are told with the reason, and are null in the JSON.
    """
    if (bundle is None) == (method is None):
        raise CalibrationError("give either --bundle BUNDLE to evaluate it, or --method METHOD to fit per class first")
    if method is None and (shots is not None or joint or resume or keep is not None or auxiliary is not None):
        raise CalibrationError(
            "--shots, --joint, --auxiliary, --keep and --resume belong to --method: a bundle is evaluated as it is"
        )
    if resume and keep is None:
        raise CalibrationError("--resume goes on from what --keep DIR holds; give that folder")
    if keep_features is not None and engine not in (None, "torch"):
        raise CalibrationError(f"--keep-features judges with torch, not with {engine}; leave one of them out")
    if html is not None:
        from calibration.charts import require

        require()  # before the work, not after it
    from calibration.evaluation import EvaluateOptions
    from calibration.evaluation import evaluate as run
    from calibration.report_evaluation import show_evaluation, show_robustness
    from calibration.score import to_text, write_text
    from calibration.sets import open_dataset

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    fit = None
    if method is not None:
        fit = _fit_options(method, encoder, size, false_reject_rate, top_k, steps, bank, block, device, seed, auxiliary)
    options = EvaluateOptions(
        bundle=bundle,
        fit=fit,
        shots=_shots(shots),
        joint=joint,
        keep=keep,
        resume=resume,
        features=keep_features,
        engine=engine,
        threads=threads,
        seed=seed,
        limit_images=limit_images,
        map_size=map_size,
        examples=EXAMPLES if html is not None else 0,
        robustness=ALTERED if robustness else 0,
    )
    console = Console()
    dataset = open_dataset(folder)
    with Reporter(console, quiet) as reporter:
        result = run(dataset, options, reporter, reporter.say)
    if json is not None:
        content = result.evaluation.to_json()
        for one in result.robustness:
            content["classes"][one.class_name]["robustness"] = one.to_json()
        write_text(json, to_text(content))
    if csv is not None:
        write_text(csv, result.evaluation.to_csv())
    if html is not None:
        from calibration.html_report import render

        write_text(html, render(result))
    if not quiet:
        show_evaluation(console, result.evaluation)
        show_robustness(console, result.robustness)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="A file of `calibrate evaluate --json`.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another one; differences are B - A.")],
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the intervals.")] = 0,
    json: Json = None,
    html: HtmlFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Shows errors only.")] = False,
) -> None:
    """Sets two evaluations side by side, with differences and their 95 % intervals.

    Over the same test images the intervals are of paired differences, which are much narrower.
    """
    from calibration.compare import compare as run
    from calibration.report_evaluation import show_comparison
    from calibration.results import load_evaluation
    from calibration.score import to_text, write_text

    comparison = run(load_evaluation(first), load_evaluation(second), (str(first), str(second)), seed)
    if json is not None:
        write_text(json, to_text(comparison.to_json()))
    if html is not None:
        from calibration.html_compare import render

        write_text(html, render(comparison))
    if not quiet:
        show_comparison(Console(), comparison)


def mount(app: typer.Typer) -> None:
    """Adds `data`, `evaluate`, `compare` and `distill` to the command line."""
    from calibration.cli_data import app as data
    from calibration.cli_distill import distill

    app.add_typer(data, name="data")
    app.command()(evaluate)
    app.command()(compare)
    app.command()(distill)


def _shots(text: str | None) -> int | None:
    """Images to fit on per class; None = all. Raises `CalibrationError`."""
    if text is None or text == "all":
        return None
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise CalibrationError(f"--shots {text}: give a number of images, such as 4, or all")
    return int(text)


def _fit_options(
    method: str,
    encoder: str,
    size: str | None,
    rate: float,
    top_k: int | None,
    steps: int | None,
    bank: int,
    block: int | None,
    device: str,
    seed: int,
    auxiliary: Path | None,
) -> FitOptions:
    """The options of a fit as `calibrate fit` would make them; images and place are filled in per class."""
    from dataclasses import replace
    from typing import cast, get_args

    from calibration.cli import parse_size
    from calibration.options import FitOptions, Method
    from calibration.thresholds import check_rate

    if method not in get_args(Method):
        raise CalibrationError(f"--method {method}: unknown; there are {', '.join(get_args(Method))}")
    if (method == "visualad") != (auxiliary is not None):
        raise CalibrationError(
            "--method visualad learns from a labelled set of other products, with masks: give it by --auxiliary DATASET"
            if auxiliary is None
            else f"--auxiliary belongs to --method visualad; {method} learns from good images of each class alone"
        )
    check_rate(rate)
    options = FitOptions(
        images=Path(),
        out=Path(),
        method=cast("Method", method),
        encoder=encoder,
        size=None if size is None else parse_size(size),
        seed=seed,
        rate=rate,
        top_k=top_k,
        bank=bank,
        block=block,
        device=device,
        steps=steps,
        auxiliary=auxiliary,
    )
    training = replace(options.training, seed=seed)
    if steps is not None:
        training = replace(training, steps=steps)
    return replace(options, training=training)

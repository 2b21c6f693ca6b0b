"""`calibrate`: from images of good parts to a bundle that a line runs."""

from __future__ import annotations

import os
import re
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from calibration.cli_evaluate import mount
from calibration.cli_limit import limit
from calibration.foreground import Foreground
from calibration.progress import Reporter
from pipelines.errors import InspectError
from pipelines.images import PixelFormat

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

Bundle = Annotated[Path, typer.Option("--bundle", metavar="BUNDLE", help="Folder made by `calibrate fit`.")]
Images = Annotated[Path, typer.Option("--images", metavar="DIR", help="Folder of images, searched at any depth.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Writes a summary as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Shows errors only.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; all cores otherwise.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leaves out images that cannot be used, and names them.")]


class MethodName(str, Enum):
    """Methods that can be fitted."""

    MEMORY_BANK = "memory_bank"
    FOUNDAD = "foundad"
    VITAD = "vitad"
    VISUALAD = "visualad"


class PrecisionName(str, Enum):
    """Arithmetic of training."""

    FP32 = "fp32"
    BF16 = "bf16"


@app.callback()
def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Shows the traceback of an error.")] = False,
) -> None:
    context.obj = debug


def parse_size(text: str) -> tuple[int, int]:
    """'320' or '320x640' (height x width, pixels) -> (height, width)."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"{text!r}: give pixels, such as 320, or height x width, such as 320x640")
    return int(match[1]), int(match[2] or match[1])


@app.command()
def fit(
    out: Annotated[Path, typer.Option("--out", metavar="BUNDLE", help="The bundle to write; must not exist.")],
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Folder of good images, searched at any depth. Again for further classes of one model.",
        ),
    ] = None,
    method: Annotated[
        MethodName,
        typer.Option(
            help="memory_bank needs no training; foundad trains a projector, vitad a decoder (one class or many); "
            "visualad learns from --auxiliary."
        ),
    ] = MethodName.MEMORY_BANK,
    auxiliary: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="visualad: labelled set of other products, with masks of defects."),
    ] = None,
    encoder: Annotated[
        str, typer.Option(metavar="compact|FILE", help="The shipped encoder, or published weights.")
    ] = "compact",
    size: Annotated[
        str | None, typer.Option(help="Input of the encoder [px]: side, or height x width. [compact: area of 320x320]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of every random choice.")] = 0,
    false_reject_rate: Annotated[float, typer.Option(help="Share of good parts that may be rejected, 0..1.")] = 0.01,
    guarantee: Annotated[
        bool, typer.Option("--guarantee", help="Refuses where the images cannot promise the rate.")
    ] = False,
    held_out: Annotated[
        int | None, typer.Option(min=0, help="Images kept from the fit to choose the limit on. [by their number]")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Patches averaged in a score. [4]")] = None,
    regions: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Regions of interest and ignored areas.")
    ] = None,
    pixel_format: Annotated[
        PixelFormat | None, typer.Option(help="What the files hold where they cannot tell, e.g. BayerRG8.")
    ] = None,
    any_size: Annotated[bool, typer.Option("--any-size", help="The line's frames may differ in size.")] = False,
    skip_bad: SkipBad = False,
    take: Annotated[
        int | None, typer.Option(min=1, help="Uses so many of the images, drawn by the seed. [all]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Training steps. [foundad 600; vitad 100 rounds over the images; visualad 2 over the set]",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Pictures per training step.")] = 8,
    pool: Annotated[
        int, typer.Option(min=0, max=100_000, help="foundad: pictures whose features are kept; 0 = new ones each step.")
    ] = 384,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Stops training after so long; not repeatable then.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="foundad, vitad: stops when a fifth of the images, not trained on, has not gained for so many checks; "
            "one check each 25 steps. [never]",
        ),
    ] = None,
    foreground: Annotated[
        Foreground | None, typer.Option(help="foundad: where defects are pasted. [suggested by the images]")
    ] = None,
    flips: Annotated[bool, typer.Option(help="foundad: also trains on mirrored and turned pictures.")] = True,
    bank: Annotated[int, typer.Option(min=1, max=1_000_000, help="memory_bank: patches kept.")] = 10_000,
    block: Annotated[
        int | None, typer.Option(min=1, help="memory_bank: encoder block, 1 = first. [last but one]")
    ] = None,
    precision: Annotated[
        PrecisionName, typer.Option(help="vitad, visualad: arithmetic of training.")
    ] = PrecisionName.FP32,
    recompute_features: Annotated[
        bool, typer.Option("--recompute-features", help="vitad: keeps no encoder features; slower, needs no room.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; cuda under torchrun: one card each.")] = "cpu",
    threads: Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Goes on after an interruption.")] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Fits a bundle on images of good parts and chooses its limit."""
    # torch takes seconds to import; --help and typing errors should not wait for it.
    from calibration import report
    from calibration.fit import fit as run
    from calibration.foundad import TrainingOptions
    from calibration.options import FitOptions
    from calibration.score import to_text, write_text
    from calibration.workers import Workers

    use_threads(threads)
    training = TrainingOptions(steps=steps or 600, batch=batch, pool=pool, flips=flips, minutes=minutes, seed=seed)
    options = FitOptions(
        images=images[0] if images else None,
        more_images=tuple(images[1:]) if images else (),
        auxiliary=auxiliary,
        steps=steps,
        patience=patience,
        precision=precision.value,
        keep_features=not recompute_features,
        out=out,
        method=method.value,
        encoder=encoder,
        size=None if size is None else parse_size(size),
        seed=seed,
        rate=false_reject_rate,
        guarantee=guarantee,
        held_out=held_out,
        top_k=top_k,
        regions=regions,
        pixel_format=pixel_format,
        any_size=any_size,
        skip_bad=skip_bad,
        take=take,
        resume=resume,
        bank=bank,
        block=block,
        foreground=foreground,
        device=device,
        training=training,
    )
    console = Console()
    first = os.environ.get("RANK", "0") == "0"  # of several processes under torchrun
    quiet = quiet or not first
    try:
        with Reporter(console, quiet) as reporter:
            summary = run(options, reporter, reporter.say)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the same command with --resume goes on from here")
        raise typer.Exit(130) from None
    finally:
        Workers.leave()
    if json is not None and first:
        write_text(json, to_text(summary.to_json()))
    if not quiet:
        report.show_fit(console, summary)


class PublishedName(str, Enum):
    """Methods whose published heads can be imported."""

    FOUNDAD = "foundad"
    VISUALAD = "visualad"
    VITAD = "vitad"


@app.command("import")
def import_(
    images: Images,
    out: Annotated[Path, typer.Option("--out", metavar="BUNDLE", help="The bundle to write; must not exist.")],
    method: Annotated[PublishedName, typer.Option(help="What the head was published as.")],
    head: Annotated[Path, typer.Option(metavar="FILE", help="The published checkpoint.")],
    encoder: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The encoder's own checkpoint, unless the head's file holds it.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Input [px]: side, or height x width. [as published]")] = None,
    regions: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Regions of interest and ignored areas.")
    ] = None,
    pixel_format: Annotated[
        PixelFormat | None, typer.Option(help="What the files hold where they cannot tell, e.g. BayerRG8.")
    ] = None,
    any_size: Annotated[bool, typer.Option("--any-size", help="The line's frames may differ in size.")] = False,
    false_reject_rate: Annotated[float, typer.Option(help="Share of good parts that may be rejected, 0..1.")] = 0.01,
    guarantee: Annotated[
        bool, typer.Option("--guarantee", help="Refuses where the images cannot promise the rate.")
    ] = False,
    skip_bad: SkipBad = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of every random choice.")] = 0,
    threads: Threads = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Makes a bundle of an authors' published head; the images choose the limit and are not trained on."""
    from calibration import report
    from calibration.importing import ImportOptions, import_head
    from calibration.score import to_text, write_text

    use_threads(threads)
    options = ImportOptions(
        method=method.value,
        head=head,
        images=images,
        out=out,
        encoder=encoder,
        size=None if size is None else parse_size(size),
        regions=regions,
        pixel_format=pixel_format,
        any_size=any_size,
        skip_bad=skip_bad,
        rate=false_reject_rate,
        guarantee=guarantee,
        seed=seed,
    )
    console = Console()
    with Reporter(console, quiet) as reporter:
        summary = import_head(options, reporter, reporter.say)
    if json is not None:
        write_text(json, to_text(summary.to_json()))
    if not quiet:
        report.show_fit(console, summary)


@app.command()
def score(
    bundle: Bundle,
    images: Images,
    engine: Annotated[
        str | None, typer.Option(metavar="openvino|torch", help="Engine; otherwise the first that may judge.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="One row per image and region.")] = None,
    json: Json = None,
    skip_bad: SkipBad = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Scores image files offline, as the line would.

    Where the images lie in folders `good` and others, the image AUROC and both error rates are told.
    """
    from calibration import report
    from calibration.score import open_engine, score_folder, to_text, write_text
    from pipelines.bundle import Bundle as Opened

    use_threads(threads)
    console = Console()
    with Reporter(console, quiet) as reporter:
        opened = Opened.open(bundle)
        with open_engine(opened, engine, threads, reporter.say) as loaded:
            results = score_folder(
                opened, images, loaded, skip_bad, lambda done, total: reporter("images", done, total)
            )
    if csv is not None:
        write_text(csv, results.to_csv())
    if json is not None:
        write_text(json, to_text(results.to_json()))
    if not quiet:
        report.show_scores(console, results)


def use_threads(threads: int | None) -> None:
    """Has torch use so many threads; None leaves it to torch."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


app.command()(limit)
mount(app)


def main() -> None:
    """Entry point of `calibrate`: errors meant for the user become one line and exit code 1."""
    try:
        app()
    except InspectError as error:
        if "--debug" in sys.argv:
            raise
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:  # `calibrate score ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()

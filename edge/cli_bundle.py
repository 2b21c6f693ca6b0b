"""`edge bundle`: look at a bundle, check it, build engines from it ahead of time, export it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipelines import engines
from pipelines.bundle import Bundle
from pipelines.engines.frame import FrameSpec
from pipelines.errors import InspectError
from pipelines.images import PixelFormat

if TYPE_CHECKING:
    from pipelines.engines import Progress as EngineProgress

SLOW_S = 1.0  # a phase of a build that took so long is listed with its time

app = typer.Typer(no_args_is_help=True, help="Show, verify, build and export bundles.")

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by `calibrate fit`.")]
FormatOption = Annotated[
    PixelFormat | None, typer.Option("--pixel-format", help="Of the camera, where it is not the bundle's own.")
]
SizeOption = Annotated[
    str | None, typer.Option("--frame-size", metavar="WxH", help="Of the camera, where it is not the bundle's own.")
]


@app.command()
def show(
    bundle: BundlePath,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Print what the bundle judges with, its limits and how it was made."""
    with _one_line_errors():
        opened = Bundle.open(bundle, verify=False)
    manifest = opened.manifest
    if as_json:
        typer.echo(json.dumps({"id": opened.id, **manifest.model_dump(mode="json", by_alias=True)}, indent=1))
        return
    console = _console()
    facts = Table(title=f"Bundle {bundle}", show_header=False, title_justify="left")
    config = manifest.pipeline
    facts.add_row("id", opened.id)
    facts.add_row("method", manifest.method)
    facts.add_row("encoder", str(config.encoder.get("name", "unnamed")))
    facts.add_row("input", f"{config.input_size[1]}x{config.input_size[0]} px")
    facts.add_row("frames", str(FrameSpec.of(config)))
    facts.add_row("score", f"top {config.score.k} patches" if config.score.rule == "topk" else "as published")
    facts.add_row("limit from", f"{manifest.limit.method}, {manifest.limit.n_normals} normal images")
    facts.add_row("false rejects asked", f"{manifest.limit.false_reject_rate:.3%}")
    facts.add_row("guarantee", manifest.limit.guarantee)
    for name, value in manifest.provenance.items():
        facts.add_row(name, value if isinstance(value, str) else json.dumps(value))
    console.print(facts)
    limits = Table(title="Limits (raw scores)", title_justify="left")
    for heading in ("region", "floor = 0 %", "limit = 100 %"):
        limits.add_column(heading, justify="left" if heading == "region" else "right")
    for region in manifest.limit.regions:
        limits.add_row(region.name, f"{region.floor:.6g}", f"{region.limit:.6g}")
    console.print(limits)


@app.command()
def verify(bundle: BundlePath) -> None:
    """Check every byte, whether the weights fit, and that torch reproduces the reference scores here."""
    with _one_line_errors():
        opened = Bundle.open(bundle)
        typer.echo(f"{bundle}: every file is as it was written (id {opened.id})")
        with _progress() as progress:
            prepared = engines.prepare(opened, "torch", progress=progress)
        prepared.engine.close()
        _console().print(prepared.report.table())
        prepared.report.require()
    typer.echo(f"{bundle}: fine")


@app.command()
def build(
    bundle: BundlePath,
    engine: Annotated[str, typer.Option(help=f"One of {', '.join(engines.ENGINES)}.")] = "openvino",
    precision: Annotated[
        str, typer.Option(help="auto, or one the engine computes in (fp32, fp16, bf16, int8, fp8).")
    ] = "auto",
    batch: Annotated[
        Optional[str],  # noqa: UP045 - typer evaluates this on Python 3.10 too
        typer.Option(metavar="N|N:M", help="Frames per run of a GPU engine; by default 1:8."),
    ] = None,
    target: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="SM", help="Build for this kind of GPU instead (default, sm86, sm89, sm120 ...); may be repeated."
        ),
    ] = None,
    pixel_format: FormatOption = None,
    frame_size: SizeOption = None,
) -> None:
    """Build an engine for this machine, prove it on the reference frames, and keep it.

    With --target, build a TensorRT engine for another machine's GPU; it is proved there, when it is loaded.
    """
    with _one_line_errors():
        opened = Bundle.open(bundle)
        frame = _frame(opened, pixel_format, frame_size)
        options = engines.EngineOptions(precision=precision, batch=batch)
        if target:
            if engine != "tensorrt":
                raise InspectError(
                    f"--target: engine {engine} is built on the machine that runs it; only tensorrt is not"
                )
            for name in target:
                _build_ahead(opened, name, frame, options)
            return
        with _phases() as progress:
            prepared = engines.prepare(opened, engine, frame=frame, options=options, progress=progress)
        description = prepared.engine.description
        prepared.engine.close()
        _console().print(prepared.report.table())
        prepared.report.require()
    typer.echo(f"engine {engine}: {description}")
    typer.echo(f"key {prepared.engine.key.name}")
    if prepared.folder is None:
        typer.echo("needs no build: it runs the bundle as it is")
    else:
        typer.echo(f"{'built' if prepared.built else 'was built before'}: {prepared.folder}")


def _build_ahead(bundle: Bundle, target: str, frame: FrameSpec | None, options: engines.EngineOptions) -> None:
    from pipelines.engines.tensorrt_ahead import build_ahead

    with _phases() as progress:
        ahead = build_ahead(bundle, target, frame=frame, options=options, progress=progress)
    if ahead.rehearsal is not None:
        _console().print(ahead.rehearsal.table())
    found = ahead.report
    typer.echo(
        f"engine tensorrt for {ahead.key.device}: {found['library']}, {ahead.key.precision}, batch {found['batch']}, "
        f"{found['operators']} operators in one engine, {found['fused_attention']} fused attention kernels, "
        f"{found['plan_bytes'] / 1e6:.1f} MB"
    )
    for warning in found["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"key {ahead.key.name}")
    typer.echo(f"{'built' if ahead.built else 'was built before'}: {ahead.folder}")
    typer.echo("not run here: the parity gate judges it on its own GPU, when it is loaded")


@app.command()
def export(
    bundle: BundlePath,
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="ONNX file to write.")],
    opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 23.")] = 20,
    precision: Annotated[str, typer.Option(help="fp32, or fp16 for encoder and head.")] = "fp32",
    batch: Annotated[str, typer.Option(metavar="N|N:M", help="Frames per run.")] = "1:64",
    pixel_format: FormatOption = None,
    frame_size: SizeOption = None,
) -> None:
    """Write the whole pipeline, uint8 frame to scores and maps, as one ONNX file, checked with ONNX Runtime."""
    with _one_line_errors():
        from pipelines.engines.onnx import OnnxOptions, export_onnx

        opened = Bundle.open(bundle)
        with _progress() as progress:
            options = OnnxOptions(opset, precision, batch)
            report = export_onnx(opened, onnx, _frame(opened, pixel_format, frame_size), progress, options)
    if report is None:
        typer.echo("not checked: ONNX Runtime is missing; pip install 'edge-inspect[onnx]'", err=True)
    else:
        _console().print(report.table())
    typer.echo(f"written: {onnx}")


def _frame(bundle: Bundle, pixel_format: PixelFormat | None, frame_size: str | None) -> FrameSpec | None:
    """The camera's frames, where an option says that they are not the bundle's own."""
    if pixel_format is None and frame_size is None:
        return None
    own = FrameSpec.of(bundle.config)
    width, height = own.width, own.height
    if frame_size is not None:
        parts = frame_size.lower().split("x")
        if len(parts) != 2 or not all(part.isdecimal() and 0 < int(part) <= 65535 for part in parts):
            raise InspectError(f"--frame-size {frame_size!r}: give width and height in pixels, such as 2448x2048")
        width, height = int(parts[0]), int(parts[1])
    return FrameSpec(pixel_format=pixel_format or own.pixel_format, height=height, width=width)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except InspectError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def _phases() -> Iterator[EngineProgress]:
    """The bar, and a line with its time for every phase that took a while: a build may last for minutes."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("start", total=1.0)
        phase, began = "", time.monotonic()

        def done() -> None:
            nonlocal began
            took, began = time.monotonic() - began, time.monotonic()
            if phase and took >= SLOW_S:
                bar.console.print(f"{took:7.1f} s  {phase}", highlight=False)

        def tell(what: str, share: float) -> None:
            nonlocal phase
            name = what.partition(":")[0]
            if name != phase:
                done()
                phase = name
            bar.update(task, description=what, completed=share)

        yield tell
        done()


@contextmanager
def _progress() -> Iterator[EngineProgress]:
    """A bar on stderr: stdout holds results only."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("start", total=1.0)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def _console() -> Console:
    return Console(soft_wrap=False)

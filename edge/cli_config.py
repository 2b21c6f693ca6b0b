"""`edge config`: check a settings file, print an example."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from edge.errors import SettingsError
from edge.frames import Geometry, ring_directory
from edge.settings import Settings, load_settings
from edge.settings_example import example as example_text
from edge.shm import mebibytes

app = typer.Typer(no_args_is_help=True, help="Check a settings file, or print an example.")


@app.command()
def check(file: Annotated[Path, typer.Argument(help="Settings file of a line, such as line.toml.")]) -> None:
    """Name file, line and key of every fault, and what is allowed. Exit code 1 where there is any."""
    try:
        settings = load_settings(file)
    except SettingsError as error:
        faults = str(error).splitlines()
        for fault in faults:
            typer.echo(fault, err=True)
        typer.echo(f"{len(faults)} fault{'s' if len(faults) > 1 else ''}: not usable", err=True)
        raise typer.Exit(1) from error
    for warning in warnings(settings):
        typer.echo(f"warning: {warning}", err=True)
    cameras = ", ".join(camera.name for camera in settings.cameras)
    typer.echo(f"{file}: fine: line {settings.line.name}, cameras {cameras}, data in {settings.paths.data}")


@app.command()
def example() -> None:
    """Print a settings file that explains every key."""
    typer.echo(example_text(), nl=False)


def warnings(settings: Settings) -> Iterator[str]:
    """What is allowed, but would keep the line from running on this computer now."""
    for camera in settings.cameras:
        bundle = settings.bundle(camera)
        if not bundle.is_dir():
            yield f"camera {camera.name}: bundle {bundle} does not exist; make it with `calibrate fit --out {bundle}`"
        for key, path in camera.source.missing():
            yield f"camera {camera.name}: source.{key}: {path} does not exist"
    plc = settings.plc
    if plc is not None and plc.eject.mode == "handshake" and plc.adapter.type != "simulated":
        for camera in settings.cameras:
            if camera.trigger.numbered_by == "frame":
                yield (
                    f"camera {camera.name}: its parts are numbered by its frames, but the PLC knows its own numbers "
                    'only and would take no result; set [cameras.trigger] numbered_by = "plc" or "encoder"'
                )
    needed = sum(_ring_bytes(settings))
    disk = os.statvfs(ring_directory())
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        yield (
            f"the cameras' rings need {mebibytes(needed)} of shared memory, and {mebibytes(free)} are free in "
            f"{ring_directory()}; `mount -o remount,size=…` or --shm-size makes room"
        )


def _ring_bytes(settings: Settings) -> Iterator[int]:
    for camera in settings.cameras:
        rate, size = camera.source.known_rate_hz, camera.source.known_frame_bytes
        if rate is not None and size is not None:
            yield Geometry(settings.ring_slots(camera, rate), size).total_bytes

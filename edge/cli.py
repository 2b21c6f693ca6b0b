"""The `edge` command.

Each command imports what it needs when it is called: `edge capture`, `edge alert` and `edge status` never import
torch, and `edge --help` is quick. Groups that live in other modules (`_GROUPS`) are imported when they are asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Optional

import typer

from pipelines.errors import InspectError

_GROUPS = {  # command: module with a Typer `app`, and what the list of commands says about it
    "verdicts": ("edge.cli_verdicts", "Read the ledger: filters, JSON, CSV."),
    "replay": ("edge.cli_replay", "Judge recorded frames again, with this bundle or another one."),
    "bundle": ("edge.cli_bundle", "Show, verify and build bundles."),
    "camera": ("edge.cli_camera", "Find cameras, look into them, take pictures."),
    "config": ("edge.cli_config", "Check a settings file, or print an example."),
    "keys": ("edge.cli_keys", "Keys for a line that spans two computers."),
    "weights": ("edge.cli_weights", "Encoder weights: list, look into, convert."),
    "plc": ("edge.cli_plc", "The line's PLC: run, test by hand, watch."),
    "systemd": ("edge.cli_systemd", "Run lines as systemd services."),
}

LineName = Annotated[str, typer.Argument(metavar="LINE", help="Settings file, or name of a line in /etc/edge-inspect.")]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Watch production lines and reject bad parts.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"edge-inspect {version('edge-inspect')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    line: LineName,
    restarts: Annotated[
        Optional[int],  # noqa: UP045 - typer evaluates this on Python 3.10 too
        typer.Option(min=0, help="Restarts of each process per minute before the line stops; by default 5."),
    ] = None,
) -> None:
    """Run a line: all its processes, supervised, until Ctrl-C or the end of every source.

    Exit codes: 0 stopped as asked, or all sources ended and all parts have verdicts; 1 an error that the message
    names; 2 wrong usage; 3 a process did not start; 4 a process failed too often; 5 parts without a verdict.
    """
    from dataclasses import replace

    from edge.line import RESTART
    from edge.run import find_line, print_summary, run_line
    from edge.settings import load_settings

    policy = RESTART if restarts is None else replace(RESTART, budget=restarts)
    outcome, summary = run_line(load_settings(find_line(line)), policy)
    print_summary(outcome, summary)
    raise typer.Exit(int(outcome.code))


@app.command()
def capture(
    line: Annotated[str, typer.Argument(metavar="LINE[:CAMERA]", help="Settings file or name of a line.")],
    camera: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Name of the camera; may be left out where the line has one."),
    ] = None,
) -> None:
    """Run the capture process of one camera."""
    from edge.capture.process import CaptureProcess
    from edge.process import run as run_process
    from edge.run import find_line
    from edge.settings import load_settings

    if camera is None and ":" in line and not Path(line).exists():
        line, _, camera = line.rpartition(":")
    settings = load_settings(find_line(line))
    if camera is None and len(settings.cameras) == 1:
        camera = settings.cameras[0].name
    chosen = settings.camera(camera or "")
    raise typer.Exit(run_process(CaptureProcess(settings, chosen), settings))


@app.command()
def infer(line: LineName) -> None:
    """Run the inference process of a line."""
    from edge.inference.process import InferenceProcess
    from edge.process import run as run_process
    from edge.run import find_line
    from edge.settings import load_settings

    settings = load_settings(find_line(line))
    raise typer.Exit(run_process(InferenceProcess(settings), settings))


@app.command()
def alert(line: LineName) -> None:
    """Run the alert process of a line: verdicts, ledger, archive."""
    from edge.alert.process import AlertProcess
    from edge.process import run as run_process
    from edge.run import find_line
    from edge.settings import load_settings

    settings = load_settings(find_line(line))
    raise typer.Exit(run_process(AlertProcess(settings), settings))


@app.command()
def status(
    line: LineName,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    last: Annotated[int, typer.Option(min=0, max=1000, help="How many of the last verdicts.")] = 8,
) -> None:
    """Show rates, queues, last verdicts and health of a running line."""
    from edge.run import find_line
    from edge.settings import load_settings
    from edge.status import show

    show(load_settings(find_line(line)), watch=watch, as_json=as_json, last=last)


@app.command()
def realign(
    line: LineName,
    camera: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only this camera; by default all that follow the PLC's count."),
    ] = None,
) -> None:
    """Judge again, after trigger and frame disagreed: the belt is clear and the PLC's count is right."""
    from edge.realign import realign as tell
    from edge.run import find_line
    from edge.settings import load_settings

    for name in tell(load_settings(find_line(line)), camera):
        typer.echo(f"camera {name}: aligned from now on")


@app.command()
def doctor(
    line: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[LINE]", help="Settings file or name of a line that shall run here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Examine this computer: GPU, drivers, torch, TensorRT, clocks, memory, network, cameras, permissions, disk.

    Each line is ok, a warning or a fault, with the fix. Exit code 1 where there is a fault.
    """
    from edge.cli_doctor import report

    raise typer.Exit(report(line, as_json))


@app.command()
def demo(
    parts: Annotated[int, typer.Option(min=1, max=100_000, help="Parts on the belt.")] = 300,
    rate: Annotated[float, typer.Option(min=0.1, max=100, help="Parts per second.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed shows the same parts.")] = 0,
    part_type: Annotated[str, typer.Option(help="tile, washer, cap or mixed.")] = "tile",
    good: Annotated[int, typer.Option(min=2, max=500, help="Good parts to calibrate on.")] = 120,
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("demo"),
    json_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--json", help="Also write the results to this file."),
    ] = None,
) -> None:
    """Calibrate on a few good simulated parts, watch a line judge many, and compare with the truth."""
    from edge.demo import Demo, run_demo

    wanted = Demo(parts=parts, rate_hz=rate, seed=seed, part_type=part_type, good=good, out=out, json_file=json_file)
    raise typer.Exit(run_demo(wanted))


def _mount(words: list[str]) -> None:
    """Adds the groups: the one that the command line asks for in earnest, the others by name only."""
    asked = next((word for word in words if not word.startswith("-")), None)
    completing = "_EDGE_COMPLETE" in os.environ
    for name, (module, summary) in _GROUPS.items():
        if any(group.name == name for group in app.registered_groups):
            continue
        if name == asked or completing:
            app.add_typer(importlib.import_module(module).app, name=name)
        else:
            app.command(name, help=summary)(_placeholder)


def _placeholder() -> None:
    raise AssertionError("a group that is asked for is imported")


def main() -> None:
    """Entry point: errors meant for the user become `error: …` on standard error and exit code 1."""
    _mount(sys.argv[1:])
    try:
        app(prog_name="edge")
    except InspectError as error:
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        from edge.logs import without_credentials

        for line in without_credentials(str(error)).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

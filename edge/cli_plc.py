"""`edge plc`: the PLC's process of a line, and what an electrician needs to put it into service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.errors import PlcError, SettingsError

if TYPE_CHECKING:
    from edge.settings import PlcSettings, Settings

app = typer.Typer(no_args_is_help=True, help="The line's PLC: run its process, test it by hand, watch it.")

LineName = Annotated[str, typer.Argument(metavar="LINE", help="Settings file, or name of a line in /etc/edge-inspect.")]


def _settings(line: str) -> tuple[Settings, PlcSettings]:
    from edge.run import find_line
    from edge.settings import load_settings

    settings = load_settings(find_line(line))
    if settings.plc is None:
        raise SettingsError(f"{settings.file}: line {settings.line.name} has no PLC; add a section [plc]")
    return settings, settings.plc


@app.command()
def run(line: LineName) -> None:
    """Run the PLC's process of a line (`edge run` and systemd start it by themselves)."""
    from edge.alert.plc.process import PlcProcess
    from edge.process import run as run_process

    settings, plc = _settings(line)
    raise typer.Exit(run_process(PlcProcess(settings, plc), settings))


@app.command("test")
def try_out(
    line: LineName,
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="Round trips to measure.")] = 500,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before outputs are switched.")] = False,
    round_trips_only: Annotated[
        bool, typer.Option("--round-trips-only", help="Switch nothing; only measure, with safe outputs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Switch each output by hand, with confirmation, and measure round trips. The line must not run meanwhile.

    Exit codes: 0 everything was confirmed; 1 the PLC cannot be reached, or an output was not confirmed.
    """
    from edge.alert.plc.commissioning import test_plc

    settings, plc = _settings(line)
    raise typer.Exit(test_plc(settings, plc, count, ask=not yes, switch=not round_trips_only, as_json=as_json))


@app.command()
def watch(
    line: LineName,
    seconds: Annotated[float, typer.Option(min=0, help="Ends after so long; 0 goes on until Ctrl-C.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per change, for programs.")] = False,
) -> None:
    """Show inputs and outputs live. Of a running line it only listens; else it asks the PLC, with safe outputs."""
    from edge.alert.plc.commissioning import watch_plc

    settings, plc = _settings(line)
    watch_plc(settings, plc, seconds, as_json)


@app.command()
def certificate(
    folder: Annotated[Path, typer.Argument(help="Folder for certificate and key; made if missing.")],
    host: Annotated[
        str | None, typer.Option(help="Name of this computer in the certificate; its host name if absent.")
    ] = None,
) -> None:
    """Make this computer's OPC UA certificate and key. The PLC's server must be told to trust the certificate."""
    try:
        from edge.alert.plc.certificates import create_certificate, fingerprint
    except ImportError as error:
        raise PlcError(f"{error.name} is missing; run `pip install 'edge-inspect[opcua]'`") from error

    public, key = create_certificate(folder, host)
    typer.echo(f"{public}: certificate_file; let the PLC's server trust it")
    typer.echo(f"{key}: key_file; stays here")
    typer.echo(f"SHA-256 {fingerprint(public.read_bytes())}")

"""`edge run`: one line, all its processes, in one terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO, cast

from edge import logs
from edge.child import Child
from edge.line import Restart, Spec, specs, with_restarts
from edge.passthrough import Passthrough
from edge.results import Results, Summary
from edge.settings import Settings
from edge.supervisor import ExitCode, Hooks, Outcome, Supervisor
from edge.transport import Endpoints, ProcessLock, ensure_runtime

DRAIN_MARGIN_S = 10.0  # beyond the longest deadline, for a process that is just being restarted


def command(spec: Spec) -> Sequence[str]:
    """The program of one process."""
    return [sys.executable, "-m", "edge.cli", *spec.arguments]


def run_line(
    settings: Settings,
    restart: Restart | None = None,
    turn: Callable[[Mapping[str, Child]], None] | None = None,
    output: Passthrough | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Outcome, Summary]:
    """Runs the line until it ends, is stopped by a signal, or fails.

    `restart` replaces the restart policy of every process. `turn` is called several times a second.
    Raises `LineInUse` where this line runs already, `TransportError` where the runtime folder cannot be used.
    """
    output = output or Passthrough(2)
    endpoints = Endpoints(settings)
    ensure_runtime(endpoints.runtime)
    processes = specs(settings, settings.file)
    if restart is not None:
        processes = with_restarts(processes, restart)
    longest_ms = max(settings.deadline_ms(camera) for camera in settings.cameras)
    with ProcessLock(endpoints.lock("run")):
        log = logs.set_up(
            settings.line.name, "run", settings.log.format, settings.log.level, stream=cast(TextIO, output)
        )
        results = Results(settings)
        try:
            hooks = Hooks(
                undecided=results.undecided,
                drain_s=longest_ms / 1000 + DRAIN_MARGIN_S,
                turn=turn or (lambda children: None),
            )
            supervisor = Supervisor(processes, command, endpoints.runtime, log, output, hooks, environment)
            outcome = supervisor.run()
            if results.undecided() == 0:
                results.remove_rings()  # else the next start finds those parts in the journals
            return outcome, results.summary()
        finally:
            results.close()


def print_summary(outcome: Outcome, summary: Summary) -> None:
    """The end of a run, for people, on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in summary.rows():
        table.add_row(name, value)
    for name, count in outcome.restarts.items():
        if count:
            table.add_row(f"restarts of {name}", str(count))
    Console().print(table)
    if outcome.code is not ExitCode.OK:
        print(f"error: {outcome.reason}", file=sys.stderr)


def find_line(name: str) -> Path:
    """The settings file of a line, given its path or, for installed lines, its name.

    Raises `SettingsError` that names the places where it was looked for.
    """
    import platformdirs

    from edge.errors import SettingsError

    path = Path(name)
    if path.suffix == ".toml" or "/" in name or path.is_file():
        return path.absolute()
    places = [
        Path("/etc/edge-inspect") / f"{name}.toml",
        platformdirs.user_config_path("edge-inspect") / f"{name}.toml",
    ]
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(str(place) for place in places)
    raise SettingsError(f"{name}: no settings file of this name, and no line installed as {looked}")

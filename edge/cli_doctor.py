"""`edge doctor`: does everything on this computer fit together?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape

from edge.doctor import Finding, Host, Level, examine, fault, ok
from edge.errors import SettingsError

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "red"}


def report(line: str | None, as_json: bool) -> int:
    """Prints the findings, or one JSON object of them; returns the exit code.

    Raises `InspectError` where there is no line of this name.
    """
    console = Console(highlight=False, soft_wrap=True)
    found: list[Finding] = []
    for finding in _findings(line):  # shown as they come: some take a while
        found.append(finding)
        if not as_json:
            _show(console, finding)
    count = Counter(finding.level for finding in found)
    faults, warnings = count[Level.FAULT], count[Level.WARNING]
    if as_json:
        rows = [{**asdict(finding), "level": finding.level.value} for finding in found]
        typer.echo(json.dumps({"faults": faults, "warnings": warnings, "findings": rows}, indent=1))
    else:
        console.print(f"{faults} fault{'' if faults == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}")
    return 1 if faults else 0


def _findings(line: str | None) -> Iterator[Finding]:
    settings = None
    if line is not None:
        from edge.run import find_line
        from edge.settings import load_settings

        file = find_line(line)
        try:
            settings = load_settings(file)
            yield ok("settings", f"{file}: fine")
        except SettingsError as error:
            for text in str(error).splitlines():
                yield fault("settings", text, "correct the key; `edge config example` explains every one")
    yield from examine(Host(), settings)


def _show(console: Console, finding: Finding) -> None:
    colour = _COLOURS[finding.level]
    subject = escape(f"{finding.subject}: {finding.text}")
    console.print(f"[{colour}]{finding.level.value:>8}[/{colour}]  {subject}")
    if finding.fix:
        console.print(f"{'':10}fix: {escape(finding.fix)}")

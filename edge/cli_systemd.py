"""`edge systemd`: run lines as systemd services."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from edge import systemd

app = typer.Typer(no_args_is_help=True, help="Run lines as systemd services.")

Root = Annotated[Path, typer.Option(help="Root of the file system to write to, for images.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Executable = Annotated[
    Optional[Path],  # noqa: UP045 - typer evaluates this on Python 3.10 too
    typer.Option(help="The edge command that services run; by default the one of this installation."),
]


@app.command()
def install(
    file: Annotated[Path, typer.Argument(metavar="LINE.toml", help="Settings file of the line.")],
    root: Root = Path("/"),
    dry_run: DryRun = False,
    executable: Executable = None,
) -> None:
    """Check the settings, write the units and the line's settings, and say how to start it. Twice is once."""
    plan = systemd.plan_install(file, root, executable or systemd.own_executable(), systemd.systemd_version())
    for said in systemd.apply(plan, root, dry_run):
        typer.echo(said)
    left = [] if dry_run else systemd.tell_systemd(root)
    line = next(path.stem for path in plan.files if path.parent == systemd.LINES)
    typer.echo("next:")
    for command in [*left, f"systemctl enable --now edge-line@{line}.target"]:
        typer.echo(f"  {command}")


@app.command()
def uninstall(
    line: Annotated[str, typer.Argument(metavar="LINE", help="Name of the line.")],
    root: Root = Path("/"),
    dry_run: DryRun = False,
) -> None:
    """Remove a line's units. Its settings, verdicts and archive stay. Stop it first: systemctl disable --now ..."""
    for said in systemd.apply(systemd.plan_uninstall(line, root), root, dry_run):
        typer.echo(said)
    typer.echo(f"kept       {root / systemd.LINES / f'{line}.toml'}, verdicts and archive")
    for command in [] if dry_run else systemd.tell_systemd(root):
        typer.echo(f"next: {command}")


@app.command()
def show(
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="[LINE.toml]", help="Settings file; without it, the units for all lines."),
    ] = None,
    executable: Executable = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the units for all lines to this folder instead."),
    ] = None,
) -> None:
    """Print the units."""
    from edge.systemd_units import EXECUTABLE, SYSUSERS, templates

    if file is not None:
        plan = systemd.plan_install(file, Path("/"), executable or systemd.own_executable(), systemd.systemd_version())
        texts = {str(path): text for path, text in plan.files.items() if path.parent != systemd.LINES}
    else:
        texts = {**templates(executable or EXECUTABLE), "edge-inspect.sysusers": SYSUSERS}
    for name, text in texts.items():
        if out is not None and file is None:
            out.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text, encoding="utf-8")
        else:
            typer.echo(f"# {name}\n{text}")

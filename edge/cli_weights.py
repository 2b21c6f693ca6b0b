"""`edge weights`: official encoder weights - which there are, and getting them into the user's store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from pipelines import weights_catalogue as weights
from pipelines.errors import InspectError

if TYPE_CHECKING:
    from pipelines.weights_download import Progress as Report

app = typer.Typer(no_args_is_help=True, help="List, add and fetch the weights of encoders.")


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """Show every official file (size, licence, where it comes from) and what is in the store."""
    here = weights.stored()
    if as_json:
        typer.echo(json.dumps([_facts(name, here) for name in _names(here)], indent=1))
        return
    table = Table(title=f"Encoder weights (store: {weights.data_home() / 'weights'})", title_justify="left")
    for heading in ("name", "here", "MB", "licence", "file", "from"):
        table.add_column(heading, justify="right" if heading == "MB" else "left", no_wrap=heading == "name")
    for name in _names(here):
        facts = _facts(name, here)
        licence = f"{facts['licence'] or ''}{' (token)' if facts['token_needed'] else ''}"
        size = str(facts["megabytes"] or "")
        row = (name, "yes" if facts["here"] else "", size, licence, str(facts["file"] or ""), str(facts["page"] or ""))
        table.add_row(*row)
    _console().print(table)
    typer.echo("fetch one with `edge weights pull NAME`, or convert a file that you have with `edge weights add FILE`")


@app.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Official or Hugging Face file: .pth, .safetensors ...")],
    name: Annotated[
        str | None, typer.Option(help="Encoder that the weights must be; by default read off them.")
    ] = None,
) -> None:
    """Verify a file of weights, convert it to safetensors and put it into the store."""
    with _one_line_errors():
        stored_as, path = weights.add(file, name)
    typer.echo(f"{stored_as}: every key, shape and number fits; stored as {path}")


@app.command()
def pull(name: Annotated[str, typer.Argument(metavar="NAME", help="As `edge weights list` shows it.")]) -> None:
    """Fetch official weights (going on from an interrupted try), verify them and put them into the store."""
    with _one_line_errors():
        entry = weights.CATALOGUE.get(name)
        if entry is not None:
            typer.echo(f"{name}: {entry.file}, about {entry.megabytes} MB, {entry.licence}", err=True)
        with _progress(name) as report:
            path = weights.pull(name, report)
    checked = "its checksum, " if entry is not None and entry.sha256 else ""
    typer.echo(f"{name}: {checked}every key, shape and number fits; stored as {path}")


def _names(here: dict[str, Path]) -> list[str]:
    return list(dict.fromkeys((weights.SHIPPED, *weights.CATALOGUE, *here)))


def _facts(name: str, here: dict[str, Path]) -> dict[str, object]:
    entry = weights.CATALOGUE.get(name)
    shipped = name == weights.SHIPPED
    return {
        "name": name,
        "here": shipped or name in here,
        "stored_at": str(here[name]) if name in here else None,
        "megabytes": entry.megabytes if entry else None,
        "licence": entry.licence if entry else ("Apache-2.0" if shipped else None),
        "token_needed": bool(entry and entry.gated),
        "file": entry.file if entry else ("part of the package" if shipped else None),
        "url": entry.url if entry else None,
        "page": entry.page if entry else None,
        "sha256": entry.sha256 if entry else None,
    }


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except InspectError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def _progress(name: str) -> Iterator[Report]:
    """A bar on stderr: stdout holds results only."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _console() -> Console:
    console = Console()
    # A file or a pipe has no width: rich would cut the table at 80 columns.
    return console if console.is_terminal else Console(width=200)

"""`edge keys`: keys for a line that spans two computers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge.keys import create_keys

app = typer.Typer(no_args_is_help=True, help="Keys for a line that spans two computers.")


@app.callback()
def _keys() -> None:
    """Keys for a line that spans two computers."""


@app.command()
def create(folder: Annotated[Path, typer.Argument(help="Folder for the key files; made if missing.")]) -> None:
    """Make server.key and client.key. Each computer gets the one it needs; [line] keys_dir names their folder."""
    server, client = create_keys(folder)
    typer.echo(f"{server}: for the computer whose processes the endpoint names")
    typer.echo(f"{client}: for the computer that connects to it")

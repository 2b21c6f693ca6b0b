"""`edge verdicts`: reads the ledger, also while the line runs, and takes down what people say of parts."""

from __future__ import annotations

import csv
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
import typer.core
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge.alert.history import History, Query
from edge.alert.ledger_schema import ArchiveState, Entry
from edge.cli_reviews import confirm, reviews
from edge.errors import LedgerError
from edge.messages import Decision
from edge.moments import TIME_HELP, iso, parse_moment


class _ShowByDefault(typer.core.TyperGroup):
    """`edge verdicts LINE` is `edge verdicts show LINE`. A line called like a command is reached by its path."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts `show` in front where no command is named."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ShowByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Read the ledger, and say what parts really were. `edge verdicts LINE` is `edge verdicts show LINE`.",
)
app.command("confirm")(confirm)
app.command("reviews")(reviews)

TABLE_ROWS = 20
FOLLOW_S = 0.25
_STYLE = {Decision.PASS: "green", Decision.REJECT: "bold red", Decision.UNJUDGED: "yellow"}


@app.command("show")
def verdicts(
    line: Annotated[str, typer.Argument(metavar="LINE", help="Settings file, or name of an installed line.")],
    decision: Annotated[
        Optional[Decision],  # noqa: UP045 - typer evaluates this on Python 3.10 too
        typer.Option(help="Only parts with this verdict.", case_sensitive=False),
    ] = None,
    camera: Annotated[Optional[str], typer.Option(help="Only parts of this camera.")] = None,  # noqa: UP045
    since: Annotated[Optional[int], typer.Option(parser=parse_moment, metavar="TIME", help=TIME_HELP)] = None,  # noqa: UP045
    until: Annotated[Optional[int], typer.Option(parser=parse_moment, metavar="TIME", help=TIME_HELP)] = None,  # noqa: UP045
    part: Annotated[Optional[int], typer.Option(min=0, help="Only parts with this number.")] = None,  # noqa: UP045
    bundle: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only parts that this bundle judged: its content id, or the beginning of it."),
    ] = None,
    last: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help=f"The newest N; by default {TABLE_ROWS}, with --json and --csv all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values with a header.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new verdicts until Ctrl-C.")] = False,
) -> None:
    """Read the ledger of a line, the newest verdict last."""
    from edge.run import find_line
    from edge.settings import load_settings

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    settings = load_settings(find_line(line))
    if camera is not None:
        settings.camera(camera)
    if last is None and not (as_json or as_csv or follow):
        last = TABLE_ROWS
    query = Query(decision, camera, since, until, part, bundle, limit=TABLE_ROWS if follow and last is None else last)
    paths = settings.paths
    show = _printer(paths.archive, as_json, as_csv, follow)
    try:
        with History(paths.ledger) as history:
            after = history.last_row()
            newest_first = history.entries(query)
            show(reversed(list(newest_first)) if query.limit is not None else history.added(query))
            if not (as_json or as_csv or follow):
                _summary(history, query)
        if follow:
            _follow(paths.ledger, replace(query, limit=None, after_row=after), show)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:  # `| head` has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def record(entry: Entry, archive: Path) -> dict[str, Any]:
    """An entry as one flat JSON object, times as ISO 8601 UTC and milliseconds, the archive's path in full."""
    verdict = entry.verdict
    return {
        "row": entry.row,
        "decided_at": iso(verdict.decided_at_ns),
        "line": verdict.id.line,
        "camera": verdict.id.camera,
        "epoch": verdict.id.epoch,
        "sequence": verdict.id.sequence,
        "part": verdict.part,
        "decision": verdict.decision.value,
        "reason": verdict.reason,
        "percent": verdict.percent,
        "score": verdict.score,
        "limit": verdict.limit,
        "region": verdict.region,
        "bundle": verdict.bundle,
        "engine": verdict.engine,
        "latency_ms": verdict.latency_ns / 1e6,
        "infer_ms": None if verdict.infer_ns is None else verdict.infer_ns / 1e6,
        "camera_frame": verdict.camera_frame,
        "encoder": verdict.encoder,
        "origin": verdict.origin,
        "archive_state": entry.archive_state.value,
        "archive": str(archive / entry.archive_path) if entry.archive_path else None,
    }


Show = Callable[[Iterator[Entry]], None]


def _printer(archive: Path, as_json: bool, as_csv: bool, follow: bool) -> Show:
    if as_json:

        def show_json(entries: Iterator[Entry]) -> None:
            for entry in entries:
                print(json.dumps(record(entry, archive) | {"regions": entry.regions}, ensure_ascii=False))
            sys.stdout.flush()

        return show_json
    if as_csv:
        header = True

        def show_csv(entries: Iterator[Entry]) -> None:
            nonlocal header
            writer: csv.DictWriter[str] | None = None
            for entry in entries:
                row = record(entry, archive)
                writer = writer or csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
                if header:
                    writer.writeheader()
                    header = False
                writer.writerow(row)
            sys.stdout.flush()

        return show_csv
    console = Console() if sys.stdout.isatty() else Console(width=200)  # a file has no width

    def show_table(entries: Iterator[Entry]) -> None:
        rows = [_cells(entry) for entry in entries]
        if not rows:
            return
        table = Table(box=None, show_header=not follow or not getattr(show_table, "begun", False), pad_edge=False)
        for name, justify in (("time", "left"), ("camera", "left"), ("part", "right"), ("verdict", "left")):
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for name in ("% of limit", "region", "latency"):
            table.add_column(name, justify="left" if name == "region" else "right", no_wrap=True)
        table.add_column("what")
        for cells in rows:
            table.add_row(*cells)
        show_table.begun = True  # type: ignore[attr-defined]
        console.print(table)

    return show_table


def _cells(entry: Entry) -> tuple[str | Text, ...]:
    verdict = entry.verdict
    local = datetime.datetime.fromtimestamp(verdict.decided_at_ns / 1e9)
    what = verdict.reason or verdict.origin or ""
    if entry.archive_state in (ArchiveState.DROPPED, ArchiveState.FAILED, ArchiveState.LOST):
        what += f" (frame not archived: {entry.archive_state.value})"
    return (
        f"{local:%Y-%m-%d %H:%M:%S}.{verdict.decided_at_ns // 1_000_000 % 1000:03d}",
        verdict.id.camera,
        str(verdict.part),
        Text(verdict.decision.value.upper(), _STYLE[verdict.decision]),
        "" if verdict.percent is None else f"{verdict.percent:.0f}",
        Text(verdict.region or ""),
        f"{verdict.latency_ns / 1e6:.0f} ms",
        Text(what),
    )


def _summary(history: History, query: Query) -> None:
    counts = history.counts(replace(query, limit=None))
    total = sum(counts.values())
    told = ", ".join(f"{count} {decision.value}" for decision, count in counts.items())
    shown = f", the newest {query.limit} shown" if query.limit is not None and total > query.limit else ""
    print(f"{total} parts: {told}{shown}")


def _follow(ledger: Path, query: Query, show: Show) -> None:
    """Shows what is added, until Ctrl-C. A ledger that was moved aside is followed by the new one."""
    while True:
        try:
            with History(ledger) as history:
                opened = ledger.stat().st_ino
                while ledger.stat().st_ino == opened:
                    entries = list(history.added(query))
                    show(iter(entries))
                    if entries:
                        query = replace(query, after_row=entries[-1].row)
                    time.sleep(FOLLOW_S)
        except (FileNotFoundError, LedgerError):
            time.sleep(FOLLOW_S)
        else:
            query = replace(query, after_row=0)

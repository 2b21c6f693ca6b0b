"""`edge replay LINE`: what would this bundle have said of last week's parts?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from edge.errors import SettingsError
from edge.messages import Decision
from edge.moments import TIME_HELP, iso, parse_moment
from pipelines.errors import InspectError

if TYPE_CHECKING:
    from edge.alert.history import History, Query
    from edge.replay import Compared, Referee
    from edge.replay_frames import Found, Missing
    from edge.replay_report import RowFile, Summary
    from edge.settings import Settings

app = typer.Typer(
    invoke_without_command=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    subcommand_metavar="",
    context_settings={"allow_interspersed_args": True},
)

AGREES, CHANGES, NOTHING, INTERRUPTED = 0, 3, 4, 130
LEDGER = "ledger"


@app.callback()
def replay(
    line: Annotated[str, typer.Argument(metavar="LINE", help="Settings file, or name of an installed line.")],
    bundle: Annotated[
        Optional[Path],  # noqa: UP045 - typer evaluates this on Python 3.10 too
        typer.Option(metavar="BUNDLE", help="Judges with this bundle; by default with the line's own."),
    ] = None,
    against: Annotated[
        str, typer.Option(metavar="ledger|BUNDLE", help="Compares with the ledger, or with another bundle.")
    ] = LEDGER,
    camera: Annotated[Optional[str], typer.Option(help="Only frames of this camera.")] = None,  # noqa: UP045
    since: Annotated[Optional[int], typer.Option(parser=parse_moment, metavar="TIME", help=TIME_HELP)] = None,  # noqa: UP045
    until: Annotated[Optional[int], typer.Option(parser=parse_moment, metavar="TIME", help=TIME_HELP)] = None,  # noqa: UP045
    decision: Annotated[
        Optional[Decision],  # noqa: UP045
        typer.Option(help="Only parts with this verdict in the ledger.", case_sensitive=False),
    ] = None,
    last: Annotated[Optional[int], typer.Option(min=1, help="Only the newest N parts.")] = None,  # noqa: UP045
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="DIR", help="Replays the images of this folder instead of the line's own frames."),
    ] = None,
    json_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--json", metavar="FILE", help="Writes counts and changed parts as JSON."),
    ] = None,
    csv_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--csv", metavar="FILE", help="Writes one row per replayed frame."),
    ] = None,
    show: Annotated[int, typer.Option(min=0, max=10_000, help="Changed parts on the screen.")] = 20,
) -> None:
    """Judge recorded frames again, exactly as the line would, and compare the verdicts.

    Frames come from the line's archive and from the files that the ledger names as origin, or from a folder. Nothing is
    written to the ledger; the line may run meanwhile, slowed by the work. Exit codes: 0 no verdict changes; 1 an error
    that the message names; 2 wrong usage; 3 some verdicts change; 4 no frame could be replayed; 130 interrupted.
    """
    from edge.alert.history import Query
    from edge.replay import Referee
    from edge.replay_report import RowFile, Summary
    from edge.replay_report import show as show_summary
    from edge.run import find_line
    from edge.settings import load_settings

    settings = load_settings(find_line(line))
    if camera is not None:
        settings.camera(camera)
    query = Query(decision, camera, since, until, limit=last)
    summary, interrupted = Summary(), False
    errors = Console(stderr=True)

    def tell(text: str) -> None:
        errors.print(text, markup=False, highlight=False, soft_wrap=True)

    with ExitStack() as stack:
        wants_ledger = images is None or against == LEDGER
        history = stack.enter_context(_history(settings, required=images is None)) if wants_ledger else None
        cameras, frames, total = _frames(settings, history, query, images)
        new = Referee(settings, bundle, tell)
        stack.callback(new.close)
        old = None if against == LEDGER else Referee(settings, Path(against), tell)
        judged_by = {name: judge.bundle for name, judge in new.load(cameras).items()}
        compared_with: dict[str, Any] = {"ledger": str(settings.paths.ledger)}
        if old is not None:
            stack.callback(old.close)
            compared_with = {name: judge.id for name, judge in old.load(cameras).items()}
        rows = RowFile(csv_file) if csv_file is not None else None
        if rows is not None:
            stack.callback(rows.discard)
        try:
            _run(frames, new, old, settings.inference.batch_max, summary, rows, errors, total)
        except KeyboardInterrupt:
            interrupted = True
        if rows is not None:
            rows.finish()
    if json_file is not None:
        about = {
            "line": settings.line.name,
            "bundles": {name: {"id": found.id, "path": str(found.path)} for name, found in judged_by.items()},
            "against": compared_with,
            "frames": str(images) if images is not None else "the line's own",
            "since": None if since is None else iso(since),
            "until": None if until is None else iso(until),
            "limit_percent": {name: settings.camera(name).limit_percent for name in cameras},
            "complete": not interrupted,
        }
        _write(json_file, json.dumps(summary.to_json(about), indent=1, ensure_ascii=False) + "\n")
    before = "the ledger" if old is None else f"bundle {against}"
    after = f"bundle {bundle}" if bundle is not None else "the line's bundle"
    show_summary(Console(), summary, (before, after), show)
    if interrupted:
        tell("interrupted: the numbers are those of the frames replayed until then")
        raise typer.Exit(INTERRUPTED)
    if not summary.replayed:
        raise typer.Exit(NOTHING)
    raise typer.Exit(CHANGES if summary.changed_count else AGREES)


def _frames(
    settings: Settings, history: History | None, query: Query, images: Path | None
) -> tuple[list[str], Iterator[Found], int]:
    """The cameras concerned, the frames to replay, and how many parts that are (with those that have no frame)."""
    from dataclasses import replace

    from edge.replay_frames import from_folder, from_ledger
    from pipelines.images import list_images

    cameras = [query.camera] if query.camera is not None else [camera.name for camera in settings.cameras]
    if images is None:
        assert history is not None
        known = sum(history.counts(replace(query, limit=None)).values())
        return cameras, from_ledger(history, query, settings), min(known, query.limit or known)
    if len(cameras) > 1:
        raise SettingsError(f"{images}: say which camera these images are of: --camera {' or --camera '.join(cameras)}")
    total = len(list_images(images))
    return cameras, from_folder(images, cameras[0], settings, history, replace(query, limit=None)), total


@contextmanager
def _history(settings: Settings, required: bool) -> Iterator[History | None]:
    """The ledger; None where there is none yet and it is not `required`."""
    from edge.alert.history import History

    if not required and not settings.paths.ledger.is_file():
        yield None
        return
    with History(settings.paths.ledger) as history:
        yield history


class _Rate(ProgressColumn):
    """Parts per second."""

    def render(self, task: Task) -> Text:
        """See `ProgressColumn`."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


def _run(
    frames: Iterator[Found],
    new: Referee,
    old: Referee | None,
    batch: int,
    summary: Summary,
    rows: RowFile | None,
    console: Console,
    total: int,
) -> None:
    from edge.replay import replay as run

    columns = (
        TextColumn("replaying"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, note="")
        result: Compared | Missing
        for result in run(frames, new, old, batch):
            summary.add(result, rows)
            progress.update(task, advance=1, note=f"{summary.replayed} replayed, {summary.changed_count} changed")


def _write(path: Path, text: str) -> None:
    """Writes a small file, whole or not at all. Raises `InspectError`."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InspectError(f"{path}: cannot be written: {error.strerror}") from error

"""Progress on the terminal: what is being done, how far it is, how fast, and how long it will take."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        """See `ProgressColumn`."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


class Reporter:
    """Shows one bar per phase; call it as `reporter(what, done, total, note)`. On a plain stream: a line per phase."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._tasks: dict[str, TaskID] = {}
        self._finished: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=quiet or not console.is_terminal,
        )

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units of phase `what` are finished."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note=note)
        self._progress.update(self._tasks[what], completed=done, total=total, note=note)
        if done == total and what not in self._finished:
            self._finished.add(what)
            if self._progress.disable and not self._quiet:
                self._console.print(f"{what}: {total} done {note}".rstrip(), highlight=False)

    def say(self, line: str) -> None:
        """Prints one line above the bars."""
        if not self._quiet:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

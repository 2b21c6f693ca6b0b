"""`edge status`: what a running line's processes say, and what its ledger holds. Only listens; needs no torch."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.alert.history import History, Query
from edge.errors import LedgerError, LineNotRunning, MessageError
from edge.line import specs
from edge.messages import Decision, Health, Verdict, as_json, decode
from edge.settings import Settings
from edge.transport import Endpoints, Listener

if TYPE_CHECKING:
    from rich.console import RenderableType

HEAR_S = 2.5  # health comes once a second: a live process that says nothing for so long is stuck or starting
RECENT_S = 10.0  # window of the shown rate
_SHOWN = {"running": "green", "finished": "green", "starting": "yellow", "stopping": "yellow"}


@dataclass
class Snapshot:
    """A line at one moment."""

    line: str
    processes: dict[str, Health | None]  # every process of the table; None: not heard
    alive: dict[str, int]  # pids of processes that hold their lock
    counts: dict[Decision, int] = field(default_factory=dict)  # verdicts of the last `RECENT_S` seconds
    last: list[Verdict] = field(default_factory=list)  # newest first
    ledger_fault: str = ""

    @property
    def running(self) -> bool:
        """Whether any process of the line lives here."""
        return bool(self.alive) or any(self.processes.values())

    @property
    def rate_hz(self) -> float:
        """Verdicts per second."""
        return sum(self.counts.values()) / RECENT_S

    def state(self, name: str) -> str:
        """A process' state in words."""
        health = self.processes[name]
        if health is not None:
            return health.state
        if name in self.alive:
            return f"silent for {HEAR_S:g} s"
        return "not running"

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "line": self.line,
            "running": self.running,
            "rate_hz": self.rate_hz,
            "recent_s": RECENT_S,
            "recent": {decision.value: count for decision, count in self.counts.items()},
            "ledger_fault": self.ledger_fault,
            "processes": {
                name: {
                    "state": self.state(name),
                    "pid": health.pid if health else self.alive.get(name),
                    "uptime_s": health.uptime_s if health else None,
                    "counters": health.counters if health else {},
                    "gauges": health.gauges if health else {},
                    "last_fault": health.last_fault if health else "",
                }
                for name, health in self.processes.items()
            },
            "last": [as_json(verdict) for verdict in self.last],
        }


class Watcher:
    """Hears the processes of a line and reads its ledger."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._endpoints = Endpoints(settings)
        self._names = [spec.name for spec in specs(settings, settings.file)]
        self._heard: dict[str, tuple[float, Health]] = {}
        self._listener = Listener([self._endpoints.publisher(name) for name in self._names])

    def listen(self, seconds: float, until_all: bool = False) -> None:
        """Hears for so long; with `until_all`, only until every process that lives was heard."""
        end = time.monotonic() + seconds
        waiting = set(self._alive()) if until_all else set()
        while (left := end - time.monotonic()) > 0:
            data = self._listener.recv(left)
            if data is None:
                return
            try:
                message = decode(data)
            except MessageError:
                continue  # not ours, or of another version
            if isinstance(message, Health) and message.process in self._names:
                self._heard[message.process] = (time.monotonic(), message)
                waiting.discard(message.process)
                if until_all and not waiting:
                    return

    def snapshot(self, last: int) -> Snapshot:
        """What is known now, with the newest `last` verdicts."""
        fresh = time.monotonic() - HEAR_S
        processes = {
            name: self._heard[name][1] if name in self._heard and self._heard[name][0] > fresh else None
            for name in self._names
        }
        snapshot = Snapshot(self._settings.line.name, processes, self._alive())
        try:
            with History(self._settings.paths.ledger) as history:
                since = time.time_ns() - int(RECENT_S * 1e9)
                snapshot.counts = history.counts(Query(since_ns=since))
                snapshot.last = [entry.verdict for entry in history.entries(Query(limit=last))] if last else []
        except LedgerError as error:
            snapshot.ledger_fault = str(error)
        return snapshot

    def close(self) -> None:
        """Stops listening."""
        self._listener.close()

    def _alive(self) -> dict[str, int]:
        holders = {name: lock_holder(self._endpoints.lock(name)) for name in self._names}
        return {name: pid for name, pid in holders.items() if pid is not None}


def lock_holder(path: Path) -> int | None:
    """The pid of the process that holds the lock file at `path`, without taking the lock even for a moment."""
    try:
        inode = path.stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for row in locks:  # "1: FLOCK  ADVISORY  WRITE 14208 fe:00:2146390 0 EOF"
        words = row.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
            return int(words[4])
    return None


def show(settings: Settings, watch: bool = False, as_json: bool = False, last: int = 8) -> None:
    """Prints the state of the line, once or until Ctrl-C. Raises `LineNotRunning` where there is none."""
    watcher = Watcher(settings)
    try:
        watcher.listen(HEAR_S, until_all=True)
        snapshot = watcher.snapshot(last)
        if not snapshot.running and not watch:
            raise LineNotRunning(
                f"no line {settings.line.name} is running here (nobody holds a lock in {settings.paths.runtime}); "
                f"start it with `edge run {settings.file}`"
            )
        if as_json:
            while True:
                print(json.dumps(snapshot.to_dict()), flush=True)
                if not watch:
                    return
                watcher.listen(1.0)
                snapshot = watcher.snapshot(last)
        _show_tables(watcher, snapshot, watch, last)
    except KeyboardInterrupt:
        return
    finally:
        watcher.close()


def _show_tables(watcher: Watcher, snapshot: Snapshot, watch: bool, last: int) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not watch:
        console.print(render(snapshot))
        return
    with Live(render(snapshot), console=console, auto_refresh=False) as live:
        while True:
            watcher.listen(1.0)
            live.update(render(watcher.snapshot(last)), refresh=True)


def render(snapshot: Snapshot) -> RenderableType:
    """The snapshot as tables for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    counts = ", ".join(f"{count} {decision.value}" for decision, count in snapshot.counts.items())
    title = Text(f"line {snapshot.line}: ", style="bold")
    if not snapshot.running:
        title.append("not running", style="red")
    elif not snapshot.ledger_fault:
        title.append(f"{snapshot.rate_hz:.1f} verdicts/s ({counts} in the last {RECENT_S:g} s)")
    processes = Table(title="processes", title_justify="left", expand=False)
    for column in ("process", "state", "pid", "up", "counters", "gauges", "last fault"):
        processes.add_column(column, overflow="fold")
    for name, health in snapshot.processes.items():
        state = snapshot.state(name)
        style = _SHOWN.get(state, "red")
        if health is None:
            pid = str(snapshot.alive.get(name, ""))
            processes.add_row(name, Text(state, style=style), pid, "", "", "", "")
            continue
        processes.add_row(
            name,
            Text(state, style=style),
            str(health.pid),
            _duration(health.uptime_s),
            ", ".join(f"{key} {value}" for key, value in sorted(health.counters.items()) if value),
            ", ".join(f"{key} {value:.4g}" for key, value in sorted(health.gauges.items())),
            health.last_fault,
        )
    shown: list[RenderableType] = [title, processes]
    if snapshot.ledger_fault:
        shown.append(Text(snapshot.ledger_fault, style="red"))
    if snapshot.last:
        shown.append(_verdicts(snapshot.last))
    return Group(*shown)


def _verdicts(verdicts: list[Verdict]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    colours = {Decision.PASS: "green", Decision.REJECT: "red", Decision.UNJUDGED: "yellow"}
    table = Table(title="last verdicts", title_justify="left")
    for column in ("time", "camera", "part", "verdict", "% of limit", "latency", "reason"):
        table.add_column(column)
    for verdict in verdicts:
        seconds = verdict.decided_at_ns / 1e9
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(seconds)),
            verdict.id.camera,
            str(verdict.part),
            Text(verdict.decision.value, style=colours[verdict.decision]),
            "" if verdict.percent is None else f"{verdict.percent:.0f}",
            f"{verdict.latency_ns / 1e6:.1f} ms",
            verdict.reason,
        )
    return table


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"

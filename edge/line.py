"""The one table of the line's processes.

`edge run`, the systemd units (`edge systemd install`) and docs/running.md derive from `ROLES`; the tests compare them
with it, and compare what each process really uses with its budget. A new kind of process is a new row here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from edge.settings import Settings


@dataclass(frozen=True)
class Restart:
    """When a process that failed is started again, and when the line gives up."""

    budget: int  # restarts allowed within `window_s`; one more and the line stops
    window_s: float
    backoff_s: float  # wait before the first restart; doubles with each failure that follows soon
    backoff_max_s: float
    stable_s: float = 2.0  # a process that was ready for so long begins again with the shortest wait

    def delay_s(self, quick_failures: int) -> float:
        """Seconds to wait before the next start, after so many failures of a process that was not yet stable."""
        return min(self.backoff_max_s, self.backoff_s * 2.0 ** min(quick_failures, 32))


@dataclass(frozen=True)
class Role:
    """One row of the table: a kind of process, how it is started, watched, limited and stopped."""

    name: str  # "capture": also the command, `edge capture`
    summary: str
    per_camera: bool
    start_order: int  # lower starts first and stops last; the next order waits until these are ready
    ready_s: float  # longest time from start to READY=1
    watchdog_s: float  # longest time between two WATCHDOG=1 once ready
    stop_s: float  # longest time from SIGTERM to exit; then SIGKILL
    may_finish: bool  # whether exit code 0 by itself means that its work is done
    reloads: bool  # whether SIGHUP makes it read its bundles again
    cpu_budget: float  # cores it may use on average at 10 parts/s of 1 MP; 0 = as many as it is given
    cpu_weight: int  # its share where processes compete for cores (systemd CPUWeight=, default 100)
    memory_mib: int  # limit of its memory besides the frame ring (systemd MemoryMax=)
    tasks: int  # most threads and processes (systemd TasksMax=)
    oom_score: int  # lower is killed later when the host runs out of memory
    restart: Restart
    environment: tuple[tuple[str, str], ...] = ()  # variables it gets, where the caller has not set them
    command: tuple[str, ...] = ()  # words after `edge`, where they are not its name
    section: str = ""  # of the settings; a line without it has no such process

    @property
    def words(self) -> tuple[str, ...]:
        """The command that runs it, after `edge`."""
        return self.command or (self.name,)


RESTART = Restart(budget=5, window_s=60.0, backoff_s=0.2, backoff_max_s=10.0)

# Copies of 256 KiB and more go past the caches. By default glibc streams only what exceeds most of the last cache; on
# servers, where that is large, it reads every line of a ring slot before overwriting it: half as fast.
STREAMING_COPIES = ("GLIBC_TUNABLES", "glibc.cpu.x86_non_temporal_threshold=0x40000")

ABORT_S = 2.0  # from the watchdog's SIGABRT, by which a process writes where it hangs, to SIGKILL

# The PLC first and last: its outputs are safe before anything else lives, and the last verdicts still go through. Then
# alert: it learns of every part from capture. Then inference: loading and checking an engine takes a while.
# Cameras last, so that the first part already finds someone to judge it. Stopping goes the other way round, so that
# parts in flight still get their verdicts.
ROLES: tuple[Role, ...] = (
    Role(
        name="plc",
        summary="tells the PLC the verdicts, in time or not at all (only with `[plc]`)",
        per_camera=False,
        start_order=0,
        ready_s=30.0,
        watchdog_s=30.0,
        stop_s=15.0,
        may_finish=False,
        reloads=False,
        cpu_budget=0.25,
        cpu_weight=1000,
        memory_mib=256,
        tasks=32,
        oom_score=-900,
        restart=RESTART,
        command=("plc", "run"),
        section="plc",
    ),
    Role(
        name="alert",
        summary="deadlines, verdicts, ledger and archive",
        per_camera=False,
        start_order=1,
        ready_s=30.0,
        watchdog_s=10.0,
        stop_s=15.0,
        may_finish=False,
        reloads=False,
        cpu_budget=0.5,
        cpu_weight=500,
        memory_mib=1024,
        tasks=64,
        oom_score=-800,
        restart=RESTART,
    ),
    Role(
        name="infer",
        summary="scores frames of all cameras in batches",
        per_camera=False,
        start_order=2,
        ready_s=180.0,
        watchdog_s=30.0,
        stop_s=15.0,
        may_finish=False,
        reloads=True,
        cpu_budget=0.0,
        cpu_weight=100,
        memory_mib=8192,
        tasks=512,
        oom_score=-200,
        restart=RESTART,
    ),
    Role(
        name="capture",
        summary="frames of one camera into shared memory, and word of every part",
        per_camera=True,
        start_order=3,
        ready_s=60.0,
        watchdog_s=10.0,
        stop_s=10.0,
        may_finish=True,
        reloads=False,
        cpu_budget=0.75,
        cpu_weight=400,
        memory_mib=1024,
        tasks=128,
        oom_score=-600,
        restart=RESTART,
        environment=(STREAMING_COPIES,),
    ),
)


@dataclass(frozen=True)
class Spec:
    """One process of one line: what the supervisor starts."""

    name: str  # "capture-top", "infer", "alert": also the name in logs, health and locks
    role: Role
    arguments: tuple[str, ...]  # after `edge`


def role(name: str) -> Role:
    """The row of that name. Raises `KeyError`."""
    for row in ROLES:
        if row.name == name:
            return row
    raise KeyError(name)


def process_name(row: Role, camera: str | None = None) -> str:
    """The name of a process: "infer", or "capture-top" for the camera "top"."""
    return f"{row.name}-{camera}" if row.per_camera else row.name


def specs(settings: Settings, line_file: Path) -> list[Spec]:
    """The processes of the line in `settings`, read from `line_file`, in the order they start."""
    found: list[Spec] = []
    for row in sorted(ROLES, key=lambda row: row.start_order):
        if row.section and getattr(settings, row.section) is None:
            continue
        if row.per_camera:
            for camera in settings.cameras:
                arguments = (*row.words, str(line_file), "--camera", camera.name)
                found.append(Spec(process_name(row, camera.name), row, arguments))
        else:
            found.append(Spec(process_name(row), row, (*row.words, str(line_file))))
    return found


def with_restarts(processes: Sequence[Spec], policy: Restart) -> list[Spec]:
    """The same processes with another restart policy."""
    return [replace(spec, role=replace(spec.role, restart=policy)) for spec in processes]


_COLUMNS = ("Process", "What it does", "Start", "Ready within", "Watchdog", "Stop within", "CPU budget", "Memory")


def markdown_table() -> str:
    """The table as docs/running.md shows it."""
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS)]
    for row in sorted(ROLES, key=lambda row: row.start_order):
        rows.append(
            (
                f"`{row.name}-CAMERA`" if row.per_camera else f"`{row.name}`",
                row.summary,
                str(row.start_order + 1),
                f"{row.ready_s:g} s",
                f"{row.watchdog_s:g} s",
                f"{row.stop_s:g} s",
                f"{row.cpu_budget:g} core" if row.cpu_budget else "all there are",
                f"{row.memory_mib} MiB" + (" + ring" if row.per_camera else ""),
            )
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"

"""One supervised process: its life, its pipe, what it said last, and how often it was started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

from edge import tether
from edge.line import ABORT_S, Spec

_WORDS = 40  # lines of output that are remembered
_READ = 64 * 1024
_MAX_LINE = 64 * 1024


class State(str, Enum):
    """Where a child is in its life."""

    NEW = "new"  # its turn has not come
    WAITING = "waiting"  # to be started at `deadline`
    STARTING = "starting"  # has to say READY=1 before `deadline`
    RUNNING = "running"  # has to say WATCHDOG=1 before `deadline`
    ABORTING = "aborting"  # got SIGABRT; SIGKILL at `deadline`
    STOPPING = "stopping"  # got SIGTERM; SIGKILL at `deadline`
    ENDED = "ended"  # and is not to be started again
    FINISHED = "finished"  # ended by itself with exit code 0: its work is done


LIVE = frozenset({State.STARTING, State.RUNNING, State.ABORTING, State.STOPPING})


class Child:
    """A process of the table. All times are CLOCK_MONOTONIC seconds. Needs SIGCHLD or polling by its owner."""

    def __init__(self, spec: Spec, command: Sequence[str]) -> None:
        self.spec = spec
        self.state = State.NEW
        self.deadline = 0.0
        self.was_ready = False  # in any of its lives
        self.status = ""  # its last STATUS=
        self.complaint = ""  # why the supervisor ended it, if it did
        self.restarts: deque[float] = deque(maxlen=1000)
        self.total_restarts = 0
        self.quick_failures = 0  # in a row
        self._ready_at: float | None = None  # in its present life
        self.pid = 0
        self.pipe: int | None = None
        self.lines: list[bytes] = []  # whole lines read and not yet taken
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._partial = b""
        self._words: deque[str] = deque(maxlen=_WORDS)

    @property
    def name(self) -> str:
        """The name in the table: "infer", "capture-top"."""
        return self.spec.name

    @property
    def live(self) -> bool:
        """Whether there is a process."""
        return self.state in LIVE

    @property
    def last_words(self) -> str:
        """The last line it wrote, or its last status where it wrote none; for an error message."""
        for line in reversed(self._words):
            if line.strip():
                return line.strip()
        return self.status or "nothing"

    def start(self, notify: Path, environment: Mapping[str, str]) -> None:
        """Starts the process. Raises OSError where the system has no room for one."""
        role = self.spec.role
        variables = {
            **dict(role.environment),
            **environment,
            "NOTIFY_SOCKET": str(notify),
            "WATCHDOG_USEC": str(int(role.watchdog_s * 1e6)),
            "PYTHONFAULTHANDLER": "1",  # SIGABRT by the watchdog then says where it hung
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *self._command]
        read, write = os.pipe()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                env=variables,
                start_new_session=True,  # Ctrl-C must reach the supervisor alone: it stops them in order
            )
        except OSError:
            os.close(read)
            raise
        finally:
            os.close(write)
        os.set_blocking(read, False)
        self.pipe, self.pid = read, self._process.pid
        self.status, self.complaint, self._partial, self._ready_at = "", "", b"", None
        self._words.clear()
        self.state = State.STARTING
        self.deadline = time.monotonic() + role.ready_s

    def heard(self, fields: Mapping[str, str]) -> bool:
        """Takes one sd_notify datagram; says whether the process became ready by it."""
        now = time.monotonic()
        self.status = fields.get("STATUS", self.status)
        became_ready = fields.get("READY") == "1" and self.state is State.STARTING
        if became_ready:
            self.state = State.RUNNING
            self.was_ready = True
            self._ready_at = now
        if self.state is State.RUNNING and (became_ready or fields.get("WATCHDOG") == "1"):
            self.deadline = now + self.spec.role.watchdog_s
        if self.state is State.RUNNING and fields.get("WATCHDOG") == "trigger":
            self.deadline = now
        extension = fields.get("EXTEND_TIMEOUT_USEC", "")
        if extension.isdecimal() and self.state in (State.STARTING, State.STOPPING):
            self.deadline = max(self.deadline, now + int(extension) / 1e6)
        return became_ready

    def read(self) -> None:
        """Reads what it wrote into `lines`; at the end of the pipe, closes it."""
        while self.pipe is not None:
            try:
                data = os.read(self.pipe, _READ)
            except BlockingIOError:
                return
            *lines, rest = (self._partial + data).split(b"\n")
            if len(rest) > _MAX_LINE or (not data and rest):
                lines, rest = [*lines, rest], b""
            self._partial = rest
            self.lines += lines
            self._words.extend(line.decode("utf-8", "replace") for line in lines)
            if not data:
                self._close_pipe()

    def reap(self, wait: bool = False) -> int | None:
        """Its exit code where it has ended since the last call (negative: the signal), else None."""
        if self._process is None:
            return None
        code = self._process.wait() if wait else self._process.poll()
        if code is None:
            return None
        self.read()
        if self.pipe is not None and self._partial:
            self.lines.append(self._partial)
            self._words.append(self._partial.decode("utf-8", "replace"))
        self._close_pipe()
        self._process = None
        self.pid = 0
        return code

    def terminate(self) -> None:
        """Asks it to stop; `deadline` says until when it may take."""
        self.state = State.STOPPING
        self.deadline = time.monotonic() + self.spec.role.stop_s
        self.signal(signal.SIGTERM)

    def abort(self, complaint: str) -> None:
        """Ends a process that hangs: SIGABRT, so that it writes where, and SIGKILL soon after."""
        self.complaint = complaint
        self.state = State.ABORTING
        self.deadline = time.monotonic() + ABORT_S
        self.signal(signal.SIGABRT)

    def kill(self) -> None:
        """SIGKILL to it and its process group."""
        if self._process is not None and self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has ended, and waits to be reaped
                return

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to a process that may have ended meanwhile."""
        if self._process is not None:
            self._process.send_signal(number)

    def next_delay_s(self) -> float:
        """Counts a failure, and says how long to wait before the next start."""
        policy = self.spec.role.restart
        if self._ready_at is not None and time.monotonic() - self._ready_at >= policy.stable_s:
            self.quick_failures = 0
        delay = policy.delay_s(self.quick_failures)
        self.quick_failures += 1
        self.restarts.append(time.monotonic())
        self.total_restarts += 1
        return delay

    def recent_restarts(self) -> int:
        """Restarts within the window of its policy."""
        since = time.monotonic() - self.spec.role.restart.window_s
        while self.restarts and self.restarts[0] < since:
            self.restarts.popleft()
        return len(self.restarts)

    def _close_pipe(self) -> None:
        if self.pipe is not None:
            os.close(self.pipe)
            self.pipe = None


def describe_exit(code: int) -> str:
    """An exit code of `Child.reap` in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"

"""What every process of the line shares: lock, logs, signals, watchdog, health, and how it ends.

A process is a work loop of short turns. The loop itself feeds the watchdog and publishes health: a process that hangs
in a turn goes silent, whatever its threads still do, and is killed and restarted.

Signals: SIGTERM or SIGINT lets the turn finish and stops; a second one stops at once. SIGHUP calls `reload` between
two turns. Exit codes: 0 stopped or finished, 1 a fault that the user can cure (one line in the log), 70 a bug
(traceback in the log), 128 + n forced by signal n.
"""

from __future__ import annotations

import math
import os
import signal
import time
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from types import FrameType

import structlog

from edge import logs
from edge.messages import Health, Message, encode
from edge.notify import Notifier
from edge.settings import Settings
from edge.transport import Broadcast, Endpoints, ProcessLock, ensure_runtime, stop_guards
from pipelines.errors import InspectError

EXIT_OK = 0
EXIT_FAULT = 1
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
HEALTH_S = 1.0


class Process(ABC):
    """One process of the line. `run` drives it: `setup`, then `step` until the end, then `teardown`."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self.endpoints = Endpoints(settings)
        self.log = structlog.get_logger()
        self.counters: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}
        self.state = "starting"  # then "running", "degraded: why", "finished" or "stopping"
        self.last_fault = ""
        self.stopping = False  # SIGTERM came: this turn is the last
        self._host: _Runner | None = None

    @abstractmethod
    def setup(self) -> None:
        """Everything before the first turn; READY follows. May take long: call `progress` meanwhile.

        A stop signal ends it by an exception that no `except Exception` catches.
        """

    @abstractmethod
    def step(self) -> bool | None:
        """One turn of the work loop, at most about a quarter of a second. False: the work is finished."""

    @abstractmethod
    def teardown(self) -> None:
        """Frees everything; is called after an incomplete `setup` too."""

    def reload(self) -> None:
        """SIGHUP: look at the settings' files again. An `InspectError` is logged, and the process goes on as before."""
        self.log.info("nothing to reload")

    def publish(self, message: Message) -> None:
        """Sends a message to everybody who listens to this process."""
        if self._host is not None and self._host.broadcast is not None:
            self._host.broadcast.send(encode(message))

    def progress(self, text: str, more_s: float = 60.0) -> None:
        """Tells people and the service manager what `setup` or `teardown` is doing; asks for `more_s` seconds."""
        self.log.info(text)
        if self._host is not None:
            self._host.notifier.status(text)
            self._host.notifier.extend(more_s)
            self._host.health()

    def fault(self, text: str, **details: object) -> None:
        """Logs a fault that the process survives, and shows it in its health."""
        self.last_fault = logs.without_credentials(text)[:1024]
        self.log.warning(text, **details)


class _Stopped(BaseException):
    """A stop signal during set-up."""


class _Runner:
    def __init__(self, process: Process) -> None:
        self.process = process
        self.notifier = Notifier()
        self.broadcast: Broadcast | None = None
        self._lock: ProcessLock | None = None
        self._started = time.monotonic()
        self._setting_up = False
        self._reload = False
        self._fed = 0.0
        self._told = 0.0
        self._longest_turn = 0.0

    def run(self) -> int:
        process = self.process
        process._host = self
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._hang_up)
        try:
            return self._live()
        except InspectError as error:
            self._fail(str(error))
            return EXIT_FAULT
        except Exception as error:
            process.log.exception("a bug ended this process; please report it")
            self._fail(f"bug: {type(error).__name__}: {error}", log=False)
            return EXIT_BUG
        finally:
            self._close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _live(self) -> int:
        process = self.process
        runtime = process.endpoints.runtime
        ensure_runtime(runtime)
        self._lock = ProcessLock(process.endpoints.lock(process.name))
        self.broadcast = Broadcast(process.endpoints.publisher(process.name))
        try:
            try:
                self._setting_up = True
                if process.stopping:
                    raise _Stopped
                process.setup()
            finally:
                self._setting_up = False
            if process.state == "starting":
                process.state = "running"
            process.log.info("ready", pid=os.getpid())
            self.notifier.ready()
            self.health()
            self._loop()
        except _Stopped:
            process.log.info("stopped during set-up")
        finally:
            self.notifier.stopping()
            if process.state != "finished":
                process.state = "stopping"
            self.health()
            process.teardown()
        process.log.info("finished" if process.state == "finished" else "stopped")
        return EXIT_OK

    def _loop(self) -> None:
        process = self.process
        feed_s = self.notifier.watchdog_s / 4 if self.notifier.watchdog_s else None
        while not process.stopping:
            began = time.monotonic()
            if self._reload:
                self._reload = False
                self._do_reload()
            if process.step() is False:
                process.state = "finished"
                return
            now = time.monotonic()
            self._longest_turn = max(self._longest_turn, now - began)
            if feed_s is not None and now - self._fed >= feed_s:
                self._fed = now
                self.notifier.watchdog()
            if now - self._told >= HEALTH_S:
                self.health()

    def _do_reload(self) -> None:
        try:
            self.process.reload()
        except InspectError as error:
            self.process.fault(f"reload refused: {error}")

    def health(self) -> None:
        """Publishes health now."""
        process = self.process
        self._told = time.monotonic()
        gauges = {name: value for name, value in process.gauges.items() if math.isfinite(value)}
        gauges["turn_ms_max"] = 1000 * self._longest_turn
        gauges["memory_mb"] = _resident_bytes() / 1e6
        self._longest_turn = 0.0
        process.publish(
            Health(
                line=process.settings.line.name,
                process=process.name,
                pid=os.getpid(),
                state=process.state,
                uptime_s=self._told - self._started,
                counters=dict(process.counters),
                gauges=gauges,
                last_fault=process.last_fault,
            )
        )

    def _fail(self, text: str, log: bool = True) -> None:
        text = logs.without_credentials(text)
        self.process.last_fault = text[:1024]
        self.process.state = "failed"
        if log:
            self.process.log.error(text)
        self.notifier.status(text)
        self.health()

    def _close(self) -> None:
        if self.broadcast is not None:
            self.broadcast.close()
        stop_guards()
        if self._lock is not None:
            self._lock.release()
        self.notifier.close()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.process.stopping:
            os.write(2, b"stopped by force\n")
            os._exit(128 + number)
        self.process.stopping = True
        if self._setting_up:
            raise _Stopped

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        self._reload = True


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def run(process: Process, settings: Settings) -> int:
    """Runs a process in this thread, the main one, until it ends. Returns its exit code."""
    logs.set_up(settings.line.name, process.name, settings.log.format, settings.log.level)
    return _Runner(process).run()

"""Starts the line's processes in order, keeps them alive, and stops them in order.

    start   alert -> infer -> captures; each group has to be READY=1 before the next is started
    keep    a process that fails or stops sending WATCHDOG=1 is started again, with back-off and a budget
    drain   once every finite source has ended, waits until each announced part has its verdict
    stop    captures -> infer -> alert: SIGTERM, a time-out, SIGKILL

One thread, one poll loop, no ZeroMQ and no torch: nothing here can hang for longer than a `write` to a full disk. The
children die with this process whatever happens to it (see `tether`). Under systemd there is no supervisor; the units
carry the same table.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from edge.child import Child, State, describe_exit
from edge.line import Spec
from edge.notify_socket import NotifySocket
from edge.passthrough import Passthrough

_TURN_S = 0.2  # longest wait in one turn, so that callbacks run often


class ExitCode(IntEnum):
    """Exit codes of `edge run`."""

    OK = 0  # stopped as asked, or every source ended and every part has its verdict
    ERROR = 1  # settings, files or another line of this name: the error line says which
    USAGE = 2  # wrong command line
    NOT_STARTED = 3  # a process failed, or took too long, before the line was up
    GAVE_UP = 4  # a process failed more often than its restart budget allows
    UNDECIDED = 5  # every source ended, but parts were left without a verdict


class Log(Protocol):
    """The part of a structlog logger that is needed here."""

    def info(self, event: str, **fields: Any) -> Any:
        """Something expected."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Something that was survived."""

    def error(self, event: str, **fields: Any) -> Any:
        """Something that ends the line."""


@dataclass
class Outcome:
    """How a line ended."""

    code: ExitCode = ExitCode.OK
    reason: str = ""
    restarts: dict[str, int] = field(default_factory=dict)
    drained: bool = False  # all sources ended by themselves, and all parts have verdicts


@dataclass(frozen=True)
class Hooks:
    """What the owner of a supervisor may add. Each call has to return soon: the watchdogs wait meanwhile."""

    undecided: Callable[[], int] = lambda: 0  # announced parts without a verdict; asked while draining
    drain_s: float = 30.0
    turn: Callable[[Mapping[str, Child]], None] = lambda children: None  # several times a second
    up: Callable[[], None] = lambda: None  # once, when every process is ready


class Supervisor:
    """Runs `specs`. `command` gives the program of each. Has to be used from the main thread (signals)."""

    def __init__(
        self,
        specs: Sequence[Spec],
        command: Callable[[Spec], Sequence[str]],
        runtime: Path,
        log: Log,
        output: Passthrough,
        hooks: Hooks | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.children = {spec.name: Child(spec, command(spec)) for spec in specs}
        self._runtime = runtime
        self._log = log
        self._output = output
        self._hooks = hooks or Hooks()
        self._environment = dict(os.environ if environment is None else environment)
        self._orders = sorted({spec.role.start_order for spec in specs})
        self._started = 0  # how many of `_orders` have been started
        self._up = False
        self._stopping: list[int] | None = None  # orders still to stop, the current one first
        self._draining_until: float | None = None
        self._ask_at = 0.0  # when to ask for undecided parts again
        self._outcome = Outcome()
        self._signals: list[int] = []

    def stop(self, reason: str = "") -> None:
        """Begins to stop the line; the second call kills what is left."""
        if self._stopping is not None:
            self._log.warning("killing what is left", reason=reason)
            for child in self.children.values():
                child.kill()
            return
        self._log.info("stopping", reason=reason)
        self._stopping = sorted(self._orders, reverse=True)
        for child in self.children.values():
            if child.state in (State.NEW, State.WAITING):
                child.state = State.ENDED
        self._stop_order(self._stopping[0])

    def run(self) -> Outcome:
        """Runs until the line has ended. Raises `TransportError` where the notify socket cannot be bound."""
        notify = NotifySocket(self._runtime / "notify.sock")
        wake_read, wake_write = socket.socketpair()
        for end in (wake_read, wake_write):
            end.setblocking(False)
        with selectors.PollSelector() as selector, wake_read, wake_write:
            selector.register(notify, selectors.EVENT_READ)
            selector.register(wake_read, selectors.EVENT_READ)
            previous_wakeup = signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
            wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
            previous = {number: signal.signal(number, self._caught) for number in wanted}
            try:
                self._start_order(notify)
                while not self._over():
                    self._wait(selector, wake_read)
                    self._turn(notify)
            finally:
                for child in self.children.values():  # none is left, except after an error here
                    child.kill()
                    child.reap(wait=True)
                for number, handler in previous.items():
                    signal.signal(number, handler)
                signal.set_wakeup_fd(previous_wakeup)
                notify.close()
                self._output.drain()
        self._outcome.restarts = {name: child.total_restarts for name, child in self.children.items()}
        return self._outcome

    # One turn ------------------------------------------------------------------------------------------------------

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _wait(self, selector: selectors.BaseSelector, wake: socket.socket) -> None:
        pipes = {child.pipe for child in self.children.values() if child.pipe is not None}
        known = {key.fd for key in selector.get_map().values() if key.data == "pipe"}
        for descriptor in known - pipes:
            selector.unregister(descriptor)
        for descriptor in pipes - known:
            selector.register(descriptor, selectors.EVENT_READ, "pipe")
        now = time.monotonic()
        waits = [child.deadline - now for child in self.children.values() if child.live or child.state is State.WAITING]
        timeout = 0.02 if self._output.waiting else min([_TURN_S, *waits])
        selector.select(max(0.0, timeout))
        try:
            while wake.recv(4096):
                pass
        except BlockingIOError:
            return

    def _turn(self, notify: NotifySocket) -> None:
        self._heed_signals()
        self._listen(notify)
        for child in self.children.values():
            child.read()
            self._pass_on(child)
            if child.live and (code := child.reap()) is not None:
                self._listen(notify)  # what it said before it ended
                self._pass_on(child)
                self._ended(child, code)
            self._keep_time(child, notify)
        self._output.pump()
        self._advance(notify)
        self._hooks.turn(self.children)

    def _heed_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in (signal.SIGTERM, signal.SIGINT):
                self.stop(signal.Signals(number).name)
            elif number == signal.SIGHUP:
                reloading = [c for c in self.children.values() if c.spec.role.reloads and c.state is State.RUNNING]
                self._log.info("reloading", processes=[child.name for child in reloading])
                for child in reloading:
                    child.signal(signal.SIGHUP)

    def _listen(self, notify: NotifySocket) -> None:
        by_pid = {child.pid: child for child in self.children.values() if child.live}
        for notice in notify.receive():
            child = by_pid.get(notice.pid)  # others are not ours to believe
            if child is not None and child.heard(notice.fields):
                self._log.info("ready", child=child.name, pid=child.pid, status=child.status)

    def _pass_on(self, child: Child) -> None:
        for line in child.lines:
            self._output.line(line)
        child.lines.clear()

    def _keep_time(self, child: Child, notify: NotifySocket) -> None:
        if time.monotonic() < child.deadline:
            return
        role = child.spec.role
        if child.state is State.WAITING:
            self._start(child, notify)
        elif child.state is State.STARTING:
            child.abort(f"was not ready within {role.ready_s:g} s")
        elif child.state is State.RUNNING:
            child.abort(f"sent no watchdog message for {role.watchdog_s:g} s")
        elif child.state in (State.ABORTING, State.STOPPING):
            if child.state is State.STOPPING:
                self._log.warning("did not stop in time: killed", child=child.name, within_s=role.stop_s)
            child.kill()
            child.deadline = time.monotonic() + 1.0

    # Starting and restarting -----------------------------------------------------------------------------------------

    def _start_order(self, notify: NotifySocket) -> None:
        order = self._orders[self._started]
        self._started += 1
        for child in self.children.values():
            if child.spec.role.start_order == order:
                self._start(child, notify)

    def _start(self, child: Child, notify: NotifySocket) -> None:
        try:
            child.start(notify.path, self._environment)
        except OSError as error:
            self._failed(child, f"could not be started: {error.strerror}")
        else:
            self._log.info("started", child=child.name, pid=child.pid)

    def _ended(self, child: Child, code: int) -> None:
        role = child.spec.role
        if child.state is State.STOPPING:
            child.state = State.ENDED
            self._log.info("stopped", child=child.name, exit=describe_exit(code))
        elif code == 0 and role.may_finish and child.state is not State.ABORTING:
            child.state = State.FINISHED
            self._log.info("finished", child=child.name)
        else:
            why = child.complaint or ("ended by itself" if code == 0 else describe_exit(code))
            self._failed(child, why)

    def _failed(self, child: Child, why: str) -> None:
        words = child.last_words
        if self._stopping is not None:
            child.state = State.ENDED
            self._log.warning("failed while the line was stopping", child=child.name, why=why, last_words=words)
            return
        if not self._up and not child.was_ready:
            child.state = State.ENDED
            self._give_up(ExitCode.NOT_STARTED, f"{child.name}: {why} before the line was up; it last said: {words}")
            return
        restart = child.spec.role.restart
        recent = child.recent_restarts()
        if recent >= restart.budget:
            child.state = State.ENDED
            failures = f"{why}, after {recent} restarts in {restart.window_s:g} s"
            self._give_up(ExitCode.GAVE_UP, f"{child.name}: {failures}; it last said: {words}")
            return
        delay = child.next_delay_s()
        child.state = State.WAITING
        child.deadline = time.monotonic() + delay
        self._log.warning(
            "restarting", child=child.name, why=why, last_words=words, in_s=delay, left=restart.budget - recent - 1
        )

    def _give_up(self, code: ExitCode, reason: str) -> None:
        self._outcome.code, self._outcome.reason = code, reason
        self._log.error("the line stops", reason=reason, exit_code=int(code))
        self.stop(reason)

    # From start to end -----------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        return self._stopping is not None and not any(child.live for child in self.children.values())

    def _advance(self, notify: NotifySocket) -> None:
        if self._stopping is not None:
            while self._stopping and not any(child.live for child in self._at(self._stopping[0])):
                self._stopping.pop(0)
                if self._stopping:
                    self._stop_order(self._stopping[0])
            return
        if not self._up:
            settled = (State.RUNNING, State.FINISHED)
            if all(child.state in settled for child in self._at(self._orders[self._started - 1])):
                if self._started < len(self._orders):
                    self._start_order(notify)
                else:
                    self._up = True
                    self._log.info("the line is up", processes=list(self.children))
                    self._hooks.up()
            return
        finite = [child for child in self.children.values() if child.spec.role.may_finish]
        if finite and all(child.state is State.FINISHED for child in finite):
            self._drain()

    def _drain(self) -> None:
        now = time.monotonic()
        if self._draining_until is None:
            self._draining_until = now + self._hooks.drain_s
            self._log.info("every source has ended; waiting for the last verdicts")
        if now < self._ask_at:
            return
        self._ask_at = now + _TURN_S / 2
        left = self._hooks.undecided()
        if left == 0:
            self._outcome.drained = True
            self.stop("every source has ended and every part has its verdict")
        elif now > self._draining_until:
            reason = f"{left} parts without a verdict {self._hooks.drain_s:g} s after the last source ended"
            self._give_up(ExitCode.UNDECIDED, reason)

    def _at(self, order: int) -> list[Child]:
        return [child for child in self.children.values() if child.spec.role.start_order == order]

    def _stop_order(self, order: int) -> None:
        for child in self._at(order):
            if child.state in (State.STARTING, State.RUNNING):  # one that is being aborted ends soon
                child.terminate()

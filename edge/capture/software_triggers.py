"""Software triggers of a camera: sent by a thread of their own, and each accounted for."""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import Protocol

from edge.errors import SourceError
from edge.messages import now_ns

SLACK_NS = 1_000_000  # by which an exposure may seem to begin before its trigger: clocks are only estimated
_QUEUE = 256  # triggers that wait to be sent; more are lost at once


class Triggerable(Protocol):
    """A camera that takes pictures on command."""

    def software_trigger(self) -> None:
        """Takes one. May take seconds where the camera is dead. Raises `SourceError`."""
        ...


class SoftwareTriggers:
    """Every command is one part: a frame claims the last one before its exposure, the rest are lost. Thread-safe."""

    def __init__(self, timeout_ms: float) -> None:
        self._timeout_ns = round(timeout_ms * 1e6)
        self._wanted: queue.Queue[int | None] = queue.Queue(_QUEUE)
        self._pending: deque[int] = deque()  # CLOCK_MONOTONIC of commands that were sent, oldest first
        self._failed: deque[int] = deque()  # of those that could not be
        self._state = threading.Lock()
        self._sending = threading.Lock()  # held while the camera is used: it must not be closed meanwhile
        self._camera: Triggerable | None = None
        self.sent = 0
        self._thread = threading.Thread(target=self._run, name="software-trigger", daemon=True)
        self._thread.start()

    def fire(self) -> None:
        """Asks for one picture now. Never waits."""
        try:
            self._wanted.put_nowait(now_ns())
        except queue.Full:
            with self._state:
                self._failed.append(now_ns())

    def connect(self, camera: Triggerable) -> None:
        """Commands go to this camera from now on."""
        with self._sending:
            self._camera = camera

    def disconnect(self) -> None:
        """Commands fail from now on. Waits for one that is just being sent."""
        with self._sending:
            self._camera = None

    def claim(self, exposed_ns: int) -> tuple[list[int], int | None]:
        """The command that an exposure belongs to (None: nobody asked for it), and those before it that failed."""
        with self._state:
            missed: list[int] = []
            mine: int | None = None
            while self._pending and self._pending[0] <= exposed_ns + SLACK_NS:
                if mine is not None:
                    missed.append(mine)
                mine = self._pending.popleft()
            return missed, mine

    def lost(self) -> list[int]:
        """Commands that could not be sent, or brought no frame in time. Each is told once."""
        overdue = now_ns() - self._timeout_ns
        with self._state:
            gone = list(self._failed)
            self._failed.clear()
            while self._pending and self._pending[0] < overdue:
                gone.append(self._pending.popleft())
        return sorted(gone)

    def close(self) -> None:
        """Ends the thread; what waits is not sent."""
        self.disconnect()
        self._wanted.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (asked_ns := self._wanted.get()) is not None:
            with self._sending:
                self._send(asked_ns)

    def _send(self, asked_ns: int) -> None:
        camera = self._camera
        if camera is None:
            with self._state:
                self._failed.append(asked_ns)
            return
        sent_ns = now_ns()
        with self._state:
            self._pending.append(sent_ns)  # before it is sent: its frame may be quicker than we
        try:
            camera.software_trigger()
            self.sent += 1
        except SourceError:
            with self._state:
                if sent_ns in self._pending:
                    self._pending.remove(sent_ns)
                    self._failed.append(sent_ns)

"""Cameras that can be lost: kept connected by a thread of their own, so that no call that blocks is in the frame loop.

Closing a dead camera takes seconds, opening one that is not there too. So a connection that is lost goes to the helper
thread, which closes it, then opens another, spaced by a back-off, and hands it over when frames may come from it. Its
slots go back to the ring when it is closed, before the next one takes any.

Parts that pass meanwhile are announced as LOST where their rate is known (a camera that runs freely at a set rate):
each at the moment when it was due. Where parts come by a trigger nobody here can count them.
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass

import structlog

from edge.capture.source import Grab, SlotPool, Source, SourceInfo
from edge.errors import SourceError
from edge.messages import FrameStatus, now_ns
from pipelines.images import PixelFormat

BACKOFF_FIRST_S = 0.25
LOOK_S = 0.05  # longest wait in one look: loss and due parts are noticed by looking
CLOSE_S = 5.0  # longest wait for a camera that is to be closed for good: a dead one would take longer
LOST_MAX = 4096  # parts of one outage that are announced together, at most


class CameraLost(Exception):
    """The connection is over; says why."""


@dataclass(frozen=True)
class Shape:
    """What the frames of a connection look like, for parts without one."""

    pixel_format: PixelFormat
    height: int
    width: int

    def lost(self, trigger_ns: int) -> Grab:
        """A part whose frame never came."""
        return Grab(FrameStatus.LOST, None, self.pixel_format, self.height, self.width, trigger_ns)


class Connection(ABC):
    """One session with a camera that was opened and told what to do. `__init__` may take seconds."""

    info: SourceInfo
    shape: Shape
    period_ns: int | None  # between two parts, where they come by themselves at a known rate
    by_trigger: bool  # whether silence is no fault

    @abstractmethod
    def start(self, pool: SlotPool) -> None:
        """Frames may come, into slots of `pool`. May take seconds. Raises `SourceError`."""

    @abstractmethod
    def next(self, timeout_s: float) -> Grab | None:
        """The next part, in the order of the camera; None when none came in time. Raises `CameraLost`."""

    @abstractmethod
    def close(self) -> None:
        """Gives back the slots, at once, then the camera, which may take seconds. Safe to call twice."""

    def stalled(self, silent_s: float, stall_s: float) -> bool:
        """Whether so long a silence is a fault: longer than set, and than three frames take."""
        slowest_s = 3e-9 * self.period_ns if self.period_ns is not None else 0.0
        return not self.by_trigger and silent_s > max(stall_s, slowest_s)

    def counters(self) -> dict[str, int]:
        """What happened in this session, by names that go on in the next."""
        return {}


class ConnectedSource(Source):
    """A source whose camera comes and goes."""

    def __init__(self, reconnect_max_s: float) -> None:
        self.log = structlog.get_logger()
        self._reconnect_max_s = reconnect_max_s
        self._connection: Connection | None = None
        self._fresh: Connection | None = None
        self._pool: SlotPool | None = None
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._helper: threading.Thread | None = None
        self._fault = ""
        self._counts: dict[str, int] = {}  # of sessions that are over
        self._reconnects = self._failures = self._lost = 0
        self._shape: Shape | None = None
        self._period_ns: int | None = None
        self._last_ns: int | None = None  # when the newest part was triggered
        self._waiting: deque[Grab] = deque()

    @abstractmethod
    def _connect(self) -> Connection:
        """Opens and configures the camera. May take seconds. Raises `SourceError`."""

    def open(self) -> SourceInfo:
        """Connects. Raises `SourceAway` where the camera is not there (yet), `SourceError` where it never will be."""
        self._connection = self._connect()
        self._shape, self._period_ns = self._connection.shape, self._connection.period_ns
        return self._connection.info

    def start(self, pool: SlotPool) -> None:
        """Frames may come from now on."""
        self._pool = pool
        if self._connection is not None:
            self._connection.start(pool)

    def next(self, timeout_s: float) -> Grab | None:
        """The next part, in the order of the camera; None when none came in time, or there is no camera."""
        until = now_ns() + round(timeout_s * 1e9)
        while True:
            if self._waiting:
                return self._noted(self._waiting.popleft())
            left_s = max(0.0, min(LOOK_S, (until - now_ns()) / 1e9))
            connection = self._connection
            grab = None
            if connection is None:
                self._adopt(left_s)
            else:
                try:
                    grab = connection.next(left_s)
                except CameraLost as lost:
                    self._lose(connection, str(lost))
                    continue
            if grab is not None:
                self._arrived(grab)
            elif self._fault:
                self._pass_unseen(now_ns())
            if not self._waiting and now_ns() >= until:
                return None

    def close(self) -> None:
        """Gives the camera back. A dead one is left to a thread that ends with the process, its slots are free."""
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        if self._helper is not None:
            self._helper.join(CLOSE_S)
        for grab in self._waiting:
            if grab.slot is not None and self._pool is not None:
                self._pool.release(grab.slot)
        self._waiting.clear()
        for connection in (self._connection, self._fresh):
            if connection is not None:
                closer = threading.Thread(target=connection.close, name="camera-close", daemon=True)
                closer.start()
                closer.join(CLOSE_S)
        self._connection = self._fresh = self._pool = None

    def health(self) -> tuple[str, dict[str, int]]:
        """The lasting fault, and what was counted over all sessions."""
        counts = dict(self._counts)
        connection = self._connection
        if connection is not None:
            _add(counts, connection.counters())
        counts |= {
            "reconnects": self._reconnects,
            "connections_failed": self._failures,
            "lost_while_away": self._lost,
        }
        return self._fault, counts

    def _arrived(self, grab: Grab) -> None:
        if self._fault:
            self._pass_unseen(grab.trigger_ns)  # what passed before it
            self._recovered()
        self._waiting.append(grab)

    def _recovered(self) -> None:
        self.log.info("the camera is connected again", after=self._fault)
        self._fault = ""
        self._reconnects += 1

    def _noted(self, grab: Grab) -> Grab:
        self._last_ns = grab.trigger_ns
        return grab

    def _pass_unseen(self, until_ns: int) -> None:
        """Announces the parts that passed before `until_ns` with nobody looking."""
        if self._shape is None:
            return
        unseen = self._unseen(until_ns)
        self._lost += len(unseen)
        self._waiting.extend(self._shape.lost(trigger_ns) for trigger_ns in unseen)

    def _unseen(self, until_ns: int) -> list[int]:
        """When parts passed that were due before `until_ns`, where they come by themselves; each is told once."""
        if self._period_ns is None or self._last_ns is None:
            return []
        # Half a period of grace: clocks differ, and the frame that ends an outage must not be announced twice.
        count = max(0, (until_ns - self._last_ns + self._period_ns // 2) // self._period_ns - 1)
        due = [self._last_ns + number * self._period_ns for number in range(1, min(count, LOST_MAX) + 1)]
        if due:
            self._last_ns = due[-1]
        return due

    def _lose(self, connection: Connection, why: str) -> None:
        self._failures += 1
        self._fault = why
        self._connection = None
        _add(self._counts, connection.counters())
        self._helper = threading.Thread(target=self._revive, args=(connection,), name="camera-revival", daemon=True)
        self._helper.start()

    def _adopt(self, timeout_s: float) -> None:
        """Takes over what the helper has opened, if it has."""
        with self._changed:
            if self._fresh is None and timeout_s > 0:
                self._changed.wait(timeout_s)
            self._connection, self._fresh = self._fresh, None
        if self._connection is not None:
            self._shape, self._period_ns = self._connection.shape, self._connection.period_ns
            if self._connection.by_trigger:  # the next frame may be long in coming
                self._recovered()

    def _revive(self, dead: Connection) -> None:
        """Helper thread: closes the lost connection, then opens one that works."""
        dead.close()
        backoff_s = BACKOFF_FIRST_S
        # Spread a little, so that cameras behind one switch do not come back all at once.
        while not self._closing.wait(backoff_s * random.uniform(0.8, 1.2)):  # noqa: S311
            connection: Connection | None = None
            try:
                connection = self._connect()
                assert self._pool is not None
                connection.start(self._pool)
            except SourceError as error:
                self._failures += 1
                self._fault = str(error)
                if connection is not None:
                    connection.close()
                backoff_s = min(self._reconnect_max_s, 2 * backoff_s)
                continue
            with self._changed:
                unwanted = self._closing.is_set()
                if not unwanted:
                    self._fresh = connection
                    self._changed.notify_all()
            if unwanted:
                connection.close()
            return


def _add(counts: dict[str, int], more: dict[str, int]) -> None:
    for name, value in more.items():
        counts[name] = counts.get(name, 0) + value

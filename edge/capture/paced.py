"""Sources that set their own pace: files and drawn parts, on a schedule without drift.

Part n passes the (imagined) camera at `start + n / rate`, whatever happens here. That moment is the part's trigger
time, so a delay of ours shows up as latency, as it would on a line. The picture is prepared before its moment comes.

Where we fall behind, parts keep passing: each is still announced. One that passed more than `LAG_S` ago is announced as
LOST, without pixels, which is what a camera would have made of it and lets us catch up.
"""

from __future__ import annotations

import time
from abc import abstractmethod

from edge.capture.source import EndOfSource, Grab, Slot, SlotPool, Source
from edge.errors import RingError
from edge.messages import FrameStatus, now_ns
from pipelines.images import PixelFormat

LAG_S = 1.0


class Schedule:
    """Due times of evenly spaced parts, computed from the start each time so that no error adds up."""

    def __init__(self, rate_hz: float, start_ns: int) -> None:
        self.start_ns, self._period_ns = start_ns, 1e9 / rate_hz

    def due_ns(self, number: int) -> int:
        """When part `number` passes, CLOCK_MONOTONIC."""
        return self.start_ns + round(number * self._period_ns)

    def wait(self, number: int, until_ns: int) -> bool:
        """Sleeps until part `number` is due, but not beyond `until_ns`. Whether it is due."""
        due = self.due_ns(number)
        while (now := now_ns()) < due:
            if now >= until_ns:
                return False
            time.sleep((min(due, until_ns) - now) / 1e9)
        return True


class PacedSource(Source):
    """A source whose parts come at a set rate. Subclasses prepare part n; the pace is kept here."""

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self._pool: SlotPool | None = None
        self._schedule: Schedule | None = None
        self._number = 0
        self._ready: Grab | None = None
        self._lost = 0

    @abstractmethod
    def _prepare(self, number: int, pool: SlotPool, until_ns: int) -> Grab | None:
        """Part `number` with its picture in a slot (its `trigger_ns` is set later), or None if not ready in time."""

    @abstractmethod
    def _skip(self, number: int) -> Grab:
        """Part `number` as LOST: nothing of it needs to be prepared any more."""

    @abstractmethod
    def _ended(self, number: int) -> bool:
        """Whether there is no part `number`."""

    def start(self, pool: SlotPool) -> None:
        """Parts may come from now on; the schedule begins when the first picture is ready."""
        self._pool = pool

    def next(self, timeout_s: float) -> Grab | None:
        """The next part when it is due, or None when that is later."""
        if self._pool is None:
            raise RuntimeError("start() comes before next()")
        if self._ended(self._number):
            raise EndOfSource
        until = now_ns() + round(timeout_s * 1e9)
        if self._schedule is not None and now_ns() - self._schedule.due_ns(self._number) > LAG_S * 1e9:
            if self._ready is not None and self._ready.slot is not None:
                self._pool.release(self._ready.slot)
            self._ready = None
            self._lost += 1
            return self._hand_over(self._skip(self._number))
        if self._ready is None:
            self._ready = self._prepare(self._number, self._pool, until)
            if self._ready is None:
                return None
        if self._schedule is None:
            self._schedule = Schedule(self._rate_hz, now_ns())
        if not self._schedule.wait(self._number, until):
            return None
        return self._hand_over(self._ready)

    def close(self) -> None:
        """Gives back the slot of a part that is no longer wanted."""
        if self._pool is not None and self._ready is not None and self._ready.slot is not None:
            self._pool.release(self._ready.slot)
        self._ready, self._pool = None, None

    def health(self) -> tuple[str, dict[str, int]]:
        """Well, as long as the pace is kept; `lost_behind` counts parts that passed before we got to them."""
        return "", {"lost_behind": self._lost}

    def _hand_over(self, grab: Grab) -> Grab:
        assert self._schedule is not None
        due = self._schedule.due_ns(self._number)
        self._ready = None
        self._number += 1
        return grab.at(due)


def failed(
    status: FrameStatus, pixel_format: PixelFormat, height: int = 0, width: int = 0, origin: str | None = None
) -> Grab:
    """A part without a picture; its time is set by who hands it out."""
    return Grab(status, None, pixel_format, height, width, 0, origin=origin)


def take(pool: SlotPool, size: int) -> Slot | None:
    """A slot that holds `size` bytes, or None where slots are smaller or all are taken."""
    try:
        slot = pool.acquire()
    except RingError:
        return None
    if slot.buffer.size >= size:
        return slot
    pool.release(slot)
    return None

"""Frame numbers that cameras give: how they wrap, what is missing or late, and in which order parts are told."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_WRAP = 0xFFFF  # 16-bit ids run 1 ... 65535, 1 ...: 0 is reserved (GigE Vision 2.0, section 24.2)
GAP_MAX = 1024  # ids that may be missing at once: more means that the camera counts anew


class FrameIds:
    """Follows a camera's frame ids, of 16 bits (GigE Vision 1) or 64 (GigE Vision 2, GenTL)."""

    def __init__(self) -> None:
        self.last: int | None = None

    def step(self, frame_id: int) -> int:
        """How far the id is ahead of the newest one seen: 1 is the next frame, 1 + n that n are missing.

        0 or less: it was passed over already, as a frame that comes late. Such an id changes nothing here.
        """
        if self.last is None:
            self.last = frame_id
            return 1
        ahead = frame_id - self.last
        # Above 16 bits nothing wraps; and 65535 -> 65536 tells that the ids are longer.
        if max(frame_id, self.last) <= _WRAP:
            ahead %= _WRAP
            if ahead > _WRAP // 2:
                ahead -= _WRAP
        if ahead > 0:
            self.last = frame_id
        return ahead

    def after(self, count: int) -> int | None:
        """The id that comes `count` after the newest one (before it where `count` is negative)."""
        if self.last is None:
            return None
        following = self.last + count
        if self.last <= _WRAP < following:
            return following - _WRAP
        return following + _WRAP if following < 1 else following

    def skip(self) -> int | None:
        """The next frame was there, though its number was not received. Returns what it must have been."""
        self.last = self.after(1)
        return self.last


@dataclass(frozen=True)
class Place:
    """Where a frame stands: what has to be told before it, and its number (None where the camera has told none)."""

    missing: tuple[int, ...]
    frame_id: int | None


class FrameOrder:
    """Tells each part once, in the order of the camera's ids, and never waits for a frame.

    Receivers hand out damaged frames late, and out of order: a frame is given up when its packets have not come for a
    while, and by then its successors may be done. Their ids have shown the gap, so its part was told without it.
    """

    def __init__(self, late_ns: int) -> None:
        """`late_ns`: for so long, a frame without a number may be one that was passed over."""
        self._late_ns = late_ns
        self._ids = FrameIds()
        self._passed_over: deque[int] = deque()  # when parts were told without their frames
        self.late = 0  # frames whose part was told before they came
        self.restarts = 0  # how often the camera began to count anew

    def place(self, frame_id: int, now_ns: int) -> Place | None:
        """Where a frame that comes now belongs; 0 is one whose number was lost. None: its part was told already."""
        while self._passed_over and now_ns - self._passed_over[0] > self._late_ns:
            self._passed_over.popleft()
        if frame_id == 0:
            if self._passed_over:
                self._comes_late()
                return None
            return Place((), self._ids.skip())
        ahead = self._ids.step(frame_id)
        if not -GAP_MAX <= ahead <= GAP_MAX + 1:
            self.restarts += 1
            self._ids.last, ahead = frame_id, 1
        if ahead <= 0:
            self._comes_late()
            return None
        missing = tuple(self._ids.after(back) or 0 for back in range(1 - ahead, 0))
        self._passed_over.extend([now_ns] * len(missing))
        return Place(missing, frame_id)

    def _comes_late(self) -> None:
        self.late += 1
        if self._passed_over:
            self._passed_over.popleft()

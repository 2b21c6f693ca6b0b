"""Where the belt is, from encoder readings: 32-bit counts that wrap, a speed that changes, a belt that stops.

The PLC tells the count with every exchange. Between two readings the belt's place is interpolated; after the newest
it is reckoned from the measured speed, for a limited time. Places are counts without wrap, in the direction of travel.

A change faster than the belt can move is no movement but a counter that was reset or a PLC that was restarted: the
track breaks, and nothing reckoned before it holds any more.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

WRAP = 2**32
HISTORY = 8192  # readings; at 200 a second, 40 s of belt
SPEED_WINDOW_NS = 20_000_000  # the speed is measured over so much, or over the newest two readings


@dataclass(frozen=True, slots=True)
class EncoderReading:
    """The PLC's encoder count (int32, wraps) and when it was read (CLOCK_MONOTONIC)."""

    ns: int
    count: int


class Belt:
    """The track of one belt. `direction` is -1 where the encoder counts down."""

    def __init__(self, max_counts_s: float, stale_ns: int, direction: int = 1) -> None:
        self._max_counts_s = max_counts_s
        self._stale_ns = stale_ns
        self._direction = direction
        self._count = 0
        self._times: list[int] = []
        self._places: list[int] = []
        self.speed = 0.0  # counts per nanosecond, in the direction of travel

    def read(self, reading: EncoderReading) -> bool:
        """Takes a reading; False where the track broke. A reading that is not newer than the last is ignored."""
        if not self._times:
            self._begin(reading)
            return True
        elapsed = reading.ns - self._times[-1]
        if elapsed <= 0:
            return True
        # One count of quantisation is no jump, however short the time between two readings was.
        moved = self._direction * _difference(reading.count, self._count)
        if abs(moved) - 1 > self._max_counts_s * elapsed * 1e-9:
            self._begin(reading)
            return False
        self._count = reading.count
        self._times.append(reading.ns)
        self._places.append(self._places[-1] + moved)
        if len(self._times) > 2 * HISTORY:  # halved now and then: a list is searched faster than a deque
            del self._times[:HISTORY], self._places[:HISTORY]
        self._measure()
        return True

    def fresh(self, now_ns: int) -> bool:
        """Whether the newest reading is recent enough to reckon from."""
        return bool(self._times) and now_ns - self._times[-1] <= self._stale_ns

    def place_of(self, count: int) -> int | None:
        """The place of an encoder count (any 32 bits of it) that is near the belt's place now."""
        if not self._times:
            return None
        return self._places[-1] + self._direction * _difference(count, self._count)

    def place_at(self, ns: int) -> int | None:
        """Where the belt was at `ns`. None where readings around it are missing, or are yet to come."""
        after = bisect_left(self._times, ns)
        if after == len(self._times):
            return None
        if self._times[after] == ns:
            return self._places[after]
        if after == 0 or self._times[after] - self._times[after - 1] > self._stale_ns:
            return None
        share = (ns - self._times[after - 1]) / (self._times[after] - self._times[after - 1])
        return round(self._places[after - 1] + share * (self._places[after] - self._places[after - 1]))

    def will_know(self, ns: int) -> bool:
        """Whether `place_at(ns)` may be answered by a reading yet to come."""
        return not self._times or ns > self._times[-1]

    def reaches(self, place: int, now_ns: int) -> int | None:
        """When the belt reached `place`, or will, at the speed it has now. None: not in sight (it stands, or is lost).

        The past is interpolated between readings; the future reckoned from a newest reading that is fresh at `now_ns`.
        """
        if not self._times:
            return None
        if self._places[-1] >= place:
            return self._reached(place)
        if not self.fresh(now_ns) or self.speed <= 0:
            return None
        return self._times[-1] + round((place - self._places[-1]) / self.speed)

    def _reached(self, place: int) -> int:
        """When the belt last came to `place`."""
        after = len(self._places) - 1
        while after > 0 and self._places[after - 1] >= place:
            after -= 1
        if after == 0:
            return self._times[0]
        behind, ahead = self._places[after - 1], self._places[after]
        share = (place - behind) / (ahead - behind)
        return self._times[after - 1] + round(share * (self._times[after] - self._times[after - 1]))

    def _measure(self) -> None:
        first = min(bisect_right(self._times, self._times[-1] - SPEED_WINDOW_NS), len(self._times) - 2)
        self.speed = (self._places[-1] - self._places[first]) / (self._times[-1] - self._times[first])

    def _begin(self, reading: EncoderReading) -> None:
        self._count = reading.count
        self._times, self._places, self.speed = [reading.ns], [0], 0.0


def _difference(new: int, old: int) -> int:
    """From `old` to `new` the short way round 32 bits."""
    return (new - old + WRAP // 2) % WRAP - WRAP // 2

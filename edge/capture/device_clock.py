"""A camera's clock in terms of this host's.

A frame's arrival here is late by what transport, kernel and scheduler took, which varies; the camera's own time of the
exposure does not. So the offset between the clocks is estimated from the frames that came quickest, and the camera's
time is translated with it: the jitter of arrival is gone, and what remains is the shortest way a frame takes.

The minimum is taken over this and the last span of `SPAN_S`, so that a drift between the clocks is followed: at 100 ppm
by 1 ms within twice 5 s, at most.
"""

from __future__ import annotations

SPAN_S = 5.0
_JUMP_NS = 1_000_000_000  # further off than this: the camera's clock was set, or counts something else


class DeviceClock:
    """Translates a camera's times to CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._best: int | None = None  # least (arrival - camera's time) of this span, of the last one
        self._before: int | None = None
        self._since_ns = 0

    def host_ns(self, device_ns: int, arrival_ns: int) -> int:
        """When the camera's `device_ns` was, given that the frame arrived at `arrival_ns`; never later than that.

        All in nanoseconds. A camera without a clock (0) gets the arrival.
        """
        if device_ns <= 0:
            return arrival_ns
        offset = arrival_ns - device_ns
        known = self._offset()
        if known is not None and abs(offset - known) > _JUMP_NS:
            self._best = self._before = known = None
        if known is None or arrival_ns - self._since_ns > SPAN_S * 1e9:
            self._before, self._best, self._since_ns = self._best, None, arrival_ns
        self._best = offset if self._best is None else min(self._best, offset)
        least = self._offset()
        assert least is not None
        return device_ns + min(least, offset)

    def _offset(self) -> int | None:
        known = [offset for offset in (self._best, self._before) if offset is not None]
        return min(known, default=None)

"""Network streams (RTSP, HTTP, …), video devices and named pipes: frames come by themselves, and the connection fails.

A connection that ends, or is silent for `stall_s`, is replaced; attempts are spaced by a back-off that doubles up to
`reconnect_max_s`. Meanwhile the source lives on and tells its fault. Frames that came but could not be taken in time
are announced as LOST; what a camera saw while there was no connection nobody can count.
"""

from __future__ import annotations

import random
import threading

from edge.capture.source import EndOfSource, Grab, SlotPool, Source, SourceInfo
from edge.capture.stream_reader import StreamReader
from edge.errors import SourceAway, SourceError
from edge.logs import without_credentials
from edge.messages import now_ns
from edge.settings_sources import OpencvSource as OpencvSettings

RATE_UNKNOWN_HZ = 60.0  # assumed for the ring's size where neither stream nor settings tell
BACKOFF_FIRST_S = 0.5
HUNG_MAX = 4  # reads that hang and were given up; no further attempt before one returns


class StreamSource(Source):
    """A camera behind OpenCV that is kept connected."""

    def __init__(self, settings: OpencvSettings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._pool: SlotPool | None = None
        self._reader: StreamReader | None = None
        self._hung: list[StreamReader] = []
        self._backoff_s = BACKOFF_FIRST_S
        self._retry_ns = 0
        self._fault = ""
        self._closed = False
        self._connected = 0
        self._stalls = self._failures = self._overrun = 0

    @property
    def _name(self) -> str:
        return without_credentials(self._settings.url or self._settings.device or str(self._settings.file))

    def open(self) -> SourceInfo:
        """Connects and waits for the first frame.

        Raises `SourceAway` where none comes within `open_s`, `SourceError` where that will not change.
        """
        self._hung = [hung for hung in self._hung if hung.alive]
        if len(self._hung) >= HUNG_MAX:
            raise SourceAway(f"{self._name}: {HUNG_MAX} reads hang; {self._advice()}")
        # The first frame of a camera is older than the ring; of a pipe it is the first part.
        reader = StreamReader(self._settings, self._changed, keep_first=self._settings.file is not None)
        with self._changed:
            longest_s = self._settings.open_s + self._settings.stall_s
            self._changed.wait_for(lambda: reader.shape or reader.ended or self._closed, longest_s)
            shape, why = reader.shape, reader.ended
            if shape is None:
                reader.give_up()
        if shape is None:
            # A thread that is inside the video library while Python ends takes the process down.
            if not reader.join(1.0):
                self._hung.append(reader)
            # A device or a network camera may come; what a pipe's writer does not write will not be missed.
            away = SourceError if self._settings.file is not None else SourceAway
            raise away(f"{self._name}: {why or 'no frame in time'}; {self._advice()}")
        self._reader = reader
        self._connected = 1
        channels = self._settings.pixel_format.channels
        return SourceInfo(
            max_bytes=shape.height * shape.width * channels,
            max_rate_hz=self._settings.rate_hz or shape.rate_hz or RATE_UNKNOWN_HZ,
            finite=self._settings.file is not None,
            description=f"{self._name}, {shape.width} x {shape.height} {self._settings.pixel_format.value}",
        )

    def start(self, pool: SlotPool) -> None:
        """Lets frames in."""
        self._pool = pool
        if self._reader is not None:
            self._reader.start(pool)

    def next(self, timeout_s: float) -> Grab | None:
        """The next frame, or None when none came in time, or there is no connection."""
        until = now_ns() + round(timeout_s * 1e9)
        with self._changed:
            while True:
                if self._reader is not None and (grab := self._reader.take()) is not None:
                    self._recovered()
                    return grab
                self._tend()
                left = until - now_ns()
                if left <= 0:
                    return None
                # Not longer than this: a stall and the time for the next attempt are noticed by looking.
                self._changed.wait(min(left / 1e9, 0.05))

    def close(self) -> None:
        """Ends the connection; waits a little for the reader to leave the ring."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.give_up()
        if reader is not None:
            reader.join(2.0)
        self._pool = None

    def health(self) -> tuple[str, dict[str, int]]:
        """The lasting fault, and how often what happened."""
        overrun = self._overrun + (self._reader.overrun if self._reader is not None else 0)
        return self._fault, {
            "reconnects": self._connected - 1 if self._connected else 0,
            "stalls": self._stalls,
            "connections_failed": self._failures,
            "frames_overrun": overrun,
        }

    def _tend(self) -> None:
        """Replaces a connection that is over or silent, when it is time to."""
        settings, reader, now = self._settings, self._reader, now_ns()
        if reader is None:
            if now >= self._retry_ns and self._pool is not None:
                self._hung = [hung for hung in self._hung if hung.alive]
                if len(self._hung) >= HUNG_MAX:
                    self._fault = f"{self._name}: {HUNG_MAX} reads hang; {self._advice()}"
                    self._retry_ns = now + round(self._backoff_s * 1e9)
                    return
                self._reader = StreamReader(settings, self._changed, keep_first=True)
                self._reader.start(self._pool)
            return
        silent_s = (now - reader.last_frame_ns) / 1e9
        # Opening includes the first frame, so it may take the time of both.
        allowed_s = settings.stall_s if reader.shape is not None else settings.open_s + settings.stall_s
        if reader.ended:
            self._drop(reader, reader.ended)
        elif silent_s > allowed_s:
            self._stalls += 1
            self._hung.append(reader)
            self._drop(reader, f"silent for {silent_s:.1f} s")

    def _drop(self, reader: StreamReader, why: str) -> None:
        if self._settings.file is not None and reader.ended and reader.shape is not None:
            raise EndOfSource  # the writer of a named pipe has closed it
        self._failures += 1
        self._fault = f"{self._name}: {why}; {self._advice()}"
        self._overrun += reader.overrun
        reader.give_up()
        self._reader = None
        # Spread a little, so that cameras behind one switch do not come back all at once.
        self._retry_ns = now_ns() + round(self._backoff_s * random.uniform(0.8, 1.2) * 1e9)  # noqa: S311
        self._backoff_s = min(self._settings.reconnect_max_s, 2 * self._backoff_s)

    def _recovered(self) -> None:
        if self._fault:
            self._connected += 1
        self._fault = ""
        self._backoff_s = min(BACKOFF_FIRST_S, self._settings.reconnect_max_s)

    def _advice(self) -> str:
        if self._settings.device is not None:
            return "is it plugged in, may this user read it (group video), and does no other program use it?"
        if self._settings.url is not None:
            return "is the camera on, the address right, and user and password?"
        return "does anybody write into it?"

"""Whole lines from many processes to one output, never waiting for whoever reads it.

A supervisor that waits for a stopped terminal or a slow pipe feeds no watchdog and, once the pipes of its children are
full, stops the line. So lines are queued up to a bound, written only where the kernel says that they fit, and dropped
(and counted) beyond the bound.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque

_CHUNK = 4096  # PIPE_BUF: poll says a pipe is writable when this much fits
_MAX_LINE = 64 * 1024


class Passthrough:
    """The output `descriptor`; a text stream as far as log libraries need one (`write` and `flush`)."""

    def __init__(self, descriptor: int, max_bytes: int = 1 << 20) -> None:
        self.dropped = 0  # lines, since the last time it was said
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._text = ""
        self._broken = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    @property
    def waiting(self) -> bool:
        """Whether lines are queued."""
        return bool(self._lines)

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Queues whole lines; the rest of `text` waits for its end."""
        self._text += text
        *lines, self._text = self._text.split("\n")
        for line in lines:
            self.line(line.encode("utf-8", "replace"))
        return len(text)

    def flush(self) -> None:
        """Writes what fits now."""
        self.pump()

    def line(self, data: bytes) -> None:
        """Queues one line, without its newline; dropped where the queue is full."""
        if self._broken or self._bytes + len(data) > self._max_bytes:
            self.dropped += 1
            return
        if self.dropped:
            notice = b"... %d lines dropped: this output was not read in time\n" % self.dropped
            self.dropped = 0
            self._push(notice)
        self._push(data[:_MAX_LINE] + b"\n")

    def _push(self, data: bytes) -> None:
        self._lines.append(data)
        self._bytes += len(data)

    def pump(self) -> None:
        """Writes what fits now, without waiting."""
        while self._lines and not self._broken:
            if not self._poll.poll(0):
                return
            data = self._lines[0]
            try:
                written = os.write(self._descriptor, data[:_CHUNK])
            except BlockingIOError:
                return
            except OSError:  # nobody reads any more (EPIPE, EIO)
                self._broken = True
                self._lines.clear()
                self._bytes = 0
                return
            self._bytes -= written
            if written == len(data):
                self._lines.popleft()
            else:
                self._lines[0] = data[written:]

    def drain(self, timeout_s: float = 1.0) -> None:
        """Writes everything, waiting at most `timeout_s`."""
        if self._text:
            self.write("\n")
        end = time.monotonic() + timeout_s
        self.pump()
        while self._lines and not self._broken and (left := end - time.monotonic()) > 0:
            self._poll.poll(left * 1000)
            self.pump()

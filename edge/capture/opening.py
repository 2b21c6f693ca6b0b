"""Opening a source that may not be there yet, in a thread of its own: a camera that is off holds up nobody."""

from __future__ import annotations

import random
import threading

from edge.capture.source import Source, SourceInfo
from edge.errors import SourceAway

BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 5.0
_LEAVE_S = 6.0  # longest wait for an attempt that is under way when nobody wants it any more


class Opening:
    """Opens `source`, again and again for as long as its camera is away."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._changed = threading.Condition()
        self._unwanted = threading.Event()
        self._info: SourceInfo | None = None
        self._error: BaseException | None = None  # what another attempt would not change
        self.fault = ""  # why it is not open yet, after the first attempt
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name="opening", daemon=True)
        self._thread.start()

    def first(self) -> SourceInfo | None:
        """Waits for the first attempt: what opened, or None where the camera is away. Raises as `wait`."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self.fault)
        return self.wait(0.0)

    def wait(self, timeout_s: float) -> SourceInfo | None:
        """What opened, or None when nothing did in time. Raises `SourceError` where nothing ever will."""
        with self._changed:
            self._changed.wait_for(lambda: self._over, timeout_s)
            if self._error is not None:
                raise self._error
            return self._info

    def cancel(self) -> None:
        """No further attempt. What opens in spite of it is closed again. Call it before `Source.close`."""
        self._unwanted.set()
        self._source.close()  # an attempt that heeds it ends early
        self._thread.join(_LEAVE_S)

    @property
    def _over(self) -> bool:
        return self._info is not None or self._error is not None

    def _run(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self._unwanted.is_set():
            try:
                info = self._source.open()
            except SourceAway as away:
                with self._changed:
                    self.fault = str(away)
                    self.failures += 1
                    self._changed.notify_all()
            except Exception as error:  # a bug too is told by the thread that waits
                self._settle(error=error)
                return
            else:
                self._settle(info=info)
                return
            # Spread a little, so that cameras behind one switch are not all asked at once.
            self._unwanted.wait(backoff_s * random.uniform(0.8, 1.2))  # noqa: S311
            backoff_s = min(BACKOFF_MAX_S, 2 * backoff_s)

    def _settle(self, info: SourceInfo | None = None, error: BaseException | None = None) -> None:
        with self._changed:
            self._info, self._error = info, error
            self._changed.notify_all()
        if self._unwanted.is_set():
            self._source.close()

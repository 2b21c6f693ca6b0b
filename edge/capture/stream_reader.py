"""One connection to a stream, in a thread of its own, because OpenCV's reads block and cannot be interrupted.

The thread waits in `grab` without holding a slot, so that one which hangs there for ever keeps nothing of the ring and
can be given up. Only when a frame has come it takes a slot and decodes into it.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.capture.pixels import convert, frame_view
from edge.capture.source import Grab, Slot, SlotPool
from edge.errors import RingError
from edge.messages import FrameStatus, now_ns
from edge.settings_sources import OpencvSource as OpencvSettings
from pipelines.images import PixelFormat

WAITING_MAX = 2  # decoded frames that wait to be announced; more are LOST
LOST_MAX = 4096  # announcements of lost frames that wait


@dataclass(frozen=True)
class StreamShape:
    """What the first frame and the stream tell. `rate_hz` is 0 where the stream does not tell it."""

    height: int
    width: int
    rate_hz: float


class StreamReader:
    """Opens the stream, reads its first frame, and after `start` decodes into slots.

    `keep_first`: the first frame is a part too. Whatever others read of a reader changes under `changed`.
    """

    def __init__(self, settings: OpencvSettings, changed: threading.Condition, keep_first: bool) -> None:
        self._settings = settings
        self._keep_first = keep_first
        self._changed = changed
        self._pool: SlotPool | None = None
        self._given_up = False
        self._scratch: NDArray[np.uint8] | None = None
        self.frames: deque[Grab] = deque()
        self.waiting = 0  # of `frames`, those with a slot
        self.shape: StreamShape | None = None  # once the first frame has come
        self.ended = ""  # why the connection is over
        self.overrun = 0  # frames lost because nobody took them
        self.last_frame_ns = now_ns()
        self._thread = threading.Thread(target=self._run, name="stream-reader", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs (perhaps inside a read that hangs)."""
        return self._thread.is_alive()

    def start(self, pool: SlotPool) -> None:
        """Frames from now on go into slots of `pool`."""
        with self._changed:
            self._pool = pool
            self._changed.notify_all()

    def take(self) -> Grab | None:
        """The next frame, if there is one. Call with `changed` held."""
        if not self.frames:
            return None
        grab = self.frames.popleft()
        self.waiting -= grab.slot is not None
        return grab

    def give_up(self) -> None:
        """The thread is to end when its read returns; frames that wait are given back. Call with `changed` held."""
        self._given_up = True
        for grab in self.frames:
            if grab.slot is not None and self._pool is not None:
                self._pool.release(grab.slot)
        self.frames.clear()
        self.waiting = 0
        self._changed.notify_all()

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread. Whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        video: cv2.VideoCapture | None = None
        try:
            video = self._open()
            first = self._first_frame(video)
            if first is not None:
                self._read(video, first)
        except cv2.error as error:
            self._end(f"OpenCV failed: {error.err}")
        except RingError as error:
            self._end(str(error))
        finally:
            if video is not None:
                video.release()
            self._end("the connection ended")

    def _open(self) -> cv2.VideoCapture:
        settings = self._settings
        if settings.device is None:
            times = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(settings.open_s * 1000)]
            times += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(settings.stall_s * 1000)]
            return cv2.VideoCapture(settings.url or str(settings.file), cv2.CAP_FFMPEG, times)
        video = cv2.VideoCapture(settings.device, cv2.CAP_V4L2)
        if settings.fourcc is not None:
            video.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*settings.fourcc))
        for key, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, settings.width_px),
            (cv2.CAP_PROP_FRAME_HEIGHT, settings.height_px),
            (cv2.CAP_PROP_FPS, settings.rate_hz),
        ):
            if value is not None:
                video.set(key, value)
        if self._raw:
            video.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        return video

    @property
    def _raw(self) -> bool:
        """Whether the device's bytes are the pixels, without OpenCV's conversion to BGR."""
        settings = self._settings
        return settings.pixel_format.is_bayer or (settings.fourcc == "GREY" and settings.pixel_format.channels == 1)

    def _first_frame(self, video: cv2.VideoCapture) -> NDArray[Any] | None:
        if not video.isOpened():
            self._end("it does not open")
            return None
        ok, frame = video.read()
        if not ok or frame is None:
            self._end("it opens, but delivers no frame")
            return None
        height, width = frame.shape[:2]
        if self._raw:
            height, width = int(video.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(video.get(cv2.CAP_PROP_FRAME_WIDTH))
        rate = video.get(cv2.CAP_PROP_FPS)
        with self._changed:
            self.shape = StreamShape(height, width, rate if math.isfinite(rate) and 0 < rate <= 1000 else 0.0)
            self.last_frame_ns = now_ns()
            self._changed.notify_all()
        return np.asarray(frame)

    def _read(self, video: cv2.VideoCapture, first: NDArray[Any]) -> None:
        decoded = first if self._keep_first else None
        with self._changed:
            while self._pool is None and not self._given_up:
                self._changed.wait()
            self.last_frame_ns = now_ns()
        while True:
            ok = decoded is not None or video.grab()
            arrived = now_ns()
            with self._changed:
                if self._given_up or not ok:
                    return
                self.last_frame_ns = arrived
                slot = self._pool.acquire() if self._pool is not None and self.waiting < WAITING_MAX else None
                if slot is None:
                    decoded = None
                    self._lose(arrived)
                    continue
            grab = self._decode(video, slot, arrived, decoded)
            decoded = None
            if not self._hand_over(grab, slot):
                return

    def _hand_over(self, grab: Grab, slot: Slot) -> bool:
        """Puts the frame where `take` finds it. False where nobody wants frames of this connection any more."""
        with self._changed:
            if self._given_up or grab.slot is None:
                assert self._pool is not None
                self._pool.release(slot)
            if self._given_up:
                return False
            self.frames.append(grab)
            self.waiting += grab.slot is not None
            self._changed.notify_all()
            return True

    def _decode(self, video: cv2.VideoCapture, slot: Slot, arrived_ns: int, frame: NDArray[Any] | None) -> Grab:
        """The frame in the slot; a failure (the slot is then free again) where it does not decode or fit."""
        assert self.shape is not None
        form, height, width = self._settings.pixel_format, self.shape.height, self.shape.width
        if frame is None:
            target = frame_view(slot.buffer, height, width, 3) if form is PixelFormat.BGR8 else self._own(height, width)
            frame = _retrieved(video, target if not self._raw else None)
        if frame is None:
            return Grab(FrameStatus.UNREADABLE, None, form, height, width, arrived_ns)
        if frame.dtype != np.uint8 or (self._raw and frame.size != height * width):
            return Grab(FrameStatus.MISMATCH, None, form, height, width, arrived_ns)
        decoded: NDArray[np.uint8] = frame.reshape(height, width, 1) if self._raw else frame
        given = form if self._raw else PixelFormat.BGR8
        height, width = decoded.shape[:2]  # a stream may change its size on the way
        out = frame_view(slot.buffer, height, width, form.channels)
        if out is None:
            return Grab(FrameStatus.NO_SLOT, None, form, height, width, arrived_ns)
        if not (form is given and np.shares_memory(decoded, out)):
            convert(decoded, given, out, form)
        stamp = video.get(cv2.CAP_PROP_POS_MSEC)
        camera_time = round(stamp * 1e6) if math.isfinite(stamp) and 0 < stamp < 1e12 else None
        return Grab(FrameStatus.OK, slot, form, height, width, arrived_ns, camera_time_ns=camera_time)

    def _own(self, height: int, width: int) -> NDArray[np.uint8]:
        if self._scratch is None:
            self._scratch = np.empty((height, width, 3), np.uint8)
        return self._scratch

    def _lose(self, arrived_ns: int) -> None:
        assert self.shape is not None
        self.overrun += 1
        if len(self.frames) < LOST_MAX:
            form = self._settings.pixel_format
            self.frames.append(Grab(FrameStatus.LOST, None, form, self.shape.height, self.shape.width, arrived_ns))
            self._changed.notify_all()

    def _end(self, why: str) -> None:
        with self._changed:
            self.ended = self.ended or why
            self._changed.notify_all()


def _retrieved(video: cv2.VideoCapture, target: NDArray[np.uint8] | None) -> NDArray[Any] | None:
    """The frame that was grabbed, in `target` where it fits there exactly; None where it does not decode."""
    ok, frame = video.retrieve() if target is None else video.retrieve(target)
    return np.asarray(frame) if ok and frame is not None else None

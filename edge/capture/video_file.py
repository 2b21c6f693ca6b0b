"""A video file, played at its own or a set rate."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.capture.paced import PacedSource, failed, take
from edge.capture.pixels import convert, frame_view
from edge.capture.source import EndOfSource, Grab, SlotPool, SourceInfo
from edge.errors import SourceError
from edge.messages import FrameStatus
from edge.settings_sources import OpencvSource as OpencvSettings
from pipelines.images import PixelFormat

RATE_MAX_HZ = 1000.0


class VideoFileSource(PacedSource):
    """Frames of a video file as parts. BGR8 is decoded straight into the slot."""

    def __init__(self, settings: OpencvSettings) -> None:
        super().__init__(settings.rate_hz or RATE_MAX_HZ)
        assert settings.file is not None
        self._settings, self._file = settings, settings.file
        self._video: cv2.VideoCapture | None = None
        self._shape = (0, 0)
        self._scratch: NDArray[np.uint8] | None = None
        self._played = 0  # frames of this round
        self._undecodable = 0

    def open(self) -> SourceInfo:
        """Opens the file. Raises `SourceError` where it is missing, no video, or has no rate and none is set."""
        if not self._file.is_file():
            raise SourceError(f"{self._file}: there is no such file; give a video file")
        self._video = self._open()
        height = int(self._video.get(cv2.CAP_PROP_FRAME_HEIGHT))
        width = int(self._video.get(cv2.CAP_PROP_FRAME_WIDTH))
        if min(height, width) < 1:
            raise SourceError(f"{self._file}: this video does not tell the size of its frames; convert it again")
        self._shape = height, width
        if self._settings.rate_hz is None:
            rate = self._video.get(cv2.CAP_PROP_FPS)
            if not (math.isfinite(rate) and 0 < rate <= RATE_MAX_HZ):
                raise SourceError(f"{self._file}: this video does not tell its rate; set rate_hz")
            self._rate_hz = rate
        form = self._settings.pixel_format
        if form is not PixelFormat.BGR8:
            self._scratch = np.empty((height, width, 3), np.uint8)
        return SourceInfo(
            max_bytes=height * width * form.channels,
            max_rate_hz=self._rate_hz,
            finite=not self._settings.loop,
            description=f"video {self._file}, {width} x {height} at {self._rate_hz:g} frames/s",
        )

    def close(self) -> None:
        """Closes the file."""
        super().close()
        if self._video is not None:
            self._video.release()
            self._video = None

    def health(self) -> tuple[str, dict[str, int]]:
        """Adds `undecodable_frames`."""
        fault, counters = super().health()
        return fault, {**counters, "undecodable_frames": self._undecodable}

    def _prepare(self, number: int, pool: SlotPool, until_ns: int) -> Grab | None:
        self._advance()
        assert self._video is not None
        form, (height, width), origin = self._settings.pixel_format, self._shape, self._origin()
        slot = take(pool, height * width * form.channels)
        if slot is None:
            return failed(FrameStatus.NO_SLOT, form, height, width, origin)
        out = frame_view(slot.buffer, height, width, form.channels)
        assert out is not None
        target = out if self._scratch is None else self._scratch
        ok, frame = self._video.retrieve(target)
        if not ok or frame is None:
            pool.release(slot)
            self._undecodable += 1
            return failed(FrameStatus.UNREADABLE, form, height, width, origin)
        if frame.shape != target.shape:
            pool.release(slot)
            return failed(FrameStatus.MISMATCH, form, frame.shape[0], frame.shape[1], origin)
        if self._scratch is not None or not np.shares_memory(frame, out):
            convert(np.asarray(frame, np.uint8), PixelFormat.BGR8, out, form)
        return Grab(FrameStatus.OK, slot, form, height, width, 0, camera_frame=number, origin=origin)

    def _skip(self, number: int) -> Grab:
        self._advance()
        return failed(FrameStatus.LOST, self._settings.pixel_format, *self._shape, origin=self._origin())

    def _ended(self, number: int) -> bool:
        return False  # known only by reading on

    def _origin(self) -> str:
        return f"{self._file}#{self._played - 1}"

    def _advance(self) -> None:
        """To the next frame, or from the beginning again. Raises `EndOfSource` after the last."""
        assert self._video is not None
        if not self._video.grab():
            # A round without any frame would go on for ever.
            if not self._settings.loop or self._played == 0:
                raise EndOfSource
            self._video.release()
            self._video, self._played = self._open(), 0
            if not self._video.grab():
                raise EndOfSource
        self._played += 1

    def _open(self) -> cv2.VideoCapture:
        video = cv2.VideoCapture(str(self._file), cv2.CAP_FFMPEG)
        if not video.isOpened():
            raise SourceError(f"{self._file}: this file does not open as a video; convert or copy it again")
        return video

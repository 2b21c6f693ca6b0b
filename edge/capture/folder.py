"""A folder of images, replayed at a set rate.

One thread reads and decodes ahead, a few images at most, so that a slow disk or a large file does not shift the pace.
Images may differ in size and format. One that does not decode becomes an UNREADABLE part, not an error.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import deque
from pathlib import Path

import numpy as np
from PIL import Image

from edge.capture.paced import PacedSource, failed, take
from edge.capture.pixels import convert, frame_view, whole_cells
from edge.capture.source import Grab, SlotPool, SourceInfo
from edge.errors import SourceError
from edge.messages import FrameStatus, now_ns
from edge.settings_sources import FolderSource as FolderSettings
from pipelines.errors import ImageError
from pipelines.images import Frame, PixelFormat, list_images, read_image

AHEAD = 4  # images decoded before they are due
LARGEST_SIDE = 65_536  # of a frame, in a message


class FolderSource(PacedSource):
    """Image files at a set rate, in path order or shuffled, once or for ever."""

    def __init__(self, settings: FolderSettings) -> None:
        super().__init__(settings.rate_hz)
        self._settings = settings
        self._files: list[Path] = []
        self._order: tuple[int, np.ndarray] | None = None
        self._reader: _ReadAhead | None = None
        self._unreadable = 0

    def open(self) -> SourceInfo:
        """Lists the images and reads their sizes. Raises `SourceError` where there is none that can be read."""
        settings = self._settings
        try:
            self._files = list_images(settings.path)
        except ImageError as error:
            raise SourceError(str(error)) from error
        largest = max(_frame_bytes(path, settings.pixel_format) for path in self._files)
        if largest == 0:
            raise SourceError(f"{settings.path}: none of the {len(self._files)} images here decodes; copy them again")
        loop = ", again and again" if settings.loop else ""
        return SourceInfo(
            max_bytes=largest,
            max_rate_hz=settings.rate_hz,
            finite=not settings.loop,
            description=f"{len(self._files)} images in {settings.path} at {settings.rate_hz:g} per second{loop}",
        )

    def start(self, pool: SlotPool) -> None:
        """Begins to read ahead."""
        super().start(pool)
        self._reader = _ReadAhead(self)

    def close(self) -> None:
        """Stops reading."""
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
        super().close()

    def health(self) -> tuple[str, dict[str, int]]:
        """Adds `unreadable_files`."""
        fault, counters = super().health()
        return fault, {**counters, "unreadable_files": self._unreadable}

    def path(self, number: int) -> Path:
        """The file of part `number`. With `shuffle` each round has its own order, from the seed and the round."""
        round_number, place = divmod(number, len(self._files))
        if not self._settings.shuffle:
            return self._files[place]
        if self._order is None or self._order[0] != round_number:
            shuffled = np.random.default_rng([self._settings.seed, round_number]).permutation(len(self._files))
            self._order = round_number, shuffled
        return self._files[int(self._order[1][place])]

    def ended(self, number: int) -> bool:
        """Whether the folder has been replayed before part `number`."""
        return not self._settings.loop and number >= len(self._files)

    def _ended(self, number: int) -> bool:
        return self.ended(number)

    def _prepare(self, number: int, pool: SlotPool, until_ns: int) -> Grab | None:
        assert self._reader is not None
        read = self._reader.get(number, until_ns)
        if read is None:
            return None
        path, frame = read
        form = self._settings.pixel_format or (frame.pixel_format if frame is not None else PixelFormat.MONO8)
        if frame is None:
            self._unreadable += 1
            return failed(FrameStatus.UNREADABLE, form, origin=str(path))
        pixels = whole_cells(frame.pixels, form)
        height, width = pixels.shape[:2]
        if min(height, width) < 1 or max(height, width) > LARGEST_SIDE:
            return failed(FrameStatus.MISMATCH, form, origin=str(path))
        slot = take(pool, height * width * form.channels)
        if slot is None:
            return failed(FrameStatus.NO_SLOT, form, height, width, str(path))
        out = frame_view(slot.buffer, height, width, form.channels)
        assert out is not None
        convert(pixels, frame.pixel_format, out, form)
        return Grab(FrameStatus.OK, slot, form, height, width, 0, origin=str(path))

    def _skip(self, number: int) -> Grab:
        assert self._reader is not None
        path = self._reader.skip(number)
        return failed(FrameStatus.LOST, self._settings.pixel_format or PixelFormat.MONO8, origin=str(path))


class _ReadAhead:
    """Decodes the next few images in a thread of its own. The order of parts is decided here alone."""

    def __init__(self, source: FolderSource) -> None:
        self._source = source
        self._changed = threading.Condition()
        self._read: deque[tuple[int, Path, Frame | None]] = deque()
        self._wanted = 0  # the part that comes next; older ones need no reading any more
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def get(self, number: int, until_ns: int) -> tuple[Path, Frame | None] | None:
        """The image of part `number` (None where it does not decode), or None where it is not read in time."""
        with self._changed:
            self._want(number)
            while not self._read:
                left_s = (until_ns - now_ns()) / 1e9
                if left_s <= 0:
                    return None
                self._changed.wait(left_s)
            found, path, frame = self._read.popleft()
            assert found == number
            self._wanted = number + 1
            self._changed.notify_all()
            return path, frame

    def skip(self, number: int) -> Path:
        """Part `number` is not wanted any more."""
        with self._changed:
            path = self._source.path(number)
            self._want(number + 1)
            return path

    def stop(self) -> None:
        """Ends the thread. A disk that hangs may keep it a while; it touches nothing that others use."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=2.0)

    def _want(self, number: int) -> None:
        self._wanted = number
        while self._read and self._read[0][0] < number:
            self._read.popleft()
        self._changed.notify_all()

    def _run(self) -> None:
        number = 0
        while True:
            with self._changed:
                while not self._stopping and len(self._read) >= AHEAD:
                    self._changed.wait()
                number = max(number, self._wanted)
                if self._stopping or self._source.ended(number):
                    return
                path = self._source.path(number)
            frame = None
            with contextlib.suppress(ImageError, MemoryError):
                frame = read_image(path)
            with self._changed:
                if number >= self._wanted:
                    self._read.append((number, path, frame))
                    self._changed.notify_all()
            number += 1


def _frame_bytes(path: Path, pixel_format: PixelFormat | None) -> int:
    """Bytes of this image as a frame, from its header alone; 0 where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large picture is the user's business; only its header is read here
            image = Image.open(path)
        with image:
            width, height = image.size
            gray = image.mode in ("1", "L", "I", "I;16", "I;16B", "F")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        # A kind of file that Pillow does not know, OpenCV may still decode.
        try:
            frame = read_image(path)
        except ImageError:
            return 0
        height, width, channels = frame.pixels.shape
        gray = channels == 1
    channels = pixel_format.channels if pixel_format is not None else (1 if gray else 3)
    return int(height) * int(width) * channels

"""Sources of GigE Vision cameras on real rings, taken from as capture does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.capture.aravis.library import library
from edge.capture.gige import GigeSource
from edge.capture.source import Grab
from edge.errors import SourceError
from edge.frames import RingWriter
from edge.settings_sources import GigeSource as Settings

WIDTH, HEIGHT = 96, 64
UNIT_EXPOSURE_US = 10_000.0  # at which the camera's pattern is not scaled


def settings(**keys: object) -> Settings:
    usual = {"address": "127.0.0.1", "width_px": WIDTH, "height_px": HEIGHT, "rate_hz": 50.0}
    usual |= {"exposure_us": UNIT_EXPOSURE_US, "reconnect_max_s": 0.5, "stall_s": 5.0, "buffers": 16}
    return Settings.model_validate({"type": "gige", **usual, **keys})


class Taker:
    """A source that is open, its ring, and what was taken: parts, and copies of their pixels."""

    def __init__(self, source: GigeSource, folder: Path, slots: int = 48) -> None:
        self.source = source
        self.info = source.open()
        self.ring = RingWriter.create(folder, slots, self.info.max_bytes)
        source.start(self.ring)
        self.parts: list[tuple[Grab, NDArray[np.uint8] | None]] = []
        self.slowest_s = 0.0

    def take(self, timeout_s: float = 0.1) -> Grab | None:
        began = time.monotonic()
        grab = self.source.next(timeout_s)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began - timeout_s)
        if grab is not None:
            pixels = None
            if grab.slot is not None:
                size = grab.height * grab.width * grab.pixel_format.channels
                pixels = grab.slot.buffer[:size].reshape(grab.height, grab.width, -1).copy()
                self.ring.commit(grab.slot)
            self.parts.append((grab, pixels))
        return grab

    def until(self, done: Callable[[], bool], timeout_s: float = 15.0) -> list[Grab]:
        """Takes parts until `done`. Returns all of them so far."""
        end = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < end, (self.source.health(), self.grabs[-5:])
            self.take()
        return self.grabs

    @property
    def grabs(self) -> list[Grab]:
        return [grab for grab, _ in self.parts]

    def count(self, status: str) -> int:
        return sum(grab.status.value == status for grab in self.grabs)

    def close(self) -> None:
        self.source.close()
        assert self.ring.in_flight == 0, "a source that is closed holds no slot"
        self.ring.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Taker]]:
    """opened(key=value …) opens and starts a source; all are closed after the test."""
    takers: list[Taker] = []

    def make(**keys: object) -> Taker:
        takers.append(Taker(GigeSource(settings(**keys)), tmp_path / f"ring{len(takers)}"))
        return takers[-1]

    yield make
    for taker in takers:
        taker.close()


@pytest.fixture
def aravis() -> None:
    """Skips where the library is missing."""
    try:
        library()
    except SourceError as error:
        pytest.skip(str(error))


@pytest.fixture
def gige_settings() -> Callable[..., Settings]:
    return settings


def pattern(camera_frame: int) -> NDArray[np.uint8]:
    """What the camera draws in Mono8 at its unit exposure: every pixel tells the frame it belongs to."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return ((x + y + camera_frame) % 255).astype(np.uint8)[:, :, None]


@pytest.fixture
def is_pattern() -> Callable[[NDArray[np.uint8], int], bool]:
    return lambda pixels, camera_frame: bool(np.array_equal(pixels, pattern(camera_frame)))

"""What every camera looks like to the capture process.

A source is opened (it connects and tells the largest frame it can deliver), started with a pool of ring slots, asked
for frames one at a time, and closed. It fills slots in place, so that pixels are written once; a camera library that
fills memory by itself takes several slots from the pool ahead of time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.errors import SourceError
from edge.messages import FrameStatus
from pipelines.images import PixelFormat


class Slot(Protocol):
    """A slot of the frame ring that is being written."""

    @property
    def index(self) -> int:
        """Number of the slot in its ring."""
        ...

    @property
    def buffer(self) -> NDArray[np.uint8]:
        """The slot's memory: uint8 [slot_bytes], writable."""
        ...


class SlotPool(Protocol):
    """Hands out slots of the ring. Never waits: the oldest slot is overwritten."""

    def acquire(self) -> Slot:
        """The next slot to write, marked as being written. Raises `RingError` where the source holds every slot."""
        ...

    def release(self, slot: Slot) -> None:
        """Gives a slot back unused."""
        ...


@dataclass(frozen=True)
class SourceInfo:
    """What a source tells when it is open."""

    max_bytes: int  # of the largest frame
    max_rate_hz: float  # the most parts per second that can come
    finite: bool  # whether the source ends by itself (files) or never does (cameras)
    description: str  # for people: "12 images in /data/test"


@dataclass(frozen=True)
class Grab:
    """One triggered frame. `slot` is None unless `status` is OK; then its buffer starts with H*W*C bytes of pixels."""

    status: FrameStatus
    slot: Slot | None
    pixel_format: PixelFormat
    height: int
    width: int
    trigger_ns: (
        int  # CLOCK_MONOTONIC: when the part was triggered, or the frame's arrival where nothing better is known
    )
    camera_frame: int | None = None
    camera_time_ns: int | None = None
    encoder: int | None = None
    origin: str | None = None
    truth: Mapping[str, object] | None = None  # what is known to be wrong with the part (simulated parts only)

    def at(self, trigger_ns: int) -> Grab:
        """The same frame, triggered at that moment."""
        return replace(self, trigger_ns=trigger_ns)


class EndOfSource(Exception):
    """A finite source has delivered its last frame."""


class Source(ABC):
    """One camera, folder or file."""

    @abstractmethod
    def open(self) -> SourceInfo:
        """Connects. Raises `SourceError` that names the device or file and the fix. May take seconds."""

    @abstractmethod
    def start(self, pool: SlotPool) -> None:
        """Frames may come from now on, into slots of `pool`."""

    @abstractmethod
    def next(self, timeout_s: float) -> Grab | None:
        """The next frame, or None when none came in time. Raises `EndOfSource` after the last frame.

        A camera that is lost is not an exception: the source reopens it by itself, and `health` says so meanwhile.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees the device. Safe to call twice, and on a source that was never open."""

    def software_trigger(self) -> None:
        """Asks the camera for one frame now. Raises `SourceError` where it takes no software trigger."""
        raise SourceError(f"{type(self).__name__}: this source takes no software trigger")

    def health(self) -> tuple[str, dict[str, int]]:
        """A fault that lasts ("" when all is well), and counters such as reconnects."""
        return "", {}

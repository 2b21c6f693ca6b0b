"""Slots in plain memory, for programs that look at a camera without a line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.capture.source import Slot
from edge.errors import RingError

SLOTS_MAX = 256


@dataclass(frozen=True)
class MemorySlot:
    """A slot (implements `edge.capture.source.Slot`)."""

    index: int
    buffer: NDArray[np.uint8]


class MemorySlots:
    """Hands out slots of its own memory, made as they are needed (implements `edge.capture.source.SlotPool`)."""

    def __init__(self, slot_bytes: int) -> None:
        self._bytes = slot_bytes
        self._made = 0
        self._free: list[Slot] = []

    def acquire(self) -> Slot:
        """A slot that nobody has. Raises `RingError` where far too many are out."""
        if self._free:
            return self._free.pop()
        if self._made == SLOTS_MAX:
            raise RingError(f"{SLOTS_MAX} frames are held and none was given back")
        self._made += 1
        return MemorySlot(self._made - 1, np.empty(self._bytes, np.uint8))

    def release(self, slot: Slot) -> None:
        """Takes a slot back."""
        self._free.append(slot)

    @property
    def out(self) -> int:
        """How many slots somebody has."""
        return self._made - len(self._free)

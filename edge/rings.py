"""The frame rings of a line's cameras, as readers keep them: opened when first needed, anew when replaced."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edge.errors import RingError, TornFrame
from edge.frames import RingReader, ring_path
from edge.messages import FrameRef


class Rings:
    """Readers of the rings of one line's cameras. A ring that is missing, or replaced, is opened when it is back."""

    def __init__(self, line: str, cameras: Iterable[str]) -> None:
        self._paths = {camera: ring_path(line, camera) for camera in cameras}
        self._readers: dict[str, RingReader] = {}

    def reader(self, camera: str) -> RingReader:
        """The camera's ring as it is now. Raises `RingMissing` or `RingError`."""
        reader = self._readers.get(camera)
        if reader is None or reader.stale:
            return self._open(camera)
        return reader

    def view(self, frame: FrameRef) -> tuple[NDArray[np.uint8], RingReader]:
        """The pixels of a frame, uint8 [H, W, C], read-only and not copied, and the ring to ask afterwards.

        Raises `TornFrame` where the slot holds another frame by now, `RingError` where there is no such ring or slot.
        """
        camera = frame.id.camera
        path = self._paths.get(camera)
        if path is None or path.name != frame.ring:
            raise RingError(f"the frame lies in ring {frame.ring!r}, which is not this camera's on this computer")
        known = self._readers.get(camera)
        if known is not None:
            try:
                return known.view(frame.slot, frame.generation, frame.shape), known
            except RingError:
                if not known.stale:
                    raise
        reader = self._open(camera)
        return reader.view(frame.slot, frame.generation, frame.shape), reader

    def copy(self, frame: FrameRef) -> NDArray[np.uint8]:
        """A copy of the pixels of a frame, uint8 [H, W, C]. Raises as `view`, and where it was torn meanwhile."""
        pixels, reader = self.view(frame)
        mine = pixels.copy()
        if not reader.intact(frame.slot, frame.generation):
            raise TornFrame(f"{reader.path}: slot {frame.slot} was overwritten while it was copied")
        return mine

    def close(self) -> None:
        """Lets go of all rings. Safe to call twice."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _open(self, camera: str) -> RingReader:
        known = self._readers.pop(camera, None)
        if known is not None:
            known.close()
        reader = self._readers[camera] = RingReader.open(self._paths[camera])
        return reader

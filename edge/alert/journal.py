"""Parts that capture announced, read from the rings' journals: nobody's death makes an announcement forgotten.

Alert reads them when it starts, when a sequence was skipped, and a few times a second. A journal entry is the encoded
`FrameRef`; those that the table knows already are told by their identity alone, without decoding the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import msgpack

from edge.errors import MessageError, RingError
from edge.frames import RingReader
from edge.messages import FrameId, FrameRef, decode
from edge.rings import Rings

MOST_PER_TURN = 512  # entries looked at in one turn of the work loop


class Journals:
    """What is new in the journals of a line's cameras."""

    def __init__(self, rings: Rings, cameras: Iterable[str]) -> None:
        self.damaged = 0  # entries that do not decode
        self._rings = rings
        self._places: dict[str, tuple[RingReader | None, int]] = dict.fromkeys(cameras, (None, 0))
        self._waiting: deque[bytes] = deque()

    @property
    def waiting(self) -> int:
        """Entries that were read and not looked at yet."""
        return len(self._waiting)

    def read(self, cameras: Iterable[str] | None = None) -> int:
        """Reads what is new. Cameras without a ring have nothing to tell. Returns how many entries wait now."""
        for camera in self._places if cameras is None else cameras:
            if camera not in self._places:
                continue
            before, number = self._places[camera]
            try:
                reader = self._rings.reader(camera)
                if reader is not before:
                    number = 0  # another file: its numbers may have begun anew
                entries, following = reader.journal_after(number)
            except RingError:
                continue
            self._places[camera] = reader, following
            self._waiting.extend(entries)
        return len(self._waiting)

    def epochs(self) -> list[tuple[str, int]]:
        """Each camera that has a ring, and the epoch of its present (or last) writer."""
        return [(camera, reader.epoch) for camera, (reader, _) in self._places.items() if reader is not None]

    def present_epochs(self) -> list[int]:
        """Epochs of the captures that are running."""
        readers = [reader for reader, _ in self._places.values() if reader is not None]
        return [reader.epoch for reader in readers if reader.writer_lives]

    def take(self, known: Callable[[FrameId], bool], most: int = MOST_PER_TURN) -> list[FrameRef]:
        """Announcements that are not `known`, of the next `most` entries that wait."""
        found: list[FrameRef] = []
        for _ in range(min(most, len(self._waiting))):
            entry = self._waiting.popleft()
            frame_id = identity(entry)
            if frame_id is not None and known(frame_id):
                continue
            try:
                message = decode(entry)
            except MessageError:
                self.damaged += 1
                continue
            if isinstance(message, FrameRef):
                found.append(message)
            else:
                self.damaged += 1
        return found


def identity(entry: bytes) -> FrameId | None:
    """Whose announcement this is, without checking the rest; None where it does not even tell that."""
    try:
        line, camera, epoch, sequence = msgpack.unpackb(entry, raw=False)[2][0]
    except (ValueError, TypeError, KeyError, IndexError, msgpack.exceptions.UnpackException):
        return None
    if not (isinstance(line, str) and isinstance(camera, str) and isinstance(epoch, int) and isinstance(sequence, int)):
        return None
    try:
        return FrameId(line=line, camera=camera, epoch=epoch, sequence=sequence)
    except ValueError:  # a name that no line has
        return None

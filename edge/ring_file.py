"""A ring file: where everything lies in it, how it is mapped and locked. `edge.frames` specifies it."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.errors import RingError, RingInUse

MAGIC = int.from_bytes(b"EDGERING", "little")
LAYOUT = 1
JOURNAL_RECORDS = 16_384
JOURNAL_STRIDE = 1024
JOURNAL_ENTRY = JOURNAL_STRIDE - 16  # longest entry, bytes
_PAGE = 4096
_HUGE = 2 << 20
_SLOT_ROW = 64
EPOCH, PID, CREATION = 8, 9, 10  # word numbers in the header; before them, see `Geometry.header`


@dataclass(frozen=True)
class Geometry:
    """Sizes that fix where everything lies in a ring file."""

    slots: int
    slot_bytes: int
    journal_records: int = JOURNAL_RECORDS
    journal_stride: int = JOURNAL_STRIDE

    def __post_init__(self) -> None:
        if self.slots < 2 or self.slot_bytes < 1 or self.journal_records < 2 or self.journal_stride < 64:
            raise RingError(f"a ring needs at least 2 slots of at least 1 byte, and a journal: not {self}")

    @property
    def slot_stride(self) -> int:
        """Distance of slots in bytes."""
        return _up(self.slot_bytes, _PAGE)

    @property
    def journal_offset(self) -> int:
        """Where journal record 0 begins."""
        return _up(_PAGE + self.slots * _SLOT_ROW, _PAGE)

    @property
    def data_offset(self) -> int:
        """Where slot 0 begins."""
        return _up(self.journal_offset + self.journal_records * self.journal_stride, _HUGE)

    @property
    def total_bytes(self) -> int:
        """Size of the file: what a ring needs of shared memory."""
        return self.data_offset + self.slots * self.slot_stride

    def header(self) -> list[int]:
        """The header's first words, see the layout."""
        return [
            MAGIC,
            LAYOUT,
            self.slots,
            self.slot_bytes,
            self.slot_stride,
            self.journal_records,
            self.journal_stride,
            self.data_offset,
        ]


class Fence:
    """A full memory barrier: see "Memory ordering" in `edge.frames`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def __call__(self) -> None:
        """Orders everything before this call before everything after it."""
        self._lock.release()
        self._lock.acquire()


class Mapping:
    """The words and bytes of a mapped ring file."""

    def __init__(self, fd: int, geometry: Geometry, writable: bool) -> None:
        self.geometry = geometry
        # MAP_POPULATE: no page faults later, in the middle of a frame.
        self.memory = mmap.mmap(
            fd,
            geometry.total_bytes,
            flags=mmap.MAP_SHARED | mmap.MAP_POPULATE,
            prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0),
        )
        words = np.frombuffer(self.memory, np.uint64, geometry.data_offset // 8)
        table = words[_PAGE // 8 : _PAGE // 8 + geometry.slots * _SLOT_ROW // 8].reshape(geometry.slots, -1)
        start = geometry.journal_offset // 8
        journal = words[start : start + geometry.journal_records * geometry.journal_stride // 8]
        self.header = words[:CREATION]
        self.generations = table[:, 0]
        self.commits = table[:, 1]
        self.stamps = journal.reshape(geometry.journal_records, -1)[:, 0]
        self.lengths = journal.reshape(geometry.journal_records, -1)[:, 1]
        self.buffers = [
            np.frombuffer(self.memory, np.uint8, geometry.slot_bytes, geometry.data_offset + i * geometry.slot_stride)
            for i in range(geometry.slots)
        ]

    def entry(self, number: int) -> slice:
        """Where in `memory` the entry of a journal record begins and its record ends."""
        start = self.geometry.journal_offset + number % self.geometry.journal_records * self.geometry.journal_stride
        return slice(start + 16, start + self.geometry.journal_stride)

    def newest(self) -> int:
        """Number of the newest complete journal entry; -1 where there is none."""
        stamps = self.stamps.copy()
        return int(np.where(stamps % 2 == 0, stamps, 0).max()) // 2 - 1


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def same_file(fd: int, path: Path) -> bool:
    """Whether the open file is the one at the path."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def lock_ring(path: Path) -> int:
    """Opens (or makes) the ring file and locks it as its one writer. Raises `RingInUse` or `RingError`."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RingError(
                f"{path}: cannot open or make the ring: {error.strerror}; it must be a file of the user who runs the "
                "line (remove one that another user left), in a folder that this user may write"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            word = os.pread(fd, 8, PID * 8)
            os.close(fd)
            owner = f"process {int.from_bytes(word, 'little')}" if any(word) else "another process"
            raise RingInUse(
                f"{path}: {owner} captures this camera already; stop it, or give the line or the camera another name"
            ) from error
        if same_file(fd, path):
            return fd
        os.close(fd)  # replaced or removed between open and lock: try the one that is there now


def read_geometry(fd: int) -> Geometry | None:
    """The geometry of a ring file; None where the file is no whole ring of this layout."""
    words = [int(word) for word in np.frombuffer(os.pread(fd, 64, 0).ljust(64, b"\0"), np.uint64)]
    if words[:2] != [MAGIC, LAYOUT]:
        return None
    try:
        geometry = Geometry(words[2], words[3], words[5], words[6])
    except RingError:
        return None
    status = os.fstat(fd)
    whole = status.st_size == geometry.total_bytes and status.st_blocks * 512 >= geometry.total_bytes
    return geometry if whole and geometry.header() == words else None

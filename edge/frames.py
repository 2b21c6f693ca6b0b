"""The frame ring: how pixels get from a camera's capture process to everybody else. This text is its specification.

One ring per camera, one file per ring, in a tmpfs (`/dev/shm/edge-inspect.<line>.<camera>`), mapped by everybody. Not
`multiprocessing.shared_memory`: its resource tracker unlinks a segment when *any* user of it dies.

Who may do what
===============
One *writer* (capture) holds an exclusive `flock` on the file for as long as it lives; the kernel drops it at death,
however it died, so the lock alone tells a live writer from a dead one. Any number of *readers* map the file read-only,
take no lock and leave no trace. The writer never waits for a reader: it overwrites the oldest frame. A reader finds
out by itself, by the slot's generation, and treats the frame as torn. The file is the user's own, mode 0600.

Layout (version 1; all words little-endian uint64 at multiples of 8; sizes in bytes)
====================================================================================
    offset                  what
    0                       magic "EDGERING"; written last, so a file without it is not ready
    8                       layout version
    16                      slots: number of slots
    24                      slot_bytes: what a slot can hold
    32                      slot_stride: distance of slots, slot_bytes rounded up to 4096
    40                      journal_records: number of journal records
    48                      journal_stride: size of a journal record (1024)
    56                      data_offset: where slot 0 begins, a multiple of 2 MiB (so that huge pages can serve it)
    64                      epoch of the writer's present life
    72                      pid of the writer
    80                      creation id, 16 random bytes: two files are never taken for one another
    4096                    slot table, 64 bytes (a cache line) per slot:
                              +0 generation   +8 number of its last commit in this ring, counted from 1 (0: never)
    next multiple of 4096   journal, journal_stride bytes per record:
                              +0 stamp   +8 length of the entry   +16 the entry
    data_offset             slots

Generations
===========
The generation of a slot only ever grows. Odd: being written. Even: complete. `acquire` makes it odd (+1) *before* the
first byte is written, `commit` makes it even (+1) *after* the last; `release` (nothing of use was written) makes it
even too, with a value that nobody is told. A frame is named by (file, slot, even generation). A reader that finds
exactly that generation before it starts and again after it has finished has seen only bytes of that frame; anything
else is a torn frame. A new file starts its generations at `epoch << 20`, or above those of the file it replaces, so
that a name from an old file never fits a new one.

Several slots may be out for writing at once, as camera libraries fill ahead. `acquire` hands out the slot whose frame
was committed longest ago, so that a frame lives for at least `slots - in_flight - 1` later commits; see `slots_needed`.

Journal
=======
Announcements (encoded FrameRefs) of the last `journal_records` parts, so that a part is known even if everybody who
was told of it dies. Entry number n (counted from 0 over the life of the ring, all epochs) lies in record
n % journal_records. Its stamp is 2n+1 while it is being written and 2n+2 when it is complete: a reader that wants
number n and finds 2n+2 before and after copying has the whole entry; a smaller stamp means not written yet; a larger
one means that the reader was too slow and must go on from the oldest entry left. Only the writer appends.

Order of the writer: pixels, generation even, journal entry, then the messages. So whoever knows of a part, knows of
pixels that are complete, and a part that was announced is in the journal.

Takeover
========
A writer that starts finds the file of its dead predecessor. Lock held: `RingInUse`, with the pid. Lock free and the
geometry fits: it takes the file over in place. Odd generations become even (that frame was never named), frames that
were complete stay readable until they are overwritten, oldest first, and the journal goes on. Every step of this may
be repeated, so a crash during a takeover needs no care. Geometry differs, or the file is damaged or of another
version: a new file is built as `<file>.new`, the journal is copied (where the old one is readable and the geometry
of the journal is the same), and renamed over the old one. Readers keep what they have mapped; `RingReader.stale`
tells them to open the path anew. The new epoch is greater than the old one even if the clock went back.

Memory ordering
===============
Generations and stamps are written and read by single aligned 8-byte stores and loads (numpy item access on a native,
aligned uint64 array), which no 64-bit processor tears. What remains is order: the writer's odd generation before its
pixels before its even generation; the reader's first look before its pixels before its second look. x86-64 keeps
stores in order among themselves and loads among themselves (and memcpy fences its streaming stores), and CPython calls
between them, which the compiler cannot see through, keep the compiler from reordering. ARM reorders both. So between
the steps both sides pass `Fence`: it *releases and then takes* a lock that only it uses. A release orders everything
before it, an acquire orders everything after it, and ARMv8 keeps a release before a later acquire in program order
(the `[L]; po; [A]` rule of its memory model): a full barrier. The other way round, take then release, would be none.

Limits
======
A reader that is stopped for longer than a frame lives loses the frame (torn), never the line. Entries have at most
1008 bytes. Epochs are milliseconds since 1970, generations stay below 2**63 until the year 2248. The whole file is
allocated at creation: a full tmpfs is an error at start with its fix, not a SIGBUS later.
"""

from __future__ import annotations

import fcntl
import math
import os
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edge.errors import RingError, RingMissing, TornFrame
from edge.ring_file import (
    CREATION,
    EPOCH,
    JOURNAL_ENTRY,
    JOURNAL_RECORDS,
    LAYOUT,
    MAGIC,
    PID,
    Fence,
    Geometry,
    Mapping,
    lock_ring,
    read_geometry,
    same_file,
)
from edge.shm import allocate

__all__ = [
    "JOURNAL_ENTRY",
    "JOURNAL_RECORDS",
    "Geometry",
    "RingReader",
    "RingSlot",
    "RingWriter",
    "remove_ring",
    "ring_directory",
    "ring_path",
    "slots_needed",
]


ARCHIVE_S = 0.25  # a frame stays this much longer than its deadline, so that the archive can still copy it
_DIRECTORY = Path("/dev/shm")  # noqa: S108 - this is where shared memory lives


def ring_directory() -> Path:
    """Where rings live: /dev/shm, or the folder that EDGE_SHM_DIR names."""
    return Path(os.environ.get("EDGE_SHM_DIR") or _DIRECTORY)


def ring_path(line: str, camera: str, directory: Path | None = None) -> Path:
    """The ring file of a camera."""
    return (directory or ring_directory()) / f"edge-inspect.{line}.{camera}"


def slots_needed(rate_hz: float, deadline_s: float, in_flight: int = 1) -> int:
    """Slots with which a frame outlives its deadline (and the archive's copy of it) at `rate_hz` frames per second.

    `in_flight` is how many slots the camera holds for writing at once.
    """
    return math.ceil(rate_hz * (deadline_s + ARCHIVE_S)) + in_flight + 1


@dataclass(frozen=True)
class RingSlot:
    """A slot that is out for writing (implements `edge.capture.source.Slot`)."""

    index: int
    buffer: NDArray[np.uint8]  # [slot_bytes], writable
    generation: int  # odd


class RingWriter:
    """Capture's side of the ring (implements `edge.capture.source.SlotPool`). Safe to use from several threads."""

    def __init__(self, path: Path, fd: int, mapping: Mapping) -> None:
        self.path = path
        self.geometry = mapping.geometry
        self.epoch = 0
        self.took_over = False
        self._fd = fd
        self._map = mapping
        self._fence = Fence()
        self._mutex = threading.Lock()
        self._out: dict[int, RingSlot] = {}
        self._free: deque[int] = deque()
        self._commits = 0
        self._next_entry = 0

    @classmethod
    def create(cls, path: Path, slots: int, slot_bytes: int, journal_records: int = JOURNAL_RECORDS) -> RingWriter:
        """Takes over the ring at `path`, or makes it.

        Raises `RingInUse` where a live process writes it, `SharedMemoryTooSmall` where there is no room for it, and
        `RingError` where the file cannot be used.
        """
        geometry = Geometry(slots, slot_bytes, journal_records)
        fd = lock_ring(path)
        try:
            old = read_geometry(fd)
            if old != geometry:
                return cls._replace(path, fd, old, geometry)
            writer = cls(path, fd, Mapping(fd, geometry, writable=True))
            writer._take_over()
            return writer
        except BaseException as error:
            if os.fstat(fd).st_size == 0:  # made by `_lock`, a moment ago
                path.unlink(missing_ok=True)
            os.close(fd)
            if isinstance(error, OSError):
                raise RingError(f"{path}: cannot make the ring: {error.strerror}") from error
            raise

    @classmethod
    def _replace(cls, path: Path, old_fd: int, old: Geometry | None, geometry: Geometry) -> RingWriter:
        """A new file in the place of one that does not fit. The lock on the old one keeps rivals away meanwhile."""
        new = path.with_name(path.name + ".new")
        new.unlink(missing_ok=True)  # left by a crash: whoever builds it holds the lock, and that is us
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            allocate(fd, path, geometry.total_bytes, freed=os.fstat(old_fd).st_blocks * 512)
            mapping = Mapping(fd, geometry, writable=True)
            epoch = _now_ms()
            first = epoch << 20
            if old is not None:
                before = Mapping(old_fd, old, writable=False)
                epoch = max(epoch, int(before.header[EPOCH]) + 1)
                first = max(epoch << 20, (int(before.generations.max()) + 2) // 2 * 2)
                if (old.journal_records, old.journal_stride) == (geometry.journal_records, geometry.journal_stride):
                    size = geometry.journal_records * geometry.journal_stride
                    copied = before.memory[old.journal_offset : old.journal_offset + size]
                    mapping.memory[geometry.journal_offset : geometry.journal_offset + size] = copied
            mapping.generations[:] = first
            mapping.memory[CREATION * 8 : CREATION * 8 + 16] = secrets.token_bytes(16)
            mapping.header[1:8] = geometry.header()[1:]
            writer = cls(path, fd, mapping)
            writer._begin(epoch)
            writer._fence()
            mapping.header[0] = MAGIC
            new.rename(path)
        except BaseException:
            new.unlink(missing_ok=True)
            os.close(fd)
            raise
        os.close(old_fd)
        return writer

    def _take_over(self) -> None:
        generations = self._map.generations
        for index in np.flatnonzero(generations % 2):
            generations[index] += 1
        self.took_over = True
        self._begin(max(_now_ms(), int(self._map.header[EPOCH]) + 1))

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self._map.header[PID] = os.getpid()
        self._map.header[EPOCH] = epoch
        self._commits = int(self._map.commits.max())
        self._free.extend(int(i) for i in np.argsort(self._map.commits, kind="stable"))
        self._next_entry = self._map.newest() + 1

    @property
    def in_flight(self) -> int:
        """How many slots are out for writing."""
        return len(self._out)

    def acquire(self) -> RingSlot:
        """The slot whose frame is oldest, marked as being written. Never waits.

        Raises `RingError` where every slot is out for writing.
        """
        with self._mutex:
            if not self._free:
                raise RingError(f"{self.path}: all {self.geometry.slots} slots are being written; raise ring_slots")
            index = self._free.popleft()
            generation = int(self._map.generations[index]) + 1
            self._map.generations[index] = generation
            self._fence()
            slot = RingSlot(index, self._map.buffers[index], generation)
            self._out[index] = slot
            return slot

    def commit(self, slot: RingSlot) -> int:
        """Declares the slot's frame complete. Returns the generation that names it."""
        with self._mutex:
            self._check_out(slot)
            self._commits += 1
            self._map.commits[slot.index] = self._commits
            self._fence()
            self._map.generations[slot.index] = slot.generation + 1
            self._free.append(slot.index)
            return slot.generation + 1

    def release(self, slot: RingSlot) -> None:
        """Gives a slot back unused; it is the next to be handed out."""
        with self._mutex:
            self._check_out(slot)
            self._fence()
            self._map.generations[slot.index] = slot.generation + 1
            self._free.appendleft(slot.index)

    def _check_out(self, slot: RingSlot) -> None:
        if self._out.get(slot.index) is not slot:
            raise RingError(f"{self.path}: slot {slot.index} is not out for writing (committed or released before?)")
        del self._out[slot.index]

    def journal_append(self, data: bytes) -> int:
        """Writes down an announcement, at most `JOURNAL_ENTRY` bytes. Returns its number."""
        if not 0 < len(data) <= JOURNAL_ENTRY:
            raise RingError(f"{self.path}: a journal entry has 1 to {JOURNAL_ENTRY} bytes, not {len(data)}")
        with self._mutex:
            number = self._next_entry
            record = number % self.geometry.journal_records
            where = self._map.entry(number)
            self._map.stamps[record] = 2 * number + 1
            self._fence()
            self._map.lengths[record] = len(data)
            self._map.memory[where.start : where.start + len(data)] = data
            self._fence()
            self._map.stamps[record] = 2 * number + 2
            self._next_entry = number + 1
            return number

    def close(self, unlink: bool = False) -> None:
        """Lets go of the ring; frames stay readable unless `unlink` removes the file. Safe to call twice."""
        if self._fd < 0:
            return
        if unlink and same_file(self._fd, self.path):
            self.path.unlink(missing_ok=True)
        self._map.header[PID] = 0
        # Explicitly: the mapping holds a duplicate of the descriptor for as long as anybody holds a slot's buffer.
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> RingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class RingReader:
    """Everybody else's side of the ring: read-only, lock-free."""

    def __init__(self, path: Path, mapping: Mapping, inode: tuple[int, int]) -> None:
        self.path = path
        self.geometry = mapping.geometry
        self._map = mapping
        self._inode = inode
        self._fence = Fence()

    @classmethod
    def open(cls, path: Path) -> RingReader:
        """Maps the ring at `path`. Raises `RingMissing` where there is none yet, `RingError` where it is damaged."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise RingMissing(f"{path}: no such ring; is the camera's capture process running?") from error
        except OSError as error:
            raise RingError(f"{path}: cannot open the ring: {error.strerror}") from error
        try:
            geometry = read_geometry(fd)
            if geometry is None:
                raise RingMissing(f"{path}: not a complete ring of layout {LAYOUT}; its capture process must (re)start")
            status = os.fstat(fd)
            return cls(path, Mapping(fd, geometry, writable=False), (status.st_dev, status.st_ino))
        except OSError as error:
            raise RingError(f"{path}: cannot map the ring: {error.strerror}") from error
        finally:
            os.close(fd)

    @property
    def stale(self) -> bool:
        """Whether the file at the path is another one by now, or gone: open it anew."""
        try:
            status = self.path.stat()
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self._inode

    @property
    def epoch(self) -> int:
        """Epoch of the present or last writer."""
        return int(self._map.header[EPOCH])

    @property
    def writer_pid(self) -> int:
        """Process id of the writer, present or killed; 0 where the last one closed the ring."""
        return int(self._map.header[PID])

    @property
    def writer_lives(self) -> bool:
        """Whether the writer is running. (Asking for its lock instead might take that from a newcomer.)"""
        return self.writer_pid > 0 and Path(f"/proc/{self.writer_pid}").exists()

    def intact(self, slot: int, generation: int) -> bool:
        """Whether the slot still holds the frame of that generation. Ask after the pixels were used."""
        self._fence()
        return 0 <= slot < self.geometry.slots and int(self._map.generations[slot]) == generation

    def view(self, slot: int, generation: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The pixels of a frame, uint8 of `shape`, read-only, not copied: use them, then ask `intact`.

        Raises `TornFrame` where the slot holds another frame by now, `RingError` where there is no such slot or the
        shape does not fit it. The memory stays mapped for as long as the array lives.
        """
        if not 0 <= slot < self.geometry.slots:
            raise RingError(f"{self.path}: no slot {slot}: the ring has {self.geometry.slots}")
        size = math.prod(shape)
        if min(shape, default=0) < 0 or size > self.geometry.slot_bytes:
            raise RingError(f"{self.path}: a frame {shape} does not fit a slot of {self.geometry.slot_bytes} bytes")
        if generation % 2 or int(self._map.generations[slot]) != generation:
            raise TornFrame(f"{self.path}: slot {slot} no longer holds this frame: it was overwritten")
        self._fence()
        return self._map.buffers[slot][:size].reshape(shape)

    def read(self, slot: int, generation: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A copy of the pixels of a frame. Raises as `view` does, and `TornFrame` where it was torn meanwhile."""
        pixels = self.view(slot, generation, shape).copy()
        if not self.intact(slot, generation):
            raise TornFrame(f"{self.path}: slot {slot} was overwritten while it was copied")
        return pixels

    def journal(self) -> list[bytes]:
        """All intact announcements, oldest first."""
        return self.journal_after(0)[0]

    def journal_after(self, number: int) -> tuple[list[bytes], int]:
        """Announcements from entry `number` on, oldest first, and the number to ask for next time.

        Starts at the oldest entry left where `number` has been overwritten (then the next number is ahead by more
        than the entries returned). Costs little where there is nothing new.
        """
        entries: list[bytes] = []
        records = self.geometry.journal_records
        looked_again = -1
        while True:
            stamp = int(self._map.stamps[number % records])
            if stamp == 2 * number + 2:
                self._fence()
                where = self._map.entry(number)
                length = min(int(self._map.lengths[number % records]), where.stop - where.start)
                entry = self._map.memory[where.start : where.start + length]
                self._fence()
                if int(self._map.stamps[number % records]) == stamp:
                    entries.append(entry)
                    number += 1
                    continue
            newest = self._map.newest()
            if newest < number:
                return entries, number
            if stamp < 2 * number + 2 and looked_again != number:
                looked_again = number  # it was completed between the two looks, and would be skipped
                continue
            number = max(number + 1, newest - records + 1)  # too slow: this one is gone, or going just now

    def close(self) -> None:
        """Lets go of the ring. Pixels that were handed out stay mapped until they are dropped."""
        del self._map

    def __enter__(self) -> RingReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def remove_ring(path: Path) -> bool:
    """Removes the ring of a dead writer. False where there is none. Raises `RingInUse` where its writer lives."""
    if not path.exists():
        return False
    fd = lock_ring(path)
    try:
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".new").unlink(missing_ok=True)
    finally:
        os.close(fd)
    return True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

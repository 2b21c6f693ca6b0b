from __future__ import annotations

import gc
import itertools
import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edge import frames, ring_file, shm
from edge.errors import RingError, RingInUse, RingMissing, SharedMemoryTooSmall, TornFrame
from edge.frames import JOURNAL_ENTRY, Geometry, RingReader, RingWriter, remove_ring, ring_path, slots_needed

SHAPE = (4, 8, 1)
SIZE = 32


def write(ring: RingWriter, value: int) -> tuple[int, int]:
    slot = ring.acquire()
    slot.buffer[:] = value
    return slot.index, ring.commit(slot)


@pytest.fixture
def path(shm_dir: Path) -> Path:
    return ring_path("press", "top")


def test_a_frame_is_read_as_it_was_written(path: Path) -> None:
    with RingWriter.create(path, 4, SIZE) as ring, RingReader.open(path) as reader:
        slot = ring.acquire()
        slot.buffer[:] = np.arange(SIZE)
        generation = ring.commit(slot)
        pixels = reader.view(slot.index, generation, SHAPE)
        assert pixels.shape == SHAPE
        assert pixels.dtype == np.uint8
        assert pixels.ravel().tolist() == list(range(SIZE))
        assert reader.intact(slot.index, generation)
        assert np.array_equal(reader.read(slot.index, generation, SHAPE), pixels)


def test_pixels_are_read_only_and_not_copied(path: Path) -> None:
    with RingWriter.create(path, 4, SIZE) as ring, RingReader.open(path) as reader:
        index, generation = write(ring, 1)
        pixels = reader.view(index, generation, SHAPE)
        with pytest.raises(ValueError, match="read-only"):
            pixels[0, 0, 0] = 2
        with pytest.raises(ValueError, match="WRITEABLE"):
            pixels.flags.writeable = True
        assert not pixels.flags.owndata


def test_slots_begin_on_pages(path: Path) -> None:
    with RingWriter.create(path, 5, 5000) as ring:
        taken = [ring.acquire() for _ in range(5)]
        addresses = sorted(slot.buffer.ctypes.data for slot in taken)
        assert all(address % 4096 == 0 for address in addresses)
        assert all(later - earlier == 8192 for earlier, later in itertools.pairwise(addresses))
        assert {slot.buffer.size for slot in taken} == {5000}
        assert Geometry(5, 5000).data_offset % (2 << 20) == 0


def test_an_overwritten_frame_is_torn(path: Path) -> None:
    with RingWriter.create(path, 3, SIZE) as ring, RingReader.open(path) as reader:
        index, generation = write(ring, 1)
        pixels = reader.view(index, generation, SHAPE)
        write(ring, 2)
        write(ring, 3)
        assert reader.intact(index, generation)
        slot = ring.acquire()  # the writer has come round; not a byte is written yet
        assert slot.index == index
        assert not reader.intact(index, generation)
        with pytest.raises(TornFrame, match="overwritten"):
            reader.view(index, generation, SHAPE)
        slot.buffer[:] = 4
        ring.commit(slot)
        assert not reader.intact(index, generation)
        assert pixels[0, 0, 0] == 4


def test_a_frame_overwritten_during_its_copy_is_torn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RingWriter.create(path, 3, SIZE) as ring, RingReader.open(path) as reader:
        index, generation = write(ring, 1)
        view = reader.view

        def slow_view(*arguments: Any) -> Any:
            pixels = view(*arguments)
            for value in (2, 3, 4):
                write(ring, value)
            return pixels

        monkeypatch.setattr(reader, "view", slow_view)
        with pytest.raises(TornFrame, match="while it was copied"):
            reader.read(index, generation, SHAPE)


def test_several_slots_may_be_out(path: Path) -> None:
    with RingWriter.create(path, 4, SIZE) as ring, RingReader.open(path) as reader:
        taken = [ring.acquire() for _ in range(4)]
        assert ring.in_flight == 4
        with pytest.raises(RingError, match="all 4 slots are being written; raise ring_slots"):
            ring.acquire()
        for value, slot in enumerate(reversed(taken)):
            slot.buffer[:] = value
            generation = ring.commit(slot)
            assert reader.view(slot.index, generation, SHAPE)[0, 0, 0] == value
        assert ring.in_flight == 0


def test_a_released_slot_is_used_next_and_never_named(path: Path) -> None:
    with RingWriter.create(path, 3, SIZE) as ring, RingReader.open(path) as reader:
        old = write(ring, 1)
        slot = ring.acquire()
        ring.release(slot)
        assert ring.acquire().index == slot.index
        assert reader.intact(*old)
        with pytest.raises(RingError, match="not out for writing"):
            ring.release(slot)
        with pytest.raises(RingError, match="not out for writing"):
            ring.commit(slot)


@pytest.mark.parametrize(
    ("slot", "shape"),
    [(-1, SHAPE), (4, SHAPE), (2**62, SHAPE), (0, (5, 8, 1)), (0, (-1, 8, 1)), (0, (2**40, 2**40, 3)), (0, (-1, -1))],
)
def test_a_reference_beyond_the_ring_is_an_error(path: Path, slot: int, shape: tuple[int, ...]) -> None:
    with RingWriter.create(path, 4, SIZE) as ring, RingReader.open(path) as reader:
        _, generation = write(ring, 1)
        with pytest.raises(RingError) as caught:
            reader.view(slot, generation, shape)
        assert not isinstance(caught.value, TornFrame)
        assert not reader.intact(-1, generation)


def test_an_odd_generation_names_no_frame(path: Path) -> None:
    with RingWriter.create(path, 4, SIZE) as ring, RingReader.open(path) as reader:
        slot = ring.acquire()
        with pytest.raises(TornFrame):
            reader.view(slot.index, slot.generation, SHAPE)


def test_pixels_outlive_the_reader(path: Path) -> None:
    with RingWriter.create(path, 4, SIZE) as ring:
        index, generation = write(ring, 7)
        reader = RingReader.open(path)
        pixels = reader.view(index, generation, SHAPE)
        reader.close()
        del reader
        gc.collect()
        assert pixels.max() == 7


@pytest.mark.parametrize(
    ("rate_hz", "deadline_s", "in_flight"), [(30.0, 0.5, 1), (10.0, 2.0, 4), (0.5, 0.1, 1), (500.0, 0.2, 8)]
)
def test_a_frame_outlives_its_deadline(rate_hz: float, deadline_s: float, in_flight: int, path: Path) -> None:
    slots = slots_needed(rate_hz, deadline_s, in_flight)
    with RingWriter.create(path, slots, SIZE) as ring, RingReader.open(path) as reader:
        ahead = [ring.acquire() for _ in range(in_flight)]
        for _ in range(2 * slots):  # the ring is full and in its steady state: the camera always holds some slots
            ring.commit(ahead.pop(0))
            ahead.append(ring.acquire())
        first = ahead.pop(0)
        generation = ring.commit(first)
        ahead.append(ring.acquire())
        for _ in range(int(rate_hz * (deadline_s + frames.ARCHIVE_S))):
            assert reader.intact(first.index, generation)
            ring.commit(ahead.pop(0))
            ahead.append(ring.acquire())
        assert reader.intact(first.index, generation)


# --- the journal -----------------------------------------------------------------------------------------------------


def test_the_journal_keeps_the_newest(path: Path) -> None:
    with RingWriter.create(path, 3, SIZE, journal_records=8) as ring, RingReader.open(path) as reader:
        assert reader.journal() == []
        assert reader.journal_after(0) == ([], 0)
        for number in range(5):
            assert ring.journal_append(b"%d" % number) == number
        assert reader.journal() == [b"0", b"1", b"2", b"3", b"4"]
        assert reader.journal_after(3) == ([b"3", b"4"], 5)
        assert reader.journal_after(5) == ([], 5)
        for number in range(5, 21):
            ring.journal_append(b"%d" % number)
        entries, following = reader.journal_after(5)
        assert following == 21
        assert entries == [b"%d" % number for number in range(13, 21)]


@given(records=st.integers(2, 9), appended=st.integers(0, 40), cursor=st.integers(0, 45))
@settings(deadline=None, max_examples=60)
def test_the_journal_from_anywhere(
    tmp_path_factory: pytest.TempPathFactory, records: int, appended: int, cursor: int
) -> None:
    path = tmp_path_factory.mktemp("ring") / "ring"
    with RingWriter.create(path, 2, SIZE, journal_records=records) as ring, RingReader.open(path) as reader:
        for number in range(appended):
            ring.journal_append(b"%d" % number)
        entries, following = reader.journal_after(cursor)
        numbers = [int(entry) for entry in entries]
        assert numbers == list(range(following - len(numbers), following))
        if cursor < appended:
            assert following == appended
            assert len(numbers) == min(appended - cursor, records)
        else:
            assert (entries, following) == ([], cursor)


def test_journal_entries_have_a_size(path: Path) -> None:
    with RingWriter.create(path, 3, SIZE) as ring, RingReader.open(path) as reader:
        ring.journal_append(b"a" * JOURNAL_ENTRY)
        assert reader.journal() == [b"a" * JOURNAL_ENTRY]
        for bad in (b"", b"a" * (JOURNAL_ENTRY + 1)):
            with pytest.raises(RingError, match="journal entry"):
                ring.journal_append(bad)


def test_an_entry_that_is_being_overwritten_is_not_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RingWriter.create(path, 3, SIZE, journal_records=2) as ring, RingReader.open(path) as reader:
        ring.journal_append(b"oldest")
        ring.journal_append(b"old")
        seen: list[list[bytes]] = []
        monkeypatch.setattr(ring, "_fence", lambda: seen.append(reader.journal()))
        ring.journal_append(b"new")
        assert seen == [[b"old"], [b"old"]]  # before and after the entry is written
        assert reader.journal() == [b"old", b"new"]


def test_an_entry_completed_between_the_readers_two_looks_is_not_skipped(path: Path, monkeypatch) -> None:
    """The race: the reader finds entry 1 in writing, the writer completes it, the reader asks for the newest number."""
    with RingWriter.create(path, 3, SIZE, journal_records=8) as ring, RingReader.open(path) as reader:
        ring.journal_append(b"first")
        newest = reader._map.newest

        def complete_meanwhile() -> int:
            if newest() == 0:
                ring.journal_append(b"second")
            return newest()

        monkeypatch.setattr(reader._map, "newest", complete_meanwhile)
        assert reader.journal_after(0) == ([b"first", b"second"], 2)


def test_a_journal_entry_in_writing_is_not_seen(path: Path) -> None:
    """The writer dies between the two stamps of an entry: readers see the ones before, the successor rewrites it."""
    with RingWriter.create(path, 3, SIZE, journal_records=8) as ring, RingReader.open(path) as reader:
        ring.journal_append(b"first")
        ring._map.stamps[1] = 3  # number 1, in writing
        assert reader.journal_after(0) == ([b"first"], 1)
        ring.close()
        with RingWriter.create(path, 3, SIZE, journal_records=8) as successor:
            assert successor.journal_append(b"second") == 1
            assert reader.journal() == [b"first", b"second"]


# --- life and death of a writer --------------------------------------------------------------------------------------


def test_a_live_writer_keeps_rivals_away(path: Path) -> None:
    with RingWriter.create(path, 4, SIZE) as ring:
        index, generation = write(ring, 5)
        for slots in (4, 8):
            with pytest.raises(RingInUse, match=f"process {os.getpid()} captures this camera already"):
                RingWriter.create(path, slots, SIZE)
        with pytest.raises(RingInUse):
            remove_ring(path)
        with RingReader.open(path) as reader:
            assert reader.view(index, generation, SHAPE).max() == 5
            assert reader.writer_pid == os.getpid()


def test_takeover_keeps_frames_and_journal(path: Path) -> None:
    ring = RingWriter.create(path, 4, SIZE)
    first_epoch = ring.epoch
    kept = [write(ring, value) for value in range(3)]
    ring.journal_append(b"part 0")
    half = ring.acquire()  # in writing when it dies
    ring.close()
    with RingReader.open(path) as reader, RingWriter.create(path, 4, SIZE) as successor:
        assert successor.took_over
        assert successor.epoch > first_epoch
        assert reader.epoch == successor.epoch
        assert not reader.stale
        for value, (index, generation) in enumerate(kept):
            assert reader.view(index, generation, SHAPE).max() == value
        assert not reader.intact(half.index, half.generation)
        assert successor.journal_append(b"part 1") == 1
        assert reader.journal() == [b"part 0", b"part 1"]
        # The slot that held nothing goes first, then the oldest frame.
        assert [successor.acquire().index for _ in range(4)] == [half.index, *(index for index, _ in kept)]


def test_the_epoch_grows_even_if_the_clock_goes_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = RingWriter.create(path, 4, SIZE)
    ring.close()
    monkeypatch.setattr(frames, "_now_ms", lambda: 1000)
    with RingWriter.create(path, 4, SIZE) as same:
        assert same.epoch == ring.epoch + 1
    with RingWriter.create(path, 6, SIZE) as replaced:
        assert replaced.epoch == ring.epoch + 2


def test_another_geometry_replaces_the_file_and_keeps_the_journal(path: Path) -> None:
    ring = RingWriter.create(path, 4, SIZE)
    index, generation = write(ring, 9)
    ring.journal_append(b"part 0")
    ring.close()
    with RingReader.open(path) as old, RingWriter.create(path, 5, 2 * SIZE) as new:
        assert not new.took_over
        assert old.stale
        assert old.view(index, generation, SHAPE).max() == 9  # still mapped
        with RingReader.open(path) as reader:
            assert not reader.stale
            assert reader.journal() == [b"part 0"]
            assert new.journal_append(b"part 1") == 1
            for slot in range(5):
                assert not reader.intact(slot, generation)
        assert list(path.parent.iterdir()) == [path]


def test_generations_of_a_new_file_never_repeat(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_now_ms", lambda: 1000)
    names: set[tuple[int, int]] = set()
    for slots in (4, 5, 4, 6):
        with RingWriter.create(path, slots, SIZE) as ring:
            written = [write(ring, 1) for _ in range(3 * slots)]
        assert names.isdisjoint(written)
        names.update(written)


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut short", "other version", "holes", "lying header"])
def test_a_damaged_file_is_replaced(path: Path, damage: str) -> None:
    RingWriter.create(path, 4, SIZE).close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        if damage in ("empty", "garbage", "holes"):
            file.truncate(0)
        if damage == "garbage":
            file.write(os.urandom(10_000))
        elif damage == "cut short":
            file.truncate(size - 4096)
        elif damage == "other version":
            file.seek(8)
            file.write((99).to_bytes(8, "little"))
        elif damage == "holes":
            file.write(b"".join(word.to_bytes(8, "little") for word in Geometry(4, SIZE).header()))
            file.truncate(size)
        elif damage == "lying header":
            file.seek(16)
            file.write((2**60).to_bytes(8, "little"))
    with pytest.raises(RingMissing, match="not a complete ring"):
        RingReader.open(path)
    with RingWriter.create(path, 4, SIZE) as ring, RingReader.open(path) as reader:
        assert not ring.took_over
        assert reader.intact(*write(ring, 3))


def test_a_half_built_file_of_a_crash_is_removed(path: Path) -> None:
    half = path.with_name(path.name + ".new")
    half.write_bytes(b"half")
    with RingWriter.create(path, 4, SIZE):
        assert not half.exists()


def test_a_missing_ring_is_missing(path: Path) -> None:
    with pytest.raises(RingMissing, match="is the camera's capture process running"):
        RingReader.open(path)


def test_a_ring_that_may_not_be_opened(path: Path) -> None:
    path.mkdir()
    with pytest.raises(RingError, match="cannot open or make the ring"):
        RingWriter.create(path, 4, SIZE)


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    path.symlink_to(tmp_path / "target")
    with pytest.raises(RingError, match="cannot open or make the ring"):
        RingWriter.create(path, 4, SIZE)
    assert (tmp_path / "target").read_bytes() == b"precious"


def test_only_the_user_may_open_it(path: Path) -> None:
    with RingWriter.create(path, 4, SIZE):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_stays_unless_it_shall_go(path: Path) -> None:
    ring = RingWriter.create(path, 4, SIZE)
    reader = RingReader.open(path)
    ring.close()
    ring.close()
    assert path.exists()
    again = RingWriter.create(path, 4, SIZE)
    again.close(unlink=True)
    assert not path.exists()
    assert reader.stale
    assert not remove_ring(path)
    RingWriter.create(path, 4, SIZE).close()
    assert remove_ring(path)
    assert not path.exists()


def test_a_held_buffer_does_not_hold_the_lock(path: Path) -> None:
    ring = RingWriter.create(path, 4, SIZE)
    held = ring.acquire().buffer
    ring.close()
    with RingWriter.create(path, 4, SIZE):
        assert held.size == SIZE


@pytest.mark.parametrize(("slots", "slot_bytes"), [(1, SIZE), (4, 0), (0, 0)])
def test_a_ring_too_small_to_be_one(path: Path, slots: int, slot_bytes: int) -> None:
    with pytest.raises(RingError, match="at least 2 slots"):
        RingWriter.create(path, slots, slot_bytes)
    assert not path.exists()


# --- room ------------------------------------------------------------------------------------------------------------


def test_too_little_room_names_the_fix(path: Path) -> None:
    disk = os.statvfs(path.parent)
    slot_bytes = disk.f_bavail * disk.f_frsize
    with pytest.raises(SharedMemoryTooSmall) as caught:
        RingWriter.create(path, 3, slot_bytes)
    text = str(caught.value)
    mount = next(folder for folder in path.parents if folder.is_mount())
    used = (disk.f_blocks - disk.f_bavail) * disk.f_frsize
    wanted = (used + Geometry(3, slot_bytes).total_bytes) >> 20
    numbers = [int(word) for word in text.replace("M ", " ").replace("size=", " ").split() if word.isdigit()]
    assert f"mount -o remount,size={numbers[numbers.index(max(numbers))]}M {mount}" in text
    assert wanted <= max(numbers) <= wanted + 256
    assert f"--shm-size={max(numbers)}m" in text
    assert list(path.parent.iterdir()) == []


def test_a_full_tmpfs_is_an_error_at_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program takes the room between the check and the allocation."""

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SharedMemoryTooSmall, match="--shm-size="):
        RingWriter.create(path, 4, SIZE)
    assert list(path.parent.iterdir()) == []


def test_memory_that_cannot_be_mapped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(ring_file.mmap, "mmap", refuse)
    with pytest.raises(RingError, match="cannot make the ring: Cannot allocate memory"):
        RingWriter.create(path, 4, SIZE)
    assert list(path.parent.iterdir()) == []


def test_the_old_ring_is_kept_where_a_larger_one_finds_no_room(path: Path) -> None:
    with RingWriter.create(path, 4, SIZE) as ring:
        ring.journal_append(b"part 0")
    disk = os.statvfs(path.parent)
    with pytest.raises(SharedMemoryTooSmall):
        RingWriter.create(path, 3, disk.f_bavail * disk.f_frsize)
    with RingReader.open(path) as reader:
        assert reader.journal() == [b"part 0"]


def test_removing_the_old_ring_is_named_where_it_would_help(path: Path) -> None:
    disk = os.statvfs(path.parent)
    free = disk.f_bavail * disk.f_frsize
    with pytest.raises(SharedMemoryTooSmall, match=f"remove the old ring, `rm {path}`"):
        shm.check_room(path, free + (1 << 20), freed=1 << 30)
    with pytest.raises(SharedMemoryTooSmall) as caught:
        shm.check_room(path, free + (1 << 40), freed=1 << 20)
    assert "old ring" not in str(caught.value)


def test_all_memory_is_there_from_the_start(path: Path) -> None:
    with RingWriter.create(path, 4, 100_000) as ring:
        assert path.stat().st_blocks * 512 >= ring.geometry.total_bytes


# --- invariants ------------------------------------------------------------------------------------------------------


class Interleavings(RuleBasedStateMachine):
    """A writer that fills slots byte by byte, in any order, against readers that read byte by byte, in any order.

    A frame is its number four times. A reader that finishes and finds its frame intact must have seen nothing else.
    """

    slots = Bundle("slots")
    reads = Bundle("reads")
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.path = self.folder / "ring"
        remove_ring(self.path)
        self.ring = RingWriter.create(self.path, 3, 4, journal_records=4)
        self.reader = RingReader.open(self.path)
        self.names: set[tuple[int, int]] = set()
        self.number = 0

    @precondition(lambda self: self.ring.in_flight < 3)
    @rule(target=slots)
    def acquire(self) -> dict[str, Any]:
        self.number = self.number % 250 + 1
        return {"ring": self.ring, "slot": self.ring.acquire(), "number": self.number, "left": [2, 0, 3, 1]}

    @rule(out=slots)
    def write_byte(self, out: dict[str, Any]) -> None:
        if out["ring"] is self.ring and out["left"]:  # else its writer is dead
            out["slot"].buffer[out["left"].pop()] = out["number"]

    @rule(out=consumes(slots))
    def commit(self, out: dict[str, Any]) -> None:
        while out["ring"] is self.ring and out["left"]:
            self.write_byte(out)
        if out["ring"] is self.ring:
            name = out["slot"].index, self.ring.commit(out["slot"])
            assert name not in self.names
            self.names.add(name)
            self.ring.journal_append(f"{out['number']} {name[0]} {name[1]}".encode())

    @rule(out=consumes(slots))
    def release(self, out: dict[str, Any]) -> None:
        if out["ring"] is self.ring:
            self.ring.release(out["slot"])

    @rule()
    def crash_and_take_over(self) -> None:
        journal = self.reader.journal()
        self.ring.close()
        self.ring = RingWriter.create(self.path, 3, 4, journal_records=4)
        assert self.ring.took_over
        assert self.reader.journal() == journal

    @precondition(lambda self: self.reader.journal())
    @rule(target=reads, data=st.data())
    def begin_read(self, data: st.DataObject) -> dict[str, Any]:
        number, slot, generation = map(int, data.draw(st.sampled_from(self.reader.journal())).split())
        try:
            pixels = self.reader.view(slot, generation, (4,))
        except TornFrame:
            pixels = np.zeros(4, np.uint8)
        return {"pixels": pixels, "name": (slot, generation), "number": number, "seen": []}

    @rule(read=reads)
    def read_byte(self, read: dict[str, Any]) -> None:
        if len(read["seen"]) < 4:
            read["seen"].append(int(read["pixels"][len(read["seen"])]))

    @rule(read=consumes(reads))
    def end_read(self, read: dict[str, Any]) -> None:
        while len(read["seen"]) < 4:
            self.read_byte(read)
        if self.reader.intact(*read["name"]):
            assert read["seen"] == [read["number"]] * 4

    @invariant()
    def journal_is_whole(self) -> None:
        assert all(len(entry.split()) == 3 for entry in self.reader.journal())

    def teardown(self) -> None:
        self.reader.close()
        self.ring.close()


def test_no_interleaving_shows_mixed_bytes(tmp_path: Path) -> None:
    machine = type("InThisFolder", (Interleavings,), {"folder": tmp_path})
    run_state_machine_as_test(machine, settings=settings(max_examples=80, stateful_step_count=40, deadline=None))


STRESS_WRITER = """
import sys, time
import numpy as np
from pathlib import Path
from edge.frames import RingWriter
path, slots, size, seconds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
ring = RingWriter.create(path, slots, size, journal_records=64)
print("ready", flush=True)
end, number = time.monotonic() + seconds, 0
while time.monotonic() < end:
    slot = ring.acquire()
    number += 1
    slot.buffer.view(np.uint64)[:] = number
    generation = ring.commit(slot)
    ring.journal_append(f"{number} {slot.index} {generation} ".encode() + b"x" * (number % 700))
print(number, flush=True)
"""


def test_two_processes_under_stress(path: Path, child: Callable[..., Any]) -> None:
    """A writer at full speed in a ring far too small: every torn frame is noticed, every journal entry is whole."""
    size = 64_000
    writer = child(STRESS_WRITER, path, 3, size, 2.5)
    assert writer.line() == "ready"
    whole = torn = entries = following = 0
    with RingReader.open(path) as reader:
        while writer.poll() is None:
            new, following = reader.journal_after(following)
            for entry in new:
                entries += 1
                number, _, _, padding = entry.split(b" ")
                assert len(padding) == int(number) % 700
            for entry in new[-2:]:
                number, slot, generation = map(int, entry.split()[:3])
                try:
                    pixels = reader.view(slot, generation, (size,))
                except TornFrame:
                    torn += 1
                    continue
                words = pixels.view(np.uint64)
                low, high = int(words.min()), int(words.max())
                if reader.intact(slot, generation):
                    whole += 1
                    assert low == high == number
                else:
                    torn += 1
    written = int(writer.line())
    assert entries > 100
    assert whole > 50
    assert whole + torn <= written
    assert following == written


KILLED_WRITER = """
import sys
import numpy as np
from pathlib import Path
from edge.frames import RingWriter
ring = RingWriter.create(Path(sys.argv[1]), 4, 1 << 20)
print("ready", flush=True)
number = 0
while True:
    slot = ring.acquire()
    number += 1
    slot.buffer.view(np.uint64)[:] = number
    generation = ring.commit(slot)
    ring.journal_append(f"{number} {slot.index} {generation}".encode())
    if number == 20:
        print("going", flush=True)
"""


@pytest.mark.parametrize("attempt", range(4))
def test_a_writer_killed_at_any_moment(path: Path, child: Callable[..., Any], attempt: int) -> None:
    """SIGKILL in the middle of writing: no half-written frame can be named, the successor goes on, old frames stay."""
    writer = child(KILLED_WRITER, path)
    assert writer.line() == "ready"
    assert writer.line() == "going"
    with pytest.raises(RingInUse, match=str(writer.pid)):
        RingWriter.create(path, 4, 1 << 20)
    threading.Event().wait(0.01 + attempt * 0.0037)  # another moment each time
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    with RingReader.open(path) as reader:
        journal = reader.journal()
        with RingWriter.create(path, 4, 1 << 20) as ring:
            assert ring.took_over
            last = [entry.split() for entry in journal[-3:]]  # of 4 slots, one may have been in writing
            assert [int(number) for number, _, _ in last] == list(range(len(journal) - 2, len(journal) + 1))
            for number, slot, generation in ([int(word) for word in words] for words in last):
                words = reader.view(slot, generation, (1 << 20,)).view(np.uint64)
                assert words.min() == words.max() == number
                assert reader.intact(slot, generation)
            assert ring.journal_append(b"next") == len(journal)
            index, generation = write(ring, 1)
            assert reader.intact(index, generation)
            assert reader.journal() == [*journal, b"next"]


def test_writers_in_many_threads(path: Path) -> None:
    """Camera libraries call back from threads of their own: no slot is handed out twice at once."""
    with RingWriter.create(path, 16, SIZE) as ring, RingReader.open(path) as reader:
        faults: list[str] = []

        def work(value: int) -> None:
            for _ in range(300):
                slot = ring.acquire()
                slot.buffer[:] = value
                if not (slot.buffer == value).all():
                    faults.append(f"slot {slot.index} is shared")
                ring.commit(slot)

        threads = [threading.Thread(target=work, args=(value,)) for value in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert ring.in_flight == 0
        assert reader.intact(*write(ring, 1))

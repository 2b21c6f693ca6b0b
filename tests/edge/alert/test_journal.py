from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.alert.journal import Journals, identity
from edge.errors import RingError, TornFrame
from edge.frames import RingWriter, ring_path
from edge.messages import FrameRef, Health, encode
from edge.rings import Rings


def ring(slots: int = 4) -> RingWriter:
    return RingWriter.create(ring_path("press", "top"), slots, 4096, journal_records=64)


def found(journals: Journals, known: Any = lambda frame_id: False) -> list[int]:
    sequences: list[int] = []
    while journals.waiting:
        sequences += [frame.id.sequence for frame in journals.take(known, most=3)]
    return sequences


def test_only_what_is_new_and_unknown(shm_dir: Path, make_frame: Any) -> None:
    rings = Rings("press", ["top", "side"])
    journals = Journals(rings, ["top", "side"])
    assert journals.read() == 0, "no ring has nothing to tell"
    with ring() as writer:
        for sequence in range(10):
            writer.journal_append(encode(make_frame(sequence)))
        assert journals.read() == 10
        assert found(journals, lambda frame_id: frame_id.sequence % 2) == [0, 2, 4, 6, 8]
        assert journals.read() == 0
        writer.journal_append(encode(make_frame(10)))
        assert journals.read(["side"]) == 0
        assert journals.read(["top", "unknown"]) == 1
        assert found(journals) == [10]
        assert journals.epochs() == [("top", writer.epoch)]
    rings.close()


def test_replaced_ring_is_read_from_its_beginning(shm_dir: Path, make_frame: Any) -> None:
    rings = Rings("press", ["top"])
    journals = Journals(rings, ["top"])
    with ring() as writer:
        writer.journal_append(encode(make_frame(0)))
        journals.read()
        assert found(journals) == [0]
    with ring(slots=9) as writer:  # another geometry: a new file, the journal copied
        writer.journal_append(encode(make_frame(0, epoch=2000)))
        journals.read()
        assert found(journals) == [0, 0]
        writer.close(unlink=True)
    assert journals.read() == 0
    rings.close()


def test_damaged_entries_are_counted(shm_dir: Path, make_frame: Any) -> None:
    rings = Rings("press", ["top"])
    journals = Journals(rings, ["top"])
    with ring() as writer:
        whole = encode(make_frame(1))
        for entry in (
            b"\xc1",
            whole[:-3],
            encode(Health(line="a", process="b", pid=1, state="", uptime_s=0, counters={}, gauges={})),
        ):
            writer.journal_append(entry)
        writer.journal_append(whole)
        journals.read()
        assert found(journals) == [1]
    assert journals.damaged == 3
    rings.close()


@given(st.binary(max_size=80))
def test_identity_of_anything(data: bytes) -> None:
    assert identity(data) is None


def test_identity_of_an_announcement(make_frame: Any) -> None:
    frame: FrameRef = make_frame(7)
    assert identity(encode(frame)) == frame.id


def test_pixels_from_a_ring(shm_dir: Path, make_frame: Any) -> None:
    rings = Rings("press", ["top"])
    with ring() as writer:
        slot = writer.acquire()
        slot.buffer[:] = 7
        frame = make_frame(0, slot=slot.index, generation=writer.commit(slot), height=16, width=16)
        assert rings.copy(frame).shape == (16, 16, 1)
        view, reader = rings.view(frame)
        assert view.max() == 7
        assert not view.flags.writeable
        for _ in range(4):
            writer.commit(writer.acquire())
        assert not reader.intact(frame.slot, frame.generation)
        with pytest.raises(TornFrame):
            rings.copy(frame)
        with pytest.raises(RingError, match="not this camera's"):
            rings.view(msgspec.structs.replace(frame, ring="edge-inspect.press.side"))
        del view, reader
    rings.close()

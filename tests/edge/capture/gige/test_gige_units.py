"""The arithmetic behind cameras: frame numbers, clocks, samples of more than 8 bits, triggers and their frames."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.capture.aravis.library import Library
from edge.capture.device_clock import DeviceClock
from edge.capture.frame_ids import FrameIds, FrameOrder
from edge.capture.memory_slots import SLOTS_MAX, MemorySlots
from edge.capture.opening import Opening
from edge.capture.software_triggers import SoftwareTriggers
from edge.capture.source import Grab, SlotPool, Source, SourceInfo
from edge.capture.wire_formats import _CODES, WireFormat
from edge.errors import RingError, SourceAway, SourceError
from edge.messages import now_ns


def numbered(start: int, gaps: list[int]) -> list[int]:
    """16-bit ids of frames that came, `gaps` being how many were missing before each after the first."""
    at, ids = start, [start]
    for gap in gaps:
        for _ in range(gap + 1):
            at = at % 65535 + 1
        ids.append(at)
    return ids


@given(st.integers(1, 65535), st.lists(st.integers(0, 300), max_size=60))
def test_16_bit_ids_tell_what_is_missing_across_their_wrap(start, gaps):
    ids = FrameIds()
    steps = [ids.step(frame_id) for frame_id in numbered(start, gaps)]
    assert steps == [1] + [gap + 1 for gap in gaps]


@given(st.integers(1, 65535), st.integers(0, 300), st.integers(0, 300))
def test_a_late_id_changes_nothing(start, ahead, back):
    ids = FrameIds()
    first, newest = numbered(start, [ahead + back])
    late = numbered(start, [ahead])[1]
    ids.step(first)
    ids.step(newest)
    assert ids.step(late) == -back
    assert ids.step(numbered(newest, [0])[1]) == 1


def test_64_bit_ids_do_not_wrap():
    ids = FrameIds()
    assert [ids.step(frame_id) for frame_id in (65_534, 65_535, 65_536, 65_540, 2**40)] == [1, 1, 1, 4, 2**40 - 65_540]


def test_a_frame_without_a_number_is_the_next_one():
    ids = FrameIds()
    assert ids.skip() is None
    ids.step(65_535)
    assert ids.skip() == 1
    assert ids.after(1) == 2
    assert ids.step(3) == 2


FATES = st.sampled_from(["whole", "whole", "whole", "damaged", "nameless", "late", "late nameless", "lost"])


@given(st.integers(1, 65_535), st.lists(st.tuples(FATES, st.integers(1, 5)), min_size=1, max_size=80))
def test_each_part_is_told_once_in_order_whatever_the_receiver_hands_out_when(start, fates):
    """Damaged frames come late and out of order, some without their number; a whole frame is always told as itself."""
    ids = numbered(start, [0] * len(fates))
    arrivals: list[tuple[float, int, bool, bool]] = [(0, ids[0], True, True)]  # when, id, whole, with number
    for at, (frame_id, (fate, delay)) in enumerate(zip(ids[1:], fates, strict=True), 1):
        if fate != "lost":
            when = at + delay + 0.5 if fate.startswith("late") else at
            arrivals.append((when, frame_id, fate == "whole", "nameless" not in fate))
    closing = ids[-1] % 65_535 + 1
    arrivals.append((len(ids) + 10, closing, True, True))
    order = FrameOrder(late_ns=10**9)
    told: list[int] = []
    whole: list[int] = []
    for when, frame_id, is_whole, has_number in sorted(arrivals):
        place = order.place(frame_id if has_number else 0, round(when * 1e6))
        if place is None:
            assert not is_whole, "a whole frame that comes in its turn is never thrown away"
            continue
        told += [*place.missing, place.frame_id]
        if is_whole:
            assert place.frame_id == frame_id
            whole.append(frame_id)
    assert told == [*ids, closing]
    assert len(whole) == sum(fate == "whole" for fate, _ in fates) + 2


def test_a_camera_that_counts_anew_is_followed():
    order = FrameOrder(late_ns=10**9)
    assert [order.place(frame_id, 0).frame_id for frame_id in (30_000, 30_001, 1, 2)] == [30_000, 30_001, 1, 2]
    assert order.restarts == 1
    assert order.place(30_001, 0).missing == ()


@given(st.lists(st.integers(0, 30_000_000), min_size=1, max_size=400), st.floats(-100e-6, 100e-6))
def test_the_cameras_clock_takes_the_jitter_out_of_arrivals(delays, drift):
    """40 ms apart; the camera's clock drifts, frames take 1 ms and up to 30 more."""
    clock = DeviceClock()
    spread = []
    for number, delay in enumerate(delays):
        exposed = 10**12 + number * 40_000_000
        device = 7 * 10**15 + round((exposed - 10**12) * (1 + drift))
        arrival = exposed + 1_000_000 + delay
        seen = clock.host_ns(device, arrival)
        assert seen <= arrival
        spread.append(seen - exposed)
    least = min(delays[: len(delays)]) + 1_000_000
    assert min(spread) >= least - 2_100_000, "never earlier than drift explains"
    assert spread[-1] <= delays[-1] + 1_000_000


def test_a_camera_whose_clock_is_set_starts_anew_and_one_without_gets_the_arrival():
    clock = DeviceClock()
    assert clock.host_ns(0, 500) == 500
    assert clock.host_ns(10**9, 5 * 10**12) == 5 * 10**12
    assert clock.host_ns(10**9 + 10**7, 5 * 10**12 + 3 * 10**7) == 5 * 10**12 + 10**7
    assert clock.host_ns(10**15, 6 * 10**12) == 6 * 10**12, "not a second and more off"


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_samples_of_more_than_8_bits_keep_their_upper_8(rows, columns, data):
    width = 2 * columns
    samples = np.array(
        data.draw(st.lists(st.integers(0, 4095), min_size=rows * width, max_size=rows * width)), np.uint16
    )
    want = (samples >> 4).astype(np.uint8)
    even, odd = samples[0::2], samples[1::2]
    lsb_first = np.stack([even & 0xFF, (even >> 8) | ((odd & 0xF) << 4), odd >> 4], axis=1)
    packed = np.stack([even >> 4, (even & 0xF) | ((odd & 0xF) << 4), odd >> 4], axis=1)
    cases = {
        "Mono12p": lsb_first.astype(np.uint8).ravel(),
        "Mono12Packed": packed.astype(np.uint8).ravel(),
        "Mono12": samples.astype("<u2").view(np.uint8),
        "Mono16": (samples << 4).astype("<u2").view(np.uint8),
        "Mono10": (samples >> 2).astype("<u2").view(np.uint8),
    }
    for name, wire in cases.items():
        form = WireFormat(name)
        assert form.bytes_for(rows, width) == wire.size
        assert not form.in_place
        out = np.zeros(rows * width, np.uint8)
        form.unpack(wire, out)
        assert np.array_equal(out, want), name


def test_formats_of_8_bits_are_received_in_place():
    for name in _CODES:
        assert WireFormat(name).in_place == name.endswith("8"), name
    with pytest.raises(ValueError, match="in place"):
        WireFormat("RGB8").unpack(np.zeros(3, np.uint8), np.zeros(3, np.uint8))


class Shutter:
    """A camera that notes its triggers, or refuses them."""

    def __init__(self, dead: bool = False) -> None:
        self.dead, self.taken = dead, threading.Semaphore(0)

    def software_trigger(self) -> None:
        self.taken.release()
        if self.dead:
            raise SourceError("it does not answer")


@pytest.fixture
def triggers():
    made = SoftwareTriggers(timeout_ms=60_000)
    yield made
    made.close()


def test_a_frame_claims_the_last_trigger_before_it_and_those_passed_over_are_missed(triggers):
    shutter = Shutter()
    triggers.connect(shutter)
    for _ in range(3):
        triggers.fire()
        assert shutter.taken.acquire(timeout=10)
    missed, mine = triggers.claim(now_ns())
    assert len(missed) == 2
    assert mine is not None
    assert max(missed) < mine
    assert triggers.claim(now_ns()) == ([], None), "nobody asked for another frame"
    assert triggers.lost() == []


def test_triggers_that_cannot_be_sent_or_bring_nothing_are_lost_once():
    triggers = SoftwareTriggers(timeout_ms=10)
    dead, alive = Shutter(dead=True), Shutter()
    triggers.fire()  # no camera at all
    for shutter in (dead, alive):
        triggers.connect(shutter)
        triggers.fire()
        assert shutter.taken.acquire(timeout=10)
    found: list[int] = []
    end = now_ns() + 10**10
    while len(found) < 3 and now_ns() < end:
        found += triggers.lost()
    assert len(found) == 3
    assert triggers.lost() == []
    triggers.close()


class Visitor(Source):
    """A camera that comes at the third attempt, if ever."""

    def __init__(self, ever: bool = True) -> None:
        self.attempts, self.closed, self._ever = 0, 0, ever

    def open(self) -> SourceInfo:
        self.attempts += 1
        if not self._ever:
            raise SourceError("never")
        if self.attempts < 3:
            raise SourceAway(f"away {self.attempts}")
        return SourceInfo(1, 1.0, False, "came")

    def start(self, pool: SlotPool) -> None:
        raise AssertionError

    def next(self, timeout_s: float) -> Grab | None:
        raise AssertionError

    def close(self) -> None:
        self.closed += 1


def test_a_source_that_is_away_is_opened_when_it_comes():
    opening = Opening(Visitor())
    assert opening.first() is None
    assert opening.fault.startswith("away")
    info = opening.wait(30.0)
    assert info is not None
    assert info.description == "came"
    assert opening.failures == 2


def test_a_source_that_never_opens_is_not_asked_again():
    visitor = Visitor(ever=False)
    with pytest.raises(SourceError, match="never"):
        Opening(visitor).first()
    assert visitor.attempts == 1


def test_an_opening_that_is_cancelled_leaves_nothing_open():
    visitor = Visitor()
    opening = Opening(visitor)
    assert opening.first() is None
    opening.cancel()
    assert visitor.closed >= 1
    assert not opening._thread.is_alive()


def test_slots_in_memory_are_bounded_and_used_again():
    pool = MemorySlots(4)
    slots = [pool.acquire() for _ in range(SLOTS_MAX)]
    with pytest.raises(RingError):
        pool.acquire()
    pool.release(slots[3])
    assert pool.acquire() is slots[3]
    assert pool.out == SLOTS_MAX


def test_without_aravis_its_package_is_named(monkeypatch):
    monkeypatch.setattr("edge.capture.aravis.library.NAMES", ("libaravis-gone.so.0",))
    with pytest.raises(SourceError, match=r"need libaravis-gone\.so\.0.* sudo apt-get install libaravis-0\.8-0"):
        Library()

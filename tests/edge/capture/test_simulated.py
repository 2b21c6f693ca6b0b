from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from edge.capture import open_source
from edge.capture.paced import LAG_S, Schedule
from edge.capture.simulation import Conveyor
from edge.capture.source import EndOfSource
from edge.errors import SourceError
from edge.frames import RingWriter
from edge.messages import FrameStatus, now_ns
from edge.settings_sources import SimulatedSource
from pipelines.images import PixelFormat


def camera(**keys) -> SimulatedSource:
    return SimulatedSource(
        **{"type": "simulated", "height_px": 96, "width_px": 128, "rate_hz": 200.0, "parts": 10, "seed": 3} | keys
    )


def test_parts_come_on_schedule_whatever_the_reader_does(start, drain):
    source = open_source(camera(rate_hz=50.0, parts=8))
    info, ring = start(source)
    assert info.finite
    assert info.max_rate_hz == 50.0
    parts = drain(source, ring)
    triggers = [grab.trigger_ns for grab, _ in parts]
    assert [b - a for a, b in itertools.pairwise(triggers)] == [20_000_000] * 7
    assert all(trigger <= now_ns() for trigger in triggers)


def test_no_part_is_handed_out_before_its_moment(start):
    source = open_source(camera(rate_hz=20.0))
    _, ring = start(source)
    for _ in range(3):
        grab = source.next(1.0)
        assert grab is not None
        assert now_ns() >= grab.trigger_ns
        ring.commit(grab.slot)
    began = time.monotonic()
    assert source.next(0.001) is None
    assert time.monotonic() - began < 0.045


@pytest.mark.parametrize("form", [PixelFormat.MONO8, PixelFormat.BGR8, PixelFormat.RGB8, PixelFormat.BAYER_RG8])
def test_the_pixels_are_the_conveyors(start, drain, form):
    source = open_source(camera(pixel_format=form, part_type="cap", defect_rate=0.5))
    info, ring = start(source)
    assert info.max_bytes == 96 * 128 * form.channels
    conveyor = Conveyor(3, "cap", 96, 128, 1 if form is PixelFormat.MONO8 else 3, 0.5, noise=2.0)
    parts = drain(source, ring)
    assert len(parts) == 10
    for index, (grab, pixels) in enumerate(parts):
        truth = conveyor.part(index)
        expected = truth.image
        if form is PixelFormat.RGB8:
            expected = expected[:, :, ::-1]
        if form is PixelFormat.BAYER_RG8:
            mosaic = expected[:, :, 1].copy()
            mosaic[0::2, 0::2], mosaic[1::2, 1::2] = expected[0::2, 0::2, 2], expected[1::2, 1::2, 0]
            expected = mosaic
        assert pixels == expected.tobytes()
        assert grab.status is FrameStatus.OK
        assert grab.truth["defect"] == (truth.defect.kind if truth.defect else None)
        if truth.defect is not None:
            assert grab.truth["area_px"] == truth.mask.sum()


def test_distinct_parts_repeat_with_their_truth(start, drain):
    source = open_source(camera(distinct=3, parts=9, defect_rate=0.5))
    _, ring = start(source)
    parts = drain(source, ring)
    assert len({pixels for _, pixels in parts}) == 3
    for number, (grab, pixels) in enumerate(parts):
        first, same = parts[number % 3]
        assert pixels == same
        assert {**grab.truth, "index": 0} == {**first.truth, "index": 0}
        assert grab.truth["index"] == number


def test_parts_that_passed_long_ago_are_announced_as_lost_and_we_catch_up(start):
    """The process was stopped for longer than any deadline: the parts of that time are neither dropped nor judged."""
    source = open_source(camera(rate_hz=20.0, parts=100))
    _, ring = start(source)
    ring.commit(source.next(1.0).slot)
    time.sleep(LAG_S + 0.6)
    grabs = []
    while not grabs or now_ns() - grabs[-1].trigger_ns > 60e6:
        grabs.append(source.next(1.0))
        if grabs[-1].slot is not None:
            ring.commit(grabs[-1].slot)
    lost = [grab.status for grab in grabs].count(FrameStatus.LOST)
    assert lost >= 10
    assert all(grab.status is FrameStatus.LOST for grab in grabs[:lost])
    assert all(grab.status is FrameStatus.OK for grab in grabs[lost:])
    triggers = [grab.trigger_ns for grab in grabs]
    assert {b - a for a, b in itertools.pairwise(triggers)} == {50_000_000}
    assert source.health()[1]["lost_behind"] == lost


def test_the_schedule_does_not_drift():
    schedule = Schedule(29.97, 5_000)
    exact = [5_000 + round(n * 100 * 10**9 / 2997) for n in (0, 1, 10_000, 10**7)]
    assert [schedule.due_ns(n) for n in (0, 1, 10_000, 10**7)] == pytest.approx(exact, abs=2)


def test_a_slot_that_is_too_small_costs_the_frame_not_the_part(start, drain):
    source = open_source(camera(parts=3))
    _, ring = start(source, slot_bytes=100)
    assert [grab.status for grab, _ in drain(source, ring)] == [FrameStatus.NO_SLOT] * 3


def test_it_ends_once_and_can_be_closed_at_any_time(tmp_path):
    source = open_source(camera(parts=1))
    source.close()
    source.open()
    ring = RingWriter.create(tmp_path / "ring", 3, 96 * 128)
    source.start(ring)
    ring.commit(source.next(1.0).slot)
    for _ in range(2):
        with pytest.raises(EndOfSource):
            source.next(0.1)
    source.close()
    source.close()
    assert ring.in_flight == 0
    ring.close()


def test_more_pictures_than_memory_is_refused():
    with pytest.raises(SourceError, match="use at most 43"):
        open_source(camera(height_px=4096, width_px=6000, distinct=1000)).open()


def test_a_picture_that_cannot_be_drawn_is_refused():
    with pytest.raises(SourceError, match="at most 25 megapixels"):
        open_source(camera(height_px=8192, width_px=8192)).open()


def test_drawing_ahead_makes_the_moment_of_the_part_the_moment_of_its_frame(start):
    """The part is drawn before it passes, so that latency counts the line's work and not the drawing."""
    source = open_source(camera(rate_hz=5.0, height_px=480, width_px=640, pixel_format=PixelFormat.BGR8))
    _, ring = start(source)
    late = []
    for _ in range(4):
        grab = source.next(1.0)
        late.append(now_ns() - grab.trigger_ns)
        ring.commit(grab.slot)
    assert np.median(late) < 5e6

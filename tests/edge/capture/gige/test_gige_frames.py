"""Frames of Aravis' camera through the real protocol: every pixel, number, time and loss."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edge.capture.aravis.library import library
from edge.errors import SourceError
from edge.messages import FrameStatus, now_ns


@pytest.mark.parametrize("socket", ["packet", "udp"])
def test_every_frame_arrives_once_whole_and_in_order_across_the_wrap_of_its_numbers(
    fake_camera, opened, is_pattern, socket
):
    """The camera's 16-bit ids begin at 65401 and go from 65535 to 1."""
    fake_camera()
    before = now_ns()
    try:
        taker = opened(socket=socket, rate_hz=150.0, packet_size_bytes=1500)
    except SourceError as error:
        if "CAP_NET_RAW" in str(error):
            pytest.skip("packet sockets need CAP_NET_RAW")
        raise
    assert f"{socket} socket" in taker.info.description
    grabs = taker.until(lambda: len(taker.parts) >= 200)
    ids = [grab.camera_frame for grab in grabs]
    assert max(ids) == 65535
    assert min(ids) == 1
    assert all((b - a) % 65535 == 1 for a, b in itertools.pairwise(ids))
    for grab, pixels in taker.parts:
        if grab.slot is not None:  # a loaded computer may lose frames; it must never deliver wrong ones
            assert is_pattern(pixels, grab.camera_frame)
            assert grab.camera_time_ns is not None
    assert taker.count("ok") >= 150
    times = [grab.trigger_ns for grab in grabs]
    assert before < times[0]
    assert times[-1] < now_ns()
    assert all(a < b for a, b in itertools.pairwise(times))
    _, counters = taker.source.health()
    assert counters["frames_complete"] >= taker.count("ok")


@pytest.mark.parametrize(("form", "channels"), [("RGB8", 3), ("BayerGB8", 1), ("Mono16", 1)])
def test_formats_arrive_as_the_ring_holds_them(fake_camera, opened, is_pattern, form, channels):
    fake_camera()
    taker = opened(pixel_format=form)
    taker.until(lambda: taker.count("ok") >= 3)
    grab, pixels = next((grab, pixels) for grab, pixels in taker.parts if pixels is not None)
    assert pixels.shape == (64, 96, channels)
    assert taker.info.max_bytes == 64 * 96 * channels, "16 bits on the wire are 8 in the ring"
    assert pixels.std() > 10
    if form == "Mono16":
        assert is_pattern(pixels, grab.camera_frame), "upper bytes of 16-bit samples"
    else:
        assert grab.pixel_format.value == form


def test_frames_are_received_into_the_slots_themselves(fake_camera, opened):
    fake_camera()
    taker = opened()
    stream = taker.source._connection._stream
    buffers = stream._filling
    assert len(buffers) == 16
    (first,) = list(buffers)[:1]
    slot = stream._slots[first]
    taker.until(lambda: first in stream._buffers)
    data = library().buffer_get_image_data(stream._buffers[first], None)
    assert data == slot.buffer.ctypes.data


@pytest.mark.parametrize("size", [1400, 9000])
def test_damaged_frames_are_announced_in_their_turn_and_never_with_pixels(fake_camera, opened, is_pattern, size):
    """With large packets the leader is among the lost, and with it the number of the frame."""
    fake_camera(lost_per_mille=60.0)
    taker = opened(rate_hz=100.0, packet_size_bytes=size)
    taker.until(lambda: len(taker.parts) >= 150 and taker.count("incomplete") >= 8)
    ids = [grab.camera_frame for grab in taker.grabs]
    assert all((b - a) % 65535 == 1 for a, b in itertools.pairwise(ids)), "each part once, in order"
    for grab, pixels in taker.parts:
        assert (grab.slot is None) == (grab.status is not FrameStatus.OK)
        if pixels is not None:
            assert is_pattern(pixels, grab.camera_frame)
    assert taker.count("ok") >= 20
    _, counters = taker.source.health()
    assert counters["packets_missing"] > 0
    assert counters["frames_incomplete"] == taker.count("incomplete")


def test_region_exposure_gain_and_rate_reach_the_camera(fake_camera, opened):
    fake_camera()
    taker = opened(offset_x_px=32, offset_y_px=16, gain=3.0, exposure_us=20_000.0, features={"TestBoolean": True})
    camera = taker.source._connection._camera
    names = ("OffsetX", "OffsetY", "Width", "Height", "GainRaw", "ExposureTimeAbs", "TestBoolean")
    assert [camera.features.get(name) for name in names] == [32, 16, 96, 64, 3, 20_000.0, True]
    taker.until(lambda: taker.count("ok") >= 2)
    bright = next(pixels for _, pixels in taker.parts if pixels is not None)
    assert np.median(bright) > 150, "longer exposure is brighter"


def test_a_consumer_that_stops_loses_its_own_frames_and_says_which(fake_camera, opened, is_pattern):
    """The receiver has only the slots it was given; what finds none is LOST, numbered, between those that did."""
    fake_camera()
    taker = opened(rate_hz=100.0, buffers=2)
    taker.until(lambda: len(taker.parts) >= 5)
    resume = now_ns() + 300_000_000
    while now_ns() < resume:
        pass
    taker.until(lambda: taker.count("lost") >= 5)
    ids = [grab.camera_frame for grab in taker.grabs]
    assert all((b - a) % 65535 == 1 for a, b in itertools.pairwise(ids))
    times = [grab.trigger_ns for grab in taker.grabs]
    assert times == sorted(times)
    assert all(is_pattern(pixels, grab.camera_frame) for grab, pixels in taker.parts if pixels is not None)

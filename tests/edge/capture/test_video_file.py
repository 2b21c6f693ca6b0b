from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.capture import open_source
from edge.errors import SourceError
from edge.messages import FrameStatus
from edge.settings_sources import OpencvSource
from pipelines.images import PixelFormat

FRAMES = 12


def film(path: Path, **keys) -> OpencvSource:
    return OpencvSource(**{"type": "opencv", "file": path, "rate_hz": 200.0} | keys)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Twelve frames of flat colour; blue tells the number."""
    path = tmp_path / "belt.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (96, 64))
    assert writer.isOpened()
    for number in range(FRAMES):
        writer.write(np.full((64, 96, 3), (20 * number, 200, 100), np.uint8))
    writer.release()
    return path


def number(pixels: bytes, channel: int = 0) -> int:
    return round(np.frombuffer(pixels, np.uint8).reshape(64, 96, 3)[..., channel].mean() / 20)


def test_every_frame_comes_once_in_order_and_then_the_end(video, start, drain):
    source = open_source(film(video))
    info, ring = start(source)
    assert info.finite
    assert info.max_bytes == 64 * 96 * 3
    parts = drain(source, ring)
    assert [number(pixels) for _, pixels in parts] == list(range(FRAMES))
    assert [grab.camera_frame for grab, _ in parts] == list(range(FRAMES))
    assert [grab.origin for grab, _ in parts] == [f"{video}#{n}" for n in range(FRAMES)]
    triggers = [grab.trigger_ns for grab, _ in parts]
    assert {b - a for a, b in itertools.pairwise(triggers)} == {5_000_000}


def test_a_video_has_a_rate_of_its_own(video, start, drain):
    source = open_source(film(video, rate_hz=None))
    info, ring = start(source)
    assert info.max_rate_hz == 25.0
    triggers = [grab.trigger_ns for grab, _ in drain(source, ring)]
    assert {b - a for a, b in itertools.pairwise(triggers)} == {40_000_000}


def test_a_loop_begins_again(video, start):
    source = open_source(film(video, loop=True))
    info, ring = start(source)
    assert not info.finite
    seen = []
    for _ in range(2 * FRAMES + 3):
        grab = source.next(2.0)
        seen.append(number(grab.slot.buffer[: 64 * 96 * 3].tobytes()))
        ring.commit(grab.slot)
    assert seen == [*range(FRAMES), *range(FRAMES), 0, 1, 2]


@pytest.mark.parametrize("form", [PixelFormat.MONO8, PixelFormat.RGB8])
def test_other_formats(video, start, drain, form):
    source = open_source(film(video, pixel_format=form))
    info, ring = start(source)
    assert info.max_bytes == 64 * 96 * form.channels
    parts = drain(source, ring)
    if form is PixelFormat.RGB8:
        assert [number(pixels, channel=2) for _, pixels in parts] == list(range(FRAMES))
    else:
        gray = [np.frombuffer(pixels, np.uint8).mean() for _, pixels in parts]
        assert gray == pytest.approx([0.114 * 20 * n + 0.587 * 200 + 0.299 * 100 for n in range(FRAMES)], abs=3)


def test_a_truncated_video_ends_early_without_an_error(video, start, drain):
    data = video.read_bytes()
    frames_from = data.index(b"movi")
    video.write_bytes(data[: frames_from + (len(data) - frames_from) * 2 // 3])
    source = open_source(film(video))
    _, ring = start(source)
    parts = drain(source, ring)
    assert 2 <= len(parts) < FRAMES
    good = [number(pixels) for grab, pixels in parts if grab.status is FrameStatus.OK]
    assert good == list(range(len(good)))


def test_a_slot_that_is_too_small_costs_the_frame_not_the_part(video, start, drain):
    source = open_source(film(video))
    _, ring = start(source, slot_bytes=1000)
    assert [grab.status for grab, _ in drain(source, ring)] == [FrameStatus.NO_SLOT] * FRAMES


def test_files_that_are_no_videos_are_named(tmp_path):
    with pytest.raises(SourceError, match=r"gone\.avi: there is no such file"):
        open_source(film(tmp_path / "gone.avi")).open()
    (tmp_path / "text.avi").write_text("nothing to see")
    with pytest.raises(SourceError, match=r"text\.avi: this file does not open as a video"):
        open_source(film(tmp_path / "text.avi")).open()

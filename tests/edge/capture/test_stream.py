"""Streams over a real socket: a camera on loopback that sends JPEGs, falls silent, hangs up and comes back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.capture import open_source
from edge.capture.source import Grab
from edge.capture.stream import StreamSource
from edge.errors import SourceError
from edge.frames import RingWriter
from edge.messages import FrameStatus
from edge.settings_sources import OpencvSource
from pipelines.images import PixelFormat

JPEG = cv2.imencode(".jpg", np.full((64, 96, 3), (200, 120, 40), np.uint8))[1].tobytes()
LARGER = cv2.imencode(".jpg", np.full((128, 160, 3), (200, 120, 40), np.uint8))[1].tobytes()


class Camera:
    """Serves multipart JPEG at 50 frames per second, to be stalled, hung up or taken away."""

    def __init__(self) -> None:
        self.flowing = threading.Event()
        self.flowing.set()
        self.hang_up = threading.Event()
        self.over = threading.Event()
        self.picture = JPEG
        self.connections = 0
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/stream.mjpg"

    def switch_on(self) -> None:
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.connections += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    while not (camera.hang_up.is_set() or camera.over.is_set()):
                        if camera.flowing.wait(0.05):
                            head = (
                                f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(camera.picture)}\r\n\r\n"
                            )
                            self.wfile.write(head.encode() + camera.picture + b"\r\n")
                            self.wfile.flush()
                            camera.over.wait(0.02)
                except OSError:
                    return

            def log_message(self, *arguments: object) -> None:
                return

        self.over.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def switch_off(self) -> None:
        self.over.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@pytest.fixture
def camera() -> Iterator[Camera]:
    served = Camera()
    served.switch_on()
    yield served
    served.switch_off()


def stream(camera: Camera, **keys) -> OpencvSource:
    quick = {"open_s": 3.0, "stall_s": 0.6, "reconnect_max_s": 0.5}
    return OpencvSource(**{"type": "opencv", "url": camera.url} | quick | keys)


def grabs_until(
    source: StreamSource, ring: RingWriter, done: Callable[[list[Grab]], bool], timeout_s: float = 15.0
) -> list[Grab]:
    """Takes parts as capture does until `done`. No turn may take longer than asked, whatever the stream does."""
    grabs: list[Grab] = []
    end = time.monotonic() + timeout_s
    while not done(grabs):
        assert time.monotonic() < end, (source.health(), len(grabs))
        began = time.monotonic()
        grab = source.next(0.1)
        assert time.monotonic() - began < 0.6
        if grab is not None:
            if grab.slot is not None:
                ring.commit(grab.slot)
            grabs.append(grab)
    return grabs


@pytest.mark.parametrize("form", [PixelFormat.BGR8, PixelFormat.RGB8, PixelFormat.MONO8])
def test_frames_arrive_with_their_time_and_pixels(camera, start, form):
    source = open_source(stream(camera, pixel_format=form, stall_s=10.0))
    info, ring = start(source, slots=12)
    assert not info.finite
    assert info.max_bytes == 64 * 96 * form.channels
    before = time.monotonic_ns()
    grabs = grabs_until(source, ring, lambda grabs: len(grabs) >= 10)
    good = [grab for grab in grabs if grab.status is FrameStatus.OK]
    assert len(good) >= 5  # a busy computer may lose some, and says so
    assert {grab.status for grab in grabs} <= {FrameStatus.OK, FrameStatus.LOST}
    for grab in grabs:
        assert (grab.height, grab.width, grab.pixel_format) == (64, 96, form)
        assert before - 1_000_000_000 < grab.trigger_ns <= time.monotonic_ns()
    pixels = good[-1].slot.buffer[: info.max_bytes].reshape(-1, form.channels).mean(axis=0)
    colour = {PixelFormat.BGR8: [200, 120, 40], PixelFormat.RGB8: [40, 120, 200], PixelFormat.MONO8: [105]}[form]
    assert pixels == pytest.approx(colour, abs=3)
    fault, counters = source.health()
    assert fault == ""
    assert counters["frames_overrun"] >= len(grabs) - len(good)
    assert counters["reconnects"] == counters["stalls"] == counters["connections_failed"] == 0


def test_a_stalled_stream_is_noticed_and_opened_anew(camera, start):
    """The camera keeps the connection but sends nothing: the blocked read must not block the line."""
    source = open_source(stream(camera))
    _, ring = start(source, slots=12)
    grabs_until(source, ring, lambda grabs: len(grabs) >= 3)
    camera.flowing.clear()
    grabs_until(source, ring, lambda _: bool(source.health()[0]))
    fault = source.health()[0]
    assert fault.startswith(camera.url)
    assert "is the camera on" in fault
    camera.flowing.set()
    grabs_until(source, ring, lambda grabs: len(grabs) >= 3)
    fault, counters = source.health()
    assert fault == ""
    assert counters["reconnects"] == 1
    assert counters["connections_failed"] >= 1
    assert camera.connections >= 2


def test_a_camera_that_goes_and_comes_back_is_found_again(camera, start):
    source = open_source(stream(camera))
    _, ring = start(source, slots=12)
    grabs_until(source, ring, lambda grabs: len(grabs) >= 3)
    camera.switch_off()
    grabs_until(source, ring, lambda _: source.health()[1]["connections_failed"] >= 3)
    assert source.health()[0]
    camera.switch_on()
    grabs_until(source, ring, lambda grabs: len(grabs) >= 3)
    assert source.health()[0] == ""


def test_a_camera_that_hangs_up_is_called_again(camera, start):
    source = open_source(stream(camera))
    _, ring = start(source, slots=12)
    camera.hang_up.set()
    grabs_until(source, ring, lambda _: source.health()[1]["connections_failed"] >= 1)
    camera.hang_up.clear()
    grabs_until(source, ring, lambda grabs: len(grabs) >= 3 and source.health()[0] == "")
    assert source.health()[1]["reconnects"] >= 1


def test_frames_that_nobody_took_are_announced_as_lost(camera, start):
    source = open_source(stream(camera, stall_s=5.0))
    _, ring = start(source, slots=12)
    grabs_until(source, ring, lambda grabs: len(grabs) >= 1)
    time.sleep(0.6)  # capture was stopped: about thirty frames come meanwhile
    grabs = grabs_until(source, ring, lambda grabs: len(grabs) >= 15)
    lost = [grab for grab in grabs if grab.status is FrameStatus.LOST]
    assert len(lost) >= 5
    assert all(grab.slot is None for grab in lost)
    assert source.health()[1]["frames_overrun"] >= len(lost)
    triggers = [grab.trigger_ns for grab in grabs]
    assert triggers == sorted(triggers)


def test_a_camera_that_comes_back_with_larger_frames_does_not_fit_the_ring(camera, start):
    source = open_source(stream(camera))
    _, ring = start(source, slots=12)
    grabs_until(source, ring, lambda grabs: len(grabs) >= 1)
    camera.switch_off()
    camera.picture = LARGER
    camera.switch_on()
    usual = (FrameStatus.OK, FrameStatus.LOST)
    grabs = grabs_until(source, ring, lambda grabs: any(grab.status not in usual for grab in grabs))
    assert grabs[-1].status is FrameStatus.NO_SLOT
    assert (grabs[-1].height, grabs[-1].width) == (128, 160)


def test_a_camera_that_is_not_there_is_named_without_its_password(camera):
    camera.switch_off()
    keys = {"url": f"http://operator:hunter2@127.0.0.1:{camera.port}/stream.mjpg"}
    with pytest.raises(SourceError, match="is the camera on") as caught:
        open_source(stream(camera, **keys)).open()
    assert "127.0.0.1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(SourceError, match=r"/dev/video97.*is it plugged in"):
        open_source(OpencvSource(type="opencv", device="/dev/video97")).open()


def test_a_pipe_that_nobody_writes_into_does_not_hang_us(tmp_path):
    """Opening a named pipe blocks for ever in the kernel; no time-out of the video library reaches there."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    source = open_source(OpencvSource(type="opencv", file=pipe, open_s=0.3, stall_s=0.2))
    began = time.monotonic()
    with pytest.raises(SourceError, match="does anybody write into it"):
        source.open()
    assert time.monotonic() - began < 3
    pipe.open("r+b", buffering=0).close()  # lets the thread go that still waits in the kernel


def test_a_pipe_ends_when_its_writer_has_finished(tmp_path, start, drain):
    video = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (96, 64))
    for number in range(40):
        writer.write(np.full((64, 96, 3), 5 * number, np.uint8))
    writer.release()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeding = threading.Thread(target=lambda: Path(pipe).write_bytes(video.read_bytes()), daemon=True)
    feeding.start()
    source = open_source(OpencvSource(type="opencv", file=pipe))
    info, ring = start(source, slots=12)
    assert info.finite
    parts = drain(source, ring)
    assert len(parts) == 40  # decoded or, where they came faster than they were taken, lost
    first = np.frombuffer(parts[0][1], np.uint8)
    assert first.mean() < 3
    feeding.join(5)

"""The capture process as a program of its own, with real sockets, a real ring, and peers that come and go."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import zmq

from edge.capture.simulation import Conveyor
from edge.frames import RingReader, ring_path
from edge.keys import create_keys
from edge.messages import FrameRef, FrameStatus, Health, decode, host_id, now_ns
from edge.settings import load_settings
from edge.transport import Endpoints, Inbox, Listener, ensure_runtime, stop_guards
from pipelines.images import read_image

CAPTURE = """
import sys
from pathlib import Path
from edge.capture import CaptureProcess
from edge.process import run
from edge.settings import load_settings

settings = load_settings(Path(sys.argv[1]))
raise SystemExit(run(CaptureProcess(settings, settings.cameras[0]), settings))
"""


class Line:
    """A line without its judges: the capture process, and alert's and inference's ends of its sockets."""

    def __init__(self, file: Path, child: Callable[..., subprocess.Popen[str]]) -> None:
        self.file, self._child = file, child
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        endpoints = Endpoints(load_settings(file))
        ensure_runtime(endpoints.runtime)
        self.alert = Inbox(endpoints.alert_in, self._context)
        self.infer = Inbox(endpoints.infer_in, self._context)
        self._ear = Listener([endpoints.publisher("capture-top")], self._context)
        self.capture = child(CAPTURE, file)

    def restart(self) -> None:
        """Starts capture again."""
        self.capture = self._child(CAPTURE, self.file)

    def stop(self) -> str:
        """Stops capture in order. Returns its log."""
        self.capture.send_signal(signal.SIGTERM)
        return self.finish()

    def finish(self) -> str:
        """Waits until capture has ended well. Returns its log."""
        _, log = self.capture.communicate(timeout=20)
        assert self.capture.returncode == 0, log
        return log

    def received(self, inbox: Inbox, timeout_s: float = 20.0) -> tuple[FrameRef, np.ndarray | None]:
        """The next announcement and its pixels. A single wait may end early with nothing, when a peer connects."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            message = inbox.recv(left)
            if message is not None:
                frame = decode(message[0])
                assert isinstance(frame, FrameRef)
                return frame, message[1]
        raise AssertionError(f"no announcement within {timeout_s} s; capture says:\n{self._last_words()}")

    def announced(self, count: int) -> list[FrameRef]:
        """The next `count` announcements to alert."""
        return [self.received(self.alert)[0] for _ in range(count)]

    def health(self, wanted: Callable[[Health], bool], timeout_s: float = 20.0) -> Health:
        """The first health message that is as wanted."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            data = self._ear.recv(1.0)
            if data is not None:
                health = decode(data)
                assert isinstance(health, Health)
                if wanted(health):
                    return health
        raise AssertionError(f"no such health within {timeout_s} s; capture says:\n{self._last_words()}")

    def _last_words(self) -> str:
        self.capture.kill()
        return self.capture.communicate()[1]

    def close(self) -> None:
        for socket in (self.alert, self.infer, self._ear):
            socket.close()
        stop_guards()
        self._context.term()


@pytest.fixture
def run_line(child: Callable[..., subprocess.Popen[str]]) -> Iterator[Callable[[Path], Line]]:
    lines: list[Line] = []

    def run(file: Path) -> Line:
        lines.append(Line(file, child))
        return lines[-1]

    yield run
    for line in lines:
        line.close()


def simulated(parts: int = 20, rate: float = 100.0, more: str = "") -> str:
    return (
        f'type = "simulated"\npart_type = "cap"\nrate_hz = {rate}\nparts = {parts}\nheight_px = 96\nwidth_px = 128\n'
        f'pixel_format = "BGR8"\ndefect_rate = 0.4\nseed = 11\n{more}'
    )


def test_every_part_is_announced_once_with_its_pixels_and_its_truth(settings_file, shm_dir, run_line):
    file = settings_file(source=simulated(more='truth_file = "out/truth.jsonl"'), camera="deadline_ms = 700")
    line = run_line(file)
    frames = line.announced(20)
    line.finish()
    assert line.alert.recv(0.1) is None
    assert [line.received(line.infer)[0] for _ in range(20)] == frames

    assert [frame.id.sequence for frame in frames] == list(range(20))
    assert len({frame.id.epoch for frame in frames}) == 1
    conveyor = Conveyor(11, "cap", 96, 128, 3, 0.4, noise=2.0)
    truth = [json.loads(row) for row in (file.parent / "out/truth.jsonl").read_text().splitlines()]
    with RingReader.open(ring_path("press", "top")) as ring:
        assert [decode(entry) for entry in ring.journal()] == frames
        for index, (frame, row) in enumerate(zip(frames, truth, strict=True)):
            part = conveyor.part(index)
            np.testing.assert_array_equal(ring.view(frame.slot, frame.generation, frame.shape), part.image)
            assert frame.status is FrameStatus.OK
            assert frame.part == index
            assert frame.host == host_id()
            assert frame.deadline_ns == 700_000_000
            assert frame.trigger_ns + frame.age_ns <= now_ns()
            assert (row["epoch"], row["sequence"]) == (frame.id.epoch, index)
            assert row["defect"] == (part.defect.kind if part.defect else None)


def test_nobody_is_waited_for(settings_file, shm_dir, child):
    """Neither alert nor inference lives: capture goes on at its pace, and the journal keeps every announcement."""
    line = settings_file(source=simulated(parts=60, rate=100))
    capture = child(CAPTURE, line)
    _, errors = capture.communicate(timeout=30)
    assert capture.returncode == 0, errors
    assert "inference is not there yet" in errors
    with RingReader.open(ring_path("press", "top")) as ring:
        frames = [decode(entry) for entry in ring.journal()]
    assert [frame.id.sequence for frame in frames] == list(range(60))
    assert {frame.status for frame in frames} == {FrameStatus.OK}
    assert max(frame.age_ns for frame in frames) < 500e6


def test_a_killed_capture_comes_back_with_a_new_epoch_and_loses_no_announcement(settings_file, shm_dir, run_line):
    line = run_line(settings_file(source=simulated(parts=0)))
    before = line.announced(15)
    line.capture.send_signal(signal.SIGKILL)
    line.capture.wait(10)
    while (message := line.alert.recv(0.2)) is not None:
        before.append(decode(message[0]))
    line.restart()
    after = line.announced(15)
    line.stop()
    assert after[0].id.sequence == 0
    assert after[0].id.epoch > before[0].id.epoch
    with RingReader.open(ring_path("press", "top")) as ring:
        journal = [decode(entry).id for entry in ring.journal()]
    announced = [frame.id for frame in before + after]
    assert set(announced) <= set(journal)
    for epoch in {frame.epoch for frame in journal}:
        sequence = [frame.sequence for frame in journal if frame.epoch == epoch]
        assert sequence == list(range(len(sequence)))


def test_frames_that_cannot_be_used_are_announced_with_the_reason(settings_file, shm_dir, run_line, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a", "c"):
        cv2.imwrite(str(images / f"{name}.png"), np.full((30, 40), 90, np.uint8))
    (images / "b.png").write_bytes(b"broken")
    long = images / ("ä" * 100) / ("ö" * 100) / ("ü" * 100)
    long.mkdir(parents=True)
    cv2.imencode(".png", np.zeros((30, 40), np.uint8))[1].tofile(long / "z.png")
    line = run_line(settings_file(source=f'type = "folder"\npath = "{images}"\nrate_hz = 50'))
    frames = line.announced(4)
    log = line.finish()
    assert [frame.status.value for frame in frames] == ["ok", "unreadable", "ok", "ok"]
    assert [frame.id.sequence for frame in frames] == [0, 1, 2, 3]
    assert frames[1].origin == str(images / "b.png")
    assert "unreadable" in log
    assert frames[3].origin is not None
    assert len(frames[3].origin.encode()) <= 255
    assert str(long / "z.png").endswith(frames[3].origin[1:])
    assert [line.received(line.infer)[0].id.sequence for _ in range(3)] == [0, 2, 3]
    assert line.infer.recv(0.1) is None
    with RingReader.open(ring_path("press", "top")) as ring:
        view = ring.view(frames[2].slot, frames[2].generation, frames[2].shape)
        np.testing.assert_array_equal(view, read_image(images / "c.png").pixels)

    settings_file(source=f'type = "folder"\npath = "{images}"\nrate_hz = 50\nloop = true')
    line.restart()
    health = line.health(lambda health: health.counters.get("frames", 0) >= 20)
    assert health.state == "running"
    assert health.counters["frames"] // 4 <= health.counters["failed_unreadable"] <= health.counters["frames"] // 4 + 1
    assert health.counters["source_unreadable_files"] >= 5
    assert 0 <= health.gauges["behind_ms"] < 1000


def test_where_inference_is_elsewhere_the_pixels_travel_along(settings_file, shm_dir, run_line, zmq_context, tmp_path):
    keys = tmp_path / "keys"
    create_keys(keys)
    with Inbox(Endpoints(load_settings(settings_file())).alert_in, zmq_context) as probe:  # a free port for the test
        port = probe.socket.bind_to_random_port("tcp://127.0.0.1")
    line = run_line(
        settings_file(
            source=simulated(parts=0, rate=50),
            line=f'keys_dir = "{keys}"',
            extra=f'[inference]\nendpoint = "tcp://127.0.0.1:{port}"',
        )
    )
    conveyor = Conveyor(11, "cap", 96, 128, 3, 0.4, noise=2.0)
    for _ in range(10):
        frame, pixels = line.received(line.infer)
        assert pixels is not None
        np.testing.assert_array_equal(pixels.reshape(frame.shape), conveyor.part(frame.id.sequence).image)
    line.stop()


def test_a_camera_that_is_lost_degrades_the_process_but_does_not_end_it(settings_file, shm_dir, run_line):
    jpeg = cv2.imencode(".jpg", np.full((64, 96, 3), 128, np.uint8))[1].tobytes()
    off = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if off.is_set():
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                while not off.wait(0.02):
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:
                return

        def log_message(self, *arguments: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/s.mjpg"
        source = f'type = "opencv"\nurl = "{url}"\nstall_s = 0.5\nreconnect_max_s = 0.3'
        off.set()
        line = run_line(settings_file(source=source))
        away = line.health(lambda health: health.state.startswith("degraded: http://127.0.0.1"))
        assert away.counters["source_faults"] == 1
        off.clear()
        line.health(lambda health: health.state == "running")
        first = line.announced(5)
        off.set()
        lost = line.health(lambda health: health.state.startswith("degraded: http://127.0.0.1"))
        assert lost.counters["source_faults"] == 2
        assert line.capture.poll() is None
        off.clear()
        line.health(lambda health: health.state == "running" and health.counters.get("source_reconnects", 0) >= 1)
        frames = first + line.announced(10)
        sequence = [frame.id.sequence for frame in frames]
        assert sequence == list(range(len(frames))), "the sequence has no gap over the outage"
        off.set()
        server.shutdown()
        assert "the camera is back" in line.stop()


def test_a_camera_that_is_away_at_the_start_is_waited_for_without_a_word_of_its_password(
    settings_file, shm_dir, run_line
):
    source = 'type = "opencv"\nurl = "rtsp://user:secret@127.0.0.1:9/x"\nopen_s = 0.5\nstall_s = 0.5'
    line = run_line(settings_file(source=source))
    away = line.health(lambda health: "is the camera on" in health.state)
    assert away.state.startswith("degraded: ")
    assert "secret" not in away.state + away.last_fault
    log = line.stop()
    assert "ready" in log
    assert "secret" not in log


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('type = "folder"\npath = "missing"', "missing: there is no such folder"),
        ('type = "opencv"\nfile = "gone.avi"', "gone.avi: there is no such file"),
        (simulated(more='truth_file = "/proc/none/truth"'), "cannot write the truth file"),
    ],
)
def test_a_source_that_does_not_open_ends_the_process_with_one_clear_line(settings_file, shm_dir, child, source, said):
    capture = child(CAPTURE, settings_file(source=source))
    _, errors = capture.communicate(timeout=30)
    assert capture.returncode == 1
    assert said in errors
    assert "Traceback" not in errors
    assert "secret" not in errors


def test_a_ring_that_cannot_be_made_is_named(settings_file, tmp_path, child):
    line = settings_file(source=simulated().replace("rate_hz = 100", "rate_hz = 900"))
    capture = child(CAPTURE, line, EDGE_SHM_DIR=str(tmp_path / "nowhere"))
    _, errors = capture.communicate(timeout=60)
    assert capture.returncode == 1, errors
    assert "nowhere" in errors
    assert "Traceback" not in errors

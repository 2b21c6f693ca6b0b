"""RTSP over a real socket from a server that is not ours: GStreamer's, in a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.capture import open_source
from edge.capture.source import Grab, Source
from edge.errors import SourceError
from edge.frames import RingWriter
from edge.messages import FrameStatus
from edge.settings_sources import OpencvSource

PYTHON = "/usr/bin/python3"  # the distribution's: its gi is no package of a virtual environment
SERVER = Path(__file__).with_name("rtsp_server.py")
NEEDS = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"


def _missing() -> bool:
    return not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", NEEDS], capture_output=True).returncode != 0


pytestmark = pytest.mark.skipif(
    _missing(), reason="needs gir1.2-gst-rtsp-server-1.0, python3-gi and gstreamer1.0-plugins-{base,good,ugly,bad}"
)


class Camera:
    """The server's process, to be killed, frozen and started again on the same port."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/line"

    def switch_on(self) -> None:
        self.process = subprocess.Popen([PYTHON, str(SERVER), str(self.port)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def switch_off(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture
def camera() -> Iterator[Camera]:
    served = Camera()
    served.switch_on()
    yield served
    served.switch_off()


def rtsp(camera: Camera) -> OpencvSource:
    return OpencvSource(type="opencv", url=camera.url, open_s=5.0, stall_s=1.5, reconnect_max_s=0.5)


def take_until(source: Source, ring: RingWriter, done: Callable[[list[Grab]], bool]) -> list[Grab]:
    """Parts as capture takes them, until `done`; no turn may block, whatever the camera does."""
    grabs: list[Grab] = []
    end = time.monotonic() + 30
    while not done(grabs):
        assert time.monotonic() < end, (source.health(), len(grabs))
        began = time.monotonic()
        grab = source.next(0.1)
        assert time.monotonic() - began < 1.0
        if grab is not None:
            if grab.slot is not None:
                ring.commit(grab.slot)
            grabs.append(grab)
    return grabs


def judged(grabs: list[Grab]) -> int:
    return sum(grab.status is FrameStatus.OK for grab in grabs)


def test_frames_arrive_decoded(camera: Camera, start) -> None:
    source = open_source(rtsp(camera))
    info, ring = start(source, slots=12)
    assert not info.finite
    grabs = take_until(source, ring, lambda grabs: judged(grabs) >= 20)
    good = [grab for grab in grabs if grab.status is FrameStatus.OK]
    assert {(grab.height, grab.width) for grab in grabs} == {(240, 320)}
    picture = good[-1].slot.buffer[: info.max_bytes].reshape(240, 320, 3)
    assert picture.max() > 200, "the ball"
    gray = ((picture > 110) & (picture < 145)).mean()
    assert gray > 0.8, "the ground"
    times = [grab.trigger_ns for grab in grabs]
    assert times == sorted(times)
    assert source.health()[0] == ""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_camera_that_dies_or_hangs_is_noticed_and_comes_back(camera: Camera, start, how: signal.Signals) -> None:
    source = open_source(rtsp(camera))
    _, ring = start(source, slots=12)
    take_until(source, ring, lambda grabs: judged(grabs) >= 5)
    camera.signal(how)
    take_until(source, ring, lambda _: source.health()[0] != "")
    fault, _ = source.health()
    assert camera.url in fault
    if how is signal.SIGSTOP:
        camera.signal(signal.SIGCONT)
    else:
        camera.switch_off()
        camera.switch_on()
    take_until(source, ring, lambda grabs: judged(grabs) >= 5 and source.health()[0] == "")
    assert source.health()[1]["reconnects"] >= 1


def test_a_path_that_the_camera_does_not_serve_is_one_sentence(camera: Camera, start) -> None:
    settings = OpencvSource(type="opencv", url=camera.url.replace("/line", "/other"), open_s=3.0)
    source = open_source(settings)
    with pytest.raises(SourceError, match="/other"):
        source.open()
    source.close()

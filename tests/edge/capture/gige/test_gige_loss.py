"""Cameras that go away, come back, belong to somebody else, or were never there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import pytest

from edge.capture.aravis import network
from edge.capture.aravis.camera import Camera
from edge.capture.gige import GigeSource
from edge.errors import SourceAway, SourceError
from edge.messages import FrameStatus


def test_a_camera_that_is_killed_comes_back_and_every_part_meanwhile_is_lost(fake_camera, opened, is_pattern):
    camera = fake_camera()
    taker = opened(rate_hz=40.0, stall_s=0.8)
    taker.until(lambda: taker.count("ok") >= 20)
    camera.switch_off()
    off = time.monotonic()
    taker.until(lambda: taker.count("lost") >= 40)
    fault, _ = taker.source.health()
    assert "camera 127.0.0.1" in fault
    camera.switch_on()
    restarted = time.monotonic()
    before = taker.count("ok")
    taker.until(lambda: taker.count("ok") >= before + 20)
    assert time.monotonic() - restarted < 10
    assert time.monotonic() - off > 1
    fault, counters = taker.source.health()
    assert fault == ""
    assert counters["reconnects"] >= 1
    assert counters["lost_while_away"] >= 39
    # Each part has its place in time: the gap is filled at the camera's rate, nothing is told twice.
    times = [grab.trigger_ns for grab in taker.grabs]
    assert times == sorted(set(times))
    away = [number for number, grab in enumerate(taker.grabs) if grab.status is FrameStatus.LOST]
    first, last = away[0], away[-1]
    parts_due = (times[last + 1] - times[first - 1]) / 25e6
    assert last + 1 - (first - 1) == pytest.approx(parts_due, abs=2 + 0.02 * parts_due)
    missing = [grab for grab in taker.grabs if grab.status is FrameStatus.LOST]
    assert all(grab.slot is None for grab in missing)
    assert all(is_pattern(pixels, grab.camera_frame) for grab, pixels in taker.parts if pixels is not None)
    assert taker.slowest_s < 2, "no call that waits for a dead camera is in the frame loop"


def test_a_camera_that_freezes_is_noticed_and_closing_it_holds_up_nobody(fake_camera, opened):
    """A frozen camera answers nothing: stopping and closing it take seconds, which the helper thread waits."""
    camera = fake_camera()
    taker = opened(stall_s=0.8)
    taker.until(lambda: taker.count("ok") >= 5)
    camera.freeze()
    taker.until(lambda: taker.count("lost") >= 100)
    assert taker.slowest_s < 2
    assert "no frame for" in taker.source.health()[0] or "does not answer" in taker.source.health()[0]
    camera.switch_off()
    camera.switch_on()
    before = taker.count("ok")
    taker.until(lambda: taker.count("ok") > before, 20)


def test_software_triggers_are_parts_one_by_one_whatever_becomes_of_them(fake_camera, opened):
    camera = fake_camera()
    taker = opened(trigger="software", rate_hz=10.0, trigger_timeout_ms=400.0)
    assert taker.take(0.3) is None, "nothing comes by itself"
    fired = []
    for number in range(5):
        fired.append(time.monotonic_ns())
        taker.source.software_trigger()
        taker.until(lambda number=number: len(taker.parts) > number)
    assert taker.count("ok") == 5
    for grab, asked in zip(taker.grabs, fired, strict=True):
        assert 0 <= grab.trigger_ns - asked < 1_000_000_000, "the part's moment is that of the command"
    camera.switch_off()
    taker.source.software_trigger()
    taker.until(lambda: taker.count("lost") == 1)
    taker.until(lambda: taker.source.health()[0] != "")
    taker.source.software_trigger()
    taker.until(lambda: taker.count("lost") == 2)
    camera.switch_on()
    taker.until(lambda: taker.source.health()[0] == "", 20)
    taker.source.software_trigger()
    taker.until(lambda: taker.count("ok") == 6)
    assert len(taker.parts) == 8


def test_a_trigger_left_over_in_the_camera_is_no_part(fake_camera, opened, gige_settings):
    """Aravis' camera, like some others, keeps a pending trigger from one session to the next."""
    fake_camera()
    before = Camera(gige_settings(trigger="software", rate_hz=10.0))
    before.configure()
    before.software_trigger()  # it does not take pictures yet
    before.close()
    second = opened(trigger="software", rate_hz=10.0)
    second.until(lambda: second.source.health()[1].get("frames_unasked", 0) == 1)
    assert second.parts == []
    second.source.software_trigger()
    second.until(lambda: second.count("ok") == 1)


def test_a_free_running_camera_takes_no_software_trigger(gige_settings):
    with pytest.raises(SourceError, match='set trigger = "software"'):
        GigeSource(gige_settings()).software_trigger()


def test_a_camera_in_use_is_named_and_free_again_later(fake_camera, opened, gige_settings):
    fake_camera()
    first = opened()
    second = GigeSource(gige_settings())
    with pytest.raises(SourceAway, match=r"camera 127\.0\.0\.1 is in use by another program"):
        second.open()
    first.until(lambda: first.count("ok") >= 3)
    first.close()
    assert second.open().max_bytes == 96 * 64
    second.close()


def test_two_cameras_by_serial_number_each_from_its_own_address(fake_camera, opened):
    fake_camera()
    fake_camera("127.0.1.2", "GV02")
    takers = [opened(address=None, serial=serial) for serial in ("GV01", "GV02")]
    for taker, address in zip(takers, ("127.0.0.1", "127.0.1.2"), strict=True):
        assert address in taker.info.description
        taker.until(lambda taker=taker: taker.count("ok") >= 5)
    missing = "no camera has the serial number or name 'GV03'; cameras that answer: GV01"
    with pytest.raises(SourceAway, match=missing):
        opened(address=None, serial="GV03")


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.9", "does not answer"), ("10.254.253.252", "is in none of this computer's subnets")],
)
def test_a_camera_that_is_not_there_is_told_apart_from_a_wrong_subnet(
    camera_network, aravis, gige_settings, address, said
):
    if address.startswith("10") and not camera_network.own:
        pytest.skip("which subnets this computer is in is known in a network namespace only")
    with pytest.raises(SourceAway, match=said):
        GigeSource(gige_settings(address=address)).open()


WITHOUT_CAPABILITY = """
import sys
from edge.capture.gige import GigeConnection
from edge.errors import SourceError
from edge.settings_sources import GigeSource

settings = GigeSource(type="gige", address="127.0.0.1", width_px=96, height_px=64, socket=sys.argv[1])
try:
    connection = GigeConnection(settings, None)
except SourceError as error:
    print("refused:", error)
else:
    print(connection.info.description, connection.notes)
    connection.close()
"""


@pytest.mark.parametrize("socket", ["packet", "auto"])
def test_without_the_capability_packet_sockets_are_refused_or_the_fall_back_is_told(fake_camera, tmp_path, socket):
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (package util-linux) is not installed")
    fake_camera()
    program = tmp_path / "open.py"
    program.write_text(WITHOUT_CAPABILITY)
    drop = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]
    said = subprocess.run([*drop, sys.executable, program, socket], capture_output=True, text=True, timeout=30)
    if "setpriv" in said.stderr:
        pytest.skip(said.stderr.strip())
    assert "setcap cap_net_raw+ep" in said.stdout, said.stderr
    if socket == "packet":
        assert said.stdout.startswith("refused: camera 127.0.0.1: packet sockets need CAP_NET_RAW")
    else:
        assert "by udp socket" in said.stdout


def test_a_receive_buffer_that_the_kernel_does_not_allow_is_refused_with_the_line_to_type(fake_camera, gige_settings):
    fake_camera()
    if network.receive_buffer_limit() >= 1024e6:
        pytest.skip("this kernel does not tell net.core.rmem_max here, or allows a gigabyte")
    source = GigeSource(gige_settings(socket="udp", receive_buffer_mb=1024))
    with pytest.raises(SourceError, match=r"net\.core\.rmem_max = \d+ allows less .* sysctl --system"):
        source.open()


def test_closing_a_frozen_camera_frees_its_slots_and_ends_in_time(fake_camera, opened):
    """Aravis waits more than 10 s for a camera that says nothing; a process that is told to stop has less."""
    camera = fake_camera()
    taker = opened()
    taker.until(lambda: taker.count("ok") >= 3)
    camera.freeze()
    began = time.monotonic()
    taker.source.close()
    assert time.monotonic() - began < 8
    assert taker.ring.in_flight == 0

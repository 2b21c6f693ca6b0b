"""A whole line whose camera is a GigE Vision camera: late to start, losing packets, killed and switched on again."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable

from edge.alert.deadlines import NO_FRAME
from edge.alert.history import Entry, History, Query
from edge.errors import LedgerError
from edge.messages import Decision, FrameStatus

EDGE = [sys.executable, "-m", "edge.cli"]
SIZE = 96  # of the bundle's frames
RATE_HZ = 20.0
LOST, INCOMPLETE = NO_FRAME[FrameStatus.LOST], NO_FRAME[FrameStatus.INCOMPLETE]
GIGE = f"""
type = "gige"
address = "127.0.0.1"
width_px = {SIZE}
height_px = {SIZE}
rate_hz = {RATE_HZ}
exposure_us = 10000
packet_size_bytes = 1400
stall_s = 0.6
reconnect_max_s = 0.5
"""


def entries(line) -> list[Entry]:
    try:
        with History(line.settings.paths.ledger) as history:
            return list(history.added(Query()))
    except LedgerError:
        return []


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 40.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        if time.monotonic() > end:
            process.terminate()
            raise AssertionError(process.communicate(timeout=20)[1])
        time.sleep(0.1)


def test_every_part_of_a_camera_that_comes_fails_and_returns_gets_its_verdict(make_line, fake_camera):
    line = make_line(deadline_ms=2000.0)
    text = line.file.read_text()
    start, end = text.index('type = "simulated"'), text.index("truth_file")
    line.file.write_text(text[:start] + GIGE + text[text.index("\n", end) :])
    camera = fake_camera(lost_per_mille=8.0)
    camera.switch_off()
    with subprocess.Popen(
        [*EDGE, "run", str(line.file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=line.environment,
        cwd=line.folder,
    ) as process:
        try:

            def judged() -> int:
                return sum(entry.verdict.decision is not Decision.UNJUDGED for entry in entries(line))

            def lost() -> int:
                return sum(entry.verdict.reason == LOST for entry in entries(line))

            def incomplete() -> int:
                return sum(entry.verdict.reason == INCOMPLETE for entry in entries(line))

            wait_until((line.settings.paths.runtime / "capture-top.pub").exists, process)
            assert entries(line) == []
            camera.switch_on()
            wait_until(lambda: judged() >= 30 and incomplete() >= 1, process)
            camera.switch_off()
            wait_until(lambda: lost() >= 20, process)
            camera.switch_on()
            restarted, before = time.monotonic(), judged()
            wait_until(lambda: judged() >= before + 20, process)
            assert time.monotonic() - restarted < 10 + 20 / RATE_HZ
            process.terminate()
            log = process.communicate(timeout=30)[1]
            assert process.returncode == 0, log
        finally:
            process.kill()
    found = sorted(entries(line), key=lambda entry: entry.verdict.id.sequence)
    assert [entry.verdict.id.sequence for entry in found] == list(range(len(found))), "each part once, none missing"
    assert len({entry.verdict.id.epoch for entry in found}) == 1, "capture lived through all of it"
    without_frame = [entry.verdict for entry in found if entry.verdict.reason in (LOST, INCOMPLETE)]
    assert all(verdict.decision is Decision.UNJUDGED and verdict.bundle is None for verdict in without_frame)
    assert any(verdict.reason == INCOMPLETE for verdict in without_frame)
    # Those that the camera numbered without gaps, but for the outage, are those that were judged or came damaged.
    numbers = [entry.verdict.camera_frame for entry in found if entry.verdict.camera_frame is not None]
    restarts = [b for a, b in itertools.pairwise(numbers) if (b - a) % 65535 != 1]
    assert len(restarts) <= 1

"""Parts numbered by a PLC that is not of this project: a missed trigger stops the judging until somebody aligns."""

from __future__ import annotations

import ctypes.util
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.alert.history import Entry, History, Query
from edge.errors import LedgerError, RingError
from edge.frames import RingReader, ring_path
from edge.messages import Decision, FrameRef, decode

ROOT = Path(__file__).resolve().parents[2]
EDGE = [sys.executable, "-m", "edge.cli"]
MS = 1_000_000
GAP_MS, TOLERANCE_MS = 500, 140
TRACKED = f"""
[cameras.trigger]
numbered_by = "plc"
tolerance_ms = {TOLERANCE_MS}
answer_ms = 200
wait_ms = 400
[plc]
window_ms = 2500
silence_ms = 2000
heartbeat_ms = 20
"""


class Sensor(threading.Thread):
    """The PLC's sensor: sees each of the camera's parts at its moment, but for those it is told to miss."""

    def __init__(self, server: subprocess.Popen[str], first_ns: int) -> None:
        super().__init__()
        self.seen: list[int] = []  # when, of the PLC's part 1, 2 ...
        self.miss = threading.Event()
        self.ended = threading.Event()
        self._server, self._next_ns = server, first_ns
        self.start()

    def run(self) -> None:
        assert self._server.stdin is not None
        while not self.ended.wait(max(0.0, (self._next_ns - time.monotonic_ns()) / 1e9)):
            if self.miss.is_set():
                self.miss.clear()
            else:
                self._server.stdin.write("seen\n")
                self._server.stdin.flush()
                self.seen.append(self._next_ns)
            self._next_ns += GAP_MS * MS


def entries(line) -> list[Entry]:
    try:
        with History(line.settings.paths.ledger) as history:
            return list(history.added(Query()))
    except LedgerError:
        return []


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        if time.monotonic() > end:
            process.terminate()
            raise AssertionError(process.communicate(timeout=20)[1])
        time.sleep(0.05)


@pytest.fixture
def plc(tmp_path):
    if ctypes.util.find_library("modbus") is None:
        pytest.skip("libmodbus is not installed (libmodbus5)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, str(ROOT / "tests/edge/plc/libmodbus_server.py"), "--port", str(port)]
    words += [
        "--program",
        str(ROOT / "docs/plc/edge_inspect.st"),
        "--log",
        str(tmp_path / "plc.jsonl"),
        "--scan-ms",
        "10",
    ]
    words += ["WindowMs=2700", "SilenceMs=1500", "Travel=3500"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        server.port = port  # type: ignore[attr-defined]
        yield server
        server.kill()


@pytest.mark.timeout(240)  # 35 s where the computer has nothing else to do
def test_a_missed_trigger_stops_the_judging_until_somebody_aligns(make_line, plc, tmp_path):
    line = make_line(rate_hz=1000 / GAP_MS, deadline_ms=2000.0)
    adapter = f'adapter = {{ type = "modbus", host = "127.0.0.1", port = {plc.port}, timeout_ms = 100 }}\n'
    line.file.write_text(line.file.read_text() + TRACKED + adapter)
    frames: dict[int, FrameRef] = {}  # by sequence

    def announced() -> dict[int, FrameRef]:
        try:
            with RingReader.open(ring_path("press", "top")) as ring:
                for message in map(decode, map(bytes, ring.journal())):
                    assert isinstance(message, FrameRef)
                    frames[message.id.sequence] = message
        except RingError:
            pass
        return frames

    def judged() -> list[Entry]:
        return [entry for entry in entries(line) if entry.verdict.decision is not Decision.UNJUDGED]

    def realign() -> None:
        subprocess.run([*EDGE, "realign", str(line.file)], env=line.environment, check=True, capture_output=True)

    run = [*EDGE, "run", str(line.file)]
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True, env=line.environment) as process:
        sensor = None
        try:
            wait_until(announced, process)  # frames of parts that nobody counts: their moments tell the rhythm
            rhythm = frames[min(frames)].trigger_ns
            ahead = (time.monotonic_ns() - rhythm) // (GAP_MS * MS) + 2
            sensor = Sensor(plc, rhythm + ahead * GAP_MS * MS)
            wait_until(lambda: len(sensor.seen) >= 2, process)
            assert judged() == []
            realign()
            wait_until(lambda: len(judged()) >= 4, process)
            sensor.miss.set()
            wait_until(lambda: any("was not counted" in entry.verdict.reason for entry in entries(line)[4:]), process)
            wait_until(lambda: "not certain" in entries(line)[-1].verdict.reason, process)
            stopped = len(judged())
            counted = len(sensor.seen)
            wait_until(lambda: len(sensor.seen) >= counted + 3, process)
            assert len(judged()) == stopped, "nothing is judged until somebody aligns"
            realign()
            wait_until(lambda: len(judged()) >= stopped + 4, process)
            counted = len(sensor.seen)
            wait_until(lambda: len(sensor.seen) >= counted + 9, process)  # so that the first are at the ejector
            announced()
            process.terminate()
            log = process.communicate(timeout=40)[1]
            assert process.returncode == 0, log
        finally:
            if sensor is not None:
                sensor.ended.set()
                sensor.join()
            process.kill()
    by_part: dict[int, list[Entry]] = {}
    for entry in entries(line):
        by_part.setdefault(entry.verdict.part, []).append(entry)
    assert all(len(found) == 1 for part, found in by_part.items() if part != 0), "one verdict for each part"
    for entry in judged():
        verdict = entry.verdict
        own = frames[verdict.id.sequence].trigger_ns
        assert abs(own - sensor.seen[verdict.part - 1]) < TOLERANCE_MS * MS, "judged by its own frame"
    events = [json.loads(text) for text in (tmp_path / "plc.jsonl").read_text().splitlines()]
    decided = {event["part"]: event["rejected"] for event in events if "part" in event}
    passed = [part for part, rejected in decided.items() if not rejected]
    assert len(passed) >= 3
    assert {by_part[part][0].verdict.decision for part in passed} == {Decision.PASS}

"""The alert process as the line runs it: a program of its own, real sockets, a real ring, a real ledger."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.alert.history import History
from edge.alert.ledger_schema import ArchiveState, Entry
from edge.frames import RingWriter, ring_path
from edge.messages import (
    Decision,
    FrameId,
    FrameRef,
    FrameStatus,
    Health,
    Ruling,
    Score,
    ScoreStatus,
    Verdict,
    decode,
    encode,
    host_id,
    now_ns,
)
from edge.settings import load_settings
from edge.transport import Endpoints, Inbox, Listener, Outbox
from pipelines.images import PixelFormat, read_image

PROGRAM = """
import sys
from pathlib import Path
from edge.alert.process import AlertProcess
from edge.process import run
from edge.settings import load_settings
settings = load_settings(Path(sys.argv[1]))
sys.exit(run(AlertProcess(settings), settings))
"""
MS = 1_000_000
HOST = host_id()


class Rig:
    """One line with one camera, played by the test; alert is the real program."""

    def __init__(self, file: Path, deadline_ms: float, make_score: Callable[..., Score]) -> None:
        self.settings = load_settings(file)
        self.file = file
        self.deadline_ns = int(deadline_ms * MS)
        self.make_score = make_score
        endpoints = Endpoints(self.settings)
        endpoints.runtime.mkdir(exist_ok=True)
        self.outbox = Outbox(endpoints.alert_in)
        self.listener = Listener([endpoints.publisher("alert")])
        self.ring = RingWriter.create(ring_path("press", "top"), slots=40, slot_bytes=64 * 48)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify_path = str(endpoints.runtime / "notify")
        self.notify.bind(self.notify_path)
        self.notify.settimeout(30)
        self.process: subprocess.Popen[str] | None = None
        self.sequence = 0
        self.repeats = False  # whether a verdict may be published again, after a kill on a full disk
        self.verdicts: dict[tuple[int, int], Verdict] = {}
        self.health: Health | None = None

    def start(self) -> None:
        environment = os.environ | {"NOTIFY_SOCKET": self.notify_path}
        command = [sys.executable, "-W", "error", "-c", PROGRAM, str(self.file)]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        while b"READY=1" not in self.notify.recv(4096):
            pass
        assert self.outbox.wait_for_peer(10)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        assert self.process
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=20)
        self.drain(0.05)
        return self.process.returncode, errors

    def restart_capture(self) -> None:
        """Another life of capture, which takes over the ring."""
        self.ring.close()
        self.ring = RingWriter.create(self.ring.path, slots=40, slot_bytes=64 * 48)
        self.sequence = 0

    def trigger(self, pixels: bool = True, announce: bool = True, **changes: Any) -> FrameRef:
        """Capture's order: pixels, generation, journal, announcement."""
        slot = self.ring.acquire()
        rng = np.random.default_rng(self.sequence)
        slot.buffer[: 48 * 64] = rng.integers(0, 256, 48 * 64, dtype=np.uint8)
        generation = self.ring.commit(slot)
        values: dict[str, Any] = {
            "id": FrameId(line="press", camera="top", epoch=self.ring.epoch, sequence=self.sequence),
            "part": self.sequence + 100,
            "trigger_ns": now_ns(),
            "host": HOST,
            "age_ns": 0,
            "deadline_ns": self.deadline_ns,
            "status": FrameStatus.OK,
            "pixel_format": PixelFormat.MONO8,
            "height": 48,
            "width": 64,
            "ring": self.ring.path.name,
            "slot": slot.index,
            "generation": generation,
        }
        frame = FrameRef(**(values | changes))
        self.sequence += 1
        self.ring.journal_append(encode(frame))
        if announce:
            self.outbox.send(encode(frame))
        return frame

    def score(self, frame: FrameRef, score: float, **changes: Any) -> None:
        self.outbox.send(encode(self.make_score(frame, score, **changes)))

    def drain(self, timeout_s: float) -> None:
        while (data := self.listener.recv(timeout_s)) is not None:
            message = decode(data)
            if isinstance(message, Verdict):
                key = (message.id.epoch, message.id.sequence)
                if self.repeats:
                    before = self.verdicts.get(key, message)
                    assert before.decision is message.decision, "contradicts what was published"
                else:
                    assert key not in self.verdicts, "published twice"
                self.verdicts[key] = message
            elif isinstance(message, Health):
                self.health = message

    def await_verdicts(self, count: int, timeout_s: float = 10.0) -> list[Verdict]:
        """The ledger's verdicts by sequence, as soon as there are `count` (broadcasts miss who joins late)."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            self.drain(0.005)
            found = sorted((entry.verdict for entry in self.rows()), key=lambda v: (v.id.epoch, v.id.sequence))
            if len(found) >= count:
                break
        assert len(found) == count
        return found

    def await_health(self, good: Callable[[Health], bool], timeout_s: float = 10.0) -> Health:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            self.drain(0.05)
            if self.health and good(self.health):
                return self.health
        raise AssertionError(f"health never became so: {self.health}")

    def rows(self) -> list[Entry]:
        with History(self.settings.paths.ledger) as history:
            return list(history.entries())[::-1]

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self.outbox.close()
        self.listener.close()
        self.ring.close(unlink=True)
        self.notify.close()


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig(settings_file: Any, shm_dir: Path, make_score: Any) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(deadline_ms: float = 1500, extra: str = "") -> Rig:
        alert = f"[alert]\ndeadline_ms = {deadline_ms}\n[archive]\nmin_free_gb = 0\n{extra}"
        rigs.append(Rig(settings_file(alert), deadline_ms, make_score))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


def test_parts_get_their_verdicts(make_rig: MakeRig) -> None:
    rig = make_rig(1000)
    rig.start()
    rig.await_health(lambda h: h.state == "running")  # the listener has joined
    frames = [rig.trigger() for _ in range(4)]
    rig.score(frames[0], 0.5)
    rig.score(frames[1], 1.5)
    rig.score(frames[2], 0.0, status=ScoreStatus.TORN, reason="slot 2")
    judged = rig.await_verdicts(4)
    while len(rig.verdicts) < 4:
        rig.drain(0.01)
    assert list(rig.verdicts.values()) == sorted(judged, key=lambda v: v.decided_at_ns), "published as written"
    assert [v.decision.value for v in judged] == ["pass", "reject", "unjudged", "unjudged"]
    assert [v.part for v in judged] == [100, 101, 102, 103]
    assert judged[1].percent == 150.0
    assert judged[3].reason == "no score before the deadline"
    assert 900 * MS < judged[3].latency_ns < 1200 * MS  # 980 where the computer is not overloaded
    rig.score(frames[3], 0.5)
    rig.score(frames[0], 1.5)
    told = rig.await_health(lambda h: h.counters.get("late_scores") == 1 and h.counters["duplicate_scores"] == 1)
    assert {name: told.counters[name] for name in ("parts", "pass", "reject", "unjudged")} == {
        "parts": 4, "pass": 1, "reject": 1, "unjudged": 2}  # fmt: skip
    assert told.counters["unjudged_silence"] == told.counters["unjudged_torn"] == 1
    assert told.gauges["latency_ms_p99"] > 300
    code, errors = rig.end()
    assert (code, rig.process and rig.process.returncode) == (0, 0), errors
    rows = rig.rows()
    assert [entry.verdict for entry in sorted(rows, key=lambda e: e.verdict.id.sequence)] == judged
    states = {entry.verdict.id.sequence: entry.archive_state for entry in rows}
    assert states == {0: ArchiveState.NONE, 1: ArchiveState.SAVED, 2: ArchiveState.SAVED, 3: ArchiveState.SAVED}


def test_archived_pixels_are_the_parts_own(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.start()
    for _ in range(3):
        rig.score(rig.trigger(), 1.5)
    rig.await_verdicts(3)
    rig.end()
    for entry in rig.rows():
        assert entry.archive_path
        stem = rig.settings.paths.archive / entry.archive_path
        sequence = entry.verdict.id.sequence
        expected = np.random.default_rng(sequence).integers(0, 256, (48, 64, 1), dtype=np.uint8)
        np.testing.assert_array_equal(read_image(stem.with_name(f"{stem.name}.png")).pixels, expected)
        told = json.loads(stem.with_name(f"{stem.name}.json").read_text())
        assert told["verdict"]["part"] == sequence + 100


def test_torn_frame_is_never_archived_as_the_parts_own(make_rig: MakeRig) -> None:
    rig = make_rig(1000)
    rig.start()
    frame = rig.trigger(generation=2)  # a generation that the slot does not have (any more)
    rig.score(frame, 1.5)
    rig.await_verdicts(1)
    rig.end()
    (entry,) = rig.rows()
    assert entry.archive_state is ArchiveState.NO_FRAME
    stem = rig.settings.paths.archive / str(entry.archive_path)
    assert [path.suffix for path in stem.parent.iterdir()] == [".json"]
    assert "overwritten" in json.loads(stem.with_name(f"{stem.name}.json").read_text())["note"]


def test_announcement_that_never_arrived_is_read_from_the_journal(make_rig: MakeRig) -> None:
    rig = make_rig(1500)
    rig.start()
    lost = rig.trigger(announce=False)
    rig.score(rig.trigger(), 0.5)
    rig.score(lost, 0.6)
    tail = rig.trigger(announce=False)  # nothing later comes: the regular sweep finds it
    judged = rig.await_verdicts(3)
    assert [v.decision for v in judged] == [Decision.PASS, Decision.PASS, Decision.UNJUDGED]
    assert judged[2].part == tail.part
    assert rig.end()[0] == 0


def test_sequence_that_no_journal_knows_is_unjudged(make_rig: MakeRig) -> None:
    rig = make_rig(1500)
    rig.start()
    rig.sequence = 2  # capture never skips one; should it all the same, nobody goes without verdict
    rig.score(rig.trigger(), 0.5)
    judged = rig.await_verdicts(3)
    assert [(v.decision.value, v.reason) for v in judged] == [
        ("unjudged", "the part was never announced"),
        ("unjudged", "the part was never announced"),
        ("pass", ""),
    ]
    assert [v.part for v in judged] == [100, 101, 102]


def test_killed_alert_forgets_nobody_and_contradicts_nothing(make_rig: MakeRig) -> None:
    """Killed at random moments of a running line: one row for each announced part, equal to what was published."""
    rig = make_rig(200)
    rng = random.Random(3)
    rig.start()
    kills = 4
    for kill in range(kills):
        for _ in range(rng.randrange(20, 60)):
            frame = rig.trigger()
            if rng.random() < 0.9:
                rig.score(frame, rng.choice([0.5, 1.5]))
            if rng.random() < 0.3:
                rig.listener.socket.poll(rng.randrange(1, 5))
        if kill % 2:
            rig.drain(0.02)
        rig.end(signal.SIGKILL)
        for _ in range(rng.randrange(3)):
            rig.score(rig.trigger(), 0.5)  # nobody is there to hear of these
        rig.start()
    last = rig.trigger()
    rig.score(last, 0.5)
    rig.await_verdicts(rig.sequence)
    assert rig.end()[0] == 0
    rows = {(e.verdict.id.epoch, e.verdict.id.sequence): e.verdict for e in rig.rows()}
    assert sorted(key[1] for key in rows) == list(range(rig.sequence))
    for key, verdict in rig.verdicts.items():
        assert rows[key].decision is verdict.decision
    assert sum(v.decision is not Decision.UNJUDGED for v in rows.values()) > 20


def test_announcements_while_alert_was_down(make_rig: MakeRig) -> None:
    """Those whose deadline is still ahead are judged as usual, the others are UNJUDGED."""
    rig = make_rig(3000)
    rig.start()
    rig.end(signal.SIGKILL)
    over = rig.trigger(deadline_ns=10 * MS)
    pending = rig.trigger()
    rig.start()
    rig.score(pending, 0.5)
    first, second = rig.await_verdicts(2)
    assert (first.part, first.decision) == (over.part, Decision.UNJUDGED)
    assert (second.part, second.decision) == (pending.part, Decision.PASS)


def test_parts_in_flight_get_verdicts_when_the_line_stops(make_rig: MakeRig) -> None:
    rig = make_rig(30_000)
    rig.start()
    rig.trigger()
    rig.await_health(lambda h: h.gauges.get("in_flight") == 1)
    rig.trigger(announce=False)
    began = time.monotonic()
    assert rig.end()[0] == 0
    assert time.monotonic() - began < 10
    assert [entry.verdict.reason for entry in rig.rows()] == ["the line stopped"] * 2


def test_older_parts_are_not_the_business_of_a_new_ledger(make_rig: MakeRig) -> None:
    """A ring that outlived its line: its old announcements belong to the ledger of that time. They are counted."""
    rig = make_rig(1000)
    for i in range(30):
        rig.trigger(trigger_ns=now_ns() - 60_000 * MS + i * MS, announce=False)
    rig.restart_capture()
    rig.start()
    rig.score(rig.trigger(), 0.5)
    (only,) = rig.await_verdicts(1)
    assert (only.id.epoch, only.id.sequence) == (rig.ring.epoch, 0)
    rig.await_health(lambda h: h.uptime_s > 1.5 and h.counters["older_parts"] == 30)
    rig.end()
    assert len(rig.rows()) == 1


def test_capture_that_came_before_the_first_ledger_loses_no_part(make_rig: MakeRig) -> None:
    rig = make_rig(1000)
    for _ in range(30):
        rig.trigger(deadline_ns=MS, announce=False)
    rig.start()
    rig.score(rig.trigger(), 0.5)
    verdicts = rig.await_verdicts(31)
    assert [v.id.sequence for v in verdicts] == list(range(31))
    assert {v.decision for v in verdicts[:30]} == {Decision.UNJUDGED}
    assert verdicts[30].decision is Decision.PASS
    rig.end()


def test_hostile_and_foreign_messages_are_counted(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.start()
    rng = random.Random(1)
    for _ in range(200):
        rig.outbox.send(rng.randbytes(rng.randrange(200)))
    frame = rig.trigger()
    whole = encode(frame)
    for size in range(0, len(whole), 7):
        rig.outbox.send(whole[:size])
    rig.outbox.send(encode(msgspec.structs.replace(frame, id=FrameId(line="mill", camera="top", epoch=1, sequence=0))))
    rig.outbox.send(encode(Health(line="press", process="x", pid=1, state="", uptime_s=0, counters={}, gauges={})))
    rig.score(frame, 0.5)
    assert rig.await_verdicts(1)[0].decision is Decision.PASS
    told = rig.await_health(lambda h: h.counters.get("bad_messages", 0) > 200)
    assert told.counters["foreign_messages"] == 1
    code, errors = rig.end()
    assert code == 0
    assert "Traceback" not in errors
    assert errors.count("a message was dropped") == 1


def test_full_disk_makes_parts_unjudged_until_there_is_room(make_rig: MakeRig, tmp_path: Path) -> None:
    """The ledger lies on a tmpfs of 1 MiB that is filled up and emptied while the line runs."""
    folder = tmp_path / "data"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        plc = '[plc]\nwindow_ms = 2000\nreconnect_max_ms = 100\nadapter = { type = "simulated" }\n'
        rig = make_rig(1500, "enabled = false\n" + plc)
        rulings = Inbox(Endpoints(rig.settings).plc_in)
        rig.start()
        rig.await_health(lambda h: h.state == "running")
        rig.score(rig.trigger(), 0.5)
        rig.await_verdicts(1)
        ballast = folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(b"\0" * 4096):
                    pass
            except OSError:
                pass
        for i in range(60):
            rig.score(rig.trigger(), 0.5)
            while len(rig.verdicts) < 2 + i:
                rig.drain(0.01)
        full = [v for v in rig.verdicts.values() if v.reason == "the ledger cannot be written"]
        assert len(full) > 20
        assert {v.decision for v in full} == {Decision.UNJUDGED}
        told = rig.await_health(lambda h: h.gauges.get("rows_waiting", 0) > 0)
        assert told.state.startswith("degraded: ")
        assert "full" in told.state
        rig.end(signal.SIGKILL)
        rig.repeats = True
        rig.start()  # on a disk that is still full: those rows are gone, the journal gives the same verdicts again
        rig.await_health(lambda h: h.uptime_s < 3 and h.gauges.get("rows_waiting", 0) >= len(full))
        ballast.unlink()
        rig.await_health(lambda h: h.gauges.get("rows_waiting") == 0 and h.state == "running")
        rig.score(rig.trigger(), 0.5)
        judged = rig.await_verdicts(62)
        assert judged[-1].decision is Decision.PASS
        assert rig.end()[0] == 0
        rows = {e.verdict.id.sequence: e.verdict.decision for e in rig.rows()}
        assert rows == {v.id.sequence: v.decision for v in rig.verdicts.values()}, "the ledger contradicts a verdict"
        told = [message for data in iter(rulings.recv, None) if isinstance(message := decode(data[0]), Ruling)]
        assert all(ruling.decision is rows[ruling.id.sequence] for ruling in told), "the PLC was told otherwise"
        assert len({ruling.id.sequence for ruling in told}) > 40
    finally:
        rulings.close()
        for path in rig.settings.paths.data.iterdir():
            path.unlink()
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_archive_in_the_way_is_health_not_delay(make_rig: MakeRig) -> None:
    rig = make_rig(1000)
    rig.settings.paths.archive.parent.mkdir(parents=True)
    rig.settings.paths.archive.write_text("not a folder")
    rig.start()
    rig.score(rig.trigger(), 1.5)
    rig.await_verdicts(1)
    told = rig.await_health(lambda h: h.counters.get("archive_failed") == 1)
    assert "the archive cannot be written" in told.state
    rig.end()
    assert rig.rows()[0].archive_state is ArchiveState.FAILED


def test_ledger_of_another_line_is_one_sentence(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.settings.paths.ledger.parent.mkdir(parents=True)
    from edge.alert.ledger import Ledger

    Ledger.open(rig.settings.paths.ledger, "mill").close()
    result = subprocess.run([sys.executable, "-c", PROGRAM, str(rig.file)], capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert "this is the ledger of line 'mill', not of 'press'" in result.stderr
    assert "Traceback" not in result.stderr

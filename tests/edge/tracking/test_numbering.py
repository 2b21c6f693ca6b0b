"""Numbers of the PLC through real sockets: what capture announces while a PLC's process broadcasts its answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.capture.numbering import NO_PART, ByPlc, Held, InOrder, Numbered
from edge.capture.source import Grab
from edge.errors import SourceError
from edge.messages import FrameStatus, PlcAnswer, encode, now_ns
from edge.settings_tracking import TriggerSettings
from edge.transport import BROADCASTS, Broadcast, Endpoint
from pipelines.images import PixelFormat

MS = 1_000_000


class Plc:
    """The broadcasting side: counts parts at set moments, answers every 10 ms of a clock that the test moves."""

    def __init__(self, broadcast: Broadcast, numbers: ByPlc) -> None:
        self._broadcast, self._numbers = broadcast, numbers
        self.now = 0
        self.parts = 0
        self.answers = 0

    def answer(self, line: str = "line") -> None:
        self._broadcast.send(
            encode(PlcAnswer(line, self.now - MS, self.now, self.parts % 65_536, 100 + self.parts, 0, True))
        )
        self.answers += line == "line"

    def run(self, until_ns: int, frames: dict[int, Held], counts: tuple[int, ...]) -> list[Numbered]:
        """Moves the clock; `frames` arrive at those times, the PLC counts at `counts`."""
        told = []
        while self.now < until_ns:
            self.now += 10 * MS
            self.parts += sum(self.now - 10 * MS <= at < self.now for at in counts)
            self.answer()
            for at, held in frames.items():
                if self.now - 10 * MS <= at < self.now:
                    self._numbers.take(held, self.now)
            end = now_ns() + 5_000 * MS
            while self._numbers.counters().get("plc_answers", 0) < self.answers:
                assert now_ns() < end, "an answer did not arrive"
                told += self._numbers.turn(self.now)
            told += self._numbers.turn(self.now)
        return told


@pytest.fixture
def plc(tmp_path: Path) -> Iterator[Plc]:
    endpoint = Endpoint(f"ipc://{tmp_path}/plc.pub", BROADCASTS)
    settings = TriggerSettings(numbered_by="plc")
    with Broadcast(endpoint) as broadcast:
        numbers = ByPlc(settings, endpoint, "line")
        made = Plc(broadcast, numbers)
        end = time.monotonic() + 5.0
        while not numbers.counters().get("plc_answers"):  # a subscription takes a moment; answers before it are lost
            assert time.monotonic() < end
            made.answer("another line")
            made.now += 1
            broadcast.send(encode(PlcAnswer("line", made.now, made.now, 0, 100, 0, True)))
            numbers.turn(0)
            time.sleep(0.001)
        while numbers._listener.socket.poll(50):
            numbers.turn(0)
        made.answers = numbers.counters()["plc_answers"]
        made.now = 1000 * MS
        yield made
        numbers.close()


def frame(ns: int, status: FrameStatus = FrameStatus.OK) -> Held:
    return Held(Grab(status, None, PixelFormat.BGR8, 4, 4, ns), slot=3, generation=8)


def test_frames_get_the_plcs_numbers_once_they_agree(plc: Plc) -> None:
    at = [1100 * MS, 1300 * MS, 1500 * MS]
    told = plc.run(1800 * MS, {ns + 20 * MS: frame(ns + MS) for ns in at}, tuple(at))
    assert [(item.part, item.held.grab.status) for item in told] == [(101, "ok"), (102, "ok"), (103, "ok")]
    assert {(item.held.slot, item.held.generation) for item in told} == {(3, 8)}
    assert abs(plc._numbers.gauges()["trigger_offset_ms"]) < 10


def test_a_missed_trigger_makes_all_unjudged_until_somebody_aligns(plc: Plc) -> None:
    at = [1100 * MS, 1200 * MS, 1300 * MS, 1400 * MS]
    frames = {ns + 20 * MS: frame(ns) for ns in at if ns != 1200 * MS}
    told = plc.run(1700 * MS, frames, tuple(at))
    found = {item.part: item.held.grab for item in told}
    assert {part: grab.status.value for part, grab in found.items()} == {
        101: "ok",
        102: "missed",
        103: "misaligned",
        104: "misaligned",
    }
    assert found[102].pixel_format is PixelFormat.BGR8
    assert found[102].trigger_ns == pytest.approx(1200 * MS, abs=11 * MS)
    assert "trigger and frame disagree: a trigger without a frame" in plc._numbers.fault
    assert "edge realign" in plc._numbers.fault
    plc._numbers.realign(plc.now)
    assert plc._numbers.fault == ""
    told = plc.run(2200 * MS, {1920 * MS: frame(1900 * MS)}, (1900 * MS,))
    assert [(item.part, item.held.grab.status.value) for item in told] == [(105, "ok")]


def test_a_frame_of_no_part_has_no_number_and_a_silent_plc_holds_nothing_for_ever(plc: Plc) -> None:
    told = plc.run(1400 * MS, {1120 * MS: frame(1100 * MS)}, ())
    assert [(item.part, item.held.grab.status) for item in told] == [(NO_PART, FrameStatus.DOUBLED)]
    plc._numbers.take(frame(5000 * MS), 5000 * MS)
    assert plc._numbers.turn(5100 * MS) == []
    (late,) = plc._numbers.turn(5151 * MS)
    assert (late.part, late.held.grab.status) == (NO_PART, FrameStatus.MISALIGNED)
    plc._numbers.take(frame(6000 * MS), 6000 * MS)
    assert len(plc._numbers.finish()) == 1


def test_a_camera_that_waits_for_software_triggers_gets_one_per_part(plc: Plc) -> None:
    fired: list[int] = []

    def fire() -> None:
        fired.append(plc.now)
        if len(fired) == 2:
            raise SourceError("the camera is away")

    plc._numbers._fire = fire
    plc.run(1500 * MS, {}, (1100 * MS, 1300 * MS, 1400 * MS))
    assert len(fired) == 3
    assert {name: count for name, count in plc._numbers.counters().items() if "fired" in name} == {
        "fired": 2,
        "not_fired": 1,
    }
    plc.parts += 1  # an answer that was on its way for too long is no reason to trigger now
    plc.answer()
    plc.now += 5000 * MS
    while plc._numbers.counters()["plc_answers"] < plc.answers:
        plc._numbers.turn(plc.now)
    assert len(fired) == 3


def test_in_order_every_frame_is_ready_at_once() -> None:
    numbers = InOrder()
    numbers.take(frame(1), 2)
    assert [item.part for item in numbers.turn(2)] == [None]
    assert numbers.turn(3) == []

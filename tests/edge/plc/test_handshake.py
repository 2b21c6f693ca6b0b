"""The handshake against the Structured Text, under every mishap that the wire knows, in simulated time.

Parts come to the camera; their verdicts are lost, late, doubled and in any order; exchanges are lost, unheard, frozen
and applied later, or refused; alert falls silent; the program is killed and started anew. What must hold:

    pass_on_good      no part passes without a PASS of its own
    reject_on_fail    no part passes whose REJECT reached this side in time
    both              a part whose PASS the PLC acknowledged passes: no reject lands on it
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edge.alert.plc.adapter import Inputs, Outputs, Result
from edge.alert.plc.session import Session
from edge.alert.plc.simulated import Mishap, SimulatedAdapter, SimulatedPlc
from edge.messages import Decision
from edge.settings_plc import PlcSettings
from edge.settings_plc_adapters import SimulatedAdapterSettings

MS = 1_000_000
ADAPTER = SimulatedAdapterSettings(type="simulated", timeout_ms=50)
WINDOW_MS, ACK_MS, SILENCE_MS, TRAVEL_MS, SCAN_MS = 600, 150, 300, 1400, 10


def plc_settings(mode: str = "pass_on_good", **more: Any) -> PlcSettings:
    wanted = {"window_ms": WINDOW_MS, "ack_ms": ACK_MS, "silence_ms": SILENCE_MS, "heartbeat_ms": 20, **more}
    return PlcSettings.model_validate({"mode": mode, "adapter": ADAPTER, **wanted})


class Time:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.ns = 10_000_000 * MS

    def __call__(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


class TextProgram:
    """The Structured Text in the place of the simulated PLC's program."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.decided: list[tuple[int, bool]] = []

    def scan(self, block: Outputs, now_ms: int, belt: int, at_camera: bool) -> None:
        plc = self.block
        before = [int(plc.Number[(plc.First + place) % 64]) for place in range(plc.Count)]
        rejected = int(plc.Rejected)
        plc.scan(
            NowMs=now_ms,
            Belt=belt & 0x7FFF_FFFF,
            AtCamera=at_camera,
            Ready=block.ready,
            Heartbeat=block.heartbeat,
            Fault=block.fault,
            PartOf=block.part,
            Result=block.result,
            Valid=block.valid,
        )
        gone = len(before) + at_camera - int(plc.Count)
        assert gone <= 1, "parts of this test are farther apart than a cycle"
        self.decided = [(before[0], int(plc.Rejected) > rejected)] if gone else []

    def inputs(self, encoder: int = 0) -> Inputs:
        return Inputs(ack=int(self.block.Ack), parts=int(self.block.Parts), part=int(self.block.Part), run=True)


class Wire(SimulatedAdapter):
    """An adapter whose exchanges take a millisecond, and which notes the acknowledgements that come back.

    `planned`: what becomes of the first exchange with the result of a part.
    """

    def __init__(self, plc: SimulatedPlc, time: Time, acked: set[int], planned: dict[int, Mishap]) -> None:
        super().__init__(ADAPTER, plc, time.sleep)
        self._time = time
        self._acked = acked
        self._planned = planned

    def exchange(self, outputs: Outputs) -> Inputs:
        self._time.sleep(0.001)
        if outputs.result is not Result.NONE and outputs.part in self._planned:
            self.mishaps.appendleft(self._planned.pop(outputs.part))
        inputs = super().exchange(outputs)
        if outputs.result is Result.PASS and inputs.ack == outputs.valid:
            self._acked.add(outputs.part)
        return inputs


@dataclass
class Ruled:
    """A part of the schedule: what alert says of it, and when."""

    gap_ms: int
    decision: Decision | None  # None: the verdict is lost
    after_ms: int
    again_ms: int | None
    mishap: Mishap | None = None  # of the exchange with its result
    kill_ms: int | None = None  # after its verdict, this side is killed


@dataclass
class Schedule:
    lead_ms: int  # before the first part
    parts: list[Ruled]
    mishaps: list[tuple[int, Mishap]]  # after how many exchanges
    silences: list[tuple[int, int]]  # begin and length, ms
    thaw_ms: int  # after so long a frozen PLC goes on


@dataclass
class World:
    """What happened."""

    ruled: dict[int, Decision] = field(default_factory=dict)  # as this side heard them
    heard_ms: dict[int, int] = field(default_factory=dict)  # after the trigger, to a session that lived on
    acked: set[int] = field(default_factory=set)
    decided: dict[int, bool] = field(default_factory=dict)
    killed_ms: list[int] = field(default_factory=list)


schedules = st.builds(
    Schedule,
    lead_ms=st.sampled_from([0, 300, 1500]),
    parts=st.lists(
        st.builds(
            Ruled,
            gap_ms=st.integers(25, 120),
            decision=st.sampled_from([*Decision, Decision.PASS, Decision.REJECT, None]),
            after_ms=st.one_of(st.integers(0, 300), st.integers(0, 900)),
            again_ms=st.none() | st.integers(0, 700),
            mishap=st.sampled_from([None, None, None, None, Mishap.LOST, Mishap.UNHEARD, Mishap.FROZEN]),
            kill_ms=st.sampled_from([None] * 9 + [0, 3, 12]),
        ),
        min_size=1,
        max_size=25,
    ),
    mishaps=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(list(Mishap)[1:])), max_size=8),
    silences=st.lists(st.tuples(st.integers(0, 3000), st.integers(100, 900)), max_size=2),
    thaw_ms=st.integers(1, 900),
)


def play(schedule: Schedule, mode: str, block: Any) -> World:
    """Runs the schedule to its end: both sides, alert, and the mishaps of the wire."""
    time = Time()
    start = time.ns
    plc = SimulatedPlc(TextProgram(block), SCAN_MS, time)  # type: ignore[arg-type]
    world = World()
    lives = itertools.cycle([40_000, 65_530, 700, 20_011])  # `valid` begins anywhere, also shortly before it wraps
    planned = {number: part.mishap for number, part in enumerate(schedule.parts, start=1) if part.mishap is not None}
    wire = Wire(plc, time, world.acked, planned)
    session = Session(wire, plc_settings(mode), clock=time, first_valid=next(lives))
    todo: list[tuple[int, int, Callable[[], None]]] = []  # when, order, what

    def at(ms: int, what: Callable[[], None]) -> None:
        todo.append((start + ms * MS, len(todo), what))

    def silent(ms: int) -> bool:
        return any(begin <= ms < begin + length for begin, length in schedule.silences)

    def kill() -> None:
        nonlocal session
        wire.close()  # the kernel does
        session = Session(wire, plc_settings(mode), clock=time, first_valid=next(lives))
        world.killed_ms.append((time.ns - start) // MS)

    def rule(part: int, decision: Decision, seen_ns: int) -> None:
        session.rule(part, decision, seen_ns)
        world.ruled[part] = decision
        world.heard_ms.setdefault(part, (time.ns - seen_ns) // MS)

    ms = schedule.lead_ms
    for number, part in enumerate(schedule.parts, start=1):
        ms += part.gap_ms
        seen_ns = start + ms * MS
        plc.arrive(seen_ns)
        if part.decision is not None:
            for after in (part.after_ms, part.again_ms):
                if after is not None and not silent(ms + after):
                    at(ms + after, lambda n=number, d=part.decision, t=seen_ns: rule(n, d, t))  # type: ignore[misc]
            if part.kill_ms is not None:
                at(ms + part.after_ms + part.kill_ms, kill)
    end_ms = ms + TRAVEL_MS + 200
    for beat in range(0, end_ms, 100):
        if not silent(beat):
            at(beat, lambda: session.hear())
    todo.sort()
    mishaps = dict(schedule.mishaps)
    turns, thaws_ns = 0, 0
    while time.ns < start + end_ms * MS:
        if plc.frozen:
            thaws_ns = thaws_ns or time.ns + schedule.thaw_ms * MS
            if time.ns >= thaws_ns:
                thaws_ns = 0
                plc.thaw()
        while todo and todo[0][0] <= time.ns:
            todo.pop(0)[2]()
        if turns in mishaps:
            wire.mishaps.append(mishaps.pop(turns))
        before = session.exchanges + session.timeouts + session.errors
        session.turn()
        turns += session.exchanges + session.timeouts + session.errors != before
        after = [session.wake_ns(), time.ns + 5 * MS, *(moment for moment, _, _ in todo[:1])]
        time.ns = max(time.ns, min(after))
        plc.run()
    world.decided = dict(plc.decided)
    assert len(world.decided) == len(plc.decided) == len(schedule.parts)
    return world


@settings(max_examples=50, deadline=None)
@given(schedule=schedules)
def test_pass_on_good_never_passes_a_part_without_its_own_pass(plc_block: Any, schedule: Schedule) -> None:
    world = play(schedule, "pass_on_good", plc_block(WindowMs=WINDOW_MS + 70, SilenceMs=200, Travel=TRAVEL_MS))
    for part, rejected in world.decided.items():
        if not rejected:
            assert world.ruled.get(part) is Decision.PASS
    for part in world.acked:
        assert world.decided[part] is False


@settings(max_examples=50, deadline=None)
@given(schedule=schedules)
def test_reject_on_fail_passes_no_part_whose_reject_came_in_time(plc_block: Any, schedule: Schedule) -> None:
    block = plc_block(PassOnGood=False, WindowMs=WINDOW_MS + 70, SilenceMs=200, Travel=TRAVEL_MS)
    world = play(schedule, "reject_on_fail", block)
    for part, decision in world.ruled.items():
        if decision is not Decision.PASS and world.heard_ms[part] < WINDOW_MS:
            assert world.decided[part] is True


def test_without_mishaps_every_part_meets_its_verdict(plc_block: Any) -> None:
    decisions = [Decision.PASS, Decision.REJECT, Decision.PASS, Decision.UNJUDGED] * 10
    parts = [Ruled(50, decision, 120 + 37 * number % 90, None) for number, decision in enumerate(decisions)]
    for mode in ("pass_on_good", "reject_on_fail"):
        block = plc_block(PassOnGood=mode == "pass_on_good", WindowMs=WINDOW_MS, SilenceMs=200, Travel=TRAVEL_MS)
        world = play(Schedule(1500, parts, [], [], 1), mode, block)
        assert world.decided == {
            number: decision is not Decision.PASS for number, decision in enumerate(decisions, start=1)
        }

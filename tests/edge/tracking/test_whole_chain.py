"""From two cameras to the gate, in simulated time: no part passes without a PASS of its own from each of its cameras.

The line's own logic is put together as its processes do: alignment (capture), part table and joiner (alert), handshake
and session (plc), and the PLC's program. Frames are not taken, lost, doubled; triggers bounce; scores are lost, late,
repeated and overtake each other; a capture dies and returns; announcements and rulings are repeated; exchanges are
lost, unheard, frozen, refused.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from dataclasses import dataclass, field

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.alert.deadlines import Decided, PartTable
from edge.alert.joining import Group, Joiner
from edge.alert.plc.adapter import Inputs, Outputs
from edge.alert.plc.program import PlcProgram
from edge.alert.plc.session import Session
from edge.alert.plc.simulated import Mishap, SimulatedAdapter, SimulatedPlc
from edge.messages import FrameId, FrameRef, FrameStatus, RegionScore, Score, ScoreStatus
from edge.settings_plc import PlcSettings
from edge.settings_plc_adapters import SimulatedAdapterSettings
from edge.tracking.alignment import Alignment, Realign, Tolerances
from edge.tracking.triggers import Answer, CountedTriggers
from pipelines.images import PixelFormat

MS = 1_000_000
START = 10_000_000 * MS
CAMERAS = ("left", "right")
WINDOW_MS, DEADLINE_MS, TRAVEL_MS, WARM_UP_MS = 700, 400, 1500, 500
ADAPTER = SimulatedAdapterSettings(type="simulated", timeout_ms=30)
PLC = PlcSettings.model_validate(
    {"adapter": ADAPTER, "window_ms": WINDOW_MS, "ack_ms": 100, "silence_ms": 1100, "heartbeat_ms": 10}
)
FAULTS = st.sampled_from(["none"] * 8 + ["not_taken", "lost", "doubled"])
SCORES = st.sampled_from(["prompt"] * 5 + ["slow", "late", "never", "twice"])


@dataclass(frozen=True)
class Seen:
    """One part at one camera."""

    good: bool
    fault: str
    score: str


@dataclass
class Physical:
    """A part, `gap_ms` after the one before; with `bounces` the PLC's sensor counts it twice."""

    gap_ms: int
    bounces: bool
    seen: dict[str, Seen]


seen = st.builds(Seen, good=st.sampled_from([True, True, True, False]), fault=FAULTS, score=SCORES)
physical = st.builds(
    Physical,
    gap_ms=st.one_of(st.integers(80, 160), st.integers(40, 160), st.just(900)),
    bounces=st.sampled_from([False] * 12 + [True]),
    seen=st.fixed_dictionaries(dict.fromkeys(CAMERAS, seen)),
)


@dataclass(frozen=True)
class Down:
    """A capture process that is killed, and when it is back."""

    camera: str
    begin_ms: int
    length_ms: int


class Wire(SimulatedAdapter):
    """Exchanges of a millisecond; each answer is broadcast to the captures."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(ADAPTER, chain.plc, chain.sleep)
        self._chain = chain

    def exchange(self, outputs: Outputs) -> Inputs:
        asked = self._chain.now
        self._chain.sleep(0.001)
        inputs = super().exchange(outputs)
        answer = Answer(asked, self._chain.now, inputs.parts, inputs.part, inputs.encoder)
        for capture in self._chain.living():
            capture.alignment.heard(capture.triggers.hear(answer), asked)
        return inputs


@dataclass
class Capture:
    """The part of a capture process that matters here."""

    camera: str
    alignment: Alignment[FrameRef]
    triggers: CountedTriggers = field(default_factory=CountedTriggers)
    epoch: int = 1
    sequence: int = 0


class Chain:
    """All of it, and the clock."""

    def __init__(self, realign: Realign, seed: int, down: Down | None) -> None:
        self.now = START
        self.realign, self.down = realign, down
        self.dice = random.Random(seed)
        self.plc = SimulatedPlc(PlcProgram(window_ms=WINDOW_MS + 50, silence_ms=200, travel=TRAVEL_MS), 5, self.clock)
        self.captures = {camera: Capture(camera, self.alignment()) for camera in CAMERAS}
        self.wire = Wire(self)
        self.session = Session(self.wire, PLC, clock=self.clock)
        self.table = PartTable("line", dict.fromkeys(CAMERAS, 100.0), "here")
        self.joiner = Joiner([Group(frozenset(CAMERAS), True, 5 * MS, DEADLINE_MS * MS)])
        self.todo: list[tuple[int, int, object]] = []
        self.order = itertools.count()
        self.scores: dict[tuple[str, int], Seen] = {}  # of a frame, by its time
        self.told: dict[str, list[tuple[int, int]]] = defaultdict(list)  # by camera: part number, time of its frame

    def alignment(self) -> Alignment[FrameRef]:
        return Alignment(Tolerances(0, 12 * MS, 30 * MS, 100 * MS, 400 * MS), self.realign)

    def living(self) -> list[Capture]:
        """Captures that run now; one that was killed begins anew with another epoch."""
        if self.down is None or self.now < START + self.down.begin_ms * MS:
            return list(self.captures.values())
        if self.now < START + (self.down.begin_ms + self.down.length_ms) * MS:
            self.captures[self.down.camera] = Capture(self.down.camera, self.alignment(), epoch=2)
            return [capture for capture in self.captures.values() if capture.camera != self.down.camera]
        return list(self.captures.values())

    def clock(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)

    def at(self, ns: int, what: object) -> None:
        heapq.heappush(self.todo, (ns, next(self.order), what))

    def frame(self, camera: str, ns: int, whole: bool = True) -> FrameRef:
        return FrameRef(
            id=FrameId(line="line", camera=camera, epoch=1, sequence=0),
            part=0,
            trigger_ns=ns,
            host="here",
            age_ns=0,
            deadline_ns=DEADLINE_MS * MS,
            status=FrameStatus.OK if whole else FrameStatus.INCOMPLETE,
            pixel_format=PixelFormat.MONO8,
            height=1,
            width=1,
            ring="",
            slot=0,
            generation=0,
        )

    def turn(self) -> None:
        """What every process does in a moment."""
        while self.todo and self.todo[0][0] <= self.now:
            _, _, what = heapq.heappop(self.todo)
            if isinstance(what, FrameRef):
                whole = what.status is FrameStatus.OK
                for capture in self.living():
                    if capture.camera == what.id.camera:
                        capture.alignment.frame(what.trigger_ns, what, self.now, whole=whole)
            elif isinstance(what, Score):
                self.rule(self.table.score(what, self.now))
            elif isinstance(what, Mishap):
                self.wire.mishaps.append(what)
            else:
                self.plc.thaw()
        for capture in self.living():
            self.announce(capture)
        self.rule(self.table.expire(self.now))
        for ruling in self.joiner.expire(self.now):
            self.session.rule(ruling.part, ruling.decision, ruling.trigger_ns)
        self.session.hear()
        self.session.turn()
        self.plc.run()

    def announce(self, capture: Capture) -> None:
        for told in capture.alignment.turn(self.now):
            taken = told.frame or self.frame(capture.camera, told.ns, whole=False)
            status = taken.status if told.why is None else FrameStatus.MISALIGNED
            frame_id = FrameId(line="line", camera=capture.camera, epoch=capture.epoch, sequence=capture.sequence)
            frame = msgspec.structs.replace(taken, id=frame_id, part=told.part or 0, status=status)
            capture.sequence += 1
            for _ in range(self.dice.choice([1, 1, 2])):  # the journal repeats
                self.rule(self.table.announce(frame, self.now))
            if status is FrameStatus.OK:
                self.told[capture.camera].append((frame.part, frame.trigger_ns))
                self.infer(frame)

    def infer(self, frame: FrameRef) -> None:
        seen = self.scores[frame.id.camera, frame.trigger_ns]
        region = RegionScore("all", 0.5 if seen.good else 1.5, 1.0, 0.0, 0, 0, b"")
        score = Score(frame, ScoreStatus.OK, "bundle", "engine", [region], 1)
        after = {"prompt": (5, 60), "twice": (5, 60), "slow": (100, 350), "late": (350, 900)}.get(seen.score)
        if after is not None:
            for _ in range(2 if seen.score == "twice" else 1):
                self.at(self.now + self.dice.randint(*after) * MS, score)

    def rule(self, decided: list[Decided]) -> None:
        for item in decided:
            for ruling in self.joiner.add(item.verdict, item.trigger_ns, item.deadline_ns):
                for _ in range(self.dice.choice([1, 1, 1, 2])):
                    self.session.rule(ruling.part, ruling.decision, ruling.trigger_ns)


def play(
    parts: list[Physical], mishaps: list[tuple[int, Mishap]], realign: Realign, seed: int, down: Down | None = None
) -> tuple[Chain, dict[int, Physical], dict[int, bool]]:
    """Runs the parts through; the PLC's numbers, of the bounces too, and what it decided."""
    chain = Chain(realign, seed, down)
    at, counted = START + WARM_UP_MS * MS, []
    for part in parts:
        at += part.gap_ms * MS
        counted += [(at, part), *([(at + chain.dice.randint(10, 40) * MS, part)] if part.bounces else [])]
        for camera, view in part.seen.items():
            ns = at + chain.dice.randint(-3, 3) * MS
            # A second frame shows the same part only while that is still at the camera, within the tolerance.
            times = {"not_taken": [], "doubled": [ns, ns + chain.dice.randint(1, 9) * MS]}.get(view.fault, [ns])
            for time in times:
                chain.scores[camera, time] = view
                chain.at(time + chain.dice.randint(5, 30) * MS, chain.frame(camera, time, whole=view.fault != "lost"))
    for ns, _ in counted:
        chain.plc.arrive(ns)
    for after, mishap in mishaps:
        chain.at(START + after * MS, mishap)
        if mishap is Mishap.FROZEN:
            chain.at(START + (after + chain.dice.randint(20, 500)) * MS, "thaw")
    end = at + (TRAVEL_MS + 200) * MS
    while chain.now < end:
        chain.turn()
        chain.now += 3 * MS
    chain.plc.thaw()
    chain.plc.run()
    return chain, {number: part for number, (_, part) in enumerate(counted, 1)}, dict(chain.plc.decided)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(physical, min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 2500), st.sampled_from(Mishap)), max_size=5),
    st.sampled_from(["command", "gap", "next"]),
    st.integers(0, 2**32 - 1),
    st.none() | st.builds(Down, st.sampled_from(CAMERAS), st.integers(0, 2500), st.integers(50, 1000)),
)
def test_no_part_passes_without_a_pass_of_its_own(
    parts: list[Physical], mishaps: list[tuple[int, Mishap]], realign: Realign, seed: int, down: Down | None
) -> None:
    chain, by_number, decided = play(parts, mishaps, realign, seed, down)
    assert decided.keys() == by_number.keys()
    for number, rejected in decided.items():
        if not rejected:
            for camera in CAMERAS:
                view = by_number[number].seen[camera]
                assert view.good, f"part {number} passed with a defect that {camera} saw"
                assert view.score not in ("never",)
                assert view.fault in ("none", "doubled")
                own = [ns for part, ns in chain.told[camera] if part == number]
                assert all(chain.scores[camera, ns] is view for ns in own)
                assert own


def test_without_mishaps_every_part_meets_its_verdict() -> None:
    good, bad = Seen(True, "none", "prompt"), Seen(False, "none", "prompt")
    parts = [
        Physical(100, False, {"left": bad if n % 3 == 0 else good, "right": bad if n % 4 == 0 else good})
        for n in range(24)
    ]
    _, by_number, decided = play(parts, [], "command", 7)
    assert decided == {number: not all(view.good for view in part.seen.values()) for number, part in by_number.items()}

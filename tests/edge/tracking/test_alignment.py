"""Triggers and frames that are lost, doubled, damaged and late: a judged part always carries its own frame."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from edge.tracking.alignment import Alignment, Realign, Told, Tolerances, Why
from edge.tracking.triggers import Answer, CountedTriggers, EncoderTriggers, Trigger

MS = 1_000_000
TOLERANCE, WAIT, GAP, POLL_MAX = 10, 150, 500, 25  # ms


@dataclass(frozen=True)
class Frame:
    """What the camera made of one part (`of` its index; -1 a frame of nothing)."""

    of: int
    ns: int
    arrives_ns: int
    camera_frame: int | None
    whole: bool = True


@dataclass
class Scene:
    """What really happened, and what each side told of it."""

    frames: list[Frame] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)  # (when the PLC counted, of which part)
    polls: list[tuple[int, int, int]] = field(default_factory=list)  # asked, sampled, answered
    last_ns: int = 0
    clean: bool = True

    def numbers(self, of: int) -> set[int]:
        """The PLC's numbers of a part: none where it missed it, two where its sensor bounced."""
        return {1000 + n for n, (_, part) in enumerate(self.counts, 1) if part == of}


FAULTS = ["none"] * 6 + ["plc_missed", "plc_doubled", "not_taken", "lost", "damaged", "doubled"]


@st.composite
def scenes(draw: st.DrawFn, faulty: bool) -> Scene:
    scene, at, camera_frame, ids = Scene(), 0, draw(st.sampled_from([5, 65_530])), draw(st.booleans())
    dice = random.Random(draw(st.integers(0, 2**32 - 1)))  # for times: drawn one by one they take too long

    def next_id() -> int | None:
        nonlocal camera_frame
        camera_frame = camera_frame % 65_535 + 1
        return camera_frame if ids else None

    for part in range(draw(st.integers(1, 12))):
        # Closer parts than this are told apart by count only; then the first of them after a start must not be missed.
        at += dice.randint(2 * TOLERANCE + POLL_MAX + 5, 400) * MS
        if faulty and dice.randint(0, 8) == 0:
            at += 2 * GAP * MS
        fault = draw(st.sampled_from(FAULTS)) if faulty else "none"
        scene.clean &= fault == "none"
        seen = at + dice.randint(-TOLERANCE * MS, TOLERANCE * MS)
        late = dice.randint(1, 60) * MS
        if fault != "plc_missed":
            scene.counts.append((at, part))
        if fault == "plc_doubled":
            scene.counts.append((at + dice.randint(1, 30) * MS, part))
        if fault in ("lost", "damaged"):  # told late, and a lost one with a time that is nobody's
            ns = seen if fault == "damaged" else seen + dice.randint(0, 100) * MS
            scene.frames.append(Frame(part, ns, seen + late + 80 * MS, next_id(), whole=False))
        elif fault != "not_taken":
            scene.frames.append(Frame(part, seen, seen + late, next_id()))
        if fault == "doubled":
            again = seen + dice.randint(1, 40) * MS
            scene.frames.append(Frame(part, again, again + late, next_id()))
    scene.counts.sort()
    asked = -dice.randint(100, 200) * MS
    while asked < at + 500 * MS:
        took = dice.randint(0, 4 * MS)
        scene.polls.append((asked, asked + took // 2, asked + took))
        asked += took + dice.randint(1, POLL_MAX - 9) * MS
        if faulty and dice.randint(0, 60) == 0:
            scene.clean = False
            asked += dice.randint(50, 700) * MS  # the PLC does not answer
    scene.polls.append((asked, asked, asked))
    scene.last_ns = asked
    return scene


def play(
    scene: Scene, realign: Realign, commands: tuple[int, ...] = ()
) -> tuple[Alignment[Frame], list[tuple[int, Told[Frame]]]]:
    """What the alignment tells, and when, of a scene as it is heard of. Numbers start at 1001."""
    tolerances = Tolerances(0, TOLERANCE * MS, POLL_MAX * MS, WAIT * MS, GAP * MS)
    alignment: Alignment[Frame] = Alignment(tolerances, realign)
    triggers, told = CountedTriggers(), []
    happen: list[tuple[int, int, object]] = [(poll[2], 0, poll) for poll in scene.polls]
    happen += [(frame.arrives_ns, 1, frame) for frame in scene.frames]
    happen += [(ns, 2, None) for ns in commands]
    happen += [(ns, 3, None) for ns in range(0, scene.last_ns + 600 * MS, 20 * MS)]
    for now, _, what in sorted(happen, key=lambda item: item[:2]):
        if isinstance(what, Frame):
            alignment.frame(what.ns, what, now, what.camera_frame, what.whole)
        elif isinstance(what, tuple):
            asked, sampled, answered = what
            parts = sum(at <= sampled for at, _ in scene.counts)
            answer = Answer(asked, answered, (65_530 + parts) % 65_536, 1000 + parts, 0)
            alignment.heard(triggers.hear(answer), asked)
        elif now in commands:
            alignment.realign(now)
        told += [(now, item) for item in alignment.turn(now)]
    told += [(scene.last_ns + 600 * MS, item) for item in alignment.finish()]
    return alignment, told


def judged(told: list[tuple[int, Told[Frame]]]) -> list[Told[Frame]]:
    return [item for _, item in told if item.why is None and item.frame is not None and item.frame.whole]


@settings(max_examples=250, deadline=None)
@given(scenes(faulty=True), st.sampled_from(["command", "gap", "next"]), st.lists(st.integers(0, 3000), max_size=3))
def test_a_judged_part_carries_its_own_frame(scene: Scene, realign: Realign, commands: list[int]) -> None:
    """Whatever is lost, doubled, damaged, late or silent, and whenever somebody aligns again."""
    _, told = play(scene, realign, tuple(ms * MS for ms in commands))
    for item in judged(told):
        assert item.frame is not None
        assert item.part in scene.numbers(item.frame.of)
    # Everything is told exactly once.
    frames = [item.frame for _, item in told if item.frame is not None]
    assert sorted(frames, key=repr) == sorted(scene.frames, key=repr)
    numbers = [item.part for _, item in told if item.part is not None]
    assert sorted(numbers) == [1001 + n for n in range(len(scene.counts))]


@settings(max_examples=100, deadline=None)
@given(scenes(faulty=False), st.sampled_from(["command", "gap", "next"]))
def test_where_nothing_is_wrong_every_part_is_judged(scene: Scene, realign: Realign) -> None:
    alignment, told = play(scene, realign)
    assert len(judged(told)) == len(scene.frames) == len(scene.counts)
    assert alignment.disagreements == 0
    assert all(now - item.ns <= (60 + TOLERANCE + POLL_MAX + 15) * MS for now, item in told)


@settings(max_examples=150, deadline=None)
@given(scenes(faulty=True))
def test_after_a_disagreement_nothing_is_judged_until_the_command(scene: Scene) -> None:
    alignment, told = play(scene, "command")
    reasons = [item.why for _, item in told]
    first = next(
        (n for n, why in enumerate(reasons) if why in (Why.MISSED, Why.DOUBLED, Why.AMBIGUOUS, Why.SILENT)), None
    )
    if first is None:
        assert alignment.stopped is None
        return
    assert alignment.stopped is not None
    after = told[first:]
    assert judged([item for item in after if item[0] > told[first][0]]) == []


def scene_of(spacing_ms: int, parts: int, plc_skips: tuple[int, ...] = (), camera_skips: tuple[int, ...] = ()) -> Scene:
    scene = Scene(last_ns=parts * spacing_ms * MS)
    for part in range(parts):
        at = (part + 1) * spacing_ms * MS
        if part not in plc_skips:
            scene.counts.append((at, part))
        if part not in camera_skips:
            scene.frames.append(Frame(part, at, at + 10 * MS, len(scene.frames) + 1))
    scene.polls = [(ns, ns, ns + MS) for ns in range(-100 * MS, scene.last_ns + 1000 * MS, 10 * MS)]
    return scene


def test_a_missed_trigger_is_found_by_count_with_the_very_next_frame() -> None:
    """The camera did not take part 2. Part 3 would be judged as part 3, but who is wrong is not known: it is not."""
    alignment, told = play(scene_of(100, 6, camera_skips=(2,)), "command")
    assert [item.part for item in judged(told)] == [1001, 1002]
    assert alignment.stopped is Why.MISSED
    assert {item.part: item.why for _, item in told if item.part and item.part >= 1003} == {
        1003: Why.STOPPED,
        1004: Why.MISSED,
        1005: Why.STOPPED,
        1006: Why.STOPPED,
    }


def test_a_part_that_the_plc_did_not_count_stops_the_judging() -> None:
    alignment, told = play(scene_of(200, 6, plc_skips=(2,)), "command")
    assert [item.part for item in judged(told)] == [1001, 1002]
    assert alignment.stopped is Why.DOUBLED
    assert [item.frame.of for _, item in told if item.part is None and item.frame] == [2]


def test_parts_closer_than_the_tolerance_are_told_apart_by_count() -> None:
    """Parts every 18 ms, a tolerance of 10: a part that the PLC missed makes its frame fit the next part's trigger."""
    scene = scene_of(18, 20, plc_skips=(7,))
    _, told = play(scene, "command")
    for item in judged(told):
        assert item.frame is not None
        assert item.part in scene.numbers(item.frame.of)


def test_a_gap_on_both_sides_aligns_again() -> None:
    scene = scene_of(100, 4, camera_skips=(1,))
    late = scene.last_ns + 2000 * MS
    for part in range(4, 7):
        scene.counts.append((late + part * 100 * MS, part))
        scene.frames.append(Frame(part, late + part * 100 * MS, late + part * 100 * MS + 5 * MS, 10 + part))
    scene.polls += [(ns, ns, ns + MS) for ns in range(scene.polls[-1][0] + 10 * MS, late + 2000 * MS, 10 * MS)]
    scene.last_ns = late + 700 * MS
    _, told = play(scene, "gap")
    assert [item.part for item in judged(told)] == [1001, 1005, 1006, 1007]
    _, told = play(scene, "command")
    assert [item.part for item in judged(told)] == [1001]
    _, told = play(scene, "command", commands=(late,))
    assert [item.part for item in judged(told)] == [1001, 1005, 1006, 1007]


def test_a_frame_that_the_camera_lost_is_no_disagreement() -> None:
    """Packets are lost now and then: that part is unjudged, with its number, and the line goes on."""
    scene = scene_of(200, 5)
    lost = scene.frames[2]
    scene.frames[2] = Frame(2, lost.ns + 90 * MS, lost.ns + 170 * MS, lost.camera_frame, whole=False)
    alignment, told = play(scene, "command")
    assert [item.part for item in judged(told)] == [1001, 1002, 1004, 1005]
    assert [(item.part, item.why) for _, item in told if item.frame is scene.frames[2]] == [(1003, None)]
    assert alignment.disagreements == 0


def test_a_plc_that_was_restarted_stops_the_judging() -> None:
    triggers = CountedTriggers()
    alignment: Alignment[str] = Alignment(Tolerances(0, 10 * MS, 25 * MS, 150 * MS, 500 * MS), "command")
    alignment.heard(triggers.hear(Answer(0, MS, 500, 1500, 0)), 0)
    alignment.heard(triggers.hear(Answer(10 * MS, 11 * MS, 0, 0, 0)), 10 * MS)
    assert alignment.stopped is Why.JUMPED


def test_silence_of_the_plc_leaves_nothing_waiting() -> None:
    alignment: Alignment[str] = Alignment(Tolerances(0, 10 * MS, 25 * MS, 150 * MS, 500 * MS), "command")
    alignment.heard([], 0)
    alignment.frame(100 * MS, "a", 110 * MS)
    assert alignment.turn(250 * MS) == []
    assert [item.why for item in alignment.turn(261 * MS)] == [Why.SILENT]
    for number in range(3000):
        alignment.frame((300 + number) * MS, "b", (300 + number) * MS // 10**6)
    alignment.turn(0)
    assert len(alignment) <= 1024


@given(
    st.integers(1, 5000), st.integers(-(2**31), 2**31 - 1), st.lists(st.integers(-800, 3000), max_size=50), st.data()
)
def test_encoder_triggers_come_at_every_step_once(step: int, zero: int, moves: list[int], data: st.DataObject) -> None:
    """Numbers grow by one whatever the belt does, and no place makes two parts, through every wrap of the count."""
    direction = data.draw(st.sampled_from([1, -1]))
    triggers = EncoderTriggers(direction * step, zero)
    place, heard, highest = zero, [], 0
    assert triggers.hear(Answer(0, 1, 0, 0, _int32(place))) == []
    start = triggers._highest  # the wrapped zero may lie a whole number of turns away
    for number, move in enumerate(moves, 1):
        place += direction * move
        found = triggers.hear(Answer(number * MS, number * MS + 1, 0, 0, _int32(place)))
        expected = direction * (place - zero) // step
        if abs(expected - highest) > 256:
            assert found is None  # a counter that was reset
            return
        assert found is not None
        heard += [trigger.number for trigger in found]
        highest = max(highest, expected)
        assert heard == [(start + k) % 2**32 for k in range(1, highest + 1)]
        assert all(trigger == Trigger(trigger.number, (number - 1) * MS, number * MS + 1) for trigger in found)


def test_an_answer_that_was_overtaken_changes_nothing() -> None:
    triggers = CountedTriggers()
    triggers.hear(Answer(0, 1, 5, 105, 0))
    assert triggers.hear(Answer(20, 21, 7, 107, 0)) == [Trigger(106, 0, 21), Trigger(107, 0, 21)]
    assert triggers.hear(Answer(10, 11, 6, 106, 0)) == []
    assert triggers.hear(Answer(30, 31, 8, 108, 0)) == [Trigger(108, 20, 31)]


def _int32(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31

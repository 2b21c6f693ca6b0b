"""Verdicts of several cameras on one part, joined: one ruling, by the worst of them, whatever is lost or late."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edge.alert.joining import OPEN, Group, Joiner
from edge.messages import Decision, FrameId, Ruling, Verdict

MS = 1_000_000
DEADLINE = 300 * MS
CAMERAS = ("left", "right", "top")


def verdict(camera: str, part: int, decision: Decision, sequence: int) -> Verdict:
    return Verdict(
        id=FrameId(line="line", camera=camera, epoch=1, sequence=sequence),
        part=part,
        decision=decision,
        reason="",
        percent=None,
        score=None,
        limit=None,
        region=None,
        bundle=None,
        engine=None,
        latency_ns=0,
        infer_ns=None,
        decided_at_ns=0,
    )


def joiner(by_number: bool, cameras: tuple[str, ...] = CAMERAS) -> Joiner:
    return Joiner([Group(frozenset(cameras), by_number, 5 * MS, DEADLINE)])


@st.composite
def lines(draw: st.DrawFn) -> tuple[bool, list[list[tuple[int, str, Decision, int, int]]]]:
    """Parts, and of each what its cameras say: (arrival, camera, decision, trigger time, part number by camera)."""
    by_number, parts, at = draw(st.booleans()), [], 0
    missing = draw(st.sampled_from([0, 0, 1]))  # a camera may have been started later: its own numbers are behind
    for number in range(1, draw(st.integers(1, 12)) + 1):
        at += draw(st.integers(20, 400)) * MS
        said = []
        for index, camera in enumerate(CAMERAS):
            if draw(st.integers(0, 7)) == 0:
                continue  # not heard of
            trigger = at + draw(st.integers(0, 4)) * MS
            arrival = trigger + draw(st.integers(1, 280) if draw(st.booleans()) else st.integers(1, 900)) * MS
            shown = number if by_number else number - missing * index
            said.append((arrival, camera, draw(st.sampled_from(Decision)), trigger, max(0, shown)))
        parts.append(said)
    return by_number, parts


def play(by_number: bool, parts: list[list[tuple[int, str, Decision, int, int]]]) -> list[tuple[int, Ruling]]:
    joined, rulings = joiner(by_number), []
    events = sorted((item, number) for number, said in enumerate(parts) for item in said)
    now = 0
    for (arrival, camera, decision, trigger, shown), number in events:
        while (due := joined.next_due_ns()) is not None and due <= arrival:
            now = max(now, due)
            rulings += [(now, ruling) for ruling in joined.expire(now)]
        now = max(now, arrival)
        item = verdict(camera, shown, decision, number)
        rulings += [(now, ruling) for ruling in joined.add(item, trigger, DEADLINE)]
    while (due := joined.next_due_ns()) is not None:
        rulings += [(due, ruling) for ruling in joined.expire(due)]
    return rulings


@settings(max_examples=300, deadline=None)
@given(lines())
def test_every_part_gets_one_ruling_by_the_worst_camera(
    line: tuple[bool, list[list[tuple[int, str, Decision, int, int]]]],
) -> None:
    by_number, parts = line
    rulings = play(by_number, parts)
    by_part: dict[int, list[tuple[int, Ruling]]] = {}
    for now, ruling in rulings:
        by_part.setdefault(ruling.id.sequence, []).append((now, ruling))
    heard = {number: said for number, said in enumerate(parts) if said}
    assert by_part.keys() == heard.keys()
    for number, said in heard.items():
        ((now, ruling),) = by_part[number]
        in_time = [decision for arrival, _, decision, _, _ in said if arrival <= now]
        first = min(said)[3]  # trigger time of the camera that was heard first
        assert now <= max(first + DEADLINE, min(said)[0])
        assert set(ruling.each) <= set(CAMERAS)
        if ruling.decision is Decision.PASS:
            assert {camera: decision for _, camera, decision, _, _ in said} == dict.fromkeys(CAMERAS, Decision.PASS)
        if Decision.REJECT in in_time:
            assert ruling.decision is Decision.REJECT
        elif len(in_time) < len(CAMERAS):
            assert ruling.decision is Decision.UNJUDGED
        else:
            assert (ruling.decision is Decision.UNJUDGED) == (Decision.UNJUDGED in in_time)
        assert ruling.trigger_ns in [trigger for _, _, _, trigger, _ in said]


def test_a_reject_does_not_wait_for_the_others_and_is_told_once() -> None:
    joined = joiner(by_number=True)
    assert joined.add(verdict("left", 7, Decision.PASS, 0), 0, DEADLINE) == []
    (ruling,) = joined.add(verdict("top", 7, Decision.REJECT, 0), 2 * MS, DEADLINE)
    assert (ruling.part, ruling.decision, ruling.id.camera) == (7, Decision.REJECT, "top")
    assert ruling.each == {"left": Decision.PASS, "top": Decision.REJECT}
    assert joined.add(verdict("right", 7, Decision.PASS, 0), 1 * MS, DEADLINE) == []
    assert joined.expire(10 * DEADLINE) == []
    assert (joined.counts.rulings, joined.counts.late) == (1, 1)


def test_a_camera_by_itself_and_a_frame_of_no_known_part_are_ruled_at_once() -> None:
    joined = joiner(by_number=True)
    (ruling,) = joined.add(verdict("alone", 3, Decision.PASS, 0), 5, 6)
    assert (ruling.decision, ruling.trigger_ns, ruling.deadline_ns, ruling.each) == (Decision.PASS, 5, 6, {})
    (ruling,) = joined.add(verdict("left", 0, Decision.UNJUDGED, 1), 5, 6)
    assert (ruling.decision, ruling.part) == (Decision.UNJUDGED, 0)
    assert joined.next_due_ns() is None


def test_a_second_verdict_of_one_camera_passes_no_part() -> None:
    """Two frames of one part: the part still needs the other cameras."""
    joined = joiner(by_number=True)
    for sequence in range(3):
        assert joined.add(verdict("left", 7, Decision.PASS, sequence), 0, DEADLINE) == []
    assert joined.counts.repeated == 2
    assert [ruling.decision for ruling in joined.expire(DEADLINE)] == [Decision.UNJUDGED]


def test_what_is_remembered_is_bounded_and_the_end_rules_the_rest() -> None:
    joined = joiner(by_number=True)
    rulings = []
    for number in range(1, OPEN + 11):
        rulings += joined.add(verdict("left", number, Decision.PASS, number), number, DEADLINE)
    assert [ruling.part for ruling in rulings] == list(range(1, 11))
    assert {ruling.decision for ruling in rulings} == {Decision.UNJUDGED}
    assert len(joined.finish()) == OPEN
    assert joined.next_due_ns() is None

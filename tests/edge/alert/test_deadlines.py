from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge.alert import deadlines
from edge.alert.deadlines import CROWDED, NEVER_ANNOUNCED, SILENCE, Decided, PartTable
from edge.messages import Decision, FrameId, FrameRef, FrameStatus, RegionScore, Score, ScoreStatus
from pipelines.images import PixelFormat

MS = 1_000_000


def table(**changes: Any) -> PartTable:
    values: dict[str, Any] = {"line": "press", "limit_percent": {"top": 100.0, "side": 150.0}, "host": "here"}
    return PartTable(**(values | changes))


def decisions(decided: list[Decided]) -> list[tuple[int, str, str]]:
    return [(item.verdict.id.sequence, item.verdict.decision.value, item.verdict.reason) for item in decided]


def test_score_in_time_decides_and_the_rest_is_counted(make_frame: Any, make_score: Any) -> None:
    parts = table()
    frame = make_frame(0)
    assert parts.announce(frame, 0) == []
    (decided,) = parts.score(make_score(frame, 1.25), 30 * MS)
    verdict = decided.verdict
    assert (verdict.decision, verdict.percent, verdict.limit, verdict.region) == (Decision.REJECT, 125.0, 1.0, "part")
    assert verdict.latency_ns == 30 * MS
    assert verdict.infer_ns == 5 * MS
    assert parts.score(make_score(frame, 0.1), 31 * MS) == []
    assert parts.announce(frame, 32 * MS) == []
    assert (parts.counts.duplicate_scores, parts.counts.repeated, len(parts)) == (1, 1, 0)
    assert parts.settled("top", 1000, 0)


@pytest.mark.parametrize(("score", "decision"), [(1.0, "pass"), (1.0 + 2**-52, "reject")])
def test_the_limit_itself_passes(make_frame: Any, make_score: Any, score: float, decision: str) -> None:
    frame = make_frame()
    (decided,) = table().score(make_score(frame, score), 1)
    assert decided.verdict.decision.value == decision


def test_limit_percent_moves_the_limit(make_frame: Any, make_score: Any) -> None:
    """`side` rejects above 150 percent: 1.25 passes there and is rejected on `top`."""
    for camera, expected in (("top", "reject"), ("side", "pass")):
        (decided,) = table().score(make_score(make_frame(camera=camera), 1.25), 1)
        assert decided.verdict.decision.value == expected
        assert decided.verdict.percent == 125.0
        assert decided.verdict.limit == (1.0 if camera == "top" else 1.5)


def test_worst_region_decides(make_frame: Any, make_score: Any) -> None:
    regions = [
        RegionScore(name=name, score=score, limit=limit, floor=0.0, height=0, width=0, patches=b"")
        for name, score, limit in (("edge", 9.0, 10.0), ("face", 0.3, 0.2), ("hole", 0.5, 1.0))
    ]
    (decided,) = table().score(make_score(make_frame(), regions=regions), 1)
    assert (decided.verdict.region, decided.verdict.percent) == ("face", pytest.approx(150.0))
    assert decided.verdict.decision is Decision.REJECT
    assert [region.name for region in decided.regions] == ["edge", "face", "hole"]


@pytest.mark.parametrize(("limit", "floor"), [(1.0, 1.0), (0.5, 1.0)])
def test_senseless_limits_are_never_a_pass(make_frame: Any, make_score: Any, limit: float, floor: float) -> None:
    """The wire refuses such a score; should one get here all the same, it judges nothing."""
    region = RegionScore(name="part", score=0.0, limit=2.0, floor=0.0, height=0, width=0, patches=b"")
    msgspec.structs.force_setattr(region, "limit", limit)
    msgspec.structs.force_setattr(region, "floor", floor)
    score = make_score(make_frame(), regions=[region])
    (decided,) = table().score(score, 1)
    assert decided.verdict.decision is Decision.UNJUDGED
    (decided,) = table().score(make_score(make_frame(), regions=[]), 1)
    assert decided.verdict.decision is Decision.UNJUDGED


@pytest.mark.parametrize("camera", ["top", "side"])
def test_extreme_scores_stay_finite(make_frame: Any, make_score: Any, camera: str) -> None:
    for score, limit, floor in ((1.7e308, 1e-308, 0.0), (1.7e308, 1.0, -1.7e308), (0.0, 1.7e308, -1.7e308)):
        region = RegionScore(name="part", score=score, limit=limit, floor=floor, height=0, width=0, patches=b"")
        (decided,) = table().score(make_score(make_frame(camera=camera), regions=[region]), 1)
        assert decided.verdict.decision in (Decision.REJECT, Decision.UNJUDGED, Decision.PASS)


def test_silence_is_noticed_before_the_deadline(make_frame: Any, make_score: Any) -> None:
    parts = table(margin_ns=20 * MS)
    frame = make_frame(0, trigger_ns=0, deadline_ns=500 * MS)
    parts.announce(frame, MS)
    assert parts.next_due() == 480 * MS
    assert parts.expire(480 * MS - 1) == []
    assert decisions(parts.expire(480 * MS)) == [(0, "unjudged", SILENCE)]
    assert parts.score(make_score(frame), 490 * MS) == []
    assert parts.score(make_score(frame), 491 * MS) == []
    assert (parts.counts.late_scores, parts.counts.duplicate_scores) == (1, 1)


def test_late_score_does_not_pass_a_part_that_expire_has_not_seen(make_frame: Any, make_score: Any) -> None:
    """The race: the loop was slow, the score lies in the queue behind the deadline."""
    parts = table()
    frame = make_frame(0)
    parts.announce(frame, 0)
    assert decisions(parts.score(make_score(frame, 0.1), 500 * MS)) == [(0, "unjudged", SILENCE)]
    assert parts.counts.late_scores == 1
    assert parts.expire(10**12) == []


@pytest.mark.parametrize("status", [status for status in FrameStatus if status is not FrameStatus.OK])
def test_part_without_frame_is_unjudged_at_once(make_frame: Any, make_score: Any, status: FrameStatus) -> None:
    (decided,) = table().announce(make_frame(status=status), 1)
    assert decided.verdict.decision is Decision.UNJUDGED
    (decided,) = table().score(make_score(make_frame(status=status), 0.1), 1)
    assert decided.verdict.decision is Decision.UNJUDGED


@pytest.mark.parametrize("status", [status for status in ScoreStatus if status is not ScoreStatus.OK])
def test_score_without_judgment_tells_why(make_frame: Any, make_score: Any, status: ScoreStatus) -> None:
    (decided,) = table().score(make_score(make_frame(), status=status, reason="because"), 1)
    assert decided.verdict.decision is Decision.UNJUDGED
    assert decided.verdict.reason.endswith(": because")
    assert decided.verdict.bundle


def test_gap_becomes_parts_after_a_grace(make_frame: Any) -> None:
    parts = table(grace_ns=100 * MS)
    parts.announce(make_frame(0, trigger_ns=0), 0)
    parts.announce(make_frame(3, trigger_ns=30 * MS), 30 * MS)
    assert parts.missing() == {"top"}
    assert parts.announce(make_frame(1, trigger_ns=10 * MS), 31 * MS) == []  # the journal tells of 1
    assert decisions(parts.expire(130 * MS)) == [(2, "unjudged", NEVER_ANNOUNCED)]
    assert parts.missing() == set()
    assert sorted(key[2] for key in parts) == [0, 1, 3]
    assert parts.counts.gap_parts == 2


def test_gap_at_the_start_of_an_epoch(make_frame: Any) -> None:
    parts = table()
    parts.announce(make_frame(2, part=7), 10 * MS)
    lost = parts.expire(110 * MS)
    assert [(item.verdict.id.sequence, item.verdict.part) for item in lost] == [(0, 5), (1, 6)]


def test_epoch_older_than_the_ledger_starts_where_it_is_first_heard(make_frame: Any) -> None:
    parts = table(begun_ms=2000)
    assert parts.announce(make_frame(700, epoch=1000), 0) == []
    assert len(parts) == 1
    parts.announce(make_frame(702, epoch=1000), 0)
    assert sorted(key[2] for key in parts) == [700, 701, 702]
    parts.announce(make_frame(1, epoch=2000), 0)
    assert len(parts) == 5


def test_margin_never_eats_a_short_deadline(make_frame: Any) -> None:
    parts = table(margin_ns=20 * MS)
    parts.announce(make_frame(trigger_ns=0, deadline_ns=12 * MS), 0)
    assert parts.next_due() == 9 * MS


def test_restart_takes_up_where_the_ledger_ends(make_frame: Any, make_score: Any) -> None:
    parts = table()
    assert parts.begin("top", 1000, [0, 1, 4], 0) == []
    assert parts.settled("top", 1000, 1)
    assert not parts.settled("top", 1000, 2)
    assert parts.score(make_score(make_frame(4), 9.0), MS) == []
    assert parts.announce(make_frame(2, trigger_ns=0), MS) == []
    assert decisions(parts.score(make_score(make_frame(2, trigger_ns=0), 0.2), 2 * MS)) == [(2, "pass", "")]
    assert decisions(parts.expire(200 * MS)) == [(3, "unjudged", NEVER_ANNOUNCED)]


def test_other_hosts_clock_is_never_read(make_frame: Any) -> None:
    parts = table(margin_ns=0)
    parts.announce(make_frame(host="there", trigger_ns=10**18, age_ns=40 * MS, deadline_ns=100 * MS), 50 * MS)
    assert parts.next_due() == 110 * MS


def test_trigger_in_the_future_or_endless_deadline_is_bounded(make_frame: Any) -> None:
    parts = table(margin_ns=0)
    parts.announce(make_frame(trigger_ns=2**63 - 1, deadline_ns=2**63 - 1), 5)
    assert parts.next_due() == 5 + deadlines.MAX_DEADLINE_NS


def test_crowding_gives_up_the_most_urgent_part(make_frame: Any) -> None:
    parts = table(capacity=3)
    for sequence in range(3):
        assert parts.announce(make_frame(sequence, trigger_ns=sequence), 10) == []
    assert decisions(parts.announce(make_frame(3, trigger_ns=3), 10)) == [(0, "unjudged", CROWDED)]
    assert len(parts) == 3


def test_huge_jump_is_bounded(make_frame: Any) -> None:
    parts = table(capacity=100)
    decided = parts.announce(make_frame(10**12), 0)
    decided += parts.expire(10**10)
    assert len(decided) == deadlines.MAX_GAP + 1
    assert parts.counts.uncounted_gap_parts == 10**12 - deadlines.MAX_GAP
    assert len(parts) == 0


def test_foreign_messages_are_counted(make_frame: Any, make_score: Any) -> None:
    parts = table()
    stray = make_frame(id=FrameId(line="other", camera="top", epoch=1, sequence=0))
    assert parts.announce(stray, 0) == []
    assert parts.score(make_score(make_frame(camera="unknown")), 0) == []
    assert (parts.counts.foreign, len(parts)) == (2, 0)


def test_finish_leaves_nobody_without_verdict(make_frame: Any) -> None:
    parts = table()
    parts.announce(make_frame(2), 0)
    assert sorted(decisions(parts.finish(1, "the line stopped"))) == [
        (0, "unjudged", NEVER_ANNOUNCED),
        (1, "unjudged", NEVER_ANNOUNCED),
        (2, "unjudged", "the line stopped"),
    ]
    assert len(parts) == 0


class Line(RuleBasedStateMachine):
    """Captures announce parts, messages are lost, doubled, reordered and delayed, time goes on.

    Every part that was announced, or that a later one proves to exist, gets exactly one verdict, no later than its
    deadline less the margin (or at the very step that noticed it, where it was noticed later than that).
    """

    DEADLINE = 100

    def __init__(self) -> None:
        super().__init__()
        self.parts = PartTable("press", {"top": 100.0, "side": 100.0}, "here", margin_ns=10, grace_ns=20, capacity=12)
        self.now = 0
        self.sent: dict[tuple[str, int], FrameRef] = {}
        self.following = {"top": 0, "side": 0}
        self.heard: set[tuple[str, int]] = set()
        self.proved: set[tuple[str, int]] = set()
        self.verdicts: dict[tuple[str, int], Decided] = {}
        self.first_score: dict[tuple[str, int], float] = {}

    def take(self, decided: list[Decided]) -> None:
        for item in decided:
            key = (item.verdict.id.camera, item.verdict.id.sequence)
            assert key not in self.verdicts, "a second verdict"
            self.verdicts[key] = item

    def hear(self, key: tuple[str, int]) -> None:
        self.heard.add(key)
        self.proved |= {(key[0], sequence) for sequence in range(key[1] + 1)}

    @rule(camera=st.sampled_from(["top", "side"]), broken=st.integers(0, 9))
    def trigger(self, camera: str, broken: int) -> None:
        sequence = self.following[camera]
        self.following[camera] += 1
        self.sent[camera, sequence] = FrameRef(
            id=FrameId(line="press", camera=camera, epoch=5, sequence=sequence),
            part=sequence,
            trigger_ns=self.now,
            host="here",
            age_ns=0,
            deadline_ns=self.DEADLINE,
            status=FrameStatus.INCOMPLETE if broken == 0 else FrameStatus.OK,
            pixel_format=PixelFormat.MONO8,
            height=1,
            width=1,
            ring="r",
            slot=0,
            generation=0,
        )

    @rule(pick=st.integers(0, 2**16), newest=st.booleans())
    def announcement_arrives(self, pick: int, newest: bool) -> None:
        if not self.sent:
            return
        keys = list(self.sent)
        key = keys[-1 - pick % min(3, len(keys))] if newest else keys[pick % len(keys)]
        self.hear(key)
        self.take(self.parts.announce(self.sent[key], self.now))

    @rule(
        pick=st.integers(0, 2**16), newest=st.booleans(), score=st.sampled_from([0.2, 1.0, 1.7]), bad=st.integers(0, 9)
    )
    def score_arrives(self, pick: int, newest: bool, score: float, bad: int) -> None:
        if not self.sent:
            return
        keys = list(self.sent)
        key = keys[-1 - pick % min(3, len(keys))] if newest else keys[pick % len(keys)]
        frame = self.sent[key]
        self.hear(key)
        region = RegionScore(name="part", score=score, limit=1.0, floor=0.0, height=0, width=0, patches=b"")
        answer = Score(
            frame=frame,
            status=ScoreStatus.TORN if bad == 0 else ScoreStatus.OK,
            bundle="b",
            engine="e",
            regions=[region],
            infer_ns=1,
        )
        before = self.verdicts.get(key)
        self.take(self.parts.score(answer, self.now))
        after = self.verdicts[key]  # a score always settles its part, there and then
        if before is not None:
            assert after is before, "a late score changed a verdict"
        elif bad == 0 or frame.status is not FrameStatus.OK:
            assert after.verdict.decision is Decision.UNJUDGED
        elif after.verdict.reason == "":
            assert self.now < frame.trigger_ns + self.DEADLINE - 10, "judged after its deadline"
            assert after.verdict.decision is (Decision.REJECT if score > 1.0 else Decision.PASS)

    @rule(step=st.integers(1, 60))
    def time_goes_on(self, step: int) -> None:
        self.now += step
        self.take(self.parts.expire(self.now))

    @invariant()
    def nobody_waits_beyond_the_deadline(self) -> None:
        for key in self.heard - self.verdicts.keys():
            assert self.sent[key].trigger_ns + self.DEADLINE - 10 > self.now, "a part waits beyond its deadline"
            assert (key[0], 5, key[1]) in set(self.parts)

    @invariant()
    def every_proven_part_is_in_flight_or_settled(self) -> None:
        in_flight = {(camera, sequence) for camera, _, sequence in self.parts}
        assert in_flight | self.verdicts.keys() == self.proved
        assert not in_flight & self.verdicts.keys()
        assert len(self.parts) <= 12
        for camera, sequence in self.verdicts:
            assert self.parts.settled(camera, 5, sequence)

    def teardown(self) -> None:
        self.take(self.parts.expire(self.now + 10_000))
        assert self.verdicts.keys() == self.proved
        assert self.parts.next_due() is None


Line.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLine = Line.TestCase

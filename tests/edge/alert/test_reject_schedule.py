"""The reject schedule against a plain model of belt and valve: the output's level over time, window by window."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.alert.rejects import (
    Added,
    Belt,
    EncoderReading,
    Event,
    Histogram,
    Missed,
    PulseOff,
    PulseOn,
    RejectSchedule,
    Swept,
)
from edge.settings_reject import EjectSettings

MS = 1_000_000


@dataclass
class Ruled:
    """A part of a generated run: when it was triggered, and when its ruling is known."""

    part: int
    eject: bool
    trigger_ns: int
    known_ns: int


@dataclass
class Valve:
    """The output over time, as the events and `on` tell it."""

    events: list[Event] = field(default_factory=list)
    edges: list[tuple[int, bool]] = field(default_factory=list)  # (ns, level from then on)

    def note(self, now_ns: int, schedule: RejectSchedule, events: list[Event]) -> None:
        self.events += events
        if not self.edges or self.edges[-1][1] != schedule.on:
            self.edges.append((now_ns, schedule.on))

    def intervals(self) -> list[tuple[int, int]]:
        """When the output was on."""
        found, since = [], None
        for ns, level in self.edges:
            if level and since is None:
                since = ns
            elif not level and since is not None:
                found.append((since, ns))
                since = None
        assert since is None, "the output was left on"
        return found

    def covering(self, begin: int, end: int, late: int) -> list[tuple[int, int]]:
        return [(on, off) for on, off in self.intervals() if on <= begin + late and off >= end]

    def ejected(self) -> list[int]:
        return [part for event in self.events if isinstance(event, PulseOff) for part in event.parts]

    def missed(self) -> list[int]:
        return [event.part for event in self.events if isinstance(event, Missed)]


def run_by_time(config: EjectSettings, parts: list[Ruled], delays: list[int]) -> tuple[RejectSchedule, Valve]:
    """Feeds rulings when they are known, and wakes when due, late by each of `delays` in turn."""
    schedule, valve, now, turn = RejectSchedule(config), Valve(), 0, 0
    waiting = sorted(parts, key=lambda part: part.known_ns)
    while waiting or schedule.next_due_ns(now) is not None or len(schedule):
        due = schedule.next_due_ns(now)
        moments = [waiting[0].known_ns] if waiting else []
        moments += [] if due is None else [due]
        # Where only passed parts are left, their windows end in a moment.
        now = max(now, min(moments) if moments else now + 10 * MS) + delays[turn % len(delays)]
        turn += 1
        while waiting and waiting[0].known_ns <= now:
            ruled = waiting.pop(0)
            schedule.add(ruled.part, ruled.eject, ruled.trigger_ns, None, now)
        valve.note(now, schedule, schedule.due(now))
        assert turn < 10_000, "the schedule makes no progress"
    return schedule, valve


spacings = st.lists(st.integers(1, 300), min_size=1, max_size=25)  # ms between parts


@st.composite
def runs(draw: st.DrawFn, early: bool) -> tuple[EjectSettings, list[Ruled]]:
    """Parts at any spacing. `early`: every ruling is known before its window, in any order."""
    config = EjectSettings(
        mode="direct",
        delay_ms=draw(st.integers(50, 1000)),
        pulse_ms=draw(st.integers(10, 120)),
        min_gap_ms=draw(st.integers(0, 100)),
        lead_ms=draw(st.integers(0, 20)),
        late_ms=draw(st.integers(1, 9)),
    )
    assert config.delay_ns is not None
    parts, trigger = [], 0
    for number, spacing in enumerate(draw(spacings)):
        trigger += spacing * MS
        longest = (config.delay_ns - config.lead_ns) // MS
        took = draw(st.integers(0, longest if early else 2 * longest))
        parts.append(Ruled(number, draw(st.booleans()), trigger, trigger + took * MS))
    return config, parts


def window(config: EjectSettings, ruled: Ruled) -> tuple[int, int]:
    assert config.delay_ns is not None
    begin = ruled.trigger_ns + config.delay_ns - config.lead_ns
    return begin, begin + round(config.pulse_ms * 1e6)


@settings(max_examples=300, deadline=None)
@given(runs(early=True))
def test_a_prompt_caller_covers_every_reject_and_nothing_else(run: tuple[EjectSettings, list[Ruled]]) -> None:
    """Every reject known in time has its whole window; the output is on nowhere but in windows and short gaps."""
    config, parts = run
    schedule, valve = run_by_time(config, parts, [0])
    rejects = sorted(window(config, part) for part in parts if part.eject)
    assert sorted(valve.ejected()) == sorted(part.part for part in parts if part.eject)
    assert valve.missed() == []
    for begin, end in rejects:
        assert len(valve.covering(begin, end, 0)) == 1
    # The union of windows, joined where a gap is shorter than allowed: the longest the output may ever be on.
    gap = round(config.min_gap_ms * 1e6)
    allowed: list[tuple[int, int]] = []
    for begin, end in rejects:
        if allowed and begin - allowed[-1][1] < max(gap, 1):
            allowed[-1] = (allowed[-1][0], max(end, allowed[-1][1]))
        else:
            allowed.append((begin, end))
    for on, off in valve.intervals():
        assert any(begin <= on and off <= end for begin, end in allowed)
    known = {window(config, part)[0]: part.known_ns for part in parts if part.eject}
    shorter = [(off, on) for (_, off), (on, _) in pairwise(valve.intervals()) if on - off < gap]
    assert len(shorter) == schedule.counts.short_gaps
    assert all(known[on] >= off for off, on in shorter)  # only where the ruling came after the valve was off
    swept = {event.part for event in valve.events if isinstance(event, Swept)}
    for part in parts:
        begin, end = window(config, part)
        touched = any(on < end and off > begin for on, off in valve.intervals())
        assert (part.part in swept) == (touched and not part.eject)
    assert schedule.lateness.max_ns == 0


@settings(max_examples=300, deadline=None)
@given(runs(early=False), st.lists(st.integers(0, 12 * MS), min_size=1, max_size=50))
def test_a_late_caller_ejects_in_time_or_says_that_it_did_not(
    run: tuple[EjectSettings, list[Ruled]], delays: list[int]
) -> None:
    """Rulings and turns may come late and out of order: a reject is in exactly one pulse, in time, or is missed."""
    config, parts = run
    schedule, valve = run_by_time(config, parts, delays)
    late = round(config.late_ms * 1e6)
    told = valve.ejected() + valve.missed()
    assert sorted(told) == sorted(part.part for part in parts if part.eject)
    ejected = set(valve.ejected())
    for part in parts:
        begin, end = window(config, part)
        if part.eject and part.part in ejected:
            assert len(valve.covering(begin, end, late)) >= 1
    on = [event for event in valve.events if isinstance(event, PulseOn)]
    off = [event for event in valve.events if isinstance(event, PulseOff)]
    assert len(on) == len(off) == schedule.counts.pulses
    assert schedule.counts.late == len(valve.missed())
    assert schedule.lateness.max_ns <= late
    # Nothing is on that is in no reject's window, gap or lateness of the caller.
    slack = max(delays) * 3 + late
    gap = round(config.min_gap_ms * 1e6)
    for began, ended in valve.intervals():
        parts_of = [window(config, part) for part in parts if part.eject and part.part in ejected]
        inside = sorted((b, e) for b, e in parts_of if b <= ended and e >= began)
        assert inside
        assert began >= inside[0][0]
        assert ended <= max(e for _, e in inside) + gap + slack


@dataclass
class TrueBelt:
    """A belt that really moves: constant speed between corners (ns, counts per second), from `zero` counts."""

    corners: list[tuple[int, float]]
    zero: int

    def place(self, ns: int) -> float:
        total, until = 0.0, ns
        for (begin, speed), (end, _) in zip(self.corners, [*self.corners[1:], (until + 1, 0.0)], strict=True):
            if begin >= until:
                break
            total += speed * (min(end, until) - begin) * 1e-9
        return total

    def count(self, ns: int, direction: int) -> int:
        """As an int32 register of the PLC shows it."""
        return (self.zero + direction * int(self.place(ns)) + 2**31) % 2**32 - 2**31


@st.composite
def belts(draw: st.DrawFn) -> TrueBelt:
    """Any profile: standing, slow, fast, changing at once; the count may wrap at any moment."""
    corners, at = [], 0
    for _ in range(draw(st.integers(1, 8))):
        corners.append((at, float(draw(st.sampled_from([0, 200, 500, 1000, 2000, 3000])))))
        at += draw(st.integers(50, 1500)) * MS
    corners.append((at, 1000.0))  # moves on in the end, so that every part arrives
    return TrueBelt(corners, draw(st.sampled_from([0, 2**31 - 500, -(2**31), 2**31 - 1, -3000])))


@settings(max_examples=150, deadline=None)
@given(
    belts(),
    st.lists(st.tuples(st.integers(100, 800), st.booleans(), st.integers(0, 150)), min_size=1, max_size=15),
    st.integers(2, 15),
    st.sampled_from([1, -1]),
    st.sampled_from(["readings", "frame"]),
)
def test_by_encoder_the_pulse_hits_where_the_part_is(
    belt: TrueBelt, spaced: list[tuple[int, bool, int]], every_ms: int, direction: int, encoder_at: str
) -> None:
    """Whatever the belt does, each reject gets one pulse, which begins when the part is at the ejector.

    The error is what the belt can move by between two readings and the window over which its speed is measured.
    """
    distance = 900
    config = EjectSettings(
        mode="direct",
        encoder_counts=direction * distance,
        pulse_ms=40,
        min_gap_ms=10,
        late_ms=35,
        encoder_at=encoder_at,
    )
    # Parts pass the camera by distance; a part is triggered when the belt has moved that far.
    parts, place = [], 0
    for number, (counts, eject, verdict_ms) in enumerate(spaced):
        place += counts
        parts.append((number, place, eject, verdict_ms * MS))
    schedule, valve = RejectSchedule(config), Valve()
    now, reading_at, pending, number = 0, 0, [], 0
    begun: dict[int, float] = {}
    while number < len(parts) or pending or len(schedule) or schedule.on:
        due = schedule.next_due_ns(now)
        now = min([reading_at, *([max(due, now)] if due is not None else [])])
        reading = None
        if now == reading_at:
            reading = EncoderReading(now, belt.count(now, direction))
            reading_at += every_ms * MS
        while number < len(parts) and belt.place(now) >= parts[number][1]:
            pending.append((now + parts[number][3], now, belt.count(now, direction), parts[number]))
            number += 1
        for item in [item for item in pending if item[0] <= now]:
            pending.remove(item)
            schedule.add(item[3][0], item[3][2], item[1], item[2], now)
        events = schedule.due(now, reading)
        for event in events:
            if isinstance(event, PulseOn):
                begun[event.part] = belt.place(now)
        valve.note(now, schedule, events)
        assert now < 120_000 * MS, "the schedule makes no progress"
    assert valve.missed() == []
    assert sorted(valve.ejected()) == sorted(part for part, _, eject, _ in parts if eject)
    # The trigger above is seen with the readings, so up to one interval late; then the speed may have changed by all
    # of it since it was measured: over the interval, or the window of 20 ms, whichever is longer.
    tolerance = 3000 * (2 * every_ms + 20) * 1e-3 + 3
    for part, where in begun.items():
        assert abs(where - (parts[part][1] + distance)) <= tolerance


def test_a_steady_belt_is_met_within_a_count_or_two() -> None:
    config = EjectSettings(mode="direct", distance_mm=450, counts_per_mm=2, pulse_ms=30, late_ms=5)
    schedule, met = RejectSchedule(config), {}
    belt = TrueBelt([(0, 1000.0)], 2**31 - 700)
    schedule.due(0, EncoderReading(0, belt.count(0, 1)))
    reading_at = 10 * MS
    for part, trigger in ((1, 105 * MS), (2, 333 * MS), (3, 350 * MS)):
        while reading_at <= trigger + 10 * MS:
            schedule.due(reading_at, EncoderReading(reading_at, belt.count(reading_at, 1)))
            reading_at += 10 * MS
        schedule.add(part, part != 2, trigger, None, reading_at - 10 * MS)
    now = reading_at - 10 * MS
    while len(schedule) or schedule.on:
        due = schedule.next_due_ns(now)
        now = reading_at if due is None else min(reading_at, due)
        reading = None
        if now == reading_at:
            reading = EncoderReading(now, belt.count(now, 1))
            reading_at += 10 * MS
        for event in schedule.due(now, reading):
            if isinstance(event, PulseOn):
                met[event.part] = now
    assert met.keys() == {1, 3}
    assert met[1] == pytest.approx((105 + 900) * MS, abs=2 * MS)
    assert met[3] == pytest.approx((350 + 900) * MS, abs=2 * MS)


def by_encoder(**changes: object) -> RejectSchedule:
    values = {"mode": "direct", "encoder_counts": 500, "pulse_ms": 20, "late_ms": 5, "max_counts_s": 10_000, **changes}
    return RejectSchedule(EjectSettings.model_validate(values))


def test_a_belt_that_stops_holds_its_parts() -> None:
    schedule = by_encoder()
    for ms in range(0, 401, 10):
        assert schedule.due(ms * MS, EncoderReading(ms * MS, ms)) == []
    schedule.add(1, True, 100 * MS, None, 400 * MS)
    for ms in range(410, 60_000, 10):  # stands at 400 for a minute
        assert schedule.due(ms * MS, EncoderReading(ms * MS, 400)) == []
    assert schedule.next_due_ns(60_000 * MS) is None
    events = []
    for ms in range(60_000, 60_400, 10):
        events += schedule.due(ms * MS, EncoderReading(ms * MS, 400 + ms - 60_000))
    on = [event for event in events if isinstance(event, PulseOn)]
    assert [event.part for event in on] == [1]
    assert on[0].due_ns == pytest.approx(60_200 * MS, abs=12 * MS)


def test_without_readings_no_pulse_begins_and_afterwards_the_place_decides() -> None:
    """Readings stop for a second: what passed meanwhile is missed and said so, what is still ahead is ejected."""
    schedule = by_encoder()
    for ms in range(0, 301, 10):
        schedule.due(ms * MS, EncoderReading(ms * MS, ms))
    schedule.add(1, True, 100 * MS, None, 300 * MS)  # at the ejector at 600 ms
    schedule.add(2, True, 290 * MS, None, 300 * MS)  # at 790 ms, but the belt pauses in the dark
    events = []
    for ms in range(310, 1300, 5):
        events += schedule.due(ms * MS)
    assert events == []
    for ms in range(1300, 1500, 10):
        events += schedule.due(ms * MS, EncoderReading(ms * MS, 700 + ms - 1300))
    missed, on = events[0], events[1]
    assert isinstance(missed, Missed)
    assert (missed.part, schedule.counts.late) == (1, 1)
    assert missed.late_ns > 100 * MS
    assert isinstance(on, PulseOn)
    assert on.part == 2
    assert on.due_ns == pytest.approx(1390 * MS, abs=12 * MS)


def test_a_counter_that_was_reset_ejects_nobody() -> None:
    """After a reset the old places mean nothing: parts that waited are missed and said so, new ones are ejected."""
    schedule = by_encoder()
    for ms in range(0, 401, 10):
        schedule.due(ms * MS, EncoderReading(ms * MS, 5000 + ms))
    schedule.add(1, True, 200 * MS, None, 400 * MS)
    schedule.add(2, False, 300 * MS, None, 400 * MS)
    events = schedule.due(410 * MS, EncoderReading(410 * MS, 0))
    assert [(type(event), event.part) for event in events if isinstance(event, Missed)] == [(Missed, 1)]
    assert (schedule.counts.track_lost, schedule.counts.unplaced, len(schedule)) == (1, 1, 0)
    events = []
    for ms in range(420, 1200, 10):
        events += schedule.due(ms * MS, EncoderReading(ms * MS, ms - 410))
        if ms == 500:
            schedule.add(3, True, 455 * MS, None, ms * MS)
    assert [event.part for event in events if isinstance(event, PulseOn)] == [3]


def test_a_part_from_before_the_first_reading_is_missed_and_said_so() -> None:
    schedule = by_encoder()
    schedule.due(1000 * MS, EncoderReading(1000 * MS, 7))
    schedule.due(1010 * MS, EncoderReading(1010 * MS, 17))
    assert schedule.add(1, True, 900 * MS, None, 1010 * MS) is Added.LATE
    assert [event.part for event in schedule.due(1011 * MS) if isinstance(event, Missed)] == [1]
    assert by_encoder(encoder_at="frame").add(1, True, 0, None, 0) is Added.LATE


def test_the_same_ruling_twice_is_one_pulse_and_a_full_schedule_says_so() -> None:
    schedule = RejectSchedule(EjectSettings(mode="direct", delay_ms=100), capacity=1)
    assert schedule.add(1, True, 0, None, 0) is Added.WAITING
    assert schedule.add(1, True, 0, None, 0) is Added.REPEATED
    assert schedule.add(2, True, 10 * MS, None, 10 * MS) is Added.LATE
    assert [event.part for event in schedule.due(20 * MS) if isinstance(event, Missed)] == [2]
    assert schedule.counts.crowded == 1


def test_cancel_takes_the_output_off_and_names_who_is_not_ejected() -> None:
    schedule = RejectSchedule(EjectSettings(mode="direct", delay_ms=100))
    schedule.add(1, True, 0, None, 0)
    schedule.add(2, True, 500 * MS, None, 0)
    schedule.due(100 * MS)
    assert schedule.on
    events = schedule.cancel("the line stops", 110 * MS)
    assert not schedule.on
    assert events == [Missed(2, "the line stops"), PulseOff(110 * MS, (1,))]
    assert schedule.next_due_ns(111 * MS) is None


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=300))
def test_a_histogram_is_an_eighth_too_large_at_most(durations: list[int]) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    ordered = sorted(durations)
    for percent in (50.0, 99.0, 100.0):
        true = ordered[max(0, -(-len(ordered) * int(percent * 10) // 1000) - 1)]
        assert true <= histogram.percentile_ns(percent) <= true * 1.125
    assert histogram.max_ns == ordered[-1]


@given(belts(), st.integers(1, 40))
def test_the_belts_place_is_interpolated_between_readings(belt: TrueBelt, every_ms: int) -> None:
    track = Belt(1e6, 100 * MS)
    for ns in range(0, 2000 * MS, every_ms * MS):
        assert track.read(EncoderReading(ns, belt.count(ns, 1)))
    for ns in range(0, 1900 * MS, 37 * MS):
        place = track.place_at(ns)
        assert place is not None
        assert abs(place - belt.place(ns)) <= 3000 * every_ms * 1e-3 / 2 + 2


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "give exactly"),
        ({"delay_ms": 100, "encoder_counts": 5}, "given: delay_ms, encoder_counts"),
        ({"distance_mm": 100}, "given: distance_mm"),
        ({"encoder_counts": 0}, "at least one encoder count"),
        ({"delay_ms": 100, "late_ms": 50}, "must be below pulse_ms"),
        ({"delay_ms": 100, "lead_ms": 100}, "must be below the delay"),
    ],
)
def test_an_ejector_without_one_clear_place_is_refused(keys: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EjectSettings.model_validate({"mode": "direct", **keys})


def test_a_deadline_beyond_the_ejector_is_named() -> None:
    config = EjectSettings(mode="direct", distance_mm=200, belt_mm_s=500)
    assert config.too_soon(300) == ""
    assert "the ejector is 400 ms behind the camera" in config.too_soon(500)

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.inference.batching import Batcher, Waiting


def item(make_frame: Any, sequence: int, due: int, group: str = "a", arrived: int = 0, size: int = 0) -> Waiting:
    pixels = np.zeros(size, np.uint8) if size else None
    return Waiting(make_frame(sequence), group, arrived, due, pixels)


def sequences(items: list[Waiting]) -> list[int]:
    return [item.frame.id.sequence for item in items]


def test_most_urgent_group_first_and_in_it_the_most_urgent_frames(make_frame: Any) -> None:
    batcher = Batcher(batch_max=2, wait_ns=0)
    for sequence, due, group in ((0, 500, "a"), (1, 100, "b"), (2, 300, "a"), (3, 400, "a")):
        batcher.add(item(make_frame, sequence, due, group))
    assert [sequences(batcher.take(10)) for _ in range(4)] == [[1], [2, 3], [0], []]


def test_waits_for_others_but_not_long(make_frame: Any) -> None:
    batcher = Batcher(batch_max=3, wait_ns=20)
    batcher.add(item(make_frame, 0, 1000, arrived=100))
    assert batcher.take(119) == []
    assert batcher.ready_ns() == 120
    batcher.add(item(make_frame, 1, 1000, arrived=119))
    assert sequences(batcher.take(120)) == [0, 1]
    for sequence in range(4):
        batcher.add(item(make_frame, sequence, 1000, arrived=200))
    assert sequences(batcher.take(200)) == [0, 1, 2], "a full batch need not wait"


def test_never_waits_into_a_deadline(make_frame: Any) -> None:
    batcher = Batcher(batch_max=8, wait_ns=1000)
    batcher.add(item(make_frame, 0, due=140, arrived=100))
    assert batcher.ready_ns() == 120
    assert sequences(batcher.take(120)) == [0]


def test_a_group_that_waits_does_not_hold_up_another(make_frame: Any) -> None:
    batcher = Batcher(batch_max=2, wait_ns=100)
    batcher.add(item(make_frame, 0, due=900, group="a", arrived=50))
    batcher.add(item(make_frame, 1, due=950, group="b", arrived=0))
    assert sequences(batcher.take(101)) == [1]


def test_frames_that_gain_nothing_by_company_go_one_by_one(make_frame: Any) -> None:
    batcher = Batcher(batch_max=8, wait_ns=50)
    for sequence in range(2):
        batcher.add(replace(item(make_frame, sequence, 1000 + sequence, arrived=100), alone=True))
    assert sequences(batcher.take(100)) == [0]
    assert sequences(batcher.take(100)) == [1]


def test_frames_without_enough_time_left_are_given_up_early(make_frame: Any) -> None:
    batcher = Batcher(batch_max=8, wait_ns=0)
    half = make_frame().deadline_ns // 2
    for sequence, due in ((0, half - 1), (1, half), (2, half + 1), (3, 3 * half)):
        batcher.add(item(make_frame, sequence, due))
    assert sequences(batcher.expired(0, needed_ns=10)) == []
    # Slower than any frame has time for: those with half of their time left are tried all the same.
    assert sequences(batcher.expired(0, needed_ns=10 * half)) == [0, 1]
    assert sequences(batcher.take(0)) == [2, 3]


@given(engine_ms=st.integers(20, 190), rate_ms=st.integers(10, 60))
def test_overload_wastes_no_work(make_frame: Any, engine_ms: int, rate_ms: int) -> None:
    """Every score that is worked for comes in time, however many frames come: no collapse into being always late."""
    deadline_ms, now, frames = make_frame().deadline_ns // 1_000_000, 0, 100
    batcher = Batcher(batch_max=8, wait_ns=0)
    waiting = [
        replace(item(make_frame, i, i * rate_ms + deadline_ms, arrived=i * rate_ms), alone=True) for i in range(frames)
    ]
    in_time = tried = 0
    while waiting or len(batcher):
        while waiting and waiting[0].arrived_ns <= now:
            batcher.add(waiting.pop(0))
        batcher.expired(now, engine_ms)
        batch = batcher.take(now)
        now = now + engine_ms if batch else max(now + 1, waiting[0].arrived_ns if waiting else 0)
        tried += len(batch)
        in_time += sum(now <= each.due_ns for each in batch)
    assert in_time == tried
    assert tried >= min(frames, (frames - 1) * rate_ms // engine_ms)


def test_late_frames_are_not_scored(make_frame: Any) -> None:
    batcher = Batcher(batch_max=8, wait_ns=0)
    for sequence, due in ((0, 100), (1, 300), (2, 99)):
        batcher.add(item(make_frame, sequence, due))
    assert sequences(batcher.expired(100)) == [2, 0]
    assert sequences(batcher.take(100)) == [1]


def test_full_queue_gives_up_the_most_urgent(make_frame: Any) -> None:
    batcher = Batcher(batch_max=8, wait_ns=0, capacity=2)
    assert batcher.add(item(make_frame, 0, 300, "a")) == []
    assert batcher.add(item(make_frame, 1, 100, "b")) == []
    assert sequences(batcher.add(item(make_frame, 2, 200, "a"))) == [1]
    assert len(batcher) == 2


def test_bytes_are_bounded_too(make_frame: Any) -> None:
    batcher = Batcher(batch_max=8, wait_ns=0, capacity_bytes=1000)
    batcher.add(item(make_frame, 0, 100, size=600))
    assert sequences(batcher.add(item(make_frame, 1, 200, size=600))) == [0]
    assert sequences(batcher.add(item(make_frame, 2, 300, size=5000))) == [1]
    assert len(batcher) == 1, "a frame larger than all room is still judged, alone"


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 60), st.sampled_from("abc")),
            st.tuples(st.just("turn"), st.integers(0, 15), st.just("")),
        ),
        max_size=60,
    ),
    batch_max=st.integers(1, 4),
    wait=st.integers(0, 20),
)
def test_every_frame_leaves_exactly_once(make_frame: Any, steps: list[Any], batch_max: int, wait: int) -> None:
    batcher = Batcher(batch_max, wait, capacity=9)
    now, count = 0, 0
    left: list[int] = []
    for what, value, group in steps:
        if what == "add":
            left += sequences(batcher.add(item(make_frame, count, now + value, group, arrived=now)))
            count += 1
            assert len(batcher) <= 9
            continue
        now += value
        late = batcher.expired(now)
        assert all(waiting.due_ns <= now for waiting in late)
        left += sequences(late)
        while batch := batcher.take(now):
            assert len(batch) <= batch_max
            assert len({waiting.group for waiting in batch}) == 1
            assert all(waiting.due_ns > now for waiting in batch), "scored after its deadline"
            left += sequences(batch)
        assert (batcher.ready_ns() is None) == (len(batcher) == 0)
        assert (batcher.ready_ns() or now + 1) > now, "it says that it is ready, and gives nothing"
    while batch := batcher.take(10**9):
        left += sequences(batch)
    assert sorted(left) == list(range(count))

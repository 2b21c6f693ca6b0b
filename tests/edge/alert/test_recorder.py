from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.alert.history import History
from edge.alert.ledger import Ledger
from edge.alert.ledger_schema import Entry
from edge.alert.recorder import RETRY_NS, UNWRITTEN, Recorder
from edge.messages import Decision


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite", "press") as ledger:
        yield ledger


def entries(make_verdict: Any, first: int, count: int, decision: str = "pass") -> list[Entry]:
    return [Entry(make_verdict(i, decision)) for i in range(first, first + count)]


def rows(ledger: Ledger) -> dict[int, Decision]:
    with History(ledger.path) as history:
        return {entry.verdict.id.sequence: entry.verdict.decision for entry in history.entries()}


def test_full_ledger_makes_parts_unjudged_and_their_rows_wait(ledger: Ledger, make_verdict: Any) -> None:
    recorder = Recorder(ledger)
    assert recorder.record(entries(make_verdict, 0, 5), 0) == entries(make_verdict, 0, 5)
    ledger.limit_pages(10)
    published = recorder.record(entries(make_verdict, 5, 2000), 0)
    assert {(e.verdict.decision, e.verdict.reason) for e in published} == {(Decision.UNJUDGED, UNWRITTEN)}
    assert [e.verdict.id.sequence for e in published] == list(range(5, 2005))
    assert "full" in recorder.fault
    assert recorder.record(entries(make_verdict, 2005, 1), 1)[0].verdict.decision is Decision.UNJUDGED
    ledger.limit_pages(0)
    (after,) = recorder.record(entries(make_verdict, 2006, 1, "reject"), 2 * RETRY_NS)
    assert after.verdict.decision is Decision.REJECT
    assert (recorder.fault, recorder.waiting) == ("", 0)
    written = rows(ledger)
    assert len(written) == 2007
    assert [written[i] for i in (4, 5, 2005, 2006)] == [
        Decision.PASS,
        Decision.UNJUDGED,
        Decision.UNJUDGED,
        Decision.REJECT,
    ]


def test_memory_for_waiting_rows_is_bounded(ledger: Ledger, make_verdict: Any) -> None:
    recorder = Recorder(ledger, capacity=50)
    ledger.limit_pages(10)
    assert len(recorder.record(entries(make_verdict, 0, 2000), 0)) == 2000
    assert (recorder.waiting, recorder.given_up) == (50, 1950)


def test_part_with_a_row_is_not_published_again(ledger: Ledger, make_verdict: Any) -> None:
    recorder = Recorder(ledger)
    recorder.record(entries(make_verdict, 0, 2), 0)
    published = recorder.record(entries(make_verdict, 1, 2, "reject"), 0)
    assert [e.verdict.id.sequence for e in published] == [2]
    assert recorder.contradictions == 1


def test_damage_while_running_begins_a_new_ledger(ledger: Ledger, make_verdict: Any) -> None:
    recorder = Recorder(ledger)
    recorder.record(entries(make_verdict, 0, 2000), 0)
    ledger.close()
    with Ledger.open(ledger.path, "press") as damaged:
        recorder = Recorder(damaged)
        with ledger.path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(ledger.path.stat().st_size - 4096))
        published = recorder.record(entries(make_verdict, 2000, 2000), 0)
        assert [e.verdict.decision for e in published] == [Decision.PASS] * 2000
        assert "moved to" in damaged.fault
        assert set(range(2000, 4000)) <= rows(damaged).keys()

"""One session, step by step, in simulated time: faults and their codes, order, back-off, direct drive."""

from __future__ import annotations

from typing import Any

import pytest

from edge.alert.plc.adapter import Fault, Inputs, Outputs, Result
from edge.alert.plc.handshake import CAPACITY, REMEMBERED
from edge.alert.plc.session import BACKOFF_NS, Session, result_of
from edge.errors import PlcError, PlcTimeout
from edge.messages import Decision
from edge.settings_plc import PlcSettings

MS = 1_000_000
PASS, REJECT, UNJUDGED = Decision.PASS, Decision.REJECT, Decision.UNJUDGED


class Plc:
    """An adapter in a test's hand: notes the blocks, acknowledges at once unless told not to."""

    def __init__(self) -> None:
        self.name = "test"
        self.ns = 1_000_000 * MS
        self.blocks: list[Outputs] = []
        self.times: list[int] = []
        self.fails: list[PlcError] = []  # of the next exchanges
        self.refuses = False
        self.ack = 0
        self.acknowledges = True
        self.encoder = 0
        self.closed = 0

    def clock(self) -> int:
        self.ns += 1  # time passes between any two looks at a clock
        return self.ns

    def connect(self) -> None:
        if self.refuses:
            raise PlcError("test: refused")

    def exchange(self, outputs: Outputs) -> Inputs:
        self.ns += MS
        self.blocks.append(outputs)
        self.times.append(self.ns)
        if self.fails:
            raise self.fails.pop(0)
        if self.acknowledges:
            self.ack = outputs.valid
        return Inputs(ack=self.ack, encoder=self.encoder, run=True)

    def close(self) -> None:
        self.closed += 1


class Bench:
    """A session, its PLC and alert."""

    def __init__(self, eject: dict[str, Any] | None = None, unjudged: str = "reject", **more: Any) -> None:
        wanted: dict[str, Any] = {"adapter": {"type": "simulated", "timeout_ms": 50}, "eject": eject or {}, **more}
        self.plc = Plc()
        self.session = Session(self.plc, PlcSettings.model_validate(wanted), unjudged, self.plc.clock, first_valid=99)  # type: ignore[arg-type]
        self.heard = True

    def run(self, ms: float) -> None:
        """So long, turn after turn."""
        end = self.plc.ns + round(ms * MS)
        while self.plc.ns < end:
            if self.heard:
                self.session.hear()
            self.session.turn()
            self.plc.ns = max(self.plc.ns, min(self.session.wake_ns(), self.plc.ns + 10 * MS, end))

    def rule(self, part: int, decision: Decision, age_ms: float = 0) -> int:
        """A ruling of a part that was triggered `age_ms` ago; when it was triggered."""
        trigger = self.plc.ns - round(age_ms * MS)
        self.session.rule(part, decision, trigger)
        return trigger

    def results(self) -> list[tuple[int, Result]]:
        """What was told, each once."""
        told = {block.valid: (block.part, block.result) for block in self.plc.blocks if block.result is not Result.NONE}
        return list(told.values())

    @property
    def fault(self) -> int:
        return self.plc.blocks[-1].fault

    def alarms(self) -> list[Fault]:
        return [alarm.fault for alarm in self.session.alarms()]


def test_results_go_out_in_order_and_the_block_is_cleared_after_each() -> None:
    bench = Bench()
    bench.run(1200)
    first = bench.plc.ack
    assert (bench.plc.blocks[-1].ready, bench.fault, bench.plc.blocks[-1].valid) == (True, 0, first)
    for part, decision in ((7, PASS), (9, REJECT), (8, UNJUDGED)):
        bench.rule(part, decision)
    bench.run(100)
    assert bench.results() == [(7, Result.PASS), (9, Result.REJECT), (8, Result.UNJUDGED)]
    assert [block.valid for block in bench.plc.blocks if block.result] == [first + 1, first + 2, first + 3]
    assert (bench.plc.blocks[-1].result, bench.plc.blocks[-1].part) == (Result.NONE, 0)
    beats = [block.heartbeat for block in bench.plc.blocks]
    assert beats == list(range(beats[0], beats[0] + len(beats)))
    assert bench.alarms() == []


def test_a_verdict_is_told_once() -> None:
    bench = Bench()
    bench.run(1200)
    trigger = bench.rule(7, PASS)
    bench.session.rule(7, PASS, trigger)
    bench.run(100)
    bench.session.rule(7, REJECT, trigger)
    bench.run(100)
    assert bench.results() == [(7, Result.PASS)]
    assert bench.session.counters()["repeated_rulings"] == 2
    for part in range(1000, 1000 + REMEMBERED + 10):
        bench.session.handshake.rule(part, Result.PASS, 0, bench.plc.ns)
    assert len(bench.session.handshake._known) == REMEMBERED


@pytest.mark.parametrize(("mode", "decision"), [("pass_on_good", PASS), ("reject_on_fail", REJECT)])
def test_a_late_verdict_is_not_sent_and_is_a_fault_where_it_matters(mode: str, decision: Decision) -> None:
    bench = Bench(mode=mode)
    bench.run(1200)
    bench.rule(7, decision, age_ms=1001)
    bench.run(50)
    assert (bench.results(), bench.fault, bench.alarms()) == ([], Fault.LATE, [Fault.LATE])
    bench.run(1100)
    assert bench.fault == 0
    bench.rule(8, REJECT if decision is PASS else PASS, age_ms=1001)  # what happens without a result anyway
    bench.run(50)
    assert (bench.results(), bench.fault, bench.session.counters()["results_late"]) == ([], 0, 2)


def test_what_is_not_acknowledged_gives_way_and_is_a_fault() -> None:
    bench = Bench()
    bench.run(1200)
    bench.plc.acknowledges = False
    bench.rule(7, PASS)
    bench.rule(8, PASS)
    bench.run(210)
    assert (bench.fault, bench.results()) == (Fault.NOT_ACKNOWLEDGED, [(7, Result.PASS), (8, Result.PASS)])
    bench.plc.acknowledges = True
    bench.run(1300)
    assert (bench.fault, bench.session.counters()["results_unacked"]) == (0, 1)
    assert bench.session.counters()["results_acked"] == 1


def test_a_plc_that_follows_no_handshake_is_named() -> None:
    bench = Bench()
    bench.plc.acknowledges = False
    bench.run(300)
    assert bench.fault == Fault.STARTING or bench.fault == Fault.NOT_ACKNOWLEDGED
    assert Fault.NOT_ACKNOWLEDGED in bench.alarms()
    bench.rule(7, PASS)
    bench.run(100)
    assert bench.results() == []


def test_an_unknown_outcome_is_a_fault_until_the_same_block_is_acknowledged() -> None:
    bench = Bench()
    bench.run(1200)
    bench.plc.fails = [PlcTimeout("test: no answer")]
    bench.rule(7, PASS)
    bench.run(1)
    assert bench.alarms() == [Fault.UNKNOWN_OUTCOME]
    assert bench.session.trouble == "test: no answer"
    assert bench.plc.closed == 1
    before = bench.plc.blocks[-1]
    bench.run(30)
    again = bench.plc.blocks[
        len(bench.plc.blocks) - 1 - [b.result for b in reversed(bench.plc.blocks)].index(Result.PASS)
    ]
    assert (again.valid, again.part) == (before.valid, before.part)
    bench.run(60)
    assert (bench.fault, bench.session.counters()["results_acked"]) == (0, 1)
    assert bench.session.counters()["timeouts"] == 1


def test_an_outcome_that_stays_unknown_is_counted() -> None:
    bench = Bench()
    bench.run(1200)
    bench.plc.fails = [PlcTimeout("test: no answer")]
    bench.rule(7, PASS)
    bench.run(1)
    bench.plc.refuses = True
    bench.run(1500)
    bench.plc.refuses = False
    bench.run(2100)
    counters = bench.session.counters()
    assert (counters["results_unresolved"], counters["results_acked"], len(bench.session.handshake)) == (1, 0, 0)
    assert bench.fault == 0


def test_attempts_to_connect_back_off_and_begin_anew_after_success() -> None:
    bench = Bench(reconnect_max_ms=400)
    bench.plc.refuses = True
    bench.run(3000)
    attempts = bench.session.errors
    assert 8 <= attempts <= 14  # 20, 40 ... 400, 400 ms
    assert bench.session.trouble == "test: refused"
    bench.plc.refuses = False
    bench.run(500)
    assert bench.session.connected
    assert bench.session._backoff_ns == BACKOFF_NS


def test_silence_of_alert_is_told_and_the_heartbeat_stands() -> None:
    bench = Bench(silence_ms=300)
    bench.run(1200)
    bench.heard = False
    bench.run(500)
    last = bench.plc.blocks[-1]
    assert (last.ready, last.fault, last.eject) == (False, Fault.SILENT, True)
    assert bench.alarms() == [Fault.SILENT]
    bench.run(200)
    assert bench.plc.blocks[-1].heartbeat == last.heartbeat
    bench.heard = True
    bench.run(200)
    assert (bench.plc.blocks[-1].ready, bench.fault) == (True, 0)


def test_a_new_alert_is_a_fault_for_parts_on_their_way() -> None:
    bench = Bench()
    bench.run(1200)
    bench.session.handshake.restarted(bench.plc.ns)
    bench.run(100)
    assert bench.fault == Fault.STARTING


def test_too_many_results_lose_the_oldest() -> None:
    bench = Bench(window_ms=600_000, ack_ms=60_000)
    bench.run(1200)
    bench.plc.acknowledges = False
    for part in range(CAPACITY + 3):
        bench.rule(part, PASS)
    bench.run(20)
    assert (bench.fault, bench.session.counters()["results_overflow"]) == (Fault.OVERFLOW, 3)
    assert bench.results() == [(3, Result.PASS)]


@pytest.mark.parametrize("safe", [None, False])
def test_at_stop_the_outputs_are_safe(safe: bool | None) -> None:
    bench = Bench(safe_eject=safe)
    bench.run(1200)
    bench.rule(7, PASS)
    bench.session.stop()
    last = bench.plc.blocks[-1]
    assert (last.ready, last.result, last.fault, last.eject) == (False, Result.NONE, Fault.STOPPED, safe is None)
    assert bench.plc.closed == 1
    bench.plc.fails = [PlcTimeout("test: no answer")]
    bench.session.stop()  # twice is no harm


@pytest.mark.parametrize(
    ("decision", "unjudged", "result"),
    [(UNJUDGED, "reject", Result.UNJUDGED), (UNJUDGED, "pass", Result.PASS), (REJECT, "pass", Result.REJECT)],
)
def test_what_unjudged_becomes(decision: Decision, unjudged: str, result: Result) -> None:
    assert result_of(decision, unjudged) is result
    bench = Bench(unjudged=unjudged)
    bench.run(1200)
    bench.rule(7, decision)
    bench.run(50)
    assert bench.results() == [(7, result)]


# --- the ejector, driven directly ------------------------------------------------------------------------------------

DIRECT = {"mode": "direct", "delay_ms": 300, "pulse_ms": 40, "min_gap_ms": 0, "late_ms": 10}


def on_times(bench: Bench, on: bool) -> list[tuple[int, int]]:
    """When the output was `on`: begins and ends."""
    found, begin = [], None
    for block, at in zip(bench.plc.blocks, bench.plc.times, strict=True):
        if block.eject is on and block.ready and begin is None:
            begin = at
        elif block.eject is not on and begin is not None:
            found.append((begin, at))
            begin = None
    return found


@pytest.mark.parametrize("mode", ["reject_on_fail", "pass_on_good"])
def test_the_output_is_switched_over_each_part(mode: str) -> None:
    bench = Bench(DIRECT, mode=mode, safe_eject=mode == "pass_on_good")
    bench.run(1200)
    wanted = []
    for part, decision in enumerate([REJECT, PASS, PASS, UNJUDGED, PASS, REJECT]):
        trigger = bench.rule(part, decision)
        if (decision is PASS) == (mode == "pass_on_good"):
            wanted.append(trigger + 300 * MS)
        bench.run(100)
    bench.run(400)
    switched = on_times(bench, mode == "reject_on_fail")
    assert len(switched) == 3
    for due, (begin, end) in zip(wanted, switched, strict=True):
        assert due <= begin < due + 3 * MS  # one exchange
        assert due + 40 * MS <= end < due + 43 * MS
    assert bench.session.counters()["pulses"] == 3
    assert all(block.result is not Result.NONE for block in bench.plc.blocks[-5:])  # the last one, for lamps


def test_a_bad_part_close_to_a_good_one_keeps_the_gate_shut() -> None:
    """Their windows overlap: letting the good one through would let the bad one through too."""
    bench = Bench({**DIRECT, "min_gap_ms": 20}, mode="pass_on_good")
    bench.run(1200)
    good = bench.rule(1, PASS)
    bench.run(20)
    bad = bench.rule(2, REJECT)
    bench.run(400)
    for begin, end in on_times(bench, False):
        assert end <= bad + 300 * MS + 2 * MS or begin >= bad + 340 * MS
        assert begin >= good + 300 * MS


def test_a_pulse_whose_begin_failed_does_not_begin_again() -> None:
    bench = Bench(DIRECT, mode="reject_on_fail")
    bench.run(1200)
    bench.rule(1, REJECT)
    bench.run(290)
    bench.plc.fails = [PlcTimeout("test: no answer")]
    bench.run(300)
    failed = [number for number, block in enumerate(bench.plc.blocks) if block.eject]
    assert len(failed) == 1
    assert Fault.UNKNOWN_OUTCOME in bench.alarms()
    bench.rule(2, REJECT)
    bench.run(500)
    assert len(on_times(bench, True)) == 2  # the one that failed, and the next part's pulse


def test_a_pulse_that_would_come_late_is_a_fault() -> None:
    bench = Bench(DIRECT, mode="reject_on_fail")
    bench.run(1200)
    bench.rule(1, REJECT, age_ms=320)
    bench.run(30)
    assert (bench.fault, on_times(bench, True)) == (Fault.MISSED, [])
    assert bench.session.counters()["pulses_missed"] == 1


def test_a_heartbeat_waits_for_a_pulse_that_is_near() -> None:
    bench = Bench(DIRECT, mode="reject_on_fail", heartbeat_ms=50)
    bench.run(1200)
    triggers = []
    for part in range(20):
        triggers.append(bench.rule(part, REJECT))
        bench.run(83)  # out of step with the heartbeat
    bench.run(400)
    for due, (begin, _) in zip(triggers, on_times(bench, True), strict=True):
        assert begin - due - 300 * MS <= 1.1 * MS  # never one exchange more

"""The handshake with the PLC: which result is in the block now, and what its acknowledgement, or silence, means.

Pure logic: no clock, no socket. The caller passes the time (CLOCK_MONOTONIC nanoseconds), writes what `outputs` says
and tells what came of it (`exchanged`, `failed`). The PLC's side is docs/plc/edge_inspect.st. What holds:

    One result is in the block at a time, in the order in which they came: part number, result, and `valid`, which
    changes with each. It stays until the PLC shows the same number in `ack` (it found the part, still on its way) or
    `ack_ms` have passed; then the next one follows, and the lack of it is a fault.
    A result whose window (`window_ms` from the part's trigger) is over is not sent: it is counted, and is a fault
    where it would have changed what becomes of the part.
    After a connection failed with a result in the block, its outcome is unknown: a fault, until the PLC's `ack` says
    that it had arrived or the same result, under the same `valid`, was sent again. A PLC that sees it twice, or much
    later, sees a known `valid`, or a part that is no longer on its way.
    After a start, of this side or of alert, verdicts on parts that are on their way may be lost: a fault, long enough
    for the PLC to see it.
    The heartbeat advances with each exchange while alert lives. Without it the PLC rejects, by its own decision.

Before the first result the two sides agree on `valid`: a block without a result, under a number drawn at random, which
the PLC acknowledges. So neither what a predecessor of this process left behind, nor a block of it that was stuck in the
network and arrives later, is taken for an acknowledgement of one of ours. `valid` is never 0, which is what a PLC that
has just started remembers.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass, replace

from edge.alert.plc.adapter import UINT16, UINT32, Fault, Inputs, Outputs, Result
from edge.settings_plc import PlcSettings

CAPACITY = 1024  # results that wait; at 20 parts/s and a window of a second there are 20
REMEMBERED = 8192  # parts whose ruling, told again, changes nothing
FAULT_HOLD_NS = 1_000_000_000  # a fault that is over is shown for so long, to be seen by any scan and any person
ALARMS_KEPT = 64

# What is shown where several faults are present: the first of these.
SEVERITY = (
    Fault.STOPPED,
    Fault.SILENT,
    Fault.UNKNOWN_OUTCOME,
    Fault.MISSED,
    Fault.STARTING,
    Fault.NOT_ACKNOWLEDGED,
    Fault.OVERFLOW,
    Fault.LATE,
)


@dataclass
class Counts:
    """What became of results, since the start."""

    rulings: int = 0
    repeated: int = 0  # rulings told again
    sent: int = 0  # results put into the block
    acked: int = 0
    unacked: int = 0  # written, but not acknowledged within ack_ms
    late: int = 0  # not sent: the window was over
    overflow: int = 0  # not sent: too many waited
    unknown: int = 0  # times a connection failed with a result in the block
    unresolved: int = 0  # of these, results whose window ended before the PLC answered again


@dataclass(frozen=True, slots=True)
class Alarm:
    """A fault that has just begun, for the log."""

    fault: Fault
    text: str


@dataclass(slots=True)
class _Pending:
    part: int
    result: Result
    until_ns: int  # end of its window
    written_ns: int | None = None  # when it was first known to be in the PLC's block, on this connection
    unknown: bool = False  # a connection failed with it in the block, and the PLC has not answered since


class Handshake:
    """The state of one PLC's handshake.

    `carries_results`: False where this program drives the ejector itself. Each result is then shown as it comes, for
    lamps and counters, and nobody waits for an acknowledgement.
    """

    def __init__(self, settings: PlcSettings, carries_results: bool = True, first_valid: int | None = None) -> None:
        self._pass_on_good = settings.mode == "pass_on_good"
        self._window_ns = round(settings.window_ms * 1e6)
        self._ack_ns = round(settings.ack_ms * 1e6)
        self._silence_ns = round(settings.silence_ms * 1e6)
        self._heartbeat_ns = round(settings.heartbeat_ms * 1e6)
        self._poll_ns = round(min(settings.poll_ms, settings.heartbeat_ms) * 1e6)
        self._carries_results = carries_results
        self._queue: deque[_Pending] = deque()
        self._current: _Pending | None = None
        self._shown = (0, Result.NONE)  # where nothing is acknowledged: the newest part and result
        self._unseen = False  # `_shown` was not written yet
        self._known: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._valid = first_valid or 1 + secrets.randbelow(UINT16)
        self._synced = False  # whether the PLC has acknowledged the first `valid`
        self._syncing_ns: int | None = None  # since when it should
        self._heartbeat = 0
        self._heard_ns: int | None = None  # when alert last spoke
        self._was_alive = False
        self._exchanged_ns: int | None = None
        self._faults: dict[Fault, int] = {}  # until when each is shown
        self._stopped = False
        self.alarms: deque[Alarm] = deque(maxlen=ALARMS_KEPT)
        self.counts = Counts()

    def __len__(self) -> int:
        """Results that wait or are in the block."""
        return len(self._queue) + (self._current is not None)

    # --- what is told -----------------------------------------------------------------------------------------------

    def hear(self, now_ns: int) -> None:
        """Alert lives."""
        self._heard_ns = now_ns

    def restarted(self, now_ns: int) -> None:
        """Another alert has taken over: verdicts that its predecessor had written may never have been told."""
        self.raise_fault(Fault.STARTING, "alert was started anew: verdicts may be lost", now_ns)

    def lose(self) -> None:
        """Alert says that it stops."""
        self._heard_ns = None

    def stop(self) -> None:
        """This side stops: from now on the outputs are the safe ones."""
        self._stopped = True
        self._current = None
        self._queue.clear()

    def rule(self, part: int, result: Result, trigger_ns: int, now_ns: int) -> bool:
        """The verdict on a part, triggered at `trigger_ns`. False where the part's verdict is known already."""
        key = (part, trigger_ns)
        if key in self._known:
            self.counts.repeated += 1
            return False
        self._known[key] = None
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        self.counts.rulings += 1
        if not self._carries_results:
            self._shown, self._unseen = (part & UINT32, result), True
            self._valid = _following(self._valid)
        elif not self._stopped:
            self._queue.append(_Pending(part & UINT32, result, trigger_ns + self._window_ns))
            if len(self._queue) > CAPACITY:
                lost = self._queue.popleft()
                self.counts.overflow += 1
                self.raise_fault(Fault.OVERFLOW, f"part {lost.part}: too many results wait for the PLC", now_ns)
        return True

    # --- the block --------------------------------------------------------------------------------------------------

    def outputs(self, now_ns: int) -> Outputs:
        """The block to write now (`eject` is the caller's)."""
        self._expire(now_ns)
        if self._current is None and self._synced and self._queue:
            self._current = self._queue.popleft()
            self._valid = _following(self._valid)
            self.counts.sent += 1
        current = self._current
        alive = self.alive(now_ns)
        if alive:
            self._heartbeat = (self._heartbeat + 1) & UINT16
        block = Outputs(ready=alive, heartbeat=self._heartbeat, fault=self.fault(now_ns), valid=self._valid)
        if not self._carries_results and alive:
            return replace(block, part=self._shown[0], result=self._shown[1])
        return block if current is None else replace(block, part=current.part, result=current.result)

    def exchanged(self, inputs: Inputs, now_ns: int) -> None:
        """The block was written, and the PLC answered."""
        self._exchanged_ns = now_ns
        self._unseen = False
        current = self._current
        if not self._synced:
            self._sync(inputs, now_ns)
        elif current is None:
            pass
        elif inputs.ack == self._valid:
            self.counts.acked += 1
            self._current = None
            if current.unknown:
                self._faults.pop(Fault.UNKNOWN_OUTCOME, None)
        elif current.written_ns is None:
            current.written_ns = now_ns
        self._expire(now_ns)

    def failed(self, now_ns: int) -> None:
        """The exchange failed, or the connection was lost: whether the block arrived is not known."""
        self._exchanged_ns = None
        current = self._current
        if current is not None:
            self.counts.unknown += 1
            current.unknown, current.written_ns = True, None
            text = f"part {current.part}: the connection failed with its result under way"
            self.raise_fault(Fault.UNKNOWN_OUTCOME, text, now_ns)
        self._expire(now_ns)

    def wake_ns(self) -> int:
        """When the next exchange is due; the past means now."""
        if self._exchanged_ns is None:
            return 0
        if self._current is not None or self._syncing_ns is not None:
            return self._exchanged_ns + self._poll_ns
        if (self._queue and self._synced) or self._unseen:
            return self._exchanged_ns
        return self._exchanged_ns + self._heartbeat_ns

    # --- faults -----------------------------------------------------------------------------------------------------

    def alive(self, now_ns: int) -> bool:
        """Whether alert spoke lately, and this side is not stopping."""
        alive = self._heard_ns is not None and now_ns - self._heard_ns <= self._silence_ns and not self._stopped
        if self._was_alive and not alive and not self._stopped:
            self.alarms.append(Alarm(Fault.SILENT, "alert is silent: the PLC is told that no verdicts come"))
        self._was_alive = alive
        return alive

    def raise_fault(self, fault: Fault, text: str, now_ns: int) -> None:
        """Shows a fault from now on, for `FAULT_HOLD_NS` after it was last raised."""
        self.alarms.append(Alarm(fault, text))
        self._faults[fault] = now_ns + FAULT_HOLD_NS

    def fault(self, now_ns: int) -> Fault:
        """The gravest fault at the moment."""
        present = set() if self._synced else {Fault.STARTING}
        present |= {fault for fault, until in self._faults.items() if now_ns < until}
        if self._current is not None and self._current.unknown:
            present.add(Fault.UNKNOWN_OUTCOME)
        if self._stopped:
            present.add(Fault.STOPPED)
        elif not self.alive(now_ns):
            present.add(Fault.SILENT)
        return next((fault for fault in SEVERITY if fault in present), Fault.NONE)

    def _sync(self, inputs: Inputs, now_ns: int) -> None:
        """Both sides begin with the same `valid`."""
        if not self._carries_results:
            synced = True
        elif self._syncing_ns is None:
            synced = False
            if self.alive(now_ns):  # before, the heartbeat stands, and the PLC takes nothing
                self._syncing_ns = now_ns
                if inputs.ack == self._valid:  # by chance, or it is what a predecessor had
                    self._valid = _following(self._valid + UINT16 // 2)
        else:
            synced = inputs.ack == self._valid
            if not synced and now_ns - self._syncing_ns >= self._ack_ns:
                self._syncing_ns = now_ns
                text = "the PLC answers, but acknowledges nothing: is its program running?"
                self.raise_fault(Fault.NOT_ACKNOWLEDGED, text, now_ns)
        if synced:
            self._synced, self._syncing_ns = True, None
            self._faults[Fault.STARTING] = now_ns + FAULT_HOLD_NS

    def _expire(self, now_ns: int) -> None:
        """Gives up the result in the block that was not acknowledged, and those that came too late."""
        current = self._current
        if current is not None and current.written_ns is not None and now_ns - current.written_ns >= self._ack_ns:
            self.counts.unacked += 1
            self._current = None
            text = f"part {current.part}: the PLC did not acknowledge {current.result.name}"
            self.raise_fault(Fault.NOT_ACKNOWLEDGED, text, now_ns)
        elif current is not None and current.written_ns is None and now_ns >= current.until_ns:
            self.counts.unresolved += 1
            self._current = None
            text = f"part {current.part}: its result may or may not have reached the PLC; its window is over"
            self.raise_fault(Fault.UNKNOWN_OUTCOME, text, now_ns)
        while self._queue and now_ns >= self._queue[0].until_ns:
            late = self._queue.popleft()
            self.counts.late += 1
            # What the PLC does without a result is what this result asked for: nothing is lost.
            if (late.result is Result.PASS) == self._pass_on_good:
                text = f"part {late.part}: {late.result.name} came too late and was not sent"
                self.raise_fault(Fault.LATE, text, now_ns)


def _following(valid: int) -> int:
    """The number after `valid`; 0 is left out."""
    return valid % UINT16 + 1

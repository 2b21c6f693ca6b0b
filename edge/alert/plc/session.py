"""One PLC, connected and kept connected: adapter, handshake and ejector put together.

Single-threaded and without a clock of its own: whoever owns the thread calls `turn` whenever `wake_ns` says, and
passes on what alert says. One turn is at most one attempt to connect or one exchange.

    An exchange carries what is due: a result, a change of the ejector, or else the heartbeat. A heartbeat that would
    still be under way when the ejector has to switch waits for it.
    Whatever fails, the connection is dropped, with back-off between attempts. The ejector does not switch on again
    for a pulse whose begin failed: what is left of it might be over another part.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

from edge.alert.plc.adapter import Adapter, Fault, Inputs, Outputs, Result
from edge.alert.plc.ejector import Ejector
from edge.alert.plc.handshake import Alarm, Handshake
from edge.alert.rejects import EncoderReading, Histogram
from edge.errors import PlcError, PlcTimeout
from edge.messages import Decision
from edge.settings_plc import PlcSettings

BACKOFF_NS = 20_000_000  # first wait after a failure; doubles
_RESULTS = {Decision.PASS: Result.PASS, Decision.REJECT: Result.REJECT, Decision.UNJUDGED: Result.UNJUDGED}


def result_of(decision: Decision, unjudged: str) -> Result:
    """What the PLC is told. `unjudged`: "reject" or "pass", [alert] unjudged of the settings."""
    if decision is Decision.UNJUDGED and unjudged == "pass":
        return Result.PASS
    return _RESULTS[decision]


class Session:
    """The line's side of one PLC. `clock` gives CLOCK_MONOTONIC nanoseconds; `first_valid` is random if absent."""

    def __init__(
        self,
        adapter: Adapter,
        settings: PlcSettings,
        unjudged: str = "reject",
        clock: Callable[[], int] = time.monotonic_ns,
        first_valid: int | None = None,
    ) -> None:
        self.adapter = adapter
        self.handshake = Handshake(settings, settings.eject.mode == "handshake", first_valid)
        self.ejector = Ejector(settings) if settings.eject.mode == "direct" else None
        self.inputs: Inputs | None = None  # what the PLC said last
        self.asked_ns = self.answered_ns = 0  # begin and end of that exchange
        self.written: Outputs | None = None  # what it was told last, as far as is known
        self.round_trips = Histogram()
        self.connected = False
        self.connects = self.timeouts = self.errors = self.exchanges = 0
        self.trouble = "not connected yet"  # why there is no connection; "" where there is one
        self._unjudged = unjudged
        self._clock = clock
        self._eject_when_safe = settings.eject_when_safe
        self._backoff_most_ns = max(BACKOFF_NS, round(settings.reconnect_max_ms * 1e6))
        self._backoff_ns = BACKOFF_NS
        self._retry_ns = 0
        self._guard_ns = 0  # what an exchange takes, about
        self._reading: EncoderReading | None = None
        self._mute = False  # the begin of the pulse that is on failed

    # --- what alert says --------------------------------------------------------------------------------------------

    def hear(self) -> None:
        """Alert lives."""
        self.handshake.hear(self._clock())

    def rule(self, part: int, decision: Decision, trigger_ns: int, encoder: int | None = None) -> None:
        """A verdict. It is a sign of life as well."""
        now = self._clock()
        self.handshake.hear(now)
        result = result_of(decision, self._unjudged)
        if self.handshake.rule(part, result, trigger_ns, now) and self.ejector is not None:
            self.ejector.rule(part, result, trigger_ns, encoder, now)

    # --- the work ---------------------------------------------------------------------------------------------------

    def wake_ns(self) -> int:
        """When `turn` has something to do next; the past means now."""
        if not self.connected:
            return self._retry_ns
        wake = self.handshake.wake_ns()
        pulse = self.ejector.next_due_ns(self._clock()) if self.ejector is not None else None
        if pulse is None:
            return wake
        # Soon the ejector switches: the exchange that does it is the heartbeat as well.
        return pulse if wake + self._guard_ns > pulse else wake

    def turn(self) -> None:
        """Connects or exchanges, where it is time."""
        now = self._clock()
        if not self.connected:
            if now >= self._retry_ns:
                self._connect()
            return
        eject = self._eject(now)
        switched = self.written is None or self.written.eject != eject
        if switched or now >= self.wake_ns():
            self._exchange(self._block(now, eject))

    def stop(self) -> None:
        """Outputs to safe, as far as the PLC can be reached; then the end of the connection."""
        self.handshake.stop()
        if self.ejector is not None:
            self.ejector.cancel("this side stops", self._clock())
        if self.connected:
            with contextlib.suppress(PlcError):
                self.adapter.exchange(self._block(self._clock(), self._eject_when_safe))
        self.connected = False
        self.trouble = "stopped"
        self.adapter.close()

    def _block(self, now: int, eject: bool) -> Outputs:
        return replace(self.handshake.outputs(now), eject=eject)

    def _eject(self, now: int) -> bool:
        """The output `eject` now. Pulses run only while alert lives and the PLC is connected."""
        if self.ejector is None:
            return self._eject_when_safe if not self.handshake.alive(now) else False
        for text in self.ejector.due(now, self._reading):
            self.handshake.raise_fault(Fault.MISSED, text, now)
        if self.ejector.on == self.ejector.at_rest:
            self._mute = False
        if not self.handshake.alive(now):
            return self._eject_when_safe
        return self.ejector.at_rest if self._mute else self.ejector.on

    def _connect(self) -> None:
        try:
            self.adapter.connect()
        except PlcError as error:
            self._drop(error)
            return
        self.connected, self.trouble = True, ""
        self.connects += 1
        self.written = None

    def _exchange(self, block: Outputs) -> None:
        began = self._clock()
        try:
            inputs = self.adapter.exchange(block)
        except PlcError as error:
            if self.ejector is not None and self.ejector.on != self.ejector.at_rest and not self._mute:
                self._mute = True
                text = f"part {self.ejector.part}: the connection failed with its pulse under way"
                self.handshake.raise_fault(Fault.UNKNOWN_OUTCOME, text, self._clock())
            self._drop(error)
            return
        done = self._clock()
        self.exchanges += 1
        self.inputs, self.written = inputs, block
        self.asked_ns, self.answered_ns = began, done
        self.round_trips.add(done - began)
        self._guard_ns = max(done - began, self._guard_ns - self._guard_ns // 16)  # rises at once, decays slowly
        self._reading = EncoderReading((began + done) // 2, inputs.encoder)
        self._backoff_ns = BACKOFF_NS
        self.handshake.exchanged(inputs, done)

    def _drop(self, error: PlcError) -> None:
        self.adapter.close()
        now = self._clock()
        lost, self.connected = self.connected, False
        self.timeouts += isinstance(error, PlcTimeout)
        self.errors += not isinstance(error, PlcTimeout)
        self.trouble = str(error)
        if lost:
            self.handshake.failed(now)
        self._retry_ns = now + self._backoff_ns
        self._backoff_ns = min(2 * self._backoff_ns, self._backoff_most_ns)

    # --- for people -------------------------------------------------------------------------------------------------

    def alarms(self) -> list[Alarm]:
        """Faults that began since the last call."""
        found = []
        while self.handshake.alarms:
            found.append(self.handshake.alarms.popleft())
        return found

    def counters(self) -> dict[str, int]:
        """As health shows them."""
        counts = self.handshake.counts
        return {
            "rulings": counts.rulings,
            "repeated_rulings": counts.repeated,
            "results_sent": counts.sent,
            "results_acked": counts.acked,
            "results_unacked": counts.unacked,
            "results_late": counts.late,
            "results_overflow": counts.overflow,
            "results_unresolved": counts.unresolved,
            "exchanges": self.exchanges,
            "connects": self.connects,
            "timeouts": self.timeouts,
            "errors": self.errors,
            **(self.ejector.counters() if self.ejector is not None else {}),
        }

    def gauges(self) -> dict[str, float]:
        """As health shows them."""
        found: dict[str, float] = {
            "connected": float(self.connected),
            "fault": float(self.handshake.fault(self._clock())),
            "results_waiting": float(len(self.handshake)),
            **self.round_trips.gauges("round_trip"),
        }
        if self.ejector is not None:
            found.update(self.ejector.lateness.gauges("pulse_late"))
        if self.inputs is not None:
            found.update(plc_parts=float(self.inputs.parts), plc_run=float(self.inputs.run))
        return found

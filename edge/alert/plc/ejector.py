"""The output `eject` where this program drives the ejector itself (`[plc.eject] mode = "direct"`).

reject_on_fail: off at rest, on over each part that is to be ejected. pass_on_good: on at rest, as if everything were
to be ejected, and off over each part with a PASS of its own, except where a reject's window touches it; a PASS that is
late, lost or unplaced leaves the gate shut. Both are schedules of `edge.alert.rejects`.
"""

from __future__ import annotations

from collections.abc import Iterator

from edge.alert.plc.adapter import Result
from edge.alert.rejects import EncoderReading, Histogram, Missed, PulseOn, RejectSchedule, Swept
from edge.settings_plc import PlcSettings


class Ejector:
    """When the ejector is on. Pure: the caller passes the time (CLOCK_MONOTONIC nanoseconds)."""

    def __init__(self, settings: PlcSettings) -> None:
        self.at_rest = settings.eject_at_rest
        self.rejects = RejectSchedule(settings.eject)
        self.gate: RejectSchedule | None = None
        if self.at_rest:
            # No gap is bridged: a gate left open between two good parts would let a bad one through.
            self.gate = RejectSchedule(settings.eject.model_copy(update={"min_gap_ms": 0.0}))
        self.part = 0  # that the newest pulse is for
        self.missed = 0

    @property
    def on(self) -> bool:
        """The output now, as of the last `due`."""
        if self.rejects.on or self.gate is None:
            return self.rejects.on
        return not self.gate.on

    @property
    def lateness(self) -> Histogram:
        """From when each pulse (of the gate, with pass_on_good) was due to when it began."""
        return self.rejects.lateness if self.gate is None else self.gate.lateness

    def rule(self, part: int, result: Result, trigger_ns: int, encoder: int | None, now_ns: int) -> None:
        """The verdict on a part."""
        self.rejects.add(part, result is not Result.PASS, trigger_ns, encoder, now_ns)
        if self.gate is not None:
            self.gate.add(part, result is Result.PASS, trigger_ns, encoder, now_ns)

    def due(self, now_ns: int, reading: EncoderReading | None) -> Iterator[str]:
        """Brings `on` up to now; what went wrong, in words."""
        for schedule in self._schedules():
            for event in schedule.due(now_ns, reading):
                if isinstance(event, PulseOn):
                    self.part = event.part
                elif isinstance(event, Missed) and self._matters(schedule):
                    self.missed += 1
                    what = "let through" if schedule is self.gate else "ejected"
                    yield f"part {event.part} was not {what}: {event.reason}"
                elif isinstance(event, Swept) and self.gate is None:
                    yield f"part {event.part} is good and was ejected with its neighbour: they are too close together"

    def next_due_ns(self, now_ns: int) -> int | None:
        """When `on` changes next, as far as is known now."""
        times = [schedule.next_due_ns(now_ns) for schedule in self._schedules()]
        return min((time for time in times if time is not None), default=None)

    def cancel(self, reason: str, now_ns: int) -> None:
        """Forgets all that wait: this side stops."""
        for schedule in self._schedules():
            schedule.cancel(reason, now_ns)

    def counters(self) -> dict[str, int]:
        """As health shows them."""
        counts = self.rejects.counts if self.gate is None else self.gate.counts
        return {
            "pulses": counts.pulses,
            "pulse_parts": counts.ejected,
            "pulses_missed": self.missed,
            "parts_swept": self.rejects.counts.swept if self.gate is None else 0,
        }

    def _schedules(self) -> Iterator[RejectSchedule]:
        yield self.rejects
        if self.gate is not None:
            yield self.gate

    def _matters(self, schedule: RejectSchedule) -> bool:
        """With a gate, a missed reject is none: the gate is shut at rest."""
        return self.gate is None or schedule is self.gate

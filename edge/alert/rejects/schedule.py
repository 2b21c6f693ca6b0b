"""The reject schedule: rulings go in, pulses of the ejector come out, each over the part it is for.

Pure logic: no clock, no thread, no socket. The caller passes the time (CLOCK_MONOTONIC nanoseconds of this host) and
encoder readings, asks `next_due_ns` how long it may sleep, and brings the output to `on` after each call of `due`.

A part's *window* begins when it reaches the ejector (its trigger plus the delay, or the belt's place at its trigger
plus the encoder counts), less `lead_ms`, and lasts `pulse_ms`. What holds, whatever order rulings come in:

    A part to eject, known in time, is covered: the output is on from the begin of its window (at most `late_ms`
    later) to the end of it.
    Windows that overlap, or are less than `min_gap_ms` apart, make one longer pulse: no reject is lost for a valve
    that cannot be switched again so soon. A good part that lies between is swept along; it is counted and told of
    (`Swept`), because it means that parts are closer together than pulse and gap allow.
    A pulse that would begin more than `late_ms` late is not sent, for it would hit another part: `Missed`, counted,
    to be raised as a fault. So is one whose place on the belt is not known (no readings, a counter that was reset).
    A belt that stops holds its parts: their windows come when it moves on. While readings are missing no pulse
    begins; when they come back, the belt's place tells which parts are still ahead.

Bounded: at most `capacity` parts wait; one more is `Missed` at once.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import Enum

from edge.alert.rejects.lateness import Histogram
from edge.settings_reject import EjectSettings
from edge.tracking.belt import Belt, EncoderReading

REMEMBERED = 8192  # parts whose ruling, told again, changes nothing
PULSES_KEPT = 64  # to tell which good parts were swept along

TOO_LATE = "the pulse would come too late"
TOO_MANY = "too many parts wait for the ejector"
UNPLACED = "no encoder readings from around its trigger"
TRACK_LOST = "the encoder's count jumped"


class Added(Enum):
    """What became of a ruling."""

    WAITING = "waiting"  # for its window
    LATE = "late"  # its window has begun too long ago, or it finds no room; `due` tells of it as `Missed`
    REPEATED = "repeated"  # known already


@dataclass(frozen=True, slots=True)
class PulseOn:
    """The output goes on, for this part (a longer pulse tells the others when it ends)."""

    due_ns: int
    part: int


@dataclass(frozen=True, slots=True)
class PulseOff:
    """The output goes off. `parts` are all that the pulse was for, in the order in which they came."""

    due_ns: int
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Missed:
    """A part that should have been ejected and was not: a fault."""

    part: int
    reason: str
    late_ns: int = 0


@dataclass(frozen=True, slots=True)
class Swept:
    """A part that should have stayed was within the pulse of a neighbour."""

    part: int


Event = PulseOn | PulseOff | Missed | Swept


@dataclass
class Counts:
    """What the schedule did, since it was made."""

    pulses: int = 0
    ejected: int = 0  # parts covered by a pulse
    merged: int = 0  # of them, parts that lengthened a pulse instead of getting one of their own
    late: int = 0  # not sent: the window had begun too long ago
    unplaced: int = 0  # not sent: the belt's place is not known
    crowded: int = 0  # not sent: too many parts wait
    cancelled: int = 0  # not sent: the schedule was emptied
    swept: int = 0  # good parts within a pulse
    short_gaps: int = 0  # pulses that began sooner after the last one than min_gap_ms: the ruling came so late
    repeated: int = 0
    track_lost: int = 0  # times the encoder's count jumped


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A ruling whose place on the belt must wait for a reading."""

    part: int
    eject: bool
    trigger_ns: int


class RejectSchedule:
    """Windows of the parts between camera and ejector, and the state of the output."""

    def __init__(self, settings: EjectSettings, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._pulse_ns = round(settings.pulse_ms * 1e6)
        self._gap_ns = round(settings.min_gap_ms * 1e6)
        self._late_ns = round(settings.late_ms * 1e6)
        self._lead_ns = settings.lead_ns
        self._delay_ns = settings.delay_ns
        counts = settings.counts
        self._distance = abs(counts or 0)
        self._count_of_frame = settings.encoder_at == "frame"
        self._belt: Belt | None = None
        if counts is not None:
            direction = 1 if counts > 0 else -1
            self._belt = Belt(settings.max_counts_s, round(settings.encoder_stale_ms * 1e6), direction)
        elif self._delay_ns is None:
            raise ValueError("the schedule needs delay or encoder counts; EjectSettings with mode = direct checks it")
        # Where each part's window begins: nanoseconds by time, places on the belt by encoder. Then the part.
        self._rejects: list[tuple[int, int]] = []
        self._passes: list[tuple[int, int]] = []
        self._unplaced: deque[_Waiting] = deque()
        self._known: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._untold: list[Event] = []
        self.on = False  # what the output must be now
        self._began_ns = self._until_ns = 0
        self._parts: list[int] = []  # of the pulse that is on
        self._pulses: deque[tuple[int, int]] = deque(maxlen=PULSES_KEPT)  # begin and end of past ones
        self.counts = Counts()
        self.lateness = Histogram()  # from when each pulse was due to the call of `due` that began it

    def __len__(self) -> int:
        return len(self._rejects) + len(self._passes) + len(self._unplaced)

    def add(self, part: int, eject: bool, trigger_ns: int, encoder: int | None, now_ns: int) -> Added:
        """A ruling: whether `part`, triggered at `trigger_ns` at belt count `encoder`, is to be ejected.

        Parts that stay are told too, so that it is noticed when one is swept along.
        """
        key = (part, trigger_ns)
        if key in self._known:
            self.counts.repeated += 1
            return Added.REPEATED
        self._known[key] = None
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        if len(self) >= self._capacity:
            if eject:
                self.counts.crowded += 1
                self._untold.append(Missed(part, TOO_MANY))
                return Added.LATE
            return Added.WAITING  # nothing will be done for it anyway
        if self._belt is None:
            assert self._delay_ns is not None
            return self._enter(trigger_ns + self._delay_ns, part, eject, now_ns)
        if self._count_of_frame:
            place = None if encoder is None else self._belt.place_of(encoder)
        else:
            if self._belt.will_know(trigger_ns):
                self._unplaced.append(_Waiting(part, eject, trigger_ns))
                return Added.WAITING
            place = self._belt.place_at(trigger_ns)
        return self._enter(None if place is None else place + self._distance, part, eject, now_ns)

    def due(self, now_ns: int, reading: EncoderReading | None = None) -> list[Event]:
        """What happens up to now, oldest first; afterwards the output must be as `on` says.

        `reading` is a new encoder reading, where there is one; a repeated one changes nothing.
        """
        if self._belt is not None and reading is not None:
            if not self._belt.read(reading):
                self.counts.track_lost += 1
                self.counts.unplaced += self._drop(TRACK_LOST)
            self._place_waiting(now_ns)
        events, self._untold = self._untold, []
        while True:
            begin = self._next_reject(now_ns)
            if self.on and self._until_ns <= now_ns and (begin is None or begin > self._until_ns):
                if begin is None or begin - self._until_ns >= self._gap_ns:
                    events.append(self._off(now_ns))
                    continue
                self._until_ns = begin  # stays on over the short gap, as far as it can be foreseen
            if begin is None or begin > now_ns:
                break
            _, part = heapq.heappop(self._rejects)
            events += self._eject(part, begin, now_ns)
        events += self._sweep(now_ns)
        return events

    def next_due_ns(self, now_ns: int) -> int | None:
        """When `due` has something to do next, as far as is known now; None where nothing is in sight.

        By encoder this changes with every reading: ask again after each.
        """
        begin = self._next_reject(now_ns)
        if self.on:
            return self._until_ns if begin is None else min(begin, self._until_ns)
        return begin

    def cancel(self, reason: str, now_ns: int) -> list[Event]:
        """Empties the schedule and takes the output off: the line stops, or the ejector's PLC was lost."""
        self.counts.cancelled += self._drop(reason)
        events, self._untold = self._untold, []
        if self.on:
            self._until_ns = now_ns
            events.append(self._off(now_ns))
        return events

    # --- where parts are --------------------------------------------------------------------------------------------

    def _begin_ns(self, where: int, now_ns: int) -> int | None:
        """When a window begins, or began. None: not in sight, because the belt stands or is not read."""
        if self._belt is None:
            return where - self._lead_ns
        reached = self._belt.reaches(where, now_ns)
        return None if reached is None else reached - self._lead_ns

    def _next_reject(self, now_ns: int) -> int | None:
        return self._begin_ns(self._rejects[0][0], now_ns) if self._rejects else None

    def _enter(self, where: int | None, part: int, eject: bool, now_ns: int) -> Added:
        if where is None:
            if eject:
                self.counts.unplaced += 1
                self._untold.append(Missed(part, UNPLACED))
                return Added.LATE
            return Added.WAITING
        if eject:
            begin = self._begin_ns(where, now_ns)
            if begin is not None and now_ns - begin > self._late_ns and not self._covers(begin):
                self._untold.append(self._too_late(part, begin, now_ns))
                return Added.LATE
        heapq.heappush(self._rejects if eject else self._passes, (where, part))
        return Added.WAITING

    def _place_waiting(self, now_ns: int) -> None:
        """Finds the places of parts that were triggered before the newest reading."""
        assert self._belt is not None
        for _ in range(len(self._unplaced)):
            waiting = self._unplaced.popleft()
            if self._belt.will_know(waiting.trigger_ns):
                self._unplaced.append(waiting)
                continue
            place = self._belt.place_at(waiting.trigger_ns)
            self._enter(None if place is None else place + self._distance, waiting.part, waiting.eject, now_ns)

    def _drop(self, reason: str) -> int:
        """Forgets every part that waits, for their places mean nothing any more. How many were to be ejected."""
        lost = [part for _, part in sorted(self._rejects)]
        lost += [waiting.part for waiting in self._unplaced if waiting.eject]
        self._untold += [Missed(part, reason) for part in lost]
        self._rejects.clear()
        self._passes.clear()
        self._unplaced.clear()
        return len(lost)

    # --- the output -------------------------------------------------------------------------------------------------

    def _covers(self, begin_ns: int) -> bool:
        """Whether the pulse that is on began in time for a window."""
        return self.on and self._began_ns <= begin_ns + self._late_ns

    def _eject(self, part: int, begin: int, now_ns: int) -> list[Event]:
        if self._covers(begin):
            self.counts.merged += 1
            self._until_ns = max(self._until_ns, begin + self._pulse_ns)
        elif now_ns - begin > self._late_ns:
            return [self._too_late(part, begin, now_ns)]
        else:
            if self._pulses and now_ns - self._pulses[-1][1] < self._gap_ns:
                self.counts.short_gaps += 1
            self.on, self._began_ns, self._until_ns, self._parts = True, now_ns, begin + self._pulse_ns, []
            self.counts.pulses += 1
            self.lateness.add(now_ns - begin)
        self.counts.ejected += 1
        self._parts.append(part)
        return [PulseOn(begin, part)] if len(self._parts) == 1 else []

    def _too_late(self, part: int, begin: int, now_ns: int) -> Missed:
        self.counts.late += 1
        return Missed(part, TOO_LATE, now_ns - begin)

    def _off(self, now_ns: int) -> PulseOff:
        self.on = False
        self._pulses.append((self._began_ns, now_ns))
        parts, self._parts = tuple(self._parts), []
        return PulseOff(self._until_ns, parts)

    def _sweep(self, now_ns: int) -> list[Event]:
        """Good parts whose window is over, as far as a pulse touched it."""
        swept: list[Event] = []
        while self._passes:
            begin = self._begin_ns(self._passes[0][0], now_ns)
            if begin is None or begin + self._pulse_ns > now_ns:
                break
            _, part = heapq.heappop(self._passes)
            end = begin + self._pulse_ns
            if (self.on and self._began_ns < end) or any(on < end and off > begin for on, off in self._pulses):
                self.counts.swept += 1
                swept.append(Swept(part))
        return swept

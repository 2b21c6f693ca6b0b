"""Triggers and frames, paired: a part is judged only by a frame that is certainly its own.

Pure logic: no clock, no socket. Triggers (parts that the PLC counted) and frames (of the camera) come as they are
heard of, each with its time; `turn` tells what can be told by now. Two independent things must agree:

    time    Exactly one trigger lies within the tolerance of the frame, and no frame was paired with it before. A frame
            waits until the PLC's answers reach beyond its time, so that no trigger near it can still turn up.
    count   From one pair to the next, as many frames were numbered by the camera as parts were counted by the PLC.

By time alone, parts must be further apart than twice the tolerance and the time between two answers. Closer ones are
told apart by count as long as the first pair was right.

Where they do not agree, a trigger was missed, or doubled, by one side: *trigger and frame disagree*. From then on
nothing is judged (every trigger and every frame is told with the reason) until it is aligned again: by command, after
a gap in which neither side had anything, or, where so set, with the next pair.

A frame that the camera lost or damaged is no disagreement: it is paired by time where its time is known, else with a
trigger that finds no other frame.

Each trigger and each frame is told exactly once. Bounded: nothing waits longer than twice `wait_ns`, and at most
`MOST_WAITING` frames and triggers do.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Literal, TypeVar

from edge.tracking.triggers import Trigger

F = TypeVar("F")

MOST_WAITING = 1024
FRAME_IDS = 65_535  # GigE Vision 1.x: 16 bits without 0

Realign = Literal["command", "gap", "next"]


class Why(Enum):
    """Why a trigger or a frame is not judged."""

    MISSED = "a trigger without a frame"
    DOUBLED = "a frame without a trigger"
    AMBIGUOUS = "more than one trigger near the frame"
    SILENT = "no count from the PLC in time"
    JUMPED = "the PLC's count jumped"
    STOPPED = "not aligned again since"
    STARTING = "from before the PLC's first count"


@dataclass(frozen=True, slots=True)
class Told(Generic[F]):
    """A part: its number, its frame, or either alone. Judged only where `why` is None (and the frame is whole)."""

    part: int | None  # None: a frame that belongs to no part that is known
    frame: F | None  # None: a part without a frame
    ns: int
    why: Why | None = None


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far a frame's time may be from its trigger's, all in nanoseconds."""

    offset_ns: int  # from the PLC's count to the frame's time, usually
    tolerance_ns: int  # either way
    answer_ns: int  # between two of the PLC's answers at most; a part counted after a longer time has no moment
    wait_ns: int  # for the PLC's answer, and for a frame that is still on its way
    gap_ns: int  # without triggers and frames, after which both sides begin anew


@dataclass(order=True)
class _Frame(Generic[F]):
    ns: int
    ordinal: int
    arrived_ns: int = field(compare=False)
    whole: bool = field(compare=False)
    item: F = field(compare=False)


@dataclass
class _Trigger:
    trigger: Trigger
    ordinal: int
    paired: bool = False


class Alignment(Generic[F]):
    """Pairs the triggers and frames of one camera."""

    def __init__(self, tolerances: Tolerances, realign: Realign) -> None:
        self._t = tolerances
        self._realign = realign
        self._frames: list[_Frame[F]] = []  # by time
        self._triggers: deque[_Trigger] = deque()
        self._spare: deque[_Frame[F]] = deque()  # lost or damaged frames that no trigger is near to
        self._known_ns = -1  # triggers are known up to here; -1: the PLC has not answered yet
        self._from_ns = 0  # what is older than this is not judged, and no disagreement
        self._last_ns = 0  # the newest trigger or frame
        self._ordinals = 0
        self._triggered = 0
        self._anchor: tuple[int, int] | None = None  # a camera's frame id, and its ordinal
        self._shift: int | None = None  # ordinal of a frame less that of its trigger
        self.stopped: Why | None = None  # why nothing is judged; None: aligned
        self.disagreements = 0
        self.offset_ns = 0  # of the newest pair, to set `offset_ns` by: frame less middle of its trigger's interval

    def __len__(self) -> int:
        return len(self._frames) + len(self._spare) + sum(not item.paired for item in self._triggers)

    def heard(self, triggers: list[Trigger] | None, asked_ns: int) -> None:
        """An answer of the PLC and the triggers that are new in it; None where its counter jumped."""
        if self._known_ns < 0:
            self._from_ns = asked_ns + self._t.tolerance_ns
        self._known_ns = max(self._known_ns, asked_ns)
        if triggers is None:
            self._disagree(Why.JUMPED, asked_ns)
            return
        for trigger in triggers:
            self._triggered += 1
            self._triggers.append(_Trigger(trigger, self._triggered))
            self._last_ns = max(self._last_ns, trigger.latest_ns)

    def frame(self, ns: int, item: F, now_ns: int, camera_frame: int | None = None, whole: bool = True) -> None:
        """A frame of that time. `whole` is False where there is nothing to judge: lost or damaged."""
        self._last_ns = max(self._last_ns, ns)
        insort(self._frames, _Frame(ns, self._ordinal(camera_frame), now_ns, whole, item))

    def realign(self, now_ns: int) -> None:
        """What comes from now on is judged again."""
        self._from_ns = max(self._from_ns, now_ns + self._t.tolerance_ns)
        self.stopped = self._shift = None

    def turn(self, now_ns: int) -> list[Told[F]]:
        """What can be told by now."""
        if self.stopped and self._realign == "gap":
            quiet = min(now_ns, self._known_ns) - max(self._last_ns, self._from_ns)
            if quiet >= self._t.gap_ns and not self._frames:
                self.realign(min(now_ns, self._known_ns) - self._t.tolerance_ns)
        return [*self._tell_frames(now_ns), *self._tell_triggers(now_ns), *self._tell_spare(now_ns)]

    def finish(self) -> list[Told[F]]:
        """The end of the source: all that waits is told, unjudged."""
        told = [Told(None, frame.item, frame.ns, Why.SILENT if frame.whole else None) for frame in self._frames]
        told += [Told(None, frame.item, frame.ns) for frame in self._spare]
        told += [_alone(item.trigger, Why.MISSED) for item in self._triggers if not item.paired]
        self._frames.clear()
        self._spare.clear()
        self._triggers.clear()
        return told

    # --- telling ----------------------------------------------------------------------------------------------------

    def _tell_frames(self, now_ns: int) -> list[Told[F]]:
        told: list[Told[F]] = []
        waiting: list[_Frame[F]] = []
        crowded = len(self._frames) - MOST_WAITING
        for number, frame in enumerate(self._frames):
            if self._known_ns >= self._near(frame)[1]:
                told += self._pair(frame)
            elif number < crowded or now_ns - frame.arrived_ns > self._t.wait_ns:
                told.append(self._unpaired(frame, Why.SILENT))
            else:
                waiting.append(frame)
        self._frames = waiting
        return told

    def _pair(self, frame: _Frame[F]) -> list[Told[F]]:
        earliest, latest = self._near(frame)
        near = [
            item for item in self._triggers if item.trigger.latest_ns >= earliest and item.trigger.earliest_ns <= latest
        ]
        if len(near) == 1 and not near[0].paired:
            return [self._paired(frame, near[0])]
        if not frame.whole:
            self._spare.append(frame)
            return []
        return [self._unpaired(frame, Why.AMBIGUOUS if len(near) > 1 else Why.DOUBLED)]

    def _paired(self, frame: _Frame[F], item: _Trigger) -> Told[F]:
        item.paired = True
        trigger = item.trigger
        self.offset_ns = frame.ns - (trigger.earliest_ns + trigger.latest_ns) // 2
        why = self._held_back(min(trigger.earliest_ns, frame.ns - self._t.offset_ns))
        if why is None and frame.whole:
            why = self._doubt(frame, item)
            if why is not None:
                self._disagree(why, frame.ns)
        return Told(trigger.number, frame.item, frame.ns, why if frame.whole else None)

    def _unpaired(self, frame: _Frame[F], why: Why) -> Told[F]:
        if not frame.whole:
            return Told(None, frame.item, frame.ns)
        held_back = self._held_back(frame.ns - self._t.offset_ns)
        if held_back is None:
            self._disagree(why, frame.ns)
        return Told(None, frame.item, frame.ns, held_back or why)

    def _tell_triggers(self, now_ns: int) -> list[Told[F]]:
        told: list[Told[F]] = []
        late = self._t.offset_ns + self._t.tolerance_ns + self._t.wait_ns
        while self._triggers:
            item = self._triggers[0]
            if now_ns <= item.trigger.latest_ns + late and len(self._triggers) <= MOST_WAITING:
                break
            self._triggers.popleft()
            if item.paired:
                continue
            if self._spare:
                frame = self._spare.popleft()
                told.append(Told(item.trigger.number, frame.item, frame.ns))
                continue
            why = self._held_back(item.trigger.earliest_ns)
            if why is None:
                why = Why.MISSED
                self._disagree(why, item.trigger.latest_ns)
            told.append(_alone(item.trigger, why))
        return told

    def _tell_spare(self, now_ns: int) -> list[Told[F]]:
        told: list[Told[F]] = []
        while self._spare and (
            now_ns - self._spare[0].arrived_ns > 2 * self._t.wait_ns or len(self._spare) > MOST_WAITING
        ):
            frame = self._spare.popleft()
            told.append(Told(None, frame.item, frame.ns))
        return told

    # --- agreeing ---------------------------------------------------------------------------------------------------

    def _near(self, frame: _Frame[F]) -> tuple[int, int]:
        """Where the frame's trigger may be."""
        middle = frame.ns - self._t.offset_ns
        return middle - self._t.tolerance_ns, middle + self._t.tolerance_ns

    def _held_back(self, ns: int) -> Why | None:
        """Why nothing of that time is judged, whatever it is."""
        if self.stopped is not None:
            return Why.STOPPED
        if ns < self._from_ns:
            return Why.STARTING if self.disagreements == 0 else Why.STOPPED
        return None

    def _doubt(self, frame: _Frame[F], item: _Trigger) -> Why | None:
        """What speaks against a pair that agrees in time."""
        if item.trigger.latest_ns - item.trigger.earliest_ns > self._t.answer_ns:
            return Why.SILENT
        shift = frame.ordinal - item.ordinal
        if self._shift is None:
            self._shift = shift
        if shift == self._shift:
            return None
        return Why.MISSED if shift < self._shift else Why.DOUBLED

    def _disagree(self, why: Why, ns: int) -> None:
        self._shift = None
        self.disagreements += 1
        if self._realign == "next":
            self._from_ns = max(self._from_ns, ns + self._t.tolerance_ns)
        elif self.stopped is None:
            self.stopped = why

    def _ordinal(self, camera_frame: int | None) -> int:
        """The frame's place in the camera's own order, which holds where a frame is overtaken by later ones."""
        self._ordinals += 1
        if camera_frame is not None:
            if self._anchor is not None:
                step = camera_frame - self._anchor[0]
                if abs(step) > FRAME_IDS // 2 and max(camera_frame, self._anchor[0]) <= FRAME_IDS:
                    step += FRAME_IDS if step < 0 else -FRAME_IDS
                ordinal = self._anchor[1] + step
                self._ordinals = max(self._ordinals - 1, ordinal)
                if step > 0:
                    self._anchor = camera_frame, ordinal
                return ordinal
            self._anchor = camera_frame, self._ordinals
        return self._ordinals


def _alone(trigger: Trigger, why: Why) -> Told[F]:
    return Told(trigger.number, None, (trigger.earliest_ns + trigger.latest_ns) // 2, why)

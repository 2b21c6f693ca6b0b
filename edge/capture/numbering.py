"""Which part a frame is announced as: in the order of the frames, or as the PLC counts.

`InOrder` gives each frame the next number at once. `ByPlc` listens to what the PLC's process broadcasts after each
exchange, and holds each frame (its pixels are in the ring already) until trigger and frame are known to agree: some
tens of milliseconds. What does not agree is announced with a status that makes it UNJUDGED. A camera that waits for
software triggers gets one for each part that the PLC has counted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from edge.capture.source import Grab
from edge.errors import MessageError, SourceError
from edge.messages import FrameStatus, PlcAnswer, decode
from edge.settings_tracking import TriggerSettings
from edge.tracking.alignment import Alignment, Told, Why
from edge.tracking.triggers import Answer, CountedTriggers, EncoderTriggers, Triggers
from edge.transport import Endpoint, Listener
from pipelines.images import PixelFormat

ANSWERS_PER_TURN = 256
NO_PART = 0  # the number of a frame that belongs to no part that is known; the PLC counts from 1


@dataclass(frozen=True, slots=True)
class Held:
    """A frame as the source delivered it, and the committed slot of its pixels (both 0 where it has none)."""

    grab: Grab
    slot: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Numbered:
    """A frame that can be announced, and its part's number; None is its place in the order of announcements."""

    held: Held
    part: int | None


class Numbering(ABC):
    """Gives the frames of one camera their parts' numbers."""

    turn_s: float  # longest time between two calls of `turn`

    @abstractmethod
    def take(self, held: Held, now_ns: int) -> None:
        """A frame, as it comes."""

    @abstractmethod
    def turn(self, now_ns: int) -> list[Numbered]:
        """What can be announced by now."""

    def finish(self) -> list[Numbered]:
        """The source has ended: all that is still held."""
        return []

    def realign(self, now_ns: int) -> None:  # noqa: B027 - there is nothing to do where nothing can disagree
        """Trigger and frame are in step again, says somebody who knows."""

    @property
    def fault(self) -> str:
        """Why nothing is judged; "" when all is well."""
        return ""

    def close(self) -> None:  # noqa: B027
        """Frees what it holds; safe to call twice."""

    def counters(self) -> dict[str, int]:
        """As health shows them."""
        return {}

    def gauges(self) -> dict[str, float]:
        """As health shows them."""
        return {}


class InOrder(Numbering):
    """Parts are numbered as they come."""

    turn_s = 0.2

    def __init__(self) -> None:
        self._ready: list[Numbered] = []

    def take(self, held: Held, now_ns: int) -> None:
        """Ready at once."""
        self._ready.append(Numbered(held, None))

    def turn(self, now_ns: int) -> list[Numbered]:
        """All there are."""
        ready, self._ready = self._ready, []
        return ready


class ByPlc(Numbering):
    """Parts are numbered by the PLC's count, or by its encoder."""

    turn_s = 0.004

    def __init__(
        self, settings: TriggerSettings, plc: Endpoint, line: str, fire: Callable[[], None] | None = None
    ) -> None:
        self._line = line
        self._fire = fire
        self._fresh_ns = settings.tolerances.answer_ns
        self._listener = Listener([plc])
        self._triggers: Triggers = CountedTriggers()
        if settings.step_counts is not None:
            self._triggers = EncoderTriggers(settings.step_counts, settings.zero_counts)
        self._alignment: Alignment[Held] = Alignment(settings.tolerances, settings.realign)
        self._command = settings.realign == "command"
        self._like = Grab(FrameStatus.MISSED, None, PixelFormat.MONO8, 0, 0, 0)  # of parts that have no frame
        self._counts: Counter[str] = Counter()

    def take(self, held: Held, now_ns: int) -> None:
        """Held until its part is known."""
        grab = held.grab
        self._like = replace(self._like, pixel_format=grab.pixel_format)
        whole = grab.status is FrameStatus.OK
        self._alignment.frame(grab.trigger_ns, held, now_ns, grab.camera_frame, whole)

    def turn(self, now_ns: int) -> list[Numbered]:
        """Listens to the PLC, and tells what agrees by now, and what does not."""
        for _ in range(ANSWERS_PER_TURN):
            data = self._listener.recv()
            if data is None:
                break
            self._hear(data, now_ns)
        told = self._alignment.turn(now_ns)
        return [self._numbered(item) for item in told]

    def finish(self) -> list[Numbered]:
        """What is still held, unjudged."""
        return [self._numbered(item) for item in self._alignment.finish()]

    def realign(self, now_ns: int) -> None:
        """Judge again what comes from now on."""
        self._alignment.realign(now_ns)

    def close(self) -> None:
        """Stops listening."""
        self._listener.close()

    @property
    def fault(self) -> str:
        """Why nothing is judged."""
        why = self._alignment.stopped
        if why is None:
            return ""
        cure = "see that the belt is clear, then run `edge realign`" if self._command else "a gap will align them"
        return f"trigger and frame disagree: {why.value}; nothing is judged: {cure}"

    def counters(self) -> dict[str, int]:
        """Answers of the PLC that were heard, and disagreements."""
        return {**self._counts, "disagreements": self._alignment.disagreements}

    def gauges(self) -> dict[str, float]:
        """`trigger_offset_ms` is what `offset_ms` of the settings should be near to."""
        return {"trigger_offset_ms": self._alignment.offset_ns / 1e6, "frames_held": float(len(self._alignment))}

    def _hear(self, data: bytes, now_ns: int) -> None:
        try:
            message = decode(data)
        except MessageError:
            self._counts["bad_messages"] += 1
            return
        if not isinstance(message, PlcAnswer) or message.line != self._line:
            return  # its health, which is broadcast too
        self._counts["plc_answers"] += 1
        answer = Answer(message.asked_ns, message.at_ns, message.parts, message.part, message.encoder)
        triggers = self._triggers.hear(answer)
        self._alignment.heard(triggers, answer.asked_ns)
        if self._fire is not None and triggers and now_ns - answer.at_ns <= self._fresh_ns:
            for _ in triggers:
                self._trigger(self._fire)

    def _trigger(self, fire: Callable[[], None]) -> None:
        try:
            fire()
            self._counts["fired"] += 1
        except SourceError:  # the camera is away, and says so itself; this part has no frame
            self._counts["not_fired"] += 1

    def _numbered(self, told: Told[Held]) -> Numbered:
        held = told.frame or Held(replace(self._like, trigger_ns=max(0, told.ns)))
        if told.frame is not None and told.why is not None:
            alone = told.part is None and told.why is Why.DOUBLED
            status = FrameStatus.DOUBLED if alone else FrameStatus.MISALIGNED
            held = replace(held, grab=replace(held.grab, status=status))
        return Numbered(held, NO_PART if told.part is None else told.part)

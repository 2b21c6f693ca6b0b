"""Triggers as the PLC tells them: parts at the camera, from its count or from its encoder.

The PLC is asked now and then, so a part's moment is known only as an interval: after the last answer that did not
count it, before the first that did.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

MOST_AT_ONCE = 256  # a larger step between two answers is a counter that was reset
COUNT_WRAP = 2**16
PART_WRAP = 2**32
ENCODER_WRAP = 2**32


@dataclass(frozen=True, slots=True)
class Answer:
    """What the PLC told in one exchange: the inputs of the handshake, and when (CLOCK_MONOTONIC)."""

    asked_ns: int  # the PLC looked after this
    at_ns: int  # and before this
    parts: int  # uint16, parts counted at the camera; wraps
    part: int  # uint32, the PLC's number of the newest of them
    encoder: int  # int32, belt counts; wraps


@dataclass(frozen=True, slots=True)
class Trigger:
    """A part at the camera: its number, and the interval in which it was there."""

    number: int
    earliest_ns: int
    latest_ns: int


class Triggers(ABC):
    """Makes triggers of the PLC's answers."""

    def __init__(self) -> None:
        self._last: Answer | None = None

    def hear(self, answer: Answer) -> list[Trigger] | None:
        """Parts that came since the last answer, oldest first. None: the counter jumped, nothing is known of them."""
        last, self._last = self._last, answer
        if last is None:
            self._begin(answer)
            return []
        if answer.at_ns <= last.at_ns:  # repeated, or overtaken by a newer one
            self._last = last
            return []
        return self._between(last, answer)

    @abstractmethod
    def _begin(self, answer: Answer) -> None:
        """The first answer."""

    @abstractmethod
    def _between(self, last: Answer, answer: Answer) -> list[Trigger] | None:
        """Parts that are new in `answer`."""


class CountedTriggers(Triggers):
    """The PLC counts the parts, by its own sensor, and numbers them."""

    def _begin(self, answer: Answer) -> None:
        pass

    def _between(self, last: Answer, answer: Answer) -> list[Trigger] | None:
        new = (answer.parts - last.parts) % COUNT_WRAP
        if new > MOST_AT_ONCE:
            return None
        # Only the newest number is told; the PLC counts parts one by one, so those before it have the numbers before.
        numbers = [(answer.part - back) % PART_WRAP for back in reversed(range(new))]
        return [Trigger(number, last.asked_ns, answer.at_ns) for number in numbers]


class EncoderTriggers(Triggers):
    """A part every so many encoder counts, at `zero` and its multiples; its number is how many steps that is.

    `step` is negative where the encoder counts down. A belt that runs back and on again passes no part twice.
    """

    def __init__(self, step: int, zero: int) -> None:
        super().__init__()
        self._step, self._zero = step, zero
        self._place = 0
        self._highest = 0

    def _begin(self, answer: Answer) -> None:
        self._place = answer.encoder
        self._highest = (self._place - self._zero) // self._step

    def _between(self, last: Answer, answer: Answer) -> list[Trigger] | None:
        self._place += (answer.encoder - last.encoder + ENCODER_WRAP // 2) % ENCODER_WRAP - ENCODER_WRAP // 2
        number = (self._place - self._zero) // self._step
        if abs(number - self._highest) > MOST_AT_ONCE:
            self._place = answer.encoder
            self._highest = (self._place - self._zero) // self._step
            return None
        first, self._highest = self._highest + 1, max(self._highest, number)
        return [Trigger(k % PART_WRAP, last.asked_ns, answer.at_ns) for k in range(first, self._highest + 1)]

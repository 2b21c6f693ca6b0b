"""Which frames are scored together, and when. Pure logic: the caller passes the time.

Frames wait in groups; only frames of one group (same bundle, format and size) can be scored together. The group whose
most urgent frame has the earliest deadline goes first, and of it the most urgent frames. A group goes at once when it
is full or nothing is gained by waiting: `wait_ns` after its first frame came, or when a deadline is near. Frames that
gain nothing by company (engines on a CPU) go one by one, so that none waits for the others' scores.

Under overload a queue in order of deadlines would bring every frame to its turn just too late. So frames that cannot be
scored in the time they have left are taken out early, and what the engine can do is spent on those that can.

Bounded: at most `capacity` frames and `capacity_bytes` of pixels that came by network wait. Beyond, the frame with the
earliest deadline is given up, because it is the least likely to be judged in time.
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.messages import FrameRef


@dataclass(frozen=True)
class Waiting:
    """A frame that waits to be scored. Times are this host's."""

    frame: FrameRef
    group: Hashable
    arrived_ns: int
    due_ns: int  # its deadline
    pixels: NDArray[np.uint8] | None = None  # flat, where they came with the message
    alone: bool = False  # nothing is gained by scoring it together with others


@dataclass
class Batcher:
    """Frames that wait, by group."""

    batch_max: int
    wait_ns: int
    capacity: int = 128
    capacity_bytes: int = 1 << 30
    _groups: dict[Hashable, list[Waiting]] = field(default_factory=dict, init=False)  # each by deadline
    _count: int = field(default=0, init=False)
    _bytes: int = field(default=0, init=False)

    def __len__(self) -> int:
        return self._count

    def add(self, item: Waiting) -> list[Waiting]:
        """Takes a frame in; returns those that are given up for it."""
        bisect.insort(self._groups.setdefault(item.group, []), item, key=_due)
        self._account(item, 1)
        given_up: list[Waiting] = []
        while self._count > self.capacity or (self._bytes > self.capacity_bytes and self._count > 1):
            given_up.append(self._remove(min(self._groups, key=self._urgency), 0))
        return given_up

    def expired(self, now_ns: int, needed_ns: int = 0) -> list[Waiting]:
        """Takes out the frames that cannot be scored before their deadline: that would be of no use to anybody.

        `needed_ns` is what scoring takes at present. A frame with half of its time left is always tried, so that a
        slow spell of the engine ends the moment the engine is fast again.
        """
        late: list[Waiting] = []
        for group in list(self._groups):
            while group in self._groups and _latest_start(self._groups[group][0], needed_ns) <= now_ns:
                late.append(self._remove(group, 0))
        return late

    def take(self, now_ns: int) -> list[Waiting]:
        """Takes out the frames to score now, all of one group; none where it is better to wait."""
        for group in sorted(self._groups, key=self._urgency):
            if self._goes_at(group) <= now_ns:
                return [self._remove(group, 0) for _ in range(min(self._most(group), len(self._groups[group])))]
        return []

    def ready_ns(self) -> int | None:
        """When `take` will have something, or None where nothing waits."""
        return min(map(self._goes_at, self._groups), default=None)

    def _goes_at(self, group: Hashable) -> int:
        waiting = self._groups[group]
        if len(waiting) >= self._most(group):
            return 0
        first = min(item.arrived_ns for item in waiting)
        # A frame never waits beyond half of the time that was left when it came.
        return min([first + self.wait_ns, *((item.arrived_ns + item.due_ns) // 2 for item in waiting)])

    def _most(self, group: Hashable) -> int:
        return 1 if self._groups[group][0].alone else self.batch_max

    def _urgency(self, group: Hashable) -> int:
        return self._groups[group][0].due_ns

    def _remove(self, group: Hashable, index: int) -> Waiting:
        waiting = self._groups[group]
        item = waiting.pop(index)
        if not waiting:
            del self._groups[group]
        self._account(item, -1)
        return item

    def _account(self, item: Waiting, sign: int) -> None:
        self._count += sign
        self._bytes += sign * (item.pixels.nbytes if item.pixels is not None else 0)


def _latest_start(item: Waiting, needed_ns: int) -> int:
    return item.due_ns - min(needed_ns, item.frame.deadline_ns // 2)


def _due(item: Waiting) -> int:
    return item.due_ns

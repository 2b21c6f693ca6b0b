"""Several cameras that look at one part at once: their verdicts joined into one ruling for the PLC.

Pure logic: no clock, no socket. Each camera's verdict stays a row of the ledger by itself; what is joined here is what
becomes of the part. The worst camera decides:

    REJECT     one camera rejects; the others are not waited for
    UNJUDGED   else, where a camera did not judge, or was not heard of until the part's deadline
    PASS       every camera of the group has passed the part

Cameras of a group are told to belong together by the part's number, where an alignment gives it the PLC's (or the
encoder's), else by their trigger times, which a common trigger makes equal but for `sync_ns`. A frame that belongs to
no part that is known (number 0 where parts are numbered by the PLC) joins nothing: it is ruled by itself.

A camera in no group is a group of its own, and ruled at once. A part gets one ruling: what comes after it is counted.
Bounded: at most `OPEN` parts of a group are remembered, ruled or not; beyond, the oldest is ruled with what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from edge.messages import Decision, Ruling, Verdict

OPEN = 1024
KEPT_NS = 10_000_000_000  # a ruled part is remembered for so long, for cameras that are late

_RANK = {Decision.PASS: 0, Decision.UNJUDGED: 1, Decision.REJECT: 2}


@dataclass(frozen=True, slots=True)
class Group:
    """Cameras that see the same parts at the same moment."""

    cameras: frozenset[str]
    by_number: bool  # whether equal part numbers mean the same part; else equal trigger times do
    sync_ns: int  # how far trigger times of one part may be apart
    deadline_ns: int  # the longest of its cameras'


@dataclass
class Counts:
    """What was joined, since the start."""

    rulings: int = 0
    missing: int = 0  # parts that were ruled while a camera had not been heard of
    late: int = 0  # verdicts after the ruling
    repeated: int = 0  # a second verdict of the same camera on the same part number; the worse one counts


@dataclass
class _Part:
    number: int
    trigger_ns: int
    due_ns: int
    verdicts: dict[str, tuple[Verdict, int]] = field(default_factory=dict)  # by camera, with its trigger time
    ruled: bool = False


class Joiner:
    """The parts of a line's groups whose ruling is still open."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self._group: dict[str, Group] = {camera: group for group in groups for camera in group.cameras}
        self._parts: dict[Group, list[_Part]] = {group: [] for group in self._group.values()}  # oldest first
        self.counts = Counts()

    def add(self, verdict: Verdict, trigger_ns: int, deadline_ns: int) -> list[Ruling]:
        """A verdict that stands in the ledger; the part was triggered at `trigger_ns` (this host's clock)."""
        group = self._group.get(verdict.id.camera)
        if group is None or (group.by_number and verdict.part == 0):
            return [self._ruling({verdict.id.camera: (verdict, trigger_ns)}, deadline_ns, {})]
        rulings: list[Ruling] = []
        part = self._find(group, verdict, trigger_ns)
        if part is None:
            part = _Part(verdict.part, trigger_ns, trigger_ns + group.deadline_ns)
            parts = self._parts[group]
            parts.append(part)
            if len(parts) > OPEN:
                rulings += self._rule(group, parts.pop(0))
        before = part.verdicts.get(verdict.id.camera)
        if before is not None:
            self.counts.repeated += 1
            if _RANK[verdict.decision] <= _RANK[before[0].decision]:
                return rulings
        part.verdicts[verdict.id.camera] = verdict, trigger_ns
        if part.ruled:
            self.counts.late += 1
        elif verdict.decision is Decision.REJECT or part.verdicts.keys() == group.cameras:
            rulings += self._rule(group, part)
        return rulings

    def expire(self, now_ns: int) -> list[Ruling]:
        """Rulings of parts whose deadline has come; a camera that was not heard of counts as UNJUDGED."""
        rulings: list[Ruling] = []
        for group, parts in self._parts.items():
            for part in parts:
                if part.due_ns <= now_ns:
                    rulings += self._rule(group, part)
            if parts and parts[0].due_ns + KEPT_NS <= now_ns:
                self._parts[group] = [part for part in parts if part.due_ns + KEPT_NS > now_ns]
        return rulings

    def next_due_ns(self) -> int | None:
        """When `expire` has something to do, or None where nothing is open."""
        return min((part.due_ns for parts in self._parts.values() for part in parts if not part.ruled), default=None)

    def finish(self) -> list[Ruling]:
        """The line stops: every open part is ruled now."""
        return [ruling for group, parts in self._parts.items() for part in parts for ruling in self._rule(group, part)]

    def _find(self, group: Group, verdict: Verdict, trigger_ns: int) -> _Part | None:
        camera = verdict.id.camera
        if group.by_number:
            # The newest of that number: the PLC's numbers may begin again.
            found = (part for part in reversed(self._parts[group]) if part.number == verdict.part)
            return next((part for part in found if abs(part.trigger_ns - trigger_ns) <= KEPT_NS), None)
        near = [
            part
            for part in self._parts[group]
            if abs(part.trigger_ns - trigger_ns) <= group.sync_ns and camera not in part.verdicts
        ]
        return min(near, key=lambda part: abs(part.trigger_ns - trigger_ns), default=None)

    def _rule(self, group: Group, part: _Part) -> list[Ruling]:
        if part.ruled:
            return []
        part.ruled = True
        missing = group.cameras - part.verdicts.keys()
        each = {camera: verdict.decision for camera, (verdict, _) in sorted(part.verdicts.items())}
        ruling = self._ruling(part.verdicts, group.deadline_ns, each)
        if missing and ruling.decision is not Decision.REJECT:
            self.counts.missing += 1
        if missing and ruling.decision is Decision.PASS:
            ruling = msgspec.structs.replace(ruling, decision=Decision.UNJUDGED)
        return [ruling]

    def _ruling(
        self, verdicts: Mapping[str, tuple[Verdict, int]], deadline_ns: int, each: Mapping[str, Decision]
    ) -> Ruling:
        """The worst of `verdicts`, as the PLC's process is told."""
        self.counts.rulings += 1
        worst, _ = max(verdicts.values(), key=lambda item: _RANK[item[0].decision])
        first_ns = min(trigger_ns for _, trigger_ns in verdicts.values())
        return Ruling(
            id=worst.id,
            part=worst.part,
            decision=worst.decision,
            trigger_ns=first_ns,
            deadline_ns=deadline_ns,
            encoder=worst.encoder,
            each=dict(each),
        )

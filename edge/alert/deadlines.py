"""The table of parts in flight: every part gets exactly one verdict, by its deadline.

Pure logic: no clock, no socket, no file. The caller passes the time (CLOCK_MONOTONIC nanoseconds of this host) and
gets back the verdicts that are due. A part enters the table when capture announces it, when a score arrives before
its announcement (the score carries the whole `FrameRef`), or when a later part of the same camera shows that it must
exist. It leaves with its verdict:

    score in time          PASS, or REJECT where any region is over its limit
    score without judgment UNJUDGED with inference's reason (torn, late, refused, failed)
    no frame               UNJUDGED at once: lost, incomplete, unreadable ...
    silence                UNJUDGED at the deadline less the margin that committing the verdict takes
    never announced        UNJUDGED after a grace in which the ring's journal can still tell of it

Sequences count from 0 without gaps in each epoch, so `next` per epoch is all the memory it takes to know a part that
already had its verdict: whatever is below it and not in flight is settled. What comes for a settled part is counted
and changes nothing.

Nothing is unbounded: at most `capacity` parts are in flight (beyond, the part nearest to its deadline is given up:
UNJUDGED), a jump in sequence makes at most `MAX_GAP` lost parts (more are counted only), `MAX_EPOCHS` epochs are
remembered per camera.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from edge.messages import Decision, FrameId, FrameRef, FrameStatus, RegionScore, Score, ScoreStatus, Verdict

MAX_GAP = 16_384  # as many as the ring's journal can tell of
MAX_EPOCHS = 32
MAX_DEADLINE_NS = 600 * 1_000_000_000  # a part that claims longer is held to ten minutes
MAX_PERCENT = 1e9  # of limit; beyond, a score is shown as this

Key = tuple[str, int, int]  # camera, epoch, sequence

NO_FRAME = {
    FrameStatus.INCOMPLETE: "the frame arrived incomplete",
    FrameStatus.LOST: "the frame never arrived",
    FrameStatus.UNREADABLE: "the frame does not decode",
    FrameStatus.MISMATCH: "the frame has another size or format than the camera announced",
    FrameStatus.NO_SLOT: "the frame did not fit a slot of the ring",
    FrameStatus.MISSED: "trigger and frame disagree: the part was counted and has no frame",
    FrameStatus.DOUBLED: "trigger and frame disagree: the frame is of a part that was not counted",
    FrameStatus.MISALIGNED: "trigger and frame disagree: which part the frame shows is not certain",
}
NO_JUDGMENT = {
    ScoreStatus.TORN: "the frame was overwritten before it was judged",
    ScoreStatus.LATE: "inference received the frame too late",
    ScoreStatus.REFUSED: "the bundle cannot judge this frame",
    ScoreStatus.FAILED: "inference failed",
}
SILENCE = "no score before the deadline"
CROWDED = "too many parts in flight"
NEVER_ANNOUNCED = "the part was never announced"


@dataclass(frozen=True)
class Decided:
    """A verdict that is due, and what it was made from."""

    verdict: Verdict
    frame: FrameRef | None  # None for a part that was never announced
    regions: tuple[RegionScore, ...] = ()
    cause: str = ""  # of UNJUDGED, in one word, for counters
    trigger_ns: int = 0  # when the part was triggered, by this host's clock
    deadline_ns: int = 0  # from trigger to the latest moment for the verdict; 0 where it was never announced


@dataclass
class Counts:
    """What the table saw, since it was made."""

    announced: int = 0
    repeated: int = 0  # announcements of a part already known; the journal repeats by design
    late_scores: int = 0  # the part had its verdict by silence
    duplicate_scores: int = 0  # the part had its verdict by an earlier score
    gap_parts: int = 0  # sequences skipped by a later part
    uncounted_gap_parts: int = 0  # of a jump beyond MAX_GAP: no verdict is written for these
    foreign: int = 0  # messages of another line or of a camera that is not in the settings
    crowded: int = 0  # parts given up for room


@dataclass
class _Part:
    """A part in flight."""

    frame_id: FrameId
    part: int
    frame: FrameRef | None
    trigger_ns: int  # of this host's clock
    due_ns: int


@dataclass
class PartTable:
    """Parts in flight of the cameras of one line.

    `limit_percent` names the line's cameras and the percent of limit above which each rejects; `host` is this host's
    clock domain; `margin_ns` is kept free before each deadline for committing and publishing; `grace_ns` is how long
    a skipped part waits for its announcement; `begun_ms` is when the ledger was begun (wall clock, like epochs).
    """

    line: str
    limit_percent: Mapping[str, float]
    host: str
    margin_ns: int = 20_000_000
    grace_ns: int = 100_000_000
    capacity: int = 8192
    begun_ms: int = 0
    counts: Counts = field(default_factory=Counts)
    _parts: dict[Key, _Part] = field(default_factory=dict, init=False)
    _heap: list[tuple[int, Key]] = field(default_factory=list, init=False)
    _next: dict[str, OrderedDict[int, int]] = field(default_factory=dict, init=False)
    _silent: OrderedDict[Key, None] = field(default_factory=OrderedDict, init=False)

    def __len__(self) -> int:
        return len(self._parts)

    def missing(self) -> set[str]:
        """Cameras with a part in flight that was never announced: their journal should be read."""
        return {key[0] for key, part in self._parts.items() if part.frame is None}

    def knows(self, frame_id: FrameId) -> bool:
        """Whether this part was announced or had its verdict: announcing it again would change nothing."""
        part = self._parts.get(_key(frame_id))
        if part is not None:
            return part.frame is not None
        return frame_id.sequence < self._following(frame_id.camera, frame_id.epoch)

    def next_due(self) -> int | None:
        """When `expire` has something to do, or None where nothing is in flight."""
        self._prune()
        return self._heap[0][0] if self._heap else None

    def settled(self, camera: str, epoch: int, sequence: int) -> bool:
        """Whether this part had its verdict."""
        known = self._following(camera, epoch)
        return sequence < known and (camera, epoch, sequence) not in self._parts

    def pass_over(self, camera: str, epoch: int, following: int) -> None:
        """Parts of this epoch below `following` are not the business of this ledger: they get no verdict."""
        if camera in self.limit_percent:
            self._remember(camera, epoch, following)

    def begin(self, camera: str, epoch: int, written: Collection[int], now_ns: int, first: int = 0) -> list[Decided]:
        """Takes up an epoch after a restart of this process: `written` are the sequences the ledger holds from
        `first` on. Holes between them are parts without a verdict; they wait for the journal like any gap."""
        if camera not in self.limit_percent or not written:
            return []
        following = max(written) + 1
        self._remember(camera, epoch, following)
        had = set(written)
        decided: list[Decided] = []
        for sequence in range(max(first, following - MAX_GAP), following):
            if sequence not in had:
                decided += self._skipped(camera, epoch, sequence, sequence, now_ns, now_ns + self.grace_ns)
        return decided

    def announce(self, frame: FrameRef, now_ns: int) -> list[Decided]:
        """Capture, or the ring's journal, tells of a part."""
        if not self._ours(frame.id):
            return []
        decided: list[Decided] = []
        part = self._enter(frame, now_ns, decided)
        if part is None:
            self.counts.repeated += 1
            return decided
        if frame.status is not FrameStatus.OK:
            return [*decided, self._unjudged(part, NO_FRAME[frame.status], frame.status.value, now_ns)]
        if part.due_ns <= now_ns:
            return [*decided, self._silence(part, now_ns)]
        return decided

    def score(self, score: Score, now_ns: int) -> list[Decided]:
        """Inference's answer arrived. The first answer that is in time decides; all others are counted."""
        frame = score.frame
        if not self._ours(frame.id):
            return []
        decided: list[Decided] = []
        key = _key(frame.id)
        part = self._enter(frame, now_ns, decided) or self._parts.get(key)
        if part is None:
            if self._silent.pop(key, key) is None:
                self.counts.late_scores += 1
            else:
                self.counts.duplicate_scores += 1
            return decided
        if part.due_ns <= now_ns:
            self.counts.late_scores += 1
            decided.append(self._silence(part, now_ns))
            self._silent.pop(key, None)  # its score has come: another one is a duplicate
            return decided
        return [*decided, self._judge(part, score, now_ns)]

    def expire(self, now_ns: int, most: int | None = None) -> list[Decided]:
        """Verdicts of parts whose time is up, oldest first, `most` at a time."""
        decided: list[Decided] = []
        while most is None or len(decided) < most:
            due = self.next_due()
            if due is None or due > now_ns:
                break
            decided.append(self._silence(self._parts[self._heap[0][1]], now_ns))
        return decided

    def finish(self, now_ns: int, reason: str) -> list[Decided]:
        """The line stops: every part in flight is UNJUDGED now."""
        parts = sorted(self._parts.values(), key=lambda part: part.due_ns)
        return [
            self._unjudged(part, reason, "stopped", now_ns)
            if part.frame
            else self._unjudged(part, NEVER_ANNOUNCED, "gap", now_ns)
            for part in parts
        ]

    # --- entering ---------------------------------------------------------------------------------------------------

    def _ours(self, frame_id: FrameId) -> bool:
        ours = frame_id.line == self.line and frame_id.camera in self.limit_percent
        self.counts.foreign += not ours
        return ours

    def _enter(self, frame: FrameRef, now_ns: int, decided: list[Decided]) -> _Part | None:
        """The part, newly in flight or newly announced; None where it is known already."""
        key = _key(frame.id)
        part = self._parts.get(key)
        if part is not None and part.frame is not None:
            return None
        camera, epoch, sequence = key
        known = self._following(camera, epoch)
        if part is None and sequence < known:
            return None
        if epoch < self.begun_ms and epoch not in self._next.get(camera, ()):
            known = sequence  # this epoch began before the ledger did: what came earlier is not for this ledger
        trigger = self._trigger(frame, now_ns)
        deadline = min(frame.deadline_ns, MAX_DEADLINE_NS)
        due = trigger + deadline - min(self.margin_ns, deadline // 4)
        self.counts.announced += 1
        if sequence > known:
            first = max(known, sequence - MAX_GAP)
            self.counts.uncounted_gap_parts += first - known
            grace = min(now_ns + self.grace_ns, max(due, now_ns))
            for skipped in range(first, sequence):
                number = max(0, frame.part - (sequence - skipped))
                decided += self._skipped(camera, epoch, skipped, number, now_ns, grace)
        if sequence >= known:
            self._remember(camera, epoch, sequence + 1)
        return self._put(_Part(frame.id, frame.part, frame, trigger, due), now_ns, decided)

    def _trigger(self, frame: FrameRef, now_ns: int) -> int:
        """When the part was triggered, by this host's clock. Clocks of two hosts are never compared."""
        if frame.host == self.host:
            return min(frame.trigger_ns, now_ns)
        return max(0, now_ns - frame.age_ns)

    def _skipped(self, camera: str, epoch: int, sequence: int, number: int, now_ns: int, due_ns: int) -> list[Decided]:
        decided: list[Decided] = []
        self.counts.gap_parts += 1
        frame_id = FrameId(line=self.line, camera=camera, epoch=epoch, sequence=sequence)
        self._put(_Part(frame_id, number, None, now_ns, due_ns), now_ns, decided)
        return decided

    def _put(self, part: _Part, now_ns: int, decided: list[Decided]) -> _Part:
        key = _key(part.frame_id)
        while key not in self._parts and len(self._parts) >= self.capacity:
            self._prune()
            self.counts.crowded += 1
            decided.append(self._unjudged(self._parts[self._heap[0][1]], CROWDED, "crowded", now_ns))
        self._parts[key] = part
        heapq.heappush(self._heap, (part.due_ns, key))
        return part

    def _following(self, camera: str, epoch: int) -> int:
        """The first sequence of an epoch that nobody has told of yet."""
        epochs = self._next.get(camera)
        return epochs.get(epoch, 0) if epochs else 0

    def _remember(self, camera: str, epoch: int, following: int) -> None:
        epochs = self._next.setdefault(camera, OrderedDict())
        epochs[epoch] = max(following, epochs.get(epoch, 0))
        epochs.move_to_end(epoch)
        if len(epochs) > MAX_EPOCHS:
            epochs.popitem(last=False)

    def _prune(self) -> None:
        """Drops heap entries of parts that have left or have another deadline by now."""
        heap = self._heap
        while heap and not self._current(heap[0]):
            heapq.heappop(heap)
        if len(heap) > 2 * len(self._parts) + 64:
            self._heap = [(part.due_ns, key) for key, part in self._parts.items()]
            heapq.heapify(self._heap)

    def _current(self, entry: tuple[int, Key]) -> bool:
        part = self._parts.get(entry[1])
        return part is not None and part.due_ns == entry[0]

    # --- deciding ---------------------------------------------------------------------------------------------------

    def _silence(self, part: _Part, now_ns: int) -> Decided:
        self._silent[_key(part.frame_id)] = None
        if len(self._silent) > MAX_GAP:
            self._silent.popitem(last=False)
        if part.frame is None:
            return self._unjudged(part, NEVER_ANNOUNCED, "gap", now_ns)
        return self._unjudged(part, SILENCE, "silence", now_ns)

    def _unjudged(self, part: _Part, reason: str, cause: str, now_ns: int, score: Score | None = None) -> Decided:
        return self._decide(part, Decision.UNJUDGED, reason, now_ns, score, None, cause)

    def _judge(self, part: _Part, score: Score, now_ns: int) -> Decided:
        if score.frame.status is not FrameStatus.OK:
            return self._unjudged(part, NO_FRAME[score.frame.status], score.frame.status.value, now_ns, score)
        if score.status is not ScoreStatus.OK:
            reason = NO_JUDGMENT[score.status] + (f": {score.reason}" if score.reason else "")
            return self._unjudged(part, reason[:1024], score.status.value, now_ns, score)
        if not score.regions:
            return self._unjudged(part, "the score names no region", "limit", now_ns, score)
        limit_percent = self.limit_percent[part.frame_id.camera]
        for region in score.regions:
            if not (region.limit > region.floor and math.isfinite(effective_limit(region, limit_percent))):
                reason = f"region {region.name!r}: its limit is not above its floor"
                return self._unjudged(part, reason, "limit", now_ns, score)
        worst = max(score.regions, key=lambda region: (over_limit(region, limit_percent), percent_of_limit(region)))
        decision = Decision.REJECT if over_limit(worst, limit_percent) else Decision.PASS
        return self._decide(part, decision, "", now_ns, score, worst)

    def _decide(
        self,
        part: _Part,
        decision: Decision,
        reason: str,
        now_ns: int,
        score: Score | None,
        worst: RegionScore | None,
        cause: str = "",
    ) -> Decided:
        del self._parts[_key(part.frame_id)]
        frame = part.frame
        verdict = Verdict(
            id=part.frame_id,
            part=part.part,
            decision=decision,
            reason=reason,
            percent=percent_of_limit(worst) if worst else None,
            score=worst.score if worst else None,
            limit=effective_limit(worst, self.limit_percent[part.frame_id.camera]) if worst else None,
            region=worst.name if worst else None,
            bundle=score.bundle if score and score.bundle else None,
            engine=score.engine if score and score.engine else None,
            latency_ns=max(0, now_ns - part.trigger_ns),
            infer_ns=score.infer_ns if score else None,
            decided_at_ns=0,  # the wall clock is stamped by whoever writes the verdict
            camera_frame=frame.camera_frame if frame else None,
            encoder=frame.encoder if frame else None,
            origin=frame.origin if frame else None,
        )
        deadline = min(frame.deadline_ns, MAX_DEADLINE_NS) if frame else 0
        regions = tuple(score.regions) if score else ()
        return Decided(verdict, frame, regions, cause, part.trigger_ns, deadline)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._parts)


def effective_limit(region: RegionScore, limit_percent: float) -> float:
    """The raw score above which `region` rejects where its camera rejects above `limit_percent` of the limit."""
    if limit_percent == 100.0:
        return region.limit
    return region.floor + (region.limit - region.floor) * limit_percent / 100.0


def over_limit(region: RegionScore, limit_percent: float) -> bool:
    """Whether `region` rejects the part. At 100 percent this is `score > limit` exactly, without any rounding."""
    return region.score > effective_limit(region, limit_percent)


def percent_of_limit(region: RegionScore) -> float:
    """The region's score as percent of its limit, held within +-`MAX_PERCENT`."""
    percent = region.percent
    if math.isnan(percent):
        return MAX_PERCENT
    return min(max(percent, -MAX_PERCENT), MAX_PERCENT)


def _key(frame_id: FrameId) -> Key:
    return frame_id.camera, frame_id.epoch, frame_id.sequence

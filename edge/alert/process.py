"""The alert process: every announced part gets its one verdict here.

One turn of the work loop: take what waits in the inbox (a bounded number), decide, and, at most every `commit_ms`,
commit what was decided in one transaction, publish it, and hand frames to the archive. In this order: what was
published is in the ledger, so a process killed at any moment never contradicts itself.

At start, on every skipped sequence and four times a second the rings' journals are read: each announcement there that
has no row gets its verdict, whoever died meanwhile.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace

import cv2
import msgspec
import numpy as np

from edge.alert import ledger_schema
from edge.alert.archive import Archive, Job
from edge.alert.deadlines import MAX_GAP, Decided, PartTable, percent_of_limit
from edge.alert.journal import Journals
from edge.alert.ledger import Ledger
from edge.alert.ledger_schema import ArchiveState, Entry
from edge.alert.recorder import Recorder
from edge.alert.retention import Limits
from edge.alert.rulings import Rulings
from edge.errors import LedgerError, MessageError, RingError
from edge.messages import Decision, FrameRef, FrameStatus, Health, Message, Score, decode, host_id, now_ns
from edge.process import Process
from edge.rings import Rings
from edge.settings import Settings
from edge.transport import Inbox

MARGIN_NS = 15_000_000  # before each deadline, besides commit_ms: one turn, one commit, one publication
MESSAGES_PER_TURN = 256
VERDICTS_PER_TURN = 512
IDLE_S = 0.1
SWEEP_NS = 250_000_000  # an announcement that was lost with nothing after it still gets its verdict in time
GAP_SWEEP_NS = 20_000_000
COMPLAIN_NS = 5_000_000_000
DRAIN_NS = 2_000_000_000
ARCHIVE_STOP_S = 5.0
WINDOW = 1024  # verdicts over which latencies are told


class AlertProcess(Process):
    """Deadlines, verdicts, ledger and archive of one line."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("alert", settings)
        line = settings.line.name
        cameras = [camera.name for camera in settings.cameras]
        self._commit_ns = int(settings.alert.commit_ms * 1e6)
        self._limits = {camera.name: camera.limit_percent for camera in settings.cameras}
        self._parts = PartTable(line, self._limits, host_id(), margin_ns=self._commit_ns + MARGIN_NS)
        self._rings = Rings(line, cameras)
        self._journals = Journals(self._rings, cameras)
        self._save = {Decision(name) for name in settings.archive.save} if settings.archive.enabled else set()
        self._decided: list[Decided] = []
        self._committed_ns = 0
        self._swept_ns = 0
        self._second_ns = 0
        self._bad_messages = 0
        self._latencies: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # verdict, commit: ms
        self._complained: dict[str, tuple[int, str]] = {}
        self._inbox: Inbox | None = None
        self._recorder: Recorder | None = None
        self._archive: Archive | None = None
        self._rulings: Rulings | None = None  # where the line has a PLC

    def setup(self) -> None:
        """Opens ledger and archive, takes up the parts that a predecessor left, then opens the inbox."""
        cv2.setNumThreads(1)  # pictures are drawn beside the verdicts, not instead of them
        paths, archive = self.settings.paths, self.settings.archive
        ledger = Ledger.open(paths.ledger, self.settings.line.name, self.settings.alert.ledger_days)
        self._recorder = Recorder(ledger)
        if ledger.fault:
            self.fault(ledger.fault)
        if archive.enabled:
            limits = Limits(int(archive.max_gb * 1e9), int(archive.min_free_gb * 1e9), archive.keep_days)
            self._archive = Archive(paths.archive, limits, archive.queue_frames)
            self._archive.start()
        if self.settings.plc is not None:
            self._rulings = Rulings(self.settings, self.endpoints.plc_in)
        self._recover(ledger)
        self._inbox = Inbox(self.endpoints.alert_in)
        self._tell()

    def step(self) -> bool | None:
        """One turn."""
        assert self._inbox is not None
        for count in range(MESSAGES_PER_TURN):
            message = self._inbox.recv(0.0 if count else self._idle_s(now_ns()))
            if message is None:
                break
            self._hear(message[0], now_ns())
        now = now_ns()
        self._sweep(now)
        self._decided += self._parts.expire(now, VERDICTS_PER_TURN)
        if self._decided and now >= self._committed_ns + self._commit_ns:
            self._commit(now)
        if self._rulings is not None:
            self._rulings.turn(now)
        if now >= self._second_ns:
            self._second_ns = now + 1_000_000_000
            self._each_second(now)
        return None

    def teardown(self) -> None:
        """Verdicts for all that is in flight, then the archive's queue, then the end."""
        if self._recorder is not None and self._inbox is not None:
            until = now_ns() + DRAIN_NS
            while now_ns() < until and (message := self._inbox.recv()) is not None:
                self._hear(message[0], now_ns())
            self._announce_all()
            self._decided += self._parts.finish(now_ns(), "the line stopped")
            self._commit(now_ns())
        if self._rulings is not None:
            self._rulings.close()
        if self._archive is not None and not self._archive.stop(ARCHIVE_STOP_S):
            self.fault(f"{self._archive.waiting} frames were not archived before the process ended")
        if self._recorder is not None:
            if not self._recorder.catch_up(now_ns() + COMPLAIN_NS):
                self.fault(f"{self._recorder.waiting} rows were not written: {self._recorder.fault}")
            self._note_archived()
            self._recorder.ledger.close()
        if self._inbox is not None:
            self._inbox.close()
        self._inbox = self._recorder = self._archive = self._rulings = None
        self._rings.close()

    def publish(self, message: Message) -> None:
        """To everybody who listens; health to the PLC's process as well, by which it knows that alert lives."""
        super().publish(message)
        if self._rulings is not None and isinstance(message, Health):
            self._rulings.health(message)

    # --- hearing ----------------------------------------------------------------------------------------------------

    def _hear(self, data: bytes, now: int) -> None:
        try:
            message = decode(data)
        except MessageError as error:
            self._bad_messages += 1
            self._complain("message", f"a message was dropped: {error}", now)
            return
        if isinstance(message, FrameRef):
            self._decided += self._parts.announce(message, now)
        elif isinstance(message, Score):
            self._decided += self._parts.score(message, now)
        else:
            self._bad_messages += 1
            self._complain("message", f"a {type(message).__name__} does not belong into the inbox of alert", now)

    def _idle_s(self, now: int) -> float:
        """How long the inbox may be waited for: until the next thing that must be done."""
        if self._journals.waiting:
            return 0.0
        until = min(now + int(IDLE_S * 1e9), self._second_ns)
        if self._decided:
            until = min(until, self._committed_ns + self._commit_ns)
        dues = (self._parts.next_due(), self._rulings.next_due_ns() if self._rulings is not None else None)
        until = min([until, *(due for due in dues if due is not None)])
        return max(0.0, (until - now) * 1e-9)

    # --- the rings' journals ----------------------------------------------------------------------------------------

    def _recover(self, ledger: Ledger) -> None:
        """Takes up the parts of a predecessor: the ledger's rows decide what is missing."""
        now = now_ns()
        self._parts.begun_ms = ledger.begun_ns // 1_000_000
        try:
            lost = ledger.forget_queued()
            if lost:
                self.log.warning("frames of a killed predecessor were not archived", frames=lost)
        except LedgerError as error:  # a full disk must not keep the line from its verdicts
            self.fault(str(error))
        for camera in self._limits:
            for epoch in ledger.epochs(camera):
                written = ledger.sequences(camera, epoch, MAX_GAP)
                first = min(written) if len(written) == MAX_GAP else 0
                self._decided += self._parts.begin(camera, epoch, written, now, first)
        self._journals.read()
        if not any(ledger.epochs(camera) for camera in self._limits):
            # A capture that is running came before the first ledger of this line: all of its parts belong here.
            self._parts.begun_ms = min([self._parts.begun_ms, *self._journals.present_epochs()])
        found = self._announce_all()
        for camera, epoch in self._journals.epochs():
            self._parts.pass_over(camera, epoch, 0)  # nothing: whatever comes in this epoch is for this ledger
        if found:
            self.log.info("took up parts without verdict", parts=found)
        if self.counters["older_parts"]:
            self.log.warning(
                "parts in shared memory were over before this ledger was begun; an earlier ledger has their verdicts",
                parts=self.counters["older_parts"],
            )
        self._decided += self._parts.expire(now_ns())
        self._commit(now_ns())

    def _announce_all(self) -> int:
        found = 0
        self._journals.read()
        while self._journals.waiting:
            found += self._announce_some()
        return found

    def _announce_some(self) -> int:
        now, wall = now_ns(), time.time_ns()
        begun_ns = self._parts.begun_ms * 1_000_000
        frames = self._journals.take(self._parts.knows)
        for frame in frames:
            if wall - (now - frame.trigger_ns) + frame.deadline_ns < begun_ns:
                # It was over before this ledger was begun: another ledger's part.
                self.counters["older_parts"] += 1
                self._parts.pass_over(frame.id.camera, frame.id.epoch, frame.id.sequence + 1)
                continue
            self._decided += self._parts.announce(frame, now)
        return len(frames)

    def _sweep(self, now: int) -> None:
        missing = self._parts.missing() if now >= self._swept_ns + GAP_SWEEP_NS else set()
        if now >= self._swept_ns + SWEEP_NS:
            self._swept_ns = now
            self._journals.read()
        elif missing:
            self._swept_ns = now
            self._journals.read(missing)
        if self._journals.waiting:
            self._announce_some()

    # --- writing ----------------------------------------------------------------------------------------------------

    def _commit(self, now: int) -> None:
        """Commits what was decided, publishes it, archives it. In this order."""
        assert self._recorder is not None
        decided, self._decided = self._decided, []
        self._committed_ns = now
        if not decided:
            return
        wall = time.time_ns()
        by_part = {}
        entries = []
        for item in decided:
            entry = self._entry(item, wall)
            entries.append(entry)
            by_part[entry.verdict.id] = item
        published = self._recorder.record(entries, now)
        done = now_ns()
        if self._rulings is not None:  # before everything else: parts are on their way to the ejector
            # As written: where the ledger cannot be, a PASS has become UNJUDGED.
            self._rulings.tell(replace(by_part[entry.verdict.id], verdict=entry.verdict) for entry in published)
        for entry in published:
            self.publish(entry.verdict)
            self._count(entry, by_part[entry.verdict.id].cause, (done - now) / 1e6)
        for entry in published:
            if entry.archive_state is ArchiveState.QUEUED:
                self._hand_over(entry, by_part[entry.verdict.id])

    def _entry(self, item: Decided, wall: int) -> Entry:
        regions = ledger_schema.region_details(item.regions, [percent_of_limit(region) for region in item.regions])
        verdict = msgspec.structs.replace(item.verdict, decided_at_ns=wall)
        wanted = self._archive is not None and verdict.decision in self._save
        return Entry(verdict, regions, ArchiveState.QUEUED if wanted else ArchiveState.NONE)

    def _count(self, entry: Entry, cause: str, commit_ms: float) -> None:
        verdict = entry.verdict
        self.counters["parts"] += 1
        self.counters[verdict.decision.value] += 1
        if verdict.decision is Decision.UNJUDGED:
            self.counters[f"unjudged_{cause or 'ledger'}"] += 1
        self._latencies.append((verdict.latency_ns / 1e6, commit_ms))

    def _hand_over(self, entry: Entry, item: Decided) -> None:
        """Copies the frame out of the ring while it is still there, for the archive's thread."""
        assert self._archive is not None
        verdict, frame = entry.verdict, item.frame
        pixels, note = None, "the part has no frame"
        if not self._archive.wants(verdict.decision):
            self._archive.drop(verdict)
            return
        if frame is not None and frame.status is FrameStatus.OK:
            note = ""
            try:
                pixels = self._rings.copy(frame)
            except RingError as error:
                note = str(error)
                self.counters["archive_torn"] += 1
        self._archive.put(Job(verdict, frame, item.regions, self._limits[verdict.id.camera], pixels, note))

    def _note_archived(self) -> None:
        """Writes into the ledger what became of archived frames."""
        if self._archive is None or self._recorder is None or self._recorder.waiting:
            return
        updates = self._archive.updates()
        if updates:
            try:
                self._recorder.ledger.mark_archived(updates)
            except LedgerError as error:
                self._complain("ledger", str(error), now_ns())

    # --- health -----------------------------------------------------------------------------------------------------

    def _each_second(self, now: int) -> None:
        assert self._recorder is not None
        if self._recorder.ledger.damaged.is_set():
            self._replace_ledger()
        if self._recorder.waiting:
            self._recorder.catch_up(now)
        self._note_archived()
        self._tell()
        faults = [text for text in (self._recorder.fault, self._archive.fault if self._archive else "") if text]
        for text in faults:
            self._complain("disk", text, now)
        self.state = f"degraded: {faults[0]}"[:1024] if faults else "running"

    def _replace_ledger(self) -> None:
        assert self._recorder is not None
        ledger = self._recorder.ledger
        try:
            ledger.replace(f"{ledger.path}: the check after a crash found damage")
        except LedgerError as error:
            self._recorder.fault = str(error)
        if ledger.fault:
            self.fault(ledger.fault)

    def _tell(self) -> None:
        """Counters and gauges as health shows them."""
        assert self._recorder is not None
        counts = self._parts.counts
        for name, value in {
            "announced": counts.announced,
            "repeated": counts.repeated,
            "late_scores": counts.late_scores,
            "duplicate_scores": counts.duplicate_scores,
            "gap_parts": counts.gap_parts,
            "uncounted_gap_parts": counts.uncounted_gap_parts,
            "foreign_messages": counts.foreign,
            "bad_messages": self._bad_messages + self._journals.damaged + (self._inbox.malformed if self._inbox else 0),
            "second_verdicts": self._recorder.contradictions,
            "rows_given_up": self._recorder.given_up,
        }.items():
            self.counters[name] = value
        if self._rulings is not None:
            for name, value in self._rulings.counters().items():
                self.counters[name] = value
        self.gauges["in_flight"] = len(self._parts)
        self.gauges["rows_waiting"] = self._recorder.waiting
        if self._archive is not None:
            for name, value in self._archive.counters.items():
                self.counters[f"archive_{name}"] = value
            self.gauges["archive_queue"] = self._archive.waiting
        if self._latencies:
            window = np.array(self._latencies)
            for name, column in (("latency", window[:, 0]), ("commit", window[:, 1])):
                self.gauges[f"{name}_ms_p50"] = float(np.percentile(column, 50))
                self.gauges[f"{name}_ms_p99"] = float(np.percentile(column, 99))
            self.gauges["latency_ms_max"] = float(window[:, 0].max())

    def _complain(self, kind: str, text: str, now: int) -> None:
        """A fault that may come a thousand times a second, told every few seconds at most."""
        when, before = self._complained.get(kind, (0, ""))
        if now >= when + COMPLAIN_NS or (kind == "disk" and text != before):
            self._complained[kind] = (now, text)
            self.fault(text)

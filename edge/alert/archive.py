"""The archive: frames of rejected and unjudged parts, on disk, without ever delaying a verdict.

The work loop hands over copies of pixels through a bounded queue; one thread writes. Per part:

    <archive>/<day>/<camera>/<time>-<epoch>-<sequence>-<decision>.png          the frame, lossless
                                                                 .overlay.png  the heatmap on the fixed scale
                                                                 .json         the verdict, written last

Days and times are UTC. A Bayer frame is kept as its raw mosaic (the JSON names its pattern), RGB8 and BGR8 as colour.
Files are written under a temporary name, synced and renamed. A part whose pixels are gone gets its JSON alone.

Where the queue is full, a frame that is not a defect makes way for one that is; else the new one is dropped. An
archive that cannot be written, or has no room left, is a fault in health and a counter, never more.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.alert.ledger_schema import ArchiveState
from edge.alert.overlay import draw
from edge.alert.retention import GOES_FIRST, TEMPORARY, Item, Limits, Stock
from edge.messages import Decision, FrameRef, RegionScore, Verdict, as_json
from pipelines.images import PixelFormat

FORMAT = 1  # of the JSON
_FRAME = ("status", "pixel_format", "height", "width", "camera_time_ns")  # what the verdict does not tell itself
_REGION = ("name", "score", "limit", "floor", "height", "width", "left", "top", "right", "bottom")
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)  # fast: a sensor's noise does not compress anyway
_TURN_S = 0.5

Update = tuple[str, int, int, ArchiveState, str | None]  # camera, epoch, sequence, state, path: for the ledger


@dataclass(frozen=True)
class Job:
    """One part to archive. `pixels` uint8 [H, W, C] is the job's own copy, or None where the frame is gone."""

    verdict: Verdict
    frame: FrameRef | None
    regions: tuple[RegionScore, ...]
    limit_percent: float
    pixels: NDArray[np.uint8] | None
    note: str = ""  # why there are no pixels

    @property
    def rank(self) -> int:
        """Higher goes later when there is no room."""
        return GOES_FIRST.index(self.verdict.decision)


@dataclass
class Archive:
    """The archive's queue and its writer. Start with `start`; `put` never waits."""

    folder: Path
    limits: Limits
    queue_frames: int
    queue_bytes: int = 256 << 20  # of pixels; one frame always fits
    counters: Counter[str] = field(default_factory=Counter)  # saved, dropped, failed, removed
    fault: str = ""
    _jobs: deque[Job] = field(default_factory=deque, init=False)
    _wake: threading.Condition = field(default_factory=threading.Condition, init=False)
    _updates: queue.Queue[Update] = field(default_factory=lambda: queue.Queue(4096), init=False)
    _stopping: bool = field(default=False, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Starts the writer. Whatever is wrong with the folder shows in `fault`."""
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._jobs)

    def wants(self, decision: Decision) -> bool:
        """Whether a job of that verdict would find room: ask before copying pixels."""
        with self._wake:
            return not self._full() or self._makes_way(GOES_FIRST.index(decision)) is not None

    def put(self, job: Job) -> bool:
        """Hands a job over; False where it was dropped. Never waits."""
        with self._wake:
            while self._full():
                index = self._makes_way(job.rank)
                if index is None:
                    self.drop(job.verdict)
                    return False
                self.drop(self._jobs[index].verdict)
                del self._jobs[index]
            self._jobs.append(job)
            self._wake.notify()
        return True

    def drop(self, verdict: Verdict) -> None:
        """Notes that a job found no room."""
        self.counters["dropped"] += 1
        self._report(verdict, ArchiveState.DROPPED, None, wait=False)

    def updates(self, most: int = 256) -> list[Update]:
        """What became of jobs since the last call, for the ledger."""
        found: list[Update] = []
        with contextlib.suppress(queue.Empty):
            while len(found) < most:
                found.append(self._updates.get_nowait())
        return found

    def stop(self, timeout_s: float) -> bool:
        """Writes what waits, for at most `timeout_s`; then ends. False where something was left."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread:
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return True

    def _full(self) -> bool:
        if len(self._jobs) >= self.queue_frames:
            return True
        return sum(job.pixels.nbytes for job in self._jobs if job.pixels is not None) >= self.queue_bytes

    def _makes_way(self, rank: int) -> int | None:
        """Index of the oldest job that goes before a newcomer of that rank."""
        return next((i for i, job in enumerate(self._jobs) if job.rank < rank), None)

    # --- the writer's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        stock = self._open()
        expired_on = ""
        while True:
            with self._wake:
                if not self._jobs and not self._stopping:
                    self._wake.wait(_TURN_S)
                job = self._jobs.popleft() if self._jobs else None
                if job is None and self._stopping:
                    return
            stock = stock or self._open()
            today = _day(time.time_ns())
            if stock and today != expired_on:
                expired_on = today
                self._guarded(lambda stock=stock, today=today: stock.expire(today))
            if job is not None:
                try:
                    state, path = self._archive(job, stock)
                except Exception as error:  # one frame that cannot be drawn must not end the archive
                    self.fault = f"part {job.verdict.part} could not be archived: {type(error).__name__}: {error}"
                    self.counters["failed"] += 1
                    state, path = ArchiveState.FAILED, None
                self._report(job.verdict, state, path, wait=True)

    def _open(self) -> Stock | None:
        stock = Stock(self.folder, self.limits, self._removed)

        def scan() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            stock.scan()

        return stock if self._guarded(scan) else None

    def _archive(self, job: Job, stock: Stock | None) -> tuple[ArchiveState, str | None]:
        item = name_of(job.verdict)
        if stock is None:
            self.counters["failed"] += 1
            return ArchiveState.FAILED, None
        files = render(job)
        size = sum(len(data) for data in files.values())
        fits: list[bool] = []
        if not self._guarded(lambda: fits.append(stock.make_room(size, job.verdict.decision))):
            self.counters["failed"] += 1
            return ArchiveState.FAILED, None
        if not fits[0]:
            self.fault = (
                f"{self.folder}: no room in the archive (max_gb, min_free_gb) for {job.verdict.decision.value} frames"
            )
            self.counters["failed"] += 1
            return ArchiveState.FAILED, None
        if not self._guarded(lambda: write_files(self.folder / item.path, files)):
            self.counters["failed"] += 1
            return ArchiveState.FAILED, None
        self.fault = ""
        stock.added(item, size)
        self.counters["saved"] += 1
        return (ArchiveState.SAVED if ".png" in files else ArchiveState.NO_FRAME), item.path

    def _guarded(self, action: Any) -> bool:
        """Runs `action`; what the disk has against it becomes the fault."""
        try:
            action()
        except OSError as error:
            self.fault = f"{error.filename or self.folder}: the archive cannot be written: {error.strerror or error}"
            return False
        return True

    def _removed(self, item: Item) -> None:
        self.counters["removed"] += 1
        self._put_update((*item.identity, ArchiveState.REMOVED, None), wait=True)

    def _report(self, verdict: Verdict, state: ArchiveState, path: str | None, wait: bool) -> None:
        self._put_update((verdict.id.camera, verdict.id.epoch, verdict.id.sequence, state, path), wait)

    def _put_update(self, update: Update, wait: bool) -> None:
        # The writer may wait for the work loop to note what it did, the work loop never waits: its note is lost then.
        while True:
            try:
                self._updates.put(update, block=wait, timeout=_TURN_S if wait else None)
                return
            except queue.Full:
                if not wait or self._stopping:
                    return


def name_of(verdict: Verdict) -> Item:
    """Where a part lies in the archive."""
    seconds, rest = divmod(verdict.decided_at_ns, 1_000_000_000)
    clock = time.strftime("%H%M%S", time.gmtime(seconds))
    stem = f"{clock}.{rest // 1_000_000:03d}-{verdict.id.epoch}-{verdict.id.sequence}-{verdict.decision.value}"
    return Item(_day(verdict.decided_at_ns), verdict.id.camera, stem)


def render(job: Job) -> dict[str, bytes]:
    """The files of a job by suffix, the JSON last."""
    files: dict[str, bytes] = {}
    if job.pixels is not None and job.frame is not None and job.pixels.size:
        files[".png"] = _png(_lossless(job.pixels, job.frame.pixel_format))
        if any(region.patches for region in job.regions):
            overlay = draw(job.pixels, job.frame.pixel_format, job.verdict, job.regions, job.limit_percent)
            files[".overlay.png"] = _png(overlay)
    files[".json"] = json.dumps(describe(job), indent=1, ensure_ascii=False).encode()
    return files


def describe(job: Job) -> dict[str, Any]:
    """The JSON of a part: its verdict, frame and regions."""
    frame = job.frame
    return {
        "format": FORMAT,
        "verdict": as_json(job.verdict),
        "limit_percent": job.limit_percent,
        "note": job.note,
        "frame": None if frame is None else as_json(frame, _FRAME),
        "regions": [as_json(region, _REGION) for region in job.regions],
    }


def write_files(stem: Path, files: Mapping[str, bytes]) -> None:
    """Writes `stem` + suffix for each file, each whole or not at all. Raises `OSError` and leaves nothing behind."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for suffix, data in files.items():
            target = stem.with_name(stem.name + suffix)
            temporary = stem.with_name(stem.name + suffix + TEMPORARY)
            written.append(temporary)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(target)
            written[-1] = target
        folder = os.open(stem.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _lossless(pixels: NDArray[np.uint8], pixel_format: PixelFormat) -> NDArray[np.uint8]:
    if pixel_format is PixelFormat.RGB8:
        return np.ascontiguousarray(pixels[:, :, ::-1])
    return pixels


def _png(image: NDArray[np.uint8]) -> bytes:
    good, data = cv2.imencode(".png", image, _PNG)
    if not good:
        raise OSError("the PNG could not be encoded")
    return bytes(data.tobytes())


def _day(wall_ns: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(wall_ns // 1_000_000_000))

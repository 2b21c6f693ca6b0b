"""The inference process: frames of all cameras in, one Score for each out.

One turn of the work loop: take what waits in the inbox, answer frames whose deadline has passed (LATE), and score one
batch. Pixels are used where they lie, in the ring; the generation is checked before and after, and a torn frame is
never scored. Whatever happens to a frame, it is answered, with the reason.

A frame that makes the engine fail spoils neither its batch (each frame is tried alone then) nor the line; an engine
that fails `FAILURES` times in a row ends the process, and the supervisor starts a fresh one.

SIGHUP looks at the settings again and loads what changed in a thread, while the present bundles judge; they are
swapped between two batches. A bundle that is refused leaves the present one judging.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import MessageError, RingError, TornFrame
from edge.frames import RingReader
from edge.inference.batching import Batcher, Waiting
from edge.inference.judge import Judge, Kind, Refused
from edge.inference.swap import Loaded, Swap
from edge.messages import FrameRef, FrameStatus, RegionScore, Score, ScoreStatus, decode, encode, host_id, now_ns
from edge.process import Process
from edge.rings import Rings
from edge.settings import CameraSettings, Settings, load_settings
from edge.transport import Inbox, Outbox
from pipelines import manifest
from pipelines.engines import Engine, EngineOptions
from pipelines.errors import EngineError

FAILURES = 5  # failed batches in a row that end the process
MESSAGES_PER_TURN = 64
RECENT = 16  # batches whose slowest tells how long the next may take
VERDICT_NS = 20_000_000  # from a score to its verdict, besides commit_ms: alert decides 15 ms before a deadline
IDLE_S = 0.1
COMPLAIN_S = 5.0
DRAIN_NS = 2_000_000_000
WINDOW = 512  # batches over which times are told

LoadJudge = Callable[[Path, Iterable[Kind], Sequence[str], EngineOptions, Callable[[str], None]], Judge]


class InferenceProcess(Process):
    """`edge infer line.toml`. `load` makes a judge of a bundle's folder, as `Judge.load` does."""

    def __init__(self, settings: Settings, load: LoadJudge = Judge.load) -> None:
        super().__init__("infer", settings)
        self._load = load
        self._host_id = host_id()
        cameras = [camera.name for camera in settings.cameras]
        self._rings = Rings(settings.line.name, cameras)
        self._batcher = Batcher(settings.inference.batch_max, round(settings.inference.batch_wait_ms * 1e6))
        self._judges: dict[Path, Judge] = {}
        self._of_camera: dict[str, Judge] = {}
        self._inbox: Inbox | None = None
        self._outbox: Outbox | None = None
        self._swap = Swap()
        self._failures = 0
        self._busy_ns = 0
        self._told = 0.0
        self._times: deque[tuple[float, float, int]] = deque(maxlen=WINDOW)  # waited ms, engine ms, frames
        self._complained: dict[str, float] = {}

    def setup(self) -> None:
        """Loads, proves and warms every engine; then opens the inbox."""
        for path, kinds in wanted(self.settings).items():
            self.progress(f"loading bundle {path}", 600.0)
            self._judges[path] = self._load_one(self.settings, path, kinds)
        self._assign(self.settings, self._judges)
        self._outbox = Outbox(self.endpoints.alert_in, hold=True)
        self._inbox = Inbox(self.endpoints.infer_in)
        self._busy_ns = now_ns()

    def step(self) -> bool | None:
        """One turn."""
        self._take_over()
        self._receive(self._idle_s())
        now = now_ns()
        needed = self._needed_ns()
        for item in self._batcher.expired(now, needed):
            self._answer(item.frame, ScoreStatus.LATE, reason=_late(item, now, needed))
        batch = self._batcher.take(now)
        if batch:
            self._score(batch)
            self._busy_ns = now_ns()
        elif not len(self._batcher):
            self._keep_warm(now)
        if self._failures >= FAILURES:
            raise EngineError(f"the engine failed {self._failures} times in a row; starting afresh ({self.last_fault})")
        if time.monotonic() - self._told > 0.5:
            self._tell()
        return None

    def teardown(self) -> None:
        """Scores what still waits (for two seconds at most), then frees everything."""
        if self._inbox is not None and self._outbox is not None:
            until = now_ns() + DRAIN_NS
            self._receive(0.0)
            while len(self._batcher) and now_ns() < until:
                for item in self._batcher.expired(now_ns()):
                    self._answer(item.frame, ScoreStatus.LATE, reason=_late(item, now_ns(), 0))
                batch = self._batcher.take(2**62)
                if batch:
                    self._score(batch)
                self._receive(0.0)
        for socket in (self._inbox, self._outbox):
            if socket is not None:
                socket.close()
        self._inbox = self._outbox = None
        self._swap.abandon()
        for judge in self._judges.values():
            judge.close()
        self._rings.close()

    # --- frames in --------------------------------------------------------------------------------------------------

    def _idle_s(self) -> float:
        now = now_ns()
        until = now + int(IDLE_S * 1e9)
        ready = self._batcher.ready_ns()
        return max(0.0, (min(until, ready if ready is not None else until) - now) * 1e-9)

    def _receive(self, timeout_s: float) -> None:
        assert self._inbox is not None
        for count in range(MESSAGES_PER_TURN):
            received = self._inbox.recv(0.0 if count else timeout_s)
            if received is None:
                return
            try:
                message = decode(received[0])
                if not isinstance(message, FrameRef):
                    raise MessageError(f"a {type(message).__name__} does not belong into the inbox of inference")
            except MessageError as error:
                self.counters["bad_messages"] += 1
                self._complain("message", f"a message was dropped: {error}")
                continue
            self._accept(message, received[1], now_ns())

    def _accept(self, frame: FrameRef, pixels: NDArray[np.uint8] | None, now: int) -> None:
        judge = self._of_camera.get(frame.id.camera)
        if judge is None or frame.id.line != self.settings.line.name:
            self.counters["foreign_messages"] += 1
            self._complain("foreign", f"frames of line {frame.id.line}, camera {frame.id.camera} are not ours")
            return
        self.counters["frames"] += 1
        if frame.status is not FrameStatus.OK:
            return  # alert knows that there is nothing to score
        if pixels is not None and pixels.nbytes != frame.height * frame.width * frame.pixel_format.channels:
            self._answer(frame, ScoreStatus.REFUSED, reason=f"{pixels.nbytes} bytes of pixels do not make the frame")
            return
        trigger = frame.trigger_ns if frame.host == self._host_id else max(0, now - frame.age_ns)
        group = (judge.id, frame.pixel_format, frame.height, frame.width)
        due = trigger + frame.deadline_ns
        for item in self._batcher.add(Waiting(frame, group, now, due, pixels, judge.scores_alone(frame))):
            self.counters["queue_full"] += 1
            self._answer(item.frame, ScoreStatus.LATE, reason="more frames wait than inference can hold")

    def _needed_ns(self) -> int:
        """What a frame needs from the start of its scoring to its verdict: the slowest of late, and alert's share."""
        recent = [taken for _, taken, _ in islice(reversed(self._times), RECENT)]
        return int((max(recent, default=0.0) + self.settings.alert.commit_ms) * 1e6) + VERDICT_NS

    # --- scores out -------------------------------------------------------------------------------------------------

    def _score(self, batch: list[Waiting]) -> None:
        """Scores frames of one kind. Each of them is answered."""
        judge = self._of_camera[batch[0].frame.id.camera]
        try:
            engine = judge.engine(batch[0].frame)
        except Refused as refused:
            for item in batch:
                self._answer(item.frame, ScoreStatus.REFUSED, judge, reason=str(refused))
            return
        ready: list[tuple[Waiting, NDArray[np.uint8], RingReader | None]] = []
        for item in batch:
            try:
                ready.append((item, *self._pixels(item)))
            except TornFrame as torn:
                self._answer(item.frame, ScoreStatus.TORN, judge, reason=str(torn))
            except RingError as error:
                self._complain("ring", str(error))
                self._answer(item.frame, ScoreStatus.FAILED, judge, reason=str(error))
        if not ready:
            return
        began = now_ns()
        frames = [pixels for _, pixels, _ in ready]
        results, error_text = self._run(judge, engine, frames)
        taken = now_ns() - began
        if error_text and len(ready) > 1:
            # One bad frame must not take the others with it.
            results = [self._run(judge, engine, [frame])[0][0] for frame in frames]
        self._judge_failures(engine, results, error_text)
        self._times.append(((began - min(i.arrived_ns for i, _, _ in ready)) / 1e6, taken / 1e6, len(ready)))
        self.counters["batches"] += 1
        for (item, _, reader), regions in zip(ready, results, strict=True):
            if reader is not None and not reader.intact(item.frame.slot, item.frame.generation):
                self._answer(item.frame, ScoreStatus.TORN, judge, reason="it was overwritten while it was judged")
            elif regions is None:
                self._answer(item.frame, ScoreStatus.FAILED, judge, reason=error_text)
            else:
                self._answer(item.frame, ScoreStatus.OK, judge, engine, regions, taken)

    def _run(
        self, judge: Judge, engine: Engine, frames: list[NDArray[np.uint8]]
    ) -> tuple[Sequence[list[RegionScore] | None], str]:
        """The regions of each frame; None for all, and why, where the engine fails."""
        try:
            return judge.score(engine, frames), ""
        except Exception as error:  # whatever a library may raise: the line goes on
            text = f"engine {engine.name}: {type(error).__name__}: {' '.join(str(error).split())}"[:900]
            return [None] * len(frames), text

    def _judge_failures(self, engine: Engine, results: Sequence[object], text: str) -> None:
        if any(regions is not None for regions in results):
            self._failures = 0
        if not text:
            return
        self.counters["failed_batches"] += 1
        self._complain("engine", text)
        self._failures += all(regions is None for regions in results)

    def _pixels(self, item: Waiting) -> tuple[NDArray[np.uint8], RingReader | None]:
        frame = item.frame
        if item.pixels is not None:
            return item.pixels.reshape(frame.shape), None
        if frame.host != self._host_id:
            raise RingError("the frame is on another computer and its pixels did not come along")
        return self._rings.view(frame)

    def _answer(
        self,
        frame: FrameRef,
        status: ScoreStatus,
        judge: Judge | None = None,
        engine: Engine | None = None,
        regions: list[RegionScore] | None = None,
        infer_ns: int = 0,
        reason: str = "",
    ) -> None:
        assert self._outbox is not None
        self.counters[status.value if status is not ScoreStatus.OK else "scored"] += 1
        score = Score(
            frame=frame,
            status=status,
            bundle=judge.id if judge else "",
            engine=engine.name if engine else "",
            regions=regions or [],
            infer_ns=infer_ns,
            reason=reason[:1000],
        )
        self._outbox.send(encode(score))

    # --- bundles ----------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """SIGHUP: looks at the settings again, and loads the bundles that changed in a thread."""
        settings = load_settings(self.settings.file)
        self._swap.request(lambda: self._load_changed(settings))

    def _load_changed(self, settings: Settings) -> Loaded:
        before = {path: judge.id for path, judge in self._judges.items()}
        same_engines = engine_choice(settings) == engine_choice(self.settings)
        loaded: dict[Path, Judge] = {}
        plan = wanted(settings)
        try:
            for path, kinds in plan.items():
                if not (same_engines and before.get(path) == manifest.read(path)[0]):
                    loaded[path] = self._load_one(settings, path, kinds)
        except BaseException:
            for judge in loaded.values():
                judge.close()
            raise
        return Loaded(settings, loaded, tuple(plan))

    def _take_over(self) -> None:
        """Swaps bundles, if new ones are ready. Frames that wait are scored by the new ones."""
        outcome = self._swap.outcome()
        if outcome is None:
            return
        if isinstance(outcome, Exception):
            self.counters["reloads_refused"] += 1
            self.fault(f"reload refused, the present bundles go on judging: {outcome}")
            return
        before = self._judges
        self._judges = {path: outcome.loaded.get(path) or before[path] for path in outcome.paths}
        self._assign(outcome.settings, self._judges)
        for judge in before.values():
            if judge not in self._judges.values():
                judge.close()
        self.settings = outcome.settings
        self._failures = 0
        self.counters["reloads"] += 1
        for path in outcome.loaded:
            self.log.info("swapped bundle", bundle=self._judges[path].id, path=str(path))
        if not outcome.loaded:
            self.log.info("nothing changed")

    def _load_one(self, settings: Settings, path: Path, kinds: Iterable[Kind]) -> Judge:
        judge = self._load(path, kinds, *engine_choice(settings), self.fault)
        self.log.info("bundle loaded", bundle=judge.id, path=str(path), engines=judge.description)
        return judge

    def _assign(self, settings: Settings, judges: Mapping[Path, Judge]) -> None:
        mine = {camera.name for camera in self.settings.cameras}
        self._of_camera = {c.name: judges[settings.bundle(c)] for c in settings.cameras if c.name in mine}

    def _keep_warm(self, now: int) -> None:
        keep_warm_s = self.settings.inference.keep_warm_s
        if keep_warm_s <= 0 or now < self._busy_ns + keep_warm_s * 1e9:
            return
        for judge in self._judges.values():
            try:
                judge.warm()
            except Exception as error:
                self._complain("engine", f"warming failed: {type(error).__name__}: {error}")
        self.counters["warmed"] += 1
        self._busy_ns = now_ns()

    # --- health -----------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        assert self._inbox is not None
        assert self._outbox is not None
        self._told = time.monotonic()
        self.counters["scores_dropped"] = self._outbox.dropped
        self.counters["malformed"] = self._inbox.malformed
        self.gauges["queue"] = len(self._batcher)
        if self._times:
            window = np.array(self._times)
            for name, column in (("wait", window[:, 0]), ("infer", window[:, 1])):
                self.gauges[f"{name}_ms_p50"] = float(np.percentile(column, 50))
                self.gauges[f"{name}_ms_p99"] = float(np.percentile(column, 99))
            self.gauges["batch_mean"] = float(window[:, 2].mean())

    def _complain(self, kind: str, text: str) -> None:
        """A fault that may come a thousand times a second, told every few seconds at most."""
        now = time.monotonic()
        if now >= self._complained.get(kind, 0.0):
            self._complained[kind] = now + COMPLAIN_S
            self.fault(text)


def engine_choice(settings: Settings) -> tuple[tuple[str, ...], EngineOptions]:
    """Which engines the settings ask for, in their order, and how they are to compute."""
    inference = settings.inference
    return tuple(inference.engines), EngineOptions(inference.threads or None, inference.precision)


def wanted(settings: Settings) -> dict[Path, list[Kind]]:
    """The line's bundles, and the kinds of frames each has to judge."""
    plan: dict[Path, list[Kind]] = {}
    for camera in settings.cameras:
        plan.setdefault(settings.bundle(camera), []).append(kind_of(camera))
    return plan


def kind_of(camera: CameraSettings) -> Kind:
    """What the settings say of a camera's frames before the first one comes."""
    source = camera.source
    height, width = getattr(source, "height_px", None), getattr(source, "width_px", None)
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return Kind(getattr(source, "pixel_format", None), size)


def _late(item: Waiting, now: int, needed_ns: int) -> str:
    left = (item.due_ns - now) / 1e6
    if left <= 0:
        return f"its deadline was {-left:.1f} ms ago when inference came to it"
    return f"inference cannot keep up: {left:.0f} ms were left, and a verdict takes {needed_ns / 1e6:.0f} ms at present"

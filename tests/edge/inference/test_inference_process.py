"""The inference process' work loop, driven turn by turn: real sockets, a real ring, an engine of the test's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.frames import RingWriter, ring_path
from edge.inference.judge import Judge, Kind, Refused
from edge.inference.process import FAILURES, InferenceProcess, kind_of
from edge.messages import FrameRef, FrameStatus, Health, RegionScore, Score, ScoreStatus, decode, encode, now_ns
from edge.settings import load_settings
from edge.transport import Endpoints, Inbox, Outbox
from pipelines.engines import EngineOptions
from pipelines.errors import BundleError, EngineError
from pipelines.images import PixelFormat

MS = 1_000_000
SLOT = 64 * 80


class FakeJudge(Judge):
    """Scores a frame by its mean; what else it does is up to the test."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.bundle = SimpleNamespace(id=f"bundle-{number}")  # type: ignore[assignment]
        self.batches: list[list[int]] = []
        self.warmed = 0
        self.closed = False
        self.during: Callable[[Sequence[np.ndarray]], None] = lambda frames: None

    @property
    def description(self) -> str:
        return "a fake"

    def engine(self, frame: FrameRef) -> Any:
        if frame.pixel_format is not PixelFormat.MONO8:
            raise Refused(f"no engine for {frame.pixel_format.value}")
        return SimpleNamespace(name="fake")

    def scores_alone(self, frame: FrameRef) -> bool:
        return False

    def score(self, engine: Any, frames: Sequence[np.ndarray]) -> list[list[RegionScore]]:
        assert not self.closed, "scored by a bundle that was closed"
        self.batches.append([int(frame[0, 0, 0]) for frame in frames])
        results = [
            RegionScore(name="r", score=float(f.mean()), limit=100.0, floor=0.0, height=0, width=0, patches=b"")
            for f in frames
        ]
        self.during(frames)
        return [[region] for region in results]

    def warm(self) -> None:
        self.warmed += 1

    def close(self) -> None:
        self.closed = True


class Rig:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.judges: list[FakeJudge] = []
        self.refuse = ""
        self.hold: threading.Event | None = None
        settings = load_settings(file)
        endpoints = Endpoints(settings)
        self.process = InferenceProcess(settings, load=self.load)
        self.inbox = Inbox(endpoints.alert_in)
        self.outbox = Outbox(endpoints.infer_in)
        self.ring = RingWriter.create(ring_path("press", "top"), slots=8, slot_bytes=SLOT)
        self.sequence = 0
        self.running = False

    def load(self, path: Path, kinds: Iterable[Kind], order: Sequence[str], options: EngineOptions, tell: Any) -> Judge:
        if self.hold is not None and self.judges:
            assert self.hold.wait(20)
        if self.refuse:
            raise BundleError(self.refuse)
        self.judges.append(FakeJudge(path, len(self.judges)))
        return self.judges[-1]

    def start(self) -> FakeJudge:
        self.process.setup()
        self.running = True
        assert self.outbox.wait_for_peer(10)
        return self.judges[0]

    def frame(self, make_frame: Any, value: int = 10, **changes: Any) -> FrameRef:
        slot = self.ring.acquire()
        slot.buffer[:] = value
        generation = self.ring.commit(slot)
        values: dict[str, Any] = {
            "slot": slot.index, "generation": generation, "trigger_ns": now_ns(), "deadline_ns": 5000 * MS}  # fmt: skip
        self.sequence += 1
        return make_frame(self.sequence - 1, **(values | changes))

    def send(self, *frames: FrameRef, pixels: np.ndarray | None = None) -> None:
        for frame in frames:
            assert self.outbox.send(encode(frame), pixels)

    def turns(self, done: Callable[[], bool], timeout_s: float = 10.0) -> None:
        until = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < until, "it did not happen"
            self.process.step()

    def scores(self, count: int) -> list[Score]:
        found: list[Score] = []

        def collect() -> bool:
            while (received := self.inbox.recv()) is not None:
                message = decode(received[0])
                assert isinstance(message, Score)
                found.append(message)
            return len(found) >= count

        self.turns(collect)
        assert len(found) == count
        return found

    def close(self) -> None:
        if self.hold is not None:
            self.hold.set()
        self.process.teardown()
        for thing in (self.inbox, self.outbox, self.ring):
            thing.close()


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig(settings_file: Any, shm_dir: Path) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(inference: str = "") -> Rig:
        rigs.append(Rig(settings_file(f"[inference]\nkeep_warm_s = 0\n{inference}")))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


def test_every_frame_is_answered_by_name_of_its_bundle(make_rig: MakeRig, make_frame: Any) -> None:
    rig = make_rig()
    rig.start()
    frames = [rig.frame(make_frame, value) for value in (10, 20, 30)]
    rig.send(*frames)
    scores = sorted(rig.scores(3), key=lambda score: score.frame.id.sequence)
    assert [score.frame for score in scores] == frames
    assert [score.regions[0].score for score in scores] == [10.0, 20.0, 30.0]
    assert {(score.status, score.bundle, score.engine) for score in scores} == {(ScoreStatus.OK, "bundle-0", "fake")}


def test_what_waits_is_scored_together(make_rig: MakeRig, make_frame: Any) -> None:
    rig = make_rig("batch_max = 4\nbatch_wait_ms = 50")
    judge = rig.start()
    rig.send(*[rig.frame(make_frame, value) for value in range(1, 6)])
    rig.scores(5)
    assert judge.batches == [[1, 2, 3, 4], [5]]


def test_torn_before_and_torn_meanwhile(make_rig: MakeRig, make_frame: Any) -> None:
    """A frame overwritten before it is scored never reaches the engine; one overwritten during it has no score."""
    rig = make_rig()
    judge = rig.start()
    gone = rig.frame(make_frame, 1)
    for _ in range(8):
        rig.frame(make_frame, 2)
    rig.send(gone)
    (score,) = rig.scores(1)
    assert (score.status, judge.batches) == (ScoreStatus.TORN, [])

    def overwrite(frames: Sequence[np.ndarray]) -> None:
        for _ in range(8):
            rig.ring.commit(rig.ring.acquire())

    judge.during = overwrite
    rig.send(rig.frame(make_frame, 3))
    (score,) = rig.scores(1)
    assert (score.status, score.regions, judge.batches) == (ScoreStatus.TORN, [], [[3]])
    assert "while it was judged" in score.reason


def test_late_frames_are_answered_without_inference(make_rig: MakeRig, make_frame: Any) -> None:
    rig = make_rig()
    judge = rig.start()
    rig.send(rig.frame(make_frame, 1, trigger_ns=now_ns() - 600 * MS, deadline_ns=500 * MS))
    (score,) = rig.scores(1)
    assert score.status is ScoreStatus.LATE
    assert "ms ago" in score.reason
    assert judge.batches == []


def test_missing_and_replaced_ring(make_rig: MakeRig, make_frame: Any) -> None:
    rig = make_rig()
    rig.start()
    frame = rig.frame(make_frame, 1)
    rig.ring.close(unlink=True)
    rig.send(frame)
    (score,) = rig.scores(1)
    assert score.status is ScoreStatus.FAILED
    assert "no such ring" in score.reason
    rig.ring = RingWriter.create(ring_path("press", "top"), slots=8, slot_bytes=SLOT)
    rig.send(rig.frame(make_frame, 2))
    assert rig.scores(1)[0].status is ScoreStatus.OK
    rig.ring.close(unlink=True)
    rig.ring = RingWriter.create(ring_path("press", "top"), slots=5, slot_bytes=2 * SLOT)
    rig.send(rig.frame(make_frame, 3), frame)
    scores = {score.frame.id.sequence: score for score in rig.scores(2)}
    assert scores[2].status is ScoreStatus.OK
    assert scores[0].status in (ScoreStatus.TORN, ScoreStatus.FAILED), "a name from the old file fits the new one"


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"pixel_format": PixelFormat.BGR8}, ScoreStatus.REFUSED, "no engine for BGR8"),
        ({"height": 4000, "width": 4000}, ScoreStatus.FAILED, "does not fit a slot"),
        ({"slot": 99}, ScoreStatus.FAILED, "no slot 99"),
        ({"ring": "edge-inspect.press.side"}, ScoreStatus.FAILED, "not this camera's"),
        ({"host": "elsewhere"}, ScoreStatus.FAILED, "did not come along"),
    ],
)
def test_frames_that_cannot_be_scored(
    make_rig: MakeRig, make_frame: Any, changes: Any, status: Any, reason: str
) -> None:
    rig = make_rig()
    judge = rig.start()
    rig.send(rig.frame(make_frame, 1, **changes))
    (score,) = rig.scores(1)
    assert (score.status, judge.batches) == (status, [])
    assert reason in score.reason


def test_pixels_that_came_by_network(make_rig: MakeRig, make_frame: Any) -> None:
    """No ring at all: another computer's clock and pixels; a wrong number of bytes is refused."""
    rig = make_rig()
    rig.start()
    far = make_frame(0, host="elsewhere", trigger_ns=5, age_ns=20 * MS, ring="")
    pixels = np.full(64 * 80, 77, np.uint8)
    rig.send(far, pixels=pixels)
    (score,) = rig.scores(1)
    assert score.regions[0].score == 77.0
    rig.send(far, pixels=pixels[:-1])
    assert rig.scores(1)[0].status is ScoreStatus.REFUSED
    rig.send(msgspec.structs.replace(far, age_ns=600 * MS), pixels=pixels)
    assert rig.scores(1)[0].status is ScoreStatus.LATE


def test_one_bad_frame_does_not_spoil_its_batch(make_rig: MakeRig, make_frame: Any) -> None:
    rig = make_rig("batch_wait_ms = 50")
    judge = rig.start()

    def fail(frames: Sequence[np.ndarray]) -> None:
        if any(frame[0, 0, 0] == 2 for frame in frames):
            raise RuntimeError("the graph broke")

    judge.during = fail
    rig.send(*[rig.frame(make_frame, value) for value in (1, 2, 3)])
    scores = {score.frame.id.sequence: score for score in rig.scores(3)}
    assert [scores[i].status.value for i in range(3)] == ["ok", "failed", "ok"]
    assert "RuntimeError: the graph broke" in scores[1].reason


def test_engine_that_keeps_failing_ends_the_process(make_rig: MakeRig, make_frame: Any) -> None:
    """Each frame is answered; then the process gives itself up to the supervisor, in one sentence."""
    rig = make_rig("batch_max = 1")
    judge = rig.start()

    def fail(frames: Sequence[np.ndarray]) -> None:
        raise ValueError("out of order")

    judge.during = fail
    for i in range(FAILURES - 1):
        rig.send(rig.frame(make_frame, i))
        assert rig.scores(1)[0].status is ScoreStatus.FAILED
    judge.during = lambda frames: None
    rig.send(rig.frame(make_frame, 1))
    assert rig.scores(1)[0].status is ScoreStatus.OK
    judge.during = fail
    for i in range(FAILURES):
        rig.send(rig.frame(make_frame, i))
    with pytest.raises(EngineError, match="failed 5 times in a row"):
        rig.turns(lambda: False)


def test_bad_and_foreign_messages(make_rig: MakeRig, make_frame: Any) -> None:
    rig = make_rig()
    rig.start()
    rig.outbox.send(b"\x00\xff" * 50)
    rig.outbox.send(encode(Health(line="press", process="x", pid=1, state="", uptime_s=0, counters={}, gauges={})))
    rig.send(make_frame(camera="unknown"))
    rig.send(rig.frame(make_frame, status=FrameStatus.LOST))
    rig.send(rig.frame(make_frame, 9))
    assert rig.scores(1)[0].regions[0].score == 9.0
    counters = rig.process.counters
    assert (counters["bad_messages"], counters["foreign_messages"], counters["frames"]) == (2, 1, 2)


def test_keeps_warm_while_idle(settings_file: Any, shm_dir: Path, make_frame: Any) -> None:
    rig = Rig(settings_file("[inference]\nkeep_warm_s = 0.05\n"))
    try:
        judge = rig.start()
        rig.turns(lambda: judge.warmed >= 2)
        assert rig.process.counters["warmed"] == judge.warmed
    finally:
        rig.close()


def test_bundle_is_swapped_between_batches_and_no_frame_is_lost(
    make_rig: MakeRig, make_frame: Any, monkeypatch: Any
) -> None:
    """The new bundle loads slowly; the old one judges meanwhile. Each frame is answered once, by one of them."""
    rig = make_rig("batch_max = 2")
    old = rig.start()
    ids = {"now": "bundle-0"}
    monkeypatch.setattr("edge.inference.process.manifest.read", lambda path: (ids["now"], None))
    rig.process.reload()
    rig.turns(lambda: rig.process.counters["reloads"] == 1)
    assert len(rig.judges) == 1, "nothing changed, nothing is loaded"

    rig.hold = threading.Event()
    ids["now"] = "bundle-1"
    rig.process.reload()
    answered: list[Score] = []
    for value in range(1, 40):
        rig.send(rig.frame(make_frame, value))
        answered += rig.scores(1)
        if value == 20:
            assert {score.bundle for score in answered} == {"bundle-0"}
            rig.hold.set()
            rig.turns(lambda: rig.process.counters["reloads"] == 2)
            assert old.closed
    assert [score.frame.id.sequence for score in answered] == list(range(39))
    assert {score.status for score in answered} == {ScoreStatus.OK}
    assert [score.bundle for score in answered] == ["bundle-0"] * 20 + ["bundle-1"] * 19


def test_refused_bundle_leaves_the_old_one_judging(make_rig: MakeRig, make_frame: Any, monkeypatch: Any) -> None:
    rig = make_rig()
    old = rig.start()
    monkeypatch.setattr("edge.inference.process.manifest.read", lambda path: ("another", None))
    rig.refuse = "weights.safetensors: damaged"
    rig.process.reload()
    rig.turns(lambda: rig.process.counters["reloads_refused"] == 1)
    assert "weights.safetensors: damaged" in rig.process.last_fault
    rig.send(rig.frame(make_frame, 5))
    assert rig.scores(1)[0].bundle == "bundle-0"
    assert not old.closed
    rig.refuse = ""
    rig.process.reload()
    rig.turns(lambda: rig.process.counters["reloads"] == 1)
    assert old.closed


def test_frames_in_the_queue_are_scored_before_the_process_ends(make_rig: MakeRig, make_frame: Any) -> None:
    rig = make_rig("batch_max = 2")
    rig.start()
    rig.send(*[rig.frame(make_frame, value) for value in range(1, 7)])
    time.sleep(0.1)  # on their way
    rig.process.teardown()
    found = [decode(received[0]) for _ in range(6) if (received := rig.inbox.recv(5.0)) is not None]
    assert len(found) == 6
    assert {message.status for message in found if isinstance(message, Score)} == {ScoreStatus.OK}


def test_what_settings_promise_of_a_camera(settings_file: Any) -> None:
    source = 'type = "simulated"\nheight_px = 128\nwidth_px = 256\npixel_format = "BayerRG8"'
    settings = load_settings(settings_file(source=source))
    assert kind_of(settings.cameras[0]) == Kind(PixelFormat.BAYER_RG8, (128, 256))
    settings = load_settings(settings_file(source='type = "folder"\npath = "x"'))
    assert kind_of(settings.cameras[0]) == Kind(None, None)

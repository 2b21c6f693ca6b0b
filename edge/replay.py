"""Replay: recorded frames through a bundle exactly as the line would, compared with the ledger or another bundle.

The code is the line's own: `Judge` loads the engine in the configured order behind the parity gate and scores,
`PartTable` decides, with the regions' limits and the camera's `limit_percent`. Only time is left out: nothing is late.
Nothing is written to the ledger or the archive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.alert.deadlines import PartTable
from edge.inference.judge import Judge, Refused
from edge.inference.process import engine_choice, kind_of
from edge.messages import FrameId, FrameRef, FrameStatus, RegionScore, Score, ScoreStatus, Verdict
from edge.replay_frames import Found, Missing, Recorded
from edge.settings import Settings
from pipelines.engines import Engine

HOST = "replay"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Compared:
    """One replayed frame. `old` is None for an image that the ledger does not name."""

    frame: Recorded
    old: Verdict | None
    new: Verdict

    @property
    def changed(self) -> bool:
        """Whether the two verdicts differ."""
        return self.old is not None and self.old.decision is not self.new.decision

    @property
    def same_bundle(self) -> bool:
        """Whether the ledger's verdict is of the very bundle, so that its score must come out again."""
        entry = self.frame.entry
        return entry is not None and self.old is entry.verdict and self.old.bundle == self.new.bundle


class Referee:
    """Judges frames as the line of `settings` would with `bundle`, or with each camera's own where it is None."""

    def __init__(self, settings: Settings, bundle: Path | None, tell: Tell) -> None:
        self._settings = settings
        self._bundle = bundle
        self._tell = tell
        self._judges: dict[Path, Judge] = {}
        self._limits = {camera.name: camera.limit_percent for camera in settings.cameras}
        self._count = 0

    def path(self, camera: str) -> Path:
        """The folder of the bundle that judges this camera's frames here."""
        return self._bundle or self._settings.bundle(self._settings.camera(camera))

    def load(self, cameras: Iterable[str]) -> dict[str, Judge]:
        """Loads and proves the engines for these cameras. Raises `InspectError` where a bundle may not judge."""
        wanted: dict[Path, list[str]] = {}
        for name in cameras:
            wanted.setdefault(self.path(name), []).append(name)
        for path, names in wanted.items():
            if path not in self._judges:
                kinds = [kind_of(self._settings.camera(name)) for name in names]
                self._judges[path] = Judge.load(path, kinds, *engine_choice(self._settings), self._tell)
        return {name: self._judges[path] for path, names in wanted.items() for name in names}

    def verdicts(self, frames: Sequence[Recorded]) -> list[Verdict]:
        """The verdict on each frame, in order. A frame that cannot be judged is UNJUDGED with the line's reason."""
        judges = self.load({frame.camera for frame in frames})
        found: list[Verdict | None] = [None] * len(frames)
        batches: dict[tuple[str, int], list[tuple[int, FrameRef, Engine]]] = {}
        for index, frame in enumerate(frames):
            judge, ref = judges[frame.camera], self._ref(frame)
            try:
                engine = _engine(judge, ref)
            except Refused as refused:
                score = _score(ref, ScoreStatus.REFUSED, judge, reason=str(refused))
                found[index] = self._decide(score)
            else:
                # As inference does: frames go together only where that saves time.
                alone = index if judge.scores_alone(ref) else -1
                batches.setdefault((f"{judge.id} {ref.shape} {ref.pixel_format}", alone), []).append(
                    (index, ref, engine)
                )
        for batch in batches.values():
            judge, engine = judges[batch[0][1].id.camera], batch[0][2]
            for index, score in _run(judge, engine, batch, frames):
                found[index] = self._decide(score)
        return [verdict for verdict in found if verdict is not None]

    def close(self) -> None:
        """Frees the engines. Safe to call twice."""
        for judge in self._judges.values():
            judge.close()
        self._judges.clear()

    def _ref(self, frame: Recorded) -> FrameRef:
        """The announcement that capture would have made."""
        height, width = frame.pixels.shape[:2]
        self._count += 1
        told = frame.entry.verdict if frame.entry is not None else None
        own = FrameId(line=self._settings.line.name, camera=frame.camera, epoch=0, sequence=self._count)
        return FrameRef(
            id=told.id if told is not None else own,
            part=told.part if told is not None else self._count,
            trigger_ns=0,
            host=HOST,
            age_ns=0,
            deadline_ns=1_000_000_000,
            status=FrameStatus.OK,
            pixel_format=frame.pixel_format,
            height=height,
            width=width,
            ring="",
            slot=0,
            generation=0,
        )

    def _decide(self, score: Score) -> Verdict:
        """The verdict that alert would give on this score, were it in time."""
        frame_id = score.frame.id
        table = PartTable(frame_id.line, self._limits, HOST)
        table.pass_over(frame_id.camera, frame_id.epoch, frame_id.sequence)  # what came before is not replayed
        (decided,) = table.score(score, 0)
        return decided.verdict


def replay(frames: Iterable[Found], new: Referee, old: Referee | None, batch: int) -> Iterator[Compared | Missing]:
    """Judges frames as they come, `batch` at a time; against `old`, or where it is None against their ledger rows.

    Raises `InspectError` where a bundle may not judge at all.
    """
    for some in _chunks(frames, batch):
        recorded = [frame for frame in some if isinstance(frame, Recorded)]
        after = iter(new.verdicts(recorded))
        if old is not None:
            before: Iterator[Verdict | None] = iter(old.verdicts(recorded))
        else:
            before = iter([frame.entry.verdict if frame.entry is not None else None for frame in recorded])
        for frame in some:
            yield frame if isinstance(frame, Missing) else Compared(frame, next(before), next(after))


def _chunks(frames: Iterable[Found], size: int) -> Iterator[list[Found]]:
    """`size` frames that can be replayed at a time, with those between them that cannot."""
    some: list[Found] = []
    waiting = 0
    for frame in frames:
        some.append(frame)
        waiting += isinstance(frame, Recorded)
        if waiting == size or len(some) == 64 * size:
            yield some
            some, waiting = [], 0
    if some:
        yield some


def _engine(judge: Judge, ref: FrameRef) -> Engine:
    """The engine for this frame; where the line would prepare one beside, it is waited for. Raises `Refused`."""
    try:
        return judge.engine(ref)
    except Refused:
        judge.settle()
        return judge.engine(ref)


def _run(
    judge: Judge, engine: Engine, batch: Sequence[tuple[int, FrameRef, Engine]], frames: Sequence[Recorded]
) -> Iterator[tuple[int, Score]]:
    """The scores of a batch; each frame is tried alone where the engine fails on all together."""
    began = time.monotonic_ns()
    try:
        regions = judge.score(engine, [frames[index].pixels for index, _, _ in batch])
    except Exception as error:  # whatever a library may raise: the other frames are replayed
        if len(batch) > 1:
            for item in batch:
                yield from _run(judge, engine, [item], frames)
            return
        text = f"engine {engine.name}: {type(error).__name__}: {' '.join(str(error).split())}"
        yield batch[0][0], _score(batch[0][1], ScoreStatus.FAILED, judge, reason=text)
        return
    taken = time.monotonic_ns() - began
    for (index, ref, _), found in zip(batch, regions, strict=True):
        yield index, _score(ref, ScoreStatus.OK, judge, engine, found, taken)


def _score(
    ref: FrameRef,
    status: ScoreStatus,
    judge: Judge,
    engine: Engine | None = None,
    regions: Sequence[RegionScore] = (),
    infer_ns: int = 0,
    reason: str = "",
) -> Score:
    return Score(
        frame=ref,
        status=status,
        bundle=judge.id,
        engine=engine.name if engine is not None else "",
        regions=list(regions),
        infer_ns=infer_ns,
        reason=reason[:1000],
    )

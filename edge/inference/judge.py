"""A bundle that judges: its engines, one per kind of frame that the line's cameras deliver, and its limits.

Engines for the frames that the settings promise (else for the bundle's own kind) are loaded, proved and warm before the
first part. A camera that turns out to deliver another pixel format is REFUSED, with the reason, while an engine for it
is prepared beside; frames of another size than the bundle was calibrated on are REFUSED for good.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.messages import MAX_BYTES, FrameRef, RegionScore
from pipelines.bundle import Bundle
from pipelines.engines import Engine, EngineOptions, FrameSpec, load
from pipelines.errors import EngineError, InspectError
from pipelines.images import PixelFormat

MAX_ENGINES = 4  # kinds of frame one bundle is prepared for
MAX_PATCH_BYTES = MAX_BYTES * 3 // 4  # of all maps in one Score

Tell = Callable[[str], None]


class Refused(Exception):
    """This frame cannot be judged; the text says why."""


@dataclass(frozen=True)
class Kind:
    """What the settings say of a camera's frames: format and size (height, width), None where they do not."""

    pixel_format: PixelFormat | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Place:
    """A region's name, limits and rectangle in the frame (left, top, right, bottom; all 0 = the whole frame)."""

    name: str
    limit: float
    floor: float
    box: tuple[int, int, int, int]


class Judge:
    """One bundle, ready to judge. Made by `Judge.load`; `score` from one thread."""

    def __init__(self, bundle: Bundle, order: Sequence[str], options: EngineOptions, tell: Tell) -> None:
        self.bundle = bundle
        self.places = places(bundle)
        self._order = tuple(order)
        self._options = options
        self._tell = tell
        self._engines: dict[FrameSpec, Engine] = {}
        self._own = FrameSpec.of(bundle.config)
        self._preparing: FrameSpec | None = None
        self._hopeless: dict[FrameSpec, str] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    @classmethod
    def load(cls, path: Path, kinds: Iterable[Kind], order: Sequence[str], options: EngineOptions, tell: Tell) -> Judge:
        """Opens and verifies the bundle, loads the engines for `kinds` of frames, and warms them.

        `tell` hears of every refused engine and what is being done. Raises `InspectError`.
        """
        bundle = Bundle.open(path)
        judge = cls(bundle, order, options, tell)
        try:
            for spec in dict.fromkeys(judge.promised(kind) for kind in kinds):
                judge._engines[spec] = judge._load(spec)
        except BaseException:
            judge.close()
            raise
        return judge

    @property
    def id(self) -> str:
        """The bundle's content id."""
        return self.bundle.id

    @property
    def description(self) -> str:
        """For people: the engines in use."""
        return "; ".join(f"{spec}: {engine.description}" for spec, engine in self._engines.items())

    def promised(self, kind: Kind) -> FrameSpec:
        """The engine for what the settings say of a camera; what they leave open is as the bundle has it."""
        height, width = kind.size or self._own.size or (None, None)
        pixel_format = kind.pixel_format or self._own.pixel_format
        return self.spec_of(FrameSpec(pixel_format=pixel_format, height=height, width=width))

    def spec_of(self, spec: FrameSpec) -> FrameSpec:
        """The engine that frames of `spec` need: any size where the bundle takes any size."""
        return spec if self._own.size is not None else FrameSpec(pixel_format=spec.pixel_format)

    def _spec_for(self, frame: FrameRef) -> FrameSpec:
        return self.spec_of(FrameSpec(pixel_format=frame.pixel_format, height=frame.height, width=frame.width))

    def scores_alone(self, frame: FrameRef) -> bool:
        """Whether nothing is gained by scoring this frame together with others."""
        spec = self._spec_for(frame)
        found = self._engines.get(spec)
        return found is not None and not found.gains_by_batching

    def engine(self, frame: FrameRef) -> Engine:
        """The engine for this frame. Raises `Refused`."""
        spec = self._spec_for(frame)
        found = self._engines.get(spec)
        if found is not None:
            return found
        own = self._own
        if (
            own.size is not None
            and spec.size != own.size
            and not any(spec.size == known.size for known in self._engines)
        ):
            there, here = f"{own.size[1]}x{own.size[0]}", f"{frame.width}x{frame.height}"
            raise Refused(f"the frame is {here} px, the bundle was calibrated on {there}")
        if spec in self._hopeless:
            raise Refused(self._hopeless[spec])
        if len(self._engines) >= MAX_ENGINES:
            raise Refused(f"{MAX_ENGINES} kinds of frame come already; no engine for {spec} frames")
        self._prepare(spec)
        raise Refused(f"an engine for {spec} frames is being prepared; the bundle was calibrated on {own}")

    def settle(self) -> None:
        """Waits for an engine that is being prepared, if any: for callers who have the time that a line has not."""
        if self._thread is not None:
            self._thread.join()

    def score(self, engine: Engine, frames: Sequence[NDArray[np.uint8]]) -> list[list[RegionScore]]:
        """Scores frames uint8 [H, W, C] of one kind: the regions of each. Raises what the engine raises, and
        `ValueError` where it returns a score that is no number."""
        scores, maps = engine.score(frames)
        if not np.isfinite(scores).all():
            raise ValueError("the engine returned a score that is not a number")
        return [self._regions(scores[i], maps[i]) for i in range(len(frames))]

    def warm(self) -> None:
        """Keeps the engines awake while the line pauses."""
        for engine in list(self._engines.values()):
            engine.warm()

    def close(self) -> None:
        """Frees the engines, waiting for one that is being prepared. Safe to call twice."""
        self._closed = True
        if self._thread is not None:
            self._thread.join()
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def _load(self, spec: FrameSpec) -> Engine:
        try:
            engine = self._first_engine(spec, self._options)
        except EngineError as error:
            if self._options.precision == "auto":
                raise
            self._tell(f"no engine judges in {self._options.precision}; taking precision auto: {error}")
            engine = self._first_engine(spec, replace(self._options, precision="auto"))
        try:
            engine.warm()
        except BaseException:
            engine.close()
            raise
        return engine

    def _first_engine(self, spec: FrameSpec, options: EngineOptions) -> Engine:
        return load(
            self.bundle,
            self._order,
            None if spec == self._own else spec,
            on_refused=lambda name, why: self._tell(f"engine {name} refused: {why}"),
            options=options,
        )

    def _prepare(self, spec: FrameSpec) -> None:
        if self._preparing is not None:
            return
        self._preparing = spec
        self._tell(f"frames come as {spec}, bundle {self.id[:12]} was calibrated on {self._own}: preparing an engine")

        def work() -> None:
            try:
                engine = self._load(spec)
                self._engines[spec] = engine
            except InspectError as error:
                self._hopeless[spec] = str(error)[:900]
                self._tell(str(error))
            finally:
                self._preparing = None

        self._thread = threading.Thread(target=work, name="prepare-engine", daemon=True)
        self._thread.start()

    def _regions(self, scores: NDArray[np.float32], maps: NDArray[np.float32]) -> list[RegionScore]:
        rows, columns = maps.shape[1:]
        drawn = maps.nbytes <= MAX_PATCH_BYTES and max(rows, columns) <= 512
        return [
            RegionScore(
                name=place.name,
                score=float(scores[i]),
                limit=place.limit,
                floor=place.floor,
                height=rows if drawn else 0,
                width=columns if drawn else 0,
                patches=maps[i].astype("<f4", copy=False).tobytes() if drawn else b"",
                left=place.box[0],
                top=place.box[1],
                right=place.box[2],
                bottom=place.box[3],
            )
            for i, place in enumerate(self.places)
        ]


def places(bundle: Bundle) -> tuple[Place, ...]:
    """The bundle's regions, in the order of the columns of scores."""
    boxes = [
        (region.x_px, region.y_px, region.x_px + region.width_px, region.y_px + region.height_px)
        for region in bundle.config.regions
    ] or [(0, 0, 0, 0)]
    return tuple(
        Place(limit.name, limit.limit, limit.floor, box) for limit, box in zip(bundle.limit.regions, boxes, strict=True)
    )

"""What an engine is: something that turns frames into raw scores and maps, the same numbers as torch in float32.

An engine is used by one thread. Frames may be views of shared memory, also read-only ones: they are read in place
during `score` and not kept. Outputs belong to the caller.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.bundle import Bundle
from pipelines.config import PipelineConfig
from pipelines.engines.frame import FrameSpec

GRAPH_VERSION = 1
"""Counts changes of the pipeline's graph or of its conversion that make engines built before it wrong."""

Progress = Callable[[str, float], None]
"""progress(what is being done, share done 0..1)"""


class Scored(NamedTuple):
    """Raw scores [B, R] and patch maps [B, R, h, w], float32, of B frames and R regions."""

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]


@dataclass(frozen=True)
class EngineOptions:
    """What the user may choose.

    threads: CPU threads of one engine; None = all cores the process may use. precision: "auto", or one of the
    engine's ("fp32", "bf16", "int8"); an engine refuses what it does not know. batch: frames per run that an engine
    is built for, "1" or a range such as "1:8", where that matters; None = any that is built already, else 1:8.
    """

    threads: int | None = None
    precision: str = "auto"
    batch: str | None = None


@dataclass(frozen=True)
class EngineKey:
    """Everything that decides whether a built engine may be used: where it runs, with what, on which frames."""

    engine: str
    device: str  # CPU or GPU model
    library: str  # name and version (for a GPU: and driver)
    precision: str
    frame: str  # pixel format and size
    graph: int  # GRAPH_VERSION
    config: str  # sha256 of the pipeline's configuration
    weights: str  # sha256 of the weights file

    @property
    def name(self) -> str:
        """Name of the engine's folder in the cache."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.engine}-{digest[:16]}"


class Engine(ABC):
    """One loaded engine. See the module's text; made by `pipelines.engines.load`."""

    name: ClassVar[str]
    """Name in settings and commands."""
    built: ClassVar[bool]
    """Whether there is something to build and keep."""
    supported: ClassVar[tuple[str, ...]]
    """Precisions it can compute in, keys of `pipelines.parity.TOLERANCES`."""

    def __init__(self, key: EngineKey, frame: FrameSpec, shape: tuple[int, int, int]) -> None:
        """`shape` is R, h, w of the maps."""
        self.key = key
        self.frame = frame
        self.shape = shape

    @property
    def gains_by_batching(self) -> bool:
        """Whether frames scored together take less time than one after the other. On a CPU they do not."""
        return True

    @classmethod
    def auto_precisions(cls) -> tuple[str, ...]:
        """What precision "auto" tries on this machine, in order, until one passes the parity gate."""
        return cls.supported[:1]

    @classmethod
    @abstractmethod
    def make_key(
        cls, bundle: Bundle, config: PipelineConfig, precision: str, options: EngineOptions | None = None
    ) -> EngineKey:
        """The key on this machine. Raises `EngineError` where the library is missing."""

    @classmethod
    def serves(cls, built: EngineKey, wanted: EngineKey) -> bool:
        """Whether an engine built under another key than the one wanted may be used in its place, if it passes."""
        return False

    @classmethod
    def build(cls, bundle: Bundle, config: PipelineConfig, key: EngineKey, folder: Path, progress: Progress) -> None:
        """Writes the engine's files into `folder`, which becomes visible only when all are there."""
        raise NotImplementedError

    @classmethod
    @abstractmethod
    def open(
        cls, bundle: Bundle, config: PipelineConfig, key: EngineKey, folder: Path | None, options: EngineOptions
    ) -> Engine:
        """Loads the engine from `folder` (None where `built` is False). Raises `EngineError`."""

    @property
    @abstractmethod
    def description(self) -> str:
        """One line for people: library, precision, device, threads."""

    def score(self, frames: Sequence[NDArray[np.uint8]]) -> Scored:
        """Scores frames uint8 [H, W, C] (C-contiguous for zero copy), also of different sizes where the engine allows.

        Raises `EngineError` for a frame of another format or size, and where the library fails.
        """
        for frame in frames:
            self.frame.check(frame)
        regions, rows, columns = self.shape
        scores = np.empty((len(frames), regions), dtype=np.float32)
        maps = np.empty((len(frames), regions, rows, columns), dtype=np.float32)
        if frames:
            self._run(frames, scores, maps)
        return Scored(scores, maps)

    @abstractmethod
    def _run(self, frames: Sequence[NDArray[np.uint8]], scores: NDArray[np.float32], maps: NDArray[np.float32]) -> None:
        """Fills scores [B, R] and maps [B, R, h, w] of at least one checked frame."""

    def warm(self) -> None:
        """One inference on a gray frame, so that clocks, caches and threads are awake; call it when the line pauses."""
        height, width = self.frame.size or (2 * 256, 2 * 256)
        self.score([np.full((height, width, self.frame.pixel_format.channels), 127, dtype=np.uint8)])

    def close(self) -> None:  # noqa: B027 - nothing to free is a fine default
        """Frees what the engine holds; it must not be used afterwards."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def in_place(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`frame` as a batch of one [1, H, W, C] that libraries accept without copying, whatever its flags.

    They refuse read-only arrays though they only read them. The result borrows the pixels and holds no reference, so a
    ring can be unmapped afterwards; keep `frame` alive while the result is used. A frame with gaps is copied.
    """
    if not frame.flags.c_contiguous:
        return np.array(frame[None], order="C")
    pixels = (ctypes.c_uint8 * frame.nbytes).from_address(frame.ctypes.data)
    batch: NDArray[np.uint8] = np.ctypeslib.as_array(pixels).reshape(1, *frame.shape)
    return batch


def config_sha256(config: PipelineConfig) -> str:
    """Identifies a configuration in an `EngineKey`."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def map_shape(bundle: Bundle, config: PipelineConfig) -> tuple[int, int, int]:
    """R, h, w of the maps, from the configuration alone (no torch)."""
    patch = int(config.encoder["patch"])
    return len(bundle.limit.regions), config.input_size[0] // patch, config.input_size[1] // patch

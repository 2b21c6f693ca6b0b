"""Buffers that GPU engines run on: allocated once, used in turn.

A *lane* is everything that one batch in flight needs: pinned host memory, device memory, a stream, and one CUDA graph
per number of frames. Two lanes take turns, so that the next batch is copied and uploaded while the present one is
computed and the last one downloaded.

    ring slot --copy--> pinned uint8 --DMA--> device uint8 --graph--> device float32 --DMA--> pinned float32 --copy-->

The copy out of the ring slot is the only one that the host makes of the pixels. Nothing else of a frame crosses the
bus: uint8 goes up, scores (and maps, where they are wanted) come down.

On the device "cpu" the same code runs without streams and graphs, which is how its bookkeeping is tested.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.errors import EngineError

Run = Callable[[Tensor, Tensor, Tensor], None]
"""run(frames uint8 [B, H, W, C], scores [B, R], maps [B, R, h, w]) computes the last two on the current stream."""

LANES = 2
_WARM_RUNS = 3  # before a graph is captured: lazy initialisation must not become part of it

_log = logging.getLogger("pipelines.engines")


@dataclass(frozen=True)
class Sizes:
    """What the buffers hold."""

    pixels: tuple[int, int, int]
    """Height, width and channels of a frame."""
    maps: tuple[int, int, int]
    """Regions, rows and columns of the patch maps."""
    low: int
    """Fewest frames the engine takes at once; fewer are filled up with what the buffer holds."""
    high: int
    """Most frames it takes at once."""


@dataclass(frozen=True)
class Ticket:
    """A batch in flight; give it to `Lanes.collect`."""

    lane: int
    number: int
    count: int
    with_maps: bool


class Lane:
    """One set of buffers, its stream and its graphs."""

    def __init__(self, sizes: Sizes, device: torch.device, run: Run) -> None:
        pinned = device.type == "cuda"
        regions, rows, columns = sizes.maps

        def pair(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            host = torch.zeros((sizes.high, *shape), dtype=dtype, pin_memory=pinned)
            return host, torch.zeros((sizes.high, *shape), dtype=dtype, device=device)

        self.host_frames, self.frames = pair(sizes.pixels, torch.uint8)
        self.host_scores, self.scores = pair((regions,), torch.float32)
        self.host_maps, self.maps = pair((regions, rows, columns), torch.float32)
        self.pixels: NDArray[np.uint8] = self.host_frames.numpy()
        self.stream = torch.cuda.Stream(device) if pinned else None  # type: ignore[no-untyped-call]
        self.done = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        self.run = run
        self.graphs: dict[int, Any] = {}
        self.ticket: Ticket | None = None

    def launch(self, count: int, size: int, with_maps: bool) -> None:
        """Enqueues upload, computation of `size` frames and download of the first `count`."""
        with self.on_stream():
            self.frames[:count].copy_(self.host_frames[:count], non_blocking=True)
            graph = self.graphs.get(size)
            if graph is not None:
                graph.replay()
            else:
                self.run(self.frames[:size], self.scores[:size], self.maps[:size])
            self.host_scores[:count].copy_(self.scores[:count], non_blocking=True)
            if with_maps:
                self.host_maps[:count].copy_(self.maps[:count], non_blocking=True)
            if self.done is not None:
                self.done.record(self.stream)

    def wait(self) -> None:
        """Until everything enqueued is done."""
        if self.done is not None:
            self.done.synchronize()

    def capture(self, size: int, pool: Any) -> None:
        """Records the computation of `size` frames as a CUDA graph."""
        assert self.stream is not None
        frames, scores, maps = self.frames[:size], self.scores[:size], self.maps[:size]
        self.stream.wait_stream(torch.cuda.current_stream())
        with self.on_stream():
            for _ in range(_WARM_RUNS):
                self.run(frames, scores, maps)
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Thread-local: another thread may be preparing an engine meanwhile, and must not end this capture.
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            self.run(frames, scores, maps)
        self.graphs[size] = graph

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Makes the lane's stream the current one."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


class Lanes:
    """Lanes in turn. Used by one thread."""

    def __init__(self, sizes: Sizes, device: torch.device, make_run: Callable[[int], Run], count: int = LANES) -> None:
        """`make_run(lane)` gives each lane its own computation, since two may be in flight."""
        self.sizes = sizes
        self.device = device
        with torch.inference_mode(False):
            self._lanes = [Lane(sizes, device, make_run(index)) for index in range(count)]
        self._next = 0
        self._number = 0

    def capture(self) -> int:
        """Makes the CUDA graphs of every batch size; returns how many there are.

        What cannot be captured runs without a graph: slower, and just as right.
        """
        if self.device.type != "cuda":
            return 0
        for lane in self._lanes:
            pool = torch.cuda.graph_pool_handle()  # graphs of one lane never run together, so they share memory
            for size in range(self.sizes.high, self.sizes.low - 1, -1):  # largest first: the others fit in its memory
                try:
                    lane.capture(size, pool)
                except RuntimeError as error:
                    _log.warning("no CUDA graph for %d frames: %s", size, " ".join(str(error).split())[:300])
                    return sum(len(lane.graphs) for lane in self._lanes)
        return sum(len(lane.graphs) for lane in self._lanes)

    def submit(self, frames: Sequence[NDArray[np.uint8]], maps: bool = True) -> Ticket:
        """Copies at most `high` frames [H, W, C] and enqueues them. The frames are free again when this returns.

        Raises `EngineError` where more frames are given, or as many batches are in flight as there are lanes.
        """
        if not 1 <= len(frames) <= self.sizes.high:
            raise EngineError(f"{len(frames)} frames were given to an engine for 1 to {self.sizes.high}")
        lane = self._lanes[self._next]
        if lane.ticket is not None:
            raise EngineError(f"{len(self._lanes)} batches are in flight; collect one first")
        for index, frame in enumerate(frames):
            np.copyto(lane.pixels[index], frame, casting="no")
        ticket = Ticket(self._next, self._number, len(frames), maps)
        lane.launch(len(frames), max(len(frames), self.sizes.low), maps)
        lane.ticket = ticket
        self._next = (self._next + 1) % len(self._lanes)
        self._number += 1
        return ticket

    def collect(self, ticket: Ticket, scores: NDArray[np.float32], maps: NDArray[np.float32] | None = None) -> None:
        """Waits for a batch; copies its scores [B, R], and maps [B, R, h, w] if they were asked for, to the caller's.

        Raises `EngineError` where the batch was collected already.
        """
        lane = self._lanes[ticket.lane]
        if lane.ticket != ticket:
            raise EngineError("this batch has been collected already")
        lane.wait()
        lane.ticket = None
        np.copyto(scores, lane.host_scores[: ticket.count].numpy())
        if maps is not None and ticket.with_maps:
            np.copyto(maps, lane.host_maps[: ticket.count].numpy())

    def score(
        self, frames: Sequence[NDArray[np.uint8]], scores: NDArray[np.float32], maps: NDArray[np.float32] | None
    ) -> None:
        """Any number of frames, in batches that overlap: fills scores [N, R] and, if given, maps [N, R, h, w]."""
        flying: list[tuple[Ticket, slice]] = []
        try:
            for start in range(0, len(frames), self.sizes.high):
                part = slice(start, min(start + self.sizes.high, len(frames)))
                if len(flying) == len(self._lanes):
                    self._land(flying.pop(0), scores, maps)
                flying.append((self.submit(frames[part], maps is not None), part))
        finally:
            while flying:
                self._land(flying.pop(0), scores, maps)

    def close(self) -> None:
        """Waits for what is in flight and frees every buffer and graph."""
        for lane in self._lanes:
            if lane.ticket is not None:
                lane.wait()
            lane.graphs.clear()
        self._lanes = []

    def _land(self, batch: tuple[Ticket, slice], scores: NDArray[np.float32], maps: NDArray[np.float32] | None) -> None:
        ticket, part = batch
        self.collect(ticket, scores[part], None if maps is None else maps[part])

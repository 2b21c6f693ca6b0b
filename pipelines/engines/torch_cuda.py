"""The `torch_cuda` engine: the pipeline in torch on a GPU, half precision, CUDA graphs, the same buffers as `tensorrt`.

For a GPU without TensorRT, and the reference that TensorRT has to beat. Building it measures, on this GPU, whether
`torch.compile` makes it faster, and keeps the answer: compiling costs up to a minute at every start, so it must pay.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines.bundle import Bundle
from pipelines.config import PipelineConfig
from pipelines.engines.base import GRAPH_VERSION, EngineKey, EngineOptions, Progress, config_sha256, map_shape
from pipelines.engines.cuda import Gpu, require_gpu
from pipelines.engines.cuda_buffers import Lanes, Run
from pipelines.engines.cuda_engine import CudaEngine, batch_of, frame_and_batch, same_but_batch, sizes_of
from pipelines.engines.frame import FrameSpec
from pipelines.engines.tensorrt_graph import EngineGraph, example
from pipelines.engines.tensorrt_targets import Batch, check_frames, check_precision
from pipelines.errors import EngineError
from pipelines.manifest import WEIGHTS

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline

CHOICE = "torch_cuda.json"
WORTH = 0.97
"""`torch.compile` is used where it takes less than this share of the time without."""


class TorchCudaEngine(CudaEngine):
    """The pipeline's own module, captured as CUDA graphs."""

    name = "torch_cuda"
    built = True
    supported = ("fp16", "bf16", "fp32")

    def __init__(self, lanes: Lanes, key: EngineKey, frame: FrameSpec, gpu: str, graphs: int, compiled: bool) -> None:
        super().__init__(lanes, key, frame)
        self._gpu = gpu
        self._graphs = graphs
        self._compiled = compiled

    @classmethod
    def auto_precisions(cls) -> tuple[str, ...]:
        """See `Engine.auto_precisions`."""
        return cls.supported

    @classmethod
    def make_key(
        cls, bundle: Bundle, config: PipelineConfig, precision: str, options: EngineOptions | None = None
    ) -> EngineKey:
        """See `Engine.make_key`. Raises `EngineError` where there is no GPU or frames may have any size."""
        gpu = require_gpu(cls.name)
        check_frames(config)
        if precision == "bf16":
            check_precision(precision, gpu.sm, gpu.name)
        batch = Batch.parse(options.batch) if options is not None and options.batch is not None else Batch()
        return EngineKey(
            engine=cls.name,
            device=str(gpu),
            library=f"torch {torch.__version__}, driver {gpu.driver}",
            precision=precision,
            frame=frame_and_batch(config, str(batch)),
            graph=GRAPH_VERSION,
            config=config_sha256(config),
            weights=bundle.manifest.files[WEIGHTS].sha256,
        )

    @classmethod
    def serves(cls, built: EngineKey, wanted: EngineKey) -> bool:
        """See `Engine.serves`: another batch will do."""
        return same_but_batch(built, wanted)

    @classmethod
    def build(cls, bundle: Bundle, config: PipelineConfig, key: EngineKey, folder: Path, progress: Progress) -> None:
        """See `Engine.build`: measures whether `torch.compile` pays and writes the answer."""
        progress("load the weights", 0.0)
        batch = batch_of(key)
        graph = _graph(bundle.pipeline(config), key.precision)
        frames = example(graph.pipeline, batch)[: batch.low].cuda()
        progress("measure without torch.compile", 0.2)
        plain = milliseconds(_run_of(graph), frames, map_shape(bundle, config))
        progress("compile and measure", 0.4)
        compiled: float | None = None
        why = ""
        try:
            compiled = milliseconds(_run_of(compile_graph(graph)), frames, map_shape(bundle, config))
        except Exception as error:  # it needs a C compiler and Triton, and may fail in many ways: then it is not used
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        choice = {
            "compile": compiled is not None and compiled < WORTH * plain,
            "plain_ms": plain,
            "compiled_ms": compiled,
            "why_not": why,
        }
        (folder / CHOICE).write_text(json.dumps(choice, indent=1) + "\n", encoding="utf-8")
        progress("written", 1.0)

    @classmethod
    def open(
        cls, bundle: Bundle, config: PipelineConfig, key: EngineKey, folder: Path | None, options: EngineOptions
    ) -> TorchCudaEngine:
        """See `Engine.open`."""
        assert folder is not None
        gpu: Gpu = require_gpu(cls.name)
        try:
            compiled = bool(json.loads((folder / CHOICE).read_text(encoding="utf-8"))["compile"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{folder / CHOICE}: cannot be read; remove {folder} to build it again") from error
        sizes = sizes_of(config, map_shape(bundle, config), batch_of(key))
        try:
            graph = _graph(bundle.pipeline(config), key.precision)
            run = _run_of(compile_graph(graph) if compiled else graph)
            lanes = Lanes(sizes, torch.device("cuda", 0), lambda lane: run)
            graphs = lanes.capture()
        except RuntimeError as error:
            raise EngineError(f"engine torch_cuda: {' '.join(str(error).split())[:400]}") from error
        return cls(lanes, key, FrameSpec.of(config), str(gpu), graphs, compiled)

    @property
    def description(self) -> str:
        """See `Engine.description`."""
        how = "compiled" if self._compiled else "eager kernels"
        graphs = "CUDA graphs" if self._graphs else "without CUDA graphs"
        library = self.key.library.partition(",")[0]
        return f"{library}, {self.key.precision} {how} on {self._gpu}, batch {batch_of(self.key)}, {graphs}"


def compile_graph(graph: EngineGraph) -> Any:
    """`torch.compile` for kernels only: CUDA graphs are `cuda_buffers`' own.

    It compiles for the first batch size, then for any number of frames when it meets a second, and for a single one.
    """
    return torch.compile(graph, fullgraph=True)


def milliseconds(run: Run, frames: Tensor, shape: tuple[int, int, int], seconds: float = 1.0) -> float:
    """Milliseconds of one computation of device `frames` [B, H, W, C] captured as a graph, without transfers."""
    scores = torch.empty((len(frames), shape[0]), device=frames.device)
    maps = torch.empty((len(frames), *shape), device=frames.device)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(frames, scores, maps)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run(frames, scores, maps)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    best = float("inf")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with torch.cuda.stream(stream):
            begin.record(stream)
            for _ in range(5):
                graph.replay()
            end.record(stream)
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 5)
    return best


def _graph(pipeline: Pipeline, precision: str) -> EngineGraph:
    return EngineGraph(pipeline, precision).to(torch.device("cuda", 0)).eval()


def _run_of(graph: Any) -> Run:
    def run(frames: Tensor, scores: Tensor, maps: Tensor) -> None:
        # TF32 would round the demosaicing, which is a convolution, to 10 bits.
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            found = graph(frames)
            scores.copy_(found[0])
            maps.copy_(found[1])

    return run

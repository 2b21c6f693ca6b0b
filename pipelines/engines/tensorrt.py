"""The `tensorrt` engine: the whole pipeline, uint8 frame to scores and maps, as one TensorRT engine.

Built by TensorRT (data-centre GPUs, Jetson) on the machine itself, or by TensorRT-RTX there or ahead of time for a
named GPU generation (`tensorrt_ahead`). Such an engine goes to every GPU of its generation, so its key names the
generation, not the GPU; what RTX compiles from it on the machine is kept beside the engines. Building is done by a
process of its own (`tensorrt_process`); loading needs neither torch-tensorrt nor the pipeline's weights.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from pipelines.bundle import Bundle
from pipelines.config import PipelineConfig
from pipelines.engines import tensorrt_process
from pipelines.engines.base import (
    GRAPH_VERSION,
    EngineKey,
    EngineOptions,
    Progress,
    config_sha256,
    map_shape,
)
from pipelines.engines.cuda import require_gpu
from pipelines.engines.cuda_buffers import Lanes
from pipelines.engines.cuda_engine import CudaEngine, batch_of, frame_and_batch, same_but_batch, sizes_of
from pipelines.engines.frame import FrameSpec
from pipelines.engines.tensorrt_runtime import Plan, import_library
from pipelines.engines.tensorrt_targets import DEFAULT_TARGET, PRECISIONS, Batch, check_frames, check_precision
from pipelines.engines.tensorrt_worker import PLAN, Request
from pipelines.errors import EngineError
from pipelines.manifest import WEIGHTS

_NO_GPU = "any GPU since Ampere"


class TensorRtEngine(CudaEngine):
    """A serialized engine, its execution contexts and its CUDA graphs."""

    name = "tensorrt"
    built = True
    supported = PRECISIONS

    def __init__(self, plan: Plan, lanes: Lanes, key: EngineKey, frame: FrameSpec, gpu: str, graphs: int) -> None:
        super().__init__(lanes, key, frame)
        self._plan = plan
        self._gpu = gpu
        self._graphs = graphs

    @classmethod
    def auto_precisions(cls) -> tuple[str, ...]:
        """See `Engine.auto_precisions`: bfloat16 has the range that some encoders' activations need."""
        return ("fp16", "bf16", "fp32")

    @classmethod
    def make_key(
        cls, bundle: Bundle, config: PipelineConfig, precision: str, options: EngineOptions | None = None
    ) -> EngineKey:
        """See `Engine.make_key`. Raises `EngineError` where there is no GPU, no TensorRT, or it cannot compute so."""
        gpu = require_gpu(cls.name)
        check_frames(config)
        check_precision(precision, gpu.sm, gpu.name)
        library = tensorrt_process.installed_library()
        if library.startswith(tensorrt_process.RTX):
            return key_for(bundle, config, precision, options, f"SM{gpu.sm}", library)
        return key_for(bundle, config, precision, options, str(gpu), f"{library}, driver {gpu.driver}")

    @classmethod
    def serves(cls, built: EngineKey, wanted: EngineKey) -> bool:
        """See `Engine.serves`: another batch, and the portable engine of TensorRT-RTX, will do."""
        portable = built.device == _NO_GPU and wanted.library.startswith(tensorrt_process.RTX)
        if portable and wanted.device != "SM75":
            built = dataclasses.replace(built, device=wanted.device)
        return same_but_batch(built, wanted)

    @classmethod
    def build(cls, bundle: Bundle, config: PipelineConfig, key: EngineKey, folder: Path, progress: Progress) -> None:
        """See `Engine.build`: minutes where TensorRT tries its kernels out, seconds with TensorRT-RTX.

        `key` also may be one for another machine, made by `key_for`.
        """
        library = key.library.partition(",")[0]
        builder = tensorrt_process.builder_library(tensorrt_process.builder_python())
        if builder != library:
            raise EngineError(
                f"engines would be built with {builder} and run with {library}; install one version in both places"
            )
        request = Request(
            bundle=bundle.path.absolute(),
            config=config,
            precision=key.precision,
            batch=str(batch_of(key)),
            target=target_of(key),
            folder=folder.absolute(),
            timing_cache=tensorrt_process.timing_cache(library, key.device),
        )
        tensorrt_process.build(request, progress)

    @classmethod
    def open(
        cls, bundle: Bundle, config: PipelineConfig, key: EngineKey, folder: Path | None, options: EngineOptions
    ) -> TensorRtEngine:
        """See `Engine.open`."""
        assert folder is not None
        gpu = require_gpu(cls.name)
        trt = import_library(key.library)
        try:
            content = (folder / PLAN).read_bytes()
        except OSError as error:
            raise EngineError(f"{folder / PLAN}: cannot be read: {error.strerror}") from error
        device = torch.device("cuda", 0)
        kept = tensorrt_process.timing_cache(f"kernels {key.name}", f"{gpu.name} {gpu.driver}")
        batch = batch_of(key)
        sizes = sizes_of(config, map_shape(bundle, config), batch)
        try:
            with torch.cuda.device(device):
                plan = Plan(trt, content, batch, kept)
                lanes = Lanes(sizes, device, lambda lane: plan.context())
                graphs = lanes.capture()
        except RuntimeError as error:
            raise EngineError(
                f"{folder}: CUDA cannot load this engine: {' '.join(str(error).split())[:400]}"
            ) from error
        plan.keep_kernels()
        return cls(plan, lanes, key, FrameSpec.of(config), str(gpu), graphs)

    @property
    def description(self) -> str:
        """See `Engine.description`."""
        library = self.key.library.partition(",")[0]
        graphs = "CUDA graphs" if self._graphs else "without CUDA graphs"
        return f"{library}, {self.key.precision} on {self._gpu}, batch {batch_of(self.key)}, {graphs}"


def key_for(
    bundle: Bundle,
    config: PipelineConfig,
    precision: str,
    options: EngineOptions | None,
    device: str,
    library: str,
) -> EngineKey:
    """The key of an engine for `device`, built with `library`."""
    batch = Batch.parse(options.batch) if options is not None and options.batch is not None else Batch()
    return EngineKey(
        engine=TensorRtEngine.name,
        device=device,
        library=library,
        precision=precision,
        frame=frame_and_batch(config, str(batch)),
        graph=GRAPH_VERSION,
        config=config_sha256(config),
        weights=bundle.manifest.files[WEIGHTS].sha256,
    )


def device_of(target: str) -> str:
    """The `device` of an `EngineKey` for a named target of an ahead-of-time build."""
    return _NO_GPU if target == DEFAULT_TARGET else target.upper()


def target_of(key: EngineKey) -> str | None:
    """The target named by a key; None for the GPU that the engine is built on."""
    if key.device == _NO_GPU:
        return DEFAULT_TARGET
    return key.device.lower() if key.library.startswith(tensorrt_process.RTX) else None

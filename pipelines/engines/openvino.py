"""The `openvino` engine: the default on CPUs.

Latency first: one stream that uses all threads, one request per frame. Frames are read where they lie (a ring slot),
so a batch is a loop; stacking frames into one batched request copies every pixel and gains nothing on a CPU.
Precision "auto" is bfloat16 where the processor computes it faster than float32 (`cpu.fast_bfloat16`), else float32.
"int8", on request, multiplies linear layers in 8 bits, their inputs quantised as they come: up to twice as fast as
float32 with AVX512-VNNI, and as near to it as bfloat16 is. It needs no calibration and passes the same parity gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.bundle import Bundle
from pipelines.config import PipelineConfig
from pipelines.engines.base import (
    GRAPH_VERSION,
    Engine,
    EngineKey,
    EngineOptions,
    Progress,
    config_sha256,
    in_place,
    map_shape,
)
from pipelines.engines.cpu import cpu_model, fast_bfloat16
from pipelines.engines.frame import FrameSpec
from pipelines.errors import EngineError
from pipelines.manifest import WEIGHTS

MODEL = "model.xml"
_SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    # Groups of 64 channels divide the width of every encoder.
    "int8": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64},
}
"""How OpenVINO is told each precision."""


class OpenVinoEngine(Engine):
    """A compiled OpenVINO model on the CPU."""

    name = "openvino"
    built = True
    supported = tuple(_SETTINGS)

    def __init__(self, compiled: Any, key: EngineKey, frame: FrameSpec, shape: tuple[int, int, int]) -> None:
        super().__init__(key, frame, shape)
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    @property
    def gains_by_batching(self) -> bool:
        """See `Engine`: one frame keeps all cores busy."""
        return False

    @classmethod
    def auto_precisions(cls) -> tuple[str, ...]:
        """See `Engine.auto_precisions`."""
        return ("bf16", "fp32") if fast_bfloat16() else ("fp32",)

    @classmethod
    def make_key(
        cls, bundle: Bundle, config: PipelineConfig, precision: str, options: EngineOptions | None = None
    ) -> EngineKey:
        """See `Engine.make_key`."""
        openvino = _library()
        return EngineKey(
            engine=cls.name,
            device=cpu_model(),
            library=f"openvino {openvino.__version__}",
            precision=precision,
            frame=str(FrameSpec.of(config)),
            graph=GRAPH_VERSION,
            config=config_sha256(config),
            weights=bundle.manifest.files[WEIGHTS].sha256,
        )

    @classmethod
    def build(cls, bundle: Bundle, config: PipelineConfig, key: EngineKey, folder: Path, progress: Progress) -> None:
        """See `Engine.build`."""
        # Torch is needed to build only: a process that finds its engine built never imports it.
        from pipelines.engines.openvino_convert import write_model

        progress("load the weights", 0.0)
        write_model(bundle.pipeline(config), folder, progress, int8=key.precision == "int8")

    @classmethod
    def open(
        cls, bundle: Bundle, config: PipelineConfig, key: EngineKey, folder: Path | None, options: EngineOptions
    ) -> OpenVinoEngine:
        """See `Engine.open`."""
        openvino = _library()
        assert folder is not None
        settings = compile_settings(key.precision, options.threads)
        try:
            compiled = openvino.Core().compile_model(folder / MODEL, "CPU", settings)
        except RuntimeError as error:
            raise EngineError(f"{folder}: OpenVINO cannot load this model: {_words(error)}") from error
        return cls(compiled, key, FrameSpec.of(config), map_shape(bundle, config))

    @property
    def description(self) -> str:
        """See `Engine.description`."""
        threads = self._compiled.get_property("INFERENCE_NUM_THREADS")
        library = self.key.library.partition("-")[0]  # without build number and branch
        return f"{library}, {self.key.precision} on {self.key.device}, {threads} threads"

    @property
    def compiled(self) -> Any:
        """OpenVINO's compiled model, for measurements."""
        return self._compiled

    def close(self) -> None:
        """See `Engine.close`."""
        self._request = self._compiled = None

    def _run(self, frames: Sequence[NDArray[np.uint8]], scores: NDArray[np.float32], maps: NDArray[np.float32]) -> None:
        from openvino import Tensor

        try:
            for index, frame in enumerate(frames):
                batch = in_place(frame)  # held here: OpenVINO's tensor does not keep it alive
                self._request.set_input_tensor(Tensor(batch, shared_memory=True))
                self._request.infer()
                scores[index] = self._request.get_output_tensor(0).data[0]
                maps[index] = self._request.get_output_tensor(1).data[0]
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on a frame: {_words(error)}") from error


def compile_settings(precision: str, threads: int | None) -> dict[str, Any]:
    """OpenVINO's settings for the lowest latency of one frame; `threads` None = all cores."""
    # Not pinned: beside capture and alert a thread tied to a busy core waits (measured p99 142 ms instead of 204 ms on
    # two cores under load; no difference on an idle machine).
    settings = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False, **_SETTINGS[precision]}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return settings


def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise EngineError("engine openvino: the library is missing; pip install 'edge-inspect[openvino]'") from error
    return openvino


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]

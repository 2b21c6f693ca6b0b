"""Loads a serialized TensorRT engine and runs it on torch's streams. Needs TensorRT's own package, not torch-tensorrt.

The same calls serve TensorRT and TensorRT-RTX; RTX also compiles its kernels for the GPU when an engine is loaded, and
what it compiled is kept, so that this is done once per machine and driver.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.engines.cuda_buffers import Run
from pipelines.engines.tensorrt_graph import INPUT, OUTPUTS
from pipelines.engines.tensorrt_targets import Batch
from pipelines.errors import EngineError

_log = logging.getLogger("pipelines.engines")


def import_library(library: str) -> Any:
    """The package that made an engine, from `EngineKey.library`. Raises `EngineError` where it is missing."""
    name = library.partition(" ")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = "rtx" if name == "tensorrt_rtx" else "tensorrt"
        raise EngineError(f"engine tensorrt: {error}; pip install 'edge-inspect[{extra}]'") from error


class Plan:
    """A deserialized engine. `context()` per batch in flight."""

    def __init__(self, trt: Any, content: bytes, batch: Batch, kernels: Path | None) -> None:
        """`kernels`: where TensorRT-RTX keeps what it compiled for this GPU.

        Raises `EngineError` where TensorRT does not take the engine.
        """
        self._trt = trt
        self.batch = batch
        self._log = _logger(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            reasons = " | ".join(self._log.errors[-2:]) or "it gave no reason"
            raise EngineError(
                f"TensorRT {trt.__version__} does not load this engine: {reasons[:400]}; it was built by another "
                "version or for another GPU: build it here with `edge bundle build --engine tensorrt`"
            )
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if names != {INPUT, *OUTPUTS}:
            raise EngineError(f"this engine has tensors {', '.join(sorted(names))}; build it again")
        self._kernels = kernels
        self._cache: Any = None
        self._config = self._runtime_config()

    def context(self) -> Run:
        """The engine on buffers of its own, for one batch in flight at a time. Raises `EngineError`."""
        contexts = []
        stream = torch.cuda.current_stream()
        for index, (low, high) in enumerate(self.batch.profiles):
            context = (
                self._engine.create_execution_context()
                if self._config is None
                else self._engine.create_execution_context(self._config)
            )
            if context is None:
                reasons = " | ".join(self._log.errors[-2:]) or "it gave no reason"
                raise EngineError(f"TensorRT cannot make an execution context (GPU memory?): {reasons[:400]}")
            # Only the very first context of an engine has a profile from the start.
            if not context.set_optimization_profile_async(index, stream.cuda_stream):
                raise EngineError(f"this engine has no profile for {low} to {high} frames; build it again")
            contexts.append((low, high, context))
        stream.synchronize()

        def run(frames: Tensor, scores: Tensor, maps: Tensor) -> None:
            count = frames.shape[0]
            context = next(context for low, high, context in contexts if low <= count <= high)
            ready = context.set_input_shape(INPUT, tuple(frames.shape))
            for name, tensor in zip((INPUT, *OUTPUTS), (frames, scores, maps), strict=True):
                ready = ready and context.set_tensor_address(name, tensor.data_ptr())
            if not ready or not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                reasons = " | ".join(self._log.errors[-2:]) or "it gave no reason"
                raise RuntimeError(f"TensorRT refused to run {count} frames: {reasons[:400]}")

        return run

    def keep_kernels(self) -> None:
        """Writes what TensorRT-RTX has compiled since the engine was loaded; a failure only costs time next time."""
        if self._cache is None or self._kernels is None:
            return
        temporary = self._kernels.with_name(f".{self._kernels.name}.part")
        with contextlib.suppress(OSError):
            self._kernels.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(bytes(self._cache.serialize()))
            temporary.replace(self._kernels)

    def _runtime_config(self) -> Any:
        trt = self._trt
        if not hasattr(trt, "IRuntimeCache"):  # TensorRT compiled everything when it built
            return None
        config = self._engine.create_runtime_config()
        # Kernels for the very shape are compiled when it comes first, at start-up, and not beside the running line.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        # The whole of a batch is one graph of ours.
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        self._cache = config.create_runtime_cache()
        if self._kernels is not None and self._kernels.is_file():
            with contextlib.suppress(OSError):
                if not self._cache.deserialize(self._kernels.read_bytes()):
                    _log.info(
                        "TensorRT-RTX does not take the kernels kept in %s and compiles them again", self._kernels
                    )
        config.set_runtime_cache(self._cache)
        return config


def _logger(trt: Any) -> Any:
    """TensorRT's log into ours; its errors are kept to be named."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            text = " ".join(message.split())
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors = [*self.errors[-9:], text]
                _log.warning("TensorRT: %s", text)
            elif severity == trt.ILogger.WARNING:
                _log.info("TensorRT: %s", text)

    return Logger()

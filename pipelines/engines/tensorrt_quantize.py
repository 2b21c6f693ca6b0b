"""FP8 by NVIDIA ModelOpt: the products of the encoder and the head in 8 bits, scales measured on the reference frames.

Runs in `tensorrt_worker` only. Quantised engines pass the same parity gate as any other, with its 8-bit tolerances, and
are no one's default. ModelOpt (`pip install nvidia-modelopt`) is asked for when it is needed.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import torch

from pipelines.bundle import Bundle
from pipelines.engines.base import Progress
from pipelines.engines.frame import FrameSpec
from pipelines.engines.registry import reference_for
from pipelines.engines.tensorrt_graph import EngineGraph, export
from pipelines.engines.tensorrt_targets import Batch
from pipelines.errors import EngineError

MAX_AUROC_DROP = 0.005
"""A quantised engine may cost no more image AUROC than this on the plant's own labelled images."""


def quantized_program(
    graph: EngineGraph, precision: str, bundle: Bundle, batch: Batch, progress: Progress
) -> torch.export.ExportedProgram:
    """The traced graph with quantisation nodes around its linear layers and patch embedding.

    Raises `EngineError` where ModelOpt is missing, cannot quantise this graph, or `precision` has no such route.
    """
    if precision != "fp8":
        raise EngineError(
            f"torch-tensorrt has no route for {precision}; take --precision fp8 (SM89 and newer) or fp16, or quantise "
            "the file of `edge bundle export --onnx` with ModelOpt's ONNX tools and build it with trtexec"
        )
    quantization, export_mode = _library()
    frames = reference_for(bundle, FrameSpec.of(graph.pipeline.config)).frames

    def calibrate(model: Any) -> None:
        for index, frame in enumerate(frames):
            progress("measure scales on the reference frames", 0.03 + 0.02 * index / len(frames))
            images = graph.pipeline.preprocess(torch.from_numpy(np.array(frame[None])))
            model.judge(images)

    with _quiet(), torch.inference_mode(False), torch.no_grad():
        try:
            quantization.quantize(graph.pipeline, quantization.FP8_DEFAULT_CFG, calibrate)
            with export_mode():
                return export(graph, batch)
        except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
            raise EngineError(
                f"ModelOpt cannot quantise this pipeline: {' '.join(str(error).split())[:400]}"
            ) from error


def _library() -> tuple[Any, Any]:
    try:
        with _quiet():
            import modelopt.torch.quantization as quantization
            from modelopt.torch.quantization.utils import export_torch_mode
    except ImportError as error:
        raise EngineError(
            f"precision fp8 needs NVIDIA ModelOpt where engines are built ({error}); pip install nvidia-modelopt"
        ) from error
    return quantization, export_torch_mode


@contextlib.contextmanager
def _quiet() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

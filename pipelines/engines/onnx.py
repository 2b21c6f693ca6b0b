"""A bundle's pipeline as one ONNX file, for other runtimes.

Input `frames` uint8 [batch, H, W, C] (H and W fixed where the bundle or the camera fixes them), outputs `scores`
float32 [batch, R] and `maps` float32 [batch, R, h, w]. Standard operators only. Opset 20 by default (for the TensorRT
of JetPack 6 and newer), down to 18. In fp16 the encoder and the head are halved and the rest stays float32, as
in `tensorrt_graph`: the file is what a strongly typed TensorRT build wants (`trtexec --stronglyTyped`). The pixels are
cast before anything else is done with them, because TensorRT takes uint8 for nothing but that.
The file is written only if ONNX Runtime, where it is installed, reproduces the bundle's reference scores with it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.bundle import Bundle
from pipelines.engines.base import Progress
from pipelines.engines.frame import FrameSpec, adapt
from pipelines.engines.registry import reference_for
from pipelines.engines.tensorrt_targets import MAX_BATCH, Batch
from pipelines.errors import EngineError
from pipelines.parity import ParityReport, compare

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline

OPSET = 20
OPSETS = range(18, 24)
PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class OnnxOptions:
    """What the file is to be: operator set, precision of encoder and head, and frames per run."""

    opset: int = OPSET
    precision: str = "fp32"
    batch: str = f"1:{MAX_BATCH}"

    def check(self) -> Batch:
        """The batch. Raises `EngineError` where something is not allowed."""
        if self.opset not in OPSETS:
            raise EngineError(f"ONNX opset {self.opset}: choose {OPSETS[0]} to {OPSETS[-1]}")
        if self.precision not in PRECISIONS:
            raise EngineError(f"ONNX files are written in {' or '.join(PRECISIONS)}, not {self.precision}")
        return Batch.parse(self.batch)


def export_onnx(
    bundle: Bundle,
    path: Path,
    frame: FrameSpec | None = None,
    progress: Progress | None = None,
    options: OnnxOptions | None = None,
) -> ParityReport | None:
    """Writes `path` and returns what the parity gate found with ONNX Runtime, or None where that is not installed.

    Raises `EngineError` where a library is missing, `path` exists or cannot be written, `ParityError` where the
    exported graph does not reproduce the reference scores; then nothing is written.
    """
    report: Progress = progress or (lambda what, done: None)
    options = options or OnnxOptions()
    batch = options.check()
    if path.exists():
        raise EngineError(f"{path}: exists already; choose another name or remove it first")
    config = adapt(bundle.config, frame)
    report("export the graph", 0.1)
    content = to_bytes(bundle.pipeline(config), options)
    report("check the reference frames", 0.7)
    parity = _check(content, bundle, frame, options, batch)
    if parity is not None:
        parity.require()
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise EngineError(f"{path}: cannot write: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    report("written", 1.0)
    return parity


def to_bytes(pipeline: Pipeline, options: OnnxOptions) -> bytes:
    """The content of the ONNX file; changes the pipeline's precision. Raises `EngineError` if a library is missing."""
    import torch

    from pipelines.engines.tensorrt_graph import EngineGraph

    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EngineError(f"ONNX export needs {error.name}; pip install 'edge-inspect[onnx]'") from error
    config, batch = pipeline.config, options.check()
    graph = EngineGraph(pipeline, options.precision)
    height, width = config.frame or (64, 96)
    shape: dict[int, Any] = {}
    if batch.dynamic:
        shape[0] = torch.export.Dim("batch", min=batch.low, max=batch.high)
    if config.frame is None:
        rows, columns = torch.export.Dim("rows", min=2, max=32767), torch.export.Dim("columns", min=2, max=32767)
        bayer = config.pixel_format.is_bayer
        shape |= {1: 2 * rows if bayer else rows, 2: 2 * columns if bayer else columns}
    count = max(2, batch.low) if batch.dynamic else batch.low  # a dynamic 1 would become a constant
    example = torch.zeros(count, height, width, config.pixel_format.channels, dtype=torch.uint8)
    # The exporter reports on optional packages that the project does not use.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=options.opset,
            dynamic_shapes=(shape,) if shape else None,
            input_names=["frames"],
            output_names=["scores", "maps"],
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _check(
    content: bytes, bundle: Bundle, frame: FrameSpec | None, options: OnnxOptions, batch: Batch
) -> ParityReport | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    reference = reference_for(bundle, frame)
    # A file for several frames at once gets the same one several times.
    outputs = [session.run(None, {"frames": np.stack([each] * batch.low)}) for each in reference.frames]
    scores, maps = (_joined([output[i][:1] for output in outputs]) for i in (0, 1))
    return compare("onnxruntime", options.precision, reference.scores, reference.maps, scores, maps, bundle.limit)


def _joined(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(parts)

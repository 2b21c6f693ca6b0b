"""A bundle's pipeline as one ONNX file, for other runtimes.

Opset 20, float32, input `frames` uint8 [batch, H, W, C] (batch 1 to 64; H and W fixed where the bundle or the camera
fixes them), outputs `scores` [batch, R] and `maps` [batch, R, h, w]. Standard operators only. The file is written only
if ONNX Runtime, where it is installed, reproduces the bundle's reference scores with it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.bundle import Bundle
from pipelines.engines.base import Progress
from pipelines.engines.frame import FrameSpec, adapt
from pipelines.engines.registry import reference_for
from pipelines.errors import EngineError
from pipelines.parity import ParityReport, compare

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline

OPSET = 20
MAX_BATCH = 64


def export_onnx(
    bundle: Bundle, path: Path, frame: FrameSpec | None = None, progress: Progress | None = None
) -> ParityReport | None:
    """Writes `path` and returns what the parity gate found with ONNX Runtime, or None where that is not installed.

    Raises `EngineError` where a library is missing, `path` exists or cannot be written, `ParityError` where the
    exported graph does not reproduce the reference scores; then nothing is written.
    """
    report: Progress = progress or (lambda what, done: None)
    if path.exists():
        raise EngineError(f"{path}: exists already; choose another name or remove it first")
    config = adapt(bundle.config, frame)
    report("export the graph", 0.1)
    content = _export(bundle.pipeline(config))
    report("check the reference frames", 0.7)
    parity = _check(content, bundle, frame)
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


def _export(pipeline: Pipeline) -> bytes:
    import torch

    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EngineError(f"ONNX export needs {error.name}; pip install 'edge-inspect[onnx]'") from error
    config = pipeline.config
    pipeline.prepare()
    height, width = config.frame or (64, 96)
    shape: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}
    if config.frame is None:
        rows, columns = torch.export.Dim("rows", min=2, max=32767), torch.export.Dim("columns", min=2, max=32767)
        bayer = config.pixel_format.is_bayer
        shape |= {1: 2 * rows if bayer else rows, 2: 2 * columns if bayer else columns}
    example = torch.zeros(2, height, width, config.pixel_format.channels, dtype=torch.uint8)
    # The exporter reports on optional packages that the project does not use.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            pipeline,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(shape,),
            input_names=["frames"],
            output_names=["scores", "maps"],
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _check(content: bytes, bundle: Bundle, frame: FrameSpec | None) -> ParityReport | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    reference = reference_for(bundle, frame)
    outputs = [session.run(None, {"frames": each[None]}) for each in reference.frames]
    scores, maps = (_joined([output[i] for output in outputs]) for i in (0, 1))
    return compare("onnxruntime", "fp32", reference.scores, reference.maps, scores, maps, bundle.limit)


def _joined(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(parts)

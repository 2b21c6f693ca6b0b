"""From a torch pipeline to an OpenVINO model file.

Route: torch.export -> OpenVINO's PyTorch frontend -> model.xml + model.bin in float32; the precision is chosen when the
model is compiled, except int8, which is in the weights. The frontend is used directly: `openvino.convert_model` would
report usage over the network.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.engines.base import Progress
from pipelines.errors import EngineError

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline

MODEL = "model.xml"


def export(pipeline: Pipeline, batch: int = 1) -> torch.export.ExportedProgram:
    """The pipeline's graph for a fixed batch: of the configured frame size, or of any size."""
    config = pipeline.config
    height, width = config.frame or (64, 96)
    example = torch.zeros(batch, height, width, config.pixel_format.channels, dtype=torch.uint8)
    shapes: Any = None
    if config.frame is None:
        rows, columns = torch.export.Dim("rows", min=2, max=32767), torch.export.Dim("columns", min=2, max=32767)
        # A mosaic has whole cells of two by two.
        shapes = ({1: 2 * rows, 2: 2 * columns} if config.pixel_format.is_bayer else {1: rows, 2: columns},)
    pipeline.prepare()
    with _quiet():
        return torch.export.export(pipeline, (example,), dynamic_shapes=shapes)


def write_model(pipeline: Pipeline, folder: Path, progress: Progress, int8: bool = False, batch: int = 1) -> None:
    """Converts and writes `folder`/model.xml and model.bin, with `int8` linear layers if asked.

    Raises `EngineError` with OpenVINO's words.
    """
    import openvino
    from openvino.frontend import FrontEndManager

    progress("export the graph", 0.1)
    program = export(pipeline, batch)
    progress("convert to OpenVINO", 0.4)
    try:
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

        with _quiet():
            decoder = TorchFXPythonDecoder.from_exported_program(program)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        if int8:
            quantize_linears(model, pipeline)
        progress("write the model", 0.8)
        openvino.save_model(model, folder / MODEL, compress_to_fp16=False)
    except (RuntimeError, AttributeError, ImportError) as error:
        words = " ".join(str(error).split())[:400]
        raise EngineError(f"OpenVINO {openvino.__version__} cannot convert this pipeline: {words}") from error
    progress("written", 1.0)


def quantize_linears(model: Any, pipeline: Pipeline) -> int:
    """Stores the weights of all linear layers as int8 with one scale per output channel; returns how many.

    With dynamic quantisation switched on, OpenVINO then quantises their inputs as they come, in groups of channels, and
    multiplies in int8: nothing has to be calibrated. Products that are no linear layers (attention, the memory bank's
    distances, the resize) stay in float32.
    """
    from openvino import opset11 as ops

    linears = {
        hashlib.sha256(module.weight.detach().numpy().tobytes()).digest()
        for module in pipeline.modules()
        if isinstance(module, torch.nn.Linear)
    }
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.input_value(1).get_node().get_type_name() != "Constant":
            continue
        weight = node.input_value(1).get_node().data
        if weight.ndim != 2 or hashlib.sha256(weight.tobytes()).digest() not in linears:
            continue
        axis = 1 if node.get_attributes()["transpose_b"] else 0  # of the inputs
        scale = np.maximum(np.abs(weight).max(axis=axis, keepdims=True), np.finfo(np.float32).tiny) / 127
        whole = ops.constant(np.clip(np.rint(weight / scale), -127, 127).astype(np.int8))
        restored = ops.multiply(ops.convert(whole, "f32"), ops.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(restored.output(0))
        count += 1
    return count


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's and OpenVINO's notes on their own internals from the user's screen."""

    def wanted(record: logging.LogRecord) -> bool:
        # The frontend logs, with a traceback, each operator that this torch no longer decomposes.
        return "not found in decomp table" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(wanted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(wanted)

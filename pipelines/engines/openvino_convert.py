"""From a torch pipeline to an OpenVINO model file.

Route: torch.export -> OpenVINO's PyTorch frontend -> model.xml + model.bin in float32; the precision is chosen when the
model is compiled. The frontend is used directly: `openvino.convert_model` would report usage over the network.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.engines.base import Progress
from pipelines.errors import EngineError

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline

MODEL = "model.xml"


def export(pipeline: Pipeline) -> torch.export.ExportedProgram:
    """The pipeline's graph for a batch of one: of the configured frame size, or of any size."""
    config = pipeline.config
    height, width = config.frame or (64, 96)
    example = torch.zeros(1, height, width, config.pixel_format.channels, dtype=torch.uint8)
    shapes: Any = None
    if config.frame is None:
        rows, columns = torch.export.Dim("rows", min=2, max=32767), torch.export.Dim("columns", min=2, max=32767)
        # A mosaic has whole cells of two by two.
        shapes = ({1: 2 * rows, 2: 2 * columns} if config.pixel_format.is_bayer else {1: rows, 2: columns},)
    pipeline.prepare()
    with _quiet():
        return torch.export.export(pipeline, (example,), dynamic_shapes=shapes)


def write_model(pipeline: Pipeline, folder: Path, progress: Progress) -> None:
    """Converts and writes `folder`/model.xml and model.bin. Raises `EngineError` with OpenVINO's words."""
    import openvino
    from openvino.frontend import FrontEndManager

    progress("export the graph", 0.1)
    program = export(pipeline)
    progress("convert to OpenVINO", 0.4)
    try:
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

        with _quiet():
            decoder = TorchFXPythonDecoder.from_exported_program(program)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        progress("write the model", 0.8)
        openvino.save_model(model, folder / MODEL, compress_to_fp16=False)
    except (RuntimeError, AttributeError, ImportError) as error:
        words = " ".join(str(error).split())[:400]
        raise EngineError(f"OpenVINO {openvino.__version__} cannot convert this pipeline: {words}") from error
    progress("written", 1.0)


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

"""The program that builds a TensorRT engine: `python -m pipelines.engines.tensorrt_worker`, one request, one answer.

A process of its own, because a builder that crashes must not take a line or a command with it, gives its memory back
only when it ends, and because without a GPU torch has to be changed (`tensorrt_standins`). The request is one JSON
object on stdin; answers are JSON lines on what was stdout:

    {"progress": ["build the engine", 0.4]}        any number of them
    {"done": {...}}                                the build's report
    {"error": "one line for the user"}             instead of `done`; the exit code is 1 then
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.config import PipelineConfig
from pipelines.errors import EngineError, InspectError

PLAN = "engine.plan"
REPORT = "build.json"


class Request(BaseModel):
    """What to build. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path
    config: PipelineConfig
    precision: str
    batch: str
    target: str | None = None
    """A name of `tensorrt_targets.TARGETS`, or None for the GPU of this machine."""
    folder: Path
    """Where `engine.plan` and `build.json` are written."""
    timing_cache: Path | None = None


def main() -> int:
    """Serves one request."""
    # Libraries print to stdout; the answers keep it for themselves and everything else goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    try:
        request = Request.model_validate_json(sys.stdin.read())
        _say(answers, done=serve(request, lambda what, done: _say(answers, progress=[what, round(done, 4)])))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        _say(answers, error=f"the build request is not understood: {faults}")
        return 1
    except InspectError as error:
        _say(answers, error=str(error))
        return 1
    return 0


def serve(request: Request, progress: Callable[[str, float], None]) -> dict[str, Any]:
    """Builds and writes the engine; returns its report."""
    from pipelines.engines.tensorrt_targets import Batch, check_frames, check_precision

    batch = Batch.parse(request.batch)
    height, width = check_frames(request.config)
    check_precision(request.precision, _capability(request.target), request.target or "this GPU")
    progress("load TensorRT", 0.0)
    load_library()
    from pipelines.bundle import Bundle
    from pipelines.engines import tensorrt_build
    from pipelines.engines.tensorrt_graph import EngineGraph, export

    progress("load the weights", 0.02)
    bundle = Bundle.open(request.bundle, verify=False)
    graph = EngineGraph(bundle.pipeline(request.config), request.precision)
    if request.precision in ("int8", "fp8"):
        from pipelines.engines.tensorrt_quantize import quantized_program

        program = quantized_program(graph, request.precision, bundle, batch, progress)
    else:
        program = export(graph, batch)
    shape = (height, width, request.config.pixel_format.channels)
    network = tensorrt_build.convert(program, batch, progress, shape)
    plan, report = network.build(request.target, request.timing_cache, progress)
    progress("write the engine", 0.96)
    try:
        (request.folder / PLAN).write_bytes(plan)
        (request.folder / REPORT).write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise EngineError(f"{request.folder}: cannot write the engine: {error.strerror}") from error
    return report.to_dict()


def load_library() -> None:
    """Imports torch-tensorrt, with stand-ins for CUDA where there is no GPU. Raises `EngineError` if it is missing."""
    import torch

    if not torch.cuda.is_available():
        from pipelines.engines import tensorrt_standins

        tensorrt_standins.install()
    logging.disable(logging.WARNING)  # its notes on what else could be installed
    try:
        import torch_tensorrt  # noqa: F401
    except ImportError as error:
        raise EngineError(
            f"engine tensorrt: {error}; pip install 'edge-inspect[rtx]' for RTX GPUs, 'edge-inspect[tensorrt]' for "
            "data-centre GPUs and Jetson, or name the Python that has it in EDGE_INSPECT_TENSORRT_PYTHON"
        ) from error


def _capability(target: str | None) -> int | None:
    if target is not None:
        from pipelines.engines.tensorrt_targets import capability

        return capability(target)
    import torch

    if not torch.cuda.is_available():
        raise EngineError("there is no GPU to build for; name one with --target, such as sm86 or default")
    major, minor = torch.cuda.get_device_capability()
    return major * 10 + minor


def _say(stream: TextIO, **answer: Any) -> None:
    stream.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    sys.exit(main())

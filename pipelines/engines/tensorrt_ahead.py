"""Engines built ahead of time, where there is no GPU: `edge bundle build BUNDLE --engine tensorrt --target sm89`.

TensorRT-RTX only. The engine lands in the bundle's engine folder and is found there by every machine with such a GPU.
It cannot be run here; what can be shown here is that its arithmetic holds, by rehearsing the same graph in torch in the
same precision (`tensorrt_graph.rehearse`). On its GPU the parity gate judges the engine itself, as always.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.bundle import Bundle
from pipelines.engines import cache, tensorrt_process
from pipelines.engines.base import EngineKey, EngineOptions, Progress
from pipelines.engines.frame import FrameSpec, adapt
from pipelines.engines.registry import reference_for, write_converted_reference
from pipelines.engines.tensorrt import TensorRtEngine, device_of, key_for
from pipelines.engines.tensorrt_graph import TYPES, EngineGraph, rehearse
from pipelines.engines.tensorrt_targets import capability, check_frames, check_precision, parse_target
from pipelines.engines.tensorrt_worker import REPORT
from pipelines.errors import EngineError
from pipelines.parity import ParityReport, compare


@dataclass(frozen=True)
class Ahead:
    """An engine that was built, or found built, for another machine."""

    key: EngineKey
    folder: Path
    built: bool
    report: dict[str, Any]
    """What the builder said, see `tensorrt_build.BuildReport`."""
    rehearsal: ParityReport | None
    """The graph in torch, in the engine's precision; None where torch cannot compute in it."""


def build_ahead(
    bundle: Bundle,
    target: str,
    *,
    frame: FrameSpec | None = None,
    options: EngineOptions | None = None,
    progress: Progress | None = None,
) -> Ahead:
    """Builds an engine for a named generation of GPUs and rehearses it.

    Precision "auto" is the first of fp16 and bf16 whose rehearsal passes the gate. Raises `EngineError` where the
    target, the precision, the frames or an operator cannot be built for, `ParityError` where no rehearsal passes.
    """
    tell: Progress = progress or (lambda what, done: None)
    options = options or EngineOptions()
    name = parse_target(target)
    config = adapt(bundle.config, frame)
    check_frames(config)
    candidates = ("fp16", "bf16") if options.precision == "auto" else (options.precision,)
    report: ParityReport | None = None
    for precision in candidates:
        check_precision(precision, capability(name), f"target {name}")
        if precision in TYPES:
            tell(f"rehearse in {precision}", 0.0)
        report = rehearsal(bundle, precision, frame)
        if report is None or report.passed:
            break
    if report is not None:
        report.require()
    library = tensorrt_process.builder_library(tensorrt_process.builder_python())
    if not library.startswith(tensorrt_process.RTX):
        raise EngineError(
            f"{library} builds engines on the GPU that runs them only; --target needs TensorRT-RTX: "
            "pip install 'edge-inspect[rtx]'"
        )
    key = key_for(bundle, config, precision, options, device_of(name), library)
    folder = cache.find(bundle, key)
    built = folder is None
    if folder is None:

        def write(place: Path) -> None:
            TensorRtEngine.build(bundle, config, key, place, tell)
            write_converted_reference(bundle, frame, place)

        folder = cache.store(bundle, key, write)
    return Ahead(key, folder, built, json.loads((folder / REPORT).read_text(encoding="utf-8")), report)


def rehearsal(bundle: Bundle, precision: str, frame: FrameSpec | None = None) -> ParityReport | None:
    """What the parity gate says of the graph run by torch on the CPU; None for precisions that torch has not."""
    if precision not in TYPES:
        return None
    reference = reference_for(bundle, frame)
    graph = EngineGraph(bundle.pipeline(adapt(bundle.config, frame)), precision)
    scores, maps = rehearse(graph, reference.frames)
    return compare(
        f"a rehearsal of tensorrt (torch {precision} on this CPU)",
        precision,
        reference.scores,
        reference.maps,
        scores,
        maps,
        bundle.limit,
    )

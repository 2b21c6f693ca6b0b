"""What TensorRT-RTX makes of each model, without a GPU: coverage, engines, fused attention, size and time to build.

    python benchmarks/tensorrt_builds.py                                  # every model for every target; half an hour
    python benchmarks/tensorrt_builds.py --models foundad-compact --targets sm86 sm89
    python benchmarks/tensorrt_builds.py --depth 3 --targets default --onnx --json builds.json

Run it with the Python that has torch-tensorrt-rtx. Weights are random: neither coverage nor kernels depend on them.
"attention" is the number of kernels, in the builder's own detailed list, that hold a whole attention, and beside it the
number of transformer blocks that the graph runs: equal means that every attention is fused. `--depth` makes encoders
shorter, for a quick look where size is not the point. `--onnx` also gives the exported ONNX file to TensorRT's parser.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.config import PipelineConfig
from pipelines.encoders.checkpoints import CONFIGS
from pipelines.engines import tensorrt_build
from pipelines.engines.onnx import OnnxOptions
from pipelines.engines.onnx import to_bytes as onnx_bytes
from pipelines.engines.tensorrt_graph import EngineGraph, export
from pipelines.engines.tensorrt_targets import Batch, parse_target
from pipelines.engines.tensorrt_worker import load_library
from pipelines.errors import EngineError
from pipelines.pipeline import Pipeline

FRAME = (480, 640)
ALL_TARGETS = ("default", "sm86", "sm89", "sm120")


@dataclass(frozen=True)
class Model:
    """One pipeline: published sizes, gray frames."""

    encoder: str
    head: dict[str, Any]
    size: int

    def pipeline(self, depth: int | None) -> Pipeline:
        """The pipeline with random weights, the encoder cut to `depth` blocks."""
        config = CONFIGS[self.encoder]
        if depth is not None:
            config = replace(config, depth=min(depth, config.depth))
        return Pipeline(
            PipelineConfig.model_validate(
                {
                    "encoder": config.to_dict(),
                    "head": self.head,
                    "input_size": (self.size, self.size),
                    "pixel_format": "Mono8",
                    "frame": FRAME,
                }
            )
        )


MODELS = {
    "foundad-compact": Model("compact", {"name": "foundad"}, 320),
    "foundad-s16": Model("dinov3_vits16", {"name": "foundad"}, 512),
    "foundad-b16": Model("dinov3_vitb16", {"name": "foundad"}, 512),
    "vitad-s16": Model("dino_vits16", {"name": "vitad"}, 256),
    "visualad-clip": Model("clip_vitl14_336", {"name": "visualad"}, 518),
    "bank-s14": Model("dinov2_vits14", {"name": "memory_bank", "size": 10_000}, 448),
}


def blocks(pipeline: Pipeline) -> int:
    """Transformer blocks that the graph runs: of the encoder up to the last one used, and of the head."""
    head: Any = pipeline.head
    depth = pipeline.encoder.depth
    if head.name == "foundad":
        return int(depth - head.config.last + 1 + head.config.depth)
    if head.name == "vitad":
        return int(head.neck + len(head.decoder.blocks))
    return int(max(head.blocks)) if head.name == "memory_bank" else depth


def measure(
    name: str, depth: int | None, precision: str, batch: Batch, targets: list[str], onnx: bool
) -> dict[str, Any]:
    """Converts one model once and builds it for each target."""
    pipeline = MODELS[name].pipeline(depth)
    found: dict[str, Any] = {"model": name, "blocks": blocks(pipeline), "precision": precision, "builds": []}
    began = time.monotonic()
    try:
        graph = EngineGraph(pipeline, precision)
        shape = (*FRAME, 1)
        network = tensorrt_build.convert(export(graph, batch), batch, _silent, shape)
        found["convert_s"] = round(time.monotonic() - began, 1)
        for target in targets:
            plan, report = network.build(target, None, _silent)
            with tempfile.TemporaryDirectory() as folder:  # a real file, as it would be carried to its GPU
                file = Path(folder) / "engine.plan"
                file.write_bytes(plan)
                found["builds"].append({**asdict(report), "file_bytes": file.stat().st_size})
        if onnx:
            found["onnx_layers"] = parse_onnx(onnx_bytes(graph.pipeline, OnnxOptions(precision="fp16", batch="1:8")))
    except EngineError as error:
        found["error"] = str(error)
    return found


def parse_onnx(content: bytes) -> int:
    """How many layers TensorRT's own parser makes of an ONNX file. Raises `EngineError` with its first complaint."""
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    network = tensorrt.Builder(logger).create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(content):
        raise EngineError(f"TensorRT's ONNX parser: {parser.get_error(0).desc()}")
    return int(network.num_layers)


def table(results: list[dict[str, Any]]) -> Table:
    """One row per model and target."""
    made = Table(title="TensorRT engines built without a GPU")
    for heading in ("model", "target", "operators", "engines", "layers", "attention / blocks", "MB", "build s"):
        made.add_column(heading, justify="left" if heading in ("model", "target") else "right")
    for result in results:
        for built in result["builds"]:
            made.add_row(
                result["model"],
                built["target"],
                f"{built['operators']} (100 %)",
                str(built["engines"]),
                str(built["layers"]),
                f"{built['fused_attention']} / {result['blocks']}",
                f"{built['file_bytes'] / 1e6:.1f}",
                f"{built['seconds']['build']:.1f}",
            )
        if "error" in result:
            made.add_row(result["model"], f"[red]{result['error']}[/red]")
    return made


def _silent(what: str, done: float) -> None:
    """Progress that nobody watches."""


def main() -> int:
    """Parses the command line, builds, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--targets", nargs="+", type=parse_target, default=list(ALL_TARGETS))
    parser.add_argument("--precision", default="fp16", choices=("fp16", "bf16", "fp32"))
    parser.add_argument("--batch", type=Batch.parse, default=Batch())
    parser.add_argument("--depth", type=int, help="most blocks of an encoder; by default all of them")
    parser.add_argument("--onnx", action="store_true", help="also parse the exported ONNX file")
    parser.add_argument("--json", type=Path, dest="json_file")
    args = parser.parse_args()
    console = Console(stderr=True)
    try:
        load_library()
    except EngineError as error:
        console.print(f"nothing built: {error}")
        return 0
    results = []
    for name in args.models:
        results.append(measure(name, args.depth, args.precision, args.batch, args.targets, args.onnx))
        console.print(f"{name}: done", highlight=False)
        if args.json_file is not None:
            text = json.dumps(
                {"library": tensorrt_build.library(), "batch": str(args.batch), "models": results}, indent=1
            )
            args.json_file.write_text(text + "\n", encoding="utf-8")
    Console().print(table(results))
    return int(any("error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())

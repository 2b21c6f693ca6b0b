"""How fast a GPU judges: TensorRT, torch with CUDA graphs, eager torch, and the plain published formulation.

    python benchmarks/gpu.py --json gpu.json                      # everything; about half an hour on one card
    python benchmarks/gpu.py --models foundad-b16 --batches 1 8   # a part of it
    python benchmarks/gpu.py --ways torch_cuda eager_fp32 --seconds 2 --pauses 0

Needs the checkout, torch and a GPU; no network. Without a GPU it says what would be measured and ends with 0. What
could not be measured is listed with its reason, next to what was.

Every number is from a host frame (uint8 numpy, 640 x 480 gray) to a host score. `latency`: one batch after the other.
`throughput`: two batches in flight where the engine has such, else the same as latency. `after idle`: the first batch
after a pause. `TFLOP/s` counts two operations per multiplication of the model (the frame's resize left out) at the
throughput, beside the matrix product of 8192 x 8192 in fp16 that this very card reached in this run. `memory` is what
the card has less after loading and running than before, so CUDA's own and TensorRT's share are in it. Weights are
random: speed does not depend on them. Each row runs in a process of its own.

Ways: `tensorrt` and `torch_cuda` are the engines of this project, fp16, scores downloaded, maps left. `eager_fp16` and
`eager_fp32` are the pipeline's module called as it is. `plain` is the published formulation: eager fp32, every encoder
block whatever is tapped, attention written as softmax(QK^T)V, position tables made anew for each image.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import models as reference
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipelines import engines
from pipelines.bundle import Bundle, Limit, RegionLimit, expected, write_bundle
from pipelines.config import PipelineConfig
from pipelines.engines import EngineOptions
from pipelines.engines.cuda import require_gpu
from pipelines.engines.cuda_engine import CudaEngine
from pipelines.errors import InspectError
from pipelines.pipeline import Pipeline

FRAME = (480, 640)
MODELS = {
    "foundad-b16": reference.Model("dinov3_vitb16", "foundad", 512),
    "foundad-s16": reference.Model("dinov3_vits16", "foundad", 512),
    "vitad-s16": reference.Model("dino_vits16", "vitad", 256),
    "foundad-compact": reference.Model("compact", "foundad", 320, embed=96),
}
WAYS = ("tensorrt", "torch_cuda", "eager_fp16", "eager_fp32", "plain")
BATCHES = (1, 4, 8, 16)
PUBLISHED_MIB = 1386  # FoundAD B/16 at 512, batch 1, as its authors report
CEILING_SIDE = 8192

Judge = Callable[[list[NDArray[np.uint8]]], object]


def build(name: str) -> Pipeline:
    """The model with random weights, for gray frames."""
    model = MODELS[name]
    pipeline = reference.build(model, FRAME)
    config = {**pipeline.config.model_dump(mode="json"), "pixel_format": "Mono8"}
    return Pipeline.from_config(PipelineConfig.model_validate(config), pipeline.encoder, pipeline.head)


def picture(seed: int) -> NDArray[np.uint8]:
    """A frame [H, W, 1] with structure."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (FRAME[0] // 16, FRAME[1] // 16), dtype=np.uint8)
    return np.kron(coarse, np.ones((16, 16), dtype=np.uint8))[:, :, None]


def make_bundle(name: str, folder: Path) -> Bundle:
    """A bundle with limits half-way through what its reference frames score."""
    pipeline = build(name)
    frames = [picture(seed) for seed in range(3)]
    scores = expected(pipeline, frames).scores[:, 0]
    region = RegionLimit(name="frame", limit=float(np.median(scores)), floor=float(scores.min()) * 0.9)
    limit = Limit(regions=(region,), method="none", false_reject_rate=0.5, n_normals=3, guarantee="none", seed=0)
    return write_bundle(folder / name, pipeline, limit, frames, {"command": "benchmarks/gpu.py"})


def multiplications(pipeline: Pipeline) -> int:
    """Of one frame, without the resize."""
    patches = pipeline.grid[0] * pipeline.grid[1]
    extra = pipeline.head.extra_tokens
    last = reference.last_block(pipeline)
    return reference.encoder_macs(pipeline.encoder.config, patches, extra, last) + reference.head_macs(pipeline)


# ---- one row, in a process of its own


def eager(name: str, way: str) -> Judge:
    """The pipeline's module, called as it is."""
    pipeline = build(name)
    if way == "plain":
        pipeline.encoder.__class__ = reference.FullDepth
    pipeline = pipeline.to("cuda", torch.float16 if way == "eager_fp16" else torch.float32)

    def judge(frames: list[NDArray[np.uint8]]) -> object:
        with torch.inference_mode():
            return pipeline(torch.from_numpy(np.stack(frames)).cuda())[0].cpu()

    if way != "plain":
        return judge

    def plainly(frames: list[NDArray[np.uint8]]) -> object:
        with reference.naive_attention():
            return judge(frames)

    return plainly


def measure(
    name: str, way: str, batch: int, folder: Path, seconds: float, idle_s: float, pauses: int
) -> dict[str, Any]:
    """Latency, throughput, memory and times after idling of one model in one way. Raises `InspectError`."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    before = torch.cuda.mem_get_info()[0]
    row: dict[str, Any] = {"model": name, "way": way, "batch": batch}
    frames = [picture(100 + index) for index in range(batch)]
    engine: CudaEngine | None = None
    if way in ("tensorrt", "torch_cuda"):
        # A single frame gets an engine for single frames: its memory is compared with what is published.
        options = EngineOptions(precision="fp16", batch="1" if batch == 1 else f"1:{max(BATCHES)}")
        began = time.perf_counter()
        prepared = engines.prepare(Bundle.open(folder / name, verify=False), way, options=options)
        prepared.report.require()
        assert isinstance(prepared.engine, CudaEngine)
        engine = prepared.engine
        row["engine"] = engine.description
        row["built"] = prepared.built
        row["ready_s"] = time.perf_counter() - began
        row["score_error"] = max(each.score_error for each in prepared.report.rows)
        row["map_error"] = max(each.map_error for each in prepared.report.rows)

    judge = eager(name, way) if engine is None else one_batch(engine)
    times = timed(judge, frames, seconds)
    row |= {"p50_ms": float(np.median(times)), "p99_ms": float(np.percentile(times, 99)), "max_ms": float(times.max())}
    row["samples"] = len(times)
    row["frames_per_s"] = batch * 1e3 / row["p50_ms"] if engine is None else in_flight(engine, frames, seconds)
    row["memory_mib"] = (before - torch.cuda.mem_get_info()[0]) / 2**20
    row["tflops"] = 2 * multiplications(build(name)) * row["frames_per_s"] / 1e12
    if pauses and batch == 1:
        row["after_idle_ms"] = [after_idle(judge, frames, idle_s) for _ in range(pauses)]
    return row


def one_batch(engine: CudaEngine) -> Judge:
    """A batch through an engine, its scores alone."""
    return lambda frames: engine.collect(engine.submit(frames, maps=False))


def timed(judge: Judge, frames: list[NDArray[np.uint8]], seconds: float) -> NDArray[np.float64]:
    """Milliseconds of each call, after ten for warming up."""
    for _ in range(10):
        judge(frames)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 20:
        start = time.perf_counter()
        judge(frames)
        times.append((time.perf_counter() - start) * 1e3)
    return np.array(times)


def in_flight(engine: CudaEngine, frames: list[NDArray[np.uint8]], seconds: float) -> float:
    """Frames per second with two batches in flight."""
    ticket, count = engine.submit(frames, maps=False), 0
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        following = engine.submit(frames, maps=False)
        engine.collect(ticket)
        ticket, count = following, count + 1
    took = time.perf_counter() - start
    engine.collect(ticket)
    return count * len(frames) / took


def after_idle(judge: Judge, frames: list[NDArray[np.uint8]], pause_s: float) -> float:
    """Milliseconds of the first call after a pause."""
    time.sleep(pause_s)
    start = time.perf_counter()
    judge(frames)
    return (time.perf_counter() - start) * 1e3


def ceiling() -> float:
    """TFLOP/s of the fp16 matrix product, the best of many."""
    side = CEILING_SIDE
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.float16) for _ in range(2))
    best = float("inf")
    for _ in range(30):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        a @ b
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end))
    return float(2 * side**3 / (best * 1e-3) / 1e12)


# ---- all rows


def child(arguments: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """This script with `arguments` in a fresh process: its row, or why there is none."""
    command = [sys.executable, __file__, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {timeout_s:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    words = done.stderr.strip().splitlines()
    return {"error": words[-1][:300] if words else f"ended with code {done.returncode}"}


def aims(rows: list[dict[str, Any]], top: float | None) -> list[dict[str, Any]]:
    """What the product aims at on an H200, and what was found; None where it was not measured."""

    def find(model: str, batch: int, way: str | None = None) -> dict[str, Any] | None:
        own = [row for row in rows if (row["model"], row["batch"]) == (model, batch)]
        fast = [row for row in own if (row["way"] == way if way else row["way"] in WAYS[:2])]
        return min(fast, key=lambda row: float(row["p50_ms"]), default=None)

    b1, b8, plain = find("foundad-b16", 1), find("foundad-b16", 8), find("foundad-b16", 1, "plain")
    compact = max((find("foundad-compact", size) for size in BATCHES), key=_rate)
    share = 100 * b8["tflops"] / top if b8 and top else None
    found: list[tuple[str, Any, str, float]] = [
        ("foundad-b16, batch 1: p50 host to host, ms", b1 and b1["p50_ms"], "<=", 3.0),
        ("foundad-b16, batch 8: percent of the fp16 ceiling", share, ">=", 50.0),
        (
            "foundad-b16, batch 1: times faster than plain",
            plain["p50_ms"] / b1["p50_ms"] if plain and b1 else None,
            ">=",
            8.0,
        ),
        ("foundad-compact: frames/s", compact and compact["frames_per_s"], ">=", 2000.0),
        ("foundad-b16, batch 1: memory, MiB", b1 and b1["memory_mib"], "<", PUBLISHED_MIB),
    ]
    return [
        {
            "aim": text,
            "wanted": f"{sign} {wanted:g}",
            "found": value,
            "reached": None if value is None else (value >= wanted if sign == ">=" else value <= wanted),
        }
        for text, value, sign, wanted in found
    ]


def _rate(row: dict[str, Any] | None) -> float:
    return float(row["frames_per_s"]) if row else -1.0


def show(console: Console, result: dict[str, Any]) -> None:
    """The tables of a result."""
    top = result.get("ceiling_tflops")
    table = Table(title=f"{result['gpu']}; fp16 matrix product {top:.0f} TFLOP/s" if top else str(result["gpu"]))
    headings = (
        "model",
        "way",
        "batch",
        "p50 ms",
        "p99",
        "max",
        "frames/s",
        "TFLOP/s",
        "of ceiling",
        "MiB",
        "after idle ms",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("model", "way") else "right")
    for row in result["measured"]:
        idle = row.get("after_idle_ms")
        table.add_row(
            row["model"],
            row["way"],
            str(row["batch"]),
            *(f"{row[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms")),
            f"{row['frames_per_s']:.0f}",
            f"{row['tflops']:.1f}",
            f"{row['tflops'] / top:.0%}" if top else "",
            f"{row['memory_mib']:.0f}",
            f"{max(idle):.2f}" if idle else "",
        )
    console.print(table)
    for aim in result["aims"]:
        state = {None: "not measured", True: "reached", False: "missed"}[aim["reached"]]
        value = "" if aim["found"] is None else f" ({aim['found']:.4g})"
        console.print(f"{aim['aim']} {aim['wanted']}: {state}{value}", highlight=False)
    if not result["measured"]:
        console.print(f"a GPU would be measured by {len(result['not_measured'])} rows:", highlight=False)
    for missing in result["not_measured"]:
        console.print(f"not measured: {missing['what']}: {missing['why']}", highlight=False, markup=False)


def main() -> int:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--idle-s", type=float, default=10.0, help="length of a pause")
    parser.add_argument("--pauses", type=int, default=3, help="pauses per model and way, with one frame")
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="of one row, its engine's build included")
    parser.add_argument("--json", type=Path, dest="json_file")
    parser.add_argument("--row", nargs=4, metavar=("MODEL", "WAY", "BATCH", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        name, way, batch, folder = args.row
        try:
            row = measure(name, way, int(batch), Path(folder), args.seconds, args.idle_s, args.pauses)
        except (InspectError, RuntimeError) as error:
            print(" ".join(str(error).split()), file=sys.stderr)
            return 1
        print(json.dumps(row))
        return 0
    console = Console()
    plan = [(name, way, batch) for name in args.models for batch in args.batches for way in args.ways]
    result: dict[str, Any] = {
        "gpu": None,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "ceiling_tflops": None,
        "measured": [],
        "not_measured": [],
    }
    try:
        gpu = require_gpu("benchmark")
    except InspectError as error:
        result["gpu"] = "no GPU"
        why = str(error).partition("; ")[0].removeprefix("engine benchmark ")
        result["not_measured"] = [{"what": f"{name}, {way}, batch {batch}", "why": why} for name, way, batch in plan]
    else:
        result["gpu"] = f"{gpu}, driver {gpu.driver}, CUDA {torch.version.cuda}"
        result["ceiling_tflops"] = ceiling()
        with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
            for name in args.models:
                make_bundle(name, Path(folder))
            options = [f"--seconds={args.seconds}", f"--idle-s={args.idle_s}", f"--pauses={args.pauses}"]
            for name, way, batch in plan:
                row = child([*options, "--row", name, way, str(batch), folder], args.timeout_s)
                if "error" in row:
                    result["not_measured"].append({"what": f"{name}, {way}, batch {batch}", "why": row["error"]})
                else:
                    result["measured"].append(row)
                console.print(
                    f"{name}, {way}, batch {batch}: {row.get('error', 'done')}", highlight=False, markup=False
                )
    result["aims"] = aims(result["measured"], result["ceiling_tflops"])
    show(console, result)
    if args.json_file is not None:
        args.json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

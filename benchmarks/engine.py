"""How fast the `openvino` engine judges, against torch eager and against OpenVINO's own bare compiled model.

    python benchmarks/engine.py                          # FoundAD and memory bank, compact encoder at 320 px
    python benchmarks/engine.py --methods memory_bank --frame 2448x2048 --samples 1000 --json result.json
    python benchmarks/engine.py --study                  # which precision, threads, streams and batching are fastest

One run holds all contestants on the same bundle and the same frames, taking turns in short bursts, so that noise of the
machine hits all alike. The first inference of each burst is not counted: it pays for the caches of the others. A burst
of the engine starts from a read-only frame in shared memory and ends with scores and maps that belong to the caller;
bare OpenVINO infers again and again on a tensor bound once. Speed does not depend on what the weights have learned, so
the bundle is made here: the shipped encoder, a bank of the pictures' own patches, a projector with random weights.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipelines import engines
from pipelines.bundle import Bundle, Limit, RegionLimit, expected, write_bundle
from pipelines.encoders import compact
from pipelines.engines import EngineOptions
from pipelines.engines.cpu import cpu_model
from pipelines.engines.openvino import compile_settings
from pipelines.engines.openvino_convert import write_model
from pipelines.pipeline import Pipeline, PipelineConfig

BURST = 6
Infer = Callable[[], object]


def picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A gray frame [H, W, 1] with shading, texture and spots."""
    rng = np.random.default_rng(seed)
    shading = cv2.resize(rng.integers(60, 200, (8, 8), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    image = np.clip(shading.astype(np.int16) + rng.integers(-20, 21, shading.shape), 0, 255).astype(np.uint8)
    for _ in range(4):
        centre = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(image, centre, int(rng.integers(3, height // 8)), int(rng.integers(256)), -1)
    return np.ascontiguousarray(image[:, :, None])


def make_bundle(folder: Path, method: str, size: int, frame: tuple[int, int], bank: int) -> Bundle:
    """A bundle of the compact encoder with the given head, for gray frames of one size."""
    torch.manual_seed(0)
    encoder = compact()
    head = {"name": "foundad"} if method == "foundad" else {"name": "memory_bank", "size": bank, "blocks": (9,)}
    config = PipelineConfig.model_validate(
        {
            "encoder": encoder.config.to_dict(),
            "head": head,
            "input_size": (size, size),
            "pixel_format": "Mono8",
            "frame": frame,
        }
    )
    pipeline = Pipeline.from_config(config, encoder=encoder)
    frames = [picture(*frame, seed=i) for i in range(4)]
    if method == "memory_bank":
        with torch.inference_mode():
            images = [pipeline.preprocess(torch.from_numpy(picture(*frame, seed=100 + i)[None])) for i in range(8)]
            found = torch.cat([pipeline.head.features(pipeline.encoder, image).flatten(0, 1) for image in images])
            near = found[torch.randint(len(found), (bank,))] + 0.01 * torch.randn(bank, found.shape[1])
            pipeline.head.bank.copy_(torch.nn.functional.normalize(near, dim=-1))
    scores = expected(pipeline, frames).scores[:, 0]
    region = RegionLimit(name="frame", limit=float(np.median(scores)), floor=float(scores.min()) * 0.9)
    limit = Limit(regions=(region,), method="none", false_reject_rate=0.5, n_normals=4, guarantee="none", seed=0)
    return write_bundle(folder / method, pipeline, limit, frames, {"command": "benchmarks/engine.py"}, half=True)


def shared(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame as a reader of the ring sees it: a read-only view of shared memory."""
    memory = mmap.mmap(-1, image.nbytes)
    memory.write(image.tobytes())
    view: NDArray[np.uint8] = np.frombuffer(memory, dtype=np.uint8).reshape(image.shape)
    view.flags.writeable = False
    return view


def take_turns(contestants: dict[str, Infer], samples: int) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each inference, by contestant. Bursts in rotating order until each has `samples`."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for infer in contestants.values():
        for _ in range(3):
            infer()
    turn = 0
    while len(times[names[-1]]) < samples or len(times[names[0]]) < samples:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            infer = contestants[name]
            for shot in range(BURST):
                start = time.perf_counter()
                infer()
                if shot:
                    times[name].append((time.perf_counter() - start) * 1e3)
        turn += 1
    return {name: np.array(found[:samples]) for name, found in times.items()}


def after_idle(infer: Infer, pause_s: float, times: int) -> NDArray[np.float64]:
    """Milliseconds of the first inference after a pause."""
    found = []
    for _ in range(times):
        time.sleep(pause_s)
        start = time.perf_counter()
        infer()
        found.append((time.perf_counter() - start) * 1e3)
    return np.array(found)


def bare(folder: Path, image: NDArray[np.uint8], settings: dict[str, Any]) -> Infer:
    """OpenVINO alone: input bound once, no output copied."""
    import openvino

    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
    request = compiled.create_infer_request()
    tensor = openvino.Tensor(image[None].copy(), shared_memory=True)
    request.set_input_tensor(tensor)

    def infer() -> object:
        request.infer()
        return tensor

    return infer


def summary(times: NDArray[np.float64]) -> dict[str, float]:
    """p50, p99, p99.9, max [ms] and frames/s at the median."""
    p50, p99, p999 = (float(v) for v in np.percentile(times, (50, 99, 99.9)))
    return {"p50": p50, "p99": p99, "p99.9": p999, "max": float(times.max()), "frames_per_s": 1e3 / p50}


def compare(args: argparse.Namespace, console: Console, folder: Path) -> dict[str, Any]:
    """The main table: engine, bare OpenVINO and torch, for each method."""
    results: dict[str, Any] = {}
    for method in args.methods:
        bundle = make_bundle(folder, method, args.size, args.frame, args.bank)
        image = shared(picture(*args.frame, seed=7))
        options = EngineOptions(threads=args.threads, precision=args.precision)
        prepared = engines.prepare(bundle, "openvino", options=options)
        prepared.report.require()
        assert prepared.folder is not None
        fast, plain = prepared.engine, engines.load(bundle, ("torch",), options=EngineOptions(threads=args.threads))
        int8 = engines.load(bundle, ("openvino",), options=EngineOptions(threads=args.threads, precision="int8"))
        contestants: dict[str, Infer] = {
            "openvino engine": lambda fast=fast, image=image: fast.score([image]),
            "openvino bare": bare(prepared.folder, image, compile_settings(fast.key.precision, args.threads)),
            "openvino engine, int8": lambda int8=int8, image=image: int8.score([image]),
            "torch eager fp32": lambda plain=plain, image=image: plain.score([image]),
        }
        times = take_turns(contestants, args.samples)
        table = Table(title=f"{method}: {fast.description}", title_justify="left")
        for heading in ("", "frames/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "after idle p50", "max"):
            table.add_column(heading, justify="right" if heading else "left")
        found: dict[str, Any] = {}
        for name, infer in contestants.items():
            idle = after_idle(infer, args.idle_s, args.idle_times)
            row = summary(times[name])
            row["after_idle_p50"], row["after_idle_max"] = float(np.median(idle)), float(idle.max())
            found[name] = row
            cells = ("frames_per_s", "p50", "p99", "p99.9", "max", "after_idle_p50", "after_idle_max")
            table.add_row(name, *(f"{row[cell]:.2f}" for cell in cells))
        found["speed_up_over_torch"] = found["torch eager fp32"]["p50"] / found["openvino engine"]["p50"]
        found["speed_up_over_torch_int8"] = found["torch eager fp32"]["p50"] / found["openvino engine, int8"]["p50"]
        found["overhead_over_bare"] = found["openvino engine"]["p50"] / found["openvino bare"]["p50"] - 1
        console.print(table)
        console.print(
            f"{method}: {found['speed_up_over_torch']:.2f} x torch eager (int8 "
            f"{found['speed_up_over_torch_int8']:.2f} x), "
            f"{found['overhead_over_bare']:+.1%} against bare OpenVINO\n"
        )
        results[method] = found
        fast.close()
        int8.close()
        plain.close()
    return results


def study(args: argparse.Namespace, console: Console, folder: Path) -> dict[str, Any]:
    """Milliseconds per frame of bare OpenVINO under different settings, taking turns."""
    import openvino

    cores = len(os.sched_getaffinity(0))
    variants: dict[str, tuple[dict[str, Any], int]] = {
        f"{hint}, {threads} threads": ({"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}, 1)
        for hint in ("f32", "bf16", "f16")
        for threads in sorted({1, cores})
    }
    variants["f32, pinned"] = ({"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": True}, 1)
    variants["f32, batch of 4 stacked"] = ({"INFERENCE_PRECISION_HINT": "f32"}, 4)
    variants[f"f32, {cores} streams, 4 frames at once"] = (
        {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": cores, "INFERENCE_NUM_THREADS": cores},
        -4,
    )
    results: dict[str, Any] = {}
    for method in args.methods:
        bundle = make_bundle(folder, method, args.size, args.frame, args.bank)
        model_file = engines.build(bundle, "openvino") / "model.xml"
        images = [shared(picture(*args.frame, seed=i)) for i in range(4)]
        contestants: dict[str, Infer] = {}
        for name, (settings, batch) in variants.items():
            file = model_file
            if batch > 1:
                stacked = folder / f"{method} stacked"
                stacked.mkdir()
                write_model(bundle.pipeline(), stacked, lambda what, done: None, batch=batch)
                file = stacked / "model.xml"
            unpinned = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
            compiled = openvino.Core().compile_model(file, "CPU", {**unpinned, **settings})
            contestants[name] = _runner(compiled, images, batch)
        times = take_turns(contestants, args.samples)
        table = Table(title=f"{method}: OpenVINO {openvino.__version__} on {cpu_model()}", title_justify="left")
        for heading in ("", "p50 ms per frame", "frames/s"):
            table.add_column(heading, justify="right" if heading else "left")
        results[method] = {}
        for name, found in times.items():
            per_frame = float(np.median(found)) / abs(variants[name][1])
            results[method][name] = per_frame
            table.add_row(name, f"{per_frame:.2f}", f"{1e3 / per_frame:.1f}")
        console.print(table)
    return results


def _runner(compiled: Any, images: list[NDArray[np.uint8]], batch: int) -> Infer:
    """batch 1: one request; > 1: frames stacked (copied) into one request; < 0: that many requests at once."""
    if batch < 0:
        requests = [compiled.create_infer_request() for _ in range(-batch)]

        def at_once() -> object:
            for request, image in zip(requests, images, strict=True):
                request.start_async({0: image[None].copy()})
            for request in requests:
                request.wait()
            return requests

        return at_once
    request = compiled.create_infer_request()
    return lambda: request.infer({0: np.stack(images[:batch])})


def size_of(text: str) -> tuple[int, int]:
    """ "WxH" as (height, width)."""
    width, height = text.lower().split("x")
    return int(height), int(width)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=("foundad", "memory_bank"), default=["foundad", "memory_bank"])
    parser.add_argument("--size", type=int, default=320, help="input size of the encoder [px]")
    parser.add_argument("--frame", type=size_of, default=(320, 320), metavar="WxH", help="size of the camera's frames")
    parser.add_argument("--bank", type=int, default=10_000, help="features in the memory bank")
    parser.add_argument("--samples", type=int, default=300, help="inferences counted per contestant")
    parser.add_argument("--threads", type=int, default=None, help="threads of each contestant (default: all cores)")
    parser.add_argument("--precision", default="auto", help="of the openvino engine: auto, fp32 or bf16")
    parser.add_argument("--idle-s", type=float, default=2.0, help="pause before each inference of the idle columns [s]")
    parser.add_argument("--idle-times", type=int, default=5)
    parser.add_argument("--study", action="store_true", help="compare OpenVINO settings instead")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 130)
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        results = (study if args.study else compare)(args, console, Path(folder))
    if args.json is not None:
        machine = {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        args.json.write_text(
            json.dumps({"machine": machine, "settings": settings, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

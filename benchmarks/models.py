"""What the published models cost here: parameters, multiplications, CPU latency and peak memory.

    python benchmarks/models.py                       # every model, every way; some minutes
    python benchmarks/models.py --models vitad-s16 --repeat 20 --json vitad.json

Each model is timed in five ways, each in a process of its own so that peak memory is its own too:

- `plain`: torch eager float32 as the methods are usually written: every encoder block, attention as softmax(QK^T)V, the
  position tables made anew for each image;
- `torch`: our pipeline in torch eager float32;
- `fp32`, `bf16`, `int8`: our pipeline compiled by OpenVINO, with the settings of the `openvino` engine's precisions.

Weights are random (speed does not depend on them). One image at a time, from a uint8 BGR frame to score and map. GMACs
are our own count from the configuration, checked against `torch.utils.flop_counter`; they leave out the resize. "head
share" is the time of FoundAD's projector, VisualAD's SCA and SAF or ViTAD's decoder, in percent of the encoder's time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.config import PipelineConfig
from pipelines.encoders import CONFIGS
from pipelines.encoders.config import EncoderConfig
from pipelines.encoders.vit import Encoder
from pipelines.heads import FoundAD, VisualAD, ViTAD
from pipelines.pipeline import Pipeline

WAYS = ("plain", "torch", "fp32", "bf16", "int8")


@dataclass(frozen=True)
class Model:
    """One row of the table."""

    encoder: str
    head: str
    size: int
    embed: int = 384
    """Width of FoundAD's projector: as published, or as calibration chooses it for a narrower encoder."""


MODELS = {
    "foundad-compact": Model("compact", "foundad", 512, embed=96),
    "foundad-s16": Model("dinov3_vits16", "foundad", 512),
    "foundad-b16": Model("dinov3_vitb16", "foundad", 512),
    "vitad-s16": Model("dino_vits16", "vitad", 256),
    "visualad-s14": Model("dinov2_vits14", "visualad", 448),
}


def build(model: Model, frame: tuple[int, int]) -> Pipeline:
    """The model with random weights, for frames of one size."""
    config = PipelineConfig.model_validate(
        {
            "encoder": CONFIGS[model.encoder].to_dict(),
            "head": {"name": model.head, **({"embed": model.embed} if model.head == "foundad" else {})},
            "input_size": (model.size, model.size),
            "pixel_format": "BGR8",
            "frame": frame,
            "score": {"rule": "published"},
        }
    )
    pipeline = Pipeline.from_config(config, Encoder(CONFIGS[model.encoder]).init_weights(0))
    return pipeline.requires_grad_(False)


# ---- counting


def encoder_macs(config: EncoderConfig, patches: int, extra: int, blocks: int) -> int:
    """Multiplications of the encoder up to block `blocks`: patch embedding, products of each block, attention."""
    tokens, D = patches + 1 + config.registers + extra, config.width
    branches = 3 if config.activation == "swiglu" else 2
    block = tokens * (4 * D * D + branches * D * config.hidden) + 2 * tokens * tokens * D
    return patches * 3 * config.patch**2 * D + blocks * block


def head_macs(pipeline: Pipeline) -> int:
    """Multiplications of the head, with its published score."""
    head, D = pipeline.head, pipeline.encoder.width
    h, w = pipeline.grid
    N = h * w

    def blocks(count: int, width: int) -> int:
        return count * (12 * N * width * width + 2 * N * N * width)

    def pixels(pool: int) -> int:
        H, W = (side - pool + 1 for side in head.input_size)
        return H * h * w + H * w * W

    if isinstance(head, FoundAD):
        return 2 * N * D * head.config.embed + blocks(head.config.depth, head.config.embed)
    if isinstance(head, VisualAD):
        A = head.config.anchors
        attention = A * D * D + N * D * D + 2 * A * N * D + A * D * D
        tokens = 2 * D * A + 2 * A * D + 2 * D * D
        return len(head.taps) * (attention + tokens + 2 * N * D * D + N * D) + pixels(1)
    assert isinstance(head, ViTAD)
    return N * D * D + blocks(len(head.decoder.blocks), D) + pixels(head.pixels.pool)


def last_block(pipeline: Pipeline) -> int:
    """The last encoder block that is run."""
    head = pipeline.head
    return pipeline.encoder.depth - head.config.last + 1 if isinstance(head, FoundAD) else pipeline.encoder.depth


def counted_macs(pipeline: Pipeline) -> int:
    """The same by torch's own counter (half its operations), on one image."""
    from torch.utils.flop_counter import FlopCounterMode

    images = torch.zeros(1, 3, *pipeline.config.input_size)
    with naive_attention(), FlopCounterMode(display=False) as counter:
        pipeline.judge(images)
    operations: int = counter.get_total_flops()
    return operations // 2


# ---- the plain formulation


@contextmanager
def naive_attention() -> Iterator[None]:
    """Attention as it is written in the papers: softmax(Q K^T / sqrt(d)) V."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights: Tensor = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return weights @ v

    functional = nn.functional
    fused = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused


class FullDepth(Encoder):
    """Runs every block, whatever is asked for, and makes its position tables for each image."""

    def run(self, tokens: Tensor, size: Sequence[int], blocks: Sequence[int], extra: int = 0) -> list[Tensor]:
        """See `Encoder.run`."""
        for tables in (self.learned.resized if self.learned else None, self.rotary.tables if self.rotary else None):
            if tables is not None:
                tables.forget()
        return super().run(tokens, size, (*blocks, self.depth), extra)[: len(blocks)]


# ---- one measurement


def timed(call: Callable[[], Any], repeat: int) -> float:
    """Median milliseconds of `repeat` calls (fewer where they take more than 20 s) after one for warming up."""
    call()
    times: list[float] = []
    while len(times) < repeat and sum(times) < 20:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def head_share(pipeline: Pipeline, repeat: int) -> float:
    """Time of the head behind the encoder's features, in percent of the time to get them: median of pairs."""
    head, encoder = pipeline.head, pipeline.encoder
    images = torch.randn(1, 3, *pipeline.config.input_size)
    encode: Callable[[], Any]
    judge: Callable[[], Any]
    if isinstance(head, FoundAD):
        features = head.features(encoder, images)
        encode, judge = lambda: head.features(encoder, images), lambda: head.residual(features)
    elif isinstance(head, VisualAD):
        tokens, taps = head.tap_features(encoder, images)
        encode, judge = lambda: head.tap_features(encoder, images), lambda: head.tap_maps(tokens, taps)
    else:
        assert isinstance(head, ViTAD)
        _, neck = head.features(encoder, images)
        encode, judge = lambda: head.features(encoder, images), lambda: head.rebuild(neck)
    return 100 * statistics.median(timed(judge, 1) / timed(encode, 1) for _ in range(repeat))


def measure(name: str, way: str, frame: tuple[int, int], repeat: int) -> dict[str, Any]:
    """One model in one way, in this process."""
    pipeline = build(MODELS[name], frame)
    frames = torch.randint(0, 256, (1, *frame, 3), dtype=torch.uint8)
    result: dict[str, Any] = {"model": name, "way": way}
    if way == "plain":
        pipeline.encoder.__class__ = FullDepth
        with naive_attention():
            result["ms"] = timed(lambda: pipeline(frames), repeat)
    elif way == "torch":
        result["ms"] = timed(lambda: pipeline(frames), repeat)
        result["head_share_percent"] = head_share(pipeline, repeat)
    else:
        result["ms"] = timed(openvino_call(pipeline, frames, way), repeat)
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def openvino_call(pipeline: Pipeline, frames: Tensor, way: str) -> Callable[[], Any]:
    """A call of the compiled pipeline on one frame."""
    import openvino

    from pipelines.engines.openvino import _SETTINGS as PRECISIONS
    from pipelines.engines.openvino_convert import MODEL, write_model

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        write_model(pipeline, Path(folder), lambda what, done: None)
        options = {"PERFORMANCE_HINT": "LATENCY", **PRECISIONS[way]}
        compiled = core.compile_model(core.read_model(Path(folder) / MODEL), "CPU", options)
    request, array = compiled.create_infer_request(), frames.numpy()
    return lambda: request.infer([array], share_inputs=True)


# ---- the table


def facts(name: str, frame: tuple[int, int]) -> dict[str, Any]:
    """Parameters and multiplications."""
    pipeline = build(MODELS[name], frame)
    own = encoder_macs(
        pipeline.encoder.config, pipeline.grid[0] * pipeline.grid[1], pipeline.head.extra_tokens, last_block(pipeline)
    ) + head_macs(pipeline)
    counted = counted_macs(pipeline)
    if abs(own - counted) > 0.005 * counted:
        raise SystemExit(f"{name}: our count of {own} multiplications differs from torch's {counted}")
    return {
        "model": name,
        "encoder": MODELS[name].encoder,
        "input": MODELS[name].size,
        "parameters": sum(p.numel() for p in pipeline.parameters()),
        "gmacs": own / 1e9,
        "gmacs_by_torch": counted / 1e9,
    }


def child(name: str, way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [
        sys.executable,
        __file__,
        "--one",
        name,
        way,
        "--repeat",
        str(arguments.repeat),
        "--frame",
        arguments.frame,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(f"{name} {way}: failed with exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def show(rows: list[dict[str, Any]]) -> None:
    """The table on the screen."""
    print(f"{'model':<16}{'input':>6}{'M par.':>8}{'GMACs':>8}" + "".join(f"{way + ' ms':>10}" for way in WAYS), end="")
    print(f"{'speed-up':>10}{'head %':>8}   peak MB " + " / ".join(WAYS))
    for row in rows:
        ways = row["ways"]
        print(f"{row['model']:<16}{row['input']:>6}{row['parameters'] / 1e6:>8.1f}{row['gmacs']:>8.1f}", end="")
        print("".join(f"{ways[way]['ms']:>10.1f}" if way in ways else f"{'-':>10}" for way in WAYS), end="")
        best = min((ways[way]["ms"] for way in ways if way != "plain"), default=None)
        ratio = f"{ways['plain']['ms'] / best:.1f}x" if best and "plain" in ways else "-"
        share = ways.get("torch", {}).get("head_share_percent")
        print(f"{ratio:>10}{'-' if share is None else f'{share:.0f}':>8}   ", end="")
        print(" / ".join(f"{ways[way]['peak_mb']:.0f}" for way in WAYS if way in ways))


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--ways", default=",".join(WAYS), help="comma-separated")
    parser.add_argument("--repeat", type=int, default=7, help="timed calls per measurement; the median counts")
    parser.add_argument("--frame", default="1024x1280", help="height x width of the camera frame [px]")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    height, width = (int(part) for part in arguments.frame.split("x"))
    names, ways = arguments.models.split(","), arguments.ways.split(",")
    for name in (*names, *ways):
        if name not in MODELS and name not in WAYS:
            parser.error(f"{name!r} is none of {', '.join((*MODELS, *WAYS))}")
    warnings.simplefilter("ignore")
    with torch.no_grad():
        if arguments.one:
            print(json.dumps(measure(arguments.one[0], arguments.one[1], (height, width), arguments.repeat)))
            return
        rows = []
        for name in names:
            row = facts(name, (height, width))
            row["ways"] = {}
            for way in ways:
                print(f"{name}: {way} ...", file=sys.stderr)
                row["ways"][way] = child(name, way, arguments)
            rows.append(row)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

"""Steps per second of ViTAD's training with kept encoder features against computing them anew.

    python benchmarks/kept_features.py [--size 256] [--side 1024] [--threads 1] [--steps 6]

Both ways read the same PNG files (`--side` pixels square, colour noise over a gradient) and must give the same
losses. Steps of the two ways alternate, so that other work on the machine disturbs both; seconds of CPU are told beside
those of the clock.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from calibration.datasets import load_normals
from calibration.feature_store import FeatureStore
from calibration.samples import NormalSamples
from calibration.training import Schedule
from calibration.vitad import FreshFeatures, ViTADOptions, ViTADTrainer, initialise
from pipelines.config import PipelineConfig, ViTADConfig
from pipelines.encoders import compact
from pipelines.heads import ViTAD
from pipelines.pipeline import Pipeline

BATCH = 8


def write_pictures(folder: Path, count: int, side: int) -> None:
    """PNG files of noise over a ramp."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 180, side)[:, None, None]
    for number in range(count):
        noise = rng.normal(0, 6, (side, side, 3))
        cv2.imwrite(str(folder / f"{number:03}.png"), np.clip(ramp + noise, 0, 255).astype(np.uint8))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="input of the encoder [px]")
    parser.add_argument("--side", type=int, default=1024, help="side of the files' pictures [px]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="measured steps of each way, after one to warm up")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), arguments.pictures, arguments.side)
        result = measure(Path(folder), arguments.size, arguments.steps)
    result |= {"size": arguments.size, "side": arguments.side, "threads": arguments.threads}
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(folder: Path, size: int, steps: int) -> dict[str, float]:
    """Steps per second of both ways on the pictures of `folder`. Exits where their losses differ."""
    images = load_normals(folder)
    encoder = compact()
    config = PipelineConfig(
        encoder=encoder.config.to_dict(),
        head=ViTADConfig(heads=encoder.config.heads),
        input_size=(size, size),
        pixel_format=images.pixel_format,
        frame=images.frame,
    )
    schedule = Schedule(10_000, BATCH)
    trainers = {}
    for way in ("kept", "anew"):
        pipeline = Pipeline.from_config(config, encoder=encoder)
        head = pipeline.head
        assert isinstance(head, ViTAD)
        initialise(head, 0)
        head.train().requires_grad_(True)
        samples = NormalSamples(pipeline, images, range(len(images)))
        fresh = FreshFeatures(samples, head, encoder, schedule)
        features = FeatureStore.compute(len(samples), fresh.rows, None, lambda *call: None) if way == "kept" else fresh
        trainers[way] = ViTADTrainer(head, features, len(samples), schedule, ViTADOptions())
    wall = dict.fromkeys(trainers, 0.0)
    cpu = dict.fromkeys(trainers, 0.0)
    for step in range(steps + 1):
        for way, trainer in trainers.items():
            started, busy = time.perf_counter(), time.process_time()
            trainer.advance()
            if step:
                wall[way] += time.perf_counter() - started
                cpu[way] += time.process_time() - busy
    kept, anew = trainers["kept"].losses, trainers["anew"].losses
    if not np.allclose(kept, anew, rtol=1e-4):
        raise SystemExit(f"the losses differ: {kept} and {anew}")
    return {
        "kept_steps_per_cpu_s": round(steps / cpu["kept"], 3),
        "anew_steps_per_cpu_s": round(steps / cpu["anew"], 3),
        "ratio_cpu": round(cpu["anew"] / cpu["kept"], 2),
        "ratio_wall": round(wall["anew"] / wall["kept"], 2),
        "largest_difference_of_losses": float(np.max(np.abs(np.subtract(kept, anew)))),
    }


if __name__ == "__main__":
    main()

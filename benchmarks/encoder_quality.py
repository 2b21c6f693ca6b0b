"""What encoders are worth to a memory bank, and how much of a teacher's features their tokens hold.

    python benchmarks/encoder_quality.py --data DATA --teacher mobilenet_v2.tflite --encoder compact --encoder random
    python benchmarks/encoder_quality.py --data DATA --encoder old.safetensors --size 320 --size 448 --json quality.json

One protocol for every encoder, the teacher and a random ViT. DATA holds `magnetic_tile`, `kolektor_sdd` (folders as of
MVTec AD) and `natural_images`; what is not there is left out. The third set are the simulated parts of `edge demo`.

- Image AUROC: a bank of 10,000 patches drawn at random from 64 good images, cosine distance to the nearest, mean of
  the 4 largest patches; per seed another 64 images and another draw of patches. Images keep their shape once they are
  longer than 3:2 (as `calibrate fit` has it), at the area of SIZE x SIZE. Tokens are those of one block, final norm
  applied. Of the teacher: each tap on a grid of 16 px, channels divided by their deviation over the good images; and
  all taps, each of unit length, joined.
- R2: how much of the teacher's standardised values a ridge regression from the tokens of the middle and the last block
  predicts on held-out photographs; fitted on others. Give `--card` (of `calibrate distill`) to hold out the photographs
  that the encoder was not trained on; otherwise they are drawn by the seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from calibration.distill.pictures import Pictures, centre_crops
from calibration.distill.student import to_patches
from calibration.distill.teachers import Teacher, open_teacher
from calibration.metrics import image_ranking
from calibration.sets import open_dataset
from edge.capture.simulation import Conveyor
from pipelines.encoders import Encoder, compact, create, from_checkpoint
from pipelines.images import list_images, read_image

Pixels = NDArray[np.uint8]
Extract = Callable[[Tensor], list[Tensor]]
"""Images uint8 RGB [B, 3, H, W] -> patch features [B, N, D] of each thing that is measured."""

PATCH, CELL = 16, 32
FITTED, BANK, TOP = 64, 10_000, 4
RIDGE, R2_SIZE, R2_FITTED, R2_TESTED = 3e-2, 224, 200, 100
SIMULATED_GOOD, SIMULATED_TESTED = 60, 300


@dataclass(frozen=True)
class Images:
    """A labelled set: good images to fit on (more than one seed takes), images to test with and their labels."""

    name: str
    fit: Tensor
    test: Tensor
    defective: list[bool]


def input_shape(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width of the input for images of this shape, multiples of 32, of about the area side x side."""
    stretch = (height / width) ** 0.5
    if 2 / 3 <= height / width <= 3 / 2:
        stretch = 1.0
    return max(1, round(side * stretch / CELL)) * CELL, max(1, round(side / stretch / CELL)) * CELL


def to_input(pixels: Pixels, shape: tuple[int, int]) -> Tensor:
    """Pixels uint8 [H, W, 1 or 3] (gray or BGR) -> uint8 RGB [3, *shape]."""
    resized = np.asarray(cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA)).reshape(*shape, -1)
    return torch.from_numpy(resized[..., ::-1].copy()).permute(2, 0, 1).expand(3, -1, -1)


def read_set(folder: Path, side: int, most: int | None, seeds: int) -> Images:
    """A set in the layout of MVTec AD; at most `most` test images of each label, drawn by seed 0."""
    rng = np.random.default_rng(0)
    (only,) = open_dataset(folder).classes
    good, bad = ([item.path for item in only.test if item.defective is flag] for flag in (False, True))
    fit = _draw(rng, list(only.train), FITTED * min(seeds, 2))
    good, bad = _draw(rng, good, most), _draw(rng, bad, most)
    height, width = read_image(fit[0]).pixels.shape[:2]
    shape = input_shape(height, width, side)
    stacks = [
        torch.stack([to_input(read_image(path).pixels, shape) for path in paths]) for paths in (fit, [*good, *bad])
    ]
    return Images(folder.name, stacks[0], stacks[1], [False] * len(good) + [True] * len(bad))


def simulated_set(side: int, most: int | None) -> Images:
    """The parts of `edge demo`: its good ones, then the first of its line."""
    belt = Conveyor(0, "tile", 512, 512, 3, 0.15, noise=2.0)
    step = 1100 // SIMULATED_GOOD
    fit = [belt.part(1_000_000 + number * step, clean=True).image for number in range(SIMULATED_GOOD)]
    parts = [belt.part(number) for number in range(SIMULATED_TESTED if most is None else 4 * most)]
    shape = (side, side)
    stacks = [torch.stack([to_input(one, shape) for one in many]) for many in (fit, [part.image for part in parts])]
    return Images("simulated", stacks[0], stacks[1], [part.defect is not None for part in parts])


def auroc(fit: Tensor, test: Tensor, defective: Sequence[bool], seed: int) -> float:
    """Image AUROC of a bank; `fit` and `test` [n, N, D], of unit length."""
    rng = np.random.default_rng(seed)
    chosen = torch.from_numpy(np.sort(rng.permutation(len(fit))[:FITTED]))
    patches = fit[chosen].flatten(0, 1)
    bank = patches[torch.from_numpy(np.sort(rng.permutation(len(patches))[:BANK]))].float().T.contiguous()
    scores = [float((1 - (image.float() @ bank).amax(1)).topk(TOP).values.mean()) for image in test]
    return image_ranking(defective, scores).auroc


def encoder_extract(encoder: Encoder, blocks: Sequence[int]) -> Extract:
    """Normed tokens of these blocks."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))

    def extract(images: Tensor) -> list[Tensor]:
        taps = encoder.taps((images.float() / 255 - mean) / std, blocks)
        return [encoder.norm(tap) for tap in taps]

    return extract


def teacher_extract(teacher: Teacher) -> Extract:
    """Each tap on the grid of patches."""

    def extract(images: Tensor) -> list[Tensor]:
        found = []
        for features, tap in zip(teacher.features(images), teacher.taps, strict=True):
            pooled = F.avg_pool2d(features, PATCH // tap.stride) if tap.stride < PATCH else features
            found.append(to_patches(pooled, max(tap.stride, PATCH), PATCH))
        return found

    return extract


def all_of(extract: Extract, images: Tensor, done: Callable[[int], None]) -> list[Tensor]:
    """Features of many images, float16 [n, N, D] each."""
    parts: list[list[Tensor]] = []
    for start in range(0, len(images), 4):
        with torch.inference_mode():
            parts.append([one.half() for one in extract(images[start : start + 4])])
        done(min(4, len(images) - start))
    return [torch.cat(many) for many in zip(*parts, strict=True)]


def bank_rows(
    name: str, extract: Extract, labels: Sequence[str], sets: Sequence[Images], seeds: int, joined: bool, side: int
) -> Iterator[dict[str, Any]]:
    """A row per set and label: mean and deviation of the image AUROC over the seeds."""
    for images in sets:
        began = time.process_time()
        fit, test = (all_of(extract, stack, lambda _: None) for stack in (images.fit, images.test))
        if joined:  # the teacher: channels of very different size
            scales = [one.float().std((0, 1)).clamp_min(1e-6) for one in fit]
            fit, test = ([one.float() / scale for one, scale in zip(many, scales, strict=True)] for many in (fit, test))
        fit, test = ([F.normalize(one.float(), dim=-1).half() for one in many] for many in (fit, test))
        if joined:
            fit, test = ([*many, F.normalize(torch.cat(many, dim=-1).float(), dim=-1).half()] for many in (fit, test))
        for label, a, b in zip(labels, fit, test, strict=True):
            values = [auroc(a, b, images.defective, seed) for seed in range(seeds)]
            yield {
                "encoder": name,
                "what": label,
                "set": images.name,
                "size": side,
                "auroc": round(statistics.mean(values), 4),
                "deviation": round(statistics.pstdev(values), 4),
                "images": len(images.defective),
                "cpu_s": round(time.process_time() - began, 1),
            }


def r2_row(name: str, encoder: Encoder, teacher: Teacher, fit: Tensor, held: Tensor) -> dict[str, Any]:
    """R2 of each tap on held-out photographs."""
    extract = encoder_extract(encoder, (max(1, encoder.depth // 2), encoder.depth))

    def values(images: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
        for start in range(0, len(images), 4):
            chunk = images[start : start + 4]
            with torch.inference_mode():
                tokens = torch.cat(extract(chunk), dim=-1).flatten(0, 1).double()
                wanted = [
                    to_patches(one, tap.stride, PATCH).flatten(0, 1).double()
                    for one, tap in zip(teacher.features(chunk), teacher.taps, strict=True)
                ]
            yield torch.cat((tokens, torch.ones(len(tokens), 1).double()), dim=1), wanted

    normal, right = torch.zeros(()).double(), [torch.zeros(()).double() for _ in teacher.taps]
    for rows, wanted in values(fit):
        normal = normal + rows.T @ rows
        right = [one + rows.T @ other for one, other in zip(right, wanted, strict=True)]
    normal.diagonal()[:-1] += RIDGE * normal.diagonal()[:-1].mean()
    solutions = [torch.linalg.solve(normal, one) for one in right]
    errors: list[Any] = [0.0] * len(right)
    sums: list[Any] = [0.0] * len(right)
    squares: list[Any] = [0.0] * len(right)
    count = 0
    for rows, wanted in values(held):
        count += len(rows)
        for number, other in enumerate(wanted):
            errors[number] = errors[number] + (other - rows @ solutions[number]).square().sum(0)
            sums[number] = sums[number] + other.sum(0)
            squares[number] = squares[number] + other.square().sum(0)
    row: dict[str, Any] = {"encoder": name}
    for number, tap in enumerate(teacher.taps):
        variance = (squares[number] - sums[number].square() / count).clamp_min(1e-12)
        row[tap.name] = round(float((1 - errors[number] / variance).mean()), 4)  # every channel counts alike
    return row


def photographs(folder: Path, card: Path | None) -> tuple[Tensor, Tensor]:
    """(to fit on, held out), centre crops uint8 [n, 3, S, S]."""
    paths = list_images(folder)
    if card is not None:
        names = set(json.loads(card.read_text())["images"]["held_out_names"])
        held = [path for path in paths if path.name in names]
        fit = _draw(np.random.default_rng(0), [path for path in paths if path.name not in names], R2_FITTED)
    else:
        drawn = _draw(np.random.default_rng(0), paths, R2_FITTED + R2_TESTED)
        fit, held = drawn[::3] + drawn[1::3], drawn[2::3]
    fitted, tested = (centre_crops(Pictures(many, R2_SIZE), R2_SIZE) for many in (fit, held))
    return fitted, tested


def _draw(rng: np.random.Generator, paths: Sequence[Path], most: int | None) -> list[Path]:
    return [paths[i] for i in sorted(rng.permutation(len(paths))[:most])]


def _open(text: str) -> tuple[str, Encoder]:
    name, _, file = text.rpartition("=")
    if file == "compact":
        return name or "compact", compact()
    if file == "random":
        return name or "random", create("compact", seed=0)
    return name or Path(file).stem, from_checkpoint(Path(file))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGE_INSPECT_DATA"), help="[EDGE_INSPECT_DATA]")
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--encoder", action="append", default=[], help="compact, random, FILE or NAME=FILE")
    parser.add_argument("--block", type=int, action="append", help="1-based; may be repeated [last but one]")
    parser.add_argument("--size", type=int, action="append", help="[320]")
    parser.add_argument("--set", action="append", help="magnetic_tile, kolektor_sdd, simulated [all]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most", type=int, help="test images of each label at most")
    parser.add_argument("--card", type=Path, help="card of a distillation: which photographs are held out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.data is None:
        parser.error("give --data, the folder that holds the image sets")
    encoders = [_open(text) for text in args.encoder]
    teacher = None if args.teacher is None else open_teacher(args.teacher, PATCH, (), args.threads)
    rows: list[dict[str, Any]] = []
    for side in args.size or [320]:
        wanted = args.set or ["magnetic_tile", "kolektor_sdd", "simulated"]
        sets = [
            read_set(args.data / name, side, args.most, args.seeds) for name in wanted if (args.data / name).is_dir()
        ]
        if "simulated" in wanted:
            sets.append(simulated_set(side, args.most))
        jobs = [
            bank_rows(
                name, encoder_extract(encoder, blocks), [f"block {n}" for n in blocks], sets, args.seeds, False, side
            )
            for name, encoder in encoders
            for blocks in [args.block or [encoder.depth - 1]]
        ]
        if teacher is not None:
            labels = [*(tap.name for tap in teacher.taps), "joined"]
            jobs.append(bank_rows("teacher", teacher_extract(teacher), labels, sets, args.seeds, True, side))
        for job in jobs:
            for row in job:
                rows.append(row)
                print(
                    f"{row['encoder']:<16} {row['what']:<10} {row['set']:<14} {side:>4} px  "
                    f"{row['auroc']:.3f} +- {row['deviation']:.3f}  ({row['images']} images, {row['cpu_s']:.0f} s CPU)",
                    flush=True,
                )
    held: list[dict[str, Any]] = []
    folder = args.data / "natural_images"
    if teacher is not None and folder.is_dir():
        fit, tested = photographs(folder, args.card)
        for name, encoder in encoders:
            held.append(r2_row(name, encoder, teacher, fit, tested))
            print(
                "R2", *(f"{key} {value}" for key, value in held[-1].items()), f"({len(tested)} photographs)", flush=True
            )
    if args.json is not None:
        args.json.write_text(json.dumps({"auroc": rows, "r2": held}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

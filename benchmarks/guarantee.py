"""Does the promised false-reject rate hold? Many random splits of real good images, against what theory allows.

    python benchmarks/guarantee.py DIR [--fit 64] [--splits 200] [--rates 0.01 0.05 0.1] [--json FILE]

A memory bank is filled with `--fit` images of DIR, and all others are scored once. Each split draws, among these, the
images that choose the limit (as few as the rate needs, and twice as many), and counts how many of the rest exceed it.

Split conformal prediction promises the rate on average over splits, not in each of them: with n images that choose and
m that are counted, the limit is the k-th smallest of n, k = ceil((n + 1)(1 - rate)), and the number of the m that
exceed it is beta-binomial with m, n + 1 - k and k (Vovk, 2012; Angelopoulos and Bates, 2023, appendix C; exact where
no two scores are equal). So the share of splits that exceed the promise has an exact expectation, and the number of
such splits is binomial around it: beyond its 99 % range (in one of a hundred rows) the limit would be wrong.

`--other DIR2` scores further good images (another day's, a test set's) against the limits of all splits: there no
theory holds, and the difference is what the line's change costs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibration import memory_bank
from calibration.binomial import central_range
from calibration.datasets import NormalImages, load_normals, split
from calibration.limit_scores import score_frames
from calibration.options import FitOptions, load_encoder, make_pipeline
from calibration.thresholds import conformal_limit, exceeding_share, images_for

SEED = 0


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of good images")
    parser.add_argument("--other", type=Path, help="further good images, only counted")
    parser.add_argument("--fit", type=int, default=64, help="images in the bank")
    parser.add_argument("--bank", type=int, default=10_000, help="patches of the bank")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.02, 0.05, 0.1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    scores, other = scored(arguments.images, arguments.other, arguments.fit, arguments.bank)
    print(f"{len(scores)} good images scored, {len(np.unique(scores))} distinct, {time.monotonic() - began:.0f} s")
    rows = [
        measure(scores, other, rate, count, arguments.splits)
        for rate in arguments.rates
        for count in (images_for(rate), 2 * images_for(rate))
        if count < len(scores)
    ]
    print("| rate | images | mean realised | splits above the rate | theory | 99 % range | within | other images |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        beyond = "-" if row["other"] is None else f"{row['other']:.2%}"
        print(
            f"| {row['rate']:.0%} | {row['images']} | {row['mean']:.2%} | {row['above']} of {row['splits']} | "
            f"{row['expected']:.1f} | {row['range'][0]} to {row['range'][1]} | {'yes' if row['within'] else 'NO'} | "
            f"{beyond} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def scored(
    folder: Path, other: Path | None, fitted: int, bank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Scores of the images that are not in the bank, and of further ones."""
    images = load_normals(folder)
    chosen, rest = split(len(images), len(images) - fitted, SEED)
    options = FitOptions(images=folder, out=Path(), bank=bank, any_size=True)
    pipeline = make_pipeline(options, load_encoder("compact"), images)
    kept = memory_bank.features(pipeline, images, chosen, None, _silent)
    memory_bank.fill(pipeline.head, kept, pipeline.scoring.keep, SEED, _silent)  # type: ignore[arg-type]
    pipeline.eval()

    def score(found: NormalImages, numbers: list[int]) -> NDArray[np.float64]:
        return score_frames(pipeline, found, numbers, _progress)[:, 0]

    further = None if other is None else load_normals(other)
    return score(images, rest), None if further is None else score(further, list(range(len(further))))


def measure(
    scores: NDArray[np.float64], other: NDArray[np.float64] | None, rate: float, count: int, splits: int
) -> dict[str, Any]:
    """One row: `splits` random halves with `count` images that choose the limit."""
    rng = np.random.default_rng([SEED, count, round(1e6 * rate)])
    realised, beyond = [], []
    rest = len(scores) - count
    for _ in range(splits):
        order = rng.permutation(len(scores))
        limit = conformal_limit(scores[order[:count]], rate)
        realised.append(int((scores[order[count:]] > limit).sum()))
        if other is not None:
            beyond.append(float((other > limit).mean()))
    above = sum(number > rate * rest + 1e-9 for number in realised)
    expected = exceeding_share(rate, count, rest)
    low, high = central_range(splits, expected, 0.99)
    return {
        "rate": rate,
        "images": count,
        "counted": rest,
        "splits": splits,
        "mean": float(np.mean(realised)) / rest,
        "above": above,
        "expected": expected * splits,
        "range": [low, high],
        "within": low <= above <= high,
        "other": float(np.mean(beyond)) if beyond else None,
    }


def _silent(what: str, done: int, total: int, note: str) -> None:
    """Progress that nobody watches."""


def _progress(what: str, done: int, total: int, note: str) -> None:
    if done % 100 == 0 or done == total:
        print(f"scored {done} of {total}", flush=True)


if __name__ == "__main__":
    main()

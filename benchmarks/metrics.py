"""Exact AU-PRO against the usual loop over 200 thresholds, on the same maps, one core.

    python benchmarks/metrics.py                 # 1000 maps of 256 x 256
    python benchmarks/metrics.py --maps 100

The loop is the published one: binarise every map at each threshold and average the overlap of each connected region.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.metrics import PixelScores


def draw(count: int, size: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Smooth maps; every other image has one to four defects, which score higher on average."""
    rng = np.random.default_rng(seed)
    maps = np.empty((count, size, size), np.float32)
    masks = np.zeros((count, size, size), np.uint8)
    for number in range(count):
        maps[number] = cv2.GaussianBlur(rng.random((size, size), dtype=np.float32), (0, 0), 2.0)
        if number % 2 == 0:
            for _ in range(int(rng.integers(1, 5))):
                height, width = rng.integers(size // 50 + 1, size // 6, 2)
                top, left = rng.integers(0, size - height), rng.integers(0, size - width)
                masks[number, top : top + height, left : left + width] = 1
            maps[number] += 0.08 * cv2.GaussianBlur(masks[number].astype(np.float32), (0, 0), 3.0)
    return maps, masks


def loop(maps: NDArray[np.float32], masks: NDArray[np.uint8], steps: int = 200, limit: float = 0.3) -> float:
    """AU-PRO by `steps` thresholds, regions found by connected components once per map and threshold sweep."""
    regions = [cv2.connectedComponents(mask, connectivity=8)[1] for mask in masks]
    good = masks == 0
    x, y = [], []
    for threshold in np.linspace(maps.max(), maps.min(), steps):
        hit = maps >= threshold
        overlaps = []
        for one, labels in zip(hit, regions, strict=True):
            for label in range(1, int(labels.max()) + 1):
                overlaps.append(one[labels == label].mean())
        x.append(hit[good].mean())
        y.append(np.mean(overlaps))
    rates, overlap = np.array(x), np.array(y)
    inside = rates <= limit
    rates, overlap = np.append(rates[inside], limit), np.append(overlap[inside], np.interp(limit, rates, overlap))
    return float(np.diff(rates) @ (overlap[1:] + overlap[:-1]) / 2 / limit)


def main() -> None:
    """Runs both once and prints seconds, values and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--loop-maps", type=int, default=None, help="fewer maps for the slow loop; its time is scaled")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    maps, masks = draw(arguments.maps, arguments.size, 0)
    started, cpu = time.perf_counter(), time.process_time()
    pixels = PixelScores()
    pixels.add(maps, masks)
    exact = pixels.aupro()
    wall, exact_s = time.perf_counter() - started, time.process_time() - cpu
    few = arguments.loop_maps or arguments.maps
    cpu = time.process_time()
    sampled = loop(maps[:few], masks[:few])
    loop_s = (time.process_time() - cpu) * arguments.maps / few
    told = {
        "maps": arguments.maps,
        "size": arguments.size,
        "regions": pixels.regions,
        "exact": {"aupro": exact, "cpu_s": exact_s, "wall_s": wall},
        "loop_200": {"aupro": sampled, "cpu_s": loop_s, "on_maps": few},
        "times_faster": loop_s / exact_s,
    }
    print(json.dumps(told, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()

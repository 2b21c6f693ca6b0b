"""What the simulated camera costs: set-up, and time per frame on one core, for each part type and size.

    python benchmarks/simulation.py [--frames 40] [--json FILE]

Times are CPU time of the drawing thread, so that a busy computer shows the same numbers. The demo needs at most 8 ms
per frame at 640 x 480 colour; above about 15 frames/s at 5 megapixels use the camera's `distinct` setting, whose cost
per frame (`repeat`) is one copy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import cv2
import numpy as np

from edge.capture.simulation import PART_TYPES, Conveyor

SIZES = ((480, 640, 3), (1024, 1280, 1), (2048, 2448, 1), (3000, 4096, 3))


def cpu_ms(work, count: int) -> list[float]:
    """CPU milliseconds of each of `count` calls."""
    times = []
    for number in range(count):
        began = time.thread_time()
        work(number)
        times.append(1000 * (time.thread_time() - began))
    return times


def measure(part_type: str, height: int, width: int, channels: int, frames: int) -> dict[str, float | str]:
    """One row of the table."""
    began = time.thread_time()
    good = Conveyor(0, part_type, height, width, channels, 0.0)
    set_up_s = time.thread_time() - began
    out = np.empty((height, width, channels), np.uint8)
    good.render(0, out)
    clean = cpu_ms(lambda number: good.render(number, out), frames)
    good.defect_rate = 1.0
    bad = cpu_ms(lambda number: good.render(number, out), frames)
    picture = out.copy()
    repeat = cpu_ms(lambda _: np.copyto(out, picture), frames)
    return {
        "part_type": part_type,
        "frame": f"{width} x {height} x {channels}",
        "set_up_s": round(set_up_s, 2),
        "good_ms": round(statistics.median(clean), 2),
        "defective_ms": round(statistics.median(bad), 2),
        "defective_max_ms": round(max(bad), 2),
        "repeat_ms": round(statistics.median(repeat), 2),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rows = []
    print(f"{'part':8}{'frame':18}{'set-up s':>9}{'good ms':>9}{'bad ms':>9}{'bad max':>9}{'repeat':>9}")
    for height, width, channels in SIZES:
        count = arguments.frames if height * width < 2_000_000 else max(3, arguments.frames // 8)
        for part_type in PART_TYPES:
            row = measure(part_type, height, width, channels, count)
            rows.append(row)
            print(
                f"{row['part_type']:8}{row['frame']:18}{row['set_up_s']:9}{row['good_ms']:9}{row['defective_ms']:9}"
                f"{row['defective_max_ms']:9}{row['repeat_ms']:9}",
                flush=True,
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

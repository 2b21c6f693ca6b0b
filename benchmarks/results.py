"""The methods on real images: every cell of methods x seeds x shots x sets, by `calibrate evaluate`.

    python benchmarks/results.py --data DIR --out DIR                       # all cells that are not done, one by one
    python benchmarks/results.py --data DIR --out DIR --limit-minutes 60    # as many as an hour takes
    python benchmarks/results.py --data DIR --out DIR --cells 'foundad/*/4/*'
    python benchmarks/results.py --out DIR --page docs/results.md           # the page of what is done

DIR of --data holds the sets by name (`magnetic_tile`, `kolektor_sdd`). Each cell is one command, printed as it starts,
and leaves one JSON file; an interrupted cell goes on where it stopped. The most telling cells come first, so that a
run that is stopped early says most. Results are kept apart by the content of the shipped encoder: after a new one, the
same command measures again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

METHODS = ("memory_bank", "foundad", "vitad", "visualad")
SETS = ("magnetic_tile", "kolektor_sdd")
SHOTS = ("1", "4", "16", "all")
SEEDS = (0, 1, 2)

SIZES = {"magnetic_tile": "160"}
"""Input where it is not the default, for all methods alike, the memory bank too."""

STEPS = {"foundad": 300, "vitad": 300}
"""Training steps where they are not the default."""


@dataclass(frozen=True)
class Cell:
    """One evaluation. `shots` is a number or "all"."""

    method: str
    dataset: str
    shots: str
    seed: int

    @property
    def name(self) -> str:
        """`method/set/shots/seed`, what --cells selects by."""
        return f"{self.method}/{self.dataset}/{self.shots}/{self.seed}"

    @property
    def file(self) -> str:
        """Name of the result file."""
        return f"{self.name.replace('/', '-')}.json"

    def arguments(self) -> list[str]:
        """Of `calibrate`: everything that decides the numbers."""
        words = ["evaluate", self.dataset, "--method", self.method]
        if self.method == "visualad":
            words += ["--auxiliary", next(name for name in SETS if name != self.dataset)]
        words += ["--shots", self.shots, "--seed", str(self.seed)]
        if self.dataset in SIZES:
            words += ["--size", SIZES[self.dataset]]
        if self.method in STEPS:
            words += ["--steps", str(STEPS[self.method])]
        return words

    def command(self) -> str:
        """The command as typed beside the sets."""
        return shlex.join(["calibrate", *self.arguments()])


def matrix() -> list[Cell]:
    """All cells, the most telling first.

    VisualAD sees no image of the product, so its numbers do not depend on shots: it has one cell per set and seed.
    """

    def cells(methods: Sequence[str], shots: Sequence[str], seeds: Sequence[int]) -> Iterable[Cell]:
        for seed in seeds:
            for method in methods:
                for shot in shots:
                    for dataset in SETS:
                        yield Cell(method, dataset, "all" if method == "visualad" else shot, seed)

    order = [
        *cells(("memory_bank",), ("4", "all", "16", "1"), SEEDS[:1]),
        *cells(("foundad",), ("4", "all"), SEEDS[:1]),
        *cells(("vitad", "visualad"), ("all",), SEEDS[:1]),
        *cells(("memory_bank",), ("4", "all", "16", "1"), SEEDS[1:]),
        *cells(("foundad",), ("4", "all"), SEEDS[1:]),
        *cells(("vitad", "visualad"), ("all",), SEEDS[1:]),
        *cells(("foundad", "vitad"), ("16", "4", "1"), SEEDS),
    ]
    return list(dict.fromkeys(order))


def encoder_now() -> str:
    """Content of the encoder that is shipped now, sha256 in hex."""
    from calibration.kept_encoder import encoder_id
    from pipelines.encoders import compact

    return encoder_id(compact())


def encoder_of(result: dict[str, Any]) -> set[str]:
    """The encoders that an evaluation's bundles hold."""
    return {str(one["bundle"]["provenance"].get("encoder_id")) for one in result["classes"].values()}


def is_of(cell: Cell, file: Path) -> bool:
    """Whether `file` is an evaluation by the cell's command; what was added to it decides no number."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return f"{result['provenance']['command']} ".startswith(f"{cell.command()} --threads ")
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True)
class Runner:
    """Runs cells into `folder`, beside the sets in `data`."""

    data: Path
    folder: Path
    encoder: str
    threads: int
    until: float | None  # time.monotonic() at which the running cell is interrupted

    def done(self, cell: Cell) -> bool:
        """Whether the cell's result is there, and of this very command."""
        return is_of(cell, self.folder / "cells" / cell.file)

    def run(self, cell: Cell) -> str | None:
        """Runs one cell; returns why it failed, or None. Raises `TimeoutError` where the time is over."""
        kept = self.folder / "fits" / cell.file.removesuffix(".json")
        result = self.folder / "cells" / cell.file
        waiting = result.with_suffix(".part")
        result.parent.mkdir(parents=True, exist_ok=True)
        own = ["--threads", str(self.threads), "--keep", str(kept), "--resume", "--quiet", "--json", str(waiting)]
        own += ["--keep-features", str(self.folder / "features")]
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "calibration.cli", *cell.arguments(), *own],
            cwd=self.data,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        try:
            errors = process.communicate(timeout=None if self.until is None else max(1.0, self.until - started))[1]
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            if process.poll() is None:
                process.terminate()  # not SIGINT, which jobs in the background ignore; its checkpoints stay
                process.wait()
        if process.returncode != 0:
            return (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        shutil.rmtree(kept, ignore_errors=True)
        why = self.accept(waiting, result)
        if why is None:
            print(f"  done in {time.monotonic() - started:.0f} s", flush=True)
        return why

    def accept(self, waiting: Path, result: Path) -> str | None:
        """Makes the file `waiting` the `result` of a cell, if it is of the encoder that is measured; else why not."""
        if encoder_of(json.loads(waiting.read_text(encoding="utf-8"))) != {self.encoder}:
            waiting.unlink()
            return "the shipped encoder changed meanwhile; start this command again to measure the new one"
        waiting.replace(result)
        return None

    def run_all(self, cells: Sequence[Cell]) -> int:
        """Runs what is not done, in order; returns how many failed."""
        left = [cell for cell in cells if not self.done(cell)]
        print(f"{len(cells) - len(left)} of {len(cells)} cells are done; encoder {self.encoder[:16]}", flush=True)
        failed = 0
        for cell in left:
            if self.until is not None and time.monotonic() >= self.until:
                print("the time is over; the same command goes on", flush=True)
                break
            print(f"{time.strftime('%H:%M:%S')} {cell.command()}", flush=True)
            try:
                why = self.run(cell)
            except TimeoutError:
                print("the time is over; the same command goes on within this cell", flush=True)
                break
            if why is not None:
                failed += 1
                print(f"  FAILED: {why}", flush=True)
        return failed


def main() -> int:
    """Runs cells, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results, features and unfinished fits")
    parser.add_argument("--data", type=Path, help=f"folder that holds {' and '.join(SETS)}")
    parser.add_argument("--cells", default="*", help="pattern of method/set/shots/seed, e.g. 'foundad/*/4/*'")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit-minutes", type=float)
    parser.add_argument("--page", type=Path, help="writes this page of the results instead of running cells")
    parser.add_argument(
        "--encoder-id", help="--page: results of this encoder (16 digits) instead of the one shipped now"
    )
    arguments = parser.parse_args()
    cells = matrix()
    chosen = [cell for cell in cells if fnmatch(cell.name, arguments.cells)]
    if not chosen:
        parser.error(f"--cells {arguments.cells}: no cell has such a name; they are like {cells[0].name}")
    if arguments.page is None and not (arguments.data and all((arguments.data / name).is_dir() for name in SETS)):
        parser.error(f"--data: give the folder that holds {' and '.join(SETS)}")
    encoder = arguments.encoder_id or encoder_now()
    folder = arguments.out.resolve() / encoder[:16]
    if arguments.page is not None:
        from results_page import write_page

        write_page(arguments.page, cells, folder)
        return 0
    until = None if arguments.limit_minutes is None else time.monotonic() + 60 * arguments.limit_minutes
    runner = Runner(arguments.data.resolve(), folder, encoder, arguments.threads, until)
    return 1 if runner.run_all(chosen) else 0


if __name__ == "__main__":
    sys.exit(main())

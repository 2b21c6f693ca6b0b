"""docs/results.md from the cells that `benchmarks/results.py` has run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results import METHODS, SETS, SHOTS, SIZES, STEPS, Cell, is_of

from calibration.compare import compare
from calibration.errors import DataError
from calibration.report_evaluation import HEADS, points
from calibration.results import METRICS, load_evaluation

NOTES = "## Further measurements"
"""From this heading on a page is written by hand, and kept."""

TITLES = {"magnetic_tile": "Magnetic tile", "kolektor_sdd": "KolektorSDD"}


@dataclass(frozen=True)
class Done:
    """A cell that was run, and the content of its JSON file."""

    cell: Cell
    result: Mapping[str, Any]

    @property
    def one(self) -> Mapping[str, Any]:
        """The set's only class."""
        (found,) = self.result["classes"].values()
        return dict(found)


def load_cells(cells: Sequence[Cell], folder: Path) -> list[Done]:
    """The cells that are done, by this very command. A damaged file counts as not done, and is named."""
    found = []
    for cell in cells:
        file = folder / "cells" / cell.file
        if is_of(cell, file):
            try:
                found.append(Done(cell, load_evaluation(file)))
            except DataError as error:
                print(f"left out: {error}")
    return found


def write_page(page: Path, cells: Sequence[Cell], folder: Path) -> None:
    """Writes `page`; what stands below `NOTES` in it stays. Exits with words where no cell is done."""
    done = load_cells(cells, folder)
    if not done:
        raise SystemExit(f"{folder}: no cell is done yet; run them first, with --data DIR --out DIR")
    kept = ""
    if page.exists():
        before = page.read_text(encoding="utf-8")
        kept = before[before.index(NOTES) :] if NOTES in before else ""
    part = page.with_name(f".{page.name}.part")
    part.write_text(render(cells, done) + ("\n" + kept if kept else ""), encoding="utf-8")
    part.replace(page)
    print(f"{page}: {len(done)} of {len(cells)} cells")


def render(cells: Sequence[Cell], done: Sequence[Done]) -> str:
    """The page, without what is written by hand."""
    parts = [_head(cells, done), _verdict(done)]
    for dataset in SETS:
        here = [one for one in done if one.cell.dataset == dataset]
        if here:
            parts += [f"## {TITLES.get(dataset, dataset)}\n", _metrics(here), _limits(here)]
    parts += [_commands(done), _missing(cells, done)]
    return "\n".join(parts)


def _head(cells: Sequence[Cell], done: Sequence[Done]) -> str:
    first = done[0]
    made = first.one["bundle"]["provenance"]
    days = sorted({str(one.result["provenance"]["started_at"])[:10] for one in done})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    versions = first.result["provenance"]["versions"]
    told = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "numpy") if name in versions)
    sets = {}
    for one in done:
        counts, digest = one.one["counts"], one.result["provenance"]["data_fingerprint"][:16]
        name = TITLES.get(one.cell.dataset, one.cell.dataset)
        sets[name] = f"{name} ({counts['good']} good and {counts['defective']} defective test images, `{digest}`)"
    reduced = [f"* {TITLES.get(name, name)}: `--size {size}` for all methods alike" for name, size in SIZES.items()]
    reduced += [f"* {method}: `--steps {steps}`" for method, steps in STEPS.items()]
    return f"""# Results on real images

Written by `python benchmarks/results.py --out DIR --page docs/results.md` from the cells that were run; every number
has its command below. {len(done)} of {len(cells)} cells were run, {when}.

* Encoder: {made["encoder"]}, content `{made.get("encoder_id", "")[:16]}`, the one that was shipped when this was run. A
  later one is measured by the same command, and its results are kept apart from these.
* Sets, with the fingerprint of their images and labels: {"; ".join(sets[name] for name in sorted(sets))}.
* Machine: {first.result["provenance"]["machine"]}, {os.cpu_count()} cores, one thread used, other work beside; {told}.
  Times mean nothing here and are not shown.
* Percent; mean ± standard deviation over n seeds (a seed chooses the shots, the weights at the start, and every other
  random choice). mAD is the mean of the seven metrics. Pixel metrics at the size of each image, exact.
* The encoder's features were kept and shared (`--keep-features`), unrounded, which changes no number.

To fit the time, these cells differ from the command's defaults:

{chr(10).join(reduced)}

visualad learns from the *other* set, 2 rounds as published, which is little: the authors' auxiliary sets are several
times larger. It sees no image of the product; good ones only choose its limit, so shots do not matter.
"""


def _verdict(done: Sequence[Done]) -> str:
    """Where the trained methods beat the memory bank, and where not."""
    by = {one.cell.name: one for one in done}
    rows: list[str] = []
    verdicts: dict[str, dict[str, list[str]]] = {}
    for method in METHODS[1:]:
        for dataset in SETS:
            for shots in SHOTS:
                # Zero-shot: beside the bank that has seen least.
                yardstick = "1" if method == "visualad" else shots
                pairs = [
                    (one, by[bank])
                    for one in done
                    if (one.cell.method, one.cell.dataset, one.cell.shots) == (method, dataset, shots)
                    and (bank := f"memory_bank/{dataset}/{yardstick}/{one.cell.seed}") in by
                ]
                if pairs:
                    word, row = _against(pairs)
                    where = f"{TITLES.get(dataset, dataset)}, {_shots(method, shots)}"
                    rows.append(f"| {method} | {where} | {len(pairs)} | {row} |")
                    seeds = f" ({len(pairs)} seed{'s' if len(pairs) > 1 else ' only'})"
                    verdicts.setdefault(method, {}).setdefault(word, []).append(where + seeds)
    if not rows:
        return "## Against the memory bank\n\nNo trained method has been run beside it yet.\n"
    lines = []
    for method, found in verdicts.items():
        told = "; ".join(f"**{word}**: {', '.join(places)}" for word, places in sorted(found.items()))
        lines.append(f"* {method} - {told}.")
    table = "\n".join(rows)
    return f"""## Against the memory bank

The memory bank needs no training; a trained method has to beat it to be worth its time. By image AUROC, with this
encoder and these lengths of training:

{chr(10).join(lines)}

"Better" and "worse" where the paired 95 % bootstrap intervals over the test images exclude 0 for every seed.
Differences are method less memory bank, same set, shots and seed (visualad, which sees no image of the product: less
the bank of one image); mean over the n seeds, and the interval of each. An interval is over test images alone: which
images were drawn as shots moves a result too, and only several seeds show it.

| method | set, shots | n | image AUROC | 95 % intervals | AU-PRO | mAD |
|---|---|---|---|---|---|---|
{table}
"""


def _against(pairs: Sequence[tuple[Done, Done]]) -> tuple[str, str]:
    """(better, worse or no clear difference; the row) of one method less the memory bank."""
    differences, ends = [], []
    for one, bank in pairs:
        row = compare(bank.result, one.result, ("memory_bank", one.cell.method), one.cell.seed).mean
        differences.append({name: row[name].difference for name in METRICS})
        ends.append(row["image_auroc"].interval or (float("nan"), float("nan")))
    if all(low > 0 for low, _ in ends):
        word = "better"
    elif all(high < 0 for _, high in ends):
        word = "worse"
    else:
        word = "no clear difference"
    intervals = "; ".join(f"{100 * low:+.1f} to {100 * high:+.1f}" for low, high in ends)
    cells = [_signed([each[name] for each in differences]) for name in ("image_auroc", "aupro", "mad")]
    return word, f"{cells[0]} | {intervals} | {cells[1]} | {cells[2]}"


def _signed(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * float(np.mean(known)):+.1f}" if known else "-"


def _groups(done: Sequence[Done]) -> dict[tuple[str, str], list[Done]]:
    """Cells that differ in the seed alone, by method and shots, in the order of the tables."""
    order = [(method, shots) for method in METHODS for shots in SHOTS]
    groups = {key: [one for one in done if (one.cell.method, one.cell.shots) == key] for key in order}
    return {key: ones for key, ones in groups.items() if ones}


def _metrics(done: Sequence[Done]) -> str:
    lines = [f"| method | shots | n | {' | '.join(HEADS)} |", "|---" * (3 + len(HEADS)) + "|"]
    for (method, shots), ones in _groups(done).items():
        values = [_mean_sd([one.result["mean"][name] for one in ones]) for name in METRICS]
        lines.append(f"| {method} | {_shots(method, shots)} | {len(ones)} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def _mean_sd(values: Sequence[float | None]) -> str:
    known = np.array([value for value in values if value is not None])
    if not known.size:
        return "-"
    spread = f" ± {100 * known.std(ddof=1):.1f}" if known.size > 1 else ""
    return points(float(known.mean())) + spread


def _limits(done: Sequence[Done]) -> str:
    lines = [
        "What the limit did that each fit chose for 1 % of false rejects from its good images alone (means over the "
        "seeds):\n",
        "| method | shots | good images rejected | defects missed |",
        "|---|---|---|---|",
    ]
    for (method, shots), ones in _groups(done).items():
        wrong, missed = (
            f"{100 * float(np.mean([one.one['at_limit'][name] for one in ones])):.1f} %"
            for name in ("false_reject_rate", "missed_rate")
        )
        lines.append(f"| {method} | {_shots(method, shots)} | {wrong} | {missed} |")
    return "\n".join(lines) + "\n"


def _shots(method: str, shots: str) -> str:
    return "zero-shot" if method == "visualad" else shots


def _commands(done: Sequence[Done]) -> str:
    lines = "\n".join(one.cell.command() for one in done)
    return f"""## Commands

One per cell, in the folder that holds the sets. `--json FILE` writes all of it, `--html FILE` the report with curves
and pictures; `--keep-features DIR --threads 1` was added here to save time.

```sh
{lines}
```
"""


def _missing(cells: Sequence[Cell], done: Sequence[Done]) -> str:
    have = {one.cell for one in done}
    left: dict[tuple[str, str, str], list[int]] = {}
    for cell in cells:
        if cell not in have:
            left.setdefault((cell.method, cell.dataset, cell.shots), []).append(cell.seed)
    if not left:
        return "## Not run\n\nNothing: all cells are above.\n"
    lines = [
        f"* {method}, {TITLES.get(dataset, dataset)}, {_shots(method, shots)}: seed {', '.join(map(str, seeds))}"
        for (method, dataset, shots), seeds in sorted(left.items())
    ]
    return f"""## Not run

{sum(map(len, left.values()))} of {len(cells)} cells; `python benchmarks/results.py --data DIR --out DIR` goes on:

{chr(10).join(lines)}
"""

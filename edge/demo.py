"""`edge demo`: from good parts to verdicts in one command, with the real processes and a simulated camera.

Draws good parts, calibrates on them (`calibrate fit`, a program of its own: the line never imports calibration), runs
the line on other parts of the same belt, and compares the ledger with what the simulator knows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from edge import tether
from edge.capture.simulation import PART_TYPES, Conveyor
from edge.child import Child
from edge.demo_results import Comparison, DemoError, compare, contact_sheet
from edge.messages import Decision
from edge.passthrough import Passthrough
from edge.results import Results
from edge.run import run_line
from edge.settings import Settings, load_settings
from edge.supervisor import ExitCode

HEIGHT_PX, WIDTH_PX, NOISE, DEFECT_RATE = 512, 512, 2.0, 0.15
METHOD, ENCODER_PX = "memory_bank", 320
FALSE_REJECT_RATE = 0.05  # what a quarter of the good parts, held out, can promise
DEADLINE_MS = 1000
# Good parts come from indices that the line never shows, spread over one turn of the slow drift of lamp and belt (1100
# parts): as somebody would who collects them over a shift.
GOOD_FROM, GOOD_SPREAD = 1_000_000, 1100
INTERRUPTED = 130  # exit code of a program ended by Ctrl-C, as shells have it
_MARKER = ".edge-demo"
_OURS = ("good", "bundle", "data", "line.toml", "line.log", "truth.jsonl", "contact_sheet.png", "results.json")


@dataclass(frozen=True)
class Demo:
    """What is wanted."""

    parts: int = 300
    rate_hz: float = 10.0
    seed: int = 0
    part_type: str = "tile"
    good: int = 120
    out: Path = Path("demo")
    json_file: Path | None = None

    def conveyor(self) -> Conveyor:
        """The belt that the line sees."""
        return Conveyor(self.seed, self.part_type, HEIGHT_PX, WIDTH_PX, 3, DEFECT_RATE, noise=NOISE)


def run_demo(demo: Demo) -> int:
    """Runs it all; returns the exit code. Raises `InspectError` where something cannot be done."""
    console = Console()
    began = time.monotonic()
    try:
        out = _prepare(demo)
        conveyor = demo.conveyor()
        _draw_good(demo, conveyor, out / "good", console)
        _calibrate(demo, out)
        with _line(demo, out) as settings:
            complete = _run(demo, settings, out, console)
            if not complete and not (out / "truth.jsonl").exists():
                raise KeyboardInterrupt
            results = compare(settings.paths.ledger, out / "truth.jsonl", settings.paths.archive)
    except KeyboardInterrupt:
        console.print("stopped")
        return INTERRUPTED
    if not complete:
        console.print(f"stopped after {len(results.parts)} of {demo.parts} parts")
    sheet = out / "contact_sheet.png"
    contact_sheet(sheet, results, conveyor, f"edge-inspect: {len(results.parts)} simulated parts ({demo.part_type})")
    found = {**results.to_dict(), "contact_sheet": str(sheet)}
    for path in filter(None, (out / "results.json", demo.json_file)):
        _write_json(path, found)
    _show(console, results, found, time.monotonic() - began)
    return int(ExitCode.OK) if complete else INTERRUPTED


def _prepare(demo: Demo) -> Path:
    """The folder, emptied of an earlier demo. Raises `DemoError` where it holds something else."""
    if demo.part_type not in (*PART_TYPES, "mixed"):
        raise DemoError(f"--part-type {demo.part_type}: one of {', '.join(PART_TYPES)}, mixed")
    out = demo.out.absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not (out / _MARKER).exists():
            raise DemoError(f"{out}: this folder holds something else; name another one with --out")
        (out / _MARKER).touch()
        for name in _OURS:
            path = out / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise DemoError(f"{error.filename or out}: cannot be written: {error.strerror}; use another --out") from error
    return out


def _draw_good(demo: Demo, conveyor: Conveyor, folder: Path, console: Console) -> None:
    console.print(f"drawing {demo.good} good parts ({demo.part_type}) to {folder}")
    folder.mkdir()
    step = max(1, GOOD_SPREAD // demo.good)
    for number in range(demo.good):
        image = conveyor.part(GOOD_FROM + number * step, clean=True).image
        if not cv2.imwrite(str(folder / f"good-{number:03}.png"), image):
            raise DemoError(f"{folder}: the good parts cannot be written; is the disk full?")


def _calibrate(demo: Demo, out: Path) -> None:
    """Fits the bundle. Its progress goes to this terminal."""
    command = [sys.executable, "-m", "calibration.cli", "fit", "--images", str(out / "good"), "--method", METHOD]
    command += ["--size", str(ENCODER_PX), "--seed", str(demo.seed), "--false-reject-rate", str(FALSE_REJECT_RATE)]
    command += ["--threads", "1"]  # on a box with other work, threads that wait for each other took ten times as long
    command += ["--out", str(out / "bundle")]
    # In a session of its own, so that Ctrl-C reaches this program alone, which then ends it; tethered all the same.
    tethered = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *command]
    with subprocess.Popen(tethered, start_new_session=True) as process:
        try:
            code = process.wait()
        except BaseException:
            process.kill()  # a bundle appears whole or not at all
            raise
    if code != 0:
        raise DemoError(f"calibration failed (exit code {code}): `{' '.join(command)}`")


@contextmanager
def _line(demo: Demo, out: Path) -> Iterator[Settings]:
    """Writes line.toml. Sockets lie in a short temporary folder, so that --out may be anywhere."""
    runtime = Path(tempfile.mkdtemp(prefix="edge-demo-"))
    file = out / "line.toml"
    try:
        file.write_text(
            f"""\
[line]
name = "{runtime.name.lower().replace("_", "-").strip("-")}"
data_dir = "data"
runtime_dir = {_toml(runtime)}

[[cameras]]
name = "belt"
[cameras.source]
type = "simulated"
part_type = "{demo.part_type}"
rate_hz = {float(demo.rate_hz)}
parts = {demo.parts}
seed = {demo.seed}
height_px = {HEIGHT_PX}
width_px = {WIDTH_PX}
pixel_format = "BGR8"
defect_rate = {DEFECT_RATE}
noise = {NOISE}
truth_file = "truth.jsonl"

[inference]
bundle = "bundle"

[alert]
deadline_ms = {DEADLINE_MS}

[archive]
min_free_gb = 0.1
""",
            encoding="utf-8",
        )
        yield load_settings(file)
    finally:
        shutil.rmtree(runtime, ignore_errors=True)


def _run(demo: Demo, settings: Settings, out: Path, console: Console) -> bool:
    """Runs the line to its end with a line of progress; says whether every part passed the camera.

    Raises `DemoError` where the line failed.
    """
    console.print(f"running the line: `edge status {settings.file} --watch` in another terminal shows more")
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
    )
    log = out / "line.log"
    results = Results(settings)
    # No refresh thread: the supervisor starts processes from this one.
    with log.open("wb", buffering=0) as file, Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("starting", total=demo.parts, counts="")
        due = 0.0

        def turn(children: Mapping[str, Child]) -> None:
            nonlocal due
            if time.monotonic() < due:
                return
            due = time.monotonic() + 0.25
            summary = results.summary()
            starting = [child.name for child in children.values() if not child.was_ready]
            text = f"starting {starting[0]}" if starting else "judging"
            counts = ", ".join(f"{count} {decision.value}" for decision, count in summary.counts.items())
            progress.update(task, description=text, completed=summary.parts, counts=counts, refresh=True)

        try:
            outcome, _ = run_line(settings, turn=turn, output=Passthrough(file.fileno()))
        finally:
            results.close()
    if outcome.code is not ExitCode.OK:
        raise DemoError(f"the line stopped: {outcome.reason}; its log is {log}")
    return outcome.drained


def _show(console: Console, results: Comparison, found: Mapping[str, object], seconds: float) -> None:
    table = Table(title="demo", show_header=False, title_justify="left")
    latency = results.latency_ms()
    for name, value in (
        ("parts", len(results.parts)),
        *((decision.value, results.count(decision)) for decision in Decision),
        ("parts with a defect", results.defective),
        ("missed defects", len(results.missed)),
        ("false rejects", len(results.false_rejects)),
        *((f"camera to verdict, {name}", f"{value:.1f} ms") for name, value in latency.items()),
        ("contact sheet", found["contact_sheet"]),
        ("archive", found["archive"]),
        ("took", f"{seconds:.0f} s"),
    ):
        table.add_row(name, str(value))
    console.print(table)


def _write_json(path: Path, found: Mapping[str, object]) -> None:
    try:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DemoError(f"{path}: cannot be written: {error.strerror}") from error


def _toml(path: Path) -> str:
    return json.dumps(str(path))

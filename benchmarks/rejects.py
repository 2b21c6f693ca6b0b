"""A whole line from camera to ejector: does every reject land on the part it was for, and how late?

    python benchmarks/rejects.py --minutes 5                      # a simulated camera
    python benchmarks/rejects.py --camera gige --minutes 5        # Aravis' own GigE Vision camera
    python benchmarks/rejects.py --minutes 1 --mishaps            # the PLC is frozen, then killed, meanwhile

Real processes (`edge run`), and as the PLC libmodbus' server, a program without any of the project's code: it writes
down when its registers change, by its own clock. Afterwards every part in the ring's journal (when it was triggered)
and in the ledger (its verdict) is compared with every pulse of the server:

    lateness  of a pulse: from when its part is at the ejector (trigger plus delay) to the change of the server's
              register
    lost      parts to be ejected that no pulse met        stray   pulses that met no part to be ejected
    hit       parts to be left alone that a pulse touched  stale   strays while the PLC was frozen or dead, or just
                                                                   after: what had waited in its sockets

The limit of the bundle made here is the median score: about half of the parts are rejected, in any order.
Results as JSON with --json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from reject_pulses import MS, Outcome, Part, Pulse, compare

from edge.alert.history import History, Query
from edge.capture.simulation import Conveyor
from edge.errors import RingError
from edge.frames import RingReader, ring_path
from edge.messages import Decision, FrameRef, decode
from edge.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent
SERVER = ROOT / "tests" / "edge" / "plc" / "libmodbus_server.py"
PROGRAM = ROOT / "docs" / "plc" / "edge_inspect.st"
FAKE_CAMERA = "arv-fake-gv-camera-0.8"

SIDE = 96  # pixels of a frame and of the network's input
SEED = 1
DELAY_MS, GAP_MS, DEADLINE_MS = 400.0, 5.0, 300.0
FROZEN_S, DEAD_S = 2.0, 2.0


def pictures(camera: str, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """What the camera shows: uint8 [N, SIDE, SIDE, 1]."""
    if camera == "simulated":
        belt = Conveyor(SEED, "tile", SIDE, SIDE, 1, 0.3)
        return np.stack([belt.part(number).image for number in numbers])
    y, x = np.mgrid[:SIDE, :SIDE]  # Aravis' pattern at an exposure of 10 ms
    return np.stack([((x + y + number) % 255).astype(np.uint8)[:, :, None] for number in numbers])


def make_bundle(folder: Path, camera: str) -> Path:
    """A memory bank of a few pictures, with the median of others as its limit."""
    import torch

    from pipelines import engines
    from pipelines.bundle import Limit, RegionLimit, expected, write_bundle
    from pipelines.encoders import compact
    from pipelines.heads import MemoryBank
    from pipelines.pipeline import Pipeline, PipelineConfig

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    encoder = compact()
    config = {
        "encoder": encoder.config.to_dict(),
        "head": {"name": "memory_bank", "size": 64, "blocks": (9,)},
        "input_size": (SIDE, SIDE),
        "pixel_format": "Mono8",
        "frame": (SIDE, SIDE),
        "score": {"k": 3},
    }
    pipeline = Pipeline.from_config(PipelineConfig.model_validate(config), encoder=encoder)
    with torch.inference_mode():
        images = pipeline.preprocess(torch.from_numpy(pictures(camera, range(1000, 1012))))
        head = cast(MemoryBank, pipeline.head)
        head.fit(head.features(pipeline.encoder, images), seed=SEED)
    others = list(pictures(camera, range(2000, 2510, 10)))
    scores = expected(pipeline, others).scores[:, 0]
    region = RegionLimit(name="frame", limit=float(np.median(scores)), floor=float(scores.min()) - 1.0)
    limit = Limit(regions=(region,), method="median", false_reject_rate=0.5, n_normals=51, guarantee="none", seed=SEED)
    bundle = write_bundle(folder / "bundle", pipeline, limit, others[:4], {"command": "benchmarks/rejects.py"})
    engines.build(bundle, "openvino")
    return folder / "bundle"


def write_settings(folder: Path, args: argparse.Namespace, bundle: Path, port: int) -> Settings:
    """The line's settings file."""
    source = f'type = "simulated"\nseed = {SEED}\ndefect_rate = 0.3\ndistinct = 200'
    if args.camera == "gige":
        source = f'type = "gige"\naddress = "{args.address}"\npixel_format = "Mono8"\nexposure_us = 10000'
    file = folder / "line.toml"
    file.write_text(
        f"""
[line]
name = "rejects"
data_dir = "{folder}/data"
runtime_dir = "{folder}/run"
[[cameras]]
name = "top"
[cameras.source]
{source}
rate_hz = {args.rate}
height_px = {SIDE}
width_px = {SIDE}
[inference]
bundle = "{bundle}"
threads = 1
[alert]
deadline_ms = {DEADLINE_MS}
[archive]
enabled = false
[plc]
mode = "{args.mode}"
window_ms = 2000
silence_ms = 1500
heartbeat_ms = 20
reconnect_max_ms = 200
adapter = {{ type = "modbus", host = "127.0.0.1", port = {port}, timeout_ms = 50 }}
[plc.eject]
mode = "direct"
delay_ms = {DELAY_MS}
pulse_ms = {args.pulse_ms}
min_gap_ms = {GAP_MS}
late_ms = {args.late_ms}
"""
    )
    return load_settings(file)


class Server:
    """libmodbus' server, and what it wrote down."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._starts = folder, 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Starts it, again at the same port."""
        log = self._folder / f"server{self._starts}.jsonl"
        self._starts += 1
        words = [sys.executable, str(SERVER), "--port", str(self.port), "--program", str(PROGRAM), "--log", str(log)]
        # The program of the PLC is not what is measured here: one scan a second leaves the time to the registers.
        self._process = subprocess.Popen(
            [*words, "--scan-ms", "1000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "listening\n":
            raise SystemExit("libmodbus' server did not start: is libmodbus5 installed?")

    def send(self, number: int) -> None:
        """A signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.communicate()

    def pulses(self, at_rest: bool) -> list[Pulse]:
        """When the ejector's bit was other than at rest, of all starts. One cut short by a start or the end is not."""
        found: list[Pulse] = []
        for number in range(self._starts):
            since = None
            for line in (self._folder / f"server{number}.jsonl").read_text().splitlines():
                event = json.loads(line)
                if event.get("register") != 0:
                    continue
                driven = bool(event["value"] & 1) and bool(event["value"] >> 1 & 1) != at_rest
                if driven and since is None:
                    since = event["t"]
                elif not driven and since is not None:
                    found.append(Pulse(since, event["t"]))
                    since = None
        return found


class Line:
    """`edge run`, watched through its ring's journal."""

    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        self._settings = settings
        self._next = 0
        self._reader: RingReader | None = None
        self.frames: list[FrameRef] = []
        log = (settings.file.parent / "line.log").open("w")
        words = [sys.executable, "-m", "edge.cli", "run", str(settings.file)]
        self.process = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=log, stderr=log)

    def look(self) -> int:
        """Reads what was announced since the last look; how many parts there are by now."""
        if self.process.poll() is not None:
            raise SystemExit(f"the line ended by itself; see {self._settings.file.parent / 'line.log'}")
        try:
            if self._reader is None:
                self._reader = RingReader.open(ring_path("rejects", "top", Path(os.environ["EDGE_SHM_DIR"])))
            entries, self._next = self._reader.journal_after(self._next)
        except RingError:
            return 0
        self.frames += [frame for frame in map(decode, map(bytes, entries)) if isinstance(frame, FrameRef)]
        return len(self.frames)

    def wait(self, wanted: Callable[[], bool], seconds: float, what: str) -> None:
        """Looks until that is so."""
        end = time.monotonic() + seconds
        while not wanted():
            if time.monotonic() > end:
                raise SystemExit(f"{what}: not within {seconds:g} s; see {self._settings.file.parent / 'line.log'}")
            time.sleep(0.2)

    def run(self, seconds: float) -> None:
        """Lets it run for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(min(0.5, max(0.0, end - time.monotonic())))

    def stop(self) -> None:
        """Stops it in order."""
        self.look()
        if self._reader is not None:
            self._reader.close()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def parts(self) -> list[Part]:
        """Every part that was announced and has its verdict, by time."""
        with History(self._settings.paths.ledger) as history:
            verdicts = {(e.verdict.id.epoch, e.verdict.id.sequence): e.verdict for e in history.added(Query())}
        found = []
        for frame in self.frames:
            verdict = verdicts.get((frame.id.epoch, frame.id.sequence))
            if verdict is not None:
                due = frame.trigger_ns + round(DELAY_MS * MS)
                found.append(Part(frame.id.epoch, frame.id.sequence, due, verdict.decision))
        return sorted(found, key=lambda part: part.due_ns)


@contextlib.contextmanager
def fake_camera(args: argparse.Namespace) -> Iterator[None]:
    """Aravis' own camera, where it is wanted."""
    if args.camera != "gige":
        yield
        return
    if shutil.which(FAKE_CAMERA) is None:
        raise SystemExit(f"{FAKE_CAMERA} is not installed (Debian package aravis-tools)")
    process = subprocess.Popen(
        [FAKE_CAMERA, "-i", args.address, "-s", "BENCH"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def mishaps(line: Line, server: Server, seconds: float) -> list[tuple[int, int]]:
    """A third of the time, frozen; a third, dead for a while; a third. When it was away, by the common clock."""
    away = []
    line.run(seconds / 3)
    begin = time.monotonic_ns()
    server.send(signal.SIGSTOP)
    line.run(FROZEN_S)
    server.send(signal.SIGCONT)
    away.append((begin, time.monotonic_ns()))
    line.run(seconds / 3)
    begin = time.monotonic_ns()
    server.kill()
    line.run(DEAD_S)
    server.start()
    away.append((begin, time.monotonic_ns()))
    line.run(seconds / 3)
    return away


def measure(args: argparse.Namespace, folder: Path) -> Outcome:
    """One run."""
    shm = folder / "shm"
    shm.mkdir()
    os.environ |= {"EDGE_SHM_DIR": str(shm), "OMP_NUM_THREADS": "1"}
    bundle = args.bundle.absolute() if args.bundle else make_bundle(folder, args.camera)
    server = Server(folder)
    settings = write_settings(folder, args, bundle, server.port)
    try:
        with fake_camera(args):
            line = Line(settings, dict(os.environ))
            try:
                line.wait(lambda: line.look() > max(5, 2 * args.rate), 120, "the line's first parts")
                first = line.look()
                if args.mishaps:
                    away = mishaps(line, server, args.minutes * 60)
                else:
                    away = []
                    line.run(args.minutes * 60)
                line.run(DELAY_MS / 1000 + 0.5)
                last = [frame for frame in line.frames if frame.trigger_ns < time.monotonic_ns() - 1000 * MS]
            finally:
                line.stop()
        # The first parts are not counted: processes connect one after the other.
        begin_ns, end_ns = line.frames[first].trigger_ns, last[-1].trigger_ns
    finally:
        server.send(signal.SIGCONT)
        server.kill()
    at_rest = args.mode == "pass_on_good"
    wanted = frozenset({Decision.PASS} if at_rest else {Decision.REJECT, Decision.UNJUDGED})
    delay = round(DELAY_MS * MS)
    every = line.parts()
    parts = [part for part in every if begin_ns <= part.due_ns - delay <= end_ns]
    due = [part.due_ns for part in parts]
    pulses = [pulse for pulse in server.pulses(at_rest) if due[0] - 25 * MS < pulse.on_ns < due[-1] + 25 * MS]
    return compare(parts, pulses, away, wanted, args.pulse_ms, near_ms=500 / args.rate - 1)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camera", choices=("simulated", "gige"), default="simulated")
    parser.add_argument("--bundle", type=Path, help="a bundle for its frames; one is made if absent")
    parser.add_argument("--address", default="127.0.0.1", help="of the GigE Vision camera")
    parser.add_argument("--mode", choices=("reject_on_fail", "pass_on_good"), default="reject_on_fail")
    parser.add_argument("--rate", type=float, default=20.0, help="parts per second")
    parser.add_argument("--pulse-ms", type=float, default=20.0, help="length of a pulse")
    parser.add_argument("--late-ms", type=float, default=10.0, help="by how much a pulse may begin late")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--mishaps", action="store_true", help="freeze the server, then kill it, meanwhile")
    parser.add_argument("--keep", type=Path, help="keep everything in this folder")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ei-"))  # short: sockets' paths are
    try:
        outcome = measure(args, folder)
    finally:
        if args.keep is not None:
            shutil.copytree(folder, args.keep, ignore=shutil.ignore_patterns("run", "shm"), dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    result: dict[str, Any] = {
        "camera": args.camera,
        "mode": args.mode,
        "rate_hz": args.rate,
        "minutes": args.minutes,
        "mishaps": args.mishaps,
        **asdict(outcome),
    }
    for name, value in result.items():
        print(f"{name:12} {value:.3f}" if isinstance(value, float) else f"{name:12} {value}")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

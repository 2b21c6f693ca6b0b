"""GigE Vision through the line: is a frame lost or wrong, and how long does it travel from camera to score?

    python benchmarks/gige.py                                 # 60 s of each of four runs
    python benchmarks/gige.py --seconds 10 --socket packet    # a short try
    python benchmarks/gige.py --json result.json

The camera is Aravis' own (`arv-fake-gv-camera-0.8`, package aravis-tools), a program that is not ours, on loopback.
Capture is the line's own process. Inference is one that reads every pixel of every frame in the ring and compares it
with what the camera draws for that frame number, (x + y + number) % 255, then checks the slot's generation again and
sends a score. A third process takes announcements and scores as alert does.

A frame is lost if its number was announced without pixels, or the numbers have a gap. Times begin at the camera's own
timestamp (the leader's, taken before the camera draws and sends the frame: at loopback speed, 2048 x 2048 takes it
several ms) and end when inference has the announcement, and when the score is in its queue.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transport import Stop, say, spread

from edge.errors import RingError
from edge.messages import FrameRef, FrameStatus, RegionScore, Score, ScoreStatus, decode, encode, now_ns
from edge.rings import Rings
from edge.settings import Settings, load_settings
from edge.transport import Endpoints, Inbox, Outbox, ensure_runtime

CAMERA = "arv-fake-gv-camera-0.8"
ADDRESS = "127.0.0.1"
RUNS = ((2048, 25.0), (512, 100.0))  # side in pixels, frames per second
LINE = """
[line]
name = "gige-{pid}"
data_dir = "{folder}"
runtime_dir = "{folder}/run"
[inference]
bundle = "none"
[[cameras]]
name = "top"
[cameras.source]
type = "gige"
address = "{address}"
width_px = {side}
height_px = {side}
rate_hz = {rate}
exposure_us = 10000
packet_size_bytes = {packet}
socket = "{socket}"
"""


class Pattern:
    """What the camera draws at an exposure of 10 ms, as views of one row: nothing is computed per frame."""

    def __init__(self, side: int) -> None:
        self._row = (np.arange(2 * side + 255) % 255).astype(np.uint8)
        self._side = side

    def of(self, number: int) -> NDArray[np.uint8]:
        """uint8 [side, side]."""
        start = self._row[number % 255 :]
        return np.lib.stride_tricks.as_strided(start, (self._side, self._side), (1, 1), writeable=False)


def inference(settings: Settings, side: int) -> dict[str, Any]:
    """Checks every frame, scores it, and notes how old it is by the camera's clock."""
    stop, endpoints, pattern = Stop(), Endpoints(settings), Pattern(side)
    arrived, scored, checked, wrong = [], [], [], 0
    rings = Rings(settings.line.name, ["top"])
    patches = np.zeros((20, 20), np.float32).tobytes()
    region = RegionScore(name="all", score=0.5, limit=1.0, floor=0.0, height=20, width=20, patches=patches)
    with Inbox(endpoints.infer_in) as inbox, Outbox(endpoints.alert_in) as outbox:
        say("ready")
        while not stop.now:
            received = inbox.recv(0.2)
            if received is None:
                continue
            at = time.time_ns()
            frame = decode(received[0])
            assert isinstance(frame, FrameRef)
            began = now_ns()
            status = ScoreStatus.OK
            try:
                pixels, ring = rings.view(frame)
                wrong += not np.array_equal(pixels[:, :, 0], pattern.of(frame.camera_frame or 0))
                if not ring.intact(frame.slot, frame.generation):
                    status = ScoreStatus.TORN
            except RingError:
                status = ScoreStatus.TORN
            took = now_ns() - began
            wrong += status is not ScoreStatus.OK
            score = Score(frame=frame, status=status, bundle="none", engine="read", regions=[region], infer_ns=took)
            wrong += not outbox.send(encode(score))
            arrived.append(at - (frame.camera_time_ns or 0))
            scored.append(time.time_ns() - (frame.camera_time_ns or 0))
            checked.append(took)
    return {"arrived_ns": arrived, "scored_ns": scored, "checked_ns": checked, "wrong": wrong}


def alert(settings: Settings) -> dict[str, Any]:
    """Counts announcements by status, scores, and numbers that are missing between them."""
    stop = Stop()
    statuses: Counter[str] = Counter()
    scores = gaps = 0
    last: int | None = None
    times: list[int] = []
    with Inbox(Endpoints(settings).alert_in) as inbox:
        say("ready")
        while not stop.now:
            received = inbox.recv(0.2)
            message = decode(received[0]) if received is not None else None
            if isinstance(message, Score):
                scores += 1
            elif isinstance(message, FrameRef):
                statuses[message.status.value] += 1
                times.append(message.trigger_ns)
                if message.camera_frame is not None:
                    gaps += last is not None and (message.camera_frame - last) % 65_535 != 1
                    last = message.camera_frame
    seconds = (times[-1] - times[0]) / 1e9 if len(times) > 1 else 0.0
    return {"statuses": dict(statuses), "scores": scores, "gaps": gaps, "seconds": seconds}


def run(side: int, rate_hz: float, socket: str, packet: int, seconds: float) -> dict[str, Any]:
    """One camera, one capture process, `seconds` of frames."""
    folder = Path(tempfile.mkdtemp(prefix="edge-benchmark-"))
    text = LINE.format(
        pid=os.getpid(), folder=folder, address=ADDRESS, side=side, rate=rate_hz, packet=packet, socket=socket
    )
    file = folder / "line.toml"
    file.write_text(text, encoding="utf-8")
    ensure_runtime(Endpoints(load_settings(file)).runtime)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EDGE_SHM_DIR": os.environ.get("EDGE_SHM_DIR", "/dev/shm")}
    roles: dict[str, subprocess.Popen[str]] = {}
    camera = subprocess.Popen([CAMERA, "-i", ADDRESS, "-s", "BENCH"], stderr=subprocess.DEVNULL)
    capture = None
    try:
        for role in ("alert", "inference"):
            command = [sys.executable, __file__, "--role", role, "--line", str(file), "--side", str(side)]
            roles[role] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            output = roles[role].stdout
            assert output is not None
            if output.readline().strip() != "ready":
                raise SystemExit(f"the benchmark's {role} failed: see above")
        capture = subprocess.Popen([sys.executable, "-m", "edge.cli", "capture", str(file)], env=environment)
        time.sleep(seconds + 2.0)  # the process takes about 2 s until its first frame
        if capture.poll() is not None:
            raise SystemExit("capture ended: see above")
        capture.terminate()
        capture.wait(20)
        time.sleep(1.0)  # what is under way arrives
        found = {}
        for role, process in roles.items():
            process.terminate()
            found[role] = json.loads(process.communicate(timeout=60)[0].strip().splitlines()[-1])
    finally:
        for process in (camera, capture, *roles.values()):
            if process is not None:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for ring in Path(environment["EDGE_SHM_DIR"]).glob(f"edge-inspect.gige-{os.getpid()}.*"):
            ring.unlink()
    return summary(found, side, rate_hz, socket, packet)


def summary(found: dict[str, Any], side: int, rate_hz: float, socket: str, packet: int) -> dict[str, Any]:
    """The numbers of one run."""
    heard, read = found["alert"], found["inference"]
    frames = sum(heard["statuses"].values())
    good = heard["statuses"].get(FrameStatus.OK.value, 0)
    seconds = heard["seconds"]
    return {
        "side_px": side,
        "rate_hz": rate_hz,
        "socket": socket,
        "packet_size_bytes": packet,
        "frames": frames,
        "seconds": seconds,
        "reached_hz": (frames - 1) / seconds if seconds else 0.0,
        "mb_per_s": frames * side * side / seconds / 1e6 if seconds else 0.0,
        "lost": frames - good + heard["gaps"],
        "statuses": heard["statuses"],
        "checked": len(read["checked_ns"]),
        "wrong": read["wrong"],
        "scores": heard["scores"],
        "ms": {
            "camera to inference": spread(np.array(read["arrived_ns"]) / 1e6),
            "reading and comparing": spread(np.array(read["checked_ns"]) / 1e6),
            "camera to score enqueued": spread(np.array(read["scored_ns"]) / 1e6),
        },
    }


def table(result: dict[str, Any]) -> Table:
    """One run, for people."""
    view = Table(
        title=f"{result['side_px']} x {result['side_px']} Mono8, {result['socket']} socket, packets of "
        f"{result['packet_size_bytes']}: {result['frames']} frames at {result['reached_hz']:.1f} of "
        f"{result['rate_hz']:g}/s ({result['mb_per_s']:.0f} MB/s), "
        f"lost {result['lost']}, wrong {result['wrong']}, checked {result['checked']}",
        title_justify="left",
    )
    view.add_column("ms")
    for column in ("p50", "p99", "p99.9", "max"):
        view.add_column(column, justify="right")
    for name, values in result["ms"].items():
        view.add_row(name, *(f"{values[column]:.2f}" if values else "-" for column in ("p50", "p99", "p99.9", "max")))
    return view


def main() -> None:
    """The command line. Exit code 1 where a frame was lost or wrong."""
    parser = argparse.ArgumentParser(description="GigE Vision frames from Aravis' camera to the score.")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each run")
    parser.add_argument("--socket", choices=("packet", "udp"), help="only this kind; both by default")
    parser.add_argument("--side", type=int, help="only the run with this many pixels each way")
    parser.add_argument("--packet-size", type=int, default=9000, help="bytes; 1500 without jumbo frames")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--role", choices=("alert", "inference"), help=argparse.SUPPRESS)
    parser.add_argument("--line", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        settings = load_settings(options.line)
        found = alert(settings) if options.role == "alert" else inference(settings, options.side)
        say(json.dumps(found))
        return
    if shutil.which(CAMERA) is None:
        raise SystemExit(f"{CAMERA} is needed: sudo apt-get install aravis-tools")
    console = Console(width=110)
    results = []
    for side, rate_hz in RUNS:
        for socket in ("packet", "udp"):
            if options.side in (None, side) and options.socket in (None, socket):
                results.append(run(side, rate_hz, socket, options.packet_size, options.seconds))
                console.print(table(results[-1]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if any(result["lost"] or result["wrong"] or result["checked"] != result["frames"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()

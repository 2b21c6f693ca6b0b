"""How long do frames travel, and how many fit through: capture -> inference -> alert, with an engine that only reads.

    python benchmarks/transport.py                        # 60 s at 30 frames/s, then after idle, then the largest rate
    python benchmarks/transport.py --seconds 5 --quick    # a short try
    python benchmarks/transport.py --json result.json

Three processes, as on a line, over the line's own ring, queues and messages. Capture copies a frame from memory into
a slot (what a camera library does by itself), commits it, writes the journal, and announces it to alert and to
inference. Inference reads every byte of the slot (its XOR must be that of the frame's number: a torn or wrong frame
cannot pass), checks the generation before and after, and sends a score. Alert notes when it has decoded the score.

`added` is the time from the frame's being complete in its slot until alert has decoded the score, without the engine's
read itself: journal, messages, queues and wake-ups. `added with copy` begins before the copy into the slot. A rate is
held if every part was announced and scored, no frame was torn, no queue dropped anything, and capture kept
its pace.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge.errors import RingMissing, TornFrame
from edge.frames import RingReader, RingWriter, remove_ring, ring_path, slots_needed
from edge.line import STREAMING_COPIES
from edge.messages import (
    FrameId,
    FrameRef,
    FrameStatus,
    RegionScore,
    Score,
    ScoreStatus,
    decode,
    encode,
    host_id,
    now_ns,
)
from edge.transport import ANNOUNCEMENTS, FRAMES, Endpoint, Inbox, Outbox
from pipelines.images import PixelFormat

LINE, CAMERA = "benchmark", f"transport-{os.getpid()}"
DISTINCT = 8  # frames that capture copies from, so that the copies come from memory as a camera's would
HEIGHT, WIDTH = 2048, 2448  # 5 MP Mono8


@dataclass(frozen=True)
class Job:
    """One run: how many frames at which rate."""

    runtime: str
    camera: str
    height: int
    width: int
    frames: int
    rate_hz: float
    deadline_s: float

    @property
    def size(self) -> int:
        """Bytes of a frame."""
        return self.height * self.width

    @property
    def slots(self) -> int:
        """Slots of the ring, as a line with this rate and deadline has."""
        return max(slots_needed(self.rate_hz, self.deadline_s), 8)

    def endpoint(self, name: str) -> Endpoint:
        """The address of an inbox."""
        return Endpoint(f"ipc://{self.runtime}/{name}", FRAMES if name == "infer.in" else ANNOUNCEMENTS)


class Stop:
    """Set by SIGTERM."""

    def __init__(self) -> None:
        self.now = False
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, *_: object) -> None:
        self.now = True


def words(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The frame as 8-byte words; what is left over at the end is not looked at."""
    flat = pixels.reshape(-1)
    return flat[: flat.size // 8 * 8].view(np.uint64)


def checksum(pixels: NDArray[np.uint8]) -> int:
    """Reads every byte, in vector instructions: about as fast as memory delivers."""
    return int(np.bitwise_xor.reduce(words(pixels)))


def source_frames(job: Job) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Different frames, and the XOR of each without its first word, which will be the frame's number."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, job.size, np.uint8) for _ in range(DISTINCT)]
    for image in images:
        words(image)[0] = 0
    return images, [checksum(image) for image in images]


# --- the three processes ---------------------------------------------------------------------------------------------


def capture(job: Job) -> dict[str, Any]:
    """Announces `frames` frames at the rate. Returns the time of each copy, and what was dropped."""
    images, _ = source_frames(job)
    copies: list[int] = []
    late = 0
    host = host_id()
    with (
        RingWriter.create(ring_path(LINE, job.camera), job.slots, job.size) as ring,
        Outbox(job.endpoint("infer.in")) as infer,
        Outbox(job.endpoint("alert.in")) as alert,
    ):
        assert infer.wait_for_peer(20)
        assert alert.wait_for_peer(20)
        say("ready")
        wait_for_start()
        gc.freeze()
        period = 1e9 / job.rate_hz
        first = now_ns()
        for sequence in range(job.frames):
            due = first + int(sequence * period)
            while (left := due - now_ns()) > 0:
                time.sleep(left / 1e9)
            late = max(late, -left)
            trigger = now_ns()
            slot = ring.acquire()
            np.copyto(slot.buffer, images[sequence % DISTINCT])
            words(slot.buffer)[0] = sequence
            copies.append(now_ns() - trigger)
            ref = FrameRef(
                id=FrameId(line=LINE, camera=job.camera, epoch=ring.epoch, sequence=sequence),
                part=sequence,
                trigger_ns=trigger,
                host=host,
                age_ns=now_ns() - trigger,
                deadline_ns=int(job.deadline_s * 1e9),
                status=FrameStatus.OK,
                pixel_format=PixelFormat.MONO8,
                height=job.height,
                width=job.width,
                ring=ring.path.name,
                slot=slot.index,
                generation=ring.commit(slot),
            )
            message = encode(ref)
            ring.journal_append(message)
            infer.send(message)
            alert.send(message)
        seconds = (now_ns() - first) / 1e9
        say("sent")
        wait_for_start()  # the ring stays until everybody has finished
        return {"copy_ns": copies, "dropped": infer.dropped + alert.dropped, "seconds": seconds, "late_ns": late}


def inference(job: Job) -> dict[str, Any]:
    """Reads every frame and scores it. Returns when each reference arrived, and how many frames were torn or wrong."""
    stop = Stop()
    _, sums = source_frames(job)
    arrived: dict[int, int] = {}
    torn = wrong = 0
    reader: RingReader | None = None
    patches = np.zeros((20, 20), np.float32).tobytes()
    with Inbox(job.endpoint("infer.in")) as inbox, Outbox(job.endpoint("alert.in")) as outbox:
        assert outbox.wait_for_peer(20)
        say("ready")
        gc.freeze()
        while not stop.now:
            if reader is None:
                with contextlib.suppress(RingMissing):
                    reader = RingReader.open(ring_path(LINE, job.camera))
            received = inbox.recv(0.1)
            if received is None:
                continue
            at = now_ns()
            ref = decode(received[0])
            assert isinstance(ref, FrameRef)
            assert reader is not None
            arrived[ref.id.sequence] = at
            status, score = ScoreStatus.OK, 0
            began = now_ns()
            try:
                score = checksum(reader.view(ref.slot, ref.generation, ref.shape))
                if not reader.intact(ref.slot, ref.generation):
                    status = ScoreStatus.TORN
            except TornFrame:
                status = ScoreStatus.TORN
            took = now_ns() - began
            torn += status is ScoreStatus.TORN
            wrong += status is ScoreStatus.OK and score != sums[ref.id.sequence % DISTINCT] ^ ref.id.sequence
            region = RegionScore(name="all", score=0.5, limit=1.0, floor=0.0, height=20, width=20, patches=patches)
            outbox.send(
                encode(Score(frame=ref, status=status, bundle="none", engine="read", regions=[region], infer_ns=took))
            )
        return {"arrived": arrived, "torn": torn, "wrong": wrong, "dropped": outbox.dropped}


def alert(job: Job) -> dict[str, Any]:
    """Notes when each announcement and each score was decoded."""
    stop = Stop()
    announced: dict[int, int] = {}
    scored: dict[int, tuple[int, int, int]] = {}
    twice = 0
    with Inbox(job.endpoint("alert.in")) as inbox:
        say("ready")
        gc.freeze()
        while not stop.now:
            received = inbox.recv(0.1)
            if received is None:
                continue
            message = decode(received[0])
            at = now_ns()
            if isinstance(message, FrameRef):
                announced[message.id.sequence] = at - message.trigger_ns
            else:
                assert isinstance(message, Score)
                twice += message.frame.id.sequence in scored
                scored[message.frame.id.sequence] = (at, message.frame.trigger_ns, message.infer_ns)
        return {"announced": len(announced), "scored": scored, "twice": twice}


ROLES = {"capture": capture, "inference": inference, "alert": alert}


def say(text: str) -> None:
    """One line to the parent."""
    print(text, flush=True)


def wait_for_start() -> None:
    """Waits for a line from the parent."""
    sys.stdin.readline()


# --- the run ---------------------------------------------------------------------------------------------------------


class Actor:
    """One of the three processes."""

    def __init__(self, role: str, job: Job) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--role", role, "--job", json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(dict([STREAMING_COPIES]) if role == "capture" else {})},
        )

    def expect(self, text: str) -> None:
        """Waits for a line; ends the benchmark where something else comes."""
        line = self._line()
        if line != text:
            raise SystemExit(f"a process of the benchmark failed (exit code {self.process.wait()}): see above")

    def go(self) -> None:
        """Lets the process go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """What the process noted, at its end."""
        result: dict[str, Any] = json.loads(self._line())
        self.process.wait(30)
        return result

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def run(job: Job) -> dict[str, Any]:
    """Runs the three processes once. Returns times per frame in ms, losses, and the rate that was reached."""
    actors: list[Actor] = []
    try:
        receiver = Actor("alert", job)
        actors.append(receiver)
        receiver.expect("ready")
        engine = Actor("inference", job)
        actors.append(engine)
        engine.expect("ready")
        camera = Actor("capture", job)
        actors.append(camera)
        camera.expect("ready")
        time.sleep(0.3)  # everybody has settled
        camera.go()
        camera.expect("sent")
        time.sleep(1.0)  # what is still under way arrives, or is lost
        for actor in (engine, receiver):
            actor.process.terminate()
        judged, heard = engine.result(), receiver.result()
        camera.go()
        sent = camera.result()
    finally:
        for actor in actors:
            actor.process.kill()
            actor.process.wait()
        remove_ring(ring_path(LINE, job.camera))
    return summarise(job, sent, judged, heard)


def summarise(job: Job, sent: dict[str, Any], judged: dict[str, Any], heard: dict[str, Any]) -> dict[str, Any]:
    """Puts together what the three processes noted, frame by frame."""
    rows = []
    for sequence, (at, trigger, read) in sorted((int(key), value) for key, value in heard["scored"].items()):
        arrived = judged["arrived"][str(sequence)]
        copy = sent["copy_ns"][sequence]
        added = at - trigger - copy - read
        rows.append((added, added + copy, copy, arrived - trigger - copy, read, at - arrived - read))
    times = np.array(rows, float).reshape(-1, 6).T / 1e6
    names = ("added", "added with copy", "copy into slot", "capture to inference", "read", "inference to alert")
    missing = 2 * job.frames - heard["announced"] - len(heard["scored"])
    reached = (job.frames - 1) / sent["seconds"] if job.frames > 1 else 0.0
    lost = missing + judged["torn"] + judged["wrong"] + sent["dropped"] + judged["dropped"] + heard["twice"]
    return {
        "rate_hz": job.rate_hz,
        "reached_hz": reached,
        "mb_per_s": reached * job.size / 1e6,
        "frames": job.frames,
        "slots": job.slots,
        "missing": missing,
        "torn": judged["torn"],
        "wrong": judged["wrong"],
        "dropped": sent["dropped"] + judged["dropped"],
        "capture_late_ms": sent["late_ns"] / 1e6,
        "held": lost == 0 and reached >= 0.99 * job.rate_hz,
        "ms": {name: spread(column) for name, column in zip(names, times, strict=True)},
    }


def spread(values: NDArray[np.float64]) -> dict[str, float]:
    """Percentiles of times in ms."""
    if not values.size:
        return {}
    p50, p99, p999 = (float(value) for value in np.percentile(values, (50, 99, 99.9)))
    return {"p50": p50, "p99": p99, "p99.9": p999, "max": float(values.max())}


def largest_rate(make: Any, seconds: float, start_hz: float, console: Console) -> dict[str, Any]:
    """Doubles the rate until frames are lost, then halves the interval five times. Returns the best run that held."""
    best: dict[str, Any] = {}
    low, high = 0.0, start_hz
    while True:
        result = run(make(int(high * seconds), high))
        show_rate(result, console)
        if not result["held"]:
            break
        best, low, high = result, high, high * 1.5
    for _ in range(5):
        middle = (low + high) / 2
        result = run(make(int(middle * seconds), middle))
        show_rate(result, console)
        if result["held"]:
            best, low = result, middle
        else:
            high = middle
    return best


def show_rate(result: dict[str, Any], console: Console) -> None:
    """One line about a run of the search."""
    verdict = "held" if result["held"] else "not held"
    console.print(
        f"  {result['rate_hz']:7.1f} frames/s = {result['mb_per_s']:6.0f} MB/s: {verdict} "
        f"(reached {result['reached_hz']:.1f}, missing {result['missing']}, torn {result['torn']}, "
        f"dropped {result['dropped']}, added p99 {result['ms']['added'].get('p99', 0):.2f} ms)",
        highlight=False,
    )


def table(title: str, result: dict[str, Any]) -> Table:
    """Percentiles of one run."""
    loss = f"missing {result['missing']}, torn {result['torn']}, wrong {result['wrong']}, dropped {result['dropped']}"
    view = Table(title=f"{title}: {result['frames']} frames, {loss}", title_justify="left")
    view.add_column("ms")
    for column in ("p50", "p99", "p99.9", "max"):
        view.add_column(column, justify="right")
    for name, values in result["ms"].items():
        view.add_row(name, *(f"{values[column]:.3f}" if values else "-" for column in ("p50", "p99", "p99.9", "max")))
    return view


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="How long frames travel from camera to alert, and how many fit.")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the run at the fixed rate")
    parser.add_argument("--rate", type=float, default=30.0, help="frames per second of that run")
    parser.add_argument("--height", type=int, default=HEIGHT)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--deadline-ms", type=float, default=500.0, help="sets the number of slots")
    parser.add_argument("--idle-frames", type=int, default=30, help="frames after half a second of idleness each")
    parser.add_argument("--search-seconds", type=float, default=6.0, help="length of each run of the search")
    parser.add_argument("--quick", action="store_true", help="no search for the largest rate, few idle frames")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        result = ROLES[options.role](Job(**json.loads(options.job)))
        say(json.dumps(result))
        return
    runtime = tempfile.mkdtemp(prefix="edge-benchmark-")

    def job(frames: int, rate_hz: float) -> Job:
        deadline_s = options.deadline_ms / 1000
        return Job(runtime, CAMERA, options.height, options.width, max(frames, 2), rate_hz, deadline_s)

    console = Console(width=100)
    results: dict[str, Any] = {}
    try:
        results["warm"] = run(job(int(options.seconds * options.rate), options.rate))
        console.print(table(f"warm, {options.rate:g} frames/s", results["warm"]))
        results["after idle"] = run(job(5 if options.quick else options.idle_frames, 2.0))
        console.print(table("after idle, 2 frames/s", results["after idle"]))
        if not options.quick:
            console.print("largest rate without loss:")
            results["largest"] = largest_rate(job, options.search_seconds, 4 * options.rate, console)
            if results["largest"]:
                console.print(table("at the largest rate", results["largest"]))
                console.print(f"largest rate without loss: {results['largest']['mb_per_s']:.0f} MB/s", highlight=False)
    finally:
        shutil.rmtree(runtime, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

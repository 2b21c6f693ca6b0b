"""`edge infer` as the line runs it: a program of its own, with a real bundle, engine, sockets and ring."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.frames import RingWriter, ring_path
from edge.messages import FrameRef, Health, Score, ScoreStatus, decode, encode, now_ns
from edge.settings import load_settings
from edge.transport import Endpoints, Inbox, Listener, Outbox

PROGRAM = """
import sys
from pathlib import Path
from edge.inference.process import InferenceProcess
from edge.process import run
from edge.settings import load_settings
settings = load_settings(Path(sys.argv[1]))
sys.exit(run(InferenceProcess(settings), settings))
"""
SETTINGS = '[inference]\nengines = ["torch"]\nthreads = 1\nbatch_max = 4\n'


class Rig:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.endpoints = Endpoints(load_settings(file))
        self.endpoints.runtime.mkdir(exist_ok=True)
        self.inbox = Inbox(self.endpoints.alert_in)
        self.outbox = Outbox(self.endpoints.infer_in)
        self.listener = Listener([self.endpoints.publisher("infer")])
        self.ring = RingWriter.create(ring_path("press", "top"), slots=32, slot_bytes=64 * 80)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(self.endpoints.runtime / "notify"))
        self.notify.settimeout(60)
        self.process: subprocess.Popen[str] | None = None
        self.sequence = 0

    def start(self) -> None:
        environment = os.environ | {"NOTIFY_SOCKET": str(self.endpoints.runtime / "notify"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PROGRAM, str(self.file)]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        while b"READY=1" not in self.notify.recv(4096):
            pass
        assert self.outbox.wait_for_peer(10)

    def send(self, make_frame: Any, pixels: np.ndarray) -> FrameRef:
        slot = self.ring.acquire()
        slot.buffer[: pixels.size] = pixels.reshape(-1)
        generation = self.ring.commit(slot)
        frame: FrameRef = make_frame(
            self.sequence, slot=slot.index, generation=generation, trigger_ns=now_ns(), deadline_ns=20_000_000_000
        )
        self.sequence += 1
        assert self.outbox.send(encode(frame))
        return frame

    def scores(self, count: int) -> list[Score]:
        found: list[Score] = []
        while len(found) < count:
            received = self.inbox.recv(20.0)
            assert received is not None, f"{len(found)} of {count} frames were answered"
            message = decode(received[0])
            assert isinstance(message, Score)
            found.append(message)
        return found

    def await_health(self, good: Callable[[Health], bool]) -> Health:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            data = self.listener.recv(1.0)
            if data is not None:
                message = decode(data)
                assert isinstance(message, Health)
                if good(message):
                    return message
        raise AssertionError("health never became so")

    def end(self) -> tuple[int, str]:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        for thing in (self.inbox, self.outbox, self.listener, self.notify):
            thing.close()
        self.ring.close(unlink=True)


@pytest.fixture
def rig(settings_file: Any, shm_dir: Path) -> Iterator[Rig]:
    made = Rig(settings_file(SETTINGS, source='type = "folder"\npath = "images"'))
    yield made
    made.close()


def test_scores_equal_the_bundles_and_bundles_swap_without_losing_a_frame(
    rig: Rig, tmp_path: Path, make_frame: Any, make_bundle: Any
) -> None:
    """A damaged new bundle is refused, a sound one takes over; frames keep coming, and each is answered once."""
    first = make_bundle(tmp_path / "bundle")
    reference = first.reference()
    rig.start()
    for pixels in reference.frames:
        rig.send(make_frame, pixels)
    scores = sorted(rig.scores(4), key=lambda score: score.frame.id.sequence)
    assert [score.regions[0].score for score in scores] == pytest.approx(list(reference.scores[:, 0]), rel=1e-4)
    assert {(score.status, score.bundle, score.engine) for score in scores} == {(ScoreStatus.OK, first.id, "torch")}
    assert rig.process

    second = make_bundle(tmp_path / "second", seed=1)
    expected = second.reference().scores[0, 0]
    (second.path / "weights.safetensors").chmod(0o600)
    sound = (second.path / "weights.safetensors").read_bytes()
    (second.path / "weights.safetensors").write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    (tmp_path / "bundle").rename(tmp_path / "old")
    second.path.rename(tmp_path / "bundle")
    rig.process.send_signal(signal.SIGHUP)
    told = rig.await_health(lambda h: h.counters.get("reloads_refused") == 1)
    assert "weights.safetensors: damaged" in told.last_fault
    rig.send(make_frame, reference.frames[0])
    assert rig.scores(1)[0].bundle == first.id

    (tmp_path / "bundle" / "weights.safetensors").write_bytes(sound)
    rig.process.send_signal(signal.SIGHUP)
    answered: list[Score] = []
    until = time.monotonic() + 30
    while len({score.bundle for score in answered}) < 2 and time.monotonic() < until:
        rig.send(make_frame, reference.frames[0])
        answered += rig.scores(1)
    assert {score.status for score in answered} == {ScoreStatus.OK}
    assert [score.frame.id.sequence for score in answered] == list(range(5, 5 + len(answered)))
    assert (answered[0].bundle, answered[-1].bundle) == (first.id, second.id)
    assert answered[-1].regions[0].score == pytest.approx(expected, rel=1e-4)
    code, errors = rig.end()
    assert code == 0, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_unusable_bundle_is_one_sentence(rig: Rig, tmp_path: Path, make_bundle: Any, fault: str) -> None:
    if fault == "damaged":
        bundle = make_bundle(tmp_path / "bundle")
        (bundle.path / "manifest.json").chmod(0o600)
        (bundle.path / "manifest.json").write_text("{}")
    result = subprocess.run([sys.executable, "-c", PROGRAM, str(rig.file)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert str(tmp_path / "bundle") in result.stderr
    assert "Traceback" not in result.stderr

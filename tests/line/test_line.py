"""A whole line: real processes, sockets, shared memory and engine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge.alert.history import History, Query
from edge.frames import RingReader, ring_path
from edge.line import role, specs
from edge.messages import Decision, decode
from edge.transport import Endpoints, ProcessLock, ensure_runtime

EDGE = [sys.executable, "-m", "edge.cli"]


def run_edge(line, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*EDGE, *arguments], capture_output=True, text=True, env=line.environment, timeout=timeout, cwd=line.folder
    )


class Running:
    """A program whose log can be waited for."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            with self._more:
                self.lines.append(line)
                self._more.notify_all()
        with self._more:
            self._more.notify_all()

    def wait_for(self, text: str, timeout_s: float = 60.0) -> str:
        end = time.monotonic() + timeout_s
        with self._more:
            while True:
                for line in self.lines:
                    if text in line:
                        return line
                left = end - time.monotonic()
                if left <= 0 or (not self._reader.is_alive() and self.process.poll() is not None):
                    raise AssertionError(f"{text!r} was not said:\n{''.join(self.lines)}")
                self._more.wait(min(left, 0.5))

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        finally:
            self._reader.join(timeout_s)


@contextmanager
def running(line, *arguments: str) -> Iterator[Running]:
    with subprocess.Popen(
        [*EDGE, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=line.environment,
        cwd=line.folder,
    ) as process:
        started = Running(process)
        try:
            yield started
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            started._reader.join()


def entries(line) -> list:
    with History(line.settings.paths.ledger) as history:
        return list(history.added(Query()))


def test_finite_line_judges_every_part_and_ends_with_0(make_line):
    line = make_line(parts=40, rate_hz=20.0, cameras=("top", "side"))
    done = run_edge(line, "run", str(line.file))
    assert done.returncode == 0, done.stderr
    found = entries(line)
    assert sorted((e.verdict.id.camera, e.verdict.id.sequence) for e in found) == sorted(
        (camera, number) for camera in ("side", "top") for number in range(40)
    )
    decisions = {decision: sum(e.verdict.decision is decision for e in found) for decision in Decision}
    assert decisions[Decision.UNJUDGED] == 0, [e.verdict.reason for e in found if e.verdict.reason]
    assert decisions[Decision.PASS] > 0
    assert decisions[Decision.REJECT] > 0
    assert "parts" in done.stdout
    assert "80" in done.stdout
    # Nothing is left behind in shared memory or in the runtime folder but locks.
    assert not list(Path(line.environment["EDGE_SHM_DIR"]).iterdir())
    assert not (line.settings.paths.runtime / "notify.sock").exists()


def test_running_line_shows_its_status_refuses_a_second_one_and_stops_in_order(make_line):
    line = make_line(rate_hz=20.0)
    with running(line, "run", str(line.file)) as first:
        first.wait_for("the line is up")
        second = run_edge(line, "run", str(line.file))
        assert second.returncode == 1
        assert second.stderr.startswith("error: ")
        assert str(first.process.pid) in second.stderr
        assert "Traceback" not in second.stderr
        alone = run_edge(line, "alert", str(line.file))
        assert alone.returncode == 1
        assert "runs this already" in alone.stderr

        status = json.loads(run_edge(line, "status", str(line.file), "--json").stdout)
        assert status["running"]
        assert {name: found["state"] for name, found in status["processes"].items()} == {
            "alert": "running",
            "infer": "running",
            "capture-top": "running",
        }
        assert status["processes"]["capture-top"]["counters"]["frames"] > 0
        check_budgets({name: found["pid"] for name, found in status["processes"].items()})
        for_people = run_edge(line, "status", str(line.file))
        assert for_people.returncode == 0, for_people.stderr
        assert "capture-top" in for_people.stdout

        assert first.end() == 0
    stops = [text for text in first.lines if " stopped " in text and "child=" in text]
    order = [next(word for word in text.split() if word.startswith("child=")) for text in stops]
    assert order == ["child=capture-top", "child=infer", "child=alert"]
    assert all(e.verdict.decision is not None for e in entries(line))
    after = run_edge(line, "status", str(line.file))
    assert after.returncode == 1
    assert "no line press is running here" in after.stderr


@pytest.mark.parametrize("order", [("capture", "infer", "alert"), ("infer", "capture", "alert")])
def test_processes_may_start_in_any_order(make_line, order):
    """Each process alone, as systemd or a person may start them: no part is lost for having come too early."""
    line = make_line(rate_hz=15.0, deadline_ms=500.0)
    with running(line, "alert", str(line.file)) as before:  # the ledger begins: this line has run before
        before.wait_for("ready")
        assert before.end() == 0
    with all_running(line, order) as processes:
        wait_until(lambda: any(e.verdict.decision is not Decision.UNJUDGED for e in entries(line)), processes)
        assert processes["capture"].end() == 0
        announced = announcements()
        wait_until(lambda: len(entries(line)) >= len(announced), processes)
        for name in ("infer", "alert"):
            assert processes[name].end() == 0
    assert sorted((e.verdict.id.epoch, e.verdict.id.sequence) for e in entries(line)) == sorted(announced)


def announcements() -> set[tuple[int, int]]:
    """Epoch and sequence of every part in the ring's journal."""
    with RingReader.open(ring_path("press", "top")) as ring:
        return {(frame.id.epoch, frame.id.sequence) for frame in map(decode, ring.journal())}


@contextmanager
def all_running(line, order):
    from contextlib import ExitStack

    with ExitStack() as stack:
        started = {}
        for name in order:
            started[name] = stack.enter_context(running(line, name, str(line.file)))
            if name != order[-1]:
                started[name].wait_for("ready")
        yield started


def wait_until(condition, processes, timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, {name: p.lines[-3:] for name, p in processes.items()}
        time.sleep(0.05)


def test_line_that_cannot_start_says_why_and_leaves_nothing(make_line):
    line = make_line()
    text = line.file.read_text()
    bundle = line.settings.inference.bundle
    line.file.write_text(text.replace(str(bundle), str(bundle) + "-gone"))
    done = run_edge(line, "run", str(line.file))
    assert done.returncode == 3
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: infer: ")
    assert f"{bundle}-gone" in last
    assert "Traceback" not in done.stderr
    names = [spec.name for spec in specs(line.settings, line.file)]
    ensure_runtime(line.settings.paths.runtime)
    for name in names:  # nobody lives on
        ProcessLock(Endpoints(line.settings).lock(name)).release()


@pytest.mark.parametrize(
    ("command", "text", "names"),
    [
        ("run", "[line]\nname = 'x'\ncolour = 'red'\n", ["colour", "line.toml:3", "cameras"]),
        ("capture", "[line]\nname = 'x'\n", ["cameras"]),
        ("alert", "[line\n", ["line.toml:1"]),
        ("status", "[line\n", ["line.toml:1"]),
    ],
)
def test_unusable_settings_are_an_error_in_words(tmp_path, command, text, names):
    file = tmp_path / "line.toml"
    file.write_text(text)
    done = subprocess.run([*EDGE, command, str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    for name in names:
        assert name in done.stderr


def check_budgets(pids: dict[str, int]) -> None:
    """The table's budgets are for 10 parts/s of 1 MP; this line has more parts of fewer pixels."""
    seconds = 3.0
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    time.sleep(seconds)  # the very thing that is measured
    for name, pid in pids.items():
        row = role(name.split("-")[0])
        used = (cpu_seconds(pid) - before[name]) / seconds
        assert row.cpu_budget == 0 or used < row.cpu_budget, f"{name} uses {used:.2f} cores"
        assert resident_mib(pid) < row.memory_mib, name


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_parts_left_by_a_killed_line_get_their_verdict_at_the_next_start(make_line):
    """Everybody dies at once; the ring's journal remembers."""
    line = make_line(rate_hz=30.0, deadline_ms=2000.0)
    with running(line, "run", str(line.file)) as first:
        first.wait_for("the line is up")
        time.sleep(1.0)  # so that parts are in flight
        first.process.kill()
        first.process.wait()
    settings = line.settings
    wait_until(lambda: not alive(settings), {})
    announced = announcements()
    assert announced
    with running(line, "alert", str(line.file)) as alert:
        alert.wait_for("ready")
        wait_until(lambda: {(e.verdict.id.epoch, e.verdict.id.sequence) for e in entries(line)} >= announced, {})
        assert alert.end() == 0
    keys = [(e.verdict.id.epoch, e.verdict.id.sequence) for e in entries(line)]
    assert sorted(keys) == sorted(announced)


def alive(settings) -> bool:
    from edge.status import lock_holder

    endpoints = Endpoints(settings)
    return any(lock_holder(endpoints.lock(spec.name)) for spec in specs(settings, settings.file))

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from edge import cli_keys, logs, process
from edge.errors import RingError
from edge.messages import Health, decode
from edge.notify import Notifier
from edge.process import EXIT_BUG, EXIT_FAULT, Process
from edge.settings import load_settings
from edge.transport import Endpoints, Listener

SettingsFile = Callable[..., Path]


class Manager:
    """What systemd is for its services: a datagram socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def next(self, timeout_s: float = 10.0) -> str:
        readable, _, _ = select.select([self._socket], [], [], timeout_s)
        return self._socket.recv(4096).decode() if readable else ""

    def until(self, wanted: str, timeout_s: float = 10.0) -> list[str]:
        """Everything that came up to and with the message that is `wanted`."""
        heard: list[str] = []
        while wanted not in heard:
            message = self.next(timeout_s)
            assert message, f"no {wanted}: only {heard}"
            heard.append(message)
        return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(runtime_dir: Path) -> Iterator[Manager]:
    manager = Manager(runtime_dir / "notify")
    yield manager
    manager.close()


@pytest.fixture(autouse=True)
def fresh_logs() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


# --- the service manager ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_messages(runtime_dir: Path, abstract: bool) -> None:
    name = f"@edge-inspect-test-{os.getpid()}" if abstract else str(runtime_dir / "notify")
    manager = Manager(name.replace("@", "\0"))  # type: ignore[arg-type]
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    notifier.status("two\nlines\x00" + "x" * 1000)
    notifier.watchdog()
    notifier.extend(1.5)
    notifier.stopping()
    assert manager.next() == "READY=1"
    status = manager.next()
    assert status.startswith("STATUS=two lines")
    assert "\n" not in status
    assert len(status) < 600
    assert [manager.next() for _ in range(3)] == ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1500000", "STOPPING=1"]
    notifier.close()
    notifier.close()
    manager.close()


@pytest.mark.parametrize("address", ["", "relative", "/no/such/socket", "/" + "x" * 500])
def test_no_manager_is_no_fault(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.watchdog()
    notifier.close()


def test_a_manager_that_does_not_read_never_blocks(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(manager.path)})
    for _ in range(10_000):
        notifier.watchdog()
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_interval(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environment).watchdog_s == seconds


# --- logs ------------------------------------------------------------------------------------------------------------


def test_json_logs() -> None:
    stream = StringIO()
    log = logs.set_up("press", "infer", "json", "info", stream)
    log.debug("too quiet")
    log.warning("camera lost", url="rtsp://user:pa:ss@10.0.0.7/1", nested={"url": "a://b:c@d"}, password="hunter2")
    try:
        secret = "hunter2"
        raise RingError(f"no room {len(secret)}")
    except RingError:
        log.exception("it failed")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["camera lost", "it failed"]
    first, second = lines
    assert (first["level"], first["line"], first["process"]) == ("warning", "press", "infer")
    assert first["url"] == "rtsp://***@10.0.0.7/1"
    assert first["nested"]["url"] == "a://***@d"
    assert first["timestamp"].endswith("Z")
    assert second["exception"][0]["exc_type"] == "RingError"
    assert "hunter2" not in stream.getvalue()


def test_console_logs_are_one_line_each() -> None:
    stream = StringIO()
    log = logs.set_up("press", "infer", "console", "debug", stream)
    log.debug("details", slot=3)
    log.error("no room")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "details" in lines[0]
    assert "slot=3" in lines[0]
    assert "\x1b" not in stream.getvalue()


def test_logs_of_libraries_are_included() -> None:
    stream = StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.set_up("press", "infer", "json", "info", stream)
        logs.set_up("press", "infer", "json", "info", stream)  # twice: not heard twice
        logging.getLogger("some.library").warning("careful: %s", "rtsp://a:b@c")
    finally:
        root.handlers[:], root.level = before
        logging.captureWarnings(False)
    [line] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["event"], line["library"], line["level"]) == ("careful: rtsp://***@c", "some.library", "warning")


# --- a process -------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from pathlib import Path
from edge.errors import RingError
from edge.process import Process, run
from edge.settings import load_settings

mode = sys.argv[2]

def say(text):
    print(text, flush=True)

class Worker(Process):
    def setup(self):
        say("setup")
        if mode == "fault in setup":
            raise RingError("no such ring; start the camera")
        if mode == "slow setup":
            self.progress("loading an engine", more_s=30)
            time.sleep(60)

    def step(self):
        self.counters["turns"] += 1
        self.gauges["queue"] = 0.5
        if mode == "fault in step":
            raise RingError("the ring at rtsp://me:secret@host is gone")
        if mode == "bug":
            raise ZeroDivisionError("oh")
        if mode == "finish" and self.counters["turns"] == 3:
            return False
        if mode == "hang later" and self.counters["reloads"]:
            time.sleep(60)
        if mode == "fault later" and self.counters["reloads"]:
            raise RingError("the ring at rtsp://me:secret@host is gone")
        if mode == "long turn":
            say("turn")
            time.sleep(0.3)
            say("turn ends")
        time.sleep(0.02)

    def reload(self):
        if mode == "bad reload":
            raise RingError("the new bundle is damaged")
        self.counters["reloads"] += 1

    def teardown(self):
        say("teardown")
        if mode == "hang in teardown":
            time.sleep(60)

settings = load_settings(Path(sys.argv[1]))
sys.exit(run(Worker("infer", settings), settings))
"""


@pytest.fixture
def worker(child: Callable[..., Any], settings_file: SettingsFile, manager: Manager) -> Callable[..., Any]:
    path = settings_file('[log]\nformat = "json"')

    def start(mode: str, **environment: str) -> Any:
        return child(PROGRAM, path, mode, NOTIFY_SOCKET=str(manager.path), **environment)

    return start


@pytest.fixture
def listener(settings_file: SettingsFile) -> Iterator[Listener]:
    endpoints = Endpoints(load_settings(settings_file()))
    with Listener([endpoints.publisher("infer")]) as listener:
        yield listener


def health(listener: Listener, timeout_s: float = 10.0) -> Health:
    message = listener.recv(timeout_s)
    assert message is not None, "no health was published"
    decoded = decode(message)
    assert isinstance(decoded, Health)
    return decoded


def events(stderr: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.splitlines()]


def test_a_finite_process_finishes(worker: Callable[..., Any], manager: Manager) -> None:
    running = worker("finish")
    heard = manager.until("STOPPING=1")
    out, err = running.communicate(timeout=20)
    assert running.returncode == 0
    assert heard[0] == "READY=1"
    assert out.split() == ["setup", "teardown"]
    assert [event["event"] for event in events(err)] == ["ready", "finished"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_turn_finish(worker: Callable[..., Any], manager: Manager, number: int) -> None:
    running = worker("long turn")
    assert [running.line(), running.line()] == ["setup", "turn"]
    running.send_signal(number)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 0
    assert out.split("\n") == ["turn ends", "teardown", ""]
    assert events(err)[-1]["event"] == "stopped"
    manager.until("STOPPING=1")


def test_a_second_signal_forces(worker: Callable[..., Any], manager: Manager) -> None:
    running = worker("hang in teardown")
    manager.until("READY=1")
    running.terminate()
    assert [running.line(), running.line()] == ["setup", "teardown"]
    running.terminate()
    _, err = running.communicate(timeout=20)
    assert running.returncode == 128 + signal.SIGTERM
    assert "stopped by force" in err


def test_a_signal_ends_a_slow_set_up(worker: Callable[..., Any], manager: Manager) -> None:
    running = worker("slow setup")
    heard = manager.until("EXTEND_TIMEOUT_USEC=30000000")
    assert heard[0] == "STATUS=loading an engine"
    running.terminate()
    out, _ = running.communicate(timeout=20)
    assert running.returncode == 0
    assert out.split() == ["setup", "teardown"]


@pytest.mark.parametrize("mode", ["fault in setup", "fault in step"])
def test_a_fault_is_one_line_and_exit_1(worker: Callable[..., Any], manager: Manager, mode: str) -> None:
    running = worker(mode)
    out, err = running.communicate(timeout=20)
    assert running.returncode == EXIT_FAULT
    assert out.split() == ["setup", "teardown"]
    last = events(err)[-1]
    assert last["level"] == "error"
    assert "exception" not in last
    assert "Traceback" not in err
    assert "secret" not in err
    text = "no such ring; start the camera" if mode == "fault in setup" else "the ring at rtsp://***@host is gone"
    assert last["event"] == text
    manager.until(f"STATUS={text}")


def test_a_bug_is_logged_with_its_traceback_and_exit_70(worker: Callable[..., Any]) -> None:
    running = worker("bug")
    _, err = running.communicate(timeout=20)
    assert running.returncode == EXIT_BUG
    last = events(err)[-1]
    assert last["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert last["exception"][0]["frames"][-1]["name"] == "step"


def test_a_second_process_of_the_name_is_refused(worker: Callable[..., Any], manager: Manager) -> None:
    first = worker("run")
    manager.until("READY=1")
    second = worker("run")
    out, err = second.communicate(timeout=20)
    assert second.returncode == EXIT_FAULT
    assert out == ""
    assert f"process {first.pid} runs this already" in events(err)[-1]["event"]
    assert first.poll() is None


def test_the_watchdog_is_fed_by_the_work_loop_alone(worker: Callable[..., Any], manager: Manager) -> None:
    running = worker("run", WATCHDOG_USEC="200000")
    heard = manager.until("READY=1")
    for _ in range(5):
        heard += manager.until("WATCHDOG=1", timeout_s=5)
    running.terminate()
    manager.until("STOPPING=1")


def test_a_hanging_turn_silences_watchdog_and_health(
    worker: Callable[..., Any], manager: Manager, listener: Listener
) -> None:
    running = worker("hang later", WATCHDOG_USEC="200000")
    manager.until("READY=1")
    assert health(listener).state == "running"
    running.send_signal(signal.SIGHUP)
    while manager.next(timeout_s=1.5):
        pass  # the last feeds before the turn that hangs
    while listener.recv(0.1) is not None:
        pass
    assert listener.recv(1.5) is None


def test_health_once_a_second(worker: Callable[..., Any], listener: Listener) -> None:
    running = worker("run")
    first, second, third = (health(listener) for _ in range(3))
    assert (first.line, first.process, first.pid, first.state) == ("press", "infer", running.pid, "running")
    assert third.counters["turns"] > second.counters["turns"]
    assert 0.9 < third.uptime_s - second.uptime_s < 3
    assert second.gauges["queue"] == 0.5
    assert second.gauges["memory_mb"] > 5
    assert second.gauges["turn_ms_max"] >= 20
    running.terminate()
    while (last := health(listener)).state == "running":
        pass
    assert last.state == "stopping"


def test_faults_show_in_health(worker: Callable[..., Any], listener: Listener) -> None:
    running = worker("fault later")
    assert health(listener).last_fault == ""
    running.send_signal(signal.SIGHUP)
    while (last := health(listener)).state != "failed":
        pass
    assert last.last_fault == "the ring at rtsp://***@host is gone"


@pytest.mark.parametrize(("mode", "reloads", "fault"), [("run", 1, ""), ("bad reload", 0, "the new bundle is damaged")])
def test_reload_by_sighup(
    worker: Callable[..., Any], listener: Listener, manager: Manager, mode: str, reloads: int, fault: str
) -> None:
    running = worker(mode)
    manager.until("READY=1")
    running.send_signal(signal.SIGHUP)
    while True:
        last = health(listener)
        if last.counters.get("reloads") or last.last_fault:
            break
    assert last.counters.get("reloads", 0) == reloads
    assert fault in last.last_fault
    assert running.poll() is None


def test_signals_are_given_back(settings_file: SettingsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", StringIO())

    class Once(Process):
        def setup(self) -> None:
            self.log.info("set up")

        def step(self) -> bool:
            os.kill(os.getpid(), signal.SIGTERM)
            return True

        def teardown(self) -> None:
            assert self.stopping

    settings = load_settings(settings_file())
    before = signal.getsignal(signal.SIGTERM)
    assert process.run(Once("infer", settings), settings) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_keys_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli_keys.app, ["create", str(tmp_path / "keys")])
    assert result.exit_code == 0
    for name in ("server.key", "client.key"):
        content = json.loads((tmp_path / "keys" / name).read_text())
        assert str(tmp_path / "keys" / name) in result.stdout
        assert content["secret"] not in result.stdout

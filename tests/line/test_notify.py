"""What a real process tells the service manager, over a real notify socket."""

import itertools
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.errors import TransportError
from edge.notify_socket import NotifySocket

EDGE = [sys.executable, "-m", "edge.cli"]


def hear(socket: NotifySocket, until, timeout_s: float = 30.0) -> list:
    """Notices until one satisfies `until`."""
    heard = []
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        select.select([socket], [], [], left)
        for notice in socket.receive():
            heard.append(notice)
            if until(notice):
                return heard
    raise AssertionError(f"not heard in {timeout_s} s; heard {heard}")


@pytest.mark.parametrize("process", ["alert", "infer", "capture"])
def test_process_is_ready_feeds_the_watchdog_and_says_that_it_stops(make_line, short_folder, process):
    line = make_line(rate_hz=10.0)
    socket = NotifySocket(short_folder / "notify")
    environment = {**line.environment, "NOTIFY_SOCKET": str(socket.path), "WATCHDOG_USEC": "800000"}
    with subprocess.Popen(
        [*EDGE, process, str(line.file)], env=environment, stderr=subprocess.DEVNULL, cwd=line.folder
    ) as program:
        try:
            started = hear(socket, lambda notice: notice.fields.get("READY") == "1", 60.0)
            assert {notice.pid for notice in started} == {program.pid}
            assert not any("WATCHDOG" in notice.fields for notice in started)
            times = []
            for _ in range(4):
                hear(socket, lambda notice: notice.fields.get("WATCHDOG") == "1", 5.0)
                times.append(time.monotonic())
            longest = max(after - before for before, after in itertools.pairwise(times))
            assert longest < 0.8, "fed more slowly than the watchdog bites"

            # A stopped work loop is silent, whatever else the process could still do.
            program.send_signal(signal.SIGSTOP)
            socket.receive()
            assert not select.select([socket], [], [], 1.0)[0]
            program.send_signal(signal.SIGCONT)
            hear(socket, lambda notice: notice.fields.get("WATCHDOG") == "1", 5.0)

            program.send_signal(signal.SIGTERM)
            hear(socket, lambda notice: notice.fields.get("STOPPING") == "1", 10.0)
            assert program.wait(30) == 0
        finally:
            program.kill()
            socket.close()


def test_fault_at_start_is_told_as_status(make_line, short_folder):
    line = make_line()
    line.file.write_text(line.file.read_text().replace("[archive]", '[archive]\ndir = "/proc/no"'))
    line.file.write_text(line.file.read_text().replace(str(line.settings.paths.data), "/proc/nowhere"))
    socket = NotifySocket(short_folder / "notify")
    environment = {**line.environment, "NOTIFY_SOCKET": str(socket.path)}
    try:
        done = subprocess.run(
            [*EDGE, "alert", str(line.file)], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        status = [notice.fields["STATUS"] for notice in socket.receive() if "STATUS" in notice.fields]
        assert "/proc/nowhere" in status[-1]
    finally:
        socket.close()


def test_socket_replaces_a_leftover_and_leaves_nothing(short_folder):
    path = short_folder / "notify"
    path.touch()
    socket = NotifySocket(path)
    assert path.stat().st_mode & 0o777 == 0o600
    socket.close()
    assert not path.exists()


def test_socket_that_cannot_be_bound_names_the_setting(short_folder):
    with pytest.raises(TransportError, match=r"line\.runtime_dir"):
        NotifySocket(short_folder / "missing" / "notify")
    with pytest.raises(TransportError, match="longer than 107 bytes"):
        NotifySocket(short_folder / ("x" * 110))


def test_garbage_on_the_socket_is_harmless(short_folder):
    import socket as sockets

    receiver = NotifySocket(short_folder / "notify")
    try:
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as sender:
            sender.connect(str(Path(receiver.path)))
            for data in (b"", b"=", b"\xff\xfe=\x00", b"READY", b"A" * 8192, b"READY=1\nSTATUS=a=b\n"):
                sender.send(data)
        notices = receiver.receive()
        assert {notice.pid for notice in notices} == {os.getpid()}
        assert [notice.fields for notice in notices if "READY" in notice.fields] == [{"READY": "1", "STATUS": "a=b"}]
    finally:
        receiver.close()

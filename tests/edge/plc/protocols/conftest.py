from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.alert.plc.adapter import Inputs, Outputs, Result
from edge.errors import PlcError, PlcTimeout

ROOT = Path(__file__).parents[4]
PEERS = ROOT / ".peers"


class Peer:
    """A program that is not ours, in a process of its own. It can be killed, frozen and started again."""

    def __init__(self, command: list[str], ready: str | None, cwd: Path | None = None) -> None:
        self._command, self._ready, self._cwd = command, ready, cwd
        self.process: subprocess.Popen[str] | None = None
        self.greeting = ""

    def start(self, listening: int | None = None) -> None:
        """Starts it, and waits for its line that begins with `ready`, or until the port `listening` accepts."""
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            cwd=self._cwd,
        )
        if self._ready is not None:
            while not self.greeting.startswith(self._ready):
                self.greeting = self.line()
        while listening is not None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", listening), 1):
                return
            assert self.process.poll() is None, f"{self._command[0]} ended with {self.process.returncode}"

    def line(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self._command[0]} ended with {self.process.wait()}"
        return line.strip()

    def ask(self, question: str) -> str:
        """Sends one line to its standard input, and takes one line of answer."""
        self.tell(question)
        return self.line()

    def tell(self, line: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def freeze(self) -> None:
        """Stops it from running; the system still takes connections and data for it. Returns when it stands still."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.communicate()
            self.process, self.greeting = None, ""


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A TCP port of the loopback interface that nothing uses now."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """The path of a program of the distribution; the test is skipped where it is missing."""

    def find(name: str) -> str:
        path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"{name} is missing; .ci/peers installs it")
        return path

    return find


@pytest.fixture(scope="session")
def peer_python() -> str:
    """The Python that has the independent servers; the test is skipped where it is missing."""
    path = PEERS / "venv" / "bin" / "python"
    if not (PEERS / "venv" / ".installed").exists():
        pytest.skip(f"{path} is missing; .ci/peers installs it")
    return str(path)


@pytest.fixture(scope="session")
def peer_node(program: Callable[[str], str]) -> tuple[str, Path]:
    """Node.js and the folder of the servers that run under it; the test is skipped where one is missing."""
    folder = PEERS / "node"
    if not (folder / ".installed").exists():
        pytest.skip(f"{folder} is missing; .ci/peers installs it")
    return program("node"), folder


@pytest.fixture(scope="module")
def peer() -> Iterator[Callable[..., Peer]]:
    """Makes peers that are killed when the tests of this file are over."""
    made: list[Peer] = []

    def make(command: list[str], ready: str | None = None, cwd: Path | None = None) -> Peer:
        made.append(Peer(command, ready, cwd))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> Path:
    """A folder with ca.pem, server.pem and server.key for 127.0.0.1, made by openssl."""
    openssl = program("openssl")
    folder = tmp_path_factory.mktemp("certificates")
    for name, subject, extra in (
        ("ca", "/CN=Test authority", ["-addext", "basicConstraints=critical,CA:TRUE"]),
        ("server", "/CN=broker", ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]),
    ):
        command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.pem", *extra]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"openssl cannot make a certificate: {done.stderr.strip().splitlines()[-1]}")
    return folder


class Behaviour:
    """What holds for every protocol. A rig has `adapter`, `seen`, `give`, `start` and `peer`."""

    outputs = Outputs(True, 0xFFFE, 0xFFFF, 0xFFFF_FFFE, Result.UNJUDGED, 0xFFFD, True, 0xFFFC)
    inputs = Inputs(ack=0xFFFF, parts=0xFFFE, part=0xFFFF_FFFD, encoder=-(2**31), run=True)

    def every_field_arrives(self, rig: Any) -> None:
        """Extreme values in every field, by the peer's own view; then the opposite."""
        rig.give(self.inputs)
        adapter = rig.adapter()
        adapter.connect()
        assert adapter.exchange(self.outputs) == self.inputs
        assert rig.seen() == self.outputs
        rig.give(Inputs(encoder=2**31 - 1))
        assert adapter.exchange(Outputs(part=1)) == Inputs(encoder=2**31 - 1)
        assert rig.seen() == Outputs(part=1)
        adapter.close()
        with pytest.raises(PlcError, match="not connected"):
            adapter.exchange(Outputs())

    def loss_and_recovery(self, rig: Any) -> None:
        """A peer that dies is an error of one line; there is no connection until it is back; then all is as before."""
        adapter = rig.adapter()
        adapter.connect()
        rig.peer.kill()
        with pytest.raises(PlcError) as lost:
            adapter.exchange(self.outputs)
        self.one_line(adapter, lost.value)
        adapter.close()
        with pytest.raises(PlcError) as refused:
            adapter.connect()
        self.one_line(adapter, refused.value)
        adapter.close()
        rig.start()
        rig.give(self.inputs)
        adapter.connect()
        assert adapter.exchange(self.outputs) == self.inputs
        assert rig.seen() == self.outputs
        adapter.close()

    def freeze_and_thaw(self, rig: Any) -> None:
        """The race: a write sent to a peer that stands still waits in its socket, and is applied when it runs again."""
        rig.give(self.inputs)
        adapter = rig.adapter()
        adapter.connect()
        harmless = Outputs(ready=True, part=7, result=Result.REJECT, valid=7)
        adapter.exchange(harmless)
        assert rig.seen() == harmless
        rig.peer.freeze()
        try:
            with pytest.raises(PlcTimeout) as late:
                adapter.exchange(Outputs(ready=True, part=8, result=Result.PASS, valid=8, eject=True))
            self.one_line(adapter, late.value)
            started = time.monotonic()
            adapter.close()
            assert time.monotonic() - started < 1.0, "close must not wait for a peer that stands still"
            with pytest.raises(PlcError):  # a time-out, not a hang
                adapter.connect()
            adapter.close()
        finally:
            rig.peer.thaw()
        self._until(lambda: self._connects(adapter))
        assert rig.seen() == harmless, "a stale write was applied"
        adapter.exchange(self.outputs)
        assert rig.seen() == self.outputs
        adapter.close()

    def one_line(self, adapter: Any, error: Exception) -> None:
        text = str(error)
        assert text.startswith(adapter.name), text
        assert "\n" not in text
        assert "let me in" not in text, "the password"

    def _connects(self, adapter: Any) -> bool:
        try:
            adapter.connect()
        except PlcError:
            adapter.close()
            return False
        return True

    def _until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end


@pytest.fixture(scope="session")
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture(scope="module")
def broker(
    peer: Callable[..., Peer],
    program: Callable[[str], str],
    free_port: Callable[[], int],
    certificates: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """Mosquitto with TLS and a password, not yet started; `port`, and `login` for its own client programs."""
    folder = tmp_path_factory.mktemp("mosquitto")
    port = free_port()
    passwords = folder / "passwords"
    for user in ("edge", "plc"):
        command = [program("mosquitto_passwd"), "-b", *(["-c"] if user == "edge" else []), str(passwords), user]
        subprocess.run([*command, "let me in"], check=True, capture_output=True)
    (folder / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nuser {getpass.getuser()}\nallow_anonymous false\npassword_file {passwords}\n"
        f"certfile {certificates}/server.pem\nkeyfile {certificates}/server.key\n"
    )
    (folder / "password").write_text("let me in\n")
    (folder / "password").chmod(0o600)
    found = peer([program("mosquitto"), "-c", str(folder / "mosquitto.conf")])
    found.port, found.password = port, folder / "password"
    found.login = ["-h", "127.0.0.1", "-p", str(port), "-u", "plc", "-P", "let me in", "-V", "mqttv5"]
    found.login += ["--cafile", str(certificates / "ca.pem")]
    found.settings = {"host": "127.0.0.1", "port": port, "ca_file": certificates / "ca.pem", "user": "edge"}
    found.settings |= {"password_file": found.password, "timeout_ms": 1000}
    return found

"""What tests of several folders use: a network of their own, with GigE Vision cameras in it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

CAMERA = "arv-fake-gv-camera-0.8"  # Aravis' own; Debian package aravis-tools
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, SIOCSIFADDR = 0x8914, 0x8916
IFF_UP_RUNNING_LOOPBACK = 0x49
GVCP_PORT = 3956
DISCOVERY = struct.pack(">BBHHH", 0x42, 0x01, 0x0002, 0, 1)  # key, flags, command, length, request id


class NetworkOfOurOwn:
    """The main thread, and all threads and programs it starts, in a network namespace with nothing but loopback."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.own = self._libc.unshare(CLONE_NEWNET) == 0
        if self.own:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
                fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP_RUNNING_LOOPBACK))

    def add(self, address: str) -> None:
        """A further address of this computer: Aravis' camera listens only on addresses that there are."""
        if not self.own:
            pytest.skip("a second address needs a network namespace, and that CAP_SYS_ADMIN")
        alias = f"lo:{address.rpartition('.')[2]}".encode()
        wanted = struct.pack("16sHH4s8x", alias, socket.AF_INET, 0, socket.inet_aton(address))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            fcntl.ioctl(handle, SIOCSIFADDR, wanted)

    def leave(self) -> None:
        if self.own:
            assert self._libc.setns(self._before, CLONE_NEWNET) == 0
        os.close(self._before)


@pytest.fixture
def camera_network() -> Iterator[NetworkOfOurOwn]:
    """Keeps cameras of tests apart from those of everybody else on this computer, where that is allowed."""
    network = NetworkOfOurOwn()
    yield network
    network.leave()


class Camera:
    """Aravis' fake GigE Vision camera as a program of its own."""

    def __init__(self, address: str, serial: str, lost_per_mille: float) -> None:
        self.address, self.serial = address, serial
        self._command = [CAMERA, "-i", address, "-s", serial, "-r", str(lost_per_mille)]
        self.switch_on()

    def add_option(self, *words: str) -> None:
        """For the next time it is switched on."""
        self._command += words

    def switch_on(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(0.05)
            end = time.monotonic() + 10
            while time.monotonic() < end:
                try:
                    asking.sendto(DISCOVERY, (self.address, GVCP_PORT))
                    asking.recv(1024)
                    return
                except (TimeoutError, ConnectionRefusedError):
                    if self._process.poll() is not None:
                        break
        self.switch_off()
        pytest.fail(f"{CAMERA} does not answer at {self.address}; does another program use UDP port {GVCP_PORT}?")

    def switch_off(self) -> None:
        """As by a cut cable: at once, without a word."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)


@pytest.fixture
def fake_camera(camera_network: NetworkOfOurOwn) -> Iterator[Callable[..., Camera]]:
    """fake_camera(address, serial, lost_per_mille) starts a camera; all are gone after the test."""
    if shutil.which(CAMERA) is None:
        pytest.skip(f"{CAMERA} is not installed (package aravis-tools)")
    started: list[Camera] = []

    def start(address: str = "127.0.0.1", serial: str = "GV01", lost_per_mille: float = 0.0) -> Camera:
        if address != "127.0.0.1":
            camera_network.add(address)
        started.append(Camera(address, serial, lost_per_mille))
        return started[-1]

    yield start
    for camera in started:
        camera.switch_off()

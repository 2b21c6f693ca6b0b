"""Network buffers, MTU, and whether the line's cameras answer."""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge.doctor import Finding, Host, fault, ok, warning

if TYPE_CHECKING:
    from edge.settings import CameraSettings, Settings

RECEIVE_BYTES = 16 << 20  # of net.core.rmem_max: several frames of a GigE camera
JUMBO = 9000  # MTU: fewer packets per frame, less work for the CPU
GVCP_PORT = 3956  # GigE Vision 2.0, section 14: the camera's control port
_ANSWER_S = 2.0
_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}


def receive_buffer(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """May a socket keep what comes while the CPU is busy?"""
    text = host.read("/proc/sys/net/core/rmem_max")
    if text is None or not text.isdigit():
        return
    fix = f"as root, `sysctl -w net.core.rmem_max={RECEIVE_BYTES}` (and a file in /etc/sysctl.d, to last)"
    if int(text) >= RECEIVE_BYTES:
        yield ok("network buffers", f"net.core.rmem_max = {text} bytes")
    elif _network_cameras(settings):
        yield warning("network buffers", f"net.core.rmem_max = {text} bytes: packets of a frame get lost", fix)
    else:
        yield ok("network buffers", f"net.core.rmem_max = {text} bytes; a GigE camera would want {RECEIVE_BYTES}")


def mtu(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Do the network cards carry large packets?"""
    for folder in host.glob("/sys/class/net/*"):
        here = f"/sys/class/net/{folder.name}"
        size, state = host.read(f"{here}/mtu"), host.read(f"{here}/operstate")
        if size is None or not host.path(f"{here}/device").exists() or state == "down":
            continue  # loopback, bridges, cables that are not plugged in
        if int(size) < JUMBO and _network_cameras(settings):
            fix = f"as root, `ip link set {folder.name} mtu {JUMBO}`, if it is the cameras' card and its switch agrees"
            yield warning("MTU", f"{folder.name}: {size} bytes; {JUMBO} need a sixth of the packets", fix)
        else:
            yield ok("MTU", f"{folder.name}: {size} bytes")


def cameras(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Does every camera of the line answer?"""
    for camera in settings.cameras if settings is not None else ():
        yield from _camera(camera, host)


def _camera(camera: CameraSettings, host: Host) -> Iterator[Finding]:
    subject, source = f"camera {camera.name}", camera.source
    url, device = getattr(source, "url", None), getattr(source, "device", None)
    address = getattr(source, "address", None)
    if url is not None:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme)
        if parts.hostname is None or port is None:
            return
        failure = reach(parts.hostname, port)
        place = f"{parts.hostname}:{port}"  # without user and password
        if failure is None:
            yield ok(subject, f"{place} answers")
        else:
            yield fault(
                subject, f"{place}: {failure}", "check its power, cable and address, and that both are in one network"
            )
    elif device is not None:
        path = host.path(device)
        if not path.exists():
            yield fault(subject, f"{device} does not exist", "plug the camera in; `ls /dev/video*` lists what there is")
        elif not os.access(path, os.R_OK | os.W_OK):
            yield fault(subject, f"{device} may not be opened", "`sudo usermod -aG video $USER`, then log in again")
        else:
            yield ok(subject, f"{device} is there")
    elif address is not None:
        failure = greet(address)
        if failure is None:
            yield ok(subject, f"{address} answers as a GigE Vision camera")
        else:
            fix = "check its power and cable, and that the network card is in the camera's network (`edge camera`)"
            yield fault(subject, f"{address}: {failure}", fix)
    else:
        yield ok(subject, f"source {source.type}: nothing to reach over a network")


def reach(name: str, port: int, timeout_s: float = _ANSWER_S) -> str | None:
    """Opens and closes a TCP connection; returns what went wrong, or None."""
    try:
        with socket.create_connection((name, port), timeout=timeout_s):
            return None
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except OSError as error:
        return error.strerror or str(error)


def greet(address: str, port: int = GVCP_PORT, timeout_s: float = _ANSWER_S) -> str | None:
    """Asks a camera for its DISCOVERY_ACK (GigE Vision 2.0, section 15.1); returns what went wrong, or None.

    Discovery takes control of nothing, so a camera that is in use answers too.
    """
    number = 1 + secrets.randbelow(0xFFFF)  # request 0 is not allowed
    # Key 0x42, flag "acknowledge", DISCOVERY_CMD, no payload.
    command = struct.pack(">BBHHH", 0x42, 0x01, 0x0002, 0, number)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.settimeout(timeout_s)
            line.connect((address, port))
            line.send(command)
            answer = line.recv(2048)
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except OSError as error:
        return error.strerror or str(error)
    if len(answer) < 8 or struct.unpack(">HHHH", answer[:8])[1::2] != (0x0003, number):
        return "something answers that is no GigE Vision camera"
    return None


def _network_cameras(settings: Settings | None) -> bool:
    return settings is not None and any(camera.source.type in ("gige", "gentl") for camera in settings.cameras)


CHECKS = (receive_buffer, mtu, cameras)

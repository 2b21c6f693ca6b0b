"""`edge doctor`: what it finds on made-up computers (files below a folder, tools on PATH), and on this one."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge import doctor_gpu, doctor_host, doctor_network
from edge.doctor import Finding, Host, Level, examine

CARD = "NVIDIA RTX A4000, 580.65.06, 8.6, 16376, 210, 1560, 140.00, 140.00, Enabled, 41, Not Active"


class Computer:
    """A root folder to fill, and a folder of tools that alone are on PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.bin = folder / "root", folder / "bin"
        self.root.mkdir()
        self.bin.mkdir()
        monkeypatch.setenv("PATH", str(self.bin))
        self.host = Host(self.root)

    def file(self, name: str, content: str = "") -> None:
        path = self.host.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def tool(self, name: str, prints: str, code: int = 0) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\nwhile read -r line; do echo \"$line\"; done <<'END'\n{prints}\nEND\nexit {code}\n")
        path.chmod(0o755)


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    return Computer(tmp_path, monkeypatch)


def one(findings: Any) -> Finding:
    (found,) = findings
    assert bool(found.fix) == (found.level is not Level.OK)  # a fix for whatever is wrong, and only for that
    return found


def torch_is(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
    base = {"version": "2.13.0+cu130", "cuda": "13.0", "gpu": True, "built_for": ["sm_80", "sm_86"], "sm": "86"}
    monkeypatch.setattr(doctor_gpu, "torch_facts", lambda: {**base, **facts})


def test_gpu_and_driver(computer: Computer) -> None:
    assert one(doctor_gpu.gpu(computer.host, None)).text.startswith("none")
    computer.file("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    computer.file("/sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
    found = one(doctor_gpu.gpu(computer.host, None))
    assert (found.level, "driver does not answer" in found.text) == (Level.FAULT, True)
    computer.tool("nvidia-smi", "NVIDIA-SMI has failed", code=9)
    assert one(doctor_gpu.gpu(computer.host, None)).level is Level.FAULT
    computer.tool("nvidia-smi", CARD)
    found = one(doctor_gpu.gpu(computer.host, None))
    assert (found.level, found.text) == (Level.OK, "NVIDIA RTX A4000, SM86, 16376 MiB, driver 580.65.06")


@pytest.mark.parametrize(
    ("driver", "facts", "level", "words"),
    [
        ("580.65.06", {}, Level.OK, "runs on the GPU"),
        ("535.129.03", {"gpu": False}, Level.FAULT, "CUDA 13.0, which needs driver 580 or newer; this is 535.129.03"),
        ("535.129.03", {"cuda": "12.8"}, Level.OK, "CUDA 12.8"),
        ("580.65.06", {"gpu": False}, Level.FAULT, "sees no GPU"),
        ("580.65.06", {"cuda": None}, Level.WARNING, "built without CUDA, and there is a NVIDIA RTX A4000"),
        ("580.65.06", {"built_for": ["sm_90", "sm_100"]}, Level.FAULT, "the GPU is sm_86"),
        ("580.65.06", {"built_for": ["sm_70", "compute_80"]}, Level.OK, "runs on the GPU"),
        ("580.65.06", {"error": "libcudart.so.13: cannot open"}, Level.FAULT, "libcudart"),
    ],
)
def test_torch_fits_the_driver_and_the_gpu(
    computer: Computer, monkeypatch: pytest.MonkeyPatch, driver: str, facts: Any, level: Level, words: str
) -> None:
    computer.tool("nvidia-smi", CARD.replace("580.65.06", driver))
    torch_is(monkeypatch, **facts)
    found = one(doctor_gpu.torch_and_cuda(computer.host, None))
    assert (found.level, words in found.text) == (level, True), found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("140.00, 140.00", "100.00, 140.00"), "limited to 100 W of its usual 140 W"),
        (("41, Not Active", "93, Active"), "slows down"),
        (("Enabled", "Disabled"), "first frame waits"),
        (("140.00, 140.00", "[N/A], [N/A]"), "of 1560 MHz"),
    ],
)
def test_clocks_and_power(computer: Computer, change: tuple[str, str], words: str) -> None:
    computer.tool("nvidia-smi", CARD.replace(*change))
    assert any(words in finding.text for finding in doctor_gpu.clocks_and_power(computer.host, None))


def test_jetson_power_mode_and_clocks(computer: Computer) -> None:
    computer.file("/etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1")
    computer.file("/proc/device-tree/model", "NVIDIA Jetson Orin NX\0")
    computer.file("/sys/class/devfreq/17000000.gpu/min_freq", "306000000")
    computer.file("/sys/class/devfreq/17000000.gpu/max_freq", "918000000")
    assert "Jetson Orin NX, R36 (release)" in one(doctor_gpu.gpu(computer.host, None)).text
    computer.tool("nvpmodel", "NV Power Mode: 15W\n2")
    mode, clocks = doctor_gpu.clocks_and_power(computer.host, None)
    assert (mode.level, clocks.level) == (Level.WARNING, Level.WARNING)
    assert "15W" in mode.text
    computer.tool("nvpmodel", "NV Power Mode: MAXN\n0")
    computer.file("/sys/class/devfreq/17000000.gpu/min_freq", "918000000")
    assert {finding.level for finding in doctor_gpu.clocks_and_power(computer.host, None)} == {Level.OK}


def test_processor_and_governor(computer: Computer) -> None:
    computer.file("/proc/cpuinfo", "model name : Atom\nflags : sse2 ssse3\n\nmodel name : second\nflags : avx2\n")
    assert one(doctor_host.processor(computer.host, None)).level is Level.WARNING
    computer.file("/proc/cpuinfo", "model name : Xeon\nflags : avx2 avx512f avx512_vnni amx_bf16\n")
    computer.file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    first, second = doctor_host.processor(computer.host, None)
    assert "AMX, AVX-512 VNNI, AVX-512, AVX2" in first.text
    assert "powersave" in second.text
    assert second.fix


def test_memory(computer: Computer) -> None:
    assert list(doctor_host.memory(computer.host, None)) == []  # nothing is known
    computer.file("/proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable: 1000000 kB\n")
    assert one(doctor_host.memory(computer.host, None)).level is Level.WARNING


class Camera:
    """Just enough settings of one camera."""

    def __init__(self, **source: Any) -> None:
        self.name = "top"
        self.source = type("Source", (), source)()


class Line:
    """Just enough settings of a line with one camera."""

    def __init__(self, **source: Any) -> None:
        self.cameras = (Camera(**source),)


@pytest.fixture
def answering() -> Iterator[Any]:
    """answering(reply): a UDP port on loopback that answers each request with reply(request)."""
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def open_port(reply: Any) -> int:
        port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        port.bind(("127.0.0.1", 0))
        sockets.append(port)

        def serve() -> None:
            request, sender = port.recvfrom(100)
            if request:
                port.sendto(reply(request), sender)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return int(port.getsockname()[1])

    yield open_port
    for port, thread in zip(sockets, threads, strict=True):
        if thread.is_alive():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
                waker.sendto(b"", port.getsockname())
        thread.join()
        port.close()


def test_a_gige_camera_is_greeted_by_its_own_protocol(answering: Any) -> None:
    def discovery_ack(request: bytes) -> bytes:
        key, flag, command, length, number = struct.unpack(">BBHHH", request)
        assert (key, flag & 1, command, length) == (0x42, 1, 2, 0)
        assert number
        return struct.pack(">HHHH", 0, 3, 248, number) + bytes(248)

    assert doctor_network.greet("127.0.0.1", answering(discovery_ack)) is None
    assert "no GigE Vision camera" in (doctor_network.greet("127.0.0.1", answering(lambda request: b"hello you")) or "")
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with silent:
        silent.bind(("127.0.0.1", 0))
        assert "no answer" in (doctor_network.greet("127.0.0.1", silent.getsockname()[1], timeout_s=0.05) or "")


def test_streams_and_devices_are_reached(computer: Computer) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        line: Any = Line(type="opencv", url=f"rtsp://operator:secret@127.0.0.1:{port}/stream")
        found = one(doctor_network.cameras(computer.host, line))
        assert (found.level, found.text) == (Level.OK, f"127.0.0.1:{port} answers")
    found = one(doctor_network.cameras(computer.host, line))
    assert (found.level, "secret" in found.text + found.fix) == (Level.FAULT, False)
    line = Line(type="opencv", url=None, device="/dev/video7")
    assert one(doctor_network.cameras(computer.host, line)).level is Level.FAULT
    computer.file("/dev/video7")
    assert one(doctor_network.cameras(computer.host, line)).level is Level.OK


def test_network_buffers_matter_to_network_cameras(computer: Computer) -> None:
    computer.file("/proc/sys/net/core/rmem_max", "212992\n")
    for name, device in (("eth1", True), ("lo", False)):
        computer.file(f"/sys/class/net/{name}/mtu", "1500\n")
        computer.file(f"/sys/class/net/{name}/operstate", "up\n")
        if device:
            computer.host.path(f"/sys/class/net/{name}/device").mkdir()
    gige: Any = Line(type="gige")
    found = one(doctor_network.receive_buffer(computer.host, gige))
    assert found.level is Level.WARNING
    assert "sysctl -w net.core.rmem_max=16777216" in found.fix
    assert one(doctor_network.receive_buffer(computer.host, None)).level is Level.OK
    assert "ip link set eth1 mtu 9000" in one(doctor_network.mtu(computer.host, gige)).fix
    computer.file("/sys/class/net/eth1/mtu", "9000\n")
    assert one(doctor_network.mtu(computer.host, gige)).level is Level.OK


def test_a_bare_computer_is_examined_to_the_end(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No /proc, no /sys, no tools: everything that can be said is said, and nothing breaks."""
    torch_is(monkeypatch, cuda=None)
    found = list(examine(computer.host))
    assert {"GPU", "torch", "TensorRT", "processor", "disk"} <= {finding.subject for finding in found}
    assert not [finding for finding in found if "could not be examined" in finding.text]


def test_a_check_that_breaks_is_one_finding(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_is(monkeypatch, cuda="thirteen")
    computer.tool("nvidia-smi", CARD)
    broken = [finding for finding in examine(computer.host) if "could not be examined" in finding.text]
    assert [(finding.subject, finding.level) for finding in broken] == [("torch and cuda", Level.WARNING)]


def test_the_command(tmp_path: Path) -> None:
    """This computer, whatever it is: valid JSON, exit code 1 exactly where there is a fault."""
    environment = {**os.environ, "COLUMNS": "200"}
    for words in (["--json"], [str(tmp_path / "line.toml"), "--json"]):
        if words[0] != "--json":
            Path(words[0]).write_text("[line]\nname = 'a'\nwrong = 1\n")
        done = subprocess.run(
            [sys.executable, "-m", "edge.cli", "doctor", *words],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert "Traceback" not in done.stderr
        report = json.loads(done.stdout)
        assert report["faults"] == sum(finding["level"] == "fault" for finding in report["findings"])
        assert done.returncode == (1 if report["faults"] else 0)
        assert all(finding["fix"] for finding in report["findings"] if finding["level"] != "ok")
    assert any(finding["subject"] == "settings" and "wrong" in finding["text"] for finding in report["findings"])

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edge.alert.plc.modbus import ModbusAdapter
from edge.settings_plc_adapters import ModbusAdapterSettings

HERE = Path(__file__).parent
PROGRAM = HERE.parents[2] / "docs" / "plc" / "edge_inspect.st"


@pytest.fixture(scope="session")
def structured_text() -> ModuleType:
    """The interpreter of Structured Text."""
    spec = importlib.util.spec_from_file_location("structured_text", HERE / "structured_text.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def plc_block(structured_text: ModuleType) -> Callable[..., Any]:
    """Makes an instance of docs/plc/edge_inspect.st with those inputs."""
    return lambda **inputs: structured_text.FunctionBlock(PROGRAM, **inputs)


class ModbusServer:
    """libmodbus' server in a process of its own (see libmodbus_server.py)."""

    def __init__(self, folder: Path, port: int, options: tuple[str, ...]) -> None:
        self.port = port
        self.log = folder / "server.log"
        self.log.unlink(missing_ok=True)
        words = [sys.executable, str(HERE / "libmodbus_server.py"), "--port", str(port), "--program", str(PROGRAM)]
        self.process = subprocess.Popen(
            [*words, "--log", str(self.log), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "listening\n"

    def settings(self, **more: object) -> ModbusAdapterSettings:
        wanted = {"type": "modbus", "host": "127.0.0.1", "port": self.port, "timeout_ms": 200, **more}
        return ModbusAdapterSettings.model_validate(wanted)

    def adapter(self, **more: object) -> ModbusAdapter:
        return ModbusAdapter(self.settings(**more))

    def seen(self) -> None:
        """A part comes to the camera."""
        assert self.process.stdin is not None
        self.process.stdin.write("seen\n")
        self.process.stdin.flush()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def events(self) -> list[dict[str, Any]]:
        """Everything that the server has logged; a line that it is writing now is left out."""
        whole = self.log.read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def until(self, wanted: Callable[[list[dict[str, Any]]], bool], seconds: float = 10.0) -> list[dict[str, Any]]:
        """What it has logged once that is so."""
        end = time.monotonic() + seconds
        while not wanted(events := self.events()):
            assert time.monotonic() < end, events[-20:]
            assert self.process.poll() is None
            time.sleep(0.01)
        return events

    def end(self) -> dict[str, int]:
        """Its report."""
        self.process.communicate("end\n", timeout=10)
        report: dict[str, int] = self.events()[-1]["report"]
        return report

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def modbus_server(tmp_path: Path) -> Iterator[Callable[..., ModbusServer]]:
    """Starts libmodbus' server; `port` of an earlier one to take its place."""
    if ctypes.util.find_library("modbus") is None:
        pytest.skip("libmodbus is not installed (libmodbus5)")
    started: list[ModbusServer] = []

    def start(*options: str, port: int = 0) -> ModbusServer:
        if not port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        started.append(ModbusServer(folder, port, options))
        return started[-1]

    yield start
    for server in started:
        os.kill(server.process.pid, signal.SIGCONT) if server.process.poll() is None else None
        server.close()

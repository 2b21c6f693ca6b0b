from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

SettingsFile = Callable[..., Path]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No EDGE_* variable of whoever runs the tests reaches a test."""
    for name in list(os.environ):
        if name.startswith("EDGE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def shm_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for rings, named by EDGE_SHM_DIR."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setenv("EDGE_SHM_DIR", str(folder))
    return folder


@pytest.fixture
def runtime_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private runtime folder with a path short enough for sockets."""
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    return folder


@pytest.fixture
def settings_file(tmp_path: Path, runtime_dir: Path) -> SettingsFile:
    """Writes a valid line.toml; `extra` goes to its end, `line` into its [line] table."""

    def write(extra: str = "", line: str = "", camera: str = "", source: str = 'type = "simulated"') -> Path:
        path = tmp_path / "line.toml"
        path.write_text(
            f'[line]\nname = "press"\nruntime_dir = "{runtime_dir}"\ndata_dir = "data"\n{line}\n'
            f'[[cameras]]\nname = "top"\nbundle = "bundle"\n{camera}\n[cameras.source]\n{source}\n{extra}\n',
            encoding="utf-8",
        )
        return path

    return write


@pytest.fixture
def zmq_context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A ZeroMQ context whose end proves that no socket was left open."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.term()


class Child(subprocess.Popen[str]):
    """A Python program in a process of its own, talking by lines."""

    def line(self) -> str:
        assert self.stdout is not None
        return self.stdout.readline().strip()


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Starts `code` as a program with `arguments`; it is killed at the end of the test."""
    children: list[Child] = []

    def start(code: str, *arguments: object, **environment: str) -> Child:
        program = tmp_path / f"child{len(children)}.py"
        program.write_text(code, encoding="utf-8")
        process = Child(
            [sys.executable, "-W", "error", str(program), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **environment},
        )
        children.append(process)
        return process

    yield start
    for process in children:
        process.kill()
        process.communicate()

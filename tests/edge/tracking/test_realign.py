from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.errors import LineNotRunning, SettingsError
from edge.realign import realign
from edge.settings import Settings, load_settings
from edge.transport import Endpoints, ProcessLock, ensure_runtime


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "line.toml"
    path.write_text(
        f"""
[line]
name = "l"
runtime_dir = "{tmp_path}/run"
[inference]
bundle = "b"
[plc]
adapter = {{ type = "simulated" }}
[[cameras]]
name = "top"
trigger = {{ numbered_by = "plc" }}
source = {{ type = "simulated" }}
[[cameras]]
name = "free"
source = {{ type = "simulated" }}
"""
    )
    return load_settings(path)


@pytest.fixture
def hangups() -> Iterator[list[int]]:
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
    yield heard
    signal.signal(signal.SIGHUP, before)


def test_the_capture_that_follows_the_plc_is_told(settings: Settings, hangups: list[int]) -> None:
    endpoints = Endpoints(settings)
    ensure_runtime(endpoints.runtime)
    with ProcessLock(endpoints.lock("capture-top")), ProcessLock(endpoints.lock("capture-free")):
        assert realign(settings) == ["top"]
        assert realign(settings, "top") == ["top"]
    assert len(hangups) == 2


def test_where_nobody_can_be_told_the_reason_is_named(settings: Settings) -> None:
    ensure_runtime(Endpoints(settings).runtime)
    with pytest.raises(LineNotRunning, match="no capture process of top"):
        realign(settings)
    with pytest.raises(SettingsError, match="camera free numbers its parts by its own frames"):
        realign(settings, "free")
    with pytest.raises(SettingsError, match="no camera 'none'"):
        realign(settings, "none")

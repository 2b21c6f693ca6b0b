"""`edge plc`: what an electrician sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge.cli_plc import app
from edge.errors import LineInUse, PlcError, SettingsError
from edge.settings import load_settings
from edge.transport import Endpoints, ProcessLock, ensure_runtime

SettingsFile = Callable[..., Path]
runner = CliRunner()


@pytest.fixture
def line(modbus_server: Callable[..., Any], settings_file: SettingsFile) -> Callable[..., tuple[str, Any]]:
    """A line whose PLC is libmodbus' server."""

    def make(**server: int) -> tuple[str, Any]:
        peer = modbus_server("Travel=500", *(f"{name}={value}" for name, value in server.items()))
        text = f"""[plc]
heartbeat_ms = 10
[plc.adapter]
type = "modbus"
host = "127.0.0.1"
port = {peer.port}
timeout_ms = 400
"""
        return str(settings_file(text)), peer

    return make


def test_outputs_are_tried_by_hand_and_round_trips_measured(line: Callable[..., tuple[str, Any]]) -> None:
    file, server = line()
    done = runner.invoke(app, ["test", file, "--count", "50"], input="y\ny\ny\ny\ny\ny\n")
    assert done.exit_code == 0, done.output
    assert "Is the belt still, and nobody near the ejector?" in done.stdout
    assert "50 round" in done.stdout
    assert "acknowledge" in done.stdout
    shown = [(event["register"], event["value"]) for event in server.events() if event.get("register") in (0, 2)]
    assert shown[0] == (0, 0b010)  # while it only measures: safe outputs, not ready
    assert (2, 1) in shown
    assert (0, 0b011) in shown
    assert shown[-1] == (0, 0b010) or shown[-1][0] == 2
    beats = [event["value"] for event in server.events() if event.get("register") == 1]
    assert beats == list(range(1, len(beats) + 1))


def test_what_is_not_confirmed_is_an_error(line: Callable[..., tuple[str, Any]]) -> None:
    file, _ = line()
    done = runner.invoke(app, ["test", file, "--count", "5"], input="y\ny\ny\ny\nn\ny\n")
    assert done.exit_code == 1
    assert "error: not confirmed: eject; see docs/plc/README.md" in done.stderr
    refused = runner.invoke(app, ["test", file, "--count", "5"], input="n\n")
    assert refused.exit_code == 1
    assert "ready" not in refused.stdout


def test_results_for_programs(line: Callable[..., tuple[str, Any]]) -> None:
    file, _ = line()
    done = runner.invoke(app, ["test", file, "--count", "20", "--round-trips-only", "--json"])
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert result["plc"].startswith("modbus 127.0.0.1:")
    assert 0 < result["round_trip_ms"]["p50"] <= result["round_trip_ms"]["p99"] <= result["round_trip_ms"]["max"]
    assert (result["round_trip_ms"]["count"], result["outputs"]) == (20, [])
    done = runner.invoke(app, ["test", file, "--count", "5", "--yes", "--json"])
    tried = {step["output"]: step["confirmed"] for step in json.loads(done.stdout)["outputs"]}
    assert tried == {"ready": None, "heartbeat": None, "fault": None, "eject": None, "off": None, "acknowledge": True}


def test_inputs_are_watched(line: Callable[..., tuple[str, Any]]) -> None:
    file, server = line()
    server.seen()
    server.seen()
    done = runner.invoke(app, ["watch", file, "--seconds", "1", "--json"])
    assert done.exit_code == 0, done.output
    states = [json.loads(row) for row in done.stdout.splitlines()]
    assert states[-1]["inputs"] | {"encoder": 0} == {"ack": 0, "parts": 2, "part": 2, "encoder": 0, "run": True}
    assert states[-1]["outputs"]["ready"] is False
    assert "inputs parts" in runner.invoke(app, ["watch", file, "--seconds", "0.3"]).stdout


def test_a_running_line_keeps_its_plc(line: Callable[..., tuple[str, Any]]) -> None:
    file, _ = line()
    endpoints = Endpoints(load_settings(Path(file)))
    ensure_runtime(endpoints.runtime)
    with ProcessLock(endpoints.lock("plc")):
        done = runner.invoke(app, ["test", file])
        assert isinstance(done.exception, LineInUse)
        heard = runner.invoke(app, ["watch", file, "--seconds", "0.3", "--json"])
        assert json.loads(heard.stdout.splitlines()[0])["plc"] == "the line's own process"


def test_faults_are_told_in_a_line(line: Callable[..., tuple[str, Any]], settings_file: SettingsFile) -> None:
    file, server = line()
    server.kill()
    done = runner.invoke(app, ["test", file])
    assert isinstance(done.exception, PlcError)
    assert "check host and port" in str(done.exception)
    done = runner.invoke(app, ["watch", str(settings_file())])
    assert isinstance(done.exception, SettingsError)
    assert "line press has no PLC; add a section [plc]" in str(done.exception)

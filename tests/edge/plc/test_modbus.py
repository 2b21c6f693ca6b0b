"""The Modbus adapter against libmodbus, in a process of its own, and mbpoll as an independent reader."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from edge.alert.plc.adapter import Adapter, Fault, Outputs, Result
from edge.alert.plc.modbus import ModbusAdapter
from edge.alert.plc.registry import make_adapter
from edge.errors import PlcError, PlcTimeout
from edge.settings_plc_adapters import ModbusAdapterSettings

Server = Callable[..., Any]
BLOCK = Outputs(
    ready=True,
    heartbeat=0xABCD,
    fault=Fault.LATE,
    part=0x1234_5678,
    result=Result.REJECT,
    valid=0xFFFE,
    eject=True,
    trigger=7,
)


@pytest.mark.parametrize("one_round_trip", [False, True])
def test_blocks_go_both_ways(modbus_server: Server, one_round_trip: bool) -> None:
    server = modbus_server()
    adapter = make_adapter(server.settings(one_round_trip=one_round_trip))
    assert isinstance(adapter, Adapter)
    adapter.connect()
    server.seen()
    adapter.exchange(BLOCK)
    events = server.until(lambda events: sum("register" in event for event in events) >= 8)
    shown = {event["register"]: event["value"] for event in events if "register" in event}
    assert shown == {0: 0b011, 1: 0xABCD, 2: Fault.LATE, 3: 7, 4: 0x1234, 5: 0x5678, 6: 2, 7: 0xFFFE}
    end = time.monotonic() + 5
    while (inputs := adapter.exchange(BLOCK)).parts == 0:
        assert time.monotonic() < end
    assert (inputs.parts, inputs.part, inputs.ack, inputs.run) == (1, 1, 0, True)
    assert inputs.encoder > 0
    adapter.close()
    adapter.close()
    requests = server.end()["requests"]
    assert requests > 2


def test_input_registers_and_a_coil(modbus_server: Server) -> None:
    server = modbus_server()
    adapter = server.adapter(inputs_table="input", eject_coil=3)
    adapter.connect()
    for eject in (True, True, False):
        adapter.exchange(Outputs(eject=eject))
    coils = [(event["coil"], event["value"]) for event in server.events() if "coil" in event]
    assert coils == [(3, 1), (3, 0)]
    adapter.close()


@pytest.mark.skipif(shutil.which("mbpoll") is None, reason="mbpoll is not installed")
def test_another_client_reads_the_same(modbus_server: Server) -> None:
    """mbpoll counts registers from 1."""
    server = modbus_server()
    adapter = server.adapter()
    adapter.connect()
    adapter.exchange(BLOCK)
    words = ["mbpoll", "-q", "-1", "-p", str(server.port), "-a", "1", "-t", "4:hex", "-r", "1", "-c", "8", "127.0.0.1"]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout
    values = [int(line.split()[1], 16) for line in said.splitlines() if line.startswith("[")]
    assert values == [0b011, 0xABCD, Fault.LATE, 7, 0x1234, 0x5678, 2, 0xFFFE]
    adapter.close()


def test_a_frozen_server_times_out_and_the_next_connection_needs_a_live_one(modbus_server: Server) -> None:
    """The kernel of a frozen server still accepts connections: only an answer proves that it lives."""
    server = modbus_server()
    adapter = server.adapter(timeout_ms=100)
    adapter.connect()
    adapter.exchange(Outputs(heartbeat=1))
    server.freeze()
    began = time.monotonic()
    with pytest.raises(PlcTimeout, match=r"127\.0\.0\.1:\d+: no answer within 100 ms; .*timeout_ms"):
        adapter.exchange(Outputs(heartbeat=2))
    adapter.close()
    with pytest.raises(PlcTimeout):
        adapter.connect()
    adapter.close()
    assert time.monotonic() - began < 2
    server.thaw()
    adapter.connect()
    adapter.exchange(Outputs(heartbeat=3))
    heartbeats = [event["value"] for event in server.events() if event.get("register") == 1]
    assert heartbeats[-1] == 3
    adapter.close()


def test_a_killed_server_is_an_error_and_its_successor_is_found(modbus_server: Server) -> None:
    server = modbus_server()
    adapter = server.adapter()
    adapter.connect()
    server.kill()
    with pytest.raises(PlcError, match="the connection failed"):
        adapter.exchange(Outputs())
    with pytest.raises(PlcError, match="not connected"):  # never by itself: what is resent may come late
        adapter.exchange(Outputs())
    adapter.close()
    with pytest.raises(PlcError, match=r"no connection within 200 ms; check host and port in \[plc.adapter\]"):
        adapter.connect()
    successor = modbus_server(port=server.port)
    adapter.connect()
    adapter.exchange(Outputs(heartbeat=9))
    assert [event["value"] for event in successor.events() if event.get("register") == 1] == [9]
    adapter.close()


def test_refusals_name_the_setting(modbus_server: Server) -> None:
    server = modbus_server()
    adapter = server.adapter(inputs_register=60_000)
    with pytest.raises(PlcError, match="exception 2: the PLC has no such registers; check outputs_register"):
        adapter.connect()
    adapter.close()


def test_an_answer_in_dribs_is_held_to_the_time_out() -> None:
    """A server that sends a byte now and then must not stretch an exchange."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = ModbusAdapterSettings(
            type="modbus", host="127.0.0.1", port=listener.getsockname()[1], timeout_ms=150
        )
        adapter = ModbusAdapter(settings)

        def dribble() -> None:
            client, _ = listener.accept()
            client.recv(300)
            try:
                for _ in range(40):
                    client.send(b"\0")
                    time.sleep(0.05)
            except OSError:
                client.close()

        thread = threading.Thread(target=dribble, daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(PlcError):
            adapter.connect()
        adapter.close()
        assert time.monotonic() - began < 1
        thread.join(10)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"outputs_register": 65_530}, "end beyond 65535"),
        ({"outputs_register": 95}, "the blocks of 8 and 7 registers overlap"),
        ({"one_round_trip": True, "inputs_table": "input"}, "function 23 reads holding registers"),
        ({"registers": 3}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_be(more: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ModbusAdapterSettings.model_validate({"type": "modbus", "host": "plc", **more})

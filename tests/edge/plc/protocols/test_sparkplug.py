"""Sparkplug B against Mosquitto; payloads are read and written by the codec of Eclipse Tahu, under Node.js."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is missing: pip install 'edge-inspect[mqtt]'")
pytest.importorskip("google.protobuf", reason="protobuf is missing: pip install 'edge-inspect[mqtt]'")

from edge.alert.plc.adapter import Inputs, Outputs, Result
from edge.alert.plc.sparkplug import SparkplugAdapter
from edge.alert.plc.sparkplug_payload import decode
from edge.errors import PlcError, PlcTimeout
from edge.settings_plc_protocols import SparkplugAdapterSettings

TYPES = {"ack": "UInt16", "parts": "UInt16", "part": "UInt64", "encoder": "Int32", "run": "Boolean"}


class Host:
    """The host application: sees all that the node publishes, and writes commands to it."""

    def __init__(self, broker: Any, codec: Any, sub: str, pub: str) -> None:
        self.broker, self.codec, self._pub = broker, codec, pub
        topics = ["-t", "spBv1.0/plant/#", "-q", "1", "-F", "%t %q %r %x", "-d"]
        # Line by line, so that "Subscribed" is seen when it is written.
        self._sub = subprocess.Popen(
            ["stdbuf", "-oL", sub, *broker.login, *topics], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._sub.stdout is not None
        while not self._sub.stdout.readline().startswith("Subscribed"):
            pass

    def next(self) -> tuple[str, dict[str, Any]]:
        """The next message of the node: its type, and its payload with metrics by name, or by alias without."""
        assert self._sub.stdout is not None
        while True:
            topic, _, rest = self._sub.stdout.readline().strip().partition(" ")
            if topic.startswith("spBv1.0/") and "/NCMD/" not in topic:
                break
        quality, retained, data = rest.split()
        kind = topic.split("/")[2]
        assert topic == f"spBv1.0/plant/{kind}/press"
        assert retained == "0"
        assert quality == ("1" if kind == "NDEATH" else "0")
        payload = json.loads(self.codec.ask(f"decode {data}"))
        if "seq" in payload:
            payload["seq"] = number(payload["seq"])
        payload["values"] = {m.get("name") or number(m["alias"]): number(m["value"]) for m in payload["metrics"]}
        return kind, payload

    def write(self, values: dict[str, Any], by_alias: dict[str, int] | None = None) -> None:
        """Sends a command with quality of service 1; returns when the broker has it."""
        metrics = []
        for name, value in values.items():
            metric = {"name": name, "type": TYPES.get(name.removeprefix("Inputs/"), "Boolean")}
            if by_alias is not None:
                metric = {"alias": by_alias[name], "type": metric["type"]}
            metrics.append({**metric, "value": value})
        data = self.codec.ask("encode " + json.dumps({"timestamp": 1, "metrics": metrics}))
        command = [self._pub, *self.broker.login, "-t", "spBv1.0/plant/NCMD/press", "-q", "1", "-s"]
        subprocess.run(command, input=bytes.fromhex(data), check=True, timeout=20)

    def stop(self) -> None:
        self._sub.kill()
        self._sub.communicate()


def number(value: Any) -> Any:
    """64-bit numbers come as {low, high, unsigned} of JavaScript's Long."""
    return (value["high"] << 32 | value["low"] & 0xFFFF_FFFF) if isinstance(value, dict) else value


@pytest.fixture(scope="module")
def codec(peer: Callable[..., Any], peer_node: tuple[str, Path]) -> Any:
    node, modules = peer_node
    found = peer([node, str(Path(__file__).with_name("sparkplug_codec.js"))], "ready", modules)
    found.start()
    return found


@pytest.fixture
def host(broker: Any, codec: Any, program: Callable[[str], str]) -> Iterator[Host]:
    if broker.process is None:
        broker.start(broker.port)
    found = Host(broker, codec, program("mosquitto_sub"), program("mosquitto_pub"))
    yield found
    found.stop()


def adapter_for(broker: Any, **changes: Any) -> SparkplugAdapter:
    known = {"type": "sparkplug", "group": "plant", "node": "press", "command_age_ms": 20_000}
    return SparkplugAdapter(SparkplugAdapterSettings(**{**known, **broker.settings, **changes}))


def test_birth_data_and_death_as_the_specification_says(host: Host) -> None:
    adapter = adapter_for(host.broker)
    adapter.connect()
    kind, birth = host.next()
    assert (kind, birth["seq"]) == ("NBIRTH", 0)
    assert birth["values"]["bdSeq"] == 0
    assert birth["values"]["Node Control/Rebirth"] is False
    assert birth["values"]["Outputs/ready"] is False
    aliases = {metric["name"]: number(metric.get("alias")) for metric in birth["metrics"]}
    types = {metric["name"]: metric["type"] for metric in birth["metrics"]}
    assert types["Outputs/part"] == "UInt64"
    assert types["Inputs/encoder"] == "Int32"

    outputs = Outputs(True, 0xFFFF, 3, 0xFFFF_FFFF, Result.UNJUDGED, 0xFFFE, True, 1)
    assert adapter.exchange(outputs) == Inputs()
    kind, data = host.next()
    assert (kind, data["seq"]) == ("NDATA", 1)
    assert data["values"] == {aliases[f"Outputs/{name}"]: value for name, value in asdict(outputs).items()}
    adapter.exchange(outputs)  # nothing changed: nothing is published
    adapter.exchange(Outputs(**{**asdict(outputs), "heartbeat": 0}))
    kind, data = host.next()
    assert (kind, data["seq"], data["values"]) == ("NDATA", 2, {aliases["Outputs/heartbeat"]: 0})

    adapter.close()
    kind, death = host.next()
    assert (kind, death["values"]) == ("NDEATH", {"bdSeq": 0})
    assert "seq" not in death or death["seq"] in (None, 0)
    adapter.connect()
    assert host.next()[1]["values"]["bdSeq"] == 1, "the next birth has the next number"
    adapter._broker.drop()  # a broken connection, not a farewell
    assert host.next()[1]["values"] == {"bdSeq": 1}


def test_sequence_numbers_wrap_at_256(host: Host) -> None:
    adapter = adapter_for(host.broker)
    adapter.connect()
    for count in range(1, 259):
        adapter.exchange(Outputs(heartbeat=count))
    adapter.close()
    numbers = [host.next()[1]["seq"] for _ in range(259)]
    assert numbers == [count % 256 for count in range(259)]


def test_commands_write_the_inputs_by_name_and_by_alias(host: Host) -> None:
    inputs = Inputs(ack=0xFFFF, parts=0xFFFE, part=0xFFFF_FFFD, encoder=-(2**31), run=True)
    adapter = adapter_for(host.broker)
    adapter.connect()
    aliases = {metric["name"]: number(metric.get("alias")) for metric in host.next()[1]["metrics"]}
    host.write({f"Inputs/{name}": value for name, value in asdict(inputs).items()})
    assert adapter.exchange(Outputs()) == inputs
    assert host.next()[1]["values"][aliases["Inputs/run"]] is True, "the host is told what we took"
    host.write({"Inputs/ack": 5, "Inputs/encoder": 2**31 - 1}, by_alias=aliases)
    assert adapter.exchange(Outputs()) == Inputs(ack=5, parts=0xFFFE, part=0xFFFF_FFFD, encoder=2**31 - 1, run=True)
    adapter.close()


def test_rebirth_is_given_when_asked_for(host: Host) -> None:
    adapter = adapter_for(host.broker)
    adapter.connect()
    first = host.next()[1]["values"]["bdSeq"]
    adapter.exchange(Outputs(part=5))
    assert host.next()[0] == "NDATA"
    host.write({"Node Control/Rebirth": True})
    adapter.exchange(Outputs(part=6))
    kind, birth = host.next()
    assert (kind, birth["seq"], birth["values"]["Outputs/part"]) == ("NBIRTH", 0, 6)
    assert birth["values"]["bdSeq"] == first, "it is the same connection"
    adapter.close()


def test_silent_host_is_a_timeout(host: Host) -> None:
    adapter = adapter_for(host.broker, command_age_ms=500)
    adapter.connect()
    adapter._commanded -= 1.0
    with pytest.raises(PlcTimeout, match=r"no command on spBv1\.0/plant/NCMD/press for \d+ ms"):
        adapter.exchange(Outputs())
    adapter.close()


def test_frozen_broker_delivers_nothing_when_it_thaws(host: Host) -> None:
    adapter = adapter_for(host.broker)
    adapter.connect()
    assert host.next()[0] == "NBIRTH"
    host.broker.freeze()
    try:
        with pytest.raises(PlcTimeout) as late:
            adapter.exchange(Outputs(ready=True, part=8, result=Result.PASS, valid=8))
        assert str(late.value).startswith(adapter.name)
        adapter.close()
    finally:
        host.broker.thaw()
    assert host.next()[0] == "NDEATH", "no data before the death"


def test_killed_broker_is_an_error_and_a_new_one_is_found(host: Host) -> None:
    adapter = adapter_for(host.broker)
    adapter.connect()
    host.broker.kill()
    with pytest.raises(PlcError, match=r"^sparkplug 127\.0\.0\.1:\d+ plant/press: "):
        adapter.exchange(Outputs())
    adapter.close()
    with pytest.raises(PlcError, match="cannot connect: Connection refused"):
        adapter.connect()
    host.broker.start(host.broker.port)
    adapter.connect()
    assert adapter.exchange(Outputs(ready=True)) == Inputs()
    adapter.close()


def test_garbage_is_no_payload() -> None:
    with pytest.raises(ValueError, match="no Sparkplug B payload"):
        decode(b"\xff\xff\xff")

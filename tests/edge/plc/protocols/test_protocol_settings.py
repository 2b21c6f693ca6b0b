"""Settings of the protocols: what is refused, and what a mistake is called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edge.alert.plc.registry import ADAPTERS
from edge.settings import load_settings
from edge.settings_plc import PlcSettings
from edge.settings_plc_protocols import INPUT_FIELDS, OUTPUT_FIELDS

S7 = {"type": "s7", "host": "plc", "outputs_db": 1, "inputs_db": 2}
MQTT = {"type": "mqtt", "host": "broker", "prefix": "line/press"}
OPCUA = {"type": "opcua", "url": "opc.tcp://plc:4840"}
SECURE = {"certificate_file": "c.der", "key_file": "k.pem", "server_certificates": ["s.der"]}
EIP = {"type": "ethernetip", "host": "plc"}
GPIO = {"type": "gpio", "eject": 4}


def load(adapter: dict[str, Any], **changes: Any) -> PlcSettings:
    direct = {"eject": {"mode": "direct", "delay_ms": 800.0}} if adapter["type"] == "gpio" else {}
    return PlcSettings.model_validate({"adapter": {**adapter, **changes}, **direct})


@pytest.mark.parametrize("adapter", [S7, MQTT, {**OPCUA, **SECURE}, {**OPCUA, "security": "none"}, EIP])
def test_least_that_is_needed_is_enough(adapter: dict[str, Any]) -> None:
    found = load(adapter).adapter
    assert found.type in ADAPTERS
    assert found.timeout_ms < load(adapter).window_ms


@pytest.mark.parametrize(
    ("adapter", "changes", "said"),
    [
        (S7, {"inputs_db": 1}, "overlap in the same data block"),
        (S7, {"inputs_db": 1, "inputs_offset": 14}, "overlap in the same data block"),
        (S7, {"inputs_offset": 3}, "even numbers"),
        (S7, {"slot": 99}, "less than or equal to 31"),
        (MQTT, {"prefix": "line/#"}, "pattern"),
        (MQTT, {"prefix": "line/"}, "pattern"),
        (MQTT, {"password_env": "SECRET"}, "a password is given without a user name"),
        (
            MQTT,
            {"user": "edge", "password_env": "A", "password_file": "b"},
            "give one of password_file and password_env",
        ),
        (MQTT, {"password": "let me in"}, "Extra inputs are not permitted"),
        (MQTT, {"tls": False, "ca_file": "ca.pem"}, "ca_file: used with tls = true only"),
        (MQTT, {"certificate_file": "c.pem"}, "certificate_file and key_file: give both or none"),
        (OPCUA, {}, 'certificate_file, key_file, server_certificates: needed with security = "Basic256Sha256"'),
        (OPCUA, {**SECURE, "server_certificates": []}, "server_certificates: needed with security"),
        (OPCUA, {"security": "none", "key_file": "k.pem"}, "key_file: not used with"),
        (OPCUA, {"security": "none", "user": "edge"}, "the password would travel readable"),
        (OPCUA, {"url": "http://plc"}, "pattern"),
        (OPCUA, {"url": "opc.tcp://user:secret@plc:4840"}, "pattern"),
        (OPCUA, {**SECURE, "outputs": {"valdi": "ns=2;i=5"}}, "valdi: no such signal; there are ready, heartbeat"),
        (OPCUA, {**SECURE, "inputs": {"ready": "ns=2;i=5"}}, "ready: no such signal; there are ack, parts"),
        (EIP, {"inputs_tag": "edgeout"}, "two different tags are needed"),
        (EIP, {"outputs_tag": "1st"}, "pattern"),
        (GPIO, {"run": 4}, "line 4 is used twice"),
        (GPIO, {"eject": None}, "no output is wired"),
        (GPIO, {"active_low": [9]}, "active_low: line 9 is not used"),
        (GPIO, {"chip": "gpiochip0"}, "pattern"),
    ],
)
def test_mistakes_are_named(adapter: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        load(adapter, **changes)
    assert said in str(refused.value)


def test_lines_without_part_numbers_are_no_handshake() -> None:
    with pytest.raises(ValidationError, match="carries no part numbers and acknowledgements"):
        PlcSettings.model_validate({"adapter": GPIO})


DOCS = Path(__file__).parents[4] / "docs" / "plc"
PAGES = [("opcua", 1), ("s7", 1), ("ethernetip", 1), ("mqtt", 2), ("gpio", 1)]


@pytest.mark.parametrize(("page", "count"), PAGES)
def test_examples_of_the_pages_load(page: str, count: int, tmp_path: Path) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == count
    for example in examples:
        head = '[line]\nname = "press"\n[[cameras]]\nname = "top"\nbundle = "b"\nsource = {type = "simulated"}\n'
        (tmp_path / "line.toml").write_text(head + example, encoding="utf-8")
        plc = load_settings(tmp_path / "line.toml").plc
        assert plc is not None
        assert plc.adapter.type in ADAPTERS


@pytest.mark.parametrize("page", ["s7", "ethernetip", "mqtt", "gpio", "opcua"])
def test_every_signal_is_on_the_page(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    signals = ("ready", "heartbeat", "eject") if page == "gpio" else (*OUTPUT_FIELDS, *INPUT_FIELDS)
    for signal in signals:
        assert re.search(rf'[`/".]{signal}[`":]', text), signal

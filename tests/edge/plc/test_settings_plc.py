from __future__ import annotations

import re
import typing
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from edge.alert.plc import registry
from edge.alert.plc.adapter import Adapter, Inputs, Outputs
from edge.alert.plc.registry import ADAPTERS, make_adapter
from edge.alert.plc.simulated import SimulatedAdapter
from edge.cli_config import warnings
from edge.errors import PlcError, SettingsError
from edge.settings import load_settings
from edge.settings_example import example
from edge.settings_faults import plain_type
from edge.settings_plc import PlcSettings
from edge.settings_plc_adapters import AdapterSection, PluginAdapter

SettingsFile = Callable[..., Path]
PLC = '[plc]\n{}\n[plc.adapter]\ntype = "simulated"\n'
KINDS = [
    typing.get_args(kind.model_fields["type"].annotation)[0]
    for kind in typing.get_args(plain_type(PlcSettings.model_fields["adapter"].annotation))
]


def test_a_line_has_no_plc_unless_it_says_so(settings_file: SettingsFile) -> None:
    assert load_settings(settings_file()).plc is None
    plc = load_settings(settings_file(PLC.format(""))).plc
    assert plc is not None
    assert (plc.mode, plc.adapter.type, plc.eject.mode) == ("pass_on_good", "simulated", "handshake")
    assert plc.eject_when_safe is True
    other = load_settings(settings_file(PLC.format('mode = "reject_on_fail"'))).plc
    assert other is not None
    assert other.eject_when_safe is False


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("timeout_ms = 1", "plc.timeout_ms: no such key"),
        ("heartbeat_s = 1", "did you mean heartbeat_ms"),
        ('mode = "pass"', 'allowed is one of "pass_on_good", "reject_on_fail"'),
        ("window_ms = 50\nack_ms = 20", "adapter.timeout_ms = 50 must be below window_ms = 50"),
        ("ack_ms = 1001", "ack_ms = 1001 must not be above window_ms = 1000"),
        ("window_ms = 540", r"camera top: deadline_ms = 500 and \[plc\] adapter.timeout_ms = 50 are together above"),
        ('mode = "reject_on_fail"\nsilence_ms = 960', "silence_ms = 960 and adapter.timeout_ms = 50 must together"),
        ("[plc.eject]\nencoder_counts = 9\nencoder_stale_ms = 40", "heartbeat_ms = 50 must not be above"),
        ('[plc.eject]\nmode = "direct"\ndelay_ms = 400', "but a verdict may take deadline_ms = 500"),
    ],
)
def test_settings_that_cannot_be(settings_file: SettingsFile, text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings(settings_file(PLC.format(text)))
    assert "line.toml:" in str(caught.value)


def test_an_unknown_protocol_names_all(settings_file: SettingsFile) -> None:
    with pytest.raises(SettingsError, match="type 'profinet' is not known; set type to one of") as caught:
        load_settings(settings_file(PLC.format("").replace("simulated", "profinet")))
    assert all(f'"{kind}"' in str(caught.value) for kind in KINDS)


def test_an_adapter_without_acknowledgements_is_driven_directly(settings_file: SettingsFile) -> None:
    text = '[plc]\n[plc.adapter]\ntype = "gpio"\neject = 20\n'
    with pytest.raises(SettingsError, match="gpio carries no part numbers and acknowledgements"):
        load_settings(settings_file(text))
    plc = load_settings(settings_file(text + '[plc.eject]\nmode = "direct"\ndelay_ms = 900')).plc
    assert plc is not None


def test_numbers_that_no_plc_knows_are_warned_of(settings_file: SettingsFile) -> None:
    modbus = '[plc]\n[plc.adapter]\ntype = "modbus"\nhost = "192.0.2.1"\n'
    assert any("would take no result" in text for text in warnings(load_settings(settings_file(modbus))))
    numbered = modbus + '[plc.eject]\nmode = "direct"\ndelay_ms = 900'
    assert not any("would take no result" in text for text in warnings(load_settings(settings_file(numbered))))


# What each protocol asks for beyond samples, and pairs of keys that exclude one another.
CHANGES = {
    "opcua": [("server_certificates = []", 'server_certificates = ["server.pem"]'), (r"password_env.*", "")],
    "mqtt": [(r"password_env.*", "")],
    "sparkplug": [(r"password_env.*", "")],
    "modbus": [("port = 8883", "")],
    "gpio": [('mode = "handshake"', 'mode = "direct"'), ("active_low = .*", "active_low = [20]")],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_commented_value_of_the_example_is_allowed(kind: str, settings_file: SettingsFile) -> None:
    blocks = [block for block in example().split("\n\n") if "\n# [plc" in block]
    adapters = [block for block in blocks if "[plc.adapter]" in block]
    assert len(adapters) == len(KINDS)
    chosen = [block for block in blocks if block not in adapters or f'type = "{kind}"' in block]
    lines = [line.removeprefix("# ") for line in "\n\n".join(chosen).splitlines()]
    kept = [line for line in lines if re.match(r"\[[a-z.]+\]$|[a-z_]+ = ", line)]
    text = "\n".join(kept)
    for key in ("distance_mm", "belt_mm_s", "encoder_counts", "counts_per_mm"):
        text = re.sub(rf"^{key} = .*$", "", text, flags=re.MULTILINE)
    for wrong, right in CHANGES.get(kind, []):
        text = re.sub(rf"^{re.escape(wrong) if '[]' in wrong else wrong}$", right, text, flags=re.MULTILINE)
    plc = load_settings(settings_file(text)).plc
    assert plc is not None
    assert plc.adapter.type == kind


# --- finding adapters ------------------------------------------------------------------------------------------------


class TheirSettings(AdapterSection):
    """Settings of somebody else's adapter."""

    type: Literal["plugin"] = Field(description="Protocol.")
    net_id: str = Field(description="Where it is.")


class TheirAdapter:
    """Somebody else's adapter."""

    Settings = TheirSettings

    def __init__(self, settings: TheirSettings) -> None:
        self.name = f"ads {settings.net_id} {settings.timeout_ms:g}"

    def connect(self) -> None: ...

    def exchange(self, outputs: Outputs) -> Inputs:
        return Inputs(ack=outputs.valid)

    def close(self) -> None: ...


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PluginAdapter]:
    """Settings of an installed plug-in named "ads"."""
    entry = EntryPoint("ads", f"{__name__}:TheirAdapter", registry.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: TheirAdapter)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "edge_inspect.plc" else [])

    def make(name: str = "ads", **options: Any) -> PluginAdapter:
        return PluginAdapter(type="plugin", name=name, timeout_ms=70, options=options)

    return make


def test_a_plug_in_is_found_by_its_entry_point(plugin: Callable[..., PluginAdapter]) -> None:
    adapter = make_adapter(plugin(net_id="5.1.2.3"))
    assert isinstance(adapter, Adapter)
    assert adapter.name == "ads 5.1.2.3 70"
    with pytest.raises(PlcError, match=r"plug-in 'sercos': no entry point of group edge_inspect.plc \(ads\)"):
        make_adapter(plugin(name="sercos"))
    with pytest.raises(PlcError, match=r"plc.adapter.options.net_id: Field required \(PLC adapter plug-in ads\)"):
        make_adapter(plugin())
    with pytest.raises(PlcError, match=r"plc.adapter.options.port: Extra inputs are not permitted"):
        make_adapter(plugin(net_id="5.1.2.3", port=1))


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADAPTERS, "simulated", ("edge.alert.plc.nowhere:Adapter", "modbus"))
    settings = PlcSettings.model_validate({"adapter": {"type": "simulated"}}).adapter
    with pytest.raises(PlcError, match=r"run `pip install 'edge-inspect\[modbus\]'`"):
        make_adapter(settings)


def test_every_protocol_has_an_adapter() -> None:
    assert {*ADAPTERS, "plugin"} == set(KINDS)
    adapter = make_adapter(PlcSettings.model_validate({"adapter": {"type": "simulated"}}).adapter)
    assert isinstance(adapter, SimulatedAdapter)
    assert isinstance(adapter, Adapter)

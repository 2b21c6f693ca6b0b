"""PLC adapters by name: ours by the `type` of their settings, third parties' by entry point.

A third party's package declares, in its pyproject.toml,

    [project.entry-points."edge_inspect.plc"]
    ads = "their_package:AdsAdapter"

and a line uses it by `[plc.adapter] type = "plugin", name = "ads"` with its settings in `[plc.adapter.options]`. A
module is imported when a line uses it, not before.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from pydantic import ValidationError

from edge.alert.plc.adapter import Adapter
from edge.errors import PlcError
from edge.settings_plc_adapters import AdapterSection, PluginAdapter

GROUP = "edge_inspect.plc"

ADAPTERS: dict[str, tuple[str, str]] = {
    "simulated": ("edge.alert.plc.simulated:SimulatedAdapter", ""),
    "modbus": ("edge.alert.plc.modbus:ModbusAdapter", "modbus"),
    "opcua": ("edge.alert.plc.opcua:OpcuaAdapter", "opcua"),
    "s7": ("edge.alert.plc.s7:S7Adapter", "s7"),
    "ethernetip": ("edge.alert.plc.ethernetip:EthernetIpAdapter", "ethernetip"),
    "mqtt": ("edge.alert.plc.mqtt:MqttAdapter", "mqtt"),
    "sparkplug": ("edge.alert.plc.sparkplug:SparkplugAdapter", "mqtt"),
    "gpio": ("edge.alert.plc.gpio:GpioAdapter", "gpio"),
}
"""`module:class` and the extra that brings its library ("" where none is needed)."""


def make_adapter(settings: AdapterSection) -> Adapter:
    """The adapter that the settings describe, not yet connected.

    Raises `PlcError` where its library is not installed, or a plug-in is unknown or does not take its options.
    """
    if isinstance(settings, PluginAdapter):
        return _plugin(settings)
    kind = settings.type
    if kind not in ADAPTERS:
        raise PlcError(f"PLC adapter {kind!r}: one of {', '.join(ADAPTERS)}")
    target, extra = ADAPTERS[kind]
    module, _, name = target.partition(":")
    try:
        cls: type[Adapter] = getattr(import_module(module), name)
    except ImportError as error:
        cure = f"; run `pip install 'edge-inspect[{extra}]'`" if extra else ""
        raise PlcError(f"PLC adapter {kind}: its library cannot be loaded ({error}){cure}") from error
    return cls(settings)  # type: ignore[call-arg] # a protocol's constructor is not part of it


def _plugin(settings: PluginAdapter) -> Adapter:
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if settings.name not in found:
        there = ", ".join(sorted(found)) or "none is installed"
        raise PlcError(f"PLC adapter plug-in {settings.name!r}: no entry point of group {GROUP} ({there})")
    entry = found[settings.name]
    try:
        cls: type[Adapter] = entry.load()
        model = cls.Settings
    except (ImportError, AttributeError) as error:
        raise PlcError(f"PLC adapter plug-in {settings.name} ({entry.value}): cannot be loaded: {error}") from error
    try:
        options = model.model_validate({"type": "plugin", "timeout_ms": settings.timeout_ms, **settings.options})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in ("plc", "adapter", "options", *first["loc"]))
        raise PlcError(f"{where}: {first['msg']} (PLC adapter plug-in {settings.name})") from error
    return cls(options)  # type: ignore[call-arg]

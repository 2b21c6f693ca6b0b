"""Sparkplug B (Eclipse Sparkplug 3.0.0) over MQTT 5: this line as an edge node. See docs/plc/mqtt.md.

Outputs are metrics `Outputs/...` in the node's birth (NBIRTH) and, when they change, its data (NDATA). Inputs are
metrics `Inputs/...` that the host application writes by commands (NCMD). Sparkplug sends data with quality of service
0 and knows no confirmation: this suits supervision and slow lines, not fast rejects.

An exchange first repeats its subscription, whose answer shows that the broker lives, and then publishes: a broker that
hangs leaves a harmless request behind, not a result that is delivered when it wakes up.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any, ClassVar

from edge.alert.plc.adapter import UINT16, UINT32, Inputs, Outputs
from edge.alert.plc.broker import Broker, Will
from edge.alert.plc.sparkplug_payload import DataType, Metric, decode, encode
from edge.errors import PlcError, PlcTimeout
from edge.settings_plc_protocols import SparkplugAdapterSettings

REBIRTH = "Node Control/Rebirth"
_OUTPUTS = {
    "ready": DataType.BOOLEAN,
    "heartbeat": DataType.UINT16,
    "fault": DataType.UINT16,
    "trigger": DataType.UINT16,
    "part": DataType.UINT64,
    "result": DataType.UINT16,
    "eject": DataType.BOOLEAN,
    "valid": DataType.UINT16,
}
_INPUTS = {
    "ack": DataType.UINT16,
    "parts": DataType.UINT16,
    "part": DataType.UINT64,
    "encoder": DataType.INT32,
    "run": DataType.BOOLEAN,
}
_TYPES = {
    **{f"Outputs/{name}": kind for name, kind in _OUTPUTS.items()},
    **{f"Inputs/{name}": kind for name, kind in _INPUTS.items()},
    REBIRTH: DataType.BOOLEAN,
}
_ALIASES = {name: number for number, name in enumerate(_TYPES)}
_NAMES = {number: name for name, number in _ALIASES.items()}


class SparkplugAdapter:
    """An edge node whose host application is, or speaks for, the PLC."""

    Settings: ClassVar[type[SparkplugAdapterSettings]] = SparkplugAdapterSettings

    def __init__(self, settings: SparkplugAdapterSettings) -> None:
        self._settings = settings
        self.name = f"sparkplug {settings.host}:{settings.broker_port} {settings.group}/{settings.node}"
        node = "".join(c if c.isalnum() else "-" for c in f"{settings.group}-{settings.node}")
        self._broker = Broker(settings, self.name, f"edge-inspect-{node}"[:64])
        self._births = -1  # bdSeq: tells which birth a death belongs to (chapter 6.4.19)
        self._seq = 0
        self._inputs = Inputs()
        self._told: dict[str, bool | int] = {}  # what the host knows from us
        self._commanded = 0.0  # when the last command came, monotonic seconds
        self._rebirth = False

    def connect(self) -> None:
        """Connects with the death as will, subscribes to commands, publishes the birth.

        Raises `PlcTimeout` or `PlcError`.
        """
        self.close()
        try:
            self._open()
        except PlcError:
            self.close()
            raise

    def exchange(self, outputs: Outputs) -> Inputs:
        """Takes the commands that came, then publishes what changed. Raises `PlcTimeout` where the host is silent."""
        deadline = self._deadline()
        self._broker.subscribe(self._topic("NCMD"), 1, deadline)
        silence_ms = (time.monotonic() - self._commanded) * 1000
        if silence_ms > self._settings.command_age_ms:
            raise PlcTimeout(
                f"{self.name}: no command on {self._topic('NCMD')} for {silence_ms:.0f} ms; the host must write its "
                f"inputs at least every command_age_ms = {self._settings.command_age_ms:g}"
            )
        if self._rebirth:
            self._birth(outputs, deadline)
        else:
            self._data(outputs, deadline)
        return self._inputs

    def close(self) -> None:
        """Leaves; the broker publishes our death."""
        self._broker.drop(say_goodbye=True)

    def _open(self) -> None:
        self._births = (self._births + 1) % 256
        death = encode([self._birth_number()], _now_ms(), None)
        self._broker.open(Will(self._topic("NDEATH"), death), self._on_message)
        deadline = self._deadline()
        self._inputs, self._rebirth = Inputs(), False
        self._broker.subscribe(self._topic("NCMD"), 1, deadline)
        self._birth(Outputs(), deadline)
        self._commanded = time.monotonic()

    def _birth(self, outputs: Outputs, deadline: float) -> None:
        values = self._values(outputs)
        metrics = [self._birth_number()]
        metrics += [Metric(value, name, _ALIASES[name], _TYPES[name]) for name, value in values.items()]
        metrics.append(Metric(False, REBIRTH, _ALIASES[REBIRTH], DataType.BOOLEAN))
        self._seq, self._rebirth = 0, False
        self._broker.publish(self._topic("NBIRTH"), encode(metrics, _now_ms(), self._seq), 0, deadline)
        self._told = values

    def _data(self, outputs: Outputs, deadline: float) -> None:
        values = self._values(outputs)
        changed = [
            Metric(value, alias=_ALIASES[name], datatype=_TYPES[name])
            for name, value in values.items()
            if self._told.get(name) != value
        ]
        if not changed:
            return
        self._seq = (self._seq + 1) % 256
        self._broker.publish(self._topic("NDATA"), encode(changed, _now_ms(), self._seq), 0, deadline)
        self._told = values

    def _values(self, outputs: Outputs) -> dict[str, bool | int]:
        return {
            **{f"Outputs/{name}": value for name, value in asdict(outputs).items()},
            **{f"Inputs/{name}": value for name, value in asdict(self._inputs).items()},
        }

    def _birth_number(self) -> Metric:
        return Metric(self._births, "bdSeq", None, DataType.INT64)

    def _on_message(self, topic: str, payload: bytes) -> None:
        """Takes a command. What is not for us, or no number of its type, changes nothing (chapter 6.4.26)."""
        try:
            metrics = decode(payload)
        except ValueError:
            return
        self._commanded = time.monotonic()
        values: dict[str, Any] = {}
        for metric in metrics:
            name = (
                metric.name if metric.name is not None else _NAMES.get(metric.alias if metric.alias is not None else -1)
            )
            if name == REBIRTH and metric.value is True:
                self._rebirth = True
            elif name is not None and name.startswith("Inputs/") and name in _TYPES and metric.value is not None:
                values.update(_input(name.removeprefix("Inputs/"), metric.value))
        self._inputs = replace(self._inputs, **values)

    def _topic(self, kind: str) -> str:
        return f"spBv1.0/{self._settings.group}/{kind}/{self._settings.node}"

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.timeout_ms / 1000


def _input(name: str, value: bool | int) -> dict[str, Any]:
    kind = _INPUTS[name]
    if kind is DataType.BOOLEAN:
        return {name: bool(value)}
    if kind is DataType.INT32:
        value &= UINT32
        return {name: value - (1 << 32) if value >> 31 else value}
    high = UINT16 if kind is DataType.UINT16 else UINT32
    return {name: int(value)} if 0 <= value <= high else {}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

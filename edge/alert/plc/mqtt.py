"""MQTT 5 with plain JSON. See docs/plc/mqtt.md for the topics and the PLC's side.

    PREFIX/ask   {"ask": 4711}                                              to the PLC
    PREFIX/in    {"ask": 4711, "ack": 7, "parts": 0, "part": 0, ...}        from the PLC, its answer to each ask
    PREFIX/out   {"ready": true, "heartbeat": 12, ..., "valid": 8}          to the PLC

An exchange asks first and publishes second: a broker or PLC that hangs then leaves an unanswered question behind, not
a result that is delivered when it wakes up. That matters because closing a connection does not take back what the
other side's system has already received.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict
from typing import Any, ClassVar

from edge.alert.plc.adapter import UINT16, UINT32, Fault, Inputs, Outputs
from edge.alert.plc.broker import Broker, Will
from edge.errors import PlcError
from edge.settings_plc_protocols import MqttAdapterSettings

_INT32 = 2**31
_RANGES = {"ack": (0, UINT16), "parts": (0, UINT16), "part": (0, UINT32), "encoder": (-_INT32, _INT32 - 1)}


class MqttAdapter:
    """A PLC behind an MQTT broker."""

    Settings: ClassVar[type[MqttAdapterSettings]] = MqttAdapterSettings

    def __init__(self, settings: MqttAdapterSettings) -> None:
        self._settings = settings
        self.name = f"mqtt {settings.host}:{settings.broker_port} {settings.prefix}"
        client_id = "edge-inspect-" + "".join(c if c.isalnum() else "-" for c in settings.prefix)[:48]
        self._broker = Broker(settings, self.name, client_id)
        # Counts on over reconnects, from anywhere: an answer to an older connection's question is never taken.
        self._ask = random.randrange(1, UINT16)  # noqa: S311 # no secret
        self._answer: dict[str, Any] | None = None
        self._unreadable = ""

    def connect(self) -> None:
        """Connects, subscribes, and asks the PLC once. Raises `PlcTimeout` or `PlcError`."""
        self.close()
        try:
            self._open()
        except PlcError:
            self.close()
            raise

    def exchange(self, outputs: Outputs) -> Inputs:
        """Asks for the inputs, then publishes the outputs and waits until the broker has taken them."""
        deadline = self._deadline()
        inputs = self._read(deadline)
        payload = json.dumps(asdict(outputs), separators=(",", ":")).encode()
        self._broker.publish(self._topic("out"), payload, 1, deadline, self._settings.expiry_s)
        return inputs

    def close(self) -> None:
        """Leaves; the broker publishes `ready: false` for us."""
        self._broker.drop(say_goodbye=True)

    def _open(self) -> None:
        will = json.dumps({"ready": False, "fault": int(Fault.STOPPED)}).encode()
        self._broker.open(Will(self._topic("out"), will), self._on_message)
        deadline = self._deadline()
        self._broker.subscribe(self._topic("in"), 1, deadline)
        self._read(deadline)

    def _read(self, deadline: float) -> Inputs:
        self._ask = self._ask % UINT16 + 1
        self._answer, self._unreadable = None, ""
        question = b'{"ask":%d}' % self._ask
        self._broker.publish(self._topic("ask"), question, 0, deadline, self._settings.expiry_s)
        self._broker.wait(
            lambda: self._answer is not None or bool(self._unreadable),
            deadline,
            f"{self._topic('ask')} from the PLC on {self._topic('in')}",
        )
        return self._taken()

    def _taken(self) -> Inputs:
        """What `_on_message` has taken."""
        if self._answer is None:
            raise PlcError(f"{self.name}: {self._topic('in')}: {self._unreadable}; correct the PLC's program")
        return self._inputs(self._answer)

    def _inputs(self, answer: dict[str, Any]) -> Inputs:
        values: dict[str, Any] = {}
        for key, (low, high) in _RANGES.items():
            value = answer.get(key, 0)
            if type(value) is not int or not low <= value <= high:
                raise PlcError(
                    f"{self.name}: {self._topic('in')}: {key} = {value!r:.40} is not a whole number from {low} to "
                    f"{high}; correct the PLC's program"
                )
            values[key] = value
        run = answer.get("run", False)
        if run not in (True, False):  # 0 and 1 too: some PLCs have no JSON booleans
            raise PlcError(f"{self.name}: {self._topic('in')}: run = {run!r:.40} is not true or false")
        return Inputs(**values, run=bool(run))

    def _on_message(self, topic: str, payload: bytes) -> None:
        try:
            answer = json.loads(payload)
        except (ValueError, RecursionError):
            self._unreadable = f"{payload[:40]!r} is not JSON"
            return
        if not isinstance(answer, dict):
            self._unreadable = f"{payload[:40]!r} is not a JSON object"
        elif answer.get("ask") == self._ask:
            self._answer = answer

    def _topic(self, name: str) -> str:
        return f"{self._settings.prefix}/{name}"

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.timeout_ms / 1000

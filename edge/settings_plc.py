"""Settings of the line's PLC, `[plc]`. A line without this section has no `plc` process."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge.settings_plc_adapters import ModbusAdapterSettings, PluginAdapter, SimulatedAdapterSettings
from edge.settings_plc_protocols import (
    EthernetIpAdapterSettings,
    GpioAdapterSettings,
    MqttAdapterSettings,
    OpcuaAdapterSettings,
    S7AdapterSettings,
    SparkplugAdapterSettings,
)
from edge.settings_reject import EjectSettings
from edge.settings_sources import Section

AdapterSettings = Annotated[
    SimulatedAdapterSettings
    | ModbusAdapterSettings
    | OpcuaAdapterSettings
    | S7AdapterSettings
    | EthernetIpAdapterSettings
    | MqttAdapterSettings
    | SparkplugAdapterSettings
    | GpioAdapterSettings
    | PluginAdapter,
    Field(discriminator="type"),
]


class PlcSettings(Section):
    """The line's PLC: how verdicts become rejects, and what holds when anything is silent."""

    mode: Literal["pass_on_good", "reject_on_fail"] = Field(
        default="pass_on_good",
        description="pass_on_good (recommended): a part is rejected unless its own PASS arrives in its window; "
        "reject_on_fail: a part passes unless its REJECT arrives.",
    )
    window_ms: float = Field(
        default=1000.0,
        ge=5,
        le=600_000,
        description="Milliseconds from a part's trigger within which the PLC takes its result; none is sent later.",
    )
    heartbeat_ms: float = Field(
        default=50.0, ge=1, le=10_000, description="Milliseconds between two exchanges when nothing else is to be sent."
    )
    poll_ms: float = Field(
        default=5.0,
        ge=0.1,
        le=1000,
        description="Milliseconds between two exchanges while an acknowledgement is awaited.",
    )
    ack_ms: float = Field(
        default=200.0,
        ge=1,
        le=60_000,
        description="Milliseconds within which the PLC must acknowledge a result; then the next one is sent, and it "
        "is a fault.",
    )
    silence_ms: float = Field(
        default=700.0,
        ge=200,
        le=60_000,
        description="Milliseconds of silence of the alert process, which speaks every 100, until outputs go to safe.",
    )
    reconnect_max_ms: float = Field(
        default=2000.0, ge=10, le=60_000, description="Longest wait between two attempts to connect, milliseconds."
    )
    safe_eject: bool | None = Field(
        default=None,
        description="State of the output `eject` when this program stops or is not ready; by default true with "
        "pass_on_good, false with reject_on_fail.",
    )
    realtime_priority: int = Field(
        default=10,
        ge=0,
        le=80,
        description="Priority (SCHED_FIFO) of the thread that talks to the PLC, where the system permits it; 0: none.",
    )
    adapter: AdapterSettings = Field(description="Protocol and address of the PLC.")
    eject: EjectSettings = Field(default=EjectSettings(), description="The ejector.")

    @property
    def eject_at_rest(self) -> bool:
        """The output `eject` when nothing is known: passing needs a reason with pass_on_good, ejecting otherwise."""
        return self.mode == "pass_on_good"

    @property
    def eject_when_safe(self) -> bool:
        """The output `eject` when this program stops, or is not ready."""
        return self.eject_at_rest if self.safe_eject is None else self.safe_eject

    @model_validator(mode="after")
    def _times_fit(self) -> PlcSettings:
        timeout = self.adapter.timeout_ms
        if timeout >= self.window_ms:
            raise ValueError(
                f"adapter.timeout_ms = {timeout:g} must be below window_ms = {self.window_ms:g}: a write that hangs "
                "would be noticed only when the part has passed"
            )
        if self.ack_ms > self.window_ms:
            raise ValueError(f"ack_ms = {self.ack_ms:g} must not be above window_ms = {self.window_ms:g}")
        if self.mode == "reject_on_fail" and self.silence_ms + timeout > self.window_ms:
            raise ValueError(
                f"silence_ms = {self.silence_ms:g} and adapter.timeout_ms = {timeout:g} must together not be above "
                f"window_ms = {self.window_ms:g} with reject_on_fail: parts would pass unjudged before the PLC knows"
            )
        if self.eject.mode == "handshake" and not self.adapter.acknowledges:
            raise ValueError(
                f'eject.mode = "handshake": {self.adapter.type} carries no part numbers and acknowledgements; '
                'set eject.mode = "direct"'
            )
        if self.eject.counts is not None and self.heartbeat_ms > self.eject.encoder_stale_ms:
            raise ValueError(
                f"heartbeat_ms = {self.heartbeat_ms:g} must not be above eject.encoder_stale_ms = "
                f"{self.eject.encoder_stale_ms:g}: the encoder is read with each exchange"
            )
        return self

    def too_late(self, deadline_ms: float) -> str:
        """Why a verdict that takes its whole deadline could not be used any more; "" where it can."""
        if deadline_ms + self.adapter.timeout_ms > self.window_ms:
            return (
                f"deadline_ms = {deadline_ms:g} and [plc] adapter.timeout_ms = {self.adapter.timeout_ms:g} are "
                f"together above [plc] window_ms = {self.window_ms:g}: a late verdict would be of no use"
            )
        return self.eject.too_soon(deadline_ms)

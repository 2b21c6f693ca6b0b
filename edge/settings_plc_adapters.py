"""Settings of PLC adapters, `[plc.adapter]`: one model per protocol, told apart by `type`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edge.settings_sources import Section

Host = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\s/]+$")]
Port = Annotated[int, Field(ge=1, le=65_535)]
Register = Annotated[int, Field(ge=0, le=65_535)]


class AdapterSection(Section):
    """What every PLC adapter has. Third parties derive their `Settings` from it."""

    acknowledges: ClassVar[bool] = True  # whether results and acknowledgements travel; False: an ejector only

    type: str = Field(description="Protocol.")
    timeout_ms: float = Field(
        default=50.0,
        ge=1,
        le=10_000,
        description="Milliseconds within which the PLC must answer; then the connection is dropped and made anew.",
    )


class SimulatedAdapterSettings(AdapterSection):
    """A PLC inside this process, for trying a line without one."""

    type: Literal["simulated"] = Field(description="Protocol.")
    scan_ms: float = Field(default=10.0, ge=0.1, le=1000, description="Cycle time of the simulated PLC, milliseconds.")


class ModbusAdapterSettings(AdapterSection):
    """Modbus TCP: a block of holding registers is written, another block is read."""

    type: Literal["modbus"] = Field(description="Protocol.")
    host: Host = Field(description="Address or name of the PLC.")
    port: Port = Field(default=502, description="TCP port.")
    device_id: int = Field(
        default=1, ge=0, le=255, description="Unit identifier; a gateway's number of the device behind it."
    )
    outputs_register: Register = Field(
        default=0, description="First of 8 holding registers that are written; counted from 0, so that 40001 is 0."
    )
    inputs_register: Register = Field(default=100, description="First of 7 registers that are read, counted from 0.")
    inputs_table: Literal["holding", "input"] = Field(
        default="holding", description="Table that is read: holding registers (4x) or input registers (3x)."
    )
    one_round_trip: bool = Field(
        default=False,
        description="Whether to write and read by one request (function 23), where the PLC has it and reads holding "
        "registers; two requests otherwise.",
    )
    eject_coil: Register | None = Field(
        default=None,
        description="Coil that is also switched with the ejector (function 5), for an output module without registers.",
    )

    @model_validator(mode="after")
    def _blocks_fit(self) -> ModbusAdapterSettings:
        if self.outputs_register > 65_536 - 8 or self.inputs_register > 65_536 - 7:
            raise ValueError("outputs_register, inputs_register: the blocks of 8 and 7 registers end beyond 65535")
        if self.inputs_table == "holding" and -7 < self.inputs_register - self.outputs_register < 8:
            raise ValueError(
                f"outputs_register = {self.outputs_register} and inputs_register = {self.inputs_register}: the blocks "
                "of 8 and 7 registers overlap"
            )
        if self.one_round_trip and self.inputs_table != "holding":
            raise ValueError('one_round_trip: function 23 reads holding registers; set inputs_table = "holding"')
        return self


class PluginAdapter(AdapterSection):
    """An adapter of a third party, by the name of its entry point."""

    type: Literal["plugin"] = Field(description="Protocol.")
    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="Name of the entry point in the group edge_inspect.plc."
    )
    options: dict[str, Any] = Field(default={}, description="Its own settings.")

"""Modbus TCP: the blocks as registers, by pymodbus.

Modbus Application Protocol V1.1b3: function 16 (6.12) writes the outputs and function 3 or 4 (6.3, 6.4) reads the
inputs, or function 23 (6.17) does both, the write first, in one round trip. Numbers of more than 16 bits have their
high word first, as registers have their high byte first (4.2).

pymodbus would connect again by itself and repeat requests; both is switched off here, for a repeated write may arrive
long after it was meant. A dropped connection is reset, not closed: what was not sent yet is thrown away. What a frozen
server has received already it may still carry out when it thaws; that is what part numbers and `valid` are for.
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Callable

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ExceptionResponse, ModbusPDU

from edge.alert.plc.adapter import Inputs, Outputs
from edge.alert.plc.blocks import INPUT_WORDS, OUTPUT_WORDS, pack_outputs, unpack_inputs
from edge.errors import PlcError, PlcTimeout
from edge.settings_plc_adapters import AdapterSection, ModbusAdapterSettings

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST and forgets what is unsent
_OUTPUT_LAYOUT = struct.Struct(f">{OUTPUT_WORDS}H")
_INPUT_LAYOUT = struct.Struct(f">{INPUT_WORDS}H")
_ADVICE = {  # Modbus exception codes (section 7) that a wrong setting causes
    1: "the PLC does not have this function; try inputs_table, or one_round_trip = false",
    2: "the PLC has no such registers; check outputs_register, inputs_register and eject_coil (counted from 0)",
    3: "the PLC refuses the size or value of the block",
    4: "the PLC failed",
    6: "the PLC is busy",
    10: "the gateway has no path to the device; check device_id",
    11: "the device behind the gateway does not answer; check device_id",
}


class ModbusAdapter:
    """One connection to one Modbus TCP server."""

    Settings: type[AdapterSection] = ModbusAdapterSettings

    def __init__(self, settings: ModbusAdapterSettings) -> None:
        self.name = f"modbus {settings.host}:{settings.port}"
        self._settings = settings
        self._timeout_s = settings.timeout_ms / 1000
        self._client: ModbusTcpClient | None = None
        self._coil: bool | None = None  # as last written on this connection
        # Every failure is raised as an error; pymodbus would log it as well.
        logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

    def connect(self) -> None:
        """Connects, and reads the inputs once. Raises `PlcTimeout` or `PlcError`."""
        self.close()
        until = time.monotonic() + self._timeout_s
        client = ModbusTcpClient(
            self._settings.host, port=self._settings.port, timeout=self._timeout_s, retries=0, name=self.name
        )
        if not client.connect() or client.socket is None:  # type: ignore[no-untyped-call]
            raise PlcError(
                f"{self.name}: no connection within {self._settings.timeout_ms:g} ms; check host and port in "
                "[plc.adapter], that the PLC's Modbus server is on, and that it has a connection free"
            )
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = client
        self._read(until)

    def exchange(self, outputs: Outputs) -> Inputs:
        """Writes the block and reads the other. Raises `PlcTimeout` or `PlcError`."""
        until = time.monotonic() + self._timeout_s
        words = list(_OUTPUT_LAYOUT.unpack(pack_outputs(outputs)))
        settings = self._settings
        coil = settings.eject_coil
        if coil is not None and outputs.eject != self._coil:
            client = self._ready(until)
            self._ask(lambda: client.write_coil(coil, outputs.eject, device_id=settings.device_id))
            self._coil = outputs.eject
        if settings.one_round_trip:
            client = self._ready(until)
            answer = self._ask(
                lambda: client.readwrite_registers(
                    read_address=settings.inputs_register,
                    read_count=INPUT_WORDS,
                    write_address=settings.outputs_register,
                    values=words,
                    device_id=settings.device_id,
                )
            )
            return self._inputs(answer)
        client = self._ready(until)
        self._ask(lambda: client.write_registers(settings.outputs_register, words, device_id=settings.device_id))
        return self._read(until)

    def close(self) -> None:
        """Resets the connection."""
        client, self._client, self._coil = self._client, None, None
        if client is not None:
            client.close()  # type: ignore[no-untyped-call]

    def _read(self, until: float) -> Inputs:
        client = self._ready(until)
        read = (
            client.read_holding_registers if self._settings.inputs_table == "holding" else client.read_input_registers
        )
        first, device = self._settings.inputs_register, self._settings.device_id
        return self._inputs(self._ask(lambda: read(first, count=INPUT_WORDS, device_id=device)))

    def _ready(self, until: float) -> ModbusTcpClient:
        """The client, with the time that is left as its time-out. Never one that would connect by itself."""
        client = self._client
        if client is None or client.socket is None:
            raise PlcError(f"{self.name}: not connected")
        left = until - time.monotonic()
        if left <= 0:
            raise PlcTimeout(self._late())
        client.comm_params.timeout_connect = left
        client.socket.settimeout(left)
        return client

    def _ask(self, request: Callable[[], ModbusPDU]) -> ModbusPDU:
        began = time.monotonic()
        try:
            answer = request()
        except (ModbusException, OSError, struct.error) as error:
            timeout = self._client.comm_params.timeout_connect if self._client else None
            if isinstance(error, TimeoutError) or (timeout is not None and time.monotonic() - began >= timeout):
                raise PlcTimeout(self._late()) from error
            raise PlcError(f"{self.name}: the connection failed: {error}") from error
        if isinstance(answer, ExceptionResponse):
            advice = _ADVICE.get(answer.exception_code, "see the PLC's manual")
            raise PlcError(f"{self.name}: Modbus exception {answer.exception_code}: {advice}")
        return answer

    def _inputs(self, answer: ModbusPDU) -> Inputs:
        if len(answer.registers) != INPUT_WORDS:
            raise PlcError(f"{self.name}: {len(answer.registers)} registers came, {INPUT_WORDS} were asked for")
        return unpack_inputs(_INPUT_LAYOUT.pack(*answer.registers))

    def _late(self) -> str:
        return (
            f"{self.name}: no answer within {self._settings.timeout_ms:g} ms; check the network and the PLC's cycle "
            "time, or raise timeout_ms in [plc.adapter]"
        )

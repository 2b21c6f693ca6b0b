"""Siemens S7 over ISO on TCP (RFC 1006), port 102: the register map of blocks.py in two data blocks.

Two requests: the inputs are read, then the outputs are written in one request, whose bytes the CPU takes together. In
that order, because a CPU that hangs then leaves a read behind, never a result that is applied when it wakes up:
closing a connection does not take back what the other side's system has already received.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from typing import ClassVar

from snap7 import Client
from snap7.connection import ISOTCPConnection
from snap7.error import S7Error, S7TimeoutError

from edge.alert.plc.adapter import Inputs, Outputs
from edge.alert.plc.blocks import INPUT_BYTES, pack_outputs, unpack_inputs
from edge.errors import PlcError, PlcTimeout
from edge.settings_plc_protocols import S7AdapterSettings

CONNECT_S = 2.0  # TCP, ISO connection and negotiation are three round trips

# Its warnings name nothing that our errors do not; the session reports those.
logging.getLogger("snap7").setLevel(logging.CRITICAL + 1)


class _Client(Client):
    """The library's client, with a time-out on connecting: its own is 5 s, longer than a line can wait."""

    def dial(self, host: str, port: int, rack: int, slot: int) -> None:
        """Connects and negotiates. Raises `S7Error`, `OSError`."""
        self.host, self.port, self.rack, self.slot = host, port, rack, slot
        self.remote_tsap = (self.connection_type << 8) | (rack << 5) | slot
        self.connection = ISOTCPConnection(host, port, self.local_tsap, self.remote_tsap)
        self.connection.connect(CONNECT_S)
        self._setup_communication()
        self.connected = True


class S7Adapter:
    """An S7-300, -400, -1200 or -1500, or whatever speaks as they do."""

    Settings: ClassVar[type[S7AdapterSettings]] = S7AdapterSettings

    def __init__(self, settings: S7AdapterSettings) -> None:
        self._settings = settings
        self.name = f"s7 {settings.host}:{settings.port}"
        self._client: _Client | None = None

    def connect(self) -> None:
        """Connects and reads the inputs once. Raises `PlcTimeout` or `PlcError`."""
        self.close()
        try:
            self._open()
        except PlcError:
            self.close()
            raise

    def exchange(self, outputs: Outputs) -> Inputs:
        """Reads the inputs, then writes the outputs."""
        client = self._client
        if client is None:
            raise PlcError(f"{self.name}: not connected")
        deadline = self._deadline()
        inputs = self._read(client, deadline)
        self._write(client, outputs, deadline)
        return inputs

    def close(self) -> None:
        """Drops the connection without a farewell: waiting for the CPU to confirm it would block."""
        client, self._client = self._client, None
        connection = client.connection if client is not None else None
        if connection is not None and connection.socket is not None:
            with contextlib.suppress(OSError):
                connection.socket.close()
            connection.socket = None
            connection.connected = False

    def _open(self) -> None:
        settings = self._settings
        client = self._client = _Client()
        try:
            client.dial(settings.host, settings.port, settings.rack, settings.slot)
        except S7TimeoutError as error:
            raise PlcTimeout(f"{self.name}: no answer to the connection request in {CONNECT_S:g} s") from error
        except (S7Error, OSError) as error:
            raise PlcError(
                f"{self.name}: cannot connect: {_reason(error)}; check the address, rack {settings.rack} and slot "
                f"{settings.slot}"
            ) from error
        self._read(client, self._deadline())

    def _read(self, client: _Client, deadline: float) -> Inputs:
        settings = self._settings
        what = f"DB{settings.inputs_db}.DBB{settings.inputs_offset}"
        try:
            self._time(client, deadline, what)
            data = client.db_read(settings.inputs_db, settings.inputs_offset, INPUT_BYTES)
        except (S7Error, OSError) as error:
            raise self._failure(error, f"read {INPUT_BYTES} bytes from {what}") from error
        return unpack_inputs(bytes(data))

    def _write(self, client: _Client, outputs: Outputs, deadline: float) -> None:
        settings = self._settings
        what = f"DB{settings.outputs_db}.DBB{settings.outputs_offset}"
        data = bytearray(pack_outputs(outputs))
        try:
            self._time(client, deadline, what)
            client.db_write(settings.outputs_db, settings.outputs_offset, data)
        except (S7Error, OSError) as error:
            raise self._failure(error, f"write {len(data)} bytes to {what}") from error

    def _time(self, client: _Client, deadline: float, what: str) -> None:
        """Gives the socket what is left of the exchange's time."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise PlcTimeout(f"{self.name}: {what}: no time left of timeout_ms = {self._settings.timeout_ms:g}")
        connection: socket.socket | None = client.connection.socket if client.connection is not None else None
        if connection is None:
            raise PlcError(f"{self.name}: the connection is lost")
        connection.settimeout(remaining)

    def _failure(self, error: Exception, what: str) -> PlcError:
        if isinstance(error, (S7TimeoutError, TimeoutError)):
            return PlcTimeout(f"{self.name}: no answer within {self._settings.timeout_ms:g} ms: {what}")
        return PlcError(
            f"{self.name}: cannot {what}: {_reason(error)}; the block must exist, be long enough, not be 'optimized', "
            "and PUT/GET must be permitted"
        )

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.timeout_ms / 1000


def _reason(error: Exception) -> str:
    """What a person can use of the library's message, on one line."""
    return " ".join(str(error).split()) or type(error).__name__

"""EtherNet/IP: two arrays of DINT in a Logix controller, read and written by name (CIP services 0x4C and 0x4D).

    outputs, DINT[7]                     inputs, DINT[5]
    0   bit 0 ready, 1 eject,            0   bit 0 run
        2 lowest bit of valid            1   ack
    1   heartbeat                        2   parts
    2   fault                            3   part (the bits of a UDINT)
    3   trigger                          4   encoder
    4   part (the bits of a UDINT)
    5   result
    6   valid

Two requests: the inputs are read, then the whole array of outputs is written by one. In that order, because a
controller that hangs then leaves a read behind, never a result that is applied when it wakes up: closing a connection
does not take back what the other side's system has already received.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any, ClassVar

from pylogix import PLC
from pylogix.lgx_comm import Connection

from edge.alert.plc.adapter import UINT16, UINT32, Inputs, Outputs
from edge.alert.plc.blocks import EJECT, READY, RUN, TOGGLE
from edge.errors import PlcError, PlcTimeout
from edge.settings_plc_protocols import EthernetIpAdapterSettings

CONNECT_S = 2.0  # session and connection together; TCP has as much again
_DINT = 0xC4  # CIP data type code (CIP Vol. 1, appendix C); told, so that the library need not ask the controller
_SIGN = 0x8000_0000
_INPUTS = 5
_HEADER = 24


class _Connection(Connection):  # type: ignore[misc] # the library has no types
    """The library's connection, with a reception that ends: its own spins for ever where a peer closes half-way."""

    deadline = 0.0  # of what is received, monotonic seconds

    def receive_data(self) -> bytes | None:
        """One encapsulated message (CIP Vol. 2, 2-3: 24 bytes of header, its length at byte 2); None if none came."""
        data = b""
        try:
            while len(data) < _HEADER or len(data) < _HEADER + int.from_bytes(data[2:4], "little"):
                self.Socket.settimeout(max(self.deadline - time.monotonic(), 1e-3))
                part = self.Socket.recv(4096)
                if not part or time.monotonic() > self.deadline:
                    return None
                data += part
        except OSError:
            return None
        return data


class EthernetIpAdapter:
    """A ControlLogix or CompactLogix, or whatever serves tags as they do."""

    Settings: ClassVar[type[EthernetIpAdapterSettings]] = EthernetIpAdapterSettings

    def __init__(self, settings: EthernetIpAdapterSettings) -> None:
        self._settings = settings
        self.name = f"ethernetip {settings.host}:{settings.port}"
        self._plc: Any = None  # the library has no types
        self._failed = False

    def connect(self) -> None:
        """Opens session and connection, and reads the inputs once. Raises `PlcTimeout` or `PlcError`."""
        self.close()
        try:
            self._open()
        except PlcError:
            self.close()
            raise

    def exchange(self, outputs: Outputs) -> Inputs:
        """Reads the inputs, then writes the outputs."""
        plc = self._plc
        if plc is None or self._failed:
            raise PlcError(f"{self.name}: not connected")
        deadline = self._deadline()
        inputs = self._read(plc, deadline)
        tag = self._settings.outputs_tag
        self._request(plc, deadline, f"write {tag}", lambda: plc.Write(tag, _dints(outputs), _DINT))
        return inputs

    def close(self) -> None:
        """Closes the connection in order where the controller still answers: it has room for few."""
        plc, self._plc = self._plc, None
        if plc is None:
            return
        with contextlib.suppress(Exception):
            if not self._failed:
                plc.conn.deadline = self._deadline()
                plc.Close()
        _close(plc.conn)

    def _open(self) -> None:
        settings = self._settings
        self._failed = False
        plc = self._plc = PLC(settings.host, settings.slot, CONNECT_S, port=settings.port)
        _close(plc.conn)
        plc.conn = _Connection(plc)
        plc.conn.deadline = time.monotonic() + 2 * CONNECT_S
        try:
            connected, reason = plc.conn.connect()
        except Exception as error:  # the library parses what the network brings without checking
            connected, reason = False, error
        if not connected:
            self._failed = True
            raise PlcError(f"{self.name}: cannot connect: {_line(reason)}; check the address and slot {settings.slot}")
        plc.conn.Socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read(plc, self._deadline())

    def _read(self, plc: Any, deadline: float) -> Inputs:
        tag = self._settings.inputs_tag
        answer = self._request(plc, deadline, f"read {tag}", lambda: plc.Read(tag, _INPUTS, _DINT))
        values = answer if isinstance(answer, list) else [answer]
        if len(values) != _INPUTS or not all(type(value) is int for value in values):
            raise PlcError(f"{self.name}: {tag}: {values!r:.60} are not {_INPUTS} DINT; make the tag DINT[{_INPUTS}]")
        flags, ack, parts, part, encoder = values
        for name, value in (("[1] (ack)", ack), ("[2] (parts)", parts)):
            if not 0 <= value <= UINT16:
                self._failed = True
                raise PlcError(
                    f"{self.name}: {tag}{name} = {value} is not from 0 to {UINT16}; correct the PLC's program"
                )
        return Inputs(ack=ack, parts=parts, part=part & UINT32, encoder=encoder, run=bool(flags & RUN))

    def _request(self, plc: Any, deadline: float, what: str, call: Any) -> Any:
        """Runs one request within what is left of the time. Raises `PlcTimeout` or `PlcError`."""
        timeout = f"{self.name}: no answer within {self._settings.timeout_ms:g} ms: {what}"
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            self._failed = True
            raise PlcTimeout(timeout)
        try:
            plc.conn.deadline = deadline
            plc.conn.Socket.settimeout(remaining)
            answer = call()
        except Exception as error:  # the library parses what the network brings without checking
            self._failed = True
            raise PlcError(f"{self.name}: cannot {what}: {_line(error)}") from error
        if answer.Status == "Success":
            return answer.Value
        self._failed = answer.Status == "Connection failure"  # the library's word for a lost or silent connection
        if self._failed and time.monotonic() >= deadline:
            raise PlcTimeout(timeout)
        if self._failed:
            raise PlcError(f"{self.name}: the connection is lost: {what}")
        raise PlcError(
            f"{self.name}: cannot {what}: {_line(answer.Status)}; the tag must exist in the controller's scope "
            "with type DINT, and external access must be Read/Write"
        )

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.timeout_ms / 1000


def _close(connection: Any) -> None:
    for sock in (connection.Socket, connection.msg_socket):  # it makes the second one for nothing
        with contextlib.suppress(OSError):
            sock.close()


def _dints(outputs: Outputs) -> list[int]:
    flags = READY * outputs.ready | EJECT * outputs.eject | TOGGLE * (outputs.valid & 1)
    part = outputs.part - 2 * _SIGN if outputs.part & _SIGN else outputs.part
    return [flags, outputs.heartbeat, outputs.fault, outputs.trigger, part, int(outputs.result), outputs.valid]


def _line(reason: object) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__

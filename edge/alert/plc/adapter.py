"""What every PLC looks like to the handshake: one block of outputs, one block of inputs, exchanged in one go.

An adapter knows its protocol and nothing else: no retries, no threads, no decisions. It is used from one thread. A
new one is a class with the settings it takes, found by name (`registry`); third parties bring theirs as an entry point
of the group `edge_inspect.plc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Protocol, runtime_checkable

from edge.settings_plc_adapters import AdapterSection

UINT16 = 0xFFFF
UINT32 = 0xFFFF_FFFF


class Result(IntEnum):
    """The verdict on a part, as the PLC reads it."""

    NONE = 0  # no result in this block
    PASS = 1
    REJECT = 2
    UNJUDGED = 3  # not judged in time: acts as REJECT; told apart only to be counted


class Fault(IntEnum):
    """What is wrong on our side, as the PLC reads it. Everything but NONE is an alarm on the panel."""

    NONE = 0
    SILENT = 1  # the process that gives verdicts is silent: no results are to be expected
    NOT_ACKNOWLEDGED = 2  # the PLC did not take a result in its time
    UNKNOWN_OUTCOME = 3  # a result was sent and the connection failed: whether it arrived is not known
    LATE = 4  # a verdict came too late to be sent
    OVERFLOW = 5  # verdicts come faster than the PLC takes results
    MISSED = 6  # a pulse of the ejector was not sent: it would have come too late, or hit another part
    STOPPED = 7  # this side is stopping
    STARTING = 8  # this side, or alert, has just started: verdicts on parts that are on their way may be lost


@dataclass(frozen=True, slots=True)
class Outputs:
    """What we tell the PLC: written as one block, in one round trip where the protocol can."""

    ready: bool = False  # results may be expected
    heartbeat: int = 0  # uint16, +1 with each exchange while everything behind it lives
    fault: int = Fault.NONE  # uint16, of `Fault`
    part: int = 0  # uint32, the part number of `result`
    result: Result = Result.NONE
    valid: int = 0  # uint16, changes with each new result, never 0; its lowest bit is the toggle
    eject: bool = False  # direct drive of the ejector, where the PLC does not time it itself
    trigger: int = 0  # uint16, +1 asks for one software trigger (where configured)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the PLC tells us."""

    ack: int = 0  # uint16, `valid` of the last result that the PLC accepted, or of the last block without one
    parts: int = 0  # uint16, parts the PLC has counted at the camera; wraps
    part: int = 0  # uint32, the PLC's number of the part at the camera
    encoder: int = 0  # int32, belt counts; wraps
    run: bool = False  # the line is in production


@runtime_checkable
class Adapter(Protocol):
    """One connection to one PLC. Made as `cls(settings)` without touching the network; used from one thread."""

    Settings: ClassVar[type[AdapterSection]]  # the model of its settings (unknown keys refused)
    name: str  # for people: "modbus 192.0.2.1:502"

    def connect(self) -> None:
        """Connects, and proves by one read that the PLC answers. Nothing is written.

        Raises `PlcTimeout` or `PlcError` in one line: address, what failed, the fix. Safe to call again after `close`.
        """
        ...

    def exchange(self, outputs: Outputs) -> Inputs:
        """Writes all of `outputs`, then reads the inputs; one round trip where the protocol can.

        Takes no longer than `timeout_ms` of its settings. Raises `PlcTimeout` where the answer did not come in that
        time, `PlcError` for any other failure. After either it is unknown whether the outputs were applied; the
        caller then calls `close`.
        """
        ...

    def close(self) -> None:
        """Drops the connection, so that as little as possible of what is under way is still applied.

        Never raises, never blocks for longer than the time-out; safe to call twice and before `connect`.
        """
        ...

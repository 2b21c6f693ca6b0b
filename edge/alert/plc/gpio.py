"""Digital lines of this computer (the kernel's GPIO character device, by libgpiod 2): one ejector, some lamps.

Lines carry no part numbers, so this is for the ejector timed by us (`eject.mode = "direct"`), not for a handshake.
All outputs are set by one call, which the kernel applies together where the chip can. The kernel lets go of the lines
when this program dies, and what they show then is up to the driver: a relay that must fall off needs the heartbeat
line and a watchdog relay behind it.

Not tried on hardware: no chip was at hand. The mapping of lines and all errors are tested without one.
"""

from __future__ import annotations

import datetime
import errno
import itertools
from collections.abc import Iterable
from typing import ClassVar

import gpiod
from gpiod.line import Bias, Direction, Edge, Value

from edge.alert.plc.adapter import UINT16, Inputs, Outputs, Result
from edge.errors import PlcError
from edge.settings_plc_protocols import GpioAdapterSettings

EVENTS = 64  # rising edges that the kernel keeps between two exchanges; more are lost, and the count says so

LineKey = Iterable[int | str] | int | str  # what libgpiod takes for lines; we name each by its number


class GpioAdapter:
    """Lines of one GPIO chip."""

    Settings: ClassVar[type[GpioAdapterSettings]] = GpioAdapterSettings

    def __init__(self, settings: GpioAdapterSettings) -> None:
        self._settings = settings
        self.name = f"gpio {settings.chip}"
        self._request: gpiod.LineRequest | None = None
        self._parts = 0
        self._edges_seen = 0  # the kernel's own number of the last edge on the trigger line

    def connect(self) -> None:
        """Takes the lines; outputs start switched off. Raises `PlcError`."""
        self.close()
        settings = self._settings
        try:
            self._request = gpiod.request_lines(
                settings.chip, line_config(settings), consumer="edge-inspect", event_buffer_size=EVENTS
            )
        except (OSError, ValueError) as error:
            raise PlcError(f"{self.name}: {_fault(error, settings)}") from error
        self._parts = self._edges_seen = 0

    def exchange(self, outputs: Outputs) -> Inputs:
        """Sets all outputs, then reads the inputs. Raises `PlcError` where the chip is gone."""
        request, settings = self._request, self._settings
        if request is None:
            raise PlcError(f"{self.name}: not connected")
        on = levels(outputs)
        try:
            request.set_values({line: _value(on[name]) for name, line in settings.output_lines.items()})
            run = settings.run is None or request.get_value(settings.run) is Value.ACTIVE
            if settings.trigger is not None and request.wait_edge_events(datetime.timedelta(0)):
                # By the kernel's numbers, not by how many events we got: it drops what finds no room.
                last = request.read_edge_events(EVENTS)[-1].line_seqno
                self._parts = (self._parts + last - self._edges_seen) & UINT16
                self._edges_seen = last
        except OSError as error:
            raise PlcError(f"{self.name}: {_fault(error, settings)}") from error
        return Inputs(parts=self._parts, part=self._parts, run=run)

    def close(self) -> None:
        """Lets go of the lines; what they show then is up to the chip's driver."""
        request, self._request = self._request, None
        if request is not None:
            request.release()


def levels(outputs: Outputs) -> dict[str, bool]:
    """Which outputs are on, by the name of their setting."""
    judged = outputs.ready and outputs.result is not Result.NONE
    return {
        "ready": outputs.ready,
        "heartbeat": bool(outputs.heartbeat & 1),
        "passed": judged and outputs.result is Result.PASS,
        "rejected": judged and outputs.result is not Result.PASS,
        "valid": bool(outputs.valid & 1),
        "fault": outputs.fault != 0,
        "eject": outputs.eject,
    }


def line_config(settings: GpioAdapterSettings) -> dict[LineKey, gpiod.LineSettings | None]:
    """What to ask of the kernel for every line."""
    low = set(settings.active_low)
    debounce = datetime.timedelta(milliseconds=settings.debounce_ms)
    config: dict[LineKey, gpiod.LineSettings | None] = {}
    for line in settings.output_lines.values():
        config[line] = gpiod.LineSettings(
            direction=Direction.OUTPUT, output_value=Value.INACTIVE, active_low=line in low
        )
    for name, line in settings.input_lines.items():
        config[line] = gpiod.LineSettings(
            direction=Direction.INPUT,
            edge_detection=Edge.RISING if name == "trigger" else Edge.NONE,
            bias=Bias.AS_IS,
            debounce_period=debounce,
            active_low=line in low,
        )
    return config


def _value(on: bool) -> Value:
    return Value.ACTIVE if on else Value.INACTIVE


def _fault(error: OSError | ValueError, settings: GpioAdapterSettings) -> str:
    number = error.errno if isinstance(error, OSError) else None
    lines = ", ".join(map(str, itertools.chain(settings.output_lines.values(), settings.input_lines.values())))
    if number == errno.ENOENT:
        return "no such chip; `gpiodetect` lists those there are"
    if number in (errno.EACCES, errno.EPERM):
        return "may not be opened by this user; add the user to the group that owns it (often `gpio`)"
    if number == errno.EBUSY:
        return f"one of the lines {lines} is used by another program or driver; `gpioinfo` names it"
    if number in (errno.ENOTTY, errno.ENODEV):
        return "is not a GPIO chip, or is gone; `gpiodetect` lists those there are"
    if number == errno.EINVAL or isinstance(error, ValueError):
        return f"has not all of the lines {lines}, or cannot do what is asked of them ({error}); see `gpioinfo`"
    return f"fails: {error}"

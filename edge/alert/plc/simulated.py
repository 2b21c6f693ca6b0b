"""A PLC inside this process, and an adapter that speaks to it: for tests, and for trying a line without a PLC.

The PLC runs the program of docs/plc/edge_inspect.st in cycles of `scan_ms`. Each exchange may be told to go wrong in
the ways in which real ones do (`Mishap`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import Enum

from edge.alert.plc.adapter import Inputs, Outputs, Result
from edge.alert.plc.program import PlcProgram
from edge.errors import PlcError, PlcTimeout
from edge.settings_plc_adapters import AdapterSection, SimulatedAdapterSettings

SCANS_MOST = 1000  # caught up with at once


class Mishap(Enum):
    """What becomes of one exchange, or of one attempt to connect."""

    NONE = "none"
    LOST = "lost"  # the block does not arrive, no answer comes
    UNHEARD = "unheard"  # the block arrives, its answer does not
    FROZEN = "frozen"  # the PLC hangs: the block lies in its queue and is applied when it thaws
    REFUSED = "refused"  # an error at once: the block does not arrive


class SimulatedPlc:
    """The PLC: cycles, the block it last received, and parts at its camera.

    `clock` gives nanoseconds. `invents_parts`: no sensor is simulated, a part is taken as seen when its result comes.
    """

    def __init__(
        self,
        program: PlcProgram | None = None,
        scan_ms: float = 10.0,
        clock: Callable[[], int] = time.monotonic_ns,
        invents_parts: bool = False,
    ) -> None:
        self.program = program or PlcProgram()
        self.block = Outputs()
        self.decided: deque[tuple[int, bool]] = deque(maxlen=65_536)  # part, whether it was rejected
        self.frozen = False
        self._scan_ns = round(scan_ms * 1e6)
        self._clock = clock
        self._next_ns = clock()
        self._invents_parts = invents_parts
        self._arrivals: deque[int] = deque()  # when parts come to the camera
        self._stale: deque[Outputs] = deque(maxlen=64)

    def arrive(self, at_ns: int) -> None:
        """A part comes to the camera at that time; later than those before."""
        self._arrivals.append(at_ns)

    def apply(self, block: Outputs) -> None:
        """The block arrives; a frozen PLC finds it when it thaws."""
        self.run()
        if self.frozen:
            self._stale.append(block)
        else:
            self._set(block)

    def thaw(self) -> None:
        """The PLC goes on: it finds all that was sent meanwhile, one after the other, with a cycle between."""
        self.frozen = False
        while self._stale:
            self._set(self._stale.popleft())
            self._scan(self._clock(), False)

    def run(self) -> Inputs:
        """All cycles up to now; what the PLC shows then."""
        now = self._clock()
        self._next_ns = max(self._next_ns, now - SCANS_MOST * self._scan_ns)
        while self._next_ns <= now:
            seen = bool(self._arrivals) and self._arrivals[0] <= self._next_ns
            self._scan(self._next_ns, seen)
            if seen:
                self._arrivals.popleft()
                self._scan(self._next_ns, False)  # the sensor is free again before the next part
            self._next_ns += self._scan_ns
        return self.program.inputs(encoder=now // 1_000_000 & 0x7FFF_FFFF)

    def _set(self, block: Outputs) -> None:
        if self._invents_parts and block.result is not Result.NONE and block.valid != self.block.valid:
            self.program.part = block.part - 1
            self._scan(self._clock(), True)
            self._scan(self._clock(), False)
        self.block = block

    def _scan(self, at_ns: int, at_camera: bool) -> None:
        now_ms = at_ns // 1_000_000
        self.program.scan(self.block, now_ms, now_ms, at_camera)
        self.decided.extend(self.program.decided)


class SimulatedAdapter:
    """Speaks to a `SimulatedPlc`; `mishaps` says what becomes of the next exchanges and attempts to connect."""

    Settings: type[AdapterSection] = SimulatedAdapterSettings

    def __init__(
        self,
        settings: SimulatedAdapterSettings,
        plc: SimulatedPlc | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = "simulated"
        self.plc = plc or SimulatedPlc(scan_ms=settings.scan_ms, invents_parts=True)
        self.mishaps: deque[Mishap] = deque()
        self._timeout_s = settings.timeout_ms / 1000
        self._sleep = sleep
        self._connected = False

    def connect(self) -> None:
        """Connects. Raises `PlcTimeout` where the PLC is frozen, `PlcError` where it refuses."""
        mishap = self._mishap()
        if mishap is Mishap.REFUSED:
            raise PlcError("simulated: connection refused")
        if mishap is not Mishap.NONE or self.plc.frozen:
            self._time_out()
        self._connected = True

    def exchange(self, outputs: Outputs) -> Inputs:
        """One round trip, without delay unless it goes wrong."""
        if not self._connected:
            raise PlcError("simulated: not connected")
        mishap = self._mishap()
        if mishap is Mishap.REFUSED:
            raise PlcError("simulated: the PLC refuses the block")
        if mishap is Mishap.FROZEN:
            self.plc.frozen = True
        if mishap is not Mishap.LOST:
            self.plc.apply(outputs)
        if mishap is not Mishap.NONE or self.plc.frozen:
            self._time_out()
        return self.plc.run()

    def close(self) -> None:
        """Drops the connection. What a frozen PLC has in its queue stays there."""
        self._connected = False

    def _mishap(self) -> Mishap:
        return self.mishaps.popleft() if self.mishaps else Mishap.NONE

    def _time_out(self) -> None:
        self._sleep(self._timeout_s)
        raise PlcTimeout(f"simulated: no answer within {1000 * self._timeout_s:g} ms")

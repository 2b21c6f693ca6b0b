"""The PLC's side of the handshake in Python: docs/plc/edge_inspect.st statement by statement, for the simulated PLC.

Names and order are the Structured Text's; the tests run both on the same inputs and compare every output.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edge.alert.plc.adapter import UINT16, UINT32, Inputs, Outputs

PLACES = 64
LIVE_BEATS = 3


@dataclass(slots=True)
class _Part:
    number: int
    seen_ms: int
    seen_at: int
    verdict: int = 0


@dataclass(slots=True)
class PlcProgram:
    """FB_EdgeInspect: call `scan` once per cycle."""

    pass_on_good: bool = True
    window_ms: int = 1100
    silence_ms: int = 500
    travel: int = 2000
    pulse_ms: int = 50
    direct: bool = False

    eject: bool = False
    healthy: bool = False
    overflow: bool = False
    ack: int = 0
    parts: int = 0
    part: int = 0
    passed: int = 0
    rejected: int = 0
    no_result: int = 0
    ignored: int = 0
    decided: list[tuple[int, bool]] = field(default_factory=list)  # part and whether it was rejected, of this scan

    _way: list[_Part] = field(default_factory=list)
    _at_camera_old: bool = False
    _beat_old: int = 0
    _beat_ms: int = 0
    _beats: int = 0
    _valid_old: int = 0
    _pulse_from: int = 0

    def scan(self, block: Outputs, now_ms: int, belt: int, at_camera: bool = False, reset: bool = False) -> None:
        """One cycle. `now_ms` wraps at 32 bits, `belt` grows; a rising edge of `at_camera` is one part."""
        now_ms &= UINT32
        self._life(block, now_ms)
        self._camera(now_ms, belt, at_camera, reset)
        if self.direct:
            self._way.clear()
        self._take(block, now_ms)
        if not self.pass_on_good and (not self.healthy or block.fault != 0):
            for part in self._way:
                part.verdict = part.verdict or 3
        self._decide(now_ms, belt)
        if self.direct:
            self.eject = block.eject if self.healthy else self.pass_on_good
            return
        if self.eject and (now_ms - self._pulse_from) & UINT32 >= self.pulse_ms and not self.overflow:
            self.eject = False
        if self.overflow:
            self.eject = True

    def inputs(self, encoder: int = 0, run: bool = True) -> Inputs:
        """The block that the line computer reads."""
        return Inputs(ack=self.ack, parts=self.parts, part=self.part, encoder=encoder, run=run)

    def _life(self, block: Outputs, now_ms: int) -> None:
        silent = (now_ms - self._beat_ms) & UINT32 > self.silence_ms
        if block.heartbeat != self._beat_old:
            self._beats = 1 if silent else min(self._beats + 1, LIVE_BEATS)
            self._beat_old, self._beat_ms = block.heartbeat, now_ms
        elif silent:
            self._beats = 0
        self.healthy = self._beats >= LIVE_BEATS and block.ready

    def _camera(self, now_ms: int, belt: int, at_camera: bool, reset: bool) -> None:
        if at_camera and not self._at_camera_old:
            self.part = (self.part + 1) & UINT32
            self.parts = (self.parts + 1) & UINT16
            if len(self._way) < PLACES:
                self._way.append(_Part(self.part, now_ms, belt))
            else:
                self.overflow = True
        self._at_camera_old = at_camera
        if reset and not self._way:
            self.overflow = False

    def _take(self, block: Outputs, now_ms: int) -> None:
        if self._beats < LIVE_BEATS or block.valid == self._valid_old:
            return
        self._valid_old = block.valid
        if block.result == 0:
            self.ack = block.valid
            return
        found = False
        for part in self._way:
            if part.number == block.part and (now_ms - part.seen_ms) & UINT32 <= self.window_ms:
                found = True
                if part.verdict == 0 or block.result != 1:
                    part.verdict = int(block.result)
        if found:
            self.ack = block.valid
        else:
            self.ignored += 1

    def _decide(self, now_ms: int, belt: int) -> None:
        self.decided.clear()
        while self._way and belt - self._way[0].seen_at >= self.travel:
            part = self._way.pop(0)
            reject = part.verdict != 1 if self.pass_on_good else part.verdict > 1
            self.no_result += part.verdict == 0
            reject = reject or self.overflow
            if reject:
                self.rejected += 1
                self._pulse_from, self.eject = now_ms, True
            else:
                self.passed += 1
            self.decided.append((part.number, reject))

"""The PLC's process: rulings in, the handshake out, at the right moment whatever else happens on this computer.

It does nothing but this: no disk, no pixels, no waiting for anybody but the PLC, and that within its time-out. So
neither the ledger nor the archive delays a pulse, and when anything else dies, this process takes the outputs to safe.
When it dies itself, the heartbeat stops, and the PLC rejects.

A turn waits, for rulings, until shortly before the next thing is due; sleeps the rest by the clock; and exchanges.
What it logs is written by another thread, because a terminal or a journal that stands still would hold up the turn.
"""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import sys
import threading
import time
from collections.abc import Callable

from edge.alert.plc.handshake import Alarm
from edge.alert.plc.registry import make_adapter
from edge.alert.plc.session import Session
from edge.errors import MessageError
from edge.messages import Health, PlcAnswer, Ruling, decode, now_ns
from edge.process import Process
from edge.settings import PlcSettings, Settings
from edge.transport import Inbox

TURN_NS = 100_000_000  # longest wait in one turn
PRECISE_NS = 1_500_000  # before something is due, sleep by the clock instead of waiting for messages
MESSAGES_PER_TURN = 256
COMPLAIN_NS = 2_000_000_000  # the same fault is logged no more often
SAID_MOST = 256
SWITCH_S = 0.0005  # of the interpreter's lock: the logging thread never holds it longer while a pulse is due
PR_SET_TIMERSLACK = 29


class PlcProcess(Process):
    """`edge plc-run line.toml`: one line's PLC."""

    def __init__(self, settings: Settings, plc: PlcSettings) -> None:
        super().__init__("plc", settings)
        self._plc = plc
        self._session: Session | None = None
        self._inbox: Inbox | None = None
        self._writer = _Writer()
        self._alert_pid = 0
        self._connected: bool | None = None  # as last logged
        self._exchanges = 0  # of which listeners have been told
        self._bad_messages = 0
        self._second_ns = 0
        self._complained: dict[object, tuple[int, int]] = {}  # when, and how many were kept back since

    def setup(self) -> None:
        """Makes the adapter and opens the inbox. The PLC need not be there yet."""
        adapter = make_adapter(self._plc.adapter)
        self._session = Session(adapter, self._plc, self.settings.alert.unjudged)
        self._inbox = Inbox(self.endpoints.plc_in)
        self._writer.start()
        self.log.info("PLC", adapter=adapter.name, mode=self._plc.mode, eject=self._plc.eject.mode)
        self.state = "degraded: the PLC is not connected yet"
        sys.setswitchinterval(SWITCH_S)
        if fault := be_punctual(self._plc.realtime_priority):
            self.log.info(fault)
        gc.collect()
        gc.freeze()  # what is there now lives for ever: later collections take microseconds

    def step(self) -> bool | None:
        """One turn."""
        assert self._session is not None
        self._wait()
        self._session.turn()
        self._tell_listeners()
        now = now_ns()
        for alarm in self._session.alarms():
            self._alarm(alarm, now)
        if now >= self._second_ns or self._session.connected is not self._connected:
            self._second_ns = now + 1_000_000_000
            self._tell(now)
        return None

    def teardown(self) -> None:
        """Outputs to safe."""
        if self._session is not None:
            self._session.stop()
            self._counts()
        if self._inbox is not None:
            self._inbox.close()
        self._writer.stop()
        self._session = self._inbox = None

    # --- waiting and hearing ------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until something is due, hearing rulings meanwhile; they may make it due sooner."""
        assert self._session is not None
        assert self._inbox is not None
        end = now_ns() + TURN_NS
        for _ in range(MESSAGES_PER_TURN):
            left = min(self._session.wake_ns(), end) - now_ns()
            message = self._inbox.recv(max(0, (left - PRECISE_NS) // 1_000_000) / 1000)
            if message is not None:
                self._hear(message[0])
            elif left <= PRECISE_NS:
                break
        # Also after messages without end: what is due is due.
        left = min(self._session.wake_ns(), end) - now_ns()
        if 0 < left <= PRECISE_NS:
            time.sleep(left * 1e-9)

    def _hear(self, data: bytes) -> None:
        assert self._session is not None
        try:
            message = decode(data)
        except MessageError as error:
            self._bad_messages += 1
            self._complain("message", f"a message was dropped: {error}", now_ns())
            return
        if isinstance(message, Ruling) and message.id.line == self.settings.line.name:
            self._session.rule(message.part, message.decision, message.trigger_ns, message.encoder)
        elif isinstance(message, Health) and message.process == "alert" and message.line == self.settings.line.name:
            self._hear_alert(message)
        else:
            self._bad_messages += 1
            self._complain("message", f"a {type(message).__name__} does not belong into the inbox of plc", now_ns())

    def _hear_alert(self, health: Health) -> None:
        assert self._session is not None
        if health.state in ("stopping", "failed"):
            self._session.handshake.lose()
            return
        if health.pid != self._alert_pid:
            if self._alert_pid:
                self._session.handshake.restarted(now_ns())
            self._alert_pid = health.pid
        self._session.hear()

    # --- telling ------------------------------------------------------------------------------------------------------

    def _tell_listeners(self) -> None:
        """Captures pair their frames with the parts that the PLC counts."""
        assert self._session is not None
        inputs = self._session.inputs
        if self._session.exchanges == self._exchanges or inputs is None:
            return
        self._exchanges = self._session.exchanges
        self.publish(
            PlcAnswer(
                line=self.settings.line.name,
                asked_ns=self._session.asked_ns,
                at_ns=self._session.answered_ns,
                parts=inputs.parts,
                part=inputs.part,
                encoder=inputs.encoder,
                run=inputs.run,
            )
        )

    def _tell(self, now: int) -> None:
        """State, counters and gauges as health shows them; the log hears of a PLC that is lost or back."""
        assert self._session is not None
        session = self._session
        self._counts()
        if session.connected is not self._connected:
            if session.connected:
                name = session.adapter.name
                self._writer.say(lambda: self.log.info("the PLC is connected", plc=name))
                self._complained.pop("lost", None)
            elif self._connected or self._connected is None:
                self._complain("lost", session.trouble, now)
            self._connected = session.connected
        fault = session.handshake.fault(now)
        if session.trouble:
            self.state = f"degraded: {session.trouble}"[:1024]
        else:
            self.state = f"degraded: the PLC is told of fault {fault.value}, {fault.name}" if fault else "running"

    def _counts(self) -> None:
        assert self._session is not None
        for name, value in self._session.counters().items():
            self.counters[name] = value
        self.counters["bad_messages"] = self._bad_messages
        self.gauges = self._session.gauges()

    def _alarm(self, alarm: Alarm, now: int) -> None:
        self.counters[f"fault_{alarm.fault.name.lower()}"] += 1
        self._complain(alarm.fault, alarm.text, now)

    def _complain(self, kind: object, text: str, now: int) -> None:
        """A fault that may come a hundred times a second, logged every few seconds at most."""
        when, kept_back = self._complained.get(kind, (-COMPLAIN_NS, 0))
        if now < when + COMPLAIN_NS:
            self._complained[kind] = (when, kept_back + 1)
            return
        self._complained[kind] = (now, 0)
        more = {"more_like_it": kept_back} if kept_back else {}
        self._writer.say(lambda: self.fault(text, **more))


class _Writer:
    """Writes the log in a thread of its own. What finds its queue full is dropped."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(SAID_MOST)
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def say(self, what: Callable[[], object]) -> None:
        """Never waits."""
        try:
            self._queue.put_nowait(what)
        except queue.Full:
            return

    def stop(self) -> None:
        """Writes what is left, for a second at most."""
        if self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.5)
            except queue.Full:
                return
            self._thread.join(1.0)

    def _work(self) -> None:
        while (what := self._queue.get()) is not None:
            what()


def be_punctual(priority: int) -> str:
    """Makes this thread wake up on time: SCHED_FIFO at `priority` (0: not asked for). What was refused, in words."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # 1 ns instead of 50 us
    if not priority:
        return ""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError:
        return (
            f"realtime_priority = {priority} is not permitted here, so other programs may delay pulses; give this user "
            "RLIMIT_RTPRIO (LimitRTPRIO= in systemd, `rtprio` in /etc/security/limits.conf), or set it to 0"
        )
    return ""

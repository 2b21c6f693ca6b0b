"""The PLC's process against libmodbus' server, both killed and frozen at will; the test plays alert.

What became of each part, and when an output changed, is what the server's own log says, by its own clock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.messages import Decision, FrameId, Health, PlcAnswer, Ruling, decode, encode, now_ns
from edge.settings import Settings, load_settings
from edge.transport import Endpoints, Listener, Outbox, ensure_runtime

SettingsFile = Callable[..., Path]
PASS, REJECT = Decision.PASS, Decision.REJECT
# Generous: this may be a slow computer with much else to do.
WINDOW_MS, TRAVEL_MS, SILENCE_MS = 1000, 1800, 600
PROGRAM = (f"Travel={TRAVEL_MS}", f"WindowMs={WINDOW_MS + 500}", f"SilenceMs={SILENCE_MS}")
SLOW_S = 20.0


class Alert:
    """Alert's side of the PLC's process: verdicts, and ten times a second that it lives."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._rulings: list[Ruling] = []
        self.silent = False
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def rule(self, part: int, decision: Decision) -> None:
        """A part that is at the camera now."""
        frame = FrameId(line="press", camera="top", epoch=1, sequence=part)
        ruling = Ruling(id=frame, part=part, decision=decision, trigger_ns=now_ns(), deadline_ns=10**9)
        with self._lock:
            self._rulings.append(ruling)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        health = Health(line="press", process="alert", pid=1, state="running", uptime_s=1.0, counters={}, gauges={})
        with Outbox(self._endpoints.plc_in) as outbox:
            assert isinstance(outbox, Outbox)
            told = 0.0
            while not self._stop.wait(0.005):
                with self._lock:
                    rulings, self._rulings = self._rulings, []
                for ruling in rulings:
                    outbox.send(encode(ruling))
                if time.monotonic() - told > 0.1 and not self.silent:
                    told = time.monotonic()
                    outbox.send(encode(health))


class Plc:
    """A line's PLC process, the server that it speaks to, and alert."""

    def __init__(self, settings: Settings, server: Any) -> None:
        self.settings = settings
        self.server = server
        self.endpoints = Endpoints(settings)
        ensure_runtime(self.endpoints.runtime)
        self.said = settings.file.with_name("plc.log")
        self.listener = Listener([self.endpoints.publisher("plc")])
        self.health: Health | None = None
        self.answers: list[PlcAnswer] = []
        self.process = self.start()
        self.alert = Alert(self.endpoints)
        self.part = 0

    def start(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-W", "error", "-m", "edge.cli", "plc", "run", str(self.settings.file)]
        with self.said.open("ab") as file:
            return subprocess.Popen(words, stderr=file)

    def until(self, wanted: Callable[[Health], bool]) -> Health:
        """Its health, once that is so."""
        end = time.monotonic() + SLOW_S
        while time.monotonic() < end:
            data = self.listener.recv(0.5)
            message = decode(data) if data else None
            if isinstance(message, PlcAnswer):
                self.answers.append(message)
            elif isinstance(message, Health):
                self.health = message
                if wanted(message):
                    return message
        raise AssertionError(self.health)

    def up(self) -> None:
        """Until both sides follow the handshake and no fault of the start is shown any more."""
        self.until(lambda health: health.state == "running")

    def see(self, *decisions: Decision, every_s: float = 0.05) -> list[int]:
        """Parts at the camera, each ruled a little later; their numbers."""
        numbers = []
        for decision in decisions:
            self.part += 1
            numbers.append(self.part)
            self.server.seen()
            time.sleep(every_s)
            self.alert.rule(self.part, decision)
        return numbers

    def decided(self, *parts: int) -> list[bool]:
        """Whether each of these parts was rejected, once all are decided."""

        def found(events: list[dict[str, Any]]) -> dict[int, bool]:
            return {event["part"]: event["rejected"] for event in events if "part" in event}

        events = self.server.until(lambda events: set(parts) <= set(found(events)), SLOW_S)
        return [found(events)[part] for part in parts]

    def shown(self, register: int) -> int | None:
        """What is in an output register now."""
        values = [event["value"] for event in self.server.events() if event.get("register") == register]
        return values[-1] if values else None

    def close(self) -> None:
        self.alert.stop()
        self.process.kill()
        self.process.wait()
        self.listener.close()


@pytest.fixture
def make_plc(modbus_server: Callable[..., Any], settings_file: SettingsFile) -> Iterator[Callable[..., Plc]]:
    made: list[Plc] = []

    def make(mode: str = "pass_on_good", eject: str = "", adapter: str = "", **inputs: int) -> Plc:
        options = [*PROGRAM, f"PassOnGood={int(mode == 'pass_on_good')}", *(f"{n}={v}" for n, v in inputs.items())]
        server = modbus_server(*options)
        text = f"""[alert]
deadline_ms = 500
[plc]
mode = "{mode}"
window_ms = {WINDOW_MS}
ack_ms = 500
silence_ms = {SILENCE_MS}
heartbeat_ms = 20
reconnect_max_ms = 100
realtime_priority = 0
[plc.adapter]
type = "modbus"
host = "127.0.0.1"
port = {server.port}
timeout_ms = 200
{adapter}
{eject}
"""
        made.append(Plc(load_settings(settings_file(text)), server))
        return made[-1]

    yield make
    for plc in made:
        plc.close()


@pytest.mark.parametrize("mode", ["pass_on_good", "reject_on_fail"])
def test_every_reject_meets_its_own_part(make_plc: Callable[..., Plc], mode: str) -> None:
    plc = make_plc(mode, adapter="one_round_trip = true")
    plc.up()
    decisions = [PASS, REJECT, PASS, PASS, REJECT, Decision.UNJUDGED, PASS, REJECT] * 2
    parts = plc.see(*decisions)
    assert plc.decided(*parts) == [decision is not PASS for decision in decisions]
    health = plc.until(lambda health: health.counters["results_acked"] == len(parts))
    assert health.counters["results_sent"] == health.counters["rulings"] == len(parts)
    assert (health.counters["timeouts"], health.counters["results_unacked"]) == (0, 0)
    assert health.gauges["round_trip_ms_p99"] > 0
    assert plc.answers[-1].parts == len(parts)
    report = plc.server.end()
    assert (report["Ignored"], report["NoResult"], report["Overflow"]) == (0, 0, 0)


def test_a_frozen_plc_gets_nothing_late(make_plc: Callable[..., Plc]) -> None:
    """A result that was under way when the PLC's server froze lies in its queue, and is found there when it thaws."""
    plc = make_plc()
    plc.up()
    before = plc.see(PASS, REJECT, PASS)
    assert plc.decided(*before) == [False, True, False]
    plc.server.freeze()
    plc.alert.rule(900, PASS)  # a part that no PLC has seen: its result must reach nobody
    lost = [900, *plc.see(PASS, PASS)]
    health = plc.until(lambda health: health.counters["timeouts"] >= 2)
    assert health.state.startswith("degraded: modbus 127.0.0.1")
    time.sleep(WINDOW_MS / 1000)
    plc.server.thaw()
    plc.until(lambda health: health.state == "running")
    # The two came to the camera while the server was frozen, and the PLC counts them when it thaws: too late for them.
    assert plc.decided(*lost[1:]) == [True, True]
    after = plc.see(PASS, REJECT, PASS)
    assert plc.decided(*after) == [False, True, False]
    health = plc.until(lambda health: health.counters["results_acked"] >= 6)
    assert health.counters["results_late"] + health.counters["results_unresolved"] == 3
    assert health.counters["connects"] == 2


def test_a_killed_plc_is_found_again(make_plc: Callable[..., Plc], modbus_server: Callable[..., Any]) -> None:
    plc = make_plc()
    plc.up()
    assert plc.decided(*plc.see(PASS, REJECT)) == [False, True]
    plc.server.kill()
    plc.until(lambda health: "no connection" in health.state or "connection failed" in health.state)
    plc.server, plc.part = modbus_server(*PROGRAM, port=plc.server.port), 0  # it counts from the beginning
    plc.until(lambda health: health.state == "running")
    assert plc.decided(*plc.see(REJECT, PASS, PASS)) == [True, False, False]


def test_everything_is_rejected_while_this_side_is_killed(make_plc: Callable[..., Plc]) -> None:
    plc = make_plc()
    plc.up()
    plc.process.send_signal(signal.SIGKILL)
    plc.process.wait()
    parts = plc.see(PASS, PASS)
    plc.process = plc.start()
    assert plc.decided(*parts) == [True, True]
    plc.up()
    assert plc.decided(*plc.see(PASS, REJECT)) == [False, True]


def test_outputs_are_safe_when_alert_is_silent_and_when_stopped(make_plc: Callable[..., Plc]) -> None:
    plc = make_plc()
    plc.up()
    plc.server.until(lambda events: plc.shown(0) is not None and bool(plc.shown(0) or 0 & 1), SLOW_S)
    plc.alert.silent = True
    health = plc.until(lambda health: "SILENT" in health.state)
    assert health.counters["fault_silent"] == 1
    plc.server.until(lambda events: plc.shown(2) == 1 and plc.shown(0) == 0b010 | (plc.shown(7) or 0) % 2 << 2)
    heartbeat = plc.shown(1)
    time.sleep(0.3)
    assert plc.shown(1) == heartbeat  # it stands
    plc.alert.silent = False
    plc.up()
    plc.process.send_signal(signal.SIGTERM)
    assert plc.process.wait(timeout=SLOW_S) == 0, plc.said.read_text()
    assert plc.shown(2) == 7
    assert (plc.shown(0) or 0) & 0b011 == 0b010  # not ready; with pass_on_good the ejector stays on
    assert "Traceback" not in plc.said.read_text()


@pytest.mark.parametrize("mode", ["reject_on_fail", "pass_on_good"])
def test_direct_drive_switches_over_the_part(make_plc: Callable[..., Plc], mode: str) -> None:
    eject = '[plc.eject]\nmode = "direct"\ndelay_ms = 900\npulse_ms = 100\nlate_ms = 90\nmin_gap_ms = 0'
    plc = make_plc(mode, eject, adapter="eject_coil = 5", Direct=1)
    plc.up()
    wanted: list[int] = []
    for decision in (REJECT, PASS, PASS, REJECT, REJECT, PASS):
        begin = time.monotonic_ns()
        plc.see(decision, every_s=0.0)
        if (decision is PASS) == (mode == "pass_on_good"):
            wanted.append(begin)
        time.sleep(0.3)
    health = plc.until(lambda health: health.counters.get("pulses", 0) + health.counters["pulses_missed"] == 3)
    assert health.counters["pulses_missed"] == 0, "this computer is too slow for pulses that may be 90 ms late"
    on = int(mode == "reject_on_fail")
    events = plc.server.until(lambda events: sum(event.get("coil") == 5 for event in events) >= 6 + (1 - on))
    switched = [event["t"] for event in events if event.get("coil") == 5 and event["value"] == on][-3:]
    for begin, switch in zip(wanted, switched, strict=True):
        assert 895 < (switch - begin) / 1e6 < 900 + 95


def test_a_line_without_a_plc_has_no_such_process(settings_file: SettingsFile) -> None:
    path = settings_file()
    words = [sys.executable, "-m", "edge.cli", "plc", "run", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env={**os.environ})
    assert done.returncode == 1
    assert done.stderr == f"error: {path}: line press has no PLC; add a section [plc]\n"

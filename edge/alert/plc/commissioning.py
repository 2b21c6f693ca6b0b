"""`edge plc test` and `edge plc watch`: for whoever puts the PLC's side into service."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from edge.alert.plc.adapter import UINT16, Adapter, Fault, Inputs, Outputs, Result
from edge.alert.plc.registry import make_adapter
from edge.errors import MessageError, PlcError
from edge.messages import Health, PlcAnswer, decode
from edge.settings import PlcSettings, Settings
from edge.status import lock_holder
from edge.transport import Endpoints, Listener, ProcessLock, ensure_runtime

if TYPE_CHECKING:
    from rich.console import RenderableType

UNASKED_S = 0.5  # how long each output is on with --yes
ACK_S = 2.0
SHOWN_S = 0.1


@dataclass(frozen=True)
class Step:
    """One output to try."""

    name: str
    block: Outputs
    question: str


STEPS = (
    Step("ready", Outputs(ready=True), "Does the PLC show ready (bit 0 of register 0)?"),
    Step("heartbeat", Outputs(ready=True), "Does the PLC's block say Healthy, and does the heartbeat count?"),
    Step("fault", Outputs(ready=True, fault=Fault.SILENT), "Does the panel show fault 1 (verdicts are silent)?"),
    Step("eject", Outputs(ready=True, eject=True), "Is the output `eject` on (with Direct: the ejector itself)?"),
    Step("off", Outputs(), "Are all outputs off, and is Healthy FALSE?"),
)


class Holder:
    """Holds a block of outputs: exchanges it again and again with a running heartbeat, in a thread of its own."""

    def __init__(self, adapter: Adapter, rest: Outputs, period_s: float) -> None:
        self.block = rest
        self.inputs = Inputs()
        self.exchanges = 0
        self._adapter = adapter
        self._rest = rest
        self._period_s = period_s
        self._heartbeat = 0
        self._error: PlcError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Holder:
        self._adapter.connect()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._adapter.exchange(replace(self._rest, heartbeat=self._heartbeat))  # it stands from now on
        except PlcError:
            pass  # it is lost: then the heartbeat has stopped, and the PLC has taken its outputs to safe by itself
        finally:
            self._adapter.close()

    def hold(self, block: Outputs, seconds: float = 0.0) -> None:
        """From now on this; returns when it was written, and `seconds` later. Raises `PlcError` of the exchange."""
        self.block = block
        self.until(lambda count=self.exchanges: self.exchanges > count + 1, 60.0)  # type: ignore[misc]
        time.sleep(seconds)
        self.check()

    def until(self, met: Callable[[], bool], seconds: float) -> bool:
        """Whether it is met within that time. Raises `PlcError` where the PLC is lost."""
        end = time.monotonic() + seconds
        while not met():
            self.check()
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
        return True

    def check(self) -> None:
        """Raises what ended the exchanges, if anything did."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while not self._stop.is_set():
            block = self.block
            if block.ready:
                self._heartbeat = (self._heartbeat + 1) & UINT16
            try:
                self.inputs = self._adapter.exchange(replace(block, heartbeat=self._heartbeat))
            except PlcError as error:
                self._error = error
                return
            self.exchanges += 1
            self._stop.wait(self._period_s)


def test_plc(settings: Settings, plc: PlcSettings, count: int, ask: bool, switch: bool, as_json: bool) -> int:
    """Measures `count` round trips, then tries each output. The exit code: 0, or 1 where one was not confirmed.

    Raises `LineInUse` while the line's own process has the PLC, `PlcError` where it cannot be reached or is lost.
    """
    rest = Outputs(eject=plc.eject_when_safe)
    with _alone(settings):
        adapter = make_adapter(plc.adapter)
        result: dict[str, Any] = {"plc": adapter.name}
        adapter.connect()
        try:
            result["round_trip_ms"] = measure(adapter, rest, count)
        finally:
            adapter.close()
        if not as_json:
            _show_round_trips(adapter.name, result["round_trip_ms"])
        if not switch:
            tried: list[dict[str, Any]] = []
        else:
            if ask:
                typer.confirm("Outputs are switched now. Is the belt still, and nobody near the ejector?", abort=True)
            with Holder(adapter, rest, plc.heartbeat_ms / 1000) as holder:
                tried = [_try(step, holder, ask) for step in STEPS]
                if plc.eject.mode == "handshake":
                    tried.append({"output": "acknowledge", "confirmed": acknowledges(holder)})
                result["inputs"] = asdict(holder.inputs)
        result["outputs"] = tried
        failed = [step["output"] for step in tried if step["confirmed"] is False]
    if as_json:
        print(json.dumps(result))
    elif switch:
        _show_steps(tried)
    if failed:
        print(f"error: not confirmed: {', '.join(failed)}; see docs/plc/README.md, commissioning", file=sys.stderr)
    return int(bool(failed))


def measure(adapter: Adapter, block: Outputs, count: int) -> dict[str, float]:
    """Round trips of `count` exchanges of the same block: p50, p99 and max, milliseconds."""
    took = np.empty(count)
    for number in range(count):
        began = time.perf_counter_ns()
        adapter.exchange(block)
        took[number] = (time.perf_counter_ns() - began) / 1e6
    p50, p99 = np.percentile(took, [50, 99])
    return {"count": count, "p50": float(p50), "p99": float(p99), "max": float(took.max())}


def acknowledges(holder: Holder) -> bool:
    """Whether the PLC follows the handshake: it acknowledges a block without a result, under a new `valid`."""
    valid = (holder.inputs.ack + 4711) & UINT16 or 1
    holder.hold(Outputs(ready=True, result=Result.NONE, valid=valid))
    return holder.until(lambda: holder.inputs.ack == valid, ACK_S)


def watch_plc(settings: Settings, plc: PlcSettings, seconds: float, as_json: bool) -> None:
    """Shows what goes to and fro until Ctrl-C, or for so long.

    Listens to the line's own process where that runs; else exchanges safe outputs with the PLC.
    """
    end = time.monotonic() + seconds if seconds else float("inf")
    endpoints = Endpoints(settings)
    running = lock_holder(endpoints.lock("plc")) is not None
    states = _overheard(endpoints, end) if running else _asked(settings, plc, end)
    try:
        if as_json:
            before: dict[str, Any] = {}
            for state in states:
                if state != before:
                    print(json.dumps(state), flush=True)
                    before = state
            return
        from rich.live import Live

        with Live(refresh_per_second=1 / SHOWN_S) as live:
            for state in states:
                live.update(_table(state))
    except KeyboardInterrupt:
        return


def _overheard(endpoints: Endpoints, end: float) -> Iterator[dict[str, Any]]:
    """What the line's process tells: the PLC's answers, and its own health."""
    state: dict[str, Any] = {"plc": "the line's own process", "state": "", "inputs": {}, "counters": {}, "gauges": {}}
    with Listener([endpoints.publisher("plc")]) as listener:
        assert isinstance(listener, Listener)
        shown = 0.0
        while (now := time.monotonic()) < end:
            data = listener.recv(min(0.5, end - now))
            if data is not None:
                try:
                    message = decode(data)
                except MessageError:
                    continue
                if isinstance(message, PlcAnswer):
                    names = ("parts", "part", "encoder", "run")
                    state["inputs"] = {name: getattr(message, name) for name in names}
                elif isinstance(message, Health):
                    state |= {"state": message.state, "counters": message.counters, "gauges": message.gauges}
            if now - shown >= SHOWN_S:
                shown = now
                yield dict(state)


def _asked(settings: Settings, plc: PlcSettings, end: float) -> Iterator[dict[str, Any]]:
    """What the PLC answers to safe outputs."""
    rest = Outputs(eject=plc.eject_when_safe)
    with _alone(settings):
        adapter = make_adapter(plc.adapter)
        with Holder(adapter, rest, plc.heartbeat_ms / 1000) as holder:
            holder.hold(rest)
            while time.monotonic() < end:
                holder.check()
                yield {"plc": adapter.name, "inputs": asdict(holder.inputs), "outputs": asdict(holder.block)}
                time.sleep(min(SHOWN_S, max(0.0, end - time.monotonic())))


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """In the place of the line's own process. Raises `LineInUse` that names it where it runs."""
    endpoints = Endpoints(settings)
    ensure_runtime(endpoints.runtime)
    with ProcessLock(endpoints.lock("plc")):
        yield


def _try(step: Step, holder: Holder, ask: bool) -> dict[str, Any]:
    holder.hold(step.block, 0.0 if ask else UNASKED_S)
    confirmed = typer.confirm(f"{step.name}: {step.question}") if ask else None
    holder.check()
    return {"output": step.name, "confirmed": confirmed}


def _show_round_trips(name: str, took: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{name}: {took['count']} round trips", title_justify="left")
    for column in ("p50", "p99", "max"):
        table.add_column(column, justify="right")
    table.add_row(*(f"{took[column]:.3f} ms" for column in ("p50", "p99", "max")))
    Console().print(table)


def _show_steps(tried: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    words = {True: "[green]yes[/]", False: "[red]no[/]", None: "not asked"}
    table = Table("output", "confirmed")
    for step in tried:
        table.add_row(step["output"], words[step["confirmed"]])
    Console().print(table)


def _table(state: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table("", "", title=f"{state['plc']} {state.get('state', '')}", title_justify="left", show_header=False)
    for group in ("outputs", "inputs", "counters", "gauges"):
        for name, value in state.get(group, {}).items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            table.add_row(f"{group} {name}", value.name if isinstance(value, Result) else shown)
    return table

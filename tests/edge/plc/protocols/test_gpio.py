"""GPIO without a chip: which line shows what, what is asked of the kernel, and what people are told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gpiod", reason="gpiod is missing: pip install 'edge-inspect[gpio]'")

from gpiod.line import Direction, Edge

from edge.alert.plc.adapter import Inputs, Outputs, Result
from edge.alert.plc.gpio import GpioAdapter, levels, line_config
from edge.errors import PlcError
from edge.settings_plc_protocols import GpioAdapterSettings


def settings(**values: Any) -> GpioAdapterSettings:
    return GpioAdapterSettings(**{"type": "gpio", "eject": 4, **values})


@pytest.mark.parametrize(
    ("result", "passed", "rejected"),
    [
        (Result.NONE, False, False),
        (Result.PASS, True, False),
        (Result.REJECT, False, True),
        (Result.UNJUDGED, False, True),
    ],
)
def test_result_is_on_two_lines_and_never_passes_by_itself(result: Result, passed: bool, rejected: bool) -> None:
    on = levels(Outputs(ready=True, result=result))
    assert (on["passed"], on["rejected"]) == (passed, rejected)
    assert not levels(Outputs(ready=False, result=result))["passed"], "not ready: whatever stands there is old"


def test_counters_are_their_lowest_bit() -> None:
    on = levels(Outputs(ready=True, heartbeat=0xFFFF, valid=2, fault=5, eject=True))
    assert on == {
        "ready": True,
        "heartbeat": True,
        "passed": False,
        "rejected": False,
        "valid": False,
        "fault": True,
        "eject": True,
    }


def test_lines_are_asked_for_as_wired() -> None:
    config = line_config(settings(run=7, trigger=8, active_low=[4, 8], debounce_ms=2.5))
    eject, run, trigger = config[4], config[7], config[8]
    assert eject is not None
    assert run is not None
    assert trigger is not None
    assert (eject.direction, eject.active_low) == (Direction.OUTPUT, True)
    assert (run.direction, run.edge_detection, run.active_low) == (Direction.INPUT, Edge.NONE, False)
    assert (trigger.edge_detection, trigger.active_low) == (Edge.RISING, True)
    assert trigger.debounce_period.total_seconds() == 0.0025


@pytest.mark.parametrize(
    ("chip", "said"),
    [("/dev/gpiochip99", "no such chip; `gpiodetect` lists"), ("/dev/null", "is not a GPIO chip, or is gone")],
)
def test_chip_that_cannot_be_used_is_named(chip: str, said: str) -> None:
    adapter = GpioAdapter(settings(chip=chip))
    with pytest.raises(PlcError, match=rf"^gpio {chip}: {said}"):
        adapter.connect()
    adapter.close()
    with pytest.raises(PlcError, match=f"^gpio {chip}: not connected"):
        adapter.exchange(Outputs())


def test_chips_of_this_machine_take_their_first_line() -> None:
    """Where a chip is there and may be used: taking a line, setting it, letting go of it."""
    chips = sorted(path for path in Path("/dev").glob("gpiochip*") if os.access(path, os.R_OK | os.W_OK))
    simulated = [
        path for path in chips if "gpio-sim" in (Path("/sys/bus/gpio/devices") / path.name).resolve().as_posix()
    ]
    if not simulated:
        pytest.skip("no simulated GPIO chip (kernel module gpio-sim)")
    adapter = GpioAdapter(settings(chip=str(simulated[0]), eject=0))
    adapter.connect()
    assert adapter.exchange(Outputs(eject=True)) == Inputs(run=True)
    adapter.close()

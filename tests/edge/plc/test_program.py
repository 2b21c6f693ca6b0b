"""The PLC's program: what an electrician pastes, and that the simulated PLC runs the same."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.alert.plc.adapter import Outputs, Result
from edge.alert.plc.program import PlcProgram

ROOT = Path(__file__).parents[3]
Block = Callable[..., Any]
OLD = 2**32 - 3_000  # the milliseconds of a PLC wrap soon


def feed(block: Outputs) -> dict[str, int]:
    """The block as the Structured Text's inputs."""
    return {
        "Ready": block.ready,
        "Heartbeat": block.heartbeat,
        "Fault": block.fault,
        "EjectBit": block.eject,
        "PartOf": block.part,
        "Result": block.result,
        "Valid": block.valid,
    }


class Plc:
    """The Structured Text, a millisecond clock and the line computer's block."""

    def __init__(self, program: Any) -> None:
        self.program = program
        self.ms = OLD
        self.block: dict[str, int] = feed(Outputs(ready=True))

    def scan(self, step_ms: int = 10, beat: bool = True, seen: bool = False, **block: int) -> None:
        self.ms += step_ms
        self.block |= block
        if beat:
            self.block["Heartbeat"] = (self.block["Heartbeat"] + 1) & 0xFFFF
        self.program.scan(NowMs=self.ms, Belt=self.ms, AtCamera=seen, **self.block)

    def live(self) -> None:
        for _ in range(3):
            self.scan()

    def see(self) -> int:
        self.scan(seen=True)
        self.scan()
        return int(self.program.Part)

    def pass_by(self, ms: int = 2000, beat: bool = True) -> None:
        for _ in range(ms // 10):
            self.scan(beat=beat)


@pytest.fixture
def plc(plc_block: Block) -> Callable[..., Plc]:
    return lambda **inputs: Plc(plc_block(**inputs))


def counts(plc: Plc) -> tuple[int, int]:
    return int(plc.program.Passed), int(plc.program.Rejected)


def test_another_parser_takes_it_for_iec_61131() -> None:
    """blark parses the dialect of TwinCAT; it complains on standard error and exits with 0 all the same."""
    blark = ROOT / ".peers" / "venv" / "bin" / "blark"
    if not blark.is_file():
        pytest.skip("blark is not installed (run .ci/peers)")
    words = [blark, "parse", "--print-tree", ROOT / "docs" / "plc" / "edge_inspect.st"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert "FB_EdgeInspect" in done.stdout
    assert "Failed" not in done.stdout + done.stderr


# --- pass on good ----------------------------------------------------------------------------------------------------


def test_a_part_passes_by_its_own_pass_alone(plc: Callable[..., Plc]) -> None:
    one = plc()
    one.live()
    first, second, third = one.see(), one.see(), one.see()
    one.scan(PartOf=second, Result=Result.PASS, Valid=1)
    assert one.program.Ack == 1
    one.scan(PartOf=third, Result=Result.REJECT, Valid=2)
    assert one.program.Ack == 2
    one.pass_by()
    assert counts(one) == (1, 2)
    assert (one.program.NoResult, first) == (1, 1)


@pytest.mark.parametrize(
    "trouble",
    ["silent", "once", "number", "twice", "late", "gone"],
)
def test_what_does_not_make_a_part_pass(plc: Callable[..., Plc], trouble: str) -> None:
    one = plc()
    one.live()
    part = one.see()
    block = {"PartOf": part, "Result": Result.PASS, "Valid": 1}
    if trouble == "silent":  # the heartbeat stands still before the PASS comes, and after
        one.pass_by(600, beat=False)
        one.scan(beat=False, **block)
        one.pass_by(2000, beat=False)
    elif trouble == "once":  # one old telegram that brings a PASS and one change of the heartbeat
        one.pass_by(600, beat=False)
        one.scan(beat=True, **block)
        one.pass_by(2000, beat=False)
    elif trouble == "number":
        one.scan(**(block | {"PartOf": part + 1}))
        one.pass_by()
    elif trouble == "twice":  # a part that was not PASS once stays so
        one.scan(**(block | {"Result": Result.UNJUDGED}))
        one.scan(**(block | {"Valid": 2}))
        one.pass_by()
    elif trouble == "late":
        one.pass_by(1200)
        one.scan(**block)
        one.pass_by()
    else:
        one.pass_by(2100)
        one.scan(**block)
    assert counts(one) == (0, 1)


def test_a_pass_is_kept_when_the_computer_dies_later(plc: Callable[..., Plc]) -> None:
    one = plc()
    one.live()
    one.scan(PartOf=one.see(), Result=Result.PASS, Valid=1)
    one.pass_by(beat=False)
    assert counts(one) == (1, 0)


# --- reject on fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["", "reject", "silent", "fault", "not ready", "unjudged"])
def test_reject_on_fail(plc: Callable[..., Plc], trouble: str) -> None:
    one = plc(PassOnGood=False)
    one.live()
    part = one.see()
    if trouble in ("reject", "unjudged"):
        one.scan(PartOf=part, Result=Result[trouble.upper()], Valid=1)
    elif trouble == "silent":
        one.pass_by(600, beat=False)
        one.live()
    elif trouble == "fault":
        one.scan(Fault=4)
        one.scan(Fault=0)
    elif trouble == "not ready":
        one.scan(Ready=0)
        one.scan(Ready=1)
    one.pass_by()
    assert counts(one) == ((0, 1) if trouble else (1, 0))
    after = one.see()
    one.scan(PartOf=after, Result=Result.PASS, Valid=2)
    one.pass_by()
    assert counts(one) == ((1, 1) if trouble else (2, 0))  # trouble that is over spares the next part


# --- the ejector and its limits --------------------------------------------------------------------------------------


def test_the_pulse_begins_at_the_ejector_and_has_its_length(plc: Callable[..., Plc]) -> None:
    one = plc(Travel=300, PulseMs=50)
    one.live()
    one.scan(seen=True)
    seen, on = one.ms, []
    for _ in range(60):
        one.scan()
        if one.program.Eject:
            on.append(one.ms - seen)
    assert (on[0], on[-1] + 10 - on[0]) == (300, 50)


def test_too_many_parts_reject_all_until_reset(plc: Callable[..., Plc]) -> None:
    one = plc()
    one.live()
    numbers = [one.see() for _ in range(65)]
    assert one.program.Overflow
    one.scan(PartOf=numbers[-2], Result=Result.PASS, Valid=1)
    one.pass_by(3000)
    assert (one.program.Passed, bool(one.program.Eject)) == (0, True)
    one.scan(Reset=1)
    one.pass_by(100)
    assert (bool(one.program.Overflow), bool(one.program.Eject)) == (False, False)


@pytest.mark.parametrize("pass_on_good", [True, False])
def test_direct_drive_is_guarded_by_the_heartbeat(plc: Callable[..., Plc], pass_on_good: bool) -> None:
    one = plc(Direct=True, PassOnGood=pass_on_good)
    one.scan(EjectBit=not pass_on_good)  # an old telegram: one change of the heartbeat is no sign of life
    assert bool(one.program.Eject) is pass_on_good
    one.live()
    assert bool(one.program.Eject) is not pass_on_good
    one.pass_by(600, beat=False)
    assert bool(one.program.Eject) is pass_on_good


# --- the simulated PLC's program is the same -------------------------------------------------------------------------

blocks = st.builds(
    Outputs,
    ready=st.booleans(),
    fault=st.sampled_from([0, 0, 0, 4]),
    part=st.integers(0, 6),
    result=st.sampled_from(Result),
    valid=st.integers(0, 4),
    eject=st.booleans(),
)
steps = st.lists(
    st.tuples(
        blocks,
        st.sampled_from([1, 10, 10, 40, 150]),
        st.booleans(),  # a part at the camera
        st.sampled_from([True, True, True, False]),  # the heartbeat advances
        st.sampled_from([False, False, True]),  # reset
    ),
    max_size=80,
)


@settings(max_examples=80, deadline=None)
@given(steps=steps, pass_on_good=st.booleans(), direct=st.sampled_from([False, False, True]), wraps=st.booleans())
def test_the_simulated_program_is_the_structured_text(
    plc_block: Block, steps: Any, pass_on_good: bool, direct: bool, wraps: bool
) -> None:
    text = plc_block(PassOnGood=pass_on_good, Direct=direct, WindowMs=300, SilenceMs=100, Travel=400, PulseMs=20)
    program = PlcProgram(pass_on_good, window_ms=300, silence_ms=100, travel=400, pulse_ms=20, direct=direct)
    ms = OLD if wraps else 0
    heartbeat = 0
    for drawn, step_ms, seen, beats, reset in steps:
        ms, heartbeat = ms + step_ms, heartbeat + beats
        block = replace(drawn, heartbeat=heartbeat)
        text.scan(NowMs=ms, Belt=ms - OLD, AtCamera=seen, Reset=reset, **feed(block))
        program.scan(block, ms, ms - OLD, seen, reset)
        assert (bool(text.Eject), bool(text.Healthy), bool(text.Overflow)) == (
            program.eject,
            program.healthy,
            program.overflow,
        )
        assert [int(getattr(text, name)) for name in ("Ack", "Parts", "Part", "Passed", "Rejected")] == [
            program.ack,
            program.parts,
            program.part,
            program.passed,
            program.rejected,
        ]
        assert (text.NoResult, text.Ignored) == (program.no_result, program.ignored)

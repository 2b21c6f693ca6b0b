"""Settings of a camera's part numbers, `[cameras.trigger]`: whose count they are, and when it and the frames agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from edge.settings_base import Section
from edge.tracking.alignment import Tolerances

if TYPE_CHECKING:
    from edge.settings import CameraSettings, Settings
    from edge.settings_faults import Faults


class TriggerSettings(Section):
    """Which part a frame shows: by the frames' own order, or by the count of the PLC or of its encoder."""

    numbered_by: Literal["frame", "plc", "encoder"] = Field(
        default="frame",
        description="Whose number a part has: the frames' own (as they come), the PLC's, or encoder steps.",
    )
    step_counts: int | None = Field(
        default=None,
        ge=-(2**30),
        le=2**30,
        description="Encoder counts from part to part; negative where the encoder counts down.",
    )
    zero_counts: int = Field(
        default=0, ge=-(2**31), le=2**31 - 1, description="Encoder count at which a part is triggered; part number 0."
    )
    offset_ms: float = Field(
        default=0.0, ge=-1000, le=1000, description="Milliseconds from the PLC's count to the frame's time, usually."
    )
    tolerance_ms: float = Field(
        default=10.0, gt=0, le=1000, description="Milliseconds by which that may differ; beyond, they disagree."
    )
    answer_ms: float = Field(
        default=60.0,
        ge=1,
        le=1000,
        description="Milliseconds between two answers of the PLC; a part that was counted after a longer time has no "
        "known moment. Parts must be further apart than this and twice the tolerance.",
    )
    wait_ms: float = Field(
        default=150.0,
        ge=1,
        le=10_000,
        description="Milliseconds for which a frame waits for the PLC's count, and a count for its frame.",
    )
    realign: Literal["command", "gap", "next"] = Field(
        default="command",
        description="When parts are judged again after trigger and frame disagreed: when somebody says so (`edge "
        "realign`), after a gap of gap_ms without parts, or with the next pair that agrees.",
    )
    gap_ms: float = Field(
        default=1000.0, ge=10, le=3_600_000, description="Milliseconds without triggers and frames that are a gap."
    )

    @model_validator(mode="after")
    def _fits(self) -> TriggerSettings:
        if (self.numbered_by == "encoder") != (self.step_counts is not None):
            raise ValueError('step_counts goes with numbered_by = "encoder", and is needed there')
        if self.step_counts == 0:
            raise ValueError("step_counts must not be 0")
        if self.wait_ms <= self.answer_ms + self.tolerance_ms:
            raise ValueError(
                f"wait_ms = {self.wait_ms:g} must be above answer_ms and tolerance_ms together "
                f"({self.answer_ms + self.tolerance_ms:g}): the PLC's answer takes so long"
            )
        if self.realign == "gap" and self.gap_ms <= self.wait_ms + self.tolerance_ms + abs(self.offset_ms):
            raise ValueError(
                f"gap_ms = {self.gap_ms:g} must be above wait_ms, tolerance_ms and offset_ms together: a frame may "
                "come so late"
            )
        return self

    @property
    def tolerances(self) -> Tolerances:
        """The same, in nanoseconds."""
        return Tolerances(
            offset_ns=round(self.offset_ms * 1e6),
            tolerance_ns=round(self.tolerance_ms * 1e6),
            answer_ns=round(self.answer_ms * 1e6),
            wait_ns=round(self.wait_ms * 1e6),
            gap_ns=round(self.gap_ms * 1e6),
        )


def check_tracking(settings: Settings, faults: Faults) -> None:
    """What part numbers and groups need of the rest of the settings."""
    for number, camera in enumerate(settings.cameras):
        trigger, at = camera.trigger, ("cameras", number, "trigger", "numbered_by")
        if trigger.numbered_by == "frame":
            continue
        if settings.plc is None:
            faults.add(at, f'"{trigger.numbered_by}" needs the PLC to count: add [plc], or number by "frame"')
            continue
        if settings.plc.heartbeat_ms >= trigger.answer_ms:
            faults.add(
                (*at[:3], "answer_ms"),
                f"{trigger.answer_ms:g} must be above [plc] heartbeat_ms = {settings.plc.heartbeat_ms:g}: the PLC is "
                "asked no more often than that",
            )
        if trigger.wait_ms >= settings.deadline_ms(camera):
            text = f"{trigger.wait_ms:g} must be below the deadline of {settings.deadline_ms(camera):g} ms"
            faults.add((*at[:3], "wait_ms"), text)
    _check_groups(settings, faults)


def _check_groups(settings: Settings, faults: Faults) -> None:
    """A group is at least two cameras, which number their parts alike."""
    first: dict[str, CameraSettings] = {}
    alone: dict[str, int] = {}
    for number, camera in enumerate(settings.cameras):
        if camera.group is None:
            continue
        other = first.setdefault(camera.group, camera)
        if other is camera:
            alone[camera.group] = number
            continue
        alone.pop(camera.group, None)
        for key in ("numbered_by", "step_counts", "zero_counts"):
            mine, theirs = getattr(camera.trigger, key), getattr(other.trigger, key)
            if mine != theirs:
                text = f"{mine!r}, but camera {other.name} of the same group {camera.group} has {theirs!r}"
                faults.add(("cameras", number, "trigger", key), f"{text}: they must number parts alike")
    for group, number in alone.items():
        faults.add(("cameras", number, "group"), f"{group!r} has no other camera; leave it out, or add one")

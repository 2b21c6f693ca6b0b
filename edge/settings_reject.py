"""Settings of the ejector, `[plc.eject]`: who times it, where it stands behind the camera, how long it pulses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from edge.settings_base import Section

WAYS = (
    "delay_ms; or distance_mm and belt_mm_s; or encoder_counts; or distance_mm and counts_per_mm (see docs/tracking.md)"
)


class EjectSettings(Section):
    """The ejector: how far behind the camera, by time or by encoder, and its pulse."""

    mode: Literal["handshake", "direct"] = Field(
        default="handshake",
        description="Who times the ejector: the PLC, from the result of the handshake, or this program, which then "
        "drives the output `eject` itself.",
    )
    delay_ms: float | None = Field(
        default=None, ge=1, le=600_000, description="Milliseconds from the camera's trigger to the ejector."
    )
    distance_mm: float | None = Field(
        default=None, gt=0, le=100_000, description="Millimetres of belt from the camera to the ejector."
    )
    belt_mm_s: float | None = Field(
        default=None, gt=0, le=100_000, description="Speed of a belt that never changes it, millimetres per second."
    )
    encoder_counts: int | None = Field(
        default=None,
        ge=-(2**30),
        le=2**30,
        description="Encoder counts from the camera to the ejector; negative where the encoder counts down.",
    )
    counts_per_mm: float | None = Field(
        default=None,
        ge=-100_000,
        le=100_000,
        description="Encoder counts per millimetre of belt; negative where the encoder counts down.",
    )
    encoder_at: Literal["readings", "frame"] = Field(
        default="readings",
        description="Where a part's own count comes from: the PLC's readings, at the moment of its trigger, or its "
        "frame; the latter only where camera and PLC read the same counter.",
    )
    encoder_stale_ms: float = Field(
        default=100.0,
        ge=1,
        le=10_000,
        description="Milliseconds for which the belt's place is reckoned from its speed without a new reading.",
    )
    max_counts_s: float = Field(
        default=200_000.0,
        gt=0,
        le=1e9,
        description="Counts per second that the belt never exceeds: a faster change is a counter that was reset.",
    )
    pulse_ms: float = Field(default=50.0, ge=1, le=10_000, description="Milliseconds for which the ejector is on.")
    min_gap_ms: float = Field(
        default=20.0,
        ge=0,
        le=10_000,
        description="Milliseconds the ejector needs between two pulses; closer ones become one longer pulse.",
    )
    lead_ms: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Milliseconds from command to effect (network, valve): pulses begin so much sooner.",
    )
    late_ms: float = Field(
        default=5.0,
        gt=0,
        le=1000,
        description="Milliseconds by which a pulse may begin late; beyond, it is not sent, is counted, and is a fault.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> EjectSettings:
        given = [
            name
            for name in ("delay_ms", "distance_mm", "belt_mm_s", "encoder_counts", "counts_per_mm")
            if getattr(self, name) is not None
        ]
        ways = (["delay_ms"], ["distance_mm", "belt_mm_s"], ["encoder_counts"], ["distance_mm", "counts_per_mm"])
        if given not in ways and (given or self.mode == "direct"):
            raise ValueError(f"the ejector's place: give exactly {WAYS}; given: {', '.join(given) or 'nothing'}")
        if self.counts_per_mm == 0 or self.encoder_counts == 0 or (given == list(ways[3]) and not self.counts):
            raise ValueError("the ejector stands at least one encoder count behind the camera")
        if self.late_ms >= self.pulse_ms:
            raise ValueError(f"late_ms = {self.late_ms:g} must be below pulse_ms = {self.pulse_ms:g}")
        if self.delay_ns is not None and self.delay_ns <= self.lead_ns:
            raise ValueError(f"lead_ms = {self.lead_ms:g} must be below the delay of {self.delay_ns / 1e6:g} ms")
        return self

    @property
    def delay_ns(self) -> int | None:
        """From trigger to ejector where the belt's speed is fixed; None by encoder."""
        if self.delay_ms is not None:
            return round(self.delay_ms * 1e6)
        if self.distance_mm is not None and self.belt_mm_s is not None:
            return round(self.distance_mm / self.belt_mm_s * 1e9)
        return None

    @property
    def counts(self) -> int | None:
        """Encoder counts from camera to ejector (negative: the encoder counts down); None by time."""
        if self.encoder_counts is not None:
            return self.encoder_counts
        if self.distance_mm is not None and self.counts_per_mm is not None:
            return round(self.distance_mm * self.counts_per_mm)
        return None

    @property
    def lead_ns(self) -> int:
        """From command to effect."""
        return round(self.lead_ms * 1e6)

    def too_soon(self, deadline_ms: float) -> str:
        """Why a verdict that takes its whole deadline would come too late for the ejector; "" where it does not."""
        if self.mode != "direct" or self.delay_ns is None or self.delay_ns - self.lead_ns > deadline_ms * 1e6:
            return ""
        return (
            f"the ejector is {self.delay_ns / 1e6:g} ms behind the camera, but a verdict may take deadline_ms = "
            f"{deadline_ms:g}: lower the deadline, or move the ejector"
        )

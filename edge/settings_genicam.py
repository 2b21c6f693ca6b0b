"""Settings of machine-vision cameras, which are told what to do by the features of their GenICam description."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from edge.settings_base import FilePath, Rate, SourceSection
from pipelines.images import PixelFormat

FeatureValue = StrictBool | StrictInt | StrictFloat | StrictStr
FeatureName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
Line = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=64)]
# What the camera sends (GenICam PFNC 2.4). More than 8 bits a sample keep their upper 8.
WireFormat = Literal[
    "Mono8",
    "Mono10",
    "Mono12",
    "Mono16",
    "Mono12p",
    "Mono12Packed",
    "BayerRG8",
    "BayerGR8",
    "BayerGB8",
    "BayerBG8",
    "RGB8",
    "BGR8",
]


def _address(value: object) -> object:
    """Leading zeros would be read as octal by some programs, so dotted quads are plain numbers here."""
    if isinstance(value, str):
        parts = value.split(".")
        if len(parts) != 4 or not all(
            part.isdecimal() and str(int(part)) == part and int(part) < 256 for part in parts
        ):
            raise ValueError(f"{value!r} is no IPv4 address; write it like 192.168.10.20")
    return value


def frame_format(wire: str) -> PixelFormat:
    """What becomes of a wire format in the frame ring: 8 bits per channel."""
    return PixelFormat.MONO8 if wire.startswith("Mono") else PixelFormat(wire)


class GenicamSource(SourceSection):
    """What GigE Vision cameras and those behind a GenTL producer have in common."""

    type: str = Field(description="Kind of source.")
    serial: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[ -~]+$",
        description="Serial number, or the name given to the camera, by which it is searched for.",
    )
    pixel_format: WireFormat = Field(
        default="Mono8",
        description="Pixel format the camera sends. Mono10 to Mono16 keep their upper 8 bits, in one copy; "
        "8-bit formats are received in place.",
    )
    width_px: int | None = Field(
        default=None, ge=8, le=65_535, description="Width of the region read out, pixels; the largest if absent."
    )
    height_px: int | None = Field(
        default=None, ge=1, le=65_535, description="Height of the region read out, pixels; the largest if absent."
    )
    offset_x_px: int = Field(default=0, ge=0, le=65_535, description="Left edge of the region, pixels.")
    offset_y_px: int = Field(default=0, ge=0, le=65_535, description="Upper edge of the region, pixels.")
    binning: int = Field(default=1, ge=1, le=16, description="So many pixels each way are read as one.")
    exposure_us: float | None = Field(
        default=None, gt=0, le=60e6, description="Exposure time in microseconds; as the camera has it if absent."
    )
    gain: float | None = Field(
        default=None, ge=-100, le=100_000, description="Gain in the camera's own unit, mostly dB; its own if absent."
    )
    rate_hz: Rate | None = Field(
        default=None,
        description="Frames per second: set on a camera that runs freely (its own rate if absent); with a trigger, "
        "the most parts per second that come, which shared memory is sized for.",
    )
    features: dict[FeatureName, FeatureValue] = Field(
        default={},
        max_length=128,
        description="More features by their GenICam names, set in this order after all other keys, read back and "
        "checked. `edge camera features` lists a camera's.",
    )
    stall_s: float = Field(
        default=2.0,
        ge=0.2,
        le=3600,
        description="A freely running camera that is silent for so many seconds is opened anew.",
    )
    reconnect_max_s: float = Field(
        default=5.0, ge=0.1, le=3600, description="Longest wait between attempts to reconnect, seconds."
    )
    buffers: int = Field(
        default=8, ge=2, le=64, description="Frames of shared memory given to the camera's receiver ahead of time."
    )

    @property
    @abstractmethod
    def runs_freely(self) -> bool:
        """Whether frames come by themselves, so that silence is a fault."""

    @property
    def known_rate_hz(self) -> float | None:
        """The set rate, if any."""
        return self.rate_hz

    @property
    def known_frame_bytes(self) -> int | None:
        """Width and height times the bytes of a pixel, where both are set."""
        if self.width_px is None or self.height_px is None:
            return None
        return self.width_px * self.height_px * frame_format(self.pixel_format).channels

    @property
    def slots_held(self) -> int:
        """What the receiver fills, and the frame that is being announced."""
        return self.buffers + 1


class GigeSource(GenicamSource):
    """A GigE Vision camera, received by Aravis."""

    type: Literal["gige"] = Field(description="Kind of source.")
    address: Annotated[str, BeforeValidator(_address)] | None = Field(
        default=None,
        description="IPv4 address of the camera, such as 192.168.10.20. One of address and serial is needed; "
        "an address needs no search.",
    )
    trigger: Literal["off", "line", "software", "encoder"] = Field(
        default="off",
        description="What starts an exposure: nothing (freely running), a signal at an input, a command from this "
        "computer, or each so many counts of an encoder at the camera.",
    )
    trigger_line: Line = Field(
        default="Line0", description="Input of the trigger signal (trigger = line), by the camera's name for it."
    )
    trigger_edge: Literal["rising", "falling"] = Field(
        default="rising", description="Edge of the signal that triggers."
    )
    trigger_delay_us: float = Field(
        default=0.0, ge=0, le=10e6, description="Microseconds from trigger to exposure, where the camera can wait."
    )
    trigger_timeout_ms: float = Field(
        default=500.0,
        ge=10,
        le=60_000,
        description="A software trigger that brings no frame for so many milliseconds is a lost part.",
    )
    encoder: Line = Field(default="Encoder0", description="Encoder of the camera (trigger = encoder).")
    encoder_line_a: Line = Field(default="Line1", description="Input of the encoder's track A.")
    encoder_line_b: Line = Field(default="Line2", description="Input of the encoder's track B.")
    encoder_divider: int = Field(default=1, ge=1, le=2**31 - 1, description="Encoder counts per exposure.")
    encoder_chunk: FeatureName | None = Field(
        default=None,
        description="Chunk that carries the encoder count with each frame, such as EncoderValue; none if absent.",
    )
    packet_size_bytes: int | None = Field(
        default=None,
        ge=220,
        le=16_404,
        description="Size of the camera's packets, IP header included, at most the network's MTU; the largest that "
        "gets through is found by test packets if absent.",
    )
    packet_delay_ns: int | None = Field(
        default=None,
        ge=0,
        le=10_000_000,
        description="Nanoseconds between packets, where several cameras share a link; the camera's own if absent.",
    )
    socket: Literal["auto", "packet", "udp"] = Field(
        default="auto",
        description="How packets are received: packet socket (needs CAP_NET_RAW, loses least), UDP, or packet socket "
        "where it is allowed.",
    )
    receive_buffer_mb: float | None = Field(
        default=None,
        ge=0.25,
        le=1024,
        description="Megabytes (10^6 bytes) of the UDP socket's receive buffer; two frames, at least 4 MB, if absent.",
    )
    resend: bool = Field(
        default=True, description="Whether packets that were lost are asked for again, where the camera can."
    )
    retention_ms: float = Field(
        default=100.0, ge=1, le=10_000, description="Milliseconds after its last packet until a frame is given up."
    )

    @model_validator(mode="after")
    def _consistent(self) -> GigeSource:
        if (self.address is None) == (self.serial is None):
            raise ValueError("give exactly one of address and serial; `edge camera list` shows what is on the network")
        if self.trigger != "off" and self.rate_hz is None:
            raise ValueError(f"trigger = {self.trigger!r} needs rate_hz: the most parts per second that come")
        if self.receive_buffer_mb is not None and self.socket == "packet":
            raise ValueError("receive_buffer_mb: for the UDP socket; a packet socket has a ring of its own")
        return self

    @property
    def runs_freely(self) -> bool:
        """Without a trigger."""
        return self.trigger == "off"


class GentlSource(GenicamSource):
    """A camera of any interface, through the GenTL producer of its maker, by harvesters."""

    type: Literal["gentl"] = Field(description="Kind of source.")
    producer: FilePath = Field(description="The maker's GenTL producer, a file that ends in .cti.")
    trigger: Literal["off", "features"] = Field(
        default="off",
        description="off: the camera runs freely. features: the trigger is set by [features], silence is no fault.",
    )

    @model_validator(mode="after")
    def _rate(self) -> GentlSource:
        if self.trigger != "off" and self.rate_hz is None:
            raise ValueError("a triggered camera needs rate_hz: the most parts per second that come")
        return self

    @property
    def runs_freely(self) -> bool:
        """Without a trigger."""
        return self.trigger == "off"

    @property
    def slots_held(self) -> int:
        """The producer fills memory of its own; a frame is copied when it is announced."""
        return 1

    def missing(self) -> list[tuple[str, Path]]:
        """The producer, where the file does not exist."""
        return [] if self.producer.is_file() else [("producer", self.producer)]

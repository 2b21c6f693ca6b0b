"""Settings of cameras: one model per kind of source, told apart by `type`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edge.settings_base import FilePath, Rate, Section, Seed, SourceSection, base_folder
from edge.settings_genicam import GentlSource, GigeSource
from pipelines.images import PixelFormat

__all__ = [
    "FilePath",
    "FolderSource",
    "GentlSource",
    "GigeSource",
    "OpencvSource",
    "Rate",
    "Section",
    "Seed",
    "SimulatedSource",
    "SourceSection",
    "SourceSettings",
    "base_folder",
]


class SimulatedSource(SourceSection):
    """A conveyor drawn by the computer, with known defects."""

    type: Literal["simulated"] = Field(description="Kind of source.")
    part_type: Literal["tile", "washer", "cap", "mixed"] = Field(
        default="tile", description="What lies on the belt: machined tiles, stamped washers, printed caps, or all."
    )
    rate_hz: Rate = Field(default=10.0, description="Parts per second.")
    height_px: int = Field(default=512, ge=64, le=8192, description="Height of a frame in pixels.")
    width_px: int = Field(default=512, ge=64, le=8192, description="Width of a frame in pixels.")
    pixel_format: PixelFormat = Field(default=PixelFormat.MONO8, description="Pixel format, by its GenICam name.")
    defect_rate: float = Field(default=0.1, ge=0, le=1, description="Share of parts with a defect.")
    noise: float = Field(default=2.0, ge=0, le=50, description="Sensor noise, standard deviation in grey levels.")
    seed: Seed = Field(default=0, description="Seed: the same seed draws the same parts.")
    parts: int = Field(default=0, ge=0, le=10**9, description="Ends after this many parts; 0 never ends.")
    distinct: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Draws so many parts ahead and repeats them, for rates too high to draw at; 0 draws each anew.",
    )
    truth_file: FilePath | None = Field(
        default=None, description="Where to write the truth about each part, JSON lines; not written if absent."
    )

    @model_validator(mode="after")
    def _whole_mosaic(self) -> SimulatedSource:
        if self.pixel_format.is_bayer and (self.height_px % 2 or self.width_px % 2):
            raise ValueError(f"{self.pixel_format.value} needs an even height_px and width_px")
        return self

    @property
    def known_rate_hz(self) -> float | None:
        """The set rate."""
        return self.rate_hz

    @property
    def known_frame_bytes(self) -> int | None:
        """Every frame has the same size."""
        return self.height_px * self.width_px * self.pixel_format.channels


class FolderSource(SourceSection):
    """Image files, replayed at a set rate."""

    type: Literal["folder"] = Field(description="Kind of source.")
    path: FilePath = Field(description="Folder of images; folders in it are searched too.")
    rate_hz: Rate = Field(default=10.0, description="Images per second.")
    loop: bool = Field(default=False, description="Whether to begin again after the last image.")
    shuffle: bool = Field(default=False, description="Whether to replay in a random order instead of by path.")
    seed: Seed = Field(default=0, description="Seed of the random order.")
    pixel_format: PixelFormat | None = Field(
        default=None,
        description="Converts every image to this format; if absent, gray files are Mono8 and colour files BGR8.",
    )

    @property
    def known_rate_hz(self) -> float | None:
        """The set rate."""
        return self.rate_hz

    def missing(self) -> list[tuple[str, Path]]:
        """The folder, where it does not exist."""
        return [] if self.path.is_dir() else [("path", self.path)]


class OpencvSource(SourceSection):
    """A network stream, a video device or a video file, read by OpenCV."""

    type: Literal["opencv"] = Field(description="Kind of source.")
    url: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9+.-]*://\S+$",
        max_length=2048,
        description="Network stream, such as rtsp://camera/stream1. One of url, device and file is needed.",
    )
    device: str | None = Field(
        default=None, pattern=r"^/dev/\S+$", max_length=255, description="Video device, such as /dev/video0."
    )
    file: FilePath | None = Field(default=None, description="Video file.")
    rate_hz: Rate | None = Field(
        default=None, description="Frames per second; what the stream tells about itself if absent."
    )
    loop: bool = Field(default=False, description="Whether to begin again at the end of a file.")
    pixel_format: PixelFormat = Field(
        default=PixelFormat.BGR8,
        description="Pixel format handed on; OpenCV decodes to BGR8. Bayer formats take a device's raw pixels.",
    )
    width_px: int | None = Field(default=None, ge=16, le=8192, description="Width asked of a device, pixels.")
    height_px: int | None = Field(default=None, ge=16, le=8192, description="Height asked of a device, pixels.")
    fourcc: str | None = Field(
        default=None,
        pattern=r"^[ -~]{4}$",
        description="Transfer format asked of a device, such as MJPG, YUYV or GREY.",
    )
    open_s: float = Field(default=10.0, ge=0.1, le=3600, description="Longest wait for a stream to open, seconds.")
    reconnect_max_s: float = Field(
        default=30.0, ge=0.1, le=3600, description="Longest wait between attempts to reconnect, seconds."
    )
    stall_s: float = Field(
        default=5.0, ge=0.1, le=3600, description="A stream that is silent for so many seconds is opened anew."
    )

    @model_validator(mode="after")
    def _one_of(self) -> OpencvSource:
        given = [key for key in ("url", "device", "file") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of url, device and file ({', '.join(given) or 'none'} is given)")
        if self.device is None:
            if self.pixel_format.is_bayer:
                raise ValueError(
                    f"{self.pixel_format.value}: only a device delivers raw pixels; use Mono8, BGR8 or RGB8"
                )
            if odd := [key for key in ("width_px", "height_px", "fourcc") if getattr(self, key) is not None]:
                raise ValueError(f"{', '.join(odd)}: for a device only; a stream or file has its own size and format")
        if self.loop and self.file is None:
            raise ValueError("loop: for a file only")
        return self

    @property
    def slots_held(self) -> int:
        """Two frames wait, one is being decoded, and a reader that was given up may hold one a moment longer."""
        return 4

    @property
    def known_rate_hz(self) -> float | None:
        """The set rate, if any."""
        return self.rate_hz

    def missing(self) -> list[tuple[str, Path]]:
        """The device or file, where it does not exist."""
        named: dict[str, Any] = {"device": self.device, "file": self.file}
        return [(key, Path(value)) for key, value in named.items() if value is not None and not Path(value).exists()]


SourceSettings = Annotated[
    SimulatedSource | FolderSource | OpencvSource | GigeSource | GentlSource, Field(discriminator="type")
]

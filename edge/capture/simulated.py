"""The simulated camera: a drawn conveyor (see `edge.capture.simulation`) behind the interface of all cameras."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.capture.paced import PacedSource, failed, take
from edge.capture.pixels import convert, frame_view
from edge.capture.simulation import Conveyor, Defect
from edge.capture.source import Grab, SlotPool, SourceInfo
from edge.errors import SourceError
from edge.messages import FrameStatus
from edge.settings_sources import SimulatedSource as SimulatedSettings
from pipelines.images import PixelFormat

DISTINCT_BYTES_MAX = 1 << 30  # of pictures drawn ahead


class SimulatedSource(PacedSource):
    """Draws part after part at a set rate."""

    def __init__(self, settings: SimulatedSettings) -> None:
        super().__init__(settings.rate_hz)
        self._settings = settings
        self._conveyor: Conveyor | None = None
        self._scratch: NDArray[np.uint8] | None = None  # where drawing and delivering formats differ
        self._drawn_ahead: list[tuple[NDArray[np.uint8], Defect | None]] = []

    def open(self) -> SourceInfo:
        """Draws belt and part, and the `distinct` pictures where they are repeated."""
        settings = self._settings
        height, width = settings.height_px, settings.width_px
        size = height * width * settings.pixel_format.channels
        if settings.distinct * size > DISTINCT_BYTES_MAX:
            raise SourceError(
                f"distinct = {settings.distinct} pictures of {size / 1e6:.1f} MB need more than "
                f"{DISTINCT_BYTES_MAX / 1e9:.1f} GB of memory; use at most {max(1, DISTINCT_BYTES_MAX // size)}"
            )
        channels = 1 if settings.pixel_format is PixelFormat.MONO8 else 3
        try:
            self._conveyor = Conveyor(
                settings.seed, settings.part_type, height, width, channels, settings.defect_rate, noise=settings.noise
            )
        except ValueError as error:
            raise SourceError(f"simulated camera: {error}") from error
        if settings.pixel_format not in (PixelFormat.MONO8, PixelFormat.BGR8):
            self._scratch = np.empty((height, width, channels), np.uint8)
        for number in range(min(settings.distinct, settings.parts or settings.distinct)):
            picture = np.empty((height, width, settings.pixel_format.channels), np.uint8)
            self._drawn_ahead.append((picture, self._draw(number, picture)))
        return SourceInfo(
            max_bytes=size,
            max_rate_hz=settings.rate_hz,
            finite=settings.parts > 0,
            description=f"simulated {settings.part_type}, {width} x {height} {settings.pixel_format.value}, "
            f"{settings.rate_hz:g} parts/s, seed {settings.seed}",
        )

    def close(self) -> None:
        """Frees the pictures."""
        super().close()
        self._conveyor, self._scratch, self._drawn_ahead = None, None, []

    def _prepare(self, number: int, pool: SlotPool, until_ns: int) -> Grab | None:
        settings = self._settings
        form, height, width = settings.pixel_format, settings.height_px, settings.width_px
        slot = take(pool, height * width * form.channels)
        if slot is None:
            return failed(FrameStatus.NO_SLOT, form, height, width, self._origin(number))
        picture = frame_view(slot.buffer, height, width, form.channels)
        assert picture is not None
        if self._drawn_ahead:
            drawn, defect = self._drawn_ahead[number % len(self._drawn_ahead)]
            np.copyto(picture, drawn)
        else:
            defect = self._draw(number, picture)
        truth = _truth(number, defect)
        return Grab(FrameStatus.OK, slot, form, height, width, 0, origin=self._origin(number), truth=truth)

    def _skip(self, number: int) -> Grab:
        settings = self._settings
        size = settings.height_px, settings.width_px
        return failed(FrameStatus.LOST, settings.pixel_format, *size, origin=self._origin(number))

    def _ended(self, number: int) -> bool:
        return 0 < self._settings.parts <= number

    def _draw(self, number: int, out: NDArray[np.uint8]) -> Defect | None:
        assert self._conveyor is not None
        if self._scratch is None:
            return self._conveyor.render(number, out)
        defect = self._conveyor.render(number, self._scratch)
        convert(self._scratch, PixelFormat.BGR8, out, self._settings.pixel_format)
        return defect

    def _origin(self, number: int) -> str:
        return f"simulated:{self._settings.part_type}:{self._settings.seed}:{number}"


def _truth(number: int, defect: Defect | None) -> dict[str, object]:
    if defect is None:
        return {"index": number, "defect": None}
    left, top, right, bottom = defect.box
    return {
        "index": number,
        "defect": defect.kind,
        "severity": defect.severity,
        "area_px": defect.area_px,
        "box": [left, top, right, bottom],
    }

"""Pixel formats on the wire: their PFNC numbers, older names, and how samples of more than 8 bits become bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.settings_genicam import frame_format
from pipelines.images import PixelFormat

# GenICam Pixel Format Naming Convention 2.4, table of 32-bit values.
_CODES = {
    "Mono8": 0x01080001,
    "Mono10": 0x01100003,
    "Mono12": 0x01100005,
    "Mono16": 0x01100007,
    "Mono12p": 0x010C0047,
    "Mono12Packed": 0x010C0006,  # of GigE Vision 1
    "BayerGR8": 0x01080008,
    "BayerRG8": 0x01080009,
    "BayerGB8": 0x0108000A,
    "BayerBG8": 0x0108000B,
    "RGB8": 0x02180014,
    "BGR8": 0x02180015,
}
_OLD_NAMES = {"RGB8": "RGB8Packed", "BGR8": "BGR8Packed"}  # GigE Vision 1
_SHIFTS = {"Mono10": 2, "Mono12": 4, "Mono16": 8}  # bits to drop from a 16-bit sample


@dataclass(frozen=True)
class WireFormat:
    """What a camera sends, and what becomes of it."""

    name: str

    @property
    def code(self) -> int:
        """Its number in the leader of a frame; the upper bits are the bits per pixel."""
        return _CODES[self.name]

    @property
    def names(self) -> tuple[str, ...]:
        """What cameras call it."""
        return (self.name, _OLD_NAMES[self.name]) if self.name in _OLD_NAMES else (self.name,)

    @property
    def frame(self) -> PixelFormat:
        """What becomes of it in the ring."""
        return frame_format(self.name)

    @property
    def in_place(self) -> bool:
        """Whether the bytes on the wire are those of the frame, so that they are received into the slot."""
        return self.code >> 16 & 0xFF == 8 * self.frame.channels

    def bytes_for(self, height: int, width: int) -> int:
        """Bytes of an image on the wire."""
        return (height * width * (self.code >> 16 & 0xFF) + 7) // 8

    def unpack(self, wire: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """The upper 8 bits of each sample of `wire`, uint8 [bytes_for(H, W)], into `out`, uint8 [H * W]."""
        if self.name in _SHIFTS:
            samples = wire[: 2 * out.size].view("<u2")
            np.right_shift(samples, _SHIFTS[self.name], out=out, casting="unsafe")
            return
        if self.name not in ("Mono12p", "Mono12Packed"):
            raise ValueError(f"{self.name} is received in place")
        # Two pixels in three bytes. The last byte holds the second pixel's upper 8 bits in both formats.
        even, odd = out[0::2], out[1::2]
        first = wire[0::3][: even.size]
        if self.name == "Mono12p":  # lsb first: aaaaaaaa bbbbaaaa bbbbbbbb
            np.right_shift(first, 4, out=even)
            np.bitwise_or(even, wire[1::3][: even.size] << 4, out=even)
        else:  # upper bits first: aaaaaaaa, then both lower halves, then bbbbbbbb
            np.copyto(even, first)
        np.copyto(odd, wire[2::3][: odd.size])

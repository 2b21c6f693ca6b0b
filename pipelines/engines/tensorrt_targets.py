"""What a TensorRT engine may be built for: GPU generations, precisions and batches, and why others are refused.

Nothing here needs a GPU, torch or TensorRT. The capabilities that TensorRT-RTX can build for ahead of time are those of
its `ComputeCapability` (1.5); data-centre GPUs and Jetsons build on the machine itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipelines.config import PipelineConfig
from pipelines.engines.frame import FrameSpec
from pipelines.errors import EngineError

DEFAULT_TARGET = "default"
"""TensorRT-RTX's portable engine: every RTX generation since Ampere."""

TARGETS = {
    "sm75": "Turing: RTX 20, Quadro RTX, T4",
    "sm80": "Ampere: A100, A30",
    "sm86": "Ampere: RTX 30, RTX A2000 to A6000, A10",
    "sm89": "Ada: RTX 40, RTX 2000 to 6000 Ada, L4, L40S",
    "sm120": "Blackwell: RTX 50, RTX PRO",
    "sm121": "Blackwell: GB10",
}
"""Named targets of an ahead-of-time build, and which products they are."""

_JETSON = (
    "a Jetson builds on itself with JetPack's TensorRT: run `edge bundle build --engine tensorrt` there, or "
    "`edge bundle export --onnx` here and trtexec there"
)
_DATA_CENTRE = (
    "a data-centre GPU has TensorRT, not TensorRT-RTX: pip install 'edge-inspect[tensorrt]' on the machine with the "
    "GPU and run `edge bundle build --engine tensorrt` there"
)
_ELSEWHERE = {
    "sm72": f"SM72 (Jetson Xavier): {_JETSON}",
    "sm87": f"SM87 (Jetson Orin): {_JETSON}",
    "sm101": f"SM101 (Jetson Thor): {_JETSON}",
    "sm110": f"SM110 (Jetson Thor): {_JETSON}",
    "sm90": f"SM90 (H100, H200): {_DATA_CENTRE}",
    "sm100": f"SM100 (B200): {_DATA_CENTRE}",
    "sm103": f"SM103 (B300): {_DATA_CENTRE}",
}

PRECISIONS = ("fp16", "bf16", "fp32", "int8", "fp8")
"""Of the encoder and the head; resizing, distances and scores are float32 in all of them."""

_NEWEST_WITHOUT = {  # precision: (the oldest capability that has it, what to take instead)
    "bf16": (80, "fp16"),
    "fp32": (80, "fp16"),  # TensorRT-RTX does not build fp32 graphs for Turing
    "fp8": (89, "fp16 or int8"),
}

MAX_BATCH = 64


@dataclass(frozen=True)
class Batch:
    """How many frames one run of an engine takes: `low` to `high`."""

    low: int = 1
    high: int = 8

    @classmethod
    def parse(cls, text: str) -> Batch:
        """ "4" is a static batch, "1:8" a range. Raises `EngineError`."""
        found = re.fullmatch(r"(\d{1,3})(?::(\d{1,3}))?", text.strip())
        if found is None:
            raise EngineError(f"batch {text!r}: give a number of frames such as 1, or a range such as 1:8")
        low = int(found[1])
        high = int(found[2] or low)
        if not 1 <= low <= high <= MAX_BATCH:
            raise EngineError(f"batch {text!r}: a batch has 1 to {MAX_BATCH} frames, the smaller number first")
        return cls(low, high)

    @property
    def dynamic(self) -> bool:
        """Whether the number of frames may vary."""
        return self.high > self.low

    @property
    def profiles(self) -> tuple[tuple[int, int], ...]:
        """Ranges that the builder tunes for apart: a single frame, which most lines send, and company."""
        if self.low == 1 < self.high:
            return ((1, 1), (2, self.high))
        return ((self.low, self.high),)

    def __str__(self) -> str:
        return f"{self.low}:{self.high}" if self.dynamic else str(self.low)


def parse_target(text: str) -> str:
    """A target's name in lower case. Raises `EngineError` with what to do for GPUs that are built for elsewhere."""
    name = text.strip().lower().replace(".", "").replace("-", "").replace("_", "")
    if name.isdecimal():
        name = f"sm{name}"
    if name == DEFAULT_TARGET or name in TARGETS:
        return name
    if name in _ELSEWHERE:
        raise EngineError(f"target {text}: TensorRT-RTX does not build for {_ELSEWHERE[name]}")
    known = ", ".join((DEFAULT_TARGET, *TARGETS))
    raise EngineError(f"target {text}: TensorRT-RTX builds for {known}")


def capability(target: str) -> int | None:
    """86 for "sm86"; None for the default target."""
    return None if target == DEFAULT_TARGET else int(target[2:])


def check_precision(precision: str, sm: int | None, where: str) -> None:
    """Raises `EngineError` where a GPU of capability `sm` (None: any since Ampere) does not compute in `precision`."""
    if precision not in PRECISIONS:
        raise EngineError(f"engine tensorrt computes in {', '.join(PRECISIONS)}, not {precision}; choose one or auto")
    if precision not in _NEWEST_WITHOUT:
        return
    needed, instead = _NEWEST_WITHOUT[precision]
    if (80 if sm is None else sm) < needed:
        raise EngineError(
            f"{precision} needs a GPU of compute capability SM{needed} or newer, and {where} is "
            f"{'any since SM80' if sm is None else f'SM{sm}'}; build with --precision {instead}"
        )


def check_frames(config: PipelineConfig) -> tuple[int, int]:
    """(height, width) of the frames. Raises `EngineError` where they may have any: an engine has one size."""
    if config.frame is None:
        raise EngineError(
            f"engine tensorrt is built for one frame size, and this bundle takes {FrameSpec.of(config)}; "
            "give the camera's with --frame-size WxH, or calibrate on frames of one size"
        )
    return config.frame

"""The wire: what the line's processes say to each other.

A message is one msgpack array `[version, kind, body]`; `body` maps field names to values. Decoding is strict: unknown
kinds, unknown, doubled or missing fields, wrong types, values out of range and oversized input raise `MessageError`,
and memory stays bounded whatever the bytes claim (`MAX_BYTES`, `MAX_CONTAINERS`). Pixels never travel in a message: a
`FrameRef` names a slot of the frame ring, or the pixels follow as a second part of the same ZeroMQ message (see
`transport`).

Times are CLOCK_MONOTONIC nanoseconds of the host named by `host` (its boot id). A receiver on another host uses
`age_ns`, a duration, instead: clocks of two hosts are never compared.
"""

from __future__ import annotations

import time
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import msgpack
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.errors import MessageError
from pipelines.images import PixelFormat

VERSION = 1
MAX_BYTES = 5 << 20  # a Score with 64 regions of 128 x 128 float32 maps is the largest message
MAX_CONTAINERS = 512  # arrays and maps in a message; a Score with 64 regions has 69

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Nanoseconds = Annotated[int, Field(ge=0, le=2**63 - 1)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
# Short and ASCII: every announcement fits a journal record of the frame ring, and no name leads out of a folder.
PlainName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[!-~]+$")]
RingName = Annotated[str, Field(max_length=128, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")]
Origin = Annotated[str, Field(max_length=255), AfterValidator(lambda text: _at_most(255, text))]
Text = Annotated[str, Field(max_length=1024)]
Pixels = Annotated[int, Field(ge=0, le=65_536)]


def _at_most(size: int, text: str) -> str:
    if len(text.encode()) > size:
        raise ValueError(f"String should have at most {size} bytes of UTF-8")
    return text


def origin(path: Path | str) -> str:
    """A file's path as the origin of a frame: its last 255 bytes, where it is longer, and with readable characters."""
    data = str(path).encode("utf-8", "replace")
    if len(data) > 255:
        data = "…".encode() + data[-252:]
    return data.decode("utf-8", "ignore")


@cache
def host_id() -> str:
    """The clock domain of this host's CLOCK_MONOTONIC: its boot id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def now_ns() -> int:
    """CLOCK_MONOTONIC in nanoseconds: comparable between the processes of one host."""
    return time.monotonic_ns()


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", ser_json_inf_nan="constants")


class FrameStatus(str, Enum):
    """What became of a triggered frame. Anything but OK makes the part UNJUDGED."""

    OK = "ok"
    INCOMPLETE = "incomplete"  # packets or rows are missing
    LOST = "lost"  # triggered, or numbered by the camera, but never received
    UNREADABLE = "unreadable"  # received, but does not decode
    MISMATCH = "mismatch"  # other size or format than the camera announced
    NO_SLOT = "no_slot"  # does not fit a slot, or every slot was held by the camera


class FrameId(_Wire):
    """The identity of one frame: unique for ever within a plant.

    `epoch` numbers the capture process' lives (it only grows), `sequence` counts from 0 in each life without gaps.
    """

    line: PlainName
    camera: PlainName
    epoch: Count
    sequence: Count


class FrameRef(_Wire):
    """Capture announces a part: identity, deadline and, if there is a frame, where its pixels are."""

    id: FrameId
    part: Count
    trigger_ns: Nanoseconds
    host: PlainName
    age_ns: Nanoseconds  # from trigger to sending
    deadline_ns: Nanoseconds  # from trigger to the latest moment for the verdict
    status: Annotated[FrameStatus, Field(strict=False)]
    pixel_format: Annotated[PixelFormat, Field(strict=False)]
    height: Pixels
    width: Pixels
    ring: RingName  # file name of the ring; empty where there are no pixels
    slot: Count
    generation: Count  # of the slot, when the frame was complete
    camera_frame: Count | None = None  # the camera's own frame id
    camera_time_ns: Nanoseconds | None = None  # the camera's own clock
    encoder: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)  # belt encoder count
    origin: Origin | None = None  # file a replayed frame came from, see `origin`

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the pixels."""
        return self.height, self.width, self.pixel_format.channels


class ScoreStatus(str, Enum):
    """What became of a frame in inference. Anything but OK makes the part UNJUDGED."""

    OK = "ok"
    TORN = "torn"  # the slot was overwritten before or during inference
    LATE = "late"  # its deadline had passed before inference began
    REFUSED = "refused"  # the bundle cannot judge a frame of this size or format
    FAILED = "failed"  # the engine raised an error


class RegionScore(_Wire):
    """Raw score of one region of interest, its limit, and its raw patch scores as float32 [height, width].

    `left`, `top`, `right`, `bottom` is the rectangle of the frame that the patches cover, in pixels, the last two
    exclusive; all 0 is the whole frame.
    """

    name: Name
    score: float = Field(allow_inf_nan=False)
    limit: float = Field(allow_inf_nan=False)  # the bundle's: score > limit rejects
    floor: float = Field(allow_inf_nan=False)  # the raw score shown as 0 percent of limit
    height: Annotated[int, Field(ge=0, le=512)]
    width: Annotated[int, Field(ge=0, le=512)]
    patches: bytes = Field(repr=False, max_length=512 * 512 * 4)  # little-endian float32, row-major; may be empty
    left: Pixels = 0
    top: Pixels = 0
    right: Pixels = 0
    bottom: Pixels = 0

    @model_validator(mode="after")
    def _consistent(self) -> RegionScore:
        if len(self.patches) not in (0, 4 * self.height * self.width):
            raise ValueError(f"{len(self.patches)} bytes of patches do not make {self.height} x {self.width} float32")
        if not self.limit > self.floor:
            raise ValueError(f"the limit {self.limit} must be above the floor {self.floor}")
        return self

    @property
    def percent(self) -> float:
        """The score as percent of limit: 100 is the limit itself."""
        return 100.0 * (self.score - self.floor) / (self.limit - self.floor)


class Score(_Wire):
    """Inference's answer to one FrameRef."""

    frame: FrameRef  # repeated whole, so that a score that overtakes its announcement loses nothing
    status: Annotated[ScoreStatus, Field(strict=False)]
    bundle: Text  # content id of the bundle that judged
    engine: Text
    regions: Annotated[list[RegionScore], Field(max_length=64)]
    infer_ns: Nanoseconds  # time in the engine
    reason: Text = ""


class Decision(str, Enum):
    """The verdict on a part."""

    PASS = "pass"  # noqa: S105 - not a password
    REJECT = "reject"
    UNJUDGED = "unjudged"


class Verdict(_Wire):
    """The one verdict on a part, as written to the ledger and published."""

    id: FrameId
    part: Count
    decision: Annotated[Decision, Field(strict=False)]
    reason: Text  # why UNJUDGED; empty otherwise
    percent: float | None = Field(allow_inf_nan=False)  # of limit, of the worst region
    score: float | None = Field(allow_inf_nan=False)  # raw, of the worst region
    limit: float | None = Field(allow_inf_nan=False)
    region: Text | None
    bundle: Text | None
    engine: Text | None
    latency_ns: Nanoseconds  # from trigger to decision
    infer_ns: Nanoseconds | None
    decided_at_ns: Nanoseconds  # wall clock, for people; nothing is computed from it
    camera_frame: Count | None = None
    encoder: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    origin: Origin | None = None


class Health(_Wire):
    """What a process tells about itself once a second."""

    line: Name
    process: Name  # "capture-top", "infer", "alert"
    pid: Count
    state: Text  # "starting", "running", "degraded: …", "finished", "stopping"
    uptime_s: float = Field(ge=0, allow_inf_nan=False)
    counters: Annotated[dict[Name, int], Field(max_length=128)]
    gauges: Annotated[dict[Name, float], Field(max_length=128)]
    last_fault: Text = ""


Message = FrameRef | Score | Verdict | Health
_KINDS: dict[str, type[FrameRef] | type[Score] | type[Verdict] | type[Health]] = {
    "frame": FrameRef,
    "score": Score,
    "verdict": Verdict,
    "health": Health,
}
_NAMES = {model: kind for kind, model in _KINDS.items()}


def encode(message: Message) -> bytes:
    """The message as bytes for the wire. Raises `MessageError` where it is too large (the patch maps of a Score)."""
    envelope = [VERSION, _NAMES[type(message)], message.model_dump()]
    data: bytes = msgpack.packb(envelope, use_bin_type=True)
    if len(data) > MAX_BYTES:
        raise MessageError(f"{_NAMES[type(message)]} message of {len(data)} bytes: at most {MAX_BYTES} are allowed")
    return data


def decode(data: bytes | memoryview) -> Message:
    """The message in `data`. Raises `MessageError` for anything but one whole, valid message of this version."""
    size = len(data)
    if size > MAX_BYTES:
        raise MessageError(f"message of {size} bytes: at most {MAX_BYTES} are allowed")
    envelope = _unpack(data)
    if not isinstance(envelope, list) or len(envelope) != 3:
        raise MessageError("a message is an array of version, kind and body")
    version, kind, body = envelope
    if type(version) is not int or version != VERSION:
        raise MessageError(f"message version {version!r:.40}: this process speaks version {VERSION}; update both sides")
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise MessageError(f"unknown kind of message {kind!r:.40}: one of {', '.join(_KINDS)}")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MessageError(f"bad {kind} message: {where}: {first['msg']}"[:400]) from error


def _unpack(data: bytes | memoryview) -> Any:
    """Plain values, with bounds: small containers, few of them. Empty arrays would take 60 times their bytes."""
    left = MAX_CONTAINERS

    def count(container: list[Any]) -> list[Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_CONTAINERS} arrays and maps")
        return container

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        count(pairs)
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError("a field occurs twice")
        return fields

    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            list_hook=count,
            object_pairs_hook=unique,
            max_str_len=4096,
            max_bin_len=MAX_BYTES,
            max_array_len=64,
            max_map_len=128,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise MessageError(f"not msgpack: {str(error) or type(error).__name__:.200}") from error

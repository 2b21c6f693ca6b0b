"""The wire: what the line's processes say to each other.

A message is one msgpack array `[version, kind, body]`; `body` is the array of the field values, in the order in which
the classes below declare them. Decoding is strict: unknown kinds, missing or surplus fields, wrong types, values out
of range and oversized input raise `MessageError`, and memory stays bounded whatever the bytes claim (`MAX_BYTES`,
`MAX_CONTAINERS`). Pixels never travel in a message: a `FrameRef` names a slot of the frame ring, or the pixels follow
as a second part of the same ZeroMQ message (see `transport`).

At 30 frames/s every message meets cold processor caches, which makes it ten times dearer than in a tight loop: there
it counts how much code and memory it touches. So the classes are msgspec structs, checked while they are built from
msgpack's plain values, and the body has no field names.

Times are CLOCK_MONOTONIC nanoseconds of the host named by `host` (its boot id). A receiver on another host uses
`age_ns`, a duration, instead: clocks of two hosts are never compared.
"""

from __future__ import annotations

import math
import re
import time
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgpack
import msgspec
from msgspec import Meta

from edge.errors import MessageError
from pipelines.images import PixelFormat

VERSION = 2
MAX_BYTES = 5 << 20  # a Score with 64 regions of 128 x 128 float32 maps is the largest message
MAX_CONTAINERS = 512  # arrays and maps in a message; a Score with 64 regions has 69

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Nanoseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]
# Short and ASCII: every announcement fits a journal record of the frame ring, and no name leads out of a folder.
PlainName = Annotated[str, Meta(min_length=1, max_length=64)]  # and more: see `_plain`
RingName = Annotated[str, Meta(max_length=128)]  # likewise
Origin = Annotated[str, Meta(max_length=255)]
Text = Annotated[str, Meta(max_length=1024)]
Pixels = Annotated[int, Meta(ge=0, le=65_536)]


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


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Fields are checked when a message is decoded; what a field's type cannot say, at any construction too."""


def _finite(**values: float | None) -> None:
    for field, value in values.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{field}: {value} is not a finite number")


def _is_plain(text: str) -> bool:
    # By hand: a regular expression costs as much as all other checks of a message together.
    return text.isascii() and text.isprintable() and " " not in text


def _short(field: str, text: str) -> None:
    if len(text.encode()) > 255:
        raise ValueError(f"{field}: at most 255 bytes of UTF-8 are allowed")


class FrameStatus(str, Enum):
    """What became of a triggered frame. Anything but OK makes the part UNJUDGED."""

    OK = "ok"
    INCOMPLETE = "incomplete"  # packets or rows are missing
    LOST = "lost"  # triggered, or numbered by the camera, but never received
    UNREADABLE = "unreadable"  # received, but does not decode
    MISMATCH = "mismatch"  # other size or format than the camera announced
    NO_SLOT = "no_slot"  # does not fit a slot, or every slot was held by the camera
    # Trigger and frame disagree (see edge.tracking.alignment):
    MISSED = "missed"  # a part that was counted, and has no frame
    DOUBLED = "doubled"  # a frame of a part that was not counted
    MISALIGNED = "misaligned"  # which part the frame shows is not certain, or not since an earlier disagreement


class FrameId(_Wire, frozen=True):
    """The identity of one frame: unique for ever within a plant.

    `epoch` numbers the capture process' lives (it only grows), `sequence` counts from 0 in each life without gaps.
    """

    line: PlainName
    camera: PlainName
    epoch: Count
    sequence: Count

    def __post_init__(self) -> None:
        if not _is_plain(self.line):
            raise ValueError(f"line: {self.line!r:.80} has other characters than printable ASCII without blanks")
        if not _is_plain(self.camera):
            raise ValueError(f"camera: {self.camera!r:.80} has other characters than printable ASCII without blanks")


class FrameRef(_Wire, frozen=True):
    """Capture announces a part: identity, deadline and, if there is a frame, where its pixels are."""

    id: FrameId
    part: Count
    trigger_ns: Nanoseconds
    host: PlainName
    age_ns: Nanoseconds  # from trigger to sending
    deadline_ns: Nanoseconds  # from trigger to the latest moment for the verdict
    status: FrameStatus
    pixel_format: PixelFormat
    height: Pixels
    width: Pixels
    ring: RingName  # file name of the ring; empty where there are no pixels
    slot: Count
    generation: Count  # of the slot, when the frame was complete
    camera_frame: Count | None = None  # the camera's own frame id
    camera_time_ns: Nanoseconds | None = None  # the camera's own clock
    encoder: Integer | None = None  # belt encoder count
    origin: Origin | None = None  # file a replayed frame came from, see `origin`

    def __post_init__(self) -> None:
        if not _is_plain(self.host):
            raise ValueError(f"host: {self.host!r:.80} is no host id")
        if self.ring[:1] == "." or "/" in self.ring or not _is_plain(self.ring):
            raise ValueError(f"ring: {self.ring!r:.80} is no file name of a ring")
        if self.origin is not None:
            _short("origin", self.origin)

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


class RegionScore(_Wire, frozen=True):
    """Raw score of one region of interest, its limit, and its raw patch scores as float32 [height, width].

    `left`, `top`, `right`, `bottom` is the rectangle of the frame that the patches cover, in pixels, the last two
    exclusive; all 0 is the whole frame.
    """

    name: Name
    score: float
    limit: float  # the bundle's: score > limit rejects
    floor: float  # the raw score shown as 0 percent of limit
    height: Annotated[int, Meta(ge=0, le=512)]
    width: Annotated[int, Meta(ge=0, le=512)]
    patches: Annotated[bytes, Meta(max_length=512 * 512 * 4)]  # little-endian float32, row-major; may be empty
    left: Pixels = 0
    top: Pixels = 0
    right: Pixels = 0
    bottom: Pixels = 0

    def __post_init__(self) -> None:
        _finite(score=self.score, limit=self.limit, floor=self.floor)
        if len(self.patches) not in (0, 4 * self.height * self.width):
            raise ValueError(f"{len(self.patches)} bytes of patches do not make {self.height} x {self.width} float32")
        if not self.limit > self.floor:
            raise ValueError(f"the limit {self.limit} must be above the floor {self.floor}")

    @property
    def percent(self) -> float:
        """The score as percent of limit: 100 is the limit itself."""
        return 100.0 * (self.score - self.floor) / (self.limit - self.floor)


class Score(_Wire, frozen=True):
    """Inference's answer to one FrameRef."""

    frame: FrameRef  # repeated whole, so that a score that overtakes its announcement loses nothing
    status: ScoreStatus
    bundle: Text  # content id of the bundle that judged
    engine: Text
    regions: Annotated[list[RegionScore], Meta(max_length=64)]
    infer_ns: Nanoseconds  # time in the engine
    reason: Text = ""


class Decision(str, Enum):
    """The verdict on a part."""

    PASS = "pass"  # noqa: S105 - not a password
    REJECT = "reject"
    UNJUDGED = "unjudged"


class Verdict(_Wire, frozen=True):
    """The one verdict on a part, as written to the ledger and published."""

    id: FrameId
    part: Count
    decision: Decision
    reason: Text  # why UNJUDGED; empty otherwise
    percent: float | None  # of limit, of the worst region
    score: float | None  # raw, of the worst region
    limit: float | None
    region: Text | None
    bundle: Text | None
    engine: Text | None
    latency_ns: Nanoseconds  # from trigger to decision
    infer_ns: Nanoseconds | None
    decided_at_ns: Nanoseconds  # wall clock, for people; nothing is computed from it
    camera_frame: Count | None = None
    encoder: Integer | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        _finite(percent=self.percent, score=self.score, limit=self.limit)
        if self.origin is not None:
            _short("origin", self.origin)


class Ruling(_Wire, frozen=True):
    """Alert tells the PLC's process of a verdict that stands in the ledger: all that a reject needs, and no more."""

    id: FrameId
    part: Count
    decision: Decision
    trigger_ns: Nanoseconds  # CLOCK_MONOTONIC of this host: both processes run on it
    deadline_ns: Nanoseconds  # from trigger to the latest moment for the verdict
    encoder: Integer | None = None  # belt encoder count of the frame
    # Where several cameras see the part: what each decided; `id` is that of the worst. Empty for a camera by itself.
    each: Annotated[dict[Name, Decision], Meta(max_length=64)] = msgspec.field(default_factory=dict)


class PlcAnswer(_Wire, frozen=True):
    """The PLC's process tells what the PLC answered in one exchange: by it captures know which part a frame shows."""

    line: PlainName
    asked_ns: Nanoseconds  # CLOCK_MONOTONIC of this host: the PLC looked after this
    at_ns: Nanoseconds  # and before this
    parts: Annotated[int, Meta(ge=0, le=0xFFFF)]  # counted at the camera; wraps
    part: Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]  # number of the newest of them
    encoder: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]  # belt counts; wraps
    run: bool  # the line is in production


class Health(_Wire, frozen=True):
    """What a process tells about itself once a second."""

    line: Name
    process: Name  # "capture-top", "infer", "alert"
    pid: Count
    state: Text  # "starting", "running", "degraded: …", "finished", "stopping"
    uptime_s: Annotated[float, Meta(ge=0)]
    counters: Annotated[dict[Name, Integer], Meta(max_length=128)]
    gauges: Annotated[dict[Name, float], Meta(max_length=128)]
    last_fault: Text = ""

    def __post_init__(self) -> None:
        _finite(uptime_s=self.uptime_s)
        _finite(**self.gauges)


Message = FrameRef | Score | Verdict | Ruling | PlcAnswer | Health
_KINDS: dict[str, type[FrameRef] | type[Score] | type[Verdict] | type[Ruling] | type[PlcAnswer] | type[Health]] = {
    "frame": FrameRef,
    "score": Score,
    "verdict": Verdict,
    "ruling": Ruling,
    "plc": PlcAnswer,
    "health": Health,
}
_NAMES = {model: kind for kind, model in _KINDS.items()}
_packer = msgpack.Packer(use_bin_type=True)  # one for all messages: it keeps its buffer


def as_json(message: _Wire, fields: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Field names and plain values, all or `fields`, for a JSON file that people and other programs read."""
    values = {name: getattr(message, name) for name in fields or message.__struct_fields__}
    return {
        name: as_json(value) if isinstance(value, _Wire) else value.value if isinstance(value, Enum) else value
        for name, value in values.items()
    }


def encode(message: Message) -> bytes:
    """The message as bytes for the wire. Raises `MessageError` where it is too large (the patch maps of a Score)."""
    data: bytes = _packer.pack((VERSION, _NAMES[type(message)], msgspec.to_builtins(message, builtin_types=(bytes,))))
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
        return msgspec.convert(body, model)
    except msgspec.ValidationError as error:
        raise MessageError(f"bad {kind} message: {_named(error, model)}"[:400]) from error


def _named(error: msgspec.ValidationError, model: Any) -> str:
    """The fault with the field's name in front, where msgspec gives its place: "... - at `$[0][3]`"."""
    text, _, place = str(error).partition(" - at `$")
    names, kind = [], model
    for number in re.findall(r"\[(\d+|\.\.\.)\]", place):
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            field = msgspec.structs.fields(kind)[int(number)]
            names.append(field.name)
            kind = field.type
        else:  # the items of a list, the values of a mapping
            names.append(number)
            kind = get_args(kind)[-1]
    return f"{'.'.join(names)}: {text}" if names else text


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

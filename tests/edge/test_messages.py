from __future__ import annotations

import string
import struct
import time
import tracemalloc
from pathlib import Path

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import messages
from edge.errors import MessageError
from edge.frames import JOURNAL_ENTRY
from edge.messages import (
    MAX_BYTES,
    MAX_CONTAINERS,
    VERSION,
    Decision,
    FrameId,
    FrameRef,
    FrameStatus,
    Health,
    Message,
    PlcAnswer,
    RegionScore,
    Ruling,
    Score,
    ScoreStatus,
    Verdict,
    decode,
    encode,
)
from pipelines.images import PixelFormat

counts = st.integers(0, 2**63 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, max_size=1024)
names = st.text(characters, min_size=1, max_size=64)
plain_names = st.text(string.ascii_letters + string.digits + "-_:.", min_size=1, max_size=64)
encoders = st.none() | st.integers(-(2**63), 2**63 - 1)
origins = st.none() | st.text(characters, max_size=255).filter(lambda text: len(text.encode()) <= 255)

frame_ids = st.builds(FrameId, line=plain_names, camera=plain_names, epoch=counts, sequence=counts)
frames = st.builds(
    FrameRef,
    id=frame_ids,
    part=counts,
    trigger_ns=counts,
    host=plain_names,
    age_ns=counts,
    deadline_ns=counts,
    status=st.sampled_from(FrameStatus),
    pixel_format=st.sampled_from(PixelFormat),
    height=st.integers(0, 65_536),
    width=st.integers(0, 65_536),
    ring=st.from_regex(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})?", fullmatch=True),
    slot=counts,
    generation=counts,
    camera_frame=st.none() | counts,
    camera_time_ns=st.none() | counts,
    encoder=encoders,
    origin=origins,
)


@st.composite
def regions(draw: st.DrawFn) -> RegionScore:
    floor = draw(st.floats(-1e6, 1e6))
    height, width = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    size = draw(st.sampled_from([0, 4 * height * width]))
    patches = draw(st.binary(min_size=size, max_size=size))
    limit = floor + draw(st.floats(1e-3, 1e6))
    return RegionScore(
        name=draw(names), score=draw(numbers), limit=limit, floor=floor, height=height, width=width, patches=patches
    )


scores = st.builds(
    Score,
    frame=frames,
    status=st.sampled_from(ScoreStatus),
    bundle=texts,
    engine=texts,
    regions=st.lists(regions(), max_size=3),
    infer_ns=counts,
    reason=texts,
)
verdicts = st.builds(
    Verdict,
    id=frame_ids,
    part=counts,
    decision=st.sampled_from(Decision),
    reason=texts,
    percent=st.none() | numbers,
    score=st.none() | numbers,
    limit=st.none() | numbers,
    region=st.none() | texts,
    bundle=st.none() | texts,
    engine=st.none() | texts,
    latency_ns=counts,
    infer_ns=st.none() | counts,
    decided_at_ns=counts,
    camera_frame=st.none() | counts,
    encoder=encoders,
    origin=origins,
)
rulings = st.builds(
    Ruling,
    id=frame_ids,
    part=counts,
    decision=st.sampled_from(Decision),
    trigger_ns=counts,
    deadline_ns=counts,
    encoder=encoders,
    each=st.dictionaries(names, st.sampled_from(Decision), max_size=4),
)
plc_answers = st.builds(
    PlcAnswer,
    line=plain_names,
    asked_ns=counts,
    at_ns=counts,
    parts=st.integers(0, 0xFFFF),
    part=st.integers(0, 0xFFFF_FFFF),
    encoder=st.integers(-(2**31), 2**31 - 1),
    run=st.booleans(),
)
healths = st.builds(
    Health,
    line=names,
    process=names,
    pid=counts,
    state=texts,
    uptime_s=st.floats(0, 1e12),
    counters=st.dictionaries(names, st.integers(-(2**63), 2**63 - 1), max_size=5),
    gauges=st.dictionaries(names, numbers, max_size=5),
    last_fault=texts,
)
any_message = frames | scores | verdicts | rulings | plc_answers | healths
SAMPLE = FrameRef(
    id=FrameId(line="press", camera="top", epoch=1_795_369_955_536, sequence=12_345),
    part=12_345,
    trigger_ns=2_000_000_000_000,
    host=messages.host_id(),
    age_ns=1_000_000,
    deadline_ns=500_000_000,
    status=FrameStatus.OK,
    pixel_format=PixelFormat.MONO8,
    height=2048,
    width=2448,
    ring="edge-inspect.press.top",
    slot=17,
    generation=1_795_369_955_536 << 20,
    origin="images/0001.png",
)


def body_of(message: Message) -> list[object]:
    body: list[object] = msgpack.unpackb(encode(message))[2]
    return body


def with_field(message: Message, field: str, value: object) -> bytes:
    """The message on the wire, with another value in one field."""
    body = body_of(message)
    body[message.__struct_fields__.index(field)] = value
    wire: bytes = msgpack.packb([VERSION, "frame", body])
    return wire


@given(any_message)
def test_every_message_survives_the_wire(message: Message) -> None:
    again = decode(encode(message))
    assert again == message
    assert type(again) is type(message)
    assert decode(memoryview(encode(message))) == message


@given(frames)
def test_every_announcement_fits_a_journal_record(frame: FrameRef) -> None:
    assert len(encode(frame)) <= JOURNAL_ENTRY


def test_the_longest_announcement_fits_a_journal_record() -> None:
    longest = FrameRef(
        id=FrameId(line="l" * 64, camera="c" * 64, epoch=2**63 - 1, sequence=2**63 - 1),
        part=2**63 - 1,
        trigger_ns=2**63 - 1,
        host="h" * 64,
        age_ns=2**63 - 1,
        deadline_ns=2**63 - 1,
        status=FrameStatus.INCOMPLETE,
        pixel_format=PixelFormat.BAYER_RG8,
        height=65_536,
        width=65_536,
        ring="r" * 128,
        slot=2**63 - 1,
        generation=2**63 - 1,
        camera_frame=2**63 - 1,
        camera_time_ns=2**63 - 1,
        encoder=-(2**63),
        origin="o" * 255,
    )
    assert len(encode(longest)) <= JOURNAL_ENTRY
    assert decode(encode(longest)) == longest


@given(st.binary(max_size=2048))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)


@given(any_message, st.data())
def test_a_damaged_message_is_refused_or_still_valid(message: Message, data: st.DataObject) -> None:
    wire = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(wire) - 1))
        wire[at] = data.draw(st.integers(0, 255))
    wire = wire[: data.draw(st.integers(0, len(wire)))] if data.draw(st.booleans()) else wire
    try:
        again = decode(bytes(wire))
    except MessageError:
        return
    assert decode(encode(again)) == again


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(characters) | st.binary()
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(characters), inner), max_leaves=20)


@given(any_message, st.data())
def test_a_message_with_foreign_values_is_refused_or_valid(message: Message, data: st.DataObject) -> None:
    wire = msgpack.unpackb(encode(message))
    wire[2][data.draw(st.integers(0, len(wire[2]) - 1))] = data.draw(values)
    try:
        again = decode(msgpack.packb(wire))
    except MessageError:
        return
    assert decode(encode(again)) == again


@given(values)
def test_any_other_structure_is_refused(value: object) -> None:
    for wire in (value, [VERSION, "frame", value], [VERSION, value, []], [value, "health", []]):
        with pytest.raises(MessageError):
            decode(msgpack.packb(wire))


HOSTILE = {
    "declared array of 4 G items": b"\xdd\xff\xff\xff\xff",
    "declared map of 4 G items": b"\xdf\xff\xff\xff\xff",
    "declared text of 4 GB": b"\xdb\xff\xff\xff\xff",
    "declared bytes of 4 GB": b"\xc6\xff\xff\xff\xff",
    "declared extension of 4 GB": b"\xc9\xff\xff\xff\xff\x01",
    "deep nesting of arrays": b"\x91" * MAX_BYTES,
    "deep nesting of maps": b"\x81\xa1a" * (MAX_BYTES // 3),
    "a million empty arrays": (b"\xdc\x00\x40" + (b"\xdc\x00\x40" + b"\x90" * 64) * 64) * 600,
    "wide arrays of wide arrays": b"\xdc\x00\x40" * 3 + b"\xdc\x00\x40" * 64 + b"\xcf" + b"\xff" * 4_000_000,
    "half a million small numbers": b"\x93\x02\xa5frame" + b"\xdc\x00\x40" * 1000 + b"\xcd\xff\xff" * 500_000,
    "one text after another": b"\xdc\x00\x40" + (b"\xda\x10\x00" + b"a" * 4096) * 64,
    "a timestamp": b"\x93\x02\xa5frame\xd6\xff\x00\x00\x00\x00",
    "another extension": b"\x93\x02\xa5frame\xd4\x05\x00",
    "no text in UTF-8": b"\x93\x02\xa2\xff\xfe\x80",
    "numbers as keys": b"\x93\x02\xa5frame\x81\x01\x02",
    "a doubled field": b"\x93\x02\xa6health\x98\xa1a\xa1b\x01\xa1c\xcb" + bytes(8) + b"\x82\xa1a\x01\xa1a\x02\x80\xa0",
    "two messages": b"\x93\x02\xa5frame\x80" * 2,
    "nothing": b"",
    "larger than allowed": b"\xc6" + struct.pack(">I", MAX_BYTES) + bytes(MAX_BYTES),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_cost_little_memory(name: str) -> None:
    data = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(MessageError):
            decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * MAX_BYTES


def test_as_many_containers_as_allowed_cost_little_memory() -> None:
    inner = [list(range(1000, 1064)) for _ in range(7)]
    data = msgpack.packb([inner] * (MAX_CONTAINERS // 8))
    tracemalloc.start()
    try:
        with pytest.raises(MessageError):
            decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MAX_BYTES


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("slot", -1, "slot: "),
        ("slot", 1.0, "slot: "),
        ("slot", "1", "slot: "),
        ("slot", True, "slot: "),
        ("slot", 2**63, "slot: "),
        ("height", 65_537, "height: "),
        ("status", "fine", "status: "),
        ("pixel_format", "Mono16", "pixel_format: "),
        ("ring", "../../etc/passwd", "ring: "),
        ("ring", "..", "ring: "),
        ("ring", "a/b", "ring: "),
        ("origin", "ä" * 200, "origin: "),
        ("host", "", "host: "),
        ("host", "a\x00b", "host: "),
        ("id", ["a", "b", 1], "id: .*at least length 4"),
        ("id", ["a", "b", 1, 2, 3], "id: .*at most length 4"),
        ("id", ["a b", "b", 1, 2], "id: line: "),
        ("id", ["a", "b", -1, 2], "id.epoch: "),
    ],
)
def test_a_bad_field_is_named(field: str, value: object, told: str) -> None:
    with pytest.raises(MessageError, match=rf"bad frame message: {told}"):
        decode(with_field(SAMPLE, field, value))


def test_a_bad_region_is_named() -> None:
    score = Score(frame=SAMPLE, status=ScoreStatus.OK, bundle="b", engine="e", regions=[region()] * 2, infer_ns=1)
    for changed, told in ((float("nan"), "regions.1: score: nan"), ("1", "regions.1.score: Expected `float`")):
        wire = msgpack.unpackb(encode(score))
        wire[2][Score.__struct_fields__.index("regions")][1][1] = changed
        with pytest.raises(MessageError, match=f"bad score message: {told}"):
            decode(msgpack.packb(wire))


def test_surplus_fields_are_refused() -> None:
    with pytest.raises(MessageError, match=r"bad frame message: .*at most length"):
        decode(msgpack.packb([VERSION, "frame", [*body_of(SAMPLE), None]]))


def test_another_version_is_named() -> None:
    with pytest.raises(MessageError, match="version 1: this process speaks version 2"):
        decode(msgpack.packb([1, "frame", body_of(SAMPLE)]))
    with pytest.raises(MessageError, match="version"):
        decode(msgpack.packb([True, "frame", body_of(SAMPLE)]))


def region(**changes: object) -> RegionScore:
    values = {"name": "all", "score": 1.5, "limit": 2.0, "floor": 1.0, "height": 2, "width": 3, "patches": bytes(24)}
    return RegionScore(**{**values, **changes})  # type: ignore[arg-type]


def test_percent_of_limit() -> None:
    assert region().percent == 50.0
    assert region(score=2.0).percent == 100.0
    assert region(score=0.5).percent == -50.0


def test_a_region_must_be_consistent() -> None:
    with pytest.raises(ValueError, match="do not make 2 x 3"):
        region(patches=bytes(20))
    with pytest.raises(ValueError, match="must be above the floor"):
        region(limit=1.0)
    with pytest.raises(ValueError, match="not a finite number"):
        region(score=float("nan"))


def test_the_largest_score_fits_and_a_larger_one_is_refused() -> None:
    def score(side: int) -> Score:
        many = [region(height=side, width=side, patches=bytes(4 * side * side)) for _ in range(64)]
        return Score(frame=SAMPLE, status=ScoreStatus.OK, bundle="b", engine="e", regions=many, infer_ns=1)

    assert decode(encode(score(128))) == score(128)
    with pytest.raises(MessageError, match="at most"):
        encode(score(256))


@given(st.text(st.characters(), max_size=2000))
def test_any_path_becomes_an_origin(path: str) -> None:
    text = messages.origin(path)
    frame = msgspec.structs.replace(SAMPLE, origin=text)
    assert decode(encode(frame)) == frame
    if len(path.encode("utf-8", "replace")) <= 255 and max(path, default="") < "\ud800":
        assert text == path


def test_a_long_origin_keeps_the_file_name() -> None:
    assert messages.origin(Path("/data") / ("x" * 300) / "part-0001.png").endswith("x/part-0001.png")


def test_coding_is_no_bottleneck() -> None:
    """A generous bound for a loaded machine; it takes about 40 microseconds on an idle one."""
    assert min(_seconds(lambda: decode(encode(SAMPLE))) for _ in range(200)) < 0.5e-3
    assert len(encode(SAMPLE)) < 400


def _seconds(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began

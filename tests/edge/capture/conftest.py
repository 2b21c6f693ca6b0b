from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.capture.source import EndOfSource, Grab, Source, SourceInfo
from edge.frames import RingWriter

Start = Callable[..., tuple[SourceInfo, RingWriter]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Opens a source and starts it on a real ring of its own; everything is closed after the test."""
    opened: list[tuple[Source, RingWriter]] = []

    def run(source: Source, slots: int = 6, slot_bytes: int | None = None) -> tuple[SourceInfo, RingWriter]:
        info = source.open()
        ring = RingWriter.create(tmp_path / f"ring{len(opened)}", slots, slot_bytes or info.max_bytes)
        source.start(ring)
        opened.append((source, ring))
        return info, ring

    yield run
    for source, ring in opened:
        source.close()
        assert ring.in_flight == 0, "a source that is closed holds no slot"
        ring.close()


@pytest.fixture
def drain() -> Callable[[Source, RingWriter], list[tuple[Grab, bytes]]]:
    """All parts of a finite source with their pixels, committed one by one as capture does."""

    def run(source: Source, ring: RingWriter) -> list[tuple[Grab, bytes]]:
        parts = []
        while True:
            try:
                grab = source.next(2.0)
            except EndOfSource:
                return parts
            assert grab is not None, "no part within 2 s"
            pixels = b""
            if grab.slot is not None:
                pixels = grab.slot.buffer[: grab.height * grab.width * grab.pixel_format.channels].tobytes()
                ring.commit(grab.slot)
            parts.append((grab, pixels))

    return run

"""Where the frames of a replay come from: a line's archive, the files named by `origin` in its ledger, or a folder.

Pixels come out as the camera delivered them: an archived RGB8 frame was written as a colour PNG and is turned back, a
Bayer frame is its raw mosaic, and an image file is converted as the folder camera converts it. Scores are then those
of the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge.alert.history import History, Query
from edge.alert.ledger_schema import ArchiveState, Entry
from edge.capture.pixels import convert, whole_cells
from edge.messages import origin
from edge.settings import Settings
from pipelines.errors import ImageError
from pipelines.images import PixelFormat, list_images, read_image

PAGE = 256  # rows read at once: a replay may take hours, and an open read would keep the ledger's log from shrinking

NOT_KEPT = {
    ArchiveState.NONE: "the archive does not keep frames with this verdict",
    ArchiveState.QUEUED: "the archive has not written the frame yet",
    ArchiveState.NO_FRAME: "the part has no frame",
    ArchiveState.DROPPED: "the archive's queue was full, so the frame was dropped",
    ArchiveState.FAILED: "the archive could not be written",
    ArchiveState.LOST: "the line ended before the frame was written",
    ArchiveState.REMOVED: "the frame made room for newer ones (archive keep_days, max_gb, min_free_gb)",
}
FILE_GONE = "the archived file is gone or damaged"
ORIGIN_CHANGED = "the file it came from was changed since"
NO_CAMERA = "its camera is not in the settings any more"


@dataclass(frozen=True)
class Recorded:
    """A frame that can be replayed: uint8 [H, W, C] as the camera delivered it, and what the ledger says of it."""

    camera: str
    pixels: NDArray[np.uint8]
    pixel_format: PixelFormat
    source: str  # the archived frame or the image file
    entry: Entry | None


@dataclass(frozen=True)
class Missing:
    """A part that cannot be replayed, and why: one of a few reasons, so that they can be counted."""

    reason: str
    entry: Entry | None


Found: TypeAlias = Recorded | Missing


def from_ledger(history: History, query: Query, settings: Settings) -> Iterator[Found]:
    """The parts that match, oldest first, each with its frame or the reason why there is none. Raises `LedgerError`."""
    known = {camera.name for camera in settings.cameras}
    for entry in paged(history, query):
        yield _of_entry(entry, settings) if entry.verdict.id.camera in known else Missing(NO_CAMERA, entry)


def from_folder(
    folder: Path, camera: str, settings: Settings, history: History | None, query: Query
) -> Iterator[Found]:
    """Every image below `folder` as a frame of `camera`, with its newest row in the ledger that names it as origin.

    Raises `ImageError` for a missing or empty folder, `LedgerError`.
    """
    files = list_images(folder)
    rows: dict[str, Entry] = {}
    if history is not None:
        wanted = {origin(path) for path in files} | {origin(path.absolute()) for path in files}
        for entry in paged(history, query):
            if entry.verdict.origin in wanted and entry.verdict.origin is not None:
                rows[entry.verdict.origin] = entry
    wanted_format = getattr(settings.camera(camera).source, "pixel_format", None)
    for path in files:
        row = rows.get(origin(path.absolute())) or rows.get(origin(path))
        try:
            pixels, form = read_as_camera(path, wanted_format)
        except ImageError as error:
            yield Missing(str(error), row)
        else:
            yield Recorded(camera, pixels, form, str(path), row)


def paged(history: History, query: Query) -> Iterator[Entry]:
    """Rows that match, oldest first, in pages; with a `limit` the newest so many. Raises `LedgerError`."""
    if query.limit is not None:
        # The newest ones, and oldest first: held in memory, as many as were asked for.
        yield from reversed(list(history.entries(query)))
        return
    after = query.after_row or 0
    while True:
        page = list(history.added(replace(query, after_row=after, limit=PAGE)))
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].row


def _of_entry(entry: Entry, settings: Settings) -> Found:
    if entry.archive_state is ArchiveState.SAVED and entry.archive_path is not None:
        stem = settings.paths.archive / entry.archive_path
        try:
            pixels, form = read_archived(stem)
        except (OSError, ValueError, KeyError, TypeError, ImageError):
            return Missing(FILE_GONE, entry)
        return Recorded(entry.verdict.id.camera, pixels, form, f"{stem}.png", entry)
    path = _file_of(entry)
    if path is None:
        return Missing(NOT_KEPT.get(entry.archive_state, FILE_GONE), entry)
    try:
        if path.stat().st_mtime_ns > entry.verdict.decided_at_ns:
            return Missing(ORIGIN_CHANGED, entry)
        source = settings.camera(entry.verdict.id.camera).source
        pixels, form = read_as_camera(path, getattr(source, "pixel_format", None))
    except (OSError, ImageError):
        return Missing("the file it came from does not decode", entry)
    return Recorded(entry.verdict.id.camera, pixels, form, str(path), entry)


def _file_of(entry: Entry) -> Path | None:
    """The image file a part came from, where the ledger names one that is still there.

    Paths that were too long for the ledger were cut at their beginning, so they are not absolute any more.
    """
    name = entry.verdict.origin
    if not name or not name.startswith("/"):
        return None
    path = Path(name)
    return path if path.is_file() else None


def read_archived(stem: Path) -> tuple[NDArray[np.uint8], PixelFormat]:
    """The frame of an archived part (its path without suffix), uint8 [H, W, C], and its pixel format.

    Raises `OSError`, `ImageError`, `KeyError`, `TypeError` or `ValueError` where a file is gone or damaged, or the
    pixels are not those that the JSON describes.
    """
    told = json.loads(stem.with_name(stem.name + ".json").read_text(encoding="utf-8"))["frame"]
    form = PixelFormat(told["pixel_format"])
    pixels = read_image(stem.with_name(stem.name + ".png")).pixels
    if pixels.shape != (told["height"], told["width"], form.channels):
        raise ValueError(f"{stem}: the picture is not the frame that its JSON describes")
    return (np.ascontiguousarray(pixels[:, :, ::-1]) if form is PixelFormat.RGB8 else pixels), form


def read_as_camera(path: Path, wanted: PixelFormat | None) -> tuple[NDArray[np.uint8], PixelFormat]:
    """An image file as the folder camera delivers it: uint8 [H, W, C] in `wanted`, or in the file's own format.

    Raises `ImageError` where it does not decode.
    """
    frame = read_image(path)
    form = wanted or frame.pixel_format
    pixels = whole_cells(frame.pixels, form)
    if frame.pixel_format is form:
        return pixels, form
    out = np.empty((*pixels.shape[:2], form.channels), np.uint8)
    convert(pixels, frame.pixel_format, out, form)
    return out, form

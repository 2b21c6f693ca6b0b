"""One picture of a run: the worst mistakes and some of the rejects, with heatmaps, so that a person can judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 6
TILE_PX = 256
_MARGIN, _GAP = 36, 16
_CAPTION = 50
_HEADER, _HEADING = 118, 62
_SCALE = 64
_PAPER, _INK, _DIM = (247, 246, 243), (28, 30, 34), (112, 114, 120)
_EDGE = (214, 212, 206)
_MARK = (255, 214, 10)

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One part. `image` is uint8 RGB [H, W, 3]; `box` (left, top, right, bottom in its pixels) marks the truth."""

    image: NDArray[np.uint8]
    title: str
    detail: str
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Section:
    """A row of tiles, or what to say where there are none."""

    title: str
    colour: Colour
    tiles: Sequence[Tile] = field(default_factory=list)
    empty: str = "none"


def write(path: Path, title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> None:
    """Draws the sheet and writes it as PNG, by rename."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        draw(title, facts, sections).save(temporary, format="PNG", optimize=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def draw(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> Image.Image:
    """The sheet: a headline with `facts` (value, name), then one block per section, then the scale of the heatmaps."""
    width = 2 * _MARGIN + COLUMNS * TILE_PX + (COLUMNS - 1) * _GAP
    height = _HEADER + sum(_height(section) for section in sections) + _SCALE + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _headline(pen, width, title, facts)
    top = _HEADER
    for section in sections:
        _section(sheet, pen, section, top)
        top += _height(section)
    _legend(sheet, pen, top)
    return sheet


def _height(section: Section) -> int:
    rows = -(-len(section.tiles) // COLUMNS)
    return _HEADING + (rows * (TILE_PX + _CAPTION + _GAP) if rows else 34)


def _headline(pen: ImageDraw.ImageDraw, width: int, title: str, facts: Sequence[tuple[str, str]]) -> None:
    pen.text((_MARGIN, 30), title, fill=_INK, font=_font(30))
    right = width - _MARGIN
    for value, name in reversed(facts):
        span = max(pen.textlength(value, font=_font(26)), pen.textlength(name, font=_font(14)))
        pen.text((right, 30), value, fill=_INK, font=_font(26), anchor="ra")
        pen.text((right, 64), name, fill=_DIM, font=_font(14), anchor="ra")
        right -= int(span) + 30
    pen.line([(_MARGIN, _HEADER - 18), (width - _MARGIN, _HEADER - 18)], fill=_EDGE, width=2)


def _section(sheet: Image.Image, pen: ImageDraw.ImageDraw, section: Section, top: int) -> None:
    pen.rectangle([(_MARGIN, top + 16), (_MARGIN + 7, top + 40)], fill=section.colour)
    pen.text((_MARGIN + 20, top + 15), section.title, fill=_INK, font=_font(21))
    if not section.tiles:
        pen.text((_MARGIN + 20, top + _HEADING - 10), section.empty, fill=_DIM, font=_font(17))
    for number, tile in enumerate(section.tiles):
        row, column = divmod(number, COLUMNS)
        left = _MARGIN + column * (TILE_PX + _GAP)
        _tile(sheet, pen, tile, left, top + _HEADING + row * (TILE_PX + _CAPTION + _GAP), section.colour)


def _tile(sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, left: int, top: int, colour: Colour) -> None:
    rows, columns = tile.image.shape[:2]
    zoom = min(TILE_PX / rows, TILE_PX / columns)
    size = max(1, round(columns * zoom)), max(1, round(rows * zoom))
    at = left + (TILE_PX - size[0]) // 2, top + (TILE_PX - size[1]) // 2
    pen.rectangle([(left, top), (left + TILE_PX - 1, top + TILE_PX - 1)], fill=_EDGE)
    sheet.paste(Image.fromarray(tile.image).resize(size, Image.Resampling.LANCZOS), at)
    if tile.box is not None:
        grow = 7  # the mark lies around the defect, never on it
        x0, y0, x1, y1 = (round(value * zoom) for value in tile.box)
        x0, y0 = max(0, x0 - grow), max(0, y0 - grow)
        x1, y1 = min(size[0] - 1, x1 + grow), min(size[1] - 1, y1 + grow)
        frame = [(at[0] + x0, at[1] + y0), (at[0] + x1, at[1] + y1)]
        pen.rectangle([(frame[0][0] - 1, frame[0][1] - 1), (frame[1][0] + 1, frame[1][1] + 1)], outline=(0, 0, 0))
        pen.rectangle(frame, outline=_MARK, width=2)
    pen.rectangle([(left, top + TILE_PX), (left + TILE_PX - 1, top + TILE_PX + 3)], fill=colour)
    pen.text((left, top + TILE_PX + 9), _fitting(pen, tile.title, 17), fill=_INK, font=_font(17))
    pen.text((left, top + TILE_PX + 30), _fitting(pen, tile.detail, 15), fill=_DIM, font=_font(15))


def _legend(sheet: Image.Image, pen: ImageDraw.ImageDraw, top: int) -> None:
    """The fixed scale of all heatmaps, and what the yellow frame means."""
    from pipelines.heatmap import SCALE_PERCENT, scale_colours

    width = 360
    bar = Image.fromarray(np.ascontiguousarray(scale_colours(width)[None, :, ::-1].repeat(12, axis=0)))
    left, y = _MARGIN, top + 22
    sheet.paste(bar, (left, y))
    for percent in (0, 50, 100, 150, 200):
        x = left + round((width - 1) * percent / SCALE_PERCENT)
        pen.line([(x, y + 12), (x, y + 17)], fill=_DIM)
        text = "limit" if percent == 100 else f"{percent} %"
        pen.text((x, y + 19), text, fill=_DIM, font=_font(13), anchor="ma")
    note = "heatmap: raw patch score in percent of limit, the same scale for every part"
    pen.text((left + width + 40, y - 3), note, fill=_DIM, font=_font(15))
    mark = left + width + 40
    pen.rectangle([(mark, y + 22), (mark + 16, y + 34)], outline=(150, 120, 0), fill=_MARK)
    pen.text((mark + 26, y + 19), "true place of the defect, known from the simulator", fill=_DIM, font=_font(15))


def _fitting(pen: ImageDraw.ImageDraw, text: str, size: int) -> str:
    """The text, cut to the width of a tile."""
    if pen.textlength(text, font=_font(size)) <= TILE_PX:
        return text
    while text and pen.textlength(text + "…", font=_font(size)) > TILE_PX:
        text = text[:-1]
    return text + "…"


_fonts: dict[int, Font] = {}


def _font(size: int) -> Font:
    """Pillow's own font, so that the sheet looks the same everywhere."""
    if size not in _fonts:
        _fonts[size] = ImageFont.load_default(size)
    return _fonts[size]

"""Regions of interest and ignore areas of a camera's frame.

A region is a rectangle of the frame that is judged on its own: cut out, resized to the encoder's input and scored.
Ignore areas (clamps, date codes, background) are drawn in frame coordinates as rectangles, polygons or a mask image.
At calibration they become one static *keep* grid per region, on the grid of patches: **a patch is ignored when more
than half of its area is covered**. Ignored patches never enter a score and show as the head's floor in maps.

The file given to `calibrate fit --regions FILE` is TOML:

    [[regions]]              # none: the whole frame is one region named "frame"
    name = "left half"
    x_px = 0
    y_px = 0
    width_px = 1224
    height_px = 2048

    [[ignore]]               # any number; each one rectangle, polygon or mask
    rectangle_px = [100, 40, 220, 90]                 # x, y, width, height
    [[ignore]]
    polygon_px = [[0, 0], [80, 0], [0, 80]]           # corners x, y
    [[ignore]]
    mask = "belt.png"        # frame size; ignored where brighter than half; path relative to this file

This module does not import torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.errors import InspectError
from pipelines.images import read_image

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the standard library has it since 3.11
    import tomli as tomllib

Pixels = Annotated[int, Field(ge=0, le=65535)]
Size = Annotated[int, Field(ge=1, le=65535)]


class RegionsError(InspectError):
    """A region or ignore area that does not fit the frame, or a regions file that cannot be used."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Region(_Model):
    """A rectangle of the frame, in pixels from its upper left corner, and which of its patches count."""

    name: str = Field(min_length=1, max_length=64, description="shown with every score; unique per bundle")
    x_px: Pixels = Field(description="left edge [px]")
    y_px: Pixels = Field(description="upper edge [px]")
    width_px: Size = Field(description="width [px]")
    height_px: Size = Field(description="height [px]")
    keep: tuple[str, ...] | None = Field(
        default=None, description="rows of the patch grid, '1' = scored, '0' = ignored; none = all are scored"
    )

    @model_validator(mode="after")
    def _rows(self) -> Region:
        if self.keep is not None:
            if not self.keep or len({len(row) for row in self.keep}) != 1 or set("".join(self.keep)) - {"0", "1"}:
                raise ValueError("keep must hold rows of equal length made of 0 and 1")
            if "1" not in "".join(self.keep):
                raise ValueError(f"everything in region {self.name!r} is ignored; draw smaller ignore areas")
        return self

    def keep_grid(self, grid: tuple[int, int]) -> NDArray[np.bool_]:
        """Bool [h, w]: the patches that are scored. Raises `RegionsError` where `keep` is of another grid."""
        if self.keep is None:
            return np.ones(grid, dtype=np.bool_)
        found = (len(self.keep), len(self.keep[0]))
        if found != tuple(grid):
            raise RegionsError(
                f"region {self.name!r}: its ignore areas are drawn for {found[0]}x{found[1]} patches, the input has "
                f"{grid[0]}x{grid[1]}; calibrate again with the regions file"
            )
        return np.array([[cell == "1" for cell in row] for row in self.keep], dtype=np.bool_)

    def check_inside(self, frame: tuple[int, int]) -> None:
        """Raises `RegionsError` where the region leaves the frame (height, width)."""
        height, width = frame
        if self.x_px + self.width_px > width or self.y_px + self.height_px > height:
            raise RegionsError(
                f"region {self.name!r} ends at x {self.x_px + self.width_px}, y {self.y_px + self.height_px} px, "
                f"outside the frame of {width} x {height} px"
            )


class IgnoreArea(_Model):
    """One area of the frame that is not judged: a rectangle, a polygon or a mask image."""

    name: str = Field(default="", max_length=64, description="for people")
    rectangle_px: tuple[Pixels, Pixels, Size, Size] | None = Field(default=None, description="x, y, width, height [px]")
    polygon_px: tuple[tuple[int, int], ...] | None = Field(default=None, min_length=3, description="corners x, y [px]")
    mask: str | None = Field(default=None, description="image of the frame's size; ignored where brighter than half")

    @model_validator(mode="after")
    def _one(self) -> IgnoreArea:
        if sum(value is not None for value in (self.rectangle_px, self.polygon_px, self.mask)) != 1:
            raise ValueError("give exactly one of rectangle_px, polygon_px and mask")
        return self

    def paint(self, canvas: NDArray[np.uint8], folder: Path) -> None:
        """Sets the pixels of uint8 [H, W] `canvas` that this area covers to 1."""
        if self.rectangle_px is not None:
            x, y, width, height = self.rectangle_px
            canvas[y : y + height, x : x + width] = 1
        elif self.polygon_px is not None:
            cv2.fillPoly(canvas, [np.array(self.polygon_px, dtype=np.int32)], (1.0,))
        else:
            assert self.mask is not None
            path = folder / self.mask
            pixels = read_image(path).pixels.max(axis=2)
            if pixels.shape != canvas.shape:
                raise RegionsError(
                    f"{path}: the mask is {pixels.shape[1]} x {pixels.shape[0]} px, the frame is "
                    f"{canvas.shape[1]} x {canvas.shape[0]} px; draw it on a frame of this camera"
                )
            canvas[pixels > 127] = 1


class RegionsFile(_Model):
    """The content of a regions file; see the module's text."""

    regions: tuple[Region, ...] = ()
    ignore: tuple[IgnoreArea, ...] = ()
    _folder: Path = Path()

    @classmethod
    def load(cls, path: Path) -> RegionsFile:
        """Reads a regions file. Raises `RegionsError` that names the file and each key at fault."""
        try:
            loaded = cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise RegionsError(f"{path}: cannot read the regions file: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RegionsError(f"{path}: this is not valid TOML: {error}") from error
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
            raise RegionsError(f"{path}: {faults}") from error
        loaded._folder = path.parent
        return loaded

    def resolve(self, frame: tuple[int, int], grid: tuple[int, int]) -> tuple[Region, ...]:
        """The regions with their keep grids, for frames (height, width) and patches (h, w) per region.

        Raises `RegionsError` where a region leaves the frame, two share a name, or nothing of one is left to judge.
        """
        height, width = frame
        regions = self.regions or (Region(name="frame", x_px=0, y_px=0, width_px=width, height_px=height),)
        if len({region.name for region in regions}) != len(regions):
            raise RegionsError("two regions have the same name; give each its own")
        ignored = np.zeros(frame, dtype=np.uint8)
        for area in self.ignore:
            area.paint(ignored, self._folder)
        resolved = []
        for region in regions:
            region.check_inside(frame)
            if self.ignore:
                part = ignored[
                    region.y_px : region.y_px + region.height_px, region.x_px : region.x_px + region.width_px
                ]
                keep = patch_coverage(part, grid) <= 0.5
                if not keep.any():
                    raise RegionsError(
                        f"everything in region {region.name!r} is ignored, so nothing could be judged; "
                        "draw smaller ignore areas"
                    )
                if not keep.all():
                    rows = tuple("".join("1" if cell else "0" for cell in row) for row in keep)
                    region = region.model_copy(update={"keep": rows})
            resolved.append(region)
        return tuple(resolved)


def patch_coverage(mask: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.float64]:
    """Share of each patch's area that a 0/1 mask [H, W] covers: float64 [h, w], exact at fractional patch edges."""

    def area(size: int, cells: int) -> NDArray[np.float64]:
        """[cells, size]: the share of each pixel that lies in each cell."""
        edges = np.arange(cells + 1) * (size / cells)
        pixels = np.arange(size)
        overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return np.asarray(np.maximum(overlap, 0.0) * (cells / size), dtype=np.float64)

    rows, columns = area(mask.shape[0], grid[0]), area(mask.shape[1], grid[1])
    return np.asarray(rows @ mask.astype(np.float64) @ columns.T, dtype=np.float64)

"""The three part types of the simulated conveyor: a machined tile, a stamped washer, a printed cap."""

from __future__ import annotations

import cv2
import numpy as np

from edge.capture.simulation import lettering
from edge.capture.simulation.sprites import Sprite, SpriteMaker, assemble, coverage, facing, grid
from edge.capture.simulation.textures import Floats, brushed, cloud, tiled

_GRAIN_PERIOD = 1200  # pixels after which the grain of very large parts repeats


def tile(rng: np.random.Generator, reference: int, gray: bool) -> Sprite:
    """A machined aluminium tile: brushed face, chamfered edges, two countersunk holes, an etched part number."""
    unit = reference / 480
    half = 0.30 * reference
    size = 2 * round(half * 1.34)
    x, y = grid(size)
    corner = 0.07 * half
    distance = _box(x, y, half, corner)
    alpha = coverage(distance)
    chamfer = np.clip((distance + 0.085 * half) / (0.085 * half), 0, 1)
    on_chamfer = coverage(-(distance + 0.085 * half)) * alpha
    # The chamfers are milled: they face the lamp or turn away from it, each with one tone.
    tone = 168 + on_chamfer * (58 * facing(distance) - 4)
    tone += 16 * np.exp(-((distance + 0.085 * half) ** 2) / (0.8 * unit) ** 2)  # bright edge where face meets chamfer
    tone -= 30 * chamfer**8
    for side in (-1, 1):
        centre = 0.66 * half * side
        radius = np.hypot(x - centre, y - centre)
        sink = 0.135 * half
        hole = coverage(radius - 0.55 * sink)
        cone = coverage(radius - sink) * (1 - hole)
        tone = tone * (1 - cone) + cone * (140 - 66 * facing(radius - sink))
        tone = tone * (1 - hole) + hole * (30 + 10 * facing(radius))
    colour = tone[:, :, None] * np.array([1.0, 0.985, 0.965], np.float32)
    blank = colour.copy()
    marking = np.zeros((size, size), np.float32)
    lettering.place(marking, lettering.text("EI-4071", 0.13 * half, spacing=0.08), 0.04 * half, 0.60 * half)
    lettering.place(marking, _code(rng, 0.32 * half), -0.62 * half, 0.60 * half)
    colour = colour * (1 - 0.52 * marking[:, :, None])
    wide = min(round(1.5 * size), _GRAIN_PERIOD)
    grain = (
        1
        + 0.062 * brushed(rng, wide, wide, 150 * unit, thickness=0.55 * unit)
        + 0.02 * cloud(rng, (wide, wide), 90 * unit)
    )
    sheen = 1 + 0.10 * np.exp(-(((x * 0.35 + y + 0.25 * half) / (0.55 * half)) ** 2)) - 0.04
    return assemble(
        unit=unit, colour=colour, blank=blank, marking=marking, alpha=alpha, shading=sheen.astype(np.float32),
        grain=tiled(grain, round(1.5 * size), round(1.5 * size)), turn_deg=6, height=7 * unit, gray=gray, rng=rng,
    )  # fmt: skip


def washer(rng: np.random.Generator, reference: int, gray: bool) -> Sprite:
    """A washer stamped from rolled strip: rolled-in edges, a punched hole, a size mark pressed into the face."""
    unit = reference / 480
    outer, inner = 0.315 * reference, 0.150 * reference
    size = 2 * round(outer * 1.22)
    x, y = grid(size)
    radius = np.hypot(x, y)
    distance = np.maximum(radius - outer, inner - radius)
    alpha = coverage(distance)
    face = np.full((size, size), 158, np.float32)
    colour = face[:, :, None] * np.array([1.02, 1.0, 0.965], np.float32)
    blank = colour.copy()
    marking = np.zeros((size, size), np.float32)
    middle = (outer + inner) / 2
    letters = 0.36 * (outer - inner)
    lettering.bend(marking, lettering.text("M16", letters, spacing=0.12), middle, -90)
    lettering.bend(marking, lettering.text("A2-70", letters, spacing=0.12), middle, 90)
    # A pressed mark: a dark floor with a bright burr all around, which reads the same at every turn of the part.
    rim = np.clip(cv2.GaussianBlur(marking, (0, 0), 1.3 * unit) * 1.6 - marking, 0, 1)
    colour = colour * (1 - 0.40 * marking + 0.26 * rim)[:, :, None]
    wide = min(round(1.5 * size), _GRAIN_PERIOD)
    grain = (
        1
        + 0.045 * brushed(rng, wide, wide, 120 * unit, thickness=0.6 * unit)
        + 0.035 * cloud(rng, (wide, wide), 2.2 * unit)
        + 0.030 * cloud(rng, (wide, wide), 40 * unit)
    )
    # Edges rolled over by the punch, sheared below; and the fan-shaped sheen of ground metal under a bar lamp.
    roll = 0.055 * outer
    slope = np.clip(1 + distance / roll, 0, 1) * alpha
    fan = np.cos(2 * (np.arctan2(y, x) - np.deg2rad(62)))
    shading = 1 + 0.17 * fan * (1 - slope) + slope * (0.42 * facing(distance) - 0.05) - 0.30 * slope**6
    return assemble(
        unit=unit, colour=colour, blank=blank, marking=marking, alpha=alpha, shading=shading.astype(np.float32),
        grain=tiled(grain, round(1.5 * size), round(1.5 * size)), turn_deg=180, height=4 * unit, gray=gray, rng=rng,
    )  # fmt: skip


def cap(rng: np.random.Generator, reference: int, gray: bool) -> Sprite:
    """A moulded blue closure seen from above: knurled skirt, rounded shoulder, white print with logo and text."""
    unit = reference / 480
    outer = 0.315 * reference
    size = 2 * round(outer * 1.22)
    x, y = grid(size)
    angle = np.arctan2(y, x)
    ribs = 0.5 + 0.5 * np.cos(84 * angle)
    radius = np.hypot(x, y)
    distance = radius - outer * (1 - 0.016 * (1 - ribs))
    alpha = coverage(distance)
    shoulder, panel = 0.86 * outer, 0.80 * outer
    skirt = coverage(shoulder - radius)
    plastic = np.array([158, 92, 26], np.float32)
    tone = 1 - skirt * (0.50 * (1 - ribs) ** 1.5 + 0.10)
    groove = np.exp(-(((radius - shoulder) / (0.012 * outer)) ** 2))
    step = np.exp(-(((radius - panel) / (0.010 * outer)) ** 2))
    tone = tone * (1 - 0.40 * groove) * (1 - 0.16 * step)
    gate = np.hypot(x, y - 0.03 * outer)  # the injection point's small witness mark
    blank = tone[:, :, None] * plastic
    marking = _print(size, outer)
    ink = np.array([238, 240, 240], np.float32)
    colour = blank * (1 - 0.95 * marking[:, :, None]) + 0.95 * marking[:, :, None] * ink
    wide = min(round(1.5 * size), _GRAIN_PERIOD)
    grain = 1 + 0.016 * cloud(rng, (wide, wide), 2.5 * unit) + 0.014 * cloud(rng, (wide, wide), 60 * unit)
    slope = np.clip((radius - panel) / (outer - panel), 0, 1)
    bevel = slope * (1 - slope) * 4
    shading = 1 + 0.34 * bevel * facing(radius) - 0.30 * slope**2 + 0.10 * slope * facing(radius)
    shading += 0.16 * np.exp(-(((x + 0.30 * outer) ** 2 + (y + 0.42 * outer) ** 2) / (0.42 * outer) ** 2)) - 0.03
    glint = np.exp(-(((radius - 0.835 * outer) / (0.016 * outer)) ** 2)) * np.clip(facing(radius), 0, 1) ** 3
    shading += 0.55 * glint
    shading -= 0.10 * np.exp(-((gate / (0.02 * outer)) ** 2))
    return assemble(
        unit=unit, colour=colour, blank=blank, marking=marking, alpha=alpha, shading=shading.astype(np.float32),
        grain=tiled(grain, round(1.5 * size), round(1.5 * size)), turn_deg=180, height=11 * unit, gray=gray, rng=rng,
    )  # fmt: skip


PART_TYPES: dict[str, SpriteMaker] = {"tile": tile, "washer": washer, "cap": cap}


def _box(x: Floats, y: Floats, half: float, corner: float) -> Floats:
    """Signed distance to a square of half side `half` with rounded corners."""
    across, down = np.abs(x) - (half - corner), np.abs(y) - (half - corner)
    outside = np.hypot(np.maximum(across, 0), np.maximum(down, 0))
    return (outside + np.minimum(np.maximum(across, down), 0) - corner).astype(np.float32)


def _code(rng: np.random.Generator, side: float) -> Floats:
    """A laser-marked matrix code: random cells with the two solid borders of a Data Matrix."""
    cells = rng.integers(0, 2, (12, 12)).astype(np.float32)
    cells[:, 0] = cells[-1, :] = 1
    cells[0, :] = np.arange(12) % 2 == 0
    cells[:, -1] = np.arange(12) % 2 == 1
    pixels = max(12, round(side))
    return cv2.resize(
        cells, (pixels, pixels), interpolation=cv2.INTER_LINEAR_EXACT if pixels < 24 else cv2.INTER_NEAREST
    ).astype(np.float32)


def _print(size: int, outer: float) -> Floats:
    """The cap's print: a ring, an eye in a hexagon, a name and a batch text around it."""
    layer = np.zeros((size, size), np.float32)
    x, y = grid(size)
    radius = np.hypot(x, y)
    layer = np.maximum(layer, coverage(np.abs(radius - 0.735 * outer) - 0.010 * outer))
    lettering.bend(layer, lettering.text("EDGE INSPECT", 0.125 * outer, spacing=0.18), 0.60 * outer, -90)
    lettering.bend(layer, lettering.text("LOT 2407-B", 0.095 * outer, spacing=0.16), 0.60 * outer, 90, outward=False)
    for side in (-1, 1):
        layer = np.maximum(layer, coverage(np.hypot(x - side * 0.60 * outer, y) - 0.030 * outer))
    hexagon = np.maximum(np.abs(x) * 0.866 + np.abs(y) * 0.5, np.abs(y)) - 0.36 * outer
    layer = np.maximum(layer, coverage(np.abs(hexagon) - 0.022 * outer))
    lens = np.maximum(np.hypot(x, y - 0.17 * outer), np.hypot(x, y + 0.17 * outer)) - 0.30 * outer
    layer = np.maximum(layer, coverage(np.abs(lens) - 0.018 * outer))
    return np.maximum(layer, coverage(radius - 0.075 * outer)).astype(np.float32)

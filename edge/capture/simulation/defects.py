"""Ten kinds of defect. Each draws itself on a part and on its truth mask.

`severity` runs from 0 (barely visible, small: what a good inspector misses on a bad day) to 1 (plain).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from edge.capture.simulation.damage import Damage, Window
from edge.capture.simulation.textures import Floats, cloud

Rng = np.random.Generator
DefectMaker = Callable[[Damage, Rng, float], None]


def scratch(part: Damage, rng: Rng, severity: float) -> None:
    """A long thin score: a bright ploughed line with a dark flank, pressed unevenly, sometimes two in parallel."""
    unit = part.sprite.unit
    x, y = part.spot(rng)
    length = unit * _range(rng, severity, 26, 70, 120, 210)
    points = _curve(rng, x, y, length, bend=0.5)
    window = part.window(x, y, length)
    pressure = _unevenness(rng, len(points) - 1, 0.35)
    width = unit * _range(rng, severity, 0.7, 1.0, 1.2, 2.0)
    depth = _range(rng, severity, 0.20, 0.35, 0.55, 0.85)
    for shift in (0.0, unit * rng.uniform(4, 9))[: 1 + (rng.random() < 0.3)]:
        normal = np.array([points[0, 1] - points[-1, 1], points[-1, 0] - points[0, 0]]) / length
        line = points + normal * shift
        core = part.strokes(window, line, pressure * depth, width)
        flank = part.strokes(window, line + normal * width, pressure * depth, width)
        part.gain(window, 1 - 0.55 * flank)
        part.tint(window, core, (236, 236, 236))
        part.mark(window, np.maximum(core, flank) > 0.25 * depth)


def crack(part: Damage, rng: Rng, severity: float) -> None:
    """A jagged dark line from the edge or a hole inwards, thinning out, with a branch where it is severe."""
    unit = part.sprite.unit
    x, y, nx, ny = part.edge(rng)
    length = unit * _range(rng, severity, 18, 40, 70, 130)
    window = part.window(x, y, 1.5 * length)
    total = np.zeros(window.x.shape, np.float32)
    heading = np.arctan2(-ny, -nx) + rng.uniform(-0.5, 0.5)
    width = unit * _range(rng, severity, 0.8, 1.1, 1.3, 2.2)
    depth = _range(rng, severity, 0.35, 0.5, 0.75, 0.95)
    points = np.array([[x, y]])
    for branch in range(1 + (severity > 0.5) + (severity > 0.85)):
        steps = max(6, int(length / (3.2 * unit)))
        turns = rng.normal(0, 0.55, steps)
        path = (
            heading + (rng.choice([-0.7, 0.7]) if branch else 0.0) + turns + 0.15 * np.cumsum(rng.normal(0, 0.3, steps))
        )
        moves = np.stack([np.cos(path), np.sin(path)], axis=1) * (length / steps)
        start = points[[len(points) // 2]]  # a branch leaves the line before it half way
        points = np.concatenate([start, start + np.cumsum(moves, axis=0)])
        taper = np.linspace(1.0, 0.45, len(points) - 1)
        total = np.maximum(total, part.strokes(window, points, depth * taper, width * (0.6 if branch else 1.0)))
        length *= 0.5
    rim = np.roll(total, round(max(1.0, unit)), axis=(0, 1))
    part.gain(window, 1 + 0.18 * np.clip(rim - total, 0, 1))
    part.tint(window, total, (22, 22, 24))
    part.mark(window, total > 0.2 * depth)


def stain(part: Damage, rng: Rng, severity: float) -> None:
    """Dried coolant, oil or rust: an irregular tinted patch, darker towards its rim."""
    unit = part.sprite.unit
    x, y = part.spot(rng)
    radius = unit * _range(rng, severity, 7, 16, 18, 44)
    window = part.window(x, y, 1.7 * radius)
    field = _blob(rng, window, radius, roughness=0.34)
    inside = np.clip(field / 0.10, 0, 1)
    rim = np.exp(-(((field - 0.10) / 0.12) ** 2))
    strength = _range(rng, severity, 0.10, 0.16, 0.28, 0.58)
    colour = ((38, 60, 96), (30, 34, 38), (24, 70, 140), (190, 196, 190))[rng.integers(4)]
    opacity = inside * strength * (0.62 + 0.38 * rim) * (1 + 0.18 * cloud(rng, inside.shape, size=5 * unit))
    part.tint(window, np.clip(opacity, 0, 0.9).astype(np.float32), colour)
    part.mark(window, inside > 0.5)


def chip(part: Damage, rng: Rng, severity: float) -> None:
    """A piece broken off the edge: the outline is bitten, with a rough fracture face inside the bite."""
    unit = part.sprite.unit
    x, y, nx, ny = part.edge(rng)
    radius = unit * _range(rng, severity, 4.5, 7, 9, 22)
    window = part.window(x, y, 2.2 * radius)
    along, into = window.x * -ny + window.y * nx, -(window.x * nx + window.y * ny)
    reach = radius * (1 - (along / (1.6 * radius)) ** 2)
    rough = 0.16 * radius * cloud(rng, along.shape, size=max(3.0, 0.5 * radius))
    bite = np.clip(0.5 + (0.55 * reach + rough - into), 0, 1)
    fracture = np.clip(0.5 + (reach + rough - into), 0, 1)
    facets = 1.0 + 0.20 * cloud(rng, along.shape, size=3.5 * unit) + 0.12 * (nx * part.light[0] + ny * part.light[1])
    bright = _range(rng, severity, 0.94, 1.08, 1.10, 1.28)
    part.gain(window, (1 + fracture * (facets * bright - 1)).astype(np.float32))
    lip = np.exp(-(((reach + rough - into) / (1.1 * unit)) ** 2)) * (reach > 0)
    part.gain(window, (1 - 0.28 * lip).astype(np.float32))
    before = part.alpha[window.rows, window.columns]
    part.mark(window, fracture > 0.5)
    before[...] = np.rint(before * (1 - bite)).astype(np.uint8)


def dent(part: Damage, rng: Rng, severity: float) -> None:
    """A dint: the surface is pressed in, seen only by its shading, bright on one side and dark on the other."""
    unit = part.sprite.unit
    x, y = part.spot(rng)
    radius = unit * _range(rng, severity, 6, 10, 10, 26)
    window = part.window(x, y, 2.6 * radius)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.7)
    across = (window.x * np.cos(angle) + window.y * np.sin(angle)) / stretch
    down = -window.x * np.sin(angle) + window.y * np.cos(angle)
    bowl = np.exp(-(((across**2 + down**2) / radius**2) ** 1.4))
    dy, dx = np.gradient(bowl)
    # The wall that faces the lamp is the far one: a hollow's shading is the reverse of a bump's.
    slope = (dx * part.light[0] + dy * part.light[1]) * radius
    depth = _range(rng, severity, 0.09, 0.14, 0.20, 0.36)
    shade = (-depth * slope - 0.18 * depth * bowl).astype(np.float32)
    part.gain(window, 1 - shade)
    part.mark(window, bowl > 0.3)


def pit(part: Damage, rng: Rng, severity: float) -> None:
    """Blowholes or corrosion pits: dark round mouths with a lit far wall, alone or in a cluster."""
    unit = part.sprite.unit
    x, y = part.spot(rng)
    for _ in range(int(rng.integers(1, 5))):
        radius = unit * _range(rng, severity, 1.3, 2.0, 2.4, 6.5)
        window = part.window(x, y, 2.2 * radius + 2)
        squash = rng.uniform(0.75, 1.0)
        distance = np.hypot(window.x, window.y / squash) - radius
        hole = np.clip(0.5 - distance / max(1.0, 0.25 * radius), 0, 1)
        away = -(window.x * part.light[0] + window.y * part.light[1]) / radius
        wall = np.exp(-(((distance - 0.15 * radius) / (0.3 * radius)) ** 2)) * np.clip(away, 0, 1)
        depth = _range(rng, severity, 0.38, 0.5, 0.6, 0.85)
        part.gain(window, (1 + 0.22 * wall).astype(np.float32))
        part.tint(window, (hole * depth).astype(np.float32), (30, 31, 33))
        part.mark(window, distance < 0.4 * max(1.0, 0.25 * radius))
        x, y = (int(v + rng.normal(0, 9 * unit)) for v in (x, y))


def burr(part: Damage, rng: Rng, severity: float) -> None:
    """A ragged sliver of material standing out over the edge of the part or of its hole."""
    unit = part.sprite.unit
    x, y, nx, ny = part.edge(rng)
    half = unit * _range(rng, severity, 5, 9, 11, 30)
    height = unit * _range(rng, severity, 2.2, 3.2, 3.6, 8.0)
    window = part.window(x, y, half + height + 3)
    along, out = window.x * -ny + window.y * nx, window.x * nx + window.y * ny
    # The edge may be bent: how far it lies from the tangent is read from the outline itself.
    field = cv2.distanceTransform(
        (part.sprite.alpha[window.rows, window.columns] < 128).astype(np.uint8), cv2.DIST_L2, 5
    )
    profile = np.clip(1 - (along / half) ** 2, 0, 1) * (1 + 0.24 * cloud(rng, along.shape, size=7 * unit))
    sliver = np.clip(0.5 + height * profile - field, 0, 1) * (field > 0) * (np.abs(out) < 2 * height + 0.3 * half)
    before = part.alpha[window.rows, window.columns].astype(np.float32) / 255
    bright = part.surface[part.sprite.interior[:64, 1], part.sprite.interior[:64, 0]].mean(axis=0)
    tone = np.broadcast_to(bright * rng.uniform(1.02, 1.22), (3,)) if np.ndim(bright) else np.full(3, bright * 1.12)
    blue, green, red = (float(min(250.0, value)) for value in tone)
    part.tint(window, np.where(field > 0, sliver, 0).astype(np.float32), (blue, green, red))
    root = np.exp(-(((field - 0.8 * unit) / (0.8 * unit)) ** 2)) * (sliver > 0.3)
    part.gain(window, (1 - 0.25 * root).astype(np.float32))
    part.alpha[window.rows, window.columns] = np.rint(255 * np.maximum(before, sliver)).astype(np.uint8)
    part.mark(window, sliver > 0.5)


def fibre(part: Damage, rng: Rng, severity: float) -> None:
    """A hair, a fibre or a curl of swarf lying on the part, with its own thin shadow."""
    unit = part.sprite.unit
    x, y = part.spot(rng)
    length = unit * _range(rng, severity, 22, 40, 60, 130)
    points = _curve(rng, x, y, length, bend=5.0 if rng.random() < 0.5 else 1.6)
    window = part.window(x, y, length)
    width = unit * _range(rng, severity, 0.8, 1.0, 1.3, 2.2)
    even = np.ones(len(points) - 1)
    shadow = part.strokes(window, points - part.light * 1.8 * unit, even, 1.3 * width)
    body = part.strokes(window, points, even, width)
    strength = np.float32(_range(rng, severity, 0.32, 0.45, 0.6, 0.9))
    part.gain(window, 1 - 0.35 * strength * cv2.GaussianBlur(shadow, (0, 0), 0.7 * unit).astype(np.float32))
    part.tint(window, body * strength, ((28, 30, 34), (64, 78, 120), (232, 234, 236))[rng.integers(3)])
    part.mark(window, np.maximum(body, shadow) > 0.4)


def missing_print(part: Damage, rng: Rng, severity: float) -> None:
    """Print or stamp that did not take: faded or gone in a patch, or altogether."""
    unit = part.sprite.unit
    inked = np.argwhere(part.sprite.marking > 200)
    y, x = inked[rng.integers(len(inked))]
    radius = unit * _range(rng, severity, 8, 14, 26, 90)
    window = part.window(float(x), float(y), 1.6 * radius)
    gone = np.clip(_blob(rng, window, radius, roughness=0.22) / 0.08, 0, 1)
    gone *= _range(rng, severity, 0.4, 0.6, 0.85, 1.0)
    opacity = gone if part.surface.ndim == 2 else gone[:, :, None]
    patch, blank = part.surface[window.rows, window.columns], part.sprite.blank[window.rows, window.columns]
    patch[...] = np.rint(patch + opacity * (blank.astype(np.float32) - patch)).astype(np.uint8)
    part.mark(window, (gone > 0.2) & (part.sprite.marking[window.rows, window.columns] > 100))


def misprint(part: Damage, rng: Rng, severity: float) -> None:
    """Print out of register, or dragged while it was wet."""
    sprite, unit = part.sprite, part.sprite.unit
    before = part.surface.copy()
    away = unit * _range(rng, severity, 2.2, 3.5, 5, 15)
    angle = rng.uniform(0, 2 * np.pi)

    def shifted(distance: float, window: Window) -> tuple[np.ndarray, np.ndarray]:
        right, down = distance * np.cos(angle) - window.columns.start, distance * np.sin(angle) - window.rows.start
        move, size = np.array([[1, 0, right], [0, 1, down]]), window.x.shape[::-1]
        return cv2.warpAffine(sprite.surface, move, size), cv2.warpAffine(sprite.marking, move, size)

    if rng.random() < 0.5:
        centre = sprite.size / 2
        surface, marking = shifted(away, part.window(centre, centre, sprite.size))
        cv2.copyTo(sprite.blank, (sprite.marking > 0).astype(np.uint8), part.surface)
        cv2.copyTo(surface, (marking > 0).astype(np.uint8), part.surface)
    else:
        x, y = part.spot(rng)
        reach = unit * _range(rng, severity, 20, 30, 40, 80)
        window = part.window(x, y, reach)
        for distance in np.linspace(away, 0.2 * away, max(3, int(away / unit))):
            ink, marking = shifted(float(distance), window)
            wet = (marking > 0) * np.where(np.hypot(window.x, window.y) < reach, np.float32(0.5), np.float32(0))
            patch = part.surface[window.rows, window.columns]
            opacity = wet if patch.ndim == 2 else wet[:, :, None]
            patch[...] = np.rint(patch + opacity * (ink.astype(np.float32) - patch)).astype(np.uint8)
    change = cv2.absdiff(part.surface, before)
    part.mask[(change if change.ndim == 2 else change.max(axis=2)) > 10] = 255


DEFECTS: dict[str, DefectMaker] = {
    "scratch": scratch,
    "crack": crack,
    "stain": stain,
    "chip": chip,
    "dent": dent,
    "pit": pit,
    "burr": burr,
    "fibre": fibre,
    "missing_print": missing_print,
    "misprint": misprint,
}

KINDS: dict[str, tuple[str, ...]] = {
    "tile": ("scratch", "crack", "stain", "chip", "dent", "pit", "burr", "fibre"),
    "washer": ("scratch", "crack", "stain", "dent", "pit", "burr", "fibre", "missing_print"),
    "cap": ("scratch", "crack", "stain", "chip", "burr", "fibre", "missing_print", "misprint"),
}
"""The kinds that happen to each part type: a cap has no blowholes, a tile's code is not printed."""


def _range(
    rng: Rng, severity: float, faint_low: float, faint_high: float, plain_low: float, plain_high: float
) -> float:
    """A random value between two bounds that themselves run from faint to plain with severity."""
    low = faint_low + severity * (plain_low - faint_low)
    high = faint_high + severity * (plain_high - faint_high)
    return float(rng.uniform(low, high))


def _curve(rng: Rng, x: float, y: float, length: float, bend: float) -> np.ndarray:
    """A smooth open curve through about x, y: points [25, 2]; `bend` is its whole turn in radians."""
    count = 25
    rate = rng.uniform(0.3, 1.0) * rng.choice([-1.0, 1.0]) * bend / count
    heading = rng.uniform(0, 2 * np.pi) + rate * np.arange(count) + np.cumsum(rng.normal(0, 0.03, count))
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) * (length / count)
    return np.asarray(points - points[count // 2] + np.array([x, y]))


def _unevenness(rng: Rng, count: int, spread: float) -> np.ndarray:
    """Factors of about 1 that change smoothly along a line and fade at its ends."""
    slow = np.convolve(rng.normal(0, 1, count + 6), np.full(7, 1 / 7), mode="valid")
    ends = np.clip(np.minimum(np.arange(count), np.arange(count)[::-1]) / 4 + 0.35, 0, 1)
    return np.asarray(np.clip(1 + spread * 2 * slow, 0.3, 1.2) * ends)


def _blob(rng: Rng, window: Window, radius: float, roughness: float) -> Floats:
    """Positive inside an irregular patch, about 1 in its middle, 0 at its border."""
    stretch, angle = rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
    across = window.x * np.cos(angle) + window.y * np.sin(angle)
    down = (-window.x * np.sin(angle) + window.y * np.cos(angle)) / stretch
    noise = cloud(rng, window.x.shape, size=max(4.0, 0.7 * radius))
    return np.asarray(1 - np.hypot(across, down) / radius + roughness * 0.6 * noise, np.float32)

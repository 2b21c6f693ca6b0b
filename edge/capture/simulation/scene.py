"""The conveyor under the simulated camera: belt, lamp, sensor, and one part after another.

Part `i` depends on the seed and on `i` alone: not on the parts before it, and not on the defect rate except for its own
defect. So calibration can draw as many good parts as it likes from indices that the line will never show.

What costs time is drawn once. A frame is the belt's texture moved along, a few image operations on the part's box, one
product with the lamp's brightness and two saturating sums for the sensor's noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.capture.simulation import textures
from edge.capture.simulation.damage import Damage
from edge.capture.simulation.defects import DEFECTS, KINDS
from edge.capture.simulation.parts import PART_TYPES
from edge.capture.simulation.sprites import UNIT_SHADING
from edge.capture.simulation.textures import Bytes

SMALLEST, LARGEST_SIDE, LARGEST_PIXELS = 64, 8192, 25_000_000
_NOISE_MARGIN = 61
_NOISE_PERIOD = 1500
_BELT_PERIOD = 2048
MIXED = "mixed"
_LEAST_DEFECT_PX = 8


@dataclass(frozen=True)
class Defect:
    """What is wrong with a part. `box` is left, top, right, bottom in pixels, right and bottom exclusive."""

    kind: str
    severity: float  # 0 barely visible … 1 plain
    area_px: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Part:
    """One part as drawn: image uint8 [H, W, C] (gray or BGR), mask bool [H, W] of the defect, and the truth."""

    index: int
    part_type: str
    image: Bytes
    mask: NDArray[np.bool_]
    defect: Defect | None


@dataclass(frozen=True)
class _Plan:
    """Everything that is random about one part."""

    part_type: str
    x: float
    y: float
    turn_deg: float
    scale: float
    finish: float  # how bright this part's surface came out
    grain: tuple[int, int]
    belt: int
    light: float
    lamp: tuple[int, int]
    noise: tuple[int, int]
    defect: str | None
    severity: float
    defect_seed: int


class Conveyor:
    """A belt that carries parts of one type (or "mixed") past a camera of `height` x `width` pixels, gray or colour."""

    def __init__(
        self,
        seed: int = 0,
        part_type: str = "tile",
        height: int = 480,
        width: int = 640,
        channels: int = 3,
        defect_rate: float = 0.1,
        *,
        severity: tuple[float, float] = (0.0, 1.0),
        kinds: tuple[str, ...] = (),
        noise: float = 1.7,
        drift: float = 0.06,
    ) -> None:
        """Draws belt, part and noise; a few seconds at 12 megapixels.

        `severity` bounds how plain the defects are, `kinds` limits them (all that happen to the part type, if empty),
        `noise` is the sensor's in gray levels, `drift` the lamp's slow change as a share of its brightness.
        Raises `ValueError` for a part type, kind or size that cannot be drawn.
        """
        if part_type not in (*PART_TYPES, MIXED):
            raise ValueError(f"part type {part_type!r}: one of {', '.join(PART_TYPES)}, {MIXED}")
        self._types = tuple(PART_TYPES) if part_type == MIXED else (part_type,)
        self._kinds = {name: tuple(kind for kind in KINDS[name] if not kinds or kind in kinds) for name in self._types}
        for name, possible in self._kinds.items():
            if not possible:
                raise ValueError(f"none of {', '.join(kinds)} happens to a {name}: {', '.join(KINDS[name])}")
        if channels not in (1, 3):
            raise ValueError(f"{channels} channels: 1 (gray) or 3 (BGR)")
        sides = height, width
        if min(sides) < SMALLEST or max(sides) > LARGEST_SIDE or height * width > LARGEST_PIXELS:
            raise ValueError(f"{width} x {height} pixels: sides of {SMALLEST} to {LARGEST_SIDE}, at most 25 megapixels")
        self.seed, self.part_type = seed, part_type
        self.height, self.width, self.channels = height, width, channels
        self.defect_rate, self.severity, self._drift = defect_rate, severity, drift
        gray = channels == 1
        rng = np.random.default_rng([seed, 0xBE17])
        reference = min(height, width)
        unit = reference / 480
        self._sprites = {name: PART_TYPES[name](rng, reference, gray) for name in self._types}
        cloth = textures.belt(rng, min(height, _BELT_PERIOD), min(width, _BELT_PERIOD), unit, (70, 79, 73))
        # The width a whole number of patches would have is cut off: a faint seam crosses the view now and then, as a
        # belt's joint does.
        self._belt = self._gray_or_colour(textures.tiled(cloth, height, width))
        self._lamp_margin = max(4, reference // 12)
        self._lamp = self._lamp_map()
        # Noise from a table moved by a random offset: drawing it anew would cost more than all the rest.
        rows, columns = height + _NOISE_MARGIN, width + _NOISE_MARGIN
        patch = rng.standard_normal((min(rows, _NOISE_PERIOD), min(columns, _NOISE_PERIOD) * channels), np.float32)
        table = textures.tiled(noise * patch, rows, columns * channels).reshape(rows, columns, channels)
        table = table[:, :, 0] if gray else table
        self._brighter, self._darker = textures.to_bytes(table), textures.to_bytes(-table)

    def part(self, index: int, *, clean: bool = False) -> Part:
        """Draws part `index` with its truth mask. `clean` leaves its defect out and changes nothing else."""
        image = np.empty((self.height, self.width, self.channels), np.uint8)
        mask = np.zeros((self.height, self.width), np.uint8)
        plan = self._plan(index)
        defect = self._draw(plan, image, mask, clean)
        return Part(index, plan.part_type, image, mask > 127, defect)

    def render(self, index: int, out: Bytes) -> Defect | None:
        """Draws part `index` into `out`, uint8 [H, W, C] and contiguous, in place; tells its defect."""
        return self._draw(self._plan(index), out, None, False)

    def _plan(self, index: int) -> _Plan:
        if index < 0:
            raise ValueError(f"part {index}: parts are numbered from 0")
        rng = np.random.default_rng([self.seed, 1, index])
        kind_of_part = self._types[int(rng.integers(len(self._types)))]
        reference, sprite, kinds = min(self.height, self.width), self._sprites[kind_of_part], self._kinds[kind_of_part]
        room = sprite.grain.shape[0] - sprite.size + 1
        turn = sprite.turn_deg
        slow = np.sin(2 * np.pi * (index / 700 + self.seed % 97 / 97)) + 0.3 * np.sin(2 * np.pi * index / 93)
        sway = int(self._lamp_margin * (0.5 + 0.5 * np.sin(2 * np.pi * index / 1100)))
        low, high = self.severity
        return _Plan(
            part_type=kind_of_part,
            x=self.width / 2 + reference * float(rng.uniform(-0.055, 0.055)),
            y=self.height / 2 + reference * float(rng.uniform(-0.04, 0.04)),
            turn_deg=float(rng.uniform(-turn, turn)),
            scale=float(rng.uniform(0.988, 1.012)),
            finish=float(np.clip(rng.normal(1, 0.018), 0.94, 1.06)),
            grain=(int(rng.integers(room)), int(rng.integers(room))),
            belt=int(rng.integers(self.width)),
            light=float(0.98 + self._drift * slow / 1.3 + rng.normal(0, 0.006)),
            lamp=(sway, self._lamp_margin - sway),
            noise=(int(rng.integers(_NOISE_MARGIN)), int(rng.integers(_NOISE_MARGIN))),
            defect=(rng.random() < self.defect_rate and str(rng.choice(kinds))) or None,
            severity=float(rng.uniform(low, high)),
            defect_seed=int(rng.integers(2**63)),
        )

    def _draw(self, plan: _Plan, out: Bytes, mask: Bytes | None, clean: bool) -> Defect | None:
        frame = out[:, :, 0] if self.channels == 1 else out
        split = self.width - plan.belt
        frame[:, :split] = self._belt[:, plan.belt :]
        frame[:, split:] = self._belt[:, : plan.belt]
        defect = self._place(plan, frame, mask, clean)
        top, left = plan.lamp
        lamp = self._lamp[top : top + self.height, left : left + self.width]
        cv2.multiply(frame, lamp, dst=frame, scale=plan.light / 255)
        top, left = plan.noise
        crop = slice(top, top + self.height), slice(left, left + self.width)
        cv2.add(frame, self._brighter[crop], dst=frame)
        cv2.subtract(frame, self._darker[crop], dst=frame)
        return defect

    def _place(self, plan: _Plan, frame: Bytes, mask: Bytes | None, clean: bool) -> Defect | None:
        """Puts the part on the belt: surface under its grain, damaged, turned, lit, over its shadow."""
        sprite = self._sprites[plan.part_type]
        size = sprite.size
        damage = None
        surface, alpha = sprite.surface, sprite.alpha
        if plan.defect is not None and not clean:
            damage = self._damage(plan)
            surface, alpha = damage.surface, damage.alpha
        top, left = plan.grain
        grain = sprite.grain[top : top + size, left : left + size]
        surface = _bytes(cv2.multiply(surface, grain, scale=plan.finish / UNIT_SHADING))

        corner = int(plan.x - size / 2), int(plan.y - size / 2)
        turn = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), -plan.turn_deg, plan.scale)
        still = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), 0, plan.scale)
        for matrix in (turn, still):
            matrix[:, 2] += np.array([plan.x - size / 2 - corner[0], plan.y - size / 2 - corner[1]])
        box = size, size
        surface = _bytes(cv2.warpAffine(surface, turn, box, borderMode=cv2.BORDER_REPLICATE))
        alpha = _bytes(cv2.warpAffine(alpha, turn, box))
        shading = cv2.warpAffine(sprite.shading, still, box, borderMode=cv2.BORDER_REPLICATE)
        cv2.multiply(surface, shading, dst=surface, scale=1 / UNIT_SHADING)

        # The box may reach over the picture's border when the picture is much taller than wide or small.
        rows = slice(max(0, -corner[1]), min(size, self.height - corner[1]))
        columns = slice(max(0, -corner[0]), min(size, self.width - corner[0]))
        place = (
            slice(corner[1] + rows.start, corner[1] + rows.stop),
            slice(corner[0] + columns.start, corner[0] + columns.stop),
        )
        ground = frame[place]
        weight = alpha[rows, columns]
        if self.channels == 3:
            weight = _bytes(cv2.merge((weight, weight, weight)))
        below = cv2.multiply(ground, sprite.shadow[rows, columns], scale=1 / 255)
        cv2.multiply(below, cv2.bitwise_not(weight), dst=below, scale=1 / 255)
        above = cv2.multiply(surface[rows, columns], weight, scale=1 / 255)
        cv2.add(below, above, dst=ground)
        if damage is None or plan.defect is None:
            return None
        truth = cv2.warpAffine(damage.mask, turn, box)[rows, columns]
        if mask is not None:
            mask[place] = truth
        where = (truth > 127).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(where)
        x, y = x + place[1].start, y + place[0].start
        return Defect(plan.defect, round(plan.severity, 3), int(cv2.countNonZero(where)), (x, y, x + width, y + height))

    def _damage(self, plan: _Plan) -> Damage:
        """The part's layers with its defect; drawn again where it fell almost wholly outside the part."""
        rng = np.random.default_rng(plan.defect_seed)
        assert plan.defect is not None
        sprite = self._sprites[plan.part_type]
        damage = Damage(sprite, sprite.surface.copy(), float(np.deg2rad(plan.turn_deg)))
        for attempt in range(12):
            if attempt:
                damage = Damage(sprite, sprite.surface.copy(), damage.turn)
            DEFECTS[plan.defect](damage, rng, min(1.0, plan.severity + 0.08 * attempt))
            if cv2.countNonZero(damage.mask) >= _LEAST_DEFECT_PX:
                break
        return damage

    def _gray_or_colour(self, bgr: Bytes) -> Bytes:
        return bgr if self.channels == 3 else _bytes(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))

    def _lamp_map(self) -> Bytes:
        """Brightness of the field, 255 = full: a bar lamp from above left and the lens' fall-off to the corners."""
        rows, columns = self.height + self._lamp_margin, self.width + self._lamp_margin
        y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None] * (self.height / max(self.height, self.width))
        x = np.linspace(-1, 1, columns, dtype=np.float32)[None, :] * (self.width / max(self.height, self.width))
        field = np.cos(np.arctan(0.62 * np.hypot(x, y))) ** 4 * (1 - 0.05 * x - 0.07 * y)
        layer = textures.to_bytes(field / field.max() * 255)
        return layer if self.channels == 1 else _bytes(cv2.merge((layer, layer, layer)))


def _bytes(layer: NDArray[Any]) -> Bytes:
    """The same array: OpenCV's signatures do not tell that uint8 stays uint8."""
    return np.asarray(layer, np.uint8)

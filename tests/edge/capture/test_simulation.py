from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.capture.simulation import KINDS, PART_TYPES, Conveyor

CASES = [(part, kind) for part in PART_TYPES for kind in KINDS[part]]


@pytest.fixture(scope="module")
def mixed() -> Conveyor:
    return Conveyor(3, "mixed", 120, 160, 3, 0.7)


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0


@pytest.mark.parametrize(("part_type", "kind"), CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_defect_changes_the_picture_where_its_mask_says_and_nowhere_else(part_type, kind, channels):
    conveyor = Conveyor(1, part_type, 240, 320, channels, 1.0, kinds=(kind,), severity=(0.5, 1.0))
    for index in range(4):
        part, clean = conveyor.part(index), conveyor.part(index, clean=True)
        assert part.defect is not None
        assert part.defect.kind == kind
        assert clean.defect is None
        assert not clean.mask.any()
        change = np.abs(part.image.astype(int) - clean.image).max(axis=2)
        # A soft border, a shadow and a rim belong to a defect but not to its mask: they stay close to it.
        assert not change[~grown(part.mask, 12)].any()
        assert (change[part.mask] > 0).mean() > 0.5
        assert change[part.mask].mean() > 4 * change[~part.mask].mean()


@pytest.mark.parametrize("part_type", PART_TYPES)
def test_faint_defects_are_fainter_and_smaller_than_plain_ones(part_type):
    strength, area = [], []
    for severity in ((0.0, 0.1), (0.9, 1.0)):
        conveyor = Conveyor(5, part_type, 240, 320, 1, 1.0, severity=severity)
        pairs = [(conveyor.part(i), conveyor.part(i, clean=True)) for i in range(40)]
        strength.append(np.mean([np.abs(a.image.astype(int) - b.image).sum() for a, b in pairs]))
        area.append(np.mean([a.mask.sum() for a, _ in pairs]))
    assert strength[1] > 3 * strength[0]
    assert area[1] > 2 * area[0]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.integers(0, 10**9), before=st.integers(0, 10**9))
def test_a_part_does_not_depend_on_the_parts_before(mixed, index, before):
    mixed.part(before)
    out = np.empty((120, 160, 3), np.uint8)
    drawn, again = mixed.part(index), Conveyor.render(mixed, index, out)
    np.testing.assert_array_equal(drawn.image, out)
    assert drawn.defect == again
    if drawn.defect is not None:
        left, top, right, bottom = drawn.defect.box
        assert drawn.defect.area_px == drawn.mask.sum() > 0
        assert 0 <= left < right <= 160
        assert 0 <= top < bottom <= 120
        assert not np.delete(np.delete(drawn.mask, slice(top, bottom), 0), slice(0), 1).any()


def test_the_seed_decides_everything():
    first, same, other = (Conveyor(seed, "washer", 120, 160, 3, 0.5) for seed in (8, 8, 9))
    for index in (0, 7, 123_456):
        np.testing.assert_array_equal(first.part(index).image, same.part(index).image)
        assert (first.part(index).image != other.part(index).image).mean() > 0.5


def test_the_defect_rate_only_decides_whether_there_is_a_defect():
    never, always = Conveyor(2, "tile", 120, 160, 1, 0.0), Conveyor(2, "tile", 120, 160, 1, 1.0)
    for index in range(5):
        np.testing.assert_array_equal(never.part(index).image, always.part(index, clean=True).image)


def test_the_defect_rate_is_kept():
    conveyor = Conveyor(4, "cap", 96, 96, 1, 0.25)
    found = sum(conveyor.part(index).defect is not None for index in range(400))
    assert 70 <= found <= 130  # 100 expected; three standard deviations


def test_every_part_looks_different_and_the_light_drifts():
    conveyor = Conveyor(6, "tile", 240, 320, 1, 0.0)
    pictures = [conveyor.part(index).image.astype(float) for index in range(0, 700, 100)]
    means = [picture.mean() for picture in pictures]
    assert max(means) - min(means) > 0.05 * np.mean(means)
    assert all(np.abs(a - b).mean() > 2 for a, b in itertools.pairwise(pictures))


def test_noise_is_as_strong_as_asked():
    quiet, loud = (Conveyor(6, "cap", 240, 320, 1, 0.0, noise=noise).part(1).image for noise in (0.0, 4.0))
    difference = loud.astype(float) - quiet
    assert abs(difference.std() - 4.0) < 0.4
    assert abs(difference.mean()) < 0.3


@pytest.mark.parametrize("size", [(64, 64), (64, 400), (400, 64), (333, 517), (3000, 4096)])
def test_any_size_up_to_twelve_megapixels(size):
    height, width = size
    part = Conveyor(0, "washer", height, width, 1, 1.0).part(0)
    assert part.image.shape == (height, width, 1)
    assert part.mask.shape == size
    assert part.mask.any()
    assert part.image.std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"part_type": "spoon"}, "one of tile, washer, cap, mixed"),
        ({"channels": 2}, "1 .gray. or 3"),
        ({"height": 63}, "sides of 64 to 8192"),
        ({"height": 8000, "width": 8000}, "at most 25 megapixels"),
        ({"kinds": ("misprint",)}, "none of misprint happens to a tile"),
    ],
)
def test_what_cannot_be_drawn_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        Conveyor(**arguments)


def test_parts_are_numbered_from_zero(mixed):
    with pytest.raises(ValueError, match="from 0"):
        mixed.part(-1)

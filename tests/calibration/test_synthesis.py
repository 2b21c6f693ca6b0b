import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.augment import Augmentation, augment, sample_augmentation
from calibration.foreground import (
    Foreground,
    closing,
    denormalise,
    foreground_mask,
    opening,
    suggest_foreground,
)
from calibration.synthesis import CutPaste, paste, patch_of, patch_size, places, sample, synthesise
from calibration.transforms import (
    Jitter,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
    gaussian_blur,
    rotate,
    rotated_size,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PICTURES = ("bright_object", "dark_object")


@pytest.fixture(scope="module")
def golden(data):
    with np.load(data / "cutpaste.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture(scope="module")
def draws(data):
    return json.loads((data / "cutpaste_draws.json").read_text())


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=tolerance)


def test_single_jitters_equal_the_reference(golden):
    steps = {
        "brightness": adjust_brightness,
        "contrast": adjust_contrast,
        "saturation": adjust_saturation,
        "hue": adjust_hue,
    }
    image = torch.from_numpy(golden["jitter/input"])
    names = [key[7:] for key in golden if key.startswith("jitter/") and key[7:] != "input" and "chain" not in key]
    assert len(names) == 20
    for name in names:
        kind, value = name.split("_")[:2]
        given_ = image.clamp(0, 1) if "clamped" in name else image
        close(steps[kind](given_, float(value)), golden[f"jitter/{name}"])


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_chained_jitter_equals_the_reference(golden, order):
    name = f"jitter/chain_order_{''.join(map(str, order))}_b1.2_c0.7_s1.4_h0.1"
    close(color_jitter(torch.from_numpy(golden["jitter/input"]), Jitter(order, 1.2, 0.7, 1.4, 0.1)), golden[name])


def test_rotation_equals_the_reference(golden):
    names = [key for key in golden if key.startswith("rotate/") and "angle" in key]
    assert len(names) == 18
    for name in names:
        degrees = float(name.rsplit("_", 1)[1])
        image = torch.from_numpy(golden[name.rsplit("/", 1)[0] + "/input"])
        assert rotated_size(*image.shape[1:], degrees) == golden[name].shape[1:]
        close(rotate(image, degrees), golden[name])


@pytest.mark.parametrize("side", [3, 6, 8])
def test_morphology_equals_the_reference(golden, side):
    mask = golden["morph/input"]
    np.testing.assert_array_equal(closing(mask, side), golden[f"morph/closing_square{side}"])
    np.testing.assert_array_equal(opening(mask, side), golden[f"morph/opening_square{side}"])
    both = opening(closing(mask, side), side)
    np.testing.assert_array_equal(both, golden[f"morph/closing_then_opening_square{side}"])


@pytest.mark.parametrize("picture", PICTURES)
def test_foreground_masks_equal_the_reference(golden, picture):
    rgb = denormalise(torch.from_numpy(golden[f"fg/{picture}/normalized"]), MEAN, STD)
    np.testing.assert_array_equal(rgb, golden[f"fg/{picture}/denormalised_uint8"])
    rules = {
        Foreground.ALL: ("carpet", "capsules"),
        Foreground.OTSU: ("pill", "candle", "bracket_white"),
        Foreground.TRIANGLE: ("hazelnut",),
        Foreground.OTSU_INVERTED: ("bottle", "bracket_black", "metal_plate"),
    }
    for rule, products in rules.items():
        for product in products:
            np.testing.assert_array_equal(foreground_mask(rgb, rule), golden[f"fg/{picture}/mask_{product}"])
    boards = foreground_mask(rgb, Foreground.TRIANGLE, close=8, channel=2)
    np.testing.assert_array_equal(boards, golden[f"fg/{picture}/mask_pcb1"])


def test_the_foreground_rule_is_suggested_from_the_pictures(golden):
    bright, dark = (golden[f"fg/{picture}/denormalised_uint8"] for picture in PICTURES)
    texture = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    assert suggest_foreground([bright] * 3) is Foreground.OTSU
    assert suggest_foreground([dark] * 3) is Foreground.OTSU_INVERTED
    assert suggest_foreground([texture] * 3) is Foreground.ALL
    assert suggest_foreground([bright, dark]) is Foreground.ALL
    assert suggest_foreground([np.full((32, 32, 3), 9, np.uint8)]) is Foreground.ALL
    assert suggest_foreground([]) is Foreground.ALL


def recorded(name: str, recorded_draws: list) -> CutPaste:
    steps = list(recorded_draws)
    scar = steps.pop(0)[2] > 0.5 if name.startswith("union") else name.startswith("scar")
    first, second = steps[0][2], steps[1][2]
    height, width = (int(second), int(first)) if scar else patch_size(96, 96, first, second)
    assert steps[2][1] == [0, 96 - width]
    assert steps[3][1] == [0, 96 - height]
    order, *factors = steps[4][2]
    degrees = steps[5][2] if scar else None
    row, col = steps[-1][2]
    return CutPaste(steps[3][2], steps[2][2], height, width, Jitter(tuple(order), *factors), degrees, row, col)


@pytest.mark.parametrize("kind", ["normal", "scar", "union"])
@pytest.mark.parametrize("product", ["pill", "carpet", "bottle"])
def test_whole_cutpaste_equals_the_reference_from_recorded_draws(golden, draws, kind, product):
    name = f"{kind}_{product}"
    image = torch.from_numpy(golden["fg/bright_object/normalized"])
    mask = golden[f"fg/bright_object/mask_{product}"]
    draw = recorded(name, draws[name])
    close(paste(image, draw), golden[f"cutpaste/{name}/output"], 2e-5)
    candidates = places(mask, *patch_of(image, draw).shape[1:])
    assert draws[name][-1][1] == [f"<{len(candidates)} candidates>"]
    assert [draw.row, draw.col] in candidates.tolist()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), height=st.integers(3, 60), width=st.integers(3, 60), share=st.floats(0, 1))
def test_a_drawn_defect_changes_only_its_own_rectangle(seed, height, width, share):
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.normal(size=(3, height, width)).astype(np.float32))
    mask = (rng.random((height, width)) < share).astype(np.uint8)
    draw = sample(np.random.default_rng(seed), mask)
    assert draw == sample(np.random.default_rng(seed), mask)
    out = paste(image, draw)
    if draw.row is None:
        assert out is image
        return
    rows, cols = patch_of(image, draw).shape[1:]
    assert mask[draw.row, draw.col] == 1
    assert draw.row + rows <= height
    assert draw.col + cols <= width
    outside = torch.ones(height, width, dtype=torch.bool)
    outside[draw.row : draw.row + rows, draw.col : draw.col + cols] = False
    assert torch.equal(out[:, outside], image[:, outside])
    assert bool(torch.isfinite(out).all())


def test_no_foreground_leaves_the_pictures_as_they_are():
    images = torch.rand(4, 3, 48, 48)
    out = synthesise(np.random.default_rng(0), images, [np.zeros((48, 48), np.uint8)] * 4)
    assert torch.equal(out, images)


def test_both_kinds_are_drawn_about_equally_often():
    rng = np.random.default_rng(3)
    mask = np.ones((64, 64), np.uint8)
    scars = sum(sample(rng, mask).degrees is not None for _ in range(400))
    assert 150 < scars < 250


def test_augmentations_follow_the_published_probabilities():
    rng = np.random.default_rng(1)
    drawn = [sample_augmentation(rng) for _ in range(3000)]
    assert 0.26 < np.mean([draw.geometry != "none" for draw in drawn]) < 0.34
    coloured = [draw for draw in drawn if draw.jitter or draw.gray or draw.sigma]
    assert 0.26 < len(coloured) / 3000 < 0.34
    for kind in ("jitter", "gray", "sigma"):
        assert 0.26 < np.mean([bool(getattr(draw, kind)) for draw in coloured]) < 0.41
    assert all(draw.geometry == "none" for draw in (sample_augmentation(rng, geometry=False) for _ in range(200)))


def test_augmentation_applies_what_was_drawn():
    picture = torch.rand(3, 20, 30)
    assert torch.equal(augment(picture, Augmentation()), picture)
    assert torch.equal(augment(picture, Augmentation("hflip")), picture.flip(-1))
    assert torch.equal(augment(picture, Augmentation("vflip")), picture.flip(-2))
    assert augment(picture, Augmentation("rot90")).shape == (3, 30, 20)
    assert torch.equal(augment(picture, Augmentation("rot180")), picture.flip(-1, -2))
    rng = np.random.default_rng(2)
    turns = {sample_augmentation(rng, square=False).geometry for _ in range(200)}
    assert turns == {"none", "hflip", "vflip", "rot180"}
    gray = augment(picture, Augmentation(gray=True))
    assert torch.equal(gray[0], gray[2])
    flat = torch.full((3, 20, 30), 0.4)
    torch.testing.assert_close(gaussian_blur(flat, 23, 1.5), flat)
    blurred = augment(picture, Augmentation(sigma=2.0))
    assert float(blurred.std()) < 0.5 * float(picture.std())

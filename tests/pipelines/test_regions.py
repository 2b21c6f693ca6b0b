from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import InspectError
from pipelines.regions import Region, RegionsError, RegionsFile, patch_coverage

FRAME = (120, 200)


def load(folder: Path, text: str) -> RegionsFile:
    path = folder / "regions.toml"
    path.write_text(text)
    return RegionsFile.load(path)


def test_without_regions_the_whole_frame_is_one(tmp_path: Path) -> None:
    (region,) = load(tmp_path, "").resolve(FRAME, (4, 6))
    assert region == Region(name="frame", x_px=0, y_px=0, width_px=200, height_px=120)
    assert region.keep_grid((4, 6)).all()


def test_rectangle_polygon_and_mask_become_keep_grids(tmp_path: Path) -> None:
    mask = np.zeros((*FRAME, 1), np.uint8)
    mask[60:120, 100:150] = 255
    cv2.imwrite(str(tmp_path / "belt.png"), mask)
    file = load(
        tmp_path,
        """
        [[regions]]
        name = "left"
        x_px = 0
        y_px = 0
        width_px = 100
        height_px = 120
        [[regions]]
        name = "right"
        x_px = 100
        y_px = 0
        width_px = 100
        height_px = 120
        [[ignore]]
        name = "clamp"
        rectangle_px = [0, 0, 25, 30]
        [[ignore]]
        polygon_px = [[100, 0], [199, 0], [199, 59], [100, 59]]
        [[ignore]]
        mask = "belt.png"
        """,
    )
    left, right = file.resolve(FRAME, (4, 4))
    assert left.keep == ("0111", "1111", "1111", "1111")
    assert right.keep == ("0000", "0000", "0011", "0011")
    assert right.keep_grid((4, 4)).sum() == 4
    with pytest.raises(RegionsError, match="drawn for 4x4 patches, the input has 5x5"):
        right.keep_grid((5, 5))


def test_a_patch_is_ignored_when_more_than_half_of_it_is_covered(tmp_path: Path) -> None:
    for covered, expected in ((15, "1"), (16, "0")):
        (region,) = load(tmp_path, f"[[ignore]]\nrectangle_px = [0, 0, 20, {covered}]").resolve(FRAME, (4, 10))
        assert region.keep_grid((4, 10))[0, 0] == (expected == "1")


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1000),
)
def test_coverage_is_a_share_and_loses_no_area(shape: tuple[int, int], grid: tuple[int, int], seed: int) -> None:
    mask = (np.random.default_rng(seed).random(shape) < 0.4).astype(np.uint8)
    share = patch_coverage(mask, grid)
    assert share.shape == grid
    assert share.min() >= -1e-12
    assert share.max() <= 1 + 1e-12
    assert share.mean() == pytest.approx(mask.mean())
    assert patch_coverage(np.ones(shape, np.uint8), grid) == pytest.approx(np.ones(grid))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[regions]]\nname = 'a'\nx_px = 1\ny_px = 0\nwidth_px = 200\nheight_px = 9", "ends at x 201"),
        ("[[ignore]]\nrectangle_px = [0, 0, 200, 120]", "everything in region 'frame' is ignored"),
        ("[[ignore]]\nmask = 'none.png'", "none.png"),
        ("[[ignore]]\nmask = 'small.png'", "the mask is 7 x 5 px, the frame is 200 x 120 px"),
    ],
)
def test_what_does_not_fit_the_frame_is_refused(tmp_path: Path, text: str, message: str) -> None:
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((5, 7), np.uint8))
    with pytest.raises(InspectError, match=message):
        load(tmp_path, text).resolve(FRAME, (4, 4))


def test_two_regions_of_one_name_are_refused(tmp_path: Path) -> None:
    one = "[[regions]]\nname = 'a'\nx_px = 0\ny_px = 0\nwidth_px = 9\nheight_px = 9\n"
    with pytest.raises(RegionsError, match="same name"):
        load(tmp_path, one + one).resolve(FRAME, (4, 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[regions]", "not valid TOML"),
        ("[[regions]]\nname = 'a'\nx = 1", r"regions.0.x_px: .*regions.0.x: Extra inputs"),
        ("[[ignore]]\nname = 'n'", "exactly one of"),
        ("[[ignore]]\nrectangle_px = [0, 0, 1, 1]\nmask = 'a'", "exactly one of"),
        ("[[ignore]]\nrectangle_px = [0, 0, 0, 1]", "rectangle_px"),
        ("[[ignore]]\npolygon_px = [[0, 0], [1, 1]]", "polygon_px"),
    ],
)
def test_a_faulty_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RegionsError, match=message) as caught:
        load(tmp_path, text)
    assert "regions.toml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegionsError, match=r"nowhere\.toml: cannot read"):
        RegionsFile.load(tmp_path / "nowhere.toml")


def test_keep_rows_are_checked() -> None:
    box = {"name": "a", "x_px": 0, "y_px": 0, "width_px": 8, "height_px": 8}
    for keep in (("01", "1"), ("0x",), ("00", "00"), ()):
        with pytest.raises(ValueError, match=r"keep must hold|everything in region"):
            Region.model_validate({**box, "keep": keep})

"""Defects among the good images are found and named by their score; good images alone raise no alarm."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from calibration.cli import app
from calibration.datasets import in_format, load_normals
from calibration.errors import DataError
from calibration.fit import fit
from calibration.options import FitOptions
from calibration.samples import join_images
from calibration.sets import open_dataset
from calibration.suspects import AT_LEAST, find_suspects, warning
from pipelines.images import PixelFormat


def names(count: int) -> list[Path]:
    return [Path(f"{number:02}.png") for number in range(count)]


def test_far_scores_are_named_the_farthest_first():
    scores = np.random.default_rng(0).normal(1.0, 0.1, (40, 1))
    scores[7], scores[21] = 2.0, 3.0
    found = find_suspects(names(40), scores)
    assert [suspect.path.name for suspect in found] == ["21.png", "07.png"]
    assert found[0].percent > found[1].percent > 150
    text = warning(found)
    assert "2 of the good images" in text
    assert f"21.png ({found[0].percent:.0f} %), 07.png" in text
    assert warning(()) == ""


def test_in_any_region():
    scores = np.random.default_rng(0).normal(1.0, 0.1, (40, 3))
    scores[5, 1] = 4.0
    assert [suspect.path.name for suspect in find_suspects(names(40), scores)] == ["05.png"]


def test_up_to_a_fifth_do_not_hide_each_other():
    scores = np.random.default_rng(1).normal(1.0, 0.1, (30, 1))
    scores[:6] = 2.5
    assert len(find_suspects(names(30), scores)) == 6


def test_good_scores_raise_few_alarms():
    """Normal scores: one in 400,000; gamma scores, as distances are, below one in a hundred."""
    rng = np.random.default_rng(2)
    alarms = sum(len(find_suspects(names(100), rng.normal(1, 0.1, (100, 1)))) for _ in range(50))
    assert alarms <= 1
    alarms = sum(len(find_suspects(names(100), rng.gamma(4.0, size=(100, 1)))) for _ in range(50))
    assert alarms <= 50


@pytest.mark.parametrize("value", [0.0, 0.5, 3.0])
def test_equal_scores_are_no_suspects(value):
    scores = np.full((20, 1), value)
    scores[3] += 1e-7
    assert find_suspects(names(20), scores) == ()
    assert find_suspects(names(AT_LEAST - 1), np.arange(AT_LEAST - 1.0)[:, None] ** 9) == ()


@pytest.fixture
def dirty(make_parts) -> Path:
    """Twenty good images, two of them with a defect."""
    good, bad = make_parts(20), make_parts(2, defect=True, name="bad", seed=9)
    for number, place in enumerate((5, 11)):
        shutil.copy(bad / f"{number:03}.png", good / f"{place:03}.png")
    shutil.rmtree(bad)
    return good


@pytest.mark.parametrize("held", [None, 10])
def test_a_fit_names_them_wherever_they_are_used(dirty, tmp_path, held):
    said: list[str] = []
    options = FitOptions(images=dirty, out=tmp_path / "b", size=(96, 96), bank=200, held_out=held, rate=0.1)
    summary = fit(options, lambda *_: None, said.append)
    found = {Path(one["path"]).name for one in summary.to_json()["suspects"]}
    assert {"005.png", "011.png"} <= found
    assert len(found) <= 3
    (line,) = [text for text in said if text.startswith("warning: ")]
    assert "005.png (" in line
    assert "a defect among the good images teaches" in line


def test_data_check_names_them(dirty, tmp_path):
    result = CliRunner().invoke(app, ["data", "check", str(dirty), "--json", str(tmp_path / "j.json")])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "j.json").read_text())
    assert content["layout"] == "images only"
    (finding,) = [one for one in content["warnings"] if one["code"] == "suspects"]
    assert {Path(file).name for file in finding["files"]} == {"005.png", "011.png"}
    assert "score unlike the others" in result.output
    without = CliRunner().invoke(app, ["data", "check", str(dirty), "--no-suspects"])
    assert "score unlike" not in without.output


def test_data_check_of_images_only_finds_what_a_fit_would_refuse(make_parts):
    folder = make_parts(3)
    (folder / "x.png").write_bytes(b"\x89PNG no")
    cv2.imwrite(str(folder / "c.png"), np.zeros((96, 96, 3), np.uint8))
    assert open_dataset(folder).classes[0].test == ()
    result = CliRunner().invoke(app, ["data", "check", str(folder)])
    assert result.exit_code == 1
    assert "1 files cannot be used" in result.output
    assert "gray and colour images are mixed" in result.output


def test_gray_and_colour_classes_become_one_colour_set(make_parts):
    gray, colour = load_normals(make_parts(3, name="gray")), load_normals(make_parts(2, name="colour", colour=True))
    joined = join_images([gray, colour])
    assert joined.pixel_format is PixelFormat.BGR8
    for number in range(5):
        assert joined.read(number).shape == (96, 96, 3)
    np.testing.assert_array_equal(joined.read(0)[..., :1], gray.read(0))
    bayer = load_normals(gray.paths[0].parent, pixel_format=PixelFormat.BAYER_RG8)
    with pytest.raises(DataError, match="different pixel formats"):
        join_images([bayer, colour])


def test_files_are_read_in_the_order_of_channels_that_is_asked_for(make_parts):
    folder = make_parts(1, colour=True)
    bgr, rgb = load_normals(folder), load_normals(folder, pixel_format=PixelFormat.RGB8)
    np.testing.assert_array_equal(rgb.read(0), bgr.read(0)[..., ::-1])
    assert in_format(np.zeros((2, 2, 1), np.uint8), PixelFormat.BAYER_RG8).shape == (2, 2, 1)

"""The check of a set finds what would make results wrong, names the files, and says so by its exit code."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from calibration.cli_data import app
from calibration.data_check import check
from calibration.sets import open_dataset


def picture(path: Path, seed: int, size=(12, 16), channels: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if channels == 0 else (*size, channels)
    assert cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8))
    return path


@pytest.fixture
def tidy(tmp_path) -> Path:
    """Two good images to fit on, two good and two defective ones for the test, with masks."""
    root = tmp_path / "plate"
    for number in range(2):
        picture(root / "train/good" / f"{number}.png", number)
        picture(root / "test/good" / f"{number}.png", 10 + number)
        picture(root / "test/hole" / f"{number}.png", 20 + number)
        mask = np.zeros((12, 16), np.uint8)
        mask[:6, :4] = 255
        place = root / "ground_truth/hole" / f"{number}_mask.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), mask)
    return root


def codes(root: Path) -> tuple[list[str], list[str]]:
    report = check(open_dataset(root))
    return [finding.code for finding in report.faults], [finding.code for finding in report.warnings]


def test_a_tidy_set(tidy):
    report = check(open_dataset(tidy))
    assert report.usable
    assert not report.warnings
    (one,) = report.classes
    assert (one.train, one.good, one.defective, one.masks) == (2, 2, 2, 2)
    assert one.kinds == {"good": 2, "hole": 2}
    assert dict(one.sizes) == {"16 x 12": 6}
    assert one.defect_share == pytest.approx(24 / 192)


def test_copies_between_splits_are_found_by_content(tidy):
    image = cv2.imread(str(tidy / "train/good/0.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(tidy / "test/good/other.bmp"), image)
    report = check(open_dataset(tidy))
    assert [finding.code for finding in report.faults] == ["leak"]
    assert "train/good/0.png" in report.faults[0].text
    assert "test/good/other.bmp" in report.faults[0].text


def test_one_image_under_two_labels(tidy):
    shutil.copy(tidy / "test/hole/0.png", tidy / "test/good/9.png")
    assert codes(tidy) == (["contradiction"], [])
    shutil.copy(tidy / "test/hole/1.png", tidy / "train/good/9.png")
    report = check(open_dataset(tidy))
    assert "2 images are labelled good as well as defective" in report.faults[0].text


def test_copies_within_a_split_only_warn(tidy):
    shutil.copy(tidy / "test/good/0.png", tidy / "test/good/9.png")
    assert codes(tidy) == ([], ["copies"])


def test_corrupt_files_are_all_named(tidy):
    for name in ("train/good/0.png", "ground_truth/hole/1_mask.png"):
        data = (tidy / name).read_bytes()
        (tidy / name).write_bytes(data[: len(data) // 3])
    report = check(open_dataset(tidy))
    assert [finding.code for finding in report.faults] == ["corrupt"]
    assert "2 files cannot be used" in report.faults[0].text
    assert "1_mask.png" in report.faults[0].text


def test_masks_of_another_size_and_blank_ones(tidy):
    cv2.imwrite(str(tidy / "ground_truth/hole/0_mask.png"), np.full((6, 8), 255, np.uint8))
    cv2.imwrite(str(tidy / "ground_truth/hole/1_mask.png"), np.zeros((12, 16), np.uint8))
    faults, warnings = codes(tidy)
    assert (faults, warnings) == (["mask_size"], ["blank_mask"])
    (fault,) = check(open_dataset(tidy)).faults
    assert "0_mask.png: the mask is 8 x 6 px, its image 0.png is 16 x 12 px" in fault.text


def test_missing_masks(tidy):
    (tidy / "ground_truth/hole/0_mask.png").unlink()
    assert codes(tidy) == ([], ["no_mask"])
    (tidy / "ground_truth/hole/1_mask.png").unlink()
    assert codes(tidy) == ([], ["no_masks"])


def test_gray_and_colour_mixed(tidy):
    picture(tidy / "train/good/c.png", 5, channels=3)
    assert codes(tidy) == (["mixed"], [])


def test_several_sizes_and_a_single_image(tidy):
    (tidy / "train/good/1.png").unlink()
    picture(tidy / "test/good/large.png", 5, size=(20, 20))
    assert codes(tidy) == ([], ["sizes", "one_image"])


@pytest.mark.parametrize(("folder", "code"), [("good", "no_good"), ("hole", "no_defects")])
def test_a_class_missing_in_the_test(tidy, folder, code):
    shutil.rmtree(tidy / "test" / folder)
    assert codes(tidy)[0] == [code]


def test_good_images_alone_are_enough_for_a_fit(tmp_path):
    for number in range(3):
        picture(tmp_path / "good" / f"{number}.png", number)
    assert codes(tmp_path) == ([], ["no_defects", "no_train"])


def test_empty_folders(tmp_path):
    (tmp_path / "train" / "good").mkdir(parents=True)
    assert codes(tmp_path)[0] == ["empty", "empty"]


def test_the_fingerprint_follows_content_not_names(tidy):
    before = check(open_dataset(tidy)).fingerprint
    (tidy / "train/good/0.png").rename(tidy / "train/good/renamed.png")
    assert check(open_dataset(tidy)).fingerprint == before
    picture(tidy / "train/good/new.png", 77)
    assert check(open_dataset(tidy)).fingerprint != before


def test_the_command(tidy, tmp_path):
    runner, file = CliRunner(), tmp_path / "report.json"
    good = runner.invoke(app, ["check", str(tidy), "--json", str(file)])
    assert good.exit_code == 0, good.output
    assert "usable" in good.output
    assert json.loads(file.read_text())["usable"] is True
    (tidy / "test/good/0.png").write_bytes(b"")
    bad = runner.invoke(app, ["check", str(tidy), "--json", str(file), "--quiet"])
    assert bad.exit_code == 1
    assert "fault: plate: 1 files cannot be used" in bad.output
    assert json.loads(file.read_text())["faults"][0]["code"] == "corrupt"

import cv2
import numpy as np
import pytest

from calibration.datasets import load_normals, split
from calibration.errors import DataError
from pipelines.errors import ImageError
from pipelines.images import PixelFormat


def test_good_images_are_found_and_described(make_parts):
    folder = make_parts(4, 48, 64)
    images = load_normals(folder)
    assert len(images) == 4
    assert images.frame == (48, 64)
    assert images.pixel_format is PixelFormat.MONO8
    assert images.read(0).shape == (48, 64, 1)
    assert images.skipped == ()


def test_images_of_several_sizes_have_no_frame(make_parts):
    make_parts(2, 48, 64)
    folder = make_parts(2, 50, 64, name="good/more", seed=1).parent
    assert load_normals(folder).frame is None


def test_the_fingerprint_follows_the_pixels_not_the_names(make_parts):
    folder = make_parts(3)
    before = load_normals(folder).fingerprint
    (folder / "000.png").rename(folder / "zzz.png")
    assert load_normals(folder).fingerprint == before
    picture = cv2.imread(str(folder / "001.png"), cv2.IMREAD_GRAYSCALE)
    picture[0, 0] ^= 1
    cv2.imwrite(str(folder / "001.png"), picture)
    assert load_normals(folder).fingerprint != before


def test_copies_are_used_once_and_named(make_parts):
    folder = make_parts(3)
    (folder / "copy.png").write_bytes((folder / "001.png").read_bytes())
    images = load_normals(folder)
    assert len(images) == 3
    (line,) = images.skipped
    assert "copy.png" in line
    assert "001.png" in line


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(ImageError, match="no such folder"):
        load_normals(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="no images"):
        load_normals(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ImageError, match="no images"):
        load_normals(tmp_path)


def test_every_undecodable_image_is_named_or_skipped(make_parts):
    folder = make_parts(3)
    (folder / "torn.png").write_bytes((folder / "000.png").read_bytes()[:60])
    (folder / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 5 .*--skip-bad(.|\n)*empty\.jpg(.|\n)*torn\.png"):
        load_normals(folder)
    images = load_normals(folder, skip_bad=True)
    assert len(images) == 3
    assert len(images.skipped) == 2


def test_nothing_usable_is_an_error_even_when_bad_ones_are_skipped(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of its 1 images"):
        load_normals(tmp_path, skip_bad=True)


def test_gray_and_colour_are_not_mixed(make_parts):
    folder = make_parts(3)
    cv2.imwrite(str(folder / "colour.png"), np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8))
    with pytest.raises(DataError, match=r"mixed: 3 Mono8 .*1 BGR8 .*colour\.png"):
        load_normals(folder)


def test_a_pixel_format_must_fit_the_files(make_parts):
    folder = make_parts(2)
    assert load_normals(folder, pixel_format=PixelFormat.BAYER_RG8).pixel_format is PixelFormat.BAYER_RG8
    with pytest.raises(DataError, match="cannot be read as BGR8"):
        load_normals(folder, pixel_format=PixelFormat.BGR8)


def test_some_of_the_images_are_drawn_by_the_seed(make_parts):
    folder = make_parts(9)
    some = load_normals(folder, take=4)
    assert len(some) == 4
    assert some.paths == load_normals(folder, take=4).paths
    assert some.paths != load_normals(folder, take=4, seed=1).paths
    with pytest.raises(DataError, match="10 images are asked for, there are 9"):
        load_normals(folder, take=10)


def test_splits_are_seeded_and_complete():
    fit, held = split(10, 3, 0)
    assert sorted(fit + held) == list(range(10))
    assert (fit, held) == split(10, 3, 0)
    assert (fit, held) != split(10, 3, 1)
    with pytest.raises(DataError, match="cannot be held out"):
        split(3, 3, 0)

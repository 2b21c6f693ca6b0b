from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge.capture.pixels import convert, frame_view
from pipelines.images import PixelFormat

# OpenCV's own names of mosaics (the four colours in reading order) against GenICam's (the first two).
DEMOSAIC = {
    PixelFormat.BAYER_RG8: cv2.COLOR_BayerRGGB2BGR,
    PixelFormat.BAYER_GR8: cv2.COLOR_BayerGRBG2BGR,
    PixelFormat.BAYER_GB8: cv2.COLOR_BayerGBRG2BGR,
    PixelFormat.BAYER_BG8: cv2.COLOR_BayerBGGR2BGR,
}


@pytest.fixture
def picture() -> np.ndarray:
    smooth = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(smooth, (96, 64), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("form", DEMOSAIC)
def test_a_mosaic_is_what_opencv_understands_under_that_name(form, picture):
    out = np.empty((64, 96, 1), np.uint8)
    convert(picture, PixelFormat.BGR8, out, form)
    back = cv2.cvtColor(out[:, :, 0], DEMOSAIC[form])
    error = np.abs(back.astype(int) - picture)[2:-2, 2:-2].mean()
    assert error < 6
    for wrong in set(DEMOSAIC.values()) - {DEMOSAIC[form]}:
        assert np.abs(cv2.cvtColor(out[:, :, 0], wrong).astype(int) - picture)[2:-2, 2:-2].mean() > 2 * error


@pytest.mark.parametrize("form", DEMOSAIC)
def test_a_mosaic_keeps_one_colour_of_each_pixel(form, picture):
    out = np.empty((64, 96, 1), np.uint8)
    convert(picture, PixelFormat.BGR8, out, form)
    assert (out == picture).any(axis=2).all()


def test_conversions_write_in_place(picture):
    gray, rgb, back = np.empty((64, 96, 1), np.uint8), np.empty((64, 96, 3), np.uint8), np.empty((64, 96, 3), np.uint8)
    convert(picture, PixelFormat.BGR8, gray, PixelFormat.MONO8)
    np.testing.assert_array_equal(gray[:, :, 0], cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
    convert(picture, PixelFormat.BGR8, rgb, PixelFormat.RGB8)
    np.testing.assert_array_equal(rgb, picture[:, :, ::-1])
    for form in (PixelFormat.BGR8, PixelFormat.RGB8):
        convert(gray, PixelFormat.MONO8, back, form)
        np.testing.assert_array_equal(back, np.repeat(gray, 3, axis=2))
    convert(gray, PixelFormat.MONO8, out := np.empty_like(gray), PixelFormat.BAYER_GB8)
    np.testing.assert_array_equal(out, gray)


def test_a_frame_view_is_the_slot_itself_and_never_larger():
    buffer = np.zeros(100, np.uint8)
    view = frame_view(buffer, 4, 5, 3)
    assert view is not None
    view[:] = 7
    assert (buffer[:60] == 7).all()
    assert not buffer[60:].any()
    assert frame_view(buffer, 6, 6, 3) is None

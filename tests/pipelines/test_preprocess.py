from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.demosaic import Demosaic
from pipelines.encoders.config import IMAGENET_MEAN, IMAGENET_STD
from pipelines.errors import ImageError
from pipelines.images import PixelFormat
from pipelines.preprocess import Preprocess
from pipelines.regions import Region
from pipelines.resize import Resize, ResizeFilter, band_height

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.fixture(scope="module")
def ops() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "data" / "ops.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def preprocess(
    pixel_format: PixelFormat, size: tuple[int, int], frame: tuple[int, int] | None = None, *regions: Region
) -> Preprocess:
    return Preprocess(pixel_format, size, IMAGENET_MEAN, IMAGENET_STD, frame, regions)


def random_frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", ["image_37x53", "image_150x203"])
@pytest.mark.parametrize("known", [True, False])
def test_rounded_resize_is_pillows_to_the_bit(
    ops: dict[str, Tensor], kernel: ResizeFilter, name: str, known: bool
) -> None:
    image = ops[f"{name}/uint8"]
    sizes = [key for key in ops if key.startswith(f"{name}/pil_{kernel}_")]
    assert sizes
    for key in sizes:
        target = tuple(int(part) for part in key.split("_")[-2].split("x"))
        resize = Resize(tuple(image.shape[:2]) if known else None, target, kernel, round_levels=True)  # type: ignore[arg-type]
        assert torch.equal(resize(image[None])[0].permute(1, 2, 0), ops[key].float()), key


def test_published_input_tensors(ops: dict[str, Tensor]) -> None:
    image = ops["image_37x53/uint8"][None]
    plain = Preprocess(PixelFormat.RGB8, (112, 112), IMAGENET_MEAN, IMAGENET_STD, round_levels=True)
    assert torch.allclose(plain(image)[0], ops["image_37x53/foundad_vitad_pipeline_112_imagenet_norm"], atol=1e-6)
    clip = Preprocess(PixelFormat.RGB8, (112, 112), *CLIP, kernel="bicubic", round_levels=True)
    assert torch.allclose(clip(image)[0], ops["image_37x53/visualad_pipeline_112_clip_norm"], atol=1e-6)
    bgr = Preprocess(PixelFormat.BGR8, (112, 112), *CLIP, kernel="bicubic", round_levels=True)
    assert torch.equal(bgr(image.flip(3)), clip(image))


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    # To a single column torch itself skips the vertical pass of one channel: see the test after this one.
    target=st.tuples(st.integers(1, 70), st.integers(2, 70)),
    channels=st.sampled_from([1, 3]),
    kernel=st.sampled_from(["bilinear", "bicubic"]),
    known=st.booleans(),
)
def test_resize_equals_interpolate(
    source: tuple[int, int], target: tuple[int, int], channels: int, kernel: ResizeFilter, known: bool
) -> None:
    """Against torch's own antialiased resize in float64; in float32 that one is off by up to 0.01 gray levels."""
    frames = random_frames(2, *source, channels)
    expected = F.interpolate(frames.permute(0, 3, 1, 2).double(), target, mode=kernel, antialias=True)
    resized = Resize(source if known else None, target, kernel)(frames)
    assert resized.dtype == torch.float32
    assert torch.allclose(resized.double(), expected, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(source=st.integers(1, 90), target=st.integers(1, 70), kernel=st.sampled_from(["bilinear", "bicubic"]))
def test_resize_of_a_single_column_equals_that_of_the_row(source: int, target: int, kernel: ResizeFilter) -> None:
    column = random_frames(2, source, 1, 1)
    resized = Resize((source, 1), (target, 1), kernel)(column)
    row = Resize((1, source), (1, target), kernel)(column.transpose(1, 2))
    assert torch.allclose(resized, row.transpose(2, 3), atol=1e-3)
    expected = F.interpolate(column.permute(0, 3, 2, 1).double(), (1, target), mode=kernel, antialias=True)
    assert torch.allclose(row.double(), expected, atol=1e-3)


@pytest.mark.parametrize("source", [(2048, 2448), (1201, 333)])
def test_resize_of_camera_frames(source: tuple[int, int]) -> None:
    frames = random_frames(1, *source, 1)
    expected = F.interpolate(frames.permute(0, 3, 1, 2).double(), (512, 518), mode="bilinear", antialias=True)
    assert (Resize(source, (512, 518))(frames) - expected).abs().max() < 2e-4
    assert (Resize(None, (512, 518))(frames) - expected).abs().max() < 2e-4


def test_bands_are_wide_where_the_size_allows() -> None:
    assert [band_height(n) for n in (512, 320, 518, 448, 256, 37, 1)] == [32, 32, 37, 32, 32, 37, 1]


@pytest.mark.parametrize(
    ("pixel_format", "code"),
    [
        # OpenCV names a mosaic by its second row, second column: BayerRG (GenICam) is BayerBG there.
        (PixelFormat.BAYER_RG8, cv2.COLOR_BayerBG2RGB),
        (PixelFormat.BAYER_GR8, cv2.COLOR_BayerGB2RGB),
        (PixelFormat.BAYER_GB8, cv2.COLOR_BayerGR2RGB),
        (PixelFormat.BAYER_BG8, cv2.COLOR_BayerRG2RGB),
    ],
)
def test_demosaic_equals_opencv_inside_and_keeps_flat_colours(pixel_format: PixelFormat, code: int) -> None:
    mosaic = random_frames(1, 20, 26, 1)
    rgb = Demosaic(pixel_format)(mosaic)[0]
    expected = torch.from_numpy(cv2.cvtColor(mosaic[0].numpy(), code)).float()
    assert (rgb - expected)[1:-1, 1:-1].abs().max() <= 0.5  # OpenCV rounds to whole levels
    # A flat colour stays flat, up to and including the border: the mosaic's phase is kept there.
    colour = {"R": 200, "G": 90, "B": 30}
    cell = {"RG": "RGGB", "GR": "GRBG", "GB": "GBRG", "BG": "BGGR"}[pixel_format.value[5:7]]
    flat = torch.empty(1, 6, 8, 1, dtype=torch.uint8)
    for i, name in enumerate(cell):
        flat[:, i // 2 :: 2, i % 2 :: 2] = colour[name]
    assert torch.equal(Demosaic(pixel_format)(flat)[0], torch.tensor([200.0, 90.0, 30.0]).expand(6, 8, 3))


def test_gray_is_the_same_on_three_channels() -> None:
    gray = random_frames(2, 40, 50, 1)
    colour = gray.expand(-1, -1, -1, 3)
    assert torch.allclose(
        preprocess(PixelFormat.MONO8, (32, 48))(gray), preprocess(PixelFormat.RGB8, (32, 48))(colour), atol=1e-5
    )


@pytest.mark.parametrize("pixel_format", list(PixelFormat))
def test_regions_are_cut_where_they_are(pixel_format: PixelFormat) -> None:
    """Each region equals the same part of the frame (demosaiced whole, for Bayer), resized on its own."""
    frames = random_frames(2, 60, 80, pixel_format.channels)
    boxes = [(3, 5, 31, 40), (0, 0, 80, 60), (41, 21, 39, 39), (0, 57, 7, 3)]
    regions = [Region(name=str(i), x_px=x, y_px=y, width_px=w, height_px=h) for i, (x, y, w, h) in enumerate(boxes)]
    images = preprocess(pixel_format, (32, 48), (60, 80), *regions)(frames)
    assert images.shape == (8, 3, 32, 48)
    rgb = Demosaic(pixel_format)(frames) if pixel_format.is_bayer else frames.float()
    if pixel_format is PixelFormat.BGR8:
        rgb = rgb.flip(3)
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    for b in range(2):
        for r, (x, y, w, h) in enumerate(boxes):
            part = rgb[b : b + 1, y : y + h, x : x + w].permute(0, 3, 1, 2)
            resized = F.interpolate(part.double(), (32, 48), mode="bilinear", antialias=True)[0]
            expected = (resized / 255 - mean) / std
            assert (images[b * 4 + r] - expected).abs().max() < 1e-4


def test_frames_that_differ_from_what_was_announced_are_refused() -> None:
    gray = preprocess(PixelFormat.MONO8, (32, 32), (40, 50))
    with pytest.raises(ImageError, match="frames are 50 x 41 px, this pipeline is for 50 x 40"):
        gray(random_frames(1, 41, 50, 1))
    with pytest.raises(ImageError, match=r"Mono8 frames have 1 channel\(s\), these have 3"):
        gray(random_frames(1, 40, 50, 3))
    with pytest.raises(ImageError, match="uint8"):
        gray(torch.zeros(1, 40, 50, 1))
    with pytest.raises(ImageError, match="uint8"):
        gray(random_frames(40, 50, 1))
    with pytest.raises(ImageError, match="regions need frames of one size"):
        preprocess(PixelFormat.MONO8, (32, 32), None, Region(name="a", x_px=0, y_px=0, width_px=2, height_px=2))

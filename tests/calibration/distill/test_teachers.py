"""Teachers: what is tapped, and that its cells lie where the student's patches are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from calibration.distill.cnn_teacher import CnnTeacher
from calibration.distill.teachers import EncoderTeacher, Tap, Teacher, open_teacher
from calibration.errors import FitError
from pipelines.encoders import Encoder
from pipelines.encoders.dino import COMPACT, dinov2
from pipelines.errors import WeightsError


def centre_of_change(teacher: Teacher, tap: int, at: tuple[int, int], side: int = 256) -> tuple[float, float]:
    """Where, in pixels, the features of a tap change when the image changes around pixel `at`."""
    rng = np.random.default_rng(1)
    stride = teacher.taps[tap].stride
    rows, cols = [], []
    for _ in range(4):
        image = torch.from_numpy(rng.integers(96, 160, (1, 3, side, side), np.uint8))
        changed = image.clone()
        y, x = at
        changed[:, :, y - 1 : y + 1, x - 1 : x + 1] = torch.from_numpy(rng.integers(0, 256, (1, 3, 2, 2), np.uint8))
        change = (teacher.features(changed)[tap] - teacher.features(image)[tap]).square().sum((0, 1)).double()
        where = (torch.arange(len(change)) + 0.5) * stride
        rows.append(float((change.sum(1) * where).sum() / change.sum()))
        cols.append(float((change.sum(0) * where).sum() / change.sum()))
    return float(np.mean(rows)), float(np.mean(cols))


@pytest.mark.parametrize("kind", ["network", "symmetric_network"])
def test_cells_of_a_cnn_line_up_with_patches(kind: str, request: pytest.FixtureRequest) -> None:
    """Whatever way a network is padded; unshifted, the cells of one of these networks are half a cell off."""
    teacher = CnnTeacher(request.getfixturevalue(kind))
    assert [tap.stride for tap in teacher.taps] == [8, 16, 32]
    for number, tap in enumerate(teacher.taps):
        found = [
            np.subtract(centre_of_change(teacher, number, (128 + dy, 128 + dx)), (128 + dy, 128 + dx))
            for dy in range(0, tap.stride, tap.stride // 4)
            for dx in (0, tap.stride // 2)
        ]
        assert np.abs(np.mean(found, axis=0)).max() < 0.25 * tap.stride


def test_unshifted_cells_would_not_line_up(network: Path) -> None:
    """The measurement is needed: these networks look half a cell further."""
    assert max(abs(shift) for shift in CnnTeacher(network).shifts) >= 8


def test_shifted_image_shifts_features(network: Path) -> None:
    teacher = CnnTeacher(network)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 640, 640), np.uint8))
    moved = torch.roll(image, (32, 64), (2, 3))
    for tap, before, after in zip(teacher.taps, teacher.features(image), teacher.features(moved), strict=True):
        dy, dx = 32 // tap.stride, 64 // tap.stride
        inner = slice(320 // tap.stride - 1, 320 // tap.stride + 1)  # sees no border
        expected = torch.roll(before, (dy, dx), (2, 3))[:, :, inner, inner]
        torch.testing.assert_close(after[:, :, inner, inner], expected, atol=1e-3, rtol=1e-3)


def test_named_taps_give_those_outputs(network: Path) -> None:
    default, named = CnnTeacher(network), CnnTeacher(network, ["sum16"])
    assert named.taps == (Tap("sum16", 8, 16),)
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (got,) = named.features(image)
    assert got.shape == (2, 8, 4, 6)
    torch.testing.assert_close(got, default.features(image)[1])


def test_refusals_name_the_file_and_the_fix(network: Path, tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"network\.xml: nothing in this network is called 'sum64'"):
        CnnTeacher(network, ["sum64"])
    with pytest.raises(FitError, match=r"gone\.onnx: no such file"):
        open_teacher(tmp_path / "gone.onnx", 16)
    text = tmp_path / "notes.txt"
    text.write_text("no network")
    with pytest.raises(FitError, match=r"notes\.txt: not a kind of file that holds a teacher"):
        open_teacher(text, 16)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\0" * 64)
    with pytest.raises(FitError, match=r"broken\.onnx: OpenVINO cannot read"):
        open_teacher(broken, 16)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"\0" * 64)
    with pytest.raises(WeightsError, match="torn"):
        open_teacher(torn, 16)
    with pytest.raises(FitError, match="numbers of blocks"):
        open_teacher(torn, 16, ["sum16"])


def test_an_encoder_of_other_patches_lines_up() -> None:
    encoder = Encoder(dinov2("small", (48, 2, 1))).init_weights(0)
    teacher = EncoderTeacher(encoder, patch=16)
    assert teacher.taps == (Tap("block 1", 48, 16), Tap("block 2", 48, 16))
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second = teacher.features(images)
    assert first.shape == second.shape == (1, 48, 4, 6)
    changed = images.clone()
    changed[:, :, 32:48, 16:32] = 255 - changed[:, :, 32:48, 16:32]
    change = (teacher.features(changed)[0] - first).abs().sum((0, 1))
    assert change.argmax() == 2 * 6 + 1  # the patch that was changed


def test_an_encoder_gives_its_own_features_at_its_own_patch() -> None:
    encoder = Encoder(COMPACT.with_(name="", width=48, depth=2, heads=1, hidden=96)).init_weights(0)
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (got,) = EncoderTeacher(encoder, 16, (2,)).features(images)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    expected = encoder.features((images / 255.0 - mean) / std)
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), expected)
    with pytest.raises(FitError, match="blocks 1 to 2"):
        EncoderTeacher(encoder, 16, (3,))

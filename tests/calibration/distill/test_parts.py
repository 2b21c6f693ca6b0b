"""Views, targets, losses and the optimiser of a distillation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from calibration.distill.losses import relation_loss, token_loss
from calibration.distill.muon import MuonAdamW, orthogonalise
from calibration.distill.pictures import alter, centre_crops, find_pictures, random_crop, views
from calibration.distill.student import Student, fit_heads, standardise, to_patches
from calibration.distill.teachers import Tap
from calibration.errors import DataError
from pipelines.encoders import Encoder
from pipelines.encoders.dino import COMPACT

SMALL = COMPACT.with_(name="", width=48, depth=2, heads=1, hidden=96)


def quiet(done: int, total: int) -> None:
    pass


def test_views_share_their_geometry(photographs: Path) -> None:
    train, _, _ = find_pictures([photographs], 0, 96, 0, False, quiet)
    same = views(train, [0, 5, 7], (0, 3), 64, strength=0.0)
    assert same.plain.shape == (3, 3, 64, 64)
    assert same.plain.dtype == torch.uint8
    assert torch.equal(same.plain, same.altered)
    strong = views(train, [0, 5, 7], (0, 3), 64, strength=1.5)
    assert torch.equal(strong.plain, same.plain)
    assert not torch.equal(strong.altered, strong.plain)
    for number in (0, 1, 2):  # other colours, the same picture: the two match better in place than moved
        plain, altered = (one[number].float().mean(0) for one in (strong.plain, strong.altered))
        here = np.corrcoef(plain.flatten(), altered.flatten())[0, 1]
        moved = np.corrcoef(plain[8:, 8:].flatten(), altered[:-8, :-8].flatten())[0, 1]
        assert here > 0.8
        assert here > moved


def test_views_depend_on_the_key_alone(photographs: Path) -> None:
    train, _, _ = find_pictures([photographs], 0, 96, 0, False, quiet)
    whole = views(train, [4, 9], (0, 7), 64, 1.0)
    (part,) = views(train, [9], (0, 7), 64, 1.0).altered
    assert torch.equal(whole.altered[1], part)
    assert not torch.equal(part, views(train, [9], (0, 8), 64, 1.0).altered[0])


def test_crops_cover_many_parts_and_sides() -> None:
    pixels = np.arange(100 * 150 * 3, dtype=np.uint32).reshape(100, 150, 3).astype(np.uint8)
    crops = [random_crop(pixels, 32, np.random.default_rng(seed)) for seed in range(40)]
    assert all(crop.shape == (32, 32, 3) for crop in crops)
    assert len({crop.tobytes() for crop in crops}) == 40
    assert 2 <= sum(bool((crop[..., 0] == crop[..., 1]).all()) for crop in crops) <= 20  # gray now and then


def test_alterations_stay_in_range() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    for seed in range(30):
        out = alter(crop, np.random.default_rng(seed), 2.0)
        assert out.dtype == np.uint8
        assert out.shape == crop.shape


def test_held_out_images_are_not_trained_on(photographs: Path) -> None:
    train, held, left_out = find_pictures([photographs, photographs], 3, 96, 0, False, quiet)
    assert (len(train), len(held), left_out) == (9, 3, [])
    assert not {*train.paths} & {*held.paths}
    assert centre_crops(held, 64).shape == (3, 3, 64, 64)


def test_bad_files_are_all_named(photographs: Path) -> None:
    for name in ("a.png", "b.png"):
        (photographs / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of 14 images(.|\n)*a\.png(.|\n)*b\.png"):
        find_pictures([photographs], 3, 96, 0, False, quiet)
    train, _, left_out = find_pictures([photographs], 3, 96, 0, True, quiet)
    assert len(train) == 9
    assert len(left_out) == 2


def test_targets_of_every_stride_lie_on_the_patches() -> None:
    """A value that is its own position must come out at the patch's position."""
    y, x = torch.meshgrid(torch.arange(8.0) + 0.5, torch.arange(12.0) + 0.5, indexing="ij")
    for stride in (8, 16, 32):
        rows, cols = 128 // stride, 192 // stride
        centres = torch.stack(
            torch.meshgrid((torch.arange(rows) + 0.5) * stride, (torch.arange(cols) + 0.5) * stride, indexing="ij")
        )
        patches = to_patches(centres[None], stride, 16)
        cells = max(1, 16 // stride) ** 2
        assert patches.shape == (1, 96, 2 * cells)
        middle = patches[0].unflatten(1, (2, cells)).mean(2).T.reshape(2, 8, 12)
        inner = (slice(None), slice(1, -1), slice(1, -1))  # bilinear interpolation has no slope at the border
        torch.testing.assert_close(middle[inner], 16 * torch.stack((y, x))[inner])


class Linear:
    """A teacher whose features are linear in what the student's last block knows, shifted and scaled."""

    name = "linear"
    taps = (Tap("linear", 5, 16),)

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.matrix = torch.randn(48, 5, generator=torch.Generator().manual_seed(1))

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.encoder.mean, self.encoder.std))
        with torch.no_grad():
            tokens = self.encoder.features((images / 255.0 - mean) / std)
        values = tokens @ self.matrix * torch.tensor([1.0, 2, 3, 4, 5]) + 7
        return [values.transpose(1, 2).unflatten(2, (images.shape[2] // 16, images.shape[3] // 16))]


def test_heads_start_at_the_least_squares_solution() -> None:
    encoder = Encoder(SMALL).init_weights(0)
    teacher = Linear(encoder)
    student = Student(encoder, teacher.taps, (2,), 1)
    batches = [torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8) for _ in range(12)]
    standardise(student, teacher, iter(batches))
    rows = torch.cat([student.targets(teacher, images)[0].flatten(0, 1) for images in batches])
    torch.testing.assert_close(rows.mean(0), torch.zeros(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(rows.std(0), torch.ones(5), atol=1e-2, rtol=0)
    fit_heads(student, teacher, iter(batches))
    with torch.no_grad():
        (predicted,) = student.predict(student.tokens(batches[0]))
    (wanted,) = student.targets(teacher, batches[0])
    assert float((predicted - wanted).square().mean()) < 0.1


def test_shares_of_a_loss_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, wanted = (torch.randn(6, 10, 8, generator=generator) for _ in range(2))
    whole = token_loss(predicted, wanted, 1.0, 6)
    parts = token_loss(predicted[:2], wanted[:2], 1.0, 6) + token_loss(predicted[2:], wanted[2:], 1.0, 6)
    torch.testing.assert_close(whole, parts)
    assert float(token_loss(wanted, wanted, 1.0, 6)) < 1e-6 < float(whole)


def test_relation_loss_sees_likenesses_only() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(2, 30, 8, generator=generator)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    scaled = wanted @ turn * torch.rand(2, 30, 1, generator=generator).add(0.5)  # turned tokens of other lengths
    assert float(relation_loss(scaled, [wanted], torch.Generator().manual_seed(1), 2)) < 1e-10
    other = torch.randn(2, 30, 8, generator=generator)
    assert float(relation_loss(other, [wanted], torch.Generator().manual_seed(1), 2)) > 0.05


@pytest.mark.parametrize("shape", [(3, 20, 50), (2, 50, 20), (1, 16, 16)])
def test_orthogonalised_matrices_keep_their_directions(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got = orthogonalise(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.einsum("kri,krc,kic->ki", u, got, v)
    if shape[1] != shape[2]:  # a square random matrix has singular values next to 0, which five rounds cannot lift
        assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    torch.testing.assert_close(u @ torch.diag_embed(values) @ v, got, atol=1e-3, rtol=0)


def test_adamw_part_is_adamw() -> None:
    ours = nn.Parameter(torch.randn(7, generator=torch.Generator().manual_seed(0)))
    theirs = nn.Parameter(ours.detach().clone())
    pair = (
        (ours, MuonAdamW([], [ours], 0.05, 0.0)),
        (theirs, torch.optim.AdamW([theirs], 0.05, (0.9, 0.98), weight_decay=0)),
    )
    for _ in range(10):
        for parameter, optimizer in pair:
            optimizer.zero_grad()
            (parameter**4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_muon_learns_a_badly_scaled_matrix() -> None:
    """Inputs whose directions differ a thousandfold in power: what Muon is for."""
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(16, 16, generator=generator)
    inputs = torch.randn(256, 16, generator=generator) * torch.logspace(0, -1.5, 16)
    matrix = nn.Parameter(torch.zeros(16, 16))
    optimizer = MuonAdamW([matrix], [], 0.2, 0.0)
    losses = []
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 120)
        optimizer.zero_grad()
        loss = (inputs @ (matrix - wanted).T).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-2 * losses[0]

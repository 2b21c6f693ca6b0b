from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.precision import Float32Module, unit
from pipelines.scoring import (
    Kept,
    PixelMap,
    average_pool,
    gaussian_blur,
    top_percent_count,
    top_percent_mean,
    topk_mean,
    upsample,
)


@pytest.fixture(scope="module")
def ops() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "data" / "ops.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def same(mine: Tensor, reference: Tensor) -> bool:
    """Within 1e-5 of the reference's range."""
    return mine.shape == reference.shape and float((mine - reference).abs().max()) <= 1e-5 * float(
        reference.max() - reference.min()
    )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("name", "size"), [("64", (64, 64)), ("(48, 80)", (48, 80))])
def test_bilinear_upsampling(ops: dict[str, Tensor], align_corners: bool, name: str, size: tuple[int, int]) -> None:
    maps = ops["map_9x9"][:1, 0]
    reference = ops[f"bilinear_align{align_corners}_{name}"][:, 0]
    assert same(upsample(maps, size, align_corners), reference)
    assert same(PixelMap((9, 9), size, align_corners)(maps), reference)


@pytest.mark.parametrize("shape", ["20x30", "9x9"])
@pytest.mark.parametrize("sigma", [1, 2.5, 4])
def test_gaussian(ops: dict[str, Tensor], shape: str, sigma: float) -> None:
    """9x9 with sigma 4: the kernel reaches over the map's far edge and back again."""
    assert same(gaussian_blur(ops[f"gauss/{shape}_in"][None], sigma)[0], ops[f"gauss/{shape}_sigma{sigma:g}"])


def test_pool_and_top_percent(ops: dict[str, Tensor]) -> None:
    assert torch.allclose(average_pool(ops["pool_in"]).amax((1, 2)), ops["avgpool16_stride1_max"], rtol=1e-5)
    assert torch.allclose(top_percent_mean(ops["pool_in"]), ops["top1pct_mean"], rtol=1e-6)
    assert top_percent_count(64 * 64) == int(ops["top1pct_k"])


@settings(max_examples=30, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    patch=st.integers(4, 9),
    align_corners=st.booleans(),
    sigma=st.sampled_from([0.0, 1.0, 4.0]),
    pool=st.sampled_from([1, 4]),
)
def test_the_folded_chain_equals_its_operators(
    grid: tuple[int, int], patch: int, align_corners: bool, sigma: float, pool: int
) -> None:
    size = (grid[0] * patch, grid[1] * patch)
    maps = torch.randn(2, *grid)
    plain = upsample(maps, size, align_corners)
    if sigma:
        plain = gaussian_blur(plain, sigma)
    if pool > 1:
        plain = average_pool(plain, pool)
    folded = PixelMap(grid, size, align_corners, sigma, pool)(maps)
    assert folded.shape == plain.shape
    assert torch.allclose(folded, plain, atol=2e-5)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), h=st.integers(1, 6), w=st.integers(1, 6))
def test_topk_mean_against_a_sort(data: st.DataObject, h: int, w: int) -> None:
    values = torch.tensor(data.draw(st.lists(st.floats(-100, 100, width=32), min_size=h * w, max_size=h * w)))
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w).filter(any)))
    k = data.draw(st.integers(1, int(keep.sum())))
    expected = values[keep].sort(descending=True).values[:k].mean()
    assert torch.allclose(topk_mean(values.view(1, h, w), k, keep.view(h, w)), expected, rtol=1e-5, atol=1e-5)


def test_kept_pixels_follow_kept_patches() -> None:
    pixels = PixelMap((2, 3), (8, 12))
    keep = torch.tensor([[True, False, True], [True, True, False]])
    kept = pixels.kept(Kept(keep, 4))
    assert torch.equal(kept.mask, keep.repeat_interleave(4, 0).repeat_interleave(4, 1))
    assert kept.count == int(kept.mask.sum())
    pooled = PixelMap((2, 3), (8, 12), pool=4)
    assert pooled.kept(Kept(keep, 4)).mask.shape == pooled(torch.zeros(2, 3)).shape
    assert pooled.kept(Kept(torch.ones(2, 3, dtype=torch.bool), 6)).mask.all()


def test_float32_modules_keep_their_constants_exact() -> None:
    pixels = PixelMap((3, 3), (48, 48), sigma=4.0)
    rows = pixels.rows.clone()
    assert torch.equal(torch.nn.Sequential(pixels).half().float()[0].rows, rows)  # type: ignore[union-attr,arg-type]
    assert pixels.rows.dtype == torch.float32
    assert isinstance(pixels, Float32Module)


def test_unit_vectors_survive_half_precision() -> None:
    x = torch.tensor([[0.0, 0.0], [300.0, 400.0], [6e-5, 8e-5]], dtype=torch.float16)
    lengths = unit(x).norm(dim=-1)
    assert torch.allclose(lengths, torch.tensor([0.0, 1.0, 1.0]), atol=1e-2)
    assert unit(x).dtype == torch.float32

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import MemoryBankConfig
from pipelines.encoders.vit import Encoder
from pipelines.errors import WeightsError
from pipelines.heads import MemoryBank
from pipelines.heads.coreset import greedy_coreset


def bank(**config: Any) -> MemoryBank:
    size = config.pop("size", 40)
    return MemoryBank(MemoryBankConfig(size=size, **config), width=48, depth=4, grid=(3, 4), patch=16).eval()


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("blocks", [(), (2, 4)])
@pytest.mark.parametrize("pool", [1, 3])
def test_distance_to_the_nearest(
    tiny: Callable[..., Encoder], distance: str, blocks: tuple[int, ...], pool: int
) -> None:
    encoder = tiny()
    head = bank(distance=distance, blocks=blocks, pool=pool)
    normal = torch.randn(6, 3, 48, 64)
    head.fit(head.features(encoder, normal))
    query = head.features(encoder, torch.randn(2, 3, 48, 64))
    assert query.shape == (2, 12, 48 * max(1, len(blocks)))
    if distance == "cosine":
        expected = (1 - torch.nn.functional.cosine_similarity(query[:, :, None], head.bank, dim=-1)).amin(-1)
    else:
        expected = torch.cdist(query, head.bank[None], compute_mode="donot_use_mm_for_euclid_dist").amin(-1)
    assert torch.allclose(head.distances(query), expected, atol=1e-4 if distance == "euclidean" else 1e-5)


def test_images_in_the_bank_score_zero_and_others_more(tiny: Callable[..., Encoder]) -> None:
    encoder = tiny()
    normal = torch.randn(3, 3, 48, 64)
    head = bank(size=36)
    head.fit(head.features(encoder, normal))
    assert head.patch_scores(encoder, normal).max() < 1e-5
    assert head.patch_scores(encoder, torch.randn(1, 3, 48, 64)).min() > 1e-3


def test_published_rules(tiny: Callable[..., Encoder]) -> None:
    maps = torch.rand(2, 20, 20)
    top4 = maps.flatten(1).topk(4).values.mean(1)
    config = {"width": 48, "depth": 4, "grid": (20, 20), "patch": 16}
    assert torch.allclose(MemoryBank(MemoryBankConfig(size=4), **config).published_score(maps), top4)  # type: ignore[arg-type]
    patchcore = MemoryBank(MemoryBankConfig(size=4, published="max"), **config)  # type: ignore[arg-type]
    assert torch.equal(patchcore.published_score(maps), maps.amax((1, 2)))


def test_the_bank_stays_exact_in_half_precision() -> None:
    head = bank().half()
    assert head.bank.dtype == torch.float32
    assert head.to(torch.bfloat16).bank.dtype == torch.float32
    assert head.double().bank.dtype == torch.float32


def test_a_neighbourhood_at_the_edge_averages_what_is_there(tiny: Callable[..., Encoder]) -> None:
    encoder = tiny()
    images = torch.randn(1, 3, 48, 64)
    raw = bank(distance="euclidean").features(encoder, images).reshape(3, 4, 48)
    pooled = bank(distance="euclidean", pool=3).features(encoder, images).reshape(3, 4, 48)
    assert torch.allclose(pooled[0, 0], raw[:2, :2].mean((0, 1)), atol=1e-5)
    assert torch.allclose(pooled[1, 1], raw[:3, :3].mean((0, 1)), atol=1e-5)


def test_fit_refuses_what_cannot_fill_the_bank() -> None:
    head = bank()
    before = head.bank.clone()
    with pytest.raises(WeightsError, match="39 patch features cannot fill a bank of 40"):
        head.fit(torch.randn(39, 48))
    with pytest.raises(WeightsError, match="width 47"):
        head.fit(torch.randn(50, 47))
    with pytest.raises(WeightsError, match="NaN"):
        head.fit(torch.full((50, 48), float("nan")))
    assert torch.equal(head.bank, before)
    with pytest.raises(WeightsError, match="blocks 1 to 4"):
        bank(blocks=(5,))


def test_coreset_is_seeded_and_reports_progress() -> None:
    features = torch.randn(600, 200, generator=torch.Generator().manual_seed(3))
    calls: list[tuple[int, int]] = []
    chosen = greedy_coreset(features, 300, seed=5, progress=lambda done, total: calls.append((done, total)))
    assert torch.equal(chosen, greedy_coreset(features, 300, seed=5))
    assert not torch.equal(chosen, greedy_coreset(features, 300, seed=6))
    assert calls == [(256, 300), (300, 300)]


def test_coreset_takes_each_cluster_once() -> None:
    """Ten far clusters, ten centres: k-center must find one in each, where a random draw would almost never."""
    generator = torch.Generator().manual_seed(0)
    centres = 50 * torch.randn(10, 64, generator=generator)
    sizes = [500, *[20] * 9]  # one cluster has most of the points
    points = torch.cat([c + torch.randn(n, 64, generator=generator) for c, n in zip(centres, sizes, strict=True)])
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(sizes))
    assert sorted(labels[greedy_coreset(points, 10, seed=1)].tolist()) == list(range(10))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 60),
    size=st.integers(1, 70),
    width=st.sampled_from([1, 3, 140]),
    copies=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_coreset_never_repeats_and_covers_within_twice_the_best(
    count: int, size: int, width: int, copies: int, seed: int
) -> None:
    points = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).repeat(copies, 1)
    chosen = greedy_coreset(points, size, seed=seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(size, count * copies)
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < count * copies
    if width <= 3 and size < count:
        # Greedy k-center: the points left are no farther than the centres are from each other (Gonzalez, 1985).
        gaps = torch.cdist(points[chosen], points[chosen]) + torch.eye(len(chosen)) * 1e9
        cover = torch.cdist(points, points[chosen]).amin(1).max()
        assert cover <= gaps.min() + 1e-3

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.config import FoundADConfig
from pipelines.encoders import from_checkpoint
from pipelines.encoders.vit import Encoder
from pipelines.errors import WeightsError
from pipelines.heads import FoundAD
from pipelines.scoring import topk_mean, upsample

GRID = (8, 8)


@pytest.fixture(scope="module")
def model(weights: Callable[[str], dict[str, Tensor]]) -> tuple[Encoder, FoundAD]:
    state = weights("foundad")
    encoder = from_checkpoint({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
    return encoder, FoundAD.from_published(state, encoder, GRID).eval()


@pytest.mark.parametrize("kind", ["clean", "abn"])
def test_equals_the_reference(model: tuple[Encoder, FoundAD], golden: Any, close: Any, kind: str) -> None:
    encoder, head = model
    arrays, step = golden("foundad")
    images = arrays.get(f"{kind}/input")
    if images is None:
        images = arrays["input" if kind == "clean" else "input_abnormal"]
    close(head.features(encoder, images), arrays[f"{kind}/features"], 2e-5)
    close(head.project(arrays[f"{kind}/features"]), arrays[f"{kind}/projected"])
    maps = head.patch_scores(encoder, images)
    close(maps.flatten(1), arrays[f"{kind}/patch_score"])
    close(upsample(maps, (128, 128))[:, ::step, ::step], arrays[f"{kind}/anomaly_map"])
    close(head.published_score(maps), arrays[f"{kind}/image_score_top10"])
    close(topk_mean(maps, 6), arrays[f"{kind}/image_score_top6"])


def test_every_stage_of_the_projector_equals_the_reference(
    model: tuple[Encoder, FoundAD], golden: Any, close: Any
) -> None:
    projector = model[1].projector
    arrays, _ = golden("foundad")
    residual = projector.embed(arrays["clean/features"])
    close(residual, arrays["clean/predictor_embed"])
    x = residual
    for number, block in enumerate(projector.blocks, start=1):
        x = block(x) + residual
        close(x, arrays[f"clean/predictor_block{number}_plus_residual"])
    close(projector.norm(x), arrays["clean/predictor_norm"])


def test_published_forms_of_the_file_give_the_same_head(
    model: tuple[Encoder, FoundAD], weights: Callable[[str], dict[str, Tensor]]
) -> None:
    encoder, head = model
    part = {k.removeprefix("predictor."): v for k, v in weights("foundad").items() if k.startswith("predictor.")}
    saved = {"predictor": part, "projector": None, "epoch": 3, "lr": 1e-3}
    parallel = {"predictor": {f"module.{k}": v for k, v in part.items()}}
    for state in (part, saved, parallel):
        again = FoundAD.from_published(state, encoder, GRID)
        assert again.config == head.config
        for name, tensor in head.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name


def test_parameters_of_the_published_size() -> None:
    head = FoundAD(FoundADConfig(), width=768, depth=12, grid=(32, 32), patch=16)
    # The published 11,238,912 include a mask token of 384 that is never used.
    assert sum(p.numel() for p in head.parameters()) == 11_238_912 - 384


def test_normed_features_have_unit_length_and_bounded_residual(tiny: Callable[..., Encoder]) -> None:
    encoder = tiny()
    config = FoundADConfig(last=2, embed=24, depth=2, heads=2, feat_normed=True, position_table=True)
    head = FoundAD(config, width=48, depth=4, grid=(3, 4), patch=16).eval()
    images = torch.randn(2, 3, 48, 64)
    features = head.features(encoder, images)
    assert torch.allclose(features.norm(dim=-1), torch.ones(2, 12), atol=1e-5)
    maps = head.patch_scores(encoder, images)
    assert maps.shape == (2, 3, 4)
    assert 0 <= float(maps.min()) <= float(maps.max()) <= 4 / 48 + 1e-6
    # Moving patches around is noticed by the table alone.
    before = head.project(features)
    head.projector.positions.copy_(torch.randn_like(head.projector.positions))  # type: ignore[union-attr,arg-type]
    assert not torch.allclose(head.project(features), before, atol=1e-3)


def test_the_reduction_survives_half_precision() -> None:
    head = FoundAD(FoundADConfig(embed=24, depth=1, heads=2), width=48, depth=4, grid=(2, 2), patch=16).half()
    for parameter in head.projector.proj.parameters():
        parameter.zero_()  # the residual is the feature itself
    large = torch.full((1, 4, 48), 300.0, dtype=torch.float16)  # squares overflow fp16
    small = torch.full((1, 4, 48), 1e-4, dtype=torch.float16)  # squares underflow fp16
    assert torch.allclose(head.residual(large), torch.full((1, 4), 9e4))
    assert torch.allclose(head.residual(small), torch.full((1, 4), 1e-8), rtol=1e-2)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda s: s.pop("predictor_blocks.3.attn.qkv.bias"), "missing blocks.3.attn.qkv.bias"),
        (lambda s: s.update(extra=torch.zeros(3)), "unknown extra"),
        (lambda s: s["predictor_norm.weight"].fill_(float("nan")), "norm.weight holds NaN"),
        (lambda s: s.update({"predictor_norm.bias": torch.zeros(7)}), "shape"),
        (lambda s: s.pop("predictor_embed.weight"), "no FoundAD checkpoint"),
        (lambda s: s.update({"predictor_embed.weight": torch.zeros(96, 384)}), "width 384"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    model: tuple[Encoder, FoundAD],
    weights: Callable[[str], dict[str, Tensor]],
    spoil: Callable[[dict[str, Tensor]], object],
    text: str,
) -> None:
    part = {k.removeprefix("predictor."): v for k, v in weights("foundad").items() if k.startswith("predictor.")}
    spoil(part)
    with pytest.raises(WeightsError, match=text):
        FoundAD.from_published(part, model[0], GRID)


def test_a_head_of_an_impossible_shape_is_refused() -> None:
    with pytest.raises(WeightsError, match="7 heads do not divide"):
        FoundAD(FoundADConfig(heads=7), width=48, depth=4, grid=(2, 2), patch=16)
    with pytest.raises(WeightsError, match="no 9-th last"):
        FoundAD(FoundADConfig(last=9), width=48, depth=4, grid=(2, 2), patch=16)

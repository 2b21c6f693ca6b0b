from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.config import ViTADConfig
from pipelines.encoders import from_checkpoint
from pipelines.encoders.vit import Encoder
from pipelines.errors import WeightsError
from pipelines.heads import ViTAD
from pipelines.scoring import PixelMap, average_pool, gaussian_blur, upsample

GRID = (6, 6)


@pytest.fixture(scope="module")
def model(weights: Callable[[str], dict[str, Tensor]]) -> tuple[Encoder, ViTAD]:
    state = weights("vitad")
    encoder = from_checkpoint(
        {k.removeprefix("net_t."): v for k, v in state.items() if k.startswith("net_t.")}, heads=3
    )
    return encoder, ViTAD.from_published(state, encoder, GRID).eval()


def test_equals_the_reference(model: tuple[Encoder, ViTAD], golden: Any, close: Any) -> None:
    encoder, head = model
    arrays, step = golden("vitad")
    teachers, neck = head.features(encoder, arrays["input"])
    close(neck, arrays["neck_feature"])
    close(head.fuser(neck), arrays["fused"])
    distances = []
    for i, (teacher, student) in enumerate(zip(teachers, head.rebuild(neck), strict=True)):
        close(teacher.transpose(1, 2).unflatten(2, GRID), arrays[f"feats_t_{i}_enc_block{(3, 6, 9)[i]}"])
        close(student.transpose(1, 2).unflatten(2, GRID), arrays[f"feats_s_{i}_dec_block{(9, 6, 3)[i]}"])
        distance = 1 - torch.nn.functional.cosine_similarity(teacher, student, dim=-1)
        close(head.to_grid(distance), arrays[f"cosdist_grid_{i}"])
        pixels = upsample(head.to_grid(distance), (96, 96), align_corners=True)
        close(pixels[:, ::step, ::step], arrays[f"amap_layer_{i}"])
        distances.append(distance)
    maps = head.patch_scores(encoder, arrays["input"])
    plain = PixelMap(GRID, (96, 96), align_corners=True)(maps)
    close(plain[:, ::step, ::step], arrays["anomaly_map_nosmooth"])
    smooth = PixelMap(GRID, (96, 96), align_corners=True, sigma=4.0)(maps)
    close(smooth[:, ::step, ::step], arrays["anomaly_map"])
    close(head.published_score(maps), arrays["image_score"])


def test_published_score_is_the_maximum_of_the_pooled_map() -> None:
    head = ViTAD(ViTADConfig(heads=3), width=48, depth=4, grid=(3, 5), patch=16)
    maps = torch.rand(2, 3, 5)
    pooled = average_pool(gaussian_blur(upsample(maps, (48, 80), align_corners=True), 4.0), 16)
    assert torch.allclose(head.published_score(maps), pooled.amax((1, 2)), atol=1e-6)


def test_pairs_mirror_the_encoder() -> None:
    head = ViTAD(ViTADConfig(), width=384, depth=12, grid=(16, 16), patch=16)
    assert (head.teachers, head.neck, head.decoder.outputs) == ((3, 6, 9), 12, (9, 6, 3))
    assert len(head.decoder.blocks) == 9


def test_features_are_rebuilt_exactly_when_the_decoder_is_the_identity(tiny: Callable[..., Encoder]) -> None:
    """A decoder that passes its input on gives distance zero where the encoder's later blocks change nothing either."""
    encoder = tiny("dino")
    for block in encoder.blocks[1:]:
        block.attn.proj.weight.zero_()  # type: ignore[union-attr,operator]
        block.mlp.fc2.weight.zero_()  # type: ignore[union-attr,operator]
    head = ViTAD(ViTADConfig(heads=3), width=48, depth=4, grid=(4, 4), patch=16).eval()
    images = torch.randn(1, 3, 64, 64)
    assert head.patch_scores(encoder, images).min() > 1e-3
    torch.nn.init.eye_(head.fuser.weight)
    head.decoder.positions.zero_()
    for inner in head.decoder.blocks:
        inner.attn.proj.weight.zero_()  # type: ignore[union-attr,operator]
        inner.mlp.fc2.weight.zero_()  # type: ignore[union-attr,operator]
    assert head.patch_scores(encoder, images).abs().max() < 1e-6


def test_a_file_that_does_not_fit_is_refused(
    model: tuple[Encoder, ViTAD], weights: Callable[[str], dict[str, Tensor]], tiny: Callable[..., Encoder]
) -> None:
    state = weights("vitad")
    wrapped = {"net": state, "epoch": 99}
    again = ViTAD.from_published(wrapped, model[0], GRID)
    assert torch.equal(again.fuser.weight, model[1].fuser.weight)
    with pytest.raises(WeightsError, match="36 positions, an input of 4 x 4"):
        ViTAD.from_published(state, model[0], (4, 4))
    with pytest.raises(WeightsError, match="width 96"):
        ViTAD.from_published(state, tiny("dino"), GRID)
    with pytest.raises(WeightsError, match="no ViTAD checkpoint"):
        ViTAD.from_published({"predictor": {"x": torch.zeros(1)}}, model[0], GRID)
    half = {k: v for k, v in state.items() if not k.startswith("net_s.blocks.8.")}
    with pytest.raises(WeightsError, match=r"missing decoder.blocks.8"):
        ViTAD.from_published(half, model[0], GRID)
    with pytest.raises(WeightsError, match="before the neck"):
        ViTAD(ViTADConfig(teachers=(3, 4)), width=48, depth=4, grid=(2, 2), patch=16)

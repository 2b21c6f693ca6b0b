from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.config import VisualADConfig
from pipelines.encoders import from_checkpoint
from pipelines.encoders.vit import Encoder
from pipelines.errors import WeightsError
from pipelines.heads import VisualAD
from pipelines.scoring import gaussian_blur, top_percent_mean, upsample

GRID = (8, 8)
OWN = ("anomaly_token", "normal_token", "anomaly_pos", "normal_pos")


@pytest.fixture(scope="module")
def model(weights: Callable[[str], dict[str, Tensor]]) -> tuple[Encoder, VisualAD]:
    state = weights("visualad")
    visual = {k: v for k, v in state.items() if k.startswith("visual.") and not k.endswith(OWN)}
    visual["visual.positional_embedding"] = visual.pop("visual.positional_embedding_frozen")
    encoder = from_checkpoint(visual, heads=2)
    return encoder, VisualAD.from_published(state, encoder, GRID).eval()


def test_equals_the_reference(model: tuple[Encoder, VisualAD], golden: Any, close: Any) -> None:
    encoder, head = model
    arrays, step = golden("visualad")
    images = arrays["input"]
    close(encoder.tokens(images, head.tokens, head.token_positions), arrays["seq_ln_pre"])
    tokens, taps = head.tap_features(encoder, images)
    close(tokens[:, 0], arrays["anomaly_features"], 2e-5)
    close(tokens[:, 1], arrays["normal_features"], 2e-5)
    for number, (tap, patch_map) in enumerate(zip(taps, head.tap_maps(tokens, taps), strict=True), start=1):
        close(tap, arrays[f"layer{number}/patch_tokens_ln_post_all"][:, 3:], 2e-5)
        close(patch_map, arrays[f"layer{number}/patch_score"])
        pixels = upsample(head.to_grid(patch_map), (112, 112))
        close(pixels[:, ::step, ::step], arrays[f"layer{number}/anomaly_map"])
    maps = head.patch_scores(encoder, images)
    close(upsample(maps, (112, 112))[:, ::step, ::step], arrays["anomaly_map_sum"])
    close(head.pixels(maps)[:, ::step, ::step], arrays["anomaly_map_gauss4"])
    close(head.published_score(maps), arrays["image_score_top1pct_mean"])


def test_the_inside_of_each_tap_equals_the_reference(model: tuple[Encoder, VisualAD], golden: Any, close: Any) -> None:
    head = model[1]
    arrays, step = golden("visualad")
    tokens = torch.stack((arrays["anomaly_features"], arrays["normal_features"]), dim=1)
    for number in range(1, 5):
        patches = arrays[f"layer{number}/patch_tokens_ln_post_all"][:, 3:]
        pair = head.sca[number - 1](tokens, patches)
        close(pair[:, 0], arrays[f"layer{number}/sca_anomaly"])
        close(pair[:, 1], arrays[f"layer{number}/sca_normal"])
        close(head.saf[number - 1](patches), arrays[f"layer{number}/saf_patches"])
    sca: Any = head.sca[0]
    patches = arrays["layer1/patch_tokens_ln_post_all"][:, 3:]
    attention = sca.attention(patches)
    thin = 1 if step == 1 else 7
    close(sca.q_norm(sca.q(sca.anchors)), arrays["sca0/Q"][0])
    close(sca.k_norm(sca.k(patches + sca.positions[:, :64]))[:, ::thin], arrays["sca0/K"])
    close(sca.v(patches)[:, ::thin], arrays["sca0/V"])
    close(attention, arrays["sca0/attn"])
    close(sca.v(attention @ patches), arrays["sca0/aggregated"])
    close(torch.sigmoid(sca.gate(tokens[:, 0])), arrays["sca0/gate_anomaly"])


def test_the_published_form_of_the_file_gives_the_same_head(
    model: tuple[Encoder, VisualAD], weights: Callable[[str], dict[str, Tensor]]
) -> None:
    """What the authors' training saves: tokens and norm by themselves, nested dicts, positions left to the encoder."""
    encoder, head = model
    state = weights("visualad")

    def below(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    saved = {
        "anomaly_token": state["visual.anomaly_token"],
        "normal_token": state["visual.normal_token"],
        "token_insert_layer": 0,
        "ln_post_weight": state["visual.ln_post.weight"],
        "ln_post_bias": state["visual.ln_post.bias"],
        "features_list": [1, 2, 3, 4],
        "image_size": 112,
        "backbone": "ViT",
        "layer_transforms": {f"layer_{n}": below(f"layer_transforms.layer_{n}.") for n in (1, 2, 3, 4)},
        "cross_attn": below("cross_attn."),
    }
    again = VisualAD.from_published(saved, encoder, GRID).eval()
    assert not again.config.token_positions
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, head.state_dict()[name]), name
    # Without entries of their own the tokens stand where the class token does.
    images = torch.randn(1, 3, 112, 112)
    position = encoder.learned.class_position()[0]  # type: ignore[union-attr]
    head = VisualAD.from_published(
        {**state, "visual.anomaly_pos": position, "visual.normal_pos": position}, encoder, GRID
    ).eval()
    assert torch.allclose(again.patch_scores(encoder, images), head.patch_scores(encoder, images), atol=1e-6)


@pytest.mark.parametrize("family", ["dino", "dinov2", "dinov3", "clip"])
def test_runs_in_every_family_and_tokens_see_the_patches(tiny: Callable[..., Encoder], family: str) -> None:
    encoder = tiny(family)
    patch = encoder.patch
    head = VisualAD(VisualADConfig(), width=48, depth=4, grid=(3, 4), patch=patch).start_from(encoder).eval()
    assert head.taps == (1, 2, 3, 4)
    images = torch.randn(2, 3, 3 * patch, 4 * patch)
    maps = head.patch_scores(encoder, images)
    assert maps.shape == (2, 3, 4)
    assert maps.dtype == torch.float32
    assert maps.abs().max() <= 8
    # Exchanging the two tokens turns every score around: they are alike but for their values.
    head.tokens.copy_(head.tokens.flip(0))
    assert torch.allclose(head.patch_scores(encoder, images), -maps, atol=1e-5)
    # Without own tokens nothing of the encoder's features would change; with them the patches do.
    bare = encoder.taps(images, (4,))[0]
    tokens = encoder.run(encoder.tokens(images, extra=head.tokens), images.shape[-2:], (4,), extra=2)[0]
    assert (tokens[:, 2 + encoder.prefix :] - bare).abs().max() > 1e-4


def test_published_score_is_the_top_percent_of_the_smoothed_map(tiny: Callable[..., Encoder]) -> None:
    head = VisualAD(VisualADConfig(), width=48, depth=4, grid=(3, 5), patch=16)
    maps = torch.randn(2, 3, 5)
    plain = gaussian_blur(upsample(maps, (48, 80)), 4.0)
    assert torch.allclose(head.published_score(maps), top_percent_mean(plain), atol=1e-6)


def test_a_file_that_does_not_fit_is_refused(
    model: tuple[Encoder, VisualAD], weights: Callable[[str], dict[str, Tensor]], tiny: Callable[..., Encoder]
) -> None:
    state = weights("visualad")
    with pytest.raises(WeightsError, match="width 128"):
        VisualAD.from_published(state, tiny("clip"), GRID)
    with pytest.raises(WeightsError, match="of 4 blocks or more"):
        VisualAD.from_published(state, tiny("clip", depth=3, width=48), GRID)
    with pytest.raises(WeightsError, match="lacks anomaly_token"):
        VisualAD.from_published({"weight": torch.zeros(3)}, model[0], GRID)
    half = {k: v for k, v in state.items() if "layer_3.v_proj" not in k}
    with pytest.raises(WeightsError, match=r"missing sca.2.v.weight"):
        VisualAD.from_published(half, model[0], GRID)
    without_norm = {k: v for k, v in state.items() if "ln_post" not in k}
    with pytest.raises(WeightsError, match="ln_post"):
        VisualAD.from_published(without_norm, model[0], GRID)
    with pytest.raises(WeightsError, match="at most 4 x 4"):
        VisualAD(VisualADConfig(positions=2), width=48, depth=4, grid=(2, 2), patch=4)
    with pytest.raises(WeightsError, match="blocks 1 to 4"):
        VisualAD(VisualADConfig(taps=(1, 6)), width=48, depth=4, grid=(2, 2), patch=4)

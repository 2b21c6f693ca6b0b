import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.losses import (
    contrast,
    detection_loss,
    dice,
    focal,
    image_loss,
    pair_loss,
    reconstruction_loss,
)
from calibration.training import Schedule
from calibration.visualad import VisualADOptions, VisualADTrainer, pixel_maps
from calibration.vitad import ViTADOptions, ViTADTrainer
from pipelines.encoders import from_checkpoint
from pipelines.heads import VisualAD, ViTAD

OWN = ("anomaly_token", "normal_token", "anomaly_pos", "normal_pos")
"""Of VisualAD's state dict: what the encoder's part does not hold."""


class Fixed:
    """The same features in every step."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows

    def rows(self, numbers):
        return self._rows[list(numbers)]


class FixedBatch:
    """The same labelled pictures in every step."""

    def __init__(self, arrays: dict[str, torch.Tensor]) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays["input"])

    def batch(self, numbers):
        some = list(numbers)
        names = {"images": "input", "masks": "gt_mask", "labels": "label"}
        return SimpleNamespace(**{ours: self._arrays[theirs][some].float() for ours, theirs in names.items()})


@pytest.fixture
def vitad(reference_weights, reference_arrays):
    arrays = reference_arrays("vitad")
    teachers = [arrays[f"feats_t_{i}_enc_block{b}"].flatten(2).transpose(1, 2) for i, b in enumerate((3, 6, 9))]
    rows = torch.stack((*teachers, arrays["neck_feature"]), dim=1)
    config = SimpleNamespace(name="small", heads=3)
    stand_in = SimpleNamespace(width=96, depth=12, patch=16, config=config)
    return ViTAD.from_published(reference_weights("vitad"), stand_in, (6, 6)), rows, arrays


@pytest.fixture
def visualad(reference_weights, reference_arrays):
    state = reference_weights("visualad")
    visual = {k: v for k, v in state.items() if k.startswith("visual.") and not k.endswith(OWN)}
    visual["visual.positional_embedding"] = visual.pop("visual.positional_embedding_frozen")
    encoder = from_checkpoint(visual, heads=2)
    head = VisualAD.from_published(state, encoder, (8, 8))
    for module in head.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return head, encoder, reference_arrays("visualad")


@pytest.mark.parametrize(
    ("kind", "name"), [("cosine", "cos_flat_default"), ("cosine_patch", "cos_pixel"), ("l2", "mse"), ("l1", "l1")]
)
def test_reconstruction_losses_equal_the_reference(vitad, kind, name) -> None:
    head, rows, arrays = vitad
    *teachers, neck = rows.unbind(1)
    with torch.no_grad():
        loss = reconstruction_loss(teachers, head.rebuild(neck), kind)
    assert loss.item() == pytest.approx(arrays[f"loss_{name}"].item(), rel=1e-5)


def test_gradients_of_vitad_equal_the_reference(vitad) -> None:
    head, rows, arrays = vitad
    *teachers, neck = rows.unbind(1)
    reconstruction_loss(teachers, head.rebuild(neck)).backward()
    found = {}
    for name, parameter in head.named_parameters():
        theirs = name.replace("fuser.", "net_fusion.fc.").replace("decoder.positions", "decoder.pos_embed")
        found[theirs.replace("decoder.", "net_s.")] = parameter.grad.norm().item()
    expected = {k.removeprefix("grad_l2norm/"): v.item() for k, v in arrays.items() if k.startswith("grad_l2norm/")}
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_first_steps_of_vitad_equal_the_reference(vitad) -> None:
    head, rows, arrays = vitad
    norms = []

    class Watched(ViTADTrainer):
        def prepare_update(self) -> None:
            super().prepare_update()
            norms.append(self.gradient_norm)

    trainer = Watched(head, Fixed(rows), 2, Schedule(steps=100, batch=2), ViTADOptions())
    trainer.module.train()
    for _ in range(6):
        trainer.advance()
    expected = arrays["train/adamw_lr1e-4_wd1e-4_losses_before_step_0_to_5"].tolist()
    assert trainer.losses == pytest.approx(expected, rel=1e-5)
    assert norms[:5] == pytest.approx(arrays["train/total_grad_norm_before_clip"].tolist(), rel=1e-4)


def test_detection_losses_and_gradients_equal_the_reference(visualad) -> None:
    head, encoder, arrays = visualad
    head.train()
    masks, labels = arrays["gt_mask"].float(), arrays["label"]
    maps, tokens = pixel_maps(head, encoder, arrays["input"])
    loss = detection_loss(maps, tokens, masks, labels)
    loss.backward()
    mine = {"contrastive": contrast(tokens), "cls_bce": image_loss(sum(maps), labels), "total": loss}
    for number, one in enumerate(maps):
        mine[f"focal_{number}"], mine[f"dice_{number}"] = focal(one, masks), dice(one, masks)
    for name, value in mine.items():
        assert value.item() == pytest.approx(arrays[f"loss/{name}"].item(), rel=2e-5), name
    assert head.tokens.grad is not None
    named = {"visual.anomaly_token": head.tokens.grad[0], "visual.normal_token": head.tokens.grad[1]}
    named |= {f"visual.ln_post.{part}": getattr(head.norm, part).grad for part in ("weight", "bias")}
    names = {"anchors": "anchor_queries", "positions": "pos_encoding", "res_scale": "res_scale"}
    names |= {f"{part}.weight": f"{part}_proj.weight" for part in "qkv"}
    names |= {f"{norm}.{part}": f"{norm}.{part}" for norm in ("q_norm", "k_norm") for part in ("weight", "bias")}
    for part in ("weight", "bias"):
        names |= {f"gate.{part}": f"gate.0.{part}", f"out.{part}": f"out_proj.{part}"}
    for tap, (sca, saf) in enumerate(zip(head.sca, head.saf, strict=True), start=1):
        for ours, theirs in names.items():
            named[f"cross_attn.layer_attentions.layer_{tap}.{theirs}"] = sca.get_parameter(ours).grad
        for ours, theirs in (("fc1", "mlp.0"), ("fc2", "mlp.3")):
            for part in ("weight", "bias"):
                named[f"layer_transforms.layer_{tap}.{theirs}.{part}"] = saf.get_parameter(f"{ours}.{part}").grad
    expected = {k.removeprefix("grad_l2norm/"): v.item() for k, v in arrays.items() if k.startswith("grad_l2norm/")}
    # A shift of all keys changes no softmax: the gradient of its bias is zero but for rounding.
    assert {name: gradient.norm().item() for name, gradient in named.items()} == pytest.approx(
        expected, rel=2e-4, abs=1e-7
    )


def test_the_first_steps_of_visualad_equal_the_reference(visualad) -> None:
    head, encoder, arrays = visualad
    # So long a schedule that its rates are still the first ones.
    trainer = VisualADTrainer(head, encoder, FixedBatch(arrays), Schedule(steps=10_000_000, batch=2), VisualADOptions())
    trainer.module.train()
    for _ in range(6):
        trainer.advance()
    assert trainer.losses == pytest.approx(arrays["train/losses_before_step_0_to_5"].tolist(), rel=1e-5)


def test_focal_is_finite_and_small_for_sure_and_right_maps() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[:, :4] = 1
    right = torch.where(masks > 0, 200.0, -200.0).requires_grad_()
    wrong = (-right).detach().requires_grad_()
    for logits in (right, wrong):
        focal(logits, masks).backward()
        assert torch.isfinite(logits.grad).all()
    assert focal(right, masks) < 1e-6
    assert focal(wrong, masks).item() == pytest.approx(-math.log(2e-5), rel=1e-3)
    assert dice(right, masks) < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**31), st.sampled_from(["cosine", "cosine_patch", "l2", "l1"]), st.data())
def test_shares_of_a_batch_sum_to_the_loss_of_the_whole(count: int, seed: int, kind, data) -> None:
    """What makes several processes equal one, whatever part of the batch each got."""
    cut = data.draw(st.integers(0, count))
    make = torch.Generator().manual_seed(seed)
    wanted, rebuilt = torch.randn(2, count, 5, 3, generator=make).double().unbind(0)
    maps = torch.randn(2, count, 6, 6, generator=make).unbind(0)
    masks = (torch.rand(count, 6, 6, generator=make) > 0.7).float()
    tokens = torch.randn(count, 2, 4, generator=make)
    labels = masks.flatten(1).amax(1)
    parts = [slice(0, cut), slice(cut, count)] if 0 < cut < count else [slice(0, count)]
    one = sum(float(pair_loss(wanted[p], rebuilt[p], kind, count)) for p in parts)
    assert np.isclose(one, float(pair_loss(wanted, rebuilt, kind)), rtol=1e-5, atol=1e-7)
    two = sum(float(detection_loss([m[p] for m in maps], tokens[p], masks[p], labels[p], count)) for p in parts)
    assert np.isclose(two, float(detection_loss(maps, tokens, masks, labels)), rtol=1e-4)


def test_the_cosine_over_the_whole_map_weighs_strong_patches_more() -> None:
    wanted = torch.tensor([[[10.0, 0.0], [1.0, 0.0]]])
    weak_wrong = torch.tensor([[[10.0, 0.0], [0.0, 1.0]]])
    assert pair_loss(wanted, weak_wrong, "cosine") < 0.02
    assert pair_loss(wanted, weak_wrong, "cosine_patch") == pytest.approx(0.5)

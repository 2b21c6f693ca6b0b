"""Every stage of every family against the arrays that the families' public reference code computed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.encoders import Encoder, compact, from_checkpoint
from pipelines.encoders.positions import resize_table, rotary_table

NAMES = ("dino_vits16_d2", "dinov2_vits14_d2", "dinov2_vits14_reg4_d2", "dinov3_vits16_d2")
TOLERANCE = 2e-4
"""For features, whose range is about 5."""


@pytest.fixture(scope="module")
def encoders(procedural: SimpleNamespace) -> dict[str, Encoder]:
    return {name: from_checkpoint(procedural.stored_state(name)) for name in NAMES}


def stages(encoder: Encoder, images: Tensor, prefix_kept: bool) -> dict[str, Tensor]:
    """All the stages that the reference files name."""
    size = images.shape[-2:]
    rows, cols = encoder.check_size(*size)
    tokens = encoder.tokens(images)
    first, second = encoder.run(tokens, size, (1, 2))
    out = {"tokens_in": tokens, "block1_out": first, "block2_out": second, "final_norm": encoder.norm(second)}
    if encoder.learned is not None:
        positions = encoder.learned.class_position(), encoder.learned.patch_positions(rows, cols)
        out["pos_embed_used"] = torch.cat(positions, dim=1)
    else:
        assert encoder.config.rope_base is not None
        out["rope_cos"], out["rope_sin"] = rotary_table(rows, cols, encoder.config.head_width, encoder.config.rope_base)
    # DINO v1's reference keeps the class token here, the others drop all prefix tokens.
    out["intermediate_n2_first"] = encoder.norm(first) if prefix_kept else encoder.features(images, last=2)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_equals_the_reference(name: str, encoders: dict[str, Encoder], procedural: SimpleNamespace) -> None:
    expected = procedural.stored(name)
    tags = sorted({key.split("/")[0] for key in expected})
    assert len(tags) == 3
    for tag in tags:
        got = stages(encoders[name], procedural.image(tag), name == "dino_vits16_d2")
        for key in (key for key in expected if key.startswith(f"{tag}/")):
            value = got[key.split("/")[1]]
            axis = 0 if "rope" in key else 1
            subset = value.index_select(axis, torch.tensor(procedural.kept(value.shape[axis])))
            torch.testing.assert_close(subset, expected[key], atol=TOLERANCE, rtol=0, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_full_reference_arrays(name: str, encoders: dict[str, Encoder], procedural: SimpleNamespace) -> None:
    read = procedural.full(name)
    for tag in sorted({key.split("/")[0] for key in procedural.stored(name)}):
        torch.testing.assert_close(procedural.image(tag), read(f"{tag}/input"), atol=0, rtol=0)
        got = stages(encoders[name], read(f"{tag}/input"), name == "dino_vits16_d2")
        for key in (key for key in procedural.stored(name) if key.startswith(f"{tag}/")):
            torch.testing.assert_close(got[key.split("/")[1]], read(key), atol=TOLERANCE, rtol=0)


def test_antialiased_rule_against_full_reference(procedural: SimpleNamespace) -> None:
    """The rule of DINOv2's variants with registers, and of ViTAD's published encoder, at many sizes."""
    path = procedural.golden / "vitad" / "timm_pos_embed_resize.npz"
    if not path.is_file():
        pytest.skip(f"the full reference arrays are not here ({path}; set EDGE_INSPECT_GOLDEN to their folder)")
    with np.load(path) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    native = arrays.pop("pos_embed_14x14_with_cls")
    assert len(arrays) == 4
    for key, expected in arrays.items():
        rows, cols = map(int, key.removeprefix("resized_").split("x"))
        torch.testing.assert_close(expected[:, :1], native[:, :1])
        ours = resize_table(native[:, 1:], rows, cols, "bicubic_antialias")
        torch.testing.assert_close(ours, expected[:, 1:], atol=1e-5, rtol=0)


def test_features_keep_patches_only(encoders: dict[str, Encoder], procedural: SimpleNamespace) -> None:
    images = procedural.image("2x3x64x96")
    encoder = encoders["dinov3_vits16_d2"]
    (raw,) = encoder.taps(images, blocks=(2,))
    assert raw.shape == (2, 4 * 6, 384)
    torch.testing.assert_close(encoder.features(images), encoder.norm(raw))
    whole = encoder.norm(encoder.run(encoder.tokens(images), (64, 96), (2,))[0])
    torch.testing.assert_close(encoder.features(images), whole[:, 5:])


def plain_compact(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """The compact encoder, head by head from its description: patch tokens after each block; final norm last.

    Pre-norm blocks with LayerScale; RoPE of base 100 on patches, coordinates (i + 1/2) / 14 * 2 - 1; GELU's tanh form.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    weight = state["patch_embed.proj.weight"]
    rows, cols = images.shape[-2] // 16, images.shape[-1] // 16
    tiles = images.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(len(images), rows * cols, -1)
    patches = tiles @ weight.reshape(len(weight), -1).T + state["patch_embed.proj.bias"]
    prefix = torch.cat((state["cls_token"], state["storage_tokens"]), dim=1)
    x = torch.cat((prefix.expand(len(images), -1, -1), patches), dim=1)
    centres = [[(i + 0.5) / 14 * 2 - 1, (j + 0.5) / 14 * 2 - 1] for i in range(rows) for j in range(cols)]
    periods = [100 ** (j / 16) for j in range(16)]
    angles = torch.tensor([[2 * math.pi * c / t for c in centre for t in periods] * 2 for centre in centres])
    angles = torch.cat((torch.zeros(prefix.shape[1], 64), angles))

    def turned(x: Tensor) -> Tensor:
        return x * angles.cos() + torch.cat((-x[..., 32:], x[..., :32]), dim=-1) * angles.sin()

    outputs = []
    for block in range(12):
        name = f"blocks.{block}"
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").split(192, dim=-1)
        heads = []
        for head in range(3):
            part = slice(64 * head, 64 * head + 64)
            likeness = turned(q[..., part]) @ turned(k[..., part]).transpose(1, 2) / 8
            heads.append(likeness.softmax(-1) @ v[..., part])
        x = x + state[f"{name}.ls1.gamma"] * linear(torch.cat(heads, dim=-1), f"{name}.attn.proj")
        hidden = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + state[f"{name}.ls2.gamma"] * linear(hidden, f"{name}.mlp.fc2")
        outputs.append(x[:, prefix.shape[1] :])
    return [*outputs, norm(outputs[-1], "norm")]


def compact_inputs(procedural: SimpleNamespace, tag: str) -> Tensor:
    mean, std = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    images: Tensor = procedural.array(f"compact/{tag}", [int(n) for n in tag.split("x")], 0.5, 0.5)
    return (images - mean) / std


@pytest.mark.parametrize("tag", ["1x3x224x224", "1x3x256x320"])
def test_compact_encoder_equals_the_plain_formulation(tag: str, procedural: SimpleNamespace) -> None:
    """Whatever its weights: those that ship now have no arrays of an independent reference, so here is one."""
    encoder = compact()
    state = {key.replace("register_tokens", "storage_tokens"): value for key, value in encoder.state_dict().items()}
    images = compact_inputs(procedural, tag)
    expected = plain_compact(state, images)
    for block, tap in zip((6, 9, 12), encoder.taps(images, blocks=(6, 9, 12)), strict=True):
        torch.testing.assert_close(tap, expected[block - 1], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(encoder.features(images), expected[-1], atol=TOLERANCE, rtol=0)


def test_first_compact_encoder_equals_its_reference(procedural: SimpleNamespace) -> None:
    """The stored arrays are those of the first compact encoder, which no longer ships."""
    path = procedural.golden.parent / "data" / "compact_encoder_v0.safetensors"
    if not path.is_file():
        pytest.skip(f"the first compact encoder is not here ({path})")
    encoder = from_checkpoint(path)
    expected = procedural.stored("compact_encoder_v0")
    state = {key.replace("register_tokens", "storage_tokens"): value for key, value in encoder.state_dict().items()}
    for tag in ("1x3x224x224", "1x3x256x320"):
        images = compact_inputs(procedural, tag)
        plain = plain_compact(state, images)
        for block, tap in zip((6, 9, 12), encoder.taps(images, blocks=(6, 9, 12)), strict=True):
            reference = expected[f"{tag}/block{block}_out_patches"]
            torch.testing.assert_close(tap[:, ::7], reference, atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(plain[block - 1][:, ::7], reference, atol=TOLERANCE, rtol=0)
        reference = expected[f"{tag}/final_norm_patches"]
        torch.testing.assert_close(encoder.features(images)[:, ::7], reference, atol=TOLERANCE, rtol=0)

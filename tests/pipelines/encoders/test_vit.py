"""The model itself: against a plain float64 formulation, and the promises of its interface."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.encoders import CONFIGS, Encoder, EncoderConfig, create, from_checkpoint
from pipelines.encoders.positions import KEPT_SIZES, resize_table, rotary_table
from pipelines.errors import ImageError, WeightsError

VARIANTS: dict[str, dict[str, Any]] = {
    "dino": {"family": "dino", "patch": 8, "grid": 4},
    "dinov2": {"family": "dinov2", "patch": 14, "grid": 5},
    "dinov2 with registers": {"family": "dinov2", "patch": 14, "grid": 5, "registers": 4},
    "dinov3": {"family": "dinov3", "depth": 3},
    "dinov3 plus": {"family": "dinov3", "swiglu": True, "width": 192},
}
GRIDS = ((4, 4), (5, 5), (3, 7), (6, 2), (1, 5), (8, 8))


def plain_positions(table: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """DINO's resize rule, written out: bicubic (a = -0.75), edges repeated, sampling driven by (n + 0.1) / M."""
    side = math.isqrt(table.shape[0])
    if rows == cols == side:
        return table

    def weights(n: int) -> np.ndarray:
        matrix = np.zeros((n, side))
        for i in range(n):
            at = (i + 0.5) * side / (n + 0.1) - 0.5
            base = math.floor(at)
            for offset in (-1, 0, 1, 2):
                d = abs(at - (base + offset))
                a = -0.75
                if d <= 1:
                    w = (a + 2) * d**3 - (a + 3) * d**2 + 1
                else:
                    w = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
                matrix[i, min(max(base + offset, 0), side - 1)] += w
        return matrix

    image = table.reshape(side, side, -1)
    return np.einsum("ri,cj,ijd->rcd", weights(rows), weights(cols), image).reshape(rows * cols, -1)


def plain(state: dict[str, Tensor], images: Tensor, heads: int, eps: float) -> list[np.ndarray]:
    """All tokens after each block, from a state dict of the original form, in float64 and one head at a time."""
    w = {key: value.double().numpy() for key, value in state.items()}
    x = images.double().numpy()
    D, _, P, _ = w["patch_embed.proj.weight"].shape
    B, _, H, W = x.shape
    rows, cols = H // P, W // P
    patches = x.reshape(B, 3, rows, P, cols, P).transpose(0, 2, 4, 1, 3, 5).reshape(B, rows * cols, -1)
    tokens = patches @ w["patch_embed.proj.weight"].reshape(D, -1).T + w["patch_embed.proj.bias"]
    head = w["cls_token"]
    registers = w.get("register_tokens", w.get("storage_tokens", np.zeros((1, 0, D))))
    if "pos_embed" in w:
        table = w["pos_embed"][0]
        if registers.shape[1]:
            whole = resize_table(state["pos_embed"][:, 1:], rows, cols, "bicubic_antialias")[0].double().numpy()
        else:
            whole = plain_positions(table[1:], rows, cols)
        head, tokens = head + table[:1], tokens + whole
    x = np.concatenate([head.repeat(B, 0), registers.repeat(B, 0), tokens], axis=1)
    prefix = 1 + registers.shape[1]

    def norm(v: np.ndarray, key: str) -> np.ndarray:
        v = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + eps)
        return v * w[f"{key}.weight"] + w[f"{key}.bias"]

    def linear(v: np.ndarray, key: str) -> np.ndarray:
        return v @ w[f"{key}.weight"].T + w[f"{key}.bias"] * w.get(f"{key}.bias_mask", 1.0)

    d = D // heads
    j = np.arange(d // 4)
    periods = 100.0 ** (2 * j / (d / 2))
    outputs = []
    for i in range(sum(key.endswith("norm1.weight") for key in w)):
        b = f"blocks.{i}"
        qkv = linear(norm(x, f"{b}.norm1"), f"{b}.attn.qkv").reshape(B, -1, 3, heads, d)
        y = np.zeros_like(x).reshape(B, -1, heads, d)
        for h in range(heads):
            q, k, v = (qkv[:, :, part, h].copy() for part in range(3))
            if "pos_embed" not in w:
                for r in range(rows):
                    for c in range(cols):
                        angle = (
                            2
                            * np.pi
                            * np.concatenate(
                                [((r + 0.5) / rows * 2 - 1) / periods, ((c + 0.5) / cols * 2 - 1) / periods]
                            )
                        )
                        cos, sin = np.tile(np.cos(angle), 2), np.tile(np.sin(angle), 2)
                        for t in (q, k):
                            token = t[:, prefix + r * cols + c]
                            turned = np.concatenate([-token[:, d // 2 :], token[:, : d // 2]], axis=-1)
                            t[:, prefix + r * cols + c] = token * cos + turned * sin
            attention = q @ k.transpose(0, 2, 1) / math.sqrt(d)
            attention = np.exp(attention - attention.max(-1, keepdims=True))
            y[:, :, h] = attention / attention.sum(-1, keepdims=True) @ v
        x = x + linear(y.reshape(x.shape), f"{b}.attn.proj") * w.get(f"{b}.ls1.gamma", 1.0)
        z = norm(x, f"{b}.norm2")
        if f"{b}.mlp.w1.weight" in w:
            gate = linear(z, f"{b}.mlp.w1")
            z = linear(gate / (1 + np.exp(-gate)) * linear(z, f"{b}.mlp.w2"), f"{b}.mlp.w3")
        else:
            z = linear(z, f"{b}.mlp.fc1")
            z = linear(z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2))), f"{b}.mlp.fc2")
        x = x + z * w.get(f"{b}.ls2.gamma", 1.0)
        outputs.append(x)
    return outputs


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, procedural: SimpleNamespace) -> tuple[dict[str, Tensor], Encoder]:
    state = procedural.weights(procedural.shapes(**VARIANTS[request.param]))
    return state, from_checkpoint(state)


@pytest.fixture
def encoder(procedural: SimpleNamespace) -> Encoder:
    return from_checkpoint(procedural.weights(procedural.shapes("dinov2", patch=14, grid=5, registers=4, depth=4)))


def test_equals_the_plain_formulation(variant: tuple[dict[str, Tensor], Encoder], procedural: SimpleNamespace) -> None:
    state, encoder = variant
    for rows, cols in GRIDS[:4]:
        size = rows * encoder.patch, cols * encoder.patch
        images = procedural.array("plain", (2, 3, *size), 2.0)
        expected = plain(state, images, encoder.width // 64, encoder.config.norm_eps)
        got = encoder.run(encoder.tokens(images), size, range(1, encoder.depth + 1))
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-4)


@pytest.mark.parametrize("grid", GRIDS)
def test_dino_position_rule_written_out(grid: tuple[int, int], procedural: SimpleNamespace) -> None:
    table = procedural.array("table", (1, 25, 16), 1.0)
    ours = resize_table(table, *grid, "bicubic_offset")
    np.testing.assert_allclose(ours[0].numpy(), plain_positions(table[0].double().numpy(), *grid), atol=1e-5)


def test_bilinear_rule_of_clip(procedural: SimpleNamespace) -> None:
    """Doubling a grid by bilinear sampling mixes neighbours 3:1."""
    table = procedural.array("table", (1, 4, 8), 1.0)
    ours = resize_table(table, 4, 4, "bilinear").reshape(4, 4, 8)
    a, b, c, d = table[0]
    torch.testing.assert_close(ours[0, 0], a)
    torch.testing.assert_close(ours[1, 1], (9 * a + 3 * b + 3 * c + d) / 16)
    torch.testing.assert_close(ours[2, 1], (3 * a + b + 9 * c + 3 * d) / 16)


def test_native_count_but_not_native_shape_is_resized(procedural: SimpleNamespace) -> None:
    """2 x 8 patches are as many as 4 x 4, and are laid out otherwise."""
    table = procedural.array("table", (1, 16, 8), 1.0)
    assert torch.equal(resize_table(table, 4, 4, "bicubic_offset"), table)
    assert not torch.allclose(resize_table(table, 2, 8, "bicubic_offset"), table)


def test_compact_rope_keeps_relative_offsets_at_every_size() -> None:
    """On its fixed reference grid a token's angles depend on its place alone, not on the size of the input."""
    small, large = rotary_table(6, 6, 64, 100.0, reference=14), rotary_table(9, 12, 64, 100.0, reference=14)
    torch.testing.assert_close(small.reshape(2, 6, 6, 64), large.reshape(2, 9, 12, 64)[:, :6, :6])
    torch.testing.assert_close(rotary_table(14, 14, 64, 100.0, reference=14), rotary_table(14, 14, 64, 100.0))


def test_taps_are_raw_patches_in_the_order_asked(encoder: Encoder, procedural: SimpleNamespace) -> None:
    images = procedural.array("x", (2, 3, 42, 84), 2.0)
    fourth, second = encoder.taps(images, blocks=(4, 2))
    outputs = encoder.run(encoder.tokens(images), (42, 84), (2, 4))
    assert torch.equal(second, outputs[0][:, 5:])
    assert torch.equal(fourth, outputs[1][:, 5:])
    assert second.shape == (2, 3 * 6, 128)
    torch.testing.assert_close(encoder.features(images, last=3), encoder.norm(second))
    torch.testing.assert_close(encoder(images), encoder.norm(fourth))


def test_stops_after_the_last_tapped_block(encoder: Encoder, procedural: SimpleNamespace) -> None:
    """Blocks that nobody asked for are not run: they may even be broken."""
    images = procedural.array("x", (1, 3, 70, 70), 2.0)
    whole = encoder.taps(images, (1, 2, 3, 4))
    ran: list[int] = []
    for number, block in enumerate(encoder.blocks, start=1):
        block.register_forward_hook(lambda *_, n=number: ran.append(n))
    cut = encoder.taps(images, (2,))
    assert ran == [1, 2]
    assert torch.equal(cut[0], whole[1])


def test_batch_items_do_not_touch_each_other(
    variant: tuple[dict[str, Tensor], Encoder], procedural: SimpleNamespace
) -> None:
    _, encoder = variant
    images = procedural.array("x", (3, 3, 2 * encoder.patch, 5 * encoder.patch), 2.0)
    whole = encoder.features(images)
    for i in range(3):
        torch.testing.assert_close(encoder.features(images[i : i + 1]), whole[i : i + 1], atol=1e-5, rtol=0)


def test_extra_tokens_come_first_with_the_class_position(encoder: Encoder, procedural: SimpleNamespace) -> None:
    images = procedural.array("x", (2, 3, 42, 70), 2.0)
    pair = procedural.array("pair", (2, 128), 0.3)
    assert encoder.learned is not None
    tokens = encoder.tokens(images, extra=pair)
    assert tokens.shape == (2, 2 + 5 + 15, 128)
    torch.testing.assert_close(tokens[1, :2], pair + encoder.learned.class_position()[0])
    assert torch.equal(tokens[:, 2:], encoder.tokens(images))
    assert torch.equal(tokens, encoder.tokens(images, extra=pair.expand(2, 2, 128)))
    other = procedural.array("positions", (2, 128), 0.3)
    torch.testing.assert_close(encoder.tokens(images, pair, other)[0, :2], pair + other)


def test_extra_tokens_are_not_rotated(procedural: SimpleNamespace) -> None:
    """With RoPE an extra token is another class token: a copy of the class token stays its copy through every block."""
    encoder = from_checkpoint(procedural.weights(procedural.shapes("dinov3", depth=3)))
    images = procedural.array("x", (2, 3, 48, 80), 2.0)
    tokens = encoder.tokens(images, extra=encoder.cls_token[0])
    assert torch.equal(tokens[:, 0], tokens[:, 1])
    for output in encoder.run(tokens, (48, 80), (1, 2, 3), extra=1):
        torch.testing.assert_close(output[:, 0], output[:, 1], atol=1e-5, rtol=0)
    without = encoder.run(encoder.tokens(images), (48, 80), (1,))[0]
    assert not torch.allclose(output[:, 1:], without, atol=1e-3)


def test_extra_tokens_train_through_a_frozen_encoder(encoder: Encoder, procedural: SimpleNamespace) -> None:
    images = procedural.array("x", (1, 3, 42, 70), 2.0)
    with torch.inference_mode():
        encoder.features(images)  # tables made here must not spoil training later
    pair = procedural.array("pair", (2, 128), 0.3).requires_grad_()
    encoder.run(encoder.tokens(images, pair), (42, 70), (3,), extra=2)[0][:, :2].sum().backward()
    assert pair.grad is not None
    assert pair.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("size", "words"),
    [((500, 518), ("490 or 504", "518")), ((3, 71), ("nearest height is 14", "70 or 84")), ((0, 14), ("14",))],
)
def test_size_the_patch_does_not_divide(size: tuple[int, int], words: tuple[str, ...], encoder: Encoder) -> None:
    with pytest.raises(ImageError) as error:
        encoder.check_size(*size)
    for word in words:
        assert word in str(error.value)
    with pytest.raises(ImageError, match="does not fit"):
        encoder.features(torch.zeros(1, 3, *size))


@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([8, 14, 16]))
@settings(max_examples=100, deadline=None)
def test_sizes_named_by_the_error_do_fit(height: int, width: int, patch: int) -> None:
    with torch.device("meta"):
        encoder = Encoder(CONFIGS["dino_vits16"].with_(patch=patch, depth=1, width=64, heads=1, hidden=64))
    try:
        assert encoder.check_size(height, width) == (height / patch, width / patch)
    except ImageError as error:
        tail = str(error).split("the nearest height is ")[1]
        for part, pixels in zip(tail.split(", the nearest width "), (height, width), strict=True):
            for option in part.split(" or "):
                assert int(option) % patch == 0
                assert abs(int(option) - pixels) < patch


def test_wrong_channels_and_blocks(encoder: Encoder) -> None:
    with pytest.raises(ImageError, match="RGB"):
        encoder.features(torch.zeros(1, 1, 70, 70))
    for blocks in ((), (0,), (5,), (1, 9)):
        with pytest.raises(WeightsError, match="blocks 1 to 4"):
            encoder.taps(torch.zeros(1, 3, 70, 70), blocks)
    for last in (0, 5):
        with pytest.raises(WeightsError, match="1 to 4"):
            encoder.features(torch.zeros(1, 3, 70, 70), last)


def test_half_precision_keeps_float32_tables(
    variant: tuple[dict[str, Tensor], Encoder], procedural: SimpleNamespace
) -> None:
    """Tables are computed in float32 whether the model is halved before or after its first use."""
    _, encoder = variant
    size = 6 * encoder.patch, 9 * encoder.patch
    images = procedural.array("x", (1, 3, *size), 2.0)
    fresh = copy.deepcopy(encoder).half()
    expected = encoder.features(images)
    used = copy.deepcopy(encoder).half()
    for half in (fresh, used):
        got = half.features(images.half())
        assert got.dtype == torch.float16
        torch.testing.assert_close(got.float(), expected, atol=0.03, rtol=0)
        assert (got.float() - expected).abs().mean() < 2e-3


def test_prepared_tables_survive_loading_weights(encoder: Encoder, procedural: SimpleNamespace) -> None:
    images = procedural.array("x", (1, 3, 42, 98), 2.0)
    expected = encoder.features(images)
    other = Encoder(encoder.config)
    other.prepare(42, 98)
    other.load_state_dict(encoder.state_dict())
    assert len(list(other.buffers())) == 1
    torch.testing.assert_close(other.features(images), expected)
    assert set(other.state_dict()) == set(encoder.state_dict())  # tables are no weights


def test_tables_follow_a_table_in_training(encoder: Encoder, procedural: SimpleNamespace) -> None:
    images = procedural.array("x", (1, 3, 42, 98), 2.0)
    assert encoder.learned is not None
    encoder.features(images)
    encoder.requires_grad_(True)
    encoder.features(images).square().mean().backward()
    with torch.no_grad():
        encoder.learned.table += 1.0
        after = encoder.tokens(images)
    torch.testing.assert_close(
        after[0, 5:],
        encoder.patch_embed(images)[0] + resize_table(encoder.learned.table[:, 1:], 3, 7, "bicubic_antialias")[0],
    )


def test_only_some_sizes_are_kept(encoder: Encoder) -> None:
    for cols in range(1, KEPT_SIZES + 4):
        encoder.tokens(torch.zeros(1, 3, 14, 14 * cols))
    assert len(list(encoder.buffers())) == KEPT_SIZES


def test_create_is_seeded_and_spread() -> None:
    config = CONFIGS["compact"]
    one, same, other = (create("compact", seed).blocks[3].attn.qkv.weight for seed in (1, 1, 2))  # type: ignore[union-attr]
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (3 * config.width, config.width)
    assert 0.015 < one.std() < 0.02
    with pytest.raises(WeightsError, match="dinov3_vits16"):
        create("dinov3_vitxs16")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_builds(name: str) -> None:
    config = CONFIGS[name]
    assert EncoderConfig.from_dict(config.to_dict()) == config
    with torch.device("meta"):
        encoder = Encoder(config)
        features = encoder.run(
            encoder.tokens(torch.zeros(1, 3, 2 * config.patch, 3 * config.patch)),
            (2 * config.patch, 3 * config.patch),
            (1, config.depth),
        )
    assert features[-1].shape == (1, encoder.prefix + 6, config.width)
    assert config.head_width == 64


PARAMETERS = {  # millions, as listed on the public model pages
    "dino_vits16": 21.67,
    "dino_vitb8": 85.8,
    "dinov2_vits14": 22.06,
    "dinov2_vitl14": 304.4,
    "dinov3_vits16": 21.6,
    "dinov3_vits16plus": 28.7,
    "dinov3_vitb16": 85.7,
    "dinov3_vitl16": 303.1,
    "clip_vitl14": 303.2,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Encoder(CONFIGS[name]).parameters())
    assert count / 1e6 == pytest.approx(PARAMETERS[name], rel=0.004)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": 7},
        {"depth": 0},
        {"grid": None},
        {"rope_base": 100.0},
        {"table_resize": None},
        {"activation": "relu"},
        {"registers": -1},
    ],
)
def test_impossible_configurations(changes: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="dino_vits16"):
        CONFIGS["dino_vits16"].with_(**changes)


def test_configuration_of_another_version() -> None:
    values = CONFIGS["compact"].to_dict()
    with pytest.raises(WeightsError, match="unknown windows"):
        EncoderConfig.from_dict({**values, "windows": 4})
    del values["patch"]
    with pytest.raises(WeightsError, match="patch"):
        EncoderConfig.from_dict(values)

"""Every stage of every family against the arrays that the families' public reference code computed."""

from __future__ import annotations

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


def test_compact_encoder_equals_its_reference(procedural: SimpleNamespace) -> None:
    encoder = compact()
    expected = procedural.stored("compact_encoder_v0")
    mean, std = torch.tensor(encoder.mean).view(3, 1, 1), torch.tensor(encoder.std).view(3, 1, 1)
    for tag in ("1x3x224x224", "1x3x256x320"):
        images = procedural.array(f"compact/{tag}", [int(n) for n in tag.split("x")], 0.5, 0.5)
        images = (images - mean) / std
        taps = encoder.taps(images, blocks=(6, 9, 12))
        for block, tap in zip((6, 9, 12), taps, strict=True):
            reference = expected[f"{tag}/block{block}_out_patches"]
            torch.testing.assert_close(tap[:, ::7], reference, atol=TOLERANCE, rtol=0)
        reference = expected[f"{tag}/final_norm_patches"]
        torch.testing.assert_close(encoder.features(images)[:, ::7], reference, atol=TOLERANCE, rtol=0)

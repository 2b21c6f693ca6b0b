"""Published forms of weights: recognised, mapped, and refused when they do not fit."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from pipelines.encoders import Encoder, compact, create, from_checkpoint, save
from pipelines.errors import WeightsError

State = dict[str, Tensor]


@pytest.fixture
def original(procedural: SimpleNamespace) -> Callable[..., State]:
    def make(family: str = "dino", **sizes: Any) -> State:
        state: State = procedural.weights(procedural.shapes(family, **sizes))
        return state

    return make


def thirds(key: str, tensor: Tensor, names: tuple[str, str, str]) -> State:
    return {key.replace("qkv", name): part.clone() for name, part in zip(names, tensor.chunk(3), strict=True)}


def to_hugging_face(state: State, kind: str) -> State:
    """The original form's tensors under the names of a Hugging Face class, as its conversion script lays them out."""
    new = ", in memory" in kind or "DINOv3" in kind
    block = {
        "ViTModel": "encoder.layer.",
        "ViTModel, in memory": "layers.",
        "DINOv3ViTModel": "layer.",
        "DINOv3ViTModel gated": "layer.",
        "DINOv3ViTModel, in memory": "model.layer.",
        "DINOv3ViTModel gated, in memory": "model.layer.",
    }.get(kind, "encoder.layer.")
    attention = ("q_proj", "k_proj", "v_proj") if new else ("attention.query", "attention.key", "attention.value")
    table = [
        ("cls_token", "embeddings.cls_token"),
        ("mask_token", "embeddings.mask_token"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("storage_tokens", "embeddings.register_tokens"),
        ("register_tokens", "embeddings.register_tokens"),
        ("patch_embed.proj.", "embeddings.patch_embeddings." + ("" if "DINOv3" in kind else "projection.")),
        ("attn.proj.", "attention.o_proj." if new else "attention.output.dense."),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        ("mlp.w1.", "mlp.gate_proj."),
        ("mlp.w2.", "mlp.up_proj."),
        ("mlp.w3.", "mlp.down_proj."),
    ]
    if "DINOv3" in kind:
        table += [("mlp.fc1.", "mlp.up_proj."), ("mlp.fc2.", "mlp.down_proj.")]
    if kind.startswith("ViT"):
        table += [(".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after.")]
        if not new:
            table += [("mlp.fc1.", "intermediate.dense."), ("mlp.fc2.", "output.dense.")]
    out: State = {}
    for key, tensor in state.items():
        if key.endswith(("periods", "bias_mask")):
            continue
        if ".qkv." in key:
            for name, part in thirds(key.replace("attn.qkv", "attention.qkv"), tensor, attention).items():
                if not ("DINOv3" in kind and name.endswith("k_proj.bias")):
                    out[re.sub(r"^blocks\.", block, name)] = part
            continue
        name = key
        if name.startswith("norm.") and "DINOv3" not in kind:
            name = "layer" + name
        for ours, theirs in table:
            if ours in name:
                name = name.replace(ours, theirs)
                break
        name = re.sub(r"^blocks\.", block, name)
        out[name] = tensor[None] if name == "embeddings.mask_token" and "DINOv3" in kind else tensor
    if kind.startswith("ViT"):
        out |= {"pooler.dense.weight": torch.zeros(128, 128), "pooler.dense.bias": torch.zeros(128)}
    return out


def openai_clip(original: Callable[..., State]) -> State:
    """An OpenAI CLIP image tower, made of a DINO one: the layers are the same, but for norms and the patch bias."""
    state = original("dino", patch=14, grid=4)
    out: State = {
        "conv1.weight": state["patch_embed.proj.weight"],
        "class_embedding": state["cls_token"][0, 0],
        "positional_embedding": state["pos_embed"][0],
        "proj": torch.zeros(128, 64),
    }
    for theirs, ours in (("norm1", "ln_pre"), ("norm2", "ln_post")):
        out |= {f"{ours}.{kind}": state[f"blocks.0.{theirs}.{kind}"].roll(1) for kind in ("weight", "bias")}
    names = {
        "norm1.": "ln_1.",
        "norm2.": "ln_2.",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj.": "attn.out_proj.",
        "mlp.fc1.": "mlp.c_fc.",
        "mlp.fc2.": "mlp.c_proj.",
    }
    for key in (key for key in state if key.startswith("blocks.")):
        name = key.replace("blocks.", "transformer.resblocks.")
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        out[name] = state[key]
    return {f"visual.{key}": tensor for key, tensor in out.items()}


def hugging_face_clip(state: State) -> State:
    """The same image tower under Hugging Face names."""
    out: State = {}
    fixed = {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    names = {
        "ln_pre.": "pre_layrnorm.",
        "ln_post.": "post_layernorm.",
        "transformer.resblocks.": "encoder.layers.",
        "ln_1.": "layer_norm1.",
        "ln_2.": "layer_norm2.",
        "attn.out_proj.": "self_attn.out_proj.",
        "mlp.c_fc.": "mlp.fc1.",
        "mlp.c_proj.": "mlp.fc2.",
    }
    for key, tensor in state.items():
        name = key.removeprefix("visual.")
        if name == "proj":
            continue
        if "in_proj_" in name:
            stem, kind = name.replace("transformer.resblocks.", "encoder.layers.").split("attn.in_proj_")
            for third, part in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{stem}self_attn.{third}_proj.{kind}"] = part.clone()
            continue
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        out[fixed.get(name, name)] = tensor
    return out


KINDS: dict[str, dict[str, Any]] = {
    "ViTModel": {"family": "dino", "patch": 16, "grid": 3},
    "Dinov2Model": {"family": "dinov2", "patch": 14, "grid": 5},
    "Dinov2WithRegistersModel": {"family": "dinov2", "patch": 14, "grid": 5, "registers": 4},
    "DINOv3ViTModel": {"family": "dinov3"},
    "DINOv3ViTModel gated": {"family": "dinov3", "swiglu": True},
}


@pytest.mark.parametrize("memory", ["", ", in memory"])
@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_form_gives_the_features_of_the_original(
    kind: str, memory: str, original: Callable[..., State], procedural: SimpleNamespace
) -> None:
    state = original(**KINDS[kind])
    theirs = to_hugging_face(state, kind + memory)
    recorded = json.loads((procedural.data / "hugging_face_keys.json").read_text())[kind + memory]
    assert {key: list(tensor.shape) for key, tensor in theirs.items()} == recorded
    a, b = from_checkpoint(state), from_checkpoint(theirs)
    assert a.config == b.config
    patch = a.patch
    for size in ((5 * patch, 5 * patch), (3 * patch, 7 * patch)):  # native for DINOv2, and neither native nor square
        images = procedural.array("x", (2, 3, *size), 2.0)
        torch.testing.assert_close(a.features(images, last=2), b.features(images, last=2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "kind", ["CLIPVisionModel", "CLIPVisionModel, version 5", "CLIPVisionModelWithProjection", "CLIPModel"]
)
def test_clip_forms_agree(kind: str, original: Callable[..., State], procedural: SimpleNamespace) -> None:
    openai = openai_clip(original)
    recorded = json.loads((procedural.data / "hugging_face_keys.json").read_text())[kind]
    prefix = "" if "version 5" in kind else "vision_model."
    theirs = {f"{prefix}{key}": tensor for key, tensor in hugging_face_clip(openai).items()}
    theirs |= {
        key: torch.zeros(shape) for key, shape in recorded.items() if key not in theirs
    }  # text tower, projections
    assert {key: list(tensor.shape) for key, tensor in theirs.items()} == recorded
    a, b = from_checkpoint(openai), from_checkpoint(theirs)
    assert a.config == b.config
    assert a.config.family == "clip"
    assert a.config.activation == "quick_gelu"
    images = procedural.array("x", (1, 3, 56, 84), 2.0)
    assert torch.equal(a.features(images), b.features(images))
    text = {
        "token_embedding.weight": torch.zeros(9, 8),
        "logit_scale": torch.tensor(1.0),
        "ln_final.bias": torch.zeros(8),
    }
    text |= {
        "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(3, 1),
        "positional_embedding": torch.zeros(2, 8),
    }
    assert torch.equal(from_checkpoint({**text, **openai}).features(images), a.features(images))
    bare = {key.removeprefix("visual."): tensor for key, tensor in openai.items()}
    assert torch.equal(from_checkpoint(bare).features(images), a.features(images))


def test_configurations_are_read_off_the_shapes(original: Callable[..., State]) -> None:
    config = from_checkpoint(original("dinov2", width=192, depth=5, patch=14, grid=3, registers=2)).config
    assert (config.family, config.width, config.depth, config.heads) == ("dinov2", 192, 5, 3)
    assert (config.registers, config.grid, config.table_resize) == (2, 3, "bicubic_antialias")
    v1 = from_checkpoint(original("dino", patch=8)).config
    assert (v1.patch, v1.norm_eps, v1.layer_scale) == (8, 1e-6, False)
    v3 = from_checkpoint(original("dinov3", swiglu=True)).config
    assert (v3.activation, v3.hidden, v3.registers, v3.norm_eps) == ("swiglu", 512, 4, 1e-5)


def test_a_whole_named_encoder_is_recognised_by_name(original: Callable[..., State]) -> None:
    state = original("dino", width=384, depth=12, patch=16, grid=14)
    assert from_checkpoint(state).config.name == "dino_vits16"
    assert from_checkpoint(state, name="dino_vits16").config.name == "dino_vits16"
    with pytest.raises(WeightsError, match=r"not the weights of dino_vitb16 .*width 384 instead of 768"):
        from_checkpoint(state, name="dino_vitb16")
    with pytest.raises(WeightsError, match=r"not the weights of dinov2_vits14 .*family dino instead of dinov2"):
        from_checkpoint(state, name="dinov2_vits14")
    with pytest.raises(WeightsError, match="has 6 heads, not 12"):
        from_checkpoint(state, name="dino_vits16", heads=12)
    with pytest.raises(WeightsError, match=r"'dino_vits32'; there are .*dino_vits16"):
        from_checkpoint(state, name="dino_vits32")


def test_key_bias_of_dinov3_is_masked(original: Callable[..., State], procedural: SimpleNamespace) -> None:
    state = original("dinov3")
    encoder = from_checkpoint(state)
    bias = encoder.state_dict()["blocks.0.attn.qkv.bias"]
    assert torch.equal(bias[128:256], torch.zeros(128))
    assert torch.equal(bias[:128], state["blocks.0.attn.qkv.bias"][:128])


def test_heads_of_an_unusual_width(original: Callable[..., State], procedural: SimpleNamespace) -> None:
    state = original("dino", width=96)
    with pytest.raises(WeightsError, match="heads="):
        from_checkpoint(state)
    with pytest.raises(WeightsError, match="5 heads do not divide"):
        from_checkpoint(state, heads=5)
    assert from_checkpoint(state, heads=3).config.heads == 3
    assert from_checkpoint(original("dinov3", width=192)).config.heads == 3  # 16 periods: heads are 64 wide
    with pytest.raises(WeightsError, match="says 3 heads, not 6"):
        from_checkpoint(original("dinov3", width=192), heads=6)


def test_compact_by_metadata_by_keys_and_by_name() -> None:
    encoder = compact()
    assert encoder.config.name == "compact"
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.cls_token.dtype == torch.float32
    state = encoder.state_dict()
    state = {key.replace("register_tokens", "storage_tokens"): tensor for key, tensor in state.items()}
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(from_checkpoint(state).features(images), encoder.features(images))
    assert torch.equal(from_checkpoint(encoder.state_dict(), name="compact").features(images), encoder.features(images))
    with pytest.raises(WeightsError, match="name"):
        from_checkpoint(encoder.state_dict())


def full_checkpoint(state: State) -> dict[str, Any]:
    """As DINO v1's training writes it: student and teacher with wrappers and heads, and the command line."""
    heads = {"head.mlp.0.weight": torch.zeros(4, 4), "head.last_layer.weight_g": torch.zeros(4, 1)}
    teacher = {f"backbone.{key}": tensor for key, tensor in state.items()} | heads
    student = {f"module.{key}": tensor * 0 for key, tensor in teacher.items()}
    arguments = argparse.Namespace(arch="vit_small", patch_size=16, lr=0.0005, norm_last_layer=False)
    return {"student": student, "teacher": teacher, "epoch": 800, "args": arguments, "optimizer": {"state": {}}}


def test_training_checkpoint_of_dino_v1(original: Callable[..., State], tmp_path: Path) -> None:
    state = original("dino")
    path = tmp_path / "dino_deitsmall16_pretrain_full_checkpoint.pth"
    torch.save(full_checkpoint(state), path)
    images = torch.randn(1, 3, 48, 64)
    assert torch.equal(from_checkpoint(path).features(images), from_checkpoint(state).features(images))
    student = {"student": {f"module.backbone.{key}": tensor for key, tensor in state.items()}}
    assert torch.equal(from_checkpoint(student).features(images), from_checkpoint(state).features(images))  # type: ignore[arg-type]


def test_training_checkpoint_of_dinov2(original: Callable[..., State]) -> None:
    """Teacher and student in one flat dict, blocks nested in chunks."""
    state = original("dinov2", patch=14, grid=5, depth=3)
    chunked = {re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", key): tensor for key, tensor in state.items()}
    whole = {f"teacher.backbone.{key}": tensor for key, tensor in chunked.items()}
    whole |= {f"student.backbone.{key}": tensor * 0 for key, tensor in chunked.items()}
    whole |= {"teacher.dino_head.mlp.0.weight": torch.zeros(2, 2)}
    images = torch.randn(1, 3, 42, 70)
    got = from_checkpoint({"model": whole})  # type: ignore[dict-item]
    assert torch.equal(got.features(images), from_checkpoint(state).features(images))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_files(suffix: str, original: Callable[..., State], tmp_path: Path) -> None:
    state = original("dinov2", patch=14, grid=5)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file({key: tensor.half() for key, tensor in state.items()}, path)
    else:
        torch.save({key: tensor.half() for key, tensor in state.items()}, path)
    encoder = from_checkpoint(str(path))
    assert encoder.cls_token.dtype == torch.float32
    half = {key: tensor.half() for key, tensor in state.items()}
    images = torch.randn(1, 3, 42, 70)
    assert torch.equal(encoder.features(images), from_checkpoint(half).features(images))


def test_folder_of_hugging_face_says_its_heads(original: Callable[..., State], tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in to_hugging_face(original("dino", width=96), "Dinov2Model").items()}
    state |= {f"encoder.layer.{i}.layer_scale{j}.lambda1": torch.ones(96) for i in (0, 1) for j in (1, 2)}
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4, "hidden_act": "gelu"}))
    assert from_checkpoint(tmp_path).config.heads == 4
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="metadata"):
        from_checkpoint(tmp_path)


def test_saved_encoder_comes_back(original: Callable[..., State], tmp_path: Path) -> None:
    path = tmp_path / "folder" / "mine.safetensors"
    for encoder in (from_checkpoint(original("dinov3", swiglu=True)), create("compact", seed=3)):
        save(encoder, path)
        assert [file.name for file in path.parent.iterdir()] == ["mine.safetensors"]
        back = from_checkpoint(path)
        assert back.config == encoder.config
        images = torch.randn(1, 3, 32, 48)
        assert torch.equal(back.features(images), encoder.features(images))
    with pytest.raises(WeightsError, match="not the weights of dino_vits16"):
        from_checkpoint(path, name="dino_vits16")
    with pytest.raises(WeightsError, match="3 heads, not 6"):
        from_checkpoint(path, heads=6)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_refused_and_does_not_run(legacy: bool, original: Callable[..., State], tmp_path: Path) -> None:
    path, proof = tmp_path / "weights.pth", tmp_path / "it-ran"
    torch.save({**original("dino"), "extra": _Bomb(proof)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"weights\.pth: .*pickled code.*nothing of it was run"):
        from_checkpoint(path)
    path.write_bytes(pickle.dumps(_Bomb(proof)))
    with pytest.raises(WeightsError, match="nothing of it was run"):
        from_checkpoint(path)
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_half_a_file(suffix: str, share: float, original: Callable[..., State], tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(original("dino"), path)  # type: ignore[operator]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        from_checkpoint(path)


@given(data=st.binary(max_size=300))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_are_refused(data: bytes, tmp_path: Path) -> None:
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=re.escape(str(path))):
            from_checkpoint(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        from_checkpoint(tmp_path / "missing.pth")
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"\.safetensors, \.pth"):
        from_checkpoint(tmp_path / "weights.onnx")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(WeightsError, match="Tensor, not a state dict"):
        from_checkpoint(tmp_path / "tensor.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="holds no weights"):
        from_checkpoint(tmp_path / "empty.pth")


def test_torchscript_program_is_refused(tmp_path: Path) -> None:
    """OpenAI publishes CLIP as a program; running it to get at the weights is out of the question."""
    path = tmp_path / "ViT-B-16.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(WeightsError, match=r"TorchScript program.*safetensors"):
        from_checkpoint(path)


def test_first_differing_keys_are_named(original: Callable[..., State]) -> None:
    state = original("dino")
    state["blocks.1.surprise"] = torch.zeros(3)
    with pytest.raises(WeightsError, match=r"1 keys have no place there: blocks\.1\.surprise"):
        from_checkpoint(state)
    state = original("dino")
    del state["blocks.1.mlp.fc2.bias"], state["norm.weight"]
    with pytest.raises(WeightsError, match=r"missing: blocks\.1\.mlp\.fc2\.bias, norm\.weight"):
        from_checkpoint(state)
    state = original("dino")
    state["blocks.1.attn.proj.weight"] = torch.zeros(128, 64)
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.proj\.weight is \[128, 64\] instead of \[128, 128\]"):
        from_checkpoint(state)
    state = original("dino", depth=3)
    state = {key: tensor for key, tensor in state.items() if not key.startswith("blocks.1.")}
    with pytest.raises(WeightsError, match=r"missing: blocks\.1\.norm1\.weight.* and 9 more"):
        from_checkpoint(state)
    half = dict(list(original("dinov2", patch=14, grid=5).items())[:6])
    with pytest.raises(WeightsError, match=r"missing|not the weights of a known"):
        from_checkpoint(half)


def test_something_else_altogether() -> None:
    with pytest.raises(WeightsError, match=r"not the weights of a known vision transformer.*layer1\.0\.conv1\.weight"):
        from_checkpoint({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3), "fc.weight": torch.zeros(10, 64)})
    with pytest.raises(WeightsError, match="holds no weights"):
        from_checkpoint({})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(value: float, original: Callable[..., State]) -> None:
    state = original("dinov3")
    state["blocks.1.mlp.fc1.weight"][3, 4] = value
    with pytest.raises(WeightsError, match=r"blocks\.1\.mlp\.fc1\.weight holds values that are no finite numbers"):
        from_checkpoint(state)


def test_damaged_tables(original: Callable[..., State]) -> None:
    state = original("dino")
    state["pos_embed"] = torch.zeros(1, 1 + 8, 128)
    with pytest.raises(WeightsError, match="square grid"):
        from_checkpoint(state)
    state = original("dinov3")
    state["rope_embed.periods"] = torch.linspace(1, 9, 16)
    with pytest.raises(WeightsError, match="RoPE periods"):
        from_checkpoint(state)


def test_another_rule_for_the_position_table(original: Callable[..., State]) -> None:
    state, images = original("dino"), torch.randn(1, 3, 64, 96)
    own, other = from_checkpoint(state), from_checkpoint(state, table_resize="bicubic_antialias")
    assert other.config == own.config.with_(table_resize="bicubic_antialias")
    difference = other.tokens(images) - own.tokens(images)
    assert 1e-3 < difference[:, 1:].abs().max() < 0.5
    torch.testing.assert_close(own.features(images[:, :, :48, :48]), other.features(images[:, :, :48, :48]))
    with pytest.raises(WeightsError, match="learned position table"):
        from_checkpoint(original("dinov3"), table_resize="bicubic_antialias")


def test_loading_leaves_the_callers_tensors_alone(original: Callable[..., State]) -> None:
    state = original("dinov3")
    before = {key: tensor.clone() for key, tensor in state.items()}
    encoder: Encoder = from_checkpoint(state)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert all(torch.equal(state[key], tensor) for key, tensor in before.items())
    assert list(state) == list(before)

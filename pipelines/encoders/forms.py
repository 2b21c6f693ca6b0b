"""The forms in which a vision transformer's weights are published, and how each one's names become ours.

A form is known by its anchor, the name of the patch embedding, behind whatever prefix the file puts before the encoder
(`backbone.`, `visual.`, `vision_model.` ...). Names are mapped by one table a form; separate query, key and value (or
gate and value) matrices are stacked afterwards. Keys that an encoder never uses are dropped by name; any other key that
has no place is an error, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import WeightsError

Rename = tuple[str, str]
"""(pattern of the whole name without prefix, ours)."""

_BLOCK_PARTS: tuple[Rename, ...] = (
    (r"norm([12])\.(weight|bias)", r"norm\1.\2"),
    (r"mlp\.fc([12])\.(weight|bias)", r"mlp.fc\1.\2"),
)


# Hugging Face renamed attention and SwiGLU in its version 5: files keep the older names, models in memory have the new.
_HF_PARTS: tuple[Rename, ...] = (
    (r"attention\.attention\.(query|key|value)\.(weight|bias)", r"attn.\1.\2"),
    (r"attention\.output\.dense\.(weight|bias)", r"attn.proj.\1"),
    (r"attention\.q_proj\.(weight|bias)", r"attn.query.\1"),
    (r"attention\.k_proj\.(weight|bias)", r"attn.key.\1"),
    (r"attention\.v_proj\.(weight|bias)", r"attn.value.\1"),
    (r"attention\.o_proj\.(weight|bias)", r"attn.proj.\1"),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"mlp\.weights_in\.(weight|bias)", r"mlp.fc1.\1"),
    (r"mlp\.weights_out\.(weight|bias)", r"mlp.fc2.\1"),
    (r"mlp\.gate_proj\.(weight|bias)", r"mlp.gate.\1"),
    (r"mlp\.up_proj\.(weight|bias)", r"mlp.up.\1"),
    (r"mlp\.down_proj\.(weight|bias)", r"mlp.fc2.\1"),
)


def _blocks(stem: str, parts: Iterable[Rename]) -> tuple[Rename, ...]:
    """Renames of a block's parts below `stem`, a pattern whose group 1 is the block's number."""
    shifted = [(part, re.sub(r"\\(\d)", lambda group: rf"\{int(group[1]) + 1}", ours)) for part, ours in parts]
    return tuple((rf"{stem}\.{part}", rf"blocks.\1.{ours}") for part, ours in shifted)


@dataclass(frozen=True)
class Form:
    """One way of naming a vision transformer's weights."""

    title: str
    anchor: str
    marker: str
    """Pattern that some name must match too, where an anchor is shared by two forms."""
    renames: tuple[Rename, ...]
    unused: tuple[str, ...] = ()
    """Patterns of names below the encoder's prefix that an encoder for features never uses."""


ORIGINAL = Form(
    title="DINO original",
    anchor="patch_embed.proj.weight",
    marker=r"blocks\.",
    renames=(
        (r"patch_embed\.proj\.(weight|bias)", r"patch_embed.proj.\1"),
        (r"cls_token", "cls_token"),
        (r"(?:register|storage)_tokens", "register_tokens"),
        (r"pos_embed|learned\.table", "learned.table"),
        (r"(norm|norm_pre)\.(weight|bias)", r"\1.\2"),
        (r"rope_embed\.periods", "periods"),
        # DINOv2's training code nests blocks in chunks, blocks.<chunk>.<number>; the hub's files do not.
        *_blocks(
            r"blocks\.(?:\d+\.)?(\d+)",
            (
                *_BLOCK_PARTS,
                (r"attn\.(qkv|proj)\.(weight|bias|bias_mask)", r"attn.\1.\2"),
                (r"ls([12])\.gamma", r"ls\1.gamma"),
                (r"mlp\.w1\.(weight|bias)", r"mlp.gate.\1"),  # SwiGLU of DINOv3
                (r"mlp\.w2\.(weight|bias)", r"mlp.value.\1"),
                (r"mlp\.w12\.(weight|bias)", r"mlp.fc1.\1"),  # SwiGLU of DINOv2
                (r"mlp\.w3\.(weight|bias)", r"mlp.fc2.\1"),
            ),
        ),
    ),
    unused=(r"mask_token", r"head\..*", r"local_cls_norm\..*", r"cls_norm\..*", r"fc_norm\..*"),
)

OPENAI_CLIP = Form(
    title="OpenAI CLIP",
    anchor="conv1.weight",
    marker=r"transformer\.resblocks\.",
    renames=(
        (r"conv1\.weight", "patch_embed.proj.weight"),
        (r"class_embedding", "cls_token"),
        (r"positional_embedding(?:_frozen)?", "learned.table"),
        (r"ln_pre\.(weight|bias)", r"norm_pre.\1"),
        (r"ln_post\.(weight|bias)", r"norm.\1"),
        *_blocks(
            r"transformer\.resblocks\.(\d+)",
            (
                (r"attn\.in_proj_(weight|bias)", r"attn.qkv.\1"),
                (r"attn\.out_proj\.(weight|bias)", r"attn.proj.\1"),
                (r"ln_([12])\.(weight|bias)", r"norm\1.\2"),
                (r"mlp\.c_fc\.(weight|bias)", r"mlp.fc1.\1"),
                (r"mlp\.c_proj\.(weight|bias)", r"mlp.fc2.\1"),
            ),
        ),
    ),
    unused=(r"proj",),
)

HF_VIT = Form(
    title="Hugging Face ViT",
    anchor="embeddings.patch_embeddings.projection.weight",
    marker=r"encoder\.layer\.\d+\.layernorm_before\.|layers\.\d+\.layernorm_before\.",
    renames=(
        (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.position_embeddings", "learned.table"),
        (r"layernorm\.(weight|bias)", r"norm.\1"),
        *_blocks(
            r"(?:encoder\.layer|layers)\.(\d+)",
            (
                (r"layernorm_before\.(weight|bias)", r"norm1.\1"),
                (r"layernorm_after\.(weight|bias)", r"norm2.\1"),
                *_BLOCK_PARTS,
                *_HF_PARTS,
                (r"intermediate\.dense\.(weight|bias)", r"mlp.fc1.\1"),
                (r"output\.dense\.(weight|bias)", r"mlp.fc2.\1"),
            ),
        ),
    ),
    unused=(r"pooler\..*", r"embeddings\.mask_token"),
)

HF_DINOV2 = Form(
    title="Hugging Face DINOv2",
    anchor="embeddings.patch_embeddings.projection.weight",
    marker=r"encoder\.layer\.\d+\.layer_scale1\.|layers\.\d+\.layer_scale1\.",
    renames=(
        (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.register_tokens", "register_tokens"),
        (r"embeddings\.position_embeddings", "learned.table"),
        (r"layernorm\.(weight|bias)", r"norm.\1"),
        *_blocks(
            r"(?:encoder\.layer|layers)\.(\d+)",
            (*_BLOCK_PARTS, *_HF_PARTS),
        ),
    ),
    unused=(r"embeddings\.mask_token",),
)

HF_DINOV3 = Form(
    title="Hugging Face DINOv3",
    anchor="embeddings.patch_embeddings.weight",
    marker=r"layer\.\d+\.layer_scale1\.",
    renames=(
        (r"embeddings\.patch_embeddings\.(weight|bias)", r"patch_embed.proj.\1"),
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.register_tokens", "register_tokens"),
        (r"norm\.(weight|bias)", r"norm.\1"),
        *_blocks(
            r"(?:model\.)?layer\.(\d+)",
            (*_BLOCK_PARTS, *_HF_PARTS),
        ),
    ),
    unused=(r"embeddings\.mask_token", r"rope_embeddings\.inv_freq"),
)

HF_CLIP = Form(
    title="Hugging Face CLIP",
    anchor="embeddings.patch_embedding.weight",
    marker=r"encoder\.layers\.\d+\.self_attn\.",
    renames=(
        (r"embeddings\.patch_embedding\.weight", "patch_embed.proj.weight"),
        (r"embeddings\.class_embedding", "cls_token"),
        (r"embeddings\.position_embedding\.weight", "learned.table"),
        (r"pre_layrnorm\.(weight|bias)", r"norm_pre.\1"),  # misspelt by the publisher
        (r"post_layernorm\.(weight|bias)", r"norm.\1"),
        *_blocks(
            r"encoder\.layers\.(\d+)",
            (
                (r"self_attn\.q_proj\.(weight|bias)", r"attn.query.\1"),
                (r"self_attn\.k_proj\.(weight|bias)", r"attn.key.\1"),
                (r"self_attn\.v_proj\.(weight|bias)", r"attn.value.\1"),
                (r"self_attn\.out_proj\.(weight|bias)", r"attn.proj.\1"),
                (r"layer_norm([12])\.(weight|bias)", r"norm\1.\2"),
                (r"mlp\.fc([12])\.(weight|bias)", r"mlp.fc\1.\2"),
            ),
        ),
    ),
    unused=(r"embeddings\.position_ids",),
)

FORMS = (ORIGINAL, OPENAI_CLIP, HF_VIT, HF_DINOV2, HF_DINOV3, HF_CLIP)

# Outside the encoder's prefix: projection and classification heads, CLIP's text tower.
_OUTSIDE = re.compile(
    r"(module\.)?(head|dino_head|ibot_head|classifier|pooler|mlp_head|visual_projection|text_projection|logit_scale"
    r"|text_model|token_embedding|positional_embedding|transformer|ln_final|input_resolution|context_length|vocab_size"
    r"|attn_mask)(\..*)?|(.*\.)?(dino_head|ibot_head|student)\..*"
)


@dataclass(frozen=True)
class Recognised:
    """A state dict whose form is known: tensors under our names."""

    form: Form
    tensors: dict[str, Tensor]
    names: frozenset[str]
    """The published names below the prefix, for telling families of one form apart."""


def recognise(state: Mapping[str, Tensor], source: str) -> Recognised:
    """Finds the form of a state dict and maps its names; WeightsError when no form fits or keys are left over."""
    form, prefix = _find(state, source)
    tensors: dict[str, Tensor] = {}
    names: set[str] = set()
    left: list[str] = []
    for key, tensor in state.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix):
            if not _OUTSIDE.fullmatch(key):
                left.append(key)
        elif (ours := _rename(form, name)) is not None:
            if ours in tensors:
                raise WeightsError(f"{source}: {key} and another key both stand for {ours}")
            tensors[ours] = tensor
            names.add(name)
        elif not any(re.fullmatch(pattern, name) for pattern in form.unused) and not (
            prefix == "" and _OUTSIDE.fullmatch(key)
        ):
            left.append(key)
    if left:
        raise WeightsError(
            f"{source}: taken for {form.title} weights, but {len(left)} keys have no place there: {_first(left)}"
        )
    return Recognised(form, _stack(tensors, source), frozenset(names))


def _find(state: Mapping[str, Tensor], source: str) -> tuple[Form, str]:
    found: list[tuple[Form, str]] = []
    for form in FORMS:
        for key in state:
            prefix = key.removesuffix(form.anchor)
            if prefix == key or (prefix and not prefix.endswith(".")):
                continue
            marker = re.compile(re.escape(prefix) + rf"(?:model\.)?(?:{form.marker})")
            if any(marker.match(other) for other in state):
                found.append((form, prefix))
    if len(found) > 1:  # a training checkpoint holds the student as well; the teacher is the published encoder
        found = [(form, prefix) for form, prefix in found if "teacher" in prefix] or found
    if not found:
        raise WeightsError(
            f"{source}: not the weights of a known vision transformer (known: "
            f"{', '.join(form.title for form in FORMS)}); it begins with {_first(state)}"
        )
    if len(found) > 1:
        prefixes = " and ".join(repr(prefix) for _, prefix in found)
        raise WeightsError(f"{source}: holds several vision transformers, under {prefixes}; keep one of them")
    return found[0]


def _rename(form: Form, name: str) -> str | None:
    for pattern, ours in form.renames:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return None


def _stack(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Joins what we keep as one matrix: query, key, value; gate and value of SwiGLU. Applies DINOv3's bias mask."""
    for stem in sorted({key.split(".attn.")[0] for key in tensors if ".attn.query." in key}):
        parts = [f"{stem}.attn.{part}" for part in ("query", "key", "value")]
        query_bias = tensors.get(f"{parts[0]}.bias")
        if query_bias is not None:  # DINOv3 publishes no key bias: it is zero
            tensors.setdefault(f"{parts[1]}.bias", torch.zeros_like(query_bias))
        _join(tensors, parts, f"{stem}.attn.qkv", source)
    for key in [key for key in tensors if ".mlp.up." in key]:
        # Hugging Face calls `up` both the value branch of SwiGLU and the only first layer of a plain feed-forward.
        gated = key.replace(".up.", ".gate.") in tensors
        tensors[key.replace(".up.", ".value." if gated else ".fc1.")] = tensors.pop(key)
    for stem in sorted({key.split(".mlp.")[0] for key in tensors if ".mlp.gate." in key}):
        _join(tensors, [f"{stem}.mlp.gate", f"{stem}.mlp.value"], f"{stem}.mlp.fc1", source)
    for key in [key for key in tensors if key.endswith(".bias_mask")]:
        mask, bias = tensors.pop(key), key.removesuffix("_mask")
        if bias in tensors and tensors[bias].shape == mask.shape:
            tensors[bias] = tensors[bias] * mask
    return tensors


def _join(tensors: dict[str, Tensor], parts: list[str], whole: str, source: str) -> None:
    for kind in ("weight", "bias"):
        keys = [f"{part}.{kind}" for part in parts]
        missing = [key for key in keys if key not in tensors]
        if len(missing) == len(keys):
            continue
        if missing:
            raise WeightsError(f"{source}: {missing[0]} is missing beside its neighbours (half a file?)")
        pieces = [tensors.pop(key) for key in keys]
        if len({piece.shape for piece in pieces}) > 1:
            raise WeightsError(f"{source}: {', '.join(keys)} have different shapes")
        tensors[f"{whole}.{kind}"] = torch.cat(pieces)


def _first(keys: Iterable[str], count: int = 3) -> str:
    names = list(keys)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")

"""Authors' published heads, turned into pipelines that score as their published code does.

`import_published("foundad" | "visualad" | "vitad", head_file, encoder_file)` gives a `Pipeline` with the published
input size, resize (Pillow's, in whole gray levels), feature layers and image score. What it lacks is a limit: that
comes from normal images of the line's own parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pipelines.config import PipelineConfig, ScoreRule
from pipelines.encoders.checkpoints import from_checkpoint, read_state
from pipelines.encoders.vit import Encoder
from pipelines.errors import WeightsError
from pipelines.heads import HEADS
from pipelines.heads.published import part_with, tensors_of
from pipelines.images import PixelFormat
from pipelines.pipeline import Pipeline
from pipelines.regions import Region

PublishedKind = Literal["foundad", "visualad", "vitad"]

_SIZES: dict[PublishedKind, int] = {"foundad": 512, "visualad": 518, "vitad": 256}
_HEAD_TOKENS = ("anomaly_token", "normal_token", "anomaly_pos", "normal_pos")


def import_published(
    kind: PublishedKind,
    head_file: Path,
    encoder_file: Path | None = None,
    *,
    input_size: tuple[int, int] | None = None,
    pixel_format: PixelFormat = PixelFormat.BGR8,
    frame: tuple[int, int] | None = None,
    regions: tuple[Region, ...] = (),
    heads: int | None = None,
) -> Pipeline:
    """The pipeline of a published checkpoint.

    `encoder_file` is the official checkpoint of the encoder the head was trained on; None where the head's file holds
    the encoder too (ADer files of ViTAD do). `input_size` (height, width) [px] is by default the published one, in
    whole patches; `heads` is the encoder's number of attention heads, where neither its file nor its name tells it.

    Raises `WeightsError` that names what is missing or does not fit, `ImageError` where the input size does not.
    """
    if kind not in _SIZES:
        raise WeightsError(f"there are no published heads called {kind!r}; there are {', '.join(_SIZES)}")
    state, _ = read_state(head_file)
    try:
        encoder = _encoder(kind, state, encoder_file, heads)
        size = input_size or _input_size(kind, state, encoder)
        head = HEADS[kind].from_published(state, encoder, encoder.check_size(*size))
    except WeightsError as error:
        text = str(error)
        named = str(head_file) in text or str(encoder_file) in text
        raise WeightsError(text if named else f"{head_file}: {text}") from error
    config = PipelineConfig(
        encoder=encoder.config.to_dict(),
        head=head.config,
        input_size=size,
        pixel_format=pixel_format,
        frame=frame,
        regions=regions,
        score=ScoreRule(rule="published"),
        # VisualAD's code resizes by CLIP's rule, the other two bilinearly.
        resize="bicubic" if kind == "visualad" else "bilinear",
        round_resize=True,
    )
    return Pipeline.from_config(config, encoder=encoder, head=head)


def _encoder(kind: PublishedKind, state: Mapping[str, Any], file: Path | None, heads: int | None) -> Encoder:
    encoder = from_checkpoint(file if file is not None else _inner_encoder(kind, state), heads=heads)
    if kind == "vitad" and encoder.config.table_resize == "bicubic_offset":
        # ViTAD was published on timm's vision transformer, which resizes DINO v1's position table antialiased by size.
        changed = Encoder(encoder.config.with_(table_resize="bicubic_antialias"))
        changed.load_state_dict(encoder.state_dict())
        return changed
    return encoder


def _inner_encoder(kind: PublishedKind, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The encoder's own state dict inside a file that holds the whole model."""
    flat = tensors_of(state)
    if kind == "visualad":
        part = {name: t for name, t in part_with(flat, "conv1.weight").items() if name not in _HEAD_TOKENS}
        if "positional_embedding_frozen" in part:
            part["positional_embedding"] = part.pop("positional_embedding_frozen")
        found = {f"visual.{name}": tensor for name, tensor in part.items()}
    else:
        prefix = {"foundad": "encoder.", "vitad": "net_t."}[kind]
        patches = next((name for name in flat if name.endswith(f"{prefix}patch_embed.proj.weight")), None)
        root = "" if patches is None else patches.removesuffix("patch_embed.proj.weight")
        found = {name.removeprefix(root): t for name, t in flat.items() if root and name.startswith(root)}
    if not found:
        raise WeightsError("this file holds no encoder; give the encoder's own checkpoint as well")
    return found


def _input_size(kind: PublishedKind, state: Mapping[str, Any], encoder: Encoder) -> tuple[int, int]:
    side = _SIZES[kind]
    if kind == "visualad" and isinstance(state.get("image_size"), int):
        side = state["image_size"]
    if kind == "vitad":
        table = part_with(tensors_of(state), "net_s.pos_embed").get("net_s.pos_embed")
        if table is not None:  # the decoder's positions fix the size
            side = math.isqrt(table.shape[1]) * encoder.patch
    side = math.ceil(side / encoder.patch) * encoder.patch
    return side, side

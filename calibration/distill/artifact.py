"""The encoder file that a distillation writes, its card and its log."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from calibration.errors import FitError
from pipelines.encoders import Encoder


def write_encoder(encoder: Encoder, path: Path) -> None:
    """Writes a compact encoder in float16 under the key names of DINOv3's files; whole or not at all.

    Everything that shapes do not tell is in the metadata, so `pipelines.encoders.from_checkpoint` needs no name.
    Raises `FitError` where the file cannot be written or a weight does not fit float16.
    """
    config = encoder.config
    tensors = {}
    for name, value in encoder.state_dict().items():
        half = value.detach().cpu().half()
        if not bool(torch.isfinite(half).all()):
            raise FitError(f"{path}: {name} holds values beyond float16; the training has diverged")
        tensors["storage_tokens" if name == "register_tokens" else name] = half.contiguous()
    metadata = {
        "architecture": "dinov3-style ViT",
        "width": config.width,
        "depth": config.depth,
        "heads": config.heads,
        "patch": config.patch,
        "storage_tokens": config.registers,
        "rope_base": config.rope_base,
        "rope_reference_tokens": config.rope_reference,
        "activation": config.activation,
        "norm_eps": config.norm_eps,
    }
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            part = Path(folder) / path.name
            save_file(tensors, part, {key: str(value) for key, value in metadata.items()})
            _install(part, path)
    except (OSError, SafetensorError) as error:
        raise FitError(f"{path}: cannot be written: {error}") from error


def write_card(path: Path, values: Mapping[str, Any]) -> None:
    """Writes the model card as JSON. Raises `FitError` where it cannot be written."""
    _write(path, json.dumps(values, indent=1) + "\n")


def write_log(path: Path, rows: Sequence[Mapping[str, float | int | None]]) -> None:
    """Writes the log as CSV, a row per probe. Raises `FitError` where it cannot be written."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(path, text.getvalue())


def _write(path: Path, text: str) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            part = Path(folder) / path.name
            part.write_text(text, encoding="utf-8")
            _install(part, path)
    except OSError as error:
        raise FitError(f"{path}: cannot be written: {error.strerror}") from error


def _install(part: Path, path: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)

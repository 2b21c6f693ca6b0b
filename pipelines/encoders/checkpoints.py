"""Published weights into an encoder: files and state dicts, recognised by their keys and shapes.

Reading never runs code: `.safetensors`, and `.pth`, `.pt`, `.bin` through `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import WeightsError
from . import clip, dino
from .config import EncoderConfig, Family, TableResize
from .forms import HF_CLIP, HF_DINOV2, HF_DINOV3, OPENAI_CLIP, Recognised, recognise
from .vit import Encoder

CONFIGS: dict[str, EncoderConfig] = {**dino.CONFIGS, **clip.CONFIGS}
"""Every named configuration."""

METADATA_KEY = "edge_inspect_encoder"
"""Safetensors metadata entry under which `save` writes the configuration."""

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt")

_TEMPLATES: dict[Family, EncoderConfig] = {
    "dino": CONFIGS["dino_vits16"],
    "dinov2": CONFIGS["dinov2_vits14"],
    "dinov3": CONFIGS["dinov3_vits16"],
    "clip": CONFIGS["clip_vitb16"],
    "compact": CONFIGS["compact"],
}


def from_checkpoint(
    source: Path | str | Mapping[str, Tensor],
    name: str | None = None,
    heads: int | None = None,
    table_resize: TableResize | None = None,
) -> Encoder:
    """An encoder with published weights, float32, frozen.

    `source`: a file (or a folder with `model.safetensors`) or a state dict, in the official form of DINO v1, DINOv2,
    DINOv3 or CLIP, in the Hugging Face form of one of them, or as `save` wrote it. `name`: a key of `CONFIGS` that the
    weights must be; without it the configuration is read off the keys and shapes, any depth and width. `heads`: the
    number of attention heads, needed only where it cannot be told: by default heads are 64 channels wide.
    `table_resize`: another rule than the family's own for the position table off its native size (ViTAD was published
    with DINO v1 weights and `bicubic_antialias`).

    Raises WeightsError when the file cannot be read, its keys or shapes fit no encoder (or not the named one), or a
    weight is not a finite number.
    """
    if name is not None and name not in CONFIGS:
        raise WeightsError(f"no encoder is called {name!r}; there are {', '.join(CONFIGS)}")
    title, state, metadata = _open(source)
    hints = _Hints.of(source, metadata, title)
    if hints.config is not None:
        tensors, config = dict(state), hints.config
    else:
        recognised = recognise(state, title)
        tensors = recognised.tensors
        config = _infer(recognised, tensors, name, heads, hints, title)
    if name is not None:
        config = _named(name, config, heads, title)
    elif heads is not None and heads != config.heads:
        raise WeightsError(f"{title}: its own configuration says {config.heads} heads, not {heads}")
    if table_resize is not None:
        config = config.with_(table_resize=table_resize)
    return _fill(config, tensors, title)


def create(name: str, seed: int | None = None) -> Encoder:
    """An encoder of a named configuration with random weights."""
    if name not in CONFIGS:
        raise WeightsError(f"no encoder is called {name!r}; there are {', '.join(CONFIGS)}")
    return Encoder(CONFIGS[name]).init_weights(seed)


def compact() -> Encoder:
    """The encoder that ships with the package."""
    return from_checkpoint(Path(__file__).parents[1] / "data" / "compact.safetensors")


def save(encoder: Encoder, path: Path) -> None:
    """Writes the encoder's weights and configuration as one safetensors file; whole or not at all."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in encoder.state_dict().items()}
    metadata = {METADATA_KEY: json.dumps(encoder.config.to_dict())}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            part = Path(folder) / path.name
            save_file(tensors, part, metadata=metadata)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be written: {error}") from None


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(content, metadata) of a weights file, without running anything in it; WeightsError when it cannot be read."""
    if path.is_dir() and (path / "model.safetensors").is_file():
        path = path / "model.safetensors"
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path), {}
    raise WeightsError(f"{path}: not a kind of file that holds weights (.safetensors, {', '.join(TORCH_SUFFIXES)})")


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged or incomplete safetensors file ({error}); fetch it again") from None


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        # Training checkpoints of DINO v1 keep their command line in an argparse.Namespace, which only holds values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        what = f"names {culprit[1]}, " if culprit else ""
        raise WeightsError(
            f"{path}: {what}holds pickled code or is damaged; nothing of it was run. Take the owner's original file, "
            "or its safetensors form"
        ) from None
    except Exception as error:  # damaged bytes make the reader fail in any way there is
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path}: a TorchScript program, not a state dict; take the safetensors form of the same weights"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: damaged or incomplete file ({reason}); fetch it again") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def _open(source: Path | str | Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """(how messages call it, flat state dict, metadata)."""
    if isinstance(source, Mapping):
        return "state dict", _unwrap(dict(source), "state dict"), {}
    path = Path(source).expanduser()
    content, metadata = read_state(path)
    return str(path), _unwrap(content, str(path)), metadata


def _unwrap(content: dict[str, Any], title: str) -> dict[str, Tensor]:
    """The state dict inside a training checkpoint: the teacher's where there is one."""
    for _ in range(3):
        inner = next((key for key in ("teacher", "state_dict", "model", "student") if _is_dict(content.get(key))), None)
        if inner is None:
            break
        content = content[inner]
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{title}: holds no weights")
    return tensors


def _is_dict(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value)


class _Hints:
    """What a file says beside its tensors: our own configuration, the compact encoder's metadata, a config.json."""

    def __init__(self) -> None:
        self.config: EncoderConfig | None = None
        self.changes: dict[str, Any] = {}

    @classmethod
    def of(cls, source: object, metadata: dict[str, str], title: str) -> _Hints:
        hints = cls()
        try:
            if METADATA_KEY in metadata:
                hints.config = EncoderConfig.from_dict(json.loads(metadata[METADATA_KEY]))
            elif "rope_reference_tokens" in metadata:
                hints.changes = {
                    "family": "compact",
                    "heads": int(metadata["heads"]),
                    "activation": metadata["activation"],
                    "rope_base": float(metadata["rope_base"]),
                    "rope_reference": int(metadata["rope_reference_tokens"]),
                    "norm_eps": float(metadata["norm_eps"]),
                }
            elif not isinstance(source, Mapping):
                hints.changes = _sibling(Path(str(source)).expanduser())
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise WeightsError(f"{title}: its metadata cannot be used ({type(error).__name__}: {error})") from None
        return hints


def _sibling(path: Path) -> dict[str, Any]:
    """What the config.json of a Hugging Face folder says that shapes cannot: heads and the activation."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if path.name not in ("model.safetensors", "pytorch_model.bin") and not path.is_dir():
        return {}
    if not file.is_file():
        return {}
    values = json.loads(file.read_text())
    values = values.get("vision_config", values)
    changes: dict[str, Any] = {}
    if isinstance(values.get("num_attention_heads"), int):
        changes["heads"] = values["num_attention_heads"]
    if values.get("hidden_act") in ("gelu", "quick_gelu") and not values.get("use_swiglu_ffn"):
        changes["activation"] = values["hidden_act"]
    return changes


def _family(recognised: Recognised, tensors: Mapping[str, Tensor], name: str | None, title: str) -> Family:
    """Which family's rules hold for these weights."""
    names, form = recognised.names, recognised.form
    if form in (OPENAI_CLIP, HF_CLIP):
        return "clip"
    if form is HF_DINOV3 or "rope_embed.periods" in names:
        return "dinov3"
    if form is HF_DINOV2:
        return "dinov2"
    if "learned.table" in tensors:
        if "norm_pre.weight" in tensors:
            return "clip"
        return "dinov2" if "blocks.0.ls1.gamma" in tensors else "dino"
    if "storage_tokens" in names:
        return "compact"  # the same keys as DINOv3, less the stored periods
    if name is not None:
        return CONFIGS[name].family
    raise WeightsError(f"{title}: has no positions, neither a table nor RoPE periods; give the encoder's name")


def _infer(
    recognised: Recognised,
    tensors: dict[str, Tensor],
    name: str | None,
    heads: int | None,
    hints: _Hints,
    title: str,
) -> EncoderConfig:
    """Reads the configuration off keys and shapes."""
    family: Family = hints.changes.get("family") or _family(recognised, tensors, name, title)
    template = _TEMPLATES[family]
    patches = _need(tensors, "patch_embed.proj.weight", 4, title)
    width, channels, patch, patch_cols = patches.shape
    if channels != 3 or patch != patch_cols:
        raise WeightsError(f"{title}: its patches are {channels} x {patch} x {patch_cols}, not 3 x P x P")
    depth = 1 + max((int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")), default=-1)
    hidden = _need(tensors, "blocks.0.mlp.fc2.weight", 2, title).shape[1]
    swiglu = _need(tensors, "blocks.0.mlp.fc1.weight", 2, title).shape[0] == 2 * hidden
    changes: dict[str, Any] = {
        "patch": patch,
        "width": width,
        "depth": depth,
        "hidden": hidden,
        "patch_bias": "patch_embed.proj.bias" in tensors,
        "registers": tensors["register_tokens"].shape[-2] if "register_tokens" in tensors else 0,
    }
    if template.grid is not None:
        changes["grid"] = _grid(_need(tensors, "learned.table", None, title), title)
    if family == "dinov2" and changes["registers"]:
        changes["table_resize"] = "bicubic_antialias"
    changes.update(hints.changes)
    if swiglu:
        changes["activation"] = "swiglu"
    if "periods" in tensors:
        changes["rope_base"], changes["heads"] = _rope(tensors.pop("periods"), width, title)
    changes["heads"] = _heads(heads, changes.get("heads"), name, width, title)
    config = template.with_(name="", **changes)
    known = next((known.name for known in CONFIGS.values() if known.with_(name="") == config), None)
    return config.with_(name=known or f"{family}_{width}x{depth}_patch{patch}")


def _heads(asked: int | None, told: int | None, name: str | None, width: int, title: str) -> int:
    if asked is not None and told is not None and asked != told:
        raise WeightsError(f"{title}: the file says {told} heads, not {asked}")
    if heads := asked or told or (CONFIGS[name].heads if name and CONFIGS[name].width == width else None):
        if heads < 1 or width % heads:
            raise WeightsError(f"{title}: {heads} heads do not divide its width {width}")
        return heads
    if width % 64:
        raise WeightsError(f"{title}: its width {width} is no multiple of 64; say how many heads it has (heads=...)")
    return width // 64


def _need(tensors: Mapping[str, Tensor], key: str, ndim: int | None, title: str) -> Tensor:
    tensor = tensors.get(key)
    if tensor is None:
        raise WeightsError(f"{title}: {key} is missing (half a file?)")
    if ndim is not None and tensor.ndim != ndim:
        raise WeightsError(f"{title}: {key} has {tensor.ndim} dimensions, it must have {ndim}")
    return tensor


def _grid(table: Tensor, title: str) -> int:
    count = table.shape[-2] - 1 if table.ndim >= 2 else -1
    side = math.isqrt(max(count, 0))
    if count < 1 or side * side != count:
        raise WeightsError(f"{title}: its position table {list(table.shape)} is not a class entry and a square grid")
    return side


def _rope(periods: Tensor, width: int, title: str) -> tuple[float, int]:
    """(base, heads) that stored RoPE periods stand for."""
    count = periods.numel()
    if count < 2 or width % (4 * count):
        raise WeightsError(f"{title}: {count} RoPE periods do not fit the width {width}")
    values = periods.double().flatten()
    base = float(values[-1]) ** (count / (count - 1)) if float(values[-1]) > 0 else math.nan
    base = 100.0 if abs(base - 100.0) < 2.0 else base  # stored in low precision by some files
    expected = base ** (torch.arange(count, dtype=torch.float64) / count)
    if not torch.allclose(values, expected, rtol=1e-2):
        raise WeightsError(f"{title}: its RoPE periods are no geometric series from 1; such an encoder is unknown")
    return base, width // (4 * count)


def _named(name: str, config: EncoderConfig, heads: int | None, title: str) -> EncoderConfig:
    """The named configuration, when the weights' own does not contradict it."""
    named = CONFIGS[name]
    if heads is not None and heads != named.heads:
        raise WeightsError(f"{name} has {named.heads} heads, not {heads}")
    different = [
        f"{field.name} {getattr(config, field.name)} instead of {getattr(named, field.name)}"
        for field in fields(EncoderConfig)
        if field.name != "name" and getattr(config, field.name) != getattr(named, field.name)
    ]
    if different:
        raise WeightsError(
            f"{title}: these are not the weights of {name} (they have {'; '.join(different[:4])}); "
            f"without a name they load as {config.name}"
        )
    return named


def _fill(config: EncoderConfig, tensors: dict[str, Tensor], title: str) -> Encoder:
    """Builds the encoder around the tensors; every key must be there, of the right shape, and finite."""
    with torch.device("meta"):
        encoder = Encoder(config)
    wanted = {key: tensor.shape for key, tensor in encoder.state_dict().items()}
    missing = [key for key in wanted if key not in tensors]
    extra = [key for key in tensors if key not in wanted]
    values: dict[str, Tensor] = {}
    wrong = []
    for key, shape in wanted.items():
        if (tensor := tensors.get(key)) is None:
            continue
        if tensor.numel() != shape.numel() or _squeezed(tensor.shape) != _squeezed(shape):
            wrong.append(f"{key} is {list(tensor.shape)} instead of {list(shape)}")
            continue
        values[key] = tensor.detach().to(torch.float32, copy=True).reshape(shape)
        if not tensor.is_floating_point() or not bool(torch.isfinite(values[key]).all()):
            raise WeightsError(
                f"{title}: {key} holds values that are no finite numbers (NaN or infinity); fetch it again"
            )
    if missing or extra or wrong:
        faults = [
            f"{label}: {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
            for label, keys in (("missing", missing), ("unexpected", extra), ("of another shape", wrong))
            if keys
        ]
        raise WeightsError(f"{title}: does not fit {config.name}: {'; '.join(faults)}")
    encoder.load_state_dict(values, strict=True, assign=True)
    return encoder.requires_grad_(False).eval()


def _squeezed(shape: torch.Size) -> list[int]:
    return [size for size in shape if size != 1]

"""A bundle: the immutable folder that a line runs.

    BUNDLE/
        manifest.json            what it is and how it was made (`pipelines.manifest`); readable without torch
        weights.safetensors      the pipeline's state dict, float32 or float16
        reference.safetensors    a few frames, with the scores and maps that torch gives them in float32
        engines/                 what engines built from it on this machine; not part of the bundle's id

Nothing but `engines/` ever changes after the folder got its name. Loading runs no code: JSON and safetensors only.
This module imports torch only inside the functions that need it.
"""

from __future__ import annotations

import copy
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import ValidationError

from pipelines import manifest as manifests
from pipelines.config import PipelineConfig
from pipelines.errors import BundleError
from pipelines.manifest import REFERENCE, SCHEMA, WEIGHTS, FileEntry, Limit, Manifest, RegionLimit
from pipelines.storage import new_folder, sha256_file

if TYPE_CHECKING:
    import torch

    from pipelines.pipeline import Pipeline

__all__ = ["Bundle", "FileEntry", "Limit", "Manifest", "Reference", "RegionLimit", "with_limit", "write_bundle"]


class Reference(NamedTuple):
    """Reference frames and what torch in float32 scores them."""

    frames: list[NDArray[np.uint8]]  # N frames [H, W, C], of any sizes where the bundle has no frame size
    scores: NDArray[np.float32]  # [N, R] raw
    maps: NDArray[np.float32]  # [N, R, h, w] raw


class Bundle:
    """An opened bundle. Make one with `Bundle.open` or `write_bundle`."""

    def __init__(self, path: Path, digest: str, manifest: Manifest) -> None:
        self.path = path
        self.id = digest
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path | str, verify: bool = True) -> Bundle:
        """Opens the bundle at `path`; with `verify` every byte of it is checked.

        Raises `BundleError` that names the file which is missing, damaged, altered or of another version.
        """
        path = Path(path)
        digest, manifest = manifests.read(path)
        for name, entry in manifest.files.items():
            file = path / name
            try:
                size = file.stat().st_size
                found = sha256_file(file) if verify and size == entry.bytes else None
            except FileNotFoundError as error:
                raise BundleError(f"{file}: missing; copy the bundle again from its source") from error
            except OSError as error:
                raise BundleError(f"{file}: cannot be read: {error.strerror}") from error
            if size != entry.bytes:
                raise BundleError(
                    f"{file}: damaged, {size} bytes instead of {entry.bytes}; copy the bundle again from its source"
                )
            if found is not None and found != entry.sha256:
                raise BundleError(
                    f"{file}: damaged, its content differs from the manifest; copy the bundle again from its source"
                )
        return cls(path, digest, manifest)

    @property
    def limit(self) -> Limit:
        """The limits of all regions."""
        return self.manifest.limit

    @property
    def limits(self) -> NDArray[np.float32]:
        """Raw limits [R]."""
        return np.array([region.limit for region in self.limit.regions], dtype=np.float32)

    @property
    def floors(self) -> NDArray[np.float32]:
        """Raw floors [R]."""
        return np.array([region.floor for region in self.limit.regions], dtype=np.float32)

    @property
    def config(self) -> PipelineConfig:
        """What the pipeline is made of."""
        return self.manifest.pipeline

    def pipeline(self, config: PipelineConfig | None = None) -> Pipeline:
        """The pipeline in torch: float32, evaluation mode, no gradients, on the CPU.

        `config` stands in for the bundle's own where a camera gives another pixel format or frame size.
        Raises `BundleError` where the weights do not fit the pipeline.
        """
        from safetensors.torch import load_file

        file = self.path / WEIGHTS
        try:
            state = load_file(file)
        except OSError as error:
            raise BundleError(f"{file}: cannot be read: {error.strerror or error}") from error
        except safetensors.SafetensorError as error:
            raise BundleError(f"{file}: damaged ({error}); copy the bundle again from its source") from error
        return _pipeline(config or self.config, state, str(file))

    def reference(self) -> Reference:
        """The reference frames with their scores and maps. Raises `BundleError` where the file is damaged."""
        file = self.path / REFERENCE
        try:
            tensors = safetensors.numpy.load_file(file)
        except OSError as error:
            raise BundleError(f"{file}: cannot be read: {error.strerror or error}") from error
        except safetensors.SafetensorError as error:
            raise BundleError(f"{file}: damaged ({error}); copy the bundle again from its source") from error
        return unpack_reference(tensors, self.manifest.references, len(self.limit.regions), str(file))


def pack_reference(reference: Reference) -> dict[str, NDArray[Any]]:
    """Named arrays of a reference file: frame.000, frame.001, ..., scores, maps."""
    frames: dict[str, NDArray[Any]] = {
        f"frame.{index:03d}": np.ascontiguousarray(frame) for index, frame in enumerate(reference.frames)
    }
    return {
        **frames,
        "scores": np.ascontiguousarray(reference.scores, dtype=np.float32),
        "maps": np.ascontiguousarray(reference.maps, dtype=np.float32),
    }


def unpack_reference(tensors: Mapping[str, NDArray[Any]], count: int, regions: int, source: str) -> Reference:
    """The inverse of `pack_reference`. Raises `BundleError` naming `source` where an array is missing or misshapen."""
    names = [f"frame.{index:03d}" for index in range(count)]
    if set(tensors) != {*names, "scores", "maps"}:
        raise BundleError(f"{source}: does not hold {count} frames with scores and maps; copy the bundle again")
    frames = [tensors[name] for name in names]
    scores, maps = tensors["scores"], tensors["maps"]
    if (
        any(frame.dtype != np.uint8 or frame.ndim != 3 for frame in frames)
        or scores.dtype != np.float32
        or maps.dtype != np.float32
        or scores.shape != (count, regions)
        or maps.ndim != 4
        or maps.shape[:2] != (count, regions)
    ):
        raise BundleError(f"{source}: frames, scores or maps have other shapes than the manifest says; calibrate again")
    return Reference(frames, scores, maps)


def expected(pipeline: Pipeline, frames: Sequence[NDArray[np.uint8]]) -> Reference:
    """`frames` with the scores and maps that `pipeline` gives them, one at a time, in float32.

    Raises `BundleError` where an output is not finite.
    """
    import torch

    scores, maps = [], []
    with torch.inference_mode():
        for index, frame in enumerate(frames):
            score, patch_map = pipeline(torch.from_numpy(np.array(frame[None])))
            if not bool(torch.isfinite(score).all()) or not bool(torch.isfinite(patch_map).all()):
                raise BundleError(
                    f"reference frame {index}: the pipeline gives NaN or infinite scores; its weights are damaged"
                )
            scores.append(score.float().numpy())
            maps.append(patch_map.float().numpy())
    return Reference(list(frames), np.concatenate(scores), np.concatenate(maps))


def write_bundle(
    path: Path | str,
    pipeline: Pipeline,
    limit: Limit,
    references: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    provenance: Mapping[str, Any],
    *,
    half: bool = False,
) -> Bundle:
    """Writes a new bundle to `path` and opens it.

    `references` are uint8 frames [H, W, C] in the pipeline's pixel format: a handful, normal and (where at hand) not,
    so that an engine which is wrong cannot reproduce them by luck. Weights are stored in the pipeline's precision;
    `half` stores floating-point weights as float16 (half the size). Scores and maps of the references are computed
    here in float32 from the weights *as stored*. Versions and time are added to `provenance`.

    Raises `BundleError` where `path` exists, cannot be written, or the parts do not fit each other.
    """
    path = Path(path)
    config = pipeline.config
    frames = _check_frames(references, config)
    state = _state(pipeline, half)
    reference = expected(_pipeline(config, copy.copy(state), f"{path}: the pipeline to be stored"), frames)
    if reference.scores.shape[1] != len(limit.regions):
        raise BundleError(
            f"{path}: {len(limit.regions)} limits are given for {reference.scores.shape[1]} regions; give one for each"
        )
    with new_folder(path, BundleError, "a bundle") as folder:
        _save(folder, state, reference)
        files = {
            name: FileEntry(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))
            for name in (WEIGHTS, REFERENCE)
        }
        told = {**_circumstances(), **provenance}
        _write_manifest(folder, path, config, limit, len(frames), told, files)
    return Bundle.open(path, verify=False)


def with_limit(bundle: Bundle, path: Path | str, limit: Limit, provenance: Mapping[str, Any]) -> Bundle:
    """Writes a copy of `bundle` with other limits to `path` and opens it: weights and reference frames stay.

    `provenance` is added to the bundle's own, with the versions and time of now. Raises `BundleError` where `path`
    exists or cannot be written, or the limits are not for the bundle's regions.
    """
    path = Path(path)
    manifest = bundle.manifest
    with new_folder(path, BundleError, "a bundle") as folder:
        for name, entry in manifest.files.items():
            shutil.copyfile(bundle.path / name, folder / name)
            if sha256_file(folder / name) != entry.sha256:
                raise BundleError(f"{bundle.path / name}: damaged, its content differs from the manifest")
        told = {**manifest.provenance, **_circumstances(), **provenance}
        _write_manifest(folder, path, manifest.pipeline, limit, manifest.references, told, manifest.files)
    return Bundle.open(path, verify=False)


def _write_manifest(
    folder: Path,
    path: Path,
    config: PipelineConfig,
    limit: Limit,
    references: int,
    provenance: Mapping[str, Any],
    files: Mapping[str, FileEntry],
) -> None:
    """Writes the manifest of the bundle that is to be at `path` into `folder`. Raises `BundleError`."""
    try:
        manifest = Manifest.model_validate(
            {
                "schema": SCHEMA,
                "pipeline": config,
                "limit": limit,
                "references": references,
                "provenance": dict(provenance),
                "files": dict(files),
            }
        )
        _, text = manifests.encode(manifest)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'bundle'}: {e['msg']}" for e in error.errors())
        raise BundleError(f"{path}: {faults}") from error
    except ValueError as error:
        raise BundleError(f"{path}: a number in the manifest is NaN or infinite") from error
    (folder / manifests.MANIFEST).write_bytes(text)


def _save(folder: Path, state: dict[str, torch.Tensor], reference: Reference) -> None:
    from safetensors.torch import save_file

    try:
        save_file(state, folder / WEIGHTS)
        safetensors.numpy.save_file(pack_reference(reference), folder / REFERENCE)
    except safetensors.SafetensorError as error:  # how it reports a full disk
        raise BundleError(f"{folder.parent}: cannot write the bundle: {error}") from error


def _state(pipeline: Pipeline, half: bool) -> dict[str, torch.Tensor]:
    """The state dict, on the CPU, one contiguous copy per name (safetensors refuses shared memory)."""
    import torch

    state: dict[str, torch.Tensor] = {}
    for name, tensor in pipeline.state_dict().items():
        tensor = tensor.detach().to(device="cpu", copy=True).contiguous()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float16 if half else _stored(tensor.dtype))
            if not bool(torch.isfinite(tensor).all()):
                raise BundleError(f"weight {name} holds NaN, infinite or (as float16) too large values; train again")
        state[name] = tensor
    return state


def _stored(dtype: torch.dtype) -> torch.dtype:
    import torch

    return torch.float16 if dtype == torch.float16 else torch.float32


def _pipeline(config: PipelineConfig, state: dict[str, torch.Tensor], source: str) -> Pipeline:
    from pipelines.pipeline import Pipeline

    pipeline = Pipeline(config)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    try:
        pipeline.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise BundleError(f"{source}: these weights do not fit the pipeline: {' '.join(str(error).split())}") from error
    return pipeline.float().eval().requires_grad_(False)


def _check_frames(
    references: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], config: PipelineConfig
) -> list[NDArray[np.uint8]]:
    """The references as a list; `BundleError` where there is none or one is no frame of this pipeline."""
    frames = [np.ascontiguousarray(frame) for frame in references]
    if not frames:
        raise BundleError("a bundle needs at least one reference frame; give some of the calibration images")
    for index, frame in enumerate(frames):
        wanted = config.frame or frame.shape[:2]
        if frame.dtype != np.uint8 or frame.shape != (*wanted, config.pixel_format.channels):
            raise BundleError(
                f"reference frame {index} is {frame.dtype} {list(frame.shape)}, the pipeline takes uint8 "
                f"{[*(config.frame or ('H', 'W')), config.pixel_format.channels]} ({config.pixel_format.value})"
            )
    return frames


def _circumstances() -> dict[str, Any]:
    """What every bundle says of its making."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for name in ("edge-inspect", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    return {"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": versions}

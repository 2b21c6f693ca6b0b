"""The manifest of a bundle: everything about it but weights and pictures, readable without torch.

    manifest.json
        id            sha256 of everything below, in canonical JSON
        schema        version of this layout; others are refused
        pipeline      how pixels become scores (`pipelines.config.PipelineConfig`)
        limit         the limit of each region, how it was chosen and what it promises
        references    number of reference frames
        provenance    who made it, with which command, versions, seed and data
        files         size and sha256 of every other file of the bundle

The id names the content: two bundles with one id are the same bytes, wherever they lie. Canonical JSON is UTF-8, keys
sorted, no white space, no NaN or infinity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from pipelines.config import PipelineConfig
from pipelines.errors import BundleError

SCHEMA = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
REFERENCE = "reference.safetensors"
MAX_MANIFEST_BYTES = 16 << 20  # keep grids of many regions are large, anything above this is no manifest

Finite = Annotated[float, Field(allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RegionLimit(_Model):
    """The limit of one region, on raw scores."""

    name: str = Field(min_length=1, max_length=64, description="the region's name, as in the pipeline")
    limit: Finite = Field(description="raw score above which the part is rejected (100 %)")
    floor: Finite = Field(description="raw score shown as 0 %: what a typical normal part scores")

    @model_validator(mode="after")
    def _ordered(self) -> RegionLimit:
        if not self.limit > self.floor:
            raise ValueError(f"limit {self.limit} of region {self.name!r} must be above its floor {self.floor}")
        return self

    def percent(self, score: float) -> float:
        """A raw score in percent of the limit: 0 = floor, 100 = limit."""
        return 100.0 * (score - self.floor) / (self.limit - self.floor)


class Limit(_Model):
    """The limits of all regions, how they were chosen and what that promises."""

    regions: tuple[RegionLimit, ...] = Field(min_length=1)
    method: str = Field(min_length=1, description="how the limits were chosen, e.g. conformal on held-out normals")
    false_reject_rate: float = Field(gt=0, lt=1, description="share of normal parts rejected that was asked for")
    n_normals: int = Field(ge=1, description="normal images the limits rest on")
    guarantee: str = Field(description="what may be claimed of the false-reject rate, in words")
    seed: int = Field(description="seed of every random choice")

    @model_validator(mode="after")
    def _unique(self) -> Limit:
        if len({region.name for region in self.regions}) != len(self.regions):
            raise ValueError("two regions have the same name")
        return self


class FileEntry(_Model):
    """Size and hash of one file of the bundle."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class Manifest(_Model):
    """All of `manifest.json` but its id."""

    schema_version: Literal[1] = Field(alias="schema")
    pipeline: PipelineConfig
    limit: Limit
    references: int = Field(ge=1, description="reference frames in reference.safetensors")
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        if set(self.files) != {WEIGHTS, REFERENCE}:
            raise ValueError(f"files must name {WEIGHTS} and {REFERENCE}")
        limits = tuple(region.name for region in self.limit.regions)
        if limits != self.pipeline.region_names:
            raise ValueError(f"limits are for regions {limits}, the pipeline scores {self.pipeline.region_names}")
        return self

    @property
    def method(self) -> str:
        """The head's name: foundad, memory_bank, visualad or vitad."""
        return self.pipeline.head.name


def canonical(body: Mapping[str, Any]) -> bytes:
    """Canonical JSON of `body`. Raises ValueError where a number is NaN or infinite."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def content_id(body: Mapping[str, Any]) -> str:
    """The bundle's id: sha256 (hex) over the canonical manifest, which itself holds the hashes of the other files."""
    return hashlib.sha256(canonical(body)).hexdigest()


def encode(manifest: Manifest) -> tuple[str, bytes]:
    """(id, bytes of manifest.json)."""
    body = manifest.model_dump(mode="json", by_alias=True)
    digest = content_id(body)
    return digest, _text({"id": digest, **body})


def _text(content: Mapping[str, Any]) -> bytes:
    """The bytes of manifest.json."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"


def read(path: Path) -> tuple[str, Manifest]:
    """(id, manifest) of `path`/manifest.json, its id checked.

    Raises `BundleError` where the file is missing, is no JSON, is of another schema, was altered, or does not validate.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path}: there is no such folder; a bundle is made by `calibrate fit --out {path}`")
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{file}: larger than any manifest; this is no bundle")
        content = file.read_bytes()
        raw = json.loads(content.decode("utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{file}: missing; {path} is no complete bundle, copy it again from its source") from error
    except OSError as error:
        raise BundleError(f"{file}: cannot read the manifest: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BundleError(f"{file}: damaged, this is not JSON ({error}); copy the bundle again") from error
    if not isinstance(raw, dict):
        raise BundleError(f"{file}: damaged, this is no manifest; copy the bundle again")
    schema = raw.get("schema")
    if schema != SCHEMA:
        raise BundleError(
            f"{file}: this bundle has schema {schema!r}, this version of edge-inspect reads schema {SCHEMA}; "
            "calibrate again, or use the version that made it"
        )
    # Byte for byte: also what JSON reads as the same (1e-5 and 1E-5) was not written so.
    intact = _is_text_of(content, raw)
    stated = raw.pop("id", None)
    if not intact or stated != content_id(raw):
        raise BundleError(f"{file}: the content does not match its id, so it was altered; copy the bundle again")
    try:
        return str(stated), Manifest.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors())
        raise BundleError(f"{file}: {faults}; calibrate again with this version") from error


def _is_text_of(content: bytes, raw: dict[str, Any]) -> bool:
    try:
        return content == _text(raw)
    except ValueError:  # JSON's NaN and Infinity, which Python reads but no manifest holds
        return False

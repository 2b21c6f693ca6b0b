"""What a distillation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calibration.errors import FitError
from calibration.training import Precision

SIZES = (160, 192, 224, 256, 320, 384, 448)
"""Crops [px]. Crops of 160 to 224 only made an encoder that was worse at 448."""

CELL = 32
"""Crops are multiples of this, so that teachers of stride 32 have whole cells."""


@dataclass(frozen=True)
class DistillSettings:
    """See `calibrate distill --help`. Sizes in pixels."""

    teacher: Path
    images: tuple[Path, ...]
    out: Path
    taps: tuple[str, ...] = ()
    """Teacher's depths: numbers of blocks, or names of interior outputs; empty: the teacher's defaults."""

    tap_weights: tuple[float, ...] = ()
    """Weight of each tap in the loss; empty: all 1."""

    blocks: tuple[int, ...] = ()
    """Student block that predicts each tap; empty: the middle for cells smaller than a patch, the last for others."""

    init: str | None = None
    """Encoder to go on from: a file, or "compact", the shipped one. None: random weights of `width` and so on."""

    width: int = 192
    depth: int = 12
    heads: int = 3
    patch: int = 16

    probes: tuple[Path, ...] = ()
    pick: Literal["probe", "r2", "last"] = "probe"
    """Which average weights are written: those of the best probe, of the best held-out R2, or the last."""

    probe_size: int = 320
    probe_block: int | None = None
    """None: the last but one, as `calibrate fit` takes."""

    probe_every: int = 250
    held_out: int = 64
    sizes: tuple[int, ...] = SIZES
    steps: int = 20_000
    hours: float | None = None
    batch: int = 16
    optimizer: Literal["muon", "adamw"] = "muon"
    rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: int = 100
    head_batches: int = 32
    """Batches that the teacher is standardised on and the heads start from."""

    ema: float = 0.999
    cosine: float = 1.0
    """Weight of 1 - cosine beside smooth L1."""

    relation: float = 0.0
    """Weight of the relational loss; 0 leaves it out."""

    augment: float = 1.0
    """Strength of the photometric augmentation; 0 none."""

    same_view: bool = True
    """Whether the teacher sees the altered view too, rather than the plain one."""

    precision: Precision = "fp32"
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    resume: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot be meant, naming the option."""
        for size in (*self.sizes, self.probe_size):
            if size < CELL or size % CELL:
                raise FitError(f"--size {size}: crops are multiples of {CELL} px, such as 224")
        if self.patch not in (8, 16, 32):
            raise FitError(f"--patch {self.patch}: 8, 16 or 32 px, so that a patch is whole cells of the teacher")
        if not self.sizes:
            raise FitError("--size: give at least one")
        if not self.images:
            raise FitError("--images: give at least one folder")
        if self.out.suffix != ".safetensors":
            raise FitError(f"--out {self.out}: the encoder is a .safetensors file; end the name so")
        if self.pick == "r2" and not self.held_out:
            raise FitError("--pick r2: needs images held out; give --held-out more than 0")
        if any(weight < 0 for weight in self.tap_weights):
            raise FitError(f"--tap-weight {min(self.tap_weights)}: weights are not negative")
        if not 0.0 <= self.ema < 1.0:
            raise FitError(f"--ema {self.ema}: give a share from 0 up to below 1")

    @property
    def middle_size(self) -> int:
        """The crops that heads start from and R2 is measured on [px]."""
        return sorted(self.sizes)[len(self.sizes) // 2]

    @property
    def card(self) -> Path:
        """The JSON card beside the encoder."""
        return self.out.with_suffix(".json")

    @property
    def log(self) -> Path:
        """The CSV log beside the encoder."""
        return self.out.with_suffix(".csv")

"""What one vision transformer differs in from another: every family difference is one field here.

The families (sizes, tables of names) are in `dino.py` and `clip.py`; the layers that read these fields in `vit.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast, get_args

from ..errors import WeightsError

Family = Literal["dino", "dinov2", "dinov3", "clip", "compact"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
TableResize = Literal["bicubic_offset", "bicubic_antialias", "bilinear"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EncoderConfig:
    """A pre-norm vision transformer, as far as its layers and not its weights go.

    Sizes are in pixels for `patch`, in patches for `grid` and `rope_reference`, in channels for `width` and `hidden`.
    """

    name: str
    family: Family
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    """Width inside the feed-forward layer; for swiglu the width of each of its two branches."""

    registers: int = 0
    """Tokens between the class token and the patches (DINOv2 registers, DINOv3 storage tokens)."""

    grid: int | None = None
    """Side of the learned position table, in patches; None where RoPE gives the positions."""

    table_resize: TableResize | None = None
    """How the learned table follows the input size; see `positions.resize_table`."""

    rope_base: float | None = None
    """Base of the RoPE periods; None where a learned table gives the positions."""

    rope_reference: int | None = None
    """RoPE coordinates are divided by this many patches on both axes; None: by the input's own rows and columns."""

    activation: Activation = "gelu"
    norm_eps: float = 1e-6
    layer_scale: bool = False
    key_bias: bool = True
    """False where the family zeroes the key third of the qkv bias (DINOv3's bias mask)."""

    patch_bias: bool = True
    norm_pre: bool = False
    """A LayerNorm after the positions, before the first block (CLIP's `ln_pre`)."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Refuses what no vision transformer can be."""
        for field in ("patch", "width", "depth", "heads", "hidden"):
            if getattr(self, field) < 1:
                raise WeightsError(f"encoder {self.name}: {field} is {getattr(self, field)}, it must be at least 1")
        if self.registers < 0:
            raise WeightsError(f"encoder {self.name}: registers is {self.registers}, it cannot be negative")
        if self.width % self.heads:
            raise WeightsError(f"encoder {self.name}: {self.heads} heads do not divide the width {self.width}")
        if (self.grid is None) == (self.rope_base is None):
            raise WeightsError(
                f"encoder {self.name}: exactly one of grid (learned positions) and rope_base must be set"
            )
        if (self.grid is None) != (self.table_resize is None):
            raise WeightsError(f"encoder {self.name}: table_resize belongs to a learned position table, and only there")
        if self.rope_base is not None and self.head_width % 4:
            raise WeightsError(f"encoder {self.name}: RoPE needs a head width divisible by 4, not {self.head_width}")
        for field, allowed in (("family", Family), ("activation", Activation), ("table_resize", TableResize)):
            value = getattr(self, field)
            if value is not None and value not in get_args(allowed):
                raise WeightsError(f"encoder {self.name}: {field} {value!r} is none of {', '.join(get_args(allowed))}")

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def native_size(self) -> int | None:
        """Pixels of the square input that the position table was learned at, or None with RoPE."""
        return None if self.grid is None else self.grid * self.patch

    def with_(self, **changes: Any) -> EncoderConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        """The configuration that `to_dict` wrote; WeightsError when keys or kinds of values are others."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise WeightsError(f"encoder configuration: unknown {', '.join(unknown)} (written by another version?)")
        try:
            values = {key: tuple(value) if key in ("mean", "std") else value for key, value in values.items()}
            return cls(**cast(Any, values))
        except TypeError as error:
            raise WeightsError(
                f"encoder configuration is incomplete or holds a value of the wrong kind: {error}"
            ) from None

"""DINO v1, DINOv2, DINOv3 and the compact encoder: the table of names, with each family's differences in one place.

Sources: DINO (Caron et al., 2021), DINOv2 (Oquab et al., 2023), registers (Darcet et al., 2023), DINOv3 (Siméoni et
al., 2025) and their public code's hub entries.
"""

from __future__ import annotations

from .config import EncoderConfig

SMALL, BASE, LARGE = (384, 12, 6), (768, 12, 12), (1024, 24, 16)
"""(width, depth, heads)."""


def dino(name: str, size: tuple[int, int, int], patch: int, grid: int | None = None) -> EncoderConfig:
    """DINO v1: learned positions at 224 pixels, nothing else special."""
    width, depth, heads = size
    return EncoderConfig(
        name=name,
        family="dino",
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        hidden=4 * width,
        grid=grid or 224 // patch,
        table_resize="bicubic_offset",
    )


def dinov2(name: str, size: tuple[int, int, int], registers: int = 0) -> EncoderConfig:
    """DINOv2: patch 14, positions learned at 518 pixels, LayerScale; the variants with registers resize antialiased."""
    width, depth, heads = size
    return EncoderConfig(
        name=name,
        family="dinov2",
        patch=14,
        width=width,
        depth=depth,
        heads=heads,
        hidden=4 * width,
        registers=registers,
        grid=518 // 14,
        table_resize="bicubic_antialias" if registers else "bicubic_offset",
        layer_scale=True,
    )


def dinov3(name: str, size: tuple[int, int, int], swiglu: bool = False) -> EncoderConfig:
    """DINOv3: patch 16, RoPE, 4 storage tokens, LayerScale, no key bias. The "plus" sizes have a SwiGLU feed-forward
    of ratio 6, of which two thirds remain: 4 times the width in each branch.
    """
    width, depth, heads = size
    return EncoderConfig(
        name=name,
        family="dinov3",
        patch=16,
        width=width,
        depth=depth,
        heads=heads,
        hidden=4 * width,
        registers=4,
        rope_base=100.0,
        activation="swiglu" if swiglu else "gelu",
        norm_eps=1e-5,
        layer_scale=True,
        key_bias=False,
    )


COMPACT = dinov3("compact", (192, 12, 3)).with_(
    family="compact",
    rope_reference=14,  # coordinates on a fixed grid of 14 patches: relative offsets are the same at every size
    activation="gelu_tanh",
    key_bias=True,
)

CONFIGS: dict[str, EncoderConfig] = {
    config.name: config
    for config in (
        COMPACT,
        dino("dino_vits16", SMALL, 16),
        dino("dino_vits8", SMALL, 8),
        dino("dino_vitb16", BASE, 16),
        dino("dino_vitb8", BASE, 8),
        dinov2("dinov2_vits14", SMALL),
        dinov2("dinov2_vitb14", BASE),
        dinov2("dinov2_vitl14", LARGE),
        dinov2("dinov2_vits14_reg4", SMALL, registers=4),
        dinov2("dinov2_vitb14_reg4", BASE, registers=4),
        dinov2("dinov2_vitl14_reg4", LARGE, registers=4),
        dinov3("dinov3_vits16", SMALL),
        dinov3("dinov3_vits16plus", SMALL, swiglu=True),
        dinov3("dinov3_vitb16", BASE),
        dinov3("dinov3_vitl16", LARGE),
    )
}

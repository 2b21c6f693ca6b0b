"""CLIP's image encoders: the table of names.

Source: Radford et al., 2021, and the public code. The position table is resized as VisualAD does it: bilinear.
"""

from __future__ import annotations

from .config import EncoderConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip(name: str, size: tuple[int, int, int], patch: int, native: int) -> EncoderConfig:
    """CLIP ViT: QuickGELU, a norm before the blocks, no bias in the patch embedding, its own colour normalisation."""
    width, depth, heads = size
    return EncoderConfig(
        name=name,
        family="clip",
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        hidden=4 * width,
        grid=native // patch,
        table_resize="bilinear",
        activation="quick_gelu",
        norm_eps=1e-5,
        patch_bias=False,
        norm_pre=True,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )


CONFIGS: dict[str, EncoderConfig] = {
    config.name: config
    for config in (
        clip("clip_vitb16", (768, 12, 12), 16, 224),
        clip("clip_vitl14", (1024, 24, 16), 14, 224),
        clip("clip_vitl14_336", (1024, 24, 16), 14, 336),
    )
}

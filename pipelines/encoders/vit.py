"""The encoder: one plain pre-norm vision transformer for every family.

    x += ls1 * attention(norm1(x))
    x += ls2 * feed_forward(norm2(x))

What differs between DINO v1, v2, v3 and CLIP is in `EncoderConfig`; where patches are is in `positions.py`.

Sequence: [extra ..., class, registers ..., patches row by row]. `extra` are tokens that a head adds (VisualAD's anomaly
and normal tokens). A head that needs no more than patch features calls `features` or `taps`; one that adds tokens:

    tokens = encoder.tokens(images, extra=pair)              # [B, E + prefix + N, D], ready for the first block
    outputs = encoder.run(tokens, images.shape[-2:], blocks=(3, 6, 9, 12), extra=2)
    last = encoder.norm(outputs[-1])                         # raw outputs: the final norm is the caller's
    pair, patches = last[:, :2], last[:, 2 + encoder.prefix :]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ImageError, WeightsError
from .config import EncoderConfig
from .positions import LearnedPositions, RotaryPositions, rotate


class PatchEmbed(nn.Module):
    """Images [B, 3, H, W] -> patch tokens [B, N, D], row by row."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        patch = config.patch
        self.proj = nn.Conv2d(3, config.width, kernel_size=patch, stride=patch, bias=config.patch_bias)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        tokens: Tensor = self.proj(images)
        return tokens.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with fused qkv and, given a rotation, rotary positions on queries and keys."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        B, S, D = x.shape
        qkv = self.qkv(x).reshape(B, S, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        y = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj(y.transpose(1, 2).reshape(B, S, D))
        return mixed


class FeedForward(nn.Module):
    """Linear, activation, linear. For swiglu `fc1` holds gate and value rows, stacked, and is one product."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        branches = 2 if config.activation == "swiglu" else 1
        self.fc1 = nn.Linear(config.width, branches * config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        x = self.fc1(x)
        if self.activation == "gelu":
            x = F.gelu(x)
        elif self.activation == "gelu_tanh":
            x = F.gelu(x, approximate="tanh")
        elif self.activation == "quick_gelu":
            x = x * torch.sigmoid(1.702 * x)
        else:
            gate, value = x.chunk(2, dim=-1)
            x = F.silu(gate) * value
        projected: Tensor = self.fc2(x)
        return projected


class LayerScale(nn.Module):
    """A learned gain per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return x * self.gamma


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = FeedForward(config)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        x = x + self.ls2(self.mlp(self.norm2(x)))
        return x


class Encoder(nn.Module):
    """A frozen vision transformer: normalised images in, patch tokens out.

    Parameters do not ask for gradients (`requires_grad_(True)` to train one); there is no dropout, so `train()` and
    `eval()` are the same. Images are float [B, 3, H, W], RGB, normalised by `mean` and `std`, in the precision of the
    weights; H and W are any multiples of `patch`.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        D = config.width
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, D)) if config.registers else None
        self.learned = LearnedPositions(config) if config.grid is not None else None
        self.rotary = RotaryPositions(config) if config.rope_base is not None else None
        self.norm_pre = nn.LayerNorm(D, eps=config.norm_eps) if config.norm_pre else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(D, eps=config.norm_eps)
        self.requires_grad_(False)

    @property
    def width(self) -> int:
        """Channels of a token, D."""
        return self.config.width

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.config.depth

    @property
    def prefix(self) -> int:
        """Tokens before the patches that are the encoder's own: the class token and the registers."""
        return 1 + self.config.registers

    @property
    def mean(self) -> tuple[float, float, float]:
        """Per-channel mean (RGB, images in 0..1) that images are normalised with."""
        return self.config.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Per-channel standard deviation (RGB, images in 0..1) that images are normalised with."""
        return self.config.std

    def check_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches at this size in pixels, or ImageError naming the nearest sizes that fit."""
        patch = self.patch
        if height > 0 and width > 0 and height % patch == 0 and width % patch == 0:
            return height // patch, width // patch
        raise ImageError(
            f"{self.config.name} divides its input into patches of {patch} x {patch} pixels, so {height} x {width} "
            f"(height x width) does not fit: the nearest height is {_nearest(height, patch)}, "
            f"the nearest width {_nearest(width, patch)}"
        )

    def prepare(self, height: int, width: int, extra: int = 0) -> None:
        """Makes and keeps the position tables of this input size, so that an export holds them as constants."""
        rows, cols = self.check_size(height, width)
        if self.learned is not None:
            self.learned.patch_positions(rows, cols)
        if self.rotary is not None:
            self.rotary.rotation(rows, cols, extra + self.prefix, self.cls_token)

    def tokens(self, images: Tensor, extra: Tensor | None = None, extra_positions: Tensor | None = None) -> Tensor:
        """The sequence before the first block: [B, E + 1 + R + N, D], positions and `norm_pre` applied.

        `extra` [E, D] or [B, E, D] goes first. With learned positions each extra token gets the class token's position
        entry, or `extra_positions` [E, D]; with RoPE extra tokens have no position (they are not rotated).
        """
        B, channels, height, width = images.shape
        if channels != 3:
            raise ImageError(f"{self.config.name} takes RGB images [B, 3, H, W], not {channels} channels")
        rows, cols = self.check_size(height, width)
        patches = self.patch_embed(images)
        head: Tensor = self.cls_token
        if self.learned is not None:
            position = self.learned.class_position()
            head = head + position
            patches = patches + self.learned.patch_positions(rows, cols)
            if extra is not None:
                extra = extra + (position[0] if extra_positions is None else extra_positions)
        parts = [head.expand(B, -1, -1)]
        if self.register_tokens is not None:
            parts.append(self.register_tokens.expand(B, -1, -1))
        if extra is not None:
            parts.insert(0, extra.expand(B, -1, -1))
        sequence: Tensor = self.norm_pre(torch.cat((*parts, patches), dim=1))
        return sequence

    def run(self, tokens: Tensor, size: Sequence[int], blocks: Sequence[int], extra: int = 0) -> list[Tensor]:
        """Raw outputs [B, E + 1 + R + N, D] of these 1-based blocks, in the order asked, all tokens, no final norm.

        `tokens` come from `tokens()` at the same `extra` (the number of extra tokens) and `size`, the images'
        (height, width) in pixels. Blocks after the last one asked for are not run.
        """
        self._check_blocks(blocks)
        rotation = None
        if self.rotary is not None:
            rows, cols = self.check_size(int(size[0]), int(size[1]))
            rotation = self.rotary.rotation(rows, cols, extra + self.prefix, tokens)
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, rotation)
            if number in blocks:
                outputs[number] = tokens
            if number == max(blocks):
                break
        return [outputs[number] for number in blocks]

    def features(self, images: Tensor, last: int = 1) -> Tensor:
        """Patch tokens [B, N, D] of the `last`-th last block with the final norm applied (1 = the last block).

        This is `get_intermediate_layers(last)[0]` of the originals without class and register tokens.
        """
        if not 1 <= last <= self.depth:
            raise WeightsError(
                f"{self.config.name} has {self.depth} blocks, so last must be 1 to {self.depth}, not {last}"
            )
        (patches,) = self.taps(images, (self.depth - last + 1,))
        normed: Tensor = self.norm(patches)
        return normed

    def taps(self, images: Tensor, blocks: Sequence[int]) -> tuple[Tensor, ...]:
        """Raw outputs of these 1-based blocks, patch tokens only, no final norm: [B, N, D] each, in the order asked."""
        outputs = self.run(self.tokens(images), images.shape[-2:], blocks)
        return tuple(output[:, self.prefix :] for output in outputs)

    def forward(self, images: Tensor) -> Tensor:
        """`features(images)`."""
        return self.features(images)

    def _check_blocks(self, blocks: Sequence[int]) -> None:
        if not blocks or min(blocks) < 1 or max(blocks) > self.depth:
            raise WeightsError(
                f"{self.config.name} has blocks 1 to {self.depth}; asked for {', '.join(map(str, blocks)) or 'none'}"
            )

    def init_weights(self, seed: int | None = None) -> Encoder:
        """Draws every weight anew: normal with deviation 0.02 cut at two deviations; biases 0, norms and gains 1."""
        generator = None if seed is None else torch.Generator(self.cls_token.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04, generator=generator)
            else:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        if self.learned is not None:
            self.learned.resized.forget()
        return self


def _nearest(pixels: int, patch: int) -> str:
    below, above = pixels // patch * patch, -(-pixels // patch) * patch
    if pixels < patch:
        return str(patch)
    return str(pixels) if below == above else f"{below} or {above}"

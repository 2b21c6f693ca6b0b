"""Frozen vision transformers: DINO v1, v2, v3, CLIP and the compact encoder that ships with the package.

    encoder = compact()                                # or from_checkpoint("dinov2_vits14_pretrain.pth")
    features = encoder.features(images, last=3)        # [B, N, D]: third-last block, final norm applied
    taps = encoder.taps(images, blocks=(3, 6, 9))      # raw block outputs, patch tokens only

`vit.py` is the model, `config.py` what families differ in, `dino.py` and `clip.py` their tables of names,
`positions.py` position tables and RoPE, `checkpoints.py` and `forms.py` the reading of published weights.
"""

from .checkpoints import CONFIGS, compact, create, from_checkpoint, save
from .config import EncoderConfig
from .vit import Encoder

__all__ = ["CONFIGS", "Encoder", "EncoderConfig", "compact", "create", "from_checkpoint", "save"]

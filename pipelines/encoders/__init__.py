"""Frozen vision transformers: DINO v1, v2, v3, CLIP and the compact encoder that ships with the package."""

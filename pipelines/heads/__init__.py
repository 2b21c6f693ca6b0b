"""The detection heads, by the names that bundles and commands use."""

from __future__ import annotations

from typing import Any

from pipelines.heads.base import Head
from pipelines.heads.foundad import FoundAD
from pipelines.heads.memory_bank import MemoryBank
from pipelines.heads.visualad import VisualAD
from pipelines.heads.vitad import ViTAD

HEADS: dict[str, type[Head[Any]]] = {head.name: head for head in (FoundAD, MemoryBank, VisualAD, ViTAD)}

__all__ = ["HEADS", "FoundAD", "Head", "MemoryBank", "ViTAD", "VisualAD"]

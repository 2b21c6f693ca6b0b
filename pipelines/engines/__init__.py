"""Engines: ways to run a bundle's pipeline, behind one interface.

    engine = engines.load(Bundle.open(path))
    scores, maps = engine.score([frame])        # uint8 [H, W, C] -> float32 [1, R], float32 [1, R, h, w]

Importing this package imports neither torch nor any engine's library.
"""

from pipelines.engines.base import Engine, EngineKey, EngineOptions, Progress, Scored
from pipelines.engines.frame import FrameSpec
from pipelines.engines.registry import DEFAULT_ORDER, ENGINES, Prepared, build, engine_class, load, prepare

__all__ = [
    "DEFAULT_ORDER",
    "ENGINES",
    "Engine",
    "EngineKey",
    "EngineOptions",
    "FrameSpec",
    "Prepared",
    "Progress",
    "Scored",
    "build",
    "engine_class",
    "load",
    "prepare",
]

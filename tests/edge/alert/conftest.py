from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge.messages import Decision, FrameId, FrameRef, FrameStatus, RegionScore, Score, ScoreStatus, Verdict
from pipelines.images import PixelFormat

MakeFrame = Callable[..., FrameRef]
MakeScore = Callable[..., Score]
MakeVerdict = Callable[..., Verdict]


@pytest.fixture(scope="session")
def make_frame() -> MakeFrame:
    def make(sequence: int = 0, *, camera: str = "top", epoch: int = 1000, **changes: Any) -> FrameRef:
        values: dict[str, Any] = {
            "id": FrameId(line="press", camera=camera, epoch=epoch, sequence=sequence),
            "part": sequence + 1,
            "trigger_ns": sequence * 1_000_000,
            "host": "here",
            "age_ns": 0,
            "deadline_ns": 500_000_000,
            "status": FrameStatus.OK,
            "pixel_format": PixelFormat.MONO8,
            "height": 48,
            "width": 64,
            "ring": "edge-inspect.press.top",
            "slot": 0,
            "generation": 2,
        }
        return FrameRef(**(values | changes))

    return make


@pytest.fixture(scope="session")
def make_score() -> MakeScore:
    def make(frame: FrameRef, score: float = 0.5, *, status: ScoreStatus = ScoreStatus.OK, **changes: Any) -> Score:
        region = RegionScore(
            name="part",
            score=score,
            limit=1.0,
            floor=0.0,
            height=6,
            width=8,
            patches=np.linspace(0.0, score, 48, dtype="<f4").tobytes(),
        )
        values: dict[str, Any] = {
            "frame": frame,
            "status": status,
            "bundle": "b1" * 16,
            "engine": "torch",
            "regions": [region] if status is ScoreStatus.OK else [],
            "infer_ns": 5_000_000,
        }
        return Score(**(values | changes))

    return make


@pytest.fixture(scope="session")
def make_verdict() -> MakeVerdict:
    def make(
        sequence: int = 0, decision: str = "pass", *, camera: str = "top", epoch: int = 1000, **changes: Any
    ) -> Verdict:
        judged = decision != "unjudged"
        values: dict[str, Any] = {
            "id": FrameId(line="press", camera=camera, epoch=epoch, sequence=sequence),
            "part": sequence + 1,
            "decision": Decision(decision),
            "reason": "" if judged else "no score before the deadline",
            "percent": {"pass": 40.0, "reject": 140.0}.get(decision),
            "score": {"pass": 0.4, "reject": 1.4}.get(decision),
            "limit": 1.0 if judged else None,
            "region": "part" if judged else None,
            "bundle": "b1" * 16 if judged else None,
            "engine": "torch" if judged else None,
            "latency_ns": 20_000_000,
            "infer_ns": 5_000_000 if judged else None,
            "decided_at_ns": 1_700_000_000_000_000_000 + sequence * 100_000_000,
            "camera_frame": sequence,
            "encoder": -5,
            "origin": f"good/{sequence}.png",
        }
        return Verdict(**(values | changes))

    return make

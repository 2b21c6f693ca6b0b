"""The exported ONNX file scores like torch, for any batch, and is refused rather than wrong."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import engines
from pipelines.bundle import Bundle
from pipelines.engines import FrameSpec
from pipelines.engines.onnx import export_onnx
from pipelines.errors import EngineError, ParityError
from pipelines.images import PixelFormat
from pipelines.parity import TOLERANCES, Tolerance

ort = pytest.importorskip("onnxruntime", reason="ONNX export needs pip install 'edge-inspect[onnx]'")


def test_onnxruntime_equals_torch_for_any_batch(
    bundles: Callable[..., Bundle], pictures: Callable, tmp_path: Path
) -> None:
    bundle = bundles()
    spec = FrameSpec(pixel_format=PixelFormat.BGR8, height=90, width=120)
    report = export_onnx(bundle, tmp_path / "m.onnx", spec)
    assert report is not None
    assert report.passed
    assert [file.name for file in tmp_path.glob("*") if file.is_file()] == ["m.onnx"]
    frames = np.stack([pictures(90, 120, 3, seed=i) for i in range(3)])
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    scores, maps = session.run(["scores", "maps"], {"frames": frames})
    with engines.load(bundle, ("torch",), frame=spec) as engine:
        wanted = engine.score(list(frames))
    np.testing.assert_allclose(scores, wanted.scores, atol=1e-5)
    np.testing.assert_allclose(maps, wanted.maps, atol=2e-5)
    with pytest.raises(EngineError, match="exists already"):
        export_onnx(bundle, tmp_path / "m.onnx")


def test_nothing_is_written_without_parity(
    bundles: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "fp32", Tolerance(score=-1.0, map=-1.0))
    with pytest.raises(ParityError, match="onnxruntime does not reproduce"):
        export_onnx(bundles(frame=(80, 96)), tmp_path / "m.onnx")
    assert not list(tmp_path.glob("*onnx*"))


def test_missing_library(bundles: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EngineError, match=r"pip install 'edge-inspect\[onnx\]'"):
        export_onnx(bundles(frame=(80, 96)), tmp_path / "m.onnx")

"""Exported graphs: static shapes, position tables as constants, the same numbers through OpenVINO and ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.encoders import Encoder, from_checkpoint

VARIANTS: dict[str, dict[str, Any]] = {
    "dino": {"family": "dino", "patch": 16, "grid": 4},
    "dinov2 with registers": {"family": "dinov2", "patch": 14, "grid": 5, "registers": 4},
    "dinov3 plus": {"family": "dinov3", "swiglu": True},
}


class Tapped(nn.Module):
    """An encoder with two extra tokens, as a head would run it."""

    def __init__(self, encoder: Encoder, extra: Tensor) -> None:
        super().__init__()
        self.encoder, self.extra = encoder, nn.Parameter(extra)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.encoder.tokens(images, self.extra)
        first, second = self.encoder.run(tokens, images.shape[-2:], (1, 2), extra=2)
        return self.encoder.norm(first), second


@pytest.fixture(params=VARIANTS)
def tapped(request: pytest.FixtureRequest, procedural: SimpleNamespace) -> tuple[Tapped, Tensor]:
    encoder = from_checkpoint(procedural.weights(procedural.shapes(depth=3, **VARIANTS[request.param])))
    size = 3 * encoder.patch, 5 * encoder.patch
    encoder.prepare(*size, extra=2)
    return Tapped(encoder, procedural.array("pair", (2, 128), 0.3)), procedural.array("x", (2, 3, *size), 2.0)


def test_export_holds_the_tables_as_constants(tapped: tuple[Tapped, Tensor]) -> None:
    model, images = tapped
    program = torch.export.export(model, (images,))
    for ours, theirs in zip(program.module()(images), model(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {
        name for name in called if any(part in name for part in ("upsample", "cos", "sin.", "arange", "meshgrid"))
    }
    assert sum("scaled_dot_product_attention" in str(node.target) for node in program.graph.nodes) == 2


def test_export_without_tables_computes_them(tapped: tuple[Tapped, Tensor]) -> None:
    """Nothing traced is kept: the model still works after an export that found no tables."""
    model, images = tapped
    expected = model(images)
    fresh = Encoder(model.encoder.config)
    fresh.load_state_dict(model.encoder.state_dict())
    again = Tapped(fresh, model.extra.detach())
    program = torch.export.export(again, (images,))
    assert not list(fresh.buffers())
    for got in (program.module()(images), again(images)):
        torch.testing.assert_close(got[1], expected[1], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, when a program is copied
def test_openvino(tapped: tuple[Tapped, Tensor]) -> None:
    ov = pytest.importorskip("openvino")
    model, images = tapped
    converted = ov.convert_model(torch.export.export(model, (images,)))
    compiled = ov.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    got = compiled(images.numpy())
    for i, expected in enumerate(model(images)):
        np.testing.assert_allclose(got[i], expected.detach().numpy(), atol=2e-4)


def test_onnx(tapped: tuple[Tapped, Tensor], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    model, images = tapped
    path = tmp_path / "encoder.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(model, (images,), dynamo=True, verbose=False).save(str(path))  # type: ignore[union-attr]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for ours, expected in zip(got, model(images), strict=True):
        np.testing.assert_allclose(ours, expected.detach().numpy(), atol=2e-4)


def test_half_precision_exports(tapped: tuple[Tapped, Tensor]) -> None:
    model, images = tapped
    expected = model(images)
    half = model.half()
    program = torch.export.export(half, (images.half(),))
    dtypes = {node.meta["val"].dtype for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)}
    assert dtypes == {torch.float16}
    torch.testing.assert_close(program.module()(images.half())[1].float(), expected[1], atol=0.05, rtol=0)

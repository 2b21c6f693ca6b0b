"""Rehearsing an engine's arithmetic in torch, where no GPU can run it: sound graphs pass, planted faults are caught."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.bundle import Bundle
from pipelines.engines.tensorrt_ahead import build_ahead, rehearsal
from pipelines.engines.tensorrt_graph import EngineGraph
from pipelines.errors import ParityError
from pipelines.pipeline import Pipeline

HEADS = {
    "foundad": {"name": "foundad", "embed": 32, "depth": 1, "heads": 2, "last": 1},
    "memory_bank": {"name": "memory_bank", "size": 16},
}


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_sound_graphs_pass(bundles: Callable[..., Bundle], head: str, precision: str) -> None:
    report = rehearsal(bundles(frame=(80, 96), head=HEADS[head]), precision)
    assert report is not None
    assert report.passed, [row.text for row in report.rows]
    assert (report.precision, len(report.rows)) == (precision, 4)


def test_only_encoder_and_head_are_halved(new_pipeline: Callable[..., Pipeline]) -> None:
    """The bank, the resize's weights and the normalisation decide the score, and stay float32."""
    graph = EngineGraph(new_pipeline(frame=(80, 96)), "fp16")
    kept = {name for name, buffer in graph.named_buffers() if buffer.dtype == torch.float32}
    assert {"pipeline.head.bank", "pipeline.preprocess.scale", "pipeline.preprocess.shift"} <= kept
    assert any("weights" in name for name in kept)
    assert all(parameter.dtype == torch.float16 for parameter in graph.parameters())


def _overflow(pipeline: Pipeline) -> None:
    """The second layer of a feed-forward grows and its input shrinks: the same in float32, beyond 65504 in fp16."""
    mlp = pipeline.encoder.blocks[0].mlp
    mlp.fc1.weight.mul_(2.0**20)
    mlp.fc1.bias.mul_(2.0**20)
    mlp.fc2.weight.mul_(2.0**-20)


def _swapped(pipeline: Pipeline) -> None:
    first, second = (block.attn.qkv for block in pipeline.encoder.blocks)
    first.weight, second.weight = second.weight, first.weight


def _wrong_normalisation(pipeline: Pipeline) -> None:
    pipeline.preprocess.scale.mul_(255.0)  # as if the pixels had been 0 to 1 already


@pytest.mark.parametrize("fault", [_overflow, _swapped, _wrong_normalisation])
def test_planted_faults_are_caught(
    new_bundle: Callable[..., Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Pipeline], None],
) -> None:
    bundle = new_bundle(tmp_path / "b", frame=(80, 96))
    original = Bundle.pipeline

    def faulty(self: Bundle, config: object = None) -> Pipeline:
        pipeline = original(self, config)  # type: ignore[arg-type]
        with torch.no_grad():
            fault(pipeline)
        return pipeline

    sound = rehearsal(bundle, "fp16")
    assert sound is not None
    assert sound.passed
    monkeypatch.setattr(Bundle, "pipeline", faulty)
    report = rehearsal(bundle, "fp16")
    assert report is not None
    assert not report.passed
    with pytest.raises(ParityError, match="may not judge parts"):
        build_ahead(bundle, "sm86")  # refused before anything is built


def test_overflow_is_a_matter_of_fp16_alone(new_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """An encoder that fp16 cannot hold is fine in bfloat16 and float32, which precision auto then takes."""
    bundle = new_bundle(tmp_path / "b", frame=(80, 96))
    pipeline = bundle.pipeline()
    linear = pipeline.encoder.blocks[0].mlp
    with torch.no_grad():
        linear.fc1.bias.add_(1e5)
        linear.fc2.bias.sub_(linear.fc2.weight.sum(1) * 1e5)
    frame = torch.from_numpy(bundle.reference().frames[0][None].copy())
    with torch.inference_mode():
        assert torch.isfinite(pipeline(frame)[0]).all()
        assert not torch.isfinite(EngineGraph(pipeline, "fp16")(frame)[0]).all()

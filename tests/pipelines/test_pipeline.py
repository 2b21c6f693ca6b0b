from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.config import PipelineConfig
from pipelines.encoders.config import EncoderConfig
from pipelines.encoders.vit import Encoder
from pipelines.errors import ImageError, InspectError, WeightsError
from pipelines.heads import HEADS, FoundAD, MemoryBank
from pipelines.images import PixelFormat
from pipelines.pipeline import Pipeline
from pipelines.regions import Region

FRAME = (70, 90)
HEAD_CONFIGS: dict[str, dict[str, Any]] = {
    "foundad": {"name": "foundad", "embed": 24, "depth": 2, "heads": 2, "top_k": 3},
    "memory_bank": {"name": "memory_bank", "size": 60, "blocks": [2, 3]},
    "visualad": {"name": "visualad", "taps": [1, 3]},
    "vitad": {"name": "vitad", "heads": 2, "teachers": [1, 2]},
}


def encoder_config(family: str = "dinov3", **changes: Any) -> EncoderConfig:
    learned = family != "dinov3"
    values: dict[str, Any] = {
        "name": f"tiny-{family}",
        "family": family,
        "patch": 8,
        "width": 32,
        "depth": 3,
        "heads": 2,
        "hidden": 64,
        "registers": 0 if learned else 2,
        "grid": 5 if learned else None,
        "table_resize": "bicubic_antialias" if learned else None,
        "rope_base": None if learned else 100.0,
        "layer_scale": not learned,
    }
    return EncoderConfig(**{**values, **changes})


def config(head: str | dict[str, Any] = "foundad", family: str = "dinov3", **changes: Any) -> PipelineConfig:
    values: dict[str, Any] = {
        "encoder": encoder_config(family).to_dict(),
        "head": head if isinstance(head, dict) else HEAD_CONFIGS[head],
        "input_size": (32, 48),
        "pixel_format": PixelFormat.MONO8,
        "frame": FRAME,
        "score": {"rule": "topk", "k": 3},
    }
    return PipelineConfig.model_validate({**values, **changes})


def build(made: PipelineConfig, seed: int = 0) -> Pipeline:
    """A pipeline with random weights large enough that scores differ from patch to patch."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = Pipeline(made)
    with torch.no_grad():
        for parameter in (*pipeline.encoder.parameters(), *pipeline.head.parameters()):
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
        if isinstance(pipeline.head, MemoryBank):
            normal = frames(pipeline, 8, seed=99)
            pipeline.head.fit(pipeline.head.features(pipeline.encoder, pipeline.preprocess(normal)))
    return pipeline.requires_grad_(False)


def frames(pipeline: Pipeline, count: int, size: tuple[int, int] | None = None, seed: int = 1) -> Tensor:
    height, width = size or pipeline.config.frame or FRAME
    shape = (count, height, width, pipeline.config.pixel_format.channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


REGIONS = (
    Region(name="left", x_px=0, y_px=3, width_px=41, height_px=60),
    Region(name="right", x_px=40, y_px=0, width_px=50, height_px=70, keep=("001111", "001111", "111111", "111110")),
)


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("rule", ["topk", "published"])
def test_shapes_types_and_independence_of_the_batch(head: str, rule: str) -> None:
    pipeline = build(config(head, regions=REGIONS, score={"rule": rule, "k": 3}))
    batch = frames(pipeline, 3)
    scores, maps = pipeline(batch)
    assert (scores.shape, maps.shape) == ((3, 2), (3, 2, 4, 6))
    assert scores.dtype == maps.dtype == torch.float32
    assert scores.std() > 0
    for i in range(3):
        one, one_map = pipeline(batch[i : i + 1])
        assert torch.allclose(one[0], scores[i], atol=1e-5)
        assert torch.allclose(one_map[0], maps[i], atol=1e-5)


@pytest.mark.parametrize("head", list(HEADS))
def test_the_state_dict_and_the_configuration_hold_everything(head: str) -> None:
    pipeline = build(config(head, "dino", regions=REGIONS))
    text = pipeline.config.model_dump_json()
    again = Pipeline(PipelineConfig.model_validate_json(text))
    again.load_state_dict(pipeline.state_dict())
    assert {key.split(".")[0] for key in pipeline.state_dict()} == {"encoder", "head"}
    batch = frames(pipeline, 2)
    for mine, theirs in zip(again(batch), pipeline(batch), strict=True):
        assert torch.equal(mine, theirs)


def test_topk_is_over_each_region_by_itself_and_skips_ignored_patches() -> None:
    pipeline = build(config("foundad", regions=REGIONS))
    batch = frames(pipeline, 2)
    scores, maps = pipeline(batch)
    keep = torch.from_numpy(REGIONS[1].keep_grid((4, 6)))
    plain = build(config("foundad", regions=(REGIONS[0], REGIONS[1].model_copy(update={"keep": None}))))(batch)[1]
    assert torch.equal(maps[:, 0], plain[:, 0])
    assert torch.equal(maps[:, 1], torch.where(keep, plain[:, 1], 0.0))
    for r, mask in enumerate((torch.ones_like(keep), keep)):
        expected = plain[:, r][:, mask].topk(3, dim=-1).values.mean(-1)
        assert torch.allclose(scores[:, r], expected)


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("rule", ["topk", "published"])
def test_what_lies_in_an_ignored_area_cannot_change_the_score_by_itself(head: str, rule: str) -> None:
    """The head's map is replaced by one whose largest patch is ignored."""
    pipeline = build(config(head, regions=REGIONS[1:], score={"rule": rule, "k": 3}))
    maps = torch.rand(1, 1, 4, 6)
    quiet, _ = pipeline.scoring(maps, pipeline.head)
    maps[0, 0, 0, 0] = 1000.0
    loud, shown = pipeline.scoring(maps, pipeline.head)
    assert torch.equal(quiet, loud)
    assert shown[0, 0, 0, 0] == pipeline.head.floor


@pytest.mark.parametrize("head", list(HEADS))
def test_half_precision_stays_close_and_answers_in_float32(head: str) -> None:
    pipeline = build(config(head))
    batch = frames(pipeline, 2)
    scores, maps = pipeline(batch)
    half_scores, half_maps = pipeline.half()(batch)
    assert half_scores.dtype == half_maps.dtype == torch.float32
    assert pipeline.encoder.cls_token.dtype == torch.float16
    spread = float(maps.max() - maps.min())
    assert (half_maps - maps).abs().max() < 0.02 * spread
    assert (half_scores - scores).abs().max() < 0.02 * spread


def export(pipeline: Pipeline, batch: Tensor, dynamic: Any = None) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(pipeline.prepare(), (batch,), dynamic_shapes=dynamic, strict=False)


def close(mine: Any, pipeline: Pipeline, batch: Tensor, relative: float) -> None:
    """Scores and maps within `relative` of the spread of the map."""
    scores, maps = pipeline(batch)
    spread = float(maps.max() - maps.min())
    assert spread > 0
    for got, expected in zip(mine, (scores, maps), strict=True):
        assert np.shape(got) == tuple(expected.shape)
        assert np.abs(np.asarray(got) - expected.numpy()).max() <= relative * spread


def openvino_model(program: torch.export.ExportedProgram) -> Any:
    """By the frontend itself; `openvino.convert_model` would report usage over the network."""
    pytest.importorskip("openvino")
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoder = TorchFXPythonDecoder.from_exported_program(program)  # must live until the model is converted
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def run_openvino(model: Any, batch: Tensor) -> tuple[Any, Any]:
    import openvino

    results = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([batch.numpy()])
    return results[0], results[1]


@pytest.mark.parametrize(("head", "pixel_format"), list(zip(HEADS, ("BGR8", "BayerGR8", "Mono8", "RGB8"), strict=True)))
def test_one_graph_equal_in_every_runtime(head: str, pixel_format: str, tmp_path: Any) -> None:
    """torch.export 1e-5, OpenVINO and ONNX Runtime in float32 1e-4 of the map's spread, against eager torch.

    The published rules hold the larger graph: Top-K is part of them.
    """
    family = "dino" if head == "vitad" else "dinov3"
    score = {"rule": "published"}
    pipeline = build(config(head, family, regions=REGIONS, score=score, pixel_format=pixel_format))
    batch = frames(pipeline, 2)
    program = export(pipeline, batch)
    close(program.module()(batch), pipeline, batch, 1e-5)
    close(run_openvino(openvino_model(program), batch), pipeline, batch, 1e-4)

    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "pipeline.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, f=path, dynamo=True, opset_version=20, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    close(session.run(None, {session.get_inputs()[0].name: batch.numpy()}), pipeline, batch, 1e-4)


@pytest.mark.parametrize("pixel_format", ["BGR8", "BayerRG8"])
def test_frames_of_any_size_in_one_graph(pixel_format: str) -> None:
    """Without a frame size the graph takes any, and is static behind the resize."""
    pipeline = build(config("memory_bank", frame=None, pixel_format=pixel_format))
    cell = 2 if pixel_format.startswith("Bayer") else 1
    rows, columns = torch.export.Dim("rows", min=2, max=16000), torch.export.Dim("columns", min=2, max=16000)
    program = export(pipeline, frames(pipeline, 1, (64, 96)), ({1: cell * rows, 2: cell * columns},))
    model = openvino_model(program)
    assert model.outputs[1].partial_shape.to_shape() == (1, 1, 4, 6)
    for size in [(64, 96), (30, 44), (512, 20), (1000, 1400)]:
        batch = frames(pipeline, 1, size)
        close(run_openvino(model, batch), pipeline, batch, 1e-4)


def test_judging_is_the_part_behind_the_preprocessing() -> None:
    pipeline = build(config("memory_bank", regions=REGIONS))
    batch = frames(pipeline, 2)
    for mine, theirs in zip(pipeline.judge(pipeline.preprocess(batch)), pipeline(batch), strict=True):
        assert torch.equal(mine, theirs)


def test_an_encoder_and_a_head_that_exist_are_taken_as_they_are() -> None:
    made = config("foundad")
    encoder = Encoder(encoder_config())
    head = FoundAD(made.head, width=32, depth=3, grid=(4, 6), patch=8)  # type: ignore[arg-type]
    pipeline = Pipeline.from_config(made, encoder, head)
    assert pipeline.encoder is encoder
    assert pipeline.head is head
    with pytest.raises(InspectError, match="encoder is not the one"):
        Pipeline.from_config(made, Encoder(encoder_config(depth=2)))
    with pytest.raises(WeightsError, match="width 48, tiny-dinov3 has 32"):
        Pipeline.from_config(made, encoder, FoundAD(made.head, width=48, depth=3, grid=(4, 6), patch=8))  # type: ignore[arg-type]
    with pytest.raises(InspectError, match="head is not the one"):
        Pipeline.from_config(made, encoder, FoundAD(made.head, width=32, depth=3, grid=(4, 4), patch=8))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": None, "regions": REGIONS}, "regions need frames of one size"),
        ({"regions": (REGIONS[0], REGIONS[0])}, "same name"),
        ({"frame": (50, 90), "regions": REGIONS}, "outside the frame of 90 x 50"),
        ({"frame": (71, 90), "pixel_format": "BayerRG8"}, "even height and width"),
        ({"head": {"name": "padim"}}, "padim"),
        ({"head": {"name": "foundad", "dpeth": 3}}, "dpeth"),
        ({"head": {"name": "memory_bank", "size": 9, "pool": 2}}, "odd"),
        ({"colour": 1}, "colour"),
        ({"score": {"rule": "topk", "k": 0}}, "greater than or equal to 1"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, InspectError), match=message):
        config(**changes)


def test_weights_and_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ImageError, match="does not fit"):
        Pipeline(config(input_size=(33, 48)))
    with pytest.raises(InspectError, match="has 24 patches to judge, fewer than the 25"):
        Pipeline(config(score={"rule": "topk", "k": 25}))
    with pytest.raises(InspectError, match="region 'right' has 19 patches to judge, fewer than the 20"):
        Pipeline(config(regions=REGIONS, score={"rule": "topk", "k": 20}))
    published = {"head": {**HEAD_CONFIGS["foundad"], "top_k": 30}, "score": {"rule": "published"}}
    with pytest.raises(InspectError, match="fewer than the 30"):
        Pipeline(config(**published))
    with pytest.raises(InspectError, match="drawn for 4x6 patches, the input has 6x6"):
        Pipeline(config(regions=REGIONS, input_size=(48, 48)))

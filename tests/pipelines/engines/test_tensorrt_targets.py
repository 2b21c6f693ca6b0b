"""What a TensorRT engine may be built for, and every refusal in our own words. No TensorRT needed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines import engines
from pipelines.bundle import Bundle
from pipelines.engines import EngineOptions, cache
from pipelines.engines.cuda_engine import batch_of
from pipelines.engines.tensorrt import TensorRtEngine, device_of, key_for, target_of
from pipelines.engines.tensorrt_ahead import build_ahead
from pipelines.engines.tensorrt_process import PYTHON, builder_library, builder_python
from pipelines.engines.tensorrt_targets import Batch, capability, check_precision, parse_target
from pipelines.errors import EngineError

FIXED = {"frame": (80, 96)}
RTX = "tensorrt_rtx 1.5.0.114"


@pytest.mark.parametrize(
    ("text", "name"), [("SM86", "sm86"), ("8.9", "sm89"), ("sm_120", "sm120"), ("Default", "default"), ("75", "sm75")]
)
def test_targets_are_read_as_people_write_them(text: str, name: str) -> None:
    assert parse_target(text) == name
    assert capability(name) == (None if name == "default" else int(name[2:]))


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("sm87", r"SM87 \(Jetson Orin\).*JetPack's TensorRT.*export --onnx"),
        ("sm72", "Jetson Xavier"),
        ("sm110", "Jetson Thor"),
        ("sm90", r"SM90 \(H100, H200\).*edge-inspect\[tensorrt\].*there"),
        ("sm100", "data-centre"),
        ("sm61", "builds for default, sm75, sm80, sm86, sm89, sm120, sm121"),
        ("rtx4090", "builds for default"),
    ],
)
def test_other_gpus_are_refused_by_name_with_what_to_do(text: str, advice: str) -> None:
    with pytest.raises(EngineError, match=advice):
        parse_target(text)


@pytest.mark.parametrize(
    ("precision", "sm", "words"),
    [
        ("fp8", 86, "fp8 needs .*SM89 or newer.*SM86; build with --precision fp16"),
        ("fp8", None, "any since SM80"),
        ("fp32", 75, "fp32 needs .*SM80"),
        ("bf16", 75, "--precision fp16"),
        ("fp4", 120, "computes in fp16, bf16, fp32, int8, fp8, not fp4"),
    ],
)
def test_precisions_that_a_gpu_does_not_have(precision: str, sm: int | None, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        check_precision(precision, sm, "it")


def test_precisions_that_a_gpu_has() -> None:
    for precision, sm in (("fp16", 75), ("fp16", None), ("bf16", 86), ("fp8", 89), ("fp8", 120), ("fp32", 80)):
        check_precision(precision, sm, "it")


def test_batches() -> None:
    assert (Batch.parse("4"), Batch.parse("1:8"), str(Batch(1, 8)), str(Batch(4, 4))) == (
        Batch(4, 4),
        Batch(1, 8),
        "1:8",
        "4",
    )
    assert Batch(1, 8).profiles == ((1, 1), (2, 8))  # a single frame is tuned for by itself
    assert Batch(2, 6).profiles == ((2, 6),)
    assert Batch(1, 1).profiles == ((1, 1),)
    for wrong in ("0", "8:1", "1:65", "1-8", "", "all"):
        with pytest.raises(EngineError, match="batch"):
            Batch.parse(wrong)


def test_frames_of_any_size_are_refused_with_the_option(bundles: Callable[..., Bundle]) -> None:
    with pytest.raises(EngineError, match=r"one frame size, and this bundle takes Mono8 any size.*--frame-size WxH"):
        build_ahead(bundles(), "sm86")


def test_keys_tell_machines_precisions_shapes_and_weights_apart(bundles: Callable[..., Bundle]) -> None:
    bundle = bundles(**FIXED)

    def key(**changes: str) -> engines.EngineKey:
        made = {"precision": "fp16", "device": "SM86", "library": RTX, "batch": "1:8", **changes}
        options = EngineOptions(batch=made["batch"])
        return key_for(bundle, bundle.config, made["precision"], options, made["device"], made["library"])

    first = key()
    assert first.name.startswith("tensorrt-")
    others = [
        key(precision="bf16"),
        key(device="SM89"),
        key(library="tensorrt_rtx 1.5.0.115"),
        key(batch="1"),
        dataclasses.replace(first, weights="0" * 64),
        dataclasses.replace(first, config="0" * 64),
        dataclasses.replace(first, graph=first.graph + 1),
    ]
    assert len({each.name for each in (first, *others)}) == 8
    assert batch_of(key(batch="2:6")) == Batch(2, 6)
    assert [target_of(key(device=device_of(name))) for name in ("sm120", "default")] == ["sm120", "default"]
    assert target_of(key(library="tensorrt 11.0.0.1, driver 580.65", device="NVIDIA H200 (SM90)")) is None

    serves = TensorRtEngine.serves
    assert serves(key(batch="1"), first)
    assert serves(key(device=device_of("default")), first)
    assert not serves(key(device="SM89"), first)
    assert not serves(key(precision="bf16"), first)
    assert not serves(key(device=device_of("default")), key(device="SM75"))
    assert not serves(key(library="tensorrt_rtx 1.4.0.0"), first)


def test_an_engine_for_another_batch_is_found(bundles: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = bundles(**FIXED)
    built = key_for(bundle, bundle.config, "fp16", EngineOptions(batch="1:4"), "SM86", RTX)
    wanted = key_for(bundle, bundle.config, "fp16", None, "SM86", RTX)
    folder = cache.store(bundle, built, lambda place: (place / "engine.plan").write_bytes(b"plan") and None)
    assert cache.find(bundle, wanted) is None
    assert cache.find_other(bundle, lambda key: TensorRtEngine.serves(key, wanted)) == (folder, built)
    (folder / "engine.plan").write_bytes(b"other")
    assert cache.find_other(bundle, lambda key: TensorRtEngine.serves(key, wanted)) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_gpu_the_next_engine_judges(bundles: Callable[..., Bundle]) -> None:
    refused: dict[str, str] = {}
    with engines.load(bundles(**FIXED), ("tensorrt", "torch_cuda", "torch"), on_refused=refused.__setitem__) as engine:
        assert engine.name == "torch"
    assert set(refused) == {"tensorrt", "torch_cuda"}
    for name, reason in refused.items():
        assert f"engine {name} needs" in reason
        assert "engine" in reason.partition("openvino")[0]


def test_a_missing_builder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PYTHON, str(tmp_path / "python"))
    with pytest.raises(EngineError, match=f"{PYTHON}=.*there is no such program"):
        builder_python()
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'it is broken' >&2\nexit 3\n")
    fake.chmod(0o755)
    with pytest.raises(EngineError, match="it is broken"):
        builder_library(builder_python())

"""Real TensorRT-RTX engines, built here without a GPU, each in a process of its own.

They need torch-tensorrt-rtx in this Python, or in `.peers/tensorrt` of the checkout (`.ci/peers` puts it there).
"""

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge.cli_bundle import app
from pipelines.bundle import Bundle
from pipelines.engines import EngineOptions, tensorrt_process
from pipelines.engines.tensorrt_ahead import build_ahead
from pipelines.engines.tensorrt_process import PYTHON, builder_library, builder_python
from pipelines.engines.tensorrt_worker import Request
from pipelines.errors import EngineError

PROJECT = Path(__file__).resolve().parents[3]
PEER = PROJECT / ".peers" / "tensorrt" / "bin" / "python"
FIXED = {"frame": (80, 96)}


@pytest.fixture(scope="session", autouse=True)
def python() -> Any:
    """The Python that builds, in the variable that names it."""
    if PYTHON not in os.environ and importlib.util.find_spec("torch_tensorrt") is None:
        if not PEER.exists():
            pytest.skip("needs torch-tensorrt-rtx: run .ci/peers, or pip install 'edge-inspect[rtx]'")
        os.environ[PYTHON] = str(PEER)
        yield
        del os.environ[PYTHON]
    else:
        yield


@pytest.fixture(scope="session", autouse=True)
def rtx(python: None) -> str:
    library = builder_library(builder_python())
    if not library.startswith("tensorrt_rtx"):
        pytest.skip(f"{library} builds on a GPU only; TensorRT-RTX builds without")
    return library


def run(script: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [builder_python(), str(script), *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def builds(folder: Path, *arguments: str) -> dict[str, Any]:
    """`benchmarks/tensorrt_builds.py`: model -> what was found."""
    file = folder / "builds.json"
    run(PROJECT / "benchmarks" / "tensorrt_builds.py", "--json", str(file), *arguments)
    return {result["model"]: result for result in json.loads(file.read_text())["models"]}


@pytest.mark.timeout(1800)
def test_the_compact_encoder_builds_for_every_generation(tmp_path: Path) -> None:
    """FoundAD on the shipped encoder at full depth: one engine, all operators, every attention fused, for every GPU."""
    arguments = (
        "--models",
        "foundad-compact",
        "--targets",
        "default",
        "sm86",
        "sm89",
        "sm120",
        "--batch",
        "1",
        "--onnx",
    )
    found = builds(tmp_path, *arguments)["foundad-compact"]
    assert "error" not in found
    assert found["blocks"] == 16  # ten of the encoder's twelve, six of the projector
    assert [built["target"] for built in found["builds"]] == ["default", "sm86", "sm89", "sm120"]
    for built in found["builds"]:
        assert built["engines"] == 1
        assert built["operators"] > 300
        assert built["fused_attention"] == found["blocks"], built
        assert built["file_bytes"] == built["plan_bytes"] > 10e6
    assert found["onnx_layers"] > 1000  # TensorRT's own parser takes the ONNX file too


@pytest.mark.timeout(1800)
def test_every_method_and_width_is_one_engine(tmp_path: Path) -> None:
    """Encoders are cut to three blocks here; `benchmarks/tensorrt_builds.py` builds them at full depth."""
    models = ("foundad-s16", "foundad-b16", "vitad-s16", "visualad-clip", "bank-s14")
    depth = "3"
    found = builds(tmp_path, "--models", *models, "--targets", "default", "--depth", depth, "--batch", "1")
    assert set(found) == set(models)
    for name, result in found.items():
        assert "error" not in result, name
        (built,) = result["builds"]
        assert (built["engines"], built["fused_attention"]) == (1, result["blocks"]), name


@pytest.mark.timeout(1200)
def test_edge_bundle_build_for_other_machines(bundles: Callable[..., Bundle], rtx: str) -> None:
    bundle = bundles(**FIXED, head={"name": "foundad", "embed": 32, "depth": 1, "heads": 2, "last": 1})
    words = ["build", str(bundle.path), "--engine", "tensorrt", "--target", "SM86", "--batch", "1:4"]
    environment = {"COLUMNS": "160", "TERM": "dumb"}
    first = CliRunner().invoke(app, words, env=environment)
    assert first.exit_code == 0, first.stderr
    assert "Parity of a rehearsal of tensorrt (torch fp16" in first.stdout
    assert f"engine tensorrt for SM86: {rtx}, fp16, batch 1:4" in first.stdout
    assert "not run here" in first.stdout
    ahead = build_ahead(bundle, "sm86", options=EngineOptions(batch="1:4"))
    assert not ahead.built  # found again
    assert ahead.key.name in first.stdout
    assert ahead.report["fused_attention"] == 3
    assert {file.name for file in ahead.folder.iterdir()} == {"engine.plan", "build.json", "key.json"}
    assert "was built before" in CliRunner().invoke(app, words, env=environment).stdout


@pytest.mark.timeout(1200)
def test_a_camera_of_another_format_gets_its_own_engine(bundles: Callable[..., Bundle]) -> None:
    from pipelines.engines import FrameSpec
    from pipelines.images import PixelFormat

    steps: list[tuple[str, float]] = []
    ahead = build_ahead(
        bundles(**FIXED),
        "default",
        frame=FrameSpec(pixel_format=PixelFormat.BAYER_RG8, height=64, width=128),
        options=EngineOptions(precision="bf16", batch="2"),
        progress=lambda what, done: steps.append((what, done)),
    )
    assert ahead.key.frame == "BayerRG8 128x64, batch 2"
    assert (ahead.folder / "reference.safetensors").is_file()
    shares = [done for what, done in steps if not what.startswith("rehearse")]
    assert shares == sorted(shares)
    assert {"load TensorRT", "convert the graph", "build the engine"} <= {what for what, _ in steps}


@pytest.mark.timeout(1200)
def test_what_the_library_would_swallow_or_leave_to_torch_is_refused() -> None:
    refused = json.loads(run(Path(__file__).with_name("tensorrt_refusals.py")))
    assert "TensorRT has no converter for" in refused["operator"]
    assert "svd" in refused["operator"]
    assert "use engine torch_cuda" in refused["operator"]
    assert "has no option 'enabled_precisions', and would ignore it" in refused["option"]
    assert refused["known"] == "was not refused"


def test_a_request_with_an_unknown_key_is_refused(tmp_path: Path, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles(**FIXED)
    request = Request(bundle=bundle.path, config=bundle.config, precision="fp16", batch="1", folder=tmp_path)

    class Tampered(Request):
        def model_dump_json(self, **kwargs: Any) -> str:
            return json.dumps({**json.loads(super().model_dump_json(**kwargs)), "use_fp32": True})

    with pytest.raises(EngineError, match="not understood: use_fp32"):
        tensorrt_process.build(Tampered.model_validate(request.model_dump()), lambda what, done: None)


def test_without_gpu_a_build_for_this_machine_is_refused(tmp_path: Path, bundles: Callable[..., Bundle]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    bundle = bundles(**FIXED)
    request = Request(bundle=bundle.path, config=bundle.config, precision="fp16", batch="1", folder=tmp_path)
    with pytest.raises(EngineError, match="no GPU to build for; name one with --target"):
        tensorrt_process.build(request, lambda what, done: None)
    assert not list(tmp_path.iterdir())


def test_a_builder_that_dies_is_named(
    tmp_path: Path, bundles: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\necho 'the last words' >&2\nkill -SEGV $$\n")
    killed.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(killed))
    bundle = bundles(**FIXED)
    request = Request(bundle=bundle.path, config=bundle.config, precision="fp16", batch="1", folder=tmp_path)
    with pytest.raises(EngineError, match=r"builder was ended by SIGSEGV: the last words"):
        tensorrt_process.build(request, lambda what, done: None)

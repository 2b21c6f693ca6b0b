"""A small real line: simulated camera, tiny bundle, short paths, its own shared memory."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edge.settings import Settings, load_settings

SIZE = 96
ENCODER = {
    "name": "tiny",
    "family": "dinov3",
    "patch": 16,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "hidden": 64,
    "registers": 1,
    "rope_base": 100.0,
    "activation": "gelu_tanh",
    "layer_scale": True,
}


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """Random encoder, memory bank of good simulated parts, limit above all of them, engines built."""
    import torch

    from edge.capture.simulation import Conveyor
    from pipelines import engines
    from pipelines.bundle import Limit, RegionLimit, expected, write_bundle
    from pipelines.pipeline import Pipeline, PipelineConfig

    torch.manual_seed(1)
    torch.set_num_threads(1)
    pipeline = Pipeline(
        PipelineConfig.model_validate(
            {
                "encoder": ENCODER,
                "head": {"name": "memory_bank", "size": 256},
                "input_size": (SIZE, SIZE),
                "pixel_format": "Mono8",
                "frame": (SIZE, SIZE),
                "score": {"k": 3},
            }
        )
    )
    belt = Conveyor(1, "tile", SIZE, SIZE, 1, 0.3)
    good = [belt.part(1_000_000 + 17 * i, clean=True).image for i in range(48)]
    with torch.inference_mode():
        images = pipeline.preprocess(torch.from_numpy(np.stack(good[:32])))
        pipeline.head.fit(pipeline.head.features(pipeline.encoder, images), seed=0)
    scores = expected(pipeline, good[32:]).scores[:, 0]
    limit = Limit(
        regions=(RegionLimit(name="frame", limit=float(scores.max() * 1.1), floor=float(scores.min() * 0.5)),),
        method="above all held-out normals",
        false_reject_rate=0.1,
        n_normals=16,
        guarantee="none",
        seed=0,
    )
    folder = tmp_path_factory.mktemp("bundle") / "tile"
    made = write_bundle(folder, pipeline, limit, good[40:44], {"made": "for a test"})
    for name in ("openvino",):
        engines.build(made, name)
    return folder


@dataclass
class Line:
    """A line's settings file, and where its things are."""

    file: Path
    folder: Path
    environment: dict[str, str]

    @property
    def settings(self) -> Settings:
        return load_settings(self.file)

    @property
    def truth(self) -> Path:
        return self.folder / "truth.jsonl"


MakeLine = Callable[..., Line]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for sockets' names."""
    folder = Path(tempfile.mkdtemp(prefix="ei-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def make_line(tmp_path, short_folder, bundle, monkeypatch) -> MakeLine:
    """make_line(parts=…, rate_hz=…, name=…): writes line.toml and sets the environment for it."""
    for name in list(os.environ):
        if name.startswith("EDGE_"):
            monkeypatch.delenv(name)
    shm = short_folder / "shm"
    shm.mkdir()
    variables = {"EDGE_SHM_DIR": str(shm), "OMP_NUM_THREADS": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def make(
        parts: int = 0,
        rate_hz: float = 20.0,
        name: str = "press",
        deadline_ms: float = 1000.0,
        cameras: tuple[str, ...] = ("top",),
        inference: str = "",
    ) -> Line:
        text = f"""
[line]
name = "{name}"
data_dir = "{tmp_path / "data"}"
runtime_dir = "{short_folder / "run"}"
[inference]
bundle = "{bundle}"
threads = 1
{inference}
[alert]
deadline_ms = {deadline_ms}
[archive]
min_free_gb = 0
max_gb = 0.1
"""
        for number, camera in enumerate(cameras):
            text += f"""
[[cameras]]
name = "{camera}"
[cameras.source]
type = "simulated"
rate_hz = {rate_hz}
parts = {parts}
seed = {number + 1}
height_px = {SIZE}
width_px = {SIZE}
defect_rate = 0.3
truth_file = "{tmp_path / "truth.jsonl"}"
"""
        file = tmp_path / f"{name}.toml"
        file.write_text(text)
        return Line(file, tmp_path, {**os.environ, **variables})

    return make

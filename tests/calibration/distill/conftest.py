from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.distill.settings import DistillSettings


def _network(path: Path, symmetric: bool) -> Path:
    """A small random CNN with residual sums at strides 8, 16 and 32, float32 [1, H, W, 3], as OpenVINO's own file.

    Strided convolutions are padded at the end (TensorFlow's rule) or in front (`symmetric`, PyTorch's centres).
    """
    openvino = pytest.importorskip("openvino")
    from openvino import opset8 as ops

    rng = np.random.default_rng(3)
    image = ops.parameter([-1, -1, -1, 3], np.float32, name="image")
    x = ops.transpose(image, np.array([0, 3, 1, 2]))
    channels = 3

    def conv(x, width, stride):
        nonlocal channels
        weights = rng.normal(0, (1.5 / (9 * channels)) ** 0.5, (width, channels, 3, 3)).astype(np.float32)
        weights[:, :, 1, 1] += rng.normal(0, 0.5, (width, channels)).astype(np.float32)
        first = 1 if stride == 1 or symmetric else 0
        last = 1 if stride == 1 or not symmetric else 0
        channels = width
        return ops.convolution(x, weights, [stride] * 2, [first] * 2, [last] * 2, [1, 1])

    for stride, width in ((2, 6), (4, 6), (8, 8), (16, 8), (32, 8)):
        x = ops.relu(conv(x, width, 2))
        if stride >= 8:
            x = ops.add(x, conv(ops.relu(x), width, 1))
            x.set_friendly_name(f"sum{stride}")
    model = openvino.Model([ops.reduce_mean(x, np.array([2, 3]))], [image], "network")
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    return _network(tmp_path_factory.mktemp("teacher") / "network.xml", symmetric=False)


@pytest.fixture(scope="session")
def symmetric_network(tmp_path_factory) -> Path:
    return _network(tmp_path_factory.mktemp("teacher") / "symmetric.xml", symmetric=True)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Twelve colour images of several sizes, one of them gray."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        small = rng.integers(0, 256, (20, 24 + number, 1 if number == 5 else 3), np.uint8)
        image = cv2.resize(small, (120 + 5 * number, 100), interpolation=cv2.INTER_LINEAR)
        assert cv2.imwrite(str(folder / f"{number:02}.png"), image)
    return folder


@pytest.fixture
def settings(network: Path, photographs: Path, tmp_path: Path) -> Callable[..., DistillSettings]:
    """settings(**changes) -> a run of seconds."""
    small = DistillSettings(
        teacher=network,
        images=(photographs,),
        out=tmp_path / "student.safetensors",
        width=48,
        depth=2,
        heads=1,
        held_out=3,
        sizes=(64, 96),
        probe_size=64,
        probe_every=4,
        steps=8,
        batch=4,
        warmup=2,
        ema=0.8,
        head_batches=4,
    )
    return lambda **changes: replace(small, **changes)

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calibration import vitad
from calibration.checkpoints import StateFolder
from calibration.errors import FitError
from calibration.training import Schedule, batch_numbers
from calibration.vitad import FreshFeatures, ViTADOptions, ViTADTrainer, initialise, train
from calibration.workers import Workers
from pipelines.config import ViTADConfig
from pipelines.encoders import compact
from pipelines.heads import ViTAD

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from calibration.checkpoints import StateFolder
from calibration.training import Schedule
from calibration.vitad import ViTADOptions, train
from calibration.workers import Workers
from pipelines.config import ViTADConfig
from pipelines.encoders import compact
from pipelines.heads import ViTAD

class Noise:
    def __len__(self):
        return 10
    def images(self, numbers):
        return torch.stack([torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(n)) for n in numbers])

torch.set_num_threads(1)
folder, out, steps, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
workers = Workers.join()
state = StateFolder(folder, {"fit": 1})
if workers.first:
    state.open("--resume" in sys.argv)
workers.wait()
encoder = compact()
head = ViTAD(ViTADConfig(heads=3), width=192, depth=12, grid=(3, 3), patch=16)
def report(what, done, total, note):
    if workers.first:
        print(what, done, flush=True)
schedule = Schedule(steps, batch, seed=5, save_every_s=0.0)
losses = train(head, encoder, Noise(), schedule, ViTADOptions(memory_bytes=0), state, report, workers)
save_file(head.state_dict(), out.with_suffix(f".{workers.rank}.safetensors"))
out.with_suffix(f".{workers.rank}.json").write_text(json.dumps(losses))
workers.leave()
"""


class Noise:
    """Pictures of noise, by number. The same as in PROGRAM."""

    def __init__(self, count: int = 10) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def images(self, numbers):
        return torch.stack([torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(n)) for n in numbers])


def make_head() -> ViTAD:
    return ViTAD(ViTADConfig(heads=3), width=192, depth=12, grid=(3, 3), patch=16)


def silent(what: str, done: int, total: int, note: str) -> None:
    pass


def start(arguments: list[object], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.strip() == line:
            return
    pytest.fail(f"the program ended without {line!r}")


@pytest.fixture(scope="module")
def undisturbed() -> tuple[ViTAD, list[float]]:
    """Twelve steps in one process, features in memory: what every other way must equal."""
    torch.set_num_threads(1)
    head = make_head()
    losses = train(head, compact(), Noise(), Schedule(12, 4, seed=5), ViTADOptions(), None, silent)
    return head, losses


def same(state: dict[str, torch.Tensor], head: ViTAD, tolerance: float = 0.0) -> None:
    for name, tensor in head.state_dict().items():
        assert (state[name] - tensor).abs().max() <= tolerance, name


def test_computing_features_anew_gives_the_same_losses(undisturbed):
    head = make_head()
    options = ViTADOptions(keep_features=False)
    losses = train(head, compact(), Noise(), Schedule(12, 4, seed=5), options, None, silent)
    assert losses == pytest.approx(undisturbed[1], rel=1e-5)
    assert losses[-1] < losses[0]


def test_a_killed_training_resumes_to_the_same_weights(undisturbed, tmp_path):
    process = start([tmp_path / "fit", tmp_path / "out", 12, 4])
    wait_for(process, "training 5")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with process.stdout:
        steps = [line for line in process.stdout if line.startswith("training")]
    assert "training 12\n" not in steps
    again = start([tmp_path / "fit", tmp_path / "out", 12, 4, "--resume"])
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "features" not in output  # all were kept
    assert "training 4\n" not in output  # and steps that were saved are not done again
    assert json.loads((tmp_path / "out.0.json").read_text()) == undisturbed[1]
    same(load_file(tmp_path / "out.0.safetensors"), undisturbed[0])


def test_a_kill_while_features_are_computed_keeps_what_was_complete(tmp_path, monkeypatch):
    monkeypatch.setattr("calibration.feature_store.CHUNK", 4)
    state = StateFolder(tmp_path / "fit", {"fit": 1})
    state.open(False)

    class Stops(Noise):
        def images(self, numbers):
            if 6 in numbers:
                raise KeyboardInterrupt
            return super().images(numbers)

    schedule = Schedule(3, 4)
    with pytest.raises(KeyboardInterrupt):
        train(make_head(), compact(), Stops(), schedule, ViTADOptions(), state, silent)
    seen: list[int] = []

    class Counts(Noise):
        def images(self, numbers):
            seen.extend(numbers)
            return super().images(numbers)

    losses = train(make_head(), compact(), Counts(), schedule, ViTADOptions(), state, silent)
    assert seen == list(range(4, 10))
    assert losses == train(make_head(), compact(), Noise(), schedule, ViTADOptions(), None, silent)


@pytest.mark.parametrize("batch", [5])
def test_two_processes_train_like_one(tmp_path, batch):
    """At the same global batch, here one that two do not divide evenly; both processes end with the same weights."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = [tmp_path / "fit", tmp_path / "out", 12, batch]
    workers = [start(arguments, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(2)]
    try:
        for worker in workers:
            worker.communicate(timeout=90)
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0]
    head = make_head()
    expected = train(head, compact(), Noise(), Schedule(12, batch, seed=5), ViTADOptions(), None, silent)
    first, second = (json.loads((tmp_path / f"out.{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first == pytest.approx(expected, rel=1e-5)
    weights = load_file(tmp_path / "out.0.safetensors")
    other = load_file(tmp_path / "out.1.safetensors")
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    # AdamW divides by the root of tiny second moments: rounding moves a weight by a part of a step's 1e-4.
    same(weights, head, tolerance=12 * 1e-4)
    changed = torch.cat([(weights[name] - tensor).abs().flatten() for name, tensor in head.state_dict().items()])
    assert changed.mean() < 1e-6


def test_the_rate_drops_and_only_matrices_decay():
    head = make_head()
    initialise(head, 0)
    features = FreshFeatures(Noise(), head, compact(), Schedule(10, 2))
    trainer = ViTADTrainer(head, features, 10, Schedule(10, 2), ViTADOptions())
    head.requires_grad_(True)
    rates = []
    for _ in range(10):
        trainer.advance()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == [1e-4] * 8 + [pytest.approx(1e-5)] * 2
    decayed, free = trainer.optimizer.param_groups
    assert decayed["weight_decay"] == 1e-4
    assert free["weight_decay"] == 0.0
    assert {p.ndim for p in decayed["params"]} == {2, 3}
    assert {p.ndim for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(head.parameters()))


def test_a_large_gradient_is_clipped():
    head = make_head()
    initialise(head, 0)
    trainer = ViTADTrainer(
        head, FreshFeatures(Noise(), head, compact(), Schedule(1, 2)), 10, Schedule(1, 2), ViTADOptions()
    )
    for parameter in head.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.prepare_update()
    norm = torch.stack([p.grad.norm() for p in head.parameters()]).norm()
    assert trainer.gradient_norm == pytest.approx(sum(p.numel() for p in head.parameters()) ** 0.5, rel=1e-3)
    assert norm.item() == pytest.approx(5.0, rel=1e-4)


def test_bfloat16_trains_alike_and_keeps_half_the_bytes(undisturbed, tmp_path):
    state = StateFolder(tmp_path / "fit", {})
    state.open(False)
    head = make_head()
    schedule = Schedule(12, 4, seed=5, precision="bf16")
    losses = train(head, compact(), Noise(), schedule, ViTADOptions(), state, silent)
    assert losses == pytest.approx(undisturbed[1], rel=0.01)
    assert losses != undisturbed[1]
    stored = load_file(tmp_path / "fit" / "features-00000.safetensors")["features"]
    assert stored.dtype == torch.bfloat16
    assert stored.shape == (10, 4, 9, 192)
    assert all(parameter.dtype == torch.float32 for parameter in head.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_trains_alike(undisturbed, precision):
    head = make_head().cuda()
    schedule = Schedule(12, 4, seed=5, precision=precision)
    losses = train(head, compact().cuda(), Noise(), schedule, ViTADOptions(), None, silent)
    assert losses == pytest.approx(undisturbed[1], rel=1e-3 if precision == "fp32" else 0.01)


def test_every_sample_is_taken_once_in_each_round():
    numbers = [number for step in range(10) for number in batch_numbers(step, 3, 10, seed=1)]
    rounds = np.reshape(numbers, (3, 10))
    assert all(sorted(one) == list(range(10)) for one in rounds.tolist())
    assert rounds[0].tolist() != rounds[1].tolist()
    assert batch_numbers(4, 3, 10, seed=1) != batch_numbers(4, 3, 10, seed=2)


def test_a_seed_gives_the_same_weights_and_another_others():
    heads = []
    for seed in (1, 1, 2):
        heads.append(make_head())
        initialise(heads[-1], seed)
    same(heads[0].state_dict(), heads[1])
    assert not torch.equal(heads[0].fuser.weight, heads[2].fuser.weight)


def test_bad_input_is_told(tmp_path, monkeypatch):
    with pytest.raises(FitError, match="no pictures"):
        train(make_head(), compact(), Noise(0), Schedule(1), ViTADOptions(keep_features=False), None, silent)

    class Broken(Noise):
        def images(self, numbers):
            return torch.full((len(numbers), 3, 48, 48), float("nan"))

    with pytest.raises(FitError, match="training step 0: the loss is nan"):
        train(make_head(), compact(), Broken(), Schedule(1), ViTADOptions(), None, silent)
    state = StateFolder(tmp_path / "fit", {})
    state.open(False)
    train(make_head(), compact(), Noise(), Schedule(1), ViTADOptions(), state, silent)
    small = ViTAD(ViTADConfig(heads=3, teachers=(6,)), width=192, depth=12, grid=(3, 3), patch=16)
    with pytest.raises(FitError, match="does not fit this head"):
        train(small, compact(), Noise(), Schedule(1), ViTADOptions(keep_features=False), state, silent)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(FitError, match="start all of them by torchrun"):
        Workers.join()


def test_defaults_are_the_published_ones():
    options = ViTADOptions()
    assert (options.rate, options.weight_decay, options.clip, options.drop_at) == (1e-4, 1e-4, 5.0, 0.8)
    assert (options.loss, vitad.EPOCHS) == ("cosine", 100)

"""Early stop: it ends by images that are not trained on, keeps the best weights, and survives a kill."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from calibration.early_stop import EarlyStop, split_watched
from calibration.errors import FitError
from calibration.fit import fit
from calibration.foundad import TrainingOptions
from calibration.options import FitOptions
from pipelines.bundle import Bundle
from pipelines.encoders import Encoder, EncoderConfig, compact, save


def looked(values: list[float], patience: int = 2) -> tuple[EarlyStop, nn.Linear]:
    """An early stop after checks of these losses; the weight is the number of the check."""
    early, module = EarlyStop(patience, every=10), nn.Linear(1, 1, bias=False)
    parameters = dict(module.named_parameters())
    for number, value in enumerate(values):
        nn.init.constant_(module.weight, float(number))
        early.look(10 * (number + 1), False, lambda value=value: value, module, parameters)
    return early, module


def test_it_is_over_after_so_many_checks_without_a_gain():
    assert not looked([3.0, 2.0, 2.5])[0].over
    assert looked([3.0, 2.0, 2.5, 2.0])[0].over  # equal is no gain
    assert not looked([3.0, 2.0, 2.5, 1.9, 2.0])[0].over
    early, module = looked([3.0, 2.0, 2.5, 2.1])
    assert (early.best, early.best_step) == (2.0, 20)
    early.put_back(dict(module.named_parameters()))
    assert module.weight.item() == 1.0


def test_checks_come_every_so_many_steps_and_after_the_last():
    early, module = EarlyStop(3, every=10), nn.Linear(1, 1)
    seen: list[int] = []

    def measure(step: int) -> float:
        assert not module.training
        seen.append(step)
        return 1.0 / step

    for step in range(1, 25):
        early.look(step, step == 24, lambda step=step: measure(step), module, dict(module.named_parameters()))
    assert seen == [10, 20, 24]
    assert module.training
    with pytest.raises(FitError, match="step 30: the loss on the watched images is nan"):
        early.look(30, False, lambda: math.nan, module, {})


def test_a_checkpoint_holds_all_of_it():
    early, module = looked([3.0, 2.0, 2.5])
    again = EarlyStop(2, every=10)
    again.restore(early.tensors(), json.loads(json.dumps(early.values())))
    assert (again.best, again.best_step, again.failed, again.over) == (2.0, 20, 1, False)
    again.put_back(dict(module.named_parameters()))
    assert module.weight.item() == 1.0
    fresh = EarlyStop(2)
    fresh.restore({}, json.loads(json.dumps(EarlyStop(2).values())))
    assert fresh.best == math.inf


def test_a_fifth_is_watched():
    fit = tuple(range(100, 130))
    train, watched = split_watched(fit, 0)
    assert (len(train), len(watched)) == (24, 6)
    assert sorted((*train, *watched)) == list(fit)
    assert split_watched(fit, 0) == (train, watched) != split_watched(fit, 1)
    assert len(split_watched(fit[:5], 0)[1]) == 1
    with pytest.raises(FitError, match="at least 5 images for the fit"):
        split_watched(fit[:4], 0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    config = EncoderConfig.from_dict({**compact().config.to_dict(), "depth": 4, "width": 48, "heads": 1})
    file = tmp_path_factory.mktemp("encoder") / "small.safetensors"
    save(Encoder(config).init_weights(0), file)
    return str(file)


def options(images, out, encoder, method, **changes) -> FitOptions:
    steps = changes.pop("steps", 100)
    training = TrainingOptions(steps=steps, batch=2, pool=4, rate=changes.pop("rate", 1e-3))
    common = FitOptions(images, out, method=method, encoder=encoder, size=(64, 64), steps=steps, patience=1)
    return replace(common, training=training, **changes)


def silent(*_: object) -> None:
    pass


@pytest.mark.parametrize("method", ["foundad", "vitad"])
def test_a_killed_fit_ends_with_the_same_weights(make_parts, tmp_path, encoder, monkeypatch, method):
    """Killed between two checks and resumed; the checks of both runs are the same."""
    monkeypatch.setattr("calibration.fit.EarlyStop", lambda patience: EarlyStop(patience, every=4))
    images = make_parts(10)
    whole = fit(options(images, tmp_path / "a", encoder, method, steps=14), silent, silent)

    def kill(what: str, done: int, total: int, note: str) -> None:
        if what == "training" and done == 11:
            raise KeyboardInterrupt

    # Every step is a checkpoint, so that it goes on behind the second check.
    saved = {"foundad": "calibration.foundad.time.monotonic", "vitad": "calibration.training.time.monotonic"}[method]
    clock = iter(np.arange(0.0, 1e6, 100.0))
    with monkeypatch.context() as patched:
        patched.setattr(saved, lambda: float(next(clock)))
        with pytest.raises(KeyboardInterrupt):
            fit(options(images, tmp_path / "b", encoder, method, steps=14), kill, silent)
    lines: list[str] = []
    again = fit(options(images, tmp_path / "b", encoder, method, steps=14, resume=True), silent, lines.append)
    assert any(line.startswith("going on from") for line in lines)
    assert again.losses == whole.losses
    a, b = (Bundle.open(tmp_path / name) for name in "ab")
    assert a.manifest.provenance["early_stop"] == b.manifest.provenance["early_stop"]
    for name, tensor in a.pipeline().state_dict().items():
        assert torch.equal(tensor, b.pipeline().state_dict()[name]), name


def test_it_stops_where_training_no_longer_helps(make_parts, tmp_path, encoder, monkeypatch):
    """At a rate that only does harm the first check is the best, and the second one ends it."""
    monkeypatch.setattr("calibration.fit.EarlyStop", lambda patience: EarlyStop(patience, every=3))
    lines: list[str] = []
    made = fit(options(make_parts(10), tmp_path / "b", encoder, "foundad", rate=3.0), silent, lines.append)
    told = made.bundle.manifest.provenance["early_stop"]
    assert told["steps"] == len(made.losses) == told["best_step"] + 3 < 100
    assert lines[-1] == f"stopped after step {told['steps']}; the weights are those of step {told['best_step']}"


@pytest.mark.parametrize(
    ("method", "count", "message"),
    [
        ("memory_bank", 6, "--patience is for foundad and vitad; memory_bank is not trained"),
        ("foundad", 4, "at least 5 images for the fit"),
    ],
)
def test_where_it_cannot_be(make_parts, tmp_path, encoder, method, count, message):
    with pytest.raises(FitError, match=message):
        fit(options(make_parts(count), tmp_path / "b", encoder, method), silent, silent)
    assert not (tmp_path / "b.fit").exists()

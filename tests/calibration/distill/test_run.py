"""Whole runs of seconds: what is learnt, written and gone on from."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from calibration.cli import app
from calibration.distill.run import distill
from calibration.distill.settings import DistillSettings
from calibration.distill.trainer import DistillTrainer
from calibration.errors import CalibrationError, DataError, FitError
from pipelines.encoders import compact, from_checkpoint, save

Settings = Callable[..., DistillSettings]


def silent(*_: object) -> None:
    pass


def same_weights(first: Path, second: Path) -> None:
    """Bit for bit; the order of a safetensors file's metadata is not fixed."""
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def rows_of(settings: DistillSettings) -> list[dict[str, str]]:
    with settings.log.open() as file:
        return list(csv.DictReader(file))


def test_the_student_learns_and_is_written(settings: Settings) -> None:
    run = settings(steps=80, probe_every=40, batch=8, rate=3e-3, relation=0.1, sizes=(64,))
    made = distill(run, silent, silent)
    assert made.finished
    rows = rows_of(run)
    assert [row["step"] for row in rows] == ["0", "40", "80"]
    assert float(rows[2]["loss"]) < float(rows[1]["loss"])
    assert float(rows[2]["r2 stride 8"]) > float(rows[0]["r2 stride 8"]) + 0.05
    card = json.loads(run.card.read_text())
    assert (card["steps"], card["crops"], card["images"]["trained"]) == (80, 640, 9)
    assert card["chosen"]["score"] == max(float(row["score"]) for row in rows)
    assert [tap["stride"] for tap in card["teacher"]["taps"]] == [8, 16, 32]
    assert len(card["images"]["held_out_names"]) == 3
    encoder = from_checkpoint(run.out)
    assert encoder.config.to_dict() == card["encoder"]
    assert not list(run.out.parent.glob("*.fit"))


def test_the_file_has_the_form_of_the_shipped_one(settings: Settings) -> None:
    run = settings(steps=1, width=192, depth=12, heads=3, held_out=1, sizes=(64,))
    distill(run, silent, silent)
    shipped = Path(sys.modules["pipelines"].__path__[0]) / "data" / "compact.safetensors"
    ours, theirs = load_file(run.out), load_file(shipped)
    assert {key: (value.shape, value.dtype) for key, value in ours.items()} == {
        key: (value.shape, value.dtype) for key, value in theirs.items()
    }
    assert from_checkpoint(run.out).config == compact().config


class Killed(Exception):
    pass


def test_resumed_after_a_crash_equals_undisturbed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crash comes between two checkpoints: what was done after the first of them is done again, alike."""
    whole = settings(relation=1.0)
    distill(whole, silent, silent)
    broken = replace(whole, out=tmp_path / "broken.safetensors")
    advance = DistillTrainer.advance

    def fatal(self: DistillTrainer, late: bool = False) -> bool:
        if self.step == 6:
            raise Killed
        return advance(self, late)

    with monkeypatch.context() as patched:
        patched.setattr(DistillTrainer, "advance", fatal)
        with pytest.raises(Killed):
            distill(broken, silent, silent)
    assert not broken.out.exists()
    steps = []
    distill(replace(broken, resume=True), lambda what, done, *_: steps.append(done), silent)
    assert 5 in steps
    assert 4 not in steps[-4:]  # it did go on, and not start again
    same_weights(broken.out, whole.out)
    strip = ("hours",)
    assert [{k: v for k, v in row.items() if k not in strip} for row in rows_of(broken)] == [
        {k: v for k, v in row.items() if k not in strip} for row in rows_of(whole)
    ]


def test_resume_refuses_other_options(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run = settings()
    monkeypatch.setattr(DistillTrainer, "train", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        distill(run, silent, silent)
    with pytest.raises(FitError, match="batch was 4, is 5"):
        distill(replace(run, batch=5, resume=True), silent, silent)


def test_hours_end_a_run(settings: Settings) -> None:
    run = settings(steps=10_000_000, hours=1e-4, probe_every=10_000)
    made = distill(run, silent, silent)
    assert made.finished
    assert made.card["steps"] < 1000
    assert made.card["hours"] <= 0.01


def test_goes_on_from_an_encoder(settings: Settings, tmp_path: Path) -> None:
    first = settings(steps=60, probe_every=60, batch=8, rate=3e-3, sizes=(64,))
    distill(first, silent, silent)
    second = replace(first, init=str(first.out), out=tmp_path / "second.safetensors", steps=1)
    distill(second, silent, silent)
    start = replace(first, out=tmp_path / "third.safetensors", steps=1)
    distill(start, silent, silent)
    taught, untaught = (float(rows_of(run)[0]["r2 stride 8"]) for run in (second, start))
    assert taught > untaught


def test_an_encoder_teaches(settings: Settings, tmp_path: Path) -> None:
    teacher = from_checkpoint(_compact_file(tmp_path))
    save(teacher, tmp_path / "teacher.safetensors")
    run = settings(teacher=tmp_path / "teacher.safetensors", steps=2, taps=("6", "12"), precision="bf16", sizes=(64,))
    assert distill(run, silent, silent).finished
    assert "r2 block 6" in rows_of(run)[0]


def _compact_file(folder: Path) -> Path:
    path = folder / "compact.safetensors"
    save(compact(), path)
    return path


def test_a_labelled_set_picks_the_checkpoint(settings: Settings, make_parts: Callable[..., Path]) -> None:
    make_parts(8, name="line/train/good")
    make_parts(6, name="line/test/good", seed=1)
    folder = make_parts(6, name="line/test/hole", seed=2, defect=True).parents[1]
    plain = make_parts(12, name="plain")
    run = settings(probes=(folder, plain))
    card = distill(run, silent, silent).card
    rows = rows_of(run)
    scores = [(float(row["auroc line"]) + float(row["auroc plain"])) / 2 for row in rows]
    assert card["chosen"]["step"] == int(rows[int(np.argmax(scores))]["step"])
    assert 0.0 <= min(scores) <= max(scores) <= 1.0


def test_the_last_is_written_where_that_is_asked(settings: Settings, make_parts: Callable[..., Path]) -> None:
    run = settings(pick="last", probes=(make_parts(12, name="plain"),))
    assert distill(run, silent, silent).card["chosen"]["step"] == run.steps


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"pick": "r2", "held_out": 0}, "needs images held out"),
        ({"sizes": (100,)}, "multiples of 32"),
        ({"patch": 12}, "--patch 12: 8, 16 or 32"),
        ({"out": Path("student.pt")}, "end the name so"),
        ({"images": ()}, "--images"),
        ({"ema": 1.0}, "--ema"),
        ({"tap_weights": (1.0,)}, "the teacher has 3 taps, not 1"),
        ({"tap_weights": (1.0, -1.0, 1.0)}, "not negative"),
        ({"blocks": (1, 2)}, "the teacher has 3 taps, not 2"),
        ({"blocks": (1, 2, 3)}, "blocks 1 to 2"),
        ({"probe_block": 3}, "blocks 1 to 2"),
        ({"held_out": 12}, "12 of 12 images cannot be held out"),
    ],
)
def test_what_cannot_be_is_refused(settings: Settings, changes: dict[str, object], text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        distill(settings(**changes), silent, silent)


def test_probe_sets_that_tell_nothing_are_refused(settings: Settings, make_parts: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="at least 4 good images"):
        distill(settings(probes=(make_parts(2, name="few"),)), silent, silent)


def test_only_compact_encoders_go_on(settings: Settings, tmp_path: Path) -> None:
    from pipelines.encoders import Encoder
    from pipelines.encoders.dino import dinov2

    save(Encoder(dinov2("small", (48, 2, 1))).init_weights(0), tmp_path / "dino.safetensors")
    with pytest.raises(FitError, match=r"--init .*dino\.safetensors: .* is not a compact encoder"):
        distill(settings(init=str(tmp_path / "dino.safetensors")), silent, silent)


def options(run: DistillSettings) -> list[str]:
    """The command line of `run`."""
    words = ["--teacher", run.teacher, "--images", *run.images, "--out", run.out, "--held-out", run.held_out]
    words += ["--width", run.width, "--depth", run.depth, "--heads", run.heads, "--steps", run.steps]
    words += ["--batch", run.batch, "--warmup", run.warmup, "--ema", run.ema, "--probe-every", run.probe_every]
    words += ["--threads", 1, *(word for size in run.sizes for word in ("--size", size))]
    return [str(word) for word in words]


def test_command_line(settings: Settings) -> None:
    run = settings(steps=2)
    found = CliRunner().invoke(app, ["distill", *options(run)])
    assert found.exit_code == 0, found.output
    assert "step" in found.output
    assert run.card.name in found.output.replace("\n", "")
    assert from_checkpoint(run.out).config.width == 48


def test_stopped_by_a_signal_it_saves_and_goes_on_alike(settings: Settings, tmp_path: Path) -> None:
    run = settings(steps=12, probe_every=1000)
    found = CliRunner().invoke(app, ["distill", *options(run)])
    assert found.exit_code == 0, found.output
    other = replace(run, out=tmp_path / "stopped.safetensors")
    command = [sys.executable, "-m", "calibration.cli", "distill", *options(other)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not other.log.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)  # written before the first step
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume goes on" in said
    assert from_checkpoint(other.out).config.width == 48  # the best so far
    again = CliRunner().invoke(app, ["distill", *options(other), "--resume"])
    assert again.exit_code == 0, again.output
    same_weights(other.out, run.out)


def test_two_processes_learn_what_one_learns(settings: Settings, tmp_path: Path) -> None:
    run = settings(steps=4)
    assert CliRunner().invoke(app, ["distill", *options(run)]).exit_code == 0
    both = replace(run, out=tmp_path / "both.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "calibration.cli", "distill", *options(both)]
    processes = [
        subprocess.Popen(command, env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(timeout=100) for process in processes] == [0, 0]
    ours, theirs = load_file(both.out), load_file(run.out)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].float(), value.float(), atol=5e-3, rtol=0)


def test_large_images_are_shrunk_in_memory(tmp_path: Path) -> None:
    from calibration.distill.pictures import Pictures

    path = tmp_path / "large.png"
    cv2.imwrite(str(path), np.zeros((900, 1200, 3), np.uint8))
    assert Pictures([path], 96)[0].shape == (192, 256, 3)

"""`calibrate fit` with the methods that are trained on kept features or on an auxiliary set."""

import os
import signal
import socket
import subprocess
import sys

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from calibration import cli
from calibration.errors import DataError, FitError, TooFewImages
from calibration.fit import fit
from calibration.foundad import TrainingOptions
from calibration.options import FitOptions
from pipelines.bundle import Bundle
from pipelines.engines import load
from pipelines.images import PixelFormat, read_image

SIZE = (64, 64)


def silent(what: str, done: int, total: int, note: str) -> None:
    pass


def run(options: FitOptions, lines: list[str] | None = None):
    return fit(options, silent, (lines if lines is not None else []).append)


def quick(folder, out, **changes) -> FitOptions:
    training = TrainingOptions(batch=4)
    return FitOptions(folder, out, **{"size": SIZE, "top_k": 2, "training": training, "steps": 3, **changes})


def scores_of(bundle: Bundle, folder) -> np.ndarray:
    with load(bundle, ("torch",)) as engine:
        return np.array([engine.score([read_image(path).pixels]).scores[0, 0] for path in sorted(folder.iterdir())])


@pytest.fixture
def auxiliary(make_parts, tmp_path):
    """A labelled set of another product: colour pictures with bright smears, and their masks."""
    root = tmp_path / "aux" / "cap"
    make_parts(6, name="aux/cap/train/good", seed=20, colour=True)
    make_parts(6, name="aux/cap/test/good", seed=21, colour=True)
    smeared = make_parts(6, name="aux/cap/test/smear", seed=22, defect=True, colour=True)
    masks = root / "ground_truth" / "smear"
    masks.mkdir(parents=True)
    mask = np.zeros((96, 96), np.uint8)
    mask[38:57, 38:57] = 255
    for path in smeared.iterdir():
        cv2.imwrite(str(masks / f"{path.stem}_mask.png"), mask)
    return tmp_path / "aux"


def test_vitad_tells_good_from_defective(make_parts, tmp_path):
    summary = run(quick(make_parts(24), tmp_path / "b", method="vitad", steps=60))
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.config.head.name == "vitad"
    assert (len(summary.plan.fit), len(summary.plan.held)) == (18, 6)
    assert summary.losses[-1] < summary.losses[0]
    told = bundle.manifest.provenance["training"]
    assert (told["steps"], told["batch"], told["precision"], told["loss"]) == (60, 4, "fp32", "cosine")
    assert not (tmp_path / "b.fit").exists()
    good, bad = make_parts(5, name="new", seed=7), make_parts(5, name="bad", seed=8, defect=True)
    assert scores_of(bundle, bad).min() > scores_of(bundle, good).max()


def test_the_default_length_is_a_hundred_rounds(make_parts, tmp_path):
    lines: list[tuple[int, int]] = []

    def stop(what: str, done: int, total: int, note: str) -> None:
        if what == "training":
            lines.append((done, total))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(quick(make_parts(6), tmp_path / "b", method="vitad", steps=None), stop, lambda line: None)
    assert lines == [(1, 150)]  # 6 pictures, 4 per step


def test_one_model_of_several_classes(make_parts, tmp_path):
    one, two = make_parts(8, name="one"), make_parts(8, name="two", seed=5, height=80, width=112)
    summary = run(quick(one, tmp_path / "b", method="vitad", more_images=(two,)))
    assert len(summary.images) == 16
    assert summary.bundle.config.frame is None  # they differ in size
    other = make_parts(2, name="other", colour=True)
    summary = run(quick(one, tmp_path / "c", method="vitad", more_images=(other,)))
    assert summary.bundle.config.pixel_format is PixelFormat.BGR8  # gray classes become colour
    assert summary.images.read(0).shape[2] == summary.images.read(9).shape[2] == 3
    with pytest.raises(DataError, match="cannot be read as BayerRG8"):
        run(quick(one, tmp_path / "d", method="vitad", more_images=(other,), pixel_format=PixelFormat.BAYER_RG8))


def test_visualad_learns_elsewhere_and_takes_its_limit_from_the_line(make_parts, auxiliary, tmp_path):
    line = make_parts(20, name="line", seed=3)
    lines: list[str] = []
    options = quick(line, tmp_path / "b", method="visualad", auxiliary=auxiliary, rate=0.05, guarantee=True)
    summary = run(options, lines)
    bundle = summary.bundle
    assert lines == ["12 labelled images to learn from; 20 good ones for the limit"]
    assert bundle.config.head.name == "visualad"
    assert bundle.limit.guarantee.startswith("At most 5 %")
    assert summary.choices[0].guaranteed
    assert summary.choices[0].scores == 20  # none was trained on
    assert bundle.config.frame == (96, 96)
    assert bundle.manifest.provenance["training"]["auxiliary_images"] == 12
    # The limit is the line's: nearly all good parts pass.
    assert (scores_of(bundle, line) > bundle.limits[0]).mean() <= 0.05


def test_without_images_of_the_line_the_bundle_says_so(auxiliary, tmp_path):
    summary = run(quick(None, tmp_path / "b", method="visualad", auxiliary=auxiliary))
    bundle = summary.bundle
    assert bundle.limit.guarantee.startswith("No guarantee: the limit comes from 6 good images of the set aux")
    assert "not from parts of this line" in bundle.limit.guarantee
    assert "training has seen" not in bundle.limit.guarantee  # the six of train/good
    assert not summary.choices[0].guaranteed
    assert bundle.config.frame is None


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"method": "visualad"}, FitError, "give it by --auxiliary"),
        ({"method": "visualad", "auxiliary": "aux", "guarantee": True}, TooFewImages, "4 images cannot promise"),
        ({"images": None, "method": "vitad"}, FitError, "give a folder of good ones by --images"),
        ({"images": None, "method": "visualad", "auxiliary": "aux", "guarantee": True}, FitError, "of the line"),
    ],
)
def test_what_is_missing_is_told(make_parts, auxiliary, tmp_path, changes, error, words):
    values = {"images": make_parts(4), **changes}
    if "auxiliary" in values:
        values["auxiliary"] = auxiliary
    with pytest.raises(error, match=words):
        run(quick(values.pop("images"), tmp_path / "b", **values))
    assert not (tmp_path / "b").exists()


def command(folder, out, *more: str) -> list[str]:
    fixed = ["--method", "vitad", "--size", "64", "--steps", "6", "--batch", "4", "--top-k", "2", "--threads", "1"]
    return ["fit", "--images", str(folder), "--out", str(out), *fixed, *more]


def test_a_killed_fit_resumes_to_the_same_bundle(make_parts, tmp_path):
    folder = make_parts(64)
    whole = CliRunner().invoke(cli.app, command(folder, tmp_path / "whole"))
    assert whole.exit_code == 0, whole.output
    process = subprocess.Popen(
        [sys.executable, "-m", "calibration.cli", *command(folder, tmp_path / "b")],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    # A plain stream gets a line when a phase is done: the first of two files of features is kept by then.
    assert process.stdout is not None
    assert any(line.startswith(b"features: 48 done") for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "b").exists()
    assert list((tmp_path / "b.fit").glob("features-*.safetensors"))
    refused = CliRunner().invoke(cli.app, command(folder, tmp_path / "b", "--resume", "--batch", "5"))
    assert isinstance(refused.exception, FitError)
    assert "the interrupted fit was another one" in str(refused.exception)
    again = CliRunner().invoke(cli.app, command(folder, tmp_path / "b", "--resume"))
    assert again.exit_code == 0, again.output
    assert "going on from" in again.output
    assert "features: 48 done" not in again.output
    one, two = (Bundle.open(tmp_path / name) for name in ("whole", "b"))
    assert (one.path / "weights.safetensors").read_bytes() == (two.path / "weights.safetensors").read_bytes()
    assert one.limit == two.limit


def test_two_processes_write_one_bundle(make_parts, tmp_path):
    folder = make_parts(8)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "calibration.cli", *command(folder, tmp_path / "b")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=100)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0]
    assert "wrote" in outputs[0]
    assert outputs[1] == ""
    alone = CliRunner().invoke(cli.app, command(folder, tmp_path / "alone"))
    assert alone.exit_code == 0, alone.output
    one, two = (Bundle.open(tmp_path / name) for name in ("alone", "b"))
    assert np.allclose(one.limits, two.limits, rtol=1e-3)
    assert not (tmp_path / "b.fit").exists()

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from calibration import cli
from calibration.errors import FitError, TooFewImages
from calibration.fit import fit, open_device
from calibration.foundad import TrainingOptions
from calibration.options import FitOptions
from pipelines.bundle import Bundle
from pipelines.engines import load
from pipelines.errors import InspectError
from pipelines.images import PixelFormat, read_image

SIZE = (64, 64)
QUICK = TrainingOptions(steps=40, batch=4, pool=12)


def silent(what: str, done: int, total: int, note: str) -> None:
    pass


def run(options: FitOptions, lines: list[str] | None = None):
    return fit(options, silent, (lines if lines is not None else []).append)


def quick(folder: Path, out: Path, **changes) -> FitOptions:
    values = {"size": SIZE, "bank": 200, "top_k": 2, "training": QUICK, **changes}
    return FitOptions(folder, out, **values)


@pytest.mark.parametrize("method", ["memory_bank", "foundad"])
def test_a_bundle_tells_good_from_defective(make_parts, tmp_path, method):
    folder = make_parts(24)
    steps = TrainingOptions(steps=100, batch=4, pool=16)
    summary = run(quick(folder, tmp_path / "bundle", method=method, training=steps))
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.id == summary.bundle.id
    assert bundle.config.frame == (96, 96)
    assert bundle.limit.guarantee.startswith("No guarantee")
    assert bundle.manifest.provenance["images"] == 24
    assert not (tmp_path / "bundle.fit").exists()
    good = make_parts(6, name="new", seed=7)
    bad = make_parts(6, name="bad", seed=8, defect=True)
    with load(bundle, ("torch",)) as engine:
        scores = {
            name: engine.score([read_image(path).pixels for path in sorted(where.iterdir())]).scores[:, 0]
            for name, where in (("good", good), ("bad", bad))
        }
    assert scores["bad"].min() > scores["good"].max()
    assert scores["bad"].min() > bundle.limits[0]
    # The parity gate must see both verdicts.
    reference = bundle.reference()
    rejected = (reference.scores > bundle.limits).any(axis=1)
    assert rejected.any()
    assert not rejected.all()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("method", ["memory_bank", "foundad"])
def test_a_handful_of_images_is_enough_to_start(make_parts, tmp_path, method, count):
    options = quick(
        make_parts(count), tmp_path / "b", method=method, training=TrainingOptions(steps=5, batch=2, pool=4)
    )
    summary = run(options)
    assert not summary.choices[0].guaranteed
    assert summary.plan.fit == tuple(range(count))


def test_enough_images_carry_a_promise(make_parts, tmp_path):
    summary = run(quick(make_parts(52), tmp_path / "b", rate=0.05, guarantee=True))
    (choice,) = summary.choices
    assert choice.guaranteed
    assert choice.scores == len(summary.plan.held) == 19
    assert "At most 5 %" in summary.bundle.limit.guarantee


def test_the_same_seed_gives_the_same_bundle_content(make_parts, tmp_path):
    folder = make_parts(6)
    one, two, other = (
        run(quick(folder, tmp_path / name, method="foundad", seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    files = [summary.bundle.manifest.files["weights.safetensors"].sha256 for summary in (one, two, other)]
    assert files[0] == files[1] != files[2]
    assert one.choices == two.choices


def test_regions_each_get_a_limit_and_share_the_rate(make_parts, tmp_path):
    regions = tmp_path / "regions.toml"
    regions.write_text(
        """
[[regions]]
name = "left"
x_px = 0
y_px = 0
width_px = 48
height_px = 96
[[regions]]
name = "right"
x_px = 48
y_px = 0
width_px = 48
height_px = 96
[[ignore]]
rectangle_px = [0, 0, 24, 96]
"""
    )
    summary = run(quick(make_parts(6), tmp_path / "b", regions=regions))
    assert [region.name for region in summary.bundle.limit.regions] == ["left", "right"]
    assert all(choice.rate == 0.005 for choice in summary.choices)
    assert "2 regions" in summary.bundle.limit.guarantee
    make_parts(2, 90, 96, name="good/more", seed=1)
    with pytest.raises(FitError, match="regions need images of one size"):
        run(quick(tmp_path / "good", tmp_path / "c", regions=regions))


def test_colour_and_bayer_images(make_parts, tmp_path):
    colour = run(quick(make_parts(4, colour=True), tmp_path / "colour"))
    assert colour.bundle.config.pixel_format is PixelFormat.BGR8
    bayer = run(quick(make_parts(4, name="raw"), tmp_path / "bayer", pixel_format=PixelFormat.BAYER_GB8))
    assert bayer.bundle.config.pixel_format is PixelFormat.BAYER_GB8


def test_images_of_several_sizes_make_a_bundle_for_any_size(make_parts, tmp_path):
    make_parts(3, 90, 70)
    summary = run(quick(make_parts(3, 80, 75, name="good/more").parent, tmp_path / "b"))
    assert summary.bundle.config.frame is None
    assert run(quick(make_parts(3, name="same"), tmp_path / "c", any_size=True)).bundle.config.frame is None


def test_options_that_do_not_fit_are_named(make_parts, tmp_path):
    folder = make_parts(3)
    (tmp_path / "there").mkdir()
    with pytest.raises(FitError, match="exists already"):
        run(quick(folder, tmp_path / "there"))
    with pytest.raises(InspectError, match=r"16 patches.*17"):
        run(quick(folder, tmp_path / "b", top_k=17))
    with pytest.raises(InspectError, match="patches of 16 x 16"):
        run(quick(folder, tmp_path / "b", size=(60, 64)))
    with pytest.raises(InspectError, match="no such file"):
        run(quick(folder, tmp_path / "b", encoder=str(tmp_path / "none.safetensors")))
    with pytest.raises(InspectError, match="blocks 1 to 12"):
        run(quick(folder, tmp_path / "b", block=13))
    with pytest.raises(FitError, match="above 0 and below 1"):
        run(quick(folder, tmp_path / "b", rate=2.0))
    with pytest.raises(TooFewImages, match=r"smallest rate they can promise is 33\.3 %"):
        run(quick(folder, tmp_path / "b", guarantee=True))
    with pytest.raises(FitError, match="--device quantum"):
        open_device("quantum")
    assert not (tmp_path / "b").exists()


def test_a_folder_that_cannot_be_written_is_named(make_parts, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InspectError, match="file"):
        run(quick(make_parts(3), blocked / "bundle"))


def test_a_resumed_memory_bank_uses_the_kept_features(make_parts, tmp_path):
    folder = make_parts(5)
    whole = run(quick(folder, tmp_path / "whole", bank=60))

    class Killed(Exception):
        pass

    def stop(what: str, done: int, total: int, note: str) -> None:
        if what == "coreset":
            raise Killed

    with pytest.raises(Killed):
        fit(quick(folder, tmp_path / "b", bank=60), stop, print)
    assert (tmp_path / "b.fit" / "features-0000.safetensors").exists()
    assert not (tmp_path / "b").exists()
    lines: list[str] = []
    again = run(quick(folder, tmp_path / "b", bank=60, resume=True), lines)
    assert any("going on from" in line for line in lines)
    assert again.choices == whole.choices
    with pytest.raises(Killed):
        fit(quick(folder, tmp_path / "c", bank=60), stop, print)
    with pytest.raises(FitError, match="seed was 0, is 1"):
        run(quick(folder, tmp_path / "c", bank=60, resume=True, seed=1))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "calibration.cli", *map(str, arguments)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_program_killed_in_training_resumes_to_the_same_bundle(make_parts, tmp_path):
    folder = make_parts(3)
    options = ["--images", folder, "--method", "foundad", "--size", 64, "--top-k", 2, "--threads", 1]
    options += ["--pool", 4, "--batch", 2, "--steps", 30]
    whole = run(
        quick(folder, tmp_path / "whole", method="foundad", training=TrainingOptions(steps=30, batch=2, pool=4))
    )
    # A run of many more steps stands in for a slow one; it is killed once it has stored a state.
    out = tmp_path / "b"
    plain = command("fit", "--out", out, *options)
    code = (
        "import calibration.foundad as f, os, signal\n"
        "real = f.Trainer._one\n"
        "def one(self):\n"
        "    if self.step == 11:\n"
        "        self.save(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self)\n"
        "f.Trainer._one = one\n"
        "from calibration.cli import main; main()\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, *plain[3:]], env=ENVIRONMENT, capture_output=True, timeout=100)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    done = subprocess.run([*plain, "--resume"], env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stdout
    ours = Bundle.open(out).manifest.files["weights.safetensors"].sha256
    assert ours == whole.bundle.manifest.files["weights.safetensors"].sha256


def test_the_command_line_fits_scores_and_reports(make_parts, tmp_path):
    folder = make_parts(5)
    test_set = make_parts(3, name="test/good", seed=5).parent
    make_parts(3, name="test/scratch", seed=6, defect=True)
    runner = CliRunner()
    arguments = ["fit", "--images", folder, "--out", tmp_path / "b", "--size", "64", "--top-k", 2, "--bank", 60]
    result = runner.invoke(cli.app, [*map(str, arguments), "--json", str(tmp_path / "fit.json")])
    assert result.exit_code == 0, result.output
    assert "No guarantee" in result.output
    told = json.loads((tmp_path / "fit.json").read_text())
    assert told["images"] == told["fitted"] == 5
    assert told["regions"][0]["origin"] == "cross-validated"
    arguments = ["score", "--bundle", tmp_path / "b", "--images", test_set, "--engine", "torch"]
    arguments += ["--json", tmp_path / "scores.json", "--csv", tmp_path / "scores.csv"]
    result = runner.invoke(cli.app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "image AUROC 1.0000" in result.output
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["image_auroc"] == 1.0
    assert scores["missed_rate"] == 0.0
    assert [entry["label"] for entry in scores["files"]] == ["good"] * 3 + ["scratch"] * 3
    rows = (tmp_path / "scores.csv").read_text().splitlines()
    assert rows[0] == "path,label,region,score,percent,reject"
    assert len(rows) == 7
    # Offline scores are the pipeline's own.
    bundle = Bundle.open(tmp_path / "b")
    frame = read_image(Path(scores["files"][0]["path"])).pixels
    with torch.inference_mode():
        expected = float(bundle.pipeline()(torch.from_numpy(frame)[None])[0])
    assert scores["files"][0]["score"] == pytest.approx(expected, rel=1e-4)


def test_errors_are_one_line_without_a_traceback(make_parts, tmp_path):
    done = subprocess.run(
        command("fit", "--images", tmp_path / "nowhere", "--out", tmp_path / "b"),
        env=ENVIRONMENT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no such folder" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", command("--debug", "score", "--bundle", tmp_path / "b", "--images", tmp_path)[2:])
    with pytest.raises(InspectError, match="no such folder"):
        cli.main()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "banana"], "give pixels"),
        (["--size", "0"], "give pixels"),
        (["--top-k", "0"], "--top-k"),
        (["--steps", "-3"], "--steps"),
        (["--method", "magic"], "--method"),
        (["--foreground", "sky"], "--foreground"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_nonsense_values_name_the_option(tmp_path, arguments, words):
    result = CliRunner().invoke(cli.app, ["fit", "--images", str(tmp_path), "--out", str(tmp_path / "b"), *arguments])
    assert result.exit_code == 2
    assert words in result.output


def test_scoring_names_files_that_do_not_fit(make_parts, tmp_path):
    run(quick(make_parts(4), tmp_path / "b"))
    wrong = make_parts(1, 50, 60, name="wrong")
    arguments = ["score", "--bundle", str(tmp_path / "b"), "--images", str(wrong), "--engine", "torch"]
    with pytest.raises(InspectError, match="60 x 50 px, the bundle takes 96 x 96 px"):
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    make_parts(1, colour=True, name="wrong/colour")
    make_parts(2, name="wrong/right", seed=3)
    result = CliRunner().invoke(cli.app, [*arguments, "--skip-bad"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "left out" in result.output
    assert "a colour image" in result.output.replace("\n", " ")
    with pytest.raises(InspectError, match="no engine 'abacus'"):
        CliRunner().invoke(cli.app, [*arguments[:-1], "abacus"], catch_exceptions=False)


def test_leave_one_out_scores_lie_above_those_of_fitted_images(make_parts, tmp_path):
    summary = run(quick(make_parts(6), tmp_path / "b", bank=96))
    pipeline = summary.bundle.pipeline()
    with torch.inference_mode():
        seen = np.array([float(pipeline(torch.from_numpy(summary.images.read(i))[None])[0]) for i in range(6)])
    assert np.median(seen) < summary.choices[0].floor

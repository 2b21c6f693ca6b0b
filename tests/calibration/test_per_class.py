"""Fits on the way of an evaluation: VisualAD from another set, kept fits resumed, shared features, mixed formats."""

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from calibration.cli_evaluate import _shots, mount
from calibration.errors import CalibrationError, DataError, FitError
from calibration.evaluation import EvaluateOptions, evaluate
from calibration.foundad import TrainingOptions
from calibration.options import FitOptions
from calibration.per_class import link
from calibration.results import load_evaluation
from calibration.sets import open_dataset
from pipelines.bundle import Bundle
from pipelines.encoders import Encoder, EncoderConfig, compact, save
from pipelines.images import PixelFormat, list_images, read_image

SIDE = 64
TRAINING = TrainingOptions(steps=2, batch=2, pool=2)
FIT = FitOptions(Path(), Path(), size=(SIDE, SIDE), bank=30, rate=0.1, steps=2, training=TRAINING)


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory) -> Path:
    """A small encoder's file, which all fits here use."""
    config = EncoderConfig.from_dict({**compact().config.to_dict(), "depth": 4, "width": 48, "heads": 1})
    file = tmp_path_factory.mktemp("encoder") / "small.safetensors"
    save(Encoder(config).init_weights(0), file)
    return file


@pytest.fixture
def run(small):
    """run(set, lines, options of an evaluation ...) -> its result."""

    def run(root: Path, lines: list[str] | None = None, **options):
        torch.set_num_threads(1)
        fit = replace(options.pop("fit", FIT), encoder=str(small))
        said = lines if lines is not None else []
        chosen = EvaluateOptions(engine="torch", fit=fit, **options)
        return evaluate(open_dataset(root), chosen, lambda *_: None, said.append).evaluation

    return run


def write(root: Path, seed: int, train=5, good=4, bad=3, colour=False) -> Path:
    """A class of bright plates on which a dark square is the defect."""
    rng = np.random.default_rng(seed)
    for folder, count in (("train/good", train), ("test/good", good), ("test/spot", bad)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            image = np.clip(150 + rng.normal(0, 12, (SIDE, SIDE)), 0, 255).astype(np.uint8)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            if folder.endswith("spot"):
                top, left = rng.integers(8, SIDE - 24, 2)
                image[top : top + 16, left : left + 16] = 20
                mask[top : top + 16, left : left + 16] = 255
                place = root / "ground_truth/spot" / f"{number:03}_mask.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(place), mask)
            pixels = np.stack([image, image // 2, image // 3], axis=2) if colour else image
            cv2.imwrite(str(root / folder / f"{number:03}.png"), pixels)
    return root


@pytest.fixture(scope="module")
def plates(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "plate", 1)


@pytest.fixture(scope="module")
def caps(tmp_path_factory) -> Path:
    """Other products, in colour, to learn from."""
    return write(tmp_path_factory.mktemp("aux") / "cap", 2, colour=True)


@pytest.mark.parametrize("method", ["foundad", "vitad"])
def test_trained_methods_take_their_steps_from_the_options(run, plates, method):
    (one,) = run(plates, fit=replace(FIT, method=method), shots=3).classes
    assert one.train == 3
    assert one.metrics["mad"] is not None
    assert one.bundle["provenance"]["training"]["steps"] == 2
    assert len(one.bundle["provenance"]["encoder_id"]) == 64
    assert one.bundle["input_size"] == [SIDE, SIDE]


def test_visualad_learns_once_from_the_auxiliary_set(run, plates, caps, tmp_path):
    root = tmp_path / "two"
    shutil.copytree(plates, root / "a")
    shutil.copytree(plates, root / "b")
    for path in (root / "b").rglob("good/*.png"):  # other pixels: copies are used once
        cv2.imwrite(str(path), cv2.flip(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), 0))
    lines: list[str] = []
    found = run(root, lines, fit=replace(FIT, method="visualad", auxiliary=caps))
    assert found.notes == ("learned from cap, of this set only the limit; one limit for all classes",)
    a, b = found.classes
    assert a.bundle["id"] == b.bundle["id"]
    assert a.bundle["provenance"]["training"]["auxiliary"] == "cap"
    assert a.bundle["limit"]["n_normals"] == 10  # of both classes, none trained on
    assert sum("labelled images to learn from" in line for line in lines) == 1


def test_visualad_is_not_measured_on_what_it_learned_from(run, plates, tmp_path):
    (tmp_path / "same").symlink_to(plates)
    for auxiliary in (plates, tmp_path / "same"):
        with pytest.raises(DataError, match="also an image to test with; visualad is measured on products"):
            run(plates, fit=replace(FIT, method="visualad", auxiliary=auxiliary))


def test_kept_fits_are_resumed_and_others_are_refused(run, plates, tmp_path):
    keep, lines = tmp_path / "keep", []
    first = run(plates, keep=keep, shots=3)
    assert sorted(path.name for path in keep.iterdir()) == ["plate.bundle", "plate.fit.json"]
    with pytest.raises(FitError, match="exists already"):
        run(plates, keep=keep, shots=3, fit=replace(FIT, bank=20))
    again = run(plates, lines, keep=keep, shots=3, resume=True)
    assert lines == [f"{keep / 'plate.bundle'}: fitted before"]
    assert again.mean == first.mean
    assert again.classes[0].train == 3
    with pytest.raises(FitError, match=r"fitted otherwise \(bank was 30, is 50\).*another --keep"):
        run(plates, keep=keep, shots=3, resume=True, fit=replace(FIT, bank=50))
    with pytest.raises(FitError, match=r"fitted otherwise \(images_digest was"):
        run(plates, keep=keep, shots=4, resume=True)
    (keep / "plate.fit.json").write_text("{")
    with pytest.raises(FitError, match=r"plate\.fit\.json: cannot be read"):
        run(plates, keep=keep, shots=3, resume=True)


def test_an_interrupted_fit_goes_on_from_its_state(run, small, plates, tmp_path):
    keep = tmp_path / "keep"
    fit = replace(FIT, method="vitad", steps=4, encoder=str(small))
    whole = run(plates, fit=fit, shots=3)

    def stop(what: str, done: int, total: int, note: str) -> None:
        if what.endswith("scores for the limit"):  # the last step has been saved
            raise KeyboardInterrupt

    options = EvaluateOptions(engine="torch", fit=fit, shots=3, keep=keep, resume=True)
    with pytest.raises(KeyboardInterrupt):
        evaluate(open_dataset(plates), options, stop, lambda line: None)
    assert not (keep / "plate.images").exists()
    lines: list[str] = []
    resumed = run(plates, lines, fit=fit, shots=3, keep=keep, resume=True)
    assert any(line.startswith("going on from") for line in lines)
    assert resumed.mean == whole.mean


@pytest.mark.parametrize("method", ["memory_bank", "vitad", "foundad"])
def test_kept_features_change_no_result(run, plates, tmp_path, method):
    fit = replace(FIT, method=method)
    plain = run(plates, fit=fit, shots=3)
    for _ in range(2):
        kept = run(plates, fit=fit, shots=3, features=tmp_path)
        assert kept.mean == plain.mean
        assert [image.score for image in kept.classes[0].images] == [image.score for image in plain.classes[0].images]
    assert list(tmp_path.rglob("*.npy"))
    assert "features kept" in kept.classes[0].engine
    assert kept.notes == ("plate: times are without the encoder, whose features were kept",)


def test_visualad_does_without_kept_features(run, plates, caps, tmp_path):
    one = run(plates, fit=replace(FIT, method="visualad", auxiliary=caps), features=tmp_path / "features")
    assert not (tmp_path / "features").exists()
    assert "features kept" not in one.classes[0].engine


def test_one_model_of_gray_and_colour_classes(run, plates, caps, tmp_path):
    root = tmp_path / "both"
    shutil.copytree(plates, root / "plate")
    shutil.copytree(caps, root / "cap")
    cap, plate = run(root, joint=True).classes
    assert (cap.train, plate.train) == (10, 10)
    assert cap.bundle["id"] == plate.bundle["id"]
    assert all(one.metrics["image_auroc"] is not None for one in (cap, plate))


def test_linked_images_are_the_same_pixels(plates, caps, tmp_path):
    paths = [*sorted((plates / "train/good").iterdir()), *sorted((caps / "train/good").iterdir())]
    link(paths[:5], tmp_path / "gray")
    assert all(path.is_symlink() for path in list_images(tmp_path / "gray"))
    link(paths, tmp_path / "mixed")
    for path, made in zip(paths, list_images(tmp_path / "mixed"), strict=True):
        frame = read_image(made)
        assert frame.pixel_format is PixelFormat.BGR8
        assert np.array_equal(frame.pixels, np.broadcast_to(read_image(path).pixels, frame.pixels.shape))
    link(paths[:2], tmp_path / "mixed")  # what an earlier run left is replaced
    assert len(list_images(tmp_path / "mixed")) == 2


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    mount(app)
    return app


def test_the_command_for_visualad(app, small, plates, caps, tmp_path):
    words = [
        "evaluate",
        str(plates),
        "--method",
        "visualad",
        "--auxiliary",
        str(caps),
        "--shots",
        "all",
        "--steps",
        "2",
    ]
    words += [
        "--encoder",
        str(small),
        "--size",
        "64",
        "--keep",
        str(tmp_path / "keep"),
        "--resume",
        "--engine",
        "torch",
        "--threads",
        "1",
    ]
    done = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "a.json")])
    assert done.exit_code == 0, done.output
    content = load_evaluation(tmp_path / "a.json")
    assert content["classes"]["plate"]["bundle"]["provenance"]["training"]["steps"] == 2
    assert Bundle.open(tmp_path / "keep" / "plate.bundle").config.head.name == "visualad"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "visualad"], "give it by --auxiliary DATASET"),
        (["--method", "vitad", "--auxiliary", "x"], "--auxiliary belongs to --method visualad; vitad learns"),
        (["--bundle", "b", "--auxiliary", "x"], "belong to --method"),
        (["--method", "vitad", "--resume"], "--resume goes on from what --keep DIR holds"),
        (["--method", "vitad", "--keep-features", "x", "--engine", "openvino"], "judges with torch, not with openvino"),
        (["--method", "vitad", "--shots", "few"], "--shots few: give a number of images, such as 4, or all"),
        (["--method", "vitad", "--shots", "0"], "--shots 0: give a number"),
        (["--method", "vitad", "--shots", "99"], "99 shots asked, but there are only 5"),
        (["--method", "visualad", "--auxiliary", "nowhere"], "nowhere"),
    ],
)
def test_the_command_refuses(app, plates, options, message):
    done = CliRunner().invoke(app, ["evaluate", str(plates), "--engine", "torch", *options])
    assert isinstance(done.exception, CalibrationError), done.output
    assert message in str(done.exception)


def test_shots_by_word():
    assert _shots(None) is None
    assert _shots("all") is None
    assert _shots("16") == 16
    for wrong in ("", "-1", "4.0", "²"):
        with pytest.raises(CalibrationError, match="--shots"):
            _shots(wrong)

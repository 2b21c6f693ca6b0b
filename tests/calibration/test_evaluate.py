"""An evaluation equals the metrics of torch's own scores and maps; what cannot be measured is null, with the reason."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typer
from typer.testing import CliRunner

from calibration.cli_evaluate import mount
from calibration.compare import compare
from calibration.errors import CalibrationError, DataError
from calibration.evaluate import Fingerprint, Judge, evaluate_class, limited, raised
from calibration.evaluation import EvaluateOptions, evaluate
from calibration.fit import fit
from calibration.metrics import PixelScores, seven
from calibration.options import FitOptions
from calibration.per_class import shots_of
from calibration.results import METRICS, Evaluation, load_evaluation
from calibration.score import open_engine
from calibration.sets import open_dataset, read_mask
from pipelines.bundle import Bundle
from pipelines.images import read_image

SIDE = 64


def plate(rng: np.random.Generator, hole: bool) -> tuple[np.ndarray, np.ndarray]:
    """A striped plate, and where its hole is."""
    y, x = np.mgrid[:SIDE, :SIDE]
    image = 120 + 40 * np.sin(x / 3.0 + rng.uniform(0, 0.4)) + rng.normal(0, 3, (SIDE, SIDE))
    mask = np.zeros((SIDE, SIDE), bool)
    if hole:
        at, radius = rng.integers(16, SIDE - 16, 2), rng.integers(6, 10)
        mask = (y - at[0]) ** 2 + (x - at[1]) ** 2 < radius**2
        image[mask] = 15
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write(root: Path, seed: int, train=6, good=5, bad=5) -> Path:
    rng = np.random.default_rng(seed)
    for folder, count, hole in (("train/good", train, False), ("test/good", good, False), ("test/hole", bad, True)):
        for number in range(count):
            image, mask = plate(rng, hole)
            (root / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / folder / f"{number:03}.png"), image)
            if hole:
                place = root / "ground_truth/hole" / f"{number:03}_mask.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(place), mask.astype(np.uint8) * 255)
    return root


def quietly(*_: object) -> None:
    pass


FIT = FitOptions(images=Path(), out=Path(), method="memory_bank", size=(SIDE, SIDE), bank=60, rate=0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "plate", 1)


@pytest.fixture(scope="module")
def fitted(root, tmp_path_factory):
    """(the run, its bundle) of a method fitted and evaluated on the plates."""
    keep = tmp_path_factory.mktemp("kept")
    torch.set_num_threads(1)
    options = EvaluateOptions(fit=FIT, keep=keep, engine="torch", shots=4, examples=2)
    return evaluate(open_dataset(root), options, quietly, quietly), keep / "plate.bundle"


def judged(bundle: Path, root: Path, edit=lambda one: one, **options):
    opened = Bundle.open(bundle)
    with open_engine(opened, "torch", 1, quietly) as engine:
        (one,) = open_dataset(root).classes
        return evaluate_class(edit(one), Judge(opened, engine), root, 0, quietly, Fingerprint(), **options)


def test_metrics_equal_those_of_torchs_scores_and_maps(fitted, root):
    run, bundle = fitted
    pipeline = Bundle.open(bundle).pipeline()
    labels, scores, pixels = [], [], PixelScores()
    for item in open_dataset(root).classes[0].test:
        frame = read_image(item.path).pixels
        with torch.inference_mode():
            score, maps = pipeline(torch.from_numpy(frame)[None])
        size = frame.shape[:2]
        large = F.interpolate(maps, size, mode="bilinear", align_corners=False)[0, 0].numpy()
        pixels.add(large, read_mask(item.mask, size) if item.mask else np.zeros(size, bool))
        labels.append(item.defective)
        scores.append(float(score[0, 0]))
    wanted = seven(labels, scores, pixels)
    (one,) = run.evaluation.classes
    for name in METRICS:
        assert one.metrics[name] == pytest.approx(getattr(wanted, name), abs=2e-4), name
    assert [image.score for image in one.images] == pytest.approx(scores, rel=1e-5)
    assert one.train == 4
    assert one.regions == 5
    assert one.pixels == 10 * SIDE * SIDE


def test_json_and_csv(fitted, tmp_path):
    run, _ = fitted
    content = json.loads(json.dumps(run.evaluation.to_json(), allow_nan=False))
    for place in (content["mean"], content["classes"]["plate"]):
        assert all(isinstance(place[name], float) for name in METRICS)
        low, high = place["intervals"]["image_auroc"]
        assert 0.0 <= low <= place["image_auroc"] <= high <= 1.0
    assert content["classes"]["plate"]["counts"]["good"] == 5
    assert content["provenance"]["seed"] == 0
    assert len(content["provenance"]["data_fingerprint"]) == 64
    assert content["classes"]["plate"]["mad"] == pytest.approx(
        np.mean([content["classes"]["plate"][name] for name in METRICS[:-1]])
    )
    rows = list(csv.DictReader(run.evaluation.to_csv().splitlines()))
    assert [row["class"] for row in rows] == ["plate", "mean"]
    assert float(rows[0]["aupro"]) == content["mean"]["aupro"]


def test_a_bundle_gives_what_the_fit_on_the_way_gave(fitted, root):
    run, bundle = fitted
    again = evaluate(open_dataset(root), EvaluateOptions(bundle=bundle, engine="torch"), quietly, quietly)
    assert again.evaluation.mean == run.evaluation.mean
    assert again.evaluation.provenance["data_fingerprint"] == run.evaluation.provenance["data_fingerprint"]
    assert again.evaluation.classes[0].train is None


def test_raised_maps_equal_torchs_bilinear():
    small = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    for size in ((64, 64), (7, 5), (30, 91)):
        wanted = F.interpolate(torch.from_numpy(small)[None, None], size, mode="bilinear", align_corners=False)
        assert np.allclose(raised(small, size), wanted[0, 0].numpy(), atol=1e-5)


def test_without_masks_pixel_metrics_are_null_with_the_reason(fitted, root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "plate")
    shutil.rmtree(copy / "ground_truth")
    one = judged(fitted[1], copy)
    assert one.metrics["image_auroc"] is not None
    for name in ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro"):
        assert one.metrics[name] is None
        assert "no masks" in one.unavailable[name]
    assert one.metrics["mad"] is None
    assert "not all of them" in one.unavailable["mad"]


def test_a_defect_without_its_mask_is_left_out_of_the_pixel_metrics(fitted, root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "plate")
    (copy / "ground_truth/hole/000_mask.png").unlink()
    one = judged(fitted[1], copy)
    assert one.pixels == 9 * SIDE * SIDE
    assert "1 defective images have no mask" in one.notes[0]


@pytest.mark.parametrize(("gone", "word"), [("hole", "no defective image"), ("good", "no good image")])
def test_a_class_missing_in_the_test(fitted, root, tmp_path, gone, word):
    copy = shutil.copytree(root, tmp_path / "plate")
    shutil.rmtree(copy / "test" / gone)
    one = judged(fitted[1], copy)
    assert one.metrics["image_auroc"] is None
    assert word in one.unavailable["image_auroc"]
    assert one.intervals == {}
    whole = Evaluation("plate", "", "memory_bank", (one,), {})
    assert whole.mean["image_auroc"] is None
    json.dumps(whole.to_json(), allow_nan=False)


def test_equal_scores_are_told(fitted, root):
    """Copies of one image under both labels score the same."""

    def copies(one):
        return replace(one, test=tuple(replace(item, path=one.test[0].path, mask=None) for item in one.test))

    one = judged(fitted[1], root, copies)
    assert one.metrics["image_auroc"] == 0.5
    assert "all 10 scores are equal" in one.notes[0]


def test_a_mask_of_another_size_names_both(fitted, root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "plate")
    cv2.imwrite(str(copy / "ground_truth/hole/003_mask.png"), np.zeros((10, 12), np.uint8))
    with pytest.raises(DataError, match=r"003_mask\.png: the mask is 12 x 10 px, its image 003\.png is 64 x 64 px"):
        judged(fitted[1], copy)


def test_images_that_the_bundle_does_not_take(fitted, root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "plate")
    cv2.imwrite(str(copy / "test/good/000.png"), np.full((SIDE, SIDE, 3), (0, 90, 200), np.uint8))
    with pytest.raises(DataError, match=r"000\.png: a colour image, the bundle takes Mono8"):
        judged(fitted[1], copy)
    cv2.imwrite(str(copy / "test/good/000.png"), np.zeros((SIDE, SIDE + 2), np.uint8))
    with pytest.raises(DataError, match=r"000\.png: 66 x 64 px, the bundle takes 64 x 64 px"):
        judged(fitted[1], copy)


def test_maps_may_be_measured_at_one_size(fitted, root):
    one = judged(fitted[1], root, map_size=32)
    assert one.pixels == 10 * 32 * 32
    assert one.metrics["pixel_auroc"] == pytest.approx(judged(fitted[1], root).metrics["pixel_auroc"], abs=0.05)


def test_limited_tests_keep_both_labels(root):
    (one,) = open_dataset(root).classes
    for count in (2, 3, 7):
        cut = limited(one, count, 0)
        assert len(cut.test) == count
        assert cut.good
        assert cut.defective
    assert limited(one, 100, 0) is one
    assert limited(one, 4, 0) == limited(one, 4, 0)


def test_shots_are_seeded_and_nested(root):
    (one,) = open_dataset(root).classes
    assert set(shots_of(one, 2, 5)) < set(shots_of(one, 4, 5))
    assert len({tuple(shots_of(one, 2, seed)) for seed in range(8)}) > 1
    with pytest.raises(DataError, match="9 shots asked, but there are only 6"):
        shots_of(one, 9, 0)


def test_shots_are_the_images_that_a_fit_draws(fitted, root, tmp_path):
    whole = replace(FIT, images=root / "train" / "good", out=tmp_path / "bundle", take=4)
    drawn = fit(whole, quietly, quietly).bundle
    shown = Bundle.open(fitted[1])
    assert drawn.manifest.provenance["images_fingerprint"] == shown.manifest.provenance["images_fingerprint"]
    assert drawn.limit.regions == shown.limit.regions


def test_plain_folders_are_split_and_joint_fits_share_a_bundle(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        made = write(tmp_path / name, seed, train=1, good=6, bad=2)
        for kind in ("good", "hole"):
            (made / "test" / kind).rename(made / kind)
        shutil.rmtree(made / "train")
        shutil.rmtree(made / "test")
    options = EvaluateOptions(fit=FIT, joint=True, engine="torch")
    run = evaluate(open_dataset(tmp_path), options, quietly, quietly)
    a, b = run.evaluation.classes
    assert (a.train, len(a.images)) == (6, 5)  # three of six good images of each class
    assert a.bundle["id"] == b.bundle["id"]
    assert run.evaluation.mean["image_auroc"] == pytest.approx(
        (a.metrics["image_auroc"] + b.metrics["image_auroc"]) / 2
    )


def test_comparing_an_evaluation_with_itself_and_with_a_worse_one(fitted):
    content = json.loads(json.dumps(fitted[0].evaluation.to_json()))
    same = compare(content, content, ("a", "b"), 0)
    auroc = same.classes["plate"]["image_auroc"]
    assert auroc.difference == 0.0
    assert auroc.interval == (0.0, 0.0)  # paired: the same draws for both
    worse = json.loads(json.dumps(content))
    rng = np.random.default_rng(0)
    for image in worse["classes"]["plate"]["images"]:
        image["rank"] = float(rng.normal())
    worse["classes"]["plate"]["image_auroc"] = 0.5
    found = compare(content, worse, ("a", "b"), 0).classes["plate"]["image_auroc"]
    assert found.difference < 0
    assert found.interval[1] > found.interval[0]
    other = json.loads(json.dumps(content))
    other["classes"] = {"bolt": other["classes"]["plate"]}
    with pytest.raises(DataError, match="no class in common: plate; and bolt"):
        compare(content, other, ("a", "b"), 0)


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    mount(app)
    return app


def test_the_commands(app, fitted, root, tmp_path):
    pytest.importorskip("matplotlib")
    runner, made = CliRunner(), [tmp_path / name for name in ("a.json", "a.csv", "a.html")]
    arguments = ["evaluate", str(root), "--bundle", str(fitted[1]), "--engine", "torch", "--threads", "1"]
    outputs = ["--json", str(made[0]), "--csv", str(made[1]), "--html", str(made[2])]
    done = runner.invoke(app, [*arguments, *outputs])
    assert done.exit_code == 0, done.output
    assert "I-AUROC" in done.output
    assert all(file.stat().st_size for file in made)
    content = load_evaluation(made[0])
    assert math.isclose(content["mean"]["mad"], fitted[0].evaluation.mean["mad"])
    compared = runner.invoke(app, ["compare", str(made[0]), str(made[0]), "--html", str(tmp_path / "c.html")])
    assert compared.exit_code == 0, compared.output
    assert "Mean differences" in (tmp_path / "c.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --bundle"),
        (["--bundle", "b", "--method", "memory_bank"], "either --bundle"),
        (["--bundle", "b", "--shots", "3"], "belong to --method"),
        (["--method", "magic"], "--method magic: unknown; there are"),
        (["--method", "memory_bank", "--false-reject-rate", "2"], "false-reject rate 2"),
    ],
)
def test_the_command_refuses(app, root, options, message):
    done = CliRunner().invoke(app, ["evaluate", str(root), *options])
    assert isinstance(done.exception, CalibrationError)
    assert message in str(done.exception)


def test_damaged_evaluations(fitted, tmp_path):
    file = tmp_path / "a.json"
    with pytest.raises(DataError, match="cannot be read"):
        load_evaluation(file)
    file.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_evaluation(file)
    file.write_text("[]")
    with pytest.raises(DataError, match="no evaluation of this version"):
        load_evaluation(file)
    content = fitted[0].evaluation.to_json()
    del content["classes"]["plate"]["images"][0]["rank"]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"damaged.*rank"):
        load_evaluation(file)

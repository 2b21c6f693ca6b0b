"""The results benchmark: cells run as commands, once; the page says what they hold and what lacks."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.bootstrap import resampled
from calibration.results import METRICS, ClassResult, Evaluation, Latency, ScoredImage

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def results():
    """benchmarks/results.py as a module, and beside it results_page.py as it imports it."""
    if not BENCHMARKS.is_dir():
        pytest.skip("the benchmarks are not here: only in a checkout")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("results", BENCHMARKS / "results.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["results"] = module
        spec.loader.exec_module(module)
        import results_page  # noqa: F401
    finally:
        sys.path.remove(str(BENCHMARKS))
    yield module
    for name in ("results", "results_page"):
        sys.modules.pop(name, None)


ENCODER = "ab" * 32


def evaluated(cell, gap: float, seed: int, metric: float) -> str:
    """The JSON of an evaluation whose defects score `gap` above good images, on average."""
    rng = np.random.default_rng(seed)
    kinds = ["good"] * 40 + ["hole"] * 40
    scores = rng.normal(0, 1, 80) + gap * np.array([kind != "good" for kind in kinds])
    images = tuple(
        ScoredImage(f"{kind}/{n}.png", kind, float(score), 50.0 + 30.0 * float(score), float(score), True)
        for n, (kind, score) in enumerate(zip(kinds, scores, strict=True))
    )
    from calibration.metrics import image_ranking

    labels = [image.defective for image in images]
    metrics = dict.fromkeys(METRICS, metric) | {"image_auroc": image_ranking(labels, scores).auroc}
    bundle = {"id": "cd" * 32, "provenance": {"encoder": "compact", "encoder_id": ENCODER}}
    samples = resampled(labels, list(scores), seed, 50)
    latency = Latency(1.0, 1.0, 1.0, 80)
    one = ClassResult(cell.dataset, metrics, {}, images, 4, 9, 10, latency, bundle, "torch", (), samples)
    provenance = {
        "command": f"{cell.command()} --threads 1",
        "started_at": "2026-01-01T00:00:00+00:00",
        "seed": cell.seed,
        "shots": 4,
        "data_fingerprint": "ef" * 32,
        "versions": {"python": "3.12", "torch": "2.9"},
        "machine": "one machine",
    }
    return json.dumps(Evaluation(cell.dataset, "plain", cell.method, (one,), provenance).to_json())


@pytest.fixture
def folder(results, tmp_path):
    """Four shots, three seeds: a memory bank, a FoundAD that is far better and a ViTAD that is far worse."""
    cells = tmp_path / "done/cells"
    cells.mkdir(parents=True)
    for method, gap in (("memory_bank", 1.0), ("foundad", 3.0), ("vitad", -1.0)):
        for seed in range(3):
            cell = results.Cell(method, "magnetic_tile", "4", seed)
            (cells / cell.file).write_text(evaluated(cell, gap, 1, 0.5 + 0.1 * seed))
    return cells.parent


def test_every_cell_is_there_once_and_the_telling_ones_are_first(results):
    cells = results.matrix()
    assert len(cells) == len(set(cells)) == 3 * 3 * 4 * 2 + 3 * 2  # visualad does not depend on shots
    assert {cell.method for cell in cells[:16]} == set(results.METHODS)
    assert {cell.seed for cell in cells[:16]} == {0}
    visual = [cell for cell in cells if cell.method == "visualad"]
    assert len(visual) == 6
    assert all(cell.arguments()[4:6] == ["--auxiliary", other(cell.dataset)] for cell in visual)
    assert len({cell.command() for cell in cells}) == len(cells)


def other(dataset: str) -> str:
    return {"magnetic_tile": "kolektor_sdd", "kolektor_sdd": "magnetic_tile"}[dataset]


def test_the_page(results, folder, tmp_path):
    from results_page import NOTES, write_page

    page = tmp_path / "results.md"
    page.write_text(f"old text\n\n{NOTES}\n\nBy hand.\n")
    write_page(page, results.matrix(), folder)
    text = page.read_text()
    assert "9 of 78 cells were run" in text
    assert "old text" not in text
    assert text.endswith("By hand.\n")
    assert "content `abababababababab`" in text
    assert re.search(r"\| foundad \| 4 \| 3 \| 9\d\.\d ± 0\.0 \| 60\.0 ± 10\.0 \|", text)  # 50, 60 and 70
    assert "* foundad - **better**: Magnetic tile, 4 (3 seeds)." in text
    assert "* vitad - **worse**: Magnetic tile, 4 (3 seeds)." in text
    assert "calibrate evaluate magnetic_tile --method foundad --shots 4 --seed 2" in text
    assert "* foundad, Magnetic tile, 1: seed 0, 1, 2" in text
    assert "* foundad, Magnetic tile, 4:" not in text
    # The command does the same.
    folder.rename(tmp_path / ENCODER[:16])
    words = ["--out", str(tmp_path), "--page", str(page), "--encoder-id", ENCODER]
    subprocess.run([sys.executable, str(BENCHMARKS / "results.py"), *words], check=True)
    assert page.read_text() == text


def test_an_interval_over_zero_is_no_clear_difference(results, folder, tmp_path):
    from results_page import write_page

    cell = results.Cell("foundad", "magnetic_tile", "4", 2)
    (folder / "cells" / cell.file).write_text(evaluated(cell, 1.0, 1, 0.5))
    (folder / "cells" / results.Cell("vitad", "magnetic_tile", "4", 0).file).write_text("{")
    write_page(tmp_path / "a.md", results.matrix(), folder)
    text = (tmp_path / "a.md").read_text()
    assert "* foundad - **no clear difference**: Magnetic tile, 4 (3 seeds)." in text
    assert "8 of 78 cells" in text  # a damaged file is not done
    with pytest.raises(SystemExit, match="no cell is done yet"):
        write_page(tmp_path / "b.md", results.matrix(), tmp_path / "nowhere")


def test_cells_run_as_commands_once(results, tmp_path, capfd):
    rng = np.random.default_rng(0)
    for kind, count in (("train/good", 2), ("test/good", 2), ("test/hole", 2)):
        place = tmp_path / "data/magnetic_tile" / kind
        place.mkdir(parents=True)
        for number in range(count):
            image = rng.integers(90, 140, (64, 64)).astype(np.uint8)
            image[20:40, 20:40] = 10 if kind == "test/hole" else image[20:40, 20:40]
            cv2.imwrite(str(place / f"{number}.png"), image)
    good, bad = results.Cell("memory_bank", "magnetic_tile", "2", 0), results.Cell("memory_bank", "nothing", "2", 0)
    runner = results.Runner(tmp_path / "data", tmp_path / "out", results.encoder_now(), 1, None)
    assert runner.run_all([bad, good]) == 1
    told = capfd.readouterr().out
    assert re.search(r"FAILED: error: .*nothing", told)
    assert runner.done(good)
    assert not runner.done(bad)
    assert not (tmp_path / "out/fits" / good.file.removesuffix(".json")).exists()
    assert list((tmp_path / "out/features").rglob("*.npy"))
    content = json.loads((tmp_path / "out/cells" / good.file).read_text())
    assert content["provenance"]["command"].startswith("calibrate evaluate magnetic_tile --method memory_bank")
    assert runner.run_all([good]) == 0
    assert "1 of 1 cells are done" in capfd.readouterr().out
    # The result of another encoder is not taken over.
    waiting, result = tmp_path / "waiting", tmp_path / "out/cells" / good.file
    result.replace(waiting)
    why = results.Runner(tmp_path, tmp_path, "0" * 64, 1, None).accept(waiting, result)
    assert why.startswith("the shipped encoder changed meanwhile")
    assert not waiting.exists()
    assert not runner.done(good)
    over = results.Runner(tmp_path / "data", tmp_path / "out", results.encoder_now(), 1, 0.0)
    assert over.run_all([good]) == 0
    assert "the time is over" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "/nowhere"], "give the folder that holds magnetic_tile and kolektor_sdd"),
        (["--cells", "foundad/*/3/*"], "no cell has such a name; they are like memory_bank/magnetic_tile/4/0"),
    ],
)
def test_the_command_says_what_lacks(results, tmp_path, words, message):
    command = [sys.executable, str(BENCHMARKS / "results.py"), "--out", str(tmp_path), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr

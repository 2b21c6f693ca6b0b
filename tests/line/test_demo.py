"""`edge demo` as a user runs it, but shorter; and what it does with folders and answers that it does not understand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge.contact_sheet import COLUMNS, TILE_PX, Section, Tile, draw

EDGE = [sys.executable, "-m", "edge.cli"]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("EDGE_"):
            monkeypatch.delenv(name)
    (tmp_path / "shm").mkdir()
    monkeypatch.setenv("EDGE_SHM_DIR", str(tmp_path / "shm"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_short_demo_counts_every_part_and_shows_its_pictures(tmp_path):
    out = tmp_path / "demo"
    arguments = ["demo", "--parts", "24", "--rate", "3", "--good", "8", "--seed", "3", "--out", str(out)]
    done = subprocess.run(
        [*EDGE, *arguments, "--json", str(tmp_path / "results.json")], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["parts"] == 24
    assert found["pass"] + found["reject"] + found["unjudged"] == 24
    truth = [json.loads(row) for row in (out / "truth.jsonl").read_text().splitlines()]
    assert len(truth) == 24
    assert found["defective"] == sum(row["defect"] is not None for row in truth)
    assert found["missed_defects"] <= found["defective"]
    assert found["false_rejects"] <= found["reject"]
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]
    with Image.open(found["contact_sheet"]) as sheet:
        assert sheet.width > COLUMNS * TILE_PX
    assert Path(found["archive"]).is_relative_to(out)
    assert "camera to verdict, p99" in done.stdout
    assert not list((tmp_path / "shm").iterdir())


def test_folder_of_something_else_is_left_alone(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    done = subprocess.run([*EDGE, "demo", "--out", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert precious.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious.txt", "shm"]


def test_unknown_part_type_is_named(tmp_path):
    out = tmp_path / "demo"
    done = subprocess.run(
        [*EDGE, "demo", "--part-type", "gear", "--out", str(out)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "gear" in done.stderr
    assert "washer" in done.stderr
    assert not out.exists()


def test_ctrl_c_stops_the_demo_with_130(tmp_path):
    with subprocess.Popen(
        [*EDGE, "demo", "--good", "30", "--out", str(tmp_path / "demo")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        end = time.monotonic() + 60
        while not (tmp_path / "demo" / "good" / "good-029.png").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.5)  # so that it is calibrating
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"Traceback" not in said
    assert not (tmp_path / "demo" / "bundle").exists()


def test_sheet_holds_tiles_of_any_shape_and_long_words():
    wide = np.full((40, 200, 3), 90, np.uint8)
    tall = np.full((200, 40, 3), 160, np.uint8)
    tiles = [Tile(wide, "x" * 100, "y" * 100, (10, 5, 60, 30)), Tile(tall, "short", "tall")] * COLUMNS
    sheet = draw("title", [("1", "parts")], [Section("some", (200, 0, 0), tiles), Section("none", (0, 0, 0))])
    pixels = np.asarray(sheet)
    yellow = (pixels == (255, 214, 10)).all(axis=2)
    assert yellow.any()  # the marks
    assert (pixels[:, -20:] == pixels[0, 0]).all()  # nothing runs over the margin

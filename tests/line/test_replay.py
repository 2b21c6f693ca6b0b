"""Replay of a real line's parts: the same scores again, and what another bundle would have said."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.evaluate import Judge
from calibration.labelled_limits import Rule
from calibration.relimit import relimit
from calibration.sets import open_dataset
from edge.alert.history import History, Query
from edge.alert.reviews import Review, Reviews, Truth
from edge.messages import Decision
from pipelines.bundle import Bundle, Limit, RegionLimit, write_bundle
from pipelines.engines import load

EDGE = [sys.executable, "-W", "error", "-m", "edge.cli"]


def edge(line, *words: object, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [*EDGE, *map(str, words)], capture_output=True, text=True, env=line.environment, timeout=90, cwd=line.folder
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def entries(line) -> list:
    with History(line.settings.paths.ledger) as history:
        return list(history.added(Query()))


def stricter(path: Path, bundle: Path, limit: float) -> Path:
    """The same bundle with another limit."""
    opened = Bundle.open(bundle)
    (region,) = opened.limit.regions
    other = Limit(
        regions=(RegionLimit(name=region.name, limit=limit, floor=region.floor),),
        method="for a test",
        false_reject_rate=0.1,
        n_normals=16,
        guarantee="none",
        seed=0,
    )
    write_bundle(path, opened.pipeline(), other, opened.reference().frames, {"made": "for a test"})
    return path


def set_archive(line, text: str) -> None:
    line.file.write_text(line.file.read_text().replace("[archive]\n", f"[archive]\n{text}\n"))


def confirmed_parts_choose_a_limit(line, bundle, judged) -> None:
    """The archive with what people say of its parts is a labelled set, scored as the line scored it."""
    highest = sorted(judged, key=lambda verdict: verdict.score)[-4:]
    with Reviews(line.settings.paths.ledger) as reviews:
        for verdict in judged:
            truth = Truth.DEFECT if verdict in highest else Truth.GOOD
            found = verdict.id.camera, verdict.id.epoch, verdict.id.sequence
            reviews.add([Review(*found, truth, None, "ann", verdict.decided_at_ns)])
    opened = Bundle.open(bundle)
    with load(opened, ["openvino"]) as engine:
        found = relimit(Judge(opened, engine), open_dataset(line.settings.paths.data), None, 0, lambda *_: None)
    choice = found.choices["top"][Rule.F1]
    assert (choice.false_rejects.wrong, choice.false_rejects.count, choice.misses.wrong) == (0, 26, 0)
    scores = sorted(verdict.score for verdict in judged)
    assert choice.limits[0] == pytest.approx((scores[-4] + scores[-5]) / 2, abs=1e-5)


def test_same_bundle_gives_the_same_scores_and_another_one_what_it_would_have_said(make_line, bundle, tmp_path):
    line = make_line(parts=30, rate_hz=20.0, deadline_ms=5000.0)
    set_archive(line, 'save = ["pass", "reject", "unjudged"]')
    edge(line, "run", line.file)
    before = entries(line)
    judged = [entry.verdict for entry in before if entry.verdict.score is not None]
    assert len(judged) == 30
    done = edge(line, "replay", line.file, "--json", "same.json")
    assert "0 of 30 verdicts change" in done.stdout
    same = json.loads((tmp_path / "same.json").read_text())
    assert same["replayed"] == 30
    assert same["same_bundle"]["frames"] == 30
    assert same["same_bundle"]["largest_score_difference"] <= 1e-5
    assert same["bundles"] == {"top": {"id": Bundle.open(bundle).id, "path": str(bundle)}}

    confirmed_parts_choose_a_limit(line, bundle, judged)

    ledger = line.settings.paths.ledger.read_bytes()
    # A limit between the passed parts: what lies above it would have been rejected.
    passed = sorted(verdict.score for verdict in judged if verdict.decision is Decision.PASS)
    limit = (passed[-3] + passed[-4]) / 2
    other = stricter(tmp_path / "strict", bundle, limit)
    done = edge(line, "replay", line.file, "--bundle", other, "--json", "new.json", "--csv", "new.csv", code=3)
    assert "3 parts that passed are rejected, 0 that were rejected pass" in done.stdout
    new = json.loads((tmp_path / "new.json").read_text())
    assert (new["changed"], new["newly_rejected"], new["newly_passed"]) == (3, 3, 0)
    assert new["agreement"]["pass"] == {"pass": len(passed) - 3, "reject": 3, "unjudged": 0}
    expected = {v.id.sequence for v in judged if v.decision is Decision.PASS and v.score > limit}
    assert {part["sequence"] for part in new["parts"]} == expected
    for part in new["parts"]:
        assert part["old_percent"] < 100 < part["new_percent"]
        assert Path(part["frame"]).is_file()
    with (tmp_path / "new.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sequence"]) for row in rows] == [entry.verdict.id.sequence for entry in before]

    # Bundle against bundle; the camera's own limit_percent counts.
    edge(line, "replay", line.file, "--bundle", other, "--against", bundle, "--json", "two.json", code=3)
    assert json.loads((tmp_path / "two.json").read_text())["newly_rejected"] == 3
    halved = sorted(verdict.percent for verdict in judged)[-6:]
    percent = (halved[0] + halved[1]) / 2
    line.file.write_text(line.file.read_text().replace('name = "top"', f'name = "top"\nlimit_percent = {percent}'))
    edge(line, "replay", line.file, "--json", "other.json", code=3)
    found = json.loads((tmp_path / "other.json").read_text())
    assert found["same_bundle"]["at_another_limit_percent"] == 30
    assert found["agreement"]["pass"]["reject"] + found["agreement"].get("reject", {}).get("reject", 0) == 5

    # What is not there any more is counted with its reason.
    (line.settings.paths.archive / f"{before[0].archive_path}.png").unlink()
    done = edge(line, "replay", line.file, "--last", 30, code=3)
    assert "not replayed: 1 parts, the archived file is gone or damaged" in done.stdout
    shutil.rmtree(line.settings.paths.archive)
    done = edge(line, "replay", line.file, code=4)
    assert "not replayed: 30 parts" in done.stdout

    assert line.settings.paths.ledger.read_bytes() == ledger
    assert entries(line) == before


def test_frames_named_by_origin_and_folders(make_line, bundle, tmp_path):
    """A folder camera's passed parts are replayed from their files; colour files are gray for a gray camera."""
    from edge.capture.simulation import Conveyor

    belt = Conveyor(3, "tile", 96, 96, 1, 0.3)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        picture = belt.part(number).image
        cv2.imwrite(str(folder / f"{number:02}.png"), np.repeat(picture, 3, 2) if number % 2 else picture)
    line = make_line(deadline_ms=5000.0)
    text = line.file.read_text()
    source = f'[cameras.source]\ntype = "folder"\npath = "{folder}"\nrate_hz = 20\npixel_format = "Mono8"\n'
    line.file.write_text(text[: text.index("[cameras.source]")] + source)
    edge(line, "run", line.file)
    passed = sum(entry.verdict.decision is Decision.PASS for entry in entries(line))
    assert passed
    edge(line, "replay", line.file, "--json", "all.json")
    found = json.loads((tmp_path / "all.json").read_text())
    assert (found["replayed"], found["not_replayed"]) == (12, {})
    assert found["same_bundle"]["largest_score_difference"] <= 1e-5

    (folder / "broken.png").write_bytes(b"no picture")
    cv2.imwrite(str(folder / "new.png"), belt.part(99).image)
    cv2.imwrite(str(folder / "wide.png"), np.zeros((96, 97), np.uint8))
    edge(line, "replay", line.file, "--images", folder, "--json", "folder.json")
    found = json.loads((tmp_path / "folder.json").read_text())
    assert found["replayed"] == 14
    assert sum(found["agreement"]["not in the ledger"].values()) == 2
    assert found["agreement"]["not in the ledger"]["unjudged"] == 1  # of another size than the bundle takes
    assert "does not decode" in next(iter(found["not_replayed"]))

    # A file that was changed after the verdict is another part's picture.
    cv2.imwrite(str(folder / "00.png"), belt.part(50).image)
    done = edge(line, "replay", line.file)
    assert "the file it came from was changed since" in done.stdout or entries(line)[0].archive_path
    shutil.rmtree(folder)
    done = edge(line, "replay", line.file, code=0 if passed < 12 else 4)
    assert f"not replayed: {passed} parts, the archive does not keep frames with this verdict" in done.stdout
    assert 'set [archive] save = ["pass", "reject", "unjudged"]' in done.stdout


def test_wrong_words_are_told(make_line, bundle, tmp_path):
    line = make_line(cameras=("top", "side"))
    done = edge(line, "replay", line.file, code=1)
    assert "there is no ledger yet" in done.stderr
    (tmp_path / "pictures").mkdir()
    done = edge(line, "replay", line.file, "--images", "pictures", code=1)
    assert "say which camera these images are of: --camera top or --camera side" in done.stderr
    done = edge(line, "replay", line.file, "--images", "pictures", "--camera", "top", code=1)
    assert "no images in this folder" in done.stderr
    cv2.imwrite(str(tmp_path / "pictures" / "0.png"), np.zeros((96, 96), np.uint8))
    done = edge(line, "replay", line.file, "--images", "pictures", "--camera", "top", "--bundle", "gone", code=1)
    assert "gone: there is no such folder" in done.stderr
    done = edge(line, "replay", line.file, "--since", "yesterday", code=2)
    assert "neither a time" in done.stderr
    done = edge(line, "replay", line.file, "--images", "pictures", "--camera", "top", "--csv", "no/where.csv", code=1)
    assert "cannot be written" in done.stderr


@pytest.mark.parametrize("form", ["Mono8", "BGR8", "RGB8", "BayerRG8"])
def test_archived_pixels_come_back_as_the_camera_delivered_them(tmp_path, form):
    from edge.alert.archive import Job, render, write_files
    from edge.messages import FrameId, FrameRef, FrameStatus, Verdict
    from edge.replay_frames import read_archived
    from pipelines.images import PixelFormat

    pixel_format = PixelFormat(form)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, pixel_format.channels), dtype=np.uint8)
    frame_id = FrameId(line="press", camera="top", epoch=1, sequence=2)
    frame = FrameRef(
        id=frame_id, part=1, trigger_ns=0, host="here", age_ns=0, deadline_ns=10**9, status=FrameStatus.OK,
        pixel_format=pixel_format, height=12, width=16, ring="", slot=0, generation=0,
    )  # fmt: skip
    verdict = Verdict(
        id=frame_id, part=1, decision=Decision.REJECT, reason="", percent=120.0, score=1.2, limit=1.0, region="part",
        bundle="b", engine="torch", latency_ns=1, infer_ns=1, decided_at_ns=10**18,
    )  # fmt: skip
    write_files(tmp_path / "part.1-2", render(Job(verdict, frame, (), 100.0, pixels)))
    back, found = read_archived(tmp_path / "part.1-2")
    assert found is pixel_format
    np.testing.assert_array_equal(back, pixels)

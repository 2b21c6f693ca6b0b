from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from edge.alert.archive import Archive, Job, name_of, render, write_files
from edge.alert.ledger_schema import ArchiveState
from edge.alert.overlay import LONGEST_PX, draw, patch_percent
from edge.alert.retention import Item, Limits, Stock
from edge.messages import Decision, RegionScore
from pipelines.heatmap import to_bgr
from pipelines.images import PixelFormat, read_image

ROOMY = Limits(10**12, 0, 1e4)
MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(make_frame: Any, make_score: Any, make_verdict: Any) -> MakeJob:
    rng = np.random.default_rng(7)

    def make(
        sequence: int = 0,
        decision: str = "reject",
        pixel_format: PixelFormat = PixelFormat.MONO8,
        size: tuple[int, int] = (48, 64),
        pixels: bool = True,
        **changes: Any,
    ) -> Job:
        frame = make_frame(sequence, pixel_format=pixel_format, height=size[0], width=size[1])
        regions = make_score(frame, 1.4).regions if decision != "unjudged" else []
        image = rng.integers(0, 256, (*size, pixel_format.channels), dtype=np.uint8) if pixels else None
        verdict = make_verdict(sequence, decision, **changes)
        return Job(verdict, frame, tuple(regions), 100.0, image, "" if pixels else "overwritten")

    return make


def finish(archive: Archive) -> dict[int, tuple[ArchiveState, str | None]]:
    assert archive.stop(20.0)
    return {sequence: (state, path) for _, _, sequence, state, path in archive.updates(10**6)}


@pytest.mark.parametrize("pixel_format", list(PixelFormat))
def test_frame_is_kept_without_loss(tmp_path: Path, make_job: MakeJob, pixel_format: PixelFormat) -> None:
    job = make_job(pixel_format=pixel_format)
    archive = Archive(tmp_path / "archive", ROOMY, 8)
    archive.start()
    assert archive.put(job)
    state, path = finish(archive)[0]
    assert state is ArchiveState.SAVED
    assert path == "2023-11-14/top/221320.000-1000-0-reject"
    stem = tmp_path / "archive" / path
    kept = read_image(stem.with_name(stem.name + ".png")).pixels
    assert job.pixels is not None
    expected = job.pixels[:, :, ::-1] if pixel_format is PixelFormat.RGB8 else job.pixels
    np.testing.assert_array_equal(kept, expected)
    told = json.loads(stem.with_name(stem.name + ".json").read_text())
    assert told["frame"]["pixel_format"] == pixel_format.value
    assert told["verdict"]["decision"] == "reject"
    assert told["regions"][0]["limit"] == 1.0
    overlay = read_image(stem.with_name(stem.name + ".overlay.png"))
    assert overlay.pixels.shape[2] == 3
    assert not list((tmp_path / "archive").rglob("*.part"))


def test_frame_that_is_gone_leaves_its_json(tmp_path: Path, make_job: MakeJob) -> None:
    archive = Archive(tmp_path, ROOMY, 8)
    archive.start()
    archive.put(make_job(pixels=False))
    state, path = finish(archive)[0]
    assert state is ArchiveState.NO_FRAME
    assert path is not None
    (only,) = (tmp_path / path).parent.iterdir()
    assert json.loads(only.read_text())["note"] == "overwritten"


def test_unjudged_frame_has_no_heatmap(make_job: MakeJob) -> None:
    assert list(render(make_job(decision="unjudged"))) == [".png", ".json"]
    assert list(render(make_job(decision="reject"))) == [".png", ".overlay.png", ".json"]


def test_full_queue_gives_defects_precedence(tmp_path: Path, make_job: MakeJob) -> None:
    archive = Archive(tmp_path, ROOMY, 3)  # the writer is not running yet: jobs stay
    assert all(archive.put(make_job(i, "unjudged")) for i in range(3))
    assert not archive.wants(Decision.UNJUDGED)
    assert not archive.put(make_job(3, "unjudged"))
    assert archive.wants(Decision.REJECT)
    assert archive.put(make_job(4, "reject"))
    assert archive.counters["dropped"] == 2
    archive.start()
    states = {sequence: state for sequence, (state, _) in finish(archive).items()}
    dropped, saved = ArchiveState.DROPPED, ArchiveState.SAVED
    assert states == {0: dropped, 1: saved, 2: saved, 3: dropped, 4: saved}


def test_queue_is_bounded_in_bytes_too(tmp_path: Path, make_job: MakeJob) -> None:
    archive = Archive(tmp_path, ROOMY, 100, queue_bytes=250_000)  # frames of 100 kB
    assert [archive.put(make_job(i, "unjudged", size=(250, 400))) for i in range(4)] == [True, True, True, False]
    assert archive.put(make_job(4, "reject", size=(250, 400)))
    assert archive.waiting == 3


def test_put_never_waits_for_the_disk(tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is stuck in the middle of a file; jobs are taken until the queue is full, then dropped."""
    stuck, entered = threading.Event(), threading.Event()

    def hang(stem: Path, files: Any) -> None:
        entered.set()
        assert stuck.wait(30)
        write_files(stem, files)

    monkeypatch.setattr("edge.alert.archive.write_files", hang)
    archive = Archive(tmp_path, ROOMY, 2)
    archive.start()
    archive.put(make_job(0))
    assert entered.wait(10)
    assert [archive.put(make_job(i)) for i in range(1, 6)] == [True, True, False, False, False]
    assert not archive.stop(0.05)
    stuck.set()
    assert len([state for state, _ in finish(archive).values() if state is ArchiveState.SAVED]) == 3


def test_archive_that_cannot_be_written_is_a_fault_and_recovers(tmp_path: Path, make_job: MakeJob) -> None:
    folder = tmp_path / "archive"
    folder.write_text("a file is in the way")
    archive = Archive(folder, ROOMY, 8)
    archive.start()
    archive.put(make_job(0))
    wait_until(lambda: archive.counters["failed"] == 1)
    assert "cannot be written" in archive.fault
    folder.unlink()
    archive.put(make_job(1))
    states = finish(archive)
    assert (states[0][0], states[1][0]) == (ArchiveState.FAILED, ArchiveState.SAVED)
    assert archive.fault == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_read_only_archive(small_disk: Path, make_job: MakeJob) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    archive = Archive(small_disk, ROOMY, 8)
    archive.start()
    archive.put(make_job(0))
    assert finish(archive)[0] == (ArchiveState.FAILED, None)
    assert "Read-only file system" in archive.fault


def test_full_disk_leaves_nothing_half_written(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        write_files(small_disk / "day" / "camera" / "part", {".png": b"x" * 600_000, ".json": b"x" * 600_000})
    assert not [path for path in small_disk.rglob("*") if path.is_file()]


def test_disk_that_others_filled(small_disk: Path, make_job: MakeJob) -> None:
    """Nothing of ours can make room: the frame fails, with the reason, and works again when there is room."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 900_000)
    archive = Archive(small_disk, ROOMY, 8)
    archive.start()
    archive.put(make_job(0, size=(400, 500)))
    wait_until(lambda: archive.counters["failed"] == 1)
    assert "no room" in archive.fault
    ballast.unlink()
    archive.put(make_job(1, size=(400, 500)))
    assert finish(archive)[1][0] is ArchiveState.SAVED
    assert archive.fault == ""


def test_minimal_free_space_is_kept(small_disk: Path, make_job: MakeJob) -> None:
    """The oldest frames make room, so that the disk keeps its free space."""
    archive = Archive(small_disk, Limits(10**12, 400_000, 1e4), 20)
    archive.start()
    for i in range(6):
        archive.put(make_job(i, "unjudged", size=(400, 500)))
    states = finish(archive)
    assert [i for i, (state, _) in states.items() if state is ArchiveState.SAVED] == [3, 4, 5]
    assert archive.counters["removed"] == 3


def stock_of(
    folder: Path, limits: Limits, items: list[tuple[str, str, int]], size: int = 1000
) -> tuple[Stock, list[Item]]:
    """An archive folder of `items` (day, decision, sequence), each one file of `size` bytes."""
    removed: list[Item] = []
    for day, decision, sequence in items:
        path = folder / day / "top" / f"120000.{sequence:03d}-1000-{sequence}-{decision}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b" " * size)
    stock = Stock(folder, limits, removed.append)
    stock.scan()
    return stock, removed


def test_defects_go_last(tmp_path: Path) -> None:
    items = [
        ("2026-01-01", "reject", 0),
        ("2026-01-01", "unjudged", 1),
        ("2026-01-02", "pass", 2),
        ("2026-01-02", "unjudged", 3),
        ("2026-01-03", "pass", 4),
    ]
    stock, removed = stock_of(tmp_path, Limits(5000, 0, 30), items)
    assert stock.bytes == 5000
    assert stock.make_room(4500, Decision.REJECT)
    assert [(item.decision.value, item.identity[2]) for item in removed] == [
        ("pass", 2),
        ("pass", 4),
        ("unjudged", 1),
        ("unjudged", 3),
        ("reject", 0),
    ]
    assert stock.bytes == 0
    assert stock.make_room(5000, Decision.PASS)
    assert not stock.make_room(5001, Decision.REJECT)


def test_unjudged_never_pushes_out_a_defect(tmp_path: Path) -> None:
    items = [("2026-01-01", "reject", 0), ("2026-01-02", "unjudged", 1)]
    stock, removed = stock_of(tmp_path, Limits(2000, 0, 30), items)
    assert stock.make_room(1000, Decision.UNJUDGED)
    assert [item.identity[2] for item in removed] == [1]
    assert not stock.make_room(1001, Decision.UNJUDGED)
    assert (tmp_path / "2026-01-01/top/120000.000-1000-0-reject.json").exists()


def test_old_days_go_and_so_do_their_folders(tmp_path: Path) -> None:
    items = [("2026-01-01", "reject", 0), ("2026-01-30", "reject", 1), ("2026-01-31", "pass", 2)]
    stock, removed = stock_of(tmp_path, Limits(10**9, 0, 30), items)
    stock.expire("2026-03-01")
    assert [item.day for item in removed] == ["2026-01-01"]
    stock.expire("2026-03-02")
    assert [item.day for item in removed] == ["2026-01-01", "2026-01-30"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2026-01-31"]
    assert stock.bytes == 1000


def test_leftovers_of_a_killed_writer_go_and_other_peoples_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "2026-01-01" / "top"
    folder.mkdir(parents=True)
    (folder / "120000.000-1-1-reject.png.part").write_text("half")
    (folder / "notes.txt").write_text("mine")
    stock, removed = stock_of(tmp_path, Limits(100, 0, 1), [("2026-01-01", "reject", 0)])
    stock.expire("2026-05-01")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert len(removed) == 1


def test_files_that_somebody_else_removed_are_forgotten(tmp_path: Path) -> None:
    stock, removed = stock_of(tmp_path, Limits(3000, 0, 30), [("2026-01-01", "pass", i) for i in range(3)])
    for path in tmp_path.rglob("*.json"):
        path.unlink()
    assert stock.make_room(1000, Decision.PASS)
    assert (stock.bytes, removed) == (0, [])


def test_name_and_item_agree(make_verdict: Any) -> None:
    item = name_of(make_verdict(17, "unjudged", camera="side-2"))
    assert item.identity == ("side-2", 1000, 17)
    assert item.decision is Decision.UNJUDGED


# --- the picture ----------------------------------------------------------------------------------------------------


def heat(frame_shape: tuple[int, int], percent: np.ndarray, make_verdict: Any, **box: int) -> np.ndarray:
    h, w = percent.shape
    region = RegionScore(
        name="part",
        score=1.0,
        limit=3.0,
        floor=1.0,
        height=h,
        width=w,
        patches=(1.0 + 2.0 * percent / 100).astype("<f4").tobytes(),
        **box,
    )
    gray = np.full((*frame_shape, 1), 100, np.uint8)
    return draw(gray, PixelFormat.MONO8, make_verdict(0, "reject"), [region], 100.0)


def test_colours_do_not_depend_on_the_rest_of_the_frame(make_verdict: Any) -> None:
    """A patch at 80 percent looks the same beside a calm patch and beside one at 900 percent."""
    calm = heat((600, 600), np.array([[80.0, 80.0, 80.0, 0.0]]), make_verdict)
    wild = heat((600, 600), np.array([[80.0, 80.0, 80.0, 900.0]]), make_verdict)
    np.testing.assert_array_equal(calm[60:640, :300], wild[60:640, :300])


def test_contour_runs_where_the_limit_is_crossed_and_nowhere_else(make_verdict: Any) -> None:
    below = heat((600, 600), np.full((4, 4), 99.0), make_verdict)[60:640]
    assert not (below > 200).all(axis=2).any()
    bump = np.zeros((6, 6))
    bump[2, 3] = 300.0
    above = heat((600, 600), bump, make_verdict)[52:652]
    rows, columns = np.nonzero((above > 200).all(axis=2))
    assert len(rows) > 100
    assert (rows.min() + rows.max()) / 2 == pytest.approx(250, abs=3)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(350, abs=3)


def test_calm_patches_leave_the_frame_as_it_is(make_verdict: Any) -> None:
    picture = heat((600, 600), np.full((4, 4), 40.0), make_verdict)[52:652]
    assert np.abs(picture.astype(int) - 100).max() <= 1


def test_region_covers_its_rectangle_alone(make_verdict: Any) -> None:
    picture = heat((600, 600), np.full((4, 4), 190.0), make_verdict, left=100, top=200, right=300, bottom=400)[52:652]
    changed = (picture != 100).any(axis=2)
    assert changed[202:398, 102:298].all()
    changed[198:402, 98:302] = False
    assert not changed.any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (2000, 30), (3000, 4000)])
def test_any_size_of_frame(make_verdict: Any, shape: tuple[int, int]) -> None:
    picture = heat(shape, np.full((2, 3), 150.0), make_verdict)
    assert max(picture.shape[:2]) <= LONGEST_PX + 108


def test_patches_that_do_not_fit_are_not_drawn() -> None:
    region = RegionScore(name="x", score=1.0, limit=1.0, floor=0.0, height=2, width=2, patches=bytes(16))
    msgspec.structs.force_setattr(region, "patches", b"123")
    assert patch_percent(region) is None


@pytest.mark.parametrize("pixel_format", [value for value in PixelFormat if value.is_bayer])
def test_bayer_colours(pixel_format: PixelFormat) -> None:
    """A red scene: red samples bright, the others dark, at the places that the format's name tells."""
    letters = pixel_format.value[-3:-1]  # colours of the first two pixels of the first row
    rows = {"RG": ["RG", "GB"], "GR": ["GR", "BG"], "GB": ["GB", "RG"], "BG": ["BG", "GR"]}[letters]
    cell = np.array([[255 if colour == "R" else 0 for colour in row] for row in rows], np.uint8)
    picture = to_bgr(np.tile(cell, (8, 8))[:, :, None], pixel_format)[4:-4, 4:-4]
    assert picture[:, :, 2].min() == 255
    assert picture[:, :, :2].max() == 0


def test_picture_is_a_png(make_job: MakeJob) -> None:
    data = np.frombuffer(render(make_job())[".overlay.png"], np.uint8)
    assert cv2.imdecode(data, cv2.IMREAD_UNCHANGED).shape[2] == 3


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not happen within 10 s")

from __future__ import annotations

import itertools
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.capture import open_source
from edge.capture.folder import AHEAD
from edge.errors import SourceError
from edge.messages import FrameStatus, now_ns
from edge.settings_sources import FolderSource
from pipelines.images import PixelFormat, read_image


def replay(folder: Path, **keys) -> FolderSource:
    return FolderSource(**{"type": "folder", "path": folder, "rate_hz": 200.0} | keys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of different sizes, formats, depths and names, one of them in a folder below."""
    rng = np.random.default_rng(0)

    def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)

    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name, pixels in {
        "a-gray.png": noise(40, 50),
        "b-colour.png": noise(41, 31, 3),
        "c-gray.jpg": noise(64, 48),
        "d-colour.jpg": noise(48, 64, 3),
        "e-deep.tif": noise(20, 30, dtype=np.uint16),
        "f-alpha.png": noise(33, 35, 4),
        "sub/g-ümlaut.bmp": noise(25, 26, 3),
    }.items():
        done, data = cv2.imencode(Path(name).suffix, pixels)
        assert done
        data.tofile(images / name)
    return images


def test_every_image_comes_once_in_path_order_as_the_line_decodes_it(folder, start, drain):
    source = open_source(replay(folder))
    info, ring = start(source)
    assert info.finite
    assert "7 images" in info.description
    parts = drain(source, ring)
    assert [grab.origin for grab, _ in parts] == sorted(str(p) for p in folder.rglob("*.*"))
    for grab, pixels in parts:
        frame = read_image(Path(grab.origin))
        assert grab.status is FrameStatus.OK
        assert grab.pixel_format is frame.pixel_format
        assert (grab.height, grab.width) == frame.pixels.shape[:2]
        assert pixels == frame.pixels.tobytes()
    assert info.max_bytes >= max(len(pixels) for _, pixels in parts)
    triggers = [grab.trigger_ns for grab, _ in parts]
    assert {b - a for a, b in itertools.pairwise(triggers)} == {5_000_000}


@pytest.mark.parametrize("form", [PixelFormat.MONO8, PixelFormat.BGR8, PixelFormat.RGB8, PixelFormat.BAYER_GR8])
def test_all_images_in_one_format(folder, start, drain, form):
    source = open_source(replay(folder, pixel_format=form))
    _, ring = start(source)
    for grab, pixels in drain(source, ring):
        assert grab.status is FrameStatus.OK
        assert grab.pixel_format is form
        assert len(pixels) == grab.height * grab.width * form.channels
        if form.is_bayer:
            assert grab.height % 2 == grab.width % 2 == 0


def test_a_damaged_image_is_an_unreadable_part(folder, start, drain):
    whole = (folder / "b-colour.png").read_bytes()
    (folder / "b-colour.png").write_bytes(whole[:60])
    (folder / "bb-empty.png").write_bytes(b"")
    (folder / "bc-text.jpg").write_text("not an image")
    source = open_source(replay(folder))
    _, ring = start(source)
    (folder / "c-gray.jpg").unlink()  # may be read ahead already
    (folder / "sub/g-ümlaut.bmp").unlink()
    parts = drain(source, ring)
    assert len(parts) == 9
    status = {Path(grab.origin).name: grab.status for grab, _ in parts}
    for name in ("b-colour.png", "bb-empty.png", "bc-text.jpg", "g-ümlaut.bmp"):
        assert status[name] is FrameStatus.UNREADABLE
    assert status["d-colour.jpg"] is FrameStatus.OK
    assert source.health()[1]["unreadable_files"] == list(status.values()).count(FrameStatus.UNREADABLE)


def test_a_file_that_has_grown_does_not_fit_its_slot(folder, start, drain):
    for path in folder.rglob("*.*"):
        if path.name != "e-deep.tif":
            path.unlink()
    cv2.imwrite(str(folder / "z.png"), np.zeros((10, 10), np.uint8))
    source = open_source(replay(folder))
    source.open()
    cv2.imwrite(str(folder / "z.png"), np.zeros((200, 300), np.uint8))
    _, ring = start(source, slot_bytes=20 * 30)
    parts = drain(source, ring)
    assert [grab.status for grab, _ in parts] == [FrameStatus.OK, FrameStatus.NO_SLOT]
    assert (parts[1][0].height, parts[1][0].width) == (200, 300)


def test_shuffled_rounds_are_whole_differ_and_repeat_with_the_seed(folder, start):
    def three_rounds(seed: int) -> list[list[str]]:
        source = open_source(replay(folder, loop=True, shuffle=True, seed=seed))
        info, ring = start(source)
        assert not info.finite
        names = []
        for _ in range(21):
            grab = source.next(2.0)
            names.append(grab.origin)
            ring.commit(grab.slot)
        source.close()
        return [names[0:7], names[7:14], names[14:21]]

    rounds = three_rounds(5)
    assert all(len(set(names)) == 7 for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    assert three_rounds(5) == rounds
    assert three_rounds(6) != rounds


def test_images_are_decoded_before_they_are_due(folder, start, monkeypatch):
    """An image that takes longer to decode than the pace allows comes in time, as long as the others are quick."""

    def slow(path: Path):
        if path.name.startswith("d-"):
            time.sleep(0.12)
        return read_image(path)

    monkeypatch.setattr("edge.capture.folder.read_image", slow)
    source = open_source(replay(folder, rate_hz=20.0))
    _, ring = start(source)
    late = []
    for _ in range(7):
        grab = source.next(2.0)
        late.append(now_ns() - grab.trigger_ns)
        ring.commit(grab.slot)
    assert max(late[1:]) < 40e6


def test_no_more_is_read_ahead_than_allowed(folder, start, monkeypatch):
    read: list[Path] = []

    def counted(path: Path):
        read.append(path)
        return read_image(path)

    monkeypatch.setattr("edge.capture.folder.read_image", counted)
    source = open_source(replay(folder, loop=True, rate_hz=20.0))
    _, ring = start(source)
    for done in range(1, 5):
        ring.commit(source.next(2.0).slot)
        assert len(read) <= done + AHEAD + 1


def test_images_that_decode_too_slowly_are_lost_but_announced(folder, start, drain, monkeypatch):
    def slow(path: Path):
        time.sleep(0.4)
        return read_image(path)

    monkeypatch.setattr("edge.capture.folder.read_image", slow)
    monkeypatch.setattr("edge.capture.paced.LAG_S", 0.5)
    source = open_source(replay(folder, rate_hz=20.0))
    _, ring = start(source)
    parts = drain(source, ring)
    assert [grab.origin for grab, _ in parts] == sorted(str(p) for p in folder.rglob("*.*"))
    status = [grab.status for grab, _ in parts]
    assert status[0] is FrameStatus.OK
    assert FrameStatus.LOST in status


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(SourceError, match="nowhere: there is no such folder"):
        open_source(replay(tmp_path / "nowhere")).open()
    with pytest.raises(SourceError, match="no images in this folder"):
        open_source(replay(tmp_path)).open()
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(SourceError, match="none of the 1 images here decodes"):
        open_source(replay(tmp_path)).open()


def test_closing_ends_the_reading(folder, start):
    source = open_source(replay(folder, loop=True))
    _, ring = start(source)
    ring.commit(source.next(2.0).slot)
    source.close()
    source.close()

"""Every layout of a labelled set is recognised by what lies there, and what cannot be used is named."""

import csv
import json
import sqlite3
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.errors import DataError
from calibration.sets import open_dataset, read_mask
from calibration.sets.masks import resize_mask
from pipelines.errors import ImageError


def picture(path: Path, value: int = 90, size: tuple[int, int] = (12, 16), dtype=np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(size, value, dtype))
    return path


def shape(dataset) -> dict[str, tuple[int, int, int, int]]:
    return {one.name: (len(one.train), len(one.good), len(one.defective), len(one.unmasked)) for one in dataset.classes}


def mvtec(root: Path, train="good", good="good", kinds=("hole",), mask="{}_mask.png") -> Path:
    for number in range(3):
        picture(root / "train" / train / f"{number:03}.png")
    picture(root / "test" / good / "000.png")
    for kind in kinds:
        for number in range(2):
            picture(root / "test" / kind / f"{number:03}.png")
            picture(root / "ground_truth" / kind / mask.format(f"{number:03}"), 255)
    return root


def test_mvtec_class_and_root(tmp_path):
    mvtec(tmp_path / "bottle", kinds=("hole", "scratch"))
    mvtec(tmp_path / "pill")
    (tmp_path / "notes").mkdir()
    both = open_dataset(tmp_path)
    assert shape(both) == {"bottle": (3, 1, 4, 0), "pill": (3, 1, 2, 0)}
    assert "notes" in both.notes[0]
    one = open_dataset(tmp_path / "bottle")
    assert shape(one) == {"bottle": (3, 1, 4, 0)}
    assert {item.kind for item in one.classes[0].defective} == {"hole", "scratch"}
    item = one.classes[0].defective[0]
    assert item.mask == tmp_path / "bottle/ground_truth/hole/000_mask.png"


def test_the_current_folder_has_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(mvtec(tmp_path / "bottle"))
    assert shape(open_dataset(Path())) == {"bottle": (3, 1, 2, 0)}


def test_btad_and_visa_converted(tmp_path):
    mvtec(tmp_path / "btad" / "01", train="ok", good="ok", kinds=("ko",), mask="{}.png")
    assert shape(open_dataset(tmp_path / "btad")) == {"01": (3, 1, 2, 0)}
    mvtec(tmp_path / "visa" / "1cls" / "candle", kinds=("bad",), mask="{}.png")
    assert shape(open_dataset(tmp_path / "visa")) == {"candle": (3, 1, 2, 0)}


def test_defects_among_train_are_refused(tmp_path):
    mvtec(tmp_path)
    picture(tmp_path / "train" / "broken" / "0.png")
    with pytest.raises(DataError, match=r"train/broken: images to fit on must be good"):
        open_dataset(tmp_path)


def visa(root: Path, rows: list[tuple[str, str, str, str, str]]) -> Path:
    (root / "split_csv").mkdir(parents=True)
    with (root / "split_csv" / "1cls.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("object", "split", "label", "image", "mask"), *rows])
    return root


def test_visa_split_file(tmp_path):
    rows = [
        ("candle", "train", "normal", "candle/Data/Images/Normal/0.JPG", ""),
        ("candle", "test", "normal", "candle/Data/Images/Normal/1.JPG", ""),
        ("candle", "test", "anomaly", "candle/Data/Images/Anomaly/0.JPG", "candle/Data/Masks/Anomaly/0.png"),
        ("fryum", "train", "normal", "fryum/Data/Images/Normal/0.JPG", ""),
    ]
    visa(tmp_path, rows)
    with pytest.raises(DataError, match=r"5 of the 5 files it names are not there, such as .*0\.JPG"):
        open_dataset(tmp_path)
    for *_, image, mask in rows:
        picture(tmp_path / image)
        if mask:
            picture(tmp_path / mask, 3)
    assert shape(open_dataset(tmp_path)) == {"candle": (1, 1, 1, 0), "fryum": (1, 0, 0, 0)}
    one = open_dataset(tmp_path / "candle")
    assert shape(one) == {"candle": (1, 1, 1, 0)}
    # VisA numbers the kinds of defects in its masks.
    assert read_mask(one.classes[0].defective[0].mask, (12, 16)).all()


def test_visa_split_file_of_another_form(tmp_path):
    visa(tmp_path, [("candle", "valid", "normal", "x.png", "")])
    with pytest.raises(DataError, match=r"1cls\.csv:2: split 'valid'"):
        open_dataset(tmp_path)
    (tmp_path / "split_csv" / "1cls.csv").write_text("object,image\n")
    with pytest.raises(DataError, match="no column label, mask, split"):
        open_dataset(tmp_path)


def real_iad(root: Path, folder="realiad_jsons/realiad_jsons") -> Path:
    def entry(image: str, kind: str, mask: str | None = None) -> dict:
        picture(root / "realiad_256" / "mint" / image)
        if mask:
            picture(root / "realiad_256" / "mint" / mask, 255)
        return {"category": "mint", "anomaly_class": kind, "image_path": image, "mask_path": mask}

    split = {
        "meta": {"normal_class": "OK", "prefix": "mint/"},
        "train": [entry("OK/S1/a.jpg", "OK")],
        "test": [entry("OK/S2/b.jpg", "OK"), entry("NG/AK/S3/c.jpg", "AK", "NG/AK/S3/c.png")],
    }
    (root / folder).mkdir(parents=True)
    (root / folder / "mint.json").write_text(json.dumps(split))
    return root


def test_real_iad(tmp_path):
    dataset = open_dataset(real_iad(tmp_path))
    assert shape(dataset) == {"mint": (1, 1, 1, 0)}
    assert dataset.classes[0].defective[0].kind == "AK"
    picture(tmp_path / "realiad_1024" / "mint" / "OK/S1/a.jpg")
    with pytest.raises(DataError, match=r"realiad_1024.*unpack"):  # half unpacked
        open_dataset(tmp_path)


def test_real_iad_damaged(tmp_path):
    file = real_iad(tmp_path) / "realiad_jsons" / "realiad_jsons" / "mint.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(DataError, match=r"mint\.json: this split file is damaged"):
        open_dataset(tmp_path)


def test_plain_folders(tmp_path):
    for number in range(4):
        picture(tmp_path / "OK" / f"{number}.png")
    picture(tmp_path / "scratch" / "a.png")
    picture(tmp_path / "dent" / "b.png")
    picture(tmp_path / "masks" / "a.png", 255)
    dataset = open_dataset(tmp_path)
    assert shape(dataset) == {tmp_path.name: (0, 4, 2, 1)}
    assert "no split" in dataset.notes[0]


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(tmp_path / "none")
    with pytest.raises(DataError, match="the folder is empty"):
        open_dataset(tmp_path)
    picture(tmp_path / "a.png")
    picture(tmp_path / "left" / "b.png")
    with pytest.raises(DataError, match=r"(?s)folders left and 1 images.*Looked for:.*train/good.*split_csv.*realiad"):
        open_dataset(tmp_path)


def ledger(folder: Path, parts: int, reviews: list[tuple[int, str, str | None]] | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        db.execute("PRAGMA application_id = 0x45444745")
        db.execute("PRAGMA user_version = 1")
        db.execute("CREATE TABLE verdicts (camera, epoch, sequence, decision, archive_state, archive_path)")
        for part in range(parts):
            frame = f"2026-01-01/top/120000.{part:03}-7-{part}-reject"
            db.execute("INSERT INTO verdicts VALUES ('top', 7, ?, 'reject', 'saved', ?)", (part, frame))
            picture(folder / "archive" / f"{frame}.png")
        if reviews is not None:
            db.execute("CREATE TABLE reviews (camera, epoch, sequence, truth, kind)")
            db.executemany("INSERT INTO reviews VALUES ('top', 7, ?, ?, ?)", reviews)
    db.close()
    return folder


def test_a_line_with_reviews(tmp_path):
    ledger(tmp_path, 4, [(0, "good", None), (1, "defect", "scratch"), (2, "defect", None), (0, "defect", "dent")])
    next((tmp_path / "archive").rglob("*-2-reject.png")).unlink()
    dataset = open_dataset(tmp_path)
    assert [item.kind for item in dataset.classes[0].test] == ["dent", "scratch"]
    assert dataset.classes[0].name == "top"
    assert "1 labelled parts are not in the archive" in dataset.notes[1]


def test_a_lines_own_verdicts_are_no_labels(tmp_path):
    ledger(tmp_path, 2, None)
    with pytest.raises(DataError, match=r"2 archived frames .*, 0 parts labelled.*edge verdicts confirm"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough to be looked at" * 40])
def test_a_damaged_ledger(tmp_path, content):
    (tmp_path / "ledger.sqlite").write_bytes(content)
    with pytest.raises(DataError, match=r"ledger\.sqlite: this (is no ledger|ledger cannot be read)"):
        open_dataset(tmp_path)


def test_a_ledger_of_a_later_version(tmp_path):
    with sqlite3.connect(ledger(tmp_path, 1, None) / "ledger.sqlite") as db:
        db.execute("PRAGMA user_version = 3")
    db.close()
    with pytest.raises(DataError, match="it has schema 3, not 1 or 2"):
        open_dataset(tmp_path)


def test_masks_are_cut_at_half_and_must_fit(tmp_path):
    soft = np.zeros((8, 8), np.uint8)
    soft[:, 3:] = np.linspace(60, 255, 5).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "m.png"), soft)
    assert np.array_equal(read_mask(tmp_path / "m.png", (8, 8)), soft > 127)
    with pytest.raises(DataError, match=r"m\.png: the mask is 8 x 8 px, its image a\.png is 9 x 8 px"):
        read_mask(tmp_path / "m.png", (8, 9), tmp_path / "a.png")
    deep = picture(tmp_path / "deep.png", 60000, dtype=np.uint16)
    assert read_mask(deep, (12, 16)).all()
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no")
    with pytest.raises(ImageError, match=r"bad\.png"):
        read_mask(tmp_path / "bad.png", None)


def test_masks_are_resized_by_the_nearest_pixel():
    mask = np.zeros((4, 6), bool)
    mask[1, 2] = True
    large = resize_mask(mask, (8, 12))
    assert np.array_equal(large, mask.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(resize_mask(large, (4, 6)), mask)

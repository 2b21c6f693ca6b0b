"""What people say of parts goes into the ledger beside a running line, and costs the line no verdict."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from calibration.sets import open_dataset
from edge.alert.history import History, Query
from edge.alert.ledger import Ledger
from edge.alert.ledger_schema import SCHEMA, ArchiveState, Entry
from edge.alert.recorder import Recorder
from edge.alert.reviews import Review, Reviews, Truth, read_reviews
from edge.errors import LedgerError
from edge.settings import load_settings

ARCHIVED = "2023-11-14/top/221320.000-1000-{}-reject"


@pytest.fixture
def path(tmp_path: Path, make_verdict: Any) -> Path:
    file = tmp_path / "ledger.sqlite"
    with Ledger.open(file, "press") as ledger:
        ledger.write([Entry(make_verdict(i, "reject" if i % 2 else "pass")) for i in range(10)])
    return file


def review(sequence: int, truth: Truth = Truth.GOOD, **changes: Any) -> Review:
    values: dict[str, Any] = {"kind": None, "reviewer": "ann", "reviewed_at_ns": time.time_ns(), "note": ""}
    return Review("top", 1000, sequence, truth, **(values | changes))


def make_old(path: Path) -> None:
    """The ledger as schema 1 had it."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE reviews")
        db.execute("PRAGMA user_version = 1")
        db.commit()


def said(path: Path, every: bool = False) -> list[tuple[int, str, str | None]]:
    with History(path) as history:
        return [(one.sequence, one.truth.value, one.kind) for one in read_reviews(history, every)]


def test_the_last_word_counts_and_all_are_kept(path: Path) -> None:
    with Reviews(path) as reviews:
        entries = reviews.add([review(1, Truth.GOOD), review(2, Truth.DEFECT, kind="dent")])
        assert [entry.verdict.id.sequence for entry in entries] == [1, 2]
        reviews.add([review(1, Truth.DEFECT, kind="scratch")])
    assert said(path) == [(2, "defect", "dent"), (1, "defect", "scratch")]
    assert said(path, every=True) == [(1, "good", None), (2, "defect", "dent"), (1, "defect", "scratch")]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (review(77), "no part top:1000:77"),
        (review(3, kind="dent"), "a good part has no kind"),
        (review(3, reviewer=" "), "who says so"),
        (review(3, Truth.DEFECT, kind="a\x00b"), "printable"),
        (review(3, note="x" * 2001), "the note must be"),
        (Review("top", 2**70, 1, Truth.GOOD, None, "ann", 0), "cannot be read"),
    ],
)
def test_nothing_is_written_where_one_is_wrong(path: Path, wrong: Review, text: str) -> None:
    with Reviews(path) as reviews, pytest.raises(LedgerError, match=text):
        reviews.add([review(1), wrong])
    assert said(path) == []


def test_an_older_ledger_is_brought_up_to_date_by_whoever_writes(path: Path, make_verdict: Any) -> None:
    for use in ("alert", "review"):
        make_old(path)
        assert said(path) == []  # reading needs no migration
        if use == "alert":
            with Ledger.open(path, "press") as ledger:
                assert ledger.write([Entry(make_verdict(20))]) == [True]
        with Reviews(path) as reviews:
            reviews.add([review(1)])
        assert said(path) == [(1, "good", None)]
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    for open_one in (lambda: Ledger.open(path, "press"), lambda: Reviews(path), lambda: History(path)):
        with pytest.raises(LedgerError, match=rf"schema {SCHEMA + 1}, this program reads schemas 1 to {SCHEMA}"):
            open_one()


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    make_old(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="cannot be opened: database is locked"):
            Ledger.open(path, "press")
        other.execute("ROLLBACK")
        assert other.execute("PRAGMA user_version").fetchone() == (1,)
    with Ledger.open(path, "press"):
        pass
    assert said(path) == []


def test_many_reviews_beside_a_running_alert_cost_no_verdict(path: Path, make_verdict: Any) -> None:
    """Alert waits 50 ms for the file; the reviews' transactions must fit in between, also where they come in masses."""
    stop, told = threading.Event(), []

    def operator() -> None:
        with Reviews(path) as reviews:
            while not stop.is_set():
                reviews.add([review(i % 10, Truth.DEFECT, kind="dent") for i in range(300)])
                told.append(300)

    with Ledger.open(path, "press") as ledger:
        recorder = Recorder(ledger)
        thread = threading.Thread(target=operator)
        thread.start()
        decisions = []
        try:
            number = 100
            while len(told) < 3 and number < 20_000:
                published = recorder.record([Entry(make_verdict(number))], time.monotonic_ns())
                decisions += [entry.verdict.decision.value for entry in published]
                number += 1
        finally:
            stop.set()
            thread.join()
        assert decisions == ["pass"] * (number - 100)
        assert recorder.fault == ""
    with History(path) as history:
        assert len(list(history.entries(Query()))) == 10 + number - 100
        assert len(list(read_reviews(history, every=True))) == sum(told)


def test_a_damaged_ledger_keeps_what_people_said(path: Path, make_verdict: Any) -> None:
    with Reviews(path) as reviews:
        reviews.add([review(1, Truth.DEFECT, kind="dent"), review(2)])
    with Ledger.open(path, "press") as ledger:
        ledger.replace("for a test")
        assert ledger.write([Entry(make_verdict(1))]) == [False]
    assert said(path) == [(1, "defect", "dent"), (2, "good", None)]


# --- commands ---------------------------------------------------------------------------------------------------------


def edge(*words: object, code: int = 0) -> str:
    command = [sys.executable, "-W", "error", "-m", "edge.cli", "verdicts", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def line(settings_file: Any, make_verdict: Any) -> Path:
    """Six parts; the odd ones were rejected and are archived."""
    import cv2
    import numpy as np

    file: Path = settings_file()
    paths = load_settings(file).paths
    entries = []
    for i in range(6):
        saved = i % 2 == 1
        state = ArchiveState.SAVED if saved else ArchiveState.NONE
        entries.append(Entry(make_verdict(i, "reject" if saved else "pass"), [], state, ARCHIVED.format(i)))
        if saved:
            picture = paths.archive / f"{ARCHIVED.format(i)}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(picture), np.full((8, 8), 40 * i, np.uint8))
    with Ledger.open(paths.ledger, "press") as ledger:
        ledger.write(entries)
    return file


def test_a_lines_archive_becomes_a_labelled_set(line: Path, tmp_path: Path) -> None:
    paths = load_settings(line).paths
    by_file = paths.archive / f"{ARCHIVED.format(3)}.overlay.png"
    out = edge("confirm", line, "top:1000:1", by_file, "--truth", "defect", "--kind", "dent", "--by", "ann")
    assert "2 parts confirmed: 0 good, 2 defects" in out
    out = edge("confirm", line, "6", "1", "--truth", "good", "--by", "bob", "--note", "a hair")
    assert "2 parts confirmed: 2 good" in out
    assert "1 good parts had been rejected" in out
    assert "1 of them have no frame in the archive" in out
    dataset = open_dataset(paths.data)
    assert [(item.kind, item.path.name) for item in dataset.classes[0].test] == [
        ("dent", f"{Path(ARCHIVED.format(1)).name}.png"),
        ("dent", f"{Path(ARCHIVED.format(3)).name}.png"),
        ("good", f"{Path(ARCHIVED.format(5)).name}.png"),
    ]
    shown = edge("reviews", line)
    assert "4 reviews: 2 good, 2 defects; the line rejected 1 of the good and passed 0 of the defects" in shown
    rows = [json.loads(text) for text in edge("reviews", line, "--json").splitlines()]
    assert [(row["sequence"], row["truth"], row["kind"], row["by"]) for row in rows][-1] == (0, "good", None, "bob")

    # Many at once: what `--csv` prints, with a column added; rows without a word are left out.
    table = list(csv.DictReader(io.StringIO(edge("show", line, "--csv"))))
    for row, label in zip(table, ("ok", "", "hole", "Good", "", "defect"), strict=True):
        row["label"] = label
    file = tmp_path / "labels.csv"
    with file.open("w", newline="") as text:
        writer = csv.DictWriter(text, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    assert "4 parts confirmed: 2 good, 2 defects" in edge("confirm", line, "--csv", file)
    found = {
        row["sequence"]: row["kind"] or row["truth"]
        for row in csv.DictReader(io.StringIO(edge("reviews", line, "--csv")))
    }
    assert found == {"0": "good", "1": "dent", "2": "hole", "3": "good", "5": "defect"}


def test_wrong_words_are_told(line: Path, tmp_path: Path) -> None:
    assert "no part 99" in edge("confirm", line, "99", "--truth", "good", code=1)
    assert "names no part" in edge("confirm", line, "top/x", "--truth", "good", code=1)
    assert "say what these parts are" in edge("confirm", line, "1", code=2)
    assert "name parts with --truth" in edge("confirm", line, code=2)
    file = tmp_path / "labels.csv"
    file.write_text("camera,epoch\n")
    assert "labels.csv: needs the columns" in edge("confirm", line, "--csv", file, code=1)
    file.write_text("camera,epoch,sequence,truth\ntop,1000,1,good\ntop,1000,2,fine\n")
    assert "labels.csv:3: epoch and sequence must be numbers" in edge("confirm", line, "--csv", file, code=1)
    file.write_text("camera,epoch,sequence,truth,kind\ntop,1000,1,good,dent\n")
    assert "labels.csv:2: top:1000:1: a good part has no kind" in edge("confirm", line, "--csv", file, code=1)
    assert said(load_settings(line).paths.ledger) == []


def test_a_number_that_several_parts_have(line: Path, make_verdict: Any) -> None:
    with Ledger.open(load_settings(line).paths.ledger, "press") as ledger:
        ledger.write([Entry(make_verdict(0, epoch=2000))])
    text = edge("confirm", line, "1", "--truth", "good", code=1)
    assert "several parts have the number 1: top:2000:0, top:1000:0" in text
